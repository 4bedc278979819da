"""Writes the tables of README.md, the plots beside it and results/engine_earlier.md from the rows in results/.

python benchmarks/page.py
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
_PAGE = Path(__file__).parent / "README.md"
_OURS, _THEIRS = "tab:orange", "tab:gray"
_SCHEMES = "own", "shared", "shuffled", "in order", "solver"
"""What a system's name ends with where the systems of a case do not all do the same work."""


def main() -> None:
    rows = [row for name in ("engine.json", "quality.json") for row in _rows(name)]
    page = _PAGE.read_text()
    for task in {row["task"] for row in rows}:
        mark = re.compile(rf"(<!-- {task} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(page):
            raise SystemExit(
                f"README.md has no place for {task}: expected a line '<!-- {task} -->' and '<!-- end -->'."
            )
        text = _by_device([row for row in rows if row["task"] == task])
        page = mark.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    _PAGE.write_text(page)
    earlier, text = _rows("engine_earlier.json"), [_EARLIER]
    for task in sorted({row["task"] for row in earlier}, key=_natural):
        text += [f"## {task}", _by_device([row for row in earlier if row["task"] == task])]
    (harness.RESULTS / "engine_earlier.md").write_text("\n\n".join(text) + "\n")
    _throughput([row for row in rows if row["task"] not in ("T5", "T10")])
    _steps(_of_one_device([row for row in rows if row["task"] == "T5"]))
    _seconds([row for row in rows if row["task"] == "T10"])


_EARLIER = """# Earlier rows of T1 to T11

Of other machines, by earlier commits of jaxrec (a row of `engine_earlier.json` names its own) and of these benchmarks:
two turns mostly, the *limit* of a copy by one thread, T1 one epoch a run, T3's rival with the users' half of the first
layer once per pair, T9's NumPy evaluator on one core, T10 of family 25 without implicit's least squares beside the best
by BPR. Those of family 23 are made as today's, with one turn."""


def _by_device(rows: list[Row]) -> str:
    """A table for each machine."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"*{row['device']}, {row['threads']} threads*", []).append(row)
    columns = _TIMES if rows[0]["task"] == "T10" else _RATES
    return "\n\n".join(f"{device}\n\n{_table(group, columns)}" for device, group in groups.items())


def _rows(name: str) -> list[Row]:
    return harness.saved(harness.RESULTS / name)


def _unit(row: Row) -> str:
    return row["unit"].removesuffix("/s")


_WHO: dict[str, Callable[[Row], str]] = {
    "system": lambda row: f"**{row['system']}**" if _ours(row) else row["system"],
    "version": lambda row: row["version"],
}
_RATES = _WHO | {
    "per second": lambda row: f"{row['value']:,.0f} {_unit(row)}",
    "ms": lambda row: f"{row['ms']:,.2f}",
    "turns": lambda row: " to ".join(f"{end(row['turns_ms']):,.2f}" for end in (min, max) if "turns_ms" in row),
    "first run, s more": lambda row: f"{row['compile_s']:.2f}",
    "quality": lambda row: "" if row["quality"] is None else f"{row['quality']:.4f}",
    "peak MiB": lambda row: f"{row['rss_mib']:,}",
    "of the limit": lambda row: f"{row['attained']:.0%}" if "attained" in row else "",
}
_TIMES = _WHO | {
    "seconds": lambda row: f"{row['value']:.2f}",
    "the first time": lambda row: f"{row['first_s']:.2f}",
    "compiled before": lambda row: f"{row['kept_s']:.2f}" if row.get("kept_epochs") == row["epochs"] else "",
    "import": lambda row: f"{row['import_s']:.2f}",
    "NDCG@10 then": lambda row: f"{row['quality']:.4f}",
    "its best": lambda row: f"{row['best']:.4f}",
    "epochs": lambda row: str(row["epochs"]),
    "setting": lambda row: ", ".join(f"{value:g}" for value in row["setting"]),
}


def _ours(row: Row) -> bool:
    return row["system"].startswith("jaxrec")


def _table(rows: list[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    """One table, the cases one after the other, the fastest first."""
    lines = ["| case | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    slow_first = "first_s" in rows[0]
    for case in sorted({row["case"] for row in rows}, key=_natural):
        chosen = sorted((row for row in rows if row["case"] == case), key=lambda row: row["value"])
        for row in chosen if slow_first else chosen[::-1]:
            lines.append(f"| {case} | " + " | ".join(cell(row) for cell in columns.values()) + " |")
    return "\n".join(lines)


def _natural(case: str) -> list[Any]:
    """To sort by: numbers as numbers."""
    return [int(part.replace(",", "")) if part[:1].isdigit() else part for part in re.split(r"(\d[\d,]*)", case)]


def _of_one_device(rows: list[Row]) -> list[Row]:
    """The one that has most rows."""
    devices = [row["device"] for row in rows]
    most = max(devices, key=devices.count, default=None)
    return [row for row in rows if row["device"] == most]


def _throughput(rows: list[Row]) -> None:
    """Every system against the fastest rival that does the same work in its case on its device."""

    def of(row: Row) -> tuple[str, str, str, str]:
        scheme = next((scheme for scheme in _SCHEMES if row["system"].endswith(scheme)), "")
        return row["task"], row["case"], scheme, row["device"]

    cases = list(dict.fromkeys(of(row) for row in rows))
    cases.sort(key=lambda found: int(found[0][1:]))
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(cases) + 1.2))
    for place, key in enumerate(cases):
        chosen = [row for row in rows if of(row) == key]
        best = max((row["value"] for row in chosen if not _ours(row)), default=chosen[0]["value"])
        for row in chosen:
            axes.plot(row["value"] / best, -place, "o", color=_OURS if _ours(row) else _THEIRS)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("throughput, best rival = 1 (orange: jaxrec)")
    axes.set_yticks(
        [-place for place in range(len(cases))],
        [f"{task} {case[:44]} {scheme}" for task, case, scheme, _ in cases],
        fontsize=7,
    )
    _save(figure, "throughput.png")


def _steps(rows: list[Row]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4))
    for system in dict.fromkeys(row["system"] for row in rows):
        points = sorted(
            (int(row["case"].split()[0].replace(",", "")), 1e3 / row["value"])
            for row in rows
            if row["system"] == system
        )
        style = "-o" if system.startswith("jaxrec") else "--x"
        axes.plot(*zip(*points, strict=True), style, label=system)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rows of both tables")
    axes.set_ylabel("ms per step of 4,096 examples")
    axes.legend(fontsize=7)
    _save(figure, "steps.png")


def _seconds(rows: list[Row]) -> None:
    # The targets of one loss are in the table alone: their systems stand in these plots already.
    cases = list(dict.fromkeys(row["case"] for row in rows if ", target " in row["case"]))
    figure, axes = plt.subplots(1, max(len(cases), 1), figsize=(5 * max(len(cases), 1), 3), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=False):
        for row in (row for row in rows if row["case"] == case):
            axis.plot([row["value"], row["first_s"]], [row["quality"]] * 2, "-", color=_OURS if _ours(row) else _THEIRS)
            axis.plot(row["value"], row["quality"], "o", color=_OURS if _ours(row) else _THEIRS)
            axis.annotate(
                row["system"], (row["value"], row["quality"]), fontsize=7, xytext=(3, 4), textcoords="offset points"
            )
        axis.set_xscale("log")
        axis.set_title(case, fontsize=9)
        axis.set_xlabel("seconds (dot), and the first time (end of line)")
        axis.set_ylabel("validation NDCG@10")
    _save(figure, "quality.png")


def _save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(harness.RESULTS / name, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
