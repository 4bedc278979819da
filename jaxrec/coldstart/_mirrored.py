"""A model of tasks that are items: the batch's users are items, and its items are users."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxrec._types import Batch, Features, Params
from jaxrec.data._sides import Side
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Model, Scored


@dataclasses.dataclass(frozen=True)
class Mirrored(_base.Over):
    """The base's score of user ``item[row, column]`` and item ``user[row]`` in each row and column of a batch.

    So negatives of an item are users, and a loss that compares columns compares users. The base's own batch has a row
    for each pair; a history or context has no place in it.
    """

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self.base.lookups(_pairs(batch), features)
        shape = _base.item_fields(batch)["item"].shape
        return {name: Lookup(path, rows.reshape(*shape, *rows.shape[1:])) for name, (path, rows) in found.items()}

    def score(self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None) -> Scored:
        flat = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in gathered.items()}
        found = _base.scored(self.base.score(params, flat, _pairs(batch), features, key=key))
        return found._replace(scores=found.scores.reshape(_base.item_fields(batch)["item"].shape))

    apply = _base.apply


def mirrored(model: Model, side: Side) -> Model:
    """The model whose batches have tasks of this side as users."""
    return model if side == "user" else Mirrored(model)


def _pairs(batch: Batch) -> Batch:
    users = _base.item_fields(batch)["item"]
    items, columns = _base.users_of(batch), users.shape[1]
    weight = None if batch.weight is None else jnp.repeat(jnp.asarray(batch.weight), columns)
    return Batch(user=users.reshape(-1), item=jnp.repeat(items, columns)[:, None], weight=weight)
