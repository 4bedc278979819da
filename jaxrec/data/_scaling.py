"""Normalisation of numbers: statistics of the training part, kept, applied and undone."""

import dataclasses
from typing import Any

import numpy as np

from jaxrec import _values
from jaxrec.data._schema import Scale, VectorScale

_QUANTILES = 1001


@dataclasses.dataclass(frozen=True, eq=False)
class Scaler:
    """A fitted, invertible map of numbers; one column of ``statistics`` per column of numbers.

    ========== ============================== =======================
    scale      transformed value              statistics
    ========== ============================== =======================
    zscore     (x - mean) / deviation         mean, deviation
    minmax     (x - low) / (high - low)       low, high - low
    log1p      log(1 + x), x > -1             mean of log(1 + x)
    quantile   share of training values <= x  1,001 quantiles
    rms        (x - mean) / r                 mean, r
    unit       x / length of the row          none
    ========== ============================== =======================

    The last two are for vectors: ``rms`` has one r for all columns, the root mean square of what is left of the
    training values without their means, and ``unit`` cannot be inverted; a row of zeros stays.
    Values outside the training range go on outside [0, 1] under ``minmax`` and end at 0 and 1 under ``quantile``, which
    cannot be inverted beyond them, so that such targets are refused. Missing values (NaN) take the middle: the training
    mean under ``zscore``, ``rms`` and ``log1p``, 0.5 under ``minmax`` and ``quantile``, 0 under ``unit``.
    """

    scale: Scale | VectorScale
    statistics: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, scale: Scale | VectorScale, name: str) -> "Scaler":
        """Statistics of ``values [rows, columns]``; NaN is left out.

        Raises:
          ValueError: a column is constant, so that it says nothing and its scale is 0, or has no value at all; under
            ``rms`` all of them are constant; ``rms`` or ``unit`` of single numbers.
        """
        if scale in ("rms", "unit") and values.shape[1] == 1:
            raise ValueError(f"The scale {scale!r} is for vectors and {name!r} is one number. Use 'zscore'.")
        for at, column in enumerate(values.T):
            known = column[~np.isnan(column)]
            if not len(known):
                raise ValueError(no_value(name))
            if scale not in ("rms", "unit") and known.min() == known.max():
                what, remedy = f"The feature {name!r}", "Leave it out of the schema, or give it scale=None."
                if values.shape[1] > 1:
                    what = f"Number {at} of the vectors {name!r}"
                    remedy = "Give the vectors scale='rms' or None, or take the number out of them."
                raise ValueError(
                    f"{what} is constant ({known[0]:g}) in the training part, so it cannot be scaled. {remedy}"
                )
        if scale == "log1p":
            _need_above_minus_one(values, name)
            statistics = np.nanmean(np.log1p(values), axis=0)[None, :]
        elif scale == "zscore":
            statistics = np.stack([np.nanmean(values, axis=0), np.nanstd(values, axis=0)])
        elif scale == "minmax":
            low = np.nanmin(values, axis=0)
            statistics = np.stack([low, np.nanmax(values, axis=0) - low])
        elif scale == "quantile":
            statistics = np.nanquantile(values, np.linspace(0, 1, _QUANTILES), axis=0)
        elif scale == "rms":
            mean = np.nanmean(values, axis=0)
            root = np.sqrt(np.nanmean((values - mean[None, :]) ** 2))
            if not root > 0:
                raise ValueError(f"The vectors {name!r} are all the same in the training part. Leave them out.")
            statistics = np.stack([mean, np.full_like(mean, root)])
        elif scale == "unit":
            statistics = np.zeros((0, values.shape[1]))
        else:
            raise ValueError(
                f"Expected scale 'zscore', 'minmax', 'log1p', 'quantile', for vectors 'rms', 'unit', or None, got "
                f"{scale!r}."
            )
        return cls(scale, statistics)

    def transform(self, values: np.ndarray, name: str) -> np.ndarray:
        """``values [rows, columns]`` normalised, float64."""
        if self.scale == "log1p":
            _need_above_minus_one(values, name)
        return forward(np, self.scale, self.statistics, values)

    def need_inside(self, values: np.ndarray, name: str) -> None:
        """Raises where targets lie beyond the ends of ``quantile``, at which their differences would be lost."""
        if self.scale != "quantile":
            return
        low, high = self.statistics[0], self.statistics[-1]
        beyond = values[(values < low[None, :]) | (values > high[None, :])]
        if len(beyond):
            raise ValueError(
                f"{len(beyond)} targets in {name!r} are outside the training part's range [{low[0]:g}, {high[0]:g}], "
                f"such as {beyond[0]:g}. The scale 'quantile' ends there, and errors would be measured against its "
                "ends: use target_scale='zscore' or 'log1p', or drop the rows with data.clean(target_range=...)."
            )

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Normalised ``values [rows, columns]`` back in the unit of the data, float64."""
        return backward(np, self.scale, self.statistics, values)

    __eq__ = _values.equal

    def __repr__(self) -> str:
        shown = self.statistics[:2, :3].round(4).tolist()
        more = "..." if self.statistics.size > 6 else ""
        return f"Scaler({self.scale}, {self.statistics.shape[1]} column(s), {shown}{more})"


def no_value(name: str) -> str:
    """The message where a feature is missing in all rows."""
    return f"The feature {name!r} has no value in the training part. Leave it out of the schema."


def forward(xp: Any, scale: Scale | VectorScale, statistics: Any, values: Any) -> Any:
    """Normalises, with the array library ``xp``: NumPy, or jax.numpy inside an exported function."""
    if scale == "unit":
        known = xp.where(xp.isnan(values), 0.0, values)
        length = xp.sqrt((known * known).sum(axis=1, keepdims=True))
        return known / xp.where(length > 0, length, 1.0)
    first = statistics[0]
    if scale == "log1p":
        return xp.where(xp.isnan(values), first[None, :], xp.log1p(values))
    if scale == "quantile":
        return xp.where(xp.isnan(values), 0.5, _by_column(xp, values, statistics, None))
    middle = first if scale in ("zscore", "rms") else first + 0.5 * statistics[1]
    return (xp.where(xp.isnan(values), middle[None, :], values) - first[None, :]) / statistics[1][None, :]


def backward(xp: Any, scale: Scale | VectorScale, statistics: Any, values: Any) -> Any:
    """The inverse of ``forward``."""
    if scale == "unit":
        raise ValueError("Vectors scaled to unit length cannot be turned back: their lengths are gone.")
    if scale == "log1p":
        return xp.expm1(values)
    if scale == "quantile":
        return _by_column(xp, values, None, statistics)
    return values * statistics[1][None, :] + statistics[0][None, :]


def centred(scale: Scale | VectorScale, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to take from values while they are float64, and the statistics by which what is left is normalised alike.

    Far from 0 float32 is coarse: of a unix time it keeps two minutes.
    """
    if scale in ("log1p", "unit"):  # which go by the distance from 0, where it is fine enough
        return np.zeros(statistics.shape[1]), statistics
    centre = statistics[len(statistics) // 2 if scale == "quantile" else 0]
    left = statistics - centre[None, :]
    return centre, left if scale == "quantile" else np.concatenate([left[:1], statistics[1:]])


def _by_column(xp: Any, values: Any, knots: Any, heights: Any) -> Any:
    """Linear interpolation in each column; a side that is None is the regular grid on [0, 1]."""
    grid = xp.linspace(0.0, 1.0, _QUANTILES)
    columns = [
        xp.interp(values[:, j], grid if knots is None else knots[:, j], grid if heights is None else heights[:, j])
        for j in range(values.shape[1])
    ]
    return xp.stack(columns, axis=1)


def _need_above_minus_one(values: np.ndarray, name: str) -> None:
    if np.nanmin(values, initial=0.0) <= -1:
        raise ValueError(
            f"Expected values above -1 for the log1p scale of {name!r}, got {np.nanmin(values):g}. Use 'zscore' for "
            "numbers that can be negative."
        )
