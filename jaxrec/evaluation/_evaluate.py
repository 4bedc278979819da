"""The verb ``evaluate``: the full catalogue, cold and warm apart, with intervals; or row-wise errors."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxrec import _sharded
from jaxrec._add import add
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec.data import Dataset, Encoder, Interactions
from jaxrec.data._counting import distinct
from jaxrec.evaluation._intervals import bootstrap_bounds, need_drawable
from jaxrec.evaluation._own import own_lists
from jaxrec.evaluation._report import Report
from jaxrec.evaluation._rows import NaNScore, evaluate_rows
from jaxrec.evaluation._top_k_metrics import NAMES, from_hits
from jaxrec.ranking._lists import best_lists, columns
from jaxrec.ranking._recommend import candidate_items, known_items, row_scores
from jaxrec.ranking._search import Ranker, by_scores, ranker
from jaxrec.ranking._top_k import padded, user_blocks
from jaxrec.ranking._vectors import Scorer

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]

FEW = 10  # a user with 1 to 10 training interactions is few-shot, with more warm


def evaluate(
    model: Recommender | Scores,
    test: Dataset | pd.DataFrame,
    *,
    ks: Sequence[int] | None = None,
    task: Literal["ranking", "rating"] | None = None,
    relevant_from: float | None = None,
    seen: Dataset | None = None,
    candidates: Iterable[Any] | pd.DataFrame | None = None,
    exclude: Dataset | pd.DataFrame | None = None,
    exclude_seen: bool = True,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Report:
    """How good is a model on held-out interactions?

    Ranking: every candidate is scored for every test user; what the user has touched in training is left out.
    ``recall``, ``precision``, ``hit``, ``ndcg``, ``mrr`` and ``map`` at each of ``ks``, as in the functions of this
    module. A user without a relevant item among the candidates enters no mean. Slices: ``all``; ``cold users`` (no
    training interaction), ``few-shot users`` (1 to 10), ``warm users``; ``cold items`` and ``warm items`` (only those
    are relevant; all candidates are still ranked). Slices that are empty or the same as ``all`` are left out.

    Rating: ``rmse``, ``mse``, ``mae`` over all rows and, where targets are 0 or 1 and the model gives probabilities
    (``loss="sigmoid_cross_entropy"``), ``log_loss``, ``auc``, ``accuracy`` and ``calibration_error``; intervals by
    resampling users (rows, for data without users, and of users that the encoder does not know each by itself). Every
    row counts alike, whatever its weight.

    Args:
      model: a recommender, or any function of raw user ids and raw item ids (arrays) that returns their scores
        ``[users, items]``, so that other libraries pass through the same evaluator.
      test: held-out interactions. A frame may hold users and items that a recommender does not know: they are added
        as cold ones.
      ks: cut-offs, by default 10 and 20, or as many as there are candidates.
      task: by default ``"ranking"`` where the schema names no target, the recommender was trained by a loss of ranking,
        or ``relevant_from`` is given, else ``"rating"``, for which none of ``ks`` and the arguments from here to
        ``exclude_seen`` may be given.
      relevant_from: ranking of data with a target: lowest target of a relevant row; None for every row.
      seen: the training part, for a function; a recommender knows its own.
      candidates: raw ids of the items that are ranked, by default the whole catalogue. Or a frame with the schema's
        user and item columns, of candidates of each user's own (a protocol with sampled negatives): a user's held-out
        items are ranked among their rows of it, in which they need not stand themselves. Rows of users without a
        held-out item are not read.
      exclude: further interactions whose items are left out of their user's list.
      exclude_seen: whether training interactions are left out.
      level: of the intervals, in (0, 1).
      draws: of the bootstrap; ``auc`` and ``calibration_error``, for which each takes a pass over all rows, take 200 at
        most.
      seed: of the bootstrap.
      mesh: from ``sharding.make_mesh``: devices that share the catalogue, or where the model does not factorise and
        for ratings the users and rows. Each holds the parameters. The report is that of one device; two scores that
        differ by rounding alone may change places.

    Returns:
      Per-user values, means with intervals, coverage.

    Raises:
      ValueError: the test part is empty or, for lists, has unknown users, a cut-off is larger than the number of
        candidates, an item of ``candidates`` is unknown, a user has no candidates of their own, a score is NaN or a
        recommender's infinite, an option of ranked lists is given for ratings, ratings are asked of a recommender whose
        scores only order items, or lists of one whose model reads context, or ``level`` or ``draws`` is out of range.
      TypeError: ``seen`` is given for a recommender, or ``ks`` or ``exclude`` is of another kind.
    """
    need_drawable(level, draws)
    _sharded.check(mesh)
    subject, test = _prepared(model, test, seen)
    if mesh is not None:
        if not isinstance(subject.model, Recommender):
            raise TypeError("mesh= needs a recommender: a function computes where it likes. Leave mesh= out.")
        subject = subject._replace(model=subject.model.on(mesh))
    if task is None:
        ordered = isinstance(subject.model, Recommender) and subject.model.link == "rank"
        task = "ranking" if test.target is None or ordered or relevant_from is not None else "rating"
    if task == "rating":
        given = {"ks": ks, "relevant_from": relevant_from, "candidates": candidates, "exclude": exclude}
        given["exclude_seen"] = None if exclude_seen else False
        asked = [name for name, value in given.items() if value is not None]
        if asked:
            raise ValueError(
                f"{asked[0]}= is of ranked lists, and rows with a target are compared with it one by one. Say "
                "task='ranking', and with relevant_from= which targets are relevant; or leave it out."
            )
        if not isinstance(subject.model, Recommender):
            raise TypeError("Row-wise metrics need a recommender. A function can be evaluated with task='ranking'.")
        return evaluate_rows(subject.model, test, level=level, draws=draws, seed=seed)
    if task != "ranking":
        raise ValueError(f"Expected task 'ranking' or 'rating', got {task!r}.")
    relevant = _relevant(test, relevant_from)
    own = _own(subject.encoder, relevant, candidates) if isinstance(candidates, pd.DataFrame) else None
    if own is None:
        chosen = candidate_items(subject.encoder, candidates)
    else:
        chosen = padded(np.unique(own.item), len(subject.encoder.features.item_row)).astype(np.int32)
    live = int((chosen > 0).sum())
    if isinstance(ks, int):
        raise TypeError(f"Expected a sequence of cut-offs for ks, got {ks}. Say ks=({ks},).")
    ks = tuple(sorted({min(k, live) for k in (10, 20)})) if ks is None else tuple(ks)
    if not ks or not all(1 <= k <= live for k in ks):
        raise ValueError(
            f"Expected cut-offs in 1 .. {live} (the number of candidates), got {ks}. Name others with ks=, or in the "
            "metric, as in 'ndcg@5'."
        )
    lists = _ranked(
        subject,
        relevant,
        longest=max(ks),
        candidates=chosen,
        own=own,
        excluded=[*([subject.seen] if exclude_seen else []), *_extra(subject.encoder, exclude)],
    )
    return _report(lists, subject, ks, level=level, draws=draws, seed=seed)


class _Subject(NamedTuple):
    """Who is evaluated."""

    model: Recommender | Scores
    encoder: Encoder
    seen: Interactions
    trained: Interactions

    def ranker(self, candidates: np.ndarray) -> Ranker:
        if isinstance(self.model, Recommender):
            return ranker(self.model, candidates)
        return by_scores(_function_scorer(self.encoder, self.model, candidates), candidates, threads=False)

    def of_pairs(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        if isinstance(self.model, Recommender):
            return row_scores(self.model, Dataset(self.encoder, users.astype(np.int32), items))
        everything = candidate_items(self.encoder, None)
        score_of = _function_scorer(self.encoder, self.model, everything)
        someone, row = np.unique(users, return_inverse=True)
        scores = np.zeros(len(users), np.float32)
        for block, size in user_blocks(len(someone), len(everything)):
            here = np.flatnonzero((row >= block[0]) & (row <= block[-1]))
            scores[here] = np.asarray(score_of(someone[block], size))[row[here] - block[0], items[here]]
        return scores


class _Lists(NamedTuple):
    user: np.ndarray  # entity index
    item: np.ndarray  # [users, longest], 0 where a list is shorter
    hit: np.ndarray  # bool [users, longest]
    relevant: Interactions  # distinct pairs that count
    left_out: dict[str, int]
    num_candidates: int


def _prepared(
    model: Recommender | Scores, test: Dataset | pd.DataFrame, seen: Dataset | None
) -> tuple[_Subject, Dataset]:
    if isinstance(model, Recommender):
        if seen is not None:
            raise TypeError("A recommender knows what it was trained on. Leave seen= out; exclude= takes further rows.")
        if isinstance(test, pd.DataFrame):
            schema = model.encoder.schema
            ids = {"users": schema.user, "items": schema.item}
            model = add(
                model, **{name: test[column].unique() for name, column in ids.items() if column in test.columns}
            )
            # No figure reads weights or times.
            schema = dataclasses.replace(schema, weight=None, time=None)
            test = dataclasses.replace(model.encoder, schema=schema).encode(test)
        expect(test, Dataset, "test")
        model.check(test)
        return _Subject(model, model.encoder, model.seen, model.trained), test
    if not callable(model):
        expect(model, Recommender, "model")
    if not isinstance(test, Dataset) or seen is None:
        raise TypeError("For a function, give test and seen= (the training part) as datasets of one encoder.")
    expect(seen, Dataset, "seen")
    test.encoder.check(seen.encoder)
    known = seen.interactions.sized(len(test.features.user_row), len(test.features.item_row))
    return _Subject(model, test.encoder, known, known), test


def _extra(encoder: Encoder, exclude: Dataset | pd.DataFrame | None) -> list[Interactions]:
    if exclude is None:
        return []
    if isinstance(exclude, pd.DataFrame):
        return [encoder.pairs(exclude)]
    expect(exclude, Dataset, "exclude")
    encoder.check(exclude.encoder)
    return [exclude.interactions]


def _own(encoder: Encoder, test: Dataset, candidates: pd.DataFrame) -> Interactions:
    """Each user's candidates, their held-out items among them, each pair once."""
    given = encoder.pairs(candidates)
    known_items(encoder, list(candidates[encoder.schema.item].unique()), "candidates")
    held_out = _distinct(test)[0].sized(given.num_users, given.num_items)  # an older test part knows fewer
    lacking = np.flatnonzero((held_out.user_count > 0) & (given.user_count == 0))
    if len(lacking):
        raise ValueError(
            f"{len(lacking)} users of the test part have no candidates of their own, such as "
            f"{encoder.users.decode(lacking[:1])[0]!r}. Expected at least one row of candidates for each: add some, or "
            "leave these users out of the test part."
        )
    both = given.append(held_out)
    wanted = (held_out.user_count > 0)[both.user] & (both.item > 0)
    return _distinct(Dataset(encoder, both.user[wanted], both.item[wanted]))[0]


def check_ranked(test: Dataset) -> None:
    """Raises where nobody could be ranked for."""
    if test.user is None or test.item is None:
        raise ValueError("Ranking needs users and items. Name both columns in the schema, or use task='rating'.")
    if not len(test):
        raise ValueError("The test part is empty. Expected at least one held-out interaction.")
    if (test.user == 0).any():
        raise ValueError(
            f"{int((test.user == 0).sum())} test rows have users that the encoder does not know, so they cannot be "
            "told apart. Pass the test part as a frame, or encode all parts together with data.encode."
        )


def _relevant(test: Dataset, relevant_from: float | None) -> Dataset:
    check_ranked(test)
    if relevant_from is None:
        return test
    if test.target is None:
        raise ValueError("relevant_from needs a target. Name the column in the schema.")
    threshold = np.array([[relevant_from]], np.float64)
    if test.encoder.target is not None:
        given, threshold = threshold, test.encoder.target.transform(threshold, "relevant_from")
        if threshold[0, 0] > 0:  # under 'quantile' 0 is the lowest target or less: every row is relevant
            test.encoder.target.need_inside(given, "relevant_from")
    return test.subset(test.target >= threshold[0, 0].astype(np.float32))  # rounded as the targets were


def _ranked(
    subject: _Subject,
    test: Dataset,
    *,
    longest: int,
    candidates: np.ndarray,
    own: Interactions | None,
    excluded: list[Interactions],
) -> _Lists:
    live = int((candidates > 0).sum())
    column_of = columns(candidates, len(subject.encoder.features.item_row))
    pairs, repeated = _distinct(test)
    column = column_of[pairs.item]
    counts = column < len(candidates)
    gone = np.zeros(len(pairs), bool)
    for each in excluded:
        gone |= each.contains(pairs.user, pairs.item)
    kept = counts & ~gone
    left_out = {
        "repeated pairs": repeated,
        "items that are no candidates": int((~counts).sum()),
        "excluded, having been seen": int((counts & gone).sum()),
    }
    relevant = Interactions(pairs.user[kept], pairs.item[kept], pairs.num_users, pairs.num_items)
    users = np.flatnonzero(relevant.user_count)
    if own is None:
        scores, position, nan = best_lists(subject.ranker(candidates), users, column_of, excluded, longest)
        items = np.where(position >= 0, candidates[position], 0)
        # Products that overflow add up to NaN or to infinity, as the processor goes about it. A function may mean it.
        nan |= isinstance(subject.model, Recommender) and bool(np.isposinf(scores).any())
    else:
        left = np.ones(len(own), bool)
        for each in excluded:
            left &= ~each.contains(own.user, own.item)
        pairs = Interactions(own.user[left], own.item[left], own.num_users, own.num_items)
        items, nan = own_lists(subject.of_pairs, pairs, users, longest)
    if nan:
        raise NaNScore(
            "A score is infinite or NaN, so it has no rank. Look for such numbers in the parameters, features or "
            "function."
        )
    hits = relevant.contains(np.broadcast_to(users[:, None], items.shape), items) & (items > 0)
    return _Lists(users, items, hits, relevant, left_out, live)


def _distinct(test: Dataset) -> tuple[Interactions, int]:
    """Test pairs without repetition, items that are not known included as index 0."""
    assert test.user is not None and test.item is not None
    known = test.item > 0
    num_users, num_items = len(test.features.user_row), len(test.features.item_row)
    keys = test.user[known].astype(np.int64) * num_items + test.item[known]
    unique = distinct(keys)
    user, item = (part.astype(np.int32) for part in np.divmod(unique, num_items))
    pairs = Interactions(user, item, num_users, num_items)
    unknown = Interactions(test.user[~known], test.item[~known], num_users, num_items)
    return pairs.append(unknown), len(keys) - len(unique)


def _function_scorer(encoder: Encoder, function: Scores, candidates: np.ndarray) -> Scorer:
    items = encoder.items.decode(candidates[candidates > 0])

    def scores(users: np.ndarray, size: int) -> jax.Array:
        values = np.asarray(function(encoder.users.decode(users), items))
        if values.shape != (len(users), len(items)):
            raise ValueError(f"Expected scores of shape {(len(users), len(items))}, got {values.shape}.")
        full = np.zeros((len(users), len(candidates)), np.float32)
        full[:, candidates > 0] = _float32(values)
        return jnp.asarray(padded(full, size))

    return scores


def _float32(values: np.ndarray) -> np.ndarray:
    """The same order in float32: scores that it cannot tell apart are replaced by their rank within the user's."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    lossy = ~((narrow == values) | np.isnan(narrow)).all(axis=1)
    for row in np.flatnonzero(lossy):
        ranks = np.unique(values[row], return_inverse=True)[1].astype(np.float32)
        narrow[row] = np.where(np.isnan(values[row]), np.nan, ranks)
    return narrow


_from_hits = jax.jit(from_hits, static_argnames="k")


def _report(lists: _Lists, subject: _Subject, ks: Sequence[int], *, level: float, draws: int, seed: int) -> Report:
    by_user, cold_item = subject.trained.user_count, subject.trained.item_count == 0
    everyone = np.ones(len(lists.user), bool)
    count = by_user[lists.user]
    every_item = np.ones_like(cold_item)
    slices = {
        "all": (everyone, every_item),
        "cold users": (count == 0, every_item),
        "few-shot users": ((count > 0) & (count <= FEW), every_item),
        "warm users": (count > FEW, every_item),
        "cold items": (everyone, cold_item),
        "warm items": (everyone, ~cold_item),
    }
    tables, per_user = [], []
    place = np.searchsorted(lists.user, lists.relevant.user)
    size = 1 << (max(len(lists.user), 1) - 1).bit_length()  # parts of about as many users share a compiled function
    for name, (chosen, items) in slices.items():
        relevant = np.bincount(place[items[lists.relevant.item]], minlength=len(lists.user))
        same = chosen.all() and relevant.sum() == len(lists.relevant)
        chosen = chosen & (relevant > 0)
        if name != "all" and (same or not chosen.any()):
            continue
        hit = lists.hit & items[lists.item]
        # Of everybody, so that all slices share one compiled function.
        found = {k: _from_hits(padded(hit, size), padded(relevant.astype(np.int32), size), k=k) for k in ks}
        values = {
            f"{metric}@{k}": np.asarray(found[k][metric], np.float64)[: len(chosen)][chosen]
            for k in ks
            for metric in NAMES
        }
        names = list(values)
        matrix = np.stack([values[metric] for metric in names], axis=1)
        low, high = bootstrap_bounds(matrix, level=level, draws=draws, seed=seed)
        mean = matrix.mean(axis=0) if len(matrix) else np.full(len(names), np.nan)
        tables.append(
            pd.DataFrame({"slice": name, "metric": names, "mean": mean, "low": low, "high": high, "users": len(matrix)})
        )
        raw = subject.encoder.users.decode(lists.user[chosen])
        per_user.append(pd.DataFrame({"slice": name, "user": raw, **values}))
    listed = {k: np.bincount(lists.item[:, :k].reshape(-1), minlength=1) for k in ks}
    coverage = {k: np.count_nonzero(count[1:]) / lists.num_candidates for k, count in listed.items()}
    return Report(
        pd.concat(tables, ignore_index=True), pd.concat(per_user, ignore_index=True), coverage, lists.left_out
    )
