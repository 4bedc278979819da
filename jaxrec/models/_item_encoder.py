"""From an item's content to a vector: what the models that are trained for cold items share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32, Key

from jaxrec._types import Batch, Features, Params
from jaxrec.models._base import Gathered, Lookup, as_index, take
from jaxrec.models._content import Content, init_mlp, mlp


@dataclasses.dataclass(frozen=True)
class ItemEncoder:
    """A perceptron on an item's features. Without content an item gets what zeros give, the same for all such items."""

    content: Content
    hidden: tuple[int, ...]
    dim: int
    activation: Callable[[jax.Array], jax.Array]

    @property
    def tables(self) -> dict[str, str]:
        return self.content.tables

    def init(self, key: Key[jax.Array, ""], scale: float) -> Params:
        key_codes, key_mlp = jax.random.split(key)
        encoder: Params = {"mlp": init_mlp(key_mlp, (self.content.width, *self.hidden, self.dim), scale)}
        if self.content.codes:
            encoder["features"] = self.content.init(key_codes, 1.0)
        return encoder

    def lookups(self, prefix: str, items: jax.Array, features: Features) -> dict[str, Lookup]:
        return self.content.lookups(prefix, as_index(items), features)

    def encode(
        self, encoder: Params, gathered: Gathered, prefix: str, items: Int32[jax.Array, "*items"], features: Features
    ) -> Float[jax.Array, "*items dim"]:
        return mlp(encoder["mlp"], self.content.inputs(prefix, gathered, items, features), self.activation)


def need_content(content: Content, name: str) -> None:
    """Raises where there is nothing to tell cold items apart by."""
    if not content.width:
        raise ValueError(
            f"{name} reads an item's content, and there is none: item_dense is 0 and item_codes is empty. Name item "
            "features in the schema (item_features=...), or use MatrixFactorization."
        )


def is_warm(items: Int32[jax.Array, "*items"], features: Features) -> Bool[jax.Array, "*items 1"]:
    """Whether each item has a table row of its own."""
    return (take(features.item_row, items) > 0)[..., None]


def contrasted(
    scores: Float[jax.Array, "batch columns"], items: Int32[jax.Array, "batch columns"], diagonal: bool
) -> tuple[Float[jax.Array, "batch 1"], Float[jax.Array, "batch columns"]]:
    """Scores of the positives, and the weight of each column as a negative: it is not the positive, nor padding.

    Args:
      scores: of every column.
      items: entity indices of the columns.
      diagonal: whether row ``b``'s positive is column ``b`` (in-batch negatives) or column 0.

    Returns:
      The weights of a row sum to 1, or are 0 where a row has no negative.
    """
    rows = scores.shape[0]
    column = jnp.arange(rows) if diagonal else jnp.zeros(rows, jnp.int32)
    positive, own = (jnp.take_along_axis(values, column[:, None], axis=1) for values in (scores, items))
    weight = ((items != own) & (items != 0)).astype(jnp.float32)
    return positive, weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1.0)


def mean_of_rows(values: Float[jax.Array, " batch"], batch: Batch) -> Float[jax.Array, ""]:
    """Mean weighted as the batch's examples are; 0 for zero weights."""
    weight = jnp.ones_like(values) if batch.weight is None else jnp.asarray(batch.weight)
    return (weight * values).sum() / jnp.where(weight.sum() > 0, weight.sum(), 1.0)
