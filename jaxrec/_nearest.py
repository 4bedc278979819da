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
_FEW = 4  # times as long as adding it to a row of sums takes one pair that has to be sorted


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
    modalities: Sequence[int] = (),
) -> Nearest:
    """The nearest trained items of ``items`` by cosine of content.

    Content is the unit rows of each part, side by side, and again of unit length. ``dense`` are parts of
    ``Features.item_dense`` by their first column and the one behind the last; ``codes`` are names in
    ``Features.item_codes``, whose labels weigh ``ln((1 + n) / (1 + df)) + 1``, of ``n`` trained items ``df`` having it.
    ``modalities`` are the columns of ``Features.item_present`` that say which items have the dense parts; without
    them what stands there counts.
    """
    trained = np.flatnonzero(features.item_row)
    wide = [np.asarray(features.item_dense)[:, first:last] for first, last in dense]
    if modalities and features.item_present is not None:  # where one is absent stands a placeholder
        present = np.asarray(features.item_present)
        wide = [np.where(present[:, [at]], part, 0.0) for at, part in zip(modalities, wide, strict=True)]
    parts = [_unit(part) for part in wide]
    parts += [_tf_idf(np.asarray(features.item_codes[name]), trained) for name in codes]
    scale = np.maximum(sum(_filled(part).astype(np.float64) for part in parts), 1.0) ** -0.5
    return _search([_scaled(part, scale) for part in parts], items, trained, k, lambda products, *_: products)


def by_interactions(
    features: Features, seen: Interactions, items: np.ndarray, *, k: int, similarity: Similarity, shrink: float
) -> Nearest:
    """The nearest trained items of ``items`` by the users that they share."""
    trained = np.flatnonzero(features.item_row)
    touched = Sparse.of(seen.item, seen.user, len(features.item_row), seen.num_users)
    count = np.diff(touched.start).astype(np.float64)

    def shrunk(both: np.ndarray, item: np.ndarray, other: np.ndarray) -> np.ndarray:
        ours, theirs = count[item], count[other]
        size = np.sqrt(ours * theirs) if similarity == "cosine" else ours + theirs - both
        return both / np.maximum(size + shrink, np.finfo(np.float64).tiny)

    return _search([touched], items, trained, k, shrunk)


def _search(
    parts: Sequence[np.ndarray | Sparse],
    items: np.ndarray,
    among: np.ndarray,
    k: int,
    finish: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> Nearest:
    """The ``k`` items of ``among`` with the largest ``finish(inner products, items, others)``, if it is positive."""
    found = Nearest(np.zeros((len(items), k), np.int32), np.zeros((len(items), k), np.float32))
    if not len(among) or not len(items):
        return found
    place = np.full(len(_filled(parts[0])), -1)
    place[among] = np.arange(len(among))
    products = [_Postings.of(part, place) if isinstance(part, Sparse) else _Rows(part, among) for part in parts]
    cost = functools.reduce(np.add, [product.cost(items) for product in products])
    few = _FEW * cost < len(among)  # others have anything in common, so that sorting those is cheaper
    few &= all(isinstance(product, _Postings) for product in products)
    _by_rows(found, products, items, np.flatnonzero(~few), among, place, finish)
    sparse = np.flatnonzero(few & (cost > 0))
    for piece in _pieces(cost[sparse]) if len(sparse) else ():
        _by_cells(found, products, items, sparse[piece], among, finish)
    return found


def _by_rows(
    found: Nearest,
    products: "Sequence[_Rows | _Postings]",
    items: np.ndarray,
    which: np.ndarray,
    among: np.ndarray,
    place: np.ndarray,
    finish: Callable[..., np.ndarray],
) -> None:
    """Writes the lists of ``items[which]``, from their products with all of ``among``."""
    width = min(found.neighbours.shape[1], len(among))
    rows = min(max(_CELLS // len(among), 1), 1 << (max(len(which), 1) - 1).bit_length())
    for begin in range(0, len(which), rows):
        at = which[begin : begin + rows]
        block = items[at]
        both = functools.reduce(np.add, [product.rows(block) for product in products])
        total = finish(both, block[:, None], among[None, :])
        missing = ((0, rows - len(block)), (0, 0))  # one shape, to compile one top-k
        scores = np.pad(total.astype(np.float32), missing)
        own = np.flatnonzero(place[block] >= 0)
        scores[own, place[block[own]]] = 0.0  # nothing is its own neighbour
        best, position = (np.asarray(each)[: len(block)] for each in _top_k(scores, width))
        kept = best > 0
        found.neighbours[at, :width] = np.where(kept, among[position], 0)
        found.similarity[at, :width] = np.where(kept, best, 0.0)


def _by_cells(
    found: Nearest,
    products: "Sequence[_Rows | _Postings]",
    items: np.ndarray,
    which: np.ndarray,
    among: np.ndarray,
    finish: Callable[..., np.ndarray],
) -> None:
    """The same from those pairs alone that have something in common."""
    block = items[which]
    met = [cells for product in products if isinstance(product, _Postings) for cells in product.cells(block)]
    cell, inverse = np.unique(np.concatenate([cells for cells, _ in met]), return_inverse=True)
    weight = np.concatenate([np.ones(len(cells)) if each is None else each for cells, each in met])
    row, holder = np.divmod(cell, len(among))
    score = finish(np.bincount(inverse, weight, minlength=len(cell)), block[row], among[holder]).astype(np.float32)
    kept = (score > 0) & (among[holder] != block[row])
    row, holder, score = row[kept], holder[kept], score[kept]
    order = np.lexsort((-score, row))  # stable: equal similarities by index
    rank = np.arange(len(row)) - np.searchsorted(row, row)  # rows are in order already
    listed = rank < found.neighbours.shape[1]
    at, order, rank = which[row[listed]], order[listed], rank[listed]
    found.neighbours[at, rank], found.similarity[at, rank] = among[holder[order]], score[order]


@functools.partial(jax.jit, static_argnums=1)
def _top_k(scores: jax.Array, k: int) -> Sequence[jax.Array]:
    return jax.lax.top_k(scores, k)  # equal similarities: the lower entity index first


class _Rows:
    """Inner products of full rows."""

    def __init__(self, part: np.ndarray, among: np.ndarray) -> None:
        self._part, self._others = part, part[among].T

    def cost(self, items: np.ndarray) -> np.ndarray:
        """How many others each item meets."""
        return np.full(len(items), self._others.shape[1])

    def rows(self, items: np.ndarray) -> np.ndarray:
        """``[items, others]``."""
        return self._part[items] @ self._others


class _Postings(NamedTuple):
    """Inner products of rows of few numbers, by lists of who has a label: only pairs with one in common are met."""

    part: Sparse
    others: int
    holder: np.ndarray  # by label, the others that have it
    held: np.ndarray | None  # and their values
    first: np.ndarray  # where a label's list begins
    length: np.ndarray

    @classmethod
    def of(cls, part: Sparse, place: np.ndarray) -> "_Postings":
        row = part.row
        kept = np.flatnonzero(place[row] >= 0)
        order = kept[np.argsort(part.label[kept], kind="stable")]
        length = np.bincount(part.label[kept], minlength=part.num_labels)
        held = None if part.value is None else part.value[order]
        return cls(part, int((place >= 0).sum()), place[row[order]], held, _starts(length)[:-1], length)

    def cost(self, items: np.ndarray) -> np.ndarray:
        count = np.diff(self.part.start)[items]
        label = self.part.label[_runs(self.part.start[items], count)]
        return np.bincount(np.repeat(np.arange(len(items)), count), self.length[label], minlength=len(items))

    def cells(self, items: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
        """Places in ``[items, others]``, some more than once, and what is to be added up there; None for ones."""
        part = self.part
        count = np.diff(part.start)[items]
        entry = _runs(part.start[items], count)
        label, cell = part.label[entry], np.repeat(np.arange(len(items)) * self.others, count)
        for piece in _pieces(self.length[label]):
            times = self.length[label[piece]]
            posting = _runs(self.first[label[piece]], times)
            weights = None
            if part.value is not None and self.held is not None:
                weights = np.repeat(part.value[entry[piece]], times) * self.held[posting]
            yield np.repeat(cell[piece], times) + self.holder[posting], weights

    def rows(self, items: np.ndarray) -> np.ndarray:
        total = np.zeros(len(items) * self.others, np.float64)
        for cells, weights in self.cells(items):
            total += np.bincount(cells, weights, minlength=len(total))
        return total.reshape(len(items), self.others)


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
