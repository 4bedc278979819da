"""Many runs in one compiled loop: each is what ``fit`` gives, and the worse half is dropped at rungs."""

import dataclasses
import sys
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import refuses, untyped
from test_strategies import counted

import jaxrec
from jaxrec import data, models, optim, train

INJECTED = optim.row_sparse(optax.inject_hyperparams(optax.adamw)(learning_rate=0.01, weight_decay=0.1))
SETTINGS = [{"learning_rate": rate, "weight_decay": decay} for rate in (0.001, 0.03) for decay in (0.0, 1.0)]
OPTIONS: dict[str, Any] = {"optimizer": INJECTED, "epochs": 3, "batch_size": 128, "loss": "bpr"}


def same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def regression(rows=90):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    frame = pd.DataFrame({"x": list(x), "y": x @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=rows)})
    return frame, data.Schema(user=None, item=None, target="y", context=(data.Vector("x"),))


SGD = optim.row_sparse(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1))
RATES = [{"learning_rate": rate} for rate in (0.001, 0.1, 0.01, 0.05)]


@pytest.fixture(scope="module")
def line():
    frame, schema = regression()
    return data.encode(data.split_random(frame, validation=0.3, test=0.0, seed=0), schema)


def test_runs_of_settings_and_seeds_are_those_of_fit_and_other_values_compile_nothing(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    swept = train.sweep(model, parts.train, SETTINGS, validation=parts.validation, seed=[0, 1], **OPTIONS)
    assert swept.table[["seed", "setting"]].values.tolist() == [
        [seed, number] for seed in (0, 1) for number in range(4)
    ]
    for number in (1, 2, 7):
        row = swept.table.iloc[number]
        fitted = jaxrec.fit(
            model, parts.train, hyperparams=SETTINGS[number % 4], validation=parts.validation, seed=int(row["seed"]),
            **OPTIONS,
        )  # fmt: skip
        same(swept.recommenders[number], fitted)
        assert row["ndcg@10"] == pytest.approx(fitted.history["ndcg@10"].max(), abs=1e-5)
        assert row["loss"] == pytest.approx(fitted.log[-1]["loss"], abs=1e-5) and row["epochs"] == 3
    means = swept.table.groupby("setting")["ndcg@10"].mean()
    assert swept.best_setting == SETTINGS[int(means.to_numpy().argmax())]
    with pytest.raises(ValueError, match="Several folds or seeds.*hyperparams=swept.best_setting"):
        _ = swept.best
    others = [{"learning_rate": 0.02, "weight_decay": decay} for decay in (0.1, 0.2, 0.3, 0.4)]
    _, compiled = counted(
        lambda: train.sweep(model, parts.train, others, validation=parts.validation, seed=[2, 3], **OPTIONS)
    )
    assert compiled == []


def test_a_sweep_starts_from_given_parameters_and_draws_the_negatives_that_are_named(line, parts):
    linear = models.Linear.for_data(line.train)
    start = jax.tree.map(lambda leaf: leaf + 1.0, linear.init(jax.random.key(7)))
    swept = train.sweep(linear, line.train, [{"learning_rate": 0.0}], optimizer=SGD, epochs=1, params=start)
    jax.tree.map(np.testing.assert_array_equal, swept.recommenders[0].params, start)
    model = models.MatrixFactorization.for_data(parts.train, dim=2, bias=False)
    options = OPTIONS | {"epochs": 1, "negatives": data.Negatives(num=3)}
    drawn = train.sweep(model, parts.train, SETTINGS[:1], **options).recommenders[0]
    same(drawn, jaxrec.fit(model, parts.train, hyperparams=SETTINGS[0], **options))
    other = train.sweep(model, parts.train, SETTINGS[:1], **OPTIONS | {"epochs": 1}).recommenders[0]
    assert (drawn.params["item"]["embedding"] != other.params["item"]["embedding"]).any()


def test_folds_of_several_lengths_are_trained_at_once_each_on_its_own_rows(world):
    frames, schema = world.target, world.target.schema
    folds = [
        data.encode(part, schema, users=frames.users, items=frames.items)
        for part in data.k_fold(frames.interactions, schema, folds=3, by="user", seed=0)
    ]
    assert len({len(fold.train) for fold in folds}) == 3
    model = models.TwoTower.for_data(folds[0].train, dim=4, hidden=(), code_dim=2, history=3)
    options = {**OPTIONS, "epochs": 2, "batch_size": None}
    swept = train.sweep(
        model, [fold.train for fold in folds], SETTINGS[:2], validation=[fold.test for fold in folds], **options
    )
    assert swept.table["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    fitted = jaxrec.fit(model, folds[2].train, hyperparams=SETTINGS[1], validation=folds[2].test, **options)
    same(swept.recommenders[5], fitted)
    assert swept.table["ndcg@10"][5] == pytest.approx(fitted.history["ndcg@10"].max(), abs=1e-5)


def test_folds_in_unlike_numbers_of_steps_and_chunks(monkeypatch):
    from jaxrec.data import _batches

    frame, schema = regression()
    parts = [data.Encoder.fit(frame, schema).encode(frame[:rows]) for rows in (90, 40)]
    monkeypatch.setattr(_batches, "_CHUNK", 800)  # of 4 steps and 2
    model = models.Linear.for_data(parts[0])
    options: dict[str, Any] = {"optimizer": SGD, "batch_size": 8, "epochs": 2}
    swept = train.sweep(model, parts, RATES[1:3], **options)
    for number, part in enumerate(parts):
        fitted = jaxrec.fit(model, part, hyperparams=RATES[2], **options)
        same(swept.recommenders[2 * number + 1], fitted)
        assert swept.table["loss"][2 * number + 1] == pytest.approx(fitted.log[-1]["loss"], abs=1e-5)


def test_a_run_that_diverges_leaves_the_others_alone(line):
    options: dict[str, Any] = {"optimizer": SGD, "epochs": 4, "batch_size": 16, "validation": line.validation}
    model = models.Linear.for_data(line.train)
    swept = train.sweep(model, line.train, [{"learning_rate": 1e30}, {"learning_rate": 0.1}], **options)
    assert swept.table["diverged"].tolist() == [True, False] and np.isnan(swept.table["rmse"][0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(swept.recommenders[0].params))
    same(swept.best, jaxrec.fit(model, line.train, hyperparams={"learning_rate": 0.1}, **options))
    with pytest.raises(train.Diverged, match="in every run"):
        train.sweep(model, line.train, [{"learning_rate": 1e30}], **options)
    huge = dataclasses.replace(line.train, target=line.train.target * np.float32(1e30))
    folds = train.sweep(model, [line.train, huge], RATES[:2], **options | {"validation": [line.validation] * 2})
    assert folds.table["diverged"].tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="Every setting diverged in some fold or seed. Try smaller"):
        _ = folds.best_setting
    frozen = train.sweep(model, line.train, RATES[:1], freeze="bias", **{**options, "validation": None})
    assert float(frozen.recommenders[0].params["bias"]) == 0.0 and "rmse" not in frozen.table
    with pytest.raises(ValueError, match="Without a metric no setting is the best"):
        _ = frozen.best_setting


def test_a_run_whose_validation_scores_become_nan_leaves_the_others_alone(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    options: dict[str, Any] = {**OPTIONS, "optimizer": SGD, "batch_size": None, "epochs": 1}
    options["validation"] = parts.validation
    swept = train.sweep(model, parts.train, [{"learning_rate": 1e25}, {"learning_rate": 0.1}], **options)
    assert swept.table["diverged"].tolist() == [True, False]
    assert np.isnan(swept.table["ndcg@10"][0]) and swept.best_setting == {"learning_rate": 0.1}
    same(swept.best, jaxrec.fit(model, parts.train, hyperparams={"learning_rate": 0.1}, **options))
    with pytest.raises(train.Diverged, match="validated score became infinite or NaN in every run"):
        train.sweep(model, parts.train, [{"learning_rate": 1e25}], **options)


def test_the_worse_half_is_dropped_at_each_rung_and_the_rest_trained_as_if_alone(line):
    model = models.Linear.for_data(line.train)
    options: dict[str, Any] = {"optimizer": SGD, "batch_size": 16, "validation": line.validation, "patience": None}
    whole = train.sweep(model, line.train, RATES, epochs=6, **options)
    halved = train.sweep(model, line.train, RATES, epochs=6, rungs=(1, 3), **options)
    assert halved.table["epochs"].tolist() == [1, 6, 1, 3]  # the slower, the worse
    assert halved.best_setting == whole.best_setting == RATES[1]
    same(halved.best, whole.best)
    same(halved.recommenders[2], jaxrec.fit(model, line.train, epochs=1, hyperparams=RATES[2], **options))


def test_looks_and_patience(line):
    model = models.Linear.for_data(line.train)
    options: dict[str, Any] = {"optimizer": SGD, "batch_size": 16, "epochs": 5}
    sparse = train.sweep(model, line.train, RATES[:1], validation=line.validation, every=2, **options)
    assert [("rmse" in row) for row in sparse.recommenders[0].log] == [False, True, False, True, True]
    worse = iter(range(0, -100, -1))
    stopped = train.sweep(model, line.train, RATES[:1], metric=lambda recommender: next(worse), patience=1, **options)
    assert stopped.table["epochs"].tolist() == [2]


def test_settings_are_drawn_within_their_ranges_and_by_seed():
    space = {"learning_rate": (1e-4, 1e-1), "b1": lambda rng: rng.choice([0.8, 0.9])}
    drawn = pd.DataFrame(train.random_settings(space, 400, seed=0))
    assert drawn["learning_rate"].between(1e-4, 1e-1).all() and set(drawn["b1"]) == {0.8, 0.9}
    thirds = np.histogram(np.log10(drawn["learning_rate"]), bins=[-4, -3, -2, -1])[0]
    assert (thirds > 100).all()  # uniform in the logarithm
    again = train.random_settings(space, 400, seed=0)
    assert again == drawn.to_dict("records") and again != train.random_settings(space, 400, seed=1)
    with refuses(ValueError, "with 0 < low <= high for 'rate', got \\(0.0, 1.0\\). Give a function of a generator"):
        train.random_settings({"rate": (0.0, 1.0)}, 2, seed=0)
    for wrong in (0.1, (0.1, 0.2, 0.3), ("a", "b")):
        with refuses(ValueError, "Expected a pair .low, high. .* for 'rate', got .*. Give a function of a generator"):
            train.random_settings({"rate": wrong}, 2, seed=0)
    with refuses(ValueError, "Expected num >= 1, got 0"):
        train.random_settings(space, 0, seed=0)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ([], {}, "at least one setting.*give \\[\\{\\}\\]"),
        ([{"learning_rate": 0.1}, {}], {}, "same names in every setting, got \\['learning_rate'\\].*setting 1"),
        ([{"learning_rate": float("nan")}], {}, "finite number for 'learning_rate' in setting 0, got nan"),
        ([{"rate": 0.1}], {}, "no hyper-parameter 'rate' to set, it has learning_rate"),
        (RATES, {"epochs": 0}, "Expected epochs >= 1, got 0"),
        (RATES, {"every": 0}, "Expected every >= 1, got 0"),
        (RATES, {"seed": []}, "at least one seed"),
        (RATES, {"rungs": (2,)}, "Rungs need a metric"),
        (RATES, {"rungs": (4,)}, "rungs in 1 .. 3, before the last epoch, got \\[4\\]"),
        (RATES, {"validation": []}, "validation part for each training part, got 0 and 1"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(line, settings, options, message):
    with refuses(ValueError, message):
        train.sweep(
            models.Linear.for_data(line.train), line.train, settings, **{"optimizer": SGD, "epochs": 4, **options}
        )


def test_a_split_is_not_three_folds(line):
    for options in ({}, {"validation": line}):
        with refuses(TypeError, "Expected a Dataset for (train|validation), got Parts. Pass its .train"):
            given = line if not options else line.train
            train.sweep(models.Linear.for_data(line.train), given, RATES, optimizer=SGD, **options)


def test_targets_of_every_fold_are_looked_at(line):
    both = [line.train, line.train.subset(np.arange(8))]
    inside = [dataclasses.replace(part, target=np.full(len(part), 0.5, np.float32)) for part in both]
    outside = [inside[0], dataclasses.replace(both[1], target=np.full(8, 2.0, np.float32))]
    with refuses(ValueError, "in \\[0, 1\\]"):
        train.sweep(models.Linear.for_data(line.train, link="sigmoid"), outside, RATES, optimizer=SGD)


def test_folds_of_unlike_shapes_are_refused():
    users = pd.DataFrame({"user": np.arange(40), "item": np.arange(40) % 4, "y": 1.0})
    few = data.Schema(target="y")
    parts = [data.Encoder.fit(users[:rows], few).encode(users[:rows]) for rows in (40, 4)]
    model = models.MatrixFactorization.for_data(parts[0], dim=2)
    with refuses(ValueError, "features of run 1 have other shapes.*cross_validate"):
        train.sweep(model, parts, [{}])


def test_optuna_proposes_settings_and_prunes(line):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    model = models.Linear.for_data(line.train)
    options = {"optimizer": SGD, "batch_size": 16, "validation": line.validation, "progress": False}

    def train_one(setting, callbacks):
        rate = {"learning_rate": setting["learning_rate"]}
        return jaxrec.fit(model, line.train, epochs=setting["epochs"], hyperparams=rate, callbacks=callbacks, **options)

    class Second(optuna.pruners.BasePruner):
        """Gives up the second trial after its first epoch."""

        def prune(self, study, trial):
            return trial.number == 1

    space = {"learning_rate": (1e-3, 0.1), "epochs": lambda trial: trial.suggest_int("epochs", 2, 3)}
    objective = train.optuna_objective(train_one, space, metric="rmse")
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="minimize", sampler=sampler, pruner=Second())
    study.optimize(objective, n_trials=3)
    first, second, _ = study.trials
    assert second.state.name == "PRUNED" and list(second.intermediate_values) == [1]
    assert 1e-3 <= first.params["learning_rate"] <= 0.1 and first.params["epochs"] in (2, 3)
    history = train_one(first.params, []).history["rmse"]
    assert first.value == pytest.approx(history.min())
    assert list(first.intermediate_values.values()) == pytest.approx(history.tolist())
    with refuses(ValueError, "direction='minimize' for 'rmse'"):
        optuna.create_study(direction="maximize").optimize(objective, n_trials=1)
    with refuses(ValueError, "history has no 'recall@10', it has epoch, loss"):
        optuna.create_study(direction="maximize").optimize(
            train.optuna_objective(train_one, space, metric="recall@10"), n_trials=1
        )
    with refuses(ValueError, "0 < low <= high for 'rate'.*suggest_float"):
        train.optuna_objective(train_one, {"rate": (0.0, 1.0)})
    with refuses(ValueError, "0 < low <= high for 'rate', got \\(0.1, 0.2, 0.3\\)"):
        train.optuna_objective(train_one, {"rate": (0.1, 0.2, 0.3)})
    with refuses(ValueError, "a pair .low, high. .* for 'rate', got 0.1"):
        train.optuna_objective(train_one, {"rate": 0.1})
    silent = train.optuna_objective(lambda setting, _: train_one(setting, []), space, metric="recall@10")
    with refuses(ValueError, "history has no 'recall@10', it has epoch, loss"):
        optuna.create_study(direction="maximize").optimize(silent, n_trials=1)


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with refuses(ModuleNotFoundError, r"needs optuna. Install the extra: pip install 'jaxrec\[search\]'"):
        train.optuna_objective(lambda setting, callbacks: None, {"rate": (0.1, 0.2)})


def test_a_fraction_for_an_integer_is_refused_before_it_is_traced(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    made = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3, weight_decay=0)
    with pytest.raises(ValueError, match="integer for weight_decay"):
        train.sweep(model, parts.train, [{"weight_decay": 0.01}, {"weight_decay": 0.1}], optimizer=made, epochs=1)
    with untyped():  # a number of NumPy's is one seed
        found = train.sweep(
            model, parts.train, [{"weight_decay": 1.0}], optimizer=made, epochs=1, seed=np.int64(1), batch_size=256
        )
    assert len(found.table) == 1
