"""The interactions of one side as arrays of few shapes, for ``fit_als``."""

from typing import NamedTuple

import jax
import numpy as np

from jaxrec import _threads
from jaxrec._types import Array
from jaxrec.data._counting import grouped

_AT_ONCE, _GATHERED = 16, 2**29  # most threads, and numbers that they gather where one row alone fills blocks


class Plan(NamedTuple):
    """One side's interactions in chunks of equal length, and the chunks in blocks of equal number.

    An entity has as many chunks as it needs, all in one block. ``slot`` is its place in the block.
    """

    other: Array  # int32 [blocks, chunks, length]: table rows of the other side, 0 where padded
    weight: Array  # float32 of that shape, 0 where padded
    slot: Array  # int32 [blocks, chunks]
    row: Array  # int32 [blocks, chunks]: table row of each slot, past the end for slots not in use
    count: Array  # float32 [blocks, chunks]: interactions of each slot


def laid_out(row: np.ndarray, other: np.ndarray, rows: int, *, weight: np.ndarray, cells: int) -> Plan:
    count = np.bincount(row, minlength=rows)
    present = np.flatnonzero(count)
    length = int(np.clip(2 ** np.round(np.log2(np.mean(count[present]))), 8, 64))
    chunks = -(-count[present] // length)
    per_block = max(cells // length, 1 << (int(chunks.max()) - 1).bit_length())
    end = np.cumsum(chunks)
    begins = [0]  # of each block the first entity; it takes in whoever is next until somebody does not fit
    while begins[-1] < len(present):
        full = end[begins[-1]] - chunks[begins[-1]] + per_block
        begins.append(int(np.searchsorted(end, full, side="right")))
    block = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    place = end - chunks - (end - chunks)[begins[:-1]][block]
    chunk = block * per_block + place  # of an entity the first, over all blocks
    shape = (len(begins) - 1, per_block)
    order = grouped(row)
    used = count[present]
    cell = np.repeat(chunk * length - (np.cumsum(used) - used), used) + np.arange(len(row))
    others, weights = (
        np.zeros(shape[0] * per_block * length, np.int32),
        np.zeros(shape[0] * per_block * length, np.float32),
    )
    others[cell], weights[cell] = other[order], weight[order]
    # A slot is the place of its first chunk; padded chunks belong to the last slot, to which they add nothing.
    slot = np.full(shape[0] * per_block, per_block - 1, np.int32)
    slot[np.repeat(chunk - (end - chunks), chunks) + np.arange(end[-1])] = np.repeat(place, chunks)
    of_slot, size = np.full(shape, rows, np.int32), np.zeros(shape, np.float32)
    of_slot[block, place], size[block, place] = present, used
    arrays = others.reshape(*shape, length), weights.reshape(*shape, length), slot.reshape(shape), of_slot, size
    return Plan(*arrays)


def filled(plan: Plan, blocks: int) -> Plan:
    """With empty blocks behind."""
    missing = blocks - len(plan.row)
    if not missing:
        return plan
    longer = Plan(*(np.pad(part, ((0, missing), *((0, 0),) * (part.ndim - 1))) for part in plan))
    longer.row[len(plan.row) :] = np.iinfo(np.int32).max
    return longer


def _at_once(plan: Plan, dim: int) -> int:
    """How many blocks are worked on side by side."""
    return max(min(_threads.useful(_AT_ONCE), _GATHERED // (plan.other[0].size * dim)), 1)


def parts_of(plans: list[Plan], dim: int) -> list[list[Plan]]:
    """Each plan cut for so many threads, and filled up where that makes both sides' parts of one shape."""
    parts = [_cut(plan, _at_once(plan, dim)) for plan in plans]
    if len({plan.other.shape[1:] for plan in plans}) == 1:
        most = max(len(part.row) for cut in parts for part in cut)
        parts = [[filled(part, most) for part in cut] for cut in parts]
    return jax.device_put(parts)  # ``jnp.asarray`` compiles a copy for every shape


def _cut(plan: Plan, number: int) -> list[Plan]:
    """At most ``number`` parts of as many blocks each, none of them empty blocks alone."""
    size = -(-len(plan.row) // number)
    parts = [Plan(*(array[start : start + size] for array in plan)) for start in range(0, len(plan.row), size)]
    return [filled(part, size) for part in parts]
