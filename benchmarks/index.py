"""Approximate against exact top-100 of 200,000 items: milliseconds for a user, and how many of the best are found.

python benchmarks/index.py   # about 3 minutes on two cores, 2 GiB -> results/index.json

Two catalogues of random vectors, 64 numbers each: of one spread in all directions, where a graph hardly knows the way,
and with a spread that falls as the square root of the direction's number and a common direction, as in factorizations.
Searches for one user and for 128, the exact one and those by ``ranking.Index`` with more and more effort in turn;
medians, after a first search of each, which compiles. Where ``JAXREC_DATA`` is set, also ``recommend`` with and without
an index of the 10,000 books of goodbooks, factorised by iALS, for 1 and for 2,000 users.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from protocols import PROTOCOLS

import jaxrec
from jaxrec import ranking, train

_ITEMS, _DIM, _K, _TIMES = 200_000, 64, 100, 9
_EFFORTS = (100, 200, 400, 800)


def measured(case: str, searches: dict[str, Callable[[], Any]], users: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each search; the first is the exact one."""
    found = {name: np.asarray(jax.block_until_ready(search()).position) for name, search in searches.items()}
    taken: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(_TIMES):
        for name, search in searches.items():
            start = time.perf_counter()
            jax.block_until_ready(search())
            taken[name].append(time.perf_counter() - start)
    rows = []
    for name, times in taken.items():
        shared = sum(len(np.intersect1d(*each)) for each in zip(found[name], found["exact"], strict=True))
        row = {"task": "index", "case": case, "system": name, "unit": "ms a user"}
        row |= {"value": 1e3 * float(np.median(times)) / users, "recall": shared / (users * _K)}
        row |= {"seconds to build": 0.0 if name == "exact" else seconds, **harness.stamp()}
        print({key: row[key] for key in ("case", "system", "value", "recall", "seconds to build")}, flush=True)
        rows.append(row)
    return rows


def of_books() -> list[dict[str, Any]]:
    protocol = PROTOCOLS["goodbooks"](harness.data_folder())
    recommender = train.fit_als(protocol.encoded(), dim=_DIM, epochs=8, unobserved=0.1, l2=0.01)
    start = time.perf_counter()
    index = ranking.Index.of(recommender)
    seconds = time.perf_counter() - start
    everybody = protocol.frames["interactions"][protocol.schema.user].unique()

    def lists(users: np.ndarray, **options: Any) -> ranking.TopK:
        found = jaxrec.recommend(recommender, users, k=_K, exclude_seen=False, **options)
        return ranking.TopK(*(found[name].to_numpy().reshape(len(users), _K) for name in ("score", "item")))

    rows = []
    for number in (1, 2000):
        users = everybody[:number]
        searches = {"exact": functools.partial(lists, users), "index": functools.partial(lists, users, index=index)}
        rows += measured(f"goodbooks by recommend, {number:,} user(s)", searches, number, seconds)
    return rows


def main() -> None:
    written = of_books() if os.environ.get("JAXREC_DATA") else []
    for case, fall in (("one spread", 0.0), ("falling spread, common direction", 0.5)):
        rng = np.random.default_rng(0)
        spread = (np.arange(1, _DIM + 1) ** -fall).astype(np.float32)
        items = rng.normal(size=(_ITEMS, _DIM)).astype(np.float32) * spread
        common = (np.arange(_DIM) == 0) * np.float32(fall > 0)
        items += common
        items = np.pad(items, ((0, -_ITEMS % 2048), (0, 0)))  # what the exact search would do in every call
        live = np.arange(len(items)) < _ITEMS
        catalogue, alive = jnp.asarray(items), jnp.asarray(live)
        start = time.perf_counter()
        index = ranking.Index(items, live=live)
        seconds = time.perf_counter() - start
        for number in (1, 128):
            users = rng.normal(size=(number, _DIM)).astype(np.float32) * spread + common
            searches = {"exact": functools.partial(ranking.search, users, catalogue, k=_K, live=alive)}
            for effort in _EFFORTS:
                searches[f"index, effort {effort}"] = functools.partial(index.search, users, k=_K, effort=effort)
            written += measured(f"{case}, {number} user(s)", searches, number, seconds)
    harness.write("index.json", written)


if __name__ == "__main__":
    main()
