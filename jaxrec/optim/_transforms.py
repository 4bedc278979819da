"""Optax transformations of jaxrec's own."""

import functools
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec import _tree


def per_path(transformations: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Another transformation for each part of the tree, as a learning rate per path.

    Args:
      transformations: by pattern, as in ``{"item/*": optax.adam(1e-4), "*": optax.adam(1e-3)}``. A leaf takes the
        first pattern that covers its path. One that covers none is no error, since which leaves are trained differs
        between models and phases: a misspelt pattern does nothing, and its leaves take a later one.

    Raises:
      ValueError: a pattern comes after ``"*"``, which leaves it nothing, or begins with ``"!"``; or, when the state is
        made, a leaf is covered by no pattern.

    Examples:
      >>> update = per_path({"head/*": optax.sgd(1.0), "*": optax.sgd(0.1)})
      >>> grads = {"head": {"bias": jnp.ones(())}, "bias": jnp.ones(())}
      >>> updates, _ = update.update(grads, update.init(grads))
      >>> print(f"{updates['head']['bias']:.1f} {updates['bias']:.1f}")
      -1.0 -0.1
    """
    patterns = tuple(transformations)
    for number, pattern in enumerate(patterns):
        if pattern.startswith("!"):
            raise ValueError(
                f"Expected patterns that cover paths, got {pattern!r}. A leaf takes the first pattern that covers it: "
                f"give {pattern[1:]!r} a transformation of its own before the others."
            )
        if "*" in patterns[:number]:
            raise ValueError(f"Pattern {pattern!r} comes after '*', which covers every leaf. Put '*' last.")

    def label(path: str, leaf: Any) -> str:
        for pattern in patterns:
            if _tree.covers(pattern, path):
                return pattern
        raise ValueError(f"No pattern covers parameter {path!r}, got {', '.join(patterns)}. Add '*' as the last one.")

    named: dict[Hashable, optax.GradientTransformation] = {**transformations}
    return optax.partition(named, functools.partial(_tree.map_with_path, label))


class RowwiseAdagradState(NamedTuple):
    """``mean_square`` has the parameters' structure; a leaf ``[rows, dim]`` has ``[rows, 1]``, float32."""

    mean_square: Any


def rowwise_adagrad(
    learning_rate: float | optax.Schedule, *, initial: float = 0.0, eps: float = 1e-8
) -> optax.GradientTransformation:
    r"""Adagrad with one accumulator per row instead of one per element.

    .. math:: a_r \mathrel{+}= \tfrac{1}{d} \lVert g_r \rVert^2, \quad
        \theta_r \mathrel{-}= \eta \, g_r / (\sqrt{a_r} + \epsilon)

    The state of a table is one float per row. Leaves of fewer than two dimensions get one accumulator per element.

    Args:
      learning_rate: positive, or a schedule of the step.
      initial: start of the accumulators; larger is slower at first.
      eps: keeps a row whose gradients were all zero where it is.

    References:
      Duchi, Hazan and Singer, JMLR 12, 2011; row-wise as in Naumov et al., Deep learning recommendation model
      for personalization and recommendation systems, 2019.
    """

    def init(params: optax.Params) -> RowwiseAdagradState:
        return RowwiseAdagradState(
            jax.tree.map(lambda leaf: jnp.full(_one_per_row(leaf), initial, jnp.float32), params)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RowwiseAdagradState]:
        def accumulate(grad: jax.Array, total: jax.Array) -> jax.Array:
            square = jnp.square(grad.astype(jnp.float32))
            return total + (square.mean(axis=tuple(range(1, grad.ndim)), keepdims=True) if grad.ndim > 1 else square)

        total = jax.tree.map(accumulate, updates, state.mean_square)
        scaled = jax.tree.map(lambda grad, total: grad / (jnp.sqrt(total) + eps), updates, total)
        return scaled, RowwiseAdagradState(total)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


def _one_per_row(leaf: jax.Array) -> tuple[int, ...]:
    return (leaf.shape[0], *(1,) * (leaf.ndim - 1)) if leaf.ndim > 1 else leaf.shape
