"""Batches on the host: shuffled, padded, with negatives and histories, a chunk of steps at a time."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from jaxrec._expect import one_of
from jaxrec._types import Batch
from jaxrec.data._encoder import Dataset

_CHUNK = 2**18  # examples handed to the device at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Negatives:
    """How a batch gets the items that its positives are compared with. Only trained items are drawn.

    Args:
      num: own negatives of each example.
      shared: negatives drawn once for the whole batch and scored for every user in it.
      in_batch: every example's positive is a negative of the others; excludes ``num`` and ``shared``.
      sampling: ``"uniform"`` over trained items or ``"popularity"``, in proportion to count ** power. The latter
        fills ``Batch.log_q``, and so does ``in_batch``, whose items come in proportion to their count.
      power: exponent of the count.
      reject_seen: draw own negatives again until none is a training positive of the user.
    """

    num: int = 0
    shared: int = 0
    in_batch: bool = False
    sampling: Literal["uniform", "popularity"] = "uniform"
    power: float = 0.75
    reject_seen: bool = False

    def __post_init__(self) -> None:
        if self.num < 0 or self.shared < 0:
            raise ValueError(f"Expected counts of negatives >= 0, got num={self.num}, shared={self.shared}.")
        if self.in_batch and (self.num or self.shared):
            raise ValueError("In-batch negatives are the batch's own positives: leave num and shared at 0.")
        one_of(self.sampling, ("uniform", "popularity"), "sampling")
        if self.reject_seen and not self.num:
            raise ValueError("reject_seen applies to own negatives: give num >= 1.")


class Batches:
    """The batches of a dataset, epoch by epoch; the same seed and epoch give the same batches.

    Args:
      dataset: rows to train on. Unknown users and items are an error: nothing could be learned of them.
      batch_size: examples per step; None for all rows in one step, in their own order.
      negatives: how to draw them; None for none.
      history: length of the histories to add, 0 for none. An example's history is a random number of the user's
        other training items, so that short histories are met in training too.
      seed: of everything drawn.
      multiple_of: fill batches up with examples of weight 0 to a multiple of this, the number of devices that share
        them. What is drawn stays the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int | None,
        negatives: Negatives | None,
        history: int,
        seed: int,
        multiple_of: int = 1,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"Expected batch_size >= 1, or None for all rows at once, got {batch_size}.")
        if multiple_of < 1:
            raise ValueError(f"Expected multiple_of >= 1, got {multiple_of}.")
        for name, index in (("users", dataset.user), ("items", dataset.item)):
            if index is not None and not index.all():
                raise ValueError(
                    f"{int((index == 0).sum())} of {len(index)} rows have {name} that the encoder does not know. Fit "
                    "the encoder on the frame that is trained on, or extend it."
                )
        self._data = dataset
        self._negatives = negatives or Negatives()
        self._history = history
        self._seed = seed
        self._size = min(batch_size or len(dataset), len(dataset))
        self._filled = -(-self._size // multiple_of) * multiple_of
        self._shuffle = batch_size is not None
        self.steps = -(-len(dataset) // self._size)
        # A power of two, so that data sets of similar size share one compiled loop.
        self._per_chunk = 1 << (max(1, min(self.steps, _CHUNK // self._size)) - 1).bit_length()
        if dataset.item is not None:
            self._prepare_items(dataset.item)
        if history:
            self._prepare_histories()

    def epoch(self, number: int) -> Iterator[tuple[Batch, int]]:
        """Chunks of stacked batches, each with its number of steps; the last chunk is padded with empty steps."""
        rng = np.random.default_rng([self._seed, number])
        order = rng.permutation(len(self._data)) if self._shuffle else np.arange(len(self._data))
        chunk = self._per_chunk * self._size
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            yield self._stack(rows, chunk, rng), -(-len(rows) // self._size)

    def example(self) -> Batch:
        """One batch, for shapes."""
        stack, _ = next(self.epoch(0))
        return Batch(*(None if values is None else values[0] for values in stack))

    def _stack(self, rows: np.ndarray, size: int, rng: np.random.Generator) -> Batch:
        data, negatives = self._data, self._negatives
        shape = (size // self._size, self._filled)

        def padded(values: np.ndarray) -> np.ndarray:
            filled = np.zeros((size, *values.shape[1:]), values.dtype)
            filled[: len(values)] = values
            filled = filled.reshape(shape[0], self._size, *values.shape[1:])
            missing = self._filled - self._size
            return np.pad(filled, ((0, 0), (0, missing), *((0, 0),) * (filled.ndim - 2))) if missing else filled

        weight = np.ones(len(rows), np.float32) if data.weight is None else data.weight[rows]
        batch = Batch(weight=padded(weight))
        if data.user is not None:
            batch = batch._replace(user=padded(data.user[rows]))
        if data.target is not None:
            batch = batch._replace(target=padded(data.target[rows]))
        if data.context is not None:
            batch = batch._replace(context=padded(data.context[rows]))
        if self._history:
            batch = batch._replace(history=padded(self._histories(rows, rng)))
        if data.item is None:
            return batch
        if negatives.in_batch:
            item = padded(data.item[rows])
            log_q = padded(self._log_count[data.item[rows]])[:, None, :]
            return batch._replace(item=np.zeros((*shape, 0), np.int32), shared_negatives=item, log_q=log_q)
        columns = data.item[rows][:, None]
        if negatives.num:
            columns = np.concatenate([columns, self._own_negatives(rows, rng)], axis=1)
        batch = batch._replace(item=padded(columns))
        shared = self._draw(rng, (shape[0], negatives.shared)) if negatives.shared else None
        if negatives.sampling == "popularity" and (negatives.num or negatives.shared):
            log_q = padded(self._log_q[columns])
            if shared is not None:
                of_shared = np.broadcast_to(self._log_q[shared][:, None, :], (*shape, negatives.shared))
                log_q = np.concatenate([log_q, of_shared], axis=2)
            batch = batch._replace(log_q=log_q)
        return batch if shared is None else batch._replace(shared_negatives=shared)

    def _prepare_items(self, item: np.ndarray) -> None:
        count = np.bincount(item)
        self._pool = np.flatnonzero(count).astype(np.int32)
        self._log_count = np.log(np.maximum(count, 1) / len(item)).astype(np.float32)
        weight = np.where(count > 0, count, 1).astype(np.float64) ** self._negatives.power
        weight = weight[self._pool] / weight[self._pool].sum()
        self._cumulative = np.cumsum(weight)
        self._log_q = np.zeros(len(count), np.float32)
        self._log_q[self._pool] = np.log(weight)
        if self._negatives.reject_seen:
            # Rows and pool are those of one dataset, so a user with as many items as the pool has no negative at all.
            pairs = np.unique(np.stack([self._user, item]), axis=1)
            if (np.bincount(pairs[0]) >= len(self._pool)).any():
                raise ValueError("A user has touched every trained item, so reject_seen leaves no negative to draw.")

    @property
    def _user(self) -> np.ndarray:
        if self._data.user is None:
            raise ValueError("reject_seen and histories need users. Name the user column in the schema.")
        return self._data.user

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if self._negatives.sampling == "uniform":
            return self._pool[rng.integers(0, len(self._pool), shape, dtype=np.int32)]
        place = np.searchsorted(self._cumulative, rng.random(shape), side="right")
        return self._pool[np.minimum(place, len(self._pool) - 1)]

    def _own_negatives(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn = self._draw(rng, (len(rows), self._negatives.num))
        if self._negatives.reject_seen:
            user = np.broadcast_to(self._user[rows][:, None], drawn.shape)
            bad = self._data.interactions.contains(user, drawn)
            while bad.any():
                drawn[bad] = self._draw(rng, (int(bad.sum()),))
                bad[bad] = self._data.interactions.contains(user[bad], drawn[bad])
        return drawn

    def _prepare_histories(self) -> None:
        """Rows grouped by user in a random order, so that a run of neighbours is a random subset."""
        mixed = np.random.default_rng(self._seed).permutation(len(self._data)).astype(np.int32)
        self._grouped = mixed[np.argsort(self._user[mixed], kind="stable")]
        count = np.bincount(self._user)
        start = np.cumsum(count) - count
        self._first, self._count = start[self._user], count[self._user]
        self._place = np.empty(len(self._data), np.int64)
        self._place[self._grouped] = np.arange(len(self._data)) - start[self._user[self._grouped]]

    def _histories(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = self._count[rows]
        length = rng.integers(0, np.minimum(count - 1, self._history) + 1)
        skip = rng.integers(0, count - length)  # a run of `length` among the count - 1 others, never the row itself
        column = np.arange(self._history)[None, :]
        place = (self._place[rows][:, None] + 1 + skip[:, None] + column) % count[:, None]
        item = self._data.item
        assert item is not None
        found = item[self._grouped[self._first[rows][:, None] + place]]
        # A repeated pair would show the answer.
        keep = (column < length[:, None]) & (found != item[rows][:, None])
        return np.where(keep, found, 0).astype(np.int32)
