"""Tasks on the host: each user's interactions cut into a support and a query, a chunk of steps at a time."""

from collections.abc import Iterator

import numpy as np

from jaxrec._types import Batch
from jaxrec.data import Dataset
from jaxrec.data._interactions import counted
from jaxrec.data._negatives import Sampler

_CHUNK = 2**22  # bytes handed to the device at once


class Episodes:
    """Batches of tasks, epoch by epoch; every user is one task an epoch, cut anew each time.

    The rows of a task are ``support`` and then ``query`` ones, of which those in use come first and the others have
    weight 0. The size of the support is drawn uniformly from 0 to ``support``, less where the user has fewer other
    interactions; as many of the others as there is room for are the query.

    Args:
      dataset: known users and items.
      sampler: of the negatives.
      support: most interactions of the support.
      query: most interactions of the query, at least 1.
      negatives: of each interaction.
      batch_size: tasks of a step.
      seed: of everything drawn.
      whole: the support is as large as it can be; for a method that does not tell it from the query.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        *,
        support: int,
        query: int,
        negatives: int,
        batch_size: int,
        seed: int,
        whole: bool = False,
    ) -> None:
        assert dataset.user is not None and dataset.item is not None
        self._data, self._sampler, self._seed, self._whole = dataset, sampler, seed, whole
        self._support, self._query, self._negatives = support, query, negatives
        self._count = counted(dataset.user)
        self._first = np.cumsum(self._count) - self._count
        self._users = np.flatnonzero(self._count)
        self._size = min(batch_size, len(self._users))
        self.steps = -(-len(self._users) // self._size)
        most = _CHUNK // (self._size * (support + query) * 4 * (4 + negatives))
        self._per_chunk = 1 << (max(1, min(self.steps, most)) - 1).bit_length()

    def epoch(self, number: int) -> Iterator[tuple[Batch, int]]:
        """Chunks of stacked batches, each with its number of steps; the last chunk is padded with empty tasks."""
        assert self._data.user is not None
        rng = np.random.default_rng([self._seed, number])
        rows = rng.permutation(len(self._data))
        rows = rows[np.argsort(self._data.user[rows], kind="stable")]  # by user, in random order within each
        users = rng.permutation(self._users)
        chunk = self._per_chunk * self._size
        for start in range(0, len(users), chunk):
            chosen = users[start : start + chunk]
            yield self._stack(chosen, rows, rng), -(-len(chosen) // self._size)

    def example(self) -> Batch:
        """One batch, for shapes."""
        stack, _ = next(self.epoch(0))
        return Batch(*(None if values is None else values[0] for values in stack))

    def _stack(self, users: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        count = self._count[users]
        known = np.minimum(count if self._whole else count - 1, self._support)
        if not self._whole:
            known = rng.integers(0, known + 1)
        column = np.arange(self._support + self._query)[None, :]
        asked = column >= self._support
        place = np.where(asked, column - self._support + known[:, None], column)
        used = place < np.where(asked, count[:, None], known[:, None])
        row = rows[self._first[users][:, None] + np.where(used, place, 0)]
        missing = self._per_chunk * self._size - len(users)
        row, used = (np.pad(values, ((0, missing), (0, 0))).reshape(-1) for values in (row, used))
        examples = with_negatives(self._data, row, used, self._sampler, self._negatives, rng)
        shape = self._per_chunk, self._size * column.shape[1]
        return Batch(*(None if values is None else values.reshape(*shape, *values.shape[1:]) for values in examples))


def with_negatives(
    data: Dataset, row: np.ndarray, used: np.ndarray, sampler: Sampler, negatives: int, rng: np.random.Generator
) -> Batch:
    """Some rows of a dataset as examples, each with its own negatives; those not in use have weight 0."""
    assert data.user is not None and data.item is not None
    item = np.zeros((len(row), 1 + negatives), np.int32)
    item[:, 0] = data.item[row]
    item[:, 1:] = sampler.draw(rng, (len(row), negatives))
    item[~used] = 0
    weight = used.astype(np.float32) if data.weight is None else np.where(used, data.weight[row], np.float32(0))
    target = None if data.target is None else np.where(used, data.target[row], np.float32(0))
    return Batch(user=np.where(used, data.user[row], 0), item=item, weight=weight, target=target)
