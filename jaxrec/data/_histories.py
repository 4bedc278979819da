"""What an example's history is: other items of its user, at random or in order; whole stretches, whole users."""

import functools
from typing import Literal

import numpy as np

from jaxrec._expect import one_of
from jaxrec.data._counting import counted, grouped
from jaxrec.data._encoder import Dataset

Kind = Literal["subset", "before", "sequences", "users"]


class Histories:
    """Histories of at most ``length`` items, padded with 0 behind. ``Batches`` says what the kinds are."""

    def __init__(self, dataset: Dataset, kind: Kind, length: int, seed: int) -> None:
        one_of(kind, ("subset", "before", "sequences", "users"), "histories")
        if kind in ("before", "sequences") and length < 1:
            raise ValueError(f"Expected history >= 1 for histories={kind!r}, got {length}. It is their length.")
        if dataset.user is None or dataset.item is None:
            raise ValueError("Histories need users. Name the user column in the schema.")
        self._item, self._random, self._length = dataset.item, kind == "subset", length
        self._weight = dataset.weight
        self._of_user = counted(dataset.user)
        self._first = np.cumsum(self._of_user) - self._of_user
        # Rows grouped by user: in order, or in a random one, so that a run of neighbours is a random subset.
        if self._random:
            order = np.random.default_rng(seed).permutation(len(dataset))
        else:
            order = np.arange(len(dataset)) if dataset.time is None else np.argsort(dataset.time, kind="stable")
        self._grouped = order[grouped(dataset.user[order])]
        self._place = np.empty_like(self._grouped)  # of a row in its user's group
        self._place[self._grouped] = np.arange(len(dataset)) - np.repeat(self._first, self._of_user)
        if len(dataset) < 2**31:
            self._grouped, self._place = self._grouped.astype(np.int32), self._place.astype(np.int32)

    def of_rows(
        self, number: np.ndarray, user: np.ndarray, positive: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Histories of rows, given their numbers, users and items, int32 ``[rows, length]``."""
        if not self._random:
            length = np.minimum(self._place[number], self._length)
            return self._run(self._first[user] + self._place[number] - length, length)
        count = self._of_user[user]
        length = rng.integers(0, np.minimum(count - 1, self._length) + 1)
        skip = rng.integers(0, count - length)  # a run of `length` among the count - 1 others, never the row itself
        column = np.arange(self._length)[None, :]
        place = (self._place[number][:, None] + 1 + skip[:, None] + column) % count[:, None]
        found = self._item[self._grouped[self._first[user][:, None] + place]]
        # A repeated pair would show the answer.
        keep = (column < length[:, None]) & (found != positive[:, None])
        return np.where(keep, found, 0).astype(np.int32)

    @functools.cached_property
    def users(self) -> np.ndarray:
        """Those who have rows."""
        return np.flatnonzero(self._of_user).astype(np.int32)

    def of_users(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items of these users: each one's position among them, and the item."""
        count = self._of_user[users]
        position = np.repeat(np.arange(len(users)), count)
        inside = np.arange(len(position)) - np.repeat(np.cumsum(count) - count, count)
        return position, self._item[self._grouped[np.repeat(self._first[users], count) + inside]]

    @functools.cached_property
    def _stretches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each user's rows cut from the latest backwards; a stretch begins with the row that ends the one before.

        Returns where each begins among the grouped rows, how many rows follow its first, and whether its first row is
        the user's first. One whose examples all weigh nothing is left out.
        """
        count = self._of_user
        pieces = np.where(count > 0, np.maximum(-(-(count - 1) // self._length), 1), 0)
        user = np.repeat(np.arange(len(count)), pieces)
        piece = np.arange(len(user)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        last = count[user] - 1 - piece * self._length
        place = np.maximum(last - self._length, 0)
        begin, length, whole = self._first[user] + place, last - place, place == 0
        if self._weight is not None:
            before = np.concatenate([[0], np.cumsum(self._weight[self._grouped] > 0)])
            some = before[begin + length + 1] > before[begin + ~whole]
            begin, length, whole = begin[some], length[some], whole[some]
        return begin, length, whole

    @property
    def num_stretches(self) -> int:
        return len(self._stretches[0])

    def of_stretches(self, stretches: np.ndarray) -> np.ndarray:
        """The items that a stretch's examples look back at, int32 ``[stretches, length]``."""
        begin, length, _ = self._stretches
        return self._run(begin[stretches], length[stretches])

    def rows_of_stretches(self, stretches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers one stretch after the other, ``length + 1`` of each, and which of them are examples."""
        begin, length, whole = self._stretches
        column = np.arange(self._length + 1)[None, :]
        inside = column <= length[stretches][:, None]
        rows = self._grouped[begin[stretches][:, None] + np.where(inside, column, 0)]
        kept = inside & ((column > 0) | whole[stretches][:, None])
        return rows.reshape(-1), kept.reshape(-1)

    def _run(self, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
        column = np.arange(self._length)[None, :]
        kept = column < length[:, None]
        return np.where(kept, self._item[self._grouped[np.where(kept, begin[:, None] + column, 0)]], 0).astype(np.int32)
