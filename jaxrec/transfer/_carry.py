"""What a recommender of one domain knows of users or items, as features of the same ones in another."""

import dataclasses
from typing import Literal

import numpy as np
import pandas as pd

from jaxrec._add import add
from jaxrec._expect import expect, one_of
from jaxrec._recommender import Recommender, need_no_context
from jaxrec.coldstart._backbone import check
from jaxrec.data import Dataset, Vector
from jaxrec.data._interactions import Interactions
from jaxrec.data._schema import VectorScale
from jaxrec.data._sides import Side, blank, fit_features, write
from jaxrec.ranking._vectors import item_vectors, user_vectors

VECTOR, TASTE = "source", "source taste"
_ROWS = 2**14  # entities whose vectors or histories are read at once


def carry(source: Recommender, *, side: Literal["user", "item"] = "user", taste: bool = False) -> pd.DataFrame:
    """The users (items) that a recommender has met, each with its vector: a frame of users (items) for another domain.

    With ``Schema(user_features=(Vector("source", scale="rms"),))`` and ``users=`` this frame, anything that reads
    features of users in the target reads what the source knows: ``TwoTower``, ``fit_als(content=True)``, DropoutNet,
    Heater. ``transfer.emcdr`` and ``ptupcdr`` do so by themselves. Where the domains share items and not users, items
    are carried likewise.

    Args:
      source: whose scores are inner products. Users and items that were added since the training are folded in.
      side: which of the two is shared.
      taste: whether to add ``"source taste"``, the mean vector of the items that the user (the users who) touched.

    Returns:
      A frame with the source's column of ids, ``"source"`` and ``"source taste"``: float32 vectors as wide as the
      source's.

    Raises:
      ValueError: the source does not factorise or reads context, or its column of ids has the name of a vector.
    """
    one_of(side, ("user", "item"), "side")
    expect(source, Recommender, "source")
    if not source.factorises:
        raise ValueError(
            "Expected a source whose scores are inner products of user and item vectors, such as fit_als returns, got "
            f"a {type(source.model).__name__}."
        )
    need_no_context(source, "source")
    encoder, seen = source.encoder, source.seen
    if side == "item":  # the same rows, read from the items' side
        seen = Interactions(seen.item, seen.user, seen.num_items, seen.num_users)
    column = encoder.schema.user if side == "user" else encoder.schema.item
    if column in (VECTOR, TASTE):
        raise ValueError(
            f"The source's column of ids is called {column!r}, as the vectors will be. Rename it in the frame and in "
            "the schema before training."
        )
    known = np.flatnonzero(seen.user_count)
    columns = {VECTOR: list(vectors_of(source, known, side))}
    if taste:
        tastes = []
        for start in range(0, len(known), _ROWS):
            position, rows = seen.rows_of(known[start : start + _ROWS])
            touched, place = np.unique(seen.item[rows], return_inverse=True)
            other = vectors_of(source, touched, "item" if side == "user" else "user")
            tastes.append(_pooled(other[place], position))
        columns[TASTE] = list(np.concatenate(tastes))
    return pd.DataFrame({column: encoder.vocabulary(side).decode(known), **columns})


def need_shared(shared: int, there: int, here: int) -> None:
    """Raises unless two users or more were trained in both domains; ``there`` and ``here`` are users of each."""
    if shared < 2:
        raise ValueError(
            f"{'Only one' if shared else 'No'} user was trained in both domains: the source has {there} and the target "
            f"{here}. What leads from one to the other is learned on two or more who are in both. Are the ids of one "
            "system?"
        )


def vectors_of(recommender: Recommender, index: np.ndarray, side: Side) -> np.ndarray:
    """Float32 vectors of entities, some at a time."""
    of = user_vectors if side == "user" else item_vectors
    index = index.astype(np.int32)
    blocks = [np.asarray(of(recommender, index[start : start + _ROWS])) for start in range(0, len(index), _ROWS)]
    return np.concatenate(blocks).astype(np.float32)


def carried(source: Recommender, target: Recommender, *, taste: bool = False) -> tuple[Recommender, Dataset]:
    """The target that knows the source's users too, and its training part with ``carry`` as the users' only features.

    Raises:
      ValueError: a recommender does not factorise or reads context, or fewer than two users were trained in both.
    """
    frame = carry(source, taste=taste)
    expect(target, Recommender, "target")
    need_no_context(target, "target")
    theirs, ours = source.encoder, target.encoder
    column = ours.schema.user
    if column is None or ours.schema.item is None:
        raise ValueError("The target has no users or no items. Name both columns in its schema.")
    ids = frame[theirs.schema.user]
    if theirs.users.type_name != ours.users.type_name:
        raise ValueError(
            f"No user is shared: {theirs.users.type_name} ids in the source and {ours.users.type_name} ids in the "
            "target can never match. Convert one column."
        )
    target = add(target, users=ids.to_numpy())
    index = target.encoder.users.encode(ids)
    shared = target.trained.user_count[index] > 0
    need_shared(int(shared.sum()), len(ids), int(np.count_nonzero(target.trained.user_count)))
    rows = target.encoder.features
    extra = [
        len(np.setdiff1d(np.flatnonzero(row), np.flatnonzero(count)))
        for row, count in ((rows.user_row, target.trained.user_count), (rows.item_row, target.trained.item_count))
    ]
    if any(extra):
        raise ValueError(
            f"{extra[0]} users and {extra[1]} items of the target have a table row and no training interaction, as "
            "after adapt, blend or regress. Give a target that was trained by itself, and blend the results "
            "(transfer.blend)."
        )
    # Of one number both scales are the same, and "rms" is for vectors.
    scale: VectorScale = "rms" if len(frame[VECTOR].iloc[0]) > 1 else "zscore"
    specs = tuple(Vector(name, scale=scale) for name in frame.columns if name in (VECTOR, TASTE))
    fitted = fit_features(specs, frame[shared], ())
    features = target.encoder.features
    arrays = blank("user", fitted, len(features.user_row))
    write(arrays, "user", fitted, index, frame)
    encoder = dataclasses.replace(
        target.encoder,
        schema=dataclasses.replace(ours.schema, user_features=specs),
        user_features=fitted,
        features=features._replace(**arrays),
    )
    trained = target.trained
    train = Dataset(encoder, trained.user, trained.item, target=trained.value, weight=trained.weight)
    check(target, train)
    return target, train


def of_shared(train: Dataset) -> Dataset:
    """The rows of users who were trained here and carry something from the source."""
    present = train.features.user_present
    assert present is not None and train.user is not None
    return train.subset(np.all(present, axis=1)[train.user])


def _pooled(vectors: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Mean vector of each position; every position occurs."""
    total = np.zeros((position.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(total, position, vectors)
    return total / np.bincount(position).astype(np.float32)[:, None]
