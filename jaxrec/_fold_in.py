"""Vectors of users and items from a few interactions, the trained vectors being fixed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrec._exact import exact
from jaxrec._types import Array, FoldIn, Squares


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
      mask: 1 for an interaction, 0 for padding.

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
) -> Float[jax.Array, "batch dim"]:
    r"""As ``fold_in`` for vectors of ``train.fit_als``: a regression whose weights ``prior`` has.

    .. math:: u = u_0 + \Bigl(\textstyle\sum_i v_i v_i^\top + \alpha V^\top V + r I\Bigr)^{-1}
        \Bigl(\textstyle\sum_i (1 - u_0^\top v_i) v_i - \alpha V^\top V u_0\Bigr),
        \quad r = \lambda (n + \alpha |V|)^\nu

    Args:
      vectors: what the model gives without the interactions; without any interaction they come back as they are.
      prior: of this side.
      others: vectors of the other side that were touched.
      mask: 1 for an interaction, 0 for padding.

    Returns:
      float32.

    References:
      Hu, Koren and Volinsky, ICDM 2008, with the prior mean of ``train.fit_als``.
    """
    vectors = jnp.asarray(vectors)
    touched = jnp.asarray(others) * jnp.asarray(mask)[..., None]
    count = jnp.asarray(mask).sum(axis=1)
    ridge = prior.l2 * (count + prior.unseen) ** prior.exponent
    right = jnp.einsum("bld,bl->bd", touched, 1.0 - jnp.einsum("bld,bd->bl", touched, vectors)) - vectors @ prior.gram

    def solve(rows: jax.Array, right: jax.Array, ridge: jax.Array) -> jax.Array:
        def image(x: jax.Array) -> jax.Array:
            return rows.T @ (rows @ x) + prior.gram @ x + ridge * x

        return jax.scipy.sparse.linalg.cg(image, right, tol=1e-5, maxiter=2 * right.size)[0]

    change = jax.vmap(solve)(touched, right, jnp.asarray(ridge))
    return vectors + jnp.where(count[:, None] > 0, change, 0.0)


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
      mask: 1 for an interaction, 0 for padding.
      values: targets, scaled as in training.
      noise: mean squared error of the training targets, positive.

    Returns:
      float32.
    """
    rooted = jnp.einsum("bld,de->ble", others * mask[..., None], prior.root) / jnp.sqrt(jnp.asarray(noise, jnp.float32))
    residual = (values - jnp.einsum("bld,bd->bl", others, vectors)) * mask / jnp.sqrt(jnp.asarray(noise, jnp.float32))

    def solve(rows: jax.Array, right: jax.Array) -> jax.Array:
        # The unit matrix plus one of low rank is well conditioned, and conjugate gradients export to any platform.
        return jax.scipy.sparse.linalg.cg(lambda x: x + rows.T @ (rows @ x), right, tol=1e-6, maxiter=right.size + 1)[0]

    change = jax.vmap(solve)(rooted, jnp.einsum("ble,bl->be", rooted, residual))
    return jnp.asarray(vectors) + change @ prior.root
