"""Factorization machines: every pair of features interacts through an inner product; with a perceptron, DeepFM."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup
from jaxrec.models._content import Codes, Content, init_mlp, pair_mlp


class _Part(NamedTuple):
    """What some of the features come to."""

    fields: list[jax.Array]  # [..., dim] each: the sum of x v over the features of a field
    linear: Float[jax.Array, "*index"]  # sum of w x
    squares: Float[jax.Array, "*index"]  # sum of |x v|^2

    def plus(self, other: "_Part") -> "_Part":
        return _Part(self.fields + other.fields, self.linear + other.linear, self.squares + other.squares)

    @property
    def vector(self) -> Float[jax.Array, "*index dim"]:
        return sum(self.fields[1:], self.fields[0])

    @property
    def offset(self) -> Float[jax.Array, "*index"]:
        """First order, and the pairs among these features."""
        return self.linear + 0.5 * (jnp.square(self.vector).sum(-1) - self.squares)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorizationMachine:
    r"""Factorization machine of second order over ids, content and context; with ``hidden`` layers DeepFM.

    .. math::
        s = w_0 + \sum_j w_j x_j + \sum_{j < k} x_j x_k \, v_j^\top v_k + \mathrm{MLP}(z)

    The features :math:`x` are the user's and the item's id (1), every known label of either (1 / the number of labels
    that its feature has there, so that features weigh alike), their dense numbers, and ``Batch.context``. All pairs
    count, those within one side too, in time linear in the number of features: user and context sum up to one vector
    and the item to another, whose inner product is what they have to do with each other.

    DeepFM adds a perceptron that reads the same embeddings, field by field: :math:`z` has :math:`\sum_j x_j v_j` of
    each id, each feature with labels, the dense numbers of each side, and the context.

    An id without training has the mean of the trained ids' rows in place of its own, so that somebody new is told
    apart by features alone; a label without training counts nothing.

    Without ``hidden`` the score is an inner product, and the model has ``user_vectors`` and ``item_vectors``.

    Args:
      user_rows: rows of the user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of every embedding :math:`v`.
      hidden: widths of the perceptron's hidden layers; ``()`` for no perceptron.
      context: width of ``Batch.context``.
      user_dense: width of ``Features.user_dense``.
      item_dense: width of ``Features.item_dense``.
      user_codes: name and number of rows of each array in ``Features.user_codes``.
      item_codes: likewise for items.

    Examples:
      >>> model = FactorizationMachine(user_rows=3, item_rows=4, dim=2, item_dense=5)
      >>> params = model.init(jax.random.key(0))
      >>> params["item"]["embedding"].shape, params["item"]["bias"].shape, params["item"]["dense"]["kernel"].shape
      ((4, 2), (4, 1), (5, 2))

    References:
      Rendle, Factorization machines, ICDM 2010 (second order; regularised by the optimiser's decay). Guo et al.,
      DeepFM: a factorization-machine based neural network for CTR prediction, IJCAI 2017 (shared embeddings; the dense
      numbers of a side are one field, and the loss has the sigmoid).
    """

    user_rows: int
    item_rows: int
    dim: int = 32
    hidden: tuple[int, ...] = ()
    context: int = 0
    user_dense: int = 0
    item_dense: int = 0
    user_codes: Codes = ()
    item_codes: Codes = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _base.need_positive(dim=self.dim)

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "FactorizationMachine":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def tables(self) -> dict[str, str]:
        embeddings = {"user/embedding": "user", "item/embedding": "item"} | self._user.tables | self._item.tables
        return embeddings | {_weights(path): numbering for path, numbering in embeddings.items()}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    @property
    def by_field(self) -> str:
        """Path of the kernel that reads the features of both sides by their position."""
        return "mlp/0/kernel" if self.hidden else ""

    @property
    def _user(self) -> Content:
        return Content("user", self.user_dense, self.user_codes, self.dim)

    @property
    def _item(self) -> Content:
        return Content("item", self.item_dense, self.item_codes, self.dim)

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_user, key_item, key_context, key_mlp = jax.random.split(key, 4)
        fields = {
            "user": 1 + len(self.user_codes) + bool(self.user_dense) + bool(self.context),
            "item": 1 + len(self.item_codes) + bool(self.item_dense),
        }
        scale = {side: (self.dim * number) ** -0.5 for side, number in fields.items()}  # sums of about unit length
        params: Params = {
            "bias": jnp.zeros((), jnp.float32),
            "user": self._init_side(key_user, self._user, self.user_rows, scale["user"]),
            "item": self._init_side(key_item, self._item, self.item_rows, scale["item"]),
        }
        if self.context:
            params["context"] = self._init_numbers(key_context, self.context, scale["user"])
        if self.hidden:
            params["mlp"] = init_mlp(key_mlp, (sum(fields.values()) * self.dim, *self.hidden, 1), 1.0)
        return params

    def _init_side(self, key: Key[jax.Array, ""], content: Content, rows: int, scale: float) -> Params:
        key_id, key_codes, key_dense = jax.random.split(key, 3)
        side: Params = {
            "embedding": _base.embedding(key_id, rows, self.dim, scale),
            "bias": jnp.zeros((rows, 1), jnp.float32),
        }
        if content.codes:
            side["features"] = content.init(key_codes, scale)
            for name, rows in content.codes:
                side["features"][name]["bias"] = jnp.zeros((rows, 1), jnp.float32)
        if content.dense:
            side["dense"] = self._init_numbers(key_dense, content.dense, scale)
        return side

    def _init_numbers(self, key: Key[jax.Array, ""], width: int, scale: float) -> Params:
        kernel = _base.normal(key, (width, self.dim), scale * width**-0.5)
        return {"kernel": kernel, "bias": jnp.zeros((width,), jnp.float32)}

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = _with_weights(self._user.lookups_with_id("user", _base.users_of(batch), features))
        for name, items in _base.item_fields(batch).items():
            found |= _with_weights(self._item.lookups_with_id(name, items, features))
        return found

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        user = self._user_part(params, gathered, batch, features)
        items = {
            name: self._side_part(params, self._item, gathered, name, index, features)
            for name, index in _base.item_fields(batch).items()
        }
        vectors = {name: _item_vectors(part) for name, part in items.items()}
        scores = _base.pair_scores(_user_vectors(params, user), vectors.get("item"), vectors.get("shared"))
        if self.hidden:
            of_user = jnp.concatenate(user.fields, axis=-1)
            deep = [pair_mlp(params["mlp"], of_user, jnp.concatenate(part.fields, axis=-1)) for part in items.values()]
            scores = scores + jnp.concatenate(deep, axis=1)
        return scores

    apply = _base.apply

    @property
    def user_vectors(self) -> Callable[[Params, Batch, Features], Float[jax.Array, "batch vector"]]:
        """A method of the model without a perceptron, as of other models; with one it is not there."""
        self._needs_no_perceptron("user_vectors")
        return self._vectors_of_users

    @property
    def item_vectors(self) -> Callable[[Params, Int[Array, " items"], Features], Float[jax.Array, "items vector"]]:
        """Likewise."""
        self._needs_no_perceptron("item_vectors")
        return self._vectors_of_items

    def _needs_no_perceptron(self, name: str) -> None:
        if self.hidden:
            raise AttributeError(f"A model with a perceptron does not factorise, so it has no {name!r}.")

    def _vectors_of_users(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch vector"]:
        lookups = _with_weights(self._user.lookups_with_id("user", _base.users_of(batch), features))
        return _user_vectors(params, self._user_part(params, _base.gather(params, lookups), batch, features))

    def _vectors_of_items(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items vector"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, _with_weights(self._item.lookups_with_id("item", items, features)))
        return _item_vectors(self._side_part(params, self._item, gathered, "item", items, features))

    def _user_part(self, params: Params, gathered: Gathered, batch: Batch, features: Features) -> _Part:
        """User and context."""
        part = self._side_part(params, self._user, gathered, "user", _base.users_of(batch), features)
        if self.context:
            part = part.plus(_numbers(params["context"], _base.context_of(batch, self.context)))
        return part

    def _side_part(
        self, params: Params, content: Content, gathered: Gathered, prefix: str, index: jax.Array, features: Features
    ) -> _Part:
        own, weight = gathered[prefix], gathered[f"w:{prefix}"]
        part = _Part([own], weight[..., 0], jnp.square(own).sum(-1))
        for name, _ in content.codes:
            known = content.known(name, index, features)
            x = known / jnp.maximum(known.sum(-1, keepdims=True), 1.0)
            vectors = gathered[f"{prefix}/{name}"] * x[..., None]
            linear = (gathered[f"w:{prefix}/{name}"][..., 0] * x).sum(-1)
            part = part.plus(_Part([vectors.sum(-2)], linear, jnp.square(vectors).sum((-2, -1))))
        if content.dense:
            part = part.plus(_numbers(params[content.side]["dense"], content.numbers(index, features)))
        return part


def _weights(path: str) -> str:
    """Of the table of first-order weights beside a table of embeddings."""
    return path.removesuffix("embedding") + "bias"


def _with_weights(lookups: dict[str, Lookup]) -> dict[str, Lookup]:
    """By the same rows, so that training merges both tables' gradients at once."""
    return lookups | {f"w:{name}": Lookup(_weights(lookup.path), lookup.rows) for name, lookup in lookups.items()}


def _numbers(layer: Params, x: Float[jax.Array, "*index width"]) -> _Part:
    kernel = layer["kernel"].astype(jnp.float32)
    return _Part([x @ kernel], x @ layer["bias"].astype(jnp.float32), jnp.square(x) @ jnp.square(kernel).sum(1))


def _user_vectors(params: Params, part: _Part) -> Float[jax.Array, "batch vector"]:
    offset = (part.offset + params["bias"])[..., None]
    return jnp.concatenate([part.vector, offset, jnp.ones_like(offset)], axis=-1)


def _item_vectors(part: _Part) -> Float[jax.Array, "*items vector"]:
    offset = part.offset[..., None]
    return jnp.concatenate([part.vector, jnp.ones_like(offset), offset], axis=-1)
