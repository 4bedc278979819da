"""Steps, frozen leaves and rows, and ``fit``: determinism, early stopping, the guard against NaN, compilation."""

import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import BPR, FEATURES, MODELS, OPTIMISERS, batch_of, epoch, shaken, stack_of, step
from conftest import encoded
from helpers import refuses

import jaxrec
from jaxrec import _tree, data, losses, models, optim, train
from jaxrec.train import _choices, _fit, _step

# Every model under the chain that moves most, and every optimiser with models of each kind: updates do not know models.
FROZEN = [(name, "clipped") for name in MODELS] + [
    (name, optimiser)
    for name in ("linear", "factorization", "towers with history")
    for optimiser in OPTIMISERS
    if optimiser != "clipped"
]


@pytest.mark.parametrize(("name", "optimiser"), FROZEN)
def test_frozen_leaves_and_rows_are_bit_identical_after_200_steps(name, optimiser):
    model, freeze, table = MODELS[name]
    optimizer = optim.row_sparse(OPTIMISERS[optimiser])
    params = shaken(model.init(jax.random.key(0)), size=0.1)
    rows = {} if table is None else {table: jnp.zeros(_tree.get(params, table).shape[0], bool).at[1:3].set(True)}
    start = train.init_state(
        model, jax.tree.map(jnp.copy, params), optimizer, batch_of(), FEATURES, key=jax.random.key(2), freeze=freeze,
        frozen_rows=rows,
    )  # fmt: skip
    state, info = epoch(start, stack_of(200), FEATURES, model=model, loss=BPR, optimizer=optimizer)
    assert int(info.steps) == 200 and bool(info.ok)
    after = _tree.flatten(_tree.merge(state.params, state.frozen))
    frozen = _tree.match(after, freeze)
    for path in frozen:
        np.testing.assert_array_equal(after[path], _tree.get(params, path), err_msg=path)
    if table is not None:
        np.testing.assert_array_equal(after[table][1:3], _tree.get(params, table)[1:3])
    # Whatever had a gradient in some step has moved.
    free_params, fixed = _tree.split(params, freeze)

    @jax.jit
    @jax.grad
    def gradient(free, batch):
        return BPR(model.apply(_tree.merge(free, fixed), batch, FEATURES), batch)

    grads = jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)),
                         *(gradient(free_params, batch_of(seed=n)) for n in range(3)))  # fmt: skip
    for path, grad in _tree.flatten(grads).items():
        free = np.atleast_1d(np.abs(grad) > 1e-6)  # what cancels, as an item bias under BPR, is noise
        moved = np.atleast_1d(np.asarray(after[path]) != np.asarray(_tree.get(params, path)))
        if path in model.tables:
            free[0] = False  # the unknown's row
        if path == table:
            free[1:3] = False
        assert moved[free].all(), path


def test_frozen_leaves_have_no_optimiser_state():
    model = MODELS["towers"].model
    optimizer = optim.row_sparse(optax.adam(0.1))
    start = train.init_state(
        model, model.init(jax.random.key(0)), optimizer, batch_of(), FEATURES, key=jax.random.key(0), freeze="item/*"
    )
    sizes = sum(leaf.size for leaf in jax.tree.leaves(start.opt_state)) - 1
    assert sizes == 2 * sum(leaf.size for leaf in jax.tree.leaves(start.params))


def test_a_frozen_leaf_may_be_int8():
    model = MODELS["factorization without bias"].model
    params = model.init(jax.random.key(0))
    params["item"]["embedding"] = jnp.round(params["item"]["embedding"] * 50).astype(jnp.int8)
    optimizer = optim.row_sparse(optax.sgd(0.1))
    with jax.numpy_dtype_promotion("standard"):
        state = train.init_state(model, params, optimizer, batch_of(), FEATURES, key=jax.random.key(0), freeze="item/*")
        state, info = epoch(state, stack_of(2), FEATURES, model=model, loss=BPR, optimizer=optimizer)
    assert state.frozen["item"]["embedding"].dtype == jnp.int8 and np.isfinite(info.losses).all()


def test_freezing_everything_or_nothing_known_is_refused():
    model = MODELS["towers"].model
    arguments = (model, model.init(jax.random.key(0)), optim.row_sparse(optax.sgd(0.1)), batch_of(), FEATURES)
    with pytest.raises(ValueError, match="All parameters are frozen"):
        train.init_state(*arguments, key=jax.random.key(0), freeze="*")
    with pytest.raises(ValueError, match="'towers/\\*' matches no parameter"):
        train.init_state(*arguments, key=jax.random.key(0), freeze="towers/*")
    for path, mask in (("item/bias", jnp.zeros(4, bool)), ("item/embedding", jnp.zeros(3, bool))):
        with pytest.raises(ValueError, match="masks of rows of trainable tables.*Freeze a whole leaf by pattern"):
            train.init_state(*arguments, key=jax.random.key(0), frozen_rows={path: mask})


def test_penalties_of_the_model_join_the_loss():
    plain = models.Linear(context=2)
    penalised = dataclasses.replace(plain, l2=10.0)
    params = {"bias": jnp.zeros(()), "context": {"kernel": jnp.asarray([1.0, -2.0])}}
    batch = batch_of()._replace(item=None, target=jnp.ones(8))
    optimizer = optim.row_sparse(optax.sgd(0.0))
    values = []
    for model in (plain, penalised):
        state = train.init_state(model, params, optimizer, batch, FEATURES, key=jax.random.key(0))
        loss = losses.on_batch("mse")
        values.append(float(step(state, batch, FEATURES, model=model, loss=loss, optimizer=optimizer)[1].loss))
    assert values[1] - values[0] == pytest.approx(10.0 / 2 * 5.0, rel=1e-5)


def test_a_penalty_is_let_in_step_by_step():
    model = dataclasses.replace(MODELS["autoencoder"].model, dropout=0.0, anneal=20)
    optimizer = optim.row_sparse(optax.sgd(0.0))
    state = train.init_state(
        model, model.init(jax.random.key(0)), optimizer, batch_of(), FEATURES, key=jax.random.key(0)
    )
    values = [
        float(step(state._replace(step=jnp.int32(number)), batch_of(), FEATURES, model=model, loss=nothing,
                   optimizer=optimizer)[1].loss)
        for number in (0, 5, 20, 1000)
    ]  # fmt: skip
    assert values[0] == 0.0 < values[1] and values[2] == values[3] == pytest.approx(4 * values[1], rel=1e-5)


def nothing(scores, batch):
    return 0.0 * scores.sum()


def test_a_step_that_is_not_finite_changes_nothing_and_ends_the_loop():
    model, optimizer = MODELS["factorization"].model, optim.row_sparse(OPTIMISERS["adam"])
    batches = stack_of(6)
    broken = batches._replace(weight=batches.weight.at[3, 2].set(jnp.nan))
    arguments = {"model": model, "loss": BPR, "optimizer": optimizer}

    def state():
        return train.init_state(
            model, model.init(jax.random.key(0)), optimizer, batch_of(), FEATURES, key=jax.random.key(0)
        )

    good, info = epoch(state(), batches, FEATURES, 3, **arguments)
    stopped, failed = epoch(state(), broken, FEATURES, 6, **arguments)  # the same program, bit by bit
    assert int(info.steps) == 3 and int(failed.steps) == 3 and not failed.ok
    for ours, theirs in zip(jax.tree.leaves(stopped[:3]), jax.tree.leaves(good[:3]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(stopped.step) == int(good.step) == 3


def test_step_lowers_for_cpu_cuda_and_tpu():
    model, optimizer = MODELS["towers with history"].model, optim.row_sparse(OPTIMISERS["clipped"])
    start = train.init_state(
        model, model.init(jax.random.key(0)), optimizer, batch_of(), FEATURES, key=jax.random.key(0)
    )

    def one(params, opt_state, slots, batch, features):
        # An exported function takes dicts of arrays; named tuples are put together inside.
        state = start._replace(
            params=params, opt_state=jax.tree.unflatten(jax.tree.structure(start.opt_state), opt_state)
        )
        new, info = train.train_step(
            state._replace(slots=slots), Batch(batch), Feats(features), model=model, loss=BPR, optimizer=optimizer
        )
        return new.params, jax.tree.leaves(new.opt_state), new.slots, info.loss

    def Batch(values):
        return data.Batch(**values)

    def Feats(values):
        return data.Features(**values)

    arguments = (
        start.params, jax.tree.leaves(start.opt_state), start.slots,
        {name: value for name, value in batch_of()._asdict().items() if value is not None}, FEATURES._asdict(),
    )  # fmt: skip
    exported = jax.export.export(jax.jit(one), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    read = jax.export.deserialize(exported.serialize()).call(*arguments)
    assert float(read[-1]) == pytest.approx(float(jax.jit(one)(*arguments)[-1]), rel=1e-5)


# fit


def leaves_of(recommender):
    return _tree.flatten(recommender.params)


@pytest.mark.parametrize("history", [0, 3])
def test_the_same_seed_gives_the_same_parameters_bit_for_bit(parts, history):
    model = models.TwoTower.for_data(parts.train, dim=4, hidden=(8,), code_dim=2, history=history)
    first, second, other = (jaxrec.fit(model, parts.train, epochs=2, batch_size=64, seed=seed) for seed in (0, 0, 1))
    for path, leaf in leaves_of(first).items():
        np.testing.assert_array_equal(leaf, leaves_of(second)[path])
    assert any((leaf != leaves_of(other)[path]).any() for path, leaf in leaves_of(first).items())


def test_a_second_call_with_new_data_of_the_same_shape_compiles_nothing(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 64, "optimizer": optax.adam(0.01)}
    jaxrec.evaluate(jaxrec.fit(model, parts.train, **options), parts.test)
    rng = np.random.default_rng(0)
    shuffled = dataclasses.replace(parts.train, item=rng.permutation(parts.train.item))
    compiled: list[str] = []
    with jax.log_compiles():
        with pytest.MonkeyPatch.context() as patch:
            record(patch, compiled)
            jaxrec.evaluate(jaxrec.fit(model, shuffled, **options, seed=5), parts.test)
    assert compiled == []


def record(patch, names):
    """Collects what jax compiles."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Compiling"):
                names.append(message.split(" with ")[0])

    handler = Handler()
    for name in ("jax._src.interpreters.pxla", "jax._src.dispatch", "jax._src.compiler"):
        logger = logging.getLogger(name)
        patch.setattr(logger, "handlers", [handler])
        patch.setattr(logger, "propagate", False)


def test_training_loss_falls_and_history_is_a_table(towers):
    history = towers.history
    assert list(history.columns) == ["epoch", "loss", "seconds"]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_a_planted_block_structure_is_found():
    """Users like the items of their own block; of each user one item is held out, and it must come first."""
    rows = [(user, item) for user in range(20) for item in range(20) if user % 2 == item % 2]
    frame = pd.DataFrame(rows, columns=["user", "item"])
    held = frame.groupby("user").cumcount() == (frame["user"] // 2) % 10
    schema = data.Schema()
    parts = data.encode(data.Parts(frame[~held], None, frame[held]), schema)
    model = models.MatrixFactorization.for_data(parts.train, dim=8)
    recommender = jaxrec.fit(model, parts.train, epochs=60, batch_size=32, optimizer=optax.adam(0.03))
    assert jaxrec.evaluate(recommender, parts.test, ks=(1,))["recall@1"] == 1.0


@pytest.mark.parametrize(("histories", "loss"), [("before", None), ("sequences", None), ("sequences", "softmax")])
def test_a_sequence_transformer_learns_what_follows_what(histories, loss):
    """Everybody walks a ring of 20 items from a start of their own; popularity knows nothing of who stands where."""
    rows = [(user, (user + step) % 20, step) for user in range(60) for step in range(5 + user % 3)]
    schema = data.Schema(time="time")
    frame = pd.DataFrame(rows, columns=["user", "item", "time"]).sample(frac=1.0, random_state=0)
    parts = data.encode(data.split_leave_one_out(frame, schema, validation=False, seed=0), schema)
    model = models.SequenceTransformer.for_data(
        parts.train, dim=16, layers=1, history=4, dropout=0.0, histories=histories
    )
    recommender = jaxrec.fit(model, parts.train, epochs=40, batch_size=64, optimizer=optax.adam(0.01), loss=loss)
    popular = jaxrec.evaluate(jaxrec.coldstart.popularity(parts.train), parts.test, ks=(1,))["recall@1"]
    assert jaxrec.evaluate(recommender, parts.test, ks=(1,))["recall@1"] > 0.9 > 0.4 > popular
    steps = pd.DataFrame({"user": 1000, "item": [7, 8], "time": [0, 1]})  # somebody new, by the interactions alone
    assert jaxrec.recommend(recommender, [1000], interactions=steps, k=1)["item"].tolist() == [9]


def test_early_stopping_keeps_the_best_parameters(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=8)
    recommender = jaxrec.fit(
        model, parts.train, validation=parts.validation, epochs=40, batch_size=64, patience=2,
        optimizer=optax.adam(0.05), metric="recall@20",
    )  # fmt: skip
    values = recommender.history["recall@20"]
    best = int(values.argmax())
    assert len(values) == best + 3 < 40
    again = jaxrec.evaluate(recommender, parts.validation, ks=(20,))
    assert again["recall@20"] == pytest.approx(values[best], abs=1e-6)


def test_a_metric_may_be_a_function_and_lower_errors_are_better(rated_parts):
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    seen = []

    def count(recommender):
        seen.append(recommender)
        return -float(len(seen))

    recommender = jaxrec.fit(model, rated_parts.train, metric=count, epochs=9, patience=1)
    assert recommender.history["count"].tolist() == [-1.0, -2.0]
    by_error = jaxrec.fit(model, rated_parts.train, validation=rated_parts.validation, epochs=4, patience=None)
    assert jaxrec.evaluate(by_error, rated_parts.validation)["rmse"] == pytest.approx(
        by_error.history["rmse"].min(), abs=1e-6
    )


def test_a_metric_that_cannot_be_is_refused_before_training(parts, monkeypatch):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    monkeypatch.setattr("jaxrec.train._fit.run_epochs", None)
    for metric, message in (("ndgc@10", "such as 'ndcg@10', of recall"), ("ndcg@99999", "metric at 1 .. ")):
        with pytest.raises(ValueError, match=message):
            jaxrec.fit(model, parts.train, validation=parts.validation, metric=metric)


def test_a_validation_part_that_cannot_be_is_refused_before_training(parts, world, monkeypatch):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    monkeypatch.setattr("jaxrec.train._fit.run_epochs", None)
    held_out = parts.validation
    for validation, message in (
        (held_out.subset(np.arange(0)), "The validation part is empty"),
        (dataclasses.replace(held_out, user=0 * held_out.user), "users that the encoder does not know"),
        (encoded(world.source).train, "users were numbered by another encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxrec.fit(model, parts.train, validation=validation)
        with pytest.raises(ValueError, match=message):
            train.fit_als(parts.train, dim=2, validation=validation)


def test_parameters_are_copied_only_where_somebody_looks(parts, monkeypatch):
    model, made, original = models.MatrixFactorization.for_data(parts.train, dim=4), [], _fit.finished
    monkeypatch.setattr(_fit, "finished", lambda *args, **options: made.append(options) or original(*args, **options))
    alone = jaxrec.fit(model, parts.train, epochs=3)
    assert [options.get("in_place") for options in made] == [True]
    watched = jaxrec.fit(model, parts.train, epochs=3, callbacks=[lambda progress: None])
    assert len(made) == 1 + 4
    jax.tree.map(np.testing.assert_array_equal, alone.params, watched.params)


def test_callbacks_see_every_epoch_and_may_end_training(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    seen = []

    def stop_at_two(progress: train.Progress) -> bool:
        seen.append((progress.epoch, progress.row["loss"], progress.recommender.history.shape[0]))
        return progress.epoch == 2

    recommender = jaxrec.fit(model, parts.train, epochs=5, callbacks=(stop_at_two,))
    assert [(number, rows) for number, _, rows in seen] == [(1, 1), (2, 2)] and len(recommender.log) == 2


def test_a_loss_that_would_train_on_padding_is_told_of(parts):
    def unweighed(scores, batch):
        return jnp.square(scores[:, 0] - 1.0).mean()

    def weighed(scores, batch):
        return losses.mse(scores[:, 0], jnp.ones_like(scores[:, 0]), weight=batch.weight)

    model = models.MatrixFactorization.for_data(parts.train, dim=2)
    rows = parts.train.subset(np.arange(64))
    options: dict[str, Any] = {"epochs": 1, "batch_size": 64, "optimizer": optax.sgd(0.1)}
    own = dataclasses.replace(rows, weight=np.ones(64, np.float32))
    for verb in (jaxrec.fit, lambda *args, **options: train.sweep(*args, [{}], **options)):
        for dataset in (parts.train, own):
            for loss in (unweighed, jax.jit(unweighed), jax.checkpoint(unweighed)):
                with pytest.warns(UserWarning, match="looks at scores and not at batch.weight, .* as in losses.bpr"):
                    verb(model, dataset, loss=loss, **options)
        verb(model, rows, loss=unweighed, **options)  # a single batch, which nothing fills up
    for loss in (weighed, jax.jit(weighed), losses.on_batch("mse")):
        jaxrec.fit(model, parts.train, loss=loss, **options)


def test_the_guard_names_the_step_and_keeps_the_last_good_parameters(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    weight = np.ones(len(parts.train), np.float32)
    broken = dataclasses.replace(parts.train, weight=weight)

    def explodes(scores, batch):
        mean = (batch.weight * scores.mean(axis=1)).sum() / batch.weight.sum()
        return jnp.where(mean > 1.5, jnp.inf, -mean)

    with pytest.raises(train.Diverged, match=r"became inf in step \d+ \(epoch \d+\).*before that step") as caught:
        jaxrec.fit(model, broken, loss=explodes, optimizer=optax.sgd(10.0), epochs=200, batch_size=64,
                   negatives=data.Negatives(num=1))  # fmt: skip
    kept = caught.value.recommender
    sent = pickle.loads(pickle.dumps(caught.value))  # as by a process of its own
    assert str(sent) == str(caught.value) and sent.recommender.model == model
    jax.tree.map(np.testing.assert_array_equal, sent.recommender.params, kept.params)
    assert all(np.isfinite(leaf).all() for leaf in leaves_of(kept).values())
    assert jaxrec.recommend(kept, k=3)["score"].notna().all()


def test_given_parameters_are_continued_and_not_consumed(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    first = jaxrec.fit(model, parts.train, epochs=3, batch_size=64)
    before = {path: np.asarray(leaf).copy() for path, leaf in leaves_of(first).items()}
    second = jaxrec.fit(model, parts.train, epochs=1, batch_size=64, params=first.params, optimizer=optax.sgd(0.0))
    for path, leaf in leaves_of(first).items():
        np.testing.assert_array_equal(leaf, before[path])
        np.testing.assert_allclose(leaf, leaves_of(second)[path], atol=1e-6)


def test_weights_count_as_repetitions(rated_parts):
    model = models.Linear.for_data(rated_parts.train)
    rows = rated_parts.train.subset(np.arange(40))
    twice = rows.subset(np.concatenate([np.arange(40), np.arange(0, 40, 2)]))
    weighted = dataclasses.replace(rows, weight=np.where(np.arange(40) % 2 == 0, 2.0, 1.0).astype(np.float32))
    options: dict[str, Any] = {"batch_size": None, "epochs": 30, "optimizer": optax.sgd(0.1)}
    ours, theirs = jaxrec.fit(model, weighted, **options), jaxrec.fit(model, twice, **options)
    for path, leaf in leaves_of(ours).items():
        np.testing.assert_allclose(leaf, leaves_of(theirs)[path], atol=1e-5, err_msg=path)


def test_rows_that_weigh_nothing_move_nothing_and_are_known_all_the_same(parts):
    weight = (np.arange(len(parts.train)) % 3 > 0).astype(np.float32)
    weighed = dataclasses.replace(parts.train, weight=weight)
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 64}
    for verb in (jaxrec.fit, lambda *args, **options: train.sweep(*args, [{}], **options).recommenders[0]):
        ours, theirs = (verb(model, rows, **options) for rows in (weighed, weighed.subset(weight > 0)))
        jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
        assert len(ours.seen) == len(parts.train)
        jax.tree.map(np.testing.assert_array_equal, ours.prior, theirs.prior)
    with pytest.raises(ValueError, match="rows weigh 0, so there is nothing to learn from"):
        jaxrec.fit(model, dataclasses.replace(weighed, weight=0 * weight), **options)


@pytest.mark.parametrize("how", ["weight", "subset"])
def test_who_has_no_example_is_given_the_unknowns_row_and_no_part_of_the_mean(parts, how):
    rows = parts.train
    there = (rows.user != rows.user[0]) & (rows.item != rows.item[0])
    some = rows.subset(there) if how == "subset" else dataclasses.replace(rows, weight=there.astype(np.float32))
    model = models.MatrixFactorization.for_data(rows, dim=4)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 64}
    for verb in (jaxrec.fit, lambda *args, **options: train.sweep(*args, [{}], **options).recommenders[0]):
        found = verb(model, some, **options)
        assert found.encoder is some.encoder
        for side, index in (("user", rows.user), ("item", rows.item)):
            row, table = getattr(some.features, f"{side}_row"), np.asarray(found.params[side]["embedding"])
            met = row[np.unique(index[there])]
            np.testing.assert_allclose(table[0], table[met].mean(axis=0), atol=1e-6)
            empty = np.setdiff1d(row, [0, *met])
            assert len(empty)
            np.testing.assert_array_equal(table[empty], np.broadcast_to(table[0], (len(empty), 4)))
    again = jaxrec.fit(model, some, params=found.params, **options).params["user"]["embedding"]
    begun = found.params["user"]["embedding"][some.features.user_row[rows.user[0]]]
    np.testing.assert_allclose(again[some.features.user_row[rows.user[0]]], begun)  # what is given is kept
    with_history = models.TwoTower.for_data(rows, dim=4, hidden=(), history=3)
    empty = _choices.empty_rows(with_history, some)
    assert "user" in empty and ("item" in empty) == (how == "subset")  # an item of weight 0 is in a history
    assert not _choices.empty_rows(model, rows)


def test_the_last_batch_is_padded_not_dropped(rated_parts):
    model = models.Linear.for_data(rated_parts.train)
    rows = rated_parts.train.subset(np.arange(10))
    one = jaxrec.fit(model, rows, batch_size=8, epochs=1, optimizer=optax.sgd(0.1))
    assert len(one.log) == 1
    batches = data.Batches(rows, batch_size=8, negatives=None, history=0, seed=0)
    stack, steps = next(batches.epoch(1))
    assert steps == 2 and stack.weight.sum() == 10 and (stack.user[1, 2:] == 0).all()


def test_the_unknown_user_is_the_average_one(factorization):
    table = np.asarray(factorization.params["user"]["embedding"])
    used = int(factorization.encoder.features.user_row.max())
    np.testing.assert_allclose(table[0], table[1 : used + 1].mean(axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["bpr", "warp", "sampled_softmax", "in_batch_softmax", "sigmoid_cross_entropy", "mse"])
def test_every_loss_beats_chance_on_a_small_world(parts, loss):
    model = models.MatrixFactorization.for_data(parts.train, dim=8)
    recommender = jaxrec.fit(model, parts.train, loss=loss, epochs=15, batch_size=64, optimizer=optax.adam(0.02))
    chance = jaxrec.evaluate(lambda users, items: np.zeros((len(users), len(items))), parts.test, seen=parts.train)
    assert jaxrec.evaluate(recommender, parts.test)["ndcg@10"] > 1.5 * chance["ndcg@10"]


def test_neumf_is_fitted_by_its_link_and_goes_on_from_its_parts(parts):
    sizes: dict[str, Any] = {"dim": 8, "mlp_dim": 8, "hidden": (8,)}
    model = models.NeuMF.for_data(parts.train, **sizes)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 64}
    gmf, mlp = (
        jaxrec.fit(dataclasses.replace(model, **{width: 0}), parts.train, epochs=5, batch_size=64)
        for width in ("mlp_dim", "dim")
    )
    assert gmf.link == mlp.link == "sigmoid"
    start = model.fuse(gmf.params, mlp.params)
    fused = jaxrec.fit(model, parts.train, params=start, **options)
    scratch = jaxrec.fit(model, parts.train, **options)
    assert fused.history["loss"].iloc[0] < scratch.history["loss"].iloc[0]
    chance = jaxrec.evaluate(lambda users, items: np.zeros((len(users), len(items))), parts.test, seen=parts.train)
    assert jaxrec.evaluate(fused, parts.test)["ndcg@10"] > 1.5 * chance["ndcg@10"]
    plain = dataclasses.replace(model, link="identity")
    assert jaxrec.fit(plain, parts.train, epochs=1, batch_size=64).link == "identity"


@pytest.mark.parametrize(
    "options", [{"history": 32}, {"history": 16, "dropout": 0.2, "beta": 0.002, "histories": "subset"}]
)
def test_an_autoencoder_beats_popularity_and_serves_somebody_new_from_their_history(world, options):
    parts = encoded(world.target)
    model = models.VariationalAutoencoder.for_data(parts.train, dim=32, latent=8, **options)
    recommender = jaxrec.fit(model, parts.train, epochs=30, batch_size=64)
    popular = jaxrec.evaluate(jaxrec.coldstart.popularity(parts.train), parts.test)["ndcg@10"]
    assert jaxrec.evaluate(recommender, parts.test)["ndcg@10"] > 1.1 * popular
    index = int(np.flatnonzero(parts.train.interactions.user_count)[3])
    users, items = parts.train.encoder.users.ids, parts.train.encoder.items.ids
    touched = items[parts.train.item[parts.train.user == index] - 1]
    frame = pd.DataFrame({"user": 10**6, "item": touched, "time": np.arange(len(touched))})
    new = jaxrec.recommend(recommender, [10**6], interactions=frame, k=8)
    known = jaxrec.recommend(recommender, [users[index - 1]], k=8)
    assert new["item"].tolist() == known["item"].tolist()
    np.testing.assert_allclose(new["score"], known["score"], rtol=1e-4, atol=1e-5)
    other = jaxrec.recommend(recommender, [10**6], interactions=frame.head(1), k=8)
    assert other["score"].tolist() != new["score"].tolist()


def test_a_factorization_machine_knows_cold_users_by_their_features(parts, factorization):
    model = models.FactorizationMachine.for_data(parts.train, dim=8)
    recommender = jaxrec.fit(model, parts.train, epochs=10, batch_size=64)
    without = jaxrec.evaluate(factorization, parts.test)["ndcg@10"]  # one list for all of them
    assert jaxrec.evaluate(recommender, parts.test)["ndcg@10"] > without


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs >= 1, got 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"patience": 0}, "patience >= 1 or None, got 0"),
        ({"metric": "ndcg@10"}, "needs held-out data"),
        ({"loss": "hinge"}, "a loss among mse"),
        ({"freeze": "towers/*"}, "matches no parameter"),
        ({"negatives": data.Negatives(num=2)}, "go together, got 'in_batch_softmax'"),
        ({"loss": "bpr", "negatives": data.Negatives(in_batch=True)}, "go together, got 'bpr'"),
        ({"loss": "softmax", "negatives": data.Negatives(shared=4)}, "over all items: expected .*catalogue=True"),
        (
            {"loss": "bpr", "negatives": data.Negatives(catalogue=True)},
            "among its negatives, which the loss 'bpr' does",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(parts, options, message):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    with pytest.raises(ValueError, match=message):
        jaxrec.fit(model, parts.train, **options)


@pytest.mark.parametrize("loss", ["mse", "sigmoid_cross_entropy", "bpr", "warp", "sampled_softmax", "in_batch_softmax"])
def test_users_as_examples_have_the_loss_of_users(parts, loss):
    model = models.VariationalAutoencoder.for_data(parts.train, dim=4, latent=2, history=4)
    with refuses(ValueError, f"by the loss 'softmax' or a function, got '{loss}'. Give the model histories='subset'"):
        jaxrec.fit(model, parts.train, loss=loss, epochs=1)


def test_targets_and_losses_must_agree(rated_parts, parts):
    rated = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    with pytest.raises(ValueError, match=r"targets in \[0, 1\] for sigmoid_cross_entropy"):
        jaxrec.fit(rated, rated_parts.train, loss="sigmoid_cross_entropy")
    with pytest.raises(ValueError, match="The data has a target"):
        jaxrec.fit(rated, rated_parts.train, negatives=data.Negatives(num=1))
    schema = data.Schema(user=None, item=None, target="y", context=(data.Numeric("x"),))
    plain = data.encode(data.Parts(pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0]}), None, None), schema).train
    for options in ({"negatives": data.Negatives(num=1)}, {"loss": "bpr"}):
        with pytest.raises(ValueError, match="Negatives are items, and the data has none. Name the item column"):
            jaxrec.fit(models.Linear.for_data(plain), plain, **options)
    logistic = models.Linear.for_data(parts.train, link="sigmoid")
    for loss in ("mse", losses.on_batch("mse")):
        with pytest.raises(ValueError, match="link 'sigmoid', which goes with the loss 'sigmoid_cross_entropy'"):
            jaxrec.fit(logistic, parts.train, loss=loss)


@pytest.mark.parametrize("loss", ["mse", "sigmoid_cross_entropy", "bpr", "softmax"])
def test_a_named_loss_given_as_its_function_is_the_named_one(parts, rated_parts, loss):
    for rows in (rated_parts.train, parts.train):
        model = models.MatrixFactorization.for_data(rows, dim=2)
        if rows.target is not None:
            rows = dataclasses.replace(rows, target=np.full(len(rows), 0.5, np.float32))
        chosen = [_choices.chosen_loss(model, rows, each) for each in (loss, losses.on_batch(loss))]
        assert chosen[0] == chosen[1] and chosen[0][0] == loss
    ours, theirs = (jaxrec.fit(model, rows, loss=each, epochs=1) for each in (loss, losses.on_batch(loss)))
    assert ours.link == theirs.link
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_training_rows_must_be_known(parts):
    unknown = dataclasses.replace(parts.train, item=parts.train.item * 0)
    with pytest.raises(ValueError, match="have items that the encoder does not know"):
        jaxrec.fit(models.MatrixFactorization.for_data(unknown, dim=4), unknown)
    with pytest.raises(ValueError, match="The training part is empty"):
        jaxrec.fit(models.MatrixFactorization.for_data(parts.train, dim=4), parts.train.subset(np.zeros(0, int)))


def test_a_progress_bar_is_shown_when_asked(parts, capsys):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    jaxrec.fit(model, parts.train, epochs=1, progress=True)
    assert "training" in capsys.readouterr().err
    jaxrec.fit(model, parts.train, epochs=1)
    assert capsys.readouterr().err == ""


def test_the_default_optimiser_leaves_coefficients_their_size():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=400), "user": np.arange(400), "group": np.arange(400) % 2})
    frame["y"] = 4 * frame["x"] + 3 * frame["group"]
    schema = data.Schema(item=None, target="y", context=(data.Numeric("x", scale=None),),
                         user_features=(data.Categorical("group"),))  # fmt: skip
    train = data.encode(data.Parts(frame, None, None), schema, users=frame[["user", "group"]]).train
    model = models.Linear.for_data(train)
    assert model.tables
    fitted = jaxrec.fit(model, train, epochs=200, batch_size=50, progress=False)
    assert float(fitted.params["context"]["kernel"][0]) == pytest.approx(4.0, abs=0.1)
    assert fitted.history["loss"].iloc[-1] < 0.1


def test_all_tables_of_embeddings_have_one_rate_by_default():
    model = models.SharedSpecific(user_rows=40, item_rows=40, dim=2, domains=3)
    features = FEATURES._replace(item_codes={"domain": jnp.asarray(np.arange(10)[:, None] % 4, jnp.int32)})
    params = shaken(model.init(jax.random.key(0)))
    state = train.init_state(model, params, _choices._DEFAULT_OPTIMIZER, batch_of(), features, key=jax.random.key(1))
    before = jax.tree.map(np.asarray, state.params)
    moved, _ = step(state, batch_of(), features, model=model, loss=BPR, optimizer=_choices._DEFAULT_OPTIMIZER)
    first, second = (
        np.abs(moved.params["user"][name] - before["user"][name]).max() for name in ("embedding", "specific")
    )
    assert min(first, second) > 0.009  # Adam's first step has the size of the rate


def test_more_steps_than_batches_are_refused():
    model, optimizer = MODELS["factorization"].model, optim.row_sparse(optax.sgd(0.1))
    state = train.init_state(
        model, model.init(jax.random.key(0)), optimizer, batch_of(), FEATURES, key=jax.random.key(1)
    )
    for number in (8, np.int64(8), -1):
        with refuses(ValueError, f"num_steps in 0 .. 5, the number of stacked batches, got {number}"):
            train.train_epoch(state, stack_of(5), FEATURES, number, model=model, loss=BPR, optimizer=optimizer)


def test_parameters_of_another_model_are_refused(parts, factorization):
    model = factorization.model
    with pytest.raises(ValueError, match=r"parameters are not those of .*at 'item/embedding' it has .* \(3, 8\) was"):
        few = _tree.replace(factorization.params, {"item/embedding": jnp.zeros((3, 8))})
        jaxrec.fit(model, parts.train, params=few, epochs=1)
    with pytest.raises(ValueError, match="at 'bias' it has .*, and nothing was given"):
        jaxrec.fit(model, parts.train, params=_tree.drop(factorization.params, {"bias"}), epochs=1)
    with pytest.raises(ValueError, match="table 'user/embedding' has 5 rows and the data needs"):
        jaxrec.fit(dataclasses.replace(model, user_rows=5), parts.train, epochs=1)


@pytest.mark.parametrize("shape", [(), (5,), (40, 8), (3, 4, 8), (8, 1)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_number_of_a_gradient_that_is_not_finite_is_seen(shape, wrong):
    most = np.finfo(np.float32).max
    found = jax.jit(_step.all_finite)
    large = np.full(shape, most, np.float32)  # whose sum is infinite
    spoilt = large.copy()
    spoilt[tuple(number // 2 for number in shape)] = wrong
    fine = {"dense": jnp.ones(3), "table": jnp.asarray(large)}
    assert found(jnp.float32(most), fine)
    assert not found(jnp.float32(most), fine | {"table": jnp.asarray(spoilt)})
    assert not found(jnp.float32(wrong), fine)


def masked(scores, batch):
    return jnp.where(jnp.isfinite(scores), scores, 0.0).sum()


def steep(scores, batch):
    return 1e30 * scores.sum()


@pytest.mark.parametrize("dim", [4, 16])
@pytest.mark.parametrize(("loss", "number"), [(masked, np.nan), (masked, np.inf), (steep, 1e9)])
def test_a_factorization_is_not_moved_by_rows_whose_gradients_are_not_finite(loss, number, dim):
    model, optimizer = dataclasses.replace(MODELS["factorization"].model, dim=dim), optim.row_sparse(optax.sgd(0.1))
    params = model.init(jax.random.key(0))
    row = int(FEATURES.item_row[batch_of().item[0, 0]])
    params = _tree.replace(params, {"item/embedding": params["item"]["embedding"].at[row, 1].set(number)})
    params = _tree.replace(params, {"user/embedding": jnp.full_like(params["user"]["embedding"], 1e-10)})
    expected = jax.tree.map(np.array, params)
    state = train.init_state(model, params, optimizer, batch_of(), FEATURES, key=jax.random.key(0))
    moved, info = step(state, batch_of(), FEATURES, model=model, loss=loss, optimizer=optimizer)
    assert np.isfinite(info.loss) and not info.ok and int(moved.step) == 0
    jax.tree.map(np.testing.assert_array_equal, moved.params, expected)


def test_rows_that_could_learn_nothing_are_refused(parts, factorization):
    grown = jaxrec.coldstart.add(factorization, users=[5])
    frame = parts.train.encoder.schema
    rows = grown.encoder.encode(
        jaxrec.ranking.recommend(factorization, k=1).assign(**{frame.time: 0}).replace({"user": {}}).assign(user=5)
    )
    with pytest.raises(ValueError, match="1 users of the training part have no row in the model's tables.*adapt"):
        jaxrec.fit(grown.model, rows, params=grown.params, epochs=1)


def test_a_gradient_that_is_not_finite_is_named(parts):
    def loss(scores, batch):
        steep = jnp.sqrt(jnp.abs(scores - jax.lax.stop_gradient(scores)))
        return 0.0 * (batch.weight[:, None] * steep).sum()

    model = models.MatrixFactorization.for_data(parts.train, dim=2)
    with pytest.raises(train.Diverged, match="A gradient became infinite or NaN in step 1 "):
        jaxrec.fit(model, parts.train, loss=loss, negatives=data.Negatives(num=1), epochs=1)


def test_defaults_fit_a_small_catalogue(world):
    few = world.target.interactions["item"].value_counts().index[:6]
    frame = world.target.interactions[world.target.interactions["item"].isin(few)]
    parts = data.encode(data.split_random(frame, validation=0.2, test=0.2, seed=0), data.Schema())
    model = models.MatrixFactorization.for_data(parts.train, dim=2)
    fitted = jaxrec.fit(model, parts.train, validation=parts.validation, epochs=1)
    assert "ndcg@6" in fitted.history and jaxrec.evaluate(fitted, parts.test).coverage.keys() == {6}
    assert jaxrec.recommend(fitted, exclude_seen=False).groupby("user").size().eq(6).all()


def test_classes_and_other_objects_are_refused(parts, world):
    with refuses(TypeError, "got the class TwoTower. Make one: TwoTower.for_data"):
        jaxrec.fit(models.TwoTower, parts.train)
    with refuses(TypeError, "Expected a Dataset for train, got Parts. Pass its .train"):
        jaxrec.fit(models.MatrixFactorization.for_data(parts.train), parts)
    with refuses(TypeError, "Expected a HasSizes for data, got Parts. Pass its .train"):
        models.TwoTower.for_data(parts)
    with refuses(TypeError, "Expected a Dataset for train, got DataFrame. Split the frame and encode it first"):
        jaxrec.fit(models.MatrixFactorization.for_data(parts.train), world.target.interactions)
    for verb in (jaxrec.fit, lambda *args, **options: train.sweep(*args, [{}], **options)):
        with refuses(TypeError, r"Expected data.Negatives for negatives, got 1. .* negatives=data.Negatives\(num=1\)"):
            verb(models.MatrixFactorization.for_data(parts.train), parts.train, loss="bpr", negatives=1)


def not_a_number(recommender):
    return float("nan")


def leap(step):
    """A rate whose second step is finite and makes vectors beyond 1e19, whose products are not."""
    return jnp.where(step < 1, 0.1, 1e25)


def test_scores_that_become_nan_end_training_with_the_best_parameters(parts, rated_parts):
    for split, loss, message in (
        (parts, "bpr", "A score is infinite or NaN"),
        (rated_parts, "mse", "are infinite or NaN"),
    ):
        model = models.MatrixFactorization.for_data(split.train, dim=4)
        options: dict[str, Any] = {"loss": loss, "batch_size": None, "optimizer": optax.sgd(leap)}
        options["validation"] = split.validation
        good = jaxrec.fit(model, split.train, epochs=1, **options)
        with pytest.raises(train.Diverged, match=f"{message}.* stopped after epoch 2, .* best one before") as caught:
            jaxrec.fit(model, split.train, epochs=5, **options)
        jax.tree.map(np.testing.assert_array_equal, caught.value.recommender.params, good.params)
        assert len(caught.value.recommender.log) == 1
    with pytest.raises(train.Diverged, match="The metric 'not_a_number' is NaN") as caught:
        jaxrec.fit(model, rated_parts.train, metric=not_a_number, epochs=2)
    assert all(np.isfinite(leaf).all() for leaf in leaves_of(caught.value.recommender).values())


def test_parameters_that_are_not_finite_are_not_returned(parts):
    def loss(scores, batch):
        return 1e6 * losses.bpr(scores, weight=batch.weight)

    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    options: dict[str, Any] = {"optimizer": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), "batch_size": None}
    with pytest.raises(train.Diverged, match="A parameter is infinite or NaN after the last step"):
        jaxrec.fit(
            model, parts.train, loss=loss, negatives=data.Negatives(num=1), epochs=1,
            hyperparams={"learning_rate": 3e38}, **options,
        )  # fmt: skip
    options |= {"loss": loss, "negatives": data.Negatives(num=1), "epochs": 1}
    rates = [{"learning_rate": rate} for rate in (3e38, 0.1)]
    assert train.sweep(model, parts.train, rates, **options).table["diverged"].tolist() == [True, False]
    with pytest.raises(train.Diverged, match="a parameter or a validated score became infinite or NaN in every run"):
        train.sweep(model, parts.train, rates[:1], **options)


def test_memory_does_not_grow_over_fifty_epochs(parts):
    held = []

    def look(progress):
        held.append(sum(leaf.nbytes for leaf in jax.live_arrays()))

    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    jaxrec.fit(model, parts.train, epochs=50, batch_size=1024, optimizer=optax.adam(1e-3), callbacks=[look])
    assert len(held) == 50 and min(held[-10:]) <= min(held[:10])  # batches on their way come and go
