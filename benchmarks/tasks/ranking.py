"""T6 exact top-100 of a million items, T9 evaluation over a full catalogue."""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import data, evaluate, models, ranking, train
from tasks.common import DIM, matrix, ratings


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
            "implicit": functools.partial(_implicit_search, queries, items, k, harness.THREADS),
            "implicit BLAS on one": functools.partial(_implicit_search, queries, items, k, 1),
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


def _implicit_search(queries: np.ndarray, items: np.ndarray, k: int, blas: int) -> harness.Run:
    """Its own threads share blocks of queries, and those of BLAS a block's product: which is better is not said."""
    from implicit.cpu.topk import topk
    from threadpoolctl import threadpool_limits

    def run() -> float:
        with threadpool_limits(blas, "blas"):
            topk(items, queries, k, num_threads=harness.THREADS)
        return len(queries)

    return run


def _faiss_search(queries: np.ndarray, items: np.ndarray, k: int) -> harness.Run:
    import faiss

    faiss.omp_set_num_threads(harness.THREADS)
    index = faiss.IndexFlatIP(DIM)
    index.add(items)

    def run() -> float:
        index.search(queries, k)
        return len(queries)

    return run


def _torch_search(queries: np.ndarray, items: np.ndarray, k: int) -> harness.Run:
    import torch

    torch.set_num_threads(harness.THREADS)
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


def evaluation(full: bool) -> list[dict[str, Any]]:
    """Recall, precision, hit rate, NDCG, MRR and MAP at 10 and 20 of every user, over the full catalogue.

    implicit computes four of them (precision, NDCG, MAP, AUC) at one cut-off.
    """
    parts = ratings(6040, 3706, 1_100_000)
    dataset = parts.train
    model = models.MatrixFactorization.for_data(dataset, dim=DIM, bias=False)
    params = model.init(jax.random.key(0))
    tables = [np.asarray(params[side]["embedding"]) for side in ("user", "item")]
    user, item = (table[row] for table, row in zip(tables, dataset.features[:2], strict=True))
    found: dict[str, float] = {}
    systems = {
        "jaxrec": functools.partial(_jaxrec_evaluate, found, parts, model, params),
        "numpy": functools.partial(_numpy_evaluate, "numpy", found, parts, user, item),
        "numpy by threads": functools.partial(_numpy_evaluate, "numpy by threads", found, parts, user, item),
        "implicit": functools.partial(_implicit_evaluate, found, parts, user, item),
    }
    quality = {name: functools.partial(found.__getitem__, name) for name in systems}
    users, items = len(np.unique(parts.validation.user)), len(dataset.encoder.items)
    case = f"{users} users x {items} items, {len(parts.validation):,} held out"
    bound = {"flops": 2 * DIM * items}
    return harness.measure("T9", case, systems, unit="users", repeats=7 if full else 5, quality=quality, bound=bound)


def _jaxrec_evaluate(found: dict[str, float], parts: data.Parts, model: Any, params: Any) -> harness.Run:
    dataset = parts.train
    recommender = train.Recommender(model, params, dataset.encoder, dataset.interactions, len(dataset))
    users = len(np.unique(parts.validation.user))

    def run() -> float:
        found["jaxrec"] = evaluate(recommender, parts.validation, draws=1)["ndcg@10"]
        return users

    return run


def _numpy_evaluate(
    name: str, found: dict[str, float], parts: data.Parts, user: np.ndarray, item: np.ndarray
) -> harness.Run:
    """A block of users at a time: one product, known pairs out, a partial sort, the same metrics. Plainly, all cores
    work on the product; by threads, each has a block of its own."""
    from threadpoolctl import threadpool_limits

    threads, blas = (harness.THREADS, 1) if name.endswith("threads") else (1, harness.THREADS)
    seen, held = matrix(parts.train), matrix(parts.validation)
    users = np.unique(parts.validation.user)
    k = 20
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    held_out = np.diff(held.indptr)
    rows = np.repeat(np.arange(held.shape[0]), held_out)
    pairs = np.sort(rows * np.int64(held.shape[1]) + held.indices)

    def of_block(block: np.ndarray) -> dict[str, float]:
        totals = {}
        scores = user[block] @ item.T
        scores[:, 0] = -np.inf
        known = seen[block]
        scores[np.repeat(np.arange(len(block)), np.diff(known.indptr)), known.indices] = -np.inf
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        count, asked = held_out[block], block[:, None] * np.int64(held.shape[1]) + best
        place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
        hits = (pairs[place] == asked).astype(np.float64)
        for cut in (10, 20):
            top = hits[:, :cut]
            precision = np.cumsum(top, 1) / np.arange(1, cut + 1)
            values = {
                "recall": top.sum(1) / count,
                "precision": top.sum(1) / cut,
                "hit": top.any(1),
                "ndcg": (top * discount[:cut]).sum(1) / ideal[np.minimum(count, cut)],
                "mrr": np.where(top.any(1), 1.0 / (top.argmax(1) + 1), 0.0),
                "map": (precision * top).sum(1) / np.minimum(count, cut),
            }
            totals |= {f"{name}@{cut}": float(value.sum()) for name, value in values.items()}
        return totals

    def run() -> float:
        blocks = [users[start : start + 256] for start in range(0, len(users), 256)]
        with threadpool_limits(blas, "blas"), ThreadPoolExecutor(threads) as pool:
            found_in = list(pool.map(of_block, blocks))
        means = {name: sum(totals[name] for totals in found_in) / len(users) for name in found_in[0]}
        found[name] = means["ndcg@10"]
        return len(users)

    return run


def _implicit_evaluate(found: dict[str, float], parts: data.Parts, user: np.ndarray, item: np.ndarray) -> harness.Run:
    import implicit
    import implicit.evaluation

    seen, held = matrix(parts.train), matrix(parts.validation)
    model = implicit.als.AlternatingLeastSquares(factors=DIM, use_gpu=False, num_threads=harness.THREADS)
    model.user_factors, model.item_factors = user, item
    model.item_factors[0] = 0.0
    users = len(np.unique(parts.validation.user))

    def run() -> float:
        table = implicit.evaluation.ranking_metrics_at_k(
            model, seen, held, K=10, show_progress=False, num_threads=harness.THREADS
        )
        found["implicit"] = table["ndcg"]
        return users

    return run
