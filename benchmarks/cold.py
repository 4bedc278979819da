"""Cold start on real data: methods for new items and new users by fixed protocols, one evaluator for all.

python benchmarks/cold.py                          # what is not measured yet; about 20 minutes on two cores
python benchmarks/cold.py --data ml-1m --again     # one protocol anew
python benchmarks/cold.py --methods ColdStart      # one method

``JAXREC_DATA`` names the folder of data. A tuned method tries its settings on the validation parts, those of the same
kind as the test parts, and is trained once per seed with the best; test is read once. ``ColdStart`` sees the training
part alone and tries what it likes there. Rows go to ``results/cold.json`` as they are measured, so that a run can be
stopped and gone on with.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import jaxrec
from jaxrec import coldstart, data, train

_RESULTS = Path(__file__).parent / "results" / "cold.json"
_KS = (20, 100)
_REVEALED = (0, 1, 5, 10)


class Slice(NamedTuple):
    """A question put to a recommender; ``change`` gives it what it may know first."""

    name: str
    relevant: pd.DataFrame
    candidates: np.ndarray
    change: Callable[[jaxrec.train.Recommender], jaxrec.train.Recommender] = lambda recommender: recommender
    exclude: pd.DataFrame | None = None


class Protocol(NamedTuple):
    frames: dict[str, Any]  # interactions, users and items to train on
    schema: data.Schema
    validation: list[Slice]
    test: list[Slice]
    main: tuple[str, ...]  # slices whose NDCG@20 chooses settings, by their mean


def citeulike(folder: Path) -> Protocol:
    """Cold items among themselves, warm items, and all items (for users who have both); tags as content.

    Both forms of the content are given, the dense and the sparse one; nearest neighbours read the sparse one alone.
    """
    rows = pd.read_parquet(folder / "citeulike-a" / "cold_item_protocol.parquet")
    part = {number: rows[rows.part == number][["user", "item"]] for number in range(5)}
    dense = np.load(folder / "citeulike-a" / "content_300.npz")
    tags = pd.read_parquet(folder / "citeulike-a" / "item_tags.parquet").groupby("item").tag.agg(list)
    count = len(dense["has_content"])
    items = pd.DataFrame({"item": np.arange(count)})
    vectors = dense["content"].astype(np.float32)
    items["content"] = [vector if known else None for vector, known in zip(vectors, dense["has_content"], strict=True)]
    items["tags"] = [tags.get(item, []) for item in range(count)]
    warm = part[0].item.unique()

    def slices(of_warm: pd.DataFrame, of_cold: pd.DataFrame) -> list[Slice]:
        both = np.intersect1d(of_warm.user.unique(), of_cold.user.unique())
        joined = pd.concat([of_warm, of_cold])
        return [
            Slice("cold", of_cold, of_cold.item.unique()),
            Slice("warm", of_warm, warm),
            Slice("overall", joined[joined.user.isin(both)], np.arange(count)),
        ]

    schema = data.Schema(item_features=(data.Vector("content"), data.Labels("tags")))
    frames = {"interactions": part[0], "users": None, "items": items}
    return Protocol(frames, schema, slices(part[1], part[3]), slices(part[2], part[4]), ("cold", "warm", "overall"))


def movielens(folder: Path) -> Protocol:
    """Cold users from gender, age and occupation and 0, 1, 5 or 10 revealed interactions, without training on them."""
    rows = pd.read_parquet(folder / "ml-1m" / "cold_user_protocol.parquet")
    users = pd.read_parquet(folder / "ml-1m" / "users.parquet")[["user_id", "gender", "age", "occupation"]]
    keys = ["user_id", "movie_id"]
    known = rows[rows.part == 0]
    candidates = known.movie_id.unique()
    rows = rows[rows.movie_id.isin(candidates)]

    def slices(warm_part: int, cold_part: int) -> list[Slice]:
        cold = rows[rows.part == cold_part]
        their = users[users.user_id.isin(cold.user_id)]

        def given(count: int) -> Callable[[jaxrec.train.Recommender], jaxrec.train.Recommender]:
            revealed = cold[cold.order < count][keys]
            return lambda recommender: coldstart.add(recommender, users=their, interactions=revealed if count else None)

        relevant, hidden = cold[cold.order >= 10][keys], cold[cold.order < 10][keys]
        return [
            *(Slice(f"r={count}", relevant, candidates, given(count), hidden) for count in _REVEALED),
            Slice("warm", rows[rows.part == warm_part][keys], candidates),
        ]

    features = tuple(data.Categorical(name) for name in ("gender", "age", "occupation"))
    schema = data.Schema(user="user_id", item="movie_id", user_features=features)
    frames = {"interactions": known[keys], "users": users[users.user_id.isin(known.user_id)], "items": None}
    return Protocol(frames, schema, slices(1, 3), slices(2, 4), tuple(f"r={count}" for count in _REVEALED))


PROTOCOLS: dict[str, tuple[str, Callable[[Path], Protocol]]] = {
    "citeulike-a": ("cold items", citeulike),
    "ml-1m": ("cold users", movielens),
}


def encoded(protocol: Protocol) -> data.Dataset:
    frames = protocol.frames
    parts = data.Parts(frames["interactions"], None, None)
    return data.encode(parts, protocol.schema, users=frames["users"], items=frames["items"]).train


def _content_knn(protocol: Protocol, seed: int, **setting: Any) -> Any:
    return train.fit_content_knn(encoded(protocol), features=["tags"], **setting)


def _als(protocol: Protocol, seed: int, **setting: Any) -> Any:
    return train.fit_als(encoded(protocol), content=True, epochs=10, seed=seed, **setting)


def _als_then_ridge(protocol: Protocol, seed: int, **setting: Any) -> Any:
    dataset = encoded(protocol)
    side = "item" if protocol.schema.item_features else "user"
    return coldstart.map_content(train.fit_als(dataset, epochs=10, seed=seed, **setting), dataset, side=side)


def _default(protocol: Protocol, seed: int) -> Any:
    chosen = jaxrec.ColdStart(protocol.schema, seconds=240, seed=seed).fit(**protocol.frames)
    print(chosen.explanation)
    return chosen.recommender


_ALS = [{"dim": 64, "unobserved": each[0], "l2": each[1]} for each in ((0.3, 0.01), (0.1, 0.01), (0.03, 0.003))]
_WIDE = [{"dim": dim, "unobserved": 0.03, "l2": l2} for dim in (128, 256) for l2 in (0.003, 0.005)]

METHODS: dict[str, dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]]] = {
    "citeulike-a": {
        "popularity": (lambda protocol, seed: coldstart.popularity(encoded(protocol)), [{}]),
        "content k-NN": (_content_knn, [{"normalise": each} for each in (0.0, 0.5, 1.0)]),
        "iALS, then ridge": (_als_then_ridge, [*_ALS, *_WIDE]),
        "iALS with content": (_als, [*_ALS, *_WIDE]),
        "ColdStart": (_default, [{}]),
    },
    "ml-1m": {
        "popularity": (lambda protocol, seed: coldstart.popularity(encoded(protocol)), [{}]),
        "EASE fold-in": (
            lambda protocol, seed, **setting: train.fit_ease(encoded(protocol), **setting),
            [{"l2": each} for each in (300.0, 1000.0, 3000.0)],
        ),
        "iALS, then ridge": (_als_then_ridge, _ALS),
        "iALS with features": (_als, _ALS),
        "ColdStart": (_default, [{}]),
    },
}


def measured(recommender: Any, slices: Iterable[Slice]) -> dict[str, Any]:
    reports = {}
    for each in slices:
        ready = each.change(recommender)
        options = {"ks": _KS, "candidates": each.candidates, "exclude": each.exclude}
        reports[each.name] = jaxrec.evaluate(ready, each.relevant, **options)
    return reports


def chosen_setting(protocol: Protocol, method: Callable[..., Any], settings: list[dict[str, Any]]) -> dict[str, Any]:
    if len(settings) == 1:
        return settings[0]
    values = []
    for setting in settings:
        reports = measured(method(protocol, 0, **setting), protocol.validation)
        values.append(np.array([float(reports[name]["ndcg@20"]) for name in protocol.main]))
        print("  validation", setting, values[-1].round(4), flush=True)
    table = np.array(values)
    return settings[int(np.argmax((table / table.max(axis=0)).mean(axis=1)))]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", nargs="*", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    arguments.add_argument("--methods", nargs="*", help="by default all")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments.add_argument("--again", action="store_true", help="measure what has been measured already")
    options = arguments.parse_args()
    folder = os.environ.get("JAXREC_DATA")
    if not folder:
        raise SystemExit("JAXREC_DATA names no folder of data.")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    for name in options.data:
        title, load = PROTOCOLS[name]
        protocol = load(Path(folder))
        for method, (fit, settings) in METHODS[name].items():
            if options.methods and method not in options.methods:
                continue
            rows = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else []
            key = {"dataset": name, "protocol": title, "system": "jaxrec", "method": method}
            done = {row["seed"] for row in rows if all(row[field] == value for field, value in key.items())}
            seeds = [seed for seed in options.seeds if options.again or seed not in done]
            if not seeds:
                continue
            setting = chosen_setting(protocol, fit, settings)
            for seed in seeds:
                start = time.perf_counter()
                recommender = fit(protocol, seed, **setting)
                seconds = time.perf_counter() - start
                new = []
                for slice_name, report in measured(recommender, protocol.test).items():
                    for metric in ("recall@20", "ndcg@20", "recall@100"):
                        low, high = report.interval(metric)
                        new.append(
                            key
                            | {"seed": seed, "slice": slice_name, "metric": metric, "value": float(report[metric])}
                            | {"low": low, "high": high, "seconds": seconds}
                            | {"setting": setting, "commit": commit.stdout.strip()}
                        )
                    print(name, method, seed, slice_name, f"{report['ndcg@20']:.4f}, {seconds:.0f} s", flush=True)
                same = key | {"seed": seed}
                kept = [row for row in rows if any(row[field] != value for field, value in same.items())]
                rows = [*kept, *new]
                temporary = _RESULTS.with_suffix(".tmp")
                temporary.write_text(json.dumps(rows, indent=1) + "\n")
                temporary.rename(_RESULTS)


if __name__ == "__main__":
    main()
