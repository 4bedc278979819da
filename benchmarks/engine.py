"""Training and retrieval against other libraries, in turn.

python benchmarks/engine.py                # all tasks, quick form, about 5 minutes on two cores -> results/engine.json
python benchmarks/engine.py --only T5 T6   # some of them
python benchmarks/engine.py --full         # larger tables and more repeats

Tasks: T1 BPR epochs, T5 one step against the size of the tables, T6 exact top-100 of a million items, T8 iALS epochs.
Rivals that are not installed are left out (``pip install -e '.[bench]'``).
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from jaxrec import data, evaluate, losses, models, optim, ranking, train

DIM, BATCH = 64, 4096


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    arguments.add_argument("--full", action="store_true")
    arguments.add_argument("--out", default="engine.json")
    arguments.add_argument("--package", help="measure one package in this process")
    arguments.add_argument("--rows", help="file to write its rows to")
    options = arguments.parse_args()
    full = ["--full"] if options.full else []
    for task in options.only:
        if options.package is None:
            harness.write(options.out, harness.rounds(__file__, task, PACKAGES[task], *full))
            continue
        harness.PACKAGE = options.package
        if options.package == "jaxrec":
            harness.LIMITS.update(harness.limits())
        Path(options.rows).write_text(json.dumps(TASKS[task](options.full), default=float))


def ratings(users: int, items: int, rows: int) -> data.Parts:
    """Distinct pairs of a stated size, items by Zipf's law; a tenth of the rows is held out for validation."""
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, items + 1) ** 0.8
    user = rng.integers(0, users, int(1.3 * rows))
    # Tastes by group of users, so that there is something to learn.
    item = (rng.choice(items, len(user), p=share / share.sum()) + (user % 50) * (items // 50)) % items
    frame = pd.DataFrame({"user": user, "item": item}).drop_duplicates().iloc[:rows]
    return data.encode(data.split_random(frame, validation=0.1, test=0.0, seed=0), data.Schema())


# T1


def bpr(full: bool) -> list[dict[str, Any]]:
    """An epoch of BPR: one uniform negative per example, drawn anew, SGD. Same draws, same updates on all sides."""
    parts = ratings(6040, 3706, 1_100_000)
    rows, repeats = len(parts.train), 7 if full else 3
    scores: dict[str, Callable[[], Any]] = {}
    systems = {
        "jaxrec": functools.partial(_jaxrec_bpr, parts.train, scores),
        "torch": functools.partial(_torch_bpr, parts.train, scores),
        "implicit": functools.partial(_implicit_bpr, parts.train, scores),
        "cornac": functools.partial(_cornac_bpr, parts.train, scores),
    }
    quality = {name: functools.partial(_ndcg, parts, scores, name) for name in systems}
    case = f"BPR d={DIM}, {len(parts.train.encoder.users)} x {len(parts.train.encoder.items)}, {rows:,} rows"
    # A step reads and writes three rows of d floats per example.
    bound = {"bytes": 3 * 2 * 4 * DIM}
    return harness.measure("T1", case, systems, unit="examples", repeats=repeats, quality=quality, bound=bound)


def _ndcg(parts: data.Parts, scores: dict[str, Callable[[], Any]], name: str) -> float:
    return evaluate(scores[name](), parts.validation, seen=parts.train, draws=1)["ndcg@10"]


def _by_tables(encoder: data.Encoder, user: np.ndarray, item: np.ndarray, bias: np.ndarray | None = None) -> Any:
    """A function of raw ids for the evaluator; tables by entity index."""

    def score(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        chosen = encoder.items.encode(items)
        found = user[encoder.users.encode(users)] @ item[chosen].T
        return found if bias is None else found + bias[chosen][None, :]

    return score


def _jaxrec_bpr(dataset: data.Dataset, scores: dict[str, Any]) -> harness.Run:
    model = models.MatrixFactorization.for_data(dataset, dim=DIM, bias=False)
    optimizer, loss = optim.row_sparse(optax.sgd(0.05 * BATCH)), losses.on_batch("bpr")
    batches = data.Batches(dataset, batch_size=BATCH, negatives=data.Negatives(num=1), history=0, seed=0)
    features = jax.tree.map(jnp.asarray, dataset.features)
    params = jax.tree.map(lambda leaf: 0.1 * leaf, model.init(jax.random.key(0)))
    state = train.init_state(model, params, optimizer, batches.example(), features, key=jax.random.key(1))
    epoch = jax.jit(
        functools.partial(train.train_epoch, model=model, loss=loss, optimizer=optimizer), donate_argnums=(0,)
    )
    box, count = [state], [0]

    def run() -> float:
        count[0] += 1
        for chunk, steps in batches.epoch(count[0]):
            box[0], _ = epoch(box[0], chunk, features, steps)
        jax.block_until_ready(box[0].params)
        return len(dataset)

    def score() -> Any:
        user, item = (np.asarray(box[0].params[side]["embedding"]) for side in ("user", "item"))
        row = dataset.features.user_row, dataset.features.item_row
        return _by_tables(dataset.encoder, user[row[0]], item[row[1]])

    scores["jaxrec"] = score
    return run


def _torch_bpr(dataset: data.Dataset, scores: dict[str, Any]) -> harness.Run:
    """Gradients by hand and index_add_: several times faster than autograd with an optimiser."""
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    user, item = (
        0.1 * DIM**-0.5 * torch.randn(len(row), DIM) for row in (dataset.features.user_row, dataset.features.item_row)
    )
    users, positives = (torch.from_numpy(np.asarray(values, np.int64)) for values in (dataset.user, dataset.item))
    num, rate = len(dataset.encoder.items), 0.05

    def run() -> float:
        order = torch.randperm(len(users))
        negatives = torch.randint(1, num + 1, (len(users),))
        for start in range(0, len(users), BATCH):
            at = order[start : start + BATCH]
            u, i, j = users[at], positives[at], negatives[start : start + BATCH]
            pu, qi, qj = user[u], item[i], item[j]
            step = rate * torch.sigmoid(((qj - qi) * pu).sum(1, keepdim=True))
            user.index_add_(0, u, step * (qi - qj))
            item.index_add_(0, torch.cat([i, j]), torch.cat([step * pu, -step * pu]))
        return len(users)

    scores["torch"] = lambda: _by_tables(dataset.encoder, user.numpy(), item.numpy())
    return run


def _matrix(dataset: data.Dataset) -> Any:
    import scipy.sparse

    shape = len(dataset.encoder.users) + 1, len(dataset.encoder.items) + 1
    return scipy.sparse.csr_matrix((np.ones(len(dataset), np.float32), (dataset.user, dataset.item)), shape=shape)


def _known_share(dataset: data.Dataset) -> float:
    """How many draws of (user of a row, uniform item) are known positives, which implicit and Cornac skip."""
    negative = np.random.default_rng(1).integers(1, len(dataset.encoder.items) + 1, len(dataset), dtype=np.int32)
    return float(dataset.interactions.contains(dataset.user, negative).mean())


def _implicit_bpr(dataset: data.Dataset, scores: dict[str, Any]) -> harness.Run:
    import implicit

    matrix, updated = _matrix(dataset), len(dataset) * (1 - _known_share(dataset))
    model = implicit.bpr.BayesianPersonalizedRanking(
        factors=DIM - 1, learning_rate=0.05, regularization=0.0, iterations=1, num_threads=2, random_state=0
    )

    def run() -> float:
        model.fit(matrix, show_progress=False)
        return updated

    scores["implicit"] = lambda: _by_tables(dataset.encoder, model.user_factors, model.item_factors)
    return run


def _cornac_bpr(dataset: data.Dataset, scores: dict[str, Any]) -> harness.Run:
    import cornac

    triples = [(u, i, 1.0) for u, i in zip(dataset.user.tolist(), dataset.item.tolist(), strict=True)]
    built = cornac.data.Dataset.build(triples)
    updated = len(dataset) * (1 - _known_share(dataset))
    box: list[Any] = [None]

    def run() -> float:
        old = box[0]
        start = {"U": old.u_factors, "V": old.i_factors, "Bi": old.i_biases} if old is not None else None
        box[0] = cornac.models.BPR(
            k=DIM, max_iter=1, learning_rate=0.05, lambda_reg=0.0, num_threads=2, seed=0, init_params=start
        )
        box[0].fit(built)
        return updated

    def score() -> Any:
        model, encoder = box[0], dataset.encoder
        user, item, bias = (
            np.zeros((len(encoder.users) + 1, DIM)),
            np.zeros((len(encoder.items) + 1, DIM)),
            np.zeros(len(encoder.items) + 1),
        )
        user[list(built.uid_map)], item[list(built.iid_map)] = model.u_factors, model.i_factors
        bias[list(built.iid_map)] = model.i_biases
        return _by_tables(encoder, user, item, bias)

    scores["cornac"] = score
    return run


# T5


def step(full: bool) -> list[dict[str, Any]]:
    """One BPR step of 4,096 examples against the number of rows of the two tables together."""
    rows = []
    for size in (10_000, 100_000, 1_000_000, 5_000_000) if full else (10_000, 100_000, 1_000_000):
        systems: dict[str, Callable[[], harness.Run]] = {
            f"jaxrec {name}": functools.partial(_jaxrec_step, size, transformation)
            for name, transformation in OPTIMISERS.items()
        }
        systems |= {f"torch {name}": functools.partial(_torch_step, size, name) for name in ("sgd", "adagrad", "adam")}
        rows += harness.measure("T5", f"{size:,} rows", systems, unit="steps", repeats=5)
    return rows


OPTIMISERS = {
    "sgd": optax.sgd(0.1),
    "row-wise adagrad": optim.rowwise_adagrad(0.1),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(0.01),
}
_STEPS = 64


def _jaxrec_step(size: int, transformation: Any) -> harness.Run:
    rng = np.random.default_rng(0)
    half = size // 2
    model = models.MatrixFactorization(user_rows=half, item_rows=half, dim=DIM, bias=False)
    optimizer, loss = optim.row_sparse(transformation), losses.on_batch("bpr")
    row = jnp.arange(half, dtype=jnp.int32)
    features = data.Features(user_row=row, item_row=row)
    draw = functools.partial(rng.integers, 1, half, dtype=np.int32)
    stack = data.Batch(
        user=draw((_STEPS, BATCH)), item=draw((_STEPS, BATCH, 2)), weight=np.ones((_STEPS, BATCH), np.float32)
    )
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


def _torch_step(size: int, name: str) -> harness.Run:
    import torch

    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    half = size // 2
    user, item = (torch.nn.Embedding(half, DIM, sparse=True) for _ in range(2))
    parameters = [user.weight, item.weight]
    kinds = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=0.1),
        "adam": lambda: torch.optim.SparseAdam(parameters, lr=0.01),
    }
    optimiser = kinds[name]()
    users = torch.from_numpy(rng.integers(1, half, (_STEPS, BATCH)))
    items = torch.from_numpy(rng.integers(1, half, (_STEPS, BATCH, 2)))

    def run() -> float:
        for u, i in zip(users, items, strict=True):
            optimiser.zero_grad()
            scores = (user(u)[:, None, :] * item(i)).sum(2)
            torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean().backward()
            optimiser.step()
        return _STEPS

    return run


# T6


def top_k(full: bool) -> list[dict[str, Any]]:
    """Exact top-100 of a million items by inner product, for one user and for blocks of users."""
    rng = np.random.default_rng(0)
    num, k = 1_000_000, 100
    items = rng.normal(size=(num, DIM)).astype(np.float32)
    rows = []
    for users in (1, 128):
        queries = rng.normal(size=(users, DIM)).astype(np.float32)
        systems = {
            "jaxrec": functools.partial(_jaxrec_search, queries, items, k),
            "implicit": functools.partial(_implicit_search, queries, items, k),
            "faiss": functools.partial(_faiss_search, queries, items, k),
            "torch": functools.partial(_torch_search, queries, items, k),
            "numpy": functools.partial(_numpy_search, queries, items, k),
        }
        bound = {"bytes": 4 * DIM * num / users, "flops": 2 * DIM * num}
        case = f"top {k} of {num:,} x {DIM}, {users} user(s)"
        rows += harness.measure("T6", case, systems, unit="queries", repeats=7 if full else 5, bound=bound)
    return rows


def _jaxrec_search(queries: np.ndarray, items: np.ndarray, k: int) -> harness.Run:
    missing = -len(items) % 2048
    users, catalogue = jnp.asarray(queries), jnp.asarray(np.pad(items, ((0, missing), (0, 0))))
    live = jnp.arange(len(catalogue)) < len(items)

    def run() -> float:
        jax.block_until_ready(ranking.search(users, catalogue, k=k, live=live))
        return len(queries)

    return run


def _implicit_search(queries: np.ndarray, items: np.ndarray, k: int) -> harness.Run:
    from implicit.cpu.topk import topk

    def run() -> float:
        topk(items, queries, k, num_threads=2)
        return len(queries)

    return run


def _faiss_search(queries: np.ndarray, items: np.ndarray, k: int) -> harness.Run:
    import faiss

    faiss.omp_set_num_threads(2)
    index = faiss.IndexFlatIP(DIM)
    index.add(items)

    def run() -> float:
        index.search(queries, k)
        return len(queries)

    return run


def _torch_search(queries: np.ndarray, items: np.ndarray, k: int) -> harness.Run:
    import torch

    torch.set_num_threads(2)
    users, catalogue = torch.from_numpy(queries), torch.from_numpy(items)

    def run() -> float:
        torch.topk(users @ catalogue.T, k)
        return len(queries)

    return run


def _numpy_search(queries: np.ndarray, items: np.ndarray, k: int) -> harness.Run:
    def run() -> float:
        for start in range(0, len(queries), 16):
            scores = queries[start : start + 16] @ items.T
            best = np.argpartition(scores, -k, axis=1)[:, -k:]
            np.take_along_axis(scores, best, axis=1).argsort(axis=1)
        return len(queries)

    return run


# T8


_EPOCHS = 5


def als(full: bool) -> list[dict[str, Any]]:
    """Five epochs of alternating least squares from scratch, three steps of conjugate gradients for each vector.

    Both sides with the best of nine settings by NDCG@10 on the validation part, after as many epochs.
    """
    parts = ratings(6040, 3706, 1_100_000)
    scores: dict[str, Callable[[], Any]] = {}
    systems: dict[str, Callable[[], harness.Run]] = {}
    for name, prepare, grid in (
        ("jaxrec", _jaxrec_als, [(unobserved, l2) for unobserved in (0.1, 0.3, 1.0) for l2 in (0.003, 0.01, 0.03)]),
        ("implicit", _implicit_als, [(alpha, l2) for alpha in (1.0, 5.0, 20.0) for l2 in (0.01, 0.1, 1.0)]),
    ):
        systems[name] = functools.partial(_tuned, name, prepare, grid, parts, scores)
    quality = {name: functools.partial(_ndcg, parts, scores, name) for name in systems}
    case = f"iALS d={DIM}, {len(parts.train):,} rows, {_EPOCHS} epochs"
    return harness.measure("T8", case, systems, unit="interactions", repeats=9 if full else 7, quality=quality)


def _tuned(
    name: str, prepare: Callable[..., harness.Run], grid: list[tuple[float, float]], parts: data.Parts, scores: Any
) -> harness.Run:
    found = {}
    for setting in grid:
        prepare(parts.train, scores, *setting)()
        found[setting] = _ndcg(parts, scores, name)
    best = max(found, key=lambda setting: found[setting])
    print(f"T8 {name}: best setting {best}, validation NDCG@10 {found[best]:.4f}", flush=True)
    return prepare(parts.train, scores, *best)


def _jaxrec_als(dataset: data.Dataset, scores: dict[str, Any], unobserved: float, l2: float) -> harness.Run:
    box: list[Any] = [None]

    def run() -> float:
        box[0] = train.fit_als(dataset, dim=DIM, epochs=_EPOCHS, unobserved=unobserved, l2=l2)
        return _EPOCHS * len(dataset)

    scores["jaxrec"] = lambda: box[0]
    return run


def _implicit_als(dataset: data.Dataset, scores: dict[str, Any], alpha: float, l2: float) -> harness.Run:
    import implicit

    matrix = _matrix(dataset)
    box: list[Any] = [None]

    def run() -> float:
        box[0] = implicit.als.AlternatingLeastSquares(
            factors=DIM,
            alpha=alpha,
            regularization=l2,
            iterations=_EPOCHS,
            num_threads=2,
            random_state=0,
            use_gpu=False,
        )
        box[0].fit(matrix, show_progress=False)
        return _EPOCHS * len(dataset)

    scores["implicit"] = lambda: _by_tables(dataset.encoder, box[0].user_factors, box[0].item_factors)
    return run


TASKS = {"T1": bpr, "T5": step, "T6": top_k, "T8": als}
PACKAGES = {
    "T1": ("jaxrec", "torch", "implicit", "cornac"),
    "T5": ("jaxrec", "torch"),
    "T6": ("jaxrec", "implicit", "faiss", "torch", "numpy"),
    "T8": ("jaxrec", "implicit"),
}

if __name__ == "__main__":
    main()
