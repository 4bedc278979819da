"""Penalties towards the parameters that training started from, as optax transformations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class L2SPState(NamedTuple):
    """``start`` has the parameters' structure and values at the beginning."""

    hyperparams: dict[str, jax.Array]  # strength, float32
    start: Any


class EWCState(NamedTuple):
    """``start`` and ``importance`` have the parameters' structure."""

    hyperparams: dict[str, jax.Array]  # strength, float32
    start: Any
    importance: Any


def l2_sp(strength: float) -> optax.GradientTransformation:
    r"""Pulls parameters towards where they started, which in transfer is the source's (L2-SP).

    .. math:: \Omega(w) = \tfrac{\alpha}{2} \lVert w - w^0 \rVert^2, \quad g \mathrel{+}= \alpha (w - w^0)

    Goes before the optimiser, as a term of the loss: ``optax.chain(optim.l2_sp(0.1), optax.adam(1e-3))``. The reported
    loss is without it. By rows only those that a batch touched are pulled, once a step; what is never touched is at its
    start anyway. Costs a copy of the trained parameters. For some leaves alone, or with plain decay for new ones, put
    it under ``optim.per_path``.

    Args:
      strength: :math:`\alpha \ge 0`; a hyper-parameter by the name ``strength``, see ``optim.with_hyperparams``.

    Raises:
      ValueError: the strength is negative.
      TypeError: it is an array, as ``optax.inject_hyperparams`` gives, or a schedule.

    References:
      Li, Grandvalet and Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018
      (the penalty of new leaves is left to weight decay).
    """
    _check(strength)

    def init(params: optax.Params) -> L2SPState:
        return L2SPState(_strength(strength), jax.tree.map(jnp.array, params))  # a copy: parameters may be donated

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, L2SPState]:
        alpha = state.hyperparams["strength"]
        pulled = jax.tree.map(lambda grad, w, start: grad + alpha * (w - start), updates, _need(params), state.start)
        return pulled, state

    return optax.GradientTransformation(init, update)


def ewc(strength: float) -> optax.GradientTransformation:
    r"""Pulls each parameter towards its start as strongly as it matters to the source: elastic weight consolidation.

    .. math:: g \mathrel{+}= \lambda F (w - w^0)

    :math:`F` is the diagonal of the Fisher information on the source, ``transfer.fisher``. It belongs to the state:
    ``transfer.adapt(..., importance=fisher)`` aligns it with the target's rows, ``fit(...,
    hyperparams={"importance": fisher})`` takes it as it is, and until one is set it is 1 (then this is ``l2_sp``).
    Everything else is as for ``l2_sp``.

    Args:
      strength: :math:`\lambda \ge 0`; a hyper-parameter by the name ``strength``.

    Raises:
      ValueError: the strength is negative.
      TypeError: it is an array or a schedule.

    References:
      Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 114(13), 2017.
    """
    _check(strength)

    def init(params: optax.Params) -> EWCState:
        return EWCState(_strength(strength), jax.tree.map(jnp.array, params), jax.tree.map(jnp.ones_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, EWCState]:
        size = state.hyperparams["strength"]
        pulled = jax.tree.map(
            lambda grad, w, start, weight: grad + size * weight * (w - start),
            updates, _need(params), state.start, state.importance,
        )  # fmt: skip
        return pulled, state

    return optax.GradientTransformation(init, update)


def _strength(value: float) -> dict[str, jax.Array]:
    return {"strength": jnp.asarray(value, jnp.float32)}


def _check(strength: Any) -> None:
    if callable(strength) or isinstance(strength, jax.Array):
        came = "a schedule" if callable(strength) else "an array"
        raise TypeError(
            f"Expected a number for strength, got {came}. The strength is a hyper-parameter by itself: leave it out of "
            "optax.inject_hyperparams, and set it by optim.with_hyperparams or fit(hyperparams=)."
        )
    if not strength >= 0:
        raise ValueError(f"Expected strength >= 0, got {strength}. It multiplies a penalty.")


def _need(params: Any) -> Any:
    if params is None:
        raise ValueError("Expected the parameters, which are pulled towards their start: update(grads, state, params).")
    return params
