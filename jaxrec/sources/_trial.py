"""A few steps of the transfer on a part of the target's training rows, and as many without the source."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._metrics import default_metric
from jaxrec._recommender import Recommender
from jaxrec.data import Dataset, Frames, Parts, Schema, encode
from jaxrec.data._sides import Side
from jaxrec.evaluation import Report, evaluate
from jaxrec.evaluation._evaluate import Scores
from jaxrec.ranking._vectors import item_vectors, user_vectors
from jaxrec.train import fit_als
from jaxrec.transfer import NegativeTransfer, compare, emcdr, stack

LEAST = 3  # held-out users of a trial

Strategy = Literal["emcdr", "stack"]


class Gain(NamedTuple):
    """A paired difference, as a part of the sum of both figures: 0.1 is 0.55 against 0.45, 1 all against nothing."""

    gain: float = 0.0
    low: float = -1.0  # an interval that excludes nothing, where there was no trial
    high: float = 1.0
    users: int = 0


class Trials:
    """Trials of several sources on the same held-out rows, beside the same training without a source."""

    def __init__(
        self, candidates: Mapping[str, Recommender], train: Dataset, *, strategy: Strategy, held_out: float,
        least: int, options: dict[str, Any], level: float, seed: int,
    ) -> None:  # fmt: skip
        self.strategy, self.level, self.seed, self.options = strategy, level, seed, options
        self.train = train
        self._held_out = held_out
        known = [
            train.encoder.users.encode(_of_kind(source, train)) for source in candidates.values() if source.factorises
        ]
        count = train.interactions.user_count
        shared = np.unique(np.concatenate([*known, np.zeros(1, np.int64)]))
        self._users = shared[(shared > 0) & (count[shared] >= least)]
        self._least = least
        self._alone: tuple[Recommender, Dataset, Report] | None = None

    def metric(self, source: Recommender) -> str:
        """What a source is tried by. Scores that only order items are gone on with as such, whatever the target."""
        return default_metric(self.train, source.link)

    def __call__(self, source: Recommender) -> Gain:
        """What the source adds.

        Raises:
          ValueError: the source has nothing that could be carried over, or too few users are left to see it.
        """
        plain = source.factorises and not source.reads_context
        if self.train.target is None and plain and len(_of_kind(source, self.train)):
            return self._of_new_users(source)
        return self._of_known_users(source)

    def _of_new_users(self, source: Recommender) -> Gain:
        """Users are held out whole, and known from the source alone."""
        if self._alone is None:
            self._alone = self._without()
        alone, test, report = self._alone
        metric = self.metric(source)
        options: dict[str, Any] = {"ks": _ks(metric), "level": self.level, "seed": self.seed}
        if self.strategy == "emcdr":
            found = evaluate(emcdr(source, alone), test, **options)
        else:
            kept = alone.trained
            kept = Dataset(alone.encoder, kept.user, kept.item)
            found = evaluate(_stacked(source, kept, seed=self.seed, **self.options), test, seen=kept, **options)
        paired = found.versus(report, metric, level=self.level, seed=self.seed)
        return _relative(paired.difference, paired.low, paired.high, report[metric], paired.users)

    def _without(self) -> tuple[Recommender, Dataset, Report]:
        rng = np.random.default_rng(self.seed)
        chosen = rng.permutation(self._users)[: max(round(self._held_out * len(self._users)), LEAST)]
        if len(chosen) < LEAST or len(chosen) == np.count_nonzero(self.train.interactions.user_count):
            raise ValueError(
                f"{len(self._users)} users with {self._least} rows or more in the target are known to a source, too "
                "few to hold some out and map the others. Lower least=."
            )
        assert self.train.user is not None and self.train.item is not None
        held = np.isin(self.train.user, chosen)
        kept = cold(self.train, ~held)
        alone = fit_als(kept, seed=self.seed, **self.options)
        test = dataclasses.replace(self.train.subset(held), encoder=kept.encoder)
        report = evaluate(alone, test, ks=_ks(self.metric(alone)), level=self.level, seed=self.seed)
        return alone, test, report

    def _of_known_users(self, source: Recommender) -> Gain:
        """Rows are held out; the source's parameters are copied and trained on (``adapt``)."""
        rng = np.random.default_rng(self.seed)
        held = rng.random(len(self.train)) < self._held_out
        if not held.any() or held.all():
            raise ValueError(f"{len(self.train)} rows of the target are too few to hold some out.")
        kept = cold(self.train, ~held)
        test = dataclasses.replace(self.train.subset(held), encoder=kept.encoder)
        ordered = source.link == "rank" and self.train.target is not None
        loss = "in_batch_softmax" if ordered else None  # whatever the loss was that the scores came from
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NegativeTransfer)  # the ranking's verdict says so
            found = compare(
                source, kept, test, metric=self.metric(source), loss=loss, level=self.level, seed=self.seed,
                epochs=self.options["epochs"], progress=False,
            )  # fmt: skip
        row = found.table.iloc[0]
        total = float(row.transfer + row.scratch)
        return _scaled(float(row.difference), float(row.low), float(row.high), total, int(row.users))


def _stacked(source: Recommender, kept: Dataset, **options: Any) -> Scores:
    """Both domains factorised as one matrix (``transfer.stack``), as scores of the target's items."""

    def frames(users: np.ndarray, items: np.ndarray) -> Frames:
        return Frames(pd.DataFrame({"user": users, "item": items}), None, None, Schema())

    pairs = {"source": (source.encoder, source.trained), "target": (kept.encoder, kept.interactions)}
    stacked = stack(
        {
            name: frames(encoder.users.decode(rows.user), encoder.items.decode(rows.item))
            for name, (encoder, rows) in pairs.items()
        }
    )
    joint = fit_als(encode(Parts(stacked.interactions, None, None), Schema()).train, **options)

    def scores(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        named = stack({"target": frames(np.zeros(len(items), np.int64), items)}).interactions["item"]
        index = joint.encoder.users.encode(users), joint.encoder.items.encode(named)
        return np.asarray(user_vectors(joint, index[0])) @ np.asarray(item_vectors(joint, index[1])).T

    return scores


def cold(train: Dataset, kept: np.ndarray) -> Dataset:
    """The kept rows, whose users and items alone have table rows: who is in no row is cold."""
    part = train.subset(kept)
    encoder = train.encoder
    sides: tuple[tuple[Side, np.ndarray | None], ...] = (("user", part.user), ("item", part.item))
    for side, index in sides:
        if index is not None:
            encoder = encoder.without_rows(side).with_rows(side, np.unique(index))
    return dataclasses.replace(part, encoder=encoder)


def _relative(difference: float, low: float, high: float, alone: float, users: int) -> Gain:
    return _scaled(difference, low, high, 2 * alone + difference, users)


def _scaled(difference: float, low: float, high: float, total: float, users: int) -> Gain:
    scale = total if total > 0 else 1.0  # nobody found anything: no difference
    return Gain(difference / scale, low / scale, high / scale, users)


def _ks(metric: str) -> tuple[int, ...]:
    return (int(metric.partition("@")[2]),)


def _of_kind(source: Recommender, train: Dataset) -> np.ndarray:
    """Raw ids of users whom the source has met, if the target could know them."""
    ours, theirs = train.encoder.users, source.encoder.users
    if ours.type_name != theirs.type_name or train.user is None or train.item is None:
        return ours.ids[:0]
    met = theirs.decode(np.flatnonzero(source.seen.user_count))
    return met[ours.encode(met) > 0]
