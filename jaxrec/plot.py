"""Plots (extra ``plot``). Each function returns a Matplotlib figure, to be shown or saved by the caller."""

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxrec._metrics import lower_is_better

__all__ = ["cold_start", "learning_curves"]

_COLOURS = ("#999999", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")  # Okabe and Ito
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
    axes.legend(frameon=False)
    return figure


def cold_start(table: pd.DataFrame, *, metric: str) -> Figure:
    """A metric by the number of interactions that are known of a new user, a line per method with its interval.

    Args:
      table: columns ``method``, ``shots``, ``mean``, ``low``, ``high``; methods are drawn in their order of appearance.
      metric: label of the vertical axis.

    Raises:
      ValueError: a column is missing or there is no row.
    """
    missing = [name for name in ("method", "shots", "mean", "low", "high") if name not in table]
    if missing or not len(table):
        raise ValueError(f"Expected rows with method, shots, mean, low and high; missing: {missing or 'any row'}.")
    figure, axes = _figure("interactions known of a new user", metric)
    shots = sorted(table["shots"].unique())
    place = {shot: number for number, shot in enumerate(shots)}  # evenly spaced: 0, 1, 2, 5, 10 bunch up otherwise
    for number, (method, rows) in enumerate(table.groupby("method", sort=False)):
        colour = _COLOURS[number % len(_COLOURS)]
        x = rows["shots"].map(place).to_numpy()
        axes.fill_between(x, rows["low"].to_numpy(), rows["high"].to_numpy(), color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, rows["mean"].to_numpy(), color=colour, marker=_MARKERS[number % len(_MARKERS)], label=str(method))
    axes.set_xticks(range(len(shots)), [str(shot) for shot in shots])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
        axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
