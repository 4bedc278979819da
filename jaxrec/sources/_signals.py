"""What can be told of a source by looking at it, without training anything."""

import numpy as np
import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec.data import Dataset
from jaxrec.data._sides import Side
from jaxrec.sources._distances import FARTHEST, common_features, mmd, proxy_a
from jaxrec.sources._evidence import evidence
from jaxrec.transfer import Alignment, align, carry
from jaxrec.transfer._carry import VECTOR
from jaxrec.transfer._regress import histories, reduced_to

SIGNS = {
    "user_overlap": 1.0,
    "item_overlap": 1.0,
    "activity": 1.0,
    "popularity": 1.0,
    "user_mmd": -1.0,
    "item_mmd": -1.0,
    "user_proxy_a": -1.0,
    "item_proxy_a": -1.0,
    "evidence": 1.0,
    "gain": 1.0,
}
"""Signals that a score is made of, and whether more of one is better (1) or worse (-1)."""

_DIM, _USERS = 16, 5000


def told(source: Recommender, train: Dataset, seed: int) -> dict[str, float]:
    """All signals but the gain."""
    alignment = align(source.encoder, train.encoder, require=False)
    found = {}
    sides: tuple[Side, Side] = ("user", "item")
    for side in sides:
        there, here = _counts(source, train, alignment, side)
        known = _by_row(train, side) > 0
        found[f"shared_{side}s"] = float(len(here))
        found[f"{side}_overlap"] = len(here) / max(int(known.sum()), 1)
        if side == "user":
            found["activity"] = float(np.log1p(there).mean()) if len(there) else 0.0
        else:
            found["popularity"] = rank_correlation(there, here)
        features = common_features(source.encoder, train.encoder, side)
        for name, distance in (("mmd", mmd), ("proxy_a", proxy_a)):
            found[f"{side}_{name}"] = FARTHEST if features is None else distance(*features, seed=seed)
    return found


def reduced(train: Dataset, seed: int) -> pd.DataFrame:
    """What each user did in the target, as a vector of 16 numbers or fewer: columns ``user`` (raw id) and ``vector``.

    Raises:
      ValueError: there are too few users or items to reduce, or all have done the same.
    """
    frame = histories(train)
    width = min(_DIM, int((train.interactions.item_count > 0).sum()) - 1, len(frame) - 1)
    fitted = reduced_to(frame, width, narrower=True, seed=seed)
    found = fitted.transform(frame, into="vector")[["user", "vector"]]
    return found[found["vector"].notna()]


def explained(source: Recommender, train: Dataset, done: pd.DataFrame, seed: int) -> float:
    """Evidence of what shared users have done in the target given their vectors of the source; 0 without any."""
    kinds = source.encoder.users.type_name, train.encoder.users.type_name
    if not source.factorises or source.reads_context or kinds[0] != kinds[1] or not len(done):
        return 0.0
    theirs = carry(source)
    vectors = pd.Series(theirs[VECTOR].to_list(), index=pd.Index(theirs[source.encoder.schema.user]))
    shared = done[done["user"].isin(vectors.index)]
    if len(shared) < 3:
        return 0.0
    shared = shared.iloc[np.random.default_rng(seed).permutation(len(shared))[:_USERS]]
    x = np.stack(vectors.loc[shared["user"]].to_list()).astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return evidence(x / np.where(length > 0, length, 1.0), np.stack(shared["vector"].to_list()).astype(np.float64))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, with mean ranks of ties; 0 with fewer than 3 values or where one side is constant."""
    if len(a) < 3:
        return 0.0
    ranks = [pd.Series(values).rank().to_numpy() for values in (a, b)]
    centred = [each - each.mean() for each in ranks]
    length = float(np.sqrt(np.square(centred[0]).sum() * np.square(centred[1]).sum()))
    return float(centred[0] @ centred[1]) / length if length > 0 else 0.0


def _counts(source: Recommender, train: Dataset, alignment: Alignment, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Interactions in the source and in the target of who was trained in both."""
    rows = alignment.rows[side]
    here = _by_row(train, side)
    trained = np.zeros(alignment.encoder.user_rows if side == "user" else alignment.encoder.item_rows, np.int64)
    trained[: len(here)] = here
    there = _by_row(Dataset(source.encoder, source.trained.user, source.trained.item), side)[np.asarray(rows.source)]
    here = trained[np.asarray(rows.target)]
    both = (there > 0) & (here > 0)
    return there[both], here[both]


def _by_row(train: Dataset, side: Side) -> np.ndarray:
    """Interactions by table row; row 0, who has none of its own, has none."""
    touched, features = train.interactions, train.features
    count = touched.user_count if side == "user" else touched.item_count
    row = np.asarray(features.user_row if side == "user" else features.item_row)
    total = np.zeros(train.sizes.user_rows if side == "user" else train.sizes.item_rows, np.int64)
    np.add.at(total, row[: len(count)], count)
    total[0] = 0
    return total
