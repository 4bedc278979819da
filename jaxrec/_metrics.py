"""What a metric's name says: ``ndcg@10`` is a figure of ranked lists, ``rmse`` one of rows."""

from typing import Literal

from jaxrec.data import Dataset

_LOWER_IS_BETTER = ("loss", "rmse", "mse", "mae", "log_loss", "calibration_error")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller figure is a better one."""
    return metric in _LOWER_IS_BETTER


def default_metric(held_out: Dataset) -> str:
    """What to judge by where nobody says."""
    return "rmse" if held_out.target is not None else f"ndcg@{min(10, len(held_out.encoder.items))}"


def task_of(metric: str) -> tuple[Literal["ranking", "rating"], tuple[int, ...]]:
    """The task that ``evaluate`` has to do for a metric, and the cut-offs."""
    name, at, k = metric.partition("@")
    if at and not k.isdecimal():
        raise ValueError(f"Expected a metric such as 'ndcg@10' or 'rmse', got {metric!r}.")
    return ("ranking", (int(k),)) if at and name else ("rating", (10,))
