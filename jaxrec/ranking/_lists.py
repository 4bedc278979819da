"""The best candidates of many users: a block of users at a time, on CPU a few blocks at once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrec import _threads
from jaxrec.data import Interactions
from jaxrec.ranking._search import Ranker
from jaxrec.ranking._top_k import Pairs

_AT_ONCE = 4  # most blocks at work, each of which holds its scores


class Lists(NamedTuple):
    score: np.ndarray  # float32 [users, k], -inf where a list is shorter
    position: np.ndarray  # int32 [users, k], among the candidates, -1 where a list is shorter
    nan: bool  # whether a candidate that counts has no rank


def best_lists(
    ranker: Ranker, users: np.ndarray, column_of: np.ndarray, excluded: Sequence[Interactions], k: int
) -> Lists:
    """The ``k`` best candidates of each user.

    Args:
      ranker: knows the candidates.
      users: entity indices.
      column_of: from ``columns``.
      excluded: pairs of entity indices that are not listed.
      k: length of the lists.
    """

    def of_block(block: np.ndarray, size: int) -> Lists:
        found = [each.rows_of(users[block]) for each in excluded]
        row = np.concatenate([np.zeros(0, np.int64), *(position for position, _ in found)])
        item = np.concatenate(
            [np.zeros(0, np.int32), *(each.item[rows] for each, (_, rows) in zip(excluded, found, strict=True))]
        )
        exclude = Pairs.padded(row, column_of[item], ranker.num_candidates)
        (score, position), nan = jax.device_get(ranker.rank(users[block], size, exclude, k))
        return Lists(score[: len(block)], position[: len(block)], bool(nan))

    blocks = ranker.blocks(len(users))
    results = [of_block(*each) for each in blocks[:1]]  # fills what is cached
    if len(blocks) > 1:
        threads = _threads.useful(_AT_ONCE) if ranker.threads else 1
        results += _threads.spread(of_block, *zip(*blocks[1:], strict=True), threads=threads)
    if not results:
        return Lists(np.zeros((0, k), np.float32), np.zeros((0, k), np.int32), False)
    score, position, nan = zip(*results, strict=True)
    return Lists(np.concatenate(score), np.concatenate(position), any(nan))


def columns(items: np.ndarray, num_items: int) -> np.ndarray:
    """For each entity its column among the candidates, past the end where it is none."""
    column = np.full(num_items, len(items), np.int64)
    column[items[items > 0]] = np.flatnonzero(items > 0)
    return column
