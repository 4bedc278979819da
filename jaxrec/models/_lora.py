"""Low-rank adapters: any model with thin matrices beside some of its leaves."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Key

from jaxrec import _tree
from jaxrec._types import Batch, Features, Params
from jaxrec.models import _base
from jaxrec.models._adapters import PREFIX, AdapterModel
from jaxrec.models._base import Composed, Gathered, Lookup, Scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(AdapterModel):
    r"""A model with low-rank adapters on kernels and tables.

    .. math:: W' = W + \tfrac{\alpha}{r} A B

    The base's leaves keep their paths; the adapter of ``item/embedding`` is ``adapters/item/embedding/a`` and ``/b``.
    Train it with the base frozen: ``fit(..., freeze=lora.base_paths)``, or ``transfer.adapt(..., adapters=)``.
    :math:`A` of a table is a table itself, looked up and trained by rows. A new adapter changes nothing: of a kernel
    :math:`B` starts at zero, as in the paper; of a table :math:`A` does, so that a row which training never touches
    stays what the base has.

    Args:
      base: any model but one with adapters.
      paths: patterns of the base's leaves to adapt, all of two dimensions; by default those of which an adapter is
        smaller than the leaf. They are turned into paths.
      rank: r, at least 1 and at most the smaller dimension of each leaf.
      alpha: the adapter's weight is ``alpha / rank``; by default 1.

    Raises:
      ValueError: an option is out of range, a pattern matches nothing or a leaf that cannot be adapted.

    Examples:
      >>> from jaxrec.models import MatrixFactorization
      >>> model = LoRA(base=MatrixFactorization(user_rows=9, item_rows=8, dim=6, bias=False), rank=2)
      >>> model.paths, model.init(jax.random.key(0))["adapters"]["item"]["embedding"]["a"].shape
      (('item/embedding', 'user/embedding'), (8, 2))

    References:
      Hu et al., LoRA: low-rank adaptation of large language models, ICLR 2022 (without dropout; on tables of
      embeddings the zero factor is the one with a row per id).
    """

    rank: int = 4
    alpha: float | None = None

    _factors: ClassVar[tuple[str, ...]] = ("a", "b")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"Expected rank >= 1, got {self.rank}.")
        super().__post_init__()

    def _worthwhile(self) -> tuple[str, ...]:
        matrices = {path: shape for path, shape in self._shapes.items() if len(shape) == 2}
        chosen = tuple(path for path, shape in matrices.items() if self.rank * sum(shape) < shape[0] * shape[1])
        if not chosen:
            raise ValueError(f"No leaf is larger than its adapter of rank {self.rank}. Train the leaves themselves.")
        return chosen

    def _check(self, chosen: tuple[str, ...]) -> None:
        for path in chosen:
            shape = self._shapes[path]
            if len(shape) != 2 or min(shape) < self.rank:
                raise ValueError(
                    f"Expected leaves of two dimensions of at least rank {self.rank}, got {path!r} of shape {shape}. "
                    "Leave it out of paths=; a small leaf can be trained itself."
                )

    @property
    def tables(self) -> dict[str, str]:
        tables = self.base.tables
        return tables | {f"{PREFIX}/{path}/a": tables[path] for path in self.paths if path in tables}

    @property
    def _scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def add(self, params: Params, key: Key[jax.Array, ""]) -> Params:
        """The base's parameters with new adapters, which change no score."""
        adapters = {}
        for path, key_path in zip(self.paths, jax.random.split(key, len(self.paths)), strict=True):
            rows, dim = _tree.get(params, path).shape
            if path in self.base.tables:
                a = jnp.zeros((rows, self.rank), jnp.float32)
                b = _base.normal(key_path, (self.rank, dim), dim**-0.5)
            else:
                a = _base.normal(key_path, (rows, self.rank), rows**-0.5)
                b = jnp.zeros((self.rank, dim), jnp.float32)
            adapters |= {f"{PREFIX}/{path}/a": a, f"{PREFIX}/{path}/b": b}
        return _tree.merge(params, _tree.unflatten(adapters))

    def merge(self, params: Params) -> Params:
        """Parameters of the base alone that give the same scores; leaves keep their dtype, so narrow ones round.

        Raises:
          ValueError: a leaf holds integers, in which the sum has no place.
        """
        return self._moved(_tree.drop(params, self._own_paths), params, 1.0)

    def unmerge(self, merged: Params, params: Params) -> Params:
        """The inverse of ``merge``: ``merged`` less the adapters of ``params``, with them beside it.

        Raises:
          ValueError: as for ``merge``; shapes differ.
        """
        adapters = {path: _tree.get(params, path) for path in self._own_paths}
        return _tree.merge(self._moved(merged, params, -1.0), _tree.unflatten(adapters))

    def _moved(self, base: Params, params: Params, sign: float) -> Params:
        moved = {}
        for path in self.paths:
            leaf = _tree.get(base, path)
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"{path!r} holds {leaf.dtype}, in which its sum with an adapter has no place. Widen it."
                )
            a, b = (_tree.get(params, f"{PREFIX}/{path}/{factor}") for factor in "ab")
            if leaf.shape != (a.shape[0], b.shape[1]):
                raise ValueError(
                    f"The adapter of {path!r} is for shape {(a.shape[0], b.shape[1])}, and the leaf has {leaf.shape}."
                )
            moved[path] = (_base.wide(leaf) + sign * self._scale * (a @ b)).astype(leaf.dtype)
        return _tree.replace(base, moved)

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = dict(self.base.lookups(batch, features))
        numbers = {path: number for number, path in enumerate(self.paths)}
        # Row numbers are the same arrays, so that gradients of repeated ids are merged once for both.
        return found | {
            f"{PREFIX}/{numbers[lookup.path]}/{name}": Lookup(f"{PREFIX}/{lookup.path}/a", lookup.rows)
            for name, lookup in found.items()
            if lookup.path in numbers
        }

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> jax.Array | Scored:
        rows = {name: each for name, each in gathered.items() if not name.startswith(f"{PREFIX}/")}
        for name in gathered.keys() - rows.keys():
            _, number, of_base = name.split("/", 2)
            b = self._scale * _tree.get(params, f"{PREFIX}/{self.paths[int(number)]}/b")
            rows[of_base] = rows[of_base] + jnp.einsum("...r,rd->...d", gathered[name], b)
        return self.base.score(self._composed(params), rows, batch, features, key=key)

    def _composed(self, params: Params) -> Params:
        """The base's parameters: kernels with their adapters added, tables (where they are there) to be looked up."""
        leaves = _tree.flatten(params)
        adapters = {path: leaves.pop(path) for path in self._own_paths if path in leaves}
        for path in self.paths:
            b = self._scale * adapters[f"{PREFIX}/{path}/b"]
            if path not in self.base.tables:
                leaves[path] = _base.wide(leaves[path]) + adapters[f"{PREFIX}/{path}/a"] @ b
            elif path in leaves:
                leaves[path] = Composed(leaves[path], adapters[f"{PREFIX}/{path}/a"], b)
        return _tree.unflatten(leaves)
