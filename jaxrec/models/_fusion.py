"""Several modalities of one entity as one vector: text, images, numbers, labels, of which any may be missing."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Key

from jaxrec._types import Params, Sizes
from jaxrec.models._base import normal

Fusion = Literal["concatenation", "gated", "attention"]
Modalities = tuple[tuple[str, int], ...]
"""Name and width of each part of the dense features, in the order in which they stand there."""


def modalities_for(sizes: Sizes, fusion: Fusion) -> dict[str, Modalities]:
    """What ``for_data`` adds to a model that fuses; plain concatenation does not ask how columns belong together."""
    if fusion == "concatenation":
        return {}
    return {"user_modalities": sizes.user_modalities, "item_modalities": sizes.item_modalities}


def init_fusion(key: Key[jax.Array, ""], widths: Modalities, dim: int, fusion: Fusion) -> Params:
    """A projection for each modality, and gates or a query that start by treating all alike."""
    keys = jax.random.split(key, len(widths))

    def modality(key: Key[jax.Array, ""], width: int) -> Params:
        kernel = normal(key, (width, dim), width**-0.5)
        layer: Params = {"kernel": kernel, "bias": jnp.zeros((dim,), jnp.float32)}
        if fusion == "gated":
            layer["gate"] = {
                "own": {"kernel": jnp.zeros((dim, dim), jnp.float32)},
                "all": {"kernel": jnp.zeros((dim, dim), jnp.float32)},
                "bias": jnp.zeros((dim,), jnp.float32),
            }
        return layer

    params: Params = {
        "modalities": {name: modality(each, width) for each, (name, width) in zip(keys, widths, strict=True)},
        "none": {"bias": jnp.zeros((dim,), jnp.float32)},
    }
    if fusion == "attention":
        params["query"] = {"kernel": jnp.zeros((dim,), jnp.float32)}
    return params


def fuse(
    params: Params,
    fusion: Fusion,
    inputs: dict[str, Float[jax.Array, "*index _"]],
    present: dict[str, Bool[jax.Array, "*index"]],
) -> Float[jax.Array, "*index dim"]:
    r"""One vector of the modalities :math:`P` that an entity has.

    .. math::
        h_m &= W_m x_m + c_m \\
        \mathrm{gated} &= \textstyle\sum_{m \in P} \sigma(A_m t_m + B_m \sum_{n \in P} t_n + g_m) \odot t_m,
        \quad t_m = \tanh h_m \\
        \mathrm{attention} &= \textstyle\sum_{m \in P} a_m h_m,
        \quad a = \mathrm{softmax}_{m \in P}(q^\top t_m / \sqrt d)

    A modality that an entity lacks is as if it did not exist: it enters neither the sum nor anybody's gate or weight,
    and no gradient reaches its parameters. An entity without any gets a learned vector, at first zero.

    Args:
      params: from ``init_fusion``.
      fusion: ``"gated"`` or ``"attention"``.
      inputs: by modality; what stands in a missing one is not read, be it NaN.
      present: by modality.

    References:
      Arevalo et al., Gated multimodal units for information fusion, ICLR workshop 2017 (untied gates; one reads its own
      projection and the sum of all, which for two modalities is as general as reading both). Yang et al., Hierarchical
      attention networks for document classification, NAACL 2016 (a learned query over tanh of the projections; here
      over modalities, and scaled).
    """
    layers = params["modalities"]
    hidden = {}
    for name, x in inputs.items():
        x = jnp.where(present[name][..., None], x, 0.0)
        hidden[name] = _linear(x, layers[name]["kernel"], layers[name]["bias"])
    known = jnp.stack([present[name] for name in inputs], axis=-1)  # [..., modalities]
    values = jnp.where(known[..., None], jnp.stack(list(hidden.values()), axis=-2), 0.0)  # [..., modalities, dim]
    bounded = jnp.tanh(values)
    if fusion == "gated":
        total = bounded.sum(axis=-2)
        gates = []
        for at, name in enumerate(inputs):
            gate = layers[name]["gate"]
            own = _linear(bounded[..., at, :], gate["own"]["kernel"], gate["bias"])
            gates.append(jax.nn.sigmoid(own + _linear(total, gate["all"]["kernel"])))
        fused = (jnp.stack(gates, axis=-2) * bounded).sum(axis=-2)  # a missing one is 0 whatever its gate
    else:
        query = params["query"]["kernel"].astype(jnp.float32) * bounded.shape[-1] ** -0.5
        logits = jnp.einsum("...md,d->...m", bounded, query)
        weights = jax.nn.softmax(jnp.where(known, logits, -1e30), axis=-1)
        fused = jnp.einsum("...m,...md->...d", weights, values)
    none = params["none"]["bias"].astype(jnp.float32)
    return jnp.where(known.any(axis=-1)[..., None], fused, none.reshape((1,) * (fused.ndim - 1) + none.shape))


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    y = jnp.einsum("...i,io->...o", x, kernel.astype(jnp.float32))
    return y if bias is None else y + bias.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + bias.shape)
