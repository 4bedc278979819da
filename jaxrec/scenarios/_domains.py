"""Scenarios of two domains: users shared and items not, or nothing shared but what features say."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec.coldstart import popularity
from jaxrec.data import Dataset, Frames, Parts, Schema, Vector, encode
from jaxrec.scenarios._options import SHOTS, Options, counted, groups_of, per_id
from jaxrec.scenarios._question import (
    SHRINKS,
    SQUARES,
    Fitted,
    Method,
    One,
    Question,
    Squares,
    baselines,
    factoriser,
    folding,
    of_history,
)
from jaxrec.scenarios._scenario import Scenario
from jaxrec.scenarios._settle import Told, settle
from jaxrec.scenarios._splits import as_parts, hold_out
from jaxrec.train import fit_item_knn
from jaxrec.transfer import blend, carry, emcdr, stack
from jaxrec.transfer._carry import VECTOR
from jaxrec.transfer._regress import regressed

_BARE = Schema()
_SHARES = (0.25, 0.5)  # of the regression in a blend
_WIDTH = 128  # of histories' vectors in the regression, at most
_RIDGES = (30.0, 1000.0)  # of a prior from the source's vectors


def cross_domain(
    source: Frames,
    target: Frames,
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
    """Users who are known in one domain and new in another; items are others, and features are not read.

    Shared users are held out whole in the target, and shown and judged as in ``new_user``. Strategies: ``"stacked
    iALS"`` and ``"stacked item k-NN"`` (both domains as one matrix, ``transfer.stack``), ``"EMCDR"``
    (``transfer.emcdr`` over iALS), ``"prior"`` (``transfer.carry`` into iALS), ``"regression"`` (``transfer.regress``),
    and ``"EMCDR + regression"`` and ``"EMCDR + prior + regression"`` (``transfer.blend``). Baselines: popularity,
    popularity among the target's users who are in the source too, and iALS and item k-NN of the target alone.

    Args:
      source: interactions without target. Users are the same by raw id, items never.
      target: likewise; categories of its users make segments.
      strategies: as for ``new_user``, likewise the others; shares are of the shared users.
      metric: see ``strategies``.
      shots: see ``strategies``.
      dim: see ``strategies``.
      validation: see ``strategies``.
      test: see ``strategies``.
      level: see ``strategies``.
      seed: see ``strategies``.

    Returns:
      See ``new_user``. A stacked recommender knows items as ``"target/..."``; a note says so.

    Raises:
      ValueError: as for ``new_user``, or too few users are shared.
    """
    options = Options(strategies, metric, tuple(shots), dim, validation, test, level, seed)
    options.check(source, "source", ranked=False)
    options.check(target, "target")
    theirs, ours = source.schema, target.schema
    users, others = target.interactions[ours.user].drop_duplicates(), source.interactions[theirs.user]
    shared = np.sort(np.asarray(users[users.isin(others.unique())]))
    if len(shared) < 10:
        raise ValueError(
            f"{len(shared)} users are in both domains by raw id, and at least 10 are needed. Are ids of one kind and "
            "from one system? Without shared users, see cross_platform."
        )
    splits = hold_out(
        target.interactions, ours, side="user", among=pd.Series(shared), most=max(options.shots),
        validation=validation, test=test, seed=seed,
    )  # fmt: skip
    question = Question(
        schema=ours, splits=splits, side="user", who="users new to the target", shots=options.shots, metric=metric,
        level=level, seed=seed,
    )  # fmt: skip
    there = source.interactions[[theirs.user, theirs.item]].set_axis(["user", "item"], axis=1)
    activity = per_id(there["user"])
    told = Told(
        name="cross_domain",
        title="Cross-domain",
        data=(
            f"target: {counted(target.interactions, ours)}; source: "
            f"{counted(source.interactions, theirs)}; {len(shared):,} users in both"
        ),
        scratch="iALS",
        known="target interactions known of a user who is new there",
        activity={"activity: interactions in the source": activity},
        groups=groups_of(target),
        popularity=per_id(splits.train[ours.item]),
        notes=("Recommenders of stacked domains know the target's items as 'target/...'.",),
    )
    domains = _Domains(there, target, splits, options)
    return settle(question, options.picked(domains.methods()), told)


class _Domains:
    """What is fitted to two domains; backbones are shared by methods."""

    def __init__(self, there: pd.DataFrame, target: Frames, splits: Any, options: Options) -> None:
        # Nothing reads them here, so one that is constant or in a frame that was not given stops nothing.
        self.schema = dataclasses.replace(target.schema, user_features=(), item_features=())
        self.splits, self.options = splits, options
        self.there = encode(Parts(there, None, None), _BARE).train
        self.here = encode(as_parts(splits), self.schema, users=target.users, items=target.items).train
        self.sizes = {"dim": options.dim, "seed": options.seed}
        self.of_source, self.of_target = factoriser(self.there, **self.sizes), factoriser(self.here, **self.sizes)
        both = {
            "source": Frames(there, None, None, _BARE),
            "target": Frames(self._bare(splits.train), None, None, _BARE),
        }
        known = self.here.encoder
        catalogue = self.named(pd.DataFrame({self.schema.user: known.users.ids[0], self.schema.item: known.items.ids}))
        self.candidates = catalogue["item"].to_numpy()
        # The catalogue stands for held-out rows: every item of the target is known, whatever the training part has.
        self.both = encode(Parts(stack(both).interactions, catalogue, None), _BARE).train
        self.of_both = factoriser(self.both, **self.sizes)
        self.items = target.items

    def _bare(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[[self.schema.user, self.schema.item]].set_axis(["user", "item"], axis=1)

    def named(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of the target as they are named in the stack."""
        return stack({"target": Frames(self._bare(rows), None, None, _BARE)}).interactions

    def stacked(self, recommender: Recommender) -> Fitted:
        return Fitted(recommender, self.named, self.candidates)

    def with_source(self, setting: Squares) -> Dataset:
        """The target's training part with the source's vectors as the only features."""
        users = pd.concat(self.splits)[self.schema.user].unique()
        name = VECTOR if self.schema.user != VECTOR else "vector"  # the ids' column keeps its own
        vectors = carry(self.of_source(setting)).rename(columns={"user": self.schema.user, VECTOR: name})
        vectors = vectors[vectors[self.schema.user].isin(users)]
        scale = "rms" if self.options.dim > 1 else "zscore"  # which are the same of one number
        schema = dataclasses.replace(self.schema, user_features=(Vector(name, scale=scale),))
        with warnings.catch_warnings():  # users of the target alone have no vector, as they should
            warnings.simplefilter("ignore", UserWarning)
            return encode(as_parts(self.splits), schema, users=vectors, items=self.items).train

    def methods(self) -> list[Method]:
        seen = self.here.interactions  # of all users, whom it would else recommend what they have
        of_shared = self.there.encoder.users.encode(self.here.encoder.users.decode(self.here.user)) > 0
        among = Method(
            "popularity among shared users", "what those users of the target took who are in the source too",
            lambda _: popularity(self.here.subset(of_shared)).replace(seen=seen, num_trained=len(seen)), strategy=False,
        )  # fmt: skip

        @functools.cache
        def regression(setting: One | None) -> Recommender:
            return regressed(self.there, self.here, l2=None if setting is None else setting.value, most=_WIDTH)

        @functools.cache
        def bridge(setting: Squares) -> Recommender:
            return folding(emcdr(self.of_source(setting), self.of_target(setting)), setting)

        @functools.cache
        def of_target(setting: Squares, content_l2: float) -> Callable[[Squares], Recommender]:
            features = {"content": True, "content_l2": content_l2, "joint": ("user",)}
            return factoriser(self.with_source(setting), **features, **self.sizes)

        def prior(setting: _Prior) -> Recommender:
            solved = setting.squares._replace(softmax=False)  # one solution, whatever newcomers are folded in by
            return of_target(solved, setting.content_l2)(setting.squares)

        def blended(setting: _Blend) -> Recommender:
            parts, weight = [bridge(setting.bridge), regression(None)], [1.0 - setting.share, setting.share]
            if setting.content_l2 is not None:
                parts.append(prior(_Prior(setting.bridge, setting.content_l2)))
                weight.append(weight[0])
            return blend(parts, weight)

        softmax = [setting for setting in SQUARES if setting.softmax]
        blends = tuple(_Blend(setting, share) for setting in softmax for share in _SHARES)
        priors = tuple(_Prior(setting, content_l2) for setting in SQUARES for content_l2 in _RIDGES)
        return [
            *baselines(self.here, self.of_target)[:2],
            among,
            of_history(self.here)[-1],
            Method("stacked iALS", "one factorisation of both domains' interactions, users shared",
                   lambda setting: self.stacked(self.of_both(setting)), SQUARES),
            Method("stacked item k-NN", "items that share users with what a user touched in either domain",
                   lambda setting: self.stacked(fit_item_knn(self.both, shrink=setting.value)), SHRINKS),
            Method("EMCDR", "a linear map from users' vectors in the source to theirs in the target", bridge, SQUARES),
            Method("regression", "a ridge regression from what users touched in the source to what they touch here",
                   regression, (None, One("l2", 100.0))),
            Method("prior", "a factorisation of the target whose users have the source's vectors as a prior",
                   prior, priors),
            Method("EMCDR + regression", "the two blended", blended, blends),
            Method("EMCDR + prior + regression", "the three blended",
                   blended, tuple(each._replace(content_l2=_RIDGES[-1]) for each in blends)),
        ]  # fmt: skip


class _Prior(NamedTuple):
    squares: Squares
    content_l2: float

    def __str__(self) -> str:
        return f"{self.squares}, content_l2 {self.content_l2:g}"


class _Blend(NamedTuple):
    bridge: Squares
    share: float  # of the regression
    content_l2: float | None = None  # of the prior, which weighs what the bridge does; None: without it

    def __str__(self) -> str:
        prior = "" if self.content_l2 is None else f", prior's content_l2 {self.content_l2:g}"
        return f"{self.bridge}, regression {self.share:g}{prior}"
