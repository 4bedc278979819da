"""Factors and neighbours by content, mixed for items of which little is known."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxrec._recommender import Recommender
from jaxrec.coldstart import mix
from jaxrec.coldstart._default import spread
from jaxrec.data import Dataset
from jaxrec.scenarios._question import Method, Squares
from jaxrec.train import fit_content_knn

_SHARES = (0.25, 0.5, 0.75)


class Mixed(NamedTuple):
    """A setting of the factors, and the neighbours' share in the score of an item that is little known."""

    factors: Squares
    share: float

    def __str__(self) -> str:
        return f"{self.factors}, neighbours {self.share:g}"


def mixtures(train: Dataset, factors: Callable[[Squares], Recommender], settings: tuple[Squares, ...]) -> Method:
    """``coldstart.mix`` of a factorisation with features and ``fit_content_knn``, each in units of its own spread."""
    neighbours = functools.cache(lambda: fit_content_knn(train))

    def fitted(setting: Mixed) -> Recommender:
        parts = factors(setting.factors), neighbours()
        units = [1.0 / max(spread(part, 0), 1e-12) for part in parts]
        share = setting.share
        weight = [[(1 - share) * units[0]] * 2 + [units[0]], [share * units[1]] * 2 + [0.0]]
        return mix(parts, weight)

    return Method(
        "features and neighbours",
        "a factorisation with features as prior, mixed with neighbours by content for items that are little known",
        fitted,
        tuple(Mixed(setting, share) for setting in settings for share in _SHARES),
    )
