"""What ``evaluate`` returns: per-user values first, then means with intervals."""

import dataclasses

import numpy as np
import pandas as pd

from jaxrec.evaluation._intervals import Paired, paired_test


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Figures of one model on one test part.

    Args:
      table: columns ``slice``, ``metric``, ``mean``, ``low``, ``high`` (of the interval), ``users`` and, for row-wise
        metrics, ``rows``.
      per_user: one row per user of the test part and slice: ``slice``, ``user`` (raw id) and a column per metric; rows
        of users that the encoder does not know are nobody's. For data without users, one row per row of the test part
        and slice, its number as ``user``.
      coverage: share of the candidates that stand in at least one user's list, by cut-off; empty for row-wise metrics.
      left_out: rows of the test part that are in no figure, by reason.
    """

    table: pd.DataFrame
    per_user: pd.DataFrame
    coverage: dict[int, float]
    left_out: dict[str, int]

    def __getitem__(self, metric: str) -> float:
        """The overall figure of a metric, such as ``report["ndcg@10"]``."""
        return self.value(metric)

    def value(self, metric: str, slice: str = "all") -> float:
        """One figure; NaN where the slice has no user with a value.

        Raises:
          ValueError: the metric or slice is not in the table.
        """
        return float(self._row(metric, slice)["mean"])

    def interval(self, metric: str, slice: str = "all") -> tuple[float, float]:
        """The ends of a figure's interval."""
        row = self._row(metric, slice)
        return float(row["low"]), float(row["high"])

    def users(self, metric: str, slice: str = "all") -> pd.Series:
        """The users' values by raw id.

        Raises:
          ValueError: the metric or slice is not in the table, the metric is a figure of all rows together, or the
            slice has rows of unknown users alone.
        """
        found = self._row(metric, slice)
        if metric not in self.per_user.columns:
            raise ValueError(f"{metric!r} has no value per user. It is a figure of all rows together.")
        rows = self.per_user[self.per_user["slice"] == slice]
        if not len(rows) and found.get("rows", 0):
            raise ValueError(
                f"The encoder knows no user of {slice!r}, so there are no values per user. Pass the test part as a "
                "frame, or encode all parts together with data.encode."
            )
        return pd.Series(rows[metric].to_numpy(), index=pd.Index(rows["user"], tupleize_cols=False), name=metric)

    def versus(self, other: "Report", metric: str, slice: str = "all", *, level: float = 0.95, seed: int = 0) -> Paired:
        """This model minus another, user by user; see ``paired_test``. Users that are not in both are an error, and so
        is a ``level`` outside (0, 1)."""
        ours, theirs = self.users(metric, slice), other.users(metric, slice)
        if len(ours) != len(theirs) or not ours.index.isin(theirs.index).all():
            raise ValueError("The two reports are about different users. Evaluate both models on one test part.")
        return paired_test(ours.to_numpy(), theirs.reindex(ours.index).to_numpy(), level=level, seed=seed)

    def _row(self, metric: str, slice: str) -> pd.Series:
        rows = self.table[(self.table["metric"] == metric) & (self.table["slice"] == slice)]
        if not len(rows):
            raise ValueError(
                f"No figure {metric!r} for {slice!r}. Metrics: {', '.join(self.table['metric'].unique())}; slices: "
                f"{', '.join(self.table['slice'].unique())}."
            )
        return rows.iloc[0]

    def __str__(self) -> str:
        """The table, a row per metric and a column per slice, each a mean with the interval's half-width."""
        half = (self.table["high"] - self.table["low"]) / 2
        cells = self.table.assign(
            cell=[
                f"{mean:.4f}" + ("" if np.isnan(width) else f" ±{width:.4f}")
                for mean, width in zip(self.table["mean"], half, strict=True)
            ]
        )
        slices = cells.groupby("slice", sort=False).max(numeric_only=True)
        lines = [["", *slices.index]]
        for unit in ("users", "rows"):
            if unit in slices and slices[unit].any():
                lines.append([unit, *(f"{count:,}" for count in slices[unit])])
        for metric, rows in cells.groupby("metric", sort=False):
            by_slice = dict(zip(rows["slice"], rows["cell"], strict=True))
            lines.append([str(metric), *(by_slice.get(name, "") for name in slices.index)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        notes = [f"coverage@{k}: {share:.3f}" for k, share in self.coverage.items()]
        notes += [f"left out: {rows} rows, {reason}" for reason, rows in self.left_out.items() if rows]
        return "\n".join(text + notes)
