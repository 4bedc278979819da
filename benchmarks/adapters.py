"""How much of full fine-tuning's gain do adapters keep?

python benchmarks/adapters.py           # arm by arm, resumable -> results/adapters.json
python benchmarks/adapters.py --table   # the table of README.md

``JAXREC_DATA`` names the folder of data. A two-tower model, 128 wide, whose users are their histories (their ids stay
at zero) is pretrained on the source, its rate and epochs chosen by NDCG@10 of 400 users of the source who show ten
rows; items are shared with the target, users are not, and held-out users of the target show ten rows, too
(``domains.py``). Arms: the target from scratch, the source's parameters as they are, all of them fine-tuned, and with
the rest as it is adapters of rank 4 on the table of items and on the kernel of histories, or a bottleneck of 64 behind
the table of items. Each trained arm has the same rates to choose from and the same epochs to stop at, both by NDCG@10
on the target's validation users; test is read by eight seeds of the chosen rate (the bottleneck: three).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import optax
import pandas as pd
from domains import PAIRS, Pair, anime_communities, goodbooks_communities
from flax.traverse_util import flatten_dict
from scipy import stats

import jaxrec
from jaxrec import data, models, optim, transfer
from jaxrec.train import Recommender

_RESULTS = harness.RESULTS / "adapters.json"
_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_SOURCE_RATES = (3e-3, 1e-2)
_HELD, _SHOWN = 400, 10  # users of the source who say when it has learned enough, and their rows that it sees
_SEEDS = tuple(range(8))
_FEWER = {"as it is": 1, "bottleneck": 3}  # seeds: nothing of an untrained arm is random, and the bottleneck is slow
_TRAINING: dict[str, Any] = {
    "loss": "sampled_softmax", "negatives": data.Negatives(shared=512), "freeze": "user/embedding", "progress": False,
}  # fmt: skip
_ADAPTERS = {
    "rank 4": transfer.LowRank(patterns=("item/embedding", "user/history/kernel"), rank=4),
    "bottleneck": transfer.Bottleneck(patterns="item/embedding", width=64),
}
_ARMS = ("scratch", "as it is", "full", *_ADAPTERS)


TASKS: dict[str, Callable[[Path, int | None], Pair]] = {
    "anime, large to small": anime_communities,
    "ml-1m to ml-100k": PAIRS["ml-1m-ml-100k"],
    "goodbooks, large to small": goodbooks_communities,
}


class Bench:
    """A pair encoded, its source trained once, and the arms."""

    def __init__(self, pair: Pair) -> None:
        source, target = (pair.domains[name].interactions for name in (pair.source, pair.target))
        self.candidates = pair.candidates
        self.target = data.encode(data.Parts(target, pair.validation, pair.test), data.Schema())
        self.held_out = {"validation": pair.validation, "test": pair.test}
        self.source = self._pretrained(source)

    @staticmethod
    def model(train: data.Dataset) -> models.TwoTower:
        return models.TwoTower.for_data(train, dim=128, hidden=(), history=50)

    def _pretrained(self, rows: pd.DataFrame) -> Recommender:
        rng = np.random.default_rng(0)
        held = rng.permutation(np.sort(rows["user"].unique()))[:_HELD]
        place = rows.assign(_order=rng.random(len(rows))).groupby("user")["_order"].rank(method="first")
        asked = rows["user"].isin(held) & (place > _SHOWN)
        parts = data.encode(data.Parts(rows[~asked], rows[asked], None), data.Schema())
        found: dict[float, Recommender] = {}
        for rate in _SOURCE_RATES:
            options = self._options(rate) | {"batch_size": 1024, "validation": parts.validation}
            found[rate] = jaxrec.fit(self.model(parts.train), parts.train, **options)
            print("    source", rate, f"{self._reached(found[rate]):.4f}", len(found[rate].log), "epochs", flush=True)
        self.source_rate = max(found, key=lambda rate: self._reached(found[rate]))
        return found[self.source_rate]

    @staticmethod
    def _reached(recommender: Recommender) -> float:
        return float(recommender.history["ndcg@10"].max())

    @staticmethod
    def _options(rate: float) -> dict[str, Any]:
        optimizer = optim.row_sparse(optax.adamw(rate, weight_decay=0.01))
        return _TRAINING | {"optimizer": optimizer, "epochs": 30, "patience": 3}

    def run(self, arm: str, rate: float | None, seed: int) -> tuple[Recommender, float]:
        """The recommender, and the share of parameters that were trained, ids of users apart."""
        train = self.target.train
        if rate is None:
            return transfer.adapt(self.source, train, freeze="*", seed=seed).recommender, 0.0
        options = self._options(rate) | {"batch_size": 256, "validation": self.target.validation, "seed": seed}
        if arm == "scratch":
            return jaxrec.fit(self.model(train), train, **options), 1.0
        if arm in _ADAPTERS:
            options |= {"adapters": _ADAPTERS[arm], "freeze": "*"}
        found = transfer.adapt(self.source, train, **options)
        sizes = {path: leaf.size for path, leaf in flatten_dict(found.recommender.params, sep="/").items()}
        trained = sum(size for path, size in sizes.items() if path not in found.frozen.leaves)
        # of the base's, without the ids that no arm trains
        whole = sum(
            size for path, size in sizes.items() if not path.startswith("adapters/") and path != "user/embedding"
        )
        return found.recommender, trained / whole

    def value(self, recommender: Recommender, part: str) -> float:
        report = jaxrec.evaluate(recommender, self.held_out[part], ks=(10,), candidates=self.candidates)
        return float(report["ndcg@10"])


def measure(name: str, bench: Bench, arm: str, own: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the seeds that ``own`` has none of."""
    if own:
        rate, validation = own[0]["rate"], own[0]["validation"]
    else:
        tried: dict[float | None, float] = {}
        for rate in (None,) if arm == "as it is" else _RATES:
            tried[rate] = bench.value(bench.run(arm, rate, 0)[0], "validation")
            print("   ", name, arm, rate, f"{tried[rate]:.4f}", flush=True)
        rate = max(tried, key=lambda each: tried[each])
        validation = {str(key): tried[key] for key in tried}
    for seed in missing_seeds(arm, own):
        start = time.perf_counter()
        recommender, share = bench.run(arm, rate, seed)
        row = {"task": name, "arm": arm, "seed": seed, "rate": rate, "metric": "ndcg@10", "trained": round(share, 4)}
        row["source_rate"] = bench.source_rate
        row |= {"value": bench.value(recommender, "test"), "validation": validation}
        row |= {"seconds": round(time.perf_counter() - start, 1), "commit": harness.commit()}
        print(row, flush=True)
        yield row


def missing_seeds(arm: str, own: list[dict[str, Any]]) -> list[int]:
    seeds = _SEEDS[: _FEWER.get(arm, len(_SEEDS))]
    return [seed for seed in seeds if seed not in {row["seed"] for row in own}]


def kept(here: dict[str, np.ndarray], arm: str, base: str) -> tuple[float, float]:
    """The share of full fine-tuning's gain over ``base``, and half of its 95 % interval over seeds of the training.

    By the ratio's linear part and Student's t for the fewest seeds; the source and the test users are taken as given.
    """
    gain = here["full"].mean() - here[base].mean()
    share = (here[arm].mean() - here[base].mean()) / gain
    slopes = {arm: 1.0, "full": -share, base: share - 1.0}
    drawn = {name: here[name] for name in slopes if len(here[name]) > 1}
    variance = sum(slopes[name] ** 2 * values.var(ddof=1) / len(values) for name, values in drawn.items())
    fewest = min(map(len, drawn.values()))
    return float(share), float(stats.t.ppf(0.975, fewest - 1) * variance**0.5 / abs(gain))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means over seeds, and what part an arm has of what full fine-tuning gains over either other way."""
    heads = ["trained", "NDCG@10", "sd", "of the gain over scratch", "of the gain over the source as it is", "seeds"]
    lines = ["| task | arm | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    found = pd.DataFrame(rows)
    for name in (each for each in TASKS if each in set(found["task"])):
        task = found[found["task"] == name]
        here = {arm: task.loc[task["arm"] == arm, "value"].to_numpy() for arm in _ARMS if arm in set(task["arm"])}
        for arm, values in here.items():
            share = task.loc[task["arm"] == arm, "trained"].iloc[0]
            spread = f"{values.std(ddof=1):.4f}" if len(values) > 1 else ""
            cells = [f"{share:.1%}", f"{values.mean():.4f}", spread]
            for base in ("scratch", "as it is"):
                of = kept(here, arm, base) if arm in _ADAPTERS else None
                cells.append("" if of is None else f"{of[0]:.0%} ± {of[1]:.0%}")
            lines.append("| " + " | ".join([name, arm, *cells, str(len(values))]) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--table", action="store_true", help="print the table and stop")
    rows: list[dict[str, Any]] = harness.saved(_RESULTS)
    if arguments.parse_args().table:
        print(table(rows))
        return
    for name, make in TASKS.items():
        of_arm = {arm: [row for row in rows if (row["task"], row["arm"]) == (name, arm)] for arm in _ARMS}
        missing = {arm: own for arm, own in of_arm.items() if missing_seeds(arm, own)}
        bench = Bench(make(harness.data_folder(), None)) if missing else None
        for arm, own in missing.items():
            assert bench is not None
            for row in measure(name, bench, arm, own):
                rows.append(row)
                harness.save(_RESULTS, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
