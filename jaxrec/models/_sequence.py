"""A causal transformer over the items that a user touched, in order: what comes next?"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Int32, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup
from jaxrec.models._content import Codes, Content, init_mlp, mlp
from jaxrec.models._fusion import Fusion, Modalities, modalities_for


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceTransformer:
    r"""Inner product of an item vector and a user vector that self-attention makes of the user's history.

    .. math::
        v_i &= e_i + \mathrm{MLP}(x_i), \quad z_t = \sqrt{d}\, v_{h_t} + p_t \\
        z &\leftarrow z + \mathrm{Attention}(\mathrm{Norm}(z)), \quad
        z \leftarrow z + W_2^\top \mathrm{gelu}(W_1^\top \mathrm{Norm}(z)) \\
        s_{ui} &= \mathrm{Norm}(z_T)^\top v_i

    Position :math:`t` attends to itself and to those before it, so each position predicts what follows it, and one
    pass trains them all. :math:`T` is the last item of the history; a user without any gets a learned vector. The order
    within ``Batch.history`` counts, and 0 in it is padding, which goes behind. The user's id is not read: somebody new
    is served from interactions alone. A new item has no :math:`e` of its own: it is scored, and read in a history, from
    its content :math:`x`, and without content as the mean of the trained items.

    Args:
      item_rows: rows of the item table, the unknown's row 0 and spare capacity included.
      dim: width of all vectors, a multiple of ``heads``.
      layers: blocks of attention and feed-forward layer (4 times as wide).
      heads: of each attention.
      history: longest history read.
      dropout: probability, in [0, 1), with which numbers of the input and of each block's two outputs are left out
        while training (``key`` given).
      histories: what ``fit`` makes of the data. ``"sequences"`` trains on every position of users' sequences at once,
        ``"before"`` on single rows with the items before them, which costs a pass for each row. See ``data.Batches``.
      hidden: widths of the hidden layers of the content's perceptron; ``()`` makes it linear.
      item_dense: width of ``Features.item_dense``.
      item_codes: name and number of rows of each array in ``Features.item_codes``.
      code_dim: width of the embedding of a category or label.
      fusion: how an item's features become the perceptron's input; see ``TwoTower``.
      item_modalities: name and width of each part of ``Features.item_dense``, in order; none for concatenation.

    References:
      Kang and McAuley, Self-attentive sequential recommendation, ICDM 2018 (SASRec; here with normalisation before each
      layer, GELU, heads, a feed-forward layer 4 times as wide, padding behind, and item content).
    """

    item_rows: int
    dim: int = 64
    layers: int = 2
    heads: int = 2
    history: int = 50
    dropout: float = 0.2
    histories: Literal["before", "sequences"] = "sequences"
    hidden: tuple[int, ...] = ()
    item_dense: int = 0
    item_codes: Codes = ()
    code_dim: int = 16
    fusion: Fusion = "concatenation"
    item_modalities: Modalities = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _base.need_positive(dim=self.dim)
        _ = self._item  # which checks how it is fused
        if self.history < 1 or self.heads < 1 or self.dim % self.heads:
            raise ValueError(
                f"Expected history >= 1 and a dim that is a multiple of heads >= 1, got history={self.history}, "
                f"dim={self.dim}, heads={self.heads}."
            )
        if self.histories not in ("before", "sequences"):
            raise ValueError(f"Expected histories 'before' or 'sequences', got {self.histories!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"Expected dropout in [0, 1), got {self.dropout}. It is a probability.")

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "SequenceTransformer":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        sizes = _base.sizes_of(data)
        modalities = modalities_for(sizes, options.get("fusion", "concatenation"))
        modalities.pop("user_modalities", None)
        return cls(**_base.sized(cls, data), **modalities, **options)

    @property
    def tables(self) -> dict[str, str]:
        return {"item/embedding": "item"} | self._item.tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero" if self._item.width else "mean"

    @property
    def _item(self) -> Content:
        return Content(
            "item", self.item_dense, self.item_codes, self.code_dim, self.fusion, self.item_modalities, self.dim
        )

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_id, key_codes, key_mlp, key_position, key_user, *keys, key_fusion = jax.random.split(key, 6 + self.layers)
        scale = self.dim**-0.5
        item: Params = {
            "embedding": _base.embedding(key_id, self.item_rows, self.dim, 0.0 if self._item.width else scale)
        }
        if self.item_codes:
            item["features"] = self._item.init(key_codes, 1.0)
        item |= self._item.init_fusion(key_fusion)
        if self._item.width:
            item["mlp"] = init_mlp(key_mlp, (self._item.width, *self.hidden, self.dim), scale)
        return {
            "item": item,
            "user": {"bias": _base.normal(key_user, (self.dim,), scale)},
            "position": {"embedding": _base.normal(key_position, (self.history, self.dim), scale)},
            "blocks": {str(depth): self._init_block(key_block) for depth, key_block in enumerate(keys)},
            "norm": self._init_norm(),
        }

    def _init_block(self, key: Key[jax.Array, ""]) -> Params:
        def dense(key: Key[jax.Array, ""], fan_in: int, fan_out: int, gain: float) -> Params:
            kernel = _base.normal(key, (fan_in, fan_out), gain * fan_in**-0.5)
            return {"kernel": kernel, "bias": jnp.zeros((fan_out,), jnp.float32)}

        keys = jax.random.split(key, 4)
        # What all blocks add to the residual stream is about as large as what comes in.
        out = (2 * self.layers) ** -0.5
        return {
            "attention": {
                "norm": self._init_norm(),
                "qkv": dense(keys[0], self.dim, 3 * self.dim, 1.0),
                "out": dense(keys[1], self.dim, self.dim, out),
            },
            "mlp": {
                "norm": self._init_norm(),
                "up": dense(keys[2], self.dim, 4 * self.dim, 2.0**0.5),
                "down": dense(keys[3], 4 * self.dim, self.dim, out),
            },
        }

    def _init_norm(self) -> Params:
        return {"scale": jnp.ones((self.dim,), jnp.float32), "bias": jnp.zeros((self.dim,), jnp.float32)}

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self._item.lookups_with_id("history", _base.history_of(batch), features)
        for name, items in _base.item_fields(batch).items():
            found |= self._item.lookups_with_id(name, items, features)
        return found

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "rows columns"]:
        """Of a batch with a row of ``item`` per user, or of a batch of sequences (see ``Batch``)."""
        history = _base.history_of(batch)
        states = self._states(params, gathered, history, features, key=key)
        sequences, length = history.shape
        rows = sequences if batch.item is None else batch.item.shape[0]
        if rows == sequences:
            users = self._last(params, states, history)
        elif rows == sequences * (length + 1):
            nothing = jnp.broadcast_to(params["user"]["bias"][None, None, :], (sequences, 1, self.dim))
            users = jnp.concatenate([nothing, states], axis=1).reshape(rows, self.dim)
        else:
            raise ValueError(
                f"Expected as many rows of items as the {sequences} histories, or {length + 1} for each of them (what "
                f"comes first, and what follows each of {length} positions), got {rows}."
            )
        items = {
            name: self._item_vectors(params, gathered, name, index, features)
            for name, index in _base.item_fields(batch).items()
        }
        return _base.pair_scores(users, items.get("item"), items.get("shared"))

    apply = _base.apply

    def encode(
        self, params: Params, history: Int[Array, "batch length"], features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch length dim"]:
        """The vector after each position, whose inner product with an item vector scores the item as the next one.

        Args:
          params: the whole parameter tree.
          history: entity indices in order; what stands at a padded position is of no use.
          features: arrays by entity.
          key: for dropout.
        """
        history = _base.as_index(history)
        gathered = _base.gather(params, self._item.lookups_with_id("history", history, features))
        return self._states(params, gathered, history, features, key=key)

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch dim"]:
        history = _base.history_of(batch)
        return self._last(params, self.encode(params, history, features), history)

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items dim"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, self._item.lookups_with_id("item", items, features))
        return self._item_vectors(params, gathered, "item", items, features)

    def _item_vectors(
        self, params: Params, gathered: Gathered, prefix: str, items: jax.Array, features: Features
    ) -> Float[jax.Array, "*items dim"]:
        vectors = gathered[prefix]
        if self._item.width:
            content = self._item.inputs(prefix, gathered, items, features, params["item"])
            vectors = vectors + mlp(params["item"]["mlp"], content)
        return vectors

    def _last(
        self, params: Params, states: Float[jax.Array, "batch length dim"], history: Int32[jax.Array, "batch length"]
    ) -> Float[jax.Array, "batch dim"]:
        """The state at the last known item of each history."""
        place = jnp.arange(1, history.shape[1] + 1, dtype=jnp.int32)[None, :]
        last = jnp.where(history > 0, place, 0).max(axis=1, keepdims=True)
        chosen = jnp.einsum("bld,bl->bd", states, (place == last).astype(jnp.float32))
        return jnp.where(last > 0, chosen, params["user"]["bias"][None, :])

    def _states(
        self,
        params: Params,
        gathered: Gathered,
        history: Int32[jax.Array, "batch length"],
        features: Features,
        *,
        key: Any,
    ) -> Float[jax.Array, "batch length dim"]:
        batch, length = history.shape
        if length > self.history:
            raise ValueError(
                f"The model reads histories of at most {self.history} items and was given {length}. Give the latest, "
                "or make the model with a larger `history`."
            )
        drop = _Dropout(self.dropout, key)
        position = params["position"]["embedding"][:length].astype(jnp.float32)
        vectors = self._item_vectors(params, gathered, "history", history, features)
        x = drop((self.dim**0.5 * vectors + position[None, :, :]).reshape(batch * length, self.dim))
        seen = jnp.tril(jnp.ones((length, length), bool))[None, :, :] & (history > 0)[:, None, :]
        seen |= jnp.eye(length, dtype=bool)[None, :, :]  # padding sees itself, or it would divide by zero
        # Activations are matrices [batch * length, dim], whose products are twice as fast on a CPU as those of rank 3.
        for depth in range(self.layers):
            block = params["blocks"][str(depth)]
            x = x + drop(self._attention(block["attention"], x, seen))
            x = x + drop(_feed_forward(block["mlp"], x))
        return _norm(params["norm"], x).reshape(batch, length, self.dim)

    def _attention(
        self, layer: Params, x: Float[jax.Array, "tokens dim"], seen: Bool[jax.Array, "batch length length"]
    ) -> Float[jax.Array, "tokens dim"]:
        batch, length, _ = seen.shape
        qkv = _dense(layer["qkv"], _norm(layer["norm"], x)).reshape(batch, length, 3, self.heads, -1)
        query, key, value = (qkv[:, :, part] for part in range(3))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (self.dim // self.heads) ** -0.5
        weights = jax.nn.softmax(jnp.where(seen[:, None, :, :], logits, -1e30), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return _dense(layer["out"], mixed.reshape(x.shape))


class _Dropout:
    """Leaves numbers out with some probability, other ones at each call; all are kept without a key."""

    def __init__(self, rate: float, key: Any) -> None:
        self._rate, self._key = rate, key if rate else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self._key is None:
            return x
        self._key, key = jax.random.split(self._key)
        return jnp.where(jax.random.bernoulli(key, 1.0 - self._rate, x.shape), x / (1.0 - self._rate), 0.0)


def _feed_forward(layer: Params, x: Float[jax.Array, "tokens dim"]) -> Float[jax.Array, "tokens dim"]:
    return _dense(layer["down"], jax.nn.gelu(_dense(layer["up"], _norm(layer["norm"], x))))


def _dense(layer: Params, x: Float[jax.Array, "tokens dim"]) -> Float[jax.Array, "tokens out"]:
    return x @ layer["kernel"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)[None, :]


def _norm(layer: Params, x: Float[jax.Array, "tokens dim"]) -> Float[jax.Array, "tokens dim"]:
    """Layer normalisation (Ba, Kiros and Hinton, 2016)."""
    centred = x - x.mean(axis=1, keepdims=True)
    unit = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=1, keepdims=True) + 1e-6)
    return unit * layer["scale"].astype(jnp.float32)[None, :] + layer["bias"].astype(jnp.float32)[None, :]
