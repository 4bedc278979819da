"""Two towers over the vectors of a recommender that was trained before: what content says of those it did not see."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Int32, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Link, Params
from jaxrec.losses import mse
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored
from jaxrec.models._content import Codes, Content
from jaxrec.models._heads import DropoutNet, Head, Known

_SIDES = ("user", "item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneTowers:
    r"""Inner product of user and item vectors that heads make of a backbone's vectors and of content.

    The backbone's vectors are tables among the parameters, ``backbone/user/embedding`` and ``backbone/item/embedding``,
    with the mean and the deviation of the trained ones beside them: train with ``freeze="backbone/*"``. A side without
    a head keeps the backbone's vectors. Who is neither trained nor described is the average entity to the head; without
    one, and to a ``ContentMap``, that is the mean of the trained vectors.

    Two penalties, in units of the vectors' variance, may join the loss:

    .. math:: \text{similarity} \cdot \operatorname{mean} \bigl(m(x) - v\bigr)^2
        + \text{distil} \cdot \operatorname{mean} \bigl(\hat u^\top \hat v - u^\top v\bigr)^2

    over the batch's trained entities with content, and over its pairs.

    Args:
      user_rows: rows of the user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of the backbone's vectors.
      user: head of the users; None to keep the backbone's vectors.
      item: likewise for items.
      similarity: weight of the distance between what a head maps content to and the backbone's vector.
      distil: weight of the distance between scores and the backbone's.
      user_dense: width of ``Features.user_dense``.
      item_dense: width of ``Features.item_dense``.
      user_codes: name and number of rows of each array in ``Features.user_codes``.
      item_codes: likewise for items.
      history: longest history that a ``DropoutNet`` of users pools; 0 for none.
      link: of the backbone's predictions; None for what the loss says.
    """

    user_rows: int
    item_rows: int
    dim: int
    user: Head | None = None
    item: Head | None = None
    similarity: float = 0.0
    distil: float = 0.0
    user_dense: int = 0
    item_dense: int = 0
    user_codes: Codes = ()
    item_codes: Codes = ()
    history: int = 0
    link: Link | None = None

    def __post_init__(self) -> None:
        _base.need_positive(dim=self.dim)
        for name in ("similarity", "distil"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Expected {name} >= 0, got {getattr(self, name)}. It is the weight of a penalty.")
        if self.similarity and all(head is None or isinstance(head, DropoutNet) for head in (self.user, self.item)):
            raise ValueError(
                f"similarity={self.similarity} is of heads that map content alone to a vector (ContentMap, Heater, "
                f"Bridge), got user={self.user} and item={self.item}. Leave it out."
            )
        if self.history and not isinstance(self.user, DropoutNet):
            raise ValueError(
                f"Only a DropoutNet of users reads a history, got history={self.history} with user={self.user}."
            )

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "BackboneTowers":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def tables(self) -> dict[str, str]:
        vectors = {f"backbone/{side}/embedding": side for side in _SIDES}
        return vectors | self.content("user").tables | self.content("item").tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    def content(self, side: str) -> Content:
        """The features that the side's head reads."""
        head: Head | None = getattr(self, side)
        if head is None:
            return Content(side, 0, (), 0)
        return Content(side, getattr(self, f"{side}_dense"), getattr(self, f"{side}_codes"), head.code_dim)

    def init(self, key: Key[jax.Array, ""]) -> Params:
        params: Params = {"backbone": {}}
        for side, rows, key_side in zip(
            _SIDES, (self.user_rows, self.item_rows), jax.random.split(key), strict=True
        ):  # fmt: skip
            key_table, key_codes, key_head = jax.random.split(key_side, 3)
            params["backbone"][side] = {
                "embedding": _base.embedding(key_table, rows, self.dim, self.dim**-0.5),
                "mean": jnp.zeros((self.dim,), jnp.float32),
                "deviation": jnp.full((), self.dim**-0.5, jnp.float32),
            }
            head, content = getattr(self, side), self.content(side)
            if head is not None:
                params[side] = head.init(key_head, content=content.width, dim=self.dim)
                if content.codes:
                    params[side]["features"] = content.init(key_codes, 1.0)
        return params

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self._user_lookups(batch, features)
        for name, items in _base.item_fields(batch).items():
            found |= self._lookups("item", name, items, features)
        return found

    def _user_lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self._lookups("user", "user", _base.users_of(batch), features)
        if self.history:
            rows = _base.take(features.item_row, _base.history_of(batch))
            found["history"] = Lookup("backbone/item/embedding", rows)
        return found

    def _lookups(self, side: str, prefix: str, index: jax.Array, features: Features) -> dict[str, Lookup]:
        rows = _base.take(_rows(features, side), index)
        own = Lookup(f"backbone/{side}/embedding", rows)
        return {prefix: own, **self.content(side).lookups(prefix, index, features)}

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"] | Scored:
        fields = _base.item_fields(batch)
        keys: dict[str, Any] = dict.fromkeys(("user", "item", "shared"))
        if key is not None:
            keys = dict(zip(keys, jax.random.split(key, len(keys)), strict=True))
        user = self._known_users(params, gathered, batch, features)
        items = {name: self._known(params, "item", gathered, name, index, features) for name, index in fields.items()}
        of_user = self._vectors(params, "user", gathered["user"], user, keys["user"])
        of_items = {
            name: self._vectors(params, "item", gathered[name], known, keys[name]) for name, known in items.items()
        }
        scores = _base.pair_scores(of_user, of_items.get("item"), of_items.get("shared"))
        if key is None or not (self.similarity or self.distil):
            return scores
        penalty = jnp.zeros((), jnp.float32)
        if self.distil:
            penalty += self.distil * self._from_backbone(params, gathered, user, items, scores, fields, batch)
        if self.similarity:
            penalty += self.similarity * self._from_vectors(params, user, items, fields, batch)
        return Scored(scores, penalty)

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch dim"]:
        gathered = _base.gather(params, self._user_lookups(batch, features))
        known = self._known_users(params, gathered, batch, features)
        return self._vectors(params, "user", gathered["user"], known, None)

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items dim"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, self._lookups("item", "item", items, features))
        known = self._known(params, "item", gathered, "item", items, features)
        return self._vectors(params, "item", gathered["item"], known, None)

    def _known_users(self, params: Params, gathered: Gathered, batch: Batch, features: Features) -> Known:
        known = self._known(params, "user", gathered, "user", _base.users_of(batch), features)
        if not self.history:
            return known
        met = _base.take(features.item_row, _base.history_of(batch)) > 0
        total = _standardised(params, "item", gathered["history"], met).sum(axis=1)
        return known._replace(pooled=total / jnp.maximum(met.sum(axis=1).astype(jnp.float32), 1.0)[:, None])

    def _known(
        self,
        params: Params,
        side: str,
        gathered: Gathered,
        prefix: str,
        index: Int32[jax.Array, "*index"],
        features: Features,
    ) -> Known:
        trained = _base.take(_rows(features, side), index) > 0
        content = self.content(side)
        if content.width:
            inputs, described = content.inputs(prefix, gathered, index, features), content.described(index, features)
        else:
            inputs, described = jnp.zeros((*index.shape, 0), jnp.float32), jnp.zeros_like(trained)
        return Known(_standardised(params, side, gathered[prefix], trained), trained, inputs, described, None)

    def _vectors(
        self, params: Params, side: str, own: Float[jax.Array, "*index dim"], known: Known, key: Any
    ) -> Float[jax.Array, "*index dim"]:
        """Vectors in the backbone's own unit; those that are kept are its, bit for bit."""
        head: Head | None = getattr(self, side)
        mean, deviation = _statistics(params, side, own.ndim)
        made = jnp.zeros_like(own) if head is None else head.vectors(params[side], known, key=key)
        vectors = mean + deviation * made
        if head is None or head.keeps:
            return jnp.where(known.trained[..., None], own, vectors)
        return vectors

    def _from_backbone(
        self,
        params: Params,
        gathered: Gathered,
        user: Known,
        items: dict[str, Known],
        scores: Float[jax.Array, "batch columns"],
        fields: dict[str, Int32[jax.Array, "..."]],
        batch: Batch,
    ) -> Float[jax.Array, ""]:
        """Squared distance of the scores from the backbone's, over the variance of scores of its vectors."""

        def own(side: str, prefix: str, known: Known) -> jax.Array:
            mean, _ = _statistics(params, side, gathered[prefix].ndim)
            return jnp.where(known.trained[..., None], gathered[prefix], mean)

        vectors = {name: own("item", name, known) for name, known in items.items()}
        target = _base.pair_scores(own("user", "user", user), vectors.get("item"), vectors.get("shared"))
        columns = [jnp.broadcast_to(index > 0, (len(scores), index.shape[-1])) for index in _grids(fields)]
        weight = jnp.concatenate(columns, axis=1).astype(jnp.float32) * _weight(batch, len(scores))[:, None]
        unit = params["backbone"]["user"]["deviation"] * params["backbone"]["item"]["deviation"]
        return mse(scores, target, weight=weight) / (self.dim * unit**2)

    def _from_vectors(
        self,
        params: Params,
        user: Known,
        items: dict[str, Known],
        fields: dict[str, Int32[jax.Array, "..."]],
        batch: Batch,
    ) -> Float[jax.Array, ""]:
        """Squared distance of what content is mapped to from the vectors, over their variance; users plus items."""
        weight = _weight(batch, len(user.trained))
        total = jnp.zeros((), jnp.float32)
        weights = {"item": weight[:, None], "shared": jnp.ones((1,), jnp.float32)}
        for side, parts in (("user", [(user, weight)]), ("item", [(items[name], weights[name]) for name in fields])):
            head: Head | None = getattr(self, side)
            rows: list[tuple[jax.Array, ...]] = []
            for known, of_row in parts:
                mapped = None if head is None else head.mapped(params[side], known)
                if mapped is not None:
                    counts = jnp.where(known.trained & known.described, of_row, 0.0)[..., None]
                    flat = (mapped, known.vector, jnp.broadcast_to(counts, mapped.shape))
                    rows.append(tuple(each.reshape(-1, self.dim) for each in flat))
            if rows:
                mapped, vector, counts = (jnp.concatenate(each) for each in zip(*rows, strict=True))
                total += mse(mapped, vector, weight=counts)
        return total


def _rows(features: Features, side: str) -> Int32[Array, " entities"]:
    return features.user_row if side == "user" else features.item_row


def _statistics(params: Params, side: str, ndim: int) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of the trained vectors, the mean with as many axes as what it is compared with."""
    of_side = params["backbone"][side]
    mean = of_side["mean"]
    return mean.reshape((1,) * (ndim - 1) + mean.shape), of_side["deviation"]


def _standardised(
    params: Params, side: str, vectors: Float[jax.Array, "*index dim"], trained: Bool[jax.Array, "*index"]
) -> Float[jax.Array, "*index dim"]:
    mean, deviation = _statistics(params, side, vectors.ndim)
    return jnp.where(trained[..., None], (vectors - mean) / deviation, 0.0)


def _grids(fields: dict[str, Int32[jax.Array, "..."]]) -> list[Int32[jax.Array, "rows columns"]]:
    return [index if index.ndim == 2 else index[None, :] for index in fields.values()]


def _weight(batch: Batch, size: int) -> Float[jax.Array, " batch"]:
    return jnp.ones((size,), jnp.float32) if batch.weight is None else jnp.asarray(batch.weight).astype(jnp.float32)
