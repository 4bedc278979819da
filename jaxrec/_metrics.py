"""What a metric's name says: ``ndcg@10`` is a figure of ranked lists, ``rmse`` one of rows."""

from typing import Literal

from jaxrec._types import Link
from jaxrec.data import Dataset
from jaxrec.evaluation._rows import NAMES as OF_ROWS
from jaxrec.evaluation._rows import OF_PROBABILITIES, gives_probabilities
from jaxrec.evaluation._top_k_metrics import NAMES as OF_LISTS

_LOWER_IS_BETTER = ("loss", "rmse", "mse", "mae", "log_loss", "calibration_error")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller figure is a better one."""
    return metric in _LOWER_IS_BETTER


def default_metric(held_out: Dataset, link: Link = "identity") -> str:
    """What to judge by where nobody says."""
    return "rmse" if held_out.target is not None and link != "rank" else f"ndcg@{min(10, len(held_out.encoder.items))}"


def task_of(metric: str) -> tuple[Literal["ranking", "rating"], tuple[int, ...]]:
    """The task that ``evaluate`` has to do for a metric, and the cut-offs."""
    name, at, k = metric.partition("@")
    if at and not k.isdecimal():
        raise ValueError(f"Expected a metric such as 'ndcg@10' or 'rmse', got {metric!r}.")
    return ("ranking", (int(k),)) if at and name else ("rating", (10,))


def check_metric(metric: str, held_out: Dataset, link: Link = "identity", *, by_user: bool = False) -> None:
    """Raises where ``evaluate`` could not compute it on this part (of each user), before anything is trained."""
    name, _, k = metric.partition("@")
    if metric in OF_ROWS:
        if held_out.target is None or link == "rank":
            raise ValueError(
                f"The metric {metric!r} compares predictions with targets, and "
                + ("the loss is one of ranking, whose scores are no predictions." if link == "rank" else
                   "the schema names no target.")
                + " Use one of ranked lists, such as 'ndcg@10'."
            )  # fmt: skip
        if metric in OF_PROBABILITIES and not gives_probabilities(held_out, link):
            raise ValueError(
                f"The metric {metric!r} is one of probabilities: it needs targets of 0 and 1, without a scale, and a "
                "model trained by loss='sigmoid_cross_entropy'. Use 'rmse' or 'mae' for other targets."
            )
        if by_user and metric in ("auc", "calibration_error"):
            raise ValueError(f"{metric!r} has no value per user to compare. Use 'log_loss', or 'ndcg@10' of lists.")
        return
    if name not in OF_LISTS or not k.isdecimal():
        raise ValueError(
            f"Expected a metric such as 'ndcg@10', of {', '.join(OF_LISTS)}, or one of {', '.join(OF_ROWS)}, got "
            f"{metric!r}."
        )
    most = len(held_out.encoder.items)
    if not 1 <= int(k) <= most:
        raise ValueError(f"Expected a metric at 1 .. {most} (the number of items), got {metric!r}.")
