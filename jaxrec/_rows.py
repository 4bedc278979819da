"""Reading rows of a table in compiled functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Int32, Shaped

from jaxrec._types import Array

_PIECE = 4  # numbers that are copied together on CPU


def rows_at(values: Shaped[Array, "rows ..."], index: Int32[Array, "..."]) -> Shaped[jax.Array, "..."]:
    """``values[index]`` where every index is inside, for the reads that a step waits for.

    Two things make it faster on CPU, where XLA copies a row by a loop over its numbers (docs/design.md has figures).
    A row is read in pieces of four numbers: a loop over up to 79 is unrolled into loads and stores of single numbers,
    so that a core waits for the memory of two or three rows at a time and not of twenty. And the reading is a branch
    that is always taken, since across its edge nothing is fused: with whatever follows in one loop the pieces would be
    lost, and with whatever comes before, the index would be worked out for each number. Elsewhere another shape of the
    table might be another layout, that is, a copy.
    """

    def whole(values: jax.Array, index: jax.Array) -> jax.Array:
        return values.at[index].get(mode="promise_in_bounds")

    def nothing(values: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.zeros((*index.shape, *values.shape[1:]), values.dtype)

    def in_pieces(values: jax.Array, index: jax.Array) -> jax.Array:
        flat = index.reshape(-1)
        pieces = values.reshape(len(values), -1, _PIECE)
        rows = jax.lax.cond(flat[0] >= 0, whole, nothing, pieces, flat)
        return rows.reshape(*index.shape, values.shape[1])

    values, index = jnp.asarray(values), jnp.asarray(index)
    fits = values.ndim == 2 and values.shape[1] >= 4 * _PIECE and values.shape[1] % _PIECE == 0
    if not fits or index.size == 0:
        return whole(values, index)
    return jax.lax.platform_dependent(values, index, cpu=in_pieces, default=whole)
