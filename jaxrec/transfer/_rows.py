"""What rows begin with for which the source has nothing: those of users, items and labels that were not matched."""

import itertools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _nearest, _tree
from jaxrec._types import Features, Params
from jaxrec.coldstart._mapping import content_inputs
from jaxrec.coldstart._ridge import ridge
from jaxrec.data import Dataset
from jaxrec.data._sides import SIDES, Side
from jaxrec.models import Model
from jaxrec.models._content import Content
from jaxrec.transfer._align import Rows
from jaxrec.transfer._copy import CopyReport

Unmatched = Literal["fresh", "unknown", "content", "neighbours"]

_NEIGHBOURS = 10


def fill(
    params: Params, model: Model, train: Dataset, rows: Mapping[str, Rows], report: CopyReport, how: Unmatched
) -> tuple[Params, CopyReport]:
    """Gives the rows in use that were not copied a start from those that were; see ``adapt(..., unmatched=)``.

    Raises:
      ValueError: no row was copied, or content is asked for and no side of which rows were copied has features.
    """
    if how == "fresh":
        return params, report
    paths = report.paths("rows copied")
    if not paths:
        raise ValueError(
            f"unmatched={how!r} starts rows from those that were copied, and none was. Leaf by leaf:\n{report}"
        )
    numbered = {model.tables[path] for path in paths}
    sides: list[Side] = [side for name, side in SIDES.items() if name in numbered]
    if how != "unknown" and sides and not any(train.encoder.fitted(side) for side in sides):
        raise ValueError(
            f"unmatched={how!r} reads features of {' and '.join(f'{side}s' for side in sides)}, "
            "of which rows were copied, and the schema has none. Name some, or say unmatched='unknown'."
        )
    changed, filled = {}, {}
    for path in paths:
        table, numbering = np.asarray(_tree.get(params, path)), model.tables[path]
        side = SIDES.get(numbering)
        if side is None:
            used = np.arange(1, 1 + _labels(train, numbering))
            entities = np.zeros(0, np.int32)
        else:
            row = np.asarray(train.features._asdict()[f"{side}_row"])
            entities = np.flatnonzero(row).astype(np.int32)
            used = row[entities]
        matched = np.isin(used, np.asarray(rows[path].target))
        if matched.all():
            continue
        known = table[used[matched]].astype(np.float32)
        new = np.repeat(known.mean(axis=0, keepdims=True), (~matched).sum(), axis=0)
        found = np.zeros(len(new), bool)
        if side is not None and how != "unknown" and train.encoder.fitted(side):
            by = _by_content if how == "content" else _by_neighbours
            found, values = by(train, side, entities[matched], known, entities[~matched])
            new = np.where(found[:, None], values, new)
        changed[path] = jnp.asarray(table).at[used[~matched]].set(jnp.asarray(new.astype(table.dtype)))
        counts = {how: int(found.sum()), "unknown": int((~found).sum())}
        filled[path] = tuple((name, count) for name, count in counts.items() if count)
    return _tree.replace(params, changed), report.with_filled(filled)


def _labels(train: Dataset, numbering: str) -> int:
    side, _, name = numbering.partition("/")
    return dict(train.sizes._asdict()[f"{side}_codes"])[name] - 1


def _described(train: Dataset, side: Side, entities: np.ndarray) -> np.ndarray:
    sizes = train.sizes._asdict()
    content = Content(side, sizes[f"{side}_dense"], sizes[f"{side}_codes"], 1)
    return np.asarray(content.described(jnp.asarray(entities, jnp.int32), jax.tree.map(jnp.asarray, train.features)))


def _by_content(
    train: Dataset, side: Side, entities: np.ndarray, rows: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a ridge on the features of ``entities`` predicts for ``others``, and for which it does."""
    with_content, found = _described(train, side, entities), _described(train, side, others)
    if not with_content.any() or not found.any():
        return np.zeros(len(others), bool), np.zeros((len(others), rows.shape[1]), np.float32)
    x, new = (
        np.concatenate(list(content_inputs(train, side, which).values()), axis=1)
        for which in (entities[with_content], others)
    )
    by = ridge(x, rows[with_content], l2=None)
    return found, (new @ by.kernel + by.intercept).astype(np.float32)


def _by_neighbours(
    train: Dataset, side: Side, entities: np.ndarray, rows: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean row of the nearest of ``entities``, by similarity, and whether there is any."""
    features, sizes = train.features._asdict(), train.sizes._asdict()
    place = np.zeros(len(features[f"{side}_row"]), np.int32)
    place[entities] = np.arange(1, 1 + len(entities))
    alone = Features(
        user_row=np.zeros(1, np.int32),
        item_row=place,  # the neighbours are those that have a row
        item_dense=features[f"{side}_dense"],
        item_codes=features[f"{side}_codes"],
        item_present=features[f"{side}_present"],
    )
    ends = list(itertools.accumulate((width for _, width in sizes[f"{side}_modalities"]), initial=0))
    dense = list(itertools.pairwise(ends))
    near = _nearest.by_content(
        alone, others, k=_NEIGHBOURS, dense=dense, codes=list(alone.item_codes), modalities=range(len(dense))
    )
    total = near.similarity.sum(axis=1, keepdims=True)
    padded = np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows])
    values = np.einsum("nk,nkd->nd", near.similarity, padded[place[near.neighbours]])
    return total[:, 0] > 0, values / np.where(total > 0, total, 1.0).astype(np.float32)
