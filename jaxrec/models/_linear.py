"""Linear and logistic regression on the features of an interaction, a user and an item."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored
from jaxrec.models._content import Codes, Content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    r"""Weighted sum of features, for regression or, with a sigmoid link, for probabilities.

    .. math:: \hat y = \sigma(\theta_0 + \textstyle\sum_j \theta_j x_j), \quad \sigma = \mathrm{identity\ or\ logistic}

    ``apply`` returns the sum before the link (the logit): losses need it, and ``jaxrec.predict`` applies the link.
    An unknown category counts nothing; several labels of one feature are averaged.

    Args:
      context: width of ``Batch.context``, the interaction's own features; the whole input for a plain matrix.
      user_dense: width of ``Features.user_dense``.
      item_dense: width of ``Features.item_dense``.
      user_codes: name and number of rows of each array in ``Features.user_codes``.
      item_codes: likewise for items.
      link: ``"identity"`` (fit with MSE) or ``"sigmoid"`` (fit with sigmoid cross-entropy).
      l2: adds ``l2 / 2`` times the squared weights of the numeric features (not the intercept, not categories)
        to the loss, which is a mean over examples. scikit-learn's ``C`` is ``1 / (l2 * examples)``.

    Examples:
      >>> model = Linear(context=2)
      >>> params = model.init(jax.random.key(0))
      >>> {path: leaf.shape for path, leaf in params.items() if path == "bias"}
      {'bias': ()}

    References:
      Hastie, Tibshirani and Friedman, The elements of statistical learning, 2nd ed., 2009, sections 3.2 and 4.4.
    """

    context: int = 0
    user_dense: int = 0
    item_dense: int = 0
    user_codes: Codes = ()
    item_codes: Codes = ()
    link: Literal["identity", "sigmoid"] = "identity"
    l2: float = 0.0

    def __post_init__(self) -> None:
        if self.link not in ("identity", "sigmoid"):
            raise ValueError(f"Expected link 'identity' or 'sigmoid', got {self.link!r}.")
        if not self.l2 >= 0.0:
            raise ValueError(f"Expected l2 >= 0, got {self.l2}. It multiplies the squared weights.")

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "Linear":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def tables(self) -> dict[str, str]:
        return self._user.tables | self._item.tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    @property
    def _user(self) -> Content:
        return Content("user", self.user_dense, self.user_codes, 1)

    @property
    def _item(self) -> Content:
        return Content("item", self.item_dense, self.item_codes, 1)

    def init(self, key: Key[jax.Array, ""]) -> Params:
        """All zeros, where gradient descent on a convex loss may as well start; ``key`` is not used."""
        params: Params = {"bias": jnp.zeros((), jnp.float32)}
        if self.context:
            params["context"] = {"kernel": jnp.zeros((self.context,), jnp.float32)}
        for content in (self._user, self._item):
            side: Params = {}
            if content.dense:
                side["kernel"] = jnp.zeros((content.dense,), jnp.float32)
            if content.codes:
                side["features"] = content.init(key, 0.0)
            if side:
                params[content.side] = side
        return params

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self._user_lookups(batch, features)
        if self.item_codes:
            for name, index in _base.item_fields(batch).items():
                found |= self._item.lookups(name, index, features)
        return found

    def _user_lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return self._user.lookups("user", _base.users_of(batch), features) if self.user_codes else {}

    def score(self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None) -> Scored:
        scores = self._user_part(params, gathered, batch, features)[:, None]
        if self._item.width:
            parts = []
            for name, index in _base.item_fields(batch).items():
                part = self._side(params, self._item, gathered, name, index, features)
                parts.append(part if part.ndim == 2 else jnp.broadcast_to(part, (scores.shape[0], part.shape[0])))
            scores = scores + jnp.concatenate(parts, axis=1)
        elif batch.item is not None or batch.shared_negatives is not None:
            columns = sum(index.shape[-1] for index in _base.item_fields(batch).values())
            scores = jnp.broadcast_to(scores, (scores.shape[0], columns))
        kernels = [params[name]["kernel"] for name in ("context", "user", "item") if "kernel" in params.get(name, {})]
        penalty = jnp.zeros((), jnp.float32)
        for kernel in kernels if self.l2 else ():
            penalty += 0.5 * self.l2 * jnp.sum(kernel * kernel)
        return Scored(scores, penalty)

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch 2"]:
        gathered = _base.gather(params, self._user_lookups(batch, features))
        part = self._user_part(params, gathered, batch, features)
        return jnp.stack([part, jnp.ones_like(part)], axis=1)

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items 2"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, self._item.lookups("item", items, features))
        part = jnp.zeros(items.shape, jnp.float32)
        if self._item.width:
            part += self._side(params, self._item, gathered, "item", items, features)
        return jnp.stack([jnp.ones_like(part), part], axis=1)

    def _user_part(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features
    ) -> Float[jax.Array, " batch"]:
        """Everything but the item's features."""
        total = params["bias"].reshape(1)
        if self.context:
            total = total + _base.context_of(batch, self.context) @ params["context"]["kernel"]
        if self._user.width:
            total = total + self._side(params, self._user, gathered, "user", _base.users_of(batch), features)
        if total.shape[0] == 1 and batch.user is not None:
            total = jnp.broadcast_to(total, batch.user.shape)
        return total

    def _side(
        self, params: Params, content: Content, gathered: Gathered, prefix: str, index: jax.Array, features: Features
    ) -> Float[jax.Array, "*index"]:
        inputs = content.inputs(prefix, gathered, index, features)
        kernel = params[content.side]["kernel"] if content.dense else jnp.zeros((0,), jnp.float32)
        return inputs @ jnp.concatenate([kernel, jnp.ones((len(content.codes),), jnp.float32)])
