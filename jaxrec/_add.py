"""New users, items and interactions in a trained recommender, without training."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec.data import Vocabulary


def add(
    recommender: Recommender,
    *,
    users: pd.DataFrame | Iterable[Any] | None = None,
    items: pd.DataFrame | Iterable[Any] | None = None,
    interactions: pd.DataFrame | None = None,
) -> Recommender:
    """A recommender that also knows these users, items and interactions. Nothing is trained.

    A new user or item is scored from its features; from interactions too: a model that pools histories reads them,
    any other model that factorises and reads no context is folded in (see ``fold_in``). Nearest neighbours of a new
    item are found. Without either it is the unknown one. Users who were trained keep their vector under a
    ``dropoutnet`` with a history, which reads it for others alone. Within the encoder's capacity nothing is compiled
    again, but for lists among some candidates whose number has passed a power of two.

    Args:
      recommender: stays as it is.
      users: a frame with the schema's user column and features, or raw ids.
      items: likewise.
      interactions: with the schema's columns; users and items in it that are not known yet are added. They count
        as seen: their items are not recommended again. An empty frame, here or above, adds nothing.

    Raises:
      ValueError: a column is missing, a feature or target is no finite number.
      TypeError: ids of another type than the encoder's.
    """
    users, items = (None if isinstance(each, pd.DataFrame) and not len(each) else each for each in (users, items))
    interactions = None if interactions is None or not len(interactions) else interactions
    encoder = recommender.encoder.extend(users=users, items=items)
    seen = recommender.seen
    if interactions is not None:
        schema = encoder.schema
        encoder.encode(interactions)  # checks the frame before its ids are taken
        encoder = encoder.extend(
            users=None if schema.user is None else interactions[schema.user].unique(),
            items=None if schema.item is None else interactions[schema.item].unique(),
        )
        seen = seen.append(encoder.encode(interactions).interactions)
    seen = seen.sized(len(encoder.features.user_row), len(encoder.features.item_row))
    for part in (recommender, *recommender.parts):
        if interactions is not None and part.folds:
            _ = part.prior  # measured now, so that everything that is added later shares it
    grown = recommender.replace(encoder=encoder, seen=seen)
    schema, old = encoder.schema, recommender.encoder
    extend: Any = getattr(recommender.model, "extend", None)
    if extend is None:
        if "catalogue" in recommender.__dict__:
            changed = _touched(old.items, encoder.items, schema.item, items)
            # An item is folded in from its users' vectors, which change with what is said of them too.
            described = interactions is not None or isinstance(users, pd.DataFrame)
            if recommender.pooled_history:
                described |= isinstance(items, pd.DataFrame)  # of which the users' vectors are made
            folded = grown.added.item if described else changed[:0]
            folded = folded[np.asarray(encoder.features.item_row)[folded] == 0]
            _carry_catalogue(recommender, grown, np.union1d(changed, folded).astype(np.int32))
        return grown
    touched = {
        "users": _touched(old.users, encoder.users, schema.user, users, interactions),
        "items": _touched(old.items, encoder.items, schema.item, items, interactions),
    }
    model, params = extend(recommender.params, encoder.features, grown.seen, **touched)
    return grown.replace(model=model, params=params)


def _carry_catalogue(old: Recommender, grown: Recommender, items: np.ndarray) -> None:
    """Vectors of items that are neither new nor described anew nor folded in are those of before."""
    from jaxrec.ranking._top_k import padded
    from jaxrec.ranking._vectors import item_vectors

    if len(old.catalogue) != len(grown.encoder.features.item_row):
        return
    vectors = old.catalogue
    if len(items):
        some = padded(items, 1 << (len(items) - 1).bit_length())  # few shapes are compiled
        vectors = vectors.at[some].set(item_vectors(grown, some))
    grown.__dict__["catalogue"] = vectors


def _touched(old: Vocabulary, new: Vocabulary, column: str | None, *given: Any) -> np.ndarray:
    """Indices of the entities that are new or stand in one of the frames given."""
    frames = [frame[column] for frame in given if isinstance(frame, pd.DataFrame)]
    known = [new.encode(ids.unique()) for ids in frames]
    return np.unique(np.concatenate([np.arange(len(old) + 1, len(new) + 1), *known])).astype(np.int32)
