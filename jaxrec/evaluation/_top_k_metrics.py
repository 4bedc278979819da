"""Metrics of ranked lists, per user. Definitions agree with the usual NumPy evaluators; see each function."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from jaxrec.ranking._top_k import top_k

NAMES = ("recall", "precision", "hit", "ndcg", "mrr", "map")


def from_hits(
    hit: Bool[jax.Array, "users length"], relevant: Int[jax.Array, " users"], *, k: int
) -> dict[str, Float[jax.Array, " users"]]:
    """Every metric at ``k`` of lists of which is known which members are relevant.

    Args:
      hit: whether the item at each rank is relevant, best rank first; at least ``k`` ranks.
      relevant: how many items are relevant.
      k: cut-off, static under ``jit``.

    Returns:
      float32 by name, as in ``NAMES``; NaN for a user without a relevant item.
    """
    hits = hit[:, :k].astype(jnp.float32)
    wanted = relevant.astype(jnp.float32)
    rank = jnp.arange(1, k + 1, dtype=jnp.float32)
    discount = 1.0 / jnp.log2(rank + 1.0)
    ideal = jnp.concatenate([jnp.zeros(1), jnp.cumsum(discount)])[jnp.minimum(relevant, k)]
    found = jnp.cumsum(hits, axis=1)
    values = {
        "recall": hits.sum(axis=1) / wanted,
        "precision": hits.sum(axis=1) / k,
        "hit": hits.max(axis=1, initial=0.0),
        "ndcg": (hits * discount[None, :]).sum(axis=1) / ideal,  # a product may round, and a perfect list lack of 1
        "mrr": (hits / rank[None, :]).max(axis=1, initial=0.0),
        "map": (hits * found / rank[None, :]).sum(axis=1) / jnp.minimum(wanted, float(k)),
    }
    return {name: jnp.where(relevant > 0, value, jnp.nan) for name, value in values.items()}


def recall_at_k(
    scores: Float[jax.Array, "users items"],
    relevant: Bool[jax.Array, "users items"],
    *,
    k: int,
    exclude: Bool[jax.Array, "users items"] | None = None,
) -> Float[jax.Array, " users"]:
    """Share of each user's relevant items that are among the top ``k``.

    Args:
      scores: predicted score of every item; higher ranks first, equal scores by lower item index. Compared in float32.
        Likewise in the other functions.
      relevant: held-out positives.
      k: cut-off in items, static under ``jit``; ``1 <= k <= items``.
      exclude: items never recommended (usually the training history). An item that is both relevant and excluded
        counts as not relevant.

    Returns:
      float32 in [0, 1]. NaN for a user without a relevant item, so that the caller has to say how such users enter
      a mean. Under ``jit`` NaN also for a user with a NaN score of an item that is not excluded.

    Raises:
      ValueError: ``k`` is outside ``1 .. items``, shapes differ, or outside ``jit`` the score of an item that is not
        excluded is NaN, so that it has no rank.
      TypeError: ``relevant`` or ``exclude`` is not bool.

    Examples:
      >>> scores = jnp.array([[3.0, 2.0, 1.0]])
      >>> print(f"{recall_at_k(scores, jnp.array([[True, False, True]]), k=1)[0]:.2f}")
      0.50
    """
    return _metric("recall", scores, relevant, k, exclude)


def precision_at_k(
    scores: Float[jax.Array, "users items"],
    relevant: Bool[jax.Array, "users items"],
    *,
    k: int,
    exclude: Bool[jax.Array, "users items"] | None = None,
) -> Float[jax.Array, " users"]:
    """Share of the top ``k`` that is relevant; divided by ``k`` even where fewer items are left.

    Arguments, result and errors as for ``recall_at_k``.

    Examples:
      >>> scores = jnp.array([[3.0, 2.0, 1.0]])
      >>> print(f"{precision_at_k(scores, jnp.array([[True, False, True]]), k=2)[0]:.2f}")
      0.50
    """
    return _metric("precision", scores, relevant, k, exclude)


def hit_rate_at_k(
    scores: Float[jax.Array, "users items"],
    relevant: Bool[jax.Array, "users items"],
    *,
    k: int,
    exclude: Bool[jax.Array, "users items"] | None = None,
) -> Float[jax.Array, " users"]:
    """1 where any of the top ``k`` is relevant, else 0.

    Arguments, result and errors as for ``recall_at_k``.

    Examples:
      >>> scores = jnp.array([[3.0, 2.0, 1.0]])
      >>> print(f"{hit_rate_at_k(scores, jnp.array([[False, False, True]]), k=2)[0]:.0f}")
      0
    """
    return _metric("hit", scores, relevant, k, exclude)


def ndcg_at_k(
    scores: Float[jax.Array, "users items"],
    relevant: Bool[jax.Array, "users items"],
    *,
    k: int,
    exclude: Bool[jax.Array, "users items"] | None = None,
) -> Float[jax.Array, " users"]:
    r"""Normalised discounted cumulative gain of each user's top ``k``.

    A relevant item at rank :math:`r` (from 1) gains :math:`1 / \log_2(r + 1)`; the ideal list has
    ``min(k, relevant items)`` of them at the top. Arguments, result and errors as for ``recall_at_k``.

    Examples:
      >>> scores = jnp.array([[3.0, 2.0, 1.0]])
      >>> print(f"{ndcg_at_k(scores, jnp.array([[False, True, False]]), k=2)[0]:.4f}")
      0.6309

    References:
      Jarvelin and Kekalainen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4), 2002 (binary gains;
      ideal list cut at ``k``).
    """
    return _metric("ndcg", scores, relevant, k, exclude)


def mrr_at_k(
    scores: Float[jax.Array, "users items"],
    relevant: Bool[jax.Array, "users items"],
    *,
    k: int,
    exclude: Bool[jax.Array, "users items"] | None = None,
) -> Float[jax.Array, " users"]:
    """One over the rank of the first relevant item in the top ``k``, 0 where there is none.

    Arguments, result and errors as for ``recall_at_k``.

    Examples:
      >>> scores = jnp.array([[3.0, 2.0, 1.0]])
      >>> print(f"{mrr_at_k(scores, jnp.array([[False, True, True]]), k=3)[0]:.2f}")
      0.50
    """
    return _metric("mrr", scores, relevant, k, exclude)


def map_at_k(
    scores: Float[jax.Array, "users items"],
    relevant: Bool[jax.Array, "users items"],
    *,
    k: int,
    exclude: Bool[jax.Array, "users items"] | None = None,
) -> Float[jax.Array, " users"]:
    """Average precision: the mean of the precision at the rank of each relevant item in the top ``k``.

    Divided by ``min(k, relevant items)``. Arguments, result and errors as for ``recall_at_k``.

    Examples:
      >>> scores = jnp.array([[3.0, 2.0, 1.0]])
      >>> print(f"{map_at_k(scores, jnp.array([[True, False, True]]), k=3)[0]:.4f}")
      0.8333
    """
    return _metric("map", scores, relevant, k, exclude)


def _metric(name: str, scores: jax.Array, relevant: jax.Array, k: int, exclude: jax.Array | None) -> jax.Array:
    shapes = {"scores": scores.shape, "relevant": relevant.shape}
    shapes |= {} if exclude is None else {"exclude": exclude.shape}
    if len(set(shapes.values())) > 1 or scores.ndim != 2:
        raise ValueError(f"Expected arrays [users, items] of one shape, got {shapes}. Give a row for each user.")
    for what, mask in (("relevant", relevant), ("exclude", exclude)):
        if mask is not None and mask.dtype != bool:
            raise TypeError(f"Expected bool for {what}, got {mask.dtype}, and there are no grades. Say {what} > 0.")
    unranked = jnp.isnan(scores) if exclude is None else jnp.isnan(scores) & ~exclude
    if not isinstance(unranked, Tracer) and unranked.any():
        raise ValueError(
            f"{int(unranked.sum())} scores are NaN, so these items have no rank. Look for NaN in the model, or "
            "exclude them."
        )
    position = top_k(scores, k=k, exclude=exclude).position
    wanted = relevant if exclude is None else relevant & ~exclude
    hit = jnp.take_along_axis(wanted, jnp.maximum(position, 0), axis=1) & (position >= 0)
    values = from_hits(hit, wanted.sum(axis=1, dtype=jnp.int32), k=k)[name]
    return jnp.where(unranked.any(axis=1), jnp.nan, values)
