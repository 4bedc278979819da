"""A trained recommender's vectors as frozen tables of a model that puts content over them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import _values, optim
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Params
from jaxrec.data import Dataset, Encoder
from jaxrec.data._sides import Side
from jaxrec.models import BackboneTowers
from jaxrec.ranking._vectors import item_vectors, user_vectors

_ROWS = 2**16  # entities whose vectors are computed at once

OPTIMIZER = optim.row_sparse(optax.adamw(1e-3, weight_decay=0.01))


def penalty_alone(scores: jax.Array, batch: Batch) -> jax.Array:
    """The loss where the model's penalties are the whole objective."""
    return jnp.zeros((), jnp.float32)


def over(backbone: Recommender, train: Dataset, *, seed: int, **options: Any) -> tuple[BackboneTowers, Params]:
    """The model with these ``options`` and its parameters, the backbone's vectors among them.

    Raises:
      ValueError: the backbone does not factorise, numbers users or items otherwise than ``train``, was not trained on
        some that ``train`` has, or has vectors that are not finite.
    """
    check(backbone, train)
    tables: dict[Side, dict[str, jax.Array]] = {side: _table(backbone, train, side) for side in ("user", "item")}
    model = BackboneTowers.for_data(train, dim=tables["item"]["embedding"].shape[1], **options)
    params = model.init(jax.random.split(jax.random.key(seed))[0])
    return model, {**params, "backbone": tables}


def check(backbone: Recommender, train: Dataset) -> None:
    expect(backbone, Recommender, "backbone")
    expect(train, Dataset, "train")
    if not backbone.factorises or train.user is None or train.item is None:
        raise ValueError(
            "Expected a backbone whose scores are inner products of user and item vectors, such as fit_als returns, "
            f"and data with users and items; got {type(backbone.model).__name__} and {train!r}."
        )
    backbone.check(train)


def width_of(backbone: Recommender) -> int:
    """Width of the backbone's vectors."""
    return item_vectors(backbone, np.zeros(1, np.int32)).shape[1]


def described(train: Dataset, side: Side) -> bool:
    """Whether the side has any features."""
    sizes = train.sizes._asdict()
    return bool(sizes[f"{side}_dense"] or sizes[f"{side}_codes"])


def need_features(train: Dataset, side: Side, method: str) -> None:
    if not described(train, side):
        raise ValueError(
            f"{method} reads {side} features and the data has none. Name them in the schema "
            f"({side}_features=...) and give data.encode the frame that has them ({side}s=...)."
        )


def trained(train: Dataset, side: Side) -> np.ndarray:
    """Entities with a table row, in the order of rows."""
    row = np.asarray(train.features.user_row if side == "user" else train.features.item_row)
    entities = np.flatnonzero(row)
    return entities[np.argsort(row[entities])]


def need_trained(backbone: Recommender, entities: np.ndarray, side: Side) -> None:
    """Raises unless the backbone was trained on all of these entities: of others it knows the unknown's vector."""
    count = backbone.trained.user_count if side == "user" else backbone.trained.item_count
    missing = int((count[entities] == 0).sum())
    if missing:
        raise ValueError(
            f"The backbone was not trained on {missing} of the {len(entities)} {side}s with a table row. Give the "
            "training part that it was fitted on."
        )


def need_same_target(backbone: Recommender, train: Dataset) -> None:
    """Raises unless the backbone's scores predict the target in the unit of ``train``."""
    ours, theirs = backbone.encoder, train.encoder
    same = ours.schema.target == theirs.schema.target and _values.same(ours.target, theirs.target)
    if backbone.link != "rank" and not same:
        raise ValueError(
            f"The backbone predicts {_unit(ours)}, and the training part has {_unit(theirs)}. They have to be the same "
            "and scaled by the same statistics. Encode what the backbone was fitted on, with like=backbone.encoder."
        )


def _unit(encoder: Encoder) -> str:
    schema = encoder.schema
    return f"{schema.target!r} with target_scale={schema.target_scale!r}" if schema.target else "no target"


def weighing(train: Dataset) -> Dataset:
    """The rows that weigh something; users and items without any have no table row: nothing was learned of them."""
    if train.weight is None or (train.weight > 0).all():
        return train
    assert train.user is not None and train.item is not None
    kept, rows = train.weight > 0, {}
    for name, index in (("user_row", train.user), ("item_row", train.item)):
        rows[name] = np.array(getattr(train.features, name))
        rows[name][np.setdiff1d(index, index[kept])] = 0
    encoder = dataclasses.replace(train.encoder, features=train.features._replace(**rows))
    return dataclasses.replace(train.subset(kept), encoder=encoder)


def distinct(train: Dataset, side: Side) -> Dataset:
    """The rows weighted so that every entity of the side counts as one."""
    index = train.user if side == "user" else train.item
    assert index is not None
    count = train.interactions.user_count if side == "user" else train.interactions.item_count
    return dataclasses.replace(train, weight=(1.0 / count[index]).astype(np.float32), target=None)


def vectors_of(backbone: Recommender, entities: np.ndarray, side: Side) -> np.ndarray:
    """The vectors that training gave these entities, float32; what was added since is folded in later, not twice.

    Raises:
      ValueError: one is not finite.
    """
    of_side = user_vectors if side == "user" else item_vectors
    backbone = backbone.replace(seen=backbone.trained)
    blocks = [
        np.asarray(of_side(backbone, entities[start : start + _ROWS])) for start in range(0, len(entities), _ROWS)
    ]
    vectors = np.concatenate(blocks).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError(f"The backbone's {side} vectors are not finite. Train it again with a smaller learning rate.")
    return vectors


def reserve(options: dict[str, Any], method: str, *names: str) -> None:
    """Raises where options of ``fit`` are given that the method sets itself."""
    for name in names:
        if name in options:
            raise TypeError(f"{method} sets {name}= of fit itself. Leave it out.")


def _table(backbone: Recommender, train: Dataset, side: Side) -> dict[str, jax.Array]:
    entities = trained(train, side)
    need_trained(backbone, entities, side)
    vectors = vectors_of(backbone, entities, side)
    row = np.asarray(train.features.user_row if side == "user" else train.features.item_row)[entities]
    rows = train.sizes.user_rows if side == "user" else train.sizes.item_rows
    table = np.zeros((rows, vectors.shape[1]), np.float32)
    table[row] = vectors
    mean = vectors.mean(axis=0, dtype=np.float64)
    deviation = float(np.sqrt(np.square(vectors - mean).mean())) or 1.0  # vectors that are all the same
    return {
        "embedding": jnp.asarray(table),
        "mean": jnp.asarray(mean, jnp.float32),
        "deviation": jnp.asarray(deviation, jnp.float32),
    }
