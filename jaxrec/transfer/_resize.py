"""Factors made wider or narrower so that what was learned survives: zeros beside them, or the best of fewer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _tree
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Params
from jaxrec.models import MatrixFactorization, TwoTower
from jaxrec.ranking._vectors import item_vectors, user_vectors

_HISTORY = "user/history/kernel"


def resize(recommender: Recommender, dim: int, *, noise: float = 0.1, seed: int = 0) -> Recommender:
    r"""The recommender with vectors of another width, for a target whose model is wider or narrower.

    Narrower: with :math:`U` and :math:`V` the vectors of the trained users and items, those of the result are
    :math:`UA` and :math:`VB` with :math:`UAB^\top V^\top` the best approximation of the scores :math:`UV^\top` of that
    rank (in the sum of squares over all trained pairs); scores whose rank is no larger stay as they are. It is found
    from the triangular factors of :math:`U` and :math:`V`, without the users x items matrix. Whoever was not trained is
    mapped alike. Biases of a ``MatrixFactorization`` are left out of it and stay.

    Wider: the new numbers of users are 0 and those of items random, so scores stay as they are and training can use
    the new numbers.

    Args:
      recommender: of a ``MatrixFactorization``, or of a ``TwoTower`` whose features are concatenated and which, to be
        narrowed, reads no history. Merge adapters first.
      dim: the new width, another one than before.
      noise: size of the items' new numbers as a share of the others' root mean square; with 0 the new numbers of both
        sides are 0 and get no gradient.
      seed: of the noise.

    Returns:
      A recommender of the model with ``dim``; everything else stays.

    Raises:
      ValueError: the model is of another kind, ``dim`` is below 1 or the width already, ``noise`` is negative or not
        finite.

    References:
      Eckart and Young, The approximation of one matrix by another of lower rank, Psychometrika 1, 1936.
    """
    expect(recommender, Recommender, "recommender")
    model = recommender.model
    if not isinstance(model, MatrixFactorization | TwoTower) or getattr(model, "fusion", "") not in (
        "",
        "concatenation",
    ):
        raise ValueError(
            f"Expected a MatrixFactorization or a TwoTower with fusion='concatenation', got {model}. Of other models "
            "the width is not that of two factors alone."
        )
    if dim < 1 or dim == model.dim:
        raise ValueError(f"Expected dim >= 1 and another width than the model's {model.dim}, got {dim}.")
    if not 0 <= noise < np.inf:
        raise ValueError(f"Expected noise >= 0 and finite, got {noise}.")
    leaves = _of_width(model, recommender.params)
    if dim > model.dim:
        changed = _widened(recommender.params, leaves, dim - model.dim, noise, seed)
    elif isinstance(model, TwoTower) and model.history:
        raise ValueError(
            "A TwoTower that reads a history cannot be narrowed: items' vectors are read on both sides, and what is "
            "best for one is not for the other. Widen it, or train the narrower one anew."
        )
    else:
        maps = _best(*_trained(recommender), dim)
        changed = {
            path: (np.asarray(leaf, np.float64) @ maps[side]).astype(leaf.dtype)
            for side, paths in leaves.items()
            for path, leaf in paths.items()
        }
    model = dataclasses.replace(model, dim=dim)
    params = _tree.replace(recommender.params, {path: jnp.asarray(leaf) for path, leaf in changed.items()})
    return recommender.replace(model=model, params=params)  # a mean of rows, where row 0 is that, is one still


def _of_width(model: MatrixFactorization | TwoTower, params: Params) -> dict[str, dict[str, jax.Array]]:
    """By side the leaves whose last axis is that of the vectors, by path."""
    names = ["embedding"]
    if isinstance(model, TwoTower):
        names += ["bias", f"mlp/{len(model.hidden)}/kernel"]
    leaves = _tree.flatten(params)
    found = {
        side: {path: leaves[path] for name in names if (path := f"{side}/{name}") in leaves}
        for side in ("user", "item")
    }
    wrong = [
        path for paths in found.values() for path, leaf in paths.items() if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if wrong:
        raise ValueError(f"Expected parameters that are floats, got {leaves[wrong[0]].dtype} in {wrong[0]!r}.")
    return found


def _trained(recommender: Recommender) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the trained users and of the trained items, float64."""
    features, model = recommender.encoder.features, recommender.model
    users, items = (np.flatnonzero(row).astype(np.int32) for row in (features.user_row, features.item_row))
    if isinstance(model, MatrixFactorization):
        tables = (recommender.params[side]["embedding"] for side in ("user", "item"))
        rows = (np.asarray(features.user_row)[users], np.asarray(features.item_row)[items])
        user, item = (np.asarray(table, np.float64)[row] for table, row in zip(tables, rows, strict=True))
        return user, item
    plain = recommender.replace(seen=recommender.trained)  # what was added since is folded in, which is no parameter
    return np.asarray(user_vectors(plain, users), np.float64), np.asarray(item_vectors(plain, items), np.float64)


def _best(user: np.ndarray, item: np.ndarray, dim: int) -> dict[str, np.ndarray]:
    """Maps ``[old, dim]`` of both sides' vectors whose product best keeps their inner products."""
    # With U = P R and V = Q S the scores are P (R S^T) Q^T, so the small matrix has their singular values.
    right, left = (np.asarray(np.linalg.qr(each, mode="r")) for each in (user, item))
    x, values, y = np.linalg.svd(right @ left.T, full_matrices=False)
    kept = min(dim, int((values > 1e-12 * values.max(initial=0.0)).sum()))
    root = np.sqrt(values[:kept])[None, :]
    missing = ((0, 0), (0, dim - kept))
    return {
        "user": np.pad(left.T @ y[:kept].T / root, missing),
        "item": np.pad(right.T @ x[:, :kept] / root, missing),
    }


def _widened(
    params: Params, leaves: dict[str, dict[str, jax.Array]], more: int, noise: float, seed: int
) -> dict[str, jax.Array]:
    changed = {
        path: jnp.pad(leaf, ((0, 0),) * (leaf.ndim - 1) + ((0, more),))
        for paths in leaves.values()
        for path, leaf in paths.items()
    }
    path = (
        list(leaves["item"])[-1] if len(leaves["item"]) > 2 else "item/embedding"
    )  # what content says, if there is any
    leaf = leaves["item"][path]
    size = noise * float(jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32)))))
    drawn = size * jax.random.normal(jax.random.key(seed), (leaf.shape[0], more), jnp.float32)
    if path == "item/embedding":
        drawn = drawn.at[0].set(0.0)  # the unknown's, which no training would correct
    changed[path] = changed[path].at[:, leaf.shape[1] :].set(drawn.astype(leaf.dtype))
    kernel = _tree.flatten(params).get(_HISTORY)
    if kernel is not None:
        changed[_HISTORY] = jnp.pad(kernel, ((0, more), (0, more)))
    return changed
