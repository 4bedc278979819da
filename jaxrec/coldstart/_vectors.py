"""What a trained factorisation says of users and items, as tables by row for a model that is trained on top of it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._recommender import Recommender
from jaxrec._types import Array
from jaxrec.coldstart._backbone import check, need_trained, vectors_of
from jaxrec.data import Dataset


def vectors_by_row(backbone: Recommender, train: Dataset) -> dict[str, jax.Array]:
    """Vectors ``[rows, dim]`` of ``"user"`` and ``"item"`` by table row; row 0 and spare rows hold the unknown's.

    Each side is scaled to a root mean square of ``dim ** -0.25``, which leaves every ranking as it is. Scores of random
    pairs then have about unit spread, whatever the backbone's loss was (those of least squares lie between 0 and 1), so
    that a sigmoid of them says something and networks get inputs of a known size.

    Raises:
      ValueError: the backbone does not factorise or has vectors that are not finite, its entity indices are not those
        of ``train``, or it was not trained on some that ``train`` has.
    """
    check(backbone, train)
    sizes, features = train.sizes, train.features
    users = _entity_of_row(features.user_row, sizes.user_rows)
    items = _entity_of_row(features.item_row, sizes.item_rows)
    need_trained(backbone, users[users > 0], "user")
    need_trained(backbone, items[items > 0], "item")
    return {
        "user": _scaled(vectors_of(backbone, users, "user"), users > 0),
        "item": _scaled(vectors_of(backbone, items, "item"), items > 0),
    }


def _scaled(table: np.ndarray, known: np.ndarray) -> jax.Array:
    size = float(np.sqrt(np.mean(np.square(table[known])))) if known.any() else 0.0
    return jnp.asarray(table * np.float32(table.shape[1] ** -0.25 / size) if size > 0 else table)


def _entity_of_row(row: Array, rows: int) -> np.ndarray:
    entity = np.zeros(rows, np.int32)
    row = np.asarray(row)
    entity[row] = np.where(row > 0, np.arange(len(row)), 0)
    return entity
