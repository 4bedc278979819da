"""Alternating least squares against dense regressions in NumPy, and its place beside ``fit``."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import refuses

import jaxrec
from jaxrec import coldstart, data, export, train
from jaxrec._types import FoldIn
from jaxrec.data import Batch
from jaxrec.ranking import _vectors
from jaxrec.train import _als, _als_plan, _prior


@pytest.mark.parametrize(("exponent", "drawn", "threads"), [(0.0, False, 1), (1.0, False, 3), (1.0, True, 2)])
def test_a_sweep_solves_the_regression_of_every_row(exponent, drawn, threads):
    rng = np.random.default_rng(0)
    users, items, dim, unobserved, l2 = 40, 25, 4, 0.2, 0.05
    pairs = np.unique(rng.integers(1, [users, items], (500, 2)), axis=0)
    pairs = np.concatenate([pairs, [[7, item] for item in range(1, items)]])  # repeated pairs, and a long row
    user, item = pairs.T.astype(np.int32)
    weight = rng.uniform(0.5, 2.0, len(user)).astype(np.float32)
    others = rng.normal(size=(items, dim)).astype(np.float32)
    others[0] = 0.0
    parts = _als_plan._cut(_als_plan.laid_out(user, item, users, weight=weight, cells=128), threads)
    options = {"unobserved": jnp.float32(unobserved), "l2": jnp.float32(l2), "exponent": jnp.float32(exponent)}
    start = jnp.asarray(rng.normal(size=(users, dim)), jnp.float32)
    prior = rng.normal(size=(users, dim)).astype(np.float32) if drawn else None
    task = _als._task(jnp.asarray(others), options, None if prior is None else jnp.asarray(prior))
    found = np.asarray(_als._sweep(jnp.copy(start), parts, task, steps=12))
    for row in range(users):
        mine = user == row
        if not mine.any():
            np.testing.assert_array_equal(found[row], start[row])
            continue
        vectors = others[item[mine]]
        scale = l2 * (mine.sum() + unobserved * (items - 1)) ** exponent
        matrix = (vectors.T * weight[mine]) @ vectors + unobserved * others.T @ others + scale * np.eye(dim)
        right = vectors.T @ weight[mine] + (0.0 if prior is None else scale * prior[row])
        np.testing.assert_allclose(found[row], np.linalg.solve(matrix, right), rtol=2e-3, atol=2e-4)


def columns(features, side, sizes):
    """Intercept, dense features and, of unit length, the labels of every entity."""
    dense, codes = getattr(features, f"{side}_dense"), getattr(features, f"{side}_codes")
    parts = [np.ones((len(getattr(features, f"{side}_row")), 1))]
    parts += [] if dense is None else [np.asarray(dense)]
    for name, size in sizes:
        has = np.stack([(codes[name] == label).sum(axis=1) for label in range(size)], axis=1).astype(float)
        has[:, 0] = 0.0
        parts.append(has / np.maximum(np.sqrt(has.sum(axis=1, keepdims=True)), 1.0))
    return np.concatenate(parts, axis=1)


@pytest.fixture(scope="module")
def with_content(parts):
    return train.fit_als(parts.train, dim=4, epochs=25, steps=6, content=True, joint=("user", "item"))


@pytest.mark.parametrize("side", ["user", "item"])
def test_the_regression_on_features_is_a_weighted_ridge(parts, with_content, side):
    model, features = with_content.model, parts.train.features
    row = getattr(features, f"{side}_row")
    design = columns(features, side, getattr(model, f"{side}_codes"))
    known = np.flatnonzero(row)
    table = np.random.default_rng(0).normal(size=(getattr(model, f"{side}_rows"), model.dim)).astype(np.float32)
    used = np.isin(np.arange(len(table)), row[known])  # the other rows are spare
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(table)).astype(np.float32) * used
    found, given = _prior._nothing(model, side), _prior._design_of(model, features, side, len(table))
    for _ in range(60):
        found = _prior._refitted(found, given, table, weight, jnp.float32(0.5))
    x, w = design[known], weight[row[known]][:, None]
    penalty = 0.5 * np.eye(x.shape[1])
    penalty[0, 0] = 0.0
    expected = x @ np.linalg.lstsq(x.T @ (w * x) + penalty, x.T @ (w * table[row[known]]), rcond=None)[0]
    np.testing.assert_allclose(np.asarray(_prior._priors(given, found))[row[known]], expected, atol=2e-3)


def test_new_entities_are_scored_by_their_features_and_trained_ones_by_their_vectors(parts, world, with_content):
    items = world.target.items.copy()
    item = world.target.schema.item
    twin = items[items[item].isin(parts.train.encoder.items.ids)].head(1)
    grown = coldstart.add(with_content, items=twin.assign(**{item: "new"}))
    features, model = grown.features, grown.model
    new, old = (grown.encoder.items.encode([each])[0] for each in ("new", twin[item].iloc[0]))
    unknown = features._replace(item_row=jnp.zeros_like(features.item_row))
    by_features = model.item_vectors(grown.params, jnp.asarray([old, new]), unknown)
    np.testing.assert_allclose(by_features[0], by_features[1], rtol=1e-6)
    np.testing.assert_allclose(
        model.item_vectors(grown.params, jnp.asarray([new]), features)[0], by_features[0], rtol=1e-5
    )
    assert not np.allclose(model.item_vectors(grown.params, jnp.asarray([old]), features)[0], by_features[0], rtol=1e-5)
    scores = jaxrec.evaluate(with_content, parts.test)["ndcg@10"]
    assert scores > 1.05 * jaxrec.evaluate(coldstart.popularity(parts.train), parts.test)["ndcg@10"]  # cold users


def test_joint_draws_vectors_to_the_regression(parts):
    def unexplained(joint):
        recommender = train.fit_als(parts.train, dim=4, epochs=6, l2=0.05, content=True, joint=joint)
        rest = recommender.params["item"]["embedding"]
        return float(jnp.square(rest).sum() / jnp.square(recommender.catalogue).sum())

    assert unexplained(("item",)) < 0.8 * unexplained(())
    one, other = (
        train.fit_als(parts.train, dim=4, epochs=1, content=True, joint=joint) for joint in ("user", ("user",))
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    strong = train.fit_als(parts.train, dim=4, epochs=6, content=True, content_l2=1e6)
    assert float(jnp.abs(strong.params["item"]["mlp"]["0"]["kernel"][:1]).max()) < 1e-3


def test_folding_in_gives_what_an_epoch_gives(parts, with_content):
    """A new user with the features and interactions of a trained one gets the same vector."""
    recommender, trained = with_content, parts.train.interactions
    user = int(np.argmax(trained.user_count))
    item = np.sort(trained.item[trained.user == user])
    features = recommender.features
    vectors = recommender.model.item_vectors(recommender.params, jnp.asarray(item), features)
    unknown = features._replace(user_row=jnp.zeros_like(features.user_row))
    batch = Batch(user=jnp.asarray([user], jnp.int32))
    start = recommender.model.user_vectors(recommender.params, batch, unknown)
    prior = recommender.prior.user
    folded = coldstart.fold_in_squares(start, prior, vectors[None], np.ones((1, len(item)), np.float32))
    own = recommender.model.user_vectors(recommender.params, batch, features)
    assert np.abs(start - own).max() > 0.1
    np.testing.assert_allclose(folded, own, atol=0.02)
    matrix = np.asarray(prior.gram) + vectors.T @ vectors
    matrix = matrix + prior.l2 * (len(item) + prior.unseen) ** prior.exponent * np.eye(4)
    change = np.linalg.solve(matrix, vectors.T @ (1.0 - vectors @ start[0]) - prior.gram @ start[0])
    np.testing.assert_allclose(folded[0], start[0] + change, rtol=1e-3, atol=1e-4)
    nobody = coldstart.fold_in_squares(start, prior, vectors[None], np.zeros((1, len(item)), np.float32))
    np.testing.assert_array_equal(nobody, start)


def test_weights_count_in_folding_in_as_in_an_epoch(world):
    frame = world.target.interactions
    frame = frame.assign(weight=np.random.default_rng(0).integers(1, 40, len(frame)).astype(float))
    schema = data.Schema(weight="weight")
    known = data.encode(data.Parts(frame, None, None), schema).train
    fitted = train.fit_als(known, dim=4, epochs=30, steps=6)
    someone = frame["user"].value_counts().index[0]
    rows = frame[frame["user"] == someone].assign(user=-1)
    grown, plain = (coldstart.add(fitted, interactions=each) for each in (rows, rows.assign(weight=1.0)))
    pairs = rows.assign(user=someone)
    wanted, found, without = (jaxrec.predict(*each) for each in ((fitted, pairs), (grown, rows), (plain, rows)))
    assert np.abs(found - wanted).max() < 0.05 < np.abs(without - wanted).max()


def test_vectors_that_vanish_are_told_of_with_validation_too(parts):
    with pytest.warns(UserWarning, match="shrunk to nearly nothing"):
        train.fit_als(parts.train, dim=4, epochs=3, l2=100.0, unobserved=1.0, validation=parts.validation)


def test_another_folding_is_measured_anew(parts, with_content):
    recommender, same, prior = with_content, with_content.folding, with_content.prior
    assert recommender.replace(folding=same).prior is prior
    other = dataclasses.replace(same, user=dataclasses.replace(same.user, unobserved=0.5))
    np.testing.assert_allclose(
        recommender.replace(folding=other).prior.user.gram,
        recommender.prior.user.gram * (0.5 / same.user.unobserved),
        rtol=1e-5,
    )
    assert isinstance(recommender.replace(folding=None).prior.user, FoldIn)
    mixed = coldstart.mix([recommender], [[1.0, 1.0, 1.0]])
    assert mixed.parts[0].folding == same and mixed.replace(folding=other).parts[0].folding == other


def test_folding_in_may_have_weights_of_its_own(parts):
    """They move no trained vector; those of new users solve the other regression."""
    plain = train.fit_als(parts.train, dim=4, epochs=2, unobserved=0.2, l2=0.02)
    own = [coldstart.ImplicitSquares(0.02, 0.5), coldstart.ImplicitSquares(0.0, 0.5, 0.0)]
    other, third = (
        train.fit_als(parts.train, dim=4, epochs=2, unobserved=0.2, l2=0.02, fold_user=each) for each in own
    )
    jax.tree.map(np.testing.assert_array_equal, plain.params, other.params)
    ids = plain.encoder.items.ids[:3]
    touched = pd.DataFrame({"user": 9_999, "item": ids, "time": 0})
    items = np.asarray(other.model.item_vectors(other.params, jnp.arange(len(plain.encoder.items) + 1), other.features))
    known = items[1:]
    own = items[other.encoder.items.encode(ids)]
    nobody = Batch(user=jnp.zeros(1, jnp.int32))
    start = np.asarray(other.model.user_vectors(other.params, nobody, other.features))[0]
    for recommender, unobserved, ridge in (
        (plain, 0.2, 0.02 * (len(own) + 0.2 * len(known))),
        (other, 0.02, 0.5 * (len(own) + 0.02 * len(known))),
        (third, 0.0, 0.5),
    ):
        matrix = own.T @ own + unobserved * known.T @ known + ridge * np.eye(4)
        right = own.T @ (1.0 - own @ start) - unobserved * known.T @ (known @ start)
        vector = start + np.linalg.solve(matrix, right)
        found = jaxrec.predict(coldstart.add(recommender, interactions=touched), touched)
        np.testing.assert_allclose(found, own @ vector, rtol=1e-3, atol=1e-5)


def test_new_items_are_folded_in_by_what_was_observed_alone(parts):
    """By default; an objective of theirs solves the other regression, and moves no user."""
    options: dict[str, Any] = {"dim": 4, "epochs": 2, "unobserved": 0.2, "l2": 0.02}
    plain = train.fit_als(parts.train, **options)
    other = train.fit_als(parts.train, **options, fold_item=coldstart.ImplicitSquares(0.2, 0.02))
    ids = plain.encoder.users.ids[:3]
    touched = pd.DataFrame({"user": ids, "item": "film-new", "time": 0})
    users = np.asarray(plain.params["user"]["embedding"])
    row = np.asarray(plain.features.user_row)
    known, own = users[row[row > 0]], users[row[plain.encoder.users.encode(ids)]]
    start = np.asarray(plain.params["item"]["embedding"])[0]
    for recommender, unobserved, ridge in ((plain, 0.0, 0.5), (other, 0.2, 0.02 * (3 + 0.2 * len(known)))):
        matrix = own.T @ own + unobserved * known.T @ known + ridge * np.eye(4)
        right = own.T @ (1.0 - own @ start) - unobserved * known.T @ (known @ start)
        grown = coldstart.add(recommender, interactions=touched)
        found = _vectors.item_vectors(grown, grown.encoder.items.encode(np.asarray(["film-new"])))[0]
        np.testing.assert_allclose(found, start + np.linalg.solve(matrix, right), rtol=1e-3, atol=1e-5)
    assert plain.folding.user == other.folding.user


def test_the_folding_is_saved(with_content, tmp_path):
    jaxrec.save(with_content, tmp_path / "als")
    loaded = jaxrec.load(tmp_path / "als")
    assert loaded.folding == with_content.folding
    touched = pd.DataFrame({"user": [9_999] * 2, "item": with_content.encoder.items.ids[:2], "time": [0, 1]})
    lists = [jaxrec.recommend(each, [9_999], interactions=touched, k=5) for each in (with_content, loaded)]
    pd.testing.assert_frame_equal(*lists)


def test_rows_longer_than_a_block_make_the_block_longer():
    row, other = np.full(100, 3, np.int32), np.arange(100, dtype=np.int32)
    plan = _als_plan.laid_out(row, other, 5, weight=np.ones(100, np.float32), cells=16)
    assert plan.other.shape[0] == 1 and float(plan.weight.sum()) == 100.0
    assert plan.row[0, 0] == 3 and plan.count[0, 0] == 100.0 and (np.asarray(plan.row)[0, 1:] == 5).all()


def test_what_one_side_compiles_serves_the_other_where_their_blocks_are_of_one_shape(monkeypatch):
    pairs = np.random.default_rng(3).integers(0, [60, 45], (4_000, 2))
    frame = pd.DataFrame(pairs, columns=["user", "item"]).drop_duplicates()
    rows = data.encode(data.split_random(frame, validation=0.1, test=0.1, seed=0), data.Schema()).train
    monkeypatch.setattr(_als, "_NUMBERS", 3 * 256)  # a block is 8 chunks of 32
    found, compiled = [], []
    for padded in (_als._PADDED, 0):
        monkeypatch.setattr(_als, "_PADDED", padded)
        before = _als._solved._cache_size()
        found.append(train.fit_als(rows, dim=3, epochs=2).params)
        compiled.append(_als._solved._cache_size() - before)
    assert compiled == [1, 2]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), *found)


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
        ({"l2": np.inf}, "a finite l2 > 0, got inf"),
        ({"content_l2": np.inf}, "a finite content_l2 > 0, got inf"),
        ({"content_l2": 1.0}, "content_l2=1 and joint=.* of which there are none: say content=True"),
        ({"joint": ("user",)}, "content_l2=0.3 and joint=.* of which there are none: say content=True"),
        ({"exponent": -1.0, "fold_user": coldstart.ImplicitSquares(0.1, 1.0)}, "exponent >= 0, got .* and -1.0"),
        ({"exponent": np.nan, "fold_user": coldstart.ImplicitSquares(0.1, 1.0)}, "exponent >= 0, got .* and nan"),
    ):
        with pytest.raises(ValueError, match=message):
            train.fit_als(parts.train, **options)
    for wrong in ((-1.0, 1.0), (0.0, 0.0), (float("nan"), 1.0), (0.1, 1.0, -1.0), (0.1, 1.0, float("nan"))):
        with pytest.raises(ValueError, match="finite numbers unobserved >= 0, l2 > 0 and exponent >= 0, got"):
            coldstart.ImplicitSquares(*wrong)
    for name in ("fold_user", "fold_item"):
        with refuses(TypeError, f"Expected an? ImplicitSquares for {name}, got tuple"):
            train.fit_als(parts.train, **{name: (0.1, 1.0)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "ndgc@10"}, "such as 'ndcg@10'"),
        ({"patience": 0}, "Expected patience >= 1"),
        ({"content": True, "joint": ("items",)}, "Expected joint among 'user' and 'item'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_laid_out(parts, monkeypatch, options, message):
    monkeypatch.setattr(_als, "laid_out", None)
    with pytest.raises(ValueError, match=message):
        train.fit_als(parts.train, validation=parts.validation, **options)


def test_a_falling_metric_stops_it_and_the_best_epoch_is_kept(parts):
    values, seen = iter([0.1, 0.3, 0.2, 0.1, 0.5]), []

    def metric(recommender):
        seen.append(recommender.params)
        return next(values)

    found = train.fit_als(parts.train, dim=4, epochs=9, metric=metric, patience=2)
    assert found.history["metric"].tolist() == [0.1, 0.3, 0.2, 0.1]
    jax.tree.map(np.testing.assert_array_equal, found.params, seen[1])


def test_more_steps_come_nearer_to_what_an_epoch_minimises(parts):
    exact, few, more = (
        np.asarray(train.fit_als(parts.train, dim=4, epochs=1, steps=steps).params["item"]["embedding"])
        for steps in (20, 1, 4)
    )
    assert 0 < np.abs(more - exact).max() < 0.5 * np.abs(few - exact).max()


def test_a_regression_on_features_leaves_out_those_whose_rows_weigh_nothing(parts):
    weight = np.where(parts.train.item % 3 == 0, np.float32(0), np.float32(1))
    weighed = dataclasses.replace(parts.train, weight=weight)
    options = {"unobserved": jnp.float32(0.1), "exponent": jnp.float32(1.0)}
    priors = _prior.Priors(weighed, 4, options, 1.0, ("item",), None)
    row = parts.train.features.item_row
    items = np.flatnonzero(row)
    counts = np.asarray(priors._weight["item"])[row[items]]
    np.testing.assert_array_equal(counts > 0, items % 3 != 0)
    assert counts[counts > 0].mean() == pytest.approx(1.0, rel=1e-5)


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


@pytest.mark.parametrize("content", [False, True])
def test_a_row_that_weighs_nothing_changes_nothing(content):
    """Not even of an item of which there is nothing else."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 9, 60), "item": rng.integers(0, 7, 60), "w": 1.0})
    beside = pd.concat([frame, frame.iloc[:20].assign(w=0.0), frame.iloc[:5].assign(w=0.0, item=7)])
    items = pd.DataFrame({"item": range(8), "kind": list("aabbabab")})
    schema = data.Schema(weight="w", item_features=(data.Categorical("kind"),))
    without, found = (
        train.fit_als(
            data.encode(data.Parts(rows, None, None), schema, items=items).train, dim=2, epochs=3, content=content
        )
        for rows in (frame, beside)
    )
    np.testing.assert_allclose(found.params["user"]["embedding"], without.params["user"]["embedding"], atol=1e-6)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found.prior, without.prior)
    if content:  # else it has no vector, and was no row of its own the average one
        alone, cold = (_vectors.item_vectors(each, each.encoder.items.encode([7])) for each in (found, without))
        np.testing.assert_allclose(alone, cold, atol=1e-6)


def test_new_items_follow_their_users_who_are_described_anew(world, with_content):
    fans = world.target.users.iloc[:3]
    rows = pd.DataFrame({"user": fans["user"], "item": "film-99999", "time": 10**6})
    grown = coldstart.add(with_content, interactions=rows)
    _ = grown.catalogue
    turned = fans.assign(**{name: fans[name].to_numpy()[::-1] for name in fans if name != "user"})
    later = coldstart.add(grown, users=turned)
    assert "catalogue" in later.__dict__
    anew = dataclasses.replace(later)  # which carries nothing over
    np.testing.assert_allclose(later.catalogue, anew.catalogue, rtol=1e-5, atol=1e-6)


def test_the_seed_sets_the_start_and_rows_that_cannot_learn_are_refused(parts, factorization):
    first, second = (train.fit_als(parts.train, dim=2, epochs=1, seed=seed) for seed in (0, 1))
    assert (first.params["user"]["embedding"] != second.params["user"]["embedding"]).any()
    grown = coldstart.add(factorization, users=[5])
    rows = pd.DataFrame({"user": [5], "item": parts.train.encoder.items.ids[:1], "time": [0]})
    with pytest.raises(ValueError, match="1 users of the training part have no row"):
        train.fit_als(grown.encoder.encode(rows))


def test_a_regularisation_that_leaves_nothing_is_named(parts):
    with pytest.warns(UserWarning, match=r"shrunk to nearly nothing: training pairs score .* l2=10, unobserved=1"):
        train.fit_als(parts.train, dim=4, epochs=4, l2=10.0, unobserved=1.0)
    for epochs in (1, 4):  # what has only begun to grow is not nothing
        train.fit_als(parts.train, dim=4, epochs=epochs)


def test_who_has_no_interactions_has_no_vector(parts):
    """Neither anew nor from given parameters, where those of others would count as unobserved pairs."""
    rows = parts.train
    there = (rows.user != rows.user[0]) & (rows.item != rows.item[0])
    before = train.fit_als(rows, dim=4, epochs=2).params
    for start in (None, before):
        some, weighing = (
            train.fit_als(each, dim=4, epochs=2, params=start).params
            for each in (rows.subset(there), dataclasses.replace(rows, weight=there.astype(np.float32)))
        )
        for side, index in (("user", rows.user[0]), ("item", rows.item[0])):
            row = getattr(rows.features, f"{side}_row")[index]
            for params in (some, weighing):
                table, used = np.asarray(params[side]["embedding"]), np.unique(getattr(rows.features, f"{side}_row"))
                np.testing.assert_array_equal(table[row], 0.0)
                np.testing.assert_allclose(table[0], table[np.setdiff1d(used, [0, row])].mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(weighing[side]["embedding"], some[side]["embedding"], rtol=1e-4, atol=1e-5)


def test_one_more_interaction_does_not_undo_what_training_knows_of_a_user(parts, with_content, tmp_path):
    trained = parts.train.interactions
    user = int(np.argmax(trained.user_count))
    items = parts.train.encoder.items.decode(np.unique(trained.item[trained.user == user]))
    name = parts.train.encoder.users.decode(np.asarray([user]))[0]
    again = pd.DataFrame({"user": [name], "item": items[:1], "time": 10**6})
    grown = coldstart.add(with_content, interactions=again)
    pairs = pd.DataFrame({"user": name, "item": items})
    before, after = jaxrec.predict(with_content, pairs), jaxrec.predict(grown, pairs)
    assert after[0] > before[0] > 0
    assert after.mean() > 0.9 * before.mean()
    export.write_artefact(grown, tmp_path / "artefact", k=3)
    served = export.load_artefact(tmp_path / "artefact").score(pairs["user"], pairs["item"])
    np.testing.assert_allclose(served, after, rtol=1e-4, atol=1e-5)
    stranger = jaxrec.predict(coldstart.add(with_content, interactions=again.assign(user=-1)), pairs.assign(user=-1))
    assert stranger.mean() < 0.5 * after.mean()
