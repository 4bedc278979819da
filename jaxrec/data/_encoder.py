"""Frames to arrays: vocabularies and training statistics as one frozen value, saved with the model."""

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import _values
from jaxrec._expect import expect, raw_ids
from jaxrec._types import Features, Sizes
from jaxrec.data._counting import counted
from jaxrec.data._features import FittedFeature, modalities, side_arrays
from jaxrec.data._interactions import Interactions
from jaxrec.data._scaling import Scaler
from jaxrec.data._schema import Schema, finite, need_columns, times, to_float32, weights
from jaxrec.data._sides import Side, blank, capacity_for, entity_frame, fit_features, grown, write
from jaxrec.data._vocabulary import Vocabulary


class Parts(NamedTuple):
    """What a split returns and ``encode`` keeps: three frames or three datasets; a part not asked for is None."""

    train: Any
    validation: Any
    test: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """How a domain's frames become arrays. Everything in it was fitted on the training part.

    Two numberings (see ``docs/design.md``): an *entity index* is a row of the catalogue and of its features, cold
    entities included; a *table row*, ``features.user_row[entity]``, is a row of an embedding table, 0 for entities
    that were not trained. Index 0 and row 0 are the unknown's. Arrays are allocated to a capacity, so that users
    and items can be added without a change of shape.
    """

    schema: Schema
    users: Vocabulary
    items: Vocabulary
    user_features: tuple[FittedFeature, ...]
    item_features: tuple[FittedFeature, ...]
    context: tuple[FittedFeature, ...]
    target: Scaler | None
    features: Features  # NumPy arrays by entity index, to capacity
    user_rows: int  # capacity of the embedding tables
    item_rows: int

    __eq__ = _values.equal

    @classmethod
    def fit(
        cls,
        train: pd.DataFrame,
        schema: Schema,
        *,
        users: pd.DataFrame | None = None,
        items: pd.DataFrame | None = None,
        also: Sequence[pd.DataFrame] = (),
        like: "Encoder | None" = None,
    ) -> "Encoder":
        """Vocabularies and statistics.

        Args:
          train: interactions of the training part. Only these, and features of users and items in them, enter
            statistics and get table rows.
          schema: names the columns.
          users: one row per user with the features; users without interactions are cold members of the catalogue.
          items: likewise for items.
          also: further interactions whose ids belong to the catalogue as cold entities (validation and test).
          like: the encoder of a source domain, whose feature statistics and label numbering are taken over, so that
            a model pretrained there reads the features here alike. New labels are appended. So is the scale of the
            target, where both schemas name the same kind.

        Raises:
          ValueError: a column is missing, a frame is empty, a feature or a target that is to be scaled is infinite or
            constant, or an id repeats in ``users`` or ``items``. Times, weights and other targets are for ``encode``.
          TypeError: ids of mixed types, or a column of labels none of which is of the type that ``like`` has.
        """
        need_columns(train, schema.columns(), "training interactions")
        ids = tuple(name for name in (schema.user, schema.item) if name is not None)
        also = [each for each in also if len(each)]
        for each in also:
            need_columns(each, ids, "further interactions")
        features: dict[str, Any] = {"user_row": np.zeros(8, np.int32), "item_row": np.zeros(8, np.int32)}
        found: dict[str, Any] = {
            "users": Vocabulary.fit([]),
            "items": Vocabulary.fit([]),
            "user_rows": 8,
            "item_rows": 8,
        }
        fitted: dict[str, tuple[FittedFeature, ...]] = {"user": (), "item": ()}
        given: tuple[tuple[Side, str | None, pd.DataFrame | None], ...]
        given = (("user", schema.user, users), ("item", schema.item, items))
        for side, column, frame in given:
            if column is None:
                continue
            specs = schema.user_features if side == "user" else schema.item_features
            frame = entity_frame(frame, column, specs, side)
            sources = [train, *also] + ([frame] if frame is not None else [])
            vocabulary = Vocabulary.fit(*(source[column] for source in sources))
            trained = np.flatnonzero(counted(vocabulary.encode(train[column])))
            if frame is not None:
                inherited = () if like is None else (like.user_features if side == "user" else like.item_features)
                known = frame[np.isin(vocabulary.encode(frame[column]), trained)]
                fitted[side] = fit_features(specs, known, inherited)
            size = capacity_for(len(vocabulary) + 1)
            row = np.zeros(size, np.int32)
            row[trained] = np.arange(1, len(trained) + 1)
            features[f"{side}_row"] = row
            features |= blank(side, fitted[side], size)
            found[f"{side}s"], found[f"{side}_rows"] = vocabulary, capacity_for(len(trained) + 1)
            if frame is not None:
                write(features, side, fitted[side], vocabulary.encode(frame[column]), frame)
                _warn(side, vocabulary, trained, frame[column], None if like is None else like.vocabulary(side))
        target = None
        if schema.target is not None and schema.target_scale is not None:
            target = None if like is None else like.target
            if target is None or target.scale != schema.target_scale:
                values = finite(train, schema.target, "target")[:, None]
                if values.min() == values.max():
                    raise ValueError(
                        f"The target {schema.target!r} is constant ({values[0, 0]:g}) in the training part, so it "
                        "cannot be scaled. Give target_scale=None or, if every row just says that somebody chose "
                        "something, leave the target out of the schema to train on implicit feedback."
                    )
                target = Scaler.fit(values, schema.target_scale, schema.target)
        return cls(
            schema=schema,
            user_features=fitted["user"],
            item_features=fitted["item"],
            context=fit_features(schema.context, train, () if like is None else like.context),
            target=target,
            features=Features(**features),
            **found,
        )

    def pairs(self, frame: pd.DataFrame) -> Interactions:
        """The known pairs of users and items of a frame that has these two columns."""
        user, item = self.schema.user, self.schema.item
        if user is None or item is None:
            raise ValueError("Pairs need users and items. Name both columns in the schema.")
        if not len(frame) and {user, item} <= set(frame.columns):
            none = np.zeros(0, np.int32)
            return Interactions(none, none, len(self.features.user_row), len(self.features.item_row))
        need_columns(frame, (user, item), "pairs")
        return Dataset(self, self.users.encode(frame[user]), self.items.encode(frame[item])).interactions

    def check(self, other: "Encoder") -> None:
        """Raises unless the entity indices and scaled context of the other encoder mean the same as this one's."""
        for name, ours, theirs in (("users", self.users, other.users), ("items", self.items, other.items)):
            if theirs is not ours and not np.array_equal(theirs.ids, ours.ids[: len(theirs)]):
                raise ValueError(
                    f"The dataset's {name} were numbered by another encoder ({theirs!r}) than the recommender's "
                    f"({ours!r}). Encode the frame with recommender.encoder, or encode all parts together."
                )
        if not _values.same(self.context, other.context):
            raise ValueError(
                "The dataset's context was scaled by another encoder, with other statistics than the recommender's. "
                "Encode the frame with recommender.encoder, or encode all parts together."
            )

    def encode(self, frame: pd.DataFrame, *, labelled: bool = True) -> "Dataset":
        """Interactions as arrays. Unknown users and items become index 0; ``extend`` first to tell them apart.

        Args:
          frame: interactions with the schema's columns.
          labelled: False where the target, weight and time columns are not needed, as for predicting.

        Raises:
          ValueError: a column is missing, the frame is empty, a target is not finite or, where the scale is
            ``"quantile"``, outside the training part's range, a weight is negative or too small for float32, a
            number overflows float32.
          TypeError: ids of another type than the vocabulary's.
        """
        schema = self.schema
        needed = schema if labelled else dataclasses.replace(schema, target=None, weight=None, time=None)
        need_columns(frame, needed.columns(), "interactions")
        target = weight = time = None
        if labelled and schema.target is not None:
            target = finite(frame, schema.target, "target")
            if self.target is not None:
                self.target.need_inside(target[:, None], schema.target)
                target = self.target.transform(target[:, None], schema.target)[:, 0]
            target = to_float32(target, schema.target, "target_scale=")
        if labelled and schema.weight is not None:
            weight = to_float32(weights(frame, schema.weight), schema.weight, "a smaller unit")
        if labelled and schema.time is not None:
            time = times(frame, schema.time)
        context = side_arrays(self.context, frame).dense
        return Dataset(
            encoder=self,
            user=None if schema.user is None else self.users.encode(frame[schema.user]),
            item=None if schema.item is None else self.items.encode(frame[schema.item]),
            target=target,
            weight=weight,
            time=time,
            context=context,
        )

    def extend(
        self, *, users: pd.DataFrame | Iterable[Any] | None = None, items: pd.DataFrame | Iterable[Any] | None = None
    ) -> "Encoder":
        """An encoder that also knows these users and items, cold, with their features.

        Nothing is fitted again. Shapes stay until the capacity is used up, which then doubles.

        Args:
          users: a frame with the user column and the feature columns, or plain raw ids (features unknown). Ids that
            are known already keep their index; their features are replaced if a frame gives them.
          items: likewise.
        """
        return self._extend_side("user", users)._extend_side("item", items)

    def _extend_side(self, side: Side, new: pd.DataFrame | Iterable[Any] | None) -> "Encoder":
        if new is None:
            return self
        column, specs = self._column(side), tuple(feature.feature for feature in self.fitted(side))
        if column is None:
            raise ValueError(f"The schema names no {side} column, so no {side}s can be added.")
        frame = None
        if isinstance(new, pd.DataFrame):
            frame = entity_frame(new, column, specs, side)
            new = new[column]
        raw_ids(new, f"{side}s")
        vocabulary = self.vocabulary(side).extend(new)
        if frame is None and len(vocabulary) == len(self.vocabulary(side)):
            return self  # an encoder of its own would be put on the device again
        features = self.features._asdict()
        size, needed = len(features[f"{side}_row"]), len(vocabulary) + 1
        while size < needed:
            size *= 2
        for name in (f"{side}_row", f"{side}_dense", f"{side}_present"):
            features[name] = grown(features[name], size)
        features[f"{side}_codes"] = {name: grown(code, size) for name, code in features[f"{side}_codes"].items()}
        if frame is not None:
            write(features, side, self.fitted(side), vocabulary.encode(frame[column]), frame)
        vocabularies = {"users": vocabulary} if side == "user" else {"items": vocabulary}
        return dataclasses.replace(self, features=Features(**features), **vocabularies)

    def with_rows(self, side: Side, entities: np.ndarray) -> "Encoder":
        """An encoder in which these entities have a table row; those that have one keep it."""
        row = (self.features.user_row if side == "user" else self.features.item_row).copy()
        new = np.unique(entities[(entities > 0) & (row[entities] == 0)])
        used = int(row.max())
        row[new] = np.arange(used + 1, used + 1 + len(new))
        rows = self.user_rows if side == "user" else self.item_rows
        while rows < used + 1 + len(new):
            rows *= 2
        if side == "user":
            return dataclasses.replace(self, features=self.features._replace(user_row=row), user_rows=rows)
        return dataclasses.replace(self, features=self.features._replace(item_row=row), item_rows=rows)

    def without_rows(self, side: Side) -> "Encoder":
        """An encoder in which no entity of this side has a table row: all are scored as unknown ones."""
        name = f"{side}_row"
        row = np.zeros_like(getattr(self.features, name))
        return dataclasses.replace(self, features=self.features._replace(**{name: row}))

    def with_code(self, side: Side, name: str, code: np.ndarray) -> "Encoder":
        """An encoder with one more code of this side, which no frame gives: 0 for entities that are added."""
        field = f"{side}_codes"
        codes = {**getattr(self.features, field), name: code}
        return dataclasses.replace(self, features=self.features._replace(**{field: codes}))

    def vocabulary(self, side: Side) -> Vocabulary:
        """The numbering of users or of items."""
        return self.users if side == "user" else self.items

    def original_target(self, values: np.ndarray) -> np.ndarray:
        """Scaled targets or predictions ``[rows]`` back in the target's own unit."""
        return values if self.target is None else self.target.inverse(np.asarray(values, np.float64)[:, None])[:, 0]

    @property
    def sizes(self) -> Sizes:
        """What a model must know to allocate its parameters."""

        def codes(side: Side) -> tuple[tuple[str, int], ...]:
            return tuple(
                (each.name, len(each.vocabulary) + 1) for each in self.fitted(side) if each.vocabulary is not None
            )

        def dense(fitted: Iterable[FittedFeature]) -> int:
            return sum(each.width for each in fitted if not each.is_code)

        def groups(side: Side) -> tuple[tuple[str, int], ...]:
            return tuple(
                ("+".join(each.name for each in group), sum(each.width for each in group))
                for group in modalities(self.fitted(side))
            )

        return Sizes(
            user_rows=self.user_rows,
            item_rows=self.item_rows,
            context=dense(self.context),
            user_dense=dense(self.user_features),
            item_dense=dense(self.item_features),
            user_codes=codes("user"),
            item_codes=codes("item"),
            user_modalities=groups("user"),
            item_modalities=groups("item"),
        )

    def __repr__(self) -> str:
        def side(name: Side) -> str:
            row = self.features.user_row if name == "user" else self.features.item_row
            known = [each.name for each in self.fitted(name)]
            trained = int((row > 0).sum())
            features = ", ".join(known) or "none"
            return f"{len(self.vocabulary(name))} {name}s ({trained} with a table row; features: {features})"

        return f"Encoder({side('user')}, {side('item')}, target: {self.target or self.schema.target or 'none'})"

    def _column(self, side: Side) -> str | None:
        return self.schema.user if side == "user" else self.schema.item

    def fitted(self, side: Side | Literal["context"]) -> tuple[FittedFeature, ...]:
        """The features of one side with their training statistics, in the order in which models read them."""
        return {"user": self.user_features, "item": self.item_features, "context": self.context}[side]


def _warn(
    side: Side, vocabulary: Vocabulary, trained: np.ndarray, described: pd.Series, source: Vocabulary | None
) -> None:
    """Two mistakes that would pass in silence and cost quality."""
    described_index = vocabulary.encode(described)
    missing = len(np.setdiff1d(trained, described_index))
    if missing:
        warnings.warn(
            f"{missing} of {len(trained)} {side}s of the training part have no row in the frame of {side}s: their "
            "features are unknown.",
            stacklevel=4,
        )
    if side == "item" and source is not None and source.type_name == vocabulary.type_name:
        others = vocabulary.decode(np.setdiff1d(described_index, trained))
        foreign = int((source.encode(others) > 0).sum())
        if foreign:
            warnings.warn(
                f"{foreign} of {len(described)} items in the frame of items belong to the source domain and have no "
                "interaction here. They are candidates for recommendation like all others: leave them out of the frame "
                "unless that is meant.",
                stacklevel=4,
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions of one domain as arrays of equal length. Made by ``data.encode`` or ``Encoder.encode``.

    Args:
      encoder: which encoded them.
      user: int32 entity indices ``[rows]``, 0 where unknown; None for data without users.
      item: likewise.
      target: float32 ``[rows]``, scaled as the encoder says; None for implicit feedback.
      weight: float32 ``[rows]``, non-negative; None for equal weights.
      time: float64 ``[rows]``; None where the schema names no time.
      context: float32 ``[rows, features]``; None where the schema names none.
      window: rows of a streamed dataset that are in memory and shuffled together while training; None for a dataset
        in memory.
    """

    encoder: Encoder
    user: np.ndarray | None
    item: np.ndarray | None
    target: np.ndarray | None = None
    weight: np.ndarray | None = None
    time: np.ndarray | None = None
    context: np.ndarray | None = None
    window: int | None = None

    __eq__ = _values.equal

    def __post_init__(self) -> None:
        if self.window is not None:
            need_window(self.window)
        arrays = self.columns()
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Expected arrays of one length, got {lengths}.")
        known = {"user": len(self.encoder.users), "item": len(self.encoder.items)}
        for name, most in known.items():
            index = arrays.get(name)
            if index is None:
                continue
            if index.dtype != np.int32:
                raise TypeError(
                    f"Expected int32 entity indices in Dataset.{name}, got {index.dtype}. Raw ids, which may need 64 "
                    "bits, never reach a model: turn them into indices with Encoder.encode."
                )
            if len(index) and (index.min() < 0 or index.max() > most):
                raise ValueError(
                    f"Expected entity indices 0 .. {most} in Dataset.{name}, got {index.min()} .. {index.max()}. "
                    "Encode raw ids with Encoder.encode."
                )

    def __len__(self) -> int:
        for values in (self.user, self.item, self.target, self.context):
            if values is not None:
                return len(values)
        return 0

    @property
    def features(self) -> Features:
        return self.encoder.features

    @property
    def sizes(self) -> Sizes:
        return self.encoder.sizes

    @functools.cached_property
    def interactions(self) -> Interactions:
        """The pairs of known users and items, ordered by time (or as in the frame).

        Rows that are all known and in order already are not copied.
        """
        if self.user is None or self.item is None:
            none = np.zeros(0, np.int32)
            return Interactions(none, none, 1, 1)
        if self.user.all() and self.item.all() and (self.time is None or _ascending(self.time)):
            size = len(self.features.user_row), len(self.features.item_row)
            return Interactions(self.user, self.item, *size, self.target, self.weight)
        order = np.arange(len(self)) if self.time is None else np.argsort(self.time, kind="stable")
        order = order[(self.user[order] > 0) & (self.item[order] > 0)]
        return Interactions(
            self.user[order],
            self.item[order],
            len(self.features.user_row),
            len(self.features.item_row),
            *(None if each is None else each[order] for each in (self.target, self.weight)),
        )

    def subset(self, rows: np.ndarray) -> "Dataset":
        """The chosen rows, by a mask or by row numbers, in memory."""
        arrays = {name: values[rows] for name, values in self.columns().items()}
        return dataclasses.replace(self, window=None, **arrays)

    def loaded(self, pieces: Sequence[tuple[int, int]]) -> "Dataset":
        """The rows of some ranges ``(start, stop)``, one after the other, in memory; time is left out."""
        arrays = {
            name: np.concatenate([values[start:stop] for start, stop in pieces])
            for name, values in self.columns().items()
            if name != "time"
        }
        return dataclasses.replace(self, window=None, **(arrays | {"time": None}))

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that the dataset has, by name."""
        names = ("user", "item", "target", "weight", "time", "context")
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        kind = "implicit" if self.target is None else "with a target"
        kind += "" if self.window is None else f", streamed by {self.window}"
        return f"Dataset({len(self)} interactions, {kind}; {self.encoder!r})"


def need_window(window: int) -> None:
    """Raises unless a window holds a row."""
    if window < 1:
        raise ValueError(f"Expected window >= 1, the number of rows that are shuffled together, got {window}.")


def _ascending(values: np.ndarray) -> bool:
    step = 2**18
    return all((np.diff(values[start : start + step + 1]) >= 0).all() for start in range(0, len(values), step))


def encode(
    parts: Parts,
    schema: Schema,
    *,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    like: Encoder | None = None,
) -> Parts:
    """A split's frames as datasets that share one encoder, fitted on the training part alone.

    Args:
      parts: frames of interactions; validation and test may be None. Their users and items belong to the catalogue,
        as cold ones where the training part has not seen them.
      schema: names the columns.
      users: one row per user with the features, if there are any.
      items: likewise.
      like: the encoder of a source domain; see ``Encoder.fit``.

    Returns:
      Three datasets; a part that was None or empty stays None.

    Warns:
      UserWarning: users or items of the training part have no row in the frame of features, or the frame has some of
        the source domain that have no interaction here.
    """
    expect(parts, Parts, "parts")
    if like is not None:
        expect(like, Encoder, "like")
    held_out = [part for part in parts[1:] if part is not None and len(part)]
    for part in held_out:
        need_columns(part, schema.columns(), "held-out interactions")
    encoder = Encoder.fit(parts.train, schema, users=users, items=items, also=held_out, like=like)
    return Parts(*(None if part is None or not len(part) else encoder.encode(part) for part in parts))
