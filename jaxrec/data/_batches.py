"""Batches on the host: shuffled, padded, with negatives and histories, a chunk of steps at a time."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrec._types import Batch
from jaxrec.data._encoder import Dataset
from jaxrec.data._histories import Histories, Kind
from jaxrec.data._negatives import Negatives, Sampler

_CHUNK = 2**22  # bytes of examples handed to the device at once: more would not stay in the cache (docs/design.md)
_BLOCK = 2**16  # consecutive rows of a streamed dataset that are read together

_Pieces = list[tuple[int, int]]  # ranges of rows


class _Window(NamedTuple):
    """Rows in memory that are shuffled together."""

    columns: Dataset
    number: np.ndarray | None  # row number in the dataset of each row here; None where they are the same

    @property
    def rows(self) -> int:
        return len(self.columns)


class Batches:
    """The batches of a dataset, epoch by epoch; the same seed and epoch give the same batches.

    Rows in memory are shuffled as a whole. Those of a streamed dataset (``data.open_dataset``) are shuffled in two
    stages, so that files are read in long runs: blocks of 65,536 consecutive rows in a random order, then all rows of a
    window of ``dataset.window`` rows. Every row comes once an epoch either way, and a window that holds all rows gives
    the batches that memory gives.

    Args:
      dataset: rows to train on. Unknown users and items are an error: nothing could be learned of them. Rows of weight
        0 are left out: they are no examples, and their items no negatives. Histories hold them all the same, as they
        do when a recommender serves these users.
      batch_size: examples per step; None for all rows in one step, in their own order.
      negatives: how to draw them; None for none.
      history: length of the histories to add, 0 for none. They take 8 bytes of memory a row, and more while they are
        prepared.
      seed: of everything drawn.
      histories: what an example's history is. ``"subset"``: a random number of the user's other training items, so
        that short histories are met in training too. ``"before"``: the user's items before the row, by time (rows of
        one time, or without times, in the order of the dataset), at most ``history``, padded with 0 behind.
        ``"sequences"``: the batch holds whole stretches of users' items in that order, and each position's example is
        what follows, see ``Batch``. Every row comes once; a stretch counts as ``history + 1`` examples of a step.
        Stretches are shuffled as a whole, of a streamed dataset too. ``"users"``: an example is a user with all
        of their items, see ``Batch``; it counts as as many examples of a step as users have items in the mean.
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
        histories: Kind = "subset",
        multiple_of: int = 1,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"Expected batch_size >= 1, or None for all rows at once, got {batch_size}.")
        if multiple_of < 1:
            raise ValueError(f"Expected multiple_of >= 1, got {multiple_of}.")
        if history < 0:
            raise ValueError(f"Expected history >= 0, the length of histories, got {history}. 0 is for none.")
        if dataset.item is None and negatives is not None:
            raise ValueError("Negatives are items, and the data has none. Name the item column in the schema.")
        if not len(dataset):
            raise ValueError("The dataset is empty. Expected at least one row to train on.")
        for name, index in (("users", dataset.user), ("items", dataset.item)):
            if index is not None and not index.all():
                raise ValueError(
                    f"{int((index == 0).sum())} of {len(index)} rows have {name} that the encoder does not know. Fit "
                    "the encoder on the frame that is trained on, or extend it."
                )
        self._data, self._rows = dataset, rows_that_weigh(dataset)
        self._negatives = negatives or Negatives()
        self._history = history
        self._seed = seed
        self._shuffle = batch_size is not None
        wanted = history or histories != "subset"
        self._histories = Histories(dataset, histories, history, seed) if wanted else None
        # What is shuffled are units of some examples each: rows, or stretches of rows.
        self._stretches = self._histories if histories == "sequences" else None
        self._users = self._histories if histories == "users" else None
        self._width = 1 if self._stretches is None else history + 1
        if self._users is not None:
            self._check_users()
        units = self._units(self._num_rows)
        cost = self._width if self._users is None else max(len(dataset) // units, 1)
        self._size = units if batch_size is None else max(1, min(batch_size // cost, units))
        self._filled = -(-self._size // multiple_of) * multiple_of
        self.steps = -(-units // self._size)
        # A power of two, so that data sets of similar size share one compiled loop.
        columns = 0
        if dataset.item is not None:
            self._sampler = Sampler(dataset, self._negatives, self._size * self._width, self._rows)
            columns = len(self._sampler.catalogue) if self._negatives.catalogue else 0
        most = _CHUNK // (self._size * self._width * self._bytes(columns) + 4 * columns)
        self._per_chunk = 1 << (max(1, min(self.steps, most)) - 1).bit_length()

    @property
    def _num_rows(self) -> int:
        """That are examples."""
        return len(self._data) if self._rows is None else len(self._rows)

    @property
    def weighed(self) -> bool:
        """Whether some examples weigh more than others, such as those of weight 0 that fill a batch up."""
        full = self._size == self._filled and self._units(self._num_rows) % self._size == 0
        return self._data.weight is not None or self._stretches is not None or not full

    @property
    def _by_rows(self) -> bool:
        """Whether what is shuffled are rows, which a window holds; stretches and users look theirs up anywhere."""
        return self._stretches is None and self._users is None

    def _check_users(self) -> None:
        data, negatives = self._data, self._negatives
        if data.target is not None or data.weight is not None:
            what = "targets" if data.target is not None else "weights"
            raise ValueError(
                f"With histories='users' an example is a user and all that they touched, and the data has {what}, "
                "which would not be read. Leave them out of the schema, or give the model histories='subset'."
            )
        if not negatives.catalogue:
            raise ValueError(
                "With histories='users' a user's items are compared with all: expected Negatives(catalogue=True), the "
                f"default of loss='softmax', got {negatives}. For other losses give the model histories='subset'."
            )

    def _units(self, rows: int) -> int:
        """How many there are to shuffle."""
        if self._users is not None:
            return len(self._users.users)
        return rows if self._stretches is None else self._stretches.num_stretches

    def _bytes(self, columns: int) -> int:
        """Of one example, about."""
        if self._users is not None:
            return 4 * (2 + columns)
        context = 0 if self._data.context is None else self._data.context.shape[1]
        own = 0 if self._data.item is None else 1 + self._negatives.num
        return 4 * (3 + own + context + self._history // self._width)

    def epoch(self, number: int) -> Iterator[tuple[Batch, int]]:
        """Chunks of stacked batches, each with its number of steps; the last chunk is padded with empty steps."""
        rng = np.random.default_rng([self._seed, number])
        for pieces in self._windows(rng):
            yield from self._chunks(self._read(pieces), rng)

    def example(self) -> Batch:
        """One batch, for shapes."""
        stack, _ = next(self.epoch(0))
        return Batch(*(None if values is None else values[0] for values in stack))

    def _windows(self, rng: np.random.Generator) -> list[_Pieces]:
        """What to read for each window: whole chunks, but for the last."""
        rows, chunk = self._num_rows, self._per_chunk * self._size
        window = rows if self._data.window is None else -(-self._data.window // chunk) * chunk
        if window >= rows or not self._shuffle or not self._by_rows:
            return [[(0, rows)]]
        block = min(_BLOCK, window)
        start = rng.permutation(-(-rows // block)) * block
        stop = np.minimum(start + block, rows)
        end = np.cumsum(stop - start)  # where blocks in this order end
        windows = []
        for low in range(0, rows, window):
            high = min(low + window, rows)
            first, last = np.searchsorted(end, [low, high - 1], side="right")
            places = slice(first, last + 1)
            left = np.maximum(start[places], stop[places] - (end[places] - low))
            right = stop[places] - np.maximum(end[places] - high, 0)
            windows.append(list(zip(left.tolist(), right.tolist(), strict=True)))
        return windows

    @functools.cached_property
    def _in_memory(self) -> _Window:
        if self._rows is None or not self._by_rows:
            return _Window(self._data, None)
        return _Window(self._data.subset(self._rows), self._rows)

    def _read(self, pieces: _Pieces) -> _Window:
        if self._data.window is None or not self._by_rows:
            return self._in_memory
        if self._rows is not None:
            number = np.concatenate([self._rows[start:stop] for start, stop in pieces])
            return _Window(self._data.subset(number), number)
        wide = np.int32 if len(self._data) < 2**31 else np.int64
        number = np.concatenate([np.arange(*piece, dtype=wide) for piece in pieces]) if self._history else None
        return _Window(self._data.loaded(pieces), number)

    def _chunks(self, window: _Window, rng: np.random.Generator) -> Iterator[tuple[Batch, int]]:
        units = self._units(window.rows)
        order = rng.permutation(units) if self._shuffle else np.arange(units)
        chunk = self._per_chunk * self._size
        for start in range(0, len(order), chunk):
            chosen = order[start : start + chunk]
            stack = self._stack(window, chosen, rng) if self._users is None else self._stack_of_users(chosen)
            if self._negatives.catalogue:
                everything = self._sampler.catalogue
                stack = stack._replace(shared_negatives=np.broadcast_to(everything, (self._per_chunk, len(everything))))
            yield stack, -(-len(chosen) // self._size)

    def _stack(self, window: _Window, units: np.ndarray, rng: np.random.Generator) -> Batch:
        data, negatives = window.columns, self._negatives
        steps, size = self._per_chunk, self._size
        rows, kept = (units, None) if self._stretches is None else self._stretches.rows_of_stretches(units)

        def taken(values: np.ndarray) -> np.ndarray:
            """The chosen rows and zeros behind."""
            filled = np.empty((steps * size * self._width, *values.shape[1:]), values.dtype)
            np.take(values, rows, axis=0, out=filled[: len(rows)], mode="clip")  # the default mode makes a copy
            filled[len(rows) :] = 0
            return filled

        stacked = self._stacked
        weight = np.ones(steps * size * self._width, np.float32) if data.weight is None else taken(data.weight)
        weight[len(rows) :] = 0
        user = None if data.user is None else taken(data.user)
        batch = Batch(weight=stacked(weight), user=None if user is None else stacked(user[:: self._width]))
        if data.target is not None:
            batch = batch._replace(target=stacked(taken(data.target)))
        if data.context is not None:
            batch = batch._replace(context=stacked(taken(data.context)))
        if data.item is None:
            return batch
        positive = taken(data.item)
        if self._histories is not None:
            assert user is not None
            history = np.zeros((steps * size, self._history), np.int32)
            if self._stretches is None:
                number = rows if window.number is None else window.number[rows]
                found = self._histories.of_rows(number, user[: len(rows)], positive[: len(rows)], rng)
            else:
                found = self._stretches.of_stretches(units)
            history[: len(units)] = found
            batch = batch._replace(history=stacked(history))
        if kept is not None:
            kept &= weight[: len(rows)] > 0
            weight[: len(rows)][~kept], positive[: len(rows)][~kept] = 0, 0
            batch = batch._replace(weight=stacked(weight))
        if negatives.in_batch:
            return self._in_batch(batch, stacked(positive), rng)
        item = np.zeros((len(positive), 1 + negatives.num), np.int32)
        item[:, 0] = positive
        if negatives.num:
            item[: len(rows), 1:] = self._sampler.own(rng, len(rows), None if user is None else user[: len(rows)])
            if kept is not None:
                item[: len(rows)][~kept] = 0
        batch = batch._replace(item=stacked(item))
        shared = self._sampler.draw(rng, (steps, negatives.shared)) if negatives.shared else None
        if negatives.sampling == "popularity" and (negatives.num or negatives.shared):
            log_q = stacked(self._sampler.log_q[item])
            if shared is not None:
                of_shared = self._sampler.log_q[shared][:, None, :]
                log_q = np.concatenate(
                    [log_q, np.broadcast_to(of_shared, (steps, log_q.shape[1], negatives.shared))], axis=2
                )
            batch = batch._replace(log_q=log_q)
        return batch if shared is None else batch._replace(shared_negatives=shared)

    def _stack_of_users(self, units: np.ndarray) -> Batch:
        assert self._users is not None
        users = self._users.users[units]
        number, everything = self._per_chunk * self._size, self._sampler.catalogue
        position, item = self._users.of_users(users)
        touched = np.zeros((number, len(everything)), np.float32)
        touched[position, np.searchsorted(everything, item)] = 1.0
        weight = (np.arange(number) < len(users)).astype(np.float32)
        user = np.pad(users, (0, number - len(users)))
        return Batch(weight=self._stacked(weight), user=self._stacked(user), target=self._stacked(touched))

    def _stacked(self, values: np.ndarray) -> np.ndarray:
        """With an axis of steps in front, each filled up for the devices that share it."""
        each = len(values) // (self._per_chunk * self._size)
        values = values.reshape(self._per_chunk, self._size * each, *values.shape[1:])
        missing = (self._filled - self._size) * each
        return np.pad(values, ((0, 0), (0, missing), *((0, 0),) * (values.ndim - 2))) if missing else values

    def _in_batch(self, batch: Batch, positive: np.ndarray, rng: np.random.Generator) -> Batch:
        """Columns are the batch's positives, then draws for the whole batch."""
        columns = positive
        if self._negatives.shared:
            drawn = self._sampler.draw(rng, (len(positive), self._negatives.shared))
            columns = np.concatenate([positive, drawn], axis=1)
        return batch._replace(
            item=np.zeros((*positive.shape, 0), np.int32),
            shared_negatives=columns,
            log_q=self._sampler.log_in_batch[columns][:, None, :],
        )


def rows_that_weigh(dataset: Dataset) -> np.ndarray | None:
    """Numbers of the rows that weigh something; None where all do."""
    if dataset.weight is None or dataset.weight.all():
        return None
    rows = np.flatnonzero(dataset.weight)
    if not len(rows):
        raise ValueError(
            f"All of the {len(dataset)} rows weigh 0, so there is nothing to learn from. Expected at least one weight "
            "above 0."
        )
    return rows
