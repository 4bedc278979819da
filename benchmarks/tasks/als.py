"""T8: alternating least squares."""

import functools
from collections.abc import Callable
from typing import Any

import harness

from jaxrec import data, train
from tasks.common import DIM, LARGE_SIZE, Scores, by_tables, matrix, ndcg, of_some, ratings

_EPOCHS = 5
_LARGE = {"jaxrec": (0.03, 0.001), "implicit": (10.0, 10.0)}
Grid = list[tuple[float, float]]


def als(full: bool) -> list[dict[str, Any]]:
    """Five epochs of alternating least squares from scratch, three steps of conjugate gradients for each vector.

    Both sides with the best of nine settings by NDCG@10 on the validation part, after as many epochs. In full T1's
    large data too, with the best settings that ``quality.py --data million`` found for each.
    """
    jaxrec = [(unobserved, l2) for unobserved in (0.1, 0.3, 1.0) for l2 in (0.003, 0.01, 0.03)]
    implicit = [(alpha, l2) for alpha in (1.0, 5.0, 20.0) for l2 in (1.0, 10.0, 30.0)]
    rows = _compared(ratings(6040, 3706, 1_100_000), jaxrec, implicit, repeats=9 if full else 7)
    if full:
        rows += _compared(of_some(ratings(*LARGE_SIZE), 2000), [_LARGE["jaxrec"]], [_LARGE["implicit"]], repeats=3)
    return rows


def _compared(parts: data.Parts, jaxrec: Grid, implicit: Grid, *, repeats: int) -> list[dict[str, Any]]:
    scores: Scores = {}
    systems = {
        name: functools.partial(_tuned, name, prepare, grid, parts, scores)
        for name, prepare, grid in (("jaxrec", _jaxrec_als, jaxrec), ("implicit", _implicit_als, implicit))
    }
    quality = {name: functools.partial(ndcg, parts, scores, name) for name in systems}
    case = f"iALS d={DIM}, {len(parts.train):,} rows, {_EPOCHS} epochs"
    # Of either side a row is read once, and multiplied twice in each of three steps and before them.
    bound = {"bytes": 2 * 4 * DIM, "flops": 2 * 4 * (2 * 2 * DIM)}
    return harness.measure("T8", case, systems, unit="interactions", repeats=repeats, quality=quality, bound=bound)


def _tuned(
    name: str, prepare: Callable[..., harness.Run], grid: Grid, parts: data.Parts, scores: Scores
) -> harness.Run:
    if len(grid) == 1:
        return prepare(parts.train, scores, *grid[0])
    found = {}
    for setting in grid:
        prepare(parts.train, scores, *setting)()
        found[setting] = ndcg(parts, scores, name)
    best = max(found, key=lambda setting: found[setting])
    print(f"T8 {name}: best setting {best}, validation NDCG@10 {found[best]:.4f}", flush=True)
    return prepare(parts.train, scores, *best)


def _jaxrec_als(dataset: data.Dataset, scores: Scores, unobserved: float, l2: float) -> harness.Run:
    box: list[Any] = [None]

    def run() -> float:
        box[0] = train.fit_als(dataset, dim=DIM, epochs=_EPOCHS, unobserved=unobserved, l2=l2)
        return _EPOCHS * len(dataset)

    scores["jaxrec"] = lambda: box[0]
    return run


def _implicit_als(dataset: data.Dataset, scores: Scores, alpha: float, l2: float) -> harness.Run:
    import implicit

    pairs = matrix(dataset)
    box: list[Any] = [None]

    def run() -> float:
        box[0] = implicit.als.AlternatingLeastSquares(
            factors=DIM,
            alpha=alpha,
            regularization=l2,
            iterations=_EPOCHS,
            num_threads=harness.THREADS,
            random_state=0,
            use_gpu=False,
        )
        box[0].fit(pairs, show_progress=False)
        return _EPOCHS * len(dataset)

    scores["implicit"] = lambda: by_tables(dataset, box[0].user_factors, box[0].item_factors)
    return run
