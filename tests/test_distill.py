"""Learning from a teacher's scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import refuses

import jaxrec
from jaxrec import _tree, losses, models, optim, train, transfer
from jaxrec.data import Batch
from jaxrec.models._taught import Taught
from jaxrec.ranking._vectors import item_vectors, user_vectors

OPTIONS = {"epochs": 12, "batch_size": 128, "loss": "sampled_softmax", "optimizer": optax.adam(0.05), "progress": False}


@pytest.fixture(scope="module")
def teacher(parts):
    """Wider than the student, and by another method."""
    return train.fit_als(parts.train, dim=12, epochs=4)


def scores(recommender, users):
    items = np.arange(1, 40, dtype=np.int32)
    return np.asarray(user_vectors(recommender, users)) @ np.asarray(item_vectors(recommender, items)).T


def test_a_student_comes_closer_to_its_teacher(parts, teacher):
    model = models.MatrixFactorization.for_data(parts.train, dim=8, bias=False)
    users = np.unique(parts.train.user)[:50].astype(np.int32)
    wanted = jnp.asarray(scores(teacher, users))

    def distance(weight):
        found = transfer.distill(teacher, parts.train, model=model, weight=weight, temperature=0.1, **OPTIONS)
        assert found.model == model and set(found.params) == {"user", "item"}
        return float(losses.distillation(jnp.asarray(scores(found, users)), wanted, temperature=0.1)), found

    alone, without = distance(0.0)
    taught, _ = distance(5.0)
    assert taught < 0.8 * alone
    plain = jaxrec.fit(model, parts.train, **OPTIONS)
    # A teacher without a say: another program, so equal up to rounding, which Adam makes larger.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=5e-3), without.params, plain.params)


def test_the_temperature_counts(parts, teacher):
    model = models.MatrixFactorization.for_data(parts.train, dim=2, bias=False)
    found = [
        transfer.distill(teacher, parts.train, model=model, **OPTIONS | {"epochs": 1}, **chosen).params
        for chosen in ({}, {"temperature": 1.0}, {"temperature": 0.1})
    ]
    jax.tree.map(np.testing.assert_array_equal, found[0], found[1])
    assert (np.asarray(found[0]["item"]["embedding"]) != np.asarray(found[2]["item"]["embedding"])).any()


def test_without_a_say_of_the_teacher_an_autoencoder_learns_as_by_fit(parts, teacher):
    model = models.VariationalAutoencoder.for_data(parts.train, dim=8, latent=4, history=8, dropout=0.0)
    options = {"epochs": 3, "batch_size": 256, "progress": False}
    taught = transfer.distill(teacher, parts.train, model=model, weight=0.0, **options)
    plain = jaxrec.fit(model, parts.train, **options)
    np.testing.assert_allclose(taught.history["loss"], plain.history["loss"], rtol=1e-4)


def test_options_go_by_the_students_own_paths(parts, teacher):
    model = models.MatrixFactorization.for_data(parts.train, dim=4, bias=False)
    still = optim.per_path({"item/*": optax.sgd(0.0), "*": optax.sgd(1.0)})
    taught = transfer.distill(teacher, parts.train, model=model, **{**OPTIONS, "optimizer": still, "epochs": 1})
    start = model.init(jax.random.split(jax.random.key(0))[0])
    np.testing.assert_array_equal(taught.params["item"]["embedding"][1:], start["item"]["embedding"][1:])
    assert (taught.params["user"]["embedding"] != start["user"]["embedding"]).any()


def test_padding_among_the_columns_is_no_item(teacher, parts):
    """A batch in which the last examples and their columns are padding teaches what a shorter one does."""
    student = models.MatrixFactorization.for_data(parts.train, dim=4)
    sizes = parts.train.sizes
    taught = Taught(student=student, user_rows=sizes.user_rows, item_rows=sizes.item_rows, dim=3, weight=1.0,
                    temperature=0.5)  # fmt: skip
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(
        leaf.shape), taught.init(jax.random.key(0)))  # fmt: skip

    def penalty(size):
        index = jnp.where(jnp.arange(size) < 5, jnp.arange(size) + 1, 0).astype(jnp.int32)
        batch = Batch(user=index, item=jnp.zeros((size, 0), jnp.int32), shared_negatives=index,
                      weight=(index > 0).astype(jnp.float32))  # fmt: skip
        found = taught.lookups(batch, parts.train.features)
        gathered = {name: _tree.get(params, lookup.path)[lookup.rows] for name, lookup in found.items()}
        return float(taught.score(params, gathered, batch, parts.train.features).penalty)

    assert penalty(8) == pytest.approx(penalty(5), rel=1e-5) and penalty(5) > 0


def test_a_teacher_of_targets(rated_parts):
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    options = {"epochs": 12, "batch_size": 128, "optimizer": optax.adam(0.05), "progress": False}
    teacher = jaxrec.fit(model, rated_parts.train, seed=1, **options)
    pairs = rated_parts.validation.interactions
    encoder = rated_parts.train.encoder
    frame = pd.DataFrame({"user": encoder.users.decode(pairs.user), "item": encoder.items.decode(pairs.item)})

    def predicted(recommender):
        return np.asarray(jaxrec.predict(recommender, frame))

    def off(weight):
        student = transfer.distill(teacher, rated_parts.train, model=model, weight=weight, **options)
        return np.square(predicted(student) - predicted(teacher)).mean()

    assert off(20.0) < 0.7 * off(0.0)


def test_the_scores_of_teacher_and_student_mean_the_same(rated_parts):
    """The squared difference of a rating and a log-odds would draw to neither."""
    rated = rated_parts.train
    liked = dataclasses.replace(rated, target=(rated.target > np.median(rated.target)).astype(np.float32))
    model = models.MatrixFactorization.for_data(rated, dim=2)
    options = {"epochs": 1, "progress": False}
    odds = jaxrec.fit(model, liked, loss="sigmoid_cross_entropy", **options)
    assert transfer.distill(odds, liked, **options).link == "sigmoid"
    values, order = (jaxrec.fit(model, rated, loss=loss, **options) for loss in ("mse", "bpr"))
    for teacher, data, loss, message in (
        (odds, liked, "mse", "of probabilities and .* 'mse' learns of targets.*loss='sigmoid_cross_entropy'"),
        (values, liked, "sigmoid_cross_entropy", "of targets and .* learns of probabilities.*loss='mse'"),
        (order, rated, None, "of orders and .* 'mse' learns of targets.*a loss of ranking, such as loss='bpr'"),
    ):
        with refuses(ValueError, message):
            transfer.distill(teacher, data, loss=loss, **options)
    assert transfer.distill(order, rated, loss="bpr", **options).link == "rank"


def test_what_is_refused(parts, teacher):
    neighbours = train.fit_item_knn(parts.train)
    for bad, options, message in (
        (neighbours, {}, "a teacher whose scores are inner products"),
        (teacher, {"weight": -1.0}, "weight >= 0, got -1"),
        (teacher, {"temperature": 0.0}, "temperature > 0, got 0"),
        (teacher, {"freeze": "item/*"}, "takes no freeze="),
        (teacher, {"unfreeze": {2: "*"}}, "takes no unfreeze="),
        (teacher, {"model": models.SequenceTransformer.for_data(parts.train, dim=8, history=4)}, "for each of the"),
    ):
        with refuses(ValueError, message):
            transfer.distill(bad, parts.train, **{"epochs": 1, **options})
    with refuses(ValueError, "shape|teacher's score"):
        losses.distillation(jnp.zeros((2, 3)), jnp.zeros((2, 2)))
    with refuses(ValueError, "temperature > 0"):
        losses.distillation(jnp.zeros((2, 3)), jnp.zeros((2, 3)), temperature=0.0)


def test_the_loss_is_the_divergence():
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(3, 5)).astype(np.float32) for _ in range(2))
    weight = np.array([1.0, 0.0, 3.0], np.float32)
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (teacher / 0.5, student))
    each = (p * np.log(p / q)).sum(axis=1)
    found = losses.distillation(student, teacher, temperature=0.5, weight=weight)
    np.testing.assert_allclose(found, (each[0] + 3 * each[2]) / 4, rtol=1e-5)
    assert abs(float(losses.distillation(teacher / 0.5, teacher, temperature=0.5))) < 1e-6
    to_teacher = jax.grad(lambda teacher: losses.distillation(student, teacher))(jnp.asarray(teacher))
    np.testing.assert_array_equal(to_teacher, 0.0)
