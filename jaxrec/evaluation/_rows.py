"""Evaluation row by row: errors of predicted targets, and of probabilities."""

import functools

import numpy as np
import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec._types import Link
from jaxrec.data import Dataset
from jaxrec.evaluation import _pointwise
from jaxrec.evaluation._intervals import bootstrap_statistic, resampled
from jaxrec.evaluation._report import Report
from jaxrec.ranking._recommend import predict

_ERRORS = ("rmse", "mse", "mae")
OF_PROBABILITIES = ("log_loss", "auc", "accuracy", "calibration_error")
NAMES = (*_ERRORS, *OF_PROBABILITIES)
_DRAWS = 200  # most, of a figure that is no mean and takes a pass over all rows for each


class NaNScore(ValueError):
    """A score is infinite or NaN. Whoever trains takes it for a sign that training has diverged."""


def evaluate_rows(recommender: Recommender, test: Dataset, *, level: float, draws: int, seed: int) -> Report:
    """The row-wise half of ``evaluate``."""
    if test.target is None:
        raise ValueError("Row-wise metrics need a target. Name the column in the schema, or use task='ranking'.")
    if not len(test):
        raise ValueError("The test part is empty. Expected at least one held-out row.")
    if recommender.link == "rank":
        raise ValueError(
            "The recommender was trained by a loss of ranking: its scores order items and predict no targets. Use "
            "task='ranking', or train with loss='mse' or 'sigmoid_cross_entropy'."
        )
    predictions = predict(recommender, test)
    odd = int((~np.isfinite(predictions)).sum())
    if odd:
        raise NaNScore(
            f"{odd} of {len(test)} predictions are infinite or NaN, so there is no error to measure. Look for such "
            "numbers in the parameters or features."
        )
    targets = test.encoder.original_target(test.target.astype(np.float64))
    metrics = NAMES if gives_probabilities(test, recommender.link) else _ERRORS
    who = np.arange(len(test)) if test.user is None else test.user
    known = np.ones(len(test), bool) if test.user is None else test.user > 0
    tables, own = [], []
    for name, chosen in _slices(recommender, test).items():
        if name == "all" or chosen.any() and not chosen.all():
            users = None if test.user is None else test.user[chosen]
            table = _figures(metrics, predictions[chosen], targets[chosen], users, level, draws, seed)
            tables.append(table.assign(slice=name))
            told = chosen & known
            if name == "all" or told.any():
                own.append(_per_user(name, metrics, predictions[told], targets[told], who[told]))
    per_user = pd.concat(own, ignore_index=True)
    if test.user is not None:
        per_user["user"] = recommender.encoder.users.decode(per_user["user"].to_numpy())
    return Report(pd.concat(tables, ignore_index=True), per_user, {}, {})


def gives_probabilities(test: Dataset, link: Link) -> bool:
    """Whether predictions of this link are probabilities of the targets: these are 0 or 1 and no scale moves them."""
    if link != "sigmoid" or test.target is None:
        return False
    original, same = test.encoder.original_target, np.array([0.0, 0.5, 1.0])
    clicks = np.isin(original(test.target.astype(np.float64)), (0.0, 1.0)).all()
    return bool(clicks) and np.array_equal(original(same), same)


def _slices(recommender: Recommender, test: Dataset) -> dict[str, np.ndarray]:
    slices = {"all": np.ones(len(test), bool)}
    trained = recommender.trained
    for side, index, count in (("users", test.user, trained.user_count), ("items", test.item, trained.item_count)):
        if index is not None:
            known = count[index] * (index > 0)
            slices |= {f"cold {side}": known == 0, f"warm {side}": known > 0}
    return slices


def _figures(
    metrics: tuple[str, ...],
    predictions: np.ndarray,
    targets: np.ndarray,
    users: np.ndarray | None,
    level: float,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Figures over all rows, with intervals by resampling users, or rows where there are none or nobody knows them."""
    group, count = np.arange(len(targets)), 0
    if users is not None:
        count = np.count_nonzero(np.unique(users))
        group = np.unique(np.where(users > 0, users, -1 - group), return_inverse=True)[1]
    values_of = _drawn(metrics, predictions, targets, group, draws, seed)
    rows = []
    for metric in metrics:
        function, values = getattr(_pointwise, metric), values_of[metric]
        low = high = np.nan  # of rows of one class no drawing has an AUC, and NumPy would warn
        if not np.isnan(values).all():
            low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
        rows.append((metric, function(predictions, targets), low, high, count, len(targets)))
    return pd.DataFrame(rows, columns=["metric", "mean", "low", "high", "users", "rows"])


def _drawn(
    metrics: tuple[str, ...], predictions: np.ndarray, targets: np.ndarray, group: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Each figure under resamplings of the groups. Means of rows need the groups' sums alone; the others take a pass
    over all rows for each."""
    of_row = _by_row(metrics, predictions, targets)
    count = np.bincount(group)
    sums = np.stack([np.bincount(group, values) for values in of_row.values()], axis=1)
    means = np.concatenate([counts @ sums / (counts @ count)[:, None] for counts in resampled(len(count), draws, seed)])
    found = dict(zip(of_row, means.T, strict=True))
    found["rmse"] = np.sqrt(found["mse"])
    for metric in set(metrics) - set(found):
        of_weight = functools.partial(getattr(_pointwise, metric), predictions, targets)
        found[metric] = bootstrap_statistic(
            lambda weight, of=of_weight: of(weight=weight), group, draws=min(draws, _DRAWS), seed=seed
        )
    return found


def _by_row(metrics: tuple[str, ...], predictions: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """What figures are the means of, row by row."""
    error = predictions - targets
    found = {"mse": error**2, "mae": np.abs(error)}
    if "log_loss" in metrics:
        found["log_loss"] = _pointwise.log_losses(predictions, targets)
        found["accuracy"] = _pointwise.hits(predictions, targets)
    return found


def _per_user(
    slice: str, metrics: tuple[str, ...], predictions: np.ndarray, targets: np.ndarray, users: np.ndarray
) -> pd.DataFrame:
    """Each user's own figures (the figures over all rows are not their means)."""
    users, group = np.unique(users, return_inverse=True)
    count = np.bincount(group)
    means = {
        name: np.bincount(group, values) / count for name, values in _by_row(metrics, predictions, targets).items()
    }
    return pd.DataFrame({"slice": slice, "user": users, "rmse": np.sqrt(means["mse"]), **means})
