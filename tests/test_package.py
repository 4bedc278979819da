"""The public surface: what ``import jaxrec`` loads, what modules export, and that every name is explained."""

import importlib
import inspect
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import jaxrec
from jaxrec import plot
from jaxrec.transfer import CopyReport
from jaxrec.transfer._copy import Entry

ROOT = Path(__file__).parents[1]
ROOMS = [
    "coldstart", "data", "evaluation", "export", "losses", "models", "optim", "plot", "ranking", "scenarios",
    "sharding", "sources", "train", "transfer",
]  # fmt: skip
# Explained once, at models.Model.
PROTOCOL = {"apply", "init", "item_vectors", "lookups", "score", "user_vectors"}


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("jaxrec", ("jax", "pandas", "orbax", "matplotlib", "flax")),
        ("jaxrec.fit, jaxrec.evaluate, jaxrec.save, jaxrec.transfer", ("orbax", "matplotlib")),
        ("jaxrec.scenarios", ("orbax", "matplotlib")),
    ],
)
def test_importing_loads_nothing_that_is_not_needed(code, heavy):
    script = f"import sys, jaxrec; {code}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_rooms_and_verbs_are_reached_by_name():
    assert set(ROOMS) | {"ColdStart", "evaluate", "fit", "load", "predict", "recommend", "save"} == set(jaxrec.__all__)
    assert all(hasattr(jaxrec, name) for name in jaxrec.__all__) and set(jaxrec.__all__) <= set(dir(jaxrec))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxrec.nothing  # noqa: B018


@pytest.mark.parametrize("room", ROOMS)
def test_all_is_the_whole_public_surface_and_every_name_is_explained(room):
    module = importlib.import_module(f"jaxrec.{room}")
    assert module.__doc__ and module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        assert inspect.getdoc(value) and inspect.getdoc(value) != inspect.getdoc(tuple), f"{room}.{name}"
        if inspect.isclass(value) and value.__module__.startswith("jaxrec"):
            for member, function in vars(value).items():
                if inspect.isfunction(function) and not member.startswith("_") and member not in PROTOCOL:
                    assert function.__doc__, f"{room}.{name}.{member}"
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(f"jaxrec.{room}")
    }
    assert public <= set(module.__all__), public - set(module.__all__)


def test_no_function_has_the_name_of_a_module():
    modules = {name.rsplit(".", 1)[-1] for _, name, _ in pkgutil.walk_packages(jaxrec.__path__, "jaxrec.")}
    for room in ROOMS:
        module = importlib.import_module(f"jaxrec.{room}")
        assert not [name for name in module.__all__ if inspect.isfunction(getattr(module, name)) and name in modules]


def test_private_names_are_not_used_by_users():
    private = re.compile(r"\bjaxrec(\.\w+)*\._\w|^\s*from jaxrec[\w.]* import .*\b_\w", re.MULTILINE)
    paths = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert paths and [str(path) for path in paths if private.search(path.read_text())] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_leaves_alone_what_the_environment_names():
    for target, named in (("clean", "rm -rf .venv demo-output"), ("demo", "--out demo-output")):
        said = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env={"PATH": os.environ["PATH"], "OUT": "precious"},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert named in said and "precious" not in said


# Plots


def test_plots_without_matplotlib_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jaxrec.plot")
    with pytest.raises(ModuleNotFoundError, match=r"needs matplotlib. Install the extra: pip install 'jaxrec\[plot\]'"):
        importlib.import_module("jaxrec.plot")


def history(*values):
    return pd.DataFrame({"epoch": range(1, len(values) + 1), "loss": np.linspace(2, 1, len(values)), "ndcg@10": values})


def test_learning_curves_mark_the_best_epoch():
    figure = plot.learning_curves({"scratch": history(0.1, 0.3, 0.2), "transfer": history(0.3, 0.4)}, metric="ndcg@10")
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    marks = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 1]
    assert marks == [[[2.0, 0.3]], [[2.0, 0.4]]] and axes.get_ylabel() == "ndcg@10"
    lowest = plot.learning_curves({"scratch": history(0.1, 0.3)}, metric="loss").axes[0]
    assert [line.get_xydata().tolist() for line in lowest.lines if len(line.get_xdata()) == 1] == [[[2.0, 1.0]]]
    with pytest.raises(ValueError, match="'scratch' has no 'rmse'. It has epoch, loss, ndcg@10"):
        plot.learning_curves({"scratch": history(0.1)}, metric="rmse")
    with pytest.raises(ValueError, match="at least one history"):
        plot.learning_curves({}, metric="loss")


def test_cold_start_curves_have_a_line_and_a_band_per_method(tmp_path):
    rows = [(method, shots, 0.1, 0.05, 0.15) for method in ("a", "b") for shots in (0, 1, 10)]
    table = pd.DataFrame(rows, columns=["method", "shots", "mean", "low", "high"])
    figure = plot.cold_start(table, metric="ndcg@10")
    axes = figure.axes[0]
    assert len(axes.lines) == 2 and len(axes.collections) == 2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "10"]
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="missing: \\['low'\\]"):
        plot.cold_start(table.drop(columns="low"), metric="ndcg@10")
    with pytest.raises(ValueError, match="missing: any row"):
        plot.cold_start(table.iloc[:0], metric="ndcg@10")


def test_labels_of_curves_are_the_callers():
    table = pd.DataFrame([("a", 0, 0.1, 0.05, 0.15)], columns=["method", "shots", "mean", "low", "high"])
    assert plot.cold_start(table, metric="hit@5").axes[0].get_xlabel() == "interactions known of a new user"
    assert plot.cold_start(table, metric="hit@5", known="rows of an item").axes[0].get_xlabel() == "rows of an item"


def test_names_are_drawn_as_they_are():
    """Between two '$' others would be read as a formula, and refused where they are none."""
    name = "$net_$"
    table = pd.DataFrame([(name, 0, 0.1, 0.05, 0.15)], columns=["method", "shots", "mean", "low", "high"])
    entry = Entry(f"item/features/{name}", "rows copied", 3, 4, "", sources=((name, 3),))
    for figure in (
        plot.learning_curves({name: history(0.1, 0.3)}, metric="loss"),
        plot.cold_start(table, metric="ndcg@10"),
        plot.copied(CopyReport((entry,))),
    ):
        figure.savefig(io.BytesIO())
        legend = (*figure.legends, figure.axes[0].get_legend())[0]
        assert name in legend.get_texts()[0].get_text()


def test_gains_have_a_bar_and_an_interval_per_segment():
    rows = [("few $x$", 12, 0.1, 0.05, 0.2), ("many", 3000, -0.05, -0.1, 0.02)]
    table = pd.DataFrame(rows, columns=["segment", "users", "gain", "low", "high"])
    axes = plot.gains(table, metric="ndcg@10").axes[0]
    assert [round(bar.get_width(), 3) for bar in axes.patches] == [0.1, -0.05]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    ends = axes.collections[0].get_segments()
    assert np.allclose([segment[:, 0] for segment in ends], [[0.05, 0.2], [-0.1, 0.02]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["few $x$  (n = 12)", "many  (n = 3,000)"]
    assert axes.yaxis_inverted() and axes.get_xlabel() == "gain in ndcg@10"
    plain = plot.gains(table.drop(columns="users"), metric="ndcg@10").axes[0]
    assert plain.get_yticklabels()[1].get_text() == "many"
    with pytest.raises(ValueError, match="segment, gain, low and high; missing: \\['gain'\\]"):
        plot.gains(table.drop(columns="gain"), metric="ndcg@10")
