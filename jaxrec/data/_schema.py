"""Which columns mean what, and the checks that every frame passes before any array is made of it."""

import dataclasses
from typing import Literal, get_args

import numpy as np
import pandas as pd

from jaxrec._expect import one_of

Scale = Literal["zscore", "minmax", "log1p", "quantile"]
VectorScale = Literal["zscore", "rms", "unit"]


@dataclasses.dataclass(frozen=True)
class Numeric:
    """A number. Missing values take the middle of the scale (0 after z-score), infinite ones are an error.

    Args:
      column: name of the column.
      scale: how training values are normalised (``"zscore"``, ``"minmax"`` to [0, 1], ``"log1p"``, ``"quantile"`` to
        [0, 1]) or None to leave them.
    """

    column: str
    scale: Scale | None = "zscore"

    def __post_init__(self) -> None:
        one_of(self.scale, (None, *get_args(Scale)), f"scale of the number {self.column!r}")


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One of several values of any hashable type. Values that training did not see are unknown."""

    column: str


@dataclasses.dataclass(frozen=True)
class Labels:
    """Any number of categories: a list in each cell, or a string to be cut at ``separator`` ("Comedy|Drama")."""

    column: str
    separator: str | None = None


@dataclasses.dataclass(frozen=True)
class Vector:
    """A dense vector in each cell, from any encoder of text, images or graphs. A missing one is all zeros.

    Args:
      column: name of the column.
      scale: how vectors are normalised, with statistics of the training part: ``"zscore"`` each number by itself,
        ``"rms"`` all by one factor, which keeps their proportions (less the mean vector, then the numbers have a mean
        square of 1), ``"unit"`` each vector to length 1; None to leave them. Models that are trained by gradient
        descent expect numbers of about 1, as ``"zscore"`` and ``"rms"`` give.
    """

    column: str
    scale: VectorScale | None = None

    def __post_init__(self) -> None:
        one_of(self.scale, (None, *get_args(VectorScale)), f"scale of the vectors {self.column!r}")


Feature = Numeric | Categorical | Labels | Vector


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """Names the columns of the interactions and of the frames of users and items.

    Args:
      user: column of raw user ids; None for data without users (a plain matrix in ``context``).
      item: column of raw item ids, likewise.
      target: column to predict (a rating, a click); None for implicit feedback, where every row is a positive.
      target_scale: normalisation that the model trains on; predictions come back in the target's own unit.
      time: column of numbers or datetimes, which orders rows.
      weight: column of non-negative example weights.
      user_features: columns of the frame of users.
      item_features: columns of the frame of items.
      context: columns of the interactions that the model may look at, numbers and vectors.

    Raises:
      ValueError: two features of one side have the same name, or one's name has a '/'; features are named of a side
        whose ids are not, or ``target_scale`` is no scale.

    Examples:
      >>> Schema(user="user_id", item="movie_id", item_features=(Labels("genres", "|"),)).item
      'movie_id'
    """

    user: str | None = "user"
    item: str | None = "item"
    target: str | None = None
    target_scale: Scale | None = None
    time: str | None = None
    weight: str | None = None
    user_features: tuple[Feature, ...] = ()
    item_features: tuple[Feature, ...] = ()
    context: tuple[Numeric | Vector, ...] = ()

    def __post_init__(self) -> None:
        for name in ("user_features", "item_features", "context"):
            features = getattr(self, name)
            features = (features,) if isinstance(features, Feature) else tuple(features)
            for feature in features:
                if not isinstance(feature, Feature) or not isinstance(feature.column, str):
                    raise TypeError(
                        f"Expected Numeric, Categorical, Labels or Vector of a column's name in Schema.{name}, got "
                        f"{feature!r}. Say, for example, Categorical('country')."
                    )
            object.__setattr__(self, name, features)
            columns = [feature.column for feature in features]
            wrong = [column for column in columns if columns.count(column) > 1 or "/" in column]
            if wrong:
                raise ValueError(
                    f"Expected distinct columns without '/' in Schema.{name}, got {wrong[0]!r}. A feature is named by "
                    "its column and the name becomes part of a parameter's path: rename the column."
                )
        for side, column in (("user", self.user), ("item", self.item)):
            features = getattr(self, f"{side}_features")
            if column is None and features:
                raise ValueError(
                    f"Schema.{side}_features names {features[0].column!r} and {side}=None, so no row could be told its "
                    f"features. Name the column of {side} ids, or say {side}_features=()."
                )
        one_of(self.target_scale, (None, *get_args(Scale)), "target_scale")
        for feature in self.context:
            if not isinstance(feature, Numeric | Vector):
                raise TypeError(
                    f"Expected Numeric or Vector in Schema.context, got {feature!r}. Categories are features of a "
                    "user or an item, or one-hot columns here."
                )

    def columns(self) -> tuple[str, ...]:
        """The columns that the frame of interactions must have, each once: one may have two roles."""
        named = (self.user, self.item, self.target, self.time, self.weight)
        context = (feature.column for feature in self.context)
        return tuple(dict.fromkeys((*(name for name in named if name is not None), *context)))


def need_columns(frame: pd.DataFrame, columns: tuple[str, ...], what: str) -> None:
    """Raises unless the frame is a non-empty DataFrame with these columns, each once."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"Expected a pandas DataFrame of {what}, got {type(frame).__name__}.")
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"The frame of {what} lacks the column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}. Rename "
            "the column or name the right one in the schema."
        )
    repeated = [column for column in columns if (frame.columns == column).sum() > 1]
    if repeated:
        raise ValueError(f"The frame of {what} has several columns {repeated[0]!r}. Rename or drop all but one.")
    if len(frame) == 0:
        raise ValueError(f"The frame of {what} is empty. Expected at least one row.")


def numbers(frame: pd.DataFrame, column: str, what: str) -> np.ndarray:
    """The column as float64; missing values are NaN. Anything that is no number is an error."""
    values = frame[column]
    if pd.api.types.is_bool_dtype(values):
        values = values.astype("Float64" if values.isna().any() else "int8")
    if not pd.api.types.is_numeric_dtype(values):
        parsed = pd.to_numeric(values, errors="coerce")
        wrong = parsed.isna() & values.notna()
        if not pd.api.types.is_object_dtype(values) or wrong.any():
            example = values[wrong].tolist()[0] if wrong.any() else values.tolist()[0]
            raise ValueError(
                f"Expected numbers{' or datetimes' if what == 'time' else ''} in the {what} column {column!r}, got "
                f"{example!r} (dtype {values.dtype}). Convert it first, for example with "
                f"pandas.{'to_datetime' if what == 'time' else 'to_numeric'}."
            )
        values = parsed
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def finite(frame: pd.DataFrame, column: str, what: str) -> np.ndarray:
    """``numbers`` without NaN or infinity."""
    values = numbers(frame, column, what)
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise ValueError(
            f"Expected finite numbers in the {what} column {column!r}, got {values[wrong][0]} in row "
            f"{int(np.flatnonzero(wrong)[0])} and {int(wrong.sum())} such rows in all. Drop them with data.clean."
        )
    return values


def to_float32(values: np.ndarray, column: str, remedy: str) -> np.ndarray:
    """The values in float32; a finite number that is none there is an error."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    wrong = np.isinf(narrow)
    if wrong.any():
        raise ValueError(
            f"Expected numbers up to {np.finfo(np.float32).max:.2g}, the largest of float32, in the column {column!r}, "
            f"got {values[wrong][0]:g}. Use {remedy}."
        )
    return narrow


def weights(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Finite, non-negative weights, of which none but 0 would be 0 in float32."""
    values = finite(frame, column, "weight")
    if (values < 0).any():
        raise ValueError(
            f"Expected weights >= 0 in the column {column!r}, got {values.min()}. A weight multiplies an example's "
            "loss; for a dislike use a target instead."
        )
    least = np.finfo(np.float32).tiny
    small = values[(values > 0) & (values < least)]
    if len(small):
        raise ValueError(
            f"Expected weights of 0 or at least {least:.2g}, the smallest of float32, in the column {column!r}, got "
            f"{small[0]:g} and {len(small)} such rows in all. Rescale them, for example so that the largest is 1, and "
            "give rows that shall be no examples the weight 0."
        )
    return values


def times(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The time column as float64, from numbers or datetimes, without missing values."""
    values = frame[column]
    if pd.api.types.is_datetime64_any_dtype(values):
        if values.isna().any():
            raise ValueError(
                f"The time column {column!r} has {int(values.isna().sum())} missing values. Drop those rows."
            )
        if str(values.dtype).startswith(("date32", "date64")):  # pyarrow's, without a time of the day
            values = values.astype("datetime64[us]")
        return values.dt.as_unit("us").astype("int64").to_numpy(dtype=np.float64)  # files may differ in resolution
    return np.array(finite(frame, column, "time"))  # pandas may give a view of the frame, which may change
