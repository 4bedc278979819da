"""Transfer on real data: users who are new to one domain and known in another, one evaluator for all.

python benchmarks/transfer.py                        # what is not measured yet; about 30 minutes on two cores
python benchmarks/transfer.py --pairs video-game     # one direction (source-target)
python benchmarks/transfer.py --methods blend        # one method

``JAXREC_DATA`` names the folder of data. Every method tries its settings on the validation rows (HR@10 with 999
negatives), is trained once per seed with the best, and reads the test rows once. Rows go to ``results/transfer.json``
as they are measured, so that a run can be stopped and gone on with.

Two protocols over the items that the target's training part has: ``full`` ranks them all, means over users;
``999 negatives`` ranks each held-out row against 999 others drawn with replacement, means over rows. The latter is
computed as an expectation over the draws, not from one of them: of a row with a share p of the other items above it
(equal scores count half) the number of better negatives is binomial.
"""

import argparse
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import optax
import pandas as pd

import jaxrec
from jaxrec import coldstart, data, models, optim, train, transfer
from jaxrec.ranking._vectors import scorer
from jaxrec.train import Recommender

_RESULTS = Path(__file__).parent / "results" / "transfer.json"
_NEGATIVES, _DRAWS = 999, 1000
_SCHEMA = data.Schema()
_KEYS = ["user", "item"]


class Pair(NamedTuple):
    """A source, a target whose held-out users have no training row there, and what is shown of them first."""

    source: str
    target: str
    domains: dict[str, data.Frames]  # training parts
    validation: pd.DataFrame  # held-out rows of the target
    test: pd.DataFrame
    shots: int = 0  # interactions of each held-out user that are in the target's training part

    @property
    def candidates(self) -> np.ndarray:
        return self.domains[self.target].interactions["item"].unique()


class Fitted(NamedTuple):
    """A recommender, the seconds that training it took, and under which name of a stacked domain it knows items."""

    recommender: Recommender
    seconds: float
    stacked: str | None = None

    def named(self, rows: pd.DataFrame) -> pd.DataFrame:
        if self.stacked is None:
            return rows
        return transfer.stack({self.stacked: data.Frames(rows, None, None, _SCHEMA)}).interactions


@functools.cache
def _game_video(folder: Path) -> tuple[dict[str, data.Frames], dict[str, dict[int, pd.DataFrame]]]:
    domains, held_out = {}, {}
    for name in ("game", "video"):
        rows = pd.read_parquet(folder / "amazon-game-video-cdrib" / f"{name}.parquet")
        domains[name] = data.Frames(rows[rows.part == 0][_KEYS], None, None, _SCHEMA)
        held_out[name] = {part: rows[rows.part == part][_KEYS] for part in (1, 2)}
    return domains, held_out


def game_video(folder: Path, source: str, target: str) -> Pair:
    """The published cold users (CDRIB): half of their rows for validation, half for test."""
    domains, held_out = _game_video(folder)
    return Pair(source, target, domains, held_out[target][1], held_out[target][2])


PAIRS: dict[str, Callable[[Path], Pair]] = {
    "video-game": lambda folder: game_video(folder, "video", "game"),
    "game-video": lambda folder: game_video(folder, "game", "video"),
}


class Trained:
    """What was trained on the domains of a data set before, with the seconds it took: directions and methods share."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Any, float]] = {}

    def __call__(self, key: tuple[Any, ...], make: Callable[[], Any]) -> tuple[Any, float]:
        if key not in self._kept:
            start = time.perf_counter()
            made = make()
            self._kept[key] = made, time.perf_counter() - start
        return self._kept[key]


_TRAINED = Trained()


def _encoded(pair: Pair, domain: str | None) -> data.Dataset:
    """Of one domain, or of both stacked."""

    def make() -> data.Dataset:
        if domain is not None:
            return data.encode(data.Parts(pair.domains[domain].interactions, None, None), _SCHEMA).train
        stacked = transfer.stack(pair.domains)
        return data.encode(data.Parts(stacked.interactions, None, None), _SCHEMA).train  # bare ids

    return _TRAINED((tuple(pair.domains), pair.shots, domain), make)[0]


def _als(pair: Pair, domain: str | None, seed: int, setting: dict[str, Any]) -> tuple[Recommender, float]:
    key = (tuple(pair.domains), pair.shots, domain, "als", seed, tuple(sorted(setting.items())))
    return _TRAINED(key, lambda: train.fit_als(_encoded(pair, domain), epochs=10, seed=seed, **setting))


def _bpr(pair: Pair, domain: str, seed: int, setting: dict[str, Any]) -> tuple[Recommender, float]:
    key = (tuple(pair.domains), pair.shots, domain, "bpr", seed, tuple(sorted(setting.items())))

    def make() -> Recommender:
        rows, options = _encoded(pair, domain), dict(setting)
        decay, rate = options.pop("decay"), options.pop("rate")
        optimizer = optim.row_sparse(optax.adamw(rate, weight_decay=decay))
        model = models.MatrixFactorization.for_data(rows, dim=options.pop("dim"))
        return jaxrec.fit(
            model, rows, loss="bpr", optimizer=optimizer, batch_size=1024, seed=seed, progress=False, **options
        )

    return _TRAINED(key, make)


def popularity(pair: Pair, seed: int) -> Fitted:
    return _timed(lambda: coldstart.popularity(_encoded(pair, pair.target)))


def alone(pair: Pair, seed: int, **setting: Any) -> Fitted:
    """The target by itself: cold users get the mean user's vector."""
    return Fitted(*_als(pair, pair.target, seed, setting))


def stacked_als(pair: Pair, seed: int, **setting: Any) -> Fitted:
    return Fitted(*_als(pair, None, seed, setting), pair.target)


def stacked_knn(pair: Pair, seed: int, **setting: Any) -> Fitted:
    return _timed(lambda: train.fit_item_knn(_encoded(pair, None), **setting), pair.target)


def stacked_ease(pair: Pair, seed: int, **setting: Any) -> Fitted:
    key = (tuple(pair.domains), pair.shots, "ease", tuple(setting.items()))
    return Fitted(*_TRAINED(key, lambda: train.fit_ease(_encoded(pair, None), **setting)), pair.target)


def emcdr(pair: Pair, seed: int, *, backbone: Callable[..., Any] = _als, **setting: Any) -> Fitted:
    chosen = {name: setting.pop(name) for name in ("kind", "hidden", "map_l2") if name in setting}
    found, seconds = zip(*(backbone(pair, name, seed, setting) for name in (pair.source, pair.target)), strict=True)
    if "map_l2" in chosen:
        chosen["l2"] = chosen.pop("map_l2")
    bridge = _timed(lambda: transfer.emcdr(*found, seed=seed, **chosen))
    return bridge._replace(seconds=bridge.seconds + sum(seconds))


def emcdr_bpr(pair: Pair, seed: int, **setting: Any) -> Fitted:
    """As its paper has it: factorisations trained by BPR, a linear or a perceptron's map of squared error."""
    return emcdr(pair, seed, backbone=_bpr, **setting)


def ptupcdr(pair: Pair, seed: int, *, rate: float, **setting: Any) -> Fitted:
    setting.pop("map_l2", None)
    found, seconds = zip(*(_als(pair, name, seed, setting) for name in (pair.source, pair.target)), strict=True)
    options: dict[str, Any] = {"optimizer": optim.row_sparse(optax.adam(rate)), "epochs": 5, "batch_size": 256}
    negatives = data.Negatives(shared=512)
    bridge = _timed(
        lambda: transfer.ptupcdr(
            *found, hidden=(16,), loss="sampled_softmax", negatives=negatives, seed=seed, progress=False, **options
        )
    )
    return bridge._replace(seconds=bridge.seconds + sum(seconds))


def joint(pair: Pair, seed: int, *, decay: float, **setting: Any) -> Fitted:
    """Both domains in one training, users shared; items compete with those of their own domain."""
    key = (tuple(pair.domains), pair.shots, "joint", seed, decay, tuple(setting.items()))

    def make() -> Recommender:
        stacked = transfer.stack(pair.domains)
        parts = data.Parts(stacked.interactions, None, None)
        rows = data.encode(parts, stacked.schema, items=stacked.items).train
        return jaxrec.fit(
            models.SharedSpecific.for_data(rows, dim=64, **setting),
            rows,
            loss="sampled_softmax",
            negatives=data.Negatives(shared=1024),
            optimizer=optim.row_sparse(optax.adamw(0.01, weight_decay=decay)),
            epochs=8,
            seed=seed,
            progress=False,
        )

    return Fitted(*_TRAINED(key, make), pair.target)


def regress(pair: Pair, seed: int, **setting: Any) -> Fitted:
    key = (pair.source, pair.target, pair.shots, "regress", tuple(setting.items()))
    source, target = (_encoded(pair, name) for name in (pair.source, pair.target))
    return Fitted(*_TRAINED(key, lambda: transfer.regress(source, target, **setting)))


def blend(pair: Pair, seed: int, *, bridge: dict[str, Any], regression: dict[str, Any], weight: float) -> Fitted:
    parts = emcdr(pair, seed, **bridge), regress(pair, seed, **regression)
    joined = _timed(lambda: transfer.blend([part.recommender for part in parts], [1.0, weight]))
    return joined._replace(seconds=joined.seconds + sum(part.seconds for part in parts))


def _timed(make: Callable[[], Recommender], stacked: str | None = None) -> Fitted:
    start = time.perf_counter()
    return Fitted(make(), time.perf_counter() - start, stacked)


_BACKBONES = [
    {"dim": dim, "unobserved": unobserved, "l2": l2}
    for dim in (128, 256)
    for unobserved, l2 in ((0.003, 0.03), (0.003, 0.05), (0.001, 0.05))
]
_MORE = [
    {"dim": 128, "unobserved": 0.01, "l2": 0.01},
    {"dim": 128, "unobserved": 0.3, "l2": 0.01},  # near the defaults
    {"dim": 128, "unobserved": 0.003, "l2": 0.3, "exponent": 0.5},
    {"dim": 128, "unobserved": 0.003, "l2": 0.5, "exponent": 0.5},
    {"dim": 256, "unobserved": 0.003, "l2": 0.3, "exponent": 0.5},
    {"dim": 128, "unobserved": 0.003, "l2": 0.04},
    {"dim": 128, "unobserved": 0.003, "l2": 0.07},
    {"dim": 128, "unobserved": 0.005, "l2": 0.03},
    {"dim": 128, "unobserved": 0.002, "l2": 0.04},
    {"dim": 256, "unobserved": 0.003, "l2": 0.04},
    {"dim": 256, "unobserved": 0.005, "l2": 0.03},
    {"dim": 64, "unobserved": 0.003, "l2": 0.03},
    {"dim": 64, "unobserved": 0.003, "l2": 0.05},
    {"dim": 64, "unobserved": 0.001, "l2": 0.05},
]
_BPR = [{"dim": 64, "rate": 0.01, "decay": decay, "epochs": 20} for decay in (0.3, 1.0, 3.0, 10.0)]
_DECAYS = (1.0, 3.0, 10.0)
_REGRESSIONS = [{"dim": dim, "l2": l2} for dim in (256, 512) for l2 in (30.0, 100.0)]

METHODS: dict[str, tuple[Callable[..., Fitted], list[dict[str, Any]]]] = {
    "popularity": (popularity, [{}]),
    "target alone, iALS": (alone, _BACKBONES[:3]),
    "stacked item k-NN": (stacked_knn, [{"shrink": shrink, "neighbours": 300} for shrink in (10.0, 100.0, 1000.0)]),
    "stacked iALS": (stacked_als, [*_BACKBONES, *_MORE]),
    "EMCDR, MF by BPR": (emcdr_bpr, [{**each, "kind": kind} for each in _BPR for kind in ("linear", "mlp")]),
    "EMCDR over iALS": (emcdr, [{**each, "map_l2": l2} for each in _BACKBONES for l2 in (20.0, 100.0)]),
    "regression": (regress, _REGRESSIONS),
    "PTUPCDR over iALS": (ptupcdr, []),  # over the bridge's backbone
    "blend": (blend, []),  # of the bridge and the regression as chosen
    "CMF": (joint, [{"decay": decay, "specific": False} for decay in _DECAYS]),
    "shared and specific": (joint, [{"decay": decay, "orthogonality": 0.1} for decay in _DECAYS]),
    "domain-adversarial": (joint, [{"decay": decay, "specific": False, "adversarial": 0.1} for decay in _DECAYS]),
    "stacked EASE": (stacked_ease, [{"l2": 200.0}]),
}


def settings_of(method: str, chosen: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is tried; a method over others takes those as they were chosen on validation."""
    if method == "blend":
        parts = {"bridge": chosen["EMCDR over iALS"], "regression": chosen["regression"]}
        return [{**parts, "weight": weight} for weight in (0.125, 0.25, 0.5, 1.0)]
    if method == "PTUPCDR over iALS":
        return [{**chosen["EMCDR over iALS"], "rate": rate} for rate in (1e-4, 1e-3)]
    return METHODS[method][1]


def by_row(fitted: Fitted, pair: Pair, rows: pd.DataFrame) -> pd.DataFrame:
    """Expected HR@10, NDCG@10 and MRR of each held-out row among 999 negatives."""
    recommender, encoder = fitted.recommender, fitted.recommender.encoder
    catalogue = fitted.named(pd.DataFrame({"user": 0, "item": pair.candidates}))["item"]
    items = encoder.items.encode(catalogue)
    users, row = np.unique(rows["user"].to_numpy(), return_inverse=True)
    index = encoder.users.encode(users)
    scores = np.asarray(scorer(recommender, items.astype(np.int32))(index.astype(np.int32), len(index)))
    place = pd.Index(pair.candidates).get_indexer(pd.Index(rows["item"]))
    if (place < 0).any():
        raise ValueError("A held-out item is not among the candidates.")
    own = scores[row, place][:, None]
    above = (scores[row] > own).sum(axis=1) + 0.5 * ((scores[row] == own).sum(axis=1) - 1)
    share = above / (len(items) - 1)
    ranks = np.arange(10)
    choose = np.array([math.comb(_NEGATIVES, int(rank)) for rank in ranks], np.float64)
    chance = choose * share[:, None] ** ranks * (1.0 - share[:, None]) ** (_NEGATIVES - ranks)
    mrr = np.where(share > 0, (1 - (1 - share) ** (_NEGATIVES + 1)) / ((_NEGATIVES + 1) * np.maximum(share, 1e-12)), 1)
    values = {"hr@10": chance.sum(axis=1), "ndcg@10": chance @ (1 / np.log2(ranks + 2)), "mrr": mrr}
    return pd.DataFrame({"user": rows["user"].to_numpy(), **values})


def interval(values: pd.DataFrame, metric: str) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over rows, users being drawn."""
    groups = values.groupby("user")[metric].agg(["sum", "count"]).to_numpy()
    drawn = np.random.default_rng(0).integers(0, len(groups), (_DRAWS, len(groups)))
    total = groups[drawn].sum(axis=1)
    low, high = np.quantile(total[:, 0] / total[:, 1], [0.025, 0.975])
    return float(low), float(high)


def measured(fitted: Fitted, pair: Pair) -> list[dict[str, Any]]:
    values = by_row(fitted, pair, pair.test)
    found = []
    for metric in ("hr@10", "ndcg@10", "mrr"):
        low, high = interval(values, metric)
        each = {"metric": metric, "value": float(values[metric].mean()), "low": low, "high": high}
        found.append({"protocol": "999 negatives", **each})
    catalogue = fitted.named(pd.DataFrame({"user": 0, "item": pair.candidates}))["item"]
    report = jaxrec.evaluate(fitted.recommender, fitted.named(pair.test), ks=(10, 20), candidates=catalogue)
    for metric in ("recall@20", "ndcg@10", "ndcg@20"):
        low, high = report.interval(metric)
        found.append({"protocol": "full", "metric": metric, "value": float(report[metric]), "low": low, "high": high})
    return found


def chosen_setting(pair: Pair, fit: Callable[..., Fitted], settings: list[dict[str, Any]]) -> dict[str, Any]:
    if len(settings) == 1:
        return settings[0]
    values = []
    for setting in settings:
        values.append(float(by_row(fit(pair, 0, **setting), pair, pair.validation)["hr@10"].mean()))
        print("  validation", setting, f"{values[-1]:.4f}", flush=True)
    return settings[int(np.argmax(values))]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    arguments.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments.add_argument("--again", action="store_true", help="measure what has been measured already")
    options = arguments.parse_args()
    folder, commit = harness.data_folder(), harness.commit()
    for name in options.pairs:
        pair = PAIRS[name](folder)
        key = {"source": pair.source, "target": pair.target, "shots": pair.shots, "system": "jaxrec"}
        for method in options.methods:
            rows = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else []
            here = [row for row in rows if all(row[field] == value for field, value in key.items())]
            done = {row["seed"] for row in here if row["method"] == method}
            seeds = [seed for seed in options.seeds if options.again or seed not in done]
            if not seeds:
                continue
            fit = METHODS[method][0]
            print(name, method, flush=True)
            chosen = {row["method"]: row["setting"] for row in here}
            setting = chosen_setting(pair, fit, settings_of(method, chosen))
            for seed in seeds:
                fitted = fit(pair, seed, **setting)
                same = {**key, "method": method, "seed": seed}
                about = {"seconds": round(fitted.seconds, 1), "setting": setting, "commit": commit}
                new = [{**same, **each, **about} for each in measured(fitted, pair)]
                print(name, method, seed, {row["metric"]: round(row["value"], 4) for row in new}, flush=True)
                kept = [row for row in rows if any(row[field] != value for field, value in same.items())]
                rows = [*kept, *new]
                temporary = _RESULTS.with_suffix(".tmp")
                temporary.write_text(json.dumps(rows, indent=1) + "\n")
                temporary.rename(_RESULTS)


if __name__ == "__main__":
    main()
