"""What a scenario returns: a verdict in words, and the tables behind it."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec.data import Schema
from jaxrec.scenarios._splits import Splits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["helped", "trade-off", "hurt", "no difference"]


def plots() -> Any:
    """The module ``jaxrec.plot``, imported.

    Raises:
      ModuleNotFoundError: Matplotlib is not installed.
    """
    from jaxrec import plot

    return plot


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scenario:
    """One case of transfer, measured.

    Args:
      name: of the function, such as ``"new_user"``.
      title: in words.
      data: in words: what it was measured on.
      verdict: on the strategy that was best on validation, against the best baseline, on the test part, where the
        interval of the paired difference excludes zero and the paired test rejects equality. ``"helped"``: ahead for
        those the scenario is about, not behind for the others, and chosen by validation; ``"trade-off"``: ahead for the
        first and behind for the others; ``"hurt"``: behind for either and ahead for none of the first.
      chosen: name of the method that was best on validation, by the mean of the figures for those the scenario is about
        and for the others: the strategy, or the baseline where none was ahead of it.
      strategy: name of the best strategy on validation.
      baseline: name of the best baseline on validation.
      scratch: name of the baseline that is the same kind of model without transfer.
      why: how the choice was made, in words.
      metric: that chose and that the verdict is about.
      who: whose rows are held out, in words; the first slice of ``table``.
      known: what the learning curve is over, in words.
      table: test figures with intervals, of the baselines and the best strategy: ``method``, ``role``, ``slice``,
        ``metric``, ``mean``, ``low``, ``high``, ``users``. In the first slice a user's value is the mean over the
        numbers of interactions known.
      trials: validation figures of every method and setting: ``method``, ``role``, ``setting``, ``seconds``, ``value``,
        the mean of ``first`` (of ``who``) and ``rest``.
      differences: the strategy minus the baseline ``against``, paired by user: ``slice``, ``difference``, ``low``,
        ``high``, ``p_value``, ``users``.
      curve: test figures by interactions known: ``method``, ``shots``, ``mean``, ``low``, ``high``.
      segments: gain of the strategy over the best baseline: ``by`` (what the segments are of), ``segment``, ``users``,
        ``strategy``, ``baseline``, ``gain``, ``low``, ``high``.
      splits: the target's rows: train, validation, test, shown, warm, warm_validation.
      schema: names their columns.
      recommender: the chosen method, fitted to ``splits.train``.
      notes: what a reader should know.
      level: of the intervals.
      seed: of splits, training and bootstrap.
      seconds: that it took.
    """

    name: str
    title: str
    data: str
    verdict: Verdict
    chosen: str
    strategy: str
    baseline: str
    scratch: str
    why: str
    metric: str
    who: str
    known: str
    table: pd.DataFrame
    trials: pd.DataFrame
    differences: pd.DataFrame
    curve: pd.DataFrame
    segments: pd.DataFrame
    splits: Splits
    schema: Schema
    recommender: Recommender
    notes: tuple[str, ...]
    level: float
    seed: int
    seconds: float

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        row = self.differences.iloc[0]
        change = f"{self.mean(self.baseline):.4f} -> {self.mean(self.strategy):.4f}"
        figures = (
            f"{self.metric} of {self.who} {change} ({_interval(row)}) against {self.baseline}, the best baseline, "
            f"{row.users:,} test users"
        )
        kept = "it was kept out" if self.chosen == self.baseline else "validation had chosen it"
        if sign(self.price, self.level) < 0:
            figures += f"; on {self.price['slice']} {_interval(self.price)}"
        if self.verdict == "helped":
            return f"{self.strategy} helped: {figures}."
        if self.verdict == "trade-off":
            return f"{self.strategy} is a trade-off: {figures}; {kept}."
        if self.verdict == "hurt":
            return f"{self.strategy} hurt: {figures}; {kept}."
        if sign(row, self.level) > 0 and self.chosen == self.baseline:
            return f"{self.strategy} was kept out by validation, though ahead on the test part: {figures}."
        return f"{self.strategy} made no difference that can be told from chance: {figures}."

    @property
    def price(self) -> pd.Series:
        """The row of ``differences`` against the best baseline on the other test rows."""
        return self.differences[self.differences["against"] == self.baseline].iloc[-1]

    @property
    def elsewhere(self) -> str:
        """What the strategy does to the other test rows, those of users or items that are known, in a sentence."""
        part = self.differences["slice"].iloc[-1]
        rows = self.differences[self.differences["slice"] == part]
        said = [f"{_interval(row)} against {row.against}" for row in rows.itertuples()]
        first = self.table[(self.table["slice"] == self.who) & (self.table["metric"] == self.metric)]
        rival: Any = first[first["role"] == "baseline"].set_index("method")["mean"]
        ahead = ""
        if rival.max() > self.mean(self.strategy):  # not the best baseline, for it does worse for the others
            ahead = (
                f" For {self.who} alone {rival.idxmax()}, a baseline, is ahead of {self.strategy}: {rival.max():.4f}."
            )
        return f"On {part}: {', '.join(said)}.{ahead}"

    def figures(self) -> "dict[str, Figure]":
        """Plots by title: the learning curve, then gains by each kind of segment. Needs the extra ``plot``.

        Raises:
          ModuleNotFoundError: Matplotlib is not installed.
        """
        plot = plots()
        found = {
            f"Learning curve: {self.metric} of {self.who}": plot.cold_start(
                self.curve, metric=self.metric, known=self.known
            )
        }
        for by, rows in self.segments.groupby("by", sort=False):
            found[f"Gain by {by}"] = plot.gains(rows, metric=self.metric)
        return found

    def cells(self) -> list[list[str]]:
        """The test table as text: a row per method, a column per metric of the first slice, then per further slice."""
        first = [(self.who, metric) for metric in self.table["metric"].unique()]
        slices = [part for part in self.table["slice"].unique() if part != self.who]
        columns = [*first, *((part, self.metric) for part in slices)]
        heads = [metric if part == self.who else f"{metric}, {part}" for part, metric in columns]
        lines = [["method", *heads]]
        half = (self.table["high"] - self.table["low"]) / 2
        keys = zip(self.table["method"], self.table["slice"], self.table["metric"], strict=True)
        figures = (f"{mean:.4f} ±{width:.4f}" for mean, width in zip(self.table["mean"], half, strict=True))
        by_key = dict(zip(keys, figures, strict=True))
        for method in self.table["method"].unique():
            lines.append([method, *(by_key[method, *column] for column in columns)])
        return lines

    def mean(self, method: str) -> float:
        """A method's test figure by the metric that decides."""
        table = self.table
        rows = table[(table["method"] == method) & (table["slice"] == self.who) & (table["metric"] == self.metric)]
        return float(rows["mean"].iloc[0])

    def __str__(self) -> str:
        """The verdict, the choice and why, and the table of test figures."""
        lines = self.cells()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = []
        for method, *figures in lines:
            cells = (cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))
            rows.append("  ".join([method.ljust(widths[0]), *cells]))
        heading = (
            f"{self.title} ({self.data}). {self.level:.0%} intervals over test users; {self.who} unless said otherwise:"
        )
        return "\n".join([self.summary, self.elsewhere, self.why, *self.notes, "", heading, *rows])


def sign(row: Any, level: float) -> int:
    """Of a paired difference: 0 unless both its interval and its test say that there is one."""
    if row.p_value >= 1 - level or row.low <= 0 <= row.high:
        return 0
    return 1 if row.low > 0 else -1


def _interval(row: Any) -> str:
    return f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
