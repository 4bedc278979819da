"""The verb ``similar_items``: what goes with an item."""

import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxrec._expect import expect, raw_ids
from jaxrec._recommender import Recommender
from jaxrec._types import Array
from jaxrec.models import take
from jaxrec.ranking._lists import columns
from jaxrec.ranking._recommend import candidate_items, known_items
from jaxrec.ranking._search import GROUP, search
from jaxrec.ranking._top_k import padded, user_blocks
from jaxrec.ranking._vectors import everything

_USERS_SHARE = 4  # the search holds a sixteenth of the scores, and vectors


def similar_items(
    recommender: Recommender, items: Iterable[Any], *, k: int | None = None, candidates: Iterable[Any] | None = None
) -> pd.DataFrame:
    """The ``k`` items that are most similar to each of ``items``.

    Where the model factorises, similarity is the cosine of its item vectors, so cold items with content are found and
    asked for like others. Components that are the same for every item, such as the constant that a user's bias goes
    with, tell items not apart and are left out; an item whose vector is zero has similarity 0 to all. A
    ``models.Neighbours`` answers from the lists that it keeps, which hold trained items alone.

    Args:
      recommender: from ``fit``, ``load`` or ``coldstart.add``.
      items: raw ids, each once.
      k: length of the lists, by default 10 or as many as there are candidates; shorter where fewer are left.
      candidates: raw ids of the items that may be named; by default all.

    Returns:
      A frame with the columns ``item``, ``similar`` (raw ids), ``score`` (float32, higher is more similar) and ``rank``
      (from 1), best first within each item; items in the order given. No item is similar to itself. Equal scores: the
      item that the encoder numbers lower.

    Raises:
      ValueError: an id is unknown or given twice, ``k`` is larger than the number of candidates, the model neither
        factorises nor keeps neighbours, or a vector is not finite.
    """
    expect(recommender, Recommender, "recommender")
    raw_ids(items, "items")
    asked = pd.Series(list(items), dtype=object)
    if asked.duplicated().any():
        raise ValueError(f"Expected each item once, got {asked[asked.duplicated()].iloc[0]!r} twice.")
    encoder = recommender.encoder
    index = known_items(encoder, asked.tolist(), "items") if len(asked) else np.zeros(0, np.int32)
    chosen = candidate_items(encoder, candidates)
    live = int((chosen > 0).sum())
    k = min(10, live) if k is None else operator.index(k)
    if not 1 <= k <= live:
        raise ValueError(f"Expected k in 1 .. {live} (the number of candidates), got {k}. Lists cannot be longer.")
    if hasattr(recommender.model, "similar"):
        similar, score = _kept(recommender, index, chosen)
    elif recommender.factorises:
        similar, score = _by_cosine(recommender, index, chosen, k)
    else:
        raise ValueError(
            f"{type(recommender.model).__name__} has no vectors of items whose cosine could be taken. Use a model that "
            "factorises, or train.fit_item_knn or fit_content_knn."
        )
    row, column = np.nonzero(similar)
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    row, column, rank = (each[rank < k] for each in (row, column, rank))
    return pd.DataFrame(
        {
            "item": asked.to_numpy()[row],
            "similar": encoder.items.decode(similar[row, column]),
            "score": score[row, column],
            "rank": rank + 1,
        }
    ).infer_objects()


def _kept(recommender: Recommender, items: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entity indices and similarity, best first, 0 where there is none."""
    model: Any = recommender.model
    neighbours, similarity = (np.asarray(each) for each in model.similar(recommender.params, items))
    return np.where(np.isin(neighbours, candidates), neighbours, 0), similarity


def _by_cosine(
    recommender: Recommender, items: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Likewise."""
    unit, finite = _unit(recommender.catalogue, everything(recommender.encoder) > 0)
    if not finite:
        raise ValueError("An item vector is not finite, so it has no similarity. Look for NaN in the parameters.")
    others, live = take(unit, candidates), jnp.asarray(candidates > 0)
    own = columns(candidates, len(unit)).astype(np.int32)[:, None]
    similar, score = np.zeros((len(items), k), np.int32), np.zeros((len(items), k), np.float32)
    # The search scores ``k`` groups of items again, and one more for the item itself.
    share = max(len(candidates) // _USERS_SHARE, (k + 1) * GROUP * unit.shape[1])
    for block, size in user_blocks(len(items), share):
        asked = padded(items[block], size)
        top = search(take(unit, asked), others, k=k, live=live, exclude=jnp.asarray(own[asked]))
        position = np.asarray(top.position)[: len(block)]
        similar[block] = np.where(position >= 0, candidates[np.maximum(position, 0)], 0)
        score[block] = np.asarray(top.score)[: len(block)]
    return similar, score


@jax.jit
def _unit(
    catalogue: Float[jax.Array, "items dim"], known: Bool[Array, " items"]
) -> tuple[Float[jax.Array, "items dim"], Bool[jax.Array, ""]]:
    """Vectors of length 1 without what is the same for all known items, and whether theirs are finite.

    Of the whole capacity, so that an item more is no new shape."""
    inside = known[:, None]
    low = jnp.where(inside, catalogue, jnp.inf).min(axis=0)
    high = jnp.where(inside, catalogue, -jnp.inf).max(axis=0)
    vectors = jnp.where((high > low)[None, :], catalogue, 0.0)
    length = jnp.sqrt(jnp.square(vectors).sum(axis=1, keepdims=True))
    return vectors / jnp.where(length > 0, length, 1.0), (jnp.isfinite(catalogue) | ~inside).all()
