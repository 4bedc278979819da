"""Hyper-parameters that lie in an optimiser's state, so that another value compiles nothing."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import DictKey, GetAttrKey, tree_flatten_with_path

from jaxrec import _tree

_STARTS = ("initial", "initial_accumulator_value", "initial_scale", "init_estim_sq_dist")  # what only `init` reads


def hyperparams(opt_state: Any) -> dict[str, jax.Array]:
    """The scalars in an optimiser's state that may be set, by name.

    They are there where the transformation puts them: ``optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`` for
    any of optax, ``optim.l2_sp`` and ``optim.ewc`` by themselves. Below ``optim.per_path`` a name starts with the
    pattern, as ``"item/*:learning_rate"``.

    Args:
      opt_state: for example ``TrainState.opt_state``.
    """
    return {
        name: leaf
        for path, leaf in tree_flatten_with_path(opt_state)[0]
        if (name := _name(path, "hyperparams")) is not None and not _starts(name)
    }


def with_hyperparams(opt_state: Any, values: Mapping[str, Any]) -> Any:
    """An optimiser's state with other hyper-parameters. Under ``jit`` and ``vmap`` values may be traced.

    Args:
      opt_state: for example ``TrainState.opt_state``.
      values: scalars by name as in ``hyperparams``; a name without its pattern means those of all patterns.
        ``"importance"`` is a tree of arrays like the parameters, for ``optim.ewc``. They are copied, not consumed.

    Raises:
      ValueError: there is no hyper-parameter of that name, it follows a schedule or is what accumulators start at, or
        shapes differ.
    """
    leaves, treedef = tree_flatten_with_path(opt_state)
    scheduled = {name for path, _ in leaves if (name := _name(path, "hyperparams_states")) is not None}
    given = {name: value for name, value in values.items() if name != "importance"}
    importance = None if "importance" not in values else _tree.flatten(values["importance"])
    used: set[str] = set()
    new = []
    for path, leaf in leaves:
        full = _name(path, "hyperparams")
        if full is not None:
            name = full if full in given else full.rsplit(":", 1)[-1]
            if name in given:
                if _starts(name):
                    raise ValueError(
                        f"{name!r} was read when the state was made, so that setting it would change nothing. Give it "
                        "to the transformation, as in optax.adagrad(0.1, initial_accumulator_value=1e-6)."
                    )
                if any(each == full or each.startswith(f"{full}/") for each in scheduled):
                    raise ValueError(f"{full!r} follows a schedule, which would overwrite it. Inject a number instead.")
                used.add(name)
                leaf = _like(leaf, given[name], name)
        elif importance is not None and (of := _name(path, "importance", sides=False)) is not None:
            used.add("importance")
            if of not in importance:
                raise ValueError(f"The importance lacks {of!r}, which is trained. It has {', '.join(importance)}.")
            leaf = _like(leaf, importance[of], f"importance of {of}")
        new.append(leaf)
    missing = [name for name in values if name not in used]
    if missing:
        known = ", ".join(hyperparams(opt_state)) or "none"
        raise ValueError(
            f"The optimiser has no hyper-parameter {missing[0]!r} to set, it has {known}. Wrap it, as in "
            "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3); importance belongs to optim.ewc."
        )
    return jax.tree.unflatten(treedef, new)


def _name(path: tuple[Any, ...], field: str, *, sides: bool = True) -> str | None:
    """What stands in ``field`` of a state: keys behind it, and with ``sides`` the patterns of partitions before it."""
    names = [key.name if isinstance(key, GetAttrKey) else None for key in path]
    if field not in names:
        return None
    at = names.index(field)
    behind = "/".join(str(key.key) for key in path[at + 1 :] if isinstance(key, DictKey))
    patterns = [f"{key.key}:" for key in path[:at] if isinstance(key, DictKey)] if sides else []
    return "".join([*patterns, behind])


def _starts(name: str) -> bool:
    return name.rsplit(":", 1)[-1] in _STARTS


def _like(leaf: jax.Array, value: Any, name: str) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating) and not isinstance(value, Tracer):
        given = np.asarray(value)
        if not (given == given.astype(leaf.dtype)).all():
            raise ValueError(
                f"The optimiser was made with an integer for {name}, which cannot become {value}. Make it with a "
                "float, such as 0.0 for 0."
            )
    value = jnp.array(value, leaf.dtype)  # a copy, for whoever trains donates the state
    if value.shape != leaf.shape:
        raise ValueError(f"Expected for {name} the shape {leaf.shape}, got {value.shape}.")
    # Committing what was not would compile anew; on a mesh everything is.
    there = isinstance(leaf, Tracer) or isinstance(value, Tracer) or not leaf.committed
    return value if there else jax.device_put(value, leaf.sharding)
