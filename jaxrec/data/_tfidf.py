"""Labels as dense vectors without a language model: TF-IDF weights, then a truncated singular value decomposition."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxrec import _values
from jaxrec.data._features import FittedFeature
from jaxrec.data._schema import Labels, need_columns
from jaxrec.data._text import need_new, with_vectors

_OVERSAMPLED, _POWER_ITERATIONS = 10, 4
_CHUNK = 2**21  # numbers of one intermediate array


@dataclasses.dataclass(frozen=True, eq=False)
class TfidfSVD:
    r"""Multi-label categories, words or tags as dense vectors (latent semantic analysis), fitted on training items.

    A label that :math:`d` of :math:`n` training items have weighs :math:`\ln((1 + n) / (1 + d)) + 1`, an item is the
    unit row of its labels' weights, and its vector what the first right singular vectors of the training rows make of
    it, again of length 1. A frozen value: new items are transformed as training ones are, ``jaxrec.save`` stores it.

    Args:
      labels: column, separator and vocabulary.
      idf: float64 ``[1 + labels]``; 0 for the unknown and for labels that too few items have.
      components: float64 ``[1 + labels, dim]``, zero where ``idf`` is.

    Examples:
      >>> items = pd.DataFrame({"tags": ["a|b", "a", "b|c", "c", None]})
      >>> reduced = TfidfSVD.fit(items, "tags", separator="|", dim=2, min_items=1)
      >>> [None if cell is None else cell.shape for cell in reduced.transform(items)["tags_vector"]]
      [(2,), (2,), (2,), (2,), None]

    References:
      Deerwester et al., Indexing by latent semantic analysis, JASIS 1990. Halko, Martinsson and Tropp, Finding
      structure with randomness, SIAM Review 2011 (algorithm 4.4 with 4 power iterations and 10 vectors more than asked
      for).
    """

    labels: FittedFeature
    idf: np.ndarray
    components: np.ndarray

    __eq__ = _values.equal

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        column: str,
        *,
        dim: int = 128,
        separator: str | None = None,
        min_items: int = 2,
        seed: int = 0,
    ) -> "TfidfSVD":
        """Weights and components of the frame's rows.

        Args:
          frame: training items alone, ``items[items["item"].isin(train["item"])]``: others would tell a model of a
            future that it does not know.
          column: of labels, as in ``data.Labels``: a list in each cell, or a string to be cut at ``separator``.
          dim: width of the vectors.
          separator: see ``column``.
          min_items: labels of fewer items are left out.
          seed: of the random start; another one gives the same vectors up to the error of the method. Signs are fixed:
            of each component the label with the largest share counts positive.

        Raises:
          ValueError: the column is missing, its labels are the same in all rows, the labels leave fewer than ``dim``
            dimensions, or ``dim`` or ``min_items`` is below 1.
        """
        need_columns(frame, (column,), "training items")
        if dim < 1 or min_items < 1:
            raise ValueError(f"Expected dim >= 1 and min_items >= 1, got {dim} and {min_items}.")
        labels = FittedFeature.fit(Labels(column, separator), frame)
        codes = labels.encode(frame)
        assert labels.vocabulary is not None
        count = np.bincount(codes[codes > 0], minlength=len(labels.vocabulary) + 1)
        idf = np.where(count >= min_items, np.log((1 + len(frame)) / (1 + count)) + 1, 0.0)
        idf[0] = 0.0
        if not idf.any():
            raise ValueError(f"No label of {column!r} is one of {min_items} or more items. Lower min_items.")
        rows = _unit_rows(codes, idf)
        most = min(len(np.unique(rows.row)), np.count_nonzero(idf))
        kernel, values = _right_singular(rows, len(idf), min(dim + _OVERSAMPLED, int(most)), seed)
        rank = int((values > 1e-7 * values.max(initial=0.0)).sum())
        if rank < dim:
            raise TooFewDimensions(
                f"The labels of {column!r} that {min_items} or more items have span {rank} dimensions and dim={dim} "
                "were asked for. Ask for fewer, or lower min_items.",
                rank,
            )
        kernel = kernel[:, :dim]
        sign = np.sign(np.take_along_axis(kernel, np.abs(kernel).argmax(axis=0)[None, :], axis=0))
        return cls(labels, idf, kernel * sign)

    def transform(self, frame: pd.DataFrame, *, into: str | None = None) -> pd.DataFrame:
        """A copy of the frame with a column of vectors, for ``data.Vector`` in a schema.

        Args:
          frame: with the column of labels. Labels that training did not see do not count.
          into: name of the new column, by default that of the labels and ``"_vector"``. Its cells are float32 arrays
            of length 1, or None for an item without any known label.

        Raises:
          ValueError: the column is missing, the frame is empty, or ``into`` exists.
        """
        into = f"{self.labels.name}_vector" if into is None else into
        need_columns(frame, (self.labels.name,), "items")
        need_new(frame, into)
        rows = _unit_rows(self.labels.encode(frame), self.idf)
        vectors = _sums(rows, self.components, len(frame))
        length = np.sqrt((vectors * vectors).sum(axis=1))
        present = length > 1e-7  # nothing is left of labels that no component has
        unit = vectors / np.where(present, length, 1.0)[:, None]
        return with_vectors(frame, into, unit.astype(np.float32), present)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.components.shape[1]

    def __repr__(self) -> str:
        return f"TfidfSVD({self.labels.name!r}, {np.count_nonzero(self.idf)} labels to {self.dim} numbers)"


class TooFewDimensions(ValueError):
    """Labels span fewer dimensions, ``rank``, than were asked for."""

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class _Entries(NamedTuple):
    """Numbers of a sparse matrix other than zero, in ascending order of rows."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray

    def transposed(self) -> "_Entries":
        order = np.argsort(self.column, kind="stable")
        return _Entries(self.column[order], self.row[order], self.value[order])


def _unit_rows(codes: np.ndarray, idf: np.ndarray) -> _Entries:
    """Rows of length 1, a piece at a time: codes are padded to the longest list, of which weights would be a copy."""
    step = max(_CHUNK // max(codes.shape[1], 1), 1)
    pieces = []
    for start in range(0, len(codes), step):
        part = codes[start : start + step]
        weights = idf[part]
        length = np.sqrt((weights * weights).sum(axis=1, keepdims=True))
        row, place = np.nonzero(weights)
        value = (weights / np.where(length > 0, length, 1.0))[row, place]
        pieces.append(_Entries(start + row, part[row, place], value))
    return _Entries(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def _sums(entries: _Entries, dense: np.ndarray, rows: int) -> np.ndarray:
    """The product of the sparse matrix with a dense one, a piece at a time."""
    total = np.zeros((rows, dense.shape[1]))
    present, starts = np.unique(entries.row, return_index=True)
    ends = np.append(starts[1:], len(entries.row))
    step = max(_CHUNK // dense.shape[1], 1)
    first = 0
    while first < len(present):
        last = max(int(np.searchsorted(ends, starts[first] + step, side="right")), first + 1)
        part = slice(starts[first], ends[last - 1])
        terms = dense[entries.column[part]] * entries.value[part, None]
        total[present[first:last]] = np.add.reduceat(terms, starts[first:last] - starts[first], axis=0)
        first = last
    return total


def _right_singular(entries: _Entries, columns: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first right singular vectors ``[columns, dim]`` and singular values of a sparse matrix."""
    rows = int(entries.row.max(initial=-1)) + 1
    flipped = entries.transposed()
    start = np.random.default_rng(seed).normal(size=(columns, dim))
    left = np.linalg.qr(_sums(entries, start, rows))[0]
    for _ in range(_POWER_ITERATIONS):
        right = np.linalg.qr(_sums(flipped, left, columns))[0]
        left = np.linalg.qr(_sums(entries, right, rows))[0]
    kernel, values, _ = np.linalg.svd(_sums(flipped, left, columns), full_matrices=False)
    return kernel, values
