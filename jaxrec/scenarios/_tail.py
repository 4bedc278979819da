"""The scenario of rare items: do features, or the head's experience, help those with few interactions?"""

import functools
from collections.abc import Sequence
from typing import Any

import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec.coldstart import add
from jaxrec.coldstart._part import encode_part
from jaxrec.data import Dataset, Encoder, Frames, Parts, encode
from jaxrec.evaluation import Report
from jaxrec.scenarios._mixed import mixtures
from jaxrec.scenarios._options import SHOTS, Options, counted, groups_of, per_id
from jaxrec.scenarios._question import SQUARES, Fitted, Method, Question, Squares, baselines, factoriser, of_history
from jaxrec.scenarios._scenario import Scenario
from jaxrec.scenarios._settle import Told, settle
from jaxrec.scenarios._splits import Splits, as_parts, some_apart, split_pairs

_SQUARES = tuple(setting for setting in SQUARES if not setting.softmax)  # nobody is new


def long_tail(
    frames: Frames,
    *,
    tail: float = 0.8,
    strategies: Sequence[str] | None = None,
    metric: str = "ndcg@10",
    shots: Sequence[int] = SHOTS,
    dim: int = 64,
    validation: float = 0.1,
    test: float = 0.2,
    level: float = 0.95,
    seed: int = 0,
) -> Scenario:
    """Items with few interactions: the least popular of the catalogue, ranked among all.

    Rows are held out at random; those of the head are the slice ``head items``. What lifts the tail pushes the head
    down, so the choice is by the mean of the two, as in ``new_user``. For the learning curve so many training
    interactions of each tail item are kept, and methods are fitted again.

    Strategies: ``"iALS with features"`` (``fit_als(content=True)``), ``"head first"`` (fitted to the head's
    interactions with features as prior, after which the tail's are folded in) and ``"features and neighbours"`` (the
    first, mixed with nearest neighbours by content for items with fewer than five interactions). Baselines as in
    ``new_user``.

    Args:
      frames: as for ``new_item``.
      tail: share of the items in training that are the tail, in (0, 1); of equally popular ones the larger ids.
      strategies: as for ``new_user``, likewise the others; shares are of rows.
      metric: see ``strategies``.
      shots: training interactions of a tail item, of the learning curve.
      dim: see ``strategies``.
      validation: see ``strategies``.
      test: see ``strategies``.
      level: see ``strategies``.
      seed: see ``strategies``.

    Raises:
      ValueError: as for ``new_item``, or ``tail`` is out of range.
    """
    options = Options(strategies, metric, tuple(shots), dim, validation, test, level, seed)
    options.check(frames)
    options.need_item_features(frames)
    if not 0 < tail < 1:
        raise ValueError(f"Expected tail in (0, 1), a share of the items, got {tail}.")
    schema, rows = frames.schema, frames.interactions
    train, apart = some_apart(rows, schema, share=validation + test, seed=seed)
    popularity = per_id(train[schema.item]).sort_index().sort_values(ascending=False, kind="stable")
    rare = set(popularity.index[len(popularity) - round(len(popularity) * tail) :])
    halves = split_pairs(apart, schema, share=test / (validation + test), seed=seed)
    parts = {}
    for name, part in zip(("validation", "test"), halves, strict=True):
        inside = part[schema.item].isin(rare)
        parts[name], parts[f"{name} head"] = part[inside], part[~inside]
        if parts[name].empty or parts[f"{name} head"].empty:
            raise ValueError(
                f"The tail or the head has no {name} row. Change tail={tail} or the shares, or give more rows."
            )
    splits = Splits(
        train, parts["validation"], parts["test"], rows.iloc[:0], parts["test head"], parts["validation head"]
    )
    question = Question(
        schema=schema, splits=splits, side="item", who="tail items", shots=(0,), metric=metric, level=level, seed=seed
    )
    told = Told(
        name="long_tail",
        title="Long tail",
        data=f"{counted(rows, schema)}, {len(rare):,} of them in the tail",
        scratch="iALS",
        known="training interactions of a tail item, at most",
        activity={"activity: interactions of the user": per_id(train[schema.user])},
        groups=groups_of(frames),
        popularity=per_id(train[schema.item]),
        notes=(
            "Tail items are ranked among all, so that popularity, which lists the head first, reaches none of them.",
            "The learning curve takes interactions away. A factorisation reads what is missing as a no, so an item "
            "left with one may rank below an item left with none, which features alone place: the curve can fall.",
        ),
        rest="head items",
    )
    fitting = _Tail(frames, splits, rare, options)

    @functools.cache
    def with_fewer(shot: int) -> tuple[list[Method], pd.DataFrame]:
        fewer, removed = fitting.fewer(shot)
        return fitting.methods(fewer), removed

    def curve(method: Method, setting: Any) -> dict[int, Report]:
        found = {}
        for shot in options.shots:
            methods, removed = with_fewer(shot)
            again = next(each for each in methods if each.name == method.name).fit(setting)
            again = again if isinstance(again, Fitted) else Fitted(again)
            found[shot] = question.report(again, splits.test, seen=removed)
        return found

    return settle(question, options.picked(fitting.methods(train)), told, curve=curve)


class _Tail:
    def __init__(self, frames: Frames, splits: Splits, rare: set[Any], options: Options) -> None:
        self.frames, self.splits, self.rare, self.options = frames, splits, rare, options

    def encoded(self, train: pd.DataFrame) -> Dataset:
        """With all users and items of the frame known, whatever is trained on."""
        held_out = pd.concat([self.splits.train, as_parts(self.splits).test])
        parts = Parts(train, self.splits.validation, held_out)
        return encode_part(parts, self._whole, users=self.frames.users, items=self.frames.items).train

    @functools.cached_property
    def _whole(self) -> Encoder:
        """Of the whole training part."""
        frames = self.frames
        return encode(as_parts(self.splits), frames.schema, users=frames.users, items=frames.items).train.encoder

    def fewer(self, shot: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The training part with so many rows of each tail item, at random, and the rows that went."""
        train = self.splits.train.sample(frac=1.0, random_state=self.options.seed)
        item = train[self.frames.schema.item]
        kept = ~item.isin(self.rare) | (train.groupby(item).cumcount() < shot)
        return train[kept], train[~kept]

    def methods(self, rows: pd.DataFrame) -> list[Method]:
        train = self.encoded(rows)
        sizes = {"dim": self.options.dim, "seed": self.options.seed}
        content = factoriser(train, content=True, **sizes)
        in_tail = rows[self.frames.schema.item].isin(self.rare)

        of_head = functools.cache(lambda: factoriser(self.encoded(rows[~in_tail]), content=True, **sizes))

        def head_first(setting: Squares) -> Recommender:
            head = of_head()(setting)
            return add(head, interactions=rows[in_tail]) if in_tail.any() else head

        plain = baselines(train, factoriser(train, **sizes))
        plain[1] = plain[1]._replace(settings=_SQUARES, words="a factorisation that reads no features")
        return [
            *plain,
            *of_history(train),
            Method("iALS with features", "a factorisation with features as prior", content, _SQUARES),
            Method("head first", "fitted to the head with features as prior, the tail folded in", head_first,
                   _SQUARES),
            mixtures(train, content, _SQUARES),
        ]  # fmt: skip
