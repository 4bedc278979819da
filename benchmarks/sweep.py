"""Many settings of a linear model: all at once against one after another.

Both ways are given the same batches and start from the same parameters, are compiled before the clock starts, and take
turns in one process. ``loop`` is the compiled program alone, all epochs in one call: a scan over steps that are mapped
over the settings, as ``train.sweep`` does it, against a scan (``lax.map``) of ``train_epoch`` over the settings.
``end to end`` is what a user calls: ``train.sweep`` against ``fit(hyperparams=)`` in a Python loop, the making of
batches included.

python benchmarks/sweep.py                     # about a minute on two cores
python benchmarks/sweep.py --settings 16 --out x.json
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import jaxrec
from jaxrec import data, losses, models, optim, train

WIDTHS = (20, 100)
BATCH, EPOCHS, ROWS = 256, 5, 10_000
OPTIMIZER = optim.row_sparse(optax.inject_hyperparams(optax.adamw)(learning_rate=0.01, weight_decay=0.0))
Way = Callable[[], list[Any]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--settings", type=int, default=64)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--out", default=str(Path(__file__).parent / "results" / "sweep.json"))
    options = arguments.parse_args()
    rows = []
    for width in WIDTHS:
        part = problem(width)
        space = {"learning_rate": (1e-3, 1e-1), "weight_decay": (1e-4, 1e-1)}
        settings = train.random_settings(space, options.settings, seed=0)
        for scope, ways in (("loop", loops(part, settings)), ("end to end", verbs(part, settings))):
            row = {"scope": scope, "settings": options.settings, "features": width, "examples": ROWS, "batch": BATCH}
            rows.append({**row, "epochs": EPOCHS, **compared(*ways, options.repeats)})
            print(rows[-1], flush=True)
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"
    harness.save(Path(options.out), {"device": device, "repeats": options.repeats, "rows": rows})


def problem(width: int) -> data.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, width))
    frame = pd.DataFrame({"x": list(x), "y": x @ rng.normal(size=width) + rng.normal(size=ROWS)})
    schema = data.Schema(user=None, item=None, target="y", context=(data.Vector("x"),))
    return data.Encoder.fit(frame, schema).encode(frame)


def loops(part: data.Dataset, settings: list[dict[str, float]]) -> tuple[Way, Way]:
    """Programs that go through all epochs of all settings."""
    model, loss = models.Linear.for_data(part), losses.on_batch("mse")
    batches = data.Batches(part, batch_size=BATCH, negatives=None, history=0, seed=0)
    chunks = [batch for number in range(1, EPOCHS + 1) for batch, _ in batches.epoch(number)]
    assert len(chunks) == EPOCHS  # an epoch fits in a chunk
    stack, steps = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *chunks)), batches.steps
    features = jax.device_put(part.features)
    start = train.init_state(
        model, model.init(jax.random.key(0)), OPTIMIZER, batches.example(), features, key=jax.random.key(1)
    )
    values = {name: jnp.asarray([row[name] for row in settings], jnp.float32) for name in settings[0]}

    def begun(values: dict[str, jax.Array]) -> train.TrainState:
        return start._replace(opt_state=optim.with_hyperparams(start.opt_state, values))

    def alone(values: dict[str, jax.Array], stack: Any) -> Any:
        def epoch(state: train.TrainState, batches: Any) -> tuple[train.TrainState, jax.Array]:
            state, info = train.train_epoch(
                state, batches, features, steps, model=model, loss=loss, optimizer=OPTIMIZER
            )
            return state, info.ok

        return jax.lax.scan(epoch, begun(values), stack)[0].params

    def step(state: train.TrainState, batch: Any) -> tuple[train.TrainState, Any]:
        return train.train_step(state, batch, features, model=model, loss=loss, optimizer=OPTIMIZER)

    def mapped(values: dict[str, jax.Array], stack: Any) -> Any:
        flat = jax.tree.map(lambda leaf: leaf[:, :steps].reshape(-1, *leaf.shape[2:]), stack)
        return jax.lax.scan(jax.vmap(step, in_axes=(0, None)), jax.vmap(begun)(values), flat)[0].params

    together, in_turn = (
        jax.jit(mapped),
        jax.jit(lambda values, stack: jax.lax.map(lambda own: alone(own, stack), values)),
    )
    return (
        lambda: jax.block_until_ready([together(values, stack)]),
        lambda: jax.block_until_ready([in_turn(values, stack)]),
    )


def verbs(part: data.Dataset, settings: list[dict[str, float]]) -> tuple[Way, Way]:
    model = models.Linear.for_data(part)
    options: dict[str, Any] = {"optimizer": OPTIMIZER, "epochs": EPOCHS, "batch_size": BATCH}

    def together() -> list[Any]:
        return jax.block_until_ready(
            [each.params for each in train.sweep(model, part, settings, **options).recommenders]
        )

    def in_turn() -> list[Any]:
        fitted = [jaxrec.fit(model, part, hyperparams=setting, **options) for setting in settings]
        return jax.block_until_ready([each.params for each in fitted])

    return together, in_turn


def compared(together: Way, in_turn: Way, repeats: int) -> dict[str, Any]:
    """Median seconds of both, taking turns, and by how much their results differ at most."""
    pairs = zip(jax.tree.leaves(together()), jax.tree.leaves(in_turn()), strict=True)
    difference = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    seconds: dict[str, list[float]] = {"together": [], "one after another": []}
    for _ in range(repeats):
        for name, way in zip(seconds, (together, in_turn), strict=True):
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        **{name: round(each, 4) for name, each in medians.items()},
        "speed-up": round(medians["one after another"] / medians["together"], 2),
        "all seconds": {name: [round(value, 4) for value in each] for name, each in seconds.items()},
        "largest difference": difference,
    }


if __name__ == "__main__":
    main()
