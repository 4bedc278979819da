"""A generator of item vectors from content that plays against a recommender."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup
from jaxrec.models._content import Codes, Content, init_mlp, mlp
from jaxrec.models._item_encoder import ItemEncoder, is_warm, mean_of_rows, need_content


@dataclasses.dataclass(frozen=True, kw_only=True)
class GAR:
    r"""A generator makes vectors of cold items from content; the recommender that ranks them is its adversary.

    From fixed vectors :math:`p_u, q_i` of a trained factorisation and the generator's :math:`g(x_i)` of an item's
    content, the recommender scores :math:`D(u, v) = (p_u + f_U(p_u))^\top (v + f_I(v))`, where :math:`v` is
    :math:`q_i` for a warm and :math:`g(x_i)` for a cold item. Both perceptrons :math:`f` start at zero, where it is the
    factorisation itself. With a positive :math:`i` and a negative :math:`j` the players minimise

    .. math::
        L_D &= -\log \sigma\bigl(D(u, q_i) - \beta D(u, q_j) - (1 - \beta) D(u, g(x_i))\bigr) \\
        L_G &= -(1 - \alpha) \log \sigma\bigl(D(u, g(x_i)) - D(u, q_i)\bigr) + \alpha \lVert g(x_i) - q_i \rVert^2

    in turn: ``coldstart.gar`` does. ``fit`` would train the recommender alone.

    Args:
      user_rows: rows of the factorisation's user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of all vectors.
      hidden: widths of the hidden layers of all perceptrons; ``()`` makes them linear.
      item_dense: width of ``Features.item_dense``.
      item_codes: name and number of rows of each array in ``Features.item_codes``.
      code_dim: width of the embedding of a category or label.
      similarity: :math:`\alpha`, in [0, 1]; at 1 the generator is a regression and plays no game.
      negative_share: :math:`\beta`, in [0, 1].

    References:
      Chen et al., Generative adversarial framework for cold-start item recommendation, SIGIR 2022 (the perceptron
      variant; squared instead of absolute distance; the recommender's perceptrons correct the factorisation instead
      of replacing it; no batch normalisation).
    """

    user_rows: int
    item_rows: int
    dim: int = 64
    hidden: tuple[int, ...] = (200,)
    item_dense: int = 0
    item_codes: Codes = ()
    code_dim: int = 16
    similarity: float = 0.5
    negative_share: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _base.need_positive(dim=self.dim)
        need_content(self._encoder.content, "GAR")
        for name in ("similarity", "negative_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"Expected {name} in [0, 1], got {getattr(self, name)}.")

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "GAR":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def _encoder(self) -> ItemEncoder:
        content = Content("item", self.item_dense, self.item_codes, self.code_dim)
        return ItemEncoder(content, self.hidden, self.dim, jnp.tanh)

    @property
    def tables(self) -> dict[str, str]:
        return {"backbone/user": "user", "backbone/item": "item"} | self._encoder.tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    @property
    def players(self) -> dict[str, str]:
        """Patterns of each player's parameters."""
        return {"discriminator": "recommender/*", "generator": "item/*"}

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_user, key_item, key_content, *key_towers = jax.random.split(key, 5)
        scale = self.dim**-0.5
        towers = {
            side: {"mlp": init_mlp(key_tower, (self.dim, *self.hidden, self.dim), 0.0)}
            for side, key_tower in zip(("user", "item"), key_towers, strict=True)
        }
        backbone = {
            "user": _base.embedding(key_user, self.user_rows, self.dim, scale),
            "item": _base.embedding(key_item, self.item_rows, self.dim, scale),
        }
        return {"backbone": backbone, "item": self._encoder.init(key_content, scale), "recommender": towers}

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = {"user": Lookup("backbone/user", _base.take(features.user_row, _base.users_of(batch)))}
        for name, items in _base.item_fields(batch).items():
            found[name] = Lookup("backbone/item", _base.take(features.item_row, items))
            found |= self._encoder.lookups(name, items, features)
        return found

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        vectors = {}
        for name, items in _base.item_fields(batch).items():
            generated = self._encoder.encode(params["item"], gathered, name, items, features)
            vectors[name] = _seen(params, "item", jnp.where(is_warm(items, features), gathered[name], generated))
        user = _seen(params, "user", gathered["user"])
        return _base.pair_scores(user, vectors.get("item"), vectors.get("shared"))

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch dim"]:
        rows = _base.take(features.user_row, _base.users_of(batch))
        return _seen(params, "user", _base.rows_of(params, "backbone/user", rows))

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items dim"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, self._encoder.lookups("item", items, features))
        generated = self._encoder.encode(params["item"], gathered, "item", items, features)
        known = _base.rows_of(params, "backbone/item", _base.take(features.item_row, items))
        return _seen(params, "item", jnp.where(is_warm(items, features), known, generated))

    def player_loss(self, player: str, params: Params, batch: Batch, features: Features, *, key: Any) -> jax.Array:
        """Loss of ``"discriminator"`` or ``"generator"``; the batch's positives have a negative of their own each."""
        items = None if batch.item is None else _base.as_index(batch.item)
        if items is None or items.shape[1] < 2:
            raise ValueError("Expected a batch with own negatives. Draw it with Negatives(num=1).")
        gathered = _base.gather(params, self.lookups(batch._replace(shared_negatives=None), features))
        content = {name: rows[:, 0] for name, rows in gathered.items() if name.startswith("item/")}
        generated = self._encoder.encode(params["item"], content, "item", items[:, 0], features)
        user = _seen(params, "user", gathered["user"])
        known = gathered["item"]
        scores = jnp.einsum("bd,bnd->bn", user, _seen(params, "item", known))
        real, negative = scores[:, 0], scores[:, 1:].mean(axis=1)
        fake = jnp.einsum("bd,bd->b", user, _seen(params, "item", generated))
        if player == "discriminator":
            margin = real - self.negative_share * negative - (1.0 - self.negative_share) * fake
            return mean_of_rows(jax.nn.softplus(-margin), batch)
        distance = jnp.square(generated - known[:, 0]).sum(axis=1)
        game = jax.nn.softplus(real - fake)
        return mean_of_rows((1.0 - self.similarity) * game + self.similarity * distance, batch)


def _seen(params: Params, side: str, vectors: Float[jax.Array, "*batch dim"]) -> Float[jax.Array, "*batch dim"]:
    """A vector as the recommender sees it."""
    return vectors + mlp(params["recommender"][side]["mlp"], vectors, jnp.tanh)
