"""Evaluation: per-user values first, then means with intervals, cold and warm apart. The verb is ``evaluate``."""

from jaxrec.evaluation._cross_validation import cross_validate
from jaxrec.evaluation._evaluate import evaluate
from jaxrec.evaluation._intervals import Interval, Paired, bootstrap_interval, paired_test
from jaxrec.evaluation._pointwise import accuracy, auc, calibration_error, log_loss, mae, mse, rmse
from jaxrec.evaluation._report import Report
from jaxrec.evaluation._top_k_metrics import (
    hit_rate_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
)

__all__ = [
    "Interval",
    "Paired",
    "Report",
    "accuracy",
    "auc",
    "bootstrap_interval",
    "calibration_error",
    "cross_validate",
    "evaluate",
    "hit_rate_at_k",
    "log_loss",
    "mae",
    "map_at_k",
    "mrr_at_k",
    "mse",
    "ndcg_at_k",
    "paired_test",
    "precision_at_k",
    "recall_at_k",
    "rmse",
]
