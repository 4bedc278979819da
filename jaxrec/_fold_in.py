"""Vectors of users and items from a few interactions, the trained vectors being fixed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxrec._exact import exact
from jaxrec._types import Array, FoldIn, Link, Squares

_STEPS = 20
_TOLERANCE = 1e-7  # of the slope, as a share of the first one


def prepare(
    errors: Float[Array, "entities dim"], others: Float[Array, "others dim"], share: Float[Array, " others"]
) -> FoldIn:
    """Measures trained vectors for folding in.

    Args:
      errors: of this side's trained entities: their vector minus what the model would give them if they were unknown.
      others: of the other side's.
      share: of the training interactions that each of ``others`` has; sums to 1.
    """
    errors, others, share = (np.asarray(values, np.float64) for values in (errors, others, share))
    met = share @ others
    values, axes = np.linalg.eigh(errors.T @ errors / max(len(errors), 1))
    root = (axes * np.sqrt(np.maximum(values, 0.0))) @ axes.T
    spread = (others - met).T @ ((others - met) * share[:, None])
    curvature, turn = np.linalg.eigh(root @ spread @ root)
    arrays = (met, root, root @ turn, np.maximum(curvature, 0.0))
    return FoldIn(*(array.astype(np.float32) for array in arrays))


@jax.jit
@exact
def fold_in(
    vectors: Float[Array, "batch dim"],
    prior: FoldIn,
    others: Float[Array, "batch length dim"],
    mask: Float[Array, "batch length"],
) -> Float[jax.Array, "batch dim"]:
    r"""Vectors of users from the items that they touched (or of items from their users), by a ridge regression.

    The model says that a user with vector :math:`u` picks item :math:`i` with probability proportional to
    :math:`\exp(u^\top v_i)`. One Newton step on the log-likelihood of the :math:`n` items picked, from the vector
    :math:`u_0` that the model gives without them, with the mean square :math:`S` of what training added to such a guess
    as prior covariance, is

    .. math:: u = u_0 + (n C + S^{-1})^{-1} \textstyle\sum_{i} (v_i - \bar v)

    where :math:`\bar v` and :math:`C` are mean and covariance of the items that training interactions met. Nothing is
    to be tuned; without interactions :math:`u = u_0`, and a coordinate that training left alone stays.

    Args:
      vectors: what the model gives without the interactions.
      prior: of this side.
      others: vectors of the other side that were touched.
      mask: weight of each interaction, 1 where they have none; 0 for padding.

    Returns:
      float32.

    References:
      Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008 (folding in by a
      regression on fixed item vectors; here with the softmax's curvature and an empirical prior instead of weights to
      be tuned).
    """
    gap = jnp.einsum("bld,bl->bd", others - prior.met[None, None, :], mask)
    count = mask.sum(axis=1, keepdims=True)
    step = (gap @ prior.basis) / (1.0 + count * prior.curvature[None, :])
    return jnp.asarray(vectors) + step @ prior.basis.T


@jax.jit
@exact
def fold_in_squares(
    vectors: Float[Array, "batch dim"],
    prior: Squares,
    others: Float[Array, "batch length dim"],
    mask: Float[Array, "batch length"],
    settled: Bool[Array, " batch"] | None = None,
) -> Float[jax.Array, "batch dim"]:
    r"""As ``fold_in`` for vectors of ``train.fit_als``: a regression whose weights ``prior`` has.

    .. math:: u = u_0 + \Bigl(\textstyle\sum_i w_i v_i v_i^\top + \alpha V^\top V + r I\Bigr)^{-1}
        \Bigl(\textstyle\sum_i w_i (1 - u_0^\top v_i) v_i - \alpha V^\top V u_0\Bigr),
        \quad r = \lambda (n + \alpha |V|)^\nu

    Args:
      vectors: what the model gives without the interactions; without any interaction they come back as they are.
      prior: of this side.
      others: vectors of the other side that were touched.
      mask: weight of each interaction, 1 where they have none; 0 for padding.
      settled: whose vectors come from such a regression already, on interactions that are not among these. What pulls
        at them is what is new alone: the last term is left out, or everything that they were trained on would count as
        not observed. None for nobody.

    Returns:
      float32.

    References:
      Hu, Koren and Volinsky, ICDM 2008, with the prior mean of ``train.fit_als``.
    """
    vectors, root = jnp.asarray(vectors), jnp.sqrt(jnp.asarray(mask))
    touched = jnp.asarray(others) * root[..., None]
    count = (root > 0).sum(axis=1).astype(jnp.float32)
    ridge = prior.l2 * (count + prior.unseen) ** prior.exponent
    gap = root - jnp.einsum("bld,bd->bl", touched, vectors)
    unseen = vectors @ prior.gram
    if settled is not None:
        unseen = jnp.where(jnp.asarray(settled)[:, None], 0.0, unseen)
    right = jnp.einsum("bld,bl->bd", touched, gap) - unseen

    def solve(rows: jax.Array, right: jax.Array, ridge: jax.Array) -> jax.Array:
        def image(x: jax.Array) -> jax.Array:
            return rows.T @ (rows @ x) + prior.gram @ x + ridge * x

        return jax.scipy.sparse.linalg.cg(image, right, tol=1e-5, maxiter=2 * right.size)[0]

    change = jax.vmap(solve)(touched, right, jnp.asarray(ridge))
    return vectors + jnp.where(count[:, None] > 0, change, 0.0)


def folded(
    vectors: Float[Array, "batch dim"],
    prior: FoldIn | Squares,
    others: Float[Array, "batch length dim"],
    mask: Float[Array, "batch length"],
    values: Float[Array, "batch length"] | None,
    *,
    link: Link,
    noise: float | Float[Array, ""],
    settled: Bool[Array, " batch"],
) -> Float[jax.Array, "batch dim"]:
    """By the likelihood that goes with how the vectors were trained: which of the functions here it is."""
    if isinstance(prior, Squares):
        return fold_in_squares(vectors, prior, others, mask, settled)
    if values is None or link == "rank":
        return fold_in(vectors, prior, others, mask)
    if link == "sigmoid":
        return fold_in_odds(vectors, prior, others, mask, values)
    return fold_in_values(vectors, prior, others, mask, values, noise=noise)


@jax.jit
@exact
def fold_in_values(
    vectors: Float[Array, "batch dim"],
    prior: FoldIn,
    others: Float[Array, "batch length dim"],
    mask: Float[Array, "batch length"],
    values: Float[Array, "batch length"],
    *,
    noise: float | Float[Array, ""],
) -> Float[jax.Array, "batch dim"]:
    r"""As ``fold_in`` for targets such as ratings: the posterior mean of a linear regression.

    .. math:: u = u_0 + \Bigl(\tfrac{1}{\sigma^2} \sum_i v_i v_i^\top + S^{-1}\Bigr)^{-1}
        \tfrac{1}{\sigma^2} \sum_i v_i (y_i - u_0^\top v_i)

    Args:
      vectors: what the model gives without the interactions.
      prior: of this side.
      others: vectors of the other side that were touched.
      mask: weight of each interaction, 1 where they have none; 0 for padding.
      values: targets, scaled as in training.
      noise: mean squared error of the training targets, positive.

    Returns:
      float32.
    """
    scale = jnp.sqrt(jnp.asarray(mask) / jnp.asarray(noise, jnp.float32))
    rooted = jnp.einsum("bld,de->ble", others * scale[..., None], prior.root)
    residual = (values - jnp.einsum("bld,bd->bl", others, vectors)) * scale
    change = jax.vmap(_solved)(rooted, jnp.asarray(residual))
    return jnp.asarray(vectors) + change @ prior.root


@jax.jit
@exact
def fold_in_odds(
    vectors: Float[Array, "batch dim"],
    prior: FoldIn,
    others: Float[Array, "batch length dim"],
    mask: Float[Array, "batch length"],
    values: Float[Array, "batch length"],
) -> Float[jax.Array, "batch dim"]:
    r"""As ``fold_in`` for targets in [0, 1] of which scores are log-odds: the mode of a logistic regression.

    .. math:: \max_u \; \sum_i \bigl(y_i \log \sigma(u^\top v_i) + (1 - y_i) \log \sigma(-u^\top v_i)\bigr)
        - \tfrac12 (u - u_0)^\top S^{-1} (u - u_0)

    Twenty steps towards it, each to the top of a quadratic bound that touches the objective where the last one ended,
    so that none makes it worse. Of a few dozen interactions they end at the mode but for rounding, of thousands that
    agree somewhat before it.

    Args:
      vectors: what the model gives without the interactions.
      prior: of this side.
      others: vectors of the other side that were touched.
      mask: weight of each interaction, 1 where they have none; 0 for padding.
      values: targets, 1 for a click and 0 for none, or anything between.

    Returns:
      float32.

    References:
      Jaakkola and Jordan, Bayesian parameter estimation via variational methods, Statistics and Computing 10, 2000 (the
      bound on the logistic function).
    """
    rooted = jnp.einsum("bld,de->ble", others, prior.root)
    first = jnp.einsum("bld,bd->bl", others, vectors)

    def step(_: Any, change: jax.Array) -> jax.Array:
        odds = first + jnp.einsum("ble,be->bl", rooted, change)
        size = jnp.abs(odds)
        bend = jnp.where(size > 1e-3, jnp.tanh(size / 2) / (2 * jnp.maximum(size, 1e-3)), 0.25)
        root = jnp.sqrt(mask * bend)
        return jax.vmap(_solved)(rooted * root[..., None], root * ((values - 0.5) / bend - first))

    change = jax.lax.fori_loop(0, _STEPS, step, jnp.zeros_like(jnp.asarray(vectors)))
    return jnp.asarray(vectors) + change @ prior.root


def _solved(rows: Float[jax.Array, "length dim"], values: Float[jax.Array, " length"]) -> Float[jax.Array, " dim"]:
    """The ``x`` that minimises ``|rows x - values|² + |x|²``.

    Conjugate gradients in the form for least squares (Hestenes and Stiefel, 1952), which export to any platform. Of a
    few rows they end after as many steps. Of many that nearly depend on each other they may take more steps than there
    are columns, and since ``rows.T @ rows`` is never used, rounding counts with the root of its condition number alone.
    """

    def going(state: tuple[jax.Array, ...]) -> jax.Array:
        number, _, _, _, steep, first = state
        return (steep > _TOLERANCE**2 * first) & (number < 4 * rows.shape[1])

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        number, x, gap, way, steep, first = state
        image = rows @ way
        length = steep / (image @ image + way @ way)
        x, gap = x + length * way, gap - length * image
        slope = rows.T @ gap - x
        now = slope @ slope
        return number + 1, x, gap, slope + now / steep * way, now, first

    slope = rows.T @ values
    steep = slope @ slope
    start = (jnp.zeros((), jnp.int32), jnp.zeros_like(slope), values, slope, steep, steep)
    return jax.lax.while_loop(going, step, start)[1]
