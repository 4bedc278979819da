"""Low-rank adapters: any model with thin matrices beside some of its leaves."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxrec import _tree
from jaxrec._types import Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Composed, Gathered, Lookup, Scored

_PREFIX = "adapters"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
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

    base: Any
    paths: _tree.Patterns = ()
    rank: int = 4
    alpha: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.base, LoRA):
            raise ValueError("The base has adapters already. Merge them first: transfer.merge_adapters.")
        if self.rank < 1:
            raise ValueError(f"Expected rank >= 1, got {self.rank}.")
        shapes = {path: leaf.shape for path, leaf in _tree.flatten(_shapes_of(self.base)).items()}
        if any(path.startswith(f"{_PREFIX}/") for path in shapes):
            raise ValueError(f"The base has leaves under {_PREFIX!r}, where adapters go. Rename them.")
        if not self.paths:
            matrices = (path for path, shape in shapes.items() if len(shape) == 2)
            chosen = tuple(
                path for path in matrices if self.rank * sum(shapes[path]) < shapes[path][0] * shapes[path][1]
            )
            if not chosen:
                raise ValueError(
                    f"No leaf is larger than its adapter of rank {self.rank}. Train the leaves themselves."
                )
        else:
            chosen = _tree.match(shapes, self.paths)
        for path in chosen:
            if len(shapes[path]) != 2 or min(shapes[path]) < self.rank:
                raise ValueError(
                    f"Expected leaves of two dimensions of at least rank {self.rank}, got {path!r} of shape "
                    f"{shapes[path]}. Leave it out of paths=; a small leaf can be trained itself."
                )
        object.__setattr__(self, "paths", chosen)

    @classmethod
    def for_data(cls, data: HasSizes, *, base: Any, **options: Any) -> "LoRA":
        """The adapters on the base as it is for a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(base=_base.resized(base, data), **options)

    def __getattr__(self, name: str) -> Any:
        """What the base says of itself (``history``, ``link``), and its vectors if it has them."""
        base = self.__dict__.get("base")
        value = None if base is None or name.startswith("_") else getattr(base, name, None)
        if value is not None and name in ("user_vectors", "item_vectors"):
            return functools.partial(self._vectors, name)
        if value is None or callable(value):  # other methods would not know of the adapters
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value

    @property
    def tables(self) -> dict[str, str]:
        tables = self.base.tables
        return tables | {f"{_PREFIX}/{path}/a": tables[path] for path in self.paths if path in tables}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return self.base.unknown

    @property
    def base_paths(self) -> tuple[str, ...]:
        """Paths of the base's leaves, to be frozen."""
        return tuple(_tree.flatten(_shapes_of(self.base)))

    @property
    def _scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def init(self, key: Key[jax.Array, ""]) -> Params:
        return self.add(self.base.init(key), jax.random.fold_in(key, 1))

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
            adapters |= {f"{_PREFIX}/{path}/a": a, f"{_PREFIX}/{path}/b": b}
        return _tree.merge(params, _tree.unflatten(adapters))

    def merge(self, params: Params) -> Params:
        """Parameters of the base alone that give the same scores; leaves keep their dtype, so narrow ones round.

        Raises:
          ValueError: a leaf holds integers, in which the sum has no place.
        """
        return self._moved(_tree.drop(params, self._adapters), params, 1.0)

    def unmerge(self, merged: Params, params: Params) -> Params:
        """The inverse of ``merge``: ``merged`` less the adapters of ``params``, with them beside it.

        Raises:
          ValueError: as for ``merge``; shapes differ.
        """
        adapters = {path: _tree.get(params, path) for path in self._adapters}
        return _tree.merge(self._moved(merged, params, -1.0), _tree.unflatten(adapters))

    @property
    def _adapters(self) -> tuple[str, ...]:
        return tuple(f"{_PREFIX}/{path}/{factor}" for path in self.paths for factor in "ab")

    def _moved(self, base: Params, params: Params, sign: float) -> Params:
        moved = {}
        for path in self.paths:
            leaf = _tree.get(base, path)
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"{path!r} holds {leaf.dtype}, in which its sum with an adapter has no place. Widen it."
                )
            a, b = (_tree.get(params, f"{_PREFIX}/{path}/{factor}") for factor in "ab")
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
            f"{_PREFIX}/{numbers[lookup.path]}/{name}": Lookup(f"{_PREFIX}/{lookup.path}/a", lookup.rows)
            for name, lookup in found.items()
            if lookup.path in numbers
        }

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> jax.Array | Scored:
        rows = {name: each for name, each in gathered.items() if not name.startswith(f"{_PREFIX}/")}
        for name in gathered.keys() - rows.keys():
            _, number, of_base = name.split("/", 2)
            b = self._scale * _tree.get(params, f"{_PREFIX}/{self.paths[int(number)]}/b")
            rows[of_base] = rows[of_base] + jnp.einsum("...r,rd->...d", gathered[name], b)
        return self.base.score(self._composed(params), rows, batch, features, key=key)

    apply = _base.apply

    def _vectors(self, name: str, params: Params, *arguments: Any) -> Float[jax.Array, "entities vector"]:
        return getattr(self.base, name)(self._composed(params), *arguments)

    def _composed(self, params: Params) -> Params:
        """The base's parameters: kernels with their adapters added, tables (where they are there) to be looked up."""
        leaves = _tree.flatten(params)
        adapters = {path: leaves.pop(path) for path in self._adapters if path in leaves}
        for path in self.paths:
            b = self._scale * adapters[f"{_PREFIX}/{path}/b"]
            if path not in self.base.tables:
                leaves[path] = _base.wide(leaves[path]) + adapters[f"{_PREFIX}/{path}/a"] @ b
            elif path in leaves:
                leaves[path] = Composed(leaves[path], adapters[f"{_PREFIX}/{path}/a"], b)
        return _tree.unflatten(leaves)


@functools.lru_cache(maxsize=64)
def _shapes_of(model: Any) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0))
