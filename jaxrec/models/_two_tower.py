"""Two towers: a user vector and an item vector, each from an id, content features and, for users, a history."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup
from jaxrec.models._content import Codes, Content, Pooling, init_mlp, mlp
from jaxrec.models._fusion import Fusion, Modalities, modalities_for


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTower:
    r"""Inner product of a user tower and an item tower that mix an id embedding with content.

    .. math::
        v_i &= b_I + e_i + \mathrm{MLP}_I(x_i) \\
        u &= b_U + e_u + \mathrm{MLP}_U(x_u) + \textstyle\frac{1}{|H|} \sum_{j \in H} v_j W

    The id embedding :math:`e` is a learned correction to what the content :math:`x` and the history :math:`H`
    say. It starts at zero where there is content or a history to stand in for it, and stays zero for an
    unknown id, so an unknown user or item is scored from content, and without content as the average one.
    While training (``key`` given) an id is left out with probability ``id_dropout``, so that content and history
    learn to do without it.

    Args:
      user_rows: rows of the user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of both towers' output.
      hidden: widths of the hidden layers of both perceptrons; ``()`` makes them linear.
      user_dense: width of ``Features.user_dense``.
      item_dense: width of ``Features.item_dense``.
      user_codes: name and number of rows of each array in ``Features.user_codes``.
      item_codes: likewise for items.
      code_dim: width of the embedding of a category or label.
      history: longest history pooled; 0 for towers without one. A user with a history needs no id.
      id_dropout: probability, in [0, 1].
      fusion: how the features of one side become the perceptron's input: ``"concatenation"`` lays them side by side,
        a missing one as zeros; ``"gated"`` and ``"attention"`` project each modality (a vector, a run of numbers, a
        categorical feature) to ``dim`` numbers and weigh those that an entity has, as if the others did not exist.
      pooling: of an entity's labels: ``"mean"``, or ``"sqrtn"``, their sum over the root of their number, which suits
        many labels that each say something of their own, such as tags.
      user_modalities: name and width of each part of ``Features.user_dense``, in order; none for concatenation.
      item_modalities: likewise for items.

    References:
      Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019 (two
      towers; here the id is added to the content's output instead of concatenated with its input). Volkovs, Yu
      and Poutanen, DropoutNet: addressing cold start in recommender systems, NeurIPS 2017 (leaving ids out).
      Arevalo et al., Gated multimodal units for information fusion, ICLR workshop 2017, and Yang et al., Hierarchical
      attention networks for document classification, NAACL 2016 (fusion).
    """

    user_rows: int
    item_rows: int
    dim: int = 64
    hidden: tuple[int, ...] = (128,)
    user_dense: int = 0
    item_dense: int = 0
    user_codes: Codes = ()
    item_codes: Codes = ()
    code_dim: int = 16
    history: int = 0
    id_dropout: float = 0.1
    fusion: Fusion = "concatenation"
    pooling: Pooling = "mean"
    user_modalities: Modalities = ()
    item_modalities: Modalities = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _base.need_positive(dim=self.dim)
        _ = self._user, self._item  # which check how they are fused
        if not 0.0 <= self.id_dropout <= 1.0:
            raise ValueError(f"Expected id_dropout in [0, 1], got {self.id_dropout}. It is a probability.")

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "TwoTower":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        sizes = _base.sizes_of(data)
        return cls(**_base.sized(cls, data), **modalities_for(sizes, options.get("fusion", "concatenation")), **options)

    @property
    def tables(self) -> dict[str, str]:
        ids = {"user/embedding": "user", "item/embedding": "item"}
        return ids | self._user.tables | self._item.tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    @property
    def _user(self) -> Content:
        return self._content("user", self.user_dense, self.user_codes, self.user_modalities)

    @property
    def _item(self) -> Content:
        return self._content("item", self.item_dense, self.item_codes, self.item_modalities)

    def _content(self, side: str, dense: int, codes: Codes, modalities: Modalities) -> Content:
        return Content(side, dense, codes, self.code_dim, self.fusion, modalities, self.dim, self.pooling)

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_user, key_item, key_bias = jax.random.split(key, 3)
        user = self._init_tower(key_user, self._user, self.user_rows, stand_in=self.history > 0)
        item = self._init_tower(key_item, self._item, self.item_rows, stand_in=False)
        # Without any user input the towers would start at a saddle: both biases zero, no gradient for either.
        user["bias"] = _base.normal(key_bias, (self.dim,), self.dim**-0.5)
        if self.history:
            user["history"] = {"kernel": jnp.eye(self.dim, dtype=jnp.float32)}
        return {"user": user, "item": item}

    def _init_tower(self, key: Key[jax.Array, ""], content: Content, rows: int, *, stand_in: bool) -> Params:
        key_id, key_codes, key_mlp, key_fusion = jax.random.split(key, 4)
        scale = self.dim**-0.5
        stand_in = stand_in or content.width > 0
        table = _base.embedding(key_id, rows, self.dim, 0.0 if stand_in else scale)
        tower: Params = {"embedding": table, "bias": jnp.zeros((self.dim,), jnp.float32)}
        if content.codes:
            tower["features"] = content.init(key_codes, 1.0)
        tower |= content.init_fusion(key_fusion)
        if content.width:
            tower["mlp"] = init_mlp(key_mlp, (content.width, *self.hidden, self.dim), scale)
        return tower

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self._user_lookups(batch, features)
        for name, items in _base.item_fields(batch).items():
            found |= self._item.lookups_with_id(name, items, features)
        return found

    def _user_lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self._user.lookups_with_id("user", _base.users_of(batch), features)
        if self.history:
            found |= self._item.lookups_with_id("history", _base.history_of(batch), features)
        return found

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        keys: dict[str, Any] = dict.fromkeys(("user", "history", "item", "shared"))
        if key is not None and self.id_dropout:
            keys = dict(zip(keys, jax.random.split(key, len(keys)), strict=True))
        user = self._user_tower(params, gathered, batch, features, keys=keys)
        items = {
            name: self._item_tower(params, gathered, name, index, features, key=keys[name])
            for name, index in _base.item_fields(batch).items()
        }
        return _base.pair_scores(user, items.get("item"), items.get("shared"))

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch dim"]:
        gathered = _base.gather(params, self._user_lookups(batch, features))
        return self._user_tower(params, gathered, batch, features, keys=dict.fromkeys(("user", "history")))

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items dim"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, self._item.lookups_with_id("item", items, features))
        return self._item_tower(params, gathered, "item", items, features, key=None)

    def _user_tower(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, keys: dict[str, Any]
    ) -> Float[jax.Array, "batch dim"]:
        tower = params["user"]
        vector = self._leave_out(gathered["user"], keys["user"]) + tower["bias"][None, :]
        if self._user.width:
            vector += mlp(tower["mlp"], self._user.inputs("user", gathered, _base.users_of(batch), features, tower))
        if self.history:
            touched = _base.history_of(batch)
            known = (touched > 0).astype(jnp.float32)
            vectors = self._item_tower(params, gathered, "history", touched, features, key=keys["history"])
            pooled = jnp.einsum("bld,bl->bd", vectors, known) / jnp.maximum(known.sum(1, keepdims=True), 1.0)
            vector += pooled @ tower["history"]["kernel"]
        return vector

    def _item_tower(
        self, params: Params, gathered: Gathered, prefix: str, items: jax.Array, features: Features, *, key: Any
    ) -> Float[jax.Array, "*items dim"]:
        tower = params["item"]
        vector = self._leave_out(gathered[prefix], key)
        if self._item.width:
            vector += mlp(tower["mlp"], self._item.inputs(prefix, gathered, items, features, tower))
        return vector + tower["bias"].reshape((1,) * (vector.ndim - 1) + (self.dim,))

    def _leave_out(self, vectors: Float[jax.Array, "*batch dim"], key: Any) -> Float[jax.Array, "*batch dim"]:
        if key is None:
            return vectors
        keep = jax.random.bernoulli(key, 1.0 - self.id_dropout, (*vectors.shape[:-1], 1))
        return jnp.where(keep, vectors, 0.0)
