"""Alternating least squares against dense regressions in NumPy, and its place beside ``fit``."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec import coldstart, data, train
from jaxrec.train import _als


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_sweep_solves_the_regression_of_every_row(exponent):
    rng = np.random.default_rng(0)
    users, items, dim, unobserved, l2 = 40, 25, 4, 0.2, 0.05
    pairs = np.unique(rng.integers(1, [users, items], (500, 2)), axis=0)
    pairs = np.concatenate([pairs, [[7, item] for item in range(1, items)]])  # repeated pairs, and a long row
    user, item = pairs.T.astype(np.int32)
    weight = rng.uniform(0.5, 2.0, len(user)).astype(np.float32)
    others = rng.normal(size=(items, dim)).astype(np.float32)
    others[0] = 0.0
    plan = _als._plan(user, item, weight, users, cells=128)
    options = {"unobserved": jnp.float32(unobserved), "l2": jnp.float32(l2), "exponent": jnp.float32(exponent)}
    start = jnp.asarray(rng.normal(size=(users, dim)), jnp.float32)
    found = np.asarray(_als._sweep(jnp.copy(start), jnp.asarray(others), plan, options, steps=12))
    for row in range(users):
        mine = user == row
        if not mine.any():
            np.testing.assert_array_equal(found[row], start[row])
            continue
        vectors = others[item[mine]]
        scale = l2 * (mine.sum() + unobserved * (items - 1)) ** exponent
        matrix = (vectors.T * weight[mine]) @ vectors + unobserved * others.T @ others + scale * np.eye(dim)
        np.testing.assert_allclose(found[row], np.linalg.solve(matrix, vectors.T @ weight[mine]), rtol=2e-3, atol=2e-4)


def test_rows_longer_than_a_block_make_the_block_longer():
    row, other = np.full(100, 3, np.int32), np.arange(100, dtype=np.int32)
    plan = _als._plan(row, other, np.ones(100, np.float32), 5, cells=16)
    assert plan.other.shape[0] == 1 and float(plan.weight.sum()) == 100.0
    assert plan.row[0, 0] == 3 and plan.count[0, 0] == 100.0 and (np.asarray(plan.row)[0, 1:] == 5).all()


def test_it_is_better_than_popularity_and_the_same_twice(parts, world):
    split = data.split_random(world.target.interactions, validation=0.1, test=0.2, seed=0)
    encoded = data.encode(split, data.Schema(time="time"))
    fitted = [train.fit_als(encoded.train, dim=8, epochs=6, validation=encoded.validation) for _ in range(2)]
    popular = jaxrec.evaluate(coldstart.popularity(encoded.train), encoded.test)["ndcg@10"]
    assert jaxrec.evaluate(fitted[0], encoded.test)["ndcg@10"] > 1.1 * popular
    jax.tree.map(np.testing.assert_array_equal, fitted[0].params, fitted[1].params)
    assert fitted[0].history["ndcg@10"].notna().all()
    # It is a recommender like any other: new users are folded in.
    new = jaxrec.recommend(fitted[0], [77], interactions=split.test.iloc[:3].assign(user=77), k=5)
    assert len(new) == 5


def test_it_goes_on_from_given_parameters(parts):
    whole = train.fit_als(parts.train, dim=4, epochs=4)
    half = train.fit_als(parts.train, dim=4, epochs=2)
    rest = train.fit_als(parts.train, dim=4, epochs=2, params=half.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), rest.params, whole.params)
    with pytest.raises(ValueError, match="The parameters are not those of"):
        train.fit_als(parts.train, dim=5, params=half.params)


def test_options_and_data_that_do_not_fit_are_refused(parts, rated_parts):
    with pytest.raises(ValueError, match="Expected implicit feedback"):
        train.fit_als(rated_parts.train)
    for options, message in (
        ({"unobserved": 0.0}, "unobserved > 0"),
        ({"l2": -1.0}, "l2 > 0"),
        ({"dim": 0}, "dim >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            train.fit_als(parts.train, **options)


def test_weights_are_confidences():
    frame = pd.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 2, 3], "w": [1.0, 1.0, 5.0, 1.0]})
    split = data.Parts(frame, None, None)
    once = train.fit_als(data.encode(split, data.Schema(weight="w")).train, dim=2, epochs=3)
    repeated = pd.concat([frame, *[frame.iloc[2:3]] * 4])
    twice = train.fit_als(
        data.encode(data.Parts(repeated, None, None), data.Schema()).train, dim=2, epochs=3, exponent=0.0
    )
    plain = train.fit_als(data.encode(split, data.Schema(weight="w")).train, dim=2, epochs=3, exponent=0.0)
    np.testing.assert_allclose(twice.params["user"]["embedding"], plain.params["user"]["embedding"], atol=1e-5)
    assert (once.params["user"]["embedding"] != plain.params["user"]["embedding"]).any()


def test_the_seed_sets_the_start_and_rows_that_cannot_learn_are_refused(parts, factorization):
    first, second = (train.fit_als(parts.train, dim=2, epochs=1, seed=seed) for seed in (0, 1))
    assert (first.params["user"]["embedding"] != second.params["user"]["embedding"]).any()
    grown = coldstart.add(factorization, users=[5])
    rows = pd.DataFrame({"user": [5], "item": parts.train.encoder.items.ids[:1], "time": [0]})
    with pytest.raises(ValueError, match="1 users of the training part have no row"):
        train.fit_als(grown.encoder.encode(rows))
