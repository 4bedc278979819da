"""Contrastive learning: the content of an item is to tell as much of its collaborative vector as it can."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec import losses
from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored
from jaxrec.models._content import Codes, Content
from jaxrec.models._item_encoder import ItemEncoder, is_warm, need_content

_SHORT = 0.1  # vectors start at lengths around 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLCRec:
    r"""Contrastive learning for cold-start recommendation: embeddings of users and items, and an encoder of content.

    A warm item's vector is its embedding :math:`z_i`, a cold one's is :math:`f(x_i)` of its content. While training
    (``key`` given) an item's vector is :math:`f(x_i)` with probability ``mix``, so that users learn to score contents,
    and the term

    .. math:: \lambda \cdot \Bigl[-\log \frac{\exp(\cos(z_i, f(x_i)) / \tau)}
        {\sum_{j} \exp(\cos(z_i, f(x_j)) / \tau)}\Bigr]

    over the columns :math:`j` of the batch joins the loss: a lower bound of the mutual information of embedding and
    content (InfoNCE). The loss itself, ``in_batch_softmax`` or ``sampled_softmax``, is the other contrastive term, of
    user and item.

    An unknown user is scored with the mean of the trained rows.

    Args:
      user_rows: rows of the user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of the vectors.
      hidden: widths of the encoder's hidden layers; ``()`` makes it linear.
      item_dense: width of ``Features.item_dense``.
      item_codes: name and number of rows of each array in ``Features.item_codes``.
      code_dim: width of the embedding of a category or label.
      temperature: :math:`\tau`, positive.
      alignment: :math:`\lambda`, weight of the term of item and content, at least 0.
      mix: probability, in [0, 1].

    References:
      Wei et al., Contrastive learning for cold-start recommendation, MM 2021 (the objective there is
      :math:`\lambda' L_{content} + (1 - \lambda') L_{user}`, so :math:`\lambda = \lambda' / (1 - \lambda')`; the
      temperature is of the cosines alone, since the length of unnormalised vectors does what it would do for users;
      a column's vectors are mixed independently instead of in an exact share; in a cosine, lengths below 0.1 count as
      0.1).
    """

    user_rows: int
    item_rows: int
    dim: int = 64
    hidden: tuple[int, ...] = (256,)
    item_dense: int = 0
    item_codes: Codes = ()
    code_dim: int = 16
    temperature: float = 0.2
    alignment: float = 0.3
    mix: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _base.need_positive(dim=self.dim)
        need_content(self._encoder.content, "CLCRec")
        if not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"Expected mix in [0, 1], got {self.mix}. It is a probability.")
        if not self.temperature > 0 or not self.alignment >= 0:
            raise ValueError(
                f"Expected temperature > 0 and alignment >= 0, got temperature={self.temperature}, "
                f"alignment={self.alignment}."
            )

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "CLCRec":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def _encoder(self) -> ItemEncoder:
        content = Content("item", self.item_dense, self.item_codes, self.code_dim)
        return ItemEncoder(content, self.hidden, self.dim, jax.nn.leaky_relu)

    @property
    def tables(self) -> dict[str, str]:
        return {"user/embedding": "user", "item/embedding": "item"} | self._encoder.tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_user, key_item, key_content = jax.random.split(key, 3)
        scale = self.dim**-0.5
        item = self._encoder.init(key_content, scale)
        item["embedding"] = _base.embedding(key_item, self.item_rows, self.dim, scale)
        return {"user": {"embedding": _base.embedding(key_user, self.user_rows, self.dim, scale)}, "item": item}

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = {"user": Lookup("user/embedding", _base.take(features.user_row, _base.users_of(batch)))}
        for name, items in _base.item_fields(batch).items():
            found |= self._encoder.content.lookups_with_id(name, items, features)
        return found

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"] | Scored:
        fields = _base.item_fields(batch)
        contents = {
            name: self._encoder.encode(params["item"], gathered, name, items, features)
            for name, items in fields.items()
        }
        vectors = {}
        for number, (name, items) in enumerate(fields.items()):
            use = is_warm(items, features)
            if key is not None:
                use &= jax.random.bernoulli(jax.random.fold_in(key, number), 1.0 - self.mix, (*items.shape, 1))
            vectors[name] = jnp.where(use, gathered[name], contents[name])
        scores = _base.pair_scores(gathered["user"], vectors.get("item"), vectors.get("shared"))
        if key is None:
            return scores
        return Scored(scores, self.alignment * self._content_term(gathered, contents, batch))

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch dim"]:
        return _base.rows_of(params, "user/embedding", _base.take(features.user_row, _base.users_of(batch)))

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items dim"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, self._encoder.content.lookups_with_id("item", items, features))
        content = self._encoder.encode(params["item"], gathered, "item", items, features)
        return jnp.where(is_warm(items, features), gathered["item"], content)

    def _content_term(self, gathered: Gathered, contents: dict[str, jax.Array], batch: Batch) -> jax.Array:
        in_batch = "item" not in contents
        anchor = gathered["shared"][: _base.users_of(batch).shape[0]] if in_batch else gathered["item"][:, 0]
        own, shared = (_unit(contents[name]) if name in contents else None for name in ("item", "shared"))
        cosines = _base.pair_scores(_unit(anchor), own, shared) / self.temperature
        # Popular items are no more likely to be described alike, so there is no correction by sampling probability.
        name = "in_batch_softmax" if in_batch else "sampled_softmax"
        return losses.on_batch(name)(cosines, batch._replace(log_q=None))


def _unit(vectors: Float[jax.Array, "*batch dim"]) -> Float[jax.Array, "*batch dim"]:
    """Of length 1; one that is shorter than ``_SHORT`` is divided by that instead.

    The slope of a quotient by the length is one over the length, and an item whose features are all missing starts at
    0: its gradient would be all that an optimiser sees.
    """
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(axis=-1, keepdims=True), _SHORT**2))
