"""Does training from disk keep up with training from memory, and what does it save?

python benchmarks/streaming.py                         # about 5 minutes on two cores -> results/streaming.json
python benchmarks/streaming.py --rows 2000000 --sizes 2000000 --out x.json

Rates: epochs of ``fit`` on both sides in one process, in turn, with the file in the system's cache. Memory: each side,
and the encoding, in a process of its own, two epochs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import optax
import pandas as pd

import jaxrec
from jaxrec import data, models, optim

USERS, ITEMS, DIM, BATCH, WINDOW = 100_000, 20_000, 64, 4096, 2**20
SCHEMA = data.Schema()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=5_000_000, help="for the rates")
    arguments.add_argument("--sizes", type=int, nargs="*", default=[5_000_000, 20_000_000], help="for the memory")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--out", default="streaming.json")
    arguments.add_argument("--only", choices=list(SIDES), help="run one side in this process, and print its memory")
    arguments.add_argument("--folder", type=Path)
    options = arguments.parse_args()
    if options.only:
        print(json.dumps(memory_of(options.only, options.folder)))
        return
    for rows in sorted({options.rows, *options.sizes}):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_parquet(folder / "rows.parquet", rows)
            found = [measured(side, folder, rows) for side in SIDES] if rows in options.sizes else []
            if rows == options.rows:
                if not found:
                    SIDES["encode"](folder)
                found += rates(folder, rows, options.repeats)
            harness.write(options.out, [{**harness.stamp(), **row} for row in found])


def write_parquet(path: Path, rows: int) -> None:
    """Items by Zipf's law, in parts, so that this process stays small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for frame in frames(rows):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def frames(rows: int) -> Iterator[pd.DataFrame]:
    rng = np.random.default_rng(0)
    running = np.cumsum(1.0 / np.arange(1, ITEMS + 1) ** 0.8)
    for start in range(0, rows, 2**20):
        size = min(2**20, rows - start)
        item = np.searchsorted(running, rng.random(size) * running[-1])
        yield pd.DataFrame({"user": rng.integers(0, USERS, size), "item": item})


def from_memory(folder: Path) -> data.Dataset:
    frame = pd.read_parquet(folder / "rows.parquet")
    return data.encode(data.Parts(frame, None, None), SCHEMA).train


def from_disk(folder: Path) -> data.Dataset:
    return data.open_dataset(folder / "encoded", window=WINDOW)


def fit(dataset: data.Dataset, epochs: int) -> list[float]:
    """Seconds of each epoch; the first compiles."""
    model = models.MatrixFactorization.for_data(dataset, dim=DIM, bias=False)
    recommender = jaxrec.fit(model, dataset, loss="bpr", optimizer=OPTIMIZER, epochs=epochs, batch_size=BATCH)
    return recommender.history["seconds"].tolist()


OPTIMIZER = optim.row_sparse(optax.sgd(0.05 * BATCH))  # the cheapest step, against which reading weighs most
SIDES: dict[str, Any] = {
    "encode": lambda folder: data.encode_to_disk(folder / "rows.parquet", SCHEMA, folder / "encoded", window=WINDOW),
    "memory": lambda folder: fit(from_memory(folder), 2),
    "disk": lambda folder: fit(from_disk(folder), 2),
}


def rates(folder: Path, rows: int, repeats: int) -> list[dict[str, Any]]:
    """Rows per second, by the median of epochs that do not compile."""
    sides = {"memory": from_memory(folder), "disk": from_disk(folder)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, dataset in sides.items():
            seconds[name] += fit(dataset, 3)[1:]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    found = []
    for name in sides:
        ratio = middle["memory"] / middle[name]
        row = {"task": "S1", "case": f"BPR d={DIM}, {USERS} x {ITEMS}, {rows:,} rows", "system": f"jaxrec {name}"}
        row |= {"value": rows / middle[name], "unit": "examples/s", "ms": 1e3 * middle[name], "ratio": ratio}
        print(f"S1 {rows:,} rows {name:8} {row['value']:12,.0f} examples/s  {ratio:.3f} of memory's", flush=True)
        found.append(row)
    return found


def measured(side: str, folder: Path, rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", side, "--folder", str(folder)]
    last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    row = {"task": "S2", "case": f"{rows:,} rows", "system": f"jaxrec {side}", **json.loads(last)}
    print(f"S2 {rows:,} rows {side:8} {row}", flush=True)
    return row


def memory_of(side: str, folder: Path) -> dict[str, Any]:
    """Peaks of this process: all that was resident, and of that what is its own and cannot be read from files again."""
    own, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            own[0] = max(own[0], *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    SIDES[side](folder)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"rss_mib": harness.peak_mib(), "own_mib": own[0] // 1024, "seconds": seconds}


if __name__ == "__main__":
    main()
