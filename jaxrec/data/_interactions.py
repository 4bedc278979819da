"""Who touched what, in order: the source of histories, exclusions and counts."""

import dataclasses
import functools

import numpy as np

from jaxrec import _values
from jaxrec.data._counting import counted, distinct, grouped

_ROWS = 2**18  # whose bits are set at once
_MOST_BITS = 2**28  # a bit for every pair of user and item, 32 MiB at most; above, a filter in front of sorted keys


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """Pairs of entity indices, in the order in which they happened.

    Args:
      user: int32 ``[rows]``.
      item: int32 ``[rows]``.
      num_users: more than any user index.
      num_items: more than any item index.
      value: float32 ``[rows]``, scaled targets; None for implicit feedback.
      weight: float32 ``[rows]``; None where all weigh 1.
    """

    user: np.ndarray
    item: np.ndarray
    num_users: int
    num_items: int
    value: np.ndarray | None = None
    weight: np.ndarray | None = None

    __eq__ = _values.equal

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        users, items = np.count_nonzero(self.user_count), np.count_nonzero(self.item_count)
        return f"Interactions({len(self)} of {users} users and {items} items)"

    def append(self, other: "Interactions") -> "Interactions":
        """These pairs followed by the others."""
        both = Interactions(
            np.concatenate([self.user, other.user]),
            np.concatenate([self.item, other.item]),
            max(self.num_users, other.num_users),
            max(self.num_items, other.num_items),
            _joined(self.value, other.value),
            None if self.weight is None and other.weight is None else _joined(self.weights(), other.weights()),
        )
        if "order" in self.__dict__:  # grouping all rows again would take a second for ten millions
            order = grouped(other.user)
            after = np.minimum(other.user[order].astype(np.int64) + 1, self.num_users)
            both.__dict__["order"] = np.insert(self.order, self.start[after], len(self) + order)
        return both

    def weights(self) -> np.ndarray:
        """Of the rows, 1 where they have none."""
        return np.ones(len(self), np.float32) if self.weight is None else self.weight

    def sized(self, num_users: int, num_items: int) -> "Interactions":
        """The same rows of as many or more users and items."""
        if (num_users, num_items) == (self.num_users, self.num_items):
            return self
        other = Interactions(self.user, self.item, num_users, num_items, self.value, self.weight)
        if "order" in self.__dict__:
            other.__dict__["order"] = self.order
        return other

    def part(self, rows: slice | np.ndarray) -> "Interactions":
        """Some of the rows, of the same numbers of users and items."""
        value, weight = (None if each is None else each[rows] for each in (self.value, self.weight))
        return Interactions(self.user[rows], self.item[rows], self.num_users, self.num_items, value, weight)

    def turned(self) -> "Interactions":
        """The same rows with users and items in each other's place."""
        return Interactions(self.item, self.user, self.num_items, self.num_users, self.value, self.weight)

    @functools.cached_property
    def user_count(self) -> np.ndarray:
        """Rows by user index."""
        return counted(self.user, self.num_users)

    @functools.cached_property
    def item_count(self) -> np.ndarray:
        """Rows by item index."""
        return counted(self.item, self.num_items)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Row numbers grouped by user, in order within each."""
        return grouped(self.user)

    @functools.cached_property
    def start(self) -> np.ndarray:
        """Where each user's group begins in ``order``; one entry more than users."""
        return np.concatenate([[0], np.cumsum(self.user_count)])

    def rows_of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows of some users: ``(position in users, row)``. Users without rows, or out of range, have none."""
        users = np.where((users > 0) & (users < self.num_users), users, 0)
        length = np.where(users > 0, self.user_count[users], 0)
        position = np.repeat(np.arange(len(users)), length)
        offset = np.arange(len(position)) - np.repeat(np.cumsum(length) - length, length)
        return position, self.order[self.start[users[position]] + offset]

    def latest(self, users: np.ndarray, length: int) -> np.ndarray:
        """Each user's last ``length`` items in order, int32 ``[len(users), length]``, padded with 0 behind."""
        users = np.where((users > 0) & (users < self.num_users), users, 0)
        count = np.where(users > 0, self.user_count[users], 0)
        column = np.arange(length)[None, :]
        kept = np.minimum(count, length)[:, None]
        where = self.start[users][:, None] + count[:, None] - kept + column
        found = column < kept
        return (
            np.where(found, self.item[self.order[np.where(found, where, 0)]], 0).astype(np.int32)
            if len(self)
            else (np.zeros((len(users), length), np.int32))
        )

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        return distinct(self.user.astype(np.int64) * self.num_items + self.item)

    @functools.cached_property
    def _bits(self) -> np.ndarray:
        """A bit for every pair, or for every hash of one, of which there are 16 to 32 for each row: 1 if any row."""
        size = self.num_users * self.num_items if self._exact else 1 << (32 * len(self) - 1).bit_length() - 1
        bits = np.zeros(size // 8 + 1, np.uint8)
        for start in range(0, len(self), _ROWS):
            rows = slice(start, start + _ROWS)
            place = self._place(self.user[rows].astype(np.int64) * self.num_items + self.item[rows], size)
            np.bitwise_or.at(bits, place >> 3, np.uint8(1) << (place & 7).astype(np.uint8))
        return bits

    @property
    def _exact(self) -> bool:
        return self.num_users * self.num_items <= _MOST_BITS

    def _place(self, keys: np.ndarray, size: int) -> np.ndarray:
        """Which bit is a pair's. The upper bits of a product by the golden ratio are a hash (Knuth, vol. 3, 6.4)."""
        if self._exact:
            return keys
        mixed = keys.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(65 - size.bit_length())).view(np.int64)

    def contains(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Whether each pair is among these, bool of the pairs' shape.

        Takes a bit per pair of user and item in memory, up to 32 MiB; where that is more, 8 bytes for each distinct
        pair and 2 to 4 for each row.
        """
        shape = np.broadcast_shapes(user.shape, item.shape)
        if not len(self):
            return np.zeros(shape, bool)
        inside = (user >= 0) & (user < self.num_users) & (item >= 0) & (item < self.num_items)
        keys = np.where(inside, user.astype(np.int64) * self.num_items + item, 0)
        place = self._place(keys, 8 * (len(self._bits) - 1))
        found = ((self._bits.take(place >> 3) >> (place & 7).astype(np.uint8)) & 1).astype(bool) & inside
        if not self._exact:
            maybe = keys[found]
            at = np.minimum(np.searchsorted(self._keys, maybe), len(self._keys) - 1)
            found[found] = self._keys[at] == maybe
        return found


def _joined(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or second is None else np.concatenate([first, second])
