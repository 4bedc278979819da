"""A linear item-to-item model: what a user touched, times a square matrix of weights."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemWeights:
    r"""Sum of weights from the items that the user touched to the item that is scored.

    .. math:: s_{ui} = \sum_{j \in H_u} w_{ij}

    Each item of the history :math:`H_u` counts once. The user's id is not read, so somebody new is served from
    interactions alone. ``item/weights`` ``[item_rows, item_rows]`` has a row per scored item, which is its vector, and
    a column per touched one, both by table row. Solved for by ``train.fit_ease``; ``fit`` trains it by gradient. What
    was not trained has no weights: an untrained item scores 0 and says nothing in a history, and a user without any
    history gets 0 for everything.

    Args:
      item_rows: rows and columns, the unknown's row 0 included. Memory is their square.
      history: longest history read; of a longer one the latest.

    References:
      Ning and Karypis, SLIM: sparse linear methods for top-N recommender systems, ICDM 2011 (the model; the weights
      here are dense); Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019.
    """

    item_rows: int
    history: int

    def __post_init__(self) -> None:
        if self.history < 1:
            raise ValueError(f"Expected history >= 1, got {self.history}. It is all that the model reads of a user.")

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "ItemWeights":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(item_rows=_base.sizes_of(data).item_rows, **options)

    @property
    def tables(self) -> dict[str, str]:
        return {"item/weights": "item"}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    @property
    def derived(self) -> bool:
        """Both sides of the matrix are numbered by one domain's items."""
        return True

    def init(self, key: Key[jax.Array, ""]) -> Params:
        return {"item": {"weights": jnp.zeros((self.item_rows, self.item_rows), jnp.float32)}}

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return {
            name: Lookup("item/weights", _base.take(features.item_row, items))
            for name, items in _base.item_fields(batch).items()
        }

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        user = self.user_vectors(params, batch, features)
        return _base.pair_scores(user, gathered.get("item"), gathered.get("shared"))

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch item_rows"]:
        return _base.multi_hot(_base.take(features.item_row, _base.history_of(batch)), self.item_rows).T

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items item_rows"]:
        return _base.rows_of(params, "item/weights", _base.take(features.item_row, items))
