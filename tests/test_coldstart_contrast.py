"""Contrast, distillation and the adversarial game: losses by hand, and cold items of a world whose truth is known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import DIM, FEATURES, MODELS, batch_of, shaken
from conftest import encoded
from helpers import refuses

import jaxrec
from jaxrec import _tree, coldstart, data, models, optim, train
from jaxrec.coldstart import _aldi, _clcrec, _gar
from jaxrec.data import Batch, Features
from jaxrec.models import _base
from jaxrec.train import _adversarial

KEY = jax.random.key(3)  # never donated
COLD = jnp.asarray([7, 8, 9], jnp.int32)
score = jax.jit(
    lambda model, params, batch, features: model.score(
        params, _base.gather(params, model.lookups(batch, features)), batch, features, key=KEY
    ),
    static_argnums=0,
)
apply = jax.jit(lambda model, params, batch, features: model.apply(params, batch, features), static_argnums=0)


def contents(params, items, activation):
    """What a case's encoder makes of items, in NumPy."""
    table = np.asarray(params["item"]["features"]["tags"]["embedding"])
    found = []
    for item in np.asarray(items):
        tags = [code for code in np.asarray(FEATURES.item_codes["tags"][item]) if code > 0]
        pooled = table[tags].mean(axis=0) if tags else np.zeros(2)
        x = np.concatenate([FEATURES.item_dense[item], pooled])
        layers = params["item"]["mlp"]
        hidden = activation(x @ np.asarray(layers["0"]["kernel"]) + np.asarray(layers["0"]["bias"]))
        found.append(hidden @ np.asarray(layers["1"]["kernel"]))
    return np.asarray(found)


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def in_batch() -> Batch:
    """Eight positives, two of them the same item, and two further columns, one of them a positive."""
    batch = batch_of(8)
    columns = jnp.asarray([1, 2, 3, 4, 5, 6, 1, 2, 6, 8], jnp.int32)
    log_q = jnp.linspace(-3.0, -1.0, 10)[None, :]
    return batch._replace(item=jnp.zeros((8, 0), jnp.int32), shared_negatives=columns, log_q=log_q)


# Contrastive learning


@pytest.mark.parametrize("form", ["own negatives", "in batch"])
def test_the_term_of_item_and_content_is_infonce(form):
    model = dataclasses.replace(MODELS["clcrec"].model, temperature=0.4, alignment=2.0)
    params = shaken(model.init(jax.random.key(0)))
    batch = batch_of(8, seed=4) if form == "own negatives" else in_batch()
    items = np.asarray(batch.item) if form == "own negatives" else np.tile(batch.shared_negatives, (8, 1))
    place = np.zeros(8, int) if form == "own negatives" else np.arange(8)
    table, losses = np.asarray(params["item"]["embedding"]), []
    for row in range(8):
        own = items[row, place[row]]
        anchor = table[FEATURES.item_row[own]]
        kept = [column for column in range(items.shape[1]) if column == place[row] or items[row, column] != own]
        encoded_items = contents(params, items[row, kept], leaky)
        cosine = encoded_items @ anchor / np.linalg.norm(encoded_items, axis=1) / np.linalg.norm(anchor)
        weight = np.exp(cosine / 0.4)
        losses.append(-np.log(weight[kept.index(place[row])] / weight.sum()))
    assert score(model, params, batch, FEATURES).penalty == pytest.approx(2.0 * np.mean(losses), rel=1e-4)


def aligned():
    """Contents are the corners of a simplex, and embeddings lie upon them."""
    corners = np.eye(4, dtype=np.float32) - 0.25
    rows = jnp.asarray([0, 1, 2, 3, 4], jnp.int32)
    features = Features(
        user_row=rows, item_row=rows, item_dense=jnp.asarray(np.vstack([np.zeros((1, 4)), corners]), jnp.float32)
    )
    model = models.CLCRec(user_rows=5, item_rows=5, dim=4, hidden=(), item_dense=4, mix=0.0)
    params = model.init(jax.random.key(0))
    params["item"]["mlp"]["0"]["kernel"] = jnp.eye(4)
    params["item"]["embedding"] = jnp.asarray(features.item_dense)
    negatives = [[item, *(other for other in range(1, 5) if other != item)] for item in range(1, 5)]
    return model, params, Batch(user=rows[1:], item=jnp.asarray(negatives, jnp.int32)), features


def test_perfect_alignment_is_the_least_that_the_term_can_be():
    model, params, batch, features = aligned()

    @jax.jit
    def term(table):
        return score(model, _tree.replace(params, {"item/embedding": table}), batch, features).penalty

    table = params["item"]["embedding"]
    assert np.abs(jax.jit(jax.grad(term))(table)).max() < 1e-5
    least = float(term(table))
    for seed in range(10):
        assert term(table + 0.3 * jax.random.normal(jax.random.key(seed), table.shape)) > least
    assert term(3.0 * table) == pytest.approx(least, rel=1e-5)  # lengths do not count


def test_an_item_without_content_has_a_gradient_of_ordinary_size():
    _, _, batch, features = aligned()
    model = models.CLCRec(user_rows=5, item_rows=5, dim=4, hidden=(8,), item_dense=4)
    params = model.init(jax.random.key(0))
    features = features._replace(item_dense=features.item_dense.at[4].set(0.0))

    def term(bias):
        return score(model, _tree.replace(params, {"item/mlp/0/bias": bias}), batch, features).penalty

    steepest = np.abs(jax.grad(term)(params["item"]["mlp"]["0"]["bias"])).max()
    assert 0.1 < steepest < 10.0


def test_mixing_scores_warm_items_by_content_while_training():
    batch = batch_of(8)
    model = MODELS["clcrec"].model
    params = shaken(model.init(jax.random.key(0)))
    plain = apply(model, params, batch, FEATURES)
    cold = FEATURES._replace(item_row=jnp.zeros_like(FEATURES.item_row))
    users = np.asarray(params["user"]["embedding"])[np.asarray(FEATURES.user_row[batch.user])]
    content = contents(params, np.asarray(batch.item).reshape(-1), leaky).reshape(8, 2, DIM)
    by_content = np.einsum("bd,bnd->bn", users, content)
    np.testing.assert_allclose(apply(model, params, batch, cold), by_content, rtol=1e-4, atol=1e-5)
    for mix, expected in ((0.0, plain), (1.0, by_content)):
        found = score(dataclasses.replace(model, mix=mix), params, batch, FEATURES).scores
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    half = np.asarray(score(model, params, batch, FEATURES).scores)
    one_or_other = np.isclose(half, plain, atol=1e-4), np.isclose(half, by_content, atol=1e-4)
    assert (one_or_other[0] | one_or_other[1]).all() and one_or_other[0].any() and one_or_other[1].any()


# Distillation


def divergence(a, b):
    p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("own negatives", (1.0, 0.0, 0.0, 0.0)),
        ("own negatives", (0.0, 2.0, 0.0, 3.0)),
        ("own negatives", (0.0, 0.0, 0.5, 0.0)),
        ("in batch", (1.0, 2.0, 0.5, 3.0)),
    ],
)
def test_the_terms_of_distillation_are_those_of_the_formula(form, weights):
    rating, ranking, identification, qualify = weights
    model = dataclasses.replace(
        MODELS["aldi"].model, rating=rating, ranking=ranking, identification=identification, qualify=qualify
    )
    params = shaken(model.init(jax.random.key(0)))
    params["backbone"]["count"] = jnp.arange(7, dtype=jnp.float32)[:, None]
    batch = batch_of(8, seed=4) if form == "own negatives" else in_batch()
    items = np.asarray(batch.item) if form == "own negatives" else np.tile(batch.shared_negatives, (8, 1))
    place = np.zeros(8, int) if form == "own negatives" else np.arange(8)
    tower = jax.tree.map(np.asarray, params["user"]["mlp"])
    totals = []
    for row in range(8):
        p = np.asarray(params["backbone"]["user"])[FEATURES.user_row[batch.user[row]]]
        student_user = np.tanh(p @ tower["0"]["kernel"] + tower["0"]["bias"]) @ tower["1"]["kernel"]
        q = np.asarray(params["backbone"]["item"])[np.asarray(FEATURES.item_row)[items[row]]]
        f = contents(params, items[row], np.tanh)
        t, s, own = q @ p, f @ student_user, place[row]
        others = [column for column in range(len(t)) if items[row, column] != items[row, own]]
        trust = np.tanh(float(FEATURES.item_row[items[row, own]]) / qualify) if qualify else 1.0
        total = 0.0
        if others:
            total = ranking * trust * divergence(t[own] - t[others], s[own] - s[others]).mean()
            total += rating * np.abs(t[others] - s[others]).mean()
        t_own, s_own = (
            vectors[own] @ vectors[own] - (np.mean(vectors[others] @ vectors[own]) if others else 0.0)
            for vectors in (q, f)
        )
        total += rating * abs(t[own] - s[own]) + identification * trust * divergence(t_own, s_own)
        totals.append(total)
    assert score(model, params, batch, FEATURES).penalty == pytest.approx(np.mean(totals), rel=1e-4)


def test_distillation_costs_nothing_where_student_and_teacher_agree():
    model = models.ALDI(user_rows=9, item_rows=7, dim=3, hidden=(), item_dense=3)
    params = shaken(model.init(jax.random.key(0)))
    params["user"]["mlp"]["0"]["kernel"] = params["item"]["mlp"]["0"]["kernel"] = jnp.eye(3)
    params["backbone"]["item"] = FEATURES.item_dense[:7]
    output = score(model, params, batch_of(8), FEATURES)
    assert abs(float(output.penalty)) < 1e-6
    np.testing.assert_allclose(output.scores, apply(model, params, batch_of(8), FEATURES), rtol=1e-5)
    params["item"]["mlp"]["0"]["kernel"] = 1.1 * jnp.eye(3)
    assert score(model, params, batch_of(8), FEATURES).penalty > 1e-2


# The game


@pytest.fixture(scope="module")
def game():
    model = MODELS["gar"].model
    return model, shaken(model.init(jax.random.key(0)))


def optimizers(discriminator, generator):
    return _adversarial.Optimizers(optim.row_sparse(discriminator), optim.row_sparse(generator))


SGD = optimizers(optax.sgd(0.1), optax.sgd(0.1))
player_loss = jax.jit(
    lambda model, player, params, batch: model.player_loss(player, params, batch, FEATURES, key=KEY),
    static_argnums=(0, 1),
)
step = jax.jit(_adversarial.adversarial_step, static_argnames=("game", "optimizers"))


@jax.jit
def seen_by_the_recommender(params, batch):
    """Scores of the batch's items and of what the generator makes of its positives."""
    model = MODELS["gar"].model
    cold = FEATURES._replace(item_row=jnp.zeros_like(FEATURES.item_row))
    return model.apply(params, batch, FEATURES), model.apply(params, batch, cold)


def test_the_players_losses_are_those_of_the_formula(game):
    model, params = game
    batch = batch_of(8)._replace(weight=jnp.arange(8.0))
    known, generated = seen_by_the_recommender(params, batch)
    (real, negative), fake = known.T, generated[:, 0]
    own = np.asarray(params["backbone"]["item"])[FEATURES.item_row[batch.item[:, 0]]]
    distance = ((contents(params, batch.item[:, 0], np.tanh) - own) ** 2).sum(axis=1)

    def mean(values):
        return float((values * batch.weight).sum() / batch.weight.sum())

    for alpha, beta in ((0.5, 0.8), (0.2, 0.3)):
        changed = dataclasses.replace(model, similarity=alpha, negative_share=beta)
        losses = [player_loss(changed, player, params, batch) for player in _adversarial.PLAYERS]
        margin = real - beta * negative - (1 - beta) * fake
        assert losses[0] == pytest.approx(mean(jax.nn.softplus(-margin)), rel=1e-4)
        expected = (1 - alpha) * jax.nn.softplus(real - fake) + alpha * distance
        assert losses[1] == pytest.approx(mean(expected), rel=1e-4)


def test_each_half_step_moves_its_own_player_alone(game):
    """Each player makes a plain gradient step on its own loss, the generator against the moved discriminator."""
    model, params = game
    state = _adversarial.init_adversarial(model, params, SGD, key=KEY)
    moved, values, ok = step(state, batch_of(), FEATURES, game=model, optimizers=SGD)
    assert bool(ok) and np.isfinite(values).all() and int(moved.step) == 1
    jax.tree.map(np.testing.assert_array_equal, moved.params["fixed"], {"backbone": params["backbone"]})
    now = {name: params[name] for name in ("item", "recommender")}
    for number, (player, part) in enumerate((("discriminator", "recommender"), ("generator", "item"))):

        @jax.jit
        def loss(own, others, player=player):
            def of_own(own):
                whole = _tree.merge(own, others, {"backbone": params["backbone"]})
                return model.player_loss(player, whole, batch_of(), FEATURES, key=KEY)

            return jax.value_and_grad(of_own)(own)

        own, others = {part: now[part]}, {name: leaf for name, leaf in now.items() if name != part}
        value, grads = loss(own, others)
        assert values[number] == pytest.approx(float(value), rel=1e-5)
        expected = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, own, grads)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moved.params[player], expected
        )
        assert any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (expected, own)), strict=True))
        now[part] = expected[part]


def test_both_losses_stay_finite_over_many_steps(game):
    model, params = game
    state = _adversarial.init_adversarial(model, params, SGD, key=KEY)
    batches = [batch_of(seed=seed) for seed in range(10)]
    losses = []
    for number in range(300):
        state, values, _ = step(state, batches[number % 10], FEATURES, game=model, optimizers=SGD)
        losses.append(values)
    assert int(state.step) == 300 and np.isfinite(losses).all() and (np.asarray(losses) > 0).all()
    for leaf in jax.tree.leaves(state.params):
        assert np.isfinite(leaf).all()


def test_a_step_that_is_not_finite_moves_neither_player(game):
    model, params = game
    wrong = _tree.replace(params, {"item/mlp/1/kernel": params["item"]["mlp"]["1"]["kernel"].at[0, 0].set(jnp.inf)})
    state = _adversarial.init_adversarial(model, wrong, SGD, key=KEY)
    moved, _, ok = step(state, batch_of(), FEATURES, game=model, optimizers=SGD)
    assert not bool(ok) and int(moved.step) == 0
    jax.tree.map(np.testing.assert_array_equal, moved.params, state.params)


# Cold items of a world whose truth is known


@pytest.fixture(scope="module")
def frames():
    """A domain of which content explains a lot, and popularity nothing."""
    return data.generate(
        seed=0, source_users=300, target_users=4, shared_users=1.0, source_items=300, target_items=4,
        source_interactions=30.0, target_interactions=2.0, zipf=0.0, content=0.9,
    ).source  # fmt: skip


@pytest.fixture(scope="module")
def parts(frames):
    return encoded(frames, data.split_cold_items)


@pytest.fixture(scope="module")
def backbone(parts):
    return train.fit_als(parts.train, dim=8, epochs=5, unobserved=0.1)


ADAM = optax.adam(0.01)
OPTIONS: dict[str, Any] = {"hidden": (16,), "code_dim": 4, "epochs": 5, "batch_size": 256}
PLAYERS: dict[str, Any] = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}


@pytest.fixture(scope="module")
def trained(parts, backbone):
    return {
        "clcrec": coldstart.clcrec(parts.train, backbone=backbone, optimizer=ADAM, **OPTIONS),
        "aldi": coldstart.aldi(backbone, parts.train, **OPTIONS),
        "gar": coldstart.gar(backbone, parts.train, **PLAYERS, **OPTIONS),
    }


def on_cold_items(recommender, parts):
    items = parts.test.encoder.items.ids[np.unique(parts.test.item) - 1]
    return jaxrec.evaluate(recommender, parts.test, ks=(10,), candidates=items, draws=1)["ndcg@10"]


METHODS = ("clcrec", "aldi", "gar")


@pytest.mark.parametrize("name", METHODS)
def test_cold_items_are_ranked_better_than_by_an_untrained_encoder(name, trained, parts):
    found = trained[name]
    fresh = found.model.init(jax.random.key(0))
    start = found.replace(params={**found.params, "item": {**found.params["item"], "mlp": fresh["item"]["mlp"]}})
    untrained = max(on_cold_items(start, parts), on_cold_items(coldstart.popularity(parts.train), parts))
    assert on_cold_items(found, parts) > 1.5 * untrained


@pytest.mark.parametrize("name", METHODS)
def test_what_is_trained_serves_new_items(name, trained, parts, frames, tmp_path):
    found = trained[name]
    assert found.factorises
    described = frames.items.iloc[[3]].assign(item="new")
    grown = coldstart.add(found, items=described)
    twin = frames.items["item"].iloc[3]
    bare = coldstart.add(grown, items=["bare"])
    users = parts.train.encoder.users.ids[:4]
    pairs = pd.DataFrame({"user": users, "item": "new"})
    scores, without = jaxrec.predict(bare, pairs), jaxrec.predict(bare, pairs.assign(item="bare"))
    assert np.isfinite(scores).all() and np.isfinite(without).all() and np.abs(scores - without).max() > 1e-4
    assert len(jaxrec.recommend(grown, users, k=3)) == 12
    jaxrec.save(found, tmp_path / "model")
    again = jaxrec.load(tmp_path / "model")
    np.testing.assert_array_equal(
        jaxrec.predict(again, pairs.assign(item=twin)), jaxrec.predict(found, pairs.assign(item=twin))
    )


@pytest.mark.parametrize("name", ["aldi", "gar"])
def test_the_backbone_does_not_move(name, trained, parts, backbone):
    from jaxrec.coldstart._vectors import vectors_by_row

    tables = vectors_by_row(backbone, parts.train)
    for side, table in tables.items():
        np.testing.assert_array_equal(trained[name].params["backbone"][side], table)
        own = np.asarray(backbone.params[side]["embedding"])
        ratio = np.asarray(table)[1:3] / own[1:3]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)  # scaled alike, row by row in place


def test_a_student_leaves_the_ranking_of_warm_items_to_its_teacher(trained, parts, backbone):
    warm = parts.train.encoder.items.ids[np.unique(parts.train.item) - 1]
    users = parts.train.encoder.users.ids[:20]
    lists = [
        jaxrec.recommend(recommender, users, k=5, candidates=warm)["item"].tolist()
        for recommender in (trained["aldi"], backbone)
    ]
    assert lists[0] == lists[1]
    row = parts.train.features.item_row
    count = np.bincount(row[parts.train.item], minlength=trained["aldi"].model.item_rows)
    np.testing.assert_array_equal(trained["aldi"].params["backbone"]["count"][:, 0], count)


def test_contrastive_learning_starts_from_a_backbone_or_from_scratch(parts, backbone):
    frozen = coldstart.clcrec(
        parts.train, backbone=backbone, **OPTIONS | {"epochs": 1}, freeze=("user/embedding", "item/embedding")
    )
    own = np.asarray(backbone.params["item"]["embedding"])[1:]
    ratio = np.asarray(frozen.params["item"]["embedding"])[1:3] / own[:2]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    scratch = coldstart.clcrec(parts.train, dim=4, **OPTIONS | {"epochs": 1})
    assert scratch.model.dim == 4 and frozen.model.dim == 8
    with pytest.raises(ValueError, match="the backbone's dim 8, got 4"):
        coldstart.clcrec(parts.train, backbone=backbone, dim=4)


def test_options_reach_the_model_and_training(parts, backbone, monkeypatch):
    told: dict[str, Any] = {}

    def caught(model, part, params=None, *given, **options):
        told.update(options, model=model, params=params)
        return backbone

    for module in (_aldi, _clcrec):
        monkeypatch.setattr(module, "fit", caught)
    monkeypatch.setattr(_gar, "play", caught)
    networks = {"hidden": (3,), "code_dim": 5}
    of_clcrec = {"temperature": 0.7, "alignment": 0.4, "mix": 0.1}
    of_aldi = {"rating": 0.1, "ranking": 0.2, "identification": 0.3, "qualify": 0.4}
    of_gar = {"similarity": 0.1, "negative_share": 0.3}
    for name, options in (("clcrec", of_clcrec), ("aldi", of_aldi), ("gar", of_gar)):
        getattr(coldstart, name)(train=parts.train, backbone=backbone, **options, **networks)
        wanted = options | networks
        assert {field: getattr(told["model"], field) for field in wanted} == wanted
    first = told["params"]["item"]["mlp"]["0"]["kernel"]
    coldstart.gar(backbone, parts.train, negatives=3, seed=1, **networks)
    assert told["negatives"] == data.Negatives(num=3) and told["seed"] == 1
    assert (told["params"]["item"]["mlp"]["0"]["kernel"] != first).any()


@pytest.mark.parametrize("name", METHODS)
def test_a_backbone_that_was_trained_on_fewer_is_refused(name, parts, backbone):
    half = dataclasses.replace(backbone, seen=backbone.seen.part(slice(20)), num_trained=20)
    with pytest.raises(ValueError, match="was not trained on .* of the .* users with a table row"):
        getattr(coldstart, name)(backbone=half, train=parts.train)


def test_the_game_stops_early_and_keeps_the_best_epoch(parts, backbone):
    values, seen = iter([0.1, 0.3, 0.2, 0.1, 0.5]), []

    def metric(recommender):
        seen.append(np.asarray(recommender.params["item"]["mlp"]["0"]["kernel"]))
        return next(values)

    found = coldstart.gar(backbone, parts.train, metric=metric, patience=2, **PLAYERS, **OPTIONS)
    assert len(found.history) == 4 and found.history["metric"].tolist() == [0.1, 0.3, 0.2, 0.1]
    assert np.isfinite(found.history[["generator_loss", "discriminator_loss"]]).all(axis=None)
    np.testing.assert_array_equal(found.params["item"]["mlp"]["0"]["kernel"], seen[1])


def test_wrong_options_are_refused(parts, backbone, game):
    model, params = game
    sizes = {"user_rows": 3, "item_rows": 3}
    for kind, options, message in (
        (models.CLCRec, {}, "CLCRec reads an item's content, and there is none"),
        (models.ALDI, {}, "ALDI reads an item's content"),
        (models.GAR, {}, "GAR reads an item's content"),
        (models.CLCRec, {"item_dense": 2, "mix": 1.5}, r"mix in \[0, 1\], got 1.5"),
        (models.CLCRec, {"item_dense": 2, "temperature": 0.0}, "temperature > 0 and alignment >= 0, got temperature=0"),
        (models.CLCRec, {"item_dense": 2, "alignment": -1.0}, "alignment=-1"),
        (models.ALDI, {"item_dense": 2, "qualify": -1.0}, "qualify >= 0, got -1"),
        (models.GAR, {"item_dense": 2, "similarity": 2.0}, r"similarity in \[0, 1\], got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**sizes, **options)
    neural = models.NeuMF.for_data(parts.train, dim=2, mlp_dim=2, hidden=(2,))
    neural = train.Recommender(
        neural, neural.init(KEY), parts.train.encoder, parts.train.interactions, len(parts.train)
    )
    with pytest.raises(ValueError, match="backbone whose scores are inner products.*got NeuMF"):
        coldstart.aldi(neural, parts.train)
    with pytest.raises(ValueError, match="negatives >= 1, got 0"):
        coldstart.gar(backbone, parts.train, negatives=0)
    with pytest.raises(ValueError, match="epochs >= 1, got 0"):
        coldstart.gar(backbone, parts.train, epochs=0)
    with pytest.raises(ValueError, match=r"own negatives. Draw it with Negatives\(num=1\)"):
        model.player_loss("generator", params, in_batch(), FEATURES, key=KEY)
    for call, name in ((coldstart.aldi, "freeze"), (coldstart.aldi, "params"), (coldstart.clcrec, "params")):
        with pytest.raises(TypeError, match=f"sets {name}= of fit itself"):
            call(train=parts.train, backbone=backbone, **{name: {}})
    with refuses(TypeError, "Expected a Recommender for backbone, got str"):
        coldstart.gar("backbone", parts.train)  # pyright: ignore[reportArgumentType]


def test_a_game_that_diverges_says_so_and_keeps_the_last_good_parameters(parts, backbone):
    user = backbone.params["user"]["embedding"]
    broken = backbone.replace(params=_tree.replace(backbone.params, {"user/embedding": user.at[3].set(jnp.inf)}))
    with pytest.raises(ValueError, match="user vectors are not finite"):
        coldstart.gar(broken, parts.train, **PLAYERS, **OPTIONS)
    wild = optax.adam(1e30)
    with pytest.raises(train.Diverged, match=r"in step \d+ \(epoch 1\)") as caught:
        coldstart.gar(backbone, parts.train, **(PLAYERS | {"generator_optimizer": wild}), **OPTIONS)
    for leaf in jax.tree.leaves(caught.value.recommender.params["item"]):
        assert np.isfinite(leaf).all()
