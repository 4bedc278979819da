"""The methods of a scenario, and what every one of them is asked."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._metrics import task_of
from jaxrec._recommender import Recommender
from jaxrec._types import Folding, ImplicitSquares
from jaxrec.coldstart import add, or_popular, popularity
from jaxrec.data import Dataset, Schema
from jaxrec.evaluation import Report, evaluate
from jaxrec.scenarios._splits import Splits, distinct_so_far
from jaxrec.train import fit_als, fit_content_knn, fit_ease, fit_item_knn


class Fitted(NamedTuple):
    """A recommender, and how the target's rows and catalogue are named in it (``transfer.stack`` renames items)."""

    recommender: Recommender
    named: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
    candidates: np.ndarray | None = None


class Method(NamedTuple):
    """A baseline or a strategy, with the settings that are tried on validation."""

    name: str
    words: str
    fit: Callable[[Any], Fitted | Recommender]
    settings: tuple[Hashable, ...] = (None,)
    strategy: bool = True


class Squares(NamedTuple):
    """Settings of ``fit_als`` that are tried, and how newcomers are folded in."""

    unobserved: float
    l2: float
    softmax: bool = False  # by one step on a softmax's likelihood instead of the factorisation's own objective

    def __str__(self) -> str:
        return (
            f"unobserved {self.unobserved:g}, l2 {self.l2:g}, folded in by {'softmax' if self.softmax else 'squares'}"
        )


class One(NamedTuple):
    """A setting of one number."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:g}"


SHRINKS = (One("shrink", 10.0), One("shrink", 100.0))  # of nearest neighbours
_EASE = 5000  # most trained items for a matrix of items by items that is inverted
_WEIGHTS = ((0.3, 0.01), (0.03, 0.01), (0.003, 0.03))
SQUARES = tuple(Squares(*weights, softmax) for weights in _WEIGHTS for softmax in (False, True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """How well are the held-out rows ranked, with so many interactions of a newcomer known?"""

    schema: Schema
    splits: Splits
    side: Literal["user", "item"]  # who is new
    who: str  # in words
    shots: tuple[int, ...]
    metric: str
    level: float
    seed: int

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        """The one that decides, and those that are reported beside it."""
        most = self.splits.train[self.schema.item].nunique()
        others = [name for name in ("ndcg@10", "recall@20", "mrr@10") if task_of(name)[1][0] <= most]
        return tuple(dict.fromkeys([self.metric, *others]))

    def report(
        self,
        fitted: Fitted,
        rows: pd.DataFrame,
        shot: int = 0,
        *,
        seen: pd.DataFrame | None = None,
        among: pd.DataFrame | None = None,
    ) -> Report:
        """Of these rows, the first ``shot`` interactions of each newcomer in them being known, or in ``among``.

        ``seen`` are rows beside those of training that are nobody's candidates.
        """
        column = self.schema.user if self.side == "user" else self.schema.item
        shown = self.splits.shown
        shown = shown[shown[column].isin((rows if among is None else among)[column])]
        known = shown[distinct_so_far(shown, self.schema, column) <= shot]
        hidden = shown if seen is None else pd.concat([shown, seen])  # the same candidates whatever is known
        recommender = fitted.recommender
        if len(known):
            recommender = add(recommender, interactions=fitted.named(known))
        return evaluate(
            recommender,
            fitted.named(rows),
            ks=sorted({task_of(name)[1][0] for name in self.metrics}),
            candidates=fitted.candidates,
            exclude=fitted.named(hidden) if len(hidden) else None,
            level=self.level,
            draws=1,  # intervals are of the users' values, see Scenario.table
            seed=self.seed,
        )

    def reports(self, fitted: Fitted, rows: pd.DataFrame, *, among: pd.DataFrame | None = None) -> dict[int, Report]:
        """By the number of interactions known."""
        return {shot: self.report(fitted, rows, shot, among=among) for shot in self.shots}

    def by_user(self, reports: dict[int, Report], metric: str) -> pd.Series:
        """Each user's value, on average over what is known."""
        return pd.concat([report.users(metric) for report in reports.values()], axis=1).mean(axis=1).rename(metric)


def baselines(train: Dataset, als: Callable[[Squares], Recommender]) -> list[Method]:
    """What any strategy has to beat, tuned on the same validation rows."""
    found = [
        Method("popularity", "the most popular items, the same to everybody", lambda _: popularity(train)),
        Method("iALS", "a factorisation of the target alone, newcomers folded in", als, SQUARES),
    ]
    if train.encoder.item_features:
        words = "items like those a user has touched"
        found.append(Method("content k-NN", words, lambda _: or_popular(fit_content_knn(train), train)))
    return [method._replace(strategy=False) for method in found]


def of_history(train: Dataset) -> list[Method]:
    """Baselines that need no training for a new user: item-to-item weights, read from what the user touched.

    Popularity orders what they score alike: without it they would be no rival where nothing is known.
    """

    def weights(setting: One) -> Recommender:
        return or_popular(fit_ease(train, l2=setting.value), train)

    def neighbours(setting: One) -> Recommender:
        return or_popular(fit_item_knn(train, shrink=setting.value), train)

    words = "weights between items by ridge regression, read from what the user touched"
    ease = Method("EASE", words, weights, (One("l2", 100.0), One("l2", 500.0)), strategy=False)
    knn = Method("item k-NN", "items that share users with what the user touched", neighbours, SHRINKS, strategy=False)
    return [ease, knn] if int(train.features.item_row.max()) <= _EASE else [knn]


def factoriser(train: Dataset, *, dim: int, seed: int, **options: Any) -> Callable[[Squares], Recommender]:
    """``fit_als`` by setting; several methods share a backbone."""

    @functools.cache
    def fitted(unobserved: float, l2: float) -> Recommender:
        return fit_als(train, dim=dim, epochs=10, unobserved=unobserved, l2=l2, seed=seed, **options)

    return lambda setting: folding(fitted(setting.unobserved, setting.l2), setting)


def folding(recommender: Recommender, setting: Squares) -> Recommender:
    """The recommender that folds newcomers in as the setting says, whatever it was derived from."""
    if setting.softmax:
        return recommender.replace(folding=None)
    return recommender.replace(folding=Folding(ImplicitSquares(setting.unobserved, setting.l2)))
