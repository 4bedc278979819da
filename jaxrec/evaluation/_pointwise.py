"""Metrics of predictions, row by row, in float64 on the host. Each takes weights, which also serve the bootstrap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_Rows = Float[np.ndarray, " rows"]


def mse(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Mean squared error, in the square of the target's unit. NaN without rows, likewise in the other functions.

    Args:
      predictions: in the target's unit.
      targets: likewise.
      weight: non-negative, None for equal ones.

    Raises:
      ValueError: the arrays are not ``[rows]`` of one length, or one has NaN. Likewise in the other functions, and
        where probabilities or targets that are to be in [0, 1] are not.

    Examples:
      >>> mse(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
      2.0
    """
    rows = _checked(predictions, targets, weight)
    return _mean(np.square(rows.prediction - rows.target), rows.weight)


def rmse(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Root of the mean squared error over all rows (not a mean of users' errors), in the target's unit."""
    return float(np.sqrt(mse(predictions, targets, weight=weight)))


def mae(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Mean absolute error, in the target's unit."""
    rows = _checked(predictions, targets, weight)
    return _mean(np.abs(rows.prediction - rows.target), rows.weight)


def log_loss(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Mean negative log-likelihood of targets in [0, 1], in nats.

    Args:
      predictions: probabilities in [0, 1]. One that is 0 or 1 and wrong costs as much as the nearest float64 inside
        (0, 1), about 36 nats at 1 and 708 at 0.
      targets: in [0, 1].
      weight: non-negative.

    Examples:
      >>> print(f"{log_loss(np.array([0.5]), np.array([1.0])):.4f}")
      0.6931
    """
    rows = _checked(predictions, targets, weight, inside=("predictions", "targets"))
    return _mean(log_losses(rows.prediction, rows.target), rows.weight)


def log_losses(predictions: _Rows, targets: _Rows) -> _Rows:
    """What ``log_loss`` is the mean of."""
    inside = np.clip(predictions, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))
    return -(targets * np.log(inside) + (1 - targets) * np.log1p(-inside))


def auc(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Probability that a positive row scores above a negative one; equal scores count half.

    Args:
      predictions: any scores.
      targets: 0 or 1.
      weight: non-negative.

    Returns:
      In [0, 1]; NaN where one class is missing.

    Examples:
      >>> auc(np.array([0.1, 0.4, 0.4]), np.array([0.0, 0.0, 1.0]))
      0.75
    """
    scores, target, w = _checked(predictions, targets, weight, inside=("targets",))
    order = np.argsort(scores, kind="stable")
    scores, positive, negative = scores[order], (w * target)[order], (w * (1 - target))[order]
    total = positive.sum() * negative.sum()
    if not total > 0:
        return float("nan")
    new = np.concatenate([[True], scores[1:] != scores[:-1]]) if len(scores) else np.zeros(0, bool)
    group = np.cumsum(new) - 1
    positive, negative = np.bincount(group, positive), np.bincount(group, negative)
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / total)


def accuracy(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Share of rows whose probability is on the target's side of one half; exactly one half predicts 1.

    Args:
      predictions: probabilities in [0, 1].
      targets: in [0, 1].
      weight: non-negative.

    Examples:
      >>> accuracy(np.array([0.2, 0.5]), np.array([1.0, 1.0]))
      0.5
    """
    rows = _checked(predictions, targets, weight, inside=("predictions", "targets"))
    return _mean(hits(rows.prediction, rows.target), rows.weight)


def hits(predictions: _Rows, targets: _Rows) -> _Rows:
    """What ``accuracy`` is the mean of."""
    return ((predictions >= 0.5) == (targets >= 0.5)).astype(np.float64)


def calibration_error(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None, bins: int = 10) -> float:
    """Expected calibration error: how far probabilities are from frequencies, on average.

    Probabilities fall into ``bins`` of equal width; a bin adds its share of the rows times the absolute difference
    of its mean probability and its share of positives.

    Args:
      predictions: probabilities in [0, 1].
      targets: 0 or 1.
      weight: non-negative.
      bins: number of bins.

    Examples:
      >>> print(f"{calibration_error(np.array([0.7, 0.7]), np.array([1.0, 0.0])):.2f}")
      0.20

    References:
      Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015 (for the
      probability of the positive class).
    """
    prediction, target, w = _checked(predictions, targets, weight, inside=("predictions", "targets"))
    bin_of = np.minimum((prediction * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, w * prediction, bins) - np.bincount(bin_of, w * target, bins)
    return float(np.abs(gap).sum() / w.sum()) if w.sum() > 0 else float("nan")


class _Checked(NamedTuple):
    """Float64 ``[rows]``."""

    prediction: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def _checked(
    predictions: np.ndarray, targets: np.ndarray, weight: np.ndarray | None, *, inside: Sequence[str] = ()
) -> _Checked:
    arrays = {"predictions": predictions, "targets": targets}
    arrays |= {"weight": np.ones(np.shape(targets)) if weight is None else weight}
    wide = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
    shapes = {name: values.shape for name, values in wide.items()}
    if len(set(shapes.values())) > 1 or len(shapes["targets"]) != 1:
        raise ValueError(
            f"Expected one number for each row, got the shapes {shapes}. Flatten them, for example with .ravel()."
        )
    for name, values in wide.items():
        if np.isnan(values).any():
            raise ValueError(
                f"{int(np.isnan(values).sum())} of {len(values)} {name} are NaN, so there is no error to measure. "
                "Leave these rows out, or look for NaN in the model."
            )
        beyond = values[(values < 0) | (values > 1)] if name in inside else values[:0]
        if len(beyond):
            remedy = "Apply a sigmoid to logits" if name == "predictions" else "Turn them into 0 and 1"
            raise ValueError(
                f"Expected {name} in [0, 1], got {beyond[0]:g} in one of {len(beyond)} such rows. {remedy}, or take "
                "rmse or mae."
            )
    return _Checked(*wide.values())


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(values, weights=weight)) if weight.sum() > 0 else float("nan")
