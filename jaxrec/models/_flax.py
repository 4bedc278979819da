"""Adapters: a module written with flax as a jaxrec model."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Key

from jaxrec._types import Batch, Features, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup


def from_linen(
    module: Any, batch: Batch, features: Features, *, call: Callable[..., Any] | None = None
) -> "LinenModel":
    """A Flax Linen module as a model.

    Its tables are trained like dense leaves: a module looks rows up out of jaxrec's sight, so a step costs time
    in proportion to the whole table.

    Args:
      module: a ``linen.Module`` that returns the scores ``[batch, columns]`` of a batch.
      batch: an example; only shapes and dtypes are kept.
      features: likewise.
      call: ``call(module, batch, features)`` returns the scores; by default ``module(batch, features)``. A
        module-level function, since equal models share one compiled function only if it is the same.

    Returns:
      A frozen, hashable model. Its parameters are the module's ``params`` collection; a module with further
      collections (batch statistics) is refused by ``init``. Nothing says which of them are tables by user or item, so
      ``transfer.adapt`` copies every leaf whole, row n to row n: choose what to copy by ``patterns=`` where a module
      has tables of ids and the domains number them differently.
    """
    return LinenModel(module=module, call=call or _call, example=_shapes(batch, features))


def from_nnx(create: Callable[..., Any], *, call: Callable[..., Any] | None = None) -> "NNXModel":
    """A Flax NNX module as a model.

    Args:
      create: makes an ``nnx.Module`` from ``nnx.Rngs``; for example ``lambda rngs: MyModule(64, rngs=rngs)``. Two
        models from the same function are equal.
      call: as for ``from_linen``.

    Returns:
      A frozen, hashable model. Its parameters are the module's ``nnx.Param`` variables by attribute path, as
      ``tower/kernel``; a module with further variables (batch statistics, dropout streams) is refused by ``init``.
    """
    return NNXModel(create=create, call=call or _call)


def _call(module: Any, batch: Batch, features: Features) -> jax.Array:
    return module(batch, features)


def _shapes(*trees: Any) -> tuple[Any, ...]:
    """The trees' structure and shapes as a hashable value."""
    leaves, treedef = jax.tree.flatten(trees)
    return treedef, tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinenModel:
    """What ``from_linen`` returns."""

    module: Any
    call: Callable[..., Any]
    example: tuple[Any, ...]

    @property
    def tables(self) -> dict[str, str]:
        return {}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        treedef, shapes = self.example
        example = treedef.unflatten([jnp.zeros(shape.shape, shape.dtype) for shape in shapes])
        variables = self.module.init(key, *example, method=self.call)
        _refuse_others(set(variables) - {"params"})
        return jax.tree.map(jnp.asarray, dict(variables.get("params", {})))

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return {}

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        return self.module.apply({"params": params}, batch, features, method=self.call, rngs=rngs)

    apply = _base.apply


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNXModel:
    """What ``from_nnx`` returns."""

    create: Callable[[Any], Any]
    call: Callable[..., Any]

    @property
    def tables(self) -> dict[str, str]:
        return {}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        from flax import nnx

        module = self.create(nnx.Rngs(key))
        _refuse_others({type_.__name__ for type_ in _variable_types(module)} - {"Param"})
        return _named(nnx.to_pure_dict(nnx.state(module, nnx.Param)))

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return {}

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> jax.Array:
        from flax import nnx

        graph, state = nnx.split(nnx.eval_shape(lambda: self.create(nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, _like(nnx.to_pure_dict(state), params))
        return self.call(nnx.merge(graph, state), batch, features)

    apply = _base.apply


def _variable_types(module: Any) -> set[type]:
    from flax import nnx

    return {type(variable) for _, variable in nnx.to_flat_state(nnx.state(module))}


def _refuse_others(collections: set[str]) -> None:
    if collections:
        raise ValueError(
            f"Expected a module whose only variables are parameters, found also {', '.join(sorted(collections))}. "
            "A jaxrec model is a pure function of its parameters: use layers without running state, or keep the "
            "state fixed inside `call`."
        )


def _named(tree: Any) -> Any:
    """NNX numbers the members of a list with ints; a path needs strings."""
    return {str(name): _named(value) for name, value in tree.items()} if isinstance(tree, dict) else tree


def _like(pattern: Any, tree: Any) -> Any:
    """The inverse of ``_named``."""
    if isinstance(pattern, dict):
        return {name: _like(value, tree[str(name)]) for name, value in pattern.items()}
    return tree
