"""Which rows of the source's tables mean the same as which rows of the target's?"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxrec._types import Array
from jaxrec.data import Encoder, Vocabulary
from jaxrec.models import Model


class Rows(NamedTuple):
    """Pairs of table rows, int32 of equal length."""

    source: Array
    target: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """What two domains share by raw id.

    Args:
      encoder: the target's, in which every aligned user and item has a table row, so that one who is cold in the target
        keeps what the source knows.
      rows: by numbering (``"user"``, ``"item"``, ``"item/genres"``): pairs of table rows.
      sizes: by numbering: how many ids the source has trained and how many the target knows.
      notes: by numbering: why ids could not match, where there is a reason.
    """

    encoder: Encoder
    rows: Mapping[str, Rows]
    sizes: Mapping[str, tuple[int, int]]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

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
            f"{name}: {len(self.rows[name].source)} aligned by raw id, of {source} trained in the source and {target} "
            f"known in the target{self.notes.get(name, '')}"
            for name, (source, target) in self.sizes.items()
        ]
        return "\n".join(lines)


def align(source: Encoder, target: Encoder, *, require: bool = True) -> Alignment:
    """Users, items, categories and labels that both encoders know, matched by raw id.

    Args:
      source: of the trained recommender.
      target: of the target's data.
      require: whether finding nothing at all is an error. Domains that share no id may still share a feature space,
        in which the parameters of a tower can be copied.

    Raises:
      ValueError: nothing is shared and ``require`` is True.
    """
    rows: dict[str, Rows] = {}
    sizes: dict[str, tuple[int, int]] = {}
    encoder = target
    notes = {}
    for side in ("user", "item"):
        kinds = source.vocabulary(side).kind, target.vocabulary(side).kind
        if kinds[0] != kinds[1] and len(source.vocabulary(side)) and len(target.vocabulary(side)):
            notes[side] = f" ({kinds[0]} ids there and {kinds[1]} ids here can never match)"
        source_row = source.features.user_row if side == "user" else source.features.item_row
        here, there = _common(source.vocabulary(side), target.vocabulary(side))
        trained = source_row[here] > 0
        here, there = here[trained], there[trained]
        encoder = encoder.with_rows(side, there)
        target_row = encoder.features.user_row if side == "user" else encoder.features.item_row
        rows[side] = Rows(source_row[here], target_row[there])
        sizes[side] = int((source_row > 0).sum()), len(target.vocabulary(side))
    for side in ("user", "item"):
        ours, theirs = (each.fitted(side) for each in (source, target))
        vocabularies = {each.name: each.vocabulary for each in ours if each.vocabulary is not None}
        for each in theirs:
            known = vocabularies.get(each.name)
            if each.vocabulary is not None and known is not None:
                rows[f"{side}/{each.name}"] = Rows(*_common(known, each.vocabulary))
                sizes[f"{side}/{each.name}"] = len(known), len(each.vocabulary)
    if require and not any(len(pairs.source) for pairs in rows.values()):
        raise ValueError(
            f"The domains share no vocabulary: users {source.users!r} and {target.users!r}, items {source.items!r} and "
            f"{target.items!r}, and no label of a feature in common. Are the ids of one kind and from one system? If "
            "only dense features are shared, use align(..., require=False)."
        )
    return Alignment(encoder, rows, sizes, notes)


def _common(source: Vocabulary, target: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the ids that both know; ids of different types are never the same."""
    if source.kind != target.kind or not len(source) or not len(target):
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    index = source.encode(target.ids)
    there = np.flatnonzero(index > 0)
    return index[there], (there + 1).astype(np.int32)
