"""Reading rows of a table in compiled functions."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Int32, Shaped

from jaxrec._types import Array

_PIECE = 4  # numbers that are copied together on CPU


@functools.partial(jax.jit, inline=True)
def rows_at(values: Shaped[Array, "rows ..."], index: Int32[Array, "..."]) -> Shaped[jax.Array, "..."]:
    """``values[index]`` where every index is inside, for the reads that a step waits for.

    Two things make it faster on CPU, where XLA copies a row by a loop over its numbers (docs/design.md has figures).
    A row is read in pieces of four numbers: a loop over up to 79 is unrolled into loads and stores of single numbers,
    so that a core waits for the memory of two or three rows at a time and not of twenty. And the reading is a branch
    that is always taken, since across its edge nothing is fused: with whatever follows in one loop the pieces would be
    lost, and with whatever comes before, the index would be worked out for each number. Elsewhere another shape of the
    table might be another layout, that is, a copy.
    """
    values, index = jnp.asarray(values), jnp.asarray(index)
    width = math.prod(values.shape[1:])
    if values.ndim < 2 or width < 4 * _PIECE or width % _PIECE or not values.size or not index.size:
        return _whole(values, index)
    return jax.lax.platform_dependent(values, index, cpu=_in_pieces, default=_whole)


def _whole(values: jax.Array, index: jax.Array) -> jax.Array:
    return values.at[index].get(mode="promise_in_bounds")


def _never(values: jax.Array, index: jax.Array) -> jax.Array:
    """Of the shape that ``_whole`` gives, and made of the same operands: on a mesh that is part of the type."""
    return _whole(values, 0 * index)


def _in_pieces(values: jax.Array, index: jax.Array) -> jax.Array:
    flat = index.reshape(-1)
    pieces = values.reshape(len(values), -1, _PIECE)
    rows = jax.lax.cond(flat[0] >= 0, _whole, _never, pieces, flat)
    return rows.reshape(*index.shape, *values.shape[1:])
