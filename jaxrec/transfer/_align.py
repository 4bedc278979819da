"""Which rows of the source's tables mean the same as which rows of the target's?"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._expect import expect
from jaxrec._types import Array
from jaxrec.data import Encoder, Vocabulary
from jaxrec.data._schema import need_columns
from jaxrec.data._sides import SIDES, Side
from jaxrec.models import Model
from jaxrec.transfer._match import ROUNDING, Described, described, nearest, need_threshold

_ID, _TABLE, _CONTENT = "raw id", "table", "content"


class Rows(NamedTuple):
    """Pairs of table rows, int32 of equal length, and how they were found, in words."""

    source: Array
    target: Array
    how: str = f"by {_ID}"


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """What two domains share: by raw id, by a table of the user's, or by content.

    Args:
      encoder: the target's, in which every aligned user and item has a table row, so that one who is cold in the target
        keeps what the source knows.
      rows: by numbering (``"user"``, ``"item"``, ``"item/genres"``): pairs of table rows.
      sizes: by numbering: how many ids the source has trained and how many the target knows.
      notes: by numbering: why ids could not match, where there is a reason, and what was left out.
      matched: by numbering: see ``pairs``.
    """

    encoder: Encoder
    rows: Mapping[str, Rows]
    sizes: Mapping[str, tuple[int, int]]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    matched: Mapping[str, pd.DataFrame] = dataclasses.field(default_factory=dict)

    def pairs(self, numbering: str) -> pd.DataFrame:
        """What was taken for the same, to be checked: a row per aligned id of the target.

        Returns:
          Raw ids ``source`` and ``target``, ``how`` (``"raw id"``, ``"table"``, ``"content"``) and ``similarity``: the
          cosine, NaN where there is none.

        Raises:
          ValueError: there is no such numbering.
        """
        if numbering not in self.matched:
            raise ValueError(f"No numbering {numbering!r}. There are {', '.join(self.matched) or 'none'}.")
        return self.matched[numbering].copy()

    def to_dict(self) -> dict[str, Any]:
        """The report as what JSON has, by numbering: counts, how what was aligned was found, and the note."""
        return {
            name: {
                "aligned": len(self.rows[name].source),
                "trained in the source": source,
                "known in the target": target,
                "how": {str(how): int(count) for how, count in self.matched[name]["how"].value_counts().items()},
                "note": self.notes.get(name, "").strip(" ()"),
            }
            for name, (source, target) in self.sizes.items()
        }

    def for_model(self, model: Model) -> dict[str, Rows]:
        """Pairs of rows by the path of the model's tables.

        Raises:
          ValueError: the model's parameters were counted or solved for, and belong to the source's data.
        """
        if getattr(model, "derived", False):
            raise ValueError(
                f"The parameters of {type(model).__name__} belong to the data they were found in and cannot be carried "
                "over by rows. Fit it on the target instead: train.fit_ease, fit_item_knn or fit_content_knn."
            )
        nothing = Rows(np.zeros(0, np.int32), np.zeros(0, np.int32))
        return {path: self.rows.get(numbering, nothing) for path, numbering in model.tables.items()}

    def __str__(self) -> str:
        lines = [
            f"{name}: {len(self.rows[name].source)} aligned {self.rows[name].how}, of {source} trained in the source "
            f"and {target} known in the target{self.notes.get(name, '')}"
            for name, (source, target) in self.sizes.items()
        ]
        return "\n".join(lines)


def align(
    source: Encoder,
    target: Encoder,
    *,
    tables: Mapping[str, pd.DataFrame] | None = None,
    content: Mapping[str, float] | None = None,
    require: bool = True,
) -> Alignment:
    r"""Users, items, categories and labels that mean the same in both domains.

    They are matched by raw id, or by a table that says which ids belong together. What of users and items is left in
    the target may be matched to what is nearest by content among those that the source has trained. Similarity is the
    cosine of the features that both encoders have under one name, each a row of unit length: labels and categories
    weighing :math:`\ln((1 + n) / (1 + n_l)) + 1`, of :math:`n` trained entities of the source :math:`n_l` having the
    label, and vectors in the source's scale. Numbers are not compared. Labels are the same as ``tables`` or else their
    names say; one that only the target knows counts as a difference. Of equally near entities the one with the lower
    raw id is taken; one may serve several of the target.

    Args:
      source: of the trained recommender.
      target: of the target's data.
      tables: by numbering (``"user"``, ``"item"``, ``"item/genres"``) a frame of raw ids with the columns ``source``
        and ``target`` and, if known, ``similarity``. It takes the place of matching by raw id in that numbering. Ids
        that are not trained in the source or not known in the target are counted in the alignment's notes; one id of
        the source may be given to several of the target, and repeated rows count once.
      content: by side (``"user"``, ``"item"``) the least cosine of a match, in (0, 1].
      require: whether finding nothing at all is an error. Domains that share no id may still share a feature space,
        in which the parameters of a tower can be copied.

    Raises:
      ValueError: nothing is shared and ``require`` is True; a table is of an unknown numbering, lacks a column, gives
        an id of the target to two of the source, or has no row that both encoders know; no feature can be compared, or
        a threshold is out of range.
      TypeError: ids of a table are of another type than the encoder's, or an argument is of another kind.
    """
    expect(source, Encoder, "source")
    expect(target, Encoder, "target")
    for name, given, example in (("tables", tables, "{'item': frame}"), ("content", content, "{'item': 0.8}")):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"Expected {name}= by numbering, such as {example}, got {type(given).__name__}.")
    tables, content = dict(tables or {}), dict(content or {})
    numberings = _numberings(source, target)
    _check_names(tables, numberings, "tables")
    _check_names(content, {side: numberings[side] for side in SIDES if len(numberings[side][0])}, "content")
    for at_least in content.values():
        need_threshold(at_least)
    rows: dict[str, Rows] = {}
    sizes: dict[str, tuple[int, int]] = {}
    notes: dict[str, str] = {}
    matched: dict[str, pd.DataFrame] = {}
    encoder = target
    labels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {side: {} for side in SIDES}
    for name in sorted(numberings, key=SIDES.__contains__):  # labels first, by which content is compared
        (ours, theirs), side = numberings[name], SIDES.get(name)
        of_source = np.arange(len(ours) + 1, dtype=np.int32) if side is None else np.asarray(_row_of(source, side))
        trained = of_source[: len(ours) + 1] > 0
        if name in tables:
            found, notes[name] = _by_table(tables[name], name, ours, theirs, trained)
        else:
            found = _by_id(ours, theirs, trained)
            if ours.type_name != theirs.type_name and len(ours) and len(theirs):
                notes[name] = f" ({ours.type_name} ids there and {theirs.type_name} ids here can never match)"
        if side is not None and side in content:
            compared = described(source, target, side, labels[side])
            near, said = _by_content(*compared, trained, found, content[side])
            found, notes[name] = pd.concat([found, near], ignore_index=True), notes.get(name, "") + said
        here, there = (found[column].to_numpy(np.int32) for column in ("source", "target"))
        of_target = np.arange(len(theirs) + 1, dtype=np.int32)
        if side is None:
            of, _, feature = name.partition("/")
            labels[of][feature] = here, there
        else:
            encoder = encoder.with_rows(side, there)
            of_target = np.asarray(_row_of(encoder, side))
        rows[name] = Rows(of_source[here], of_target[there], _how(found, _TABLE if name in tables else _ID))
        sizes[name] = int(trained[1:].sum()), len(theirs)
        matched[name] = found.assign(source=ours.decode(here), target=theirs.decode(there))
    if require and not any(len(pairs.source) for pairs in rows.values()):
        raise ValueError(
            f"The domains share no vocabulary: users {source.users!r} and {target.users!r}, items {source.items!r} and "
            f"{target.items!r}, and no label of a feature in common. Are the ids of one kind and from one system? If "
            "only dense features are shared, use align(..., require=False); content= matches what is alike."
        )
    return Alignment(encoder, rows, {name: sizes[name] for name in numberings}, notes, matched)


def together(alignments: Mapping[str, Alignment], target: Encoder) -> dict[str, Alignment]:
    """The alignments of several sources with one target, over an encoder in which all they aligned has a row."""
    encoder, entities = target, {}
    for side in SIDES.values():
        for name, alignment in alignments.items():
            entities[name, side] = target.vocabulary(side).encode(alignment.matched[side]["target"])
            encoder = encoder.with_rows(side, entities[name, side])
    found = {}
    for name, alignment in alignments.items():
        rows = dict(alignment.rows)
        for side in SIDES.values():
            rows[side] = rows[side]._replace(target=np.asarray(_row_of(encoder, side))[entities[name, side]])
        found[name] = dataclasses.replace(alignment, encoder=encoder, rows=rows)
    return found


def rows_are_of(alignment: Alignment, source: Encoder, target: Encoder) -> bool:
    """Whether the ids that were paired have these rows in the source, and these labels these codes in the target."""
    for name, (ours, theirs) in _numberings(source, target).items():
        if name not in alignment.matched or name not in alignment.rows:
            return False
        found, rows, side = alignment.matched[name], alignment.rows[name], SIDES.get(name)
        try:
            here, there = ours.encode(found["source"]), theirs.encode(found["target"])
        except TypeError:  # ids of another type
            return False
        here = here if side is None else np.asarray(_row_of(source, side))[here]
        if not np.array_equal(rows.source, here) or (side is None and not np.array_equal(rows.target, there)):
            return False
    return True


def _numberings(source: Encoder, target: Encoder) -> dict[str, tuple[Vocabulary, Vocabulary]]:
    """Vocabularies of both by name: users, items, and the labels of features of one name."""
    named = {name: (source.vocabulary(side), target.vocabulary(side)) for name, side in SIDES.items()}
    for side in SIDES.values():
        ours = {each.name: each.vocabulary for each in source.fitted(side)}
        for each in target.fitted(side):
            known = ours.get(each.name)
            if each.vocabulary is not None and known is not None:
                named[f"{side}/{each.name}"] = known, each.vocabulary
    return named


def _check_names(given: Mapping[str, object], known: Mapping[str, object], what: str) -> None:
    wrong = [name for name in given if name not in known]
    if wrong:
        raise ValueError(
            f"Nothing is numbered as {wrong[0]!r} for {what}= to align. Expected one of {', '.join(known) or 'none'}."
        )


def _row_of(encoder: Encoder, side: Side) -> Array:
    return encoder.features.user_row if side == "user" else encoder.features.item_row


def _found(source: np.ndarray, target: np.ndarray, how: str, similarity: np.ndarray | float = np.nan) -> pd.DataFrame:
    """Pairs of indices."""
    pairs = {"source": source, "target": target, "how": how, "similarity": similarity}
    return pd.DataFrame(pairs, index=range(len(source))).astype({"how": object, "similarity": np.float32})


def _by_id(source: Vocabulary, target: Vocabulary, trained: np.ndarray) -> pd.DataFrame:
    """Ids that both know; those of different types are never the same."""
    if source.type_name != target.type_name or not len(source) or not len(target):
        return _found(np.zeros(0, np.int32), np.zeros(0, np.int32), _ID)
    index = source.encode(target.ids)
    there = np.flatnonzero(trained[index] & (index > 0))
    return _found(index[there], (there + 1).astype(np.int32), _ID)


def _by_table(
    table: pd.DataFrame, name: str, source: Vocabulary, target: Vocabulary, trained: np.ndarray
) -> tuple[pd.DataFrame, str]:
    need_columns(table, ("source", "target"), f"tables[{name!r}]")
    table = table.drop_duplicates(["source", "target"])
    twice = table["target"].duplicated(keep=False)
    if twice.any():
        first = table["target"][twice].tolist()[0]
        claims = table["source"][table["target"] == first].tolist()
        raise ValueError(
            f"The table of {name!r} gives {table['target'][twice].nunique()} ids of the target to several of the "
            f"source, such as {first!r} to {', '.join(map(repr, claims[:3]))}. Keep one row per target."
        )
    here, there = source.encode(table["source"]), target.encode(table["target"])
    known_here, known_there = trained[here] & (here > 0), there > 0
    kept = known_here & known_there
    if not kept.any():
        raise ValueError(
            f"No row of the table of {name!r} names an id trained in the source and one known in the target: "
            f"{int(known_here.sum())} and {int(known_there.sum())} of {len(table)} rows do one of it. It begins with "
            f"{table['source'].tolist()[0]!r} and {table['target'].tolist()[0]!r}; expected ids of {source!r} in the "
            f"column 'source' and of {target!r} in 'target'."
        )
    similarity = table["similarity"].to_numpy(np.float32)[kept] if "similarity" in table else np.nan
    note = ""
    if not kept.all():
        note = (
            f" (left out of the table: {int((~known_here).sum())} rows whose id the source has not trained, "
            f"{int((~known_there).sum())} whose id the target does not know)"
        )
    return _found(here[kept], there[kept], _TABLE, similarity), note


def _by_content(
    ours: Described, theirs: Described, trained: np.ndarray, found: pd.DataFrame, at_least: float
) -> tuple[pd.DataFrame, str]:
    candidates = np.flatnonzero(trained[1:])
    left = np.setdiff1d(np.arange(len(theirs.ids)), found["target"].to_numpy(np.int64) - 1)
    place, similarity = nearest(ours.of(candidates), theirs.of(left))
    kept = (place >= 0) & (similarity >= at_least - ROUNDING)
    alike, alone = int(kept.sum()), int((place < 0).sum())
    mean = f"mean cosine {similarity[kept].mean():.2f}, " if alike else ""
    note = f" (by content: {mean}{len(left) - alike - alone} below {at_least:g} and {alone} with nothing in common)"
    here, there = candidates[place[kept]] + 1, left[kept] + 1
    return _found(here.astype(np.int32), there.astype(np.int32), _CONTENT, similarity[kept]), note


def _how(found: pd.DataFrame, otherwise: str) -> str:
    counts = found["how"].value_counts(sort=False)
    if len(counts) > 1:
        return ", ".join(f"{number} by {how}" for how, number in counts.items())
    return f"by {counts.index[0] if len(counts) else otherwise}"
