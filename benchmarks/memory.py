"""Peak memory of training ten million rows by row-wise Adagrad, beside the tables themselves.

python benchmarks/memory.py    # a minute, 4 GiB -> results/memory.json

Each size is a process of its own: a factorization of as many users as items, 64 wide, is initialised and trained by BPR
for 64 steps of 4,096 examples. *Peak* is the most memory that the process held (VmHWM), *before* what it held when
everything was imported and no table made.
"""

import argparse
import functools
import json
import subprocess
import sys
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import data, losses, models, optim, train

_SIZES = (100_000, 1_000_000, 10_000_000)  # rows of both tables
_DIM, _BATCH, _STEPS = 64, 4096, 64


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
    half = size // 2
    model = models.MatrixFactorization(user_rows=half, item_rows=half, dim=_DIM, bias=False)
    optimizer, loss = optim.row_sparse(optim.rowwise_adagrad(0.1)), losses.on_batch("bpr")
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.integers, 1, half, dtype=np.int32)
    weight = np.ones((_STEPS, _BATCH), np.float32)
    stack = data.Batch(user=draw((_STEPS, _BATCH)), item=draw((_STEPS, _BATCH, 2)), weight=weight)
    example = data.Batch(*(None if values is None else values[0] for values in stack))
    row = jnp.arange(half, dtype=jnp.int32)
    features = data.Features(user_row=row, item_row=row)
    epoch = jax.jit(
        functools.partial(train.train_epoch, model=model, loss=loss, optimizer=optimizer), donate_argnums=(0,)
    )
    before = harness.peak_mib()
    params = model.init(jax.random.key(0))
    jax.block_until_ready(params)
    made = harness.peak_mib()
    state = train.init_state(model, params, optimizer, example, features, key=jax.random.key(1))
    del params
    for _ in range(2):
        state, info = epoch(state, stack, features, _STEPS)
        jax.block_until_ready(state)
    if int(state.step) != 2 * _STEPS:
        raise ValueError(f"Expected {2 * _STEPS} steps, took {int(state.step)}.")
    tables = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) >> 20
    states = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state)) >> 20
    found = {"rows": size, "tables_mib": tables, "optimizer_mib": states, "before_mib": before}
    return found | {"initialised_mib": made, "peak_mib": harness.peak_mib()}


if __name__ == "__main__":
    main()
