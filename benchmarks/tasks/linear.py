"""T7: linear and logistic regression on a plain matrix."""

import functools
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from jaxrec import data, losses, models, optim, train
from tasks.common import BATCH, Scores, trainer

_WIDTH, _RATE = 32, 0.05


def regression(full: bool) -> list[dict[str, Any]]:
    """An epoch of mini-batch SGD over a million rows of 32 numbers, shuffled and in their own order.

    scikit-learn moves after every row. Its full solvers need no epochs: they are beside it, a solution for a run.
    Quality is the mean squared error, or the log loss, on rows held out.
    """
    rows, num = [], 1_000_000
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num + 50_000, _WIDTH)).astype(np.float32)
    weights = rng.normal(size=_WIDTH).astype(np.float32) / _WIDTH**0.5
    noise = rng.normal(size=len(x)).astype(np.float32)
    for kind in ("linear", "logistic"):
        y = x @ weights + 0.5 * noise if kind == "linear" else (2 * x @ weights + noise > 0).astype(np.float32)
        held = x[num:], y[num:]
        found: Scores = {}
        given = (kind, x[:num], y[:num], found)
        systems = {
            "jaxrec shuffled": functools.partial(_jaxrec_shuffled, *given),
            "jaxrec in order": functools.partial(_jaxrec_in_order, *given),
            "torch shuffled": functools.partial(_torch_epoch, *given, shuffle=True),
            "torch in order": functools.partial(_torch_epoch, *given, shuffle=False),
            "torch by hand shuffled": functools.partial(_torch_by_hand, *given, shuffle=True),
            "torch by hand in order": functools.partial(_torch_by_hand, *given, shuffle=False),
            "sklearn SGD shuffled": functools.partial(_sklearn_sgd, *given, shuffle=True),
            "sklearn SGD in order": functools.partial(_sklearn_sgd, *given, shuffle=False),
            "sklearn solver": functools.partial(_sklearn_solver, *given),
        }
        quality = {name: functools.partial(_error, kind, found, name, held) for name in systems}
        case = f"{kind} regression, {num:,} x {_WIDTH}"
        bound = {"bytes": 4 * (_WIDTH + 1)}
        rows += harness.measure("T7", case, systems, unit="examples", repeats=5, quality=quality, bound=bound)
    return rows


def _error(kind: str, found: Scores, name: str, held: tuple[np.ndarray, np.ndarray]) -> float:
    (x, y), (weights, bias) = held, found[name]()
    score = (x @ np.asarray(weights).reshape(-1) + float(np.asarray(bias).reshape(-1)[0])).astype(np.float64)
    if kind == "linear":
        return float(np.mean((score - y) ** 2))
    return float(np.mean(np.logaddexp(0.0, score) - y * score))


def _model(kind: str) -> tuple[models.Linear, str]:
    link, loss = ("identity", "mse") if kind == "linear" else ("sigmoid", "sigmoid_cross_entropy")
    return models.Linear(context=_WIDTH, link=link), loss


def _jaxrec_shuffled(kind: str, x: np.ndarray, y: np.ndarray, found: Scores) -> harness.Run:
    names = [f"x{number}" for number in range(_WIDTH)]
    frame = pd.DataFrame(x, columns=names).assign(y=y)
    context = tuple(data.Numeric(name, scale=None) for name in names)
    schema = data.Schema(user=None, item=None, target="y", context=context)
    dataset = data.encode(data.split_random(frame, validation=0.0, test=0.0, seed=0), schema).train
    model, loss = _model(kind)
    scores: Scores = {}
    run = trainer("jaxrec", scores, dataset, model, loss, optim.row_sparse(optax.sgd(_RATE)))
    found["jaxrec shuffled"] = lambda: _weights(scores["jaxrec"]().params)
    return run


def _weights(params: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(params["context"]["kernel"]), np.asarray(params["bias"])


def _jaxrec_in_order(kind: str, x: np.ndarray, y: np.ndarray, found: Scores) -> harness.Run:
    """The rows as one stack of batches in place; the last, incomplete one is left out on all sides."""
    model, loss = _model(kind)
    steps = len(x) // BATCH
    used = steps * BATCH
    stack = data.Batch(
        context=jnp.asarray(x[:used].reshape(steps, BATCH, _WIDTH)),
        target=jnp.asarray(y[:used].reshape(steps, BATCH)),
        weight=jnp.ones((steps, BATCH), jnp.float32),
    )
    features = data.Features(user_row=jnp.zeros(1, jnp.int32), item_row=jnp.zeros(1, jnp.int32))
    optimizer = optim.row_sparse(optax.sgd(_RATE))
    example = jax.tree.map(lambda values: values[0], stack)
    state = train.init_state(model, model.init(jax.random.key(0)), optimizer, example, features, key=jax.random.key(1))
    epoch = jax.jit(
        functools.partial(train.train_epoch, model=model, loss=losses.on_batch(loss), optimizer=optimizer),
        donate_argnums=(0,),
    )
    box = [state]

    def run() -> float:
        box[0], _ = epoch(box[0], stack, features)
        jax.block_until_ready(box[0].params)
        return used

    found["jaxrec in order"] = lambda: _weights(box[0].params)
    return run


def _torch_epoch(kind: str, x: np.ndarray, y: np.ndarray, found: Scores, *, shuffle: bool) -> harness.Run:
    """A layer, a loss and an optimiser."""
    import torch

    torch.set_num_threads(harness.THREADS)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    layer = torch.nn.Linear(_WIDTH, 1)
    torch.nn.init.zeros_(layer.weight)
    optimiser = torch.optim.SGD(layer.parameters(), lr=_RATE)
    loss = torch.nn.functional.mse_loss if kind == "linear" else torch.nn.functional.binary_cross_entropy_with_logits
    used = len(x) // BATCH * BATCH

    def run() -> float:
        order = torch.randperm(len(inputs)) if shuffle else None
        for start in range(0, used, BATCH):
            rows = slice(start, start + BATCH) if order is None else order[start : start + BATCH]
            optimiser.zero_grad()
            loss(layer(inputs[rows])[:, 0], targets[rows]).backward()
            optimiser.step()
        return used

    found[f"torch {'shuffled' if shuffle else 'in order'}"] = lambda: (
        layer.weight.detach().numpy(),
        layer.bias.detach().numpy(),
    )
    return run


def _torch_by_hand(kind: str, x: np.ndarray, y: np.ndarray, found: Scores, *, shuffle: bool) -> harness.Run:
    """The gradient written out, nothing recorded: what a fused kernel of torch could reach."""
    import torch

    torch.set_num_threads(harness.THREADS)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    weights, bias = torch.zeros(_WIDTH), torch.zeros(())
    used = len(x) // BATCH * BATCH
    factor = 2.0 if kind == "linear" else 1.0

    def run() -> float:
        order = torch.randperm(len(inputs)) if shuffle else None
        for start in range(0, used, BATCH):
            rows = slice(start, start + BATCH) if order is None else order[start : start + BATCH]
            a, b = inputs[rows], targets[rows]
            score = torch.addmv(bias.expand(len(a)), a, weights)
            error = (score if kind == "linear" else torch.sigmoid(score)) - b
            weights.addmv_(a.T, error, alpha=-_RATE * factor / BATCH)
            bias.sub_(_RATE * factor * error.mean())
        return used

    found[f"torch by hand {'shuffled' if shuffle else 'in order'}"] = lambda: (weights.numpy(), bias.numpy())
    return run


def _sklearn_sgd(kind: str, x: np.ndarray, y: np.ndarray, found: Scores, *, shuffle: bool) -> harness.Run:
    from sklearn.linear_model import SGDClassifier, SGDRegressor

    options = {"penalty": None, "max_iter": 1, "tol": None, "shuffle": shuffle, "random_state": 0}
    rate = {"learning_rate": "constant", "eta0": 1e-4}
    box: list[Any] = [None]

    def run() -> float:
        if kind == "linear":
            box[0] = SGDRegressor(**options, **rate).fit(x, y)
        else:
            box[0] = SGDClassifier(loss="log_loss", n_jobs=1, **options, **rate).fit(x, y)
        return len(x)

    found[f"sklearn SGD {'shuffled' if shuffle else 'in order'}"] = lambda: (box[0].coef_, box[0].intercept_)
    return run


def _sklearn_solver(kind: str, x: np.ndarray, y: np.ndarray, found: Scores) -> harness.Run:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    box: list[Any] = [None]

    def run() -> float:
        box[0] = LinearRegression().fit(x, y) if kind == "linear" else LogisticRegression(C=np.inf).fit(x, y)
        return len(x)

    found["sklearn solver"] = lambda: (box[0].coef_, box[0].intercept_)
    return run
