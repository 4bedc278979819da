"""What makes a vector of content over a trained recommender: a map, a bridge between domains, DropoutNet, Heater.

Heads work on *standardised* vectors: less the mean of the trained ones, divided by their deviation. So 0 is the average
entity, and a network's inputs and outputs are of order one whatever was trained.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Key

from jaxrec._types import Params
from jaxrec.models._base import normal
from jaxrec.models._content import init_mlp, mlp


class Known(NamedTuple):
    """What is known of some entities of one side."""

    vector: Float[jax.Array, "*index dim"]  # of the backbone, standardised; 0 where it has none
    trained: Bool[jax.Array, "*index"]  # whether it has one
    content: Float[jax.Array, "*index width"]  # width 0 for a side without features
    described: Bool[jax.Array, "*index"]  # whether any feature says more than that nothing is known
    pooled: Float[jax.Array, "*index dim"] | None  # mean standardised vector of the history, 0 where it is empty


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContentMap:
    """A perceptron from content to the backbone's vector; who was trained keeps the backbone's own.

    Args:
      hidden: widths of the hidden layers; ``()`` for a linear map.
      code_dim: width of the embedding of a category or label.

    References:
      Gantner et al., Learning attribute-to-feature mappings for cold-start recommendations, ICDM 2010 (the map that
      minimises the squared error of the vectors).
    """

    hidden: tuple[int, ...] = (128,)
    code_dim: int = 16

    keeps = True  # not a field: of the class

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def init(self, key: Key[jax.Array, ""], *, content: int, dim: int) -> Params:
        """Parameters for content and vectors of these widths."""
        if not content:
            raise ValueError("A ContentMap maps content, and this side has no features. Name them in the schema.")
        return {"mlp": init_mlp(key, (content, *self.hidden, dim), 1.0), "bias": jnp.zeros((dim,), jnp.float32)}

    def mapped(self, params: Params, known: Known) -> Float[jax.Array, "*index dim"]:
        """What the content alone says of the vector."""
        return _biased(mlp(params["mlp"], known.content), params["bias"])

    def vectors(self, params: Params, known: Known, *, key: Any = None) -> Float[jax.Array, "*index dim"]:
        """Standardised vectors; those of entities that were trained are not used."""
        return jnp.where(known.described[..., None], self.mapped(params, known), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropoutNet:
    """A perceptron of the backbone's vector and the content, trained to do without the vector.

    Who was not trained is fed the mean of the history's vectors where the side has one, else zeros. While training
    (``key`` given) so is everybody with probability ``dropout``; of those with a history half are fed zeros.

    Args:
      hidden: widths of the hidden layers.
      dropout: probability, in [0, 1].
      code_dim: width of the embedding of a category or label.

    References:
      Volkovs, Yu and Poutanen, DropoutNet: addressing cold start in recommender systems, NeurIPS 2017 (input dropout
      and the mean-of-history transform; ReLU without batch normalisation).
    """

    hidden: tuple[int, ...] = (256,)
    dropout: float = 0.5
    code_dim: int = 16

    keeps = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _need_probability("dropout", self.dropout)

    def init(self, key: Key[jax.Array, ""], *, content: int, dim: int) -> Params:
        """Parameters for content and vectors of these widths."""
        widths = (dim + content, *self.hidden, dim)
        return {"mlp": init_mlp(key, widths, 1.0), "bias": jnp.zeros((dim,), jnp.float32)}

    def mapped(self, params: Params, known: Known) -> None:
        """There is no map of content alone."""

    def vectors(self, params: Params, known: Known, *, key: Any = None) -> Float[jax.Array, "*index dim"]:
        """Standardised vectors."""
        kept, instead = known.trained, jnp.zeros_like(known.vector) if known.pooled is None else known.pooled
        if key is not None:
            key_drop, key_kind = jax.random.split(key)
            kept &= jax.random.bernoulli(key_drop, 1.0 - self.dropout, kept.shape)
            if known.pooled is not None:
                instead = jnp.where(jax.random.bernoulli(key_kind, 0.5, kept.shape)[..., None], instead, 0.0)
        vector = jnp.where(kept[..., None], known.vector, instead)
        return _biased(mlp(params["mlp"], jnp.concatenate([vector, known.content], axis=-1)), params["bias"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heater:
    r"""A mixture of experts maps content to the backbone's space, and a perceptron refines either vector.

    .. math:: m(x) = \textstyle\sum_t \mathrm{softmax}(G x)_t \, \mathrm{MLP}_t(x), \quad
        v' = \mathrm{MLP}(v \text{ or } m(x))

    Who was trained is fed the backbone's vector :math:`v`, who was not :math:`m(x)`, or zeros without content. While
    training (``key`` given) everybody with content is fed :math:`m(x)` with probability ``share``. A side without
    features has no experts.

    Args:
      experts: number of perceptrons.
      hidden: widths of their hidden layers.
      refine: widths of the refining perceptron's.
      share: probability, in [0, 1].
      code_dim: width of the embedding of a category or label.

    References:
      Zhu et al., Recommendation for new users and new items via randomized training and mixture-of-experts
      transformation, SIGIR 2020 (hyperbolic tangents as there; experts weighted by a softmax, no batch normalisation,
      no bound on the mixture).
    """

    experts: int = 5
    hidden: tuple[int, ...] = (128,)
    refine: tuple[int, ...] = (128,)
    share: float = 0.5
    code_dim: int = 16

    keeps = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "refine", tuple(self.refine))
        _need_probability("share", self.share)
        if self.experts < 1:
            raise ValueError(f"Expected experts >= 1, got {self.experts}.")

    def init(self, key: Key[jax.Array, ""], *, content: int, dim: int) -> Params:
        """Parameters for content and vectors of these widths."""
        key_refine, key_gate, *keys = jax.random.split(key, 2 + self.experts)
        params: Params = {
            "refine": init_mlp(key_refine, (dim, *self.refine, dim), 1.0),
            "bias": jnp.zeros((dim,), jnp.float32),
        }
        if content:
            experts = [init_mlp(each, (content, *self.hidden, dim), 1.0) for each in keys]
            params["experts"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts)
            params["gate"] = init_mlp(key_gate, (content, self.experts), 1.0)
        return params

    def mapped(self, params: Params, known: Known) -> Float[jax.Array, "*index dim"] | None:
        """What the content alone says of the vector."""
        if not known.content.shape[-1]:
            return None
        each = jax.vmap(lambda expert: mlp(expert, known.content, jnp.tanh))(params["experts"])
        return jnp.einsum("...t,t...d->...d", jax.nn.softmax(mlp(params["gate"], known.content)), each)

    def vectors(self, params: Params, known: Known, *, key: Any = None) -> Float[jax.Array, "*index dim"]:
        """Standardised vectors."""
        vector, mapped = known.vector, self.mapped(params, known)
        if mapped is not None:
            replaced = ~known.trained
            if key is not None:
                replaced |= jax.random.bernoulli(key, self.share, replaced.shape)
            vector = jnp.where((replaced & known.described)[..., None], mapped, vector)
        return _biased(mlp(params["refine"], vector, jnp.tanh), params["bias"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bridge:
    r"""A linear map of the first half of the content, of which each entity has a matrix made from the second half.

    .. math:: v = b + s \bigl(W + M(h)\bigr), \quad x = [s, h]

    with :math:`M` a perceptron whose output is laid out as a matrix, 0 at the start. See ``transfer.ptupcdr``.

    Args:
      hidden: widths of the perceptron's hidden layers; ``()`` makes the matrix linear in :math:`h`.
      code_dim: not used: the content has no categories.
      keeps: whether who was trained keeps the backbone's vector. Not while the bridge is trained by scores.

    References:
      Zhu et al., Personalized transfer of user preferences for cross-domain recommendation, WSDM 2022 (the meta
      network; here beside a map common to all).
    """

    hidden: tuple[int, ...] = (64,)
    code_dim: int = 0
    keeps: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def init(self, key: Key[jax.Array, ""], *, content: int, dim: int) -> Params:
        """Parameters for content and vectors of these widths."""
        width, odd = divmod(content, 2)
        if not width or odd:
            raise ValueError(f"A Bridge reads two vectors of one width side by side, got content of width {content}.")
        key_kernel, key_meta = jax.random.split(key)
        return {
            "kernel": normal(key_kernel, (width, dim), width**-0.5),
            "meta": _last_zero(init_mlp(key_meta, (width, *self.hidden, width * dim), 1.0)),
            "bias": jnp.zeros((dim,), jnp.float32),
        }

    def mapped(self, params: Params, known: Known) -> Float[jax.Array, "*index dim"]:
        """What the content alone says of the vector."""
        kernel = params["kernel"]
        vector, taste = jnp.split(known.content, 2, axis=-1)
        own = mlp(params["meta"], taste).reshape(*taste.shape[:-1], *kernel.shape)
        common = jnp.einsum("...i,io->...o", vector, kernel)
        return _biased(common + jnp.einsum("...i,...io->...o", vector, own), params["bias"])

    def vectors(self, params: Params, known: Known, *, key: Any = None) -> Float[jax.Array, "*index dim"]:
        """Standardised vectors; 0 for an entity without content."""
        return jnp.where(known.described[..., None], self.mapped(params, known), 0.0)


Head = ContentMap | DropoutNet | Heater | Bridge


def _last_zero(layers: Params) -> Params:
    last = str(len(layers) - 1)
    return {**layers, last: {"kernel": jnp.zeros_like(layers[last]["kernel"])}}


def _biased(vectors: jax.Array, bias: jax.Array) -> jax.Array:
    return vectors + bias.reshape((1,) * (vectors.ndim - 1) + bias.shape)


def _need_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"Expected {name} in [0, 1], got {value}. It is a probability.")
