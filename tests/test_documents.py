"""The Python blocks of README and docs run as they stand, from top to bottom."""

import re
from pathlib import Path

import jax
import pytest

from jaxrec import data

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


def blocks(page: Path) -> str:
    """All Python blocks, at the lines where they stand, so that a traceback points to the page."""
    lines, inside, kept = (ROOT / page).read_text().splitlines(), False, []
    for line in lines:
        fence = line.startswith("```")
        kept.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(kept)


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """What the reader of README has: CSV files of a rich and a poor domain, and of their items."""
    monkeypatch.chdir(tmp_path)
    world = data.generate(seed=0, source_users=300, target_users=250, source_items=100, target_items=80)
    for name, frames in (("books", world.source), ("films", world.target)):
        rows = frames.interactions.rename(columns={"user": "user_id", "item": "item_id"})
        rows.assign(user_id="u" + rows["user_id"].astype(str)).to_csv(f"{name}.csv", index=False)
        items = frames.items.rename(columns={"item": "item_id"})[["item_id", "genres"]]
        items.to_csv(f"{name}_items.csv", index=False)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page).strip()], ids=str)
def test_code_of_pages_runs(page, own_files, capsys):
    code = compile(blocks(page), str(ROOT / page), "exec")
    with jax.numpy_dtype_promotion("standard"):  # a reader's settings
        exec(code, {"__name__": "page"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", [*PAGES, Path("CONTRIBUTING.md"), Path("benchmarks/README.md")], ids=str)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", (ROOT / page).read_text()):
        if "://" not in target:
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
