"""Matrix factorization and the popularity baseline: scores from ids alone."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixFactorization:
    r"""Inner product of a user and an item embedding, with biases.

    .. math:: s_{ui} = \mu + b_u + b_i + p_u^\top q_i

    An unknown user or item is scored with the mean of the trained rows, so an unknown user's ranking is by
    average preference.

    Args:
      user_rows: rows of the user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of the embeddings.
      bias: whether to learn :math:`\mu`, :math:`b_u` and :math:`b_i`. Ranking losses do not move :math:`\mu`
        and :math:`b_u`.

    Examples:
      >>> model = MatrixFactorization(user_rows=3, item_rows=4, dim=2)
      >>> params = model.init(jax.random.key(0))
      >>> sorted(params), params["item"]["embedding"].shape
      (['bias', 'item', 'user'], (4, 2))

    References:
      Koren, Bell and Volinsky, Matrix factorization techniques for recommender systems, Computer 42(8), 2009
      (the model with biases, no side information).
    """

    user_rows: int
    item_rows: int
    dim: int = 64
    bias: bool = True

    def __post_init__(self) -> None:
        _base.need_positive(dim=self.dim)

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "MatrixFactorization":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def tables(self) -> dict[str, str]:
        names = ("embedding", "bias") if self.bias else ("embedding",)
        return {f"{side}/{name}": side for side in ("user", "item") for name in names}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        params = _base.id_tables(key, self.user_rows, self.item_rows, self.dim)
        if self.bias:
            params["user"]["bias"] = jnp.zeros((self.user_rows, 1), jnp.float32)
            params["item"]["bias"] = jnp.zeros((self.item_rows, 1), jnp.float32)
            params["bias"] = jnp.zeros((), jnp.float32)
        return params

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        user = _base.take(features.user_row, _base.users_of(batch))
        found = {"user": Lookup("user/embedding", user)}
        if self.bias:
            found["user_bias"] = Lookup("user/bias", user)
        for name, items in _base.item_fields(batch).items():
            rows = _base.take(features.item_row, items)
            found[name] = Lookup("item/embedding", rows)
            if self.bias:
                found[f"{name}_bias"] = Lookup("item/bias", rows)
        return found

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        scores = _base.pair_scores(gathered["user"], gathered.get("item"), gathered.get("shared"))
        if self.bias:
            of_items = []
            if "item" in gathered:
                of_items.append(gathered["item_bias"][..., 0])
            if "shared" in gathered:
                shared = gathered["shared_bias"][:, 0]
                of_items.append(jnp.broadcast_to(shared, (scores.shape[0], shared.shape[0])))
            scores = scores + jnp.concatenate(of_items, axis=1) + gathered["user_bias"] + params["bias"]
        return scores

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch vector"]:
        rows = _base.take(features.user_row, _base.users_of(batch))
        vectors = _base.rows_of(params, "user/embedding", rows)
        if not self.bias:
            return vectors
        offset = _base.rows_of(params, "user/bias", rows) + params["bias"]
        return jnp.concatenate([vectors, offset, jnp.ones_like(offset)], axis=1)

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items vector"]:
        rows = _base.take(features.item_row, items)
        vectors = _base.rows_of(params, "item/embedding", rows)
        if not self.bias:
            return vectors
        offset = _base.rows_of(params, "item/bias", rows)
        return jnp.concatenate([vectors, jnp.ones_like(offset), offset], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Popularity:
    """The same ranking for everybody: an item's score is its count. The baseline that checks an evaluator.

    It is not trained; ``jaxrec.coldstart.popularity`` counts. An item that training never saw scores 0.

    Args:
      item_rows: rows of the table of counts.
    """

    item_rows: int

    @classmethod
    def for_data(cls, data: HasSizes) -> "Popularity":
        """The model that fits a dataset's or encoder's sizes."""
        return cls(item_rows=_base.sizes_of(data).item_rows)

    @property
    def tables(self) -> dict[str, str]:
        return {"item/count": "item"}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    @property
    def derived(self) -> bool:
        """Counts are of one domain's rows, and nobody is folded into them."""
        return True

    def init(self, key: Key[jax.Array, ""]) -> Params:
        return {"item": {"count": jnp.zeros((self.item_rows, 1), jnp.float32)}}

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return {
            name: Lookup("item/count", _base.take(features.item_row, items))
            for name, items in _base.item_fields(batch).items()
        }

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        everybody = jnp.ones((_base.users_of(batch).shape[0], 1), jnp.float32)
        return _base.pair_scores(everybody, gathered.get("item"), gathered.get("shared"))

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch 1"]:
        return jnp.ones((_base.users_of(batch).shape[0], 1), jnp.float32)

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items 1"]:
        return _base.rows_of(params, "item/count", _base.take(features.item_row, items))
