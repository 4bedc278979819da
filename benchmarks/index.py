"""Approximate against exact top-100 of a million items: milliseconds for a user, and how many of the best are found.

python benchmarks/index.py   # about 15 minutes on two busy cores, 3 GiB -> results/index.json

Two catalogues of random vectors, 64 numbers each: of one spread in all directions, where a graph hardly knows the way,
and with a spread that falls as the square root of the direction's number, as in factorizations. Searches for one user
and for 128, the exact one and those by ``ranking.Index`` with more and more effort in turn; medians, after a first
search of each, which compiles.
"""

import functools
import time
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import ranking

_ITEMS, _DIM, _K, _TIMES = 1_000_000, 64, 100, 9
_EFFORTS = (100, 200, 400, 800)


def main() -> None:
    written: list[dict[str, Any]] = []
    for case, fall in (("one spread", 0.0), ("falling spread", 0.5)):
        rng = np.random.default_rng(0)
        spread = (np.arange(1, _DIM + 1) ** -fall).astype(np.float32)
        items = rng.normal(size=(_ITEMS, _DIM)).astype(np.float32) * spread
        items = np.pad(items, ((0, -_ITEMS % 2048), (0, 0)))  # what the exact search would do in every call
        live = np.arange(len(items)) < _ITEMS
        catalogue, alive = jnp.asarray(items), jnp.asarray(live)
        start = time.perf_counter()
        index = ranking.Index(items, live=live)
        seconds = time.perf_counter() - start
        for number in (1, 128):
            users = rng.normal(size=(number, _DIM)).astype(np.float32) * spread
            searches = {"exact": functools.partial(ranking.search, users, catalogue, k=_K, live=alive)}
            for effort in _EFFORTS:
                searches[f"index, effort {effort}"] = functools.partial(index.search, users, k=_K, effort=effort)
            taken: dict[str, list[float]] = {name: [] for name in searches}
            found = {name: np.asarray(jax.block_until_ready(search()).position) for name, search in searches.items()}
            for _ in range(_TIMES):
                for name, search in searches.items():
                    start = time.perf_counter()
                    jax.block_until_ready(search())
                    taken[name].append(time.perf_counter() - start)
            for name, times in taken.items():
                shared = (found[name][:, :, None] == found["exact"][:, None, :]).sum() / (number * _K)
                row = {"task": "index", "case": f"{case}, {number} user(s)", "system": name, "unit": "ms a user"}
                row |= {"value": 1e3 * float(np.median(times)) / number, "recall": float(shared)}
                row |= {"seconds to build": 0.0 if name == "exact" else seconds, **harness.stamp()}
                print({key: row[key] for key in ("case", "system", "value", "recall", "seconds to build")}, flush=True)
                written.append(row)
    harness.write("index.json", written)


if __name__ == "__main__":
    main()
