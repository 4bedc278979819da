"""Ways to fine-tune: adapters, schedules, traced rates, penalties towards the source."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import BPR, FEATURES, MODELS, batch_of, epoch, shaken, stack_of
from conftest import encoded
from helpers import refuses
from test_train import record

import jaxrec
from jaxrec import _tree, data, losses, models, optim, train, transfer
from jaxrec.transfer import _fisher


def counted(call):
    """What ``call`` returns, and the names of what jax compiled for it."""
    compiled: list[str] = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        record(patch, compiled)
        result = call()
    return result, compiled


# Adapters


ADAPTED = {
    "linear": (1, "*/embedding"),
    "towers with history": (2, ("*/embedding", "*/kernel")),
    "neumf": (3, ("*/embedding", "mlp/0/kernel")),
    "nnx": (2, "*"),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_merged_adapters_predict_the_same(name):
    rank, paths = ADAPTED[name]
    if name == "nnx":
        paths = tuple(path for path in _tree.flatten(MODELS[name].model.init(jax.random.key(0))) if "bias" not in path)
    model = models.LoRA(base=MODELS[name].model, rank=rank, paths=paths, alpha=0.5)
    start = model.init(jax.random.key(0))
    batch = batch_of()
    ours, base = jax.jit(model.apply), jax.jit(model.base.apply)
    of_base = _tree.drop(start, set(_tree.flatten(start)) - set(model.base_paths))
    np.testing.assert_allclose(ours(start, batch, FEATURES), base(of_base, batch, FEATURES), atol=1e-5)
    params = shaken(start)
    scores, merged = ours(params, batch, FEATURES), model.merge(params)
    np.testing.assert_allclose(scores, base(merged, batch, FEATURES), atol=1e-5)
    bare = _tree.drop(params, set(_tree.flatten(params)) - set(model.base_paths))
    assert np.abs(scores - base(bare, batch, FEATURES)).max() > 1e-3
    again = model.unmerge(merged, params)
    np.testing.assert_allclose(ours(again, batch, FEATURES), scores, atol=1e-5)
    assert hasattr(model, "user_vectors") == hasattr(model.base, "user_vectors")


@pytest.fixture(scope="module")
def adapted(towers, parts):
    """Adapters on everything, trained under decay, momentum and clipping."""
    added = transfer.add_adapters(towers, transfer.LowRank(rank=2, alpha=4.0))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.02, weight_decay=0.1))
    fitted = jaxrec.fit(
        added.recommender.model, parts.train, params=added.recommender.params, freeze=added.frozen.leaves, epochs=1,
        batch_size=128, optimizer=optimizer,
    )  # fmt: skip
    return added, fitted


def test_only_adapters_are_trained(towers, adapted, tmp_path):
    added, fitted = adapted
    for path, leaf in _tree.flatten(towers.params).items():
        np.testing.assert_array_equal(leaf, _tree.get(fitted.params, path), err_msg=path)
    moved = _tree.flatten(fitted.params)
    before = _tree.flatten(added.recommender.params)
    assert all((moved[path] != leaf).any() for path, leaf in before.items() if path.startswith("adapters/"))
    assert "trainable numbers" in str(added) and "% of the base's" in str(added)
    jaxrec.save(fitted, tmp_path / "adapted.jaxrec")
    again = jaxrec.load(tmp_path / "adapted.jaxrec")
    assert again.model == fitted.model and again.factorises


def test_recommenders_are_merged_and_unmerged(towers, adapted):
    _, fitted = adapted
    merged = transfer.merge_adapters(fitted)
    assert merged.model == towers.model
    ours = jaxrec.recommend(fitted, k=5, exclude_seen=False)
    theirs = jaxrec.recommend(merged, k=5, exclude_seen=False)
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-5)
    source = jaxrec.recommend(towers, k=5, exclude_seen=False)
    assert np.abs(np.asarray(source["score"]) - np.asarray(ours["score"])).max() > 1e-3
    back = transfer.unmerge(merged, fitted)
    for path, leaf in _tree.flatten(towers.params).items():
        np.testing.assert_allclose(leaf, _tree.get(back.params, path), atol=1e-5, err_msg=path)
    with pytest.raises(ValueError, match="Expected a recommender with adapters, from transfer.add_adapters"):
        transfer.merge_adapters(towers)
    with refuses(TypeError, "for adapters, got str. Patterns go inside: LowRank"):
        transfer.add_adapters(towers, "item/*")
    with pytest.raises(ValueError, match="The adapters are for TwoTower.*taken out of LoRA"):
        transfer.unmerge(fitted, fitted)


def test_rows_that_training_does_not_touch_stay_the_bases():
    model = MODELS["adapters"].model
    optimizer = optim.row_sparse(optax.adamw(0.1, weight_decay=0.1))
    params = model.init(jax.random.key(0))
    state = train.init_state(
        model, jax.tree.map(jnp.copy, params), optimizer, batch_of(), FEATURES, key=jax.random.key(1),
        freeze=model.base_paths,
    )  # fmt: skip
    batches = stack_of(5)
    batches = batches._replace(user=batches.user * 0 + 2)
    state, _ = epoch(state, batches, FEATURES, model=model, loss=BPR, optimizer=optimizer)
    merged = model.merge(_tree.merge(state.params, state.frozen))["user"]["embedding"]
    changed = np.flatnonzero((merged != params["user"]["embedding"]).any(axis=1))
    assert changed.tolist() == [2]


def test_an_adapter_of_rank_4_is_under_five_percent_of_a_realistic_model():
    base = models.TwoTower(user_rows=50_000, item_rows=20_000, dim=128, hidden=(256,), item_dense=300, user_dense=30)
    sizes = {}
    for model in (base, models.LoRA(base=base)):
        leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
        sizes[type(model)] = sum(leaf.size for leaf in leaves)
    assert 0 < sizes[models.LoRA] - sizes[models.TwoTower] < 0.05 * sizes[models.TwoTower]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank >= 1, got 0"),
        ({"rank": 5, "paths": "*/embedding"}, "at least rank 5, got 'item/embedding' of shape \\(7, 4\\)"),
        ({"paths": "bias"}, "two dimensions of at least rank 4, got 'bias' of shape \\(\\)"),
        ({"paths": "towers/*"}, "matches no parameter"),
        ({"rank": 4}, "No leaf is larger than its adapter of rank 4"),
    ],
)
def test_adapters_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.LoRA(base=MODELS["factorization"].model, **options)


@dataclasses.dataclass(frozen=True)
class Taken:
    """A model of somebody's own, whose leaves stand where adapters would go."""

    tables = {}

    def init(self, key):
        return {"adapters": {"kernel": jax.random.normal(key, (8, 8))}}


def test_adapters_have_no_adapters_and_integers_no_sum():
    model = MODELS["adapters"].model
    with pytest.raises(ValueError, match="has adapters already. Merge them first"):
        models.LoRA(base=model)
    with pytest.raises(ValueError, match="leaves under 'adapters', where adapters go. Rename them"):
        models.LoRA(base=Taken())
    params = model.init(jax.random.key(0))
    narrow = _tree.replace(params, {"user/embedding": params["user"]["embedding"].astype(jnp.int8)})
    with pytest.raises(ValueError, match="'user/embedding' holds int8"):
        model.merge(narrow)
    assert np.isfinite(model.apply(narrow, batch_of(), FEATURES)).all()
    with pytest.raises(ValueError, match="The adapter of 'item/embedding' is for shape \\(7, 4\\)"):
        model.unmerge({"user": {"embedding": jnp.ones((9, 4))}, "item": {"embedding": jnp.ones((8, 4))}}, params)
    with pytest.raises(AttributeError, match="'LoRA' object has no attribute 'fuse'"):
        model.fuse  # noqa: B018


def test_a_bottleneck_moves_all_rows_at_once_and_merges_exactly():
    model = MODELS["bottleneck"].model
    start = model.init(jax.random.key(1))
    ours, base, batch = jax.jit(model.apply), jax.jit(model.base.apply), batch_of()
    np.testing.assert_array_equal(ours(start, batch, FEATURES), base(model.merge(start), batch, FEATURES))
    params = shaken(start)
    params = _tree.replace(params, {"item/embedding": params["item"]["embedding"].at[0].set(0.0)})
    merged = model.merge(params)
    np.testing.assert_allclose(ours(params, batch, FEATURES), base(merged, batch, FEATURES), atol=1e-5)
    table, adapter = params["item"]["embedding"], params["adapters"]["item"]["embedding"]
    by_hand = np.asarray(table) + np.maximum(np.asarray(table) @ adapter["down"], 0.0) @ adapter["up"]
    np.testing.assert_allclose(merged["item"]["embedding"], by_hand, atol=1e-5)
    assert not np.asarray(merged["item"]["embedding"])[0].any()
    assert (np.abs(by_hand - table)[1:].max(axis=1) > 1e-3).all()
    items = jnp.arange(9, dtype=jnp.int32)
    np.testing.assert_allclose(
        model.item_vectors(params, items, FEATURES), model.base.item_vectors(merged, items, FEATURES), atol=1e-5
    )
    narrow = _tree.replace(params, {"item/embedding": table.astype(jnp.int8)})
    with pytest.raises(ValueError, match="'item/embedding' holds int8, in which what passed has no place"):
        model.merge(narrow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width >= 1, got 0"),
        (
            {"paths": "bias"},
            "two dimensions \\(item/bias, item/emb.*, user/embedding\\), got 'bias' of shape \\(\\)",
        ),
        ({"width": 4}, "No table is wider than a bottleneck of 4 and larger"),
    ],
)
def test_bottlenecks_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.Bottleneck(base=MODELS["factorization"].model, **options)


@pytest.fixture(scope="module")
def source(world):
    ours = encoded(world.source)
    model = models.MatrixFactorization.for_data(ours.train, dim=8)
    return jaxrec.fit(model, ours.train, epochs=2, batch_size=256), ours


@pytest.fixture(scope="module")
def target(world, source):
    return encoded(world.target, like=source[0].encoder)


def test_adapt_trains_adapters_on_what_was_copied(source, target):
    options: dict[str, Any] = {"epochs": 1, "batch_size": 128}
    ours = transfer.adapt(
        source[0], target.train, adapters=transfer.LowRank(patterns="*/embedding", rank=1, alpha=2.0), **options
    )
    model = ours.recommender.model
    assert isinstance(model, models.LoRA) and (model.rank, model.alpha) == (1, 2.0)
    rows = ours.alignment.for_model(model)["user/embedding"]
    np.testing.assert_array_equal(
        ours.recommender.params["user"]["embedding"][rows.target], source[0].params["user"]["embedding"][rows.source]
    )
    assert set(ours.frozen.leaves) == set(model.base_paths)
    with pytest.raises(ValueError, match="freeze='user/embedding' leaves 'item/embedding' to be trained too"):
        transfer.adapt(source[0], target.train, adapters=transfer.LowRank(rank=1), freeze="user/embedding", **options)
    both = transfer.adapt(source[0], target.train, adapters=transfer.LowRank(rank=1), freeze="copied", **options)
    anew = set(both.recommender.model.paths) - {*both.frozen.leaves, *both.frozen.rows}
    assert anew == {"item/embedding"}  # no item is shared: its table began anew and is trained beside its adapter
    nothing = transfer.freeze(source[0].params, rows={path: np.zeros(0, np.int32) for path in model.paths})
    with refuses(ValueError, "to be trained too"):
        transfer.adapt(source[0], target.train, adapters=transfer.LowRank(rank=1), freeze=nothing, **options)
    with refuses(ValueError, "importance= weighs parameters that adapters leave as they are"):
        transfer.adapt(
            source[0], target.train, adapters=transfer.LowRank(rank=1), importance=source[0].params, **options
        )
    narrow = transfer.adapt(source[0], target.train, adapters=transfer.Bottleneck(width=2), **options).recommender
    assert isinstance(narrow.model, models.Bottleneck) and narrow.model.width == 2
    users, before = (each.params["user"]["embedding"] for each in (narrow, ours.recommender))
    moved = set(np.flatnonzero((users != before).any(axis=1))) - {0}
    assert moved and not moved & set(rows.target)  # those who began anew, for no perceptron learns of one of them
    assert np.asarray(narrow.params["adapters"]["item"]["embedding"]["up"]).any()
    merged = transfer.merge_adapters(narrow)
    lists = [jaxrec.recommend(each, k=5, exclude_seen=False)["score"] for each in (narrow, merged)]
    np.testing.assert_allclose(*lists, atol=1e-5)
    with pytest.raises(ValueError, match="Only adapters of low rank can be taken out again"):
        transfer.unmerge(merged, narrow)
    further = transfer.adapt(ours.recommender, target.train, freeze=model.base_paths, **options)
    assert further.recommender.model == model and "adapters/user/embedding/b" in further.copied.paths("copied")


# Schedules and biases

TRACED = optax.inject_hyperparams(optax.adamw)(learning_rate=0.01, weight_decay=0.1)


def trajectory(parts, dim=4, **options):
    """Parameters at the start and after each epoch, the first users' rows being frozen."""
    model = models.MatrixFactorization.for_data(parts.train, dim=dim)
    seen, start = [], model.init(jax.random.key(7))
    rows = np.zeros(model.user_rows, bool)
    rows[1:4] = True
    fitted = jaxrec.fit(
        model, parts.train, params=start, batch_size=128, loss="bpr", optimizer=TRACED,
        frozen_rows={"user/embedding": rows},
        callbacks=[lambda progress: seen.append(jax.tree.map(np.asarray, progress.recommender.params))], **options,
    )  # fmt: skip
    assert len(fitted.log) == len(seen)
    return [jax.tree.map(np.asarray, start), *seen]


def moves(trees, path):
    """Whether the rows in use of a leaf move in each epoch; the unknown's row is a mean of the others."""
    leaves = [_tree.get(tree, path) for tree in trees]
    return [bool((a[1:] != b[1:]).any()) for a, b in zip(leaves[:-1], leaves[1:], strict=True)]


FROZEN = ("bias", "user/*", "item/embedding")
UNFREEZE = {3: "user/*", 4: ("item/embedding", "user/bias")}


def test_leaves_move_exactly_from_the_epoch_on_that_the_schedule_names(parts):
    # A width of its own: another test of this file may have compiled the phases already.
    options: dict[str, Any] = {"unfreeze": UNFREEZE, "freeze": FROZEN, "epochs": 5, "dim": 3}
    trees, compiled = counted(lambda: trajectory(parts, **options))
    assert moves(trees, "item/bias") == [True] * 5
    assert moves(trees, "user/embedding") == [False, False, True, True, True]
    assert moves(trees, "item/embedding") == [False, False, False, True, True]
    np.testing.assert_array_equal(trees[-1]["user"]["embedding"][1:4], trees[0]["user"]["embedding"][1:4])
    assert [name for name in compiled if "train_epoch" in name] == ["Compiling jit(train_epoch)"] * 3
    _, again = counted(lambda: trajectory(parts, **options, seed=3, hyperparams={"learning_rate": 0.1}))
    assert again == []


def test_freezing_all_but_some_may_be_lifted_at_once(parts):
    trees = trajectory(parts, freeze="*", unfreeze={1: "item/bias", 2: "user/*"}, epochs=2)
    assert moves(trees, "item/bias") == [True, True] and moves(trees, "user/embedding") == [False, True]
    assert moves(trees, "item/embedding") == [False, False]


def test_frozen_rows_are_lifted_by_their_leafs_name(parts):
    trees = trajectory(parts, freeze="user/embedding", unfreeze={2: "user/*", 3: "user/*"}, epochs=3)
    assert moves(trees, "user/embedding") == [False, True, True]
    rows = [tree["user"]["embedding"][1:4] for tree in trees]
    np.testing.assert_array_equal(rows[0], rows[2])  # of a frozen leaf the rows stay when it is lifted
    assert (rows[2] != rows[3]).any(axis=1).all()


def test_what_was_copied_is_lifted_with_its_rows(source, target):
    seen = []
    adapted = transfer.adapt(
        source[0], target.train, freeze="copied", unfreeze={2: "*"}, epochs=2, batch_size=64,
        callbacks=[lambda progress: seen.append(np.asarray(progress.recommender.params["user"]["embedding"]).copy())],
    )  # fmt: skip
    held = np.flatnonzero(adapted.frozen.rows["user/embedding"])
    trained = held[
        np.isin(held, np.asarray(adapted.recommender.encoder.features.user_row)[np.unique(target.train.user)])
    ]
    start = np.asarray(source[0].params["user"]["embedding"])
    pairs = transfer.align(source[0].encoder, target.train.encoder).rows["user"]
    of_source = dict(zip(np.asarray(pairs.target).tolist(), np.asarray(pairs.source).tolist(), strict=True))
    assert len(trained) and set(held) == set(of_source)
    np.testing.assert_array_equal(seen[0][held], start[[of_source[row] for row in held.tolist()]])
    assert (seen[0][trained] != seen[1][trained]).any(axis=1).all()


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        ({0: "user/*"}, "epochs in 1 .. 2, got 0 .. 0"),
        ({3: "user/*"}, "epochs in 1 .. 2, got 3 .. 3"),
        ({2: "towers/*"}, "matches no parameter"),
        ({2: "*"}, "All parameters are frozen"),
        ({1: "*", 2: "user/*"}, "Nothing that 'user/\\*' names is frozen in epoch 2, only nothing"),
    ],
)
def test_schedules_that_cannot_be_are_refused(parts, unfreeze, message):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    with pytest.raises(ValueError, match=message):
        jaxrec.fit(model, parts.train, epochs=2, freeze="*", unfreeze=unfreeze)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": optax.lamb(0.1)}, "cannot train the table .* by rows"),
        (
            {"frozen_rows": {"user/embedding": np.zeros(3, bool)}},
            "masks of rows of trainable tables .* shape \\(3,",
        ),
        (
            {"optimizer": optim.ewc(1.0), "hyperparams": {"importance": {"bias": np.ones((), np.float32)}}},
            "importance lacks 'user/embedding'",
        ),
    ],
)
def test_what_a_later_phase_cannot_do_is_refused_before_the_first(parts, monkeypatch, options, message):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    monkeypatch.setattr("jaxrec.train._fit.run_epochs", None)
    with pytest.raises(ValueError, match=message):
        jaxrec.fit(model, parts.train, freeze="*/*", unfreeze={9: "user/embedding"}, epochs=9, **options)


def test_patience_counts_anew_in_each_phase_and_ends_training_in_the_last(parts):
    falling = iter(range(0, -100, -1))
    options: dict[str, Any] = {"unfreeze": UNFREEZE, "freeze": FROZEN, "epochs": 9, "patience": 1}
    assert len(trajectory(parts, metric=lambda recommender: next(falling), **options)) == 1 + 4


def test_what_stays_trainable_goes_on_as_it_was():
    model, optimizer = MODELS["factorization"].model, optim.row_sparse(optax.adam(0.05))
    features: Any = FEATURES

    def begin(freeze):
        return train.init_state(
            model, model.init(jax.random.key(0)), optimizer, batch_of(), features, key=jax.random.key(1), freeze=freeze
        )

    def run(state):
        return epoch(state, stack_of(4), features, model=model, loss=BPR, optimizer=optimizer)[0]

    def again(state, freeze):
        return train.refreeze(state, model, optimizer, batch_of(), features, freeze=freeze)

    some = ("user/*", "bias")
    before, once = (run(run(begin(some))), run(again(run(begin(some)), some)))
    for ours, theirs in zip(jax.tree.leaves(once[:3]), jax.tree.leaves(before[:3]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    moment = np.asarray(before.opt_state[0].mu["item"]["embedding"]).copy()
    after = again(before, ())
    np.testing.assert_array_equal(after.opt_state[0].mu["item"]["embedding"], moment)
    assert moment.any() and not after.opt_state[0].mu["user"]["embedding"].any()
    assert int(after.opt_state[0].count) == int(after.step) == 8


def test_biases_alone_can_be_trained(source, target):
    frozen = transfer.freeze(source[0].params, transfer.all_but("*bias")).leaves
    assert set(frozen) == {"user/embedding", "item/embedding"}
    options: dict[str, Any] = {"epochs": 1, "batch_size": 128}
    ours = transfer.adapt(source[0], target.train, freeze="*", unfreeze={1: "*bias"}, **options)
    params, rows = ours.recommender.params, ours.alignment.for_model(ours.recommender.model)["user/embedding"]
    np.testing.assert_array_equal(
        params["user"]["embedding"][rows.target], source[0].params["user"]["embedding"][rows.source]
    )
    assert params["item"]["bias"][1:].any()


# Traced rates


def test_a_sweep_of_rates_by_path_compiles_nothing_and_gives_what_fixed_rates_give(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    inject = optax.inject_hyperparams(optax.adam)
    swept = optim.per_path({"item/*": inject(learning_rate=0.5), "*": inject(learning_rate=0.5)})
    options: dict[str, Any] = {"epochs": 2, "loss": "bpr", "batch_size": 128}
    jaxrec.fit(model, parts.train, optimizer=swept, **options)
    rates = {"item/*:learning_rate": 0.01, "*:learning_rate": 0.001}
    ours, compiled = counted(lambda: jaxrec.fit(model, parts.train, optimizer=swept, hyperparams=rates, **options))
    assert compiled == []
    fixed = optim.per_path({"item/*": optax.adam(0.01), "*": optax.adam(0.001)})
    theirs = jaxrec.fit(model, parts.train, optimizer=fixed, **options)
    for path, leaf in _tree.flatten(theirs.params).items():
        np.testing.assert_allclose(leaf, _tree.get(ours.params, path), atol=1e-5, err_msg=path)


def test_hyperparameters_have_names():
    params = {"user": {"embedding": jnp.ones((3, 2))}, "bias": jnp.ones(())}
    inject = optax.inject_hyperparams(optax.sgd)
    chain = optax.chain(
        optim.l2_sp(0.5), optim.per_path({"bias": inject(learning_rate=0.1), "*": inject(learning_rate=0.2)})
    )
    state = chain.init(params)
    named = {name: round(float(value), 6) for name, value in optim.hyperparams(state).items()}
    assert named == {"strength": 0.5, "bias:learning_rate": 0.1, "*:learning_rate": 0.2}
    both = optim.with_hyperparams(state, {"learning_rate": 0.3})
    assert [float(value) for value in optim.hyperparams(both).values()] == pytest.approx([0.5, 0.3, 0.3])
    strengths = jax.vmap(
        lambda value: optim.hyperparams(optim.with_hyperparams(state, {"strength": value}))["strength"]
    )
    np.testing.assert_allclose(strengths(jnp.arange(3.0)), [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="no hyper-parameter 'rate' to set, it has strength, .*inject_hyperparams"):
        optim.with_hyperparams(state, {"rate": 0.1})
    with pytest.raises(ValueError, match="no hyper-parameter 'importance' to set"):
        optim.with_hyperparams(state, {"importance": params})
    with pytest.raises(ValueError, match="Expected for strength the shape \\(\\), got \\(2,\\)"):
        optim.with_hyperparams(state, {"strength": jnp.ones(2)})
    falling = inject(learning_rate=optax.linear_schedule(0.1, 0.0, 10)).init(params)
    with pytest.raises(ValueError, match="'learning_rate' follows a schedule"):
        optim.with_hyperparams(falling, {"learning_rate": 0.1})
    begun = optax.inject_hyperparams(optax.adagrad)(learning_rate=0.1).init(params)
    assert "initial_accumulator_value" not in optim.hyperparams(begun)
    with pytest.raises(ValueError, match="'initial_accumulator_value' was read when .* Give it to the transformation"):
        optim.with_hyperparams(begun, {"initial_accumulator_value": 1e-6})
    weighed = optim.ewc(1.0).init(params)
    with pytest.raises(ValueError, match="The importance lacks 'user/embedding', which is trained. It has bias"):
        optim.with_hyperparams(weighed, {"importance": {"bias": jnp.ones(())}})


# Penalties


def test_penalties_pull_towards_the_start():
    params = {"a": jnp.asarray([1.0, 2.0])}
    here = {"a": jnp.asarray([3.0, 2.5])}
    grads = {"a": jnp.asarray([0.1, 0.1])}
    pull = optim.l2_sp(0.5)
    np.testing.assert_allclose(pull.update(grads, pull.init(params), here)[0]["a"], [1.1, 0.35], rtol=1e-6)
    pull = optim.ewc(0.5)
    state = optim.with_hyperparams(pull.init(params), {"importance": {"a": jnp.asarray([2.0, 0.0])}})
    np.testing.assert_allclose(pull.update(grads, state, here)[0]["a"], [2.1, 0.1], rtol=1e-6)
    for penalty in (optim.l2_sp, optim.ewc):
        with pytest.raises(ValueError, match="strength >= 0, got -1"):
            penalty(-1.0)
        for make in (penalty, optax.inject_hyperparams(penalty)):
            with refuses(TypeError, "strength, got (a schedule|an array). .* by itself: .* optim.with_hyperparams"):
                make(optax.linear_schedule(0.0, 1.0, 10)).init(params)
        begun = {"a": jnp.asarray([1.0, 2.0])}
        after = jax.jit(lambda *given: jax.tree.map(lambda leaf: leaf + 1, given), donate_argnums=(0, 1))
        np.testing.assert_array_equal(after(begun, penalty(1.0).init(begun))[1].start["a"], [2.0, 3.0])
        with pytest.raises(ValueError, match="Expected the parameters"):
            penalty(1.0).update(grads, penalty(1.0).init(params))


PULLED = optax.chain(optim.l2_sp(0.0), optax.clip_by_global_norm(1.0), optax.adam(0.02))
WEIGHED = optax.chain(optim.ewc(0.0), optax.clip_by_global_norm(1.0), optax.adam(0.02))


def distance(recommender, start):
    """From the start, of all leaves but the unknown's rows."""
    pairs = zip(jax.tree.leaves(recommender.params), jax.tree.leaves(start), strict=True)
    return sum(float(jnp.square(a - b)[1:].sum()) if a.ndim else 0.0 for a, b in pairs)


def test_a_sweep_of_strengths_compiles_nothing_and_frozen_leaves_stay(parts, factorization):
    start = factorization.params

    def fitted(optimizer, **hyperparams):
        return jaxrec.fit(
            factorization.model, parts.train, params=start, optimizer=optimizer, epochs=2, batch_size=128, loss="bpr",
            freeze="user/bias", hyperparams=hyperparams,
        )  # fmt: skip

    def sweep():
        return [fitted(PULLED, strength=strength) for strength in (0.1, 10.0)]

    plain = fitted(PULLED, strength=0.0)
    swept, compiled = counted(sweep)
    assert compiled == []
    far, near = (distance(recommender, start) for recommender in swept)
    assert distance(plain, start) > 1.1 * far > 1.5 * near > 0.0
    ones = jax.tree.map(jnp.ones_like, start)
    nothing = jax.tree.map(jnp.zeros_like, start)
    for importance, other in ((ones, swept[0]), (nothing, plain)):
        ours = fitted(WEIGHED, strength=0.1, importance=importance)
        for path, leaf in _tree.flatten(other.params).items():
            np.testing.assert_allclose(leaf, _tree.get(ours.params, path), atol=1e-5, err_msg=path)
        np.testing.assert_array_equal(ours.params["user"]["bias"][1:], start["user"]["bias"][1:])


def untrained(model, parts):
    params = shaken(model.init(jax.random.key(0)))
    return train.Recommender(model, params, parts.train.encoder, parts.train.interactions, len(parts.train))


def test_fisher_is_the_mean_square_of_gradients_of_single_examples(rated_parts):
    rated = untrained(models.MatrixFactorization.for_data(rated_parts.train, dim=3), rated_parts)
    few = rated_parts.train.subset(np.arange(30))
    ours = _tree.flatten(transfer.fisher(rated, few))
    expected = {path: np.zeros(leaf.shape) for path, leaf in ours.items()}

    @jax.jit
    def gradient(user, item, target):
        batch = data.Batch(user=user[None], item=item[None, None], target=target[None])
        loss = losses.on_batch("mse")
        return jax.grad(lambda params: loss(rated.model.apply(params, batch, rated.features), batch))(rated.params)

    for row in range(30):
        of_row = gradient(*(jnp.asarray(each[row]) for each in (few.user, few.item, few.target)))
        for path, leaf in _tree.flatten(of_row).items():
            expected[path] += np.square(leaf) / 30
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-7, err_msg=path)
    weight = np.isin(np.arange(200), np.arange(30)).astype(np.float32)  # of 200 rows the same 30 count
    weighed = dataclasses.replace(rated_parts.train.subset(np.arange(200)), weight=weight)
    for path, leaf in _tree.flatten(transfer.fisher(rated, weighed)).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-7, err_msg=path)


def test_a_row_looked_up_twice_in_an_example_has_one_gradient():
    """Histories that repeat an item, and the item itself."""
    model, loss = MODELS["towers with history"].model, losses.on_batch("sampled_softmax")
    params, batches = shaken(model.init(jax.random.key(0))), stack_of(2)
    batches = batches._replace(history=batches.history.at[:, :, 1].set(batches.history[:, :, 0]))
    nothing = jax.tree.map(jnp.zeros_like, params)
    found = _fisher._added(nothing, params, batches, FEATURES, model=model, loss=loss)

    def of_one(params, example):
        return loss(model.apply(params, example, FEATURES), example)

    squares = jax.tree.map(jnp.zeros_like, params)
    for step in range(2):
        for at in range(8):
            example = jax.tree.map(lambda leaf, step=step, at=at: leaf[step, at : at + 1], batches)
            grads = jax.grad(of_one)(params, example)
            squares = jax.tree.map(lambda total, grad: total + jnp.square(grad), squares, grads)
    for path, leaf in _tree.flatten(found).items():
        np.testing.assert_allclose(leaf, _tree.get(squares, path), rtol=1e-4, atol=1e-7, err_msg=path)


def test_fisher_of_what_has_no_gradient_is_refused(parts):
    counted = train.fit_item_knn(parts.train)
    with refuses(ValueError, "Parameters of Neighbours were counted"):
        transfer.fisher(counted, parts.train)


def test_a_row_looked_up_twice_in_an_example_counts_once(parts):
    model = models.TwoTower.for_data(parts.train, dim=4, hidden=(), code_dim=2, history=4, id_dropout=0.0)
    recommender = untrained(model, parts)
    found, other, more = (
        transfer.fisher(recommender, parts.train, examples=8, **options)
        for options in ({}, {"seed": 1}, {"negatives": 3})
    )
    assert all(np.isfinite(leaf).all() and (leaf >= 0).all() for leaf in jax.tree.leaves(found))
    used = np.asarray(found["user"]["embedding"]).any(axis=1)
    assert 0 < used.sum() <= 8 and not used[0]
    for changed in (other, more):
        assert (changed["item"]["bias"] != found["item"]["bias"]).any()
    with pytest.raises(ValueError, match="examples and negatives >= 1, got .* rows, 0 and 16"):
        transfer.fisher(recommender, parts.train, examples=0)


def test_fisher_draws_rows_and_reads_the_whole_dataset_with_them(parts):
    """A row alone has neither a history nor other items to be compared with."""
    model = models.SequenceTransformer.for_data(parts.train, dim=4, layers=1, history=4, code_dim=2)
    one = transfer.fisher(untrained(model, parts), parts.train, examples=1)
    kernels = [leaf for path, leaf in _tree.flatten(one).items() if path.startswith("blocks/")]
    assert kernels and all(np.asarray(leaf).any() for leaf in kernels)
    plain = untrained(models.MatrixFactorization.for_data(parts.train, dim=3), parts)
    assert 2 < np.asarray(transfer.fisher(plain, parts.train, examples=1)["item"]["bias"]).any(axis=1).sum() <= 17
    users = np.asarray(transfer.fisher(plain, parts.train, examples=70)["user"]["embedding"]).any(axis=1).sum()
    assert 35 < users <= 70 < len(np.unique(parts.train.user))  # the second batch of 64 is a part of one


def test_fisher_reads_a_set_of_items_whatever_the_examples_of_training(parts):
    """Training by users says nothing of an order, so histories are a part of the others, not those before."""
    options: dict[str, Any] = {"dim": 4, "latent": 2, "history": 4}
    by_users, by_rows = (
        transfer.fisher(
            untrained(models.VariationalAutoencoder.for_data(parts.train, histories=kind, **options), parts),
            parts.train,
            examples=8,
        )
        for kind in ("users", "subset")
    )
    jax.tree.map(np.testing.assert_array_equal, by_users, by_rows)


def test_importance_is_aligned_with_the_targets_rows(source, target):
    recommender, ours = source
    importance = transfer.fisher(recommender, ours.train, examples=256)
    options: dict[str, Any] = {"optimizer": WEIGHED, "epochs": 1, "batch_size": 128, "importance": importance}
    free, held = (
        transfer.adapt(recommender, target.train, hyperparams={"strength": strength}, **options)
        for strength in (0.0, 1e9)
    )
    rows = held.alignment.for_model(held.recommender.model)["user/embedding"]
    known = np.asarray(importance["user"]["embedding"])[rows.source].min(axis=1) > 1e-6
    before = recommender.params["user"]["embedding"][rows.source[known]]
    drift = {
        name: np.abs(each.recommender.params["user"]["embedding"][rows.target[known]] - before).max()
        for name, each in (("free", free), ("held", held))
    }
    assert known.any() and drift["held"] < 0.5 * drift["free"]
    fresh = held.recommender.model.init(jax.random.split(jax.random.key(0))[0])
    assert (held.recommender.params["item"]["embedding"][1:] != fresh["item"]["embedding"][1:]).any()


def test_what_training_is_given_is_not_consumed(parts, source, target):
    """A step donates its state, in which these values lie; later phases need them again, and so may the caller."""
    recommender, ours = source
    importance = transfer.fisher(recommender, ours.train, examples=64)
    options: dict[str, Any] = {"optimizer": WEIGHED, "epochs": 2, "batch_size": 256}
    transfer.adapt(recommender, target.train, importance=importance, freeze="copied", unfreeze={2: "*"}, **options)
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    ones = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0)))
    mask = jnp.zeros(model.user_rows, bool).at[1:4].set(True)
    given: dict[str, Any] = {
        "hyperparams": {"importance": ones, "strength": jnp.float32(0.1)},
        "frozen_rows": {"user/embedding": mask, "user/bias": mask},
    }
    first = jaxrec.fit(model, parts.train, loss="bpr", **given, **options)
    second, compiled = counted(lambda: jaxrec.fit(model, parts.train, loss="bpr", **given, **options))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert compiled == [] and not any(leaf.is_deleted() for leaf in jax.tree.leaves((importance, given)))
    state = train.init_state(
        model, model.init(jax.random.key(0)), optim.row_sparse(WEIGHED), batch_of(),
        FEATURES, key=jax.random.key(0), frozen_rows=given["frozen_rows"],
    )  # fmt: skip
    donated = jax.tree.leaves((state.params, state.frozen_rows, state.opt_state))
    assert len({id(leaf) for leaf in donated}) == len(donated)
