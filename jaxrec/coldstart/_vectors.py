"""What a trained factorisation says of users and items, as tables by row for a model that is trained on top of it."""

import jax
import numpy as np

from jaxrec._recommender import Recommender
from jaxrec._types import Array
from jaxrec.coldstart._backbone import check
from jaxrec.data import Dataset
from jaxrec.ranking._vectors import item_vectors, user_vectors


def vectors_by_row(backbone: Recommender, train: Dataset) -> dict[str, jax.Array]:
    """Vectors ``[rows, dim]`` of ``"user"`` and ``"item"`` by table row; row 0 and spare rows hold the unknown's.

    Each side is scaled to a root mean square of ``dim ** -0.25``, which leaves every ranking as it is. Scores of random
    pairs then have about unit spread, whatever the backbone's loss was (those of least squares lie between 0 and 1), so
    that a sigmoid of them says something and networks get inputs of a known size.

    Raises:
      ValueError: the backbone does not factorise, or its entity indices are not those of ``train``.
    """
    check(backbone, train)
    backbone = backbone.replace(seen=backbone.trained)  # as training left it: nothing that was added is folded in
    sizes, features = train.sizes, train.features
    users = _entity_of_row(features.user_row, sizes.user_rows)
    items = _entity_of_row(features.item_row, sizes.item_rows)
    tables = {"user": user_vectors(backbone, users), "item": item_vectors(backbone, items)}
    known = {"user": users > 0, "item": items > 0}
    return {side: _scaled(table, known[side]) for side, table in tables.items()}


def _scaled(table: jax.Array, known: np.ndarray) -> jax.Array:
    size = float(np.sqrt(np.mean(np.square(np.asarray(table)[known])))) if known.any() else 0.0
    return table * (table.shape[1] ** -0.25 / size) if size > 0 else table


def _entity_of_row(row: Array, rows: int) -> np.ndarray:
    entity = np.zeros(rows, np.int32)
    row = np.asarray(row)
    entity[row] = np.where(row > 0, np.arange(len(row)), 0)
    return entity
