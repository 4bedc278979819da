"""What a metric's name says: ``ndcg@10`` is a figure of ranked lists, ``rmse`` one of rows."""

from typing import Literal

from jaxrec.data import Dataset
from jaxrec.evaluation._rows import NAMES as OF_ROWS
from jaxrec.evaluation._top_k_metrics import NAMES as OF_LISTS

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


def check_metric(metric: str, held_out: Dataset) -> None:
    """Raises where ``evaluate`` could not compute it on this part, before anything is trained."""
    name, _, k = metric.partition("@")
    if metric in OF_ROWS:
        return
    if name not in OF_LISTS or not k.isdecimal():
        raise ValueError(
            f"Expected a metric such as 'ndcg@10', of {', '.join(OF_LISTS)}, or one of {', '.join(OF_ROWS)}, got "
            f"{metric!r}."
        )
    most = len(held_out.encoder.items)
    if not 1 <= int(k) <= most:
        raise ValueError(f"Expected a metric at 1 .. {most} (the number of items), got {metric!r}.")
