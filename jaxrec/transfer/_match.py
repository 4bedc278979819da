"""Which entity of the source is most like one of the target? By features that both describe, where no id is shared."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import _nearest
from jaxrec._types import Features
from jaxrec.data import Encoder, Labels, Vector, Vocabulary
from jaxrec.data._features import FittedFeature, is_missing
from jaxrec.data._schema import Categorical, Feature, need_columns
from jaxrec.data._sides import Side, entity_frame

ROUNDING = 1e-6  # of a cosine in float32: a vector's with itself may lack so much of 1


class Found(NamedTuple):
    """The best entity of the source for each of the target: its place in ``Described.ids``, -1 where there is none."""

    place: np.ndarray
    similarity: np.ndarray  # float32, 0 where there is none


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
    """Entities of one domain with what can be compared: labels numbered alike, and vectors in one scale."""

    ids: np.ndarray
    codes: Mapping[str, np.ndarray]  # int32 [ids, most labels], 0 for padding
    vectors: Mapping[str, np.ndarray]  # float32 [ids, width]

    def of(self, chosen: np.ndarray) -> "Described":
        """Some of the entities, by their places."""
        codes = {name: code[chosen] for name, code in self.codes.items()}
        return Described(self.ids[chosen], codes, {name: rows[chosen] for name, rows in self.vectors.items()})


def need_threshold(at_least: float) -> None:
    """Raises unless the least cosine is one."""
    if not isinstance(at_least, Real) or not 0 < at_least <= 1:
        raise ValueError(f"Expected a cosine in (0, 1] as the least that counts as a match, got {at_least!r}.")


def match(
    source: pd.DataFrame,
    target: pd.DataFrame,
    on: str,
    *,
    text: str | Sequence[str] = (),
    features: Feature | Sequence[Feature] = (),
    at_least: float = 0.8,
) -> pd.DataFrame:
    r"""The source's entity nearest to each of the target's by content, as a table for ``align(..., tables=)``.

    For domains without a shared id, by columns that need not be features of any model. Similarity is the cosine of
    rows made of parts, each of unit length: the words of every text (runs of letters and digits, case ignored) and the
    labels of every feature, weighing :math:`\ln((1 + n) / (1 + n_l)) + 1`, of the source's :math:`n` entities
    :math:`n_l` having the label, and vectors as they are. A word that only the target knows counts as a difference.

    Args:
      source: a row per entity of the source. To match those alone that a model was trained on, leave out others.
      target: likewise.
      on: the column of raw ids in both frames.
      text: columns of strings.
      features: ``data.Labels``, ``data.Categorical`` and ``data.Vector`` without a scale, of columns in both frames.
      at_least: cosine below which a target stays unmatched, in (0, 1].

    Returns:
      A frame with ``source``, ``target`` (raw ids, those of the target in the order of its frame) and ``similarity``,
      float32. One entity of the source may serve several of the target. Of equally near ones that with the lower id.

    Raises:
      ValueError: neither text nor features are given, a column is missing, a frame is empty, an id repeats, vectors
        differ in length, or ``at_least`` is out of range.
      TypeError: a text is no string, ids or labels mix types, or a feature is a number, of which there is no cosine.

    Examples:
      >>> ours = pd.DataFrame({"item": ["a", "b"], "title": ["Heat (1995)", "Toy Story (1995)"]})
      >>> theirs = pd.DataFrame({"item": [7, 8], "title": ["Toy Story", "Alien"]})
      >>> match(ours, theirs, "item", text="title").round(2)
        source  target  similarity
      0      b       7        0.89
    """
    need_threshold(at_least)
    text = (text,) if isinstance(text, str) else tuple(text)
    features = (features,) if isinstance(features, Feature) else tuple(features)
    if not text and not features:
        raise ValueError("Nothing to compare. Name columns by text= or features=, such as data.Labels('genres', '|').")
    for feature in features:
        if not isinstance(feature, Labels | Categorical | Vector) or getattr(feature, "scale", None) is not None:
            raise TypeError(
                f"Expected Labels, Categorical or a Vector without a scale, got {feature!r}. A cosine compares labels "
                "and directions."
            )
    columns = [feature.column for feature in features]
    if len({on, *text, *columns}) <= len(text) + len(columns):
        raise ValueError(f"Expected distinct columns, got {', '.join([on, *text, *columns])}. Name each once.")
    frames = []
    for name, frame in (("source", source), ("target", target)):
        need_columns(frame, (on, *text, *columns), f"entities of the {name}")
        entity_frame(frame, on, (), name)
        words = {column: pd.Series(_words(frame, column), index=frame.index) for column in text}
        frames.append(frame[[on, *columns]].assign(**words) if words else frame[[on, *columns]])
    fitted = [FittedFeature.fit(each, pd.concat(frames), varies=False) for each in (*features, *map(Labels, text))]
    ours, theirs = (_of_frame(frame, on, fitted) for frame in frames)
    place, similarity = nearest(ours, theirs)
    kept = (place >= 0) & (similarity >= at_least - ROUNDING)
    pairs = {"source": ours.ids[place[kept]], "target": theirs.ids[kept], "similarity": similarity[kept]}
    return pd.DataFrame(pairs)


def nearest(source: Described, target: Described) -> Found:
    """Places in ``source.ids``; among the equally near the lower raw id."""
    order = np.argsort(source.ids, kind="stable")
    source = source.of(order)
    first = 1 + len(source.ids)
    total = first + len(target.ids)
    codes, parts, dense, width = {}, [], [], 0
    for name, code in source.codes.items():
        code_there = target.codes[name]
        both = np.zeros((total, max(code.shape[1], code_there.shape[1])), np.int32)
        both[1:first, : code.shape[1]] = code
        both[first:, : code_there.shape[1]] = code_there
        codes[name] = both
    for name, rows in source.vectors.items():
        parts.append(np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows, target.vectors[name]]))
        dense.append((width, width + rows.shape[1]))
        width += rows.shape[1]
    number = np.arange(total, dtype=np.int32)
    features = Features(
        user_row=np.zeros(1, np.int32),
        item_row=np.where(number < first, number, 0).astype(np.int32),
        item_dense=np.concatenate(parts, axis=1) if parts else None,
        item_codes=codes,
    )
    found = _nearest.by_content(features, number[first:], k=1, dense=dense, codes=list(codes))
    place, similarity = found.neighbours[:, 0], found.similarity[:, 0]
    return Found(np.where(place > 0, np.append(-1, order)[place], -1), similarity)


def described(
    source: Encoder, target: Encoder, side: Side, labels: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[Described, Described]:
    """What the encoders have of a side's entities in common, by entity index without the unknown's 0.

    ``labels`` are by feature the codes of the source and of the target that mean the same.

    Raises:
      ValueError: there is nothing to compare.
    """
    ours, theirs = ({each.name: each for each in encoder.fitted(side)} for encoder in (source, target))
    codes = [name for name, (here, _) in labels.items() if len(here)]
    vectors = [name for name in ours if name in theirs and _comparable(ours[name], theirs[name])]
    if not codes and not vectors:
        raise ValueError(
            f"No {side} feature can be compared by content: the source has {', '.join(ours) or 'none'} and the target "
            f"{', '.join(theirs) or 'none'}. Features of one name can that have a label in common or are vectors of "
            "one length; numbers cannot. transfer.match compares other columns, texts too."
        )
    common = {}
    for name in codes:
        vocabularies = ours[name].vocabulary, theirs[name].vocabulary
        assert vocabularies[0] is not None and vocabularies[1] is not None
        here, there = labels[name]
        number = np.arange(len(vocabularies[1]) + 1, dtype=np.int32)
        number[1:] += len(vocabularies[0])  # labels that only the target knows
        number[there] = here
        common[name] = number
    features = source.features._asdict()[f"{side}_codes"], target.features._asdict()[f"{side}_codes"]
    rows = [slice(1, 1 + len(encoder.vocabulary(side))) for encoder in (source, target)]
    return (
        Described(
            source.vocabulary(side).ids,
            {name: features[0][name][rows[0]] for name in codes},
            {name: _vectors(source, side, ours[name]) for name in vectors},
        ),
        Described(
            target.vocabulary(side).ids,
            {name: common[name][features[1][name][rows[1]]] for name in codes},
            {name: _rescaled(_vectors(target, side, theirs[name]), theirs[name], ours[name]) for name in vectors},
        ),
    )


def _comparable(ours: FittedFeature, theirs: FittedFeature) -> bool:
    """Whether both are vectors that can be brought to one scale."""
    vectors = isinstance(ours.feature, Vector) and isinstance(theirs.feature, Vector)
    lengthless = theirs.scaler is not None and theirs.scaler.scale == "unit"  # what another scale would need is gone
    return vectors and ours.width == theirs.width and (_same_scale(ours, theirs) or not lengthless)


def _same_scale(ours: FittedFeature, theirs: FittedFeature) -> bool:
    either = ours.scaler is None or theirs.scaler is None
    return ours.scaler is theirs.scaler if either else ours.scaler == theirs.scaler


def _vectors(encoder: Encoder, side: Side, feature: FittedFeature) -> np.ndarray:
    """The columns of one vector."""
    at = 0
    for each in encoder.fitted(side):
        if each.name == feature.name:
            break
        at += 0 if each.is_code else each.width
    dense = encoder.features._asdict()[f"{side}_dense"]
    return dense[1 : 1 + len(encoder.vocabulary(side)), at : at + feature.width]


def _rescaled(values: np.ndarray, of: FittedFeature, to: FittedFeature) -> np.ndarray:
    """Vectors in the scale of the source; one that is missing, all zeros, stays."""
    if _same_scale(of, to):
        return values
    raw = values if of.scaler is None else of.scaler.inverse(values)
    scaled = raw if to.scaler is None else to.scaler.transform(raw, to.name)
    return np.where((values != 0).any(axis=1, keepdims=True), scaled, 0.0).astype(np.float32)


def _of_frame(frame: pd.DataFrame, on: str, fitted: Sequence[FittedFeature]) -> Described:
    codes = {each.name: each.encode(frame) for each in fitted if each.is_code}
    vectors = {each.name: each.measure(frame)[0] for each in fitted if not each.is_code}
    vocabulary = Vocabulary.fit(frame[on])
    ids = vocabulary.decode(vocabulary.encode(frame[on]))  # of one type, as an encoder has them
    return Described(ids, codes, vectors)


def _words(frame: pd.DataFrame, column: str) -> list[list[str]]:
    cells: list[Any] = ["" if is_missing(cell) else cell for cell in frame[column].tolist()]
    wrong = [cell for cell in cells if not isinstance(cell, str)]
    if wrong:
        raise TypeError(f"Expected strings in the column {column!r}, got {wrong[0]!r} ({type(wrong[0]).__name__}).")
    return [re.findall(r"\w+", cell.casefold()) for cell in cells]
