"""Raw ids to indices. Index 0 is the unknown; ids stay on the host, where 64 bits are 64 bits."""

import dataclasses
import datetime
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxrec import _values
from jaxrec.data._counting import distinct

Kind = Literal["int", "str", "other"]

_TOO_WIDE = "Expected integer ids that fit 64 bits, all signed or all unsigned"


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """A frozen numbering of raw ids, categories or labels from 1; 0 stands for everything unknown.

    Ids that are fitted together are numbered in ascending order; ``extend`` appends.

    Args:
      kind: ``"int"``, ``"str"`` or ``"other"`` (any one hashable type).
      ids: the known ids, int64, uint64 or object; ``ids[index - 1]`` has index ``index``.

    Examples:
      >>> vocabulary = Vocabulary.fit(["b", "a", "b"])
      >>> vocabulary.encode(["a", "b", "z"])
      array([1, 2, 0], dtype=int32)
      >>> len(vocabulary), vocabulary
      (2, Vocabulary(2 str ids: 'a' ... 'b'))
    """

    kind: Kind
    ids: np.ndarray

    @classmethod
    def fit(cls, *columns: Iterable[Any]) -> "Vocabulary":
        """The distinct values of all columns in ascending order. Mixed types and missing values are errors."""
        typed: list[tuple[Kind, np.ndarray]]
        every = (_typed(column, floats=True) for column in columns)
        typed = [(kind, array) for kind, array in every if kind is not None]
        floats = [array for _, array in typed if isinstance(array[0], float)]
        if floats:
            _typed(np.concatenate(floats))  # refuses them where they are whole in all columns
        kinds = {kind for kind, _ in typed}
        if len(kinds) > 1:
            raise TypeError(
                f"Expected ids of one type, got a mixture of {', '.join(sorted(kinds))}. Convert the columns, for "
                "example to str."
            )
        if not typed:
            return cls("int", np.zeros(0, np.int64))
        return cls(typed[0][0], _distinct(typed[0][0], _joined([array for _, array in typed])))

    def extend(self, values: Iterable[Any]) -> "Vocabulary":
        """This vocabulary with the unknown ones among ``values`` appended in ascending order."""
        kind, array = _typed(values, floats=of_floats(self))
        if kind is None:
            return self
        if not len(self):
            return Vocabulary.fit(array)
        self._need(kind, array)
        new = _distinct(kind, array[self.encode(array) == 0])
        if not len(new):
            return self
        return Vocabulary(self.kind, _joined([self.ids, new]))

    def encode(self, values: Iterable[Any]) -> np.ndarray:
        """int32 indices of the values, 0 where unknown.

        Raises:
          TypeError: the values are of another type than the vocabulary's, so none could ever match.
        """
        kind, array = _typed(values, floats=of_floats(self))
        if kind is None:
            return np.zeros(0, np.int32)
        if not len(self):
            return np.zeros(len(array), np.int32)
        self._need(kind, array)
        if array.dtype.kind in "iu" and array.dtype != self.ids.dtype:
            # NumPy and pandas would compare int64 with uint64 as floats, in which neighbours are equal.
            fits = (array >= 0) if self.ids.dtype == np.uint64 else (array <= np.iinfo(np.int64).max)
            same = self._index.get_indexer(pd.Index(np.where(fits, array, 0).astype(self.ids.dtype)))
            return (np.where(fits, same, -1) + 1).astype(np.int32)
        return (self._index.get_indexer(pd.Index(array, tupleize_cols=False)) + 1).astype(np.int32)

    def decode(self, index: np.ndarray | Sequence[int]) -> np.ndarray:
        """Raw ids by index; every index must be that of a known id."""
        index = np.asarray(index)
        if index.size and (index.min() < 1 or index.max() > len(self)):
            raise ValueError(
                f"Expected indices in 1 .. {len(self)}, got {index.min()} .. {index.max()}. 0 is the unknown, which "
                "has no raw id."
            )
        return self.ids[index - 1]

    @property
    def type_name(self) -> str:
        """The kind, or the type's name where that is ``"other"``: ids of different ones can never match."""
        return _type_name(self.kind, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, value: Any) -> bool:
        return value in self._index

    __eq__ = _values.equal

    def __repr__(self) -> str:
        span = f": {self.ids[:1].tolist()[0]!r} ... {self.ids[-1:].tolist()[0]!r}" if len(self) else ""
        return f"Vocabulary({len(self)} {self.kind} ids{span})"

    @functools.cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.ids, tupleize_cols=False)

    def _need(self, kind: Kind, array: np.ndarray) -> None:
        """Raises unless the values, some of this kind, are of the ids' type."""
        theirs = _type_name(kind, array)
        if theirs != self.type_name:
            raise TypeError(
                f"Expected ids of type {self.type_name} ({self!r}), got {theirs}. Convert the column, for example with "
                ".astype('int64') or .astype(str), so that ids can match."
            )


def plain(value: Any) -> Any:
    """A NumPy scalar, such as an element of an array of strings, as the Python value that it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def of_part(values: Iterable[Any]) -> Vocabulary:
    """Of some of a column's values: floats that are all whole here may go with others elsewhere."""
    kind, array = _typed(values, floats=True)
    return Vocabulary(kind or "int", _distinct(kind or "int", array))


def type_of(value: Any) -> type:
    """A pandas.Timestamp is equal to a datetime.datetime, which is no date though its class says so."""
    return next((each for each in (datetime.datetime, tuple) if isinstance(value, each)), type(value))


def _type_name(kind: Kind, ids: np.ndarray) -> str:
    return type_of(ids[0]).__name__ if kind == "other" else kind


def of_floats(vocabulary: Vocabulary) -> bool:
    """Whether ids are floats, of which some values may all be whole."""
    return vocabulary.kind == "other" and len(vocabulary) > 0 and isinstance(vocabulary.ids[0], float)


def _typed(values: Iterable[Any], *, floats: bool = False) -> tuple[Kind | None, np.ndarray]:
    """The values as an array of one type: int64 or uint64, or objects. The kind of no values is None.

    Floats that are all whole were integers, unless they go with ``floats``.
    """
    if isinstance(values, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        if pd.isna(values).any():
            raise ValueError(f"{int(pd.isna(values).sum())} ids are missing (None or NaN). Drop them with data.clean.")
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(values.dtype.categories.dtype)
        array = np.asarray(values) if values.dtype.kind in "iu" else np.asarray(values, dtype=object)
    elif isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        array = values
    else:
        array = _objects(values.tolist() if isinstance(values, np.ndarray) else list(values))
    if not len(array):
        return None, array
    if array.dtype.kind in "iu":
        wide = np.uint64 if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max else np.int64
        return "int", array.astype(wide, copy=False)
    types = set(map(type, array))
    if any(issubclass(each, np.generic) for each in types):  # which no file holds
        array = _objects([plain(value) for value in array])
        types = set(map(type, array))
    if all(issubclass(each, str) for each in types):
        return "str", array
    if len(types) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in types))
        raise TypeError(f"Expected ids of one type, got a mixture of {names}. Convert the column, for example to str.")
    (only,) = types
    if only is int:
        low, high = int(min(array)), int(max(array))
        if low < -(2**63) or high >= 2**64 or (low < 0 and high >= 2**63):
            raise ValueError(f"{_TOO_WIDE}, got {low} .. {high}. Convert the column to str.")
        return "int", np.array([int(value) for value in array], dtype=np.uint64 if high >= 2**63 else np.int64)
    if only is float and any(value != value for value in array) or only is type(None):
        raise ValueError("Some ids are missing (None or NaN). Drop them with data.clean.")
    if only is float and not floats and all(value.is_integer() for value in array):
        check_exact(pd.Series(array.astype(np.float64), name="the column"))
        raise TypeError(
            f"Expected ids that are integers or strings, got floats such as {array[0]!r}: integers become floats where "
            "a value is missing. Drop missing rows and convert with .astype('int64')."
        )
    try:
        hash(array[0])
    except TypeError:
        raise TypeError(f"Expected hashable ids, got {only.__name__}. Convert them, for example to tuples.") from None
    return ("str" if issubclass(only, str) else "other"), array


def check_exact(values: pd.Series) -> None:
    """Raises where floats are so large for their type that integers next to each other had become one."""
    dtype: Any = getattr(values.dtype, "numpy_dtype", values.dtype)
    digits = np.finfo(dtype).nmant + 1
    large = values[values.abs() >= 2.0**digits]
    if len(large):
        raise ValueError(
            f"{len(large)} values in {values.name!r} are floats beyond 2^{digits}, such as {large.iloc[0]!r}: digits "
            "are lost, and different ones may have become one. Read the column with dtype='Int64' or as strings."
        )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """One array; int64 and uint64, which NumPy would join to floats, in whichever of the two holds all."""
    if len({array.dtype for array in arrays}) > 1:
        low, high = min(int(array.min()) for array in arrays), max(int(array.max()) for array in arrays)
        if low < 0 and high >= 2**63:
            raise ValueError(f"{_TOO_WIDE}, got {low} .. {high}. Convert the columns to str.")
        arrays = [array.astype(np.uint64 if high >= 2**63 else np.int64) for array in arrays]
    return np.concatenate(arrays)


def _distinct(kind: Kind, array: np.ndarray) -> np.ndarray:
    if kind == "int":
        return distinct(array)
    return _objects(sorted(pd.unique(array)) if kind == "str" else sorted(set(array)))


def _objects(values: list[Any]) -> np.ndarray:
    """One element for each value, whatever it is made of."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
