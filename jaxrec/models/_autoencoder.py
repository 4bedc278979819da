"""Variational autoencoder of histories: a user is what a perceptron makes of the items that they touched."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored


class Posterior(NamedTuple):
    """What is known of each latent number: a Gaussian of its own."""

    mean: Float[jax.Array, "batch latent"]
    log_variance: Float[jax.Array, "batch latent"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalAutoencoder:
    r"""Autoencoder with a multinomial likelihood (Mult-VAE): history in, a distribution over the catalogue out.

    .. math::
        h &= \tanh\bigl(b_E + |H|^{-1/2} \textstyle\sum_{j \in H} e_j\bigr), \quad
        \mu = W_\mu^\top h + b_\mu, \quad \log \sigma^2 = W_\sigma^\top h + b_\sigma \\
        z &= \mu + \sigma \odot \epsilon, \quad s_{ui} = c_i + v_i^\top \tanh(W_D^\top z + b_D)

    The first layer is a table looked up by the history, which stands for a product with the history's multi-hot vector
    of unit length; the last layer is another table. So both are trained row by row, and the score is an inner product.
    To the loss comes :math:`\beta` times the mean divergence of :math:`\mathcal N(\mu, \sigma^2)` from the standard
    Gaussian. While training (``key`` given) items of the history are left out with probability ``dropout``, and
    :math:`\epsilon` is drawn; else :math:`\epsilon = 0`. User ids are not read: somebody new is served from their
    history alone, and a user without any as training met empty histories. An item without training has the mean of the
    trained items' rows, read or scored.

    In training an example is a user, whose items are input and target, and the loss ``"softmax"`` is over the whole
    catalogue, as in the paper. A step takes as many users as have ``batch_size`` items together, and memory for their
    scores of all items. Where that is too much, ``histories="subset"`` makes examples of interactions, whose input is a
    random number of the user's other items, with a sampled softmax (``"in_batch_softmax"``): slower by the length of
    the histories. There :math:`\beta`, which else weighs the divergence against the likelihood of all interactions of
    a user, weighs it against that of one, and should be as many times smaller. Wherever a history is read, there and
    when somebody is served, an item that it has twice counts twice.

    Args:
      item_rows: rows of the item tables, the unknown's row 0 and spare capacity included.
      dim: width of both tables, which is that of the hidden layers.
      latent: width of :math:`z`.
      history: longest history read when users are served, of which the latest count; training by users reads all items.
      dropout: probability, in [0, 1).
      beta: weight of the divergence, >= 0.
      anneal: steps during which the weight grows from 0 to ``beta``, linearly; 0 for none. Every ``fit`` starts anew.
      histories: ``"users"`` or ``"subset"``, see above.

    Examples:
      >>> model = VariationalAutoencoder(item_rows=5, dim=6, latent=2, history=3)
      >>> params = model.init(jax.random.key(0))
      >>> params["item"]["encoder"]["embedding"].shape, params["autoencoder"]["mean"]["kernel"].shape
      ((5, 6), (6, 2))

    References:
      Liang, Krishnan, Hoffman and Jebara, Variational autoencoders for collaborative filtering, WWW 2018 (one hidden
      layer on either side; annealing as there, up to ``beta``).
    """

    item_rows: int
    dim: int = 200
    latent: int = 64
    history: int = 100
    dropout: float = 0.5
    beta: float = 0.2
    anneal: int = 0
    histories: Literal["users", "subset"] = "users"

    def __post_init__(self) -> None:
        _base.need_positive(dim=self.dim, latent=self.latent)
        if self.history < 1:
            raise ValueError(f"Expected history >= 1, got {self.history}. Histories are all that the model reads.")
        if self.histories not in ("users", "subset"):
            raise ValueError(f"Expected histories 'users' or 'subset', got {self.histories!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"Expected dropout in [0, 1), got {self.dropout}. It is a probability.")
        if not self.beta >= 0.0 or self.anneal < 0:
            raise ValueError(
                f"Expected beta >= 0 and anneal >= 0, a number of steps, got beta={self.beta}, anneal={self.anneal}."
            )

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "VariationalAutoencoder":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(item_rows=_base.sizes_of(data).item_rows, **options)

    @property
    def tables(self) -> dict[str, str]:
        return dict.fromkeys(("item/encoder/embedding", "item/decoder/embedding", "item/decoder/bias"), "item")

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_in, key_mean, key_variance, key_decoder, key_out = jax.random.split(key, 5)

        def dense(key: Key[jax.Array, ""], fan_in: int, fan_out: int) -> Params:
            kernel = _base.normal(key, (fan_in, fan_out), fan_in**-0.5)
            return {"kernel": kernel, "bias": jnp.zeros((fan_out,), jnp.float32)}

        return {
            "item": {
                # Small: what is left of it in rows that few users touched would be noise in a short history.
                "encoder": {"embedding": _base.embedding(key_in, self.item_rows, self.dim, 0.03)},
                "decoder": {
                    "embedding": _base.embedding(key_out, self.item_rows, self.dim, self.dim**-0.5),
                    "bias": jnp.zeros((self.item_rows, 1), jnp.float32),
                },
            },
            "autoencoder": {
                "bias": jnp.zeros((self.dim,), jnp.float32),
                "mean": dense(key_mean, self.dim, self.latent),
                "log_variance": dense(key_variance, self.dim, self.latent),
                "decoder": dense(key_decoder, self.latent, self.dim),
            },
        }

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        if _of_users(batch):
            rows = _base.take(features.item_row, _base.item_fields(batch)["shared"])
            return {"catalogue": Lookup("item/encoder/embedding", rows)} | _item_lookups("shared", rows)
        found = self._history_lookup(_base.history_of(batch), features)
        for name, items in _base.item_fields(batch).items():
            found |= _item_lookups(name, _base.take(features.item_row, items))
        return found

    def score(self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None) -> Scored:
        key_drop, key_noise = (None, None) if key is None else jax.random.split(key)
        if _of_users(batch):
            x = self._kept(jnp.asarray(batch.target), key=key_drop)
            posterior = self._posterior(params, x @ gathered["catalogue"])
        else:
            posterior = self._encode(params, gathered, _base.history_of(batch), key=key_drop)
        z = posterior.mean
        if key_noise is not None:
            z += jnp.exp(0.5 * posterior.log_variance) * jax.random.normal(key_noise, z.shape, jnp.float32)
        items = {name: _item_vectors(gathered, name) for name in _base.item_fields(batch)}
        scores = _base.pair_scores(_decode(params, z), items.get("item"), items.get("shared"))
        weight = jnp.ones(z.shape[:1], jnp.float32) if batch.weight is None else jnp.asarray(batch.weight)
        mean = (weight * _divergence(posterior)).sum() / jnp.maximum(weight.sum(), jnp.finfo(jnp.float32).tiny)
        return Scored(scores, self.beta * mean, self.anneal)

    apply = _base.apply

    def encode(self, params: Params, history: Int[Array, "batch length"], features: Features) -> Posterior:
        """The latent Gaussian of each history, without dropout.

        Args:
          params: the whole parameter tree.
          history: entity indices in any order, 0 for padding.
          features: arrays by entity.

        Returns:
          ``mean`` and ``log_variance``, float32 ``[batch, latent]``.
        """
        history = _base.as_index(history)
        return self._encode(params, _base.gather(params, self._history_lookup(history, features)), history, key=None)

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch vector"]:
        return _decode(params, self.encode(params, _base.history_of(batch), features).mean)

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items vector"]:
        return _item_vectors(_base.gather(params, _item_lookups("item", _base.take(features.item_row, items))), "item")

    def _history_lookup(self, history: Int[Array, "batch length"], features: Features) -> dict[str, Lookup]:
        return {"history": Lookup("item/encoder/embedding", _base.take(features.item_row, history))}

    def _encode(
        self, params: Params, gathered: Gathered, history: Int[Array, "batch length"], *, key: Any
    ) -> Posterior:
        x = self._kept(jnp.asarray(history > 0, jnp.float32), key=key)
        return self._posterior(params, jnp.einsum("bld,bl->bd", gathered["history"], x))

    def _kept(self, known: Float[jax.Array, "batch items"], *, key: Any) -> Float[jax.Array, "batch items"]:
        """Of unit length, and with dropout if there is a key."""
        x = known * jax.lax.rsqrt(jnp.maximum(known.sum(axis=1, keepdims=True), 1.0))
        if key is None or not self.dropout:
            return x
        return jnp.where(jax.random.bernoulli(key, 1.0 - self.dropout, x.shape), x / (1.0 - self.dropout), 0.0)

    def _posterior(self, params: Params, pooled: Float[jax.Array, "batch dim"]) -> Posterior:
        layers = params["autoencoder"]
        h = jnp.tanh(pooled + layers["bias"].astype(jnp.float32)[None, :])
        return Posterior(_dense(layers["mean"], h), _dense(layers["log_variance"], h))


def _of_users(batch: Batch) -> bool:
    """Whether the batch is one of users, each with a target for every item."""
    return batch.history is None and batch.target is not None and np.ndim(batch.target) == 2


def _item_lookups(name: str, rows: jax.Array) -> dict[str, Lookup]:
    return {name: Lookup("item/decoder/embedding", rows), f"{name}_bias": Lookup("item/decoder/bias", rows)}


def _item_vectors(gathered: Gathered, name: str) -> Float[jax.Array, "*items vector"]:
    return jnp.concatenate([gathered[name], gathered[f"{name}_bias"]], axis=-1)


def _decode(params: Params, z: Float[jax.Array, "batch latent"]) -> Float[jax.Array, "batch vector"]:
    hidden = jnp.tanh(_dense(params["autoencoder"]["decoder"], z))
    return jnp.concatenate([hidden, jnp.ones((hidden.shape[0], 1), jnp.float32)], axis=1)


def _divergence(posterior: Posterior) -> Float[jax.Array, " batch"]:
    """From the standard Gaussian, in nats."""
    mean, log_variance = posterior
    return 0.5 * (jnp.exp(log_variance) + jnp.square(mean) - 1.0 - log_variance).sum(axis=1)


def _dense(layer: Params, x: Float[jax.Array, "batch width"]) -> Float[jax.Array, "batch out"]:
    return x @ layer["kernel"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)[None, :]
