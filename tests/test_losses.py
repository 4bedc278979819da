"""Losses against NumPy loops, hand-worked values and identities."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from helpers import refuses

from jaxrec import losses
from jaxrec.data import Batch

RNG = np.random.default_rng(0)
SCORES = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
SQUARE = jnp.asarray(RNG.normal(size=(5, 5)), jnp.float32)
WEIGHT = jnp.asarray([1.0, 0.5, 2.0, 0.0, 1.0])


def softplus(x):
    return np.log1p(np.exp(x))


def weighted(values, weight):
    return float((np.asarray(weight) * values).sum() / np.asarray(weight).sum())


def test_mse_is_the_weighted_mean_square():
    loss = losses.mse(SCORES[:, 0], SCORES[:, 1], weight=WEIGHT)
    assert loss == pytest.approx(weighted(np.square(SCORES[:, 0] - SCORES[:, 1]), WEIGHT), rel=1e-6)


def test_sigmoid_cross_entropy_is_the_log_likelihood():
    target = jnp.asarray([0.0, 1.0, 1.0, 0.0, 0.25])
    p = 1 / (1 + np.exp(-np.asarray(SCORES[:, 0])))
    expected = -(np.asarray(target) * np.log(p) + (1 - np.asarray(target)) * np.log(1 - p))
    assert losses.sigmoid_cross_entropy(SCORES[:, 0], target) == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_huge_logits_give_finite_losses_and_gradients(logit):
    value, grad = jax.value_and_grad(lambda s: losses.sigmoid_cross_entropy(s, jnp.ones(1)))(jnp.full(1, logit))
    assert np.isfinite(value) and np.isfinite(grad).all()
    value, grad = jax.value_and_grad(losses.bpr)(jnp.asarray([[logit, -logit]]))
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_bpr_is_the_mean_over_pairs():
    s = np.asarray(SCORES)
    expected = [np.mean([softplus(row[j] - row[0]) for j in range(1, 4)]) for row in s]
    assert losses.bpr(SCORES, weight=WEIGHT) == pytest.approx(weighted(np.array(expected), WEIGHT), rel=1e-5)


def test_sampled_softmax_subtracts_log_q_and_leaves_accidental_hits_out():
    log_q = jnp.log(jnp.asarray([[0.1, 0.2, 0.3, 0.4]]))
    hit = jnp.zeros(SCORES.shape, bool).at[2, 3].set(True)
    expected = []
    for row in range(5):
        logits = np.asarray(SCORES[row] - log_q[0])
        kept = [logits[j] for j in range(4) if not hit[row, j]]
        expected.append(np.log(np.exp(kept).sum()) - logits[0])
    assert losses.sampled_softmax(SCORES, log_q=log_q, hit=hit) == pytest.approx(np.mean(expected), rel=1e-5)


def test_softmax_is_the_multinomial_likelihood_of_a_rows_positives():
    targets = jnp.asarray([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]], jnp.float32)
    s = np.asarray(SCORES, np.float64)
    log_p = s - np.log(np.exp(s).sum(axis=1, keepdims=True))
    expected = weighted(-(np.asarray(targets) * log_p).sum(axis=1), WEIGHT)
    assert losses.softmax(SCORES, targets, weight=WEIGHT) == pytest.approx(expected, rel=1e-5)
    of_batch = losses.on_batch("softmax")
    assert of_batch(SCORES, Batch(target=targets, weight=WEIGHT)) == pytest.approx(expected, rel=1e-5)
    # One positive in a column of its own, the catalogue behind it.
    first = jnp.zeros(SCORES.shape).at[:, 2].set(1.0)
    batch = Batch(item=jnp.full((5, 1), 3), shared_negatives=jnp.arange(1, 5), weight=WEIGHT)
    beside = of_batch(jnp.concatenate([SCORES[:, 2:3], SCORES], axis=1), batch)
    assert beside == pytest.approx(float(losses.softmax(SCORES, first, weight=WEIGHT)), rel=1e-5)
    other = of_batch(jnp.concatenate([SCORES[:, 2:3] + 9.0, SCORES], axis=1), batch)  # drawn otherwise by dropout
    assert other == beside


def test_softmax_of_a_part_of_the_items_is_refused():
    of_batch = losses.on_batch("softmax")
    shared = jnp.arange(1, 4)
    with refuses(ValueError, r"a positive beside all items, .*shape \(5, 4\) and no shared ones.* 'sampled_softmax'"):
        of_batch(SCORES, Batch(item=jnp.ones((5, 4), jnp.int32)))
    with refuses(ValueError, "shape none and some shared ones"):
        of_batch(SCORES, Batch(shared_negatives=shared))
    with refuses(ValueError, r"shape \(5, 0\) and some shared ones"):
        of_batch(SCORES, Batch(item=jnp.ones((5, 0), jnp.int32), shared_negatives=shared))


def test_in_batch_softmax_compares_each_row_with_the_other_rows_positives():
    item = jnp.asarray([1, 2, 1, 3, 0])  # rows 0 and 2 have the same positive, row 4 is padding
    log_q = jnp.log(jnp.asarray([[0.5, 0.2, 0.5, 0.1, 1.0]]))
    expected = []
    for row in range(4):
        logits = np.asarray(SQUARE[row] - log_q[0])
        columns = [j for j in range(5) if j == row or (item[j] != item[row] and item[j] != 0)]
        expected.append(np.log(np.exp(logits[columns]).sum()) - logits[row])
    weight = jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0])
    loss = losses.in_batch_softmax(SQUARE, item=item, log_q=log_q, weight=weight)
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_in_batch_softmax_takes_further_columns_for_the_whole_batch():
    scores, item = SQUARE[:3], jnp.asarray([1, 2, 3, 2, 4])  # the second positive is drawn once more
    log_q = jnp.log(jnp.asarray([[0.5, 0.2, 0.1, 0.2, 0.3]]))
    logits = np.asarray(scores - log_q)
    kept = [[0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]
    expected = [np.log(np.exp(logits[row, columns]).sum()) - logits[row, row] for row, columns in enumerate(kept)]
    batch = Batch(shared_negatives=item, log_q=log_q, weight=jnp.ones(3))
    assert losses.on_batch("in_batch_softmax")(scores, batch) == pytest.approx(np.mean(expected), rel=1e-5)
    assert losses.in_batch_softmax(scores[:, :3]) < losses.in_batch_softmax(scores)
    with pytest.raises(ValueError, match="a column for every row's positive, got scores of shape \\(5, 3\\)"):
        losses.in_batch_softmax(SQUARE[:, :3])


@pytest.mark.parametrize("num_items", [None, 1000])
def test_warp_weighs_the_mean_violation_by_the_harmonic_number_of_the_rank(num_items):
    hit = jnp.zeros(SQUARE.shape, bool).at[1, 2].set(True)
    expected = []
    for row in range(5):
        s = np.asarray(SQUARE[row], np.float64)
        hinges = [max(0.0, 0.8 - s[0] + s[j]) for j in range(1, 5) if not hit[row, j]]
        violations = [hinge for hinge in hinges if hinge > 0]
        rank = len(violations) if num_items is None else len(violations) * (num_items - 1) / len(hinges)
        k = np.arange(1, 2_000_000)  # the harmonic number, also between whole ones
        expected.append((1 / k - 1 / (k + rank)).sum() * np.mean(violations) if violations else 0.0)
    loss = losses.warp(SQUARE, margin=0.8, num_items=num_items, hit=hit, weight=WEIGHT)
    assert loss == pytest.approx(weighted(np.array(expected), WEIGHT), rel=1e-3)
    if num_items is None:
        batch = Batch(item=jnp.asarray([[7, 1, 2, 3, 4], [2, 1, 2, 3, 4]])[jnp.asarray([0, 1, 0, 0, 0])], weight=WEIGHT)
        of_batch = losses.on_batch("warp")(SQUARE, batch)
        assert of_batch == pytest.approx(float(losses.warp(SQUARE, hit=hit, weight=WEIGHT)), rel=1e-6)


def test_warp_weighs_a_positive_more_the_more_negatives_are_above_it():
    ladder = jnp.asarray([[0.0, *([1.0] * above), *([-9.0] * (6 - above))] for above in range(7)])
    slope = -np.asarray(jax.grad(lambda s: losses.warp(s) * len(ladder))(ladder)[:, 0])
    np.testing.assert_allclose(slope, [0, 1, 3 / 2, 11 / 6, 25 / 12, 137 / 60, 49 / 20], rtol=1e-5)
    # Weston's weight: the first ranks gain most, and with BPR's plain mean they would all gain the same.
    assert (np.diff(slope, 2) < 0).all()
    values = [float(losses.warp(row[None, :])) for row in ladder]
    assert values[0] == 0.0 and (np.diff(values) > 0).all()


def test_columns_masked_with_infinity_are_left_out():
    rng = np.random.default_rng(0)
    scores, teacher = rng.normal(size=(2, 3, 4)).astype(np.float32)
    targets = (rng.random((3, 4)) > 0.5).astype(np.float32)
    masked, masked_teacher = (np.insert(each, 2, -np.inf, axis=1) for each in (scores, teacher))
    for loss, given, wider in (
        (losses.softmax, targets, np.insert(targets, 2, 0.0, axis=1)),
        (losses.distillation, teacher, masked_teacher),
    ):
        expected, slope = jax.value_and_grad(loss)(scores, given)
        found, wide_slope = jax.value_and_grad(loss)(masked, wider)
        assert found == pytest.approx(float(expected), rel=1e-6)
        np.testing.assert_allclose(wide_slope, np.insert(np.asarray(slope), 2, 0.0, axis=1), rtol=1e-5, atol=1e-7)
    plain = np.insert(scores, 2, 0.5, axis=1)  # the teacher's mask alone: a column of no share
    assert np.isfinite(jax.grad(losses.distillation)(plain, masked_teacher)).all()


def test_warp_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="margin > 0, got 0"):
        losses.warp(SCORES, margin=0)
    with pytest.raises(ValueError, match="num_items >= 2, the catalogue's size, got 1"):
        losses.warp(SCORES, num_items=1)
    with pytest.raises(ValueError, match="at least one negative per row, got 1 column"):
        losses.warp(SCORES[:, :1])


def test_padding_changes_neither_value_nor_gradient():
    def loss(scores, size):
        batch = Batch(
            shared_negatives=jnp.asarray([1, 2, 3, 0, 0])[:size],
            log_q=jnp.zeros((1, size)),
            weight=jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0])[:size],
        )
        return losses.on_batch("in_batch_softmax")(scores[:size, :size], batch)

    value, grad = jax.value_and_grad(loss)(SQUARE, 3)
    padded_value, padded_grad = jax.value_and_grad(loss)(SQUARE.at[4].set(1e4), 5)
    assert padded_value == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(padded_grad, grad, atol=1e-6)


@pytest.mark.parametrize("name", ["mse", "sigmoid_cross_entropy", "bpr", "sampled_softmax", "in_batch_softmax", "warp"])
def test_zero_weights_give_zero(name):
    batch = Batch(
        item=jnp.ones((5, 5), jnp.int32), shared_negatives=None if name != "in_batch_softmax" else jnp.arange(5),
        target=None, weight=jnp.zeros(5),
    )  # fmt: skip
    assert losses.on_batch(name)(SQUARE, batch) == 0.0


@pytest.mark.parametrize("name", ["mse", "sigmoid_cross_entropy"])
def test_without_targets_the_positive_is_one_and_negatives_are_zero(name):
    target = jnp.zeros(SCORES.shape).at[:, 0].set(1.0)
    expected = getattr(losses, name)(SCORES, target)
    assert losses.on_batch(name)(SCORES, Batch()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "sigmoid_cross_entropy", "bpr", "sampled_softmax", "in_batch_softmax", "warp"])
def test_gradients_agree_with_finite_differences(name):
    batch = Batch(
        item=jnp.arange(1, 26).reshape(5, 5), shared_negatives=jnp.arange(1, 6), target=jnp.linspace(0, 1, 5),
        weight=WEIGHT + 0.1,
    )  # fmt: skip
    if name != "in_batch_softmax":
        batch = batch._replace(shared_negatives=None)
    scores = SQUARE if name not in ("mse", "sigmoid_cross_entropy") else SQUARE[:, :1]
    jax.test_util.check_grads(
        lambda s: losses.on_batch(name)(jnp.asarray(s), batch), (scores,), order=1, modes=["rev"], rtol=2e-2
    )


def test_half_precision_scores_are_summed_in_float32():
    scores = jnp.ones((4096, 2), jnp.bfloat16)
    assert losses.bpr(scores).dtype == jnp.float32
    assert losses.bpr(scores) == pytest.approx(np.log(2), rel=1e-6)


def test_a_loss_without_negatives_says_what_to_do():
    with pytest.raises(ValueError, match="got 1 column.*negatives=data.Negatives\\(num=1\\)"):
        losses.bpr(SCORES[:, :1])


def test_an_unknown_loss_names_the_known_ones():
    with pytest.raises(ValueError, match="mse, sigmoid_cross_entropy, bpr.*'hinge'"):
        losses.on_batch("hinge")


@pytest.mark.parametrize("loss", [losses.mse, losses.sigmoid_cross_entropy])
def test_shapes_that_would_broadcast_are_refused(loss):
    with refuses(ValueError, r"one target per score, got shapes \(3,\) and \(3, 1\)"):
        loss(jnp.ones(3), jnp.ones((3, 1)))


@pytest.mark.parametrize("loss", [losses.mse, losses.sigmoid_cross_entropy])
def test_weights_that_would_broadcast_are_refused(loss):
    scores, targets = SCORES[:, :1], jnp.ones((5, 1))
    for weight in (WEIGHT, WEIGHT[:1], 2.0):
        with refuses(ValueError, r"for each .* of shape \(5, 1\), got \(.* as by weight\[:, None\], or compare"):
            loss(scores, targets, weight=weight)
    assert loss(scores, targets, weight=WEIGHT[:, None]) == loss(scores[:, 0], targets[:, 0], weight=WEIGHT)


def test_reversing_changes_the_gradient_alone():
    x = jnp.asarray([0.1, -2.0, 3.0])

    def of(x, scale):
        return jnp.sum(jnp.sin(losses.reverse_gradient(x, scale)))

    value, found = jax.jit(jax.value_and_grad(of))(x, 0.25)
    np.testing.assert_array_equal(value, jnp.sum(jnp.sin(x)))
    np.testing.assert_allclose(found, -0.25 * np.cos(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(of)(x, 1.0), -np.cos(x), rtol=1e-6)
    assert not jax.grad(of)(x, 0.0).any()
