"""Exact top-k of masked scores, in blocks of users so that no users x items array is built."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

_SCORES = 2**24  # most scores of a block: 64 MiB in float32; a few blocks are at work at once
_USERS = 512  # most users of a block
GROUP = 16  # neighbours of which the best is looked at first
_MANY = 2048  # candidates from which that is faster


class TopK(NamedTuple):
    """Lists of candidates, best first. Where a user has fewer than ``k``, ``position`` is -1 and the score -inf."""

    score: Float[jax.Array, "users k"]
    position: Int32[jax.Array, "users k"]


def top_k(
    scores: Float[jax.Array, "users candidates"], *, k: int, exclude: Bool[jax.Array, "users candidates"] | None = None
) -> TopK:
    """The ``k`` best candidates of each user.

    Args:
      scores: any float dtype, compared in float32. Equal scores (0 and -0 included): lower position first. Minus
        infinity ranks like the lowest finite number; NaN has no rank, check for it before.
      k: length of the lists, static under ``jit``.
      exclude: candidates never listed.

    Returns:
      Scores and positions along the second axis of ``scores``.

    Raises:
      ValueError: ``k`` is outside ``1 .. candidates``.

    Examples:
      >>> top_k(jnp.array([[1.0, 3.0, 3.0]]), k=2).position.tolist()
      [[1, 2]]
    """
    scores = _comparable(scores)
    return _listed(scores if exclude is None else jnp.where(exclude, -jnp.inf, scores), k)


def _comparable(scores: jax.Array) -> jax.Array:
    """In float32, where minus infinity is left to what is never listed and 0 has no sign."""
    scores = jnp.maximum(scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    return jnp.where(scores == 0, 0.0, scores)


def _listed(scores: jax.Array, k: int) -> TopK:
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(
            f"Expected k in 1 .. {scores.shape[1]} (the number of candidates), got {k}. Lists cannot be longer than "
            "the catalogue."
        )
    best, position = best_of_each(scores, k)
    return TopK(best, jnp.where(best == -jnp.inf, -1, position))


def best_of_each(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """``lax.top_k``, which on CPU looks at one number after the other: there few are left to look at."""
    if scores.shape[1] < max(_MANY, 8 * GROUP * k):
        return _plain(scores, k=k)
    by_groups, plain = functools.partial(_best_by_groups, k=k), functools.partial(_plain, k=k)
    return jax.lax.platform_dependent(scores, cpu=by_groups, default=plain)


def _plain(scores: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    best, position = jax.lax.top_k(scores, k)
    return best, position


def _best_by_groups(scores: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """The ``k`` best are in the ``k`` groups of neighbours whose best are best."""
    users, num = scores.shape
    grid = jnp.pad(scores, ((0, 0), (0, -num % GROUP)), constant_values=-jnp.inf).reshape(users, -1, GROUP)
    # In order of position, so that of equal scores the lower position comes first.
    group = jnp.sort(jax.lax.top_k(grid.max(axis=2), k)[1], axis=1)
    members = jnp.take_along_axis(grid, group[:, :, None], axis=1)
    best, place = jax.lax.top_k(members.reshape(users, k * GROUP), k)
    return best, jnp.take_along_axis(group, place // GROUP, axis=1) * GROUP + place % GROUP


class Pairs(NamedTuple):
    """Cells of a users x candidates array, padded with positions outside it."""

    row: np.ndarray
    column: np.ndarray

    @classmethod
    def padded(cls, row: np.ndarray, column: np.ndarray, outside: int) -> "Pairs":
        """Padded to a power of two, so that few shapes are compiled; ``outside`` is past the last column."""
        missing = max(16, 1 << (max(len(row), 1) - 1).bit_length()) - len(row)
        return cls(
            np.pad(row.astype(np.int32), (0, missing)),
            np.pad(column.astype(np.int32), (0, missing), constant_values=outside),
        )


class Block(NamedTuple):
    """What ``select`` returns for a block of users."""

    top: TopK
    nan: Bool[jax.Array, ""]  # whether a candidate that counts has no rank


@functools.partial(jax.jit, static_argnames=("k",))
def select(
    scores: Float[jax.Array, "users candidates"],
    live: Bool[jax.Array, " candidates"],
    exclude: Pairs,
    *,
    k: int,
) -> Block:
    """Top-k lists.

    Args:
      scores: of every candidate.
      live: False for the padding of the candidates.
      exclude: pairs never listed.
      k: length of the lists, static.
    """
    # Of floats in their total order the NaN without a sign comes first, so that looking at the best of each user is
    # enough; one with a sign would come last.
    scores = _comparable(jnp.where(jnp.isnan(scores), jnp.nan, scores))
    scores = jnp.where(live[None, :], scores, -jnp.inf)
    # Written last: what is computed before is then not computed again for each of its readers.
    top = _listed(scores.at[exclude.row, exclude.column].set(-jnp.inf, mode="drop"), k)
    return Block(top, jnp.isnan(top.score).any())


def most_users(num_candidates: int) -> int:
    """How many users are scored at once, a power of two: it bounds the memory of their scores."""
    most = max(1, min(_USERS, _SCORES // max(num_candidates, 1)))
    return 1 << (most.bit_length() - 1)


def user_blocks(num_users: int, num_candidates: int) -> Iterator[tuple[np.ndarray, int]]:
    """``(positions, size)``: users in blocks of one size, the last of which is shorter than ``size``.

    Sizes are powers of two, so that few shapes are compiled, and bound the memory of a block's scores.
    """
    size = min(most_users(num_candidates), 1 << (max(num_users, 1) - 1).bit_length())
    for start in range(0, num_users, size):
        yield np.arange(start, min(start + size, num_users)), size


def padded(values: Any, size: int) -> np.ndarray:
    """``values`` with zeros up to ``size`` rows."""
    values = np.asarray(values)
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])
