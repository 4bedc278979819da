"""How sure is a mean? Bootstrap intervals and paired tests over users."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrec._expect import need_level

_CELLS = 2**23  # most resampling counts held at once
_MANY = 100_000  # users above whom what draws would give is its limit, the normal distribution, within a few percent


class Interval(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """The difference of two models over the same users."""

    difference: float  # mean of the first minus the second
    low: float
    high: float
    p_value: float  # of no difference: signs of the users' differences flipped at random
    users: int


def bootstrap_interval(
    values: Float[np.ndarray, " users"], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean over users with a percentile bootstrap interval; of more than 100,000 users its limit, the normal one.

    Args:
      values: one per user; NaN is left out.
      level: probability that the interval covers, in (0, 1).
      draws: resamplings of the users, with replacement.
      seed: of ``numpy.random.default_rng``.

    Returns:
      All NaN without a value.

    Raises:
      ValueError: there is more than one value of each user, or an option is out of range.

    References:
      Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13.
    """
    need_drawable(level, draws)
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"Expected one value of each user, got the shape {values.shape}. Give one metric at a time.")
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    (low,), (high,) = bootstrap_bounds(values[:, None], level=level, draws=draws, seed=seed)
    return Interval(float(values.mean()), float(low), float(high))


def need_drawable(level: float, draws: int) -> None:
    """Raises unless an interval of this level can be had of so many drawings."""
    need_level(level)
    if draws < 1:
        raise ValueError(f"Expected draws >= 1, got {draws}.")


def bootstrap_bounds(
    values: Float[np.ndarray, "users columns"], *, level: float, draws: int, seed: int
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Ends of the interval of each column's mean, users being resampled, the same ones for every column."""
    users = len(values)
    if not users:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    if users > _MANY:
        half = statistics.NormalDist().inv_cdf((1 + level) / 2) * values.std(axis=0) / math.sqrt(users)
        return values.mean(axis=0) - half, values.mean(axis=0) + half
    means = np.concatenate([counts @ values / users for counts in resampled(users, draws, seed)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], group: np.ndarray, *, draws: int, seed: int
) -> np.ndarray:
    """A statistic of weighted rows under resamplings of the groups (users) that rows belong to.

    Args:
      statistic: of a weight per row.
      group: number of each row's group, from 0.
      draws: resamplings.
      seed: of ``numpy.random.default_rng``.
    """
    groups = int(group.max()) + 1
    return np.array([statistic(count[group]) for counts in resampled(groups, draws, seed) for count in counts])


def resampled(users: int, draws: int, seed: int):
    """How often each user is drawn, in blocks of draws."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // users)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = rng.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)


def paired_test(
    a: Float[np.ndarray, " users"],
    b: Float[np.ndarray, " users"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Paired:
    """Compares two models by the same users' values; of more than 100,000 users by the limit of both resamplings.

    Args:
      a: values of the first model; NaN in either leaves a user out.
      b: values of the second, in the same order of users.
      level: of the interval.
      draws: resamplings for the interval, and sign flips for the p-value.
      seed: of ``numpy.random.default_rng``.

    Raises:
      ValueError: the numbers of users differ, there is more than one value of each, or an option is out of range.

    References:
      Smucker, Allan and Carterette, A comparison of statistical significance tests for information retrieval
      evaluation, CIKM 2007 (randomisation test, two-sided).
    """
    need_drawable(level, draws)
    if np.shape(a) != np.shape(b) or np.ndim(a) != 1:
        raise ValueError(
            f"Expected one value of each of the same users, got the shapes {np.shape(a)} and {np.shape(b)}. Evaluate "
            "both on one test part."
        )
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    difference = difference[~np.isnan(difference)]
    mean, low, high = bootstrap_interval(difference, level=level, draws=draws, seed=seed)
    if len(difference) > _MANY:  # signs flipped at random: a sum of mean zero and this variance
        z = abs(difference.sum()) / max(math.sqrt((difference**2).sum()), np.finfo(float).tiny)
        return Paired(mean, low, high, math.erfc(z / math.sqrt(2)), len(difference))
    rng = np.random.default_rng([seed, 1])
    size = max(1, _CELLS // max(len(difference), 1))
    flipped = [
        rng.choice([-1.0, 1.0], (min(size, draws - start), len(difference))) @ difference
        for start in range(0, draws, size)
    ]
    extreme = np.abs(np.concatenate(flipped)) >= abs(difference.sum()) * (1 - 1e-12)
    return Paired(mean, low, high, float((extreme.sum() + 1) / (draws + 1)), len(difference))
