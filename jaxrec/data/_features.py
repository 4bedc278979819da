"""Side features of entities and interactions: fitted on training rows, then turned into arrays."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import _values
from jaxrec.data._scaling import Scaler, no_value
from jaxrec.data._schema import Categorical, Feature, Labels, Numeric, Vector, numbers, to_float32
from jaxrec.data._vocabulary import Vocabulary, check_exact, of_floats, plain, type_of

_CODES = 2**30  # most numbers of one feature's codes, 4 GiB


@dataclasses.dataclass(frozen=True, eq=False)
class FittedFeature:
    """A feature with its training statistics: a scaler for numbers, a vocabulary for categories and labels."""

    feature: Feature
    width: int  # numbers per entity; for codes the most labels of one entity, which may grow
    scaler: Scaler | None = None
    vocabulary: Vocabulary | None = None

    __eq__ = _values.equal

    @classmethod
    def fit(cls, feature: Feature, frame: pd.DataFrame, *, varies: bool = True) -> "FittedFeature":
        """Statistics of the rows of ``frame``, which are the training part's; ``varies`` says that they must differ."""
        if isinstance(feature, Numeric | Vector):
            values = _numbers_of(feature, frame, width=None)
            same = len(values) > 1 and (values == values[:1]).all()  # some numbers of a vector may be the same for all
            if varies and same:
                raise ValueError(_constant(feature.column, f"{values[0, 0]:g}" if values.shape[1] == 1 else "a vector"))
            if np.isnan(values).all():
                raise ValueError(no_value(feature.column))
            scaler = Scaler.fit(values, feature.scale, feature.column) if feature.scale else None
            return cls(feature, values.shape[1], scaler=scaler)
        labels = _labels_of(feature, frame)
        try:
            vocabulary = Vocabulary.fit([label for of_one in labels for label in of_one])
        except (TypeError, ValueError) as error:
            raise type(error)(f"Labels in the column {feature.column!r}: {error}") from None
        lengths = np.array([len(of_one) for of_one in labels], np.int64)
        _need_room(feature.column, lengths, frame, len(frame))
        if varies and len(vocabulary) < 2 and (lengths == lengths[:1]).all():  # whether there is one says something
            raise ValueError(_constant(feature.column, str(vocabulary)))
        return cls(feature, int(lengths.max()), vocabulary=vocabulary)

    def encode(self, frame: pd.DataFrame, *, among: int = 0) -> np.ndarray:
        """float32 ``[rows, width]``, or int32 codes ``[rows, most known labels]`` padded with 0.

        They are to be rows of an array of ``among``, which is then as wide.
        """
        if not self.is_code:
            return self.measure(frame)[0]
        labels = _labels_of(self.feature, frame)
        code = _known(self._vocabulary, [label for of_one in labels for label in of_one])
        row = np.repeat(np.arange(len(labels)), np.array([len(of_one) for of_one in labels], np.int64))[code > 0]
        lengths = np.bincount(row, minlength=len(labels))
        _need_room(self.name, lengths, frame, max(among, len(labels)))
        codes = np.zeros((len(labels), max(self.width, int(lengths.max(initial=0)))), np.int32)
        codes[row, np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)] = code[code > 0]
        return codes

    def measure(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Of a number or vector: float32 ``[rows, width]``, and for each row whether there is one."""
        assert isinstance(self.feature, Numeric | Vector)
        values = _numbers_of(self.feature, frame, width=self.width)
        present = np.asarray(~np.isnan(values).all(axis=1))
        if self.scaler is not None:
            values = self.scaler.transform(values, self.feature.column)
        return to_float32(np.where(np.isnan(values), 0.0, values), self.feature.column, "scale='zscore'"), present

    def extended(self, frame: pd.DataFrame) -> "FittedFeature":
        """The same statistics, with labels that ``frame`` has and this lacks appended to the vocabulary.

        One of another type stays unknown, as at serving; that all of them are is a mistake.
        """
        if self.vocabulary is None:
            return self
        labels = _labels_of(self.feature, frame)
        flat = _alike(self.vocabulary, [label for of_one in labels for label in of_one])
        fits = [label for label in flat if _kind_fits(self.vocabulary, label)]
        if flat and not fits and len(self.vocabulary):
            raise TypeError(
                f"Expected labels of the source's type ({self.vocabulary!r}) in the column {self.name!r}, got only "
                f"others such as {flat[0]!r} ({type(flat[0]).__name__}): all would be unknown. Convert the column, for "
                "example with .astype('int64') or .astype(str), so that labels can match."
            )
        vocabulary = self.vocabulary.extend(fits)
        return dataclasses.replace(self, vocabulary=vocabulary, width=max([self.width, *map(len, labels)]))

    @property
    def name(self) -> str:
        return self.feature.column

    @property
    def is_code(self) -> bool:
        return self.vocabulary is not None

    @property
    def _vocabulary(self) -> Vocabulary:
        assert self.vocabulary is not None
        return self.vocabulary


def _known(vocabulary: Vocabulary, labels: list[Any]) -> np.ndarray:
    """Codes of labels; one of another type than training saw is as unknown as any other new one."""
    labels = _alike(vocabulary, labels)
    fits = np.array([_kind_fits(vocabulary, label) for label in labels], bool)
    codes = np.zeros(len(labels), np.int32)
    codes[fits] = vocabulary.encode([label for label, fit in zip(labels, fits, strict=True) if fit])
    return codes


def _alike(vocabulary: Vocabulary, labels: list[Any]) -> list[Any]:
    """Numbers as the vocabulary has them: what else is in their frame says whether they came as integers or floats."""
    if vocabulary.kind == "int":
        return [int(label) if isinstance(label, float) and label.is_integer() else label for label in labels]
    if of_floats(vocabulary):
        return [float(label) if isinstance(label, int) else label for label in labels]
    return labels


def _kind_fits(vocabulary: Vocabulary, label: Any) -> bool:
    if vocabulary.kind == "int":
        return isinstance(label, int) and not isinstance(label, bool)
    return isinstance(label, str) if vocabulary.kind == "str" else type_of(label) is type_of(vocabulary.ids[0])


def modalities(fitted: Sequence[FittedFeature]) -> list[list[FittedFeature]]:
    """The dense features in the groups that an entity has or lacks: each vector, and numbers that stand together."""
    groups: list[list[FittedFeature]] = []
    for each in fitted:
        if each.is_code:
            continue
        if groups and isinstance(each.feature, Numeric) and isinstance(groups[-1][0].feature, Numeric):
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


class SideArrays(NamedTuple):
    """All features of a frame's rows."""

    dense: np.ndarray | None  # float32 [rows, width], side by side
    present: np.ndarray | None  # bool [rows, modalities]; of several numbers one is enough
    codes: dict[str, np.ndarray]  # by name, int32 [rows, most labels]


def side_arrays(fitted: Sequence[FittedFeature], frame: pd.DataFrame, *, among: int = 0) -> SideArrays:
    """The arrays of fitted features, to be rows of arrays of ``among``."""
    dense, present = [], []
    for group in modalities(fitted):
        values, known = zip(*(each.measure(frame) for each in group), strict=True)
        dense += values
        present.append(np.any(known, axis=0))
    codes = {each.name: each.encode(frame, among=among) for each in fitted if each.is_code}
    if not dense:
        return SideArrays(None, None, codes)
    return SideArrays(np.concatenate(dense, axis=1), np.stack(present, axis=1), codes)


def _numbers_of(feature: Numeric | Vector, frame: pd.DataFrame, width: int | None) -> np.ndarray:
    """float64 ``[rows, width]``; missing numbers are NaN, a missing vector is all NaN."""
    if isinstance(feature, Numeric):
        values = numbers(frame, feature.column, "feature")[:, None]
    else:
        cells = frame[feature.column].tolist()
        arrays = [None if is_missing(cell) else np.asarray(cell) for cell in cells]  # not copied
        shapes = {array.shape for array in arrays if array is not None}
        if width is None and not shapes:
            raise ValueError(
                f"The feature {feature.column!r} has no vector in the training part. Leave it out of the schema, or "
                "make vectors of these rows."
            )
        expected = {(width,)} if width is not None else shapes
        if len(expected) != 1 or shapes - expected or any(len(shape) != 1 for shape in shapes):
            raise ValueError(
                f"Expected vectors of one length in the column {feature.column!r}"
                f"{'' if width is None else f', {width} as in training'}, got shapes {sorted(shapes)}."
            )
        values = np.full((len(arrays), *next(iter(expected))), np.nan)
        for row, array in zip(values, arrays, strict=True):
            if array is not None:
                row[:] = array
    if np.isinf(values).any():
        raise ValueError(
            f"The feature {feature.column!r} has {int(np.isinf(values).sum())} infinite values. Mend them."
        )
    return values


def _labels_of(feature: Feature, frame: pd.DataFrame) -> list[list[Any]]:
    """Each row's labels without repetition; a missing value has none."""
    column = frame[feature.column]
    split: list[list[Any]] = []
    for cell in map(plain, column.tolist()):
        if is_missing(cell):
            split.append([])
        elif isinstance(feature, Categorical):
            split.append([cell])
        elif isinstance(cell, str):
            assert isinstance(feature, Labels)
            if feature.separator is None:
                raise ValueError(
                    f"The labels in the column {feature.column!r} are strings ({cell!r}) and no separator was given. "
                    f"Say Labels({feature.column!r}, separator='|'), or use Categorical if each is one category."
                )
            split.append(list(dict.fromkeys(part.strip() for part in cell.split(feature.separator) if part.strip())))
        else:
            split.append([label for label in dict.fromkeys(map(plain, cell)) if not is_missing(label)])
    floats = [label for of_one in split for label in of_one if isinstance(label, float)]
    if not floats or not all(label.is_integer() for label in floats):
        return split
    # Integers, of which a missing one has made floats.
    dtype = column.dtype if pd.api.types.is_float_dtype(column) else np.float64
    check_exact(pd.Series(floats, dtype=dtype, name=feature.column))
    return [[int(label) if isinstance(label, float) else label for label in of_one] for of_one in split]


def _need_room(column: str, lengths: np.ndarray, frame: pd.DataFrame, rows: int) -> None:
    """All rows are padded to the most labels of one of the frame's, so a list by far too long is refused."""
    most = int(lengths.max(initial=0))
    if rows * most > _CODES:
        row = int(lengths.argmax())
        raise ValueError(
            f"Row {frame.index[row]!r} has {most} labels in the column {column!r} (the mean is {lengths.mean():.1f}), "
            f"and all {rows} rows would be padded to as many, {4 * rows * most / 2**30:.0f} GiB. Keep the labels that "
            "tell most in such rows."
        )


def _constant(column: str, value: str) -> str:
    return (
        f"The feature {column!r} is constant in the training part ({value}), so it tells a model nothing. Leave it out "
        "of the schema; if it should vary, see whether the ids of the features' frame are those of the interactions."
    )


def is_missing(cell: Any) -> bool:
    """Whether a cell of any kind says that there is nothing."""
    return cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and cell != cell)
