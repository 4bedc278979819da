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
      history: length of the histories to add, 0 for none.
      seed: of everything drawn.
      histories: what an example's history is. ``"subset"``: a random number of the user's other training items, so
        that short histories are met in training too. ``"before"``: the user's items before the row, by time (rows of
        one time, or without times, in the order of the dataset), at most ``history``, padded with 0 behind.
        ``"sequences"``: the batch holds whole stretches of users' items in that order, and each position's example is
        what follows, see ``Batch``. Every row comes once; a stretch counts as ``history + 1`` examples of a step.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int | None,
        negatives: Negatives | None,
        history: int,
        seed: int,
        histories: Literal["subset", "before", "sequences"] = "subset",
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"Expected batch_size >= 1, or None for all rows at once, got {batch_size}.")
        for name, index in (("users", dataset.user), ("items", dataset.item)):
            if index is not None and not index.all():
                raise ValueError(
                    f"{int((index == 0).sum())} of {len(index)} rows have {name} that the encoder does not know. Fit "
                    "the encoder on the frame that is trained on, or extend it."
                )
        one_of(histories, ("subset", "before", "sequences"), "histories")
        if histories != "subset" and history < 1:
            raise ValueError(f"Expected history >= 1 for histories={histories!r}, got {history}. It is their length.")
        self._data = dataset
        self._negatives = negatives or Negatives()
        self._history = history
        self._histories = histories
        self._seed = seed
        self._shuffle = batch_size is not None
        if dataset.item is not None:
            self._prepare_items(dataset.item)
        if history:
            self._prepare_histories()
        self._count, width = len(dataset), 1  # units that are shuffled, and examples of each
        if histories == "sequences":
            self._prepare_stretches()
            self._count, width = len(self._begin), history + 1
        self._size = self._count if batch_size is None else max(1, min(batch_size // width, self._count))
        self.steps = -(-self._count // self._size)
        # A power of two, so that data sets of similar size share one compiled loop.
        self._per_chunk = 1 << (max(1, min(self.steps, _CHUNK // (self._size * width))) - 1).bit_length()

    def epoch(self, number: int) -> Iterator[tuple[Batch, int]]:
        """Chunks of stacked batches, each with its number of steps; the last chunk is padded with empty steps."""
        rng = np.random.default_rng([self._seed, number])
        order = rng.permutation(self._count) if self._shuffle else np.arange(self._count)
        chunk = self._per_chunk * self._size
        for start in range(0, len(order), chunk):
            units = order[start : start + chunk]
            yield self._stack(units, rng), -(-len(units) // self._size)

    def example(self) -> Batch:
        """One batch, for shapes."""
        stack, _ = next(self.epoch(0))
        return Batch(*(None if values is None else values[0] for values in stack))

    def _stack(self, units: np.ndarray, rng: np.random.Generator) -> Batch:
        """A chunk of steps of some rows, or of some stretches with their rows one after the other."""
        data, negatives = self._data, self._negatives
        rows, first, kept = units, units, np.ones(len(units), bool)
        if self._histories == "sequences":
            rows, kept = self._rows(units)
            first = rows[:: self._history + 1]

        def padded(values: np.ndarray) -> np.ndarray:
            each = len(values) // len(units)
            filled = np.zeros((self._per_chunk * self._size * each, *values.shape[1:]), values.dtype)
            filled[: len(values)] = values
            return filled.reshape(self._per_chunk, self._size * each, *values.shape[1:])

        weight = padded(np.where(kept, 1.0 if data.weight is None else data.weight[rows], 0.0).astype(np.float32))
        batch = Batch(weight=weight)
        if data.user is not None:
            batch = batch._replace(user=padded(data.user[first]))
        if data.target is not None:
            batch = batch._replace(target=padded(data.target[rows]))
        if data.context is not None:
            batch = batch._replace(context=padded(data.context[rows]))
        if self._history:
            batch = batch._replace(history=padded(self._history_of(units, rng)))
        if data.item is None:
            return batch
        positive = np.where(kept, data.item[rows], 0)
        if negatives.in_batch:
            log_q = padded(self._log_count[positive])[:, None, :]
            return batch._replace(
                item=np.zeros((*weight.shape, 0), np.int32), shared_negatives=padded(positive), log_q=log_q
            )
        columns = positive[:, None]
        if negatives.num:
            columns = np.concatenate([columns, self._own_negatives(rows, rng)], axis=1)
        batch = batch._replace(item=padded(columns))
        shared = self._draw(rng, (self._per_chunk, negatives.shared)) if negatives.shared else None
        if negatives.sampling == "popularity" and (negatives.num or negatives.shared):
            log_q = padded(self._log_q[columns])
            if shared is not None:
                of_shared = np.broadcast_to(self._log_q[shared][:, None, :], (*weight.shape, negatives.shared))
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
        """Rows grouped by user: in order, or in a random one, so that a run of neighbours is a random subset."""
        if self._histories == "subset":
            order = np.random.default_rng(self._seed).permutation(len(self._data))
        else:
            time = self._data.time
            order = np.arange(len(self._data)) if time is None else np.argsort(time, kind="stable")
        self._grouped = order[np.argsort(self._user[order], kind="stable")].astype(np.int32)
        self._of_user = np.bincount(self._user)
        start = np.cumsum(self._of_user) - self._of_user
        self._first = start[self._user]
        self._place = np.empty(len(self._data), np.int64)
        self._place[self._grouped] = np.arange(len(self._data)) - start[self._user[self._grouped]]

    def _history_of(self, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self._histories == "subset":
            return self._subsets(units, rng)
        if self._histories == "sequences":
            return self._run(self._begin[units], self._length[units])
        length = np.minimum(self._place[units], self._history)
        return self._run(self._first[units] + self._place[units] - length, length)

    def _run(self, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
        """The items of runs of grouped rows, int32 ``[runs, history]``, padded with 0 behind."""
        column = np.arange(self._history)[None, :]
        kept = column < length[:, None]
        item = self._data.item
        assert item is not None
        return np.where(kept, item[self._grouped[np.where(kept, begin[:, None] + column, 0)]], 0).astype(np.int32)

    def _prepare_stretches(self) -> None:
        """Each user's rows cut from the latest backwards; a stretch begins with the row that ends the one before."""
        start, count = np.cumsum(self._of_user) - self._of_user, self._of_user
        pieces = np.where(count > 0, np.maximum(-(-(count - 1) // self._history), 1), 0)
        user = np.repeat(np.arange(len(count)), pieces)
        piece = np.arange(len(user)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        last = count[user] - 1 - piece * self._history
        place = np.maximum(last - self._history, 0)
        self._begin, self._length, self._whole = start[user] + place, last - place, place == 0

    def _rows(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of stretches one after the other, ``history + 1`` of each, and which of them are examples."""
        column = np.arange(self._history + 1)[None, :]
        inside = column <= self._length[units][:, None]
        rows = self._grouped[self._begin[units][:, None] + np.where(inside, column, 0)]
        kept = inside & ((column > 0) | self._whole[units][:, None])
        return rows.reshape(-1), kept.reshape(-1)

    def _subsets(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = self._of_user[self._user[rows]]
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
