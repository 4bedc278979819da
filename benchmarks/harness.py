"""What every benchmark shares: timings in turn, the machine's limits, rows of results."""

import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RESULTS = Path(__file__).parent / "results"
THREADS = len(os.sched_getaffinity(0))
"""What every system may use."""
Run = Callable[[], float]
"""Does one unit of work (an epoch, a block of queries) and returns how many units of the task that was."""


def measure(
    task: str,
    case: str,
    systems: dict[str, Callable[[], Run]],
    *,
    unit: str,
    repeats: int = 3,
    budget: float = 60.0,
    quality: dict[str, Callable[[], float]] | None = None,
    bound: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Times the systems of one package; the packages take turns in processes of their own (``rounds``).

    Args:
      task: number of the task, such as ``"T1"``.
      case: what exactly is measured.
      systems: by name, a function that prepares a system and returns its ``Run``. The first run compiles and is not
        counted; its time less the median is reported as ``compile``.
      unit: of the value, per second.
      repeats: timed runs of each system.
      budget: seconds after which a system is not repeated any more; two runs are timed at least.
      quality: by name, a figure to stand beside the speed, computed after the last run.
      bound: bytes and flops of one unit of work, from which the attained share is computed; or that by system.
    """
    runs, first, times, units, rows = {}, {}, {}, {}, []
    for name, prepare in systems.items():
        if name.split()[0] != PACKAGE:
            continue
        try:
            run = prepare()
            start = time.perf_counter()
            units[name] = run()
        except ImportError as error:
            print(f"{task} {case} {name}: left out, {error}", flush=True)
            continue
        first[name], runs[name], times[name] = time.perf_counter() - start, run, []
        rows.append({"system": name})
    for number in range(repeats):
        for name, run in runs.items():
            if number >= 2 and sum(times[name]) > budget:
                continue
            start = time.perf_counter()
            units[name] = run()
            times[name].append(time.perf_counter() - start)
    peak = peak_mib()  # before anything is evaluated
    for row in rows:
        name = row["system"]
        seconds = statistics.median(times[name])
        rate = units[name] / seconds
        row |= {"task": task, "case": case, "version": version(name), "value": rate, "unit": f"{unit}/s"}
        row |= {"ms": 1e3 * seconds, "compile_s": round(max(0.0, first[name] - seconds), 3)}
        row["quality"] = quality[name]() if quality and name in quality else None
        work = bound.get(name, bound) if bound and name.startswith("jaxrec") else None
        if work:
            limit = min(LIMITS[key] / work[key] for key in work if work[key])
            row["attained"] = round(rate / limit, 3)
        row["rss_mib"] = peak
        print(f"{task} {case:34} {name:28} {rate:14,.0f} {unit}/s  {row['quality'] or ''}", flush=True)
    return [{**stamp(), **row} for row in rows]


def peak_mib() -> int:
    """Most memory that this process held. ``getrusage`` would count what its parent held before it started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def limits() -> dict[str, float]:
    """What the machine reaches by all threads: bytes/s of a large copy, flops/s of a large product."""
    there, here = np.ones(2**25), np.zeros(2**25)  # written once before, or page faults would be timed
    parts = [np.array_split(array, THREADS) for array in (here, there)]
    left = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    with ThreadPoolExecutor(THREADS) as pool:
        copy = _best(lambda: list(pool.map(np.copyto, *parts)))
    return {
        "bytes": 2 * here.nbytes / copy,
        "flops": 2 * 2048**3 / _best(lambda: product(left).block_until_ready()),
    }


def _best(call: Callable[[], Any]) -> float:
    call()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


LIMITS: dict[str, float] = {}
PACKAGE = "jaxrec"


def rounds(script: str, task: str, packages: tuple[str, ...], *arguments: str, number: int) -> list[dict[str, Any]]:
    """Rows of a task, each the median over rounds in which every package in turn has a process of its own.

    Together in one process they would disturb each other: idle threads of one library spin while another works.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(number):
        for package in packages:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "rows.json"
                command = [sys.executable, script, "--only", task, "--package", package, "--rows", str(out), *arguments]
                blas = THREADS if task == "T6" or package in ("numpy", "sklearn") else 1
                subprocess.run(command, check=True, env=environment(folder, blas=blas))
                for row in json.loads(out.read_text()):
                    found.setdefault((row["case"], row["system"]), []).append(row)
    return [_merged(rows) for rows in found.values()]


def _merged(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the turns; the rate is that of the median time, or whoever is more disturbed would gain by it."""
    row = dict(turns[0])
    for name in ("ms", "compile_s", "rss_mib", "quality", "attained"):
        if row.get(name) is not None:
            row[name] = statistics.median(turn[name] for turn in turns)
    units = turns[0]["value"] * turns[0]["ms"]
    return row | {"value": units / row["ms"], "turns_ms": [round(turn["ms"], 3) for turn in turns]}


def environment(folder: str, *, blas: int = 1) -> dict[str, str]:
    """Of a process that measures a system: implicit asks for one BLAS thread where it trains, and has threads of its
    own; what has none takes all. What torch compiles is kept in ``folder``, or an earlier turn would spare it that."""
    return os.environ | {"OPENBLAS_NUM_THREADS": str(blas), "TORCHINDUCTOR_CACHE_DIR": folder}


def stamp() -> dict[str, Any]:
    """Where and with what a figure was made."""
    return {
        "device": jax.devices()[0].device_kind if jax.default_backend() != "cpu" else _processor(),
        "threads": THREADS,
        "commit": commit(),
        "jax": jax.__version__,
        "seed": 0,
    }


def commit() -> str:
    """The commit checked out, abbreviated."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return found.stdout.strip()


def grid(**options: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Every combination of the options' values."""
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def data_folder() -> Path:
    """Where the real data lies; ends the program with a message where nobody said."""
    folder = os.environ.get("JAXREC_DATA")
    if not folder:
        raise SystemExit("JAXREC_DATA names no folder of data.")
    return Path(folder)


def _processor() -> str:
    """Its name, and the numbers that tell those of one name apart."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    about = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    if "model name" not in about:
        return platform.machine()
    numbers = [f"{what.split()[-1]} {about[what]}" for what in ("cpu family", "model") if what in about]
    return f"{about['model name']} ({', '.join(numbers)})" if numbers else about["model name"]


def version(system: str) -> str:
    """Of the package that a system's name begins with."""
    package = {"numpy": "numpy", "sklearn": "scikit-learn", "faiss": "faiss-cpu"}.get(
        system.split()[0], system.split()[0]
    )
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def saved(path: Path) -> Any:
    """What ``save`` wrote; an empty list where nothing is."""
    return json.loads(path.read_text()) if path.exists() else []


def save(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all; a list of rows with a row on each line."""
    if isinstance(content, list):
        text = "[\n" + ",\n".join(json.dumps(row, default=float) for row in content) + "\n]"
    else:
        text = json.dumps(content, indent=1, default=float)
    temporary = path.with_suffix(".part")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Replaces the rows of the same task, case and system in a file of results, and adds the others."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    old = saved(path)

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["task"], row["case"], row["system"], row["device"]

    new = {key(row) for row in rows}
    kept = [row for row in old if key(row) not in new] + [
        {name: round(value, 4) if isinstance(value, float | np.floating) else value for name, value in row.items()}
        for row in rows
    ]
    save(path, sorted(kept, key=key))
