"""Scenarios within one domain whose newcomers are held out: new users, new items."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxrec._recommender import Recommender
from jaxrec.coldstart import map_content
from jaxrec.data import Dataset, Frames, encode
from jaxrec.scenarios._mixed import mixtures
from jaxrec.scenarios._options import SHOTS, Options, counted, groups_of, per_id
from jaxrec.scenarios._question import SQUARES, Method, Question, Squares, baselines, factoriser, folding, of_history
from jaxrec.scenarios._scenario import Scenario
from jaxrec.scenarios._settle import Told, settle
from jaxrec.scenarios._splits import as_parts, hold_out


def new_user(
    frames: Frames,
    *,
    strategies: Sequence[str] | None = None,
    metric: str = "ndcg@10",
    shots: Sequence[int] = SHOTS,
    dim: int = 64,
    validation: float = 0.15,
    test: float = 0.25,
    level: float = 0.95,
    seed: int = 0,
) -> Scenario:
    """Users of whom nothing but features is known, and then a few interactions. Nothing is retrained for them.

    Whole users are held out. Of each the first 0, 1, 2, 5 and 10 interactions are shown (at most half of what there
    is), and the rest has to be ranked, in the full catalogue. Settings and strategy are chosen on validation rows of a
    thousand users at most: by the mean over these numbers for new users, and by rows of known ones, half and half, so
    that what serves newcomers at the others' cost is charged for it. Test rows are read once, by the baselines and the
    best strategy.

    Strategies: ``"iALS with features"`` (``fit_als(content=True)``) and ``"iALS, features mapped"`` (``map_content``).
    Baselines, which read no features of users: popularity, iALS, where items have features their nearest neighbours,
    ``"EASE"`` (of at most 5,000 trained items) and ``"item k-NN"``; the last two are the strategies where there are no
    features.

    Args:
      frames: interactions without target, users and items with the schema's features, if there are any.
      strategies: names of those that are tried; by default all.
      metric: by which is chosen: recall, precision, hit, ndcg, mrr or map at a number.
      shots: numbers of interactions known.
      dim: width of factorisations.
      validation: share of the newcomers.
      test: likewise.
      level: of the intervals.
      seed: of splits, training and bootstrap.

    Returns:
      The verdict, the tables behind it, the splits and the chosen recommender.

    Raises:
      ValueError: the data has a target, too few users or items, a strategy is unknown, an option is out of range.
    """
    options = Options(strategies, metric, tuple(shots), dim, validation, test, level, seed)
    return _newcomers(frames, options, side="user")


def new_item(
    frames: Frames,
    *,
    strategies: Sequence[str] | None = None,
    metric: str = "ndcg@10",
    shots: Sequence[int] = SHOTS,
    dim: int = 64,
    validation: float = 0.15,
    test: float = 0.25,
    level: float = 0.95,
    seed: int = 0,
) -> Scenario:
    """Items of which nothing but features is known, and then a few interactions.

    As ``new_user``, with whole items held out, ranked for the users who touched them among all items, known ones
    included. Strategies: ``"iALS with features"``, ``"iALS, features mapped"``, ``"iALS, features mapped by a
    perceptron"`` and ``"features and neighbours"`` (``coldstart.mix``). Baselines: those of ``new_user`` but EASE.

    Args:
      frames: as for ``new_user``; items need features, or there is nothing to tell new ones apart by.
      strategies: as for ``new_user``, likewise the others; shares are of items.
      metric: see ``strategies``.
      shots: see ``strategies``.
      dim: see ``strategies``.
      validation: see ``strategies``.
      test: see ``strategies``.
      level: see ``strategies``.
      seed: see ``strategies``.

    Raises:
      ValueError: as for ``new_user``, or items have no features.
    """
    options = Options(strategies, metric, tuple(shots), dim, validation, test, level, seed)
    options.check(frames)
    options.need_item_features(frames)
    return _newcomers(frames, options, side="item")


def _newcomers(frames: Frames, options: Options, *, side: Literal["user", "item"]) -> Scenario:
    options.check(frames)
    schema, rows = frames.schema, frames.interactions
    splits = hold_out(
        rows, schema, side=side, most=max(options.shots), validation=options.validation, test=options.test,
        seed=options.seed,
    )  # fmt: skip
    train: Dataset = encode(as_parts(splits), schema, users=frames.users, items=frames.items).train
    question = Question(
        schema=schema, splits=splits, side=side, who=f"new {side}s", shots=options.shots, metric=options.metric,
        level=options.level, seed=options.seed,
    )  # fmt: skip
    popularity = per_id((splits.train if side == "user" else rows)[schema.item])
    held_back = rows if side == "user" else splits.train
    told = Told(
        name=f"new_{side}",
        title=f"New {side}s",
        data=counted(rows, schema),
        scratch="iALS",
        known=f"interactions known of a new {side}",
        activity={"activity: interactions of the user": per_id(held_back[schema.user])},
        groups=groups_of(frames),
        popularity=popularity,
    )
    als = factoriser(train, dim=options.dim, seed=options.seed)
    content = factoriser(train, dim=options.dim, seed=options.seed, content=True)
    methods = baselines(train, als)
    features = train.encoder.user_features if side == "user" else train.encoder.item_features
    if train.encoder.user_features or train.encoder.item_features:
        words = "a factorisation with features as prior, newcomers folded in from it"
        methods.append(Method("iALS with features", words, content, SQUARES))
    if features:
        words = "a factorisation, and a ridge from features to its vectors, newcomers folded in"
        methods.append(Method("iALS, features mapped", words, mapped(train, als, side), SQUARES))
    history = of_history(train) if side == "user" else of_history(train)[-1:]  # EASE has no weights for a new item
    described = any(method.strategy for method in methods)
    methods += [method._replace(strategy=not described) for method in history]
    if side == "item":
        words = "a factorisation, and a perceptron from features to its vectors, newcomers folded in"
        name = "iALS, features mapped by a perceptron"
        methods.append(Method(name, words, mapped(train, als, side, kind="mlp", seed=options.seed), SQUARES))
        methods.append(mixtures(train, content, SQUARES[::2]))
    return settle(question, options.picked(methods), told)


def mapped(
    train: Dataset,
    als: Callable[[Squares], Recommender],
    side: Literal["user", "item"],
    *,
    kind: Literal["ridge", "mlp"] = "ridge",
    seed: int = 0,
) -> Callable[[Squares], Recommender]:
    """``map_content`` over ``fit_als``."""
    options: dict[str, Any] = {"progress": False} if kind == "mlp" else {}

    @functools.cache
    def fitted(unobserved: float, l2: float) -> Recommender:
        return map_content(als(Squares(unobserved, l2)), train, side=side, kind=kind, seed=seed, **options)

    return lambda setting: folding(fitted(setting.unobserved, setting.l2), setting)
