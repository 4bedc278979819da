"""Cold start on real data: methods for new items and new users by fixed protocols, one evaluator for all.

python benchmarks/cold.py                          # what is not measured yet; several hours on two cores
python benchmarks/cold.py --data ml-1m --again     # one protocol anew
python benchmarks/cold.py --methods ColdStart      # one method
python benchmarks/cold.py --settings 2             # a short search: the first two settings of each method
python benchmarks/cold.py --seeds 0 1 2 --methods "iALS with content" "iALS with features" ColdStart
python benchmarks/cold.py --slices answerable      # one question alone, of what has no row of it, with settings found
python benchmarks/cold.py --table                  # the tables of README.md, from the JSON

``JAXREC_DATA`` names the folder of data; what each protocol asks stands in ``protocols.py``. A tuned method tries its
settings on the validation parts, those of the same kind as the test parts, and is trained once per seed with the best;
test is read once. ``ColdStart`` sees the training part alone and tries what it likes there. Differences per user are to
the protocol's bar: content k-NN for items, EASE with demographic popularity for users. Rivals are measured where their
library is installed. Rows go to ``results/cold.json`` as they are measured, so that a run can be stopped and gone on
with.
"""

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import rivals
from protocols import PROTOCOLS, Protocol, Slice

import jaxrec
from jaxrec import coldstart, models, train

_RESULTS = Path(__file__).parent / "results" / "cold.json"
_KS = (20, 100)
Setting = dict[str, Any]


class Method(NamedTuple):
    # (protocol, seed, **setting): a recommender, or a function of slices that gives one or scores
    fit: Callable[..., Any]
    settings: list[Setting]
    system: str = "jaxrec"


def _popularity(protocol: Protocol, seed: int) -> Any:
    return coldstart.popularity(protocol.encoded())


def _content_knn(protocol: Protocol, seed: int, **setting: Any) -> Any:
    return train.fit_content_knn(protocol.encoded(), features=protocol.neighbours or None, **setting)


def _als(protocol: Protocol, seed: int, fold: tuple[float, ...] | None = None, **setting: Any) -> Any:
    if fold is not None:
        setting["fold_user"] = coldstart.ImplicitSquares(*fold)
    return train.fit_als(protocol.encoded(protocol.neighbours), content=True, epochs=10, seed=seed, **setting)


def _mapped(protocol: Protocol, seed: int, kind: str = "ridge", own: Setting | None = None, **setting: Any) -> Any:
    dataset = protocol.encoded(protocol.neural)
    side = "item" if protocol.schema.item_features else "user"
    backbone = train.fit_als(dataset, epochs=10, seed=seed, **setting)
    own = dict(own or {})
    options = {"kind": "mlp", "seed": seed, "hidden": (own.pop("width", 256),)} if kind == "mlp" else {}
    return coldstart.map_content(backbone, dataset, side=side, **options, **own)


def _over_backbone(
    method: Callable[..., Any], protocol: Protocol, seed: int, own: Setting | None = None, **setting: Any
) -> Any:
    """DropoutNet, Heater, CLCRec, ALDI and GAR with options of their own; the rest of the setting is the backbone's."""
    dataset = protocol.encoded(protocol.neural)
    backbone = train.fit_als(dataset, epochs=10, seed=seed, **setting)
    if method is coldstart.clcrec:
        return method(dataset, backbone=backbone, seed=seed, **(own or {}))
    return method(backbone, dataset, seed=seed, **(own or {}))


def _autoencoder(protocol: Protocol, seed: int, *, epochs: int, **setting: Any) -> Any:
    dataset = protocol.encoded()
    model = models.VariationalAutoencoder.for_data(dataset, history=500, **setting)
    return train.fit(model, dataset, epochs=epochs, batch_size=8192, seed=seed)


def _cfgan(protocol: Protocol, seed: int, **setting: Any) -> Any:
    return coldstart.cfgan(protocol.encoded(), seed=seed, **setting)


def _melu(protocol: Protocol, seed: int, *, epochs: int, **setting: Any) -> Any:
    """New users take their inner steps when they come; a user without interactions has the initialisation."""
    dataset = protocol.encoded()
    inner = coldstart.InnerLoop(personal=("user/bias", "user/mlp/*"), **setting)
    model = models.TwoTower.for_data(dataset, dim=64, hidden=(64,))
    learned = coldstart.meta_learn(model, dataset, inner, epochs=epochs, seed=seed)

    def told(slice: Slice) -> Any:
        if slice.users is None:
            return coldstart.personalise(learned, inner)
        known = coldstart.add(learned, users=slice.users)
        return known if slice.revealed is None else coldstart.personalise(known, inner, slice.revealed)

    return told


def _ease(protocol: Protocol, seed: int, **setting: Any) -> Any:
    return train.fit_ease(protocol.encoded(), **setting)


def _default(protocol: Protocol, seed: int) -> Any:
    chosen = jaxrec.ColdStart(protocol.schema, seed=seed).fit(**protocol.frames)
    print(chosen.explanation, flush=True)
    return chosen.recommender


_SMALL = [
    {"dim": 64, "unobserved": one, "l2": l2} for one, l2 in ((1.0, 0.01), (0.3, 0.01), (0.1, 0.01), (0.03, 0.003))
]
_ALS = [*_SMALL, *({**_SMALL[2], "dim": 256}, {**_SMALL[3], "dim": 256}, {**_SMALL[3], "dim": 512})]
_BACKBONES = [_SMALL[2], {**_SMALL[3], "dim": 128}]


def _trained(**options: tuple[Any, Any]) -> list[Setting]:
    """Two backbones and two values of each of two options, the method's defaults with either backbone first."""
    return [each | ({"own": own} if own else {}) for own in [{}, *_others(options)] for each in _BACKBONES]


def _others(options: dict[str, tuple[Any, Any]]) -> list[Setting]:
    """What differs from the first values, which are the defaults."""
    full = harness.grid(**options)
    return [{name: value for name, value in each.items() if value != options[name][0]} for each in full][1:]


_IMPLICIT = harness.grid(factors=(200, 512), alpha=(1.0, 3.0, 10.0, 30.0), regularization=(1.0, 10.0, 30.0))
_IMPLICIT_USERS = harness.grid(factors=(64,), alpha=(1.0, 3.0, 10.0, 30.0), regularization=(10.0, 30.0, 100.0))
_BAR = harness.grid(l2=(1000.0, 3000.0, 10000.0, 30000.0), weight=(0.01, 0.03, 0.1))
_FOLDED = [
    {**setting, "fold": (by * setting["unobserved"], by_l2 * setting["l2"])}
    for setting in _SMALL
    for by, by_l2 in ((1.0, 1.0), (0.1, 4.0), (0.03, 8.0))
]

ITEMS = {
    "content k-NN": Method(_content_knn, harness.grid(normalise=(0.0, 0.5, 1.0))),
    "popularity": Method(_popularity, [{}]),
    "ALS, then ridge": Method(rivals.implicit_als_then_ridge, _IMPLICIT, "implicit"),
    "iALS, then ridge": Method(_mapped, _ALS),
    "iALS, then perceptron": Method(
        functools.partial(_mapped, kind="mlp"), _trained(epochs=(20, 60), width=(256, 512))
    ),
    "DropoutNet": Method(
        functools.partial(_over_backbone, coldstart.dropoutnet), _trained(epochs=(20, 60), dropout=(0.5, 0.2))
    ),
    "Heater": Method(functools.partial(_over_backbone, coldstart.heater), _trained(epochs=(20, 60), alpha=(1.0, 0.3))),
    "CLCRec": Method(
        functools.partial(_over_backbone, coldstart.clcrec), _trained(epochs=(20, 60), temperature=(0.2, 0.1))
    ),
    "ALDI": Method(
        functools.partial(_over_backbone, coldstart.aldi), _trained(epochs=(20, 60), identification=(1.0, 0.1))
    ),
    "GAR": Method(functools.partial(_over_backbone, coldstart.gar), _trained(epochs=(20, 60), similarity=(0.5, 0.05))),
    "iALS with content": Method(_als, _ALS),
    "ColdStart": Method(_default, [{}]),
}
USERS = {
    "EASE + demographic popularity": Method(rivals.ease_and_popularity, _BAR, "NumPy"),
    "popularity": Method(_popularity, [{}]),
    "EASE fold-in": Method(_ease, harness.grid(l2=(100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0))),
    "ALS fold-in": Method(rivals.implicit_als_fold_in, _IMPLICIT_USERS, "implicit"),
    "iALS, then ridge": Method(_mapped, _ALS),
    "Mult-VAE": Method(_autoencoder, harness.grid(epochs=(30, 100), beta=(0.2, 1.0))),
    "MeLU": Method(_melu, harness.grid(epochs=(20, 40), rate=(0.1, 0.3), steps=(1, 5))),
    "CFGAN": Method(_cfgan, harness.grid(epochs=(50, 150), zero_weight=(0.5,))),
    "iALS with features": Method(_als, _FOLDED),
    "ColdStart": Method(_default, [{}]),
}
METHODS = {"cold items": ITEMS, "cold users": USERS}


def measured(protocol: Protocol, fitted: Any, slices: list[Slice]) -> dict[str, Any]:
    """A report by slice; slices that a rival has no answer to are missing."""
    reports = {}
    for each in slices:
        options: dict[str, Any] = {"ks": _KS, "candidates": each.candidates, "exclude": each.exclude}
        scores = each.ready(fitted) if isinstance(fitted, jaxrec.train.Recommender) else fitted(each)
        if scores is None:
            continue
        if isinstance(scores, jaxrec.train.Recommender):
            reports[each.name] = jaxrec.evaluate(scores, each.relevant, **options)
            continue
        encoder = protocol.encoded().encoder.extend(users=each.users)
        seen = encoder.encode(protocol.frames["interactions"])
        reports[each.name] = jaxrec.evaluate(scores, encoder.encode(each.relevant), seen=seen, **options)
    return reports


def chosen_setting(protocol: Protocol, method: Method, most: int | None = None) -> Setting:
    """The best on validation by the mean over slices, each measured by its best setting, of the first ``most``."""
    settings = method.settings[:most]
    if len(settings) == 1:
        return settings[0]
    values = []
    for setting in settings:
        reports = measured(protocol, method.fit(protocol, 0, **setting), protocol.validation)
        values.append([float(reports[name]["ndcg@20"]) if name in reports else np.nan for name in protocol.main])
        print("  validation", setting, np.round(values[-1], 4), flush=True)
    table = np.array(values)
    return settings[int(np.argmax(np.nanmean(table / table.max(axis=0), axis=1)))]


def rows_of(reports: dict[str, Any], bar: dict[str, Any] | None) -> list[dict[str, Any]]:
    found = []
    for name, report in reports.items():
        for metric in ("recall@20", "ndcg@20", "recall@100"):
            low, high = report.interval(metric)
            row: dict[str, Any] = {"slice": name, "metric": metric, "value": float(report[metric])}
            row |= {"low": low, "high": high}
            if bar is not None and metric != "recall@100":
                paired = report.versus(bar[name], metric)
                row |= {"difference": paired.difference, "difference_low": paired.low, "difference_high": paired.high}
            found.append(row)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", nargs="*", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    arguments.add_argument("--methods", nargs="*", help="by default all")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments.add_argument("--slices", nargs="*", help="by default all that the protocol asks")
    arguments.add_argument("--settings", type=int, help="of each method but the bar the first so many; by default all")
    arguments.add_argument("--again", action="store_true", help="measure what has been measured already")
    arguments.add_argument("--table", action="store_true", help="print the tables and stop")
    options = arguments.parse_args()
    if options.settings is not None and options.settings < 1:
        arguments.error(f"Expected --settings of at least 1, got {options.settings}.")
    if options.table:
        print(tables(harness.saved(_RESULTS)))
        return
    folder, commit = harness.data_folder(), harness.commit()
    for name in options.data:
        protocol = PROTOCOLS[name](folder)
        asked = [part for part in protocol.test if not options.slices or part.name in options.slices]
        if not asked:
            continue
        methods = METHODS[protocol.title]
        bar, bar_name = None, next(iter(methods))
        for what, method in methods.items():
            if options.methods and what not in options.methods:
                continue
            rows = harness.saved(_RESULTS)
            key = {"dataset": name, "protocol": protocol.title, "system": method.system, "method": what}
            own = [row for row in rows if all(row[field] == value for field, value in key.items())]
            done = {row["seed"] for row in own if not options.slices or row["slice"] in options.slices}
            seeds = [seed for seed in options.seeds if options.again or seed not in done]
            if not seeds or (options.slices and not own):  # a row of one slice would pass for the whole
                continue
            if bar is None and what != bar_name:
                chosen = _setting_of(rows, name, bar_name) or chosen_setting(protocol, methods[bar_name])
                bar = measured(protocol, methods[bar_name].fit(protocol, 0, **chosen), asked)
            if method.system not in ("jaxrec", "NumPy") and importlib.util.find_spec(method.system) is None:
                print(f"{what} is left out: {method.system} is not installed")
                continue
            start = time.perf_counter()
            setting = _setting_of(rows, name, what) if 0 not in seeds or options.slices else None
            setting = chosen_setting(protocol, method, options.settings) if setting is None else setting
            searched = time.perf_counter() - start
            for seed in seeds:
                start = time.perf_counter()
                fitted = method.fit(protocol, seed, **setting)
                seconds = time.perf_counter() - start
                reports = measured(protocol, fitted, asked)
                common = {"seconds": seconds, "searched": searched, "setting": setting, "commit": commit}
                common["tried"] = len(method.settings[: options.settings])
                same = key | {"seed": seed}
                new = [same | row | common for row in rows_of(reports, bar)]
                figures = ", ".join(f"{part} {report['ndcg@20']:.4f}" for part, report in reports.items())
                print(name, what, seed, figures, f"{seconds:.0f} s", flush=True)
                old = [row for row in own if row["seed"] == seed and row["slice"] in reports]
                rows = [*(row for row in rows if row not in old), *new]
                harness.save(_RESULTS, rows)


def _setting_of(rows: list[dict[str, Any]], dataset: str, method: str) -> Setting | None:
    """The one chosen when the first seed was measured."""
    found = [row for row in rows if row["dataset"] == dataset and row["method"] == method and row["seed"] == 0]
    return found[0]["setting"] if found else None


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown, a table for each data set: means over seeds, with the largest deviation; the difference to the bar is
    that of seed 0."""
    lines = []
    for name in PROTOCOLS:
        here = [row for row in rows if row["dataset"] == name]
        if not here:
            continue
        slices = list(dict.fromkeys(row["slice"] for row in here))
        heads = [f"{part} {metric}" for part in slices for metric in ("R@20", "N@20")]
        lines += [f"**{name}**, {here[0]['protocol']}", "", "| method | " + " | ".join(heads) + " | seeds | s |"]
        lines.append("|---|" + "---:|" * (len(heads) + 2))
        order = list(METHODS[here[0]["protocol"]])
        for system, method in sorted(
            {(row["system"], row["method"]) for row in here}, key=lambda pair: order.index(pair[1])
        ):
            own = [row for row in here if (row["system"], row["method"]) == (system, method)]
            cells, spread = [], 0.0
            for part in slices:
                for metric in ("recall@20", "ndcg@20"):
                    found = [row for row in own if (row["slice"], row["metric"]) == (part, metric)]
                    text = f"{np.mean([row['value'] for row in found]):.4f}" if found else ""
                    first = next((row for row in found if row["seed"] == 0 and "difference" in row), None)
                    if len(found) > 1:
                        spread = max(spread, float(np.std([row["value"] for row in found], ddof=1)))
                    if first is not None:
                        half = (first["difference_high"] - first["difference_low"]) / 2
                        text += f" ({first['difference']:+.3f} ± {half:.3f})"
                    cells.append(text)
            count = len({row["seed"] for row in own})
            seeds = f"{count}, sd <= {spread:.4f}" if count > 1 else f"{count}"
            seconds = np.median([row["seconds"] for row in own])
            title = method if system == "jaxrec" else f"{system}: {method}"
            lines.append(f"| {title} | " + " | ".join(cells) + f" | {seeds} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
