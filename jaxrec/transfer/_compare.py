"""Transfer against training from scratch: a verdict."""

import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

from jaxrec import _tree
from jaxrec._expect import expect, need_level
from jaxrec._metrics import check_metric, default_metric, lower_is_better, task_of
from jaxrec._recommender import Recommender
from jaxrec._types import Link
from jaxrec.data import Dataset
from jaxrec.evaluation import Report, evaluate
from jaxrec.models import Model
from jaxrec.models._base import resized
from jaxrec.train import fit
from jaxrec.train._choices import chosen_loss
from jaxrec.transfer._adapt import Adapted, adapt, need_loss, sources_by_name, with_loss
from jaxrec.transfer._align import Alignment
from jaxrec.transfer._freeze import Frozen


class NegativeTransfer(UserWarning):
    """Transfer did worse than training from scratch, with an interval that excludes zero."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Transfer against training from scratch, on the same test users.

    Args:
      adapted: the transferred recommender and its reports.
      scratch: the recommender trained on the target alone.
      reports: of the two, ``"transfer"`` and ``"scratch"``.
      table: by slice: figures of both, ``difference`` with ``low`` and ``high`` and the ``p_value`` of no difference.
      metric: that the verdict is about.
      verdict: ``"helped"`` or ``"hurt"`` where the interval of the difference over all users excludes zero and the
        paired test rejects equality at the same level; with few users the one can do so without the other.
    """

    adapted: Adapted
    scratch: Recommender
    reports: dict[str, Report]
    table: pd.DataFrame
    metric: str
    verdict: Literal["helped", "hurt", "no difference"]

    @property
    def recommender(self) -> Recommender:
        """What to go on with: the transferred recommender, or where transfer hurt the one from scratch.

        It is chosen on the test part given to ``compare``. Give a validation part, and evaluate on test what it chose.
        """
        return self.scratch if self.verdict == "hurt" else self.adapted.recommender

    def __str__(self) -> str:
        """The verdict in words, and the table."""
        row = self.table.iloc[0]
        interval = f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
        better = "lower is better, gain " if lower_is_better(self.metric) else ""
        change = f"{self.metric} {row.scratch:.4f} -> {row.transfer:.4f} ({better}{interval})"
        units = "users" if self.reports["transfer"].table["users"].any() else "rows"
        words = {
            "helped": f"Transfer helped: {change}.",
            "hurt": (
                f"Transfer hurt: {change}. There was nothing to carry over that is true here, and what was copied "
                "misleads: train from scratch, or copy less."
            ),
            "no difference": (
                f"Transfer made no difference that can be told from chance: {change}. There was nothing to carry over, "
                f"or too little for {int(row.users)} test {units} to show."
            ),
        }
        table = self.table.to_string(index=False, float_format=lambda value: f"{value:.4f}")
        return f"{words[self.verdict]}\n{self.adapted.aligned}\n{table}"


def compare(
    source: Recommender | Mapping[str, Recommender],
    train: Dataset,
    test: Dataset,
    *,
    metric: str | None = None,
    model: Model | None = None,
    alignment: Alignment | Mapping[str, Alignment] | None = None,
    patterns: _tree.Patterns = "*",
    freeze: Literal["copied"] | _tree.Patterns | Frozen = (),
    strategy: Mapping[str, Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Did transfer help? Trains from scratch beside it, with the same model, budget, options and seed.

    Args:
      source: from ``fit`` on the source domain; or several by name.
      train: the target's training part.
      test: held-out interactions of the target, neither trained nor stopped on.
      metric: of the verdict: a name from ``evaluate``'s report that has a value per user, such as ``"ndcg@10"``, or
        ``"rmse"`` or ``"log_loss"`` for targets (the mean of users' errors, lower being better). By default
        ``"ndcg@10"``, cut to a smaller catalogue, or ``"rmse"`` where there is a target.
      model: as for ``adapt``, likewise ``alignment``, ``patterns`` and ``freeze``.
      alignment: see ``model``.
      patterns: see ``model``.
      freeze: see ``model``; only the transferred model is frozen.
      strategy: further options for ``adapt`` alone: ``adapters``, ``importance``, ``rename``, ``unmatched``,
        ``conflict``, and what of ``fit`` makes sense for the transferred model only, such as ``unfreeze`` or an
        ``optimizer`` with ``optim.l2_sp``.
      level: of the intervals, in (0, 1).
      seed: of both trainings and of the bootstrap.
      options: for ``fit``, given to both.

    Returns:
      Both recommenders and reports, a table of paired differences by slice, a verdict, and the recommender to go on
      with. Where lower is better the difference is turned round, so that positive always means that transfer is ahead.

    Raises:
      ValueError: as ``adapt``, the metric is none of scores that the loss gives (or, where all is frozen, of those of
        the source), ``level`` is out of range, or the test part leaves nobody to measure on.
      TypeError: an option is of the transferred model alone, and was not given in ``strategy``, or the reverse.

    Warns:
      NegativeTransfer: transfer hurt.
    """
    expect(test, Dataset, "test")
    need_level(level)
    alone = sorted({*inspect.signature(adapt).parameters, "unfreeze"} & set(options))
    if alone:
        raise TypeError(
            f"{alone[0]} is an option of the transferred model alone, and both were to be trained with it: give "
            f"compare(..., strategy={{{alone[0]!r}: ...}})."
        )
    first = next(iter(sources_by_name(source).values()))
    options = with_loss(first, train, options)
    given = {**options, **(strategy or {})}.get("loss"), options.get("loss")
    links: set[Link] = {chosen_loss(first.model if model is None else model, train, loss)[2] for loss in given}
    if len(links) > 1:
        raise ValueError(
            f"Expected losses whose scores mean the same, or there is nothing to compare, got {given[0]!r} in "
            f"strategy= and {given[1]!r} for both. Name the loss in compare(..., loss=...) alone."
        )
    link = links.pop()
    metric = metric or default_metric(test, link)
    check_metric(metric, test, link, by_user=True)
    chosen: dict[str, Any] = {**options, **(strategy or {})}
    named = sorted({"model", "alignment", "patterns", "freeze", "seed"} & set(chosen))
    if named:
        raise TypeError(f"{named[0]} is an option of compare itself: give compare(..., {named[0]}=...), not strategy=.")
    need_loss(first, train, chosen)
    adapted = adapt(
        source, train, model=model, alignment=alignment, patterns=patterns, freeze=freeze, seed=seed, **chosen
    )
    check_metric(metric, test, adapted.recommender.link, by_user=True)  # all frozen, it says what the source says
    scratch = fit(resized(first.model if model is None else model, train), train, seed=seed, **options)
    task, ks = task_of(metric)
    cut_offs = ks if task == "ranking" else None
    reports = {
        what: evaluate(recommender, test, ks=cut_offs, task=task, level=level, seed=seed)
        for what, recommender in (("transfer", adapted.recommender), ("scratch", scratch))
    }
    sign = -1.0 if lower_is_better(metric) else 1.0
    rows = []
    for part in dict.fromkeys(reports["scratch"].per_user["slice"]):
        ours, theirs = (reports[what].users(metric, part) for what in ("transfer", "scratch"))
        paired = reports["transfer"].versus(reports["scratch"], metric, part, level=level, seed=seed)
        low, high = sorted((sign * paired.low, sign * paired.high))
        rows.append(
            (part, paired.users, theirs.mean(), ours.mean(), sign * paired.difference, low, high, paired.p_value)
        )
    if not rows:
        reasons = "; ".join(f"{count} rows, {why}" for why, count in reports["scratch"].left_out.items() if count)
        raise ValueError(
            f"The test part has nobody to measure {metric} on (left out: {reasons or 'nothing'}). Give held-out rows "
            "that are not those of training."
        )
    columns = ["slice", "users", "scratch", "transfer", "difference", "low", "high", "p_value"]
    table = pd.DataFrame(rows, columns=columns)
    verdict: Literal["helped", "hurt", "no difference"] = "no difference"
    if table.p_value[0] < 1 - level and not table.low[0] <= 0 <= table.high[0]:
        verdict = "helped" if table.low[0] > 0 else "hurt"
    comparison = Comparison(adapted, scratch, reports, table, metric, verdict)
    if verdict == "hurt":
        warnings.warn(str(comparison).partition("\n")[0], NegativeTransfer, stacklevel=2)
    return comparison
