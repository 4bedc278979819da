"""Ten thousand new items join a model of a million and are recommended: seconds, compilation apart.

python benchmarks/adding.py   # about 2 minutes and 3 GiB -> results/adding.json

A two-tower model with a category and five labels for each item is trained for an epoch on generated interactions. Then,
several times, 10,000 items that nobody has touched are added by their features and 100 users get lists of 20 from all
1,010,000 items, and from the new ones alone. The first call compiles.
"""

import time
from typing import Any

import harness
import numpy as np
import pandas as pd

import jaxrec
from jaxrec import coldstart, data, models

_ITEMS, _NEW, _USERS, _ROWS, _TIMES = 1_000_000, 10_000, 50_000, 1_000_000, 6


def items(first: int, count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2000, (count, 5)).astype(str)
    return pd.DataFrame(
        {"item": np.arange(first, first + count), "kind": rng.integers(0, 50, count), "labels": labels.tolist()}
    )


def main() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": rng.integers(0, _USERS, _ROWS), "item": rng.integers(0, _ITEMS, _ROWS)})
    rows.loc[: _ITEMS // 2 - 1, "item"] = np.arange(_ITEMS // 2)  # half the catalogue has been touched at least once
    schema = data.Schema(item_features=(data.Categorical("kind"), data.Labels("labels")))
    frame = items(0, _ITEMS, 1)
    train = data.encode(data.Parts(rows.drop_duplicates(), None, None), schema, items=frame).train
    model = models.TwoTower.for_data(train, dim=64, hidden=(64,), code_dim=16)
    recommender = jaxrec.fit(model, train, epochs=1, batch_size=4096)
    users = np.arange(100)
    seconds: dict[str, list[float]] = {"add and recommend from all": [], "add and recommend the new ones": []}
    for number in range(_TIMES):
        new = items(_ITEMS + number * _NEW, _NEW, 2 + number)
        start = time.perf_counter()
        lists = jaxrec.recommend(recommender, users, new_items=new, k=20)
        seconds["add and recommend from all"].append(time.perf_counter() - start)
        shares = [float((lists["item"] >= _ITEMS).mean())]
        start = time.perf_counter()
        grown = coldstart.add(recommender, items=new)
        found = jaxrec.recommend(grown, users, candidates=new["item"], k=20)
        seconds["add and recommend the new ones"].append(time.perf_counter() - start)
        assert found["item"].ge(_ITEMS).all() and np.isfinite(found["score"]).all()
        shares.append(float((found["item"] >= _ITEMS).mean()))
    written: list[dict[str, Any]] = []
    for (case, values), share in zip(seconds.items(), shares, strict=True):
        row = {"task": "adding items", "case": case, "system": "jaxrec", "value": float(np.median(values[1:]))}
        row |= {"unit": "s", "first, compiling": values[0], "all": [round(value, 3) for value in values]}
        row |= {"share of lists that is new": share, "rss": harness.peak_mib(), **harness.stamp()}
        print({name: row[name] for name in ("case", "value", "first, compiling", "rss")}, flush=True)
        written.append(row)
    harness.write("adding.json", written)


if __name__ == "__main__":
    main()
