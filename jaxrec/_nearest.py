"""Each item's most similar trained items, by content or by who touched them: NumPy in blocks, and a top-k."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxrec._types import Features
from jaxrec.data import Interactions
from jaxrec.data._counting import distinct

Similarity = Literal["cosine", "jaccard"]

_CELLS = 2**22  # similarities held at once
_POSTINGS = 2**22  # pairs of entries multiplied at once


class Nearest(NamedTuple):
    """Lists of trained items, best first, 0 behind where there are fewer whose similarity is positive."""

    neighbours: np.ndarray  # int32 [items, k], entity indices
    similarity: np.ndarray  # float32 [items, k]


class Sparse(NamedTuple):
    """Rows of few numbers, by entity index."""

    start: np.ndarray  # where each row's entries begin; one more than rows
    label: np.ndarray  # the column of each entry
    value: np.ndarray | None  # float64; None for ones
    num_labels: int

    @classmethod
    def of(cls, row: np.ndarray, label: np.ndarray, num_rows: int, num_labels: int) -> "Sparse":
        """Ones at the given cells, each of which counts once however often it is given."""
        row, label = np.divmod(distinct(row.astype(np.int64) * num_labels + label), num_labels)
        return cls(_starts(np.bincount(row, minlength=num_rows)), label, None, num_labels)

    @property
    def row(self) -> np.ndarray:
        """The row of each entry."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


def by_content(
    features: Features,
    items: np.ndarray,
    *,
    k: int,
    dense: Sequence[tuple[int, int]],
    codes: Sequence[str],
) -> Nearest:
    """The nearest trained items of ``items`` by cosine of content.

    Content is the unit rows of each part, side by side, and again of unit length. ``dense`` are parts of
    ``Features.item_dense`` by their first column and the one behind the last; ``codes`` are names in
    ``Features.item_codes``, whose labels weigh ``ln((1 + n) / (1 + df)) + 1``, of ``n`` trained items ``df`` having it.
    """
    trained = np.flatnonzero(features.item_row)
    parts = [_unit(np.asarray(features.item_dense)[:, first:last]) for first, last in dense]
    parts += [_tf_idf(np.asarray(features.item_codes[name]), trained) for name in codes]
    scale = np.maximum(sum(_filled(part).astype(np.float64) for part in parts), 1.0) ** -0.5
    return _search([_scaled(part, scale) for part in parts], items, trained, k, lambda products, _: products)


def by_interactions(
    features: Features, seen: Interactions, items: np.ndarray, *, k: int, similarity: Similarity, shrink: float
) -> Nearest:
    """The nearest trained items of ``items`` by the users that they share."""
    trained = np.flatnonzero(features.item_row)
    touched = Sparse.of(seen.item, seen.user, len(features.item_row), seen.num_users)
    count = np.diff(touched.start).astype(np.float64)

    def shrunk(both: np.ndarray, block: np.ndarray) -> np.ndarray:
        ours, theirs = count[block][:, None], count[trained][None, :]
        size = np.sqrt(ours * theirs) if similarity == "cosine" else ours + theirs - both
        return both / np.maximum(size + shrink, np.finfo(np.float64).tiny)

    return _search([touched], items, trained, k, shrunk)


def _search(
    parts: Sequence[np.ndarray | Sparse],
    items: np.ndarray,
    among: np.ndarray,
    k: int,
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Nearest:
    """The ``k`` items of ``among`` with the largest ``finish(inner products, items)``, if it is positive."""
    found = Nearest(np.zeros((len(items), k), np.int32), np.zeros((len(items), k), np.float32))
    if not len(among) or not len(items):
        return found
    place = np.full(len(_filled(parts[0])), -1)
    place[among] = np.arange(len(among))
    products = [_products(part, among, place) for part in parts]
    width = min(k, len(among))
    rows = min(max(_CELLS // len(among), 1), 1 << (len(items) - 1).bit_length())
    for begin in range(0, len(items), rows):
        block = items[begin : begin + rows]
        total = finish(functools.reduce(np.add, [product(block) for product in products]), block)
        missing = ((0, rows - len(block)), (0, 0))  # one shape, to compile one top-k
        scores = np.pad(total.astype(np.float32), missing)
        own = np.flatnonzero(place[block] >= 0)
        scores[own, place[block[own]]] = 0.0  # nothing is its own neighbour
        best, position = (np.asarray(each)[: len(block)] for each in _top_k(scores, width))
        kept = best > 0
        found.neighbours[begin : begin + rows, :width] = np.where(kept, among[position], 0)
        found.similarity[begin : begin + rows, :width] = np.where(kept, best, 0.0)
    return found


@functools.partial(jax.jit, static_argnums=1)
def _top_k(scores: jax.Array, k: int) -> Sequence[jax.Array]:
    return jax.lax.top_k(scores, k)  # equal similarities: the lower entity index first


def _products(part: np.ndarray | Sparse, among: np.ndarray, place: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function of items: inner products of their rows with those of ``among``, ``[items, len(among)]``."""
    if not isinstance(part, Sparse):
        others = part[among].T
        return lambda items: part[items] @ others
    # Lists of who has a label, so that only pairs with a label in common are met.
    row = part.row
    kept = np.flatnonzero(place[row] >= 0)
    order = kept[np.argsort(part.label[kept], kind="stable")]
    holder, held = place[row[order]], None if part.value is None else part.value[order]
    length = np.bincount(part.label[kept], minlength=part.num_labels)
    first = _starts(length)[:-1]

    def product(items: np.ndarray) -> np.ndarray:
        count = np.diff(part.start)[items]
        entry = _runs(part.start[items], count)
        label, cell = part.label[entry], np.repeat(np.arange(len(items)) * len(among), count)
        total = np.zeros(len(items) * len(among), np.float64)
        for piece in _pieces(length[label]):
            posting = _runs(first[label[piece]], length[label[piece]])
            cells = np.repeat(cell[piece], length[label[piece]]) + holder[posting]
            weights = None
            if part.value is not None and held is not None:
                weights = np.repeat(part.value[entry[piece]], length[label[piece]]) * held[posting]
            total += np.bincount(cells, weights, minlength=len(total))
        return total.reshape(len(items), len(among))

    return product


def _pieces(cost: np.ndarray) -> Iterable[slice]:
    """Neighbouring entries that cost about ``_POSTINGS`` together."""
    number = np.cumsum(cost) // _POSTINGS
    edges = np.concatenate([[0], np.flatnonzero(np.diff(number)) + 1, [len(cost)]])
    return (slice(begin, end) for begin, end in zip(edges[:-1], edges[1:], strict=True))


def _runs(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """``start, start + 1, ...`` of each run, one run after the other."""
    return np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)


def _starts(length: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(length)])


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    length = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1, keepdims=True))
    return (rows / np.where(length > 0, length, 1.0)).astype(np.float32)


def _tf_idf(codes: np.ndarray, trained: np.ndarray) -> Sparse:
    row, column = np.nonzero(codes)
    sparse = Sparse.of(row, codes[row, column], len(codes), int(codes.max(initial=0)) + 1)
    is_trained = np.zeros(len(codes), bool)
    is_trained[trained] = True
    having = np.bincount(sparse.label[is_trained[sparse.row]], minlength=sparse.num_labels)
    value = (np.log((1 + len(trained)) / (1 + having)) + 1)[sparse.label]
    length = np.sqrt(np.bincount(sparse.row, np.square(value), minlength=len(codes)))
    return sparse._replace(value=value / length[sparse.row])


def _scaled(part: np.ndarray | Sparse, scale: np.ndarray) -> np.ndarray | Sparse:
    if not isinstance(part, Sparse):
        return part * scale[:, None].astype(np.float32)
    return part._replace(value=scale[part.row] * (1.0 if part.value is None else part.value))


def _filled(part: np.ndarray | Sparse) -> np.ndarray:
    """Which rows are not all zero."""
    return np.diff(part.start) > 0 if isinstance(part, Sparse) else (part != 0).max(axis=1, initial=False)
