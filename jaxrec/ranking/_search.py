"""Exact top-k of inner products in a large catalogue, without holding all scores."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float, Int

from jaxrec import _sharded
from jaxrec._exact import exact
from jaxrec._recommender import Recommender
from jaxrec._types import Array
from jaxrec.data._counting import grouped
from jaxrec.models._base import among
from jaxrec.ranking._top_k import GROUP, Block, Pairs, TopK, best_of_each, padded, select, top_k, user_blocks
from jaxrec.ranking._vectors import Scorer, candidate_vectors, scorer, user_vectors

_BLOCK = 2048  # items whose scores are computed at once: they stay in the cache until their groups' best are known
_FEW = 16  # users of whom all scores are computed at once: reading the items bounds the time
_LARGE = 2**15  # candidates from which this is faster than sorting all scores
_USERS_SHARE = 4  # a user's share of memory is a sixteenth of the scores, and as much again for exclusions
_GATHERED = 2**26  # numbers of the items that are scored again at once; more where one user alone needs more


class Ranker(NamedTuple):
    """How to rank candidates, and how to cut users into blocks for it."""

    rank: Callable[[np.ndarray, int, Pairs, int], Block]
    """``(users, size, exclude, k)``: the lists of some users (entity indices), padded to ``size``."""
    blocks: Callable[[int], list[tuple[np.ndarray, int]]]
    """As ``user_blocks`` cuts so many users."""
    num_candidates: int
    threads: bool  # whether several may rank at once


def ranker(recommender: Recommender, candidates: np.ndarray) -> Ranker:
    """How to rank ``candidates`` (entity indices, padded with 0)."""
    mesh = recommender.mesh
    if recommender.factorises and (len(candidates) >= _LARGE or mesh is not None):
        return _by_groups(recommender, candidates)
    plain = by_scores(scorer(recommender, candidates), candidates, threads=mesh is None)
    return plain._replace(
        blocks=lambda num_users: [(block, _sharded.rounded(size, mesh)) for block, size in plain.blocks(num_users)]
    )


def by_scores(score_of: Scorer, candidates: np.ndarray, *, threads: bool) -> Ranker:
    """Ranks by sorting all scores of a block of users."""
    live = jnp.asarray(candidates > 0)

    def rank(users: np.ndarray, size: int, exclude: Pairs, k: int) -> Block:
        return select(score_of(users, size), live, exclude, k=k)

    return Ranker(rank, lambda num_users: list(user_blocks(num_users, len(candidates))), len(candidates), threads)


def _by_groups(recommender: Recommender, candidates: np.ndarray) -> Ranker:
    mesh, outside = recommender.mesh, len(candidates)
    items, live = _filled(candidate_vectors(recommender, candidates), jnp.asarray(candidates > 0), mesh)

    def rank(users: np.ndarray, size: int, exclude: Pairs, k: int) -> Block:
        grid = excluded_grid(exclude, size, outside)
        vectors = user_vectors(recommender, padded(users, size))
        return found(vectors, grid, k)

    def found(vectors: jax.Array, grid: np.ndarray, k: int) -> Block:
        """In halves where somebody has so many exclusions that too many groups would be scored again at once."""
        size, groups = len(grid), min(k + grid.shape[1], len(items) // GROUP)
        if size == 1 or size * groups * GROUP * items.shape[1] <= _GATHERED:
            return _search_any(vectors, items, live, jnp.asarray(grid), k=k, mesh=mesh)
        parts = [slice(0, size // 2), slice(size // 2, None)]
        halves = [found(vectors[part], _narrowed(grid[part], outside), k) for part in parts]
        tops, nan = zip(*halves, strict=True)
        return Block(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *tops), jnp.stack(nan).any())

    def blocks(num_users: int) -> list[tuple[np.ndarray, int]]:
        return list(user_blocks(num_users, outside // _USERS_SHARE))

    return Ranker(rank, blocks, outside, threads=mesh is None)


def excluded_grid(exclude: Pairs, size: int, outside: int) -> np.ndarray:
    """For each of ``size`` users the excluded columns side by side, filled up with ``outside``."""
    inside = exclude.column < outside
    order = grouped(exclude.row[inside])
    row, column = exclude.row[inside][order], exclude.column[inside][order]
    count = np.bincount(row, minlength=size)
    width = 1 << max(int(count.max(initial=1)) - 1, 0).bit_length()  # a power of two, to compile few shapes
    grid = np.full((size, width), outside, np.int32)
    grid[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = column
    return grid


def _narrowed(grid: np.ndarray, outside: int) -> np.ndarray:
    """As narrow as these users' exclusions, which come first, allow."""
    most = int((grid < outside).sum(axis=1).max(initial=1))
    return grid[:, : 1 << max(most - 1, 0).bit_length()]


def search(
    users: Float[Array, "users dim"],
    items: Float[Array, "candidates dim"],
    *,
    k: int,
    live: Bool[Array, " candidates"] | None = None,
    exclude: Int[Array, "users excluded"] | None = None,
    mesh: Mesh | None = None,
) -> TopK:
    """The ``k`` best items of each user by inner product: exact, without holding or sorting all scores.

    Of each group of neighbouring items only the best score is kept. The ``k`` best items are in the ``k`` groups with
    the best scores, or, where some may be excluded, in as many more groups as there are exclusions; those are scored
    again. Memory: users times a sixteenth of the items (of 16 users or fewer: times the items) and 16 vectors for each
    of those groups.

    Args:
      users: vectors of any float dtype; products and their sums are in float32.
      items: likewise. Their number should be a multiple of 2,048 (on each device of a mesh); if it is not, a padded
        copy is made in every call.
      k: length of the lists, static.
      live: False for items that are never listed, such as padding.
      exclude: for each user positions that are not listed; fill up with any number that is no position.
      mesh: from ``sharding.make_mesh``. Items are cut over its devices; each finds the best of its own, and only
        those travel. Let ``items`` lie there already, sharded along their first axis, if there are many calls.

    Returns:
      Scores in float32 and positions; equal scores: lower position first. Where a user has fewer than ``k``, the
      position is -1 and the score -inf. NaN has no rank: check for it before.

    Raises:
      ValueError: ``k`` is outside ``1 .. items``.
      TypeError: ``live`` is not of bools, or ``exclude`` not of integers.

    Examples:
      >>> search(jnp.ones((1, 2)), jnp.array([[1.0, 0.0], [2.0, 3.0]]), k=1).position.tolist()
      [[1]]
    """
    num = items.shape[0]
    if not 1 <= k <= num:
        raise ValueError(f"Expected k in 1 .. {num} (the number of items), got {k}. Lists cannot be longer.")
    _sharded.check(mesh)
    if not len(users):
        return TopK(jnp.zeros((0, k), jnp.float32), jnp.zeros((0, k), jnp.int32))
    live = jnp.ones(num, bool) if live is None else jnp.asarray(live)
    if live.dtype != bool:
        raise TypeError(f"Expected live to hold True or False for each item, got {live.dtype}. Say live > 0.")
    exclude = jnp.full((users.shape[0], 1), -1, jnp.int32) if exclude is None else as_positions(exclude, num)
    items, live = _filled(jnp.asarray(items), live, mesh)
    return _search_any(jnp.asarray(users), items, live, jnp.asarray(exclude), k=k, mesh=mesh).top


def as_positions(exclude: Any, num: int) -> Array:
    """Exclusions among ``num`` items, of 32 bits: JAX would cut wider ones, and a filler would become an item."""
    exclude = exclude if isinstance(exclude, jax.Array) else np.asarray(exclude)
    if not np.issubdtype(exclude.dtype, np.integer):
        raise TypeError(
            f"Expected exclude to hold positions of items, [users, excluded], got {exclude.dtype}. A mask, [users, "
            "items], is what ranking.top_k takes."
        )
    if isinstance(exclude, np.ndarray):
        exclude = np.where((exclude >= 0) & (exclude < num), exclude, -1).astype(np.int32)
    return exclude


def _filled(items: jax.Array, live: jax.Array, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Items with as many dead ones after them as whole blocks need, on a mesh an equal number on each device."""
    if mesh is None:
        full = -(-len(items) // _BLOCK) * _BLOCK
    else:
        share = -(-len(items) // mesh.size)
        unit = _BLOCK if share > _BLOCK else GROUP
        full = -(-share // unit) * unit * mesh.size
    if missing := full - len(items):
        items, live = jnp.pad(items, ((0, missing), (0, 0))), jnp.pad(live, (0, missing))
    return (items, live) if mesh is None else _sharded.placed((items, live), _sharded.by_rows(mesh))


def _search_any(
    users: jax.Array, items: jax.Array, live: jax.Array, exclude: jax.Array, *, k: int, mesh: Mesh | None
) -> Block:
    if mesh is None:
        return _search(users, items, live, exclude, k=k)
    users, exclude = _sharded.placed((users, exclude), _sharded.everywhere(mesh))
    return _search_shards(users, items, live, exclude, k=k, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _search_shards(
    users: jax.Array, items: jax.Array, live: jax.Array, exclude: jax.Array, *, k: int, mesh: Mesh
) -> Block:
    """``_search`` on each device's items, and the best of what they found."""
    axis, share = mesh.axis_names[0], len(items) // mesh.size

    def of_shard(
        users: jax.Array, items: jax.Array, live: jax.Array, exclude: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        start = jax.lax.axis_index(axis) * share
        top, nan = _search(users, items, live, exclude - start, k=min(k, share))
        return top.score, jnp.where(top.position < 0, -1, top.position + start), nan[None]

    everything, cut, columns = PartitionSpec(), PartitionSpec(axis), PartitionSpec(None, axis)
    found = jax.shard_map(
        of_shard, mesh=mesh, in_specs=(everything, cut, cut, everything), out_specs=(columns, columns, cut)
    )(users, items, live, exclude)
    score, position, nan = _sharded.placed(found, _sharded.everywhere(mesh))
    # Devices come in the order of their items, so that of equal scores the lower position still comes first.
    best, place = jax.lax.top_k(score, k)
    return Block(TopK(best, jnp.take_along_axis(position, place, axis=1)), nan.any())


@functools.partial(jax.jit, static_argnames=("k",))
@exact
def _search(users: jax.Array, items: jax.Array, live: jax.Array, exclude: jax.Array, *, k: int) -> Block:
    size = min(_BLOCK, len(items))

    def best_of(items: jax.Array, live: jax.Array) -> jax.Array:
        scores = jnp.matmul(items, users.T, preferred_element_type=jnp.float32)  # narrow ones stay as they are
        scores = jnp.where(scores == 0, 0.0, scores)  # -0 ranks as 0
        return jnp.where(live[:, None], scores, -jnp.inf).reshape(-1, GROUP, len(users)).max(axis=1)

    def block(_: None, start: jax.Array) -> tuple[None, jax.Array]:
        return None, best_of(*(jax.lax.dynamic_slice_in_dim(values, start, size) for values in (items, live)))

    if len(users) <= _FEW:
        best = best_of(items, live)
    else:
        best = jax.lax.scan(block, None, jnp.arange(0, len(items), size))[1]
    best = best.reshape(-1, len(users)).T
    best = jnp.where(jnp.isnan(best), jnp.nan, best)  # a NaN with a sign would come last and not be looked at
    anyone = live.reshape(-1, GROUP).any(axis=1)
    best = jnp.where(anyone[None, :], jnp.maximum(best, jnp.finfo(jnp.float32).min), -jnp.inf)  # -inf before nobody
    groups = best_of_each(best, min(k + exclude.shape[1], best.shape[1]))[1]
    # In order of position, so that of equal scores the lower position comes first.
    member = jnp.arange(GROUP, dtype=jnp.int32)[None, None, :]
    position = (jnp.sort(groups, axis=1)[:, :, None] * GROUP + member).reshape(len(users), -1)
    scores = jnp.einsum("ud,ucd->uc", users, items[position], preferred_element_type=jnp.float32)
    gone = ~live[position] | among(position, exclude)
    top = top_k(scores, k=k, exclude=gone)
    place = jnp.take_along_axis(position, jnp.maximum(top.position, 0), axis=1)
    return Block(TopK(top.score, jnp.where(top.position < 0, -1, place)), (jnp.isnan(scores) & ~gone).any())
