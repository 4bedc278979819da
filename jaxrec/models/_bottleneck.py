"""Bottleneck adapters: any model with a small perceptron behind some of its tables."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Key

from jaxrec import _tree
from jaxrec._types import Batch, Features, Params
from jaxrec.models import _base
from jaxrec.models._adapters import PREFIX, AdapterModel
from jaxrec.models._base import Gathered, Lookup, Passed, Scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck(AdapterModel):
    r"""A model whose tables' rows pass through a narrow perceptron, one for each table.

    .. math:: e' = e + \mathrm{ReLU}(e D) U

    A few numbers so move all rows of a table at once, also those that training never touches: what differs between two
    domains as a whole is learned from little data, where ``LoRA`` learns of each row by itself. The base's leaves keep
    their paths; the adapter of ``item/embedding`` is ``adapters/item/embedding/down`` and ``/up``. Train it with the
    base frozen: ``fit(..., freeze=model.base_paths)``, or ``transfer.adapt(..., adapters=)``. A new adapter changes
    nothing: :math:`U` starts at zero. A row of zeros stays one.

    Args:
      base: any model with tables but one with adapters.
      paths: patterns of the base's tables to adapt; by default those that are wider than ``width`` and larger than
        their adapter. They are turned into paths.
      width: of the perceptron's hidden layer, at least 1.

    Raises:
      ValueError: an option is out of range, a pattern matches nothing or a leaf that is no table.

    Examples:
      >>> from jaxrec.models import MatrixFactorization
      >>> model = Bottleneck(base=MatrixFactorization(user_rows=9, item_rows=8, dim=6, bias=False), width=2)
      >>> model.paths, model.init(jax.random.key(0))["adapters"]["item"]["embedding"]["down"].shape
      (('item/embedding', 'user/embedding'), (6, 2))

    References:
      Houlsby et al., Parameter-efficient transfer learning for NLP, ICML 2019 (behind tables of embeddings instead of
      a transformer's layers; without biases).
    """

    width: int = 8

    _factors: ClassVar[tuple[str, ...]] = ("down", "up")

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"Expected width >= 1, got {self.width}.")
        super().__post_init__()

    @property
    def tables(self) -> dict[str, str]:
        return self.base.tables

    @property
    def _able(self) -> list[str]:
        return [path for path in sorted(self.base.tables) if len(self._shapes[path]) == 2]

    def _worthwhile(self) -> tuple[str, ...]:
        shapes = {path: self._shapes[path] for path in self._able}
        chosen = tuple(path for path, (rows, dim) in shapes.items() if self.width < min(dim, rows / 2))
        if not chosen:
            raise ValueError(
                f"No table is wider than a bottleneck of {self.width} and larger than its adapter. Make it narrower, "
                "or train the tables themselves."
            )
        return chosen

    def _check(self, chosen: tuple[str, ...]) -> None:
        for path in chosen:
            if path not in self._able:
                raise ValueError(
                    f"Expected tables of two dimensions ({', '.join(self._able) or 'there is none'}), got {path!r} of "
                    f"shape {self._shapes[path]}. A kernel can have an adapter of low rank, models.LoRA."
                )

    def add(self, params: Params, key: Key[jax.Array, ""]) -> Params:
        """The base's parameters with new adapters, which change no score."""
        adapters = {}
        for path, key_path in zip(self.paths, jax.random.split(key, len(self.paths)), strict=True):
            dim = _tree.get(params, path).shape[1]
            adapters[f"{PREFIX}/{path}/down"] = _base.normal(key_path, (dim, self.width), dim**-0.5)
            adapters[f"{PREFIX}/{path}/up"] = jnp.zeros((self.width, dim), jnp.float32)
        return _tree.merge(params, _tree.unflatten(adapters))

    def merge(self, params: Params) -> Params:
        """Parameters of the base alone that give the same scores; leaves keep their dtype, so narrow ones round.

        Raises:
          ValueError: a leaf holds integers, in which what passed has no place.
        """
        passed = {}
        for path in self.paths:
            table = _tree.get(params, path)
            if not jnp.issubdtype(table.dtype, jnp.floating):
                raise ValueError(f"{path!r} holds {table.dtype}, in which what passed has no place. Widen it.")
            passed[path] = _base.through(_base.wide(table), *self._adapter(path, params)).astype(table.dtype)
        return _tree.replace(_tree.drop(params, self._own_paths), passed)

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return self.base.lookups(batch, features)

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> jax.Array | Scored:
        paths = {name: lookup.path for name, lookup in self.base.lookups(batch, features).items()}
        rows = {
            name: _base.through(each, *self._adapter(paths[name], params)) if paths[name] in self.paths else each
            for name, each in gathered.items()
        }
        return self.base.score(self._composed(params), rows, batch, features, key=key)

    def _composed(self, params: Params) -> Params:
        leaves = _tree.flatten(_tree.drop(params, self._own_paths))
        passed = {path: Passed(leaves[path], *self._adapter(path, params)) for path in self.paths if path in leaves}
        return _tree.unflatten({**leaves, **passed})

    def _adapter(self, path: str, params: Params) -> list[jax.Array]:
        return [_tree.get(params, f"{PREFIX}/{path}/{factor}") for factor in self._factors]
