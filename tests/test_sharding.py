"""Eight pretend devices against one: steps, ``fit``, top-k and evaluation, and what travels between devices."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import BPR, FEATURES, MODELS, OPTIMISERS, batch_of, shaken, stack_of
from helpers import AS_USERS, refuses
from test_ranking import Pairwise

import jaxrec
from jaxrec import _tree, data, losses, models, optim, ranking, sharding, train
from jaxrec.data import Batch, Features
from jaxrec.ranking import _search
from jaxrec.train import _als

DEVICES = 8
STEP = jax.jit(train.train_step, static_argnames=("model", "loss", "optimizer", "mesh"), donate_argnums=(0,))
EPOCH = jax.jit(train.train_epoch, static_argnames=("model", "loss", "optimizer", "mesh"), donate_argnums=(0,))
ALL = OPTIMISERS | {"sgd": optax.sgd(0.1)}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(DEVICES)


@pytest.mark.parametrize(("content", "dim"), [(False, 4), (True, 4), (True, 16)])
def test_alternating_least_squares_on_a_mesh_is_that_of_one_device(parts, mesh, monkeypatch, content, dim):
    monkeypatch.setattr(_als, "_NUMBERS", 1024)  # several blocks, and fewer than devices on one side
    one, several = (train.fit_als(parts.train, dim=dim, epochs=3, content=content, mesh=each) for each in (None, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), several.params, one.params)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(several.params))


def trained(model, optimizer, batches, mesh, *, loss=BPR, steps=None, freeze=(), frozen_rows=None):
    """State and info after some steps, all parameters as on one device, and those at the start."""
    params = shaken(model.init(jax.random.key(0)), size=0.1)
    example = jax.tree.map(lambda leaf: leaf[0], batches)
    state = train.init_state(
        model, jax.tree.map(jnp.copy, params), optimizer, example, FEATURES, key=jax.random.key(2), freeze=freeze,
        frozen_rows={path: jnp.copy(mask) for path, mask in (frozen_rows or {}).items()}, mesh=mesh,
    )  # fmt: skip
    state, info = EPOCH(state, batches, FEATURES, steps, model=model, loss=loss, optimizer=optimizer, mesh=mesh)
    return state, info, _tree.flatten(sharding.whole(model, _tree.merge(state.params, state.frozen))), params


def same(ours, theirs, **tolerances):
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], err_msg=path, **{"atol": 1e-5, "rtol": 1e-5} | tolerances)


# Training


@pytest.mark.parametrize(
    ("name", "optimiser"),
    [
        *[("factorization", optimiser) for optimiser in ALL if optimiser != "adamw"],
        ("towers with history", "clipped"),
        ("linear", "sgd with momentum"),
        ("linen", "adamw"),
        ("roomy factorization", "clipped"),
        ("roomy factorization", "adagrad"),
        ("roomy factorization", "row-wise adagrad"),
        ("roomy factorization", "sgd with momentum"),
    ],
)
def test_steps_on_eight_devices_equal_those_on_one(mesh, name, optimiser):
    model, freeze, table = MODELS[name.removeprefix("roomy ")]
    if name.startswith("roomy"):  # tables of more rows than go as a whole
        model = dataclasses.replace(model, user_rows=40, item_rows=40)
    optimizer = optim.row_sparse(ALL[optimiser])
    rows = {}
    if table is not None:
        size = _tree.get(jax.eval_shape(model.init, jax.random.key(0)), table).shape[0]
        rows = {table: jnp.zeros(size, bool).at[1:3].set(True)}
    options: dict[str, Any] = {"freeze": freeze, "frozen_rows": rows}
    batches = stack_of(5)  # with ids that are repeated, on one device and on several
    batches = batches._replace(user=batches.user.at[:, ::2].set(5), item=batches.item.at[:, :, 1].set(4))
    alone, alone_info, expected, _ = trained(model, optimizer, batches, None, **options)
    state, info, found, start = trained(model, optimizer, batches, mesh, **options)
    assert int(info.steps) == 5 and bool(info.ok) and int(state.step) == int(alone.step)
    np.testing.assert_allclose(info.losses, alone_info.losses, rtol=1e-5)
    same(found, expected)
    for path in _tree.match(found, freeze):
        np.testing.assert_array_equal(found[path], _tree.get(start, path), err_msg=path)
    if table is not None:
        np.testing.assert_array_equal(found[table][1:3], _tree.get(start, table)[1:3])
        np.testing.assert_array_equal(found[table][0], _tree.get(start, table)[0])
    moved = [path for path in found if (np.asarray(found[path]) != np.asarray(_tree.get(start, path))).any()]
    assert moved


@pytest.mark.parametrize(("loss", "shared"), [("in_batch_softmax", 8), ("sampled_softmax", 5)])
def test_negatives_of_the_whole_batch_are_met_by_every_device(mesh, loss, shared):
    rng = np.random.default_rng(0)
    batches = stack_of(3)._replace(
        shared_negatives=jnp.asarray(rng.integers(1, 7, (3, shared)), jnp.int32),
        log_q=jnp.asarray(rng.normal(size=(3, 1, shared + 2)), jnp.float32),
    )
    if loss == "in_batch_softmax":
        batches = batches._replace(item=batches.item[:, :, :0], log_q=batches.log_q[:, :, 2:])
    model, optimizer = MODELS["factorization"].model, optim.row_sparse(ALL["adagrad"])
    options: dict[str, Any] = {"loss": losses.on_batch(loss)}
    same(trained(model, optimizer, batches, mesh, **options)[2], trained(model, optimizer, batches, None, **options)[2])


def test_rows_outside_a_table_are_the_unknown_and_not_its_padding(mesh):
    model, optimizer = MODELS["factorization"].model, optim.row_sparse(ALL["sgd"])
    assert model.user_rows % DEVICES  # so that there are rows of padding

    def run(mesh):
        features = FEATURES._replace(user_row=FEATURES.user_row.at[1].set(model.user_rows).at[2].set(-1))
        batch = batch_of()._replace(user=jnp.asarray([1, 2, 3, 4, 1, 2, 3, 4], jnp.int32))
        params = model.init(jax.random.key(0))
        state = train.init_state(model, params, optimizer, batch, features, key=jax.random.key(1), mesh=mesh)
        return STEP(state, batch, features, model=model, loss=BPR, optimizer=optimizer, mesh=mesh)[0]

    state = run(mesh)
    table = np.asarray(state.params["user"]["embedding"])
    assert len(table) == 16 and not table[model.user_rows :].any() and not table[0].any()
    same(_tree.flatten(sharding.whole(model, state.params)), _tree.flatten(run(None).params))


def test_a_step_that_is_not_finite_changes_nothing(mesh):
    model, optimizer = MODELS["factorization"].model, optim.row_sparse(ALL["adam"])
    batches = stack_of(6)
    broken = batches._replace(weight=batches.weight.at[3, 7].set(jnp.nan))
    good, _, _, _ = trained(model, optimizer, batches, mesh, steps=3)
    stopped, info, _, _ = trained(model, optimizer, broken, mesh)
    assert int(info.steps) == 3 and not info.ok and int(stopped.step) == 3
    for ours, theirs in zip(jax.tree.leaves(stopped[:3]), jax.tree.leaves(good[:3]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_whole_tables_can_be_trained_where_rows_can_be_shared(mesh):
    model, optimizer = models.MatrixFactorization(user_rows=16, item_rows=8, dim=4), optim.dense(ALL["clipped"])
    rows = {"user/embedding": jnp.zeros(16, bool).at[2].set(True)}
    _, _, found, start = trained(model, optimizer, stack_of(4), mesh, frozen_rows=rows)
    same(found, trained(model, optimizer, stack_of(4), None, frozen_rows=rows)[2])
    np.testing.assert_array_equal(found["user/embedding"][2], start["user"]["embedding"][2])
    with pytest.raises(ValueError, match="8 devices can share.*got 7 rows of 'item/.*Give the model 8 rows"):
        trained(models.MatrixFactorization(user_rows=16, item_rows=7, dim=4), optimizer, stack_of(1), mesh)


def test_narrow_tables_keep_their_type(mesh):
    model = MODELS["factorization without bias"].model
    params = model.init(jax.random.key(0))
    params["item"]["embedding"] = jnp.round(params["item"]["embedding"] * 50).astype(jnp.int8)
    params["user"]["embedding"] = params["user"]["embedding"].astype(jnp.bfloat16)
    optimizer, found = optim.row_sparse(ALL["adagrad"]), []
    for each in (None, mesh):
        state = train.init_state(
            model, jax.tree.map(jnp.copy, params), optimizer, batch_of(), FEATURES, key=jax.random.key(0),
            freeze="item/*", mesh=each,
        )  # fmt: skip
        state, _ = EPOCH(state, stack_of(2), FEATURES, model=model, loss=BPR, optimizer=optimizer, mesh=each)
        assert state.frozen["item"]["embedding"].dtype == jnp.int8
        assert state.params["user"]["embedding"].dtype == jnp.bfloat16
        found.append(_tree.flatten(sharding.whole(model, state.params)))
    np.testing.assert_array_equal(found[0]["user/embedding"], found[1]["user/embedding"])


def test_only_touched_rows_travel_and_no_device_holds_a_table(mesh):
    rows, dim, size = 2**20, 8, 64
    model, optimizer = models.MatrixFactorization(user_rows=rows, item_rows=rows, dim=dim), optim.row_sparse(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    )  # fmt: skip
    features = Features(user_row=jnp.arange(rows, dtype=jnp.int32), item_row=jnp.arange(rows, dtype=jnp.int32))
    batch = Batch(user=jnp.arange(size, dtype=jnp.int32), item=jnp.full((size, 2), 9, jnp.int32), weight=jnp.ones(size))
    params = model.init(jax.random.key(0))
    state = train.init_state(model, params, optimizer, batch, features, key=jax.random.key(1), mesh=mesh)
    options: dict[str, Any] = {"model": model, "loss": BPR, "optimizer": optimizer, "mesh": mesh}
    compiled = STEP.lower(state, batch, features, **options).compile(AS_USERS)
    moved = collectives(compiled.as_text())
    assert {kind for kind, _ in moved} >= {"all-gather", "reduce-scatter"}
    assert max(elements for _, elements in moved) <= size * 2 * dim
    memory = compiled.memory_analysis()
    share = 2 * 3 * rows * (dim + 1) * 4 // DEVICES  # both tables and biases with two moments
    assert memory.temp_size_in_bytes < rows // 4
    assert share <= memory.alias_size_in_bytes < 1.2 * share
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    state, info = STEP(state, batch, features, **options)
    compiled_once = STEP._cache_size()
    state, info = STEP(state, batch, features, **options)
    assert bool(info.ok) and STEP._cache_size() == compiled_once
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.slots)):
        if leaf.size >= rows:
            assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {rows // DEVICES}


def collectives(text):
    """Kind, and size of the largest operand or result, of every collective operation of a compiled program."""
    found = []
    for line in text.splitlines():
        kind = re.search(rf" ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if kind:
            shapes = re.findall(r"\w+\[([\d,]*)\]", line.split("metadata=")[0])
            sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
            found.append((kind[1], max(sizes)))
    return found


@pytest.mark.parametrize("how", ["plainly", "in phases", "towards the start"])
def test_fit_on_a_mesh_equals_fit(mesh, parts, how):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    # So that there are rows of padding.
    model = dataclasses.replace(model, user_rows=model.user_rows + 3, item_rows=model.item_rows + 5)
    options: dict[str, Any] = {
        "epochs": 2, "batch_size": 101, "validation": parts.validation, "optimizer": optax.adagrad(0.1),
    }  # fmt: skip
    if how == "in phases":
        options |= {"freeze": "user/*", "unfreeze": {2: "*"}}
    if how == "towards the start":
        start = model.init(jax.random.key(0))
        options["optimizer"] = optax.chain(optim.ewc(1.0), optax.adagrad(0.1))
        options["hyperparams"] = {"strength": 0.5, "importance": jax.tree.map(jnp.abs, shaken(start))}
    one, many = jaxrec.fit(model, parts.train, **options), jaxrec.fit(model, parts.train, mesh=mesh, **options)
    same(_tree.flatten(many.params), _tree.flatten(one.params), atol=1e-4)
    np.testing.assert_allclose(many.history["ndcg@10"], one.history["ndcg@10"], atol=1e-3)
    assert {device for leaf in jax.tree.leaves(many.params) for device in leaf.devices()} == {jax.devices()[0]}
    assert jaxrec.recommend(many, k=3)["score"].notna().all()


def test_users_as_examples_on_a_mesh_are_those_of_one_device(mesh, parts):
    model = models.VariationalAutoencoder.for_data(parts.train, dim=4, latent=2, history=6)
    assert model.histories == "users"
    options: dict[str, Any] = {"epochs": 2, "batch_size": 101}
    one, many = jaxrec.fit(model, parts.train, **options), jaxrec.fit(model, parts.train, mesh=mesh, **options)
    same(_tree.flatten(many.params), _tree.flatten(one.params), atol=1e-4)
    np.testing.assert_allclose(many.history["loss"], one.history["loss"], rtol=1e-4)


def test_a_mesh_of_one_device_is_one_device(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4, bias=False)  # Adam would blow up the bias' noise
    one = jaxrec.fit(model, parts.train, epochs=1, batch_size=100)
    many = jaxrec.fit(model, parts.train, epochs=1, batch_size=100, mesh=sharding.make_mesh(1))
    same(_tree.flatten(many.params), _tree.flatten(one.params), atol=1e-4)


def test_batches_are_filled_up_and_draw_the_same(parts):
    options: dict[str, Any] = {"batch_size": 100, "negatives": data.Negatives(num=2), "history": 3, "seed": 0}
    plain, filled = (
        next(data.Batches(parts.train, multiple_of=multiple, **options).epoch(1)) for multiple in (1, DEVICES)
    )
    assert plain[1] == filled[1] and filled[0].user.shape[1] == 104
    for ours, theirs in zip(filled[0], plain[0], strict=True):
        if ours is not None:
            np.testing.assert_array_equal(ours[:, :100], theirs)
            assert not ours[:, 100:].any()
    with pytest.raises(ValueError, match="multiple_of >= 1, got 0"):
        data.Batches(parts.train, multiple_of=0, **options)


# Ranking and evaluation


@pytest.mark.parametrize("users", [5, 40])
@pytest.mark.parametrize(("items", "k", "excluded"), [(50_000, 10, 7), (100, 60, 0), (9, 9, 7)])
def test_search_on_a_mesh_finds_the_same_lists(mesh, users, items, k, excluded):
    rng = np.random.default_rng(items + users)
    # Small integers: no rounding, and many equal scores.
    vectors = [jnp.asarray(rng.integers(-3, 4, (number, 6)), jnp.float32) for number in (users, items)]
    live = jnp.asarray(rng.random(items) < 0.9)
    exclude = jnp.asarray(rng.integers(-1, items + 5, (users, excluded)), jnp.int32)
    one = ranking.search(*vectors, k=k, live=live, exclude=exclude)
    many = ranking.search(*vectors, k=k, live=live, exclude=exclude, mesh=mesh)
    np.testing.assert_array_equal(many.position, one.position)
    np.testing.assert_array_equal(many.score, one.score)
    assert (np.asarray(one.position[:, -1]) == -1).any() == (items == 9)


def test_search_on_a_mesh_scores_narrow_vectors_in_full(mesh):
    rng = np.random.default_rng(0)
    users, items = (jnp.asarray(1.0 + 0.02 * rng.normal(size=(rows, 16)), jnp.bfloat16) for rows in (5, 3000))
    narrow = ranking.search(users, items, k=10, mesh=mesh)
    expected = ranking.search(users.astype(jnp.float32), items.astype(jnp.float32), k=10)
    np.testing.assert_array_equal(narrow.position, expected.position)
    np.testing.assert_allclose(narrow.score, expected.score, rtol=1e-6)


def test_search_on_a_mesh_holds_a_share_of_the_items(mesh):
    items, live = _search._filled(jnp.ones((100_000, 4)), jnp.ones(100_000, bool), mesh)
    assert {shard.data.shape for shard in items.addressable_shards} == {(14_336, 4)}
    users, exclude = jnp.ones((40, 4)), jnp.zeros((40, 1), jnp.int32)
    text = _search._search_shards.lower(users, items, live, exclude, k=10, mesh=mesh).compile(AS_USERS).as_text()
    assert max(elements for _, elements in collectives(text)) == 40 * 10 * DEVICES


def test_evaluation_on_a_mesh_gives_the_same_report(mesh, towers, parts):
    recommender = towers
    one, many = (jaxrec.evaluate(recommender, parts.test, draws=10, mesh=each) for each in (None, mesh))
    assert str(many) == str(one) and many.coverage == one.coverage
    np.testing.assert_array_equal(many.users("ndcg@10"), one.users("ndcg@10"))
    ours, theirs = (jaxrec.recommend(recommender, k=7, mesh=each) for each in (mesh, None))
    assert ours["item"].tolist() == theirs["item"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-5, atol=1e-6)


def test_models_without_vectors_and_ratings_are_evaluated_on_a_mesh(rated_parts):
    three = sharding.make_mesh(3)  # shares that come out uneven
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    fitted = jaxrec.fit(model, rated_parts.train, epochs=2, batch_size=200)
    recommender = dataclasses.replace(fitted, model=Pairwise(fitted.model))
    assert not recommender.factorises
    few = rated_parts.test.subset(np.arange(70))
    for task in ("rating", "ranking"):
        one, many = (jaxrec.evaluate(recommender, few, task=task, draws=2, mesh=each) for each in (None, three))
        assert str(many) == str(one)


def test_users_are_folded_in_on_a_mesh(mesh, factorization, parts):
    ids = factorization.encoder.users.ids[:3]
    rows = pd.DataFrame({"user": ids, "item": factorization.encoder.items.ids[:3], "time": 0})
    ours, theirs = (jaxrec.recommend(factorization, ids, interactions=rows, k=5, mesh=each) for each in (mesh, None))
    assert ours["item"].tolist() == theirs["item"].tolist()


def test_a_recommender_on_a_mesh_is_saved_without_it(mesh, factorization, tmp_path):
    jaxrec.save(factorization.on(mesh), tmp_path / "file")
    loaded = jaxrec.load(tmp_path / "file")
    assert loaded.mesh is None
    pd.testing.assert_frame_equal(jaxrec.recommend(loaded, k=5), jaxrec.recommend(factorization, k=5))


# What is refused


def test_meshes_that_do_not_fit_are_refused(mesh, parts, factorization):
    model = factorization.model
    with pytest.raises(ValueError, match=r"devices \(those of jax.devices\(\)\), got 99"):
        sharding.make_mesh(99)
    explicit = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2])
    two = jax.make_mesh((2, 2), ("x", "y"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4])
    for wrong, axes in ((explicit, r"x \(Explicit\)"), (two, r"x \(Auto\), y \(Auto\)")):
        with pytest.raises(ValueError, match=f"one axis of type Auto, got the axes {axes}.*sharding.make_mesh"):
            jaxrec.fit(model, parts.train, mesh=wrong)
        with pytest.raises(ValueError, match="one axis of type Auto"):
            jaxrec.evaluate(factorization, parts.test, mesh=wrong)
        with pytest.raises(ValueError, match="one axis of type Auto"):
            ranking.search(jnp.ones((1, 2)), jnp.ones((3, 2)), k=1, mesh=wrong)
    with refuses(TypeError, "Expected a Mesh for mesh, got int"):
        jaxrec.fit(model, parts.train, mesh=2)
    with pytest.raises(TypeError, match="mesh= needs a recommender"):
        jaxrec.evaluate(
            lambda users, items: np.zeros((len(users), len(items))), parts.test, seen=parts.train, mesh=mesh
        )


def test_batches_that_cannot_be_shared_are_refused(mesh):
    model, optimizer = MODELS["factorization"].model, optim.row_sparse(ALL["sgd"])
    with pytest.raises(ValueError, match="8 devices can share, got `user` of 6.*multiple_of=8"):
        trained(model, optimizer, stack_of(2, 6), mesh)
