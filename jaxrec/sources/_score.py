"""One number from many signals: weights whose signs are known, fitted on pairs whose true gain was measured."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxrec.sources._signals import SIGNS

_SWEEPS = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """A weighted sum of standardised signals, each turned so that more is better.

    Args:
      table: by signal: ``mean`` and ``deviation`` that standardise it, and ``weight``, at least 0.
      intercept: what signals at their means are worth.
      pairs: how many measured pairs it was fitted on; 0 for the default, a mean of standardised signals.
    """

    table: pd.DataFrame
    intercept: float = 0.0
    pairs: int = 0

    def __call__(self, signals: pd.DataFrame) -> pd.Series:
        """The score of each row of signals, a column each."""
        return self.parts(signals).sum(axis=1) + self.intercept

    def parts(self, signals: pd.DataFrame) -> pd.DataFrame:
        """What each signal contributes to each row's score.

        Raises:
          ValueError: a signal is missing or not finite.
        """
        values = checked(signals, list(self.table.index))
        return (values - self.table["mean"]) / self.table["deviation"] * self.table["weight"] * _signs(values)

    def __str__(self) -> str:
        kept = self.table["weight"][self.table["weight"] > 0].sort_values(ascending=False)
        how = f"fitted on {self.pairs} pairs" if self.pairs else "not calibrated"
        return f"score ({how}): " + (", ".join(f"{name} {weight:.3g}" for name, weight in kept.items()) or "no signal")


def calibrate(signals: pd.DataFrame, gains: Sequence[float] | np.ndarray | pd.Series, *, l2: float = 0.1) -> Score:
    r"""A score of sources from pairs of source and target whose true gain was measured.

    With :math:`z` the signals, standardised and turned so that more is better, and :math:`g` the gains,

    .. math:: \min_{w \ge 0, b} \frac1n \sum (g - b - z w)^2 + \lambda \lVert w \rVert^2

    by coordinate descent. No weight is negative, since for every signal it is known which direction is good: with a
    dozen pairs that is what keeps correlated signals from being played off against each other. A signal that does not
    vary has weight 0.

    Args:
      signals: a row per pair, with columns such as ``Ranking.table`` has. Those with a known sign are used; others,
        such as names and verdicts, are not read.
      gains: of the same pairs, in any unit, which becomes the score's; a Series by the signals' index.
      l2: :math:`\lambda`, non-negative.

    Raises:
      ValueError: fewer than 3 pairs, numbers of rows or indices differ, no known signal is there, or a number is not
        finite.

    References:
      Hoerl and Kennard, Ridge regression, Technometrics 12(1), 1970, with weights bounded below as in Lawson and
      Hanson, Solving least squares problems, 1974, chapter 23.
    """
    names = [name for name in SIGNS if name in signals.columns]
    if not names:
        raise ValueError(f"Expected columns among {', '.join(SIGNS)}, got {', '.join(map(str, signals.columns))}.")
    if isinstance(gains, pd.Series) and not gains.index.equals(signals.index):
        if gains.index.has_duplicates or not gains.index.sort_values().equals(signals.index.sort_values()):
            raise ValueError(
                "The gains have another index than the signals, so it is not known which belongs to which. Give them "
                "the signals' index, or in the order of the rows as gains.to_numpy()."
            )
        gains = gains.reindex(signals.index)
    y = np.asarray(gains, np.float64)
    if len(y) != len(signals) or len(y) < 3:
        raise ValueError(f"Expected gains of 3 pairs or more, one per row of signals, got {len(y)} and {len(signals)}.")
    if not np.isfinite(y).all():
        raise ValueError(f"Expected finite gains, got {int((~np.isfinite(y)).sum())} others. Leave these pairs out.")
    if not l2 >= 0:
        raise ValueError(f"Expected l2 >= 0, got {l2}.")
    values = checked(signals, names)
    table = standardised(values)
    z = ((values - table["mean"]) / table["deviation"] * _signs(values)).to_numpy()
    centred, weight = y - y.mean(), np.zeros(len(names))
    gram, along = z.T @ z / len(y), z.T @ centred / len(y)
    for _ in range(_SWEEPS):
        for place in np.flatnonzero(table["varies"]):  # the others' products are rounding, which no l2 would hold
            rest = along[place] - gram[place] @ weight + gram[place, place] * weight[place]
            weight[place] = max(rest, 0.0) / (gram[place, place] + l2)
    return Score(table.assign(weight=weight), float(y.mean()), len(y))


def standardised(values: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation by signal; 1 for the deviation of one that does not vary."""
    mean, deviation = values.mean(), values.std(ddof=0)
    varies = deviation > 1e-9 * np.maximum(mean.abs(), 1e-3)
    return pd.DataFrame({"mean": mean, "deviation": deviation.where(varies, 1.0), "varies": varies})


def uncalibrated(signals: pd.DataFrame) -> Score:
    """The mean of the signals that vary among the candidates, standardised over them."""
    table = standardised(checked(signals, list(SIGNS)))
    count = max(int(table["varies"].sum()), 1)
    return Score(table.assign(weight=table["varies"] / count))


def checked(signals: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    missing = [name for name in names if name not in signals.columns]
    if missing:
        raise ValueError(f"The signals lack {', '.join(missing)}. Take the columns of Ranking.table.")
    values = signals[names].astype(np.float64)
    bad = [name for name in names if not np.isfinite(values[name]).all()]
    if bad:
        raise ValueError(f"Expected finite signals, got others in {', '.join(bad)}. Leave these pairs out.")
    return values


def _signs(values: pd.DataFrame) -> pd.Series:
    return pd.Series({name: SIGNS[str(name)] for name in values.columns})
