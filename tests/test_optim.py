"""Row-sparse optimisation against dense optax, a NumPy reference of the lazy algorithms, and memory analysis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import BPR, FEATURES, MODELS, OPTIMISERS, batch_of, epoch, stack_of, step
from helpers import AS_USERS

from jaxrec import _tree, models, optim, train
from jaxrec.data import Batch, Features
from jaxrec.optim import _layout

MODEL = dataclasses.replace(MODELS["factorization"].model, user_rows=40, item_rows=40)  # too many to go as a whole


def state_of(optimizer, model=MODEL, seed=0, **options):
    params = model.init(jax.random.key(seed))
    return train.init_state(model, params, optimizer, batch_of(), FEATURES, key=jax.random.key(9), **options)


def dense_steps(transformation, params, batches, steps):
    """Plain optax on the whole tree, differentiating through whole tables."""

    def loss(params, batch):
        return BPR(MODEL.apply(params, batch, FEATURES), batch)

    state = transformation.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for number in range(steps):
            batch = jax.tree.map(lambda leaf, number=number: leaf[number], batches)
            updates, state = transformation.update(jax.grad(loss)(params, batch), state, params)
            params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("repeated", [False, True])
def test_row_sparse_gradient_descent_equals_dense(repeated):
    batches = stack_of(5)
    if repeated:
        batches = batches._replace(user=jnp.full_like(batches.user, 3), item=batches.item.at[:, :, 1].set(2))
    transformation = optax.sgd(0.5)
    expected = dense_steps(transformation, MODEL.init(jax.random.key(0)), batches, 5)
    state, info = epoch(
        state_of(optim.row_sparse(transformation)), batches, FEATURES, model=MODEL, loss=BPR,
        optimizer=optim.row_sparse(transformation),
    )  # fmt: skip
    assert int(info.steps) == 5
    for path, leaf in _tree.flatten(state.params).items():
        np.testing.assert_allclose(leaf, _tree.get(expected, path), atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "sgd with momentum", "clipped"])
def test_the_dense_option_equals_optax(name):
    batches, transformation = stack_of(5), OPTIMISERS[name]
    expected = dense_steps(transformation, MODEL.init(jax.random.key(0)), batches, 5)
    optimizer = optim.dense(transformation)
    state, _ = epoch(state_of(optimizer), batches, FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    for path, leaf in _tree.flatten(state.params).items():
        np.testing.assert_allclose(leaf, _tree.get(expected, path), atol=2e-6, err_msg=path)


def lazy_reference(name, table, touched, steps=3):
    """Lazy Adam and Adagrad in NumPy, one row at a time: a row is looked at only in steps that touch it."""
    table, first, second = table.astype(np.float64), np.zeros(table.shape), np.zeros(table.shape)
    if name == "adagrad":
        second += 0.1
    for number in range(steps):
        rows, grads = touched[number]
        for row in np.unique(rows):
            grad = grads[rows == row].sum(axis=0)
            if row == 0:
                continue
            if name == "adagrad":
                second[row] += grad**2
                table[row] -= 0.05 * grad / np.sqrt(second[row] + 1e-7)
            else:
                first[row] = 0.9 * first[row] + 0.1 * grad
                second[row] = 0.999 * second[row] + 0.001 * grad**2
                mean, square = first[row] / (1 - 0.9 ** (number + 1)), second[row] / (1 - 0.999 ** (number + 1))
                table[row] -= 0.01 * mean / (np.sqrt(square) + 1e-8)
    return table


@pytest.mark.parametrize("rows", [7, 40])  # few enough for the table to be looked at as a whole, and not
@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_lazy_optimisers_equal_the_numpy_reference(name, rows):
    rng = np.random.default_rng(3)
    table = rng.normal(size=(rows, 3)).astype(np.float32)
    touched = [(rng.integers(0, 7, 9), rng.normal(size=(9, 3)).astype(np.float32)) for _ in range(3)]
    assert any(set(range(1, 7)) - set(named) for named, _ in touched)  # some row is left out in some step
    optimizer = optim.row_sparse(OPTIMISERS[name])
    params = {"table": jnp.asarray(table), "bias": jnp.ones(2)}
    state, slots = optimizer.init(params, ("table",)), {"table": jnp.zeros(rows, jnp.int32)}
    for named, grads in touched:
        params, state, slots = optimizer.update(
            params, state, slots, grads={"bias": jnp.ones(2)},
            row_grads={"table": optim.RowGrads(jnp.asarray(named, jnp.int32), jnp.asarray(grads))},
            frozen_rows={}, value=jnp.float32(1.0), ok=jnp.bool_(True),
        )  # fmt: skip
    np.testing.assert_allclose(params["table"], lazy_reference(name, table, touched), atol=2e-6)


def test_rowwise_adagrad_keeps_one_number_per_row():
    params = {"table": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    transformation = optim.rowwise_adagrad(0.1)
    state = transformation.init(params)
    grads = {"table": jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]]), "bias": jnp.asarray([2.0, -1.0])}
    updates, state = transformation.update(grads, state, params)
    square = jax.tree.leaves(state)[1]
    assert square.shape == (3, 1) and square[0, 0] == pytest.approx(12.5)
    np.testing.assert_allclose(updates["table"][0], [-0.1 * 3 / 12.5**0.5, -0.1 * 4 / 12.5**0.5], rtol=1e-5)
    np.testing.assert_allclose(updates["table"][1], 0.0)
    np.testing.assert_allclose(updates["bias"], [-0.1, 0.1], rtol=1e-5)
    slower, _ = optim.rowwise_adagrad(0.1, initial=100.0).update(
        grads, optim.rowwise_adagrad(0.1, initial=100.0).init(params), params
    )
    assert abs(slower["table"][0, 0]) < abs(updates["table"][0, 0])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_rows_that_no_batch_touched_stay(name):
    optimizer = optim.row_sparse(OPTIMISERS[name])
    before = state_of(optimizer)
    batches = stack_of(4)
    batches = batches._replace(user=batches.user % 4 + 1)
    after, _ = epoch(state_of(optimizer), batches, FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    old, new = before.params["user"]["embedding"], after.params["user"]["embedding"]
    np.testing.assert_array_equal(new[5:], old[5:])
    assert (new[1:5] != old[1:5]).any(axis=1).all()


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("make", [optim.row_sparse, optim.dense])
def test_the_unknown_row_never_moves(name, make):
    optimizer = make(OPTIMISERS[name])
    start = state_of(optimizer)
    params = jax.tree.map(lambda leaf: leaf.at[0].set(1.5) if leaf.ndim else leaf, start.params)
    batches = stack_of(3)
    batches = batches._replace(user=batches.user.at[:, ::2].set(0), item=batches.item.at[:, ::3].set(0))
    after, _ = epoch(start._replace(params=params), batches, FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    assert (after.params["user"]["embedding"][0] == 1.5).all() and (after.params["item"]["embedding"][0] == 1.5).all()


def test_the_global_norm_is_taken_over_dense_and_merged_row_gradients():
    batches = stack_of(1)
    batches = batches._replace(user=jnp.full_like(batches.user, 2))
    params = MODEL.init(jax.random.key(0))
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    grads = jax.grad(lambda p: BPR(MODEL.apply(p, batch, FEATURES), batch))(params)
    norm = float(optax.tree.norm(grads))
    transformation = optax.chain(optax.clip_by_global_norm(norm / 4), optax.sgd(1.0))
    optimizer = optim.row_sparse(transformation)
    state, _ = epoch(state_of(optimizer), batches, FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    for path, leaf in _tree.flatten(state.params).items():
        expected = _tree.get(params, path) - _tree.get(grads, path) / 4
        np.testing.assert_allclose(leaf, expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("transformation", "reason"),
    [
        (optax.contrib.muon(0.1), "depends on the gradients of other rows"),
        (optax.lamb(0.1), "depends on rows that the batch did not touch"),
        (optax.adafactor(0.1, min_dim_size_to_factor=4), "depends on"),
        (optax.adaptive_grad_clip(0.01), "depends on"),
        (optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(), "saved for a later step are lost"),
        (optax.apply_every(3), "saved for a later step are lost"),
        (optax.scale_by_lbfgs(), "does not go by rows"),
        (optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1)), "depends on"),
        # while the rate is 0, nothing is seen of the mixing
        (optax.lamb(optax.linear_schedule(0.0, 0.1, 100, transition_begin=10)), "depends on rows that the batch did"),
        (optax.inject_hyperparams(optax.lamb)(learning_rate=0.0), "depends on rows that the batch did not touch"),
    ],
)
def test_transformations_that_mix_rows_are_refused_for_tables(transformation, reason):
    with pytest.raises(ValueError, match=f"cannot train the table 'item/.*{reason}.*Use optim.dense"):
        state_of(optim.row_sparse(transformation))


MASK = np.linspace(0.0, 1.0, 10, dtype=np.float32).reshape(5, 2)


@pytest.mark.parametrize(
    ("update", "plain"),
    [
        (lambda grads, count: -0.1 * jnp.where(grads > 0, jnp.sqrt(jnp.square(grads)), grads) / count, True),
        (lambda grads, count: jnp.full_like(grads, 0.5) * jax.jit(jnp.sign)(grads), True),
        (lambda grads, count: grads - grads.mean(), False),
        (lambda grads, count: jax.jit(lambda grads: jnp.cumsum(grads, axis=0))(grads), False),
        (lambda grads, count: grads[::-1], False),
        (lambda grads, count: grads * MASK, False),
        (lambda grads, count: grads * jax.lax.iota(jnp.float32, 5)[:, None], False),
        (lambda grads, count: grads + jax.random.normal(jax.random.key(0), grads.shape), False),
        (lambda grads, count: grads.T.reshape(5, 2), False),
    ],
)
def test_only_programs_without_a_doubt_need_no_trial(update, plain):
    program = jax.make_jaxpr(update)(jnp.ones((5, 2)), jnp.float32(3.0))
    assert _layout._elementwise(program, []) == plain


def test_the_usual_optimisers_need_no_trial():
    params = {"table": jnp.ones((5, 2)), "kernel": jnp.ones((2, 2))}
    with jax.numpy_dtype_promotion("standard"):
        for transformation in (optax.adamw(0.1), optax.adagrad(0.1), optax.chain(optim.l2_sp(0.1), optax.adam(0.1))):
            assert _layout._numbers(transformation.update, transformation.init, params) is not None


def test_a_rate_by_the_number_of_rows_is_refused():
    by_rows = optax.stateless(lambda grads, _: jax.tree.map(lambda g: g / g.shape[0], grads))
    with pytest.raises(ValueError, match="depends on rows that the batch did not touch"):
        optim.row_sparse(optax.chain(optax.trace(0.9), by_rows)).init({"t": jnp.zeros((10, 3))}, ("t",))


@pytest.mark.parametrize("penalty", [optim.l2_sp, optim.ewc])
def test_a_penalty_before_clipping_mixes_no_rows(penalty):
    """The trial changed a row of the parameters but not where the pull goes to, and so the norm."""
    transformation = optax.chain(penalty(0.5), optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    state_of(optim.row_sparse(transformation))


def test_rows_of_one_number_may_be_mixed_no_more_than_others():
    summing = optax.stateless(lambda grads, _: jax.tree.map(lambda g: g + g.sum(axis=0, keepdims=True), grads))
    for shape in ((10, 1), (10,)):
        with pytest.raises(ValueError, match="depends on the gradients of other rows"):
            optim.row_sparse(summing).init({"t": jnp.zeros(shape)}, ("t",))


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_a_table_of_one_dimension_is_trained_as_one_of_one_column(name):
    optimizer, moved = optim.row_sparse(OPTIMISERS[name]), []
    rows, grads = jnp.asarray([3, 3, 5], jnp.int32), jnp.asarray([1.0, -0.5, 2.0])
    for column in ((), (1,)):
        params, slots = {"t": jnp.ones((40, *column))}, {"t": jnp.zeros(40, jnp.int32)}
        given = optim.RowGrads(rows, grads.reshape(3, *column))
        params, *_ = optimizer.update(
            params, optimizer.init(params, ("t",)), slots, grads={}, row_grads={"t": given}, frozen_rows={},
            value=jnp.float32(1.0), ok=jnp.bool_(True),
        )  # fmt: skip
        moved.append(np.asarray(params["t"]).reshape(-1))
    np.testing.assert_array_equal(*moved)
    assert np.flatnonzero(moved[0] != 1.0).tolist() == [3, 5]


def test_transformations_that_mix_rows_may_train_the_rest():
    parts = optim.per_path({"bias": optax.adafactor(0.1), "*": optax.adagrad(0.1)})
    state_of(optim.row_sparse(parts))
    state_of(optim.dense(optax.lamb(0.1)))


def test_rates_go_by_path():
    parts = {"item/*": optax.sgd(0.0), "*": optax.sgd(0.5)}
    optimizer = optim.row_sparse(optim.per_path(parts))
    batches = stack_of(2)
    after, _ = epoch(state_of(optimizer), batches, FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    start = MODEL.init(jax.random.key(0))
    np.testing.assert_array_equal(after.params["item"]["embedding"], start["item"]["embedding"])
    half = optim.row_sparse(optax.sgd(0.5))
    frozen = train.init_state(
        MODEL, jax.tree.map(jnp.copy, start), half, batch_of(), FEATURES, key=jax.random.key(1), freeze="item/*"
    )
    expected, _ = epoch(frozen, batches, FEATURES, model=MODEL, loss=BPR, optimizer=half)
    np.testing.assert_allclose(
        after.params["user"]["embedding"], expected.params["user"]["embedding"], rtol=1e-5, atol=1e-7
    )
    assert np.abs(np.asarray(after.params["user"]["embedding"]) - start["user"]["embedding"]).max() > 1e-3
    with pytest.raises(ValueError, match="No pattern covers parameter 'bias'"):
        state_of(optim.row_sparse(optim.per_path({"item/*": optax.sgd(0.1), "user/*": optax.sgd(0.1)})))


def test_patterns_that_no_leaf_could_take_are_refused():
    rate = optax.sgd(0.1)
    for parts, message in (
        ({"*": rate, "item/*": rate}, "'item/.' comes after '.'.*Put '.' last"),
        ({"!item/*": rate, "*": rate}, "got '!item/.'.*give 'item/.' a transformation of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            optim.per_path(parts)


def test_schedules_count_steps_not_rows():
    schedule = optax.piecewise_constant_schedule(1.0, {2: 0.0})
    optimizer = optim.row_sparse(optax.sgd(schedule))
    two, _ = epoch(state_of(optimizer), stack_of(2), FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    five, _ = epoch(state_of(optimizer), stack_of(5), FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    np.testing.assert_array_equal(two.params["user"]["embedding"], five.params["user"]["embedding"])


def test_half_precision_tables_have_float32_optimiser_state():
    params = _tree.map_with_path(
        lambda path, leaf: leaf.astype(jnp.bfloat16) if path in MODEL.tables else leaf, MODEL.init(jax.random.key(0))
    )
    optimizer = optim.row_sparse(optax.adagrad(0.5))
    start = train.init_state(MODEL, params, optimizer, batch_of(), FEATURES, key=jax.random.key(1))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim)
    before = np.asarray(start.params["user"]["embedding"])
    after, info = epoch(start, stack_of(3), FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    assert after.params["user"]["embedding"].dtype == jnp.bfloat16
    assert (np.asarray(after.params["user"]["embedding"]) != before).any() and np.isfinite(info.losses).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_small_gradients_of_a_repeated_row_add_up(dtype):
    optimizer, params = optim.row_sparse(optax.sgd(0.5)), {"table": jnp.ones((2001, 2), dtype)}
    state, slots = optimizer.init(params, ("table",)), {"table": jnp.zeros(2001, jnp.int32)}
    grads = optim.RowGrads(jnp.full(1000, 7, jnp.int32), jnp.full((1000, 2), 1e-3))
    moved, *_ = optimizer.update(
        params, state, slots, grads={}, row_grads={"table": grads}, frozen_rows={}, value=jnp.float32(1.0),
        ok=jnp.bool_(True),
    )  # fmt: skip
    assert moved["table"].dtype == dtype
    np.testing.assert_allclose(moved["table"][7].astype(jnp.float32), 0.5, rtol=1e-3)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_at_a_million_rows_allocates_nothing_table_sized(name):
    rows, dim, size = 1_000_000, 16, 64
    model = models.MatrixFactorization(user_rows=rows, item_rows=rows, dim=dim)
    optimizer = optim.row_sparse(OPTIMISERS[name])

    def shapes(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    row: Any = jax.ShapeDtypeStruct((rows,), jnp.int32)
    features = Features(user_row=row, item_row=row)
    batch = Batch(user=jnp.zeros(size, jnp.int32), item=jnp.zeros((size, 2), jnp.int32), weight=jnp.ones(size))
    before = sum(array.nbytes for array in jax.live_arrays())
    state = jax.eval_shape(
        lambda key, features: train.init_state(model, model.init(key), optimizer, batch, features, key=key),
        jax.random.key(0),
        features,
    )
    stack = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((5, *leaf.shape), leaf.dtype), shapes(batch))
    compiled = epoch.lower(state, stack, features, 5, model=model, loss=BPR, optimizer=optimizer).compile(AS_USERS)
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < rows  # a quarter of one column of a table
    tables = 2 * 4 * rows * dim
    assert memory.alias_size_in_bytes >= tables  # tables are updated in place
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 10_000
    assert sum(array.nbytes for array in jax.live_arrays()) < before + rows  # nor do the checks of the optimiser


def test_one_step_and_a_loop_of_one_agree():
    optimizer = optim.row_sparse(OPTIMISERS["adam"])
    single, info = step(state_of(optimizer), batch_of(), FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    looped, infos = epoch(state_of(optimizer), stack_of(1), FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    assert float(info.loss) == float(infos.losses[0])
    jax.tree.map(np.testing.assert_array_equal, single.params, looped.params)


@pytest.mark.parametrize(
    "transformation",
    [
        optax.chain(optax.adam(0.1), optax.clip_by_global_norm(0.1)),
        optax.chain(optax.trace(0.9), optax.clip_by_global_norm(0.1), optax.scale(-1.0)),
    ],
)
def test_a_norm_taken_of_updates_counts_a_repeated_row_once(transformation):
    def run(optimizer):
        params, rows, grads = {"table": jnp.ones((4, 2))}, jnp.array([1, 1, 1, 2, 3]), jnp.ones((5, 2))
        state, slots = optimizer.init(params, ("table",)), {"table": jnp.zeros(4, jnp.int32)}
        for _ in range(5):
            params, state, slots = optimizer.update(
                params,
                state,
                slots,
                grads={},
                row_grads={"table": optim.RowGrads(rows, grads)},
                frozen_rows={},
                value=jnp.float32(1.0),
                ok=jnp.bool_(True),
            )
        return np.asarray(params["table"])[1:]

    # Every row but the unknown's is touched in every step, so that lazy and dense algorithms are the same.
    expected = run(optim.dense(transformation))
    np.testing.assert_allclose(run(optim.row_sparse(transformation)), expected, rtol=1e-6)


def test_a_transformation_that_keeps_the_parameters_can_be_donated():
    optimizer = optim.dense(optax.contrib.prodigy())
    after, info = epoch(state_of(optimizer), stack_of(2), FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)
    assert bool(info.ok) and int(after.step) == 2


def test_a_decay_that_is_set_later_counts_once_for_a_repeated_row():
    def make(learning_rate, weight_decay):
        return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate))

    def moved(start, decay):
        optimizer = optim.row_sparse(optax.inject_hyperparams(make)(0.1, start))
        state = state_of(optimizer)
        opt_state = optim.with_hyperparams(state.opt_state, {"weight_decay": decay})
        batch = batch_of()._replace(user=jnp.ones(8, jnp.int32))  # one row eight times
        return step(state._replace(opt_state=opt_state), batch, FEATURES, model=MODEL, loss=BPR, optimizer=optimizer)[0]

    later, first = moved(0.0, 0.5), moved(0.5, 0.5)
    np.testing.assert_allclose(later.params["user"]["embedding"], first.params["user"]["embedding"], rtol=1e-5)
    assert not np.allclose(later.params["user"]["embedding"], moved(0.0, 0.0).params["user"]["embedding"])


def test_an_integer_hyperparameter_takes_no_fraction():
    state = state_of(optim.row_sparse(optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3, weight_decay=0)))
    with pytest.raises(ValueError, match="integer for weight_decay.*cannot become 0.01.*0.0 for 0"):
        optim.with_hyperparams(state.opt_state, {"weight_decay": 0.01})
    optim.with_hyperparams(state.opt_state, {"weight_decay": 1})


def test_accumulators_that_start_at_an_integer_grow():
    states = [state_of(optim.row_sparse(optim.rowwise_adagrad(0.1, initial=initial))) for initial in (1, 1.0)]
    one, other = (
        step(state, batch_of(), FEATURES, model=MODEL, loss=BPR,
             optimizer=optim.row_sparse(optim.rowwise_adagrad(0.1, initial=initial)))[0]
        for state, initial in zip(states, (1, 1.0), strict=True)
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(one.opt_state), jax.tree.leaves(other.opt_state))


def test_a_decay_that_begins_late_keeps_repeated_rows_together():
    params, tables = MODEL.init(jax.random.key(0)), ("user/embedding", "item/embedding")
    schedules = optax.join_schedules([optax.constant_schedule(0.0), optax.constant_schedule(0.1)], [1000]), 0.0
    for schedule, linear in zip(schedules, (False, True), strict=True):
        decaying = optax.chain(optax.add_decayed_weights(schedule), optax.sgd(0.1))
        assert _layout.layout_of(decaying, params, tables, sparse=True).linear == linear
