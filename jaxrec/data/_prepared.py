"""Epochs whose first chunk is ready when they begin."""

import itertools
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxrec._types import Batch

Chunks = Iterator[tuple[Batch, int]]


@runtime_checkable
class EpochSource(Protocol):
    """Where epochs come from: ``Batches``, or what is like it."""

    steps: int

    def epoch(self, number: int) -> Chunks: ...


def prepared(batches: EpochSource, epochs: int) -> Iterator[Chunks]:
    """The chunks of epochs 1, 2, ..., the first chunk of each made while a device may still work on the one before.

    Shuffling comes before the first chunk of an epoch. A loop that asks ``batches`` for an epoch when the last one is
    done lets the device wait for it; where chunks are taken from here and handed to a compiled function, which returns
    before it is done, it happens beside the last steps. ``fit`` trains so.

    Args:
      batches: ``Batches``; the same seed and epoch give the same chunks as its ``epoch``.
      epochs: how many; no chunk is made for more.

    Yields:
      An iterator of chunks and their numbers of steps, as ``batches.epoch`` gives it. An epoch that is left before its
      last chunk was taken prepares nothing.
    """
    coming = _Begun(batches, 1)
    for number in range(1, epochs + 1):
        chunks, coming = coming, _Begun(batches, number + 1)
        yield _then(chunks, coming) if number < epochs else iter(chunks)


class _Begun:
    """An epoch whose first chunk can be made before it is asked for."""

    def __init__(self, batches: EpochSource, number: int) -> None:
        self._batches, self._number = batches, number
        self._items: Chunks | None = None
        self._first: list[tuple[Batch, int]] = []

    def begin(self) -> None:
        self._items = iter(self._batches.epoch(self._number))
        self._first = list(itertools.islice(self._items, 1))

    def __iter__(self) -> Chunks:
        if self._items is None:
            self._items = iter(self._batches.epoch(self._number))
        yield from self._first
        self._first = []
        yield from self._items


def _then(chunks: _Begun, coming: _Begun) -> Chunks:
    yield from chunks
    coming.begin()
