"""Surgery on what is carried over: other widths, rows that nothing was found for, several sources."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refuses

import jaxrec
from jaxrec import _tree, models, transfer

# Widening and narrowing


@pytest.fixture(scope="module")
def reading(parts):
    """Towers with a history."""
    model = models.TwoTower.for_data(parts.train, dim=4, hidden=(), code_dim=4, history=5)
    return jaxrec.fit(model, parts.train, epochs=1, batch_size=256)


def scores(recommender):
    """Of all users and items."""
    users, items = (np.arange(len(each) + 1) for each in (recommender.encoder.users, recommender.encoder.items))
    batch = recommender.batch(users)._replace(shared_negatives=jnp.asarray(items, jnp.int32))
    return np.asarray(recommender.model.apply(recommender.params, batch, recommender.features))


@pytest.mark.parametrize("name", ["factorization", "towers", "reading"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_widening_keeps_every_score(request, name, noise):
    recommender = request.getfixturevalue(name)
    wide = transfer.resize(recommender, 11, noise=noise)
    assert wide.model.dim == 11 and wide.model.for_data(recommender.encoder, dim=11).dim == 11
    np.testing.assert_allclose(scores(wide), scores(recommender), atol=1e-5)
    shapes = jax.tree.map(jnp.shape, wide.params)
    assert shapes == jax.tree.map(jnp.shape, wide.model.init(jax.random.key(0)))
    vectors = np.asarray(wide.model.item_vectors(wide.params, jnp.arange(1, 5, dtype=jnp.int32), wide.features))
    assert (np.abs(vectors[:, recommender.model.dim : 11]).max() > 1e-3) == (noise > 0)


def test_new_numbers_learn_only_from_noise(parts, factorization):
    for noise, moved in ((0.0, False), (0.1, True)):
        wide = transfer.resize(factorization, 10, noise=noise)
        fitted = jaxrec.fit(wide.model, parts.train, params=wide.params, epochs=1, batch_size=256)
        assert bool(np.asarray(fitted.params["user"]["embedding"])[:, 8:].any()) == moved
    one, same, other = (transfer.resize(factorization, 10, seed=seed).params["item"]["embedding"] for seed in (0, 0, 1))
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize("name", ["factorization", "towers"])
def test_narrowing_is_the_best_that_the_rank_allows(request, name):
    recommender = request.getfixturevalue(name)
    narrow = transfer.resize(recommender, 3)
    assert jax.tree.map(jnp.shape, narrow.params) == jax.tree.map(jnp.shape, narrow.model.init(jax.random.key(0)))
    features = recommender.encoder.features
    grid = np.ix_(np.flatnonzero(features.user_row), np.flatnonzero(features.item_row))
    if name == "factorization":  # its biases stay
        bare = [each.replace(params=_tree.replace(each.params, {
            path: jnp.zeros_like(_tree.get(each.params, path)) for path in ("user/bias", "item/bias", "bias")
        })) for each in (recommender, narrow)]  # fmt: skip
        assert (narrow.params["item"]["bias"] == recommender.params["item"]["bias"]).all()
    else:
        bare = [recommender, narrow]
    before, after = (scores(each)[grid] for each in bare)
    left, values, right = np.linalg.svd(before.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(after, (left[:, :3] * values[:3]) @ right[:3], atol=1e-5)
    assert np.square(before - after).sum() == pytest.approx(np.square(values[3:]).sum(), rel=1e-3)


def test_narrowing_to_the_true_rank_is_exact(factorization):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 8))  # all vectors lie in two dimensions, of users and items other ones
    params = {
        side: {**leaves, "embedding": jnp.asarray(rng.normal(size=(len(leaves["embedding"]), 2)) @ mixing, jnp.float32)}
        for side, leaves in factorization.params.items()
        if side != "bias"
    }
    recommender = factorization.replace(params={**params, "bias": factorization.params["bias"]})
    trained = np.ix_(*(np.flatnonzero(row) for row in (recommender.features.user_row, recommender.features.item_row)))
    for dim in (2, 5):
        narrow = transfer.resize(recommender, dim)
        np.testing.assert_allclose(scores(narrow)[trained], scores(recommender)[trained], atol=1e-4)
    back = transfer.resize(transfer.resize(factorization, 12), 8)
    np.testing.assert_allclose(scores(back)[trained], scores(factorization)[trained], atol=1e-4)


def test_a_resized_source_is_adapted_to_a_model_of_that_width(parts, factorization):
    narrow = transfer.resize(factorization, 4)
    adapted = transfer.adapt(narrow, parts.train, freeze="*")
    np.testing.assert_allclose(scores(adapted.recommender), scores(narrow), atol=1e-5)


def test_what_cannot_be_resized_is_refused(parts, factorization, towers, reading):
    for dim in (0, 8):
        with refuses(ValueError, f"Expected dim >= 1 and another width than the model's 8, got {dim}"):
            transfer.resize(factorization, dim)
    with refuses(ValueError, "Expected noise >= 0, got -1"):
        transfer.resize(factorization, 9, noise=-1)
    with refuses(ValueError, "reads a history cannot be narrowed"):
        transfer.resize(reading, 2)
    with refuses(ValueError, "Expected a MatrixFactorization or a TwoTower with fusion='concatenation', got LoRA"):
        transfer.resize(transfer.add_adapters(factorization, rank=1).recommender, 4)
    whole = factorization.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.int8), factorization.params))
    with refuses(ValueError, "Expected parameters that are floats, got int8 in 'user/embedding'"):
        transfer.resize(whole, 4)
