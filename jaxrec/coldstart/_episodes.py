"""Tasks on the host: interactions of one user or item each, cut into a support and a query, in chunks of steps."""

import functools
from collections.abc import Iterator

import numpy as np

from jaxrec._types import Batch
from jaxrec.data import Dataset, Interactions
from jaxrec.data._counting import counted
from jaxrec.data._sides import Side

_CHUNK = 2**22  # bytes handed to the device at once


def whose(rows: Dataset | Interactions, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the index of the task's user or item, and the index of the other side."""
    assert rows.user is not None and rows.item is not None
    return (rows.user, rows.item) if side == "user" else (rows.item, rows.user)


def pool_of(rows: Dataset | Interactions, side: Side) -> np.ndarray:
    """What negatives of such tasks are drawn from: whatever of the other side has a row."""
    return np.flatnonzero(counted(whose(rows, side)[1])).astype(np.int32)


class Episodes:
    """Batches of tasks, epoch by epoch; every user (or item) is one task an epoch, cut anew each time.

    The rows of a task are ``support`` and then ``query`` ones, of which those in use come first and the others have
    weight 0. The size of the support is drawn uniformly from 0 to ``support``, less where the user has fewer other
    interactions; as many of the others as there is room for are the query. A user's support is any of the rows; an
    item's are its first ones in time, as when it was new. Rows that repeat a pair of the support are not asked for.

    Batches of items are mirrored (``Mirrored``): ``Batch.user`` has the item and ``Batch.item`` the users.

    Args:
      dataset: known users and items.
      pool: what negatives are drawn from, uniformly: ``pool_of`` the training part.
      support: most interactions of the support.
      query: most interactions of the query, at least 1.
      negatives: of each interaction.
      batch_size: tasks of a step.
      seed: of everything drawn.
      whole: the support is as large as it can be; for a method that does not tell it from the query.
      side: whose the tasks are.
    """

    def __init__(
        self,
        dataset: Dataset,
        pool: np.ndarray,
        *,
        support: int,
        query: int,
        negatives: int,
        batch_size: int,
        seed: int,
        whole: bool = False,
        side: Side = "user",
    ) -> None:
        self._data, self._pool, self._seed, self._whole = dataset, pool, seed, whole
        self._side: Side = side
        self._support, self._query, self._negatives = support, query, negatives
        self._of, _ = whose(dataset, side)
        self._count = counted(self._of)
        self._first = np.cumsum(self._count) - self._count
        self._entities = np.flatnonzero(self._count)
        self._size = min(batch_size, len(self._entities))
        self.steps = -(-len(self._entities) // self._size)
        most = _CHUNK // (self._size * (support + query) * 4 * (4 + negatives))
        self._per_chunk = 1 << (max(1, min(self.steps, most)) - 1).bit_length()

    def epoch(self, number: int) -> Iterator[tuple[Batch, int]]:
        """Chunks of stacked batches, each with its number of steps; the last chunk is padded with empty tasks."""
        rng = np.random.default_rng([self._seed, number])
        rows = rng.permutation(len(self._data))
        # By task, in random order within each, but for the rows that come first.
        rows = rows[np.lexsort((self._place[rows], self._of[rows]))]
        entities = rng.permutation(self._entities)
        chunk = self._per_chunk * self._size
        for start in range(0, len(entities), chunk):
            chosen = entities[start : start + chunk]
            yield self._stack(chosen, rows, rng), -(-len(chosen) // self._size)

    @functools.cached_property
    def _place(self) -> np.ndarray:
        """Of each row its place among those that are first in time, all others being alike."""
        if self._side == "user":
            return np.zeros(len(self._data), np.int64)
        time = self._data.time
        order = np.lexsort((np.arange(len(self._data)) if time is None else time, self._of))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) - self._first[self._of[order]]
        return np.minimum(place, self._support)

    def example(self) -> Batch:
        """One batch, for shapes."""
        stack, _ = next(self.epoch(0))
        return Batch(*(None if values is None else values[0] for values in stack))

    def _stack(self, entities: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        count = self._count[entities]
        known = np.minimum(count if self._whole else count - 1, self._support)
        if not self._whole:
            known = rng.integers(0, known + 1)
        column = np.arange(self._support + self._query)[None, :]
        asked = column >= self._support
        place = np.where(asked, column - self._support + known[:, None], column)
        used = place < np.where(asked, count[:, None], known[:, None])
        row = rows[self._first[entities][:, None] + np.where(used, place, 0)]
        if not self._whole:
            used[:, self._support :] &= ~self._shown(row, used)
        missing = self._per_chunk * self._size - len(entities)
        row, used = (np.pad(values, ((0, missing), (0, 0))).reshape(-1) for values in (row, used))
        examples = with_negatives(self._data, row, used, self._pool, self._negatives, rng, side=self._side)
        shape = self._per_chunk, self._size * column.shape[1]
        return Batch(*(None if values is None else values.reshape(*shape, *values.shape[1:]) for values in examples))

    def _shown(self, row: np.ndarray, used: np.ndarray) -> np.ndarray:
        """Of each row of the query ``[tasks, query]`` whether the support has the same pair and so shows the answer."""
        other = np.where(used, whose(self._data, self._side)[1][row], -1)
        return (other[:, self._support :, None] == other[:, None, : self._support]).any(axis=2)


def with_negatives(
    data: Dataset,
    row: np.ndarray,
    used: np.ndarray,
    pool: np.ndarray,
    negatives: int,
    rng: np.random.Generator,
    *,
    side: Side,
) -> Batch:
    """Some rows of a dataset as examples, each with its own negatives; those not in use have weight 0."""
    of, other = whose(data, side)
    columns = np.zeros((len(row), 1 + negatives), np.int32)
    columns[:, 0] = other[row]
    columns[:, 1:] = pool.take(rng.integers(0, len(pool), (len(row), negatives), dtype=np.int32))
    columns[~used] = 0
    weight = used.astype(np.float32) if data.weight is None else np.where(used, data.weight[row], np.float32(0))
    target = None if data.target is None else np.where(used, data.target[row], np.float32(0))
    return Batch(user=np.where(used, of[row], 0), item=columns, weight=weight, target=target)
