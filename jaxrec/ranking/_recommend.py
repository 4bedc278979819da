"""The verbs ``recommend`` and ``predict``: raw ids in, a frame or predictions out."""

import functools
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxrec import _sharded
from jaxrec._add import add
from jaxrec._expect import expect, raw_ids
from jaxrec._recommender import Recommender
from jaxrec._types import Features, Params
from jaxrec.data import Dataset, Encoder, Interactions
from jaxrec.models import Mixture
from jaxrec.ranking._index import Index, by_index
from jaxrec.ranking._lists import best_lists, columns
from jaxrec.ranking._search import ranker
from jaxrec.ranking._top_k import padded
from jaxrec.ranking._vectors import apply, everything, gated, item_vectors, pairs_at_once, user_vectors

_ROWS = 4096
_FEWEST = 1024  # candidates, below which padding costs nothing that is felt


def recommend(
    recommender: Recommender,
    users: pd.DataFrame | Iterable[Any] | None = None,
    *,
    k: int | None = None,
    new_users: pd.DataFrame | Iterable[Any] | None = None,
    new_items: pd.DataFrame | Iterable[Any] | None = None,
    interactions: pd.DataFrame | None = None,
    candidates: Iterable[Any] | None = None,
    exclude: Iterable[Any] | pd.DataFrame | None = None,
    exclude_seen: bool = True,
    mesh: Mesh | None = None,
    index: Index | None = None,
) -> pd.DataFrame:
    """The best ``k`` items of each user, exactly: every candidate is scored, unless there is an index.

    A user that the recommender does not know, in ``users`` or ``new_users``, is scored from features and interactions
    as far as they are given, else as the unknown user (see the model). So is an item of ``new_items``. Nothing is
    trained and the recommender stays as it is; ``coldstart.add`` keeps them for good.

    Args:
      recommender: from ``fit``, ``load`` or ``transfer.adapt``.
      users: raw ids, or a frame with the schema's user column, each once; by default those of ``new_users``, else every
        user known.
      k: length of the lists, by default 10 or as many as there are candidates; shorter where fewer are left.
      new_users: rows with the schema's user column and features, or raw ids of those of whom nothing is known.
      new_items: likewise of items; they become candidates.
      interactions: what (new) users touched since the training, with the schema's columns.
      candidates: raw ids of the items that may be recommended; by default all.
      exclude: raw ids of items to be recommended to nobody, or a frame with the schema's user and item columns, whose
        unknown items, which nobody is told of anyway, are passed over.
      exclude_seen: whether to leave out what a user has touched, in training or in ``interactions``.
      mesh: from ``sharding.make_mesh``: devices that share the catalogue.
      index: ``ranking.Index.of(recommender)``: finds nearly the same lists sooner in a large catalogue. Only items that
        were known when it was built can be listed, and only all of them: no ``candidates`` and no new items.

    Returns:
      A frame with the columns ``user``, ``item`` (raw ids), ``score`` (float32, the model's own, higher is better)
      and ``rank`` (from 1), best first within each user; users in the order given. Equal scores: the item that the
      encoder numbers lower, which is the smaller raw id, or the one that was added first.

    Raises:
      ValueError: ``k`` is larger than the number of candidates, an id in ``candidates`` or ``exclude`` is unknown, a
        user is given twice, a score is NaN, ``index`` does not go with the recommender or the other arguments, or the
        model reads context, of which a user alone has none (see ``predict``).
      TypeError: a string or a frame is given where ids are expected.
    """
    expect(recommender, Recommender, "recommender")
    frames = {"users": users, "new_users": new_users, "new_items": new_items, "exclude": exclude}
    named = {name: ids for name, ids in frames.items() if not isinstance(ids, pd.DataFrame)}
    for name, ids in (named | {"candidates": candidates}).items():
        if ids is not None:
            raw_ids(ids, name)
    if new_users is not None and not isinstance(new_users, pd.DataFrame):
        new_users = list(new_users)
    if index is not None:
        expect(index, Index, "index")
        if candidates is not None or new_items is not None or mesh is not None:
            raise ValueError(
                "An index holds all items that were known when it was built, on one device. Leave out candidates, "
                "new_items and mesh, or the index; exclude= keeps items out of lists."
            )
    apart = exclude if isinstance(exclude, pd.DataFrame) else None
    if apart is not None and recommender.encoder.schema.user not in apart.columns:
        apart = None  # told below what it lacks
    if apart is not None or new_users is not None or new_items is not None or interactions is not None:
        _ = recommender.seen.order  # computed once, however often somebody comes: adding carries them over
        if mesh is None and recommender.factorises:
            _ = recommender.catalogue
    if new_users is not None or new_items is not None or interactions is not None:
        recommender = add(recommender, users=new_users, items=new_items, interactions=interactions)
    if users is None:
        users = recommender.encoder.users.ids if new_users is None else new_users
    if isinstance(users, pd.DataFrame):
        column = recommender.encoder.schema.user
        if column not in users.columns:
            raise ValueError(
                f"The frame of users lacks the schema's user column {column!r}; it has "
                f"{', '.join(map(str, users.columns))}. Rename the column, or give raw ids."
            )
        users = users[column]
    if apart is not None:  # users of whom nothing is known must be told apart
        recommender = add(recommender, users=apart[recommender.encoder.schema.user].unique())
    recommender = recommender.on(mesh)
    encoder = recommender.encoder
    users = pd.Series(list(users), dtype=object)
    if users.duplicated().any():
        raise ValueError(f"Expected each user once, got {users[users.duplicated()].iloc[0]!r} twice.")
    entity = encoder.users.encode(users)
    items = candidate_items(encoder, candidates)
    live = int((items > 0).sum())
    k = min(10, live) if k is None else operator.index(k)
    if not 1 <= k <= live:
        raise ValueError(f"Expected k in 1 .. {live} (the number of candidates), got {k}. Lists cannot be longer.")
    everywhere, excluded = _exclusions(recommender, exclude)
    items = np.where(np.isin(items, everywhere), 0, items).astype(np.int32)
    column_of = columns(items, len(encoder.features.item_row))
    excluded += [recommender.seen] if exclude_seen else []
    ranked = ranker(recommender, items) if index is None else by_index(recommender, items, index)
    score, position, nan = best_lists(ranked, entity, column_of, excluded, k)
    if nan:
        raise ValueError("A score is NaN, so it has no rank. Look for NaN in the parameters or features.")
    user_at, rank = np.nonzero(position >= 0)
    return pd.DataFrame(
        {
            "user": users.to_numpy()[user_at],
            "item": encoder.items.decode(items[position[user_at, rank]]),
            "score": score[user_at, rank],
            "rank": rank + 1,
        }
    ).infer_objects()


def predict(recommender: Recommender, pairs: pd.DataFrame | Dataset) -> np.ndarray:
    """Predictions for given rows, in the target's own unit.

    Args:
      recommender: from ``fit``, ``load`` or ``transfer.adapt``.
      pairs: a frame with the schema's user, item and context columns (others are ignored), or a dataset. Unknown
        users and items are scored as the unknown one (see the model).

    Returns:
      float64 ``[rows]``: ratings where the model was trained on (scaled) targets, plain scores after a ranking loss.
      After a sigmoid cross-entropy probabilities, which are turned back as targets are where these were scaled: of
      stars from 1 to 5 under ``"minmax"`` one half comes back as 3.

    Raises:
      ValueError: columns are missing or their values are not finite, as for ``Encoder.encode``.
    """
    expect(recommender, Recommender, "recommender")
    if not isinstance(pairs, pd.DataFrame):
        expect(pairs, Dataset, "pairs")
    data = pairs if isinstance(pairs, Dataset) else recommender.encoder.encode(pairs, labelled=False)
    recommender.check(data)
    scores = row_scores(recommender, data).astype(np.float64)
    if recommender.link == "sigmoid":
        small = np.exp(-np.abs(scores))
        scores = np.where(scores >= 0, 1.0, small) / (1.0 + small)
    return scores if recommender.link == "rank" else recommender.encoder.original_target(scores)


def candidate_items(encoder: Encoder, candidates: Iterable[Any] | None) -> np.ndarray:
    """Entity indices of the candidates in ascending order, padded with 0 so that few shapes are compiled."""
    if candidates is None:
        return everything(encoder)
    raw_ids(candidates, "candidates")
    chosen = np.unique(known_items(encoder, list(candidates), "candidates"))
    size = max(_FEWEST, 1 << (max(len(chosen), 1) - 1).bit_length())
    return padded(chosen, min(size, len(encoder.features.item_row))).astype(np.int32)


def known_items(encoder: Encoder, ids: list[Any], what: str) -> np.ndarray:
    """Entity indices of raw item ids, all of which must be known."""
    index = encoder.items.encode(ids)
    if not index.all():
        unknown = ids[int(np.flatnonzero(index == 0)[0])]
        raise ValueError(
            f"{int((index == 0).sum())} of the {what} are unknown items, such as {unknown!r}. Add them first: "
            "coldstart.add(recommender, items=...), or recommend(..., new_items=...)."
        )
    return index


def _exclusions(
    recommender: Recommender, exclude: Iterable[Any] | pd.DataFrame | None
) -> tuple[np.ndarray, list[Interactions]]:
    """Items excluded for everybody, and pairs."""
    nobody = np.zeros(0, np.int32)
    if exclude is None:
        return nobody, []
    if isinstance(exclude, pd.DataFrame):
        return nobody, [recommender.encoder.pairs(exclude)]
    return known_items(recommender.encoder, list(exclude), "excluded items"), []


def row_scores(recommender: Recommender, data: Dataset) -> np.ndarray:
    """The model's score of each row, float32."""
    if isinstance(recommender.model, Mixture):
        return _mixed_scores(recommender, recommender.model, data)
    vectors = recommender.factorises and not recommender.reads_context and data.item is not None
    most = _ROWS if vectors else min(_ROWS, pairs_at_once(recommender))
    parts = []
    for start in range(0, len(data), most):
        size = _sharded.rounded(min(most, 1 << (len(data) - 1).bit_length()), recommender.mesh)  # few shapes
        user, item, context = (
            None if values is None else padded(values[start : start + most], size)
            for values in (data.user, data.item, data.context)
        )
        if vectors and user is not None and item is not None:
            scores = _inner(user_vectors(recommender, user), item_vectors(recommender, item))
        else:
            batch = recommender.batch(np.zeros(size, np.int32) if user is None else user, context)
            batch = batch._replace(item=None if item is None else item[:, None])
            scores = apply(recommender.model, recommender.params, batch, recommender.features)[:, 0]
        parts.append(np.asarray(scores)[: min(most, len(data) - start)])
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _mixed_scores(recommender: Recommender, mixture: Mixture, data: Dataset) -> np.ndarray:
    size = 1 << (max(len(data), 1) - 1).bit_length()  # few shapes
    items = padded(_items_of(data), size)
    gate = {"gate": recommender.params["gate"]}  # all that is read; parts' tables need not be passed
    weights = np.asarray(_weights(mixture, gate, items, recommender.features))[..., : len(data)]
    bucket = np.zeros(len(data), np.int32)
    if mixture.few and data.user is not None:
        bucket = np.asarray(mixture.user_buckets(gated(recommender, data.user, size)))[: len(data)]
    scores = np.stack([row_scores(part, data) for part in recommender.parts])
    return np.einsum("kr,kr->r", weights[:, bucket, np.arange(len(data))], scores)


def _items_of(data: Dataset) -> np.ndarray:
    if data.item is None:
        raise ValueError("Expected rows with items, got none. Name the item column in the schema.")
    return data.item


@functools.partial(jax.jit, static_argnames=("mixture",))
def _weights(mixture: Mixture, params: Params, items: jax.Array, features: Features) -> jax.Array:
    return mixture.weights(params, items, features)


@jax.jit
def _inner(users: jax.Array, items: jax.Array) -> jax.Array:
    return jnp.einsum("bd,bd->b", users, items)
