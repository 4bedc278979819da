"""Results as one HTML page that needs nothing else: plots stand inside it."""

import base64
import datetime
import io
import platform
from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import jaxrec
from jaxrec._expect import expect
from jaxrec.export._files import replacing
from jaxrec.scenarios._scenario import Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIGNS = {"helped": "+", "trade-off": "±", "hurt": "−", "no difference": "="}
_WIDTH = 5.6  # inches of a plot, small enough that its text can be read on a phone
_STYLE = """
:root { color-scheme: light; --ink: #1c2126; --soft: #5b6670; --line: #dfe3e6; --wash: #f6f7f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem clamp(0.9rem, 3vw, 2.5rem) 4rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 0.25rem; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 0; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.5rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
a { color: #00557f; }
.soft, figcaption, footer { color: var(--soft); font-size: 0.9rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
header.case { display: flex; flex-wrap: wrap; gap: 0.4rem 0.9rem; align-items: center; margin-bottom: 0.6rem; }
.verdict { display: inline-block; white-space: nowrap; border-radius: 1rem; padding: 0.08rem 0.7rem; font-size: 0.85rem;
  font-weight: 600; background: #eceff1; color: #3f4a52; }
.verdict.helped { background: #dff2e8; color: #0b5c3b; }
.verdict.trade-off { background: #fdf0cf; color: #6d4a00; }
.verdict.hurt { background: #fbe5dc; color: #8f2f06; }
.lead { font-size: 1.06rem; }
.wide { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 0.4rem 0.8rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; min-width: 5.5rem; }
th:first-child, td:first-child, .all th, .all td { text-align: left; }
th:first-child, td:first-child { padding-left: 0.4rem; }
td { white-space: nowrap; }
.all td { white-space: normal; }
td small { color: var(--soft); }
tr.chosen td { background: var(--wash); font-weight: 600; }
tr.chosen td small { font-weight: 400; }
.plots { columns: 26rem 2; column-gap: 2rem; margin-top: 1.5rem; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figcaption { font-weight: 600; color: var(--ink); }
img { display: block; width: 100%; max-width: 36rem; height: auto; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--soft); }
@media (max-width: 44rem) {
  .all thead { display: none; }
  .all table, .all tbody, .all tr, .all td { display: block; }
  .all td { border: 0; padding: 0.1rem 0; }
  .all td:nth-child(n+3)::before { content: attr(data-head) ": "; color: var(--soft); }
  .all tr { border-bottom: 1px solid var(--line); padding: 0.6rem 0; }
}
footer { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1rem; }
"""


def write_html(
    results: Sequence[Scenario], path: str | Path, *, title: str = "Does transfer help here?", about: str = ""
) -> None:
    """Writes one page with the verdicts, tables and plots of several scenarios. It opens offline: nothing is loaded.

    The file is written under a temporary name and then renamed, so that an interrupted call leaves an older page as it
    was. Plots need the extra ``plot``.

    Args:
      results: what the scenarios returned, in the order of the page.
      path: of the file; a folder that does not exist is made.
      title: of the page.
      about: a sentence about the run and its data, for the page's foot.

    Raises:
      ValueError: there is no result.
      TypeError: one is not a ``Scenario``.
      ModuleNotFoundError: Matplotlib is not installed.
    """
    results = list(results)
    if not results:
        raise ValueError("Expected at least one result of a scenario, got none.")
    for number, result in enumerate(results):
        expect(result, Scenario, f"results[{number}]")
    sections = "\n".join(_section(result, number) for number, result in enumerate(results))
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="soft">Each verdict compares the strategy that was best on validation data with the best baseline, on test data
read once, user by user, the full catalogue being ranked. Validation weighs those whom a scenario is about and the
others half and half; where it sees no strategy ahead, the baseline is kept. A trade-off helps the first at the others'
cost. Figures of the two cannot be compared with one another: of a newcomer more interactions are held out.</p>
{_summary(results)}
{sections}
{_foot(results, about)}
</body>
</html>
"""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _summary(results: list[Scenario]) -> str:
    lines = [["Scenario", "Verdict", "Chosen", "Best baseline → best strategy", "Difference", "Elsewhere"]]
    for number, result in enumerate(results):
        first, last = result.differences.iloc[0], result.price
        lines.append(
            [
                f'<a href="#case-{number}">{escape(result.title)}</a>',
                _verdict(result),
                escape(result.chosen),
                f"{escape(result.metric)} {result.mean(result.baseline):.4f} → {result.mean(result.strategy):.4f} "
                f"<small>{escape(result.baseline)} → {escape(result.strategy)}</small>",
                _difference(first),
                f"{_difference(last)} <small>on {escape(last['slice'])}, against {escape(last.against)}</small>",
            ]
        )
    return _table(lines, kind="wide all")


def _section(result: Scenario, number: int) -> str:
    lines = [[escape(cell).replace(" ±", " <small>±") + ("</small>" if " ±" in cell else "") for cell in line]
             for line in result.cells()]  # fmt: skip
    names = [line[0] for line in result.cells()]
    marks = ["chosen" if name == result.chosen else "" for name in names]
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in result.notes)
    paired = [["against", "test rows", "difference", "p", "users"]] + [
        [escape(row.against), escape(row.slice), _difference(row), f"{row.p_value:.4f}", f"{row.users:,}"]
        for row in _rows(result.differences)
    ]
    parts = [escape(result.who), escape(result.price["slice"])]
    parts = [escape(result.who), escape(result.price["slice"])]
    trials = [["method", "role", "setting", f"{result.metric}, mean", *parts, "seconds"]]
    for row in _rows(result.trials):
        values = (f"{value:.4f}" for value in (row.value, row.first, row.rest))
        trials.append([escape(row.method), row.role, escape(row.setting), *values, f"{row.seconds:.1f}"])
    rows = [["part", "interactions", "users", "items"]]
    columns = result.schema.user, result.schema.item
    for name, part in result.splits._asdict().items():
        rows.append([name.replace("_", " "), f"{len(part):,}", *(f"{part[column].nunique():,}" for column in columns)])
    plots = "".join(_plot(caption, figure, result) for caption, figure in result.figures().items())
    return f"""<section id="case-{number}">
<header class="case"><h2>{escape(result.title)}</h2>{_verdict(result)}</header>
<p class="lead">{_sentence(result.summary)}</p>
<p>{_sentence(result.elsewhere)}</p>
<p>{escape(result.why)}</p>
{notes}<p class="soft">Data: {escape(result.data)}.</p>
<h3>Test figures: {escape(result.who)}, unless said otherwise</h3>
{_table(lines, marks)}
<p class="soft">± is half of the {result.level:.0%} interval, by resampling test users. The shaded row is the method
chosen.</p>
<div class="plots">{plots}</div>
<details><summary>Paired differences of {escape(result.strategy)}</summary>{_table(paired)}</details>
<details><summary>Everything that was tried on validation</summary>{_table(trials)}</details>
<details><summary>Splits</summary>{_table(rows)}</details>
</section>"""


def _foot(results: list[Scenario], about: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy", "pandas"))
    seeds = ", ".join(sorted({str(result.seed) for result in results}))
    spent = sum(result.seconds for result in results)
    now = datetime.datetime.now().astimezone()
    return (
        f"<footer>{f'<p>{escape(about)}</p>' if about else ''}"
        f"<p>jaxrec {escape(jaxrec.__version__)}; {escape(versions)}; "
        f"Python {escape(platform.python_version())}. Seed {escape(seeds)}. {spent:.0f} seconds. "
        f"Run on {now:%Y-%m-%d, %H:%M} (UTC{now:%z}).</p></footer>"
    )


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    yield from table.itertuples()


def _verdict(result: Scenario) -> str:
    return f'<span class="verdict {result.verdict.partition(" ")[0]}">{_SIGNS[result.verdict]} {result.verdict}</span>'


def _sentence(text: str) -> str:
    return escape(text.replace("->", "→").replace(" -", " −").replace("(-", "(−").replace("[-", "[−"))


def _difference(row: Any) -> str:
    found = [getattr(row, name) for name in ("difference", "low", "high")]
    text = "{:+.4f} <small>[{:+.4f}, {:+.4f}]</small>".format(*found)
    return text.replace("-", "−")


def _table(lines: list[list[str]], marks: Sequence[str] = (), kind: str = "wide") -> str:
    """The first line is the head; cells are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in lines[0])
    rows = []
    for number, line in enumerate(lines[1:], 1):
        mark = f' class="{marks[number]}"' if marks and marks[number] else ""
        cells = (f'<td data-head="{name}">{cell}</td>' for name, cell in zip(lines[0], line, strict=True))
        rows.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _plot(caption: str, figure: "Figure", result: Scenario) -> str:
    import matplotlib

    figure.set_figwidth(_WIDTH)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    code = base64.b64encode(file.getvalue()).decode()
    alt, source = escape(f"{result.title}. {caption}."), f"data:image/svg+xml;base64,{code}"
    return f'<figure><figcaption>{escape(caption)}</figcaption><img alt="{alt}" src="{source}"></figure>'
