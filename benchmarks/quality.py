"""Seconds to quality: how long does training take until it ranks as well as the best rival ever does?

python benchmarks/quality.py                     # MovieLens 1M and anime, 50 minutes on two cores
python benchmarks/quality.py --data ml-1m        # one of them
python benchmarks/quality.py --data million      # a million generated users, another half an hour and no data folder
python benchmarks/quality.py --again             # the times anew, with the settings found before; 15 minutes

``JAXREC_DATA`` names the folder of data. A tenth of the interactions is held out for validation at random. Every system
is tuned by NDCG@10 there, over the full catalogue: nine settings each, at most 10 seconds of training for each setting,
looked at after every 0.4 seconds, given up after five looks without a gain; the best one again after each epoch. Of the
generated data of T1's large case (six settings, 45 seconds each) 2,000 of the users with rows held out are looked at.
The target is the best that any rival reached; and, since a rival's last steps take long, 99 % of it. Two more targets
are the best that a rival reached by BPR's loss and by the logistic one, which T1 and T2 of ``engine.py`` give examples
per second of; least squares, which minimise neither, stand beside them, jaxrec's and implicit's. Then each system
trains anew in a process of its own with its best setting, for as many epochs as it took to reach the target (or its own
best, where that is below): once with everything that a first run costs, once again in the same process, whose result is
then evaluated. The systems take turns, three each; figures are medians. What jaxrec and torch compile can be kept:
after the turns there is one more process that finds it in a folder.
"""

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import optax
import pandas as pd
from tasks import factorization
from tasks.common import BATCH, DIM, LARGE_SIZE, Scores, by_tables, matrix, ndcg, of_some, ratings, trainer

from jaxrec import data, models, optim, train

_PATIENCE, _BETWEEN, _TURNS = 4, 0.4, 3
_DATA = {"ml-1m": ("user_id", "movie_id"), "anime": ("user_id", "anime_id")}
_MILLION = "million"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", nargs="*", default=list(_DATA), choices=[*_DATA, _MILLION])
    arguments.add_argument("--again", action="store_true", help="only measure the times anew, with the settings found")
    arguments.add_argument("--stage", choices=("tune", "time"), help="one stage of one system in this process")
    arguments.add_argument("--system", choices=list(SYSTEMS | LARGE))
    arguments.add_argument("--setting", type=json.loads)
    arguments.add_argument("--epochs", type=int)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    if options.stage is None:
        path = harness.RESULTS / "quality.json"
        for name in options.data:
            rows = _again(name) if options.again else _compare(name)
            harness.write("quality.json", rows)
            # Another target is another case, so those of an earlier run on this machine go.
            new, here = {row["case"] for row in rows}, rows[0]["device"]
            old = [row for row in harness.saved(path) if row["device"] == here and row["case"].startswith(f"{name},")]
            harness.save(path, [row for row in harness.saved(path) if row not in old or row["case"] in new])
        return
    parts = _parts(options.data[0])
    if options.stage == "tune":
        found = _tune(options.system, parts, options.data[0])
    else:
        found = _time(options.system, parts, options.data[0], options.setting, options.epochs)
    options.out.write_text(json.dumps(found, default=float))


def _parts(name: str) -> data.Parts:
    if name == _MILLION:
        return of_some(ratings(*LARGE_SIZE), 2000)
    user, item = _DATA[name]
    frame = pd.read_parquet(harness.data_folder() / name / "interactions.parquet")[[user, item]].drop_duplicates()
    frame = frame.rename(columns={user: "user", item: "item"})
    return data.encode(data.split_random(frame, validation=0.1, test=0.1, seed=0), data.Schema())


def _compare(name: str) -> list[dict[str, Any]]:
    tuned = {}
    for system in _systems(name):
        if importlib.util.find_spec(system.split()[0]) is None:
            print(f"{name} {system}: left out, it is not installed", flush=True)
            continue
        tuned[system] = _run(name, system, "tune")
        best = _best(tuned[system])
        print(f"{name} {system:16} best NDCG@10 {best:.4f} with {tuned[system]['setting']}", flush=True)
    rows = []
    for what, (share, judged_by, systems) in _AMONG.items():
        chosen = {system: found for system, found in tuned.items() if system in systems}
        rivals = [_best(found) for system, found in chosen.items() if system in judged_by]
        if not rivals:
            continue
        target = share * max(rivals)
        for system, found in chosen.items():
            epochs = next(epochs for epochs, reached in found["curve"] if reached >= min(target, _best(found)))
            row = {
                "task": "T10",
                "case": f"{name}, {what} {target:.4f}",
                "system": system,
                "version": harness.version(system),
                "unit": "s",
                "best": _best(found),
                "curve": [(epochs, round(reached, 4)) for epochs, reached in found["curve"]],
                "epochs": epochs,
                "setting": found["setting"],
                "tuning_s": found["seconds"],
            }
            rows.append(row)
    return _timed(name, rows)


def _again(name: str) -> list[dict[str, Any]]:
    """The rows of a data set with the times measured anew."""
    rows = json.loads((harness.RESULTS / "quality.json").read_text())
    return _timed(name, [row for row in rows if row["case"].startswith(f"{name},")])


def _timed(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the times, medians of the turns; the same training for two targets is timed once."""
    times: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in range(_TURNS):
        for row in rows:
            which = row["system"], row["epochs"]
            taken = times.setdefault(which, [])
            if len(taken) > turn:
                continue
            setting = json.dumps(row["setting"])
            taken.append(_run(name, row["system"], "time", "--setting", setting, "--epochs", str(row["epochs"])))
            print(f"{name} {which[0]:16} {which[1]} epochs: {taken[-1]['again']:.2f} s", flush=True)
    named = {"value": "again", "first_s": "first", "import_s": "import", "quality": "quality"}
    medians = {
        which: {name: statistics.median(each[key] for each in taken) for name, key in named.items()}
        for which, taken in times.items()
    }
    kept = _with_kept_programs(name, rows)
    return [row | harness.stamp() | medians[row["system"], row["epochs"]] | kept.get(row["system"], {}) for row in rows]


def _with_kept_programs(name: str, rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By system that compiles, the seconds of its first run where an earlier process has compiled all that it needs."""
    found = {}
    for row in rows:
        if row["system"].split()[0] in ("jaxrec", "torch") and row["system"] not in found:
            options = "--setting", json.dumps(row["setting"]), "--epochs", str(row["epochs"])
            with tempfile.TemporaryDirectory() as folder:
                once, again = (_run(name, row["system"], "time", *options, kept=folder) for _ in range(2))
            print(
                f"{name} {row['system']:16} first {once['first']:.2f} s, compiled before {again['first']:.2f}",
                flush=True,
            )
            found[row["system"]] = {"kept_s": again["first"], "kept_epochs": row["epochs"]}
    return found


def _best(found: dict[str, Any]) -> float:
    return max(value for _, value in found["curve"])


def _run(name: str, system: str, stage: str, *more: str, kept: str | None = None) -> dict[str, Any]:
    """One stage in a process of its own. ``kept``: a folder for what is compiled; by default nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--data", name, "--stage", stage, "--system", system, "--out", str(out)]
        environment = harness.environment(kept or folder)
        if kept is not None:
            environment |= {"JAX_COMPILATION_CACHE_DIR": kept, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        subprocess.run([*command, *more], check=True, env=environment)
        return json.loads(out.read_text())


def _systems(name: str) -> "dict[str, System]":
    return LARGE if name == _MILLION else SYSTEMS


def _tune(system: str, parts: data.Parts, name: str) -> dict[str, Any]:
    """The best of the settings, and its NDCG@10 after so many epochs, up to the best one."""
    made, grid = _systems(name)[system]
    prepare = made(parts.train)
    budget = 45.0 if name == _MILLION else 10.0
    best: dict[str, Any] = {"curve": [(0, 0.0)]}
    start = time.perf_counter()
    for setting in itertools.product(*grid):
        scores: Scores = {}
        training = prepare(scores, *setting)
        looks = _Looks(lambda scores=scores: ndcg(parts, scores, next(iter(scores))), budget)
        training(_ENDLESS, looks)
        top = max(value for _, value in looks.curve)
        if top > _best(best):
            place = next(place for place, (_, value) in enumerate(looks.curve) if value == top)
            best = {"setting": setting, "curve": looks.curve[: place + 1]}
    spent = time.perf_counter() - start
    return best | {"curve": _every_epoch(prepare, parts, best), "seconds": spent}


def _every_epoch(
    prepare: "Callable[..., Training]", parts: data.Parts, best: dict[str, Any]
) -> list[tuple[int, float]]:
    """The best setting once more, looked at after each epoch up to the best one."""
    scores: Scores = {}
    training, curve = prepare(scores, *best["setting"]), []

    def look() -> bool:
        curve.append((len(curve) + 1, ndcg(parts, scores, next(iter(scores)))))
        return False

    training(best["curve"][-1][0], look)
    place = max(range(len(curve)), key=lambda place: curve[place][1])
    return curve[: place + 1]


class _Looks:
    """Asked after every epoch whether to stop; now and then it looks at the quality, off the clock."""

    def __init__(self, quality: Callable[[], float], budget: float) -> None:
        self.curve: list[tuple[int, float]] = []
        self._quality, self._budget = quality, budget
        self._spent = self._looked = self._top = 0.0
        self._epochs = self._since = 0
        self._start = time.perf_counter()

    def __call__(self) -> bool:
        self._spent += time.perf_counter() - self._start
        self._epochs += 1
        if not self.curve or self._spent - self._looked >= _BETWEEN or self._spent >= self._budget:
            self._looked = self._spent
            self.curve.append((self._epochs, self._quality()))
            self._since = self._since + 1 if self.curve[-1][1] <= self._top else 0
            self._top = max(self._top, self.curve[-1][1])
        self._start = time.perf_counter()
        return self._spent >= self._budget or self._since > _PATIENCE


def _time(system: str, parts: data.Parts, name: str, setting: list[float], epochs: int) -> dict[str, float]:
    made, _ = _systems(name)[system]
    prepare = made(parts.train)
    found, scores = {"import": _import_seconds(system.split()[0])}, {}
    for what in ("first", "again"):
        start = time.perf_counter()
        prepare(scores, *setting)(epochs, None)
        found[what] = time.perf_counter() - start
    return found | {"quality": ndcg(parts, scores, next(iter(scores)))}


def _import_seconds(package: str) -> float:
    """Of what training needs, in a fresh interpreter, less an empty one. jaxrec by itself loads nothing."""

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return min(
        seconds("from jaxrec import data, train" if package == "jaxrec" else f"import {package}") for _ in range(2)
    ) - min(seconds("pass") for _ in range(2))


Stop = Callable[[], bool]
Training = Callable[[int, Stop | None], None]
"""Trains for so many epochs, or until it is told to stop after one of them."""


def _by_epochs(run: Callable[[], Any]) -> Training:
    def training(epochs: int, stop: Stop | None) -> None:
        for _ in range(epochs):
            run()
            if stop is not None and stop():
                return

    return training


def _by_steps(make: Callable[..., harness.Run], dataset: data.Dataset) -> Callable[..., Training]:
    return lambda scores, first, second: _by_epochs(make(dataset, scores, first, second))


def _jaxrec_softmax(dataset: data.Dataset, scores: Scores, rate: float, decay: float) -> harness.Run:
    model = models.MatrixFactorization.for_data(dataset, dim=DIM, bias=False)
    optimizer = optim.row_sparse(optax.adamw(rate, weight_decay=decay))
    negatives = data.Negatives(in_batch=True)
    return trainer("jaxrec", scores, dataset, model, "in_batch_softmax", optimizer, negatives=negatives, size=_SOFTMAX)


def _jaxrec_bpr(dataset: data.Dataset, scores: Scores, rate: float, decay: float) -> harness.Run:
    """With a bias of items, as implicit and Cornac have."""
    model = models.MatrixFactorization.for_data(dataset, dim=DIM)
    optimizer = optim.row_sparse(optax.adamw(rate, weight_decay=decay))
    return trainer("jaxrec", scores, dataset, model, "bpr", optimizer, negatives=data.Negatives(num=1))


def _jaxrec_bpr_sgd(dataset: data.Dataset, scores: Scores, rate: float, l2: float) -> harness.Run:
    """As in T1 but for the bias, with the rivals' two numbers: rate and regularisation of one example."""
    model = models.MatrixFactorization.for_data(dataset, dim=DIM)
    sgd = optax.chain(optax.add_decayed_weights(l2 / BATCH), optax.sgd(rate * BATCH))
    negatives = data.Negatives(num=1)
    return trainer("jaxrec", scores, dataset, model, "bpr", optim.row_sparse(sgd), negatives=negatives, scale=0.1)


def _jaxrec_ials(dataset: data.Dataset) -> Callable[..., Training]:
    def prepare(scores: Scores, unobserved: float, l2: float) -> Training:
        box: list[Any] = [None]
        scores["jaxrec"] = lambda: box[0]

        def training(epochs: int, stop: Stop | None) -> None:
            fit = functools.partial(train.fit_als, dataset, dim=DIM, unobserved=unobserved, l2=l2)
            if stop is None:
                box[0] = fit(epochs=epochs)
                return
            for _ in range(epochs):  # laid out anew every time, which costs nobody else
                box[0] = fit(epochs=1, params=None if box[0] is None else box[0].params)
                if stop():
                    return

        return training

    return prepare


def _torch_softmax(dataset: data.Dataset, scores: Scores, rate: float, decay: float) -> harness.Run:
    """The same loss, batches and optimiser; dense Adam in one kernel is faster than sparse Adam at this size."""
    import torch

    torch.set_num_threads(harness.THREADS)
    torch.manual_seed(0)
    rows = [len(row) for row in dataset.features[:2]]
    tables = [torch.nn.Parameter(DIM**-0.5 * torch.randn(number, DIM)) for number in rows]
    optimiser = torch.optim.AdamW(tables, lr=rate, weight_decay=decay, fused=True)
    users, items = (torch.from_numpy(np.asarray(values, np.int64)) for values in (dataset.user, dataset.item))
    log_q = torch.log(torch.bincount(items, minlength=rows[1]).clamp(min=1) / len(items)).float()

    def loss(user: Any, item: Any) -> Any:
        scores = tables[0][user] @ tables[1][item].T - log_q[item]
        accidental = (item[:, None] == item[None, :]) & ~torch.eye(len(item), dtype=torch.bool)
        scores = scores.masked_fill(accidental, -torch.inf)
        return torch.nn.functional.cross_entropy(scores, torch.arange(len(item)))

    objective = torch.compile(loss, dynamic=True)

    def run() -> float:
        order = torch.randperm(len(users))
        for start in range(0, len(order), _SOFTMAX):
            at = order[start : start + _SOFTMAX]
            optimiser.zero_grad()
            objective(users[at], items[at]).backward()
            optimiser.step()
        return len(users)

    scores["torch"] = lambda: by_tables(dataset, *(table.detach().numpy() for table in tables))
    return run


def _implicit(kind: str, dataset: data.Dataset) -> Callable[..., Training]:
    import implicit

    pairs = matrix(dataset)

    def prepare(scores: Scores, first: float, second: float) -> Training:
        shared: dict[str, Any] = {"num_threads": harness.THREADS, "random_state": 0, "regularization": second}
        if kind == "ials":
            model = implicit.als.AlternatingLeastSquares(factors=DIM, alpha=first, use_gpu=False, **shared)
        elif kind == "bpr":
            model = implicit.bpr.BayesianPersonalizedRanking(factors=DIM - 1, learning_rate=first, **shared)
        else:
            model = implicit.lmf.LogisticMatrixFactorization(factors=DIM, learning_rate=first, **shared)
        scores["implicit"] = lambda: by_tables(dataset, model.user_factors, model.item_factors)

        def training(epochs: int, stop: Stop | None) -> None:
            """One fit: one for every epoch would draw the same pairs again and forget LMF's sums of squares."""

            def after(*_: Any) -> None:
                if stop is not None and stop():
                    raise _Stopped

            model.iterations = epochs
            with contextlib.suppress(_Stopped):
                model.fit(pairs, show_progress=False, callback=after)

        return training

    return prepare


class _Stopped(Exception):
    """Ends a fit of implicit's."""


def _cornac_bpr(dataset: data.Dataset) -> Callable[..., Training]:
    import cornac

    rows = factorization.cornac_rows(dataset)

    def prepare(scores: Scores, rate: float, l2: float) -> Training:
        model = cornac.models.BPR(k=DIM, max_iter=1, learning_rate=rate, lambda_reg=l2, **factorization.CORNAC)
        scores["cornac"] = lambda: factorization.cornac_tables(dataset, model)

        def training(epochs: int, stop: Stop | None) -> None:
            if stop is None:
                model.max_iter = epochs
                model.fit(rows)
            else:
                _by_epochs(lambda: model.fit(rows))(epochs, stop)

        return training

    return prepare


_ENDLESS = 10**6
_SOFTMAX = 1024  # examples in a batch, which are each other's negatives
System = tuple[Callable[[data.Dataset], Callable[..., Training]], tuple[tuple[float, ...], tuple[float, ...]]]
"""How a system takes in its rows, which is not counted, and is made ready with two numbers; values to try for each."""
SYSTEMS: dict[str, System] = {
    "implicit ials": (functools.partial(_implicit, "ials"), ((1.0, 3.0, 10.0), (10.0, 30.0, 100.0))),
    "implicit bpr": (functools.partial(_implicit, "bpr"), ((0.003, 0.01, 0.03), (0.0001, 0.001, 0.01))),
    "implicit lmf": (functools.partial(_implicit, "lmf"), ((0.3, 1.0, 3.0), (0.6, 3.0, 10.0))),
    "cornac bpr": (_cornac_bpr, ((0.01, 0.03, 0.1), (0.001, 0.01, 0.03))),
    "torch softmax": (functools.partial(_by_steps, _torch_softmax), ((0.003, 0.01, 0.03), (0.3, 1.0, 3.0))),
    "jaxrec bpr": (functools.partial(_by_steps, _jaxrec_bpr), ((0.001, 0.003, 0.01), (0.05, 0.15, 0.45))),
    "jaxrec softmax": (functools.partial(_by_steps, _jaxrec_softmax), ((0.003, 0.01, 0.03), (0.3, 1.0, 3.0))),
    "jaxrec ials": (_jaxrec_ials, ((0.1, 0.3, 1.0), (0.001, 0.003, 0.01))),
}
LARGE: dict[str, System] = {
    "implicit ials": (functools.partial(_implicit, "ials"), ((3.0, 10.0, 30.0), (3.0, 10.0))),
    "implicit bpr": (functools.partial(_implicit, "bpr"), ((0.05, 0.1, 0.2), (0.001, 0.01))),
    "cornac bpr": (_cornac_bpr, ((0.05, 0.1, 0.2), (0.001, 0.01))),
    "jaxrec bpr": (functools.partial(_by_steps, _jaxrec_bpr_sgd), ((0.05, 0.1, 0.2), (0.001, 0.01))),
    "jaxrec ials": (_jaxrec_ials, ((0.03, 0.1, 0.3), (0.0003, 0.001))),
}
_RIVALS = tuple(system for system in SYSTEMS if not system.startswith("jaxrec"))
_SQUARES = "implicit ials", "jaxrec ials"
# What share of whose best is the target, and who is to reach it.
_AMONG = {
    "target": (1.0, _RIVALS, tuple(SYSTEMS)),
    "99 % of it,": (0.99, _RIVALS, tuple(SYSTEMS)),
    "the best BPR": (1.0, ("implicit bpr", "cornac bpr"), ("implicit bpr", "cornac bpr", "jaxrec bpr", *_SQUARES)),
    "the best logistic": (1.0, ("implicit lmf",), ("implicit lmf", *_SQUARES)),
}

if __name__ == "__main__":
    main()
