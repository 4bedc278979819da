"""When to stop training, and which parameters to keep."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrec import _tree
from jaxrec._metrics import check_metric, default_metric, lower_is_better, task_of
from jaxrec._recommender import Recommender, need_no_context
from jaxrec._types import Link, Params
from jaxrec.data import Dataset, Encoder
from jaxrec.evaluation import evaluate
from jaxrec.evaluation._evaluate import check_ranked
from jaxrec.evaluation._rows import NaNScore

Metric = str | Callable[[Recommender], float]


class Judge:
    """Computes the metric after each epoch and keeps a copy of the best parameters; ``lower``: of a function too.

    What could not be evaluated on ``validation`` by recommenders of this ``encoder`` is refused at once.
    """

    def __init__(
        self,
        validation: Dataset | None,
        metric: Metric | None,
        patience: int | None,
        *,
        encoder: Encoder | None = None,
        lower: bool = False,
        link: Link = "identity",
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"Expected patience >= 1 or None, got {patience}.")
        if validation is None and isinstance(metric, str):
            raise ValueError(f"The metric {metric!r} needs held-out data. Give fit(..., validation=...).")
        if metric is None and validation is not None:
            metric = default_metric(validation, link)
        if isinstance(metric, str) and validation is not None:
            if not len(validation):
                raise ValueError("The validation part is empty. Expected at least one row, or validation=None.")
            if encoder is not None:
                encoder.check(validation.encoder)
            check_metric(metric, validation, link)
            if task_of(metric)[0] == "ranking":
                check_ranked(validation)
        self._validation, self._metric, self._patience = validation, metric, patience
        self._lower = lower or (isinstance(metric, str) and lower_is_better(metric))
        self._since, self._value = 0, -np.inf
        self.best: Params | None = None

    def restart(self) -> None:
        """Patience counts from here."""
        self._since = 0

    @property
    def name(self) -> str | None:
        """Of the metric; None if there is none."""
        return self._metric if self._metric is None or isinstance(self._metric, str) else _name(self._metric)

    def check(self, recommender: Recommender) -> None:
        """Raises where the metric ranks items for users alone and the recommender's model cannot."""
        if isinstance(self._metric, str) and task_of(self._metric)[0] == "ranking":
            need_no_context(recommender, "model")

    @property
    def improved(self) -> bool:
        """Whether the last look found the best so far, or nothing is looked at."""
        return self._metric is None or self._since == 0

    @property
    def value(self) -> float:
        """The best so far, higher being better; -inf before the first look."""
        return self._value

    @property
    def lower(self) -> bool:
        """Whether a smaller figure of the metric is a better one."""
        return self._lower

    def look(self, recommender: Recommender, row: dict[str, Any]) -> bool:
        """Writes the metric into the history's row; True if it is time to stop.

        Raises:
          NaNScore: a score is infinite or NaN, or a metric that is a function is NaN.
        """
        name = self.name
        if name is None:
            return False
        row[name] = value = self._compute(recommender)
        if np.isnan(value):
            # A figure of the report is NaN where no user has a relevant item, which is not the parameters' fault.
            kind = NaNScore if callable(self._metric) else ValueError
            raise kind(f"The metric {name!r} is NaN, so there is nothing to stop on.")
        signed = -value if self._lower else value
        if signed > self._value:
            self._value, self._since = signed, 0
            self.best = _tree.copied(recommender.params)
        else:
            self._since += 1
        return self._patience is not None and self._since >= self._patience

    def _compute(self, recommender: Recommender) -> float:
        if callable(self._metric):
            return float(self._metric(recommender))
        assert self._metric is not None and self._validation is not None
        task, ks = task_of(self._metric)
        cut_offs = ks if task == "ranking" else None
        return evaluate(recommender, self._validation, ks=cut_offs, task=task, draws=1)[self._metric]


def _name(function: Callable[[Recommender], float]) -> str:
    return getattr(function, "__name__", "metric")
