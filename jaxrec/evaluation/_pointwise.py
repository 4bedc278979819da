"""Metrics of predictions, row by row, in float64 on the host. Each takes weights, which also serve the bootstrap."""

import numpy as np
from jaxtyping import Float

_Rows = Float[np.ndarray, " rows"]


def mse(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Mean squared error, in the square of the target's unit. NaN without rows, likewise in the other functions.

    Args:
      predictions: in the target's unit.
      targets: likewise.
      weight: non-negative, None for equal ones.

    Examples:
      >>> mse(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
      2.0
    """
    return _mean(np.square(_wide(predictions) - _wide(targets)), weight)


def rmse(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Root of the mean squared error over all rows (not a mean of users' errors), in the target's unit."""
    return float(np.sqrt(mse(predictions, targets, weight=weight)))


def mae(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Mean absolute error, in the target's unit."""
    return _mean(np.abs(_wide(predictions) - _wide(targets)), weight)


def log_loss(predictions: _Rows, targets: _Rows, *, weight: _Rows | None = None) -> float:
    """Mean negative log-likelihood of targets in [0, 1], in nats.

    Args:
      predictions: probabilities. One that is 0 or 1 and wrong costs as much as the nearest float64 inside (0, 1), about
        36 nats at 1 and 708 at 0.
      targets: in [0, 1].
      weight: non-negative.

    Examples:
      >>> print(f"{log_loss(np.array([0.5]), np.array([1.0])):.4f}")
      0.6931
    """
    return _mean(log_losses(predictions, targets), weight)


def log_losses(predictions: _Rows, targets: _Rows) -> _Rows:
    """What ``log_loss`` is the mean of."""
    p, t = _wide(predictions), _wide(targets)
    inside = np.clip(p, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))
    return -(t * np.log(inside) + (1 - t) * np.log1p(-inside))


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
    w = np.ones(len(targets)) if weight is None else _wide(weight)
    order = np.argsort(predictions, kind="stable")
    scores, positive, negative = _wide(predictions)[order], (w * targets)[order], (w * (1 - _wide(targets)))[order]
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

    Examples:
      >>> accuracy(np.array([0.2, 0.5]), np.array([1.0, 1.0]))
      0.5
    """
    return _mean(hits(predictions, targets), weight)


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
    if not len(targets):
        return float("nan")
    w = np.ones(len(targets)) if weight is None else _wide(weight)
    bin_of = np.minimum((_wide(predictions) * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, w * predictions, bins) - np.bincount(bin_of, w * targets, bins)
    return float(np.abs(gap).sum() / w.sum()) if w.sum() > 0 else float("nan")


def _wide(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _mean(values: np.ndarray, weight: np.ndarray | None) -> float:
    if not len(values):
        return float("nan")
    return float(np.average(values, weights=weight)) if weight is None or weight.sum() > 0 else float("nan")
