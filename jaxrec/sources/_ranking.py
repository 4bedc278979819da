"""Sources in the order in which they are worth trying."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from jaxrec._expect import expect, one_of
from jaxrec._metrics import default_metric
from jaxrec._recommender import Recommender
from jaxrec.data import Dataset
from jaxrec.sources._score import Score, uncalibrated
from jaxrec.sources._signals import SIGNS, explained, reduced, told
from jaxrec.sources._trial import Gain, Trials

HELPFUL, NOTHING, HARMFUL = "helpful", "no evidence of help", "harmful"


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """What is known of each source before training on the target, best first.

    Args:
      table: a row per source, best first (by verdict, then score), by name: signals, ``low`` and ``high`` of the gain's
        interval, held-out ``users`` (or rows) that it was measured on, ``score`` and ``verdict``.
      score: what the order was made by.
      metric: of the trials; all of them where sources were tried by several.
      notes: by source, what could not be measured and why.
      metrics: by source, of its trial, if there was one.
    """

    table: pd.DataFrame
    score: Score
    metric: str
    notes: Mapping[str, str]
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> str | None:
        """The first source; None where every one is harmful, so that the target is better trained by itself."""
        return None if self.table["verdict"].iloc[0] == HARMFUL else str(self.table.index[0])

    def __str__(self) -> str:
        """What decided, in words, and the table."""
        lines = []
        for name, row in self.table.iterrows():
            gain = f"gain {row.gain:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            note = f"; {self.notes[str(name)]}" if str(name) in self.notes else ""
            metric = self.metrics.get(str(name), self.metric)
            lines.append(f"{name}: {row.verdict}, {gain} in a trial ({metric}, {row.users:.0f} held out){note}")
        parts = self.score.parts(self.table)
        if self.best is None:
            first = "No source is worth transferring from: each did harm in its trial. Train on the target alone."
        else:
            of_best = sorted(parts.iloc[0].items(), key=lambda each: -each[1])
            reasons = ", ".join(f"{name} ({value:+.2g})" for name, value in of_best[:3] if value > 0)
            first = f"Try {self.best!r} first, for its {reasons}." if reasons else f"Try {self.best!r} first."
            if self.table["verdict"].iloc[0] == NOTHING:
                first += " There is no evidence that it helps: compare with the target alone (transfer.compare)."
        numbers = self.table.drop(columns=["verdict"]).to_string(float_format=lambda value: f"{value:.3f}")
        return "\n".join([first, *lines, str(self.score), numbers])


def rank(
    candidates: Mapping[str, Recommender],
    train: Dataset,
    *,
    score: Score | None = None,
    strategy: Literal["emcdr", "stack"] = "emcdr",
    held_out: float = 0.3,
    least: int = 5,
    dim: int = 32,
    epochs: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> Ranking:
    r"""Which source is worth transferring from, told before training on the target, and would it hurt?

    Signals of each source, finite for all of them:

    ================ ==================================================================================================
    ``shared_users`` users trained in both by raw id (``transfer.align``); ``shared_items`` likewise
    ``user_overlap`` their share of the target's trained users; ``item_overlap`` likewise
    ``activity``     mean of :math:`\ln(1 + n)` over shared users with :math:`n` interactions in the source, or 0
    ``popularity``   Spearman's correlation of shared items' numbers of interactions in both; 0 with fewer than 3
    ``user_mmd``     ``mmd`` of the features that trained users have in both under one name; 2, the largest, where
                     there are none; ``item_mmd`` likewise
    ``user_proxy_a`` ``proxy_a`` of the same; ``item_proxy_a`` likewise
    ``evidence``     ``evidence`` of shared users' vectors in the source, of length 1, for what they did in the target:
                     a singular value decomposition of its histories to 16 numbers (``data.TfidfSVD``); 0 without any
    ``gain``         of a trial on a part of the target's training rows: the metric with the source minus without it, as
                     a part of the sum of both; 0 in [-1, 1] where there was no trial
    ================ ==================================================================================================

    The trial: where users are shared and the target is implicit feedback, a part of the target's users known to any
    source is held out, and ``fit_als`` is given a few epochs on the others. There the held-out users have the mean
    user's vector; with the source they have the one that theirs in the source is mapped to (``transfer.emcdr``), or,
    with ``strategy="stack"``, what a few epochs on both domains as one matrix give (``transfer.stack``). All sources
    that share users are tried on the same users. Else rows are held out, and a few epochs of ``transfer.adapt`` stand
    against as many from scratch. The metric is ``"ndcg@10"``, or ``"rmse"`` where there is a target and the source was
    not trained by a loss of ranking. Where sources are tried by both, their gains do not compare, and the default score
    leaves them out.

    A source whose gain has an interval below zero is ``"harmful"``, one whose interval includes zero has ``"no evidence
    of help"``, any other is ``"helpful"``. Helpful ones come first and harmful ones last whatever their scores, which
    order those of one verdict: what is shared cannot outweigh a trial. Intervals are over held-out users and each
    source's own: of twenty useless sources one is expected to look helpful or harmful, with few users more, since it is
    not in them that other training users would have taught something else.

    Args:
      candidates: recommenders trained on the sources, by name, from ``fit`` or ``fit_als``.
      train: the target's training part. Held-out parts are not looked at.
      score: from ``calibrate``; by default the mean of all signals that vary among the candidates, standardised over
        them, which only orders these candidates and means nothing by itself.
      strategy: what the trial tries; choose what you mean to do. A stack can do much more harm than a mapping, which
        unlearns a source that tells it nothing. It reads no weights.
      held_out: share of users (rows) held out in a trial, in (0, 1).
      least: fewest rows in the target of a user who may be held out. Hold out users like those who are to be served:
        for the lightest even a poor model of both domains may be ahead of the mean user's vector.
      dim: width of the trial's factorisation of the target.
      epochs: of the trial.
      level: of the gain's interval.
      seed: of all draws.

    Returns:
      The ranking; equal scores in the order of ``candidates``.

    Raises:
      ValueError: there is no candidate, the target has no users or no items, or an option is out of range.
      TypeError: the candidates are no dict of recommenders by name, or the score is no ``Score``.

    References:
      Ben-David et al., NIPS 2006, and Gretton et al., JMLR 2012 (distances); You et al., LogME, ICML 2021 (evidence);
      Man et al., EMCDR, IJCAI 2017 (trial).
    """
    if not isinstance(candidates, Mapping):
        raise TypeError(f"Expected candidates as a dict of recommenders by name, got {type(candidates).__name__}.")
    if not candidates:
        raise ValueError("Expected at least one candidate, a recommender trained on a source, got none.")
    for name, source in candidates.items():
        if not isinstance(name, str):
            raise TypeError(f"Expected names of candidates as strings, got {name!r}.")
        expect(source, Recommender, f"candidates[{name!r}]")
    expect(train, Dataset, "train")
    if train.user is None or train.item is None:
        raise ValueError("The target has no users or no items. Name both columns in its schema.")
    if not 0 < held_out < 1 or not 0 < level < 1:
        raise ValueError(f"Expected held_out and level in (0, 1), got {held_out} and {level}. They are shares.")
    if min(least, dim, epochs) < 1:  # checked here, for what a trial raises is noted and no error
        raise ValueError(f"Expected least, dim and epochs of 1 or more, got {least}, {dim} and {epochs}.")
    one_of(strategy, ("emcdr", "stack"), "strategy")
    if score is not None:
        expect(score, Score, "score")
        score(pd.DataFrame(0.0, index=["any"], columns=list(SIGNS)))  # what it cannot read is told before the trials
    options = {"dim": dim, "epochs": epochs}
    trials = Trials(
        candidates, train, strategy=strategy, held_out=held_out, least=least, options=options, level=level, seed=seed
    )
    rows, notes, metrics = [], {}, {}
    done, reason = pd.DataFrame(), ""
    try:
        done = reduced(train, seed)
    except ValueError as error:  # such as one item that all have touched: the reason is printed
        reason = f"no evidence: {error}"
    for name, source in candidates.items():
        row, reasons = told(source, train, seed), [reason] if reason else []
        try:
            row["evidence"] = explained(source, train, done, seed)
        except ValueError as error:
            raise ValueError(f"Candidate {name!r}: {error}") from None
        kinds = source.encoder.users.type_name, train.encoder.users.type_name
        if kinds[0] != kinds[1]:
            reasons.append(f"no user is shared: {kinds[0]} ids there and {kinds[1]} ids here can never match.")
        try:
            gain = trials(source)
            metrics[name] = trials.metric(source)
        except (ValueError, FloatingPointError) as error:  # nothing to carry over, or nobody to hold out: likewise
            gain = Gain()
            reasons.append(f"no trial: {error}")
        if reasons:
            notes[name] = " ".join(reasons)
        rows.append({**row, **gain._asdict(), "verdict": _verdict(gain)})
    table = pd.DataFrame(rows, index=pd.Index(list(candidates), name="source"))
    of_all = sorted(set(metrics.values()))
    if len(of_all) > 1:
        for name, metric in metrics.items():
            reason = f"tried by {metric} and others by {' '.join(set(of_all) - {metric})}: the gains do not compare."
            notes[name] = f"{notes[name]} {reason}" if name in notes else reason
    if score is None:
        score = uncalibrated(table.assign(gain=0.0) if len(of_all) > 1 else table)
    table.insert(len(table.columns) - 1, "score", score(table))
    place = table["verdict"].map({HELPFUL: 0, NOTHING: 1, HARMFUL: 2}).to_numpy()
    order = np.lexsort((np.arange(len(table)), -table["score"].to_numpy(), place))
    return Ranking(table.iloc[order], score, ", ".join(of_all) or default_metric(train), notes, metrics)


def _verdict(gain: Gain) -> str:
    if gain.high < 0:
        return HARMFUL
    return HELPFUL if gain.low > 0 else NOTHING
