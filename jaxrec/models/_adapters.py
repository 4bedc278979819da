"""What models with adapters share: the base's leaves at their own paths, the adapters beside them."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
from jaxtyping import Float, Key

from jaxrec import _tree
from jaxrec._types import HasSizes, Params
from jaxrec.models import _base

PREFIX = "adapters"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterModel:
    """A base and the leaves that have adapters. Subclasses say what an adapter is and what it makes of a leaf."""

    base: Any
    paths: _tree.Patterns = ()

    _factors: ClassVar[tuple[str, ...]]  # names of an adapter's own leaves

    def __post_init__(self) -> None:
        if isinstance(self.base, AdapterModel):
            raise ValueError("The base has adapters already. Merge them first: transfer.merge_adapters.")
        if any(path.startswith(f"{PREFIX}/") for path in self._shapes):
            raise ValueError(f"The base has leaves under {PREFIX!r}, where adapters go. Rename them.")
        chosen = _tree.match(self._shapes, self.paths) if self.paths else self._worthwhile()
        self._check(chosen)
        object.__setattr__(self, "paths", chosen)

    def _worthwhile(self) -> tuple[str, ...]:
        """The leaves that are larger than their adapters would be."""
        raise NotImplementedError

    def _check(self, chosen: tuple[str, ...]) -> None:
        """Raises where a leaf cannot have an adapter."""
        raise NotImplementedError

    def add(self, params: Params, key: Key[jax.Array, ""]) -> Params:
        """The base's parameters with new adapters, which change no score."""
        raise NotImplementedError

    def _composed(self, params: Params) -> Params:
        """What the base is to read in the place of its parameters; tables that are not there are left out."""
        raise NotImplementedError

    @classmethod
    def for_data(cls, data: HasSizes, *, base: Any, **options: Any) -> "AdapterModel":
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
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the base's leaves, by path."""
        return {path: leaf.shape for path, leaf in _tree.flatten(_shapes_of(self.base)).items()}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return self.base.unknown

    @property
    def base_paths(self) -> tuple[str, ...]:
        """Paths of the base's leaves, to be frozen."""
        return tuple(self._shapes)

    @property
    def _own_paths(self) -> tuple[str, ...]:
        """Paths of the adapters' leaves."""
        return tuple(f"{PREFIX}/{path}/{factor}" for path in self.paths for factor in self._factors)

    def init(self, key: Key[jax.Array, ""]) -> Params:
        return self.add(self.base.init(key), jax.random.fold_in(key, 2**20))  # a number that no split of it has

    apply = _base.apply

    def _vectors(self, name: str, params: Params, *arguments: Any) -> Float[jax.Array, "entities vector"]:
        return getattr(self.base, name)(self._composed(params), *arguments)


_shapes_of = functools.lru_cache(maxsize=64)(_tree.shapes)
