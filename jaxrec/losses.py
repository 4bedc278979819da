"""Losses: weighted means over a batch, pure functions of arrays.

``fit`` takes one by name or any function ``(scores, batch) -> scalar``; ``on_batch`` gives the named ones in that form.
Such a function has to weigh rows by ``batch.weight``, which is 0 for examples that only fill a batch up. Weights have
the shape of the losses that they belong to. A row of weight 0 adds nothing to the value, whatever it scored; its
gradient is 0 where scores and targets are finite: give masked targets a number.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxrec._types import Array, Batch

__all__ = [
    "bpr",
    "distillation",
    "in_batch_softmax",
    "mse",
    "on_batch",
    "reverse_gradient",
    "sampled_softmax",
    "sigmoid_cross_entropy",
    "softmax",
    "warp",
]

Loss = Callable[[jax.Array, Batch], jax.Array]
POINTWISE = ("mse", "sigmoid_cross_entropy")
"""Names of the losses that compare a score with a target; the others order items."""


def mse(
    predictions: Float[Array, "*batch"],
    targets: Float[Array, "*batch"],
    *,
    weight: Float[Array, "*batch"] | None = None,
) -> Float[jax.Array, ""]:
    """Mean squared error.

    Args:
      predictions: any float dtype; the sum runs in float32.
      targets: in the same unit.
      weight: of each prediction, non-negative; the mean is ``sum(weight * loss) / sum(weight)``.

    Returns:
      float32 scalar >= 0; 0 for an empty batch or zero weights.

    Raises:
      ValueError: shapes differ. They are not broadcast.

    Examples:
      >>> print(f"{mse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])):.1f}")
      2.0
    """
    _need_same_shape(predictions, targets)
    return _mean(jnp.square(_float32(predictions) - _float32(targets)), weight)


def sigmoid_cross_entropy(
    logits: Float[Array, "*batch"], targets: Float[Array, "*batch"], *, weight: Float[Array, "*batch"] | None = None
) -> Float[jax.Array, ""]:
    r"""Cross-entropy of ``targets`` and ``sigmoid(logits)``.

    .. math:: -t \log \sigma(s) - (1 - t) \log(1 - \sigma(s)) = \log(1 + e^s) - t s

    Args:
      logits: real scores; any size is safe.
      targets: probabilities in [0, 1].
      weight: of each logit, non-negative.

    Returns:
      float32 scalar in nats; 0 for an empty batch or zero weights.

    Raises:
      ValueError: shapes differ. They are not broadcast.

    Examples:
      >>> print(f"{sigmoid_cross_entropy(jnp.array([0.0]), jnp.array([1.0])):.4f}")
      0.6931
    """
    _need_same_shape(logits, targets)
    logits = _float32(logits)
    return _mean(jax.nn.softplus(logits) - _float32(targets) * logits, weight)


def bpr(scores: Float[Array, "batch columns"], *, weight: Float[Array, " batch"] | None = None) -> Float[jax.Array, ""]:
    r"""Bayesian personalised ranking: the positive should be above each of its negatives.

    .. math:: -\log \sigma(s_{+} - s_{-}), \text{ averaged over the negatives}

    Args:
      scores: the positive in column 0, negatives in the others, of which there is at least one.
      weight: of each row, non-negative.

    Returns:
      float32 scalar; log 2 where all scores are equal, 0 for an empty batch or zero weights.

    Raises:
      ValueError: there is no column of negatives.

    Examples:
      >>> print(f"{bpr(jnp.array([[2.0, 2.0]])):.4f}")
      0.6931

    References:
      Rendle et al., BPR: Bayesian personalized ranking from implicit feedback, UAI 2009 (the regulariser is left
      to the optimiser's weight decay).
    """
    _need_negatives(scores)
    scores = _float32(scores)
    return _mean(jax.nn.softplus(scores[:, 1:] - scores[:, :1]).mean(axis=1), weight)


def softmax(
    scores: Float[Array, "batch items"],
    targets: Float[Array, "batch items"],
    *,
    weight: Float[Array, " batch"] | None = None,
) -> Float[jax.Array, ""]:
    r"""Softmax cross-entropy over the whole catalogue; of several positives in a row, their multinomial likelihood.

    .. math:: \sum_i t_i \Bigl(\log \sum_j e^{s_j} - s_i\Bigr)

    Args:
      scores: of every item; ``-inf`` takes an item out of the softmax.
      targets: non-negative, 1 for each positive and 0 for all others.
      weight: of each row, non-negative.

    Returns:
      float32 scalar in nats, the mean over rows of the sum over a row; 0 for an empty batch or zero weights.

    Examples:
      >>> print(f"{softmax(jnp.zeros((1, 4)), jnp.array([[1.0, 1.0, 0.0, 0.0]])):.4f}")
      2.7726

    References:
      Liang, Krishnan, Hoffman and Jebara, Variational autoencoders for collaborative filtering, WWW 2018 (its
      multinomial likelihood, less the constant that no parameter changes).
    """
    _need_same_shape(scores, targets)
    return _mean(-_expected(_float32(targets), jax.nn.log_softmax(_float32(scores), axis=1)), weight)


def sampled_softmax(
    scores: Float[Array, "batch columns"],
    *,
    log_q: Float[Array, "#batch columns"] | None = None,
    hit: Array | None = None,
    weight: Float[Array, " batch"] | None = None,
) -> Float[jax.Array, ""]:
    """Softmax cross-entropy of the positive among sampled negatives.

    Args:
      scores: the positive in column 0, negatives in the others, of which there is at least one.
      log_q: logarithm of each column's sampling probability, subtracted from the scores (log-Q correction).
      hit: bool ``[batch, columns]``, columns that are the positive by accident and are left out; column 0 False.
      weight: of each row, non-negative.

    Returns:
      float32 scalar in nats; 0 for an empty batch or zero weights.

    Raises:
      ValueError: there is no column of negatives.

    Examples:
      >>> print(f"{sampled_softmax(jnp.zeros((1, 4))):.4f}")
      1.3863

    References:
      Jean et al., On using very large target vocabulary for neural machine translation, ACL 2015 (the correction
      is applied to the positive as well).
    """
    _need_negatives(scores)
    logits = _corrected(scores, log_q)
    if hit is not None:
        logits = jnp.where(hit, -jnp.inf, logits)
    return _mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0], weight)


def in_batch_softmax(
    scores: Float[Array, "batch columns"],
    *,
    item: Int[Array, " columns"] | None = None,
    log_q: Float[Array, "#batch columns"] | None = None,
    weight: Float[Array, " batch"] | None = None,
) -> Float[jax.Array, ""]:
    """Softmax cross-entropy of each row's positive, on the diagonal, among the batch's positives and further columns.

    Args:
      scores: row ``b`` scores user ``b`` against every row's positive item, then against items drawn for the whole
        batch, if there are any (mixed negatives).
      item: the columns' entity indices. Columns that hold the row's own positive a second time are left out
        (accidental hits), and so are columns of the unknown item 0, which pads a batch.
      log_q: logarithm of each column's sampling probability, usually of item popularity; subtracted from the
        scores, because popular items are met as negatives more often.
      weight: of each row, non-negative.

    Returns:
      float32 scalar in nats; 0 for an empty batch or zero weights.

    Raises:
      ValueError: there are fewer columns than rows, so that some row has no positive.

    Examples:
      >>> print(f"{in_batch_softmax(jnp.zeros((2, 2))):.4f}")
      0.6931

    References:
      Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019 (no
      temperature, no normalisation; accidental hits removed). Yang et al., Mixed negative sampling for learning
      two-tower neural networks in recommendations, WWW 2020, for further columns.
    """
    if scores.shape[1] < scores.shape[0]:
        raise ValueError(
            f"Expected a column for every row's positive, got scores of shape {scores.shape}. Draw the batch with "
            "Negatives(in_batch=True)."
        )
    logits = _corrected(scores, log_q)
    own = jnp.eye(*logits.shape, dtype=bool)
    if item is not None:
        item = jnp.asarray(item)
        gone = (item[: logits.shape[0], None] == item[None, :]) | (item[None, :] == 0)
        logits = jnp.where(gone & ~own, -jnp.inf, logits)
    return _mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits), weight)


def warp(
    scores: Float[Array, "batch columns"],
    *,
    margin: float = 1.0,
    num_items: int | None = None,
    hit: Array | None = None,
    weight: Float[Array, " batch"] | None = None,
) -> Float[jax.Array, ""]:
    r"""Weighted approximate-rank pairwise loss: the further down its list the positive seems, the more it counts.

    .. math::
        \frac{H(r)}{|V|} \sum_{j \in V} (m - s_{+} + s_j), \quad V = \{j : s_j + m > s_{+}\}, \quad
        H(r) = \sum_{k=1}^{r} \frac{1}{k}

    The rank :math:`r` is estimated from how many of the negatives violate the margin :math:`m`: it is :math:`|V|` among
    those drawn, and :math:`|V| (N - 1) / n` in a catalogue of :math:`N` items of which :math:`n` were drawn, where
    :math:`H` is continued between whole numbers by the digamma function. The weight is not differentiated.

    Args:
      scores: the positive in column 0, negatives drawn uniformly in the others. The more of them, the finer the
        rank: a single one only says whether it violates.
      margin: positive, in the unit of the scores.
      num_items: the catalogue's size, at least 2; None for the rank among the negatives drawn.
      hit: bool ``[batch, columns]``, columns that are the positive by accident and are left out; column 0 False.
      weight: of each row, non-negative.

    Returns:
      float32 scalar >= 0; 0 where every positive is ahead by the margin, for an empty batch or zero weights.

    Raises:
      ValueError: there is no column of negatives, ``margin`` or ``num_items`` is out of range.

    Examples:
      >>> print(f"{warp(jnp.array([[1.0, 1.5, 0.5, -9.0]])):.2f}")  # two violate, by 1.5 and 0.5: (1 + 1/2) * 1.0
      1.50

    References:
      Weston, Bengio and Usunier, WSABIE: scaling up to large vocabulary image annotation, IJCAI 2011. There negatives
      are drawn one after another until one violates; its hinge alone is taken, and the number of draws gives the rank.
      Here all are scored side by side: the hinge is the mean over those that violate, which is what the first of them
      has on average, and the rank is estimated from all of them, with less variance.
    """
    _need_negatives(scores)
    if not margin > 0:
        raise ValueError(f"Expected margin > 0, got {margin}. It is how far the positive should be ahead.")
    if num_items is not None and num_items < 2:
        raise ValueError(f"Expected num_items >= 2, the catalogue's size, got {num_items}.")
    scores = _float32(scores)
    kept = jnp.ones(scores[:, 1:].shape, bool) if hit is None else ~jnp.asarray(hit)[:, 1:]
    hinge = jnp.where(kept, jax.nn.relu(margin - scores[:, :1] + scores[:, 1:]), 0.0)
    violating = (hinge > 0).astype(jnp.float32).sum(axis=1)
    rank = violating
    if num_items is not None:
        rank = violating * (num_items - 1) / jnp.maximum(kept.astype(jnp.float32).sum(axis=1), 1.0)
    harmonic = jax.scipy.special.digamma(rank + 1.0) + np.euler_gamma
    return _mean(harmonic * hinge.sum(axis=1) / jnp.maximum(violating, 1.0), weight)


def on_batch(name: str) -> Loss:
    """The loss called ``name`` as a function ``(scores, batch) -> scalar``, the form that training takes.

    Where a batch has no targets, ``mse`` and ``sigmoid_cross_entropy`` take 1 for the positive in column 0 and 0
    for the negatives.

    Raises:
      ValueError: no loss has that name.
    """
    if name not in _ON_BATCH:
        raise ValueError(f"Expected a loss among {', '.join(_ON_BATCH)} or a function (scores, batch), got {name!r}.")
    return _ON_BATCH[name]


def _pointwise(loss: Callable[..., jax.Array]) -> Loss:
    def of_batch(scores: jax.Array, batch: Batch) -> jax.Array:
        if batch.target is None:
            target = jnp.zeros_like(scores).at[:, 0].set(1.0)
        else:
            target = jnp.asarray(batch.target)[:, None]
        weight = None if batch.weight is None else jnp.broadcast_to(jnp.asarray(batch.weight)[:, None], scores.shape)
        return loss(scores, target, weight=weight)

    return of_batch


def _bpr(scores: jax.Array, batch: Batch) -> jax.Array:
    return bpr(scores, weight=batch.weight)


def _softmax(scores: jax.Array, batch: Batch) -> jax.Array:
    if batch.item is None and batch.target is not None:
        return softmax(scores, batch.target, weight=batch.weight)
    if batch.item is None or batch.item.shape[1] != 1 or batch.shared_negatives is None:
        own = "none" if batch.item is None else str(batch.item.shape)
        raise ValueError(
            f"Expected a positive beside all items, Negatives(catalogue=True), got own items of shape {own} and "
            f"{'no' if batch.shared_negatives is None else 'some'} shared ones. For a part of the items use "
            "'sampled_softmax'."
        )
    # Dropout may have drawn the positive's own column otherwise than that in the catalogue, which counts.
    everything = _float32(scores[:, 1:])
    positive = jnp.where(jnp.asarray(batch.shared_negatives)[None, :] == jnp.asarray(batch.item), everything, 0.0)
    return _mean(jax.nn.logsumexp(everything, axis=1) - positive.sum(axis=1), batch.weight)


def _sampled_softmax(scores: jax.Array, batch: Batch) -> jax.Array:
    return sampled_softmax(scores, log_q=batch.log_q, hit=_hits(batch), weight=batch.weight)


def _warp(scores: jax.Array, batch: Batch) -> jax.Array:
    return warp(scores, hit=_hits(batch), weight=batch.weight)


def _hits(batch: Batch) -> jax.Array:
    """Which negatives are their row's positive by accident."""
    own = jnp.asarray(batch.item)
    columns = own
    if batch.shared_negatives is not None:
        shared = jnp.asarray(batch.shared_negatives)[None, :]
        columns = jnp.concatenate([own, jnp.broadcast_to(shared, (own.shape[0], shared.shape[1]))], axis=1)
    return (columns == own[:, :1]).at[:, 0].set(False)


def _in_batch_softmax(scores: jax.Array, batch: Batch) -> jax.Array:
    return in_batch_softmax(scores, item=batch.shared_negatives, log_q=batch.log_q, weight=batch.weight)


_ON_BATCH: dict[str, Loss] = {
    "mse": _pointwise(mse),
    "sigmoid_cross_entropy": _pointwise(sigmoid_cross_entropy),
    "bpr": _bpr,
    "softmax": _softmax,
    "sampled_softmax": _sampled_softmax,
    "in_batch_softmax": _in_batch_softmax,
    "warp": _warp,
}


def reverse_gradient(x: Float[Array, "*shape"], scale: float | jax.Array = 1.0) -> Float[jax.Array, "*shape"]:
    """``x`` itself, whose gradient is multiplied by ``-scale`` on the way back.

    What is behind it minimises its loss, and what is before it maximises the same loss, in one step of descent.

    Args:
      x: any float dtype.
      scale: may be traced; 0 lets nothing pass. No gradient reaches it.

    Examples:
      >>> print(jax.grad(lambda x: 3.0 * reverse_gradient(x, 0.5))(1.0))
      -1.5

    References:
      Ganin et al., Domain-adversarial training of neural networks, JMLR 17(59), 2016.
    """
    x = jnp.asarray(x)
    return _reversed(x, jnp.asarray(scale, x.dtype))


@jax.custom_vjp
def _reversed(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x


def _reversed_forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, scale


def _reversed_backward(scale: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return -scale * gradient, jnp.zeros_like(scale)


_reversed.defvjp(_reversed_forward, _reversed_backward)


def _float32(x: Array) -> jax.Array:
    return jnp.asarray(x).astype(jnp.float32)


def _corrected(scores: Array, log_q: Array | None) -> jax.Array:
    scores = _float32(scores)
    return scores if log_q is None else scores - _float32(log_q)


def _need_same_shape(scores: Array, targets: Array) -> None:
    if scores.shape != targets.shape:
        raise ValueError(
            f"Expected one target per score, got shapes {scores.shape} and {targets.shape}, which would broadcast. "
            "Reshape one of them."
        )


def distillation(
    scores: Float[Array, "batch columns"],
    teacher: Float[Array, "batch columns"],
    *,
    temperature: float = 1.0,
    weight: Float[Array, " batch"] | None = None,
) -> Float[jax.Array, ""]:
    r"""How far a student's distribution over a row's columns is from a teacher's.

    .. math:: \mathrm{KL}(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s))

    Args:
      scores: of the student, :math:`s`.
      teacher: of the teacher, :math:`t`; no gradient is passed on to it. A column that it gives ``-inf`` has no share,
        and if the student gives it ``-inf`` too it is left out altogether.
      temperature: :math:`T`, positive, in the units of the teacher's scores: factorizations of 0 and 1 need a small
        one, such as 0.1.
      weight: of each row, non-negative.

    Returns:
      float32 scalar >= 0 in nats; 0 for an empty batch or zero weights, and for a single column.

    Raises:
      ValueError: shapes differ or the temperature is not positive.

    References:
      Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015 (of scores over items instead of
      classes; the student's own temperature is 1, since its scores have units of their own).
    """
    if scores.shape != teacher.shape:
        raise ValueError(f"Expected a teacher's score for each of the student's, got {teacher.shape}, {scores.shape}.")
    if not temperature > 0:
        raise ValueError(f"Expected temperature > 0, got {temperature}.")
    wanted = jax.nn.log_softmax(jax.lax.stop_gradient(_float32(teacher)) / temperature, axis=1)
    share, found = jnp.exp(wanted), jax.nn.log_softmax(_float32(scores), axis=1)
    return _mean(_expected(share, wanted - found), weight)


def _expected(share: jax.Array, logarithms: jax.Array) -> jax.Array:
    """Sum over columns of share times logarithm, of which 0 times ``-inf`` is 0."""
    return (share * jnp.where(share != 0, logarithms, 0.0)).sum(axis=1)


def _need_negatives(scores: Array) -> None:
    if scores.shape[1] < 2:
        raise ValueError(
            f"Expected the positive and at least one negative per row, got {scores.shape[1]} column(s). Sample "
            "negatives: fit(..., negatives=data.Negatives(num=1))."
        )


def _mean(losses: jax.Array, weight: Array | None) -> jax.Array:
    if weight is None:
        return losses.sum() / max(losses.size, 1)
    weight = _float32(weight)
    if weight.shape != losses.shape:
        raise ValueError(
            f"Expected a weight for each of the losses, of shape {losses.shape}, got {weight.shape}, which would "
            "broadcast. Give them that shape, as by weight[:, None], or compare scores[:, 0] with plain targets."
        )
    # A row without weight is padding: whatever it scored, inf included, must not reach the sum. Its gradient is 0 if
    # that is finite, as padding's is: to replace scores first costs a tenth of an in-batch softmax, of others more.
    total = (weight * jnp.where(weight > 0, losses, 0.0)).sum()
    return total / jnp.where(weight.sum() > 0, weight.sum(), 1.0)
