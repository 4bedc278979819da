"""Neural against plain matrix factorization on MovieLens 1M, under sampled and under full ranking.

python benchmarks/neumf.py                                   # what is not measured yet, method by method
python benchmarks/neumf.py --methods "MF" --seeds 0 1 2      # one method, three seeds
python benchmarks/neumf.py --methods "MF" --again            # one method anew

``JAXREC_DATA`` names the folder of data. Test is the latest interaction of each user, ranked among 99 given items, and
among all items that the user has not touched. The data has no time for the other rows, so validation is one of them per
user, drawn with a fixed seed, among 99 items drawn uniformly from what is not in the user's training rows. Each method
tries its settings on it and takes the best one's best epoch by NDCG@10; then it is trained on all training rows for so
many epochs, once per seed, and test is read once. Rows go to ``results/neumf.json`` as they are measured.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import optax
import pandas as pd

import jaxrec
from jaxrec import coldstart, data, models, optim, train

_RESULTS = Path(__file__).parent / "results" / "neumf.json"
_SCHEMA = data.Schema(user="user_id", item="movie_id")
_NEGATIVES = 99
_EPOCHS = 40  # at most
_PATIENCE = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Rows to train on, and who is asked what. Equal to itself alone, so that what was trained on it can be kept."""

    train: data.Dataset
    relevant: pd.DataFrame
    candidates: pd.DataFrame  # each user's own


def load(folder: Path) -> tuple[Task, Task]:
    """Validation and test."""
    frames = [
        pd.read_parquet(folder / "ml-1m" / f"{name}.parquet")[["user_id", "movie_id"]].astype(np.int64)
        for name in ("interactions", "ncf_test_positives", "ncf_test_negatives")
    ]
    everything, test, negatives = frames
    items = everything[["movie_id"]].drop_duplicates().sort_values("movie_id")
    key = everything.user_id * 10_000 + everything.movie_id
    known = everything[~key.isin(test.user_id * 10_000 + test.movie_id)].reset_index(drop=True)
    rng = np.random.default_rng(0)
    chosen = known.iloc[rng.permutation(len(known))].drop_duplicates("user_id").index
    validation, rest = known.loc[chosen].sort_values("user_id"), known.drop(index=chosen)
    drawn = []
    for user, seen in known.groupby("user_id").movie_id:
        unseen = np.setdiff1d(items.movie_id.to_numpy(), seen.to_numpy())
        drawn.append(pd.DataFrame({"user_id": user, "movie_id": rng.choice(unseen, _NEGATIVES, replace=False)}))

    def task(rows: pd.DataFrame, relevant: pd.DataFrame, candidates: pd.DataFrame) -> Task:
        encoded = data.encode(data.Parts(rows, None, None), _SCHEMA, items=items)
        return Task(encoded.train, relevant, candidates)

    return task(rest, validation, pd.concat(drawn)), task(known, test, negatives)


Judge = Callable[[train.Recommender], float] | None


def judge_of(task: Task) -> Judge:
    def ndcg(recommender: train.Recommender) -> float:
        report = jaxrec.evaluate(recommender, task.relevant, ks=(10,), candidates=task.candidates, draws=1)
        return report["ndcg@10"]

    return ndcg


@functools.cache
def _adamw(rate: float, decay: float) -> optim.Optimizer:
    """Adam by rows; embeddings alone decay."""
    embeddings = optax.adamw(rate, weight_decay=decay)
    return optim.row_sparse(optim.per_path({"*/embedding": embeddings, "*": optax.adam(rate)}))


@functools.cache
def _sgd(rate: float, l2: float, batch_size: int, num: int) -> optim.Optimizer:
    """Of the mean over a batch the step that its examples would make one by one; a row decays as by one positive."""
    step = rate * batch_size * (1 + num)
    embeddings = optax.chain(optax.add_decayed_weights(l2 / batch_size), optax.sgd(step))
    # All examples meet the one global bias, whose step would be far too long.
    return optim.row_sparse(optim.per_path({"*/embedding": embeddings, "bias": optax.sgd(1.0), "*": optax.sgd(step)}))


def fit_mf(task: Task, epochs: int, judge: Judge, seed: int, *, dim: int, rate: float, l2: float) -> Any:
    """Gradient descent as Rendle et al. have it, but for batches: ``rate`` and ``l2`` are of a single example."""
    model = models.MatrixFactorization.for_data(task.train, dim=dim)
    return jaxrec.fit(
        model, task.train, loss="sigmoid_cross_entropy", optimizer=_sgd(rate, l2, 1024, 8), epochs=epochs,
        batch_size=1024, negatives=data.Negatives(num=8), metric=judge, patience=_PATIENCE, seed=seed, progress=False,
    )  # fmt: skip


def fit_neumf(
    task: Task, epochs: int, judge: Judge, seed: int, *, rate: float, decay: float, num: int = 4, params: Any = None,
    **widths: Any,
) -> Any:  # fmt: skip
    model = models.NeuMF.for_data(task.train, **widths)
    return jaxrec.fit(
        model, task.train, optimizer=_adamw(rate, decay), epochs=epochs, batch_size=4096,
        negatives=data.Negatives(num=num), metric=judge, patience=_PATIENCE, params=params, seed=seed, progress=False,
    )  # fmt: skip


def fit_popularity(task: Task, epochs: int, judge: Judge, seed: int) -> Any:
    return coldstart.popularity(task.train)


def fit_als(task: Task, epochs: int, judge: Judge, seed: int, **setting: Any) -> Any:
    return train.fit_als(task.train, epochs=epochs, metric=judge, patience=_PATIENCE, seed=seed, **setting)


def fit_pretrained(
    task: Task, epochs: int, judge: Judge, seed: int, *, parts: tuple[str, str] = ("GMF", "MLP"), **setting: Any
) -> Any:
    """NeuMF from two parts, each trained on the same rows with the setting and for the epochs chosen for it."""
    gmf, mlp = (trained(task, method, seed) for method in parts)
    widths = {"dim": gmf.model.dim, "mlp_dim": mlp.model.mlp_dim, "hidden": mlp.model.hidden}
    start = models.NeuMF.for_data(task.train, **widths).fuse(gmf.params, mlp.params)
    return fit_neumf(task, epochs, judge, seed, params=start, **setting, **widths)


_WIDTHS: dict[str, Any] = {"dim": 32, "mlp_dim": 32, "hidden": (32, 16)}
_GMF, _MLP = _WIDTHS | {"mlp_dim": 0}, _WIDTHS | {"dim": 0}

METHODS: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "popularity": (fit_popularity, [{}]),
    "GMF": (fit_neumf, [_GMF | {"rate": 0.003, "decay": each} for each in (0.1, 0.3, 1.0)]),
    "MLP": (fit_neumf, [_MLP | {"rate": 0.003, "decay": each} for each in (0.1, 0.3, 1.0)]),
    "NeuMF": (fit_neumf, [_WIDTHS | {"rate": 0.003, "decay": each} for each in (0.1, 0.3, 1.0)]),
    "NeuMF, pretrained": (
        fit_pretrained,
        [{"rate": 0.0003, "decay": 0.3}, {"rate": 0.0003, "decay": 1.0}, {"rate": 0.001, "decay": 0.3}],
    ),
    "GMF, wider": (fit_neumf, [_GMF | {"dim": 64, "rate": 0.003, "decay": 1.0}]),
    "NeuMF, wider, pretrained": (fit_pretrained, [{"parts": ("GMF, wider", "MLP"), "rate": 0.0003, "decay": 0.3}]),
    "MLP, of the paper's size": (
        fit_neumf,
        [_MLP | {"mlp_dim": 64, "hidden": (64, 32), "rate": 0.003, "decay": each} for each in (0.3, 1.0)],
    ),
    "NeuMF, of the paper's size, pretrained": (
        fit_pretrained,
        [{"parts": ("GMF, wider", "MLP, of the paper's size"), "rate": 0.0003, "decay": each} for each in (0.3, 1.0)],
    ),
    "GMF, wider, eight negatives": (
        fit_neumf,
        [_GMF | {"dim": dim, "num": 8, "rate": 0.003, "decay": 1.0} for dim in (64, 128)],
    ),
    "NeuMF, wider, eight negatives, pretrained": (
        fit_pretrained,
        [
            {"parts": ("GMF, wider, eight negatives", "MLP"), "num": 8, "rate": 0.0003, "decay": each}
            for each in (0.3, 1.0)
        ],
    ),
    "NeuMF, of the paper's size, eight negatives, pretrained": (
        fit_pretrained,
        [
            {"parts": ("GMF, wider, eight negatives", "MLP, of the paper's size"), "num": 8, "rate": each, "decay": 0.3}
            for each in (0.0001, 0.0003)
        ],
    ),
    "MF": (
        fit_mf,
        [{"dim": dim, "rate": 0.03, "l2": l2} for dim, l2 in ((128, 0.003), (128, 0.005), (192, 0.003))],
    ),
    "iALS": (
        fit_als,
        [{"dim": dim, "unobserved": each, "l2": 0.003} for dim, each in ((64, 0.1), (64, 0.3), (128, 0.1))],
    ),
}


def chosen(task: Task, method: str) -> dict[str, Any]:
    """The setting of the best validation value, its best epoch and that value; one setting is not judged."""
    fit, settings = METHODS[method]
    if settings == [{}]:
        return {"epochs": 1}
    found = []
    for setting in settings:
        log = fit(task, _EPOCHS, judge_of(task), 0, **setting).history
        best = int(log.ndcg.argmax())
        found.append(setting | {"epochs": best + 1, "validation": float(log.ndcg[best])})
        print("  validation", method, found[-1], f"{log.seconds.mean():.1f} s an epoch", flush=True)
    return max(found, key=lambda each: each["validation"])


def rows_of(method: str | None = None) -> list[dict[str, Any]]:
    return [row for row in harness.saved(_RESULTS) if method in (None, row["method"])]


@functools.cache
def trained(task: Task, method: str, seed: int) -> Any:
    """With what was chosen for the method, which has rows or is being measured."""
    setting = dict(_CHOSEN.get(method) or rows_of(method)[0]["setting"])
    setting.pop("validation", None)
    return METHODS[method][0](task, setting.pop("epochs"), None, seed, **setting)


_CHOSEN: dict[str, dict[str, Any]] = {}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments.add_argument("--again", action="store_true", help="choose and measure what has been measured already")
    options = arguments.parse_args()
    folder, commit = harness.data_folder(), harness.commit()
    validation, test = load(folder)
    for method in options.methods:
        old = [] if options.again else rows_of(method)
        seeds = [seed for seed in options.seeds if seed not in {row["seed"] for row in old}]
        if seeds:
            _CHOSEN[method] = old[0]["setting"] if old else chosen(validation, method)
        for seed in seeds:
            start = time.perf_counter()
            recommender = trained(test, method, seed)
            seconds = time.perf_counter() - start
            new = []
            for protocol, candidates in ((f"{_NEGATIVES} given negatives", test.candidates), ("full ranking", None)):
                report = jaxrec.evaluate(recommender, test.relevant, ks=(10,), candidates=candidates)
                for metric in ("hit@10", "ndcg@10"):
                    low, high = report.interval(metric)
                    new.append(
                        {"dataset": "ml-1m", "protocol": protocol, "system": "jaxrec", "method": method, "seed": seed}
                        | {"metric": metric, "value": float(report[metric]), "low": low, "high": high}
                        | {"seconds": seconds, "setting": _CHOSEN[method], "commit": commit}
                    )
                print(
                    method,
                    seed,
                    protocol,
                    f"{report['hit@10']:.4f} {report['ndcg@10']:.4f} {seconds:.0f} s",
                    flush=True,
                )
            kept = [row for row in rows_of() if (row["method"], row["seed"]) != (method, seed)]
            harness.save(_RESULTS, [*kept, *new])


if __name__ == "__main__":
    main()
