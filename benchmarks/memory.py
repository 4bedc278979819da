"""Peak memory of training ten million rows by row-wise Adagrad, beside the tables themselves.

python benchmarks/memory.py    # a minute, 4 GiB -> results/memory.json

Each size is a process of its own, which takes the steps of T5 (``tasks/factorization.py``). *Peak* is the most memory
that the process held (VmHWM), *before* what it held when everything was imported and no table made.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import harness
from tasks.common import DIM
from tasks.factorization import OPTIMISERS, jaxrec_step

_SIZES = (100_000, 1_000_000, 10_000_000)  # rows of both tables


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, help="measure this size in this process")
    options = arguments.parse_args()
    if options.rows is not None:
        print(json.dumps(_measured(options.rows)))
        return
    rows = []
    for size in _SIZES:
        command = [sys.executable, __file__, "--rows", str(size)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({**harness.stamp(), **json.loads(found.splitlines()[-1])})
        print(rows[-1], flush=True)
    harness.save(harness.RESULTS / "memory.json", rows)


def _measured(size: int) -> dict[str, Any]:
    found = {"rows": size, "tables_mib": 4 * DIM * size >> 20, "before_mib": harness.peak_mib()}
    run = jaxrec_step(size, OPTIMISERS["row-wise adagrad"])
    found["initialised_mib"] = harness.peak_mib()
    for _ in range(2):
        run()
    return found | {"peak_mib": harness.peak_mib()}


if __name__ == "__main__":
    main()
