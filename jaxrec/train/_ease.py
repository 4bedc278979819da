"""EASE: the linear item-to-item model whose weights have a closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxrec._exact import exact
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Array
from jaxrec.data import Dataset
from jaxrec.data._counting import distinct
from jaxrec.models import ItemWeights
from jaxrec.train._choices import check_rows
from jaxrec.train._implicit import history_length, need_plain

_NUMBERS = 2**24  # of the users x items array that is multiplied at once
_PAIR = 7000  # multiplications and additions of a product that take as long as counting one pair (two CPU cores)
_PAIRS = 2**22  # that are counted at once
_BLOCK = 1024  # columns of a symmetric or triangular matrix whose other half is left out


def fit_ease(train: Dataset, *, l2: float | pd.Series = 500.0, history: int | None = None) -> Recommender:
    r"""Weights between all pairs of items by ridge regression with a zero diagonal (EASE).

    With :math:`X` the users x items matrix of ones where a user touched an item, minimises

    .. math:: \lVert X - X B \rVert^2 + \sum_{ij} \lambda_i B_{ij}^2 \quad \text{with} \quad B_{ii} = 0

    which is solved by :math:`B = I - P \,\mathrm{diag}(1 / \mathrm{diag} P)`,
    :math:`P = (X^\top X + \mathrm{diag} \lambda)^{-1}`.
    There are no users in it: whoever has a history is scored from it, so nobody needs training. An item of which there
    was no interaction scores 0, and so does everything for a user without any: ``coldstart.or_popular`` gives those the
    most popular items, a method with content something of their own.

    Memory: the square of the number of trained items, in float32, about three times while fitting (20,000 items: 1.6 GB
    each) and twice after; time: its cube, or where there are half as many users or fewer, its square times their number
    (of a penalty of a hundredth of their number or more). The same arguments give the same weights.

    Args:
      train: implicit feedback. A pair counts once however often it occurs.
      l2: :math:`\lambda`, positive; larger with more users. Or one for each item, by raw id: that of the weights from
        this item to others. On stacked domains (``transfer.stack``) a larger one for the source's items says how far
        they are to be trusted: ``stacked.items.set_index("item")["domain"].map({"books": 3000.0, "films": 300.0})``.
      history: longest history that is read when scoring, by default the longest in training; of a longer one the
        latest. Training reads everything.

    Returns:
      A recommender of an ``ItemWeights``.

    Raises:
      ValueError: the data has targets or weights, no users or no items, or items without a table row; an option is out
        of range, or ``l2`` lacks an item, has one twice, or is so small that float32 has too few digits.

    References:
      Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019. The matrix is scaled to a unit diagonal and
      inverted by Cholesky in float32, which agrees with double precision to about 1e-5 of the largest weight (of
      a penalty of 0.1, where few users touch alike items, to 5e-4).
    """
    expect(train, Dataset, "train")
    need_plain(train)
    row = np.asarray(train.features.item_row)
    model = ItemWeights(item_rows=int(row.max()) + 1, history=history_length(train, history))
    check_rows(model, train)
    penalty = _penalties(l2, train, model.item_rows)
    seen = train.interactions
    users = np.flatnonzero(seen.user_count)
    least = penalty[row[row > 0]].min(initial=np.inf)
    if 2 * len(users) <= model.item_rows and 100 * least >= len(users):
        weights = _solved_by_users(_touched(train, users, len(users), model.item_rows), penalty)
    else:
        gram = _gram(train, users, model.item_rows)
        weights = _solved(gram, penalty)
    if not bool(jnp.isfinite(weights).all()):
        raise ValueError(
            f"Float32 has too few digits for l2 down to {least:g} with {len(users)} users. Raise l2; tens to "
            "thousands are usual."
        )
    return Recommender(model, {"item": {"weights": weights}}, train.encoder, seen, len(seen))


def _penalties(l2: float | pd.Series, train: Dataset, rows: int) -> np.ndarray:
    """Float32 by table row."""
    row = np.asarray(train.features.item_row)
    trained = np.flatnonzero(row)
    if isinstance(l2, pd.Series):
        if l2.index.has_duplicates:
            twice = l2.index[l2.index.duplicated()].tolist()[0]
            raise ValueError(f"Expected one l2 for each item, {twice!r} has several. Keep one of them.")
        values = l2.reindex(pd.Index(train.encoder.items.decode(trained))).to_numpy(np.float64)
        if np.isnan(values).any():
            missing = train.encoder.items.decode(trained[np.isnan(values)][:3])
            raise ValueError(
                f"Expected l2 for each of {len(trained)} items that were trained, by raw id; missing: "
                f"{int(np.isnan(values).sum())}, such as {', '.join(map(repr, missing.tolist()))}."
            )
    elif np.ndim(l2):
        raise TypeError(f"Expected l2 to be a number or a Series by raw id of the items, got {type(l2).__name__}.")
    else:
        values = np.full(len(trained), l2, np.float64)
    single = np.finfo(np.float32)
    wrong = values[~((values >= single.tiny) & (values <= single.max))]
    if len(wrong):
        raise ValueError(
            f"Expected l2 > 0 and finite in float32, got {wrong[0]}. Without it the matrix may have no inverse."
        )
    found = np.ones(rows, np.float32)  # the unknown's row is zero whatever its penalty
    found[row[trained]] = values
    return found


def _gram(train: Dataset, users: np.ndarray, rows: int) -> jax.Array:
    """How many users touched both of two items: counted pair by pair where that is less work than a product."""
    row, seen = np.asarray(train.features.item_row), train.interactions
    key = distinct(seen.user.astype(np.int64) * rows + row[seen.item])
    user, item = np.divmod(key, rows)
    _, start, count = np.unique(user, return_index=True, return_counts=True)
    if _PAIR * (count.astype(np.float64) ** 2).sum() > len(users) * float(rows) ** 2:
        gram = jnp.zeros((rows, rows), jnp.float32)
        step = max(_NUMBERS // rows, 1)
        for first in range(0, len(users), step):
            gram = _with_products(gram, _touched(train, users[first : first + step], min(step, len(users)), rows))
        return gram
    partners, start = np.repeat(count, count), np.repeat(start, count)  # of each touch all touches of the same user
    end = np.cumsum(partners)
    counted = np.zeros(rows * rows, np.float32)
    first = 0
    while first < len(key):
        last = max(int(np.searchsorted(end, end[first] - partners[first] + _PAIRS, side="right")), first + 1)
        length = partners[first:last]
        other = np.repeat(start[first:last] - np.cumsum(length) + length, length) + np.arange(length.sum())
        np.add.at(counted, np.repeat(item[first:last], length) * rows + item[other], 1.0)
        first = last
    return jnp.asarray(counted.reshape(rows, rows))


def _touched(train: Dataset, users: np.ndarray, size: int, rows: int) -> Float[np.ndarray, "size rows"]:
    """A row of ones and zeros for each of the users, then rows of zeros."""
    position, of_users = train.interactions.rows_of(users)
    touched = np.zeros((size, rows), np.float32)
    touched[position, np.asarray(train.features.item_row)[train.interactions.item[of_users]]] = 1.0
    return touched


@functools.partial(jax.jit, donate_argnums=0)
def _with_products(gram: jax.Array, touched: jax.Array) -> jax.Array:
    return gram + touched.T @ touched  # whole numbers: exact in any precision that accumulates in float32


@functools.partial(jax.jit, donate_argnums=0)
@exact
def _solved(gram: Float[jax.Array, "rows rows"], l2: Float[Array, " rows"]) -> Float[jax.Array, "rows rows"]:
    """Row i: the weights of the items to item i. The unknown's row and column are zero and stay so."""
    size = gram.shape[0]
    matrix = gram + jnp.diag(jnp.asarray(l2))
    # A popular item's row is thousands of times larger than a rare one's, which would cost as many digits.
    scale = jax.lax.rsqrt(jnp.diag(matrix))
    root = _inverted(jnp.linalg.cholesky(matrix * scale[:, None] * scale[None, :]))
    inverse = _squared(root, lower=True)
    weights = -inverse * scale[None, :] / (scale * jnp.diag(inverse))[:, None]
    return jnp.where(jnp.eye(size, dtype=bool), 0.0, weights)


def _inverted(lower: Float[jax.Array, "rows rows"]) -> Float[jax.Array, "rows rows"]:
    """Of a lower triangular matrix, in place, block of columns by block: a third of solving for the whole identity."""
    size = len(lower)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        one = jnp.eye(size - first, last - first, dtype=lower.dtype)
        part = jax.scipy.linalg.solve_triangular(lower[first:, first:], one, lower=True)
        lower = lower.at[first:, first:last].set(part)
    return lower


def _squared(root: Float[jax.Array, "size rows"], *, lower: bool = False) -> Float[jax.Array, "rows rows"]:
    """``root.T @ root``, of which half is multiplied and the rest mirrored; in place and a third where it is lower."""
    size = root.shape[1]
    product = root if lower else jnp.zeros((size, size), root.dtype)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        left = product[first:] if lower else root  # above are zeros, written over by now
        part = left[:, first:last].T @ left[:, :last]
        product = product.at[first:last, :last].set(part)
        product = product.at[:first, first:last].set(part[:, :first].T)
    return product


@jax.jit
@exact
def _solved_by_users(touched: Float[Array, "users rows"], l2: Float[Array, " rows"]) -> Float[jax.Array, "rows rows"]:
    r"""The same where there are few users, from a matrix of users x users.

    With :math:`Y = X \Lambda^{-1/2}` Woodbury's identity gives
    :math:`P = \Lambda^{-1/2} (I - Y^\top (I + Y Y^\top)^{-1} Y) \Lambda^{-1/2}`. Of the identity's
    diagonal at least :math:`\lambda / (\lambda + n)` is left with n users, so a small penalty would cost digits.
    """
    scale = jax.lax.rsqrt(jnp.asarray(l2))
    scaled = touched * scale[None, :]
    lower = jnp.linalg.cholesky(jnp.eye(len(scaled), dtype=scaled.dtype) + scaled @ scaled.T)
    root = jax.scipy.linalg.solve_triangular(lower, scaled, lower=True)
    left = 1.0 - (root * root).sum(axis=0)
    weights = _squared(root) * scale[None, :] / (scale * left)[:, None]
    return jnp.where(jnp.eye(len(scale), dtype=bool), 0.0, weights)
