"""Plots (extra ``plot``). Each function returns a Matplotlib figure, to be shown or saved by the caller."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("jaxrec.plot needs matplotlib. Install the extra: pip install 'jaxrec[plot]'.") from error

from jaxrec._metrics import lower_is_better
from jaxrec.transfer import CopyReport

__all__ = ["cold_start", "copied", "gains", "learning_curves"]

_COLOURS = ("#999999", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")  # Okabe and Ito
_BEGUN = {"content": "predicted from content", "neighbours": "mean of neighbours", "unknown": "mean of those copied"}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def learning_curves(histories: Mapping[str, pd.DataFrame], *, metric: str) -> Figure:
    """A metric of the training histories by epoch, the best epoch of each marked.

    Args:
      histories: by label, as ``Recommender.history`` gives them.
      metric: a column of the histories, such as ``"ndcg@10"`` or ``"loss"``.

    Raises:
      ValueError: there is no history, or one lacks the metric.
    """
    if not histories:
        raise ValueError("Expected at least one history, got none.")
    figure, axes = _figure("epoch", metric)
    for number, (label, history) in enumerate(histories.items()):
        if metric not in history:
            raise ValueError(f"The history {label!r} has no {metric!r}. It has {', '.join(map(str, history.columns))}.")
        colour = _COLOURS[(number + 1) % len(_COLOURS)]
        epoch, values = history["epoch"].to_numpy(), history[metric].to_numpy()
        axes.plot(epoch, values, color=colour, label=label, linewidth=1.8)
        best = int(np.argmin(values) if lower_is_better(metric) else np.argmax(values))
        axes.plot(epoch[best], values[best], color=colour, marker=_MARKERS[number % len(_MARKERS)], markersize=7)
    _as_text(axes.legend(frameon=False))
    return figure


def cold_start(table: pd.DataFrame, *, metric: str, known: str = "interactions known of a new user") -> Figure:
    """A metric by the number of interactions that are known of a new user, a line per method with its interval.

    Args:
      table: columns ``method``, ``shots``, ``mean``, ``low``, ``high``; methods are drawn in their order of appearance.
      metric: label of the vertical axis.
      known: label of the horizontal axis.

    Raises:
      ValueError: a column is missing or there is no row.
    """
    _need(table, ("method", "shots", "mean", "low", "high"))
    figure, axes = _figure(known, metric)
    shots = sorted(table["shots"].unique())
    place = {shot: number for number, shot in enumerate(shots)}  # evenly spaced: 0, 1, 2, 5, 10 bunch up otherwise
    for number, (method, rows) in enumerate(table.groupby("method", sort=False)):
        colour = _COLOURS[number % len(_COLOURS)]
        x = rows["shots"].map(place).to_numpy()
        axes.fill_between(x, rows["low"].to_numpy(), rows["high"].to_numpy(), color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, rows["mean"].to_numpy(), color=colour, marker=_MARKERS[number % len(_MARKERS)], label=str(method))
    axes.set_xticks(range(len(shots)), [str(shot) for shot in shots])
    _as_text(figure.legend(frameon=False, loc="outside lower center", ncols=2))
    return figure


def copied(report: CopyReport) -> Figure:
    """What ``transfer.copy`` and ``adapt`` carried over: a bar per leaf of the target, by share of its rows.

    Rows that were copied, of several sources each by itself, those that were given a start by ``unmatched=``, and the
    rest, which is as the model initialised it (spare rows of tables among them). Beside each bar stands how many of how
    many rows were copied.

    Raises:
      ValueError: the report has no leaf of the target.
    """
    entries = [entry for entry in report.entries if entry.outcome != "left over"]
    if not entries:
        raise ValueError("Expected a report of at least one leaf of the target, got none.")
    figure, axes = _figure("share of rows", "", height=1.2 + 0.32 * len(entries))
    shares: list[dict[str, float]] = []
    for entry in entries:
        given = sum(count for _, count in entry.sources)  # under a mean a row counts for each that has it
        parts = {f"copied from {name}": entry.rows * count / given for name, count in entry.sources if count}
        share = parts or {"copied": entry.rows}
        shares.append(
            {label: rows for label, rows in share.items() if rows} | {_BEGUN[how]: n for how, n in entry.filled}
        )
    labels = list(dict.fromkeys(label for share in shares for label in share))
    labels.sort(key=list(_BEGUN.values()).count)  # what was copied first
    size = np.array([max(entry.of, 1) for entry in entries], np.float64)
    left = np.zeros(len(entries))
    for number, label in enumerate(labels):
        width = np.array([share.get(label, 0) for share in shares]) / size
        axes.barh(range(len(entries)), width, left=left, color=_COLOURS[(number + 1) % len(_COLOURS)], label=label)
        left += width
    axes.barh(range(len(entries)), 1.0 - left, left=left, color="#dddddd", label="as initialised")
    for at, entry in enumerate(entries):
        axes.text(1.01, at, f"{entry.rows:,} of {entry.of:,}", va="center", fontsize=9)
    axes.set_yticks(range(len(entries)), [entry.path for entry in entries], parse_math=False)
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1)
    _as_text(figure.legend(frameon=False, loc="outside lower center", ncols=3))
    return figure


def gains(table: pd.DataFrame, *, metric: str) -> Figure:
    """A bar per segment with its interval: how far one method is ahead of another (right) or behind it (left).

    Args:
      table: columns ``segment``, ``gain``, ``low``, ``high``, and ``users`` if their number is to be told; segments are
        drawn from top to bottom.
      metric: that the gain is in.

    Raises:
      ValueError: a column is missing or there is no row.
    """
    _need(table, ("segment", "gain", "low", "high"))
    figure, axes = _figure(f"gain in {metric}", "", height=1.2 + 0.36 * len(table))
    gain, place = table["gain"].to_numpy(), np.arange(len(table))
    ends = np.stack([gain - table["low"].to_numpy(), table["high"].to_numpy() - gain])
    colours = [_COLOURS[1] if value >= 0 else _COLOURS[4] for value in gain]
    axes.barh(place, gain, height=0.62, color=colours, alpha=0.75)
    axes.errorbar(gain, place, xerr=np.maximum(ends, 0.0), fmt="none", ecolor="#333333", elinewidth=1.2, capsize=3)
    axes.use_sticky_edges = False  # room on both sides of zero
    axes.autoscale_view()
    axes.locator_params(axis="x", nbins=5)
    axes.axvline(0.0, color="#333333", linewidth=1.0)
    names = table["segment"].astype(str)
    if "users" in table:
        names = [f"{name}  (n = {count:,})" for name, count in zip(names, table["users"], strict=True)]
    axes.set_yticks(place, list(names), parse_math=False)  # see _as_text
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _need(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing or not len(table):
        listed = f"{', '.join(columns[:-1])} and {columns[-1]}"
        raise ValueError(f"Expected rows with {listed}; missing: {missing or 'any row'}.")


def _as_text(legend: Legend) -> None:
    """A name is the user's: '$' is no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _figure(x: str, y: str, *, height: float = 4.5) -> tuple[Figure, Axes]:
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(7.5, height), dpi=120, layout="constrained")
        axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
