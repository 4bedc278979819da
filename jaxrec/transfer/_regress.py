"""From what a shared user touched in one domain straight to what they touch in the other, by one regression."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec._expect import expect
from jaxrec._recommender import Recommender, order_of
from jaxrec.coldstart._ridge import ridge
from jaxrec.data import Dataset, TfidfSVD
from jaxrec.data._tfidf import TooFewDimensions
from jaxrec.models import MatrixFactorization
from jaxrec.transfer._carry import need_shared

TOUCHED = "touched"


def regress(source: Dataset, target: Dataset, *, dim: int | None = None, l2: float | None = None) -> Recommender:
    r"""Scores of the target's items by ridge regression on a user's history in the source.

    The users of both domains are the examples. With :math:`x_u` the history in the source as a vector (TF-IDF of the
    items touched, on the first ``dim`` singular vectors, of length 1), :math:`y_u` ones where the user touched an item
    of the target, and :math:`\bar y` the share of shared users who did,

    .. math:: s_u = \bar y + (x_u - \bar x) W, \quad
        W = \arg\min \sum_u \lVert y_u - s_u \rVert^2 + \lambda \lVert W \rVert^2

    It knows nothing of users of the target alone, and of an item only through shared users; whoever has no history in
    the source gets what is popular among shared users, which is a better guess for a newcomer from the source than what
    is popular in the target. Blend it with ``emcdr``, which knows the rest (``transfer.blend``).

    Memory: about three arrays of float64, shared users x items of the target, while fitting.

    Args:
      source: the other domain's training part.
      target: the target's. Users are the same by raw id. A pair counts once however often it occurs.
      dim: width of the histories' vectors, less than there are shared users; by default 256, or half of the number of
        users trained in both domains, or of the items that they touched in the source, where that is less.
      l2: :math:`\lambda`, of sums over users; by default what generalised cross-validation chooses.

    Returns:
      A recommender of a ``MatrixFactorization`` whose users are those of both domains, each with a vector.

    Raises:
      ValueError: fewer than two users are shared, or no more than ``dim``, a domain has no users or no items, or an
        option is out of range.

    References:
      Hoerl and Kennard, Ridge regression, Technometrics 12(1), 1970. With a linear kernel of users' histories this is
      the linear map from item to item of SLIM and EASE, between domains and without a constraint on the diagonal.
    """
    return regressed(source, target, dim=dim, l2=l2)


def regressed(
    source: Dataset, target: Dataset, *, dim: int | None = None, l2: float | None = None, most: int = 256
) -> Recommender:
    """See ``regress``; where ``dim`` is None the width is ``most`` at most."""
    for name, part in (("source", source), ("target", target)):
        expect(part, Dataset, name)
        if part.user is None or part.item is None:
            raise ValueError(f"The {name} has no users or no items. Name both columns in its schema.")
    if l2 is not None and not l2 > 0:
        raise ValueError(f"Expected l2 > 0, or None to choose it, got {l2}.")
    frame = histories(source)
    if source.encoder.users.type_name != target.encoder.users.type_name:
        raise ValueError("No user is shared: ids of the two domains are of different types. Convert one column.")
    encoder = target.encoder.extend(users=frame["user"].to_numpy())
    index = encoder.users.encode(frame["user"])
    touched = target.interactions
    count = np.zeros(len(encoder.features.user_row), np.int64)
    count[: touched.num_users] = touched.user_count
    shared = count[index] > 0
    need_shared(int(shared.sum()), len(frame), int(np.count_nonzero(count)))
    narrower = dim is None
    if dim is None:
        items = {item for touched in frame.loc[shared, TOUCHED] for item in touched}
        dim = max(min(most, int(shared.sum()) // 2, len(items) // 2), 1)
    if not 1 <= dim < shared.sum():
        raise ValueError(
            f"Expected 1 <= dim < {int(shared.sum())}, the number of users trained in both domains, got {dim}."
        )
    reduced = reduced_to(frame[shared], dim, narrower=narrower)
    dim = int(reduced.components.shape[1])
    vectors = np.zeros((len(frame), dim), np.float32)
    known = reduced.transform(frame, into="vector")["vector"]
    described = known.notna().to_numpy()
    vectors[described] = np.stack(known[described].to_list())
    encoder = encoder.with_rows("user", np.concatenate([index, np.flatnonzero(count)]))
    row, item_row = np.asarray(encoder.features.user_row), np.asarray(encoder.features.item_row)
    y = np.zeros((int(shared.sum()), encoder.item_rows), np.float32)
    position, pairs = touched.rows_of(index[shared])
    y[position, item_row[touched.item[pairs]]] = 1.0
    found = ridge(vectors[shared], y, l2=l2)
    mean = vectors[shared].mean(axis=0, dtype=np.float64)
    users = np.zeros((encoder.user_rows, dim), np.float32)
    users[row[index[described]]] = vectors[described] - mean
    params = {
        "user": {"embedding": jnp.asarray(users), "bias": jnp.zeros((encoder.user_rows, 1), jnp.float32)},
        "item": {
            "embedding": jnp.asarray(found.kernel.T, jnp.float32),
            "bias": jnp.asarray((found.intercept + mean @ found.kernel)[:, None], jnp.float32),
        },
        "bias": jnp.zeros((), jnp.float32),
    }
    model = MatrixFactorization(user_rows=encoder.user_rows, item_rows=encoder.item_rows, dim=dim)
    log = ({"epoch": 1, "loss": found.error, "l2": found.l2},)
    seen = dataclasses.replace(touched, num_users=len(row))
    return Recommender(model, params, encoder, seen, len(seen), link=order_of(seen), log=log)


def reduced_to(frame: pd.DataFrame, dim: int, *, narrower: bool, seed: int = 0) -> TfidfSVD:
    """Histories as ``dim`` numbers; where they span fewer and it may be ``narrower``, as a half, a quarter, ...

    Raises:
      ValueError: histories span fewer dimensions, or cannot be read at all.
    """
    try:
        return TfidfSVD.fit(frame, TOUCHED, dim=dim, min_items=1, seed=seed)
    except ValueError as error:
        if narrower and dim > 1 and isinstance(error, TooFewDimensions):
            while dim > max(error.rank, 1):
                dim //= 2
            return reduced_to(frame, dim, narrower=True, seed=seed)
        raise ValueError(f"Histories could not be reduced to {dim} numbers: {error}") from None


def histories(source: Dataset) -> pd.DataFrame:
    """A row per user with the indices of the items touched, each once."""
    touched = source.interactions
    pairs = pd.DataFrame({"user": touched.user, TOUCHED: touched.item}).drop_duplicates()
    frame = pairs.groupby("user")[TOUCHED].agg(list).reset_index()
    return frame.assign(user=source.encoder.users.decode(frame["user"].to_numpy()))
