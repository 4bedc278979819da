"""One list of tests that every model passes, and what is particular to each."""

import dataclasses
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DIM, FEATURES, MODELS, batch_of, columns, shaken
from helpers import AS_USERS, refuses, untyped

from jaxrec import _tree, models
from jaxrec._rows import rows_at
from jaxrec.data import Batch
from jaxrec.models import _base

each_model = pytest.mark.parametrize("name", MODELS)
apply = jax.jit(
    lambda model, params, batch, features, key=None: model.apply(params, batch, features, key=key), static_argnums=0
)
encode = jax.jit(lambda model, params, history: model.encode(params, history, FEATURES), static_argnums=0)
user_vectors = jax.jit(
    lambda model, params, history: model.user_vectors(params, Batch(history=history), FEATURES), static_argnums=0
)


@functools.cache
def initialised(name, seed=0):
    """A model with parameters that are all different from zero."""
    return filled(MODELS[name].model, seed)


def filled(model, seed=0):
    return model, shaken(model.init(jax.random.key(seed)), seed)


@each_model
def test_equal_models_are_one_static_argument_and_pickle(name):
    model = MODELS[name].model
    assert hash(model) == hash(dataclasses.replace(model)) and model == dataclasses.replace(model)
    assert pickle.loads(pickle.dumps(model)) == model


@each_model
def test_scores_have_a_column_per_item(name):
    model, params = initialised(name)
    batch = batch_of(8)
    assert jax.eval_shape(model.apply, params, batch, FEATURES).shape == (8, 2)
    shared = batch._replace(shared_negatives=jnp.asarray([1, 2, 3], jnp.int32))
    scores = apply(model, params, shared, FEATURES)
    assert scores.shape == (8, 5) and scores.dtype == jnp.float32
    np.testing.assert_allclose(scores[:, :2], apply(model, params, batch, FEATURES), rtol=1e-5, atol=1e-6)


@each_model
def test_a_shared_column_scores_like_an_own_one(name):
    model, params = initialised(name)
    batch = batch_of(8)
    own = batch._replace(item=jnp.broadcast_to(jnp.asarray([4, 2, 5], jnp.int32), (8, 3)))
    shared = batch._replace(item=batch.item[:, :1], shared_negatives=jnp.asarray([4, 2, 5], jnp.int32))
    np.testing.assert_allclose(
        apply(model, params, shared, FEATURES)[:, 1:], apply(model, params, own, FEATURES), rtol=1e-5, atol=1e-5
    )


@each_model
def test_scores_of_a_batch_are_those_of_its_rows(name):
    model, params = initialised(name)
    batch = batch_of(4)
    whole = apply(model, params, batch, FEATURES)
    for row in range(4):
        one = jax.tree.map(lambda values, row=row: values[row : row + 1], batch)
        np.testing.assert_allclose(apply(model, params, one, FEATURES)[0], whole[row], rtol=1e-5, atol=1e-6)


@each_model
def test_jit_equals_eager(name):
    model, params = initialised(name)
    np.testing.assert_allclose(
        apply(model, params, batch_of(), FEATURES), model.apply(params, batch_of(), FEATURES), rtol=1e-5, atol=1e-6
    )


@each_model
def test_score_does_not_read_tables_from_the_parameters(name):
    model, params = initialised(name)
    lookups = model.lookups(batch_of(), FEATURES)
    without = _tree.drop(params, {lookup.path for lookup in lookups.values()})
    scores = _base.scored(model.score(without, _base.gather(params, lookups), batch_of(), FEATURES)).scores
    np.testing.assert_allclose(scores, model.apply(params, batch_of(), FEATURES), rtol=1e-6, atol=1e-6)


@each_model
def test_every_table_named_is_looked_up_and_exists(name):
    model, params = initialised(name)
    assert set(model.tables) <= set(_tree.flatten(params))
    assert set(model.tables) == {lookup.path for lookup in model.lookups(batch_of(), FEATURES).values()}


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if hasattr(case.model, "user_vectors")])
def test_inner_products_of_vectors_are_the_scores(name):
    model, params = initialised(name)
    items = jnp.arange(1, 7, dtype=jnp.int32)
    batch = batch_of(8)
    user, item = jax.jit(
        lambda params, batch: (model.user_vectors(params, batch, FEATURES), model.item_vectors(params, items, FEATURES))
    )(params, batch)
    products = np.asarray(user) @ np.asarray(item).T
    scores = apply(model, params, batch._replace(item=None, shared_negatives=items), FEATURES)
    np.testing.assert_allclose(products, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.model.tables])
@pytest.mark.parametrize("index", [-1, -5, 12, 10_000, 2**31 - 1])
def test_ids_out_of_range_are_scored_as_the_unknown(name, index):
    model, params = initialised(name)
    batch = batch_of(4)
    wrong = batch._replace(user=batch.user.at[0].set(index), item=batch.item.at[1, 0].set(index))
    right = batch._replace(user=batch.user.at[0].set(0), item=batch.item.at[1, 0].set(0))
    np.testing.assert_array_equal(apply(model, params, wrong, FEATURES), apply(model, params, right, FEATURES))


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.model.tables])
def test_raw_ids_of_64_bits_are_refused_while_they_can_be_seen(name):
    model, params = initialised(name)
    batch = batch_of(4)
    reads_users = any(numbering.startswith("user") for numbering in model.tables.values())
    for field in ("item", "user" if reads_users else "history"):
        raw = np.asarray(getattr(batch, field)).astype(np.int64) + 2**40
        with pytest.raises(ValueError, match="entity indices of 32 bits, got 10995.*Encoder.encode"):
            model.apply(params, batch._replace(**{field: raw}), FEATURES)


@dataclasses.dataclass(frozen=True)
class Penalised(_base.Over):
    """A factorisation with the mean square of the users' vectors as a penalty, let in over 100 steps."""

    def lookups(self, batch, features):
        return self.base.lookups(batch, features)

    def score(self, params, gathered, batch, features, *, key=None):
        square = jnp.square(gathered["user"]).sum(axis=1)
        weight = jnp.ones_like(square) if batch.weight is None else batch.weight
        scores = self.base.score(params, gathered, batch, features, key=key)
        return _base.Scored(scores, (weight * square).sum() / weight.sum(), 100)

    apply = _base.apply


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_personalised_models_penalty_is_its_bases(side):
    if side == "user":
        base: Any = models.VariationalAutoencoder(item_rows=7, dim=4, latent=2, history=3, beta=2.0, anneal=100)
        personal, batch = "autoencoder/mean/*", batch_of(4)
    else:
        base = Penalised(base=models.MatrixFactorization(user_rows=9, item_rows=7, dim=DIM))
        personal, batch = "bias", batch_of(4)._replace(shared_negatives=jnp.asarray([1, 2, 5], jnp.int32))
    params = shaken(base.init(jax.random.key(0)))
    model = models.Personalised(base=base, personal=personal, rows=4, side=side)
    batch = batch._replace(weight=jnp.asarray([1.0, 0.5, 0.0, 0.0]))

    def scored(model, params, batch):
        return model.score(params, _base.gather(params, model.lookups(batch, FEATURES)), batch, FEATURES)

    expected, found = scored(base, params, batch), scored(model, model.wrap(params), batch)
    assert found.warmup == 100 and float(expected.penalty) > 0
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.penalty, expected.penalty, rtol=1e-5)
    padding = scored(model, model.wrap(params), batch._replace(user=batch.user.at[2:].set(0)))
    np.testing.assert_allclose(padding.penalty, found.penalty, rtol=1e-6)


@each_model
def test_vectors_of_no_width_are_refused(name):
    model = MODELS[name].model
    named = {field.name for field in dataclasses.fields(model)} & {"dim", "latent"}
    for field in named if not isinstance(model, models.NeuMF) else ():  # a branch of which may be left out
        for width in (0, -1):
            with pytest.raises(ValueError, match=f"Expected {field} >= 1, got {width}"):
                dataclasses.replace(model, **{field: width})


def test_a_wide_index_never_names_somebody_else():
    with jax.enable_x64(True):
        raw = jnp.asarray([2**32 + 5, 3, -(2**33) + 5])
        assert raw.dtype == jnp.int64
        np.testing.assert_array_equal(jax.jit(_base.as_index)(raw), [0, 3, 0])
        with pytest.raises(ValueError, match="entity indices of 32 bits, got 4294967301"):
            _base.as_index(raw)
        with pytest.raises(ValueError, match="entity indices of 32 bits, got -8589934587"):
            _base.as_index(np.asarray(raw)[2:])


@pytest.mark.parametrize("name", ["factorization", "towers", "towers with history", "deep factorization machine"])
def test_a_cold_entity_without_features_is_scored_as_the_unknown(name):
    model, params = initialised(name)
    bare = FEATURES._replace(
        user_dense=FEATURES.user_dense.at[9].set(FEATURES.user_dense[0]),
        user_codes={"group": FEATURES.user_codes["group"].at[9].set(FEATURES.user_codes["group"][0])},
    )
    batch = batch_of(4)
    cold, unknown = (batch._replace(user=batch.user.at[0].set(index)) for index in (9, 0))
    np.testing.assert_array_equal(apply(model, params, cold, bare), apply(model, params, unknown, bare))


@pytest.mark.parametrize("name", ["towers", "linear", "sequence with content", "deep factorization machine"])
def test_cold_items_are_told_apart_by_their_features(name):
    model, params = initialised(name)
    scores = apply(model, params, batch_of(3)._replace(item=jnp.asarray([[7, 8, 9]] * 3, jnp.int32)), FEATURES)
    assert np.unique(np.round(scores[0], 5)).size == 3


def test_factorization_is_the_biased_inner_product():
    model, params = initialised("factorization")
    scores = apply(model, params, batch_of(), FEATURES)
    params = jax.tree.map(np.asarray, params)
    user, item = np.asarray(batch_of().user), np.asarray(batch_of().item)
    for row in range(8):
        for column in range(2):
            u, i = FEATURES.user_row[user[row]], FEATURES.item_row[item[row, column]]
            expected = (
                params["bias"] + params["user"]["bias"][u, 0] + params["item"]["bias"][i, 0]
                + params["user"]["embedding"][u] @ params["item"]["embedding"][i]
            )  # fmt: skip
            assert scores[row, column] == pytest.approx(float(expected), rel=1e-5)


def features_of(side, index, leaves):
    """``(x, w, v)`` of every single feature that an entity has, as Rendle's design matrix would list them."""
    row, dense, name = (
        (FEATURES.user_row, FEATURES.user_dense, "group") if side == "user"
        else (FEATURES.item_row, FEATURES.item_dense, "tags")
    )  # fmt: skip
    codes = (FEATURES.user_codes if side == "user" else FEATURES.item_codes)[name][index]
    known = [int(code) for code in codes if code > 0]
    found = [(1.0, leaves[f"{side}/bias"][row[index], 0], leaves[f"{side}/embedding"][row[index]])]
    path = f"{side}/features/{name}"
    found += [(1 / len(known), leaves[f"{path}/bias"][code, 0], leaves[f"{path}/embedding"][code]) for code in known]
    return found + list(zip(dense[index], leaves[f"{side}/dense/bias"], leaves[f"{side}/dense/kernel"], strict=True))


@pytest.mark.parametrize("columns", (1, 3, 40))
def test_derivatives_of_pair_scores_are_those_of_the_plain_product(columns):
    keys = jax.random.split(jax.random.key(0), 3)
    user, wanted = jax.random.normal(keys[0], (5, 4)), jax.random.normal(keys[2], (5, columns))
    own = jax.random.normal(keys[1], (5, columns, 4))

    def plain(user, own):
        return jnp.square(jnp.einsum("bd,bnd->bn", user, own) - wanted).sum()

    def ours(user, own):
        return jnp.square(_base.pair_scores(user, own, None) - wanted).sum()

    def closely(found, expected):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):  # backward, forward, and forward over backward
        closely(derivative(ours, argnums=(0, 1))(user, own), derivative(plain, argnums=(0, 1))(user, own))


def test_a_factorization_machine_is_the_double_sum_over_all_pairs_of_features():
    model, params = initialised("factorization machine")
    batch = batch_of(4)._replace(
        user=jnp.asarray([1, 3, 10, 0], jnp.int32),  # one has no known group, one is cold, one is unknown
        item=jnp.asarray([[1, 4], [2, 8], [3, 0], [5, 6]], jnp.int32),
    )
    scores = apply(model, params, batch, FEATURES)
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in _tree.flatten(params).items()}
    for row, column in np.ndindex(4, 2):
        listed = [
            *features_of("user", int(batch.user[row]), leaves),
            *features_of("item", int(batch.item[row, column]), leaves),
            *zip(np.asarray(batch.context[row]), leaves["context/bias"], leaves["context/kernel"], strict=True),
        ]
        expected = float(leaves["bias"]) + sum(x * w for x, w, _ in listed)
        for j, (x, _, v) in enumerate(listed):
            expected += sum(x * other * (v @ vector) for other, _, vector in listed[:j])
        assert scores[row, column] == pytest.approx(float(expected), rel=1e-4, abs=1e-4)


def test_deep_factorization_machine_adds_a_perceptron_on_the_same_embeddings():
    model, params = initialised("deep factorization machine")
    shallow = dataclasses.replace(model, hidden=())
    plain = apply(shallow, _tree.drop(params, {path for path in _tree.flatten(params) if "mlp" in path}), batch_of(),
                  FEATURES)  # fmt: skip
    without = _tree.replace(params, {"mlp/1/kernel": jnp.zeros_like(params["mlp"]["1"]["kernel"])})
    np.testing.assert_array_equal(apply(model, without, batch_of(), FEATURES), plain)
    deep = apply(model, params, batch_of(), FEATURES) - plain
    leaves = {path: np.asarray(leaf) for path, leaf in _tree.flatten(params).items()}
    for row, column in np.ndindex(8, 2):
        z = []
        for side, index in (("user", batch_of().user[row]), ("item", batch_of().item[row, column])):
            listed = [(np.float32(x), v) for x, _, v in features_of(side, int(index), leaves)]
            width = 2 if side == "user" else 3
            labels, dense = listed[1:-width], listed[-width:]
            z += [listed[0][1]] + [sum((x * v for x, v in group), np.zeros(3)) for group in (labels, dense)]
        hidden = np.maximum(np.concatenate(z) @ leaves["mlp/0/kernel"] + leaves["mlp/0/bias"], 0.0)
        assert deep[row, column] == pytest.approx(float(hidden @ leaves["mlp/1/kernel"][:, 0]), rel=1e-3, abs=1e-4)


def test_an_autoencoder_is_the_plain_formulation_on_a_multi_hot_vector():
    model, params = initialised("autoencoder")
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in _tree.flatten(params).items()}
    for touched in ([], [4], [2, 6, 5]):
        hot = np.zeros(7)
        hot[touched] = 1.0
        h = np.tanh(hot / max(np.linalg.norm(hot), 1) @ leaves["item/encoder/embedding"] + leaves["autoencoder/bias"])
        mean, log_variance = (
            h @ leaves[f"autoencoder/{name}/kernel"] + leaves[f"autoencoder/{name}/bias"]
            for name in ("mean", "log_variance")
        )
        history = jnp.asarray([touched + [0] * (3 - len(touched))], jnp.int32)
        posterior = encode(model, params, history)
        np.testing.assert_allclose(posterior.mean[0], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(posterior.log_variance[0], log_variance, rtol=1e-4, atol=1e-5)
        hidden = np.tanh(mean @ leaves["autoencoder/decoder/kernel"] + leaves["autoencoder/decoder/bias"])
        expected = hidden @ leaves["item/decoder/embedding"].T + leaves["item/decoder/bias"][:, 0]
        batch = Batch(history=history, shared_negatives=jnp.arange(1, 7, dtype=jnp.int32))
        np.testing.assert_allclose(apply(model, params, batch, FEATURES)[0], expected[1:7], rtol=1e-4, atol=1e-5)


def test_an_autoencoder_pays_beta_times_the_divergence_of_its_posterior():
    model, params = initialised("autoencoder")
    batch = batch_of(4)._replace(weight=jnp.asarray([1.0, 3.0, 0.0, 1.0]))
    gathered = _base.gather(params, model.lookups(batch, FEATURES))
    mean, log_variance = (np.asarray(part, np.float64) for part in encode(model, params, batch.history))
    z = np.linspace(-30.0, 30.0, 20_001)  # the integral of q log(q / p), for each latent number
    densities = [np.exp(-0.5 * (z - m) ** 2 / np.exp(v)) / np.sqrt(2 * np.pi * np.exp(v))
                 for m, v in zip(mean.ravel(), log_variance.ravel(), strict=True)]  # fmt: skip
    normal = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    parts = [np.sum(np.where(q > 0, q * (np.log(np.maximum(q, 1e-300)) - normal), 0.0)) * (z[1] - z[0])
             for q in densities]  # fmt: skip
    divergence = np.reshape(parts, mean.shape).sum(axis=1)
    for beta in (0.0, 0.5):
        output = dataclasses.replace(model, beta=beta).score(params, gathered, batch, FEATURES)
        expected = beta * (np.asarray(batch.weight) * divergence).sum() / 5.0
        assert float(output.penalty) == pytest.approx(expected, rel=1e-3)
    grown = [
        float(model.score(params, gathered, batch, FEATURES).penalty_at(jnp.int32(step))) for step in (0, 5, 20, 90)
    ]
    assert grown[0] == 0.0 and grown[1] == pytest.approx(grown[2] / 4, rel=1e-5) and grown[3] == grown[2] > 0.0
    at_once = dataclasses.replace(model, anneal=0).score(params, gathered, batch, FEATURES)
    assert float(at_once.penalty_at(jnp.int32(0))) == pytest.approx(grown[2], rel=1e-6)


def test_an_autoencoder_draws_only_while_training_and_reads_nothing_but_the_history():
    model, params = initialised("autoencoder")
    plain = apply(model, params, batch_of(), FEATURES)
    np.testing.assert_array_equal(plain, apply(model, params, batch_of(), FEATURES))
    first, second = (apply(model, params, batch_of(), FEATURES, jax.random.key(seed)) for seed in (0, 1))
    assert (first != plain).all() and (first != second).all()
    undropped = apply(dataclasses.replace(model, dropout=0.0), params, batch_of(), FEATURES, jax.random.key(0))
    assert (undropped != first).any() and (undropped != plain).any()  # without dropout there still is the noise
    others = batch_of()._replace(user=jnp.full(8, 9, jnp.int32), context=None)
    np.testing.assert_array_equal(apply(model, params, others, FEATURES), plain)
    turned = batch_of()._replace(history=batch_of().history[:, ::-1])  # a set, wherever its padding stands
    np.testing.assert_allclose(apply(model, params, turned, FEATURES), plain, rtol=1e-5, atol=1e-6)
    touched = batch_of()._replace(history=batch_of().history.at[0].set(jnp.asarray([1, 5, 0])))
    changed = (apply(model, params, touched, FEATURES) != plain).any(axis=1)
    assert changed.tolist() == [True] + [False] * 7


def test_autoencoder_options_are_checked():
    model = MODELS["autoencoder"].model
    for change, message in (
        ({"history": 0}, "history >= 1, got 0"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
        ({"beta": -1.0}, "beta >= 0 and anneal >= 0, a number of steps, got beta=-1.0"),
        ({"anneal": -3}, "a number of steps, got beta=0.1, anneal=-3"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(model, **change)
    with pytest.raises(ValueError, match="reads a history and the batch has none"):
        model.apply(initialised("autoencoder")[1], batch_of()._replace(history=None), FEATURES)


def test_a_factorization_machine_has_vectors_only_without_a_perceptron():
    shallow, deep = (MODELS[name].model for name in ("factorization machine", "deep factorization machine"))
    assert all(hasattr(shallow, name) for name in ("user_vectors", "item_vectors"))
    with pytest.raises(AttributeError, match="a perceptron does not factorise, so it has no 'user_vectors'"):
        deep.user_vectors  # noqa: B018
    with pytest.raises(AttributeError, match="a perceptron does not factorise, so it has no 'item_vectors'"):
        deep.item_vectors  # noqa: B018


def test_neumf_is_the_plain_formulation_on_concatenated_embeddings():
    model, params = initialised("neumf")
    batch = batch_of()._replace(shared_negatives=jnp.asarray([1, 6, 8], jnp.int32))
    scores = apply(model, params, batch, FEATURES)
    leaves = {path: np.asarray(leaf) for path, leaf in _tree.flatten(params).items()}
    for row, column in np.ndindex(scores.shape):
        u, i = FEATURES.user_row[batch.user[row]], FEATURES.item_row[columns(batch)[row, column]]
        product = leaves["user/gmf/embedding"][u] * leaves["item/gmf/embedding"][i]
        x = np.concatenate([leaves["user/mlp/embedding"][u], leaves["item/mlp/embedding"][i]])
        for layer in ("mlp/0", "mlp/1"):
            x = np.maximum(x @ leaves[f"{layer}/kernel"] + leaves[f"{layer}/bias"], 0.0)
        expected = leaves["bias"] + product @ leaves["gmf/kernel"] + x @ leaves["mlp/2/kernel"][:, 0]
        assert scores[row, column] == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5])
def test_a_fused_neumf_scores_like_the_mean_of_its_parts(alpha):
    model = MODELS["neumf"].model
    gmf_model, gmf = filled(dataclasses.replace(model, mlp_dim=0))
    mlp_model, mlp = filled(dataclasses.replace(model, dim=0), seed=5)
    assert set(gmf_model.tables) | set(mlp_model.tables) == set(model.tables)
    fused = apply(model, model.fuse(gmf, mlp, alpha=alpha), batch_of(), FEATURES)
    parts = [apply(gmf_model, gmf, batch_of(), FEATURES), apply(mlp_model, mlp, batch_of(), FEATURES)]
    np.testing.assert_allclose(fused, alpha * parts[0] + (1 - alpha) * parts[1], rtol=1e-4, atol=1e-5)


def test_a_sequence_is_encoded_as_a_plain_transformer_does():
    def norm(layer, x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * layer["scale"] + layer["bias"]

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    model, params = initialised("sequence")
    params = jax.tree.map(np.asarray, params)
    history, heads = [5, 2, 6], 2
    x = [2.0 * params["item"]["embedding"][item] + params["position"]["embedding"][t] for t, item in enumerate(history)]
    layer = params["blocks"]["0"]
    qkv = [np.split(dense(layer["attention"]["qkv"], norm(layer["attention"]["norm"], each)), 3) for each in x]
    for t in range(3):
        mixed = []
        for head in range(heads):
            part = slice(2 * head, 2 * head + 2)
            weight = np.exp([qkv[t][0][part] @ qkv[s][1][part] / np.sqrt(2) for s in range(t + 1)])
            mixed.append(sum(weight[s] * qkv[s][2][part] for s in range(t + 1)) / weight.sum())
        x[t] = x[t] + dense(layer["attention"]["out"], np.concatenate(mixed))
        hidden = jax.nn.gelu(dense(layer["mlp"]["up"], norm(layer["mlp"]["norm"], x[t])))
        x[t] = norm(params["norm"], x[t] + dense(layer["mlp"]["down"], np.asarray(hidden)))
    states = encode(model, params, jnp.asarray([history], jnp.int32))
    np.testing.assert_allclose(states[0], x, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(user_vectors(model, params, jnp.asarray([history])), states[:, 2])
    other = encode(dataclasses.replace(model, heads=1), params, jnp.asarray([history], jnp.int32))
    assert np.abs(other - states)[0, 1:].max() > 1e-3


@pytest.mark.parametrize("name", ["sequence", "sequence with content"])
def test_a_later_item_changes_no_earlier_position(name):
    model, params = initialised(name)
    first, second = (encode(model, params, jnp.asarray([[1, 2, item]], jnp.int32)) for item in (3, 6))
    np.testing.assert_array_equal(first[:, :2], second[:, :2])
    assert np.abs(first[:, 2] - second[:, 2]).max() > 1e-3
    swapped = encode(model, params, jnp.asarray([[2, 1, 3]], jnp.int32))
    assert np.abs(swapped[:, 2] - first[:, 2]).max() > 1e-3  # the order counts


@pytest.mark.parametrize("name", ["sequence", "sequence with content"])
def test_padding_does_not_change_a_user_vector(name):
    model, params = initialised(name)
    for items in ([5], [5, 2]):
        short = user_vectors(model, params, jnp.asarray([items], jnp.int32))
        padded = jnp.asarray([items + [0] * (3 - len(items)), [1, 2, 3]], jnp.int32)
        np.testing.assert_allclose(user_vectors(model, params, padded)[:1], short, rtol=1e-5, atol=1e-6)
    empty = user_vectors(model, params, jnp.zeros((1, 3), jnp.int32))
    np.testing.assert_array_equal(empty[0], params["user"]["bias"])


@pytest.mark.parametrize("name", ["sequence", "sequence with content"])
def test_a_batch_of_sequences_scores_every_position_by_what_came_before(name):
    model, params = initialised(name)
    history = jnp.asarray([[4, 1, 6], [2, 5, 0]], jnp.int32)
    items = jnp.asarray(np.random.default_rng(0).integers(1, 9, (8, 2)), jnp.int32)
    shared = jnp.asarray([3, 7], jnp.int32)
    scores = apply(model, params, Batch(item=items, shared_negatives=shared, history=history), FEATURES)
    assert scores.shape == (8, 4)
    for row in (0, 1, 2, 3, 4, 5, 6):
        known = row % 4
        before = jnp.where(jnp.arange(3)[None, :] < known, history[row // 4][None, :], 0)
        one = Batch(item=items[row : row + 1], shared_negatives=shared, history=before)
        np.testing.assert_allclose(scores[row], apply(model, params, one, FEATURES)[0], rtol=1e-4, atol=1e-5)


def test_an_autoencoder_scores_a_batch_of_users_like_their_histories():
    model, params = initialised("autoencoder")
    catalogue = jnp.asarray([1, 3, 4, 5, 6], jnp.int32)
    touched = jnp.asarray([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], jnp.float32)
    users = Batch(shared_negatives=catalogue, target=touched)
    history = jnp.asarray([[4, 1, 0], [3, 6, 0], [0, 0, 0]], jnp.int32)
    expected = apply(model, params, Batch(shared_negatives=catalogue, history=history), FEATURES)
    np.testing.assert_allclose(apply(model, params, users, FEATURES), expected, rtol=1e-4, atol=1e-5)
    first, second = (apply(model, params, users, FEATURES, jax.random.key(seed)) for seed in (0, 1))
    assert (first != expected).any() and (first != second).any()
    odd: Any = "sequences"
    with refuses(ValueError, "histories 'users' or 'subset', got 'sequences'"):
        dataclasses.replace(model, histories=odd)


def test_dropout_acts_only_while_training():
    model, params = initialised("sequence")
    plain = apply(model, params, batch_of(), FEATURES)
    first, second = (apply(model, params, batch_of(), FEATURES, jax.random.key(seed)) for seed in (0, 1))
    assert (first != plain).any() and (first != second).any()
    never = dataclasses.replace(model, dropout=0.0)
    np.testing.assert_array_equal(apply(never, params, batch_of(), FEATURES, jax.random.key(0)), plain)


def test_sequence_options_and_shapes_are_checked():
    model, params = initialised("sequence")
    odd: Any = {"histories": "subset"}
    for change, message in (
        ({"heads": 3}, "dim that is a multiple of heads >= 1, got history=3, dim=4, heads=3"),
        ({"history": 0}, "Expected history >= 1"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
        (odd, "histories 'before' or 'sequences', got 'subset'"),
    ):
        with refuses(ValueError, message):
            dataclasses.replace(model, **change)
    with pytest.raises(ValueError, match="at most 3 items and was given 5"):
        apply(model, params, batch_of(length=5), FEATURES)
    with pytest.raises(ValueError, match="as the 4 histories, or 4 for each of them .* got 8"):
        apply(model, params, batch_of(8)._replace(history=batch_of(4).history), FEATURES)
    with pytest.raises(ValueError, match="reads a history and the batch has none"):
        model.apply(params, batch_of()._replace(history=None), FEATURES)


def test_parts_that_do_not_make_a_neumf_are_refused():
    model, whole = initialised("neumf")
    gmf, mlp = (dataclasses.replace(model, **{width: 0}).init(jax.random.key(0)) for width in ("mlp_dim", "dim"))
    with pytest.raises(ValueError, match=r"Expected for mlp the parameters of NeuMF\(.*dim=0.*got leaves"):
        model.fuse(gmf, whole)
    with pytest.raises(ValueError, match=r"Expected for gmf the parameters of NeuMF\(.*mlp_dim=0"):
        model.fuse(mlp, mlp)
    with pytest.raises(ValueError, match=r"alpha in \[0, 1\], got 2"):
        model.fuse(gmf, mlp, alpha=2.0)
    with pytest.raises(ValueError, match="one of them positive, got dim=0, mlp_dim=0"):
        dataclasses.replace(model, dim=0, mlp_dim=0)
    with refuses(ValueError, "link 'identity' or 'sigmoid', got 'probit'"):
        dataclasses.replace(model, link="probit")


def test_linear_model_is_the_weighted_sum_of_its_features():
    model, params = initialised("linear")
    batch, features, leaves = batch_of(1), *(jax.tree.map(np.asarray, tree) for tree in (FEATURES, params))
    user, item = int(batch.user[0]), int(batch.item[0, 0])
    tags = [code for code in features.item_codes["tags"][item] if code > 0]
    group = int(features.user_codes["group"][user, 0])
    expected = (
        leaves["bias"]
        + np.asarray(batch.context)[0] @ leaves["context"]["kernel"]
        + features.user_dense[user] @ leaves["user"]["kernel"]
        + features.item_dense[item] @ leaves["item"]["kernel"]
        + (leaves["user"]["features"]["group"]["embedding"][group, 0] if group else 0.0)
        + sum(leaves["item"]["features"]["tags"]["embedding"][tag, 0] for tag in tags) / max(len(tags), 1)
    )
    assert float(apply(model, params, batch, FEATURES)[0, 0]) == pytest.approx(float(expected), rel=1e-5)


def test_labels_are_pooled_by_their_mean_or_by_the_root_of_their_number():
    model, params = initialised("towers")
    linear = dataclasses.replace(model, hidden=(), item_dense=0, code_dim=model.dim)
    kernel = jnp.eye(model.dim, dtype=jnp.float32)
    table = jax.random.normal(jax.random.key(0), (dict(model.item_codes)["tags"], model.dim), jnp.float32)
    item = {**params["item"], "features": {"tags": {"embedding": table}}, "mlp": {"0": {"kernel": kernel}}}
    several = int((np.asarray(FEATURES.item_codes["tags"]) > 0).sum(axis=1).argmax())
    tags = np.asarray([code for code in np.asarray(FEATURES.item_codes["tags"][several]) if code > 0])
    assert len(tags) > 1 and linear.pooling == "mean"
    for pooling, divisor in (("mean", len(tags)), ("sqrtn", len(tags) ** 0.5)):
        vector = dataclasses.replace(linear, pooling=pooling).item_vectors(
            {**params, "item": item}, jnp.asarray([several], jnp.int32), FEATURES
        )[0]
        row = int(FEATURES.item_row[several])
        rest = vector - item["embedding"][row] - item["bias"]
        np.testing.assert_allclose(rest, table[tags].sum(axis=0) / divisor, rtol=1e-4, atol=1e-6)
    with refuses(ValueError, "pooling.*'mean'.*'sqrtn'.*got 'sum'"):
        dataclasses.replace(model, pooling="sum")


def test_history_pools_the_item_vectors():
    model, params = initialised("towers with history")
    batch = batch_of(1)._replace(history=jnp.asarray([[3, 0, 5]], jnp.int32))
    empty = batch._replace(history=jnp.zeros((1, 3), jnp.int32))
    items = jax.jit(model.item_vectors)(params, jnp.asarray([3, 5], jnp.int32), FEATURES)
    vectors = jax.jit(model.user_vectors)
    change = np.asarray(vectors(params, batch, FEATURES)) - np.asarray(vectors(params, empty, FEATURES))
    expected = np.asarray(items).mean(axis=0) @ np.asarray(params["user"]["history"]["kernel"])
    np.testing.assert_allclose(change[0], expected, rtol=1e-4, atol=1e-5)


def test_id_dropout_leaves_ids_out_only_while_training():
    case = MODELS["towers"].model
    always = dataclasses.replace(case, id_dropout=1.0)
    _, params = initialised("towers")
    batch = batch_of()
    unknown = FEATURES._replace(user_row=jnp.zeros_like(FEATURES.user_row), item_row=jnp.zeros_like(FEATURES.item_row))
    zero = _tree.replace(
        params, {path: _tree.get(params, path).at[0].set(0.0) for path in ("user/embedding", "item/embedding")}
    )
    np.testing.assert_allclose(
        apply(always, zero, batch, FEATURES, jax.random.key(0)), apply(always, zero, batch, unknown), rtol=1e-5
    )
    np.testing.assert_array_equal(apply(always, zero, batch, FEATURES), apply(case, zero, batch, FEATURES))
    with pytest.raises(ValueError, match=r"id_dropout in \[0, 1\], got 1.5"):
        dataclasses.replace(case, id_dropout=1.5)


def test_ids_start_at_zero_where_content_stands_in():
    with_content = MODELS["towers"].model.init(jax.random.key(0))
    of_ids = MODELS["towers of ids"].model.init(jax.random.key(0))
    assert not with_content["user"]["embedding"].any()
    assert of_ids["user"]["embedding"][1:].any(axis=1).all() and not of_ids["user"]["embedding"][0].any()


@pytest.mark.parametrize("shape", [(9, 16), (9, 20), (9, 18), (9, 4), (9,), (9, 4, 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_are_read_as_they_are(shape, dtype):
    table = jnp.asarray(np.arange(np.prod(shape)).reshape(shape) % 100, dtype)
    for index in (3, [], [8, 0, 0], [[1, 2, 3], [8, 0, 8]]):
        index = jnp.asarray(index, jnp.int32)
        np.testing.assert_array_equal(jax.jit(rows_at)(table, index), np.asarray(table)[np.asarray(index)])
    tables, many = jnp.stack([table, table[::-1]]), jnp.asarray([[1, 2], [8, 0]])
    for over_tables, over_indices in ((True, False), (False, True), (True, True)):
        given = tables if over_tables else table, many if over_indices else many[0]
        axes = 0 if over_tables else None, 0 if over_indices else None
        expected = [
            (tables[place] if over_tables else table)[many[place] if over_indices else many[0]] for place in range(2)
        ]
        np.testing.assert_array_equal(jax.vmap(rows_at, axes)(*given), jnp.stack(expected))


def test_reading_rows_passes_gradients_on_and_copies_no_table():
    table, index = jnp.ones((5_000, 16)), jnp.asarray([[2, 3], [2, 4]])
    grads = jax.grad(lambda table: (rows_at(table, index) * jnp.arange(16.0)[None, None]).sum())(table)
    np.testing.assert_array_equal(grads[jnp.asarray([1, 2, 3])], np.asarray([[0], [2], [1]]) * np.arange(16))
    compiled = jax.jit(rows_at).lower(table, index).compile(AS_USERS)
    assert compiled.memory_analysis().temp_size_in_bytes < table.nbytes / 10


def test_a_large_table_is_drawn_in_blocks_without_taking_its_memory_twice(monkeypatch):
    shape = (20_001, 12)
    whole = _base.normal.lower(jax.random.key(0), shape, 0.5).compile(AS_USERS).memory_analysis()
    _base.normal.clear_cache()
    monkeypatch.setattr(_base, "_AT_ONCE", 2**14)  # fifteen blocks, of which the last is a piece
    table = np.asarray(_base.normal(jax.random.key(0), shape, 0.5))
    np.testing.assert_array_equal(table, _base.normal(jax.random.key(0), shape, 0.5))
    assert abs(table.mean()) < 5e-3 and table.std() == pytest.approx(0.5, rel=5e-3)
    assert len(np.unique(table, axis=0)) == len(table) and table.all()
    blocks = _base.normal.lower(jax.random.key(0), shape, 0.5).compile(AS_USERS).memory_analysis()
    assert blocks.temp_size_in_bytes < 1.5 * table.nbytes < 2.0 * table.nbytes < whole.temp_size_in_bytes


def test_popularity_scores_counts_alike_for_everybody():
    model = models.Popularity(item_rows=7)
    params = {"item": {"count": jnp.arange(7, dtype=jnp.float32)[:, None]}}
    scores = model.apply(params, Batch(user=jnp.asarray([1, 9]), item=jnp.asarray([[3, 8], [3, 8]])), FEATURES)
    np.testing.assert_array_equal(scores, [[3.0, 0.0], [3.0, 0.0]])
    assert model.init(jax.random.key(0))["item"]["count"].shape == (7, 1)


def test_unknown_rows_become_the_mean_of_rows_in_use():
    model, params = initialised("factorization")
    filled = _base.with_unknown_rows(model, params, FEATURES)
    np.testing.assert_allclose(
        filled["user"]["embedding"][0], np.asarray(params["user"]["embedding"])[1:9].mean(axis=0), rtol=1e-5
    )
    towers, others = initialised("towers")
    assert _base.with_unknown_rows(towers, others, FEATURES) is others


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": None}, "batch with `user` indices, got None"),
        ({"item": None}, "`item` or `shared_negatives`, got neither"),
    ],
)
def test_a_batch_without_what_the_model_reads_is_refused(change, message):
    model, params = initialised("towers")
    with pytest.raises(ValueError, match=message):
        model.apply(params, batch_of()._replace(**change), FEATURES)


@each_model
def test_a_model_says_whether_it_reads_context(name):
    model, params = initialised(name)
    width = _base.context_width(model)
    if width is None:
        assert name in ("linen", "nnx")  # modules of somebody's own
    elif width:
        with pytest.raises(ValueError, match=f"built for {width} context features and was given none"):
            model.apply(params, batch_of()._replace(context=None), FEATURES)
    else:
        given = apply(model, params, batch_of(), FEATURES)
        np.testing.assert_array_equal(apply(model, params, batch_of()._replace(context=None), FEATURES), given)


@pytest.mark.parametrize(
    ("name", "change", "dense", "width"),
    [
        ("factorization", {}, "bias", 0),
        ("deep factorization machine", {}, "mlp/0/kernel", 0),
        ("deep factorization machine", {"context": 2}, "mlp/0/kernel", 2),
        ("linen", {}, "head/kernel", None),
    ],
)
def test_wrappers_read_the_context_that_is_read_within_them(name, change, dense, width):
    base = dataclasses.replace(MODELS[name].model, **change)
    plain, unsaid = MODELS["factorization"].model, MODELS["linen"].model
    wrapped: list[Any] = [
        models.Personalised(base=base, personal=dense, rows=2), models.Mixture(parts=(plain, base), item_rows=7),
    ]  # fmt: skip
    if dense != "bias":
        wrapped.append(models.LoRA(base=base, rank=2, paths=dense))
    assert {_base.context_width(model) for model in (base, *wrapped)} == {width}
    assert _base.context_width(models.Mixture(parts=(base, unsaid), item_rows=7)) == (width or None)


def test_features_that_the_model_was_not_trained_with_are_refused():
    model, params = initialised("towers")
    with pytest.raises(ValueError, match="built for 2 dense user features and was given none"):
        model.apply(params, batch_of(), FEATURES._replace(user_dense=None))
    with pytest.raises(ValueError, match="trained with the item feature 'tags' and was given none"):
        model.apply(params, batch_of(), FEATURES._replace(item_codes={}))
    linear, weights = initialised("linear")
    with pytest.raises(ValueError, match="built for 2 context features and was given 3"):
        linear.apply(weights, batch_of()._replace(context=jnp.ones((8, 3))), FEATURES)
    machine, others = initialised("factorization machine")
    with pytest.raises(ValueError, match="built for 2 context features and was given none"):
        machine.apply(others, batch_of()._replace(context=None), FEATURES)
    pooled, others = initialised("towers with history")
    with pytest.raises(ValueError, match="reads a history and the batch has none"):
        pooled.apply(others, batch_of()._replace(history=None), FEATURES)


def test_linear_options_are_checked():
    probit: Any = "probit"
    with refuses(ValueError, "link 'identity' or 'sigmoid', got 'probit'"):
        models.Linear(context=1, link=probit)
    with pytest.raises(ValueError, match="l2 >= 0, got -1"):
        models.Linear(context=1, l2=-1.0)


def test_modules_with_running_state_are_refused():
    from flax import linen, nnx

    class Normed(linen.Module):
        @linen.compact
        def __call__(self, batch, features):
            x = linen.BatchNorm(use_running_average=False)(batch.context)
            return linen.Dense(2)(x)

    with pytest.raises(ValueError, match="found also batch_stats"):
        models.from_linen(Normed(), batch_of(), FEATURES).init(jax.random.key(0))

    def normed(rngs):
        return nnx.BatchNorm(DIM, rngs=rngs)

    with pytest.raises(ValueError, match="found also BatchStat"):
        models.from_nnx(normed).init(jax.random.key(0))


def test_a_call_adapts_a_module_with_another_signature():
    from flax import linen

    model = models.from_linen(linen.Dense(2), batch_of(), FEATURES, call=on_context)
    params = model.init(jax.random.key(0))
    np.testing.assert_allclose(
        model.apply(params, batch_of(), FEATURES),
        batch_of().context @ params["kernel"] + params["bias"][None],
        rtol=1e-6,
    )


def on_context(module, batch, features):
    return module(batch.context)


def test_widths_may_be_a_list():
    with untyped():
        for model in (models.FactorizationMachine, models.TwoTower, models.NeuMF):
            assert model(user_rows=2, item_rows=2, hidden=[8]).hidden == (8,)
        assert models.SequenceTransformer(item_rows=2, hidden=[8]).hidden == (8,)
