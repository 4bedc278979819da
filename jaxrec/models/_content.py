"""Side features as model input: dense numbers and pooled embeddings of categories and labels, side by side or fused."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32, Key

from jaxrec._expect import one_of
from jaxrec._types import Array, Features, Params
from jaxrec.models._base import Gathered, Lookup, embedding, normal, take
from jaxrec.models._fusion import Fusion, Modalities, fuse, init_fusion

Codes = tuple[tuple[str, int], ...]
"""Name and number of rows (the unknown's row 0 included) of each categorical feature."""

Pooling = Literal["mean", "sqrtn"]
"""How the embeddings of an entity's labels become one: their mean, or their sum over the root of their number."""


@dataclasses.dataclass(frozen=True)
class Content:
    """One side's features: ``dense`` numbers and ``codes``, each category embedded in ``dim`` numbers.

    The embeddings of an entity's labels are averaged, or with ``pooling="sqrtn"`` added and divided by the root of
    their number, so that many labels say as much as few; unknown labels do not count, and an entity with none gets
    zeros.

    With ``fusion`` other than concatenation each part of the dense numbers and each categorical feature is a modality,
    which an entity has or lacks, and ``fused`` is the width of what becomes of them (see ``fuse``).
    """

    side: str  # "user" or "item"
    dense: int
    codes: Codes
    dim: int
    fusion: Fusion = "concatenation"
    modalities: Modalities = ()
    fused: int = 0
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        one_of(self.fusion, get_args(Fusion), "fusion")
        one_of(self.pooling, get_args(Pooling), "pooling")
        wanted = 0 if self.fusion == "concatenation" else self.dense
        total = sum(width for _, width in self.modalities)
        if total != wanted:
            raise ValueError(
                f"Expected the widths of {self.side}_modalities to add up to {wanted} with fusion={self.fusion!r} and "
                f"{self.dense} dense {self.side} features, got {total}. Make the model with for_data, or cut the "
                "columns of the dense features into modalities, and give none for concatenation."
            )
        names = [name for name, _ in (*self.modalities, *self.codes)]
        if self.fusion != "concatenation" and len(set(names)) < len(names):
            raise ValueError(f"Expected distinct names of {self.side} modalities, got {', '.join(names)}.")

    @property
    def width(self) -> int:
        whole = self.dense + self.dim * len(self.codes)
        return whole if self.fusion == "concatenation" or not whole else self.fused

    @property
    def tables(self) -> dict[str, str]:
        return {f"{self.side}/features/{name}/embedding": f"{self.side}/{name}" for name, _ in self.codes}

    def init(self, key: Key[jax.Array, ""], scale: float) -> Params:
        keys = jax.random.split(key, max(len(self.codes), 1))
        return {
            name: {"embedding": embedding(key, rows, self.dim, scale)}
            for key, (name, rows) in zip(keys, self.codes, strict=False)
        }

    def init_fusion(self, key: Key[jax.Array, ""]) -> Params:
        """``{"fusion": ...}``, which ``inputs`` reads, or nothing where there is nothing to fuse."""
        if self.fusion == "concatenation" or not self.width:
            return {}
        widths = self.modalities + tuple((name, self.dim) for name, _ in self.codes)
        return {"fusion": init_fusion(key, widths, self.fused, self.fusion)}

    def lookups(self, prefix: str, index: jax.Array, features: Features) -> dict[str, Lookup]:
        """``prefix`` tells several uses of the same features apart, as target and as history."""
        return {
            f"{prefix}/{name}": Lookup(f"{self.side}/features/{name}/embedding", self._code(name, index, features))
            for name, _ in self.codes
        }

    def lookups_with_id(self, prefix: str, index: jax.Array, features: Features) -> dict[str, Lookup]:
        """The features' and the row of the entities' own table."""
        row = features.user_row if self.side == "user" else features.item_row
        own = Lookup(f"{self.side}/embedding", take(row, index))
        return {prefix: own, **self.lookups(prefix, index, features)}

    def inputs(
        self,
        prefix: str,
        gathered: Gathered,
        index: Int32[jax.Array, "*index"],
        features: Features,
        params: Params | None = None,
    ) -> Float[jax.Array, "*index width"]:
        """What the model reads of the entities; ``params`` is the side's tree, of which fusing reads its own."""
        parts, present = {}, {}
        if self.dense and self.fusion == "concatenation":
            parts[""] = self.numbers(index, features)
        elif self.dense:
            known = take(self._presence(features), index)
            ends = list(itertools.accumulate(width for _, width in self.modalities))
            pieces = jnp.split(self.numbers(index, features), ends[:-1], axis=-1)
            for at, ((name, _), piece) in enumerate(zip(self.modalities, pieces, strict=True)):
                parts[name], present[name] = piece, known[..., at]
        for name, _ in self.codes:
            known = self.known(name, index, features)
            total = jnp.einsum("...ld,...l->...d", gathered[f"{prefix}/{name}"], known)
            count = known.sum(-1, keepdims=True)
            many = jnp.maximum(count, 1.0)
            parts[name] = total / (jnp.sqrt(many) if self.pooling == "sqrtn" else many)
            present[name] = count[..., 0] > 0
        if self.fusion == "concatenation":
            return jnp.concatenate(list(parts.values()), axis=-1)
        assert params is not None
        return fuse(params["fusion"], self.fusion, parts, present)

    def _presence(self, features: Features) -> Array:
        present = features.user_present if self.side == "user" else features.item_present
        if present is None or present.shape[1] != len(self.modalities):
            came = "none" if present is None else f"{present.shape[1]} columns"
            raise ValueError(
                f"The model fuses {len(self.modalities)} dense {self.side} modalities and Features.{self.side}_present "
                f"has {came}. Fit the encoder again if an older version saved it; in features of your own say by "
                "entity and modality what is there."
            )
        return present

    def numbers(self, index: Int32[jax.Array, "*index"], features: Features) -> Float[jax.Array, "*index dense"]:
        dense = features.user_dense if self.side == "user" else features.item_dense
        if dense is None or dense.shape[1] != self.dense:
            came = "none" if dense is None else str(dense.shape[1])
            raise ValueError(
                f"The model was built for {self.dense} dense {self.side} features and was given {came}. Use "
                "features of the encoder that the model was trained with."
            )
        return take(dense, index).astype(jnp.float32)

    def known(
        self, name: str, index: Int32[jax.Array, "*index"], features: Features
    ) -> Float[jax.Array, "*index length"]:
        """1 where an entity has a label that training knew, 0 elsewhere."""
        return (self._code(name, index, features) > 0).astype(jnp.float32)

    def described(self, index: Int32[jax.Array, "*index"], features: Features) -> Bool[jax.Array, "*index"]:
        """Whether anything is known of an entity.

        Without ``Features.*_present``, as in an encoder of an older version, a number is known that differs from the
        unknown's, index 0; one that is the same is then taken for unknown.
        """
        known = jnp.zeros(index.shape, bool)
        dense, present = (getattr(features, f"{self.side}_{what}") for what in ("dense", "present"))
        if self.dense and present is not None:
            known |= take(present, index).any(axis=-1)
        elif self.dense and dense is not None:
            values = take(dense, index)
            known |= (values != jnp.asarray(dense)[0].reshape((1,) * index.ndim + (-1,))).any(axis=-1)
        for name, _ in self.codes:
            known |= (self._code(name, index, features) > 0).any(axis=-1)
        return known

    def _code(self, name: str, index: jax.Array, features: Features) -> Int32[jax.Array, "... length"]:
        codes = features.user_codes if self.side == "user" else features.item_codes
        if name not in codes:
            raise ValueError(
                f"The model was trained with the {self.side} feature {name!r} and was given "
                f"{', '.join(codes) or 'none'}. Use features of the encoder that the model was trained with."
            )
        return take(codes[name], index)


def init_mlp(key: Key[jax.Array, ""], widths: tuple[int, ...], scale: float) -> Params:
    """Kernels of a multilayer perceptron; unit inputs give outputs of standard deviation about ``scale``.

    Hidden layers have a bias (He et al., ICCV 2015, for the kernels); the last is linear without one.
    """
    layers: Params = {}
    last = len(widths) - 2
    for depth, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        key, key_layer = jax.random.split(key)
        gain = scale if depth == last else 2.0**0.5
        layers[str(depth)] = {"kernel": normal(key_layer, (fan_in, fan_out), gain * fan_in**-0.5)}
        if depth != last:
            layers[str(depth)]["bias"] = jnp.zeros((fan_out,), jnp.float32)
    return layers


def mlp(
    layers: Params,
    x: Float[jax.Array, "*batch width"],
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> Float[jax.Array, "*batch out"]:
    """The perceptron of ``init_mlp``."""
    last = len(layers) - 1
    for depth in range(len(layers)):
        layer = layers[str(depth)]
        x = jnp.einsum("...i,io->...o", x, layer["kernel"].astype(jnp.float32))
        if depth != last:
            bias = layer["bias"]
            x = activation(x + bias.reshape((1,) * (x.ndim - 1) + bias.shape))
    return x


def pair_mlp(
    layers: Params, user: Float[jax.Array, "batch user_width"], item: Float[jax.Array, "*items item_width"]
) -> Float[jax.Array, "batch columns"]:
    """The perceptron's one output on users' inputs beside items', the first layer computed once for each of either.

    Items are of each user's own, ``[batch, own, width]``, or shared by all users, ``[shared, width]``.
    """
    first, *others = (layers[str(depth)] for depth in range(len(layers)))
    kernel, width = first["kernel"].astype(jnp.float32), user.shape[1]
    # Matrices throughout: products of rank 3 take nearly twice as long on a CPU, their gradients included.
    of_item = (item.reshape(-1, item.shape[-1]) @ kernel[width:]).reshape(*item.shape[:-1], -1)
    x = (user @ kernel[:width])[:, None, :] + (of_item if item.ndim == 3 else of_item[None, :, :])
    pairs, x = x.shape[:2], x.reshape(-1, x.shape[2])
    if others:
        x = jax.nn.relu(x + first["bias"][None, :])
        x = mlp({str(depth): layer for depth, layer in enumerate(others)}, x)
    return x.reshape(pairs)
