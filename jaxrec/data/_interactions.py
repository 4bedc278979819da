"""Who touched what, in order: the source of histories, exclusions and counts."""

import dataclasses
import functools

import numpy as np

from jaxrec import _values


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """Pairs of entity indices, in the order in which they happened.

    Args:
      user: int32 ``[rows]``.
      item: int32 ``[rows]``.
      num_users: more than any user index.
      num_items: more than any item index.
      value: float32 ``[rows]``, scaled targets; None for implicit feedback.
    """

    user: np.ndarray
    item: np.ndarray
    num_users: int
    num_items: int
    value: np.ndarray | None = None

    __eq__ = _values.equal

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        return f"Interactions({len(self)} of {len(np.unique(self.user))} users and {len(np.unique(self.item))} items)"

    def append(self, other: "Interactions") -> "Interactions":
        """These pairs followed by the others."""
        values = [each.value for each in (self, other) if each.value is not None]
        return Interactions(
            np.concatenate([self.user, other.user]),
            np.concatenate([self.item, other.item]),
            max(self.num_users, other.num_users),
            max(self.num_items, other.num_items),
            np.concatenate(values) if len(values) == 2 else None,
        )

    def part(self, rows: slice) -> "Interactions":
        """Some of the rows, of the same numbers of users and items."""
        value = None if self.value is None else self.value[rows]
        return Interactions(self.user[rows], self.item[rows], self.num_users, self.num_items, value)

    @functools.cached_property
    def user_count(self) -> np.ndarray:
        """Rows by user index."""
        return np.bincount(self.user, minlength=self.num_users)

    @functools.cached_property
    def item_count(self) -> np.ndarray:
        """Rows by item index."""
        return np.bincount(self.item, minlength=self.num_items)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Row numbers grouped by user, in order within each."""
        return np.argsort(self.user, kind="stable")

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
        return np.unique(self.user.astype(np.int64) * self.num_items + self.item)

    def contains(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Whether each pair is among these, bool of the pairs' shape."""
        if not len(self):
            return np.zeros(np.broadcast_shapes(user.shape, item.shape), bool)
        keys = user.astype(np.int64) * self.num_items + item
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return (self._keys[place] == keys) & (item < self.num_items)
