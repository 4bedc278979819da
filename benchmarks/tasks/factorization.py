"""T1 epochs of BPR, T2 an epoch of logistic factorization, T5 one step against the size of the tables."""

import functools
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import data, losses, models, optim, train
from tasks.common import BATCH, DIM, LARGE_SIZE, Scores, by_tables, known_share, matrix, ndcg, ratings, size_of, trainer

_RATE = 0.05
_PASSES = 3  # of a run: what implicit and Cornac make ready for every fit is not to count as an epoch's
_SCALE = 12**-0.5 * DIM**-0.5  # times a model's own: the spread that implicit and Cornac begin with
_NEGATIVES, _SHARED = 4, 256


def bpr(full: bool) -> list[dict[str, Any]]:
    """Three epochs of BPR: one negative per example, drawn anew, SGD. implicit draws items of random rows, the others
    uniformly; implicit and Cornac also look up whether a draw is known. Where torch compiles, it is the step that the
    other form without autograd has written by hand."""
    rows = []
    sizes = [(6040, 3706, 1_100_000)] + [LARGE_SIZE] * full
    for size in sizes:
        parts, scores = ratings(*size), {}
        systems = {
            "jaxrec": functools.partial(_jaxrec_bpr, parts.train, scores),
            "torch": functools.partial(_torch_bpr, "torch", parts.train, scores),
            "torch compiled": functools.partial(_torch_bpr, "torch compiled", parts.train, scores),
            "torch autograd": functools.partial(_torch_autograd_bpr, parts.train, scores),
            "implicit": functools.partial(_implicit_bpr, parts.train, scores),
            "cornac": functools.partial(_cornac_bpr, parts.train, scores),
        }
        small = size[0] < 100_000
        quality = {name: functools.partial(ndcg, parts, scores, name) for name in systems} if small else None
        # A step reads and writes three rows of d floats per example.
        bound = {"bytes": 3 * 2 * 4 * DIM}
        case, repeats = f"BPR d={DIM}, {size_of(parts.train)}", 3 if small else 2
        rows += harness.measure("T1", case, systems, unit="examples", repeats=repeats, quality=quality, bound=bound)
    return rows


def _jaxrec_bpr(dataset: data.Dataset, scores: Scores) -> harness.Run:
    model = models.MatrixFactorization.for_data(dataset, dim=DIM, bias=False)
    sgd, negatives = optim.row_sparse(optax.sgd(_RATE * BATCH)), data.Negatives(num=1)
    return trainer("jaxrec", scores, dataset, model, "bpr", sgd, negatives=negatives, scale=_SCALE, passes=_PASSES)


def _torch_tables(dataset: data.Dataset) -> tuple[Any, Any]:
    import torch

    torch.set_num_threads(harness.THREADS)
    torch.manual_seed(0)
    user, item = (
        _SCALE * DIM**-0.5 * torch.randn(len(row), DIM)
        for row in (dataset.features.user_row, dataset.features.item_row)
    )
    return user, item


def _torch_bpr(name: str, dataset: data.Dataset, scores: Scores) -> harness.Run:
    """Gradients by hand and index_add_."""
    import torch

    user, item = _torch_tables(dataset)
    users, positives = (torch.from_numpy(np.asarray(values, np.int64)) for values in (dataset.user, dataset.item))
    num = len(dataset.encoder.items)

    def step(user: Any, item: Any, u: Any, i: Any, j: Any) -> None:
        pu, qi, qj = user[u], item[i], item[j]
        step = _RATE * torch.sigmoid(((qj - qi) * pu).sum(1, keepdim=True))
        user.index_add_(0, u, step * (qi - qj))
        item.index_add_(0, torch.cat([i, j]), torch.cat([step * pu, -step * pu]))

    move = torch.compile(step) if name.endswith("compiled") else step

    def run() -> float:
        for _ in range(_PASSES):
            order = torch.randperm(len(users))
            negatives = torch.randint(1, num + 1, (len(users),))
            for start in range(0, len(users), BATCH):
                at = order[start : start + BATCH]
                move(user, item, users[at], positives[at], negatives[start : start + BATCH])
        return _PASSES * len(users)

    scores[name] = lambda: by_tables(dataset, user.numpy(), item.numpy())
    return run


def _torch_modules(dataset: data.Dataset) -> tuple[Any, Any, Any]:
    """As torch is mostly used: modules, autograd, an optimiser. Gradients of tables are sparse, which is the faster."""
    import torch

    user, item = (
        torch.nn.Embedding.from_pretrained(table, freeze=False, sparse=True) for table in _torch_tables(dataset)
    )
    return user, item, torch.optim.SGD([user.weight, item.weight], lr=_RATE)


def _torch_autograd_bpr(dataset: data.Dataset, scores: Scores) -> harness.Run:
    import torch

    users, positives = (torch.from_numpy(np.asarray(values, np.int64)) for values in (dataset.user, dataset.item))
    num = len(dataset.encoder.items)
    user, item, optimiser = _torch_modules(dataset)

    def run() -> float:
        for _ in range(_PASSES):
            order = torch.randperm(len(users))
            negatives = torch.randint(1, num + 1, (len(users),))
            for start in range(0, len(users), BATCH):
                at = order[start : start + BATCH]
                pairs = item(torch.stack([positives[at], negatives[start : start + BATCH]], 1))
                ahead = (user(users[at]) * (pairs[:, 0] - pairs[:, 1])).sum(1)
                optimiser.zero_grad()
                torch.nn.functional.softplus(-ahead).sum().backward()
                optimiser.step()
        return _PASSES * len(users)

    scores["torch autograd"] = lambda: by_tables(dataset, *(each.weight.detach().numpy() for each in (user, item)))
    return run


def _implicit_bpr(dataset: data.Dataset, scores: Scores) -> harness.Run:
    import implicit

    pairs, updated = matrix(dataset), _PASSES * len(dataset) * (1 - known_share(dataset))
    model = implicit.bpr.BayesianPersonalizedRanking(
        factors=DIM - 1,
        learning_rate=_RATE,
        regularization=0.0,
        iterations=_PASSES,
        num_threads=harness.THREADS,
        random_state=np.random.default_rng(0),  # a number would draw the same pairs in every epoch
    )

    def run() -> float:
        model.fit(pairs, show_progress=False)
        return updated

    scores["implicit"] = lambda: by_tables(dataset, model.user_factors, model.item_factors)
    return run


def _cornac_bpr(dataset: data.Dataset, scores: Scores) -> harness.Run:
    import cornac

    built, updated = cornac_rows(dataset), _PASSES * len(dataset) * (1 - known_share(dataset))
    model = cornac.models.BPR(k=DIM, max_iter=_PASSES, learning_rate=_RATE, lambda_reg=0.0, **CORNAC)

    def run() -> float:
        model.fit(built)
        return updated

    scores["cornac"] = lambda: cornac_tables(dataset, model)
    return run


CORNAC = {"num_threads": harness.THREADS, "seed": None}
"""With a seed it uses one thread, and a model that is fitted again draws the same pairs again."""


def cornac_rows(dataset: data.Dataset) -> Any:
    import cornac

    triples = [(u, i, 1.0) for u, i in zip(dataset.user.tolist(), dataset.item.tolist(), strict=True)]
    return cornac.data.Dataset.build(triples)


def cornac_tables(dataset: data.Dataset, model: Any) -> train.Recommender:
    encoder, rows = dataset.encoder, model.train_set
    user = np.zeros((len(encoder.users) + 1, model.k))
    item = np.zeros((len(encoder.items) + 1, model.k))
    bias = np.zeros(len(item))
    user[list(rows.uid_map)], item[list(rows.iid_map)] = model.u_factors, model.i_factors
    bias[list(rows.iid_map)] = model.i_biases
    return by_tables(dataset, user, item, bias)


def logistic(full: bool) -> list[dict[str, Any]]:
    """An epoch of logistic factorization, SGD: four own negatives per example, or 256 shared that weigh as much.

    Counted are scored pairs. implicit's LMF adds up the gradient of all pairs of a row and moves it once per epoch, so
    its pairs are not comparable: see time to quality.
    """
    rows = []
    for size in [(6040, 3706, 1_100_000)] + [LARGE_SIZE] * full:
        parts, scores = ratings(*size), {}
        systems = {
            "jaxrec 4 own": functools.partial(_jaxrec_logistic, "jaxrec 4 own", 4, 0, parts.train, scores),
            "jaxrec 256 shared": functools.partial(
                _jaxrec_logistic, "jaxrec 256 shared", 0, _SHARED, parts.train, scores
            ),
            "torch 4 own": functools.partial(_torch_logistic, "torch 4 own", 4, parts.train, scores),
            "torch compiled, 4 own": functools.partial(
                _torch_logistic, "torch compiled, 4 own", 4, parts.train, scores
            ),
            "torch autograd, 4 own": functools.partial(
                _torch_autograd, "torch autograd, 4 own", 4, parts.train, scores
            ),
            "torch 256 shared": functools.partial(_torch_shared, "torch 256 shared", parts.train, scores),
        }
        small = size[0] < 100_000
        quality = {name: functools.partial(ndcg, parts, scores, name) for name in systems} if small else None
        case = f"logistic d={DIM}, {size_of(parts.train)}"
        for scheme, bound in (("4 own", {"bytes": (1 + 5) * 2 * 4 * DIM / 5}), ("256 shared", {"flops": 6 * DIM})):
            chosen = {name: make for name, make in systems.items() if name.endswith(scheme)}
            rows += harness.measure("T2", case, chosen, unit="pairs", repeats=3, quality=quality, bound=bound)
    return rows


def _jaxrec_logistic(name: str, num: int, shared: int, dataset: data.Dataset, scores: Scores) -> harness.Run:
    model = models.MatrixFactorization.for_data(dataset, dim=DIM, bias=False)
    sgd = optim.row_sparse(optax.sgd(_RATE * BATCH))
    negatives = data.Negatives(num=num, shared=shared)
    return trainer(
        name, scores, dataset, model, _logistic, sgd, negatives=negatives, scale=_SCALE, units=1 + num + shared
    )


def _logistic(scores: jax.Array, batch: data.Batch) -> jax.Array:
    """Every positive against four negatives, or against more of them that weigh as much as four."""
    share = _NEGATIVES / (scores.shape[1] - 1)
    of_rows = jax.nn.softplus(-scores[:, 0]) + share * jax.nn.softplus(scores[:, 1:]).sum(axis=1)
    return (batch.weight * of_rows).sum() / jnp.maximum(batch.weight.sum(), 1.0)


def _torch_logistic(name: str, num: int, dataset: data.Dataset, scores: Scores) -> harness.Run:
    import torch

    user, item = _torch_tables(dataset)
    users, positives = (torch.from_numpy(np.asarray(values, np.int64)) for values in (dataset.user, dataset.item))
    items = len(dataset.encoder.items)

    def step(user: Any, item: Any, u: Any, chosen: Any) -> None:
        pu, q = user[u], item[chosen]
        step = torch.sigmoid(torch.einsum("bd,bnd->bn", pu, q))
        step[:, 0] -= 1.0
        step *= -_RATE
        user.index_add_(0, u, torch.einsum("bn,bnd->bd", step, q))
        item.index_add_(0, chosen.reshape(-1), (step[:, :, None] * pu[:, None, :]).reshape(-1, DIM))

    move = torch.compile(step) if "compiled" in name else step

    def run() -> float:
        order = torch.randperm(len(users))
        for start in range(0, len(users), BATCH):
            at = order[start : start + BATCH]
            move(
                user,
                item,
                users[at],
                torch.cat([positives[at][:, None], torch.randint(1, items + 1, (len(at), num))], 1),
            )
        return len(users) * (1 + num)

    scores[name] = lambda: by_tables(dataset, user.numpy(), item.numpy())
    return run


def _torch_autograd(name: str, num: int, dataset: data.Dataset, scores: Scores) -> harness.Run:
    import torch

    users, positives = (torch.from_numpy(np.asarray(values, np.int64)) for values in (dataset.user, dataset.item))
    items = len(dataset.encoder.items)
    user, item, optimiser = _torch_modules(dataset)

    def run() -> float:
        order = torch.randperm(len(users))
        for start in range(0, len(users), BATCH):
            at = order[start : start + BATCH]
            chosen = torch.cat([positives[at][:, None], torch.randint(1, items + 1, (len(at), num))], 1)
            score = (user(users[at])[:, None, :] * item(chosen)).sum(2)
            score = torch.cat([-score[:, :1], score[:, 1:]], 1)
            optimiser.zero_grad()
            torch.nn.functional.softplus(score).sum().backward()
            optimiser.step()
        return len(users) * (1 + num)

    scores[name] = lambda: by_tables(dataset, *(each.weight.detach().numpy() for each in (user, item)))
    return run


def _torch_shared(name: str, dataset: data.Dataset, scores: Scores) -> harness.Run:
    import torch

    user, item = _torch_tables(dataset)
    users, positives = (torch.from_numpy(np.asarray(values, np.int64)) for values in (dataset.user, dataset.item))
    items = len(dataset.encoder.items)

    def run() -> float:
        order = torch.randperm(len(users))
        for start in range(0, len(users), BATCH):
            at = order[start : start + BATCH]
            u, i, j = users[at], positives[at], torch.randint(1, items + 1, (_SHARED,))
            pu, qi, qj = user[u], item[i], item[j]
            own = _RATE * (1.0 - torch.sigmoid((pu * qi).sum(1, keepdim=True)))
            shared = torch.sigmoid(pu @ qj.T).mul_(-_RATE * _NEGATIVES / _SHARED)
            user.index_add_(0, u, torch.addmm(own * qi, shared, qj))
            item.index_add_(0, i, own * pu)
            item.index_add_(0, j, shared.T @ pu)
        return len(users) * (1 + _SHARED)

    scores[name] = lambda: by_tables(dataset, user.numpy(), item.numpy())
    return run


def step(full: bool) -> list[dict[str, Any]]:
    """One BPR step of 4,096 examples against the number of rows of the two tables together."""
    rows = []
    for size in (10_000, 100_000, 1_000_000, 5_000_000) if full else (10_000, 100_000, 1_000_000):
        systems: dict[str, Callable[[], harness.Run]] = {
            f"jaxrec {name}": functools.partial(jaxrec_step, size, transformation)
            for name, transformation in OPTIMISERS.items()
        }
        systems["jax gather and scatter alone"] = functools.partial(_bare_step, size)
        systems |= {f"torch {name}": functools.partial(_torch_step, size, name) for name in ("sgd", "adagrad", "adam")}
        dense = ("dense sgd", "dense adagrad", "dense adam") if size <= 100_000 else ("dense adam",)
        systems |= {f"torch {name}": functools.partial(_torch_step, size, name) for name in dense}
        systems["optax dense adam"] = functools.partial(_dense_step, size)
        # Three rows an example are read and written, and as many of the optimiser's state.
        numbers = {"sgd": DIM, "row-wise adagrad": DIM + 1, "adagrad": 2 * DIM, "adam": 3 * DIM}
        bound: dict[str, Any] = {
            f"jaxrec {name}": {"bytes": BATCH * 3 * 2 * 4 * each} for name, each in numbers.items()
        }
        rows += harness.measure("T5", f"{size:,} rows", systems, unit="steps", repeats=5, bound=bound)
    return rows


OPTIMISERS = {
    "sgd": optax.sgd(0.1),
    "row-wise adagrad": optim.rowwise_adagrad(0.1),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(0.01),
}
_STEPS, _DENSE_STEPS = 64, 8


def jaxrec_step(size: int, transformation: Any) -> harness.Run:
    half = size // 2
    model = models.MatrixFactorization(user_rows=half, item_rows=half, dim=DIM, bias=False)
    optimizer, loss = optim.row_sparse(transformation), losses.on_batch("bpr")
    row = jnp.arange(half, dtype=jnp.int32)
    features = data.Features(user_row=row, item_row=row)
    users, items = _drawn(half, _STEPS)
    stack = data.Batch(user=users, item=items, weight=np.ones((_STEPS, BATCH), np.float32))
    example = data.Batch(*(None if values is None else values[0] for values in stack))
    state = train.init_state(model, model.init(jax.random.key(0)), optimizer, example, features, key=jax.random.key(1))
    epoch = jax.jit(
        functools.partial(train.train_epoch, model=model, loss=loss, optimizer=optimizer), donate_argnums=(0,)
    )
    box = [state]

    def run() -> float:
        box[0], _ = epoch(box[0], stack, features, _STEPS)
        jax.block_until_ready(box[0].params)
        return _STEPS

    return run


def _drawn(half: int, steps: int, dtype: Any = np.int32) -> tuple[np.ndarray, np.ndarray]:
    """Uniform users and pairs of items, neither of which is row 0."""
    rng = np.random.default_rng(0)
    return rng.integers(1, half, (steps, BATCH), dtype), rng.integers(1, half, (steps, BATCH, 2), dtype)


def _tables(half: int) -> tuple[jax.Array, jax.Array]:
    user, item = (DIM**-0.5 * jax.random.normal(jax.random.key(seed), (half, DIM)) for seed in range(2))
    return user, item


def _bare_step(size: int) -> harness.Run:
    """The rows of a step are read, and something is added to them, as XLA does both by itself."""

    @functools.partial(jax.jit, donate_argnums=(0,))
    def steps(tables: Any, users: jax.Array, items: jax.Array) -> Any:
        def body(tables: Any, ids: Any) -> Any:
            added = [table.at[chosen].add(-1e-3 * table[chosen]) for table, chosen in zip(tables, ids, strict=True)]
            return tuple(added), None

        return jax.lax.scan(body, tables, (users, items))[0]

    return _stepped(steps, _tables(size // 2), _drawn(size // 2, _STEPS))


def _dense_step(size: int) -> harness.Run:
    """As optax is used without row-sparse updates: gradient, state and update have the size of the tables."""
    optimizer = optax.adam(0.01)

    def loss(tables: Any, users: jax.Array, items: jax.Array) -> jax.Array:
        user, item = tables
        scores = jnp.einsum("bd,bnd->bn", user[users], item[items])
        return jax.nn.softplus(scores[:, 1] - scores[:, 0]).mean()

    @functools.partial(jax.jit, donate_argnums=(0,))
    def steps(carry: Any, users: jax.Array, items: jax.Array) -> Any:
        def body(carry: Any, ids: Any) -> Any:
            tables, state = carry
            updates, state = optimizer.update(jax.grad(loss)(tables, *ids), state)
            return (optax.apply_updates(tables, updates), state), None

        return jax.lax.scan(body, carry, (users, items))[0]

    tables = _tables(size // 2)
    return _stepped(steps, (tables, optimizer.init(tables)), _drawn(size // 2, _DENSE_STEPS))


def _stepped(steps: Callable[..., Any], carry: Any, drawn: tuple[np.ndarray, np.ndarray]) -> harness.Run:
    box = [carry]

    def run() -> float:
        box[0] = jax.block_until_ready(steps(box[0], *drawn))
        return len(drawn[0])

    return run


def _torch_step(size: int, name: str) -> harness.Run:
    import torch

    torch.set_num_threads(harness.THREADS)
    half, dense = size // 2, name.startswith("dense")
    user, item = (torch.nn.Embedding(half, DIM, sparse=not dense) for _ in range(2))
    parameters = [user.weight, item.weight]
    kinds = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=0.1),
        "adam": lambda: torch.optim.SparseAdam(parameters, lr=0.01),
        "dense sgd": lambda: torch.optim.SGD(parameters, lr=0.1, fused=True),
        "dense adagrad": lambda: torch.optim.Adagrad(parameters, lr=0.1, fused=True),
        "dense adam": lambda: torch.optim.Adam(parameters, lr=0.01, fused=True),
    }
    optimiser = kinds[name]()
    drawn = _drawn(half, _DENSE_STEPS if dense else _STEPS, np.int64)
    users, items = (torch.from_numpy(values) for values in drawn)

    def run() -> float:
        for u, i in zip(users, items, strict=True):
            optimiser.zero_grad()
            scores = (user(u)[:, None, :] * item(i)).sum(2)
            torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean().backward()
            optimiser.step()
        return len(users)

    return run
