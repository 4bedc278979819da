"""Scenario of two platforms that share no id: what is learned of features in one is carried to the other."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec.data import Dataset, Frames, Parts, Schema, encode
from jaxrec.data._features import FittedFeature
from jaxrec.models import TwoTower
from jaxrec.scenarios._options import SHOTS, Options, counted, groups_of, per_id
from jaxrec.scenarios._question import SQUARES, Method, Question, baselines, factoriser, of_history
from jaxrec.scenarios._scenario import Scenario
from jaxrec.scenarios._settle import Told, settle
from jaxrec.scenarios._splits import as_parts, hold_out, split_pairs
from jaxrec.train import fit
from jaxrec.transfer import adapt
from jaxrec.transfer._stack import qualified

_TOWERS = {"hidden": (64,), "code_dim": 8, "history": 10}


def cross_platform(
    source: Frames,
    target: Frames,
    *,
    strategies: Sequence[str] | None = None,
    metric: str = "ndcg@10",
    shots: Sequence[int] = SHOTS,
    dim: int = 32,
    epochs: int = 15,
    validation: float = 0.15,
    test: float = 0.25,
    level: float = 0.95,
    seed: int = 0,
) -> Scenario:
    """Two platforms without a shared id: features that both name alike are all that connects them.

    A two-tower model that reads features and histories is pretrained on the source and carried to the target
    (``transfer.adapt``). Ids are taken as different even where they look the same. Users of the target are held out,
    shown and judged as in ``new_user``. Strategies: ``"towers, fine-tuned"`` (all copied, all trained on), ``"towers,
    frozen"`` (what was copied stays) and ``"item tower, fine-tuned"``. The baseline ``"towers from scratch"`` has the
    same model and budget; the others are those of ``new_user``, and iALS with features. Baselines read features by the
    target's own statistics, strategies by the source's, which their towers have learned.

    Args:
      source: interactions without target, items with features.
      target: likewise. Features that are not in both schemas, with the same column and settings, are not read.
      strategies: as for ``new_user``, likewise the others.
      metric: see ``strategies``.
      shots: see ``strategies``.
      dim: width of the towers' vectors and of the factorisations.
      epochs: of each training, at most: it stops on validation users.
      validation: see ``strategies``.
      test: see ``strategies``.
      level: see ``strategies``.
      seed: see ``strategies``.

    Raises:
      ValueError: as for ``new_user``, or the schemas share no feature of items.
    """
    options = Options(strategies, metric, tuple(shots), dim, validation, test, level, seed)
    options.check(source, "source", ranked=False)
    options.check(target, "target")
    if epochs < 1:
        raise ValueError(f"Expected epochs >= 1, got {epochs}.")
    source, target = _alike(source, target)
    schema = target.schema
    splits = hold_out(
        target.interactions, schema, side="user", most=max(shots), validation=validation, test=test, seed=seed
    )
    training: dict[str, Any] = {"epochs": epochs, "seed": seed, "progress": False}
    rows = Parts(*split_pairs(source.interactions, source.schema, share=0.1, seed=seed), None)
    rich = encode(rows, source.schema, users=source.users, items=source.items)
    model = TwoTower.for_data(rich.train, dim=dim, **_TOWERS)

    @functools.cache
    def pretrained() -> Recommender:
        return fit(model, rich.train, validation=rich.validation, batch_size=1024, **training)

    parts = as_parts(splits)
    poor = encode(parts, schema, users=target.users, items=target.items, like=rich.train.encoder)
    # Who learns nothing of the source reads features by the target's statistics, under which they tell most.
    own, constant = _telling(target, splits.train)
    alone = encode(parts, own, users=target.users, items=target.items)
    question = Question(
        schema=schema,
        splits=splits,
        side="user",
        who="new users",
        shots=options.shots,
        metric=metric,
        level=level,
        seed=seed,
    )
    features = [feature.column for feature in (*schema.user_features, *schema.item_features)]
    told = Told(
        name="cross_platform",
        title="Cross-platform",
        data=(
            f"target: {counted(target.interactions, schema)}; source: "
            f"{counted(source.interactions, source.schema)}; in common: {', '.join(features)}"
        ),
        scratch="towers from scratch",
        known="target interactions known of a new user",
        activity={"activity: interactions of the user": per_id(target.interactions[schema.user])},
        groups=groups_of(target),
        popularity=per_id(splits.train[schema.item]),
        notes=(f"Constant in the target, so that no baseline reads it: {', '.join(constant)}.",) if constant else (),
    )
    return settle(question, options.picked(_methods(pretrained, poor, alone, options, training)), told)


def _methods(
    pretrained: Callable[[], Recommender], poor: Parts, alone: Parts, options: Options, training: dict[str, Any]
) -> list[Method]:
    """Of the target, encoded like the source for what is carried from there, and alone for the baselines."""
    train: Dataset = alone.train
    sizes, tuning = {"dim": options.dim, "seed": options.seed}, {**training, "batch_size": 256}
    found = baselines(train, factoriser(train, **sizes))
    if train.encoder.user_features or train.encoder.item_features:
        content = factoriser(train, content=True, **sizes)
        words = "a factorisation of the target alone with features as prior"
        found.append(Method("iALS with features", words, content, SQUARES, strategy=False))

    def scratch(_: None) -> Recommender:
        model = TwoTower.for_data(train, dim=options.dim, **_TOWERS)
        return fit(model, train, validation=alone.validation, **tuning)

    def adapted(**how: Any) -> Any:
        return lambda _: adapt(pretrained(), poor.train, validation=poor.validation, **how, **tuning).recommender

    return [
        *found,
        *of_history(train),
        Method("towers from scratch", "the same model, trained on the target alone", scratch, strategy=False),
        Method("towers, fine-tuned", "both towers copied from the source and trained on", adapted()),
        Method("towers, frozen", "both towers as the source left them, ids learned", adapted(freeze="copied")),
        Method("item tower, fine-tuned", "the items' tower copied and trained on", adapted(patterns="item/*")),
    ]  # fmt: skip


def _alike(source: Frames, target: Frames) -> tuple[Frames, Frames]:
    """Both with the features that they share, and without a shared id."""
    shared: dict[str, Any] = {}
    for side in ("user", "item"):
        theirs, ours = (getattr(frames.schema, f"{side}_features") for frames in (source, target))
        described = all(getattr(frames, f"{side}s") is not None for frames in (source, target))
        shared[f"{side}_features"] = tuple(feature for feature in ours if feature in theirs) if described else ()
    if not shared["item_features"]:
        raise ValueError(
            f"The schemas share no feature of items: {source.schema.item_features} and {target.schema.item_features}. "
            "Give both frames of items a column of one name, type and scale. Domains with shared users need none: see "
            "cross_domain."
        )
    schema = dataclasses.replace(source.schema, **shared)
    apart = Frames(
        _renamed(source.interactions, schema.user, schema.item), _renamed(source.users, schema.user),
        _renamed(source.items, schema.item), schema,
    )  # fmt: skip
    return apart, target._replace(schema=dataclasses.replace(target.schema, **shared))


def _telling(target: Frames, train: pd.DataFrame) -> tuple[Schema, list[str]]:
    """The target's schema without the features that are constant in its training part, and their columns.

    ``encode`` refuses them where no source lends its statistics.
    """
    schema = target.schema
    kept: dict[str, Any] = {"user_features": (), "item_features": ()}
    constant = []
    for name, column, frame in (
        ("user_features", schema.user, target.users),
        ("item_features", schema.item, target.items),
    ):
        for feature in getattr(schema, name):
            assert frame is not None
            try:
                FittedFeature.fit(feature, frame[frame[column].isin(train[column])])
            except ValueError:
                constant.append(feature.column)
            else:
                kept[name] += (feature,)
    return dataclasses.replace(schema, **kept), constant


def _renamed(frame: pd.DataFrame | None, *columns: str | None) -> Any:
    if frame is None:
        return None
    return frame.assign(**{str(column): qualified(frame[column], "source") for column in columns})
