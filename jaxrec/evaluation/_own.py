"""Lists of users who have candidates of their own, such as a held-out item among 99 sampled ones."""

from collections.abc import Callable

import numpy as np

from jaxrec.data import Interactions

PairScores = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``(users, items)``: entity indices of pairs, grouped by user -> float32 scores, one of each pair."""


def own_lists(score_of: PairScores, pairs: Interactions, users: np.ndarray, longest: int) -> tuple[np.ndarray, bool]:
    """The best of each user's pairs.

    Args:
      score_of: pairs that are in no list are not scored.
      pairs: candidates, each once.
      users: entity indices.
      longest: length of the lists.

    Returns:
      Entity indices of items ``[users, longest]``, 0 where a list is shorter, equal scores by lower index first; and
      whether a score is NaN.
    """
    position, row = pairs.rows_of(users)
    items = pairs.item[row]
    scores = score_of(users[position], items)
    order = np.lexsort((items, -scores, position))
    count = np.bincount(position, minlength=len(users))
    rank = np.arange(len(row)) - (np.cumsum(count) - count)[position]
    kept = rank < longest
    lists = np.zeros((len(users), longest), np.int32)
    lists[position[kept], rank[kept]] = items[order[kept]]
    return lists, bool(np.isnan(scores).any())
