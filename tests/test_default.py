"""Mixtures are sums of their parts, and the default for newcomers explains what it chose."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
from cases import FEATURES, MODELS, batch_of
from helpers import refuses

import jaxrec
from jaxrec import coldstart, data, models, train
from jaxrec.coldstart import _default, _personalise
from jaxrec.coldstart._default import spread
from jaxrec.models import _base
from jaxrec.ranking._vectors import scorer

WEIGHT = [[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]


@pytest.fixture(scope="module")
def two(parts):
    return train.fit_als(parts.train, dim=4, epochs=4, content=True), train.fit_content_knn(parts.train, neighbours=8)


@pytest.fixture(scope="module")
def mixed(two):
    return coldstart.mix(two, WEIGHT, few=25)


def test_a_mixture_is_the_gated_sum_of_its_parts(two, mixed, world):
    item, user = world.target.schema.item, world.target.schema.user
    twin = world.target.items.head(2).assign(**{item: ["new-a", "new-b"]})
    ready = [coldstart.add(each, items=twin) for each in (*two, mixed)]
    pairs = pd.DataFrame(
        [(each, one) for each in two[0].encoder.users.ids[:3] for one in ready[0].encoder.items.ids],
        columns=[user, item],
    )
    first, second, found = (jaxrec.predict(each, pairs) for each in ready)
    count = two[0].trained.item_count
    index = ready[0].encoder.items.encode(pairs[item])
    bucket = np.where(index >= len(count), 0, np.where(count[np.minimum(index, len(count) - 1)] < 25, 1, 2))
    bucket[ready[0].encoder.features.item_row[index] == 0] = 0
    assert set(bucket) == {0, 1, 2}
    weight = np.asarray(WEIGHT)[:, bucket]
    np.testing.assert_allclose(found, weight[0] * first + weight[1] * second, rtol=1e-4, atol=1e-5)
    lists = jaxrec.recommend(ready[2], list(pairs[user].unique()), k=5, exclude_seen=False)
    scores = pairs.assign(score=found).rename(columns={user: "user", item: "item"})
    joined = lists.merge(scores, on=["user", "item"], suffixes=("", "_pair"))
    np.testing.assert_allclose(joined.score, joined.score_pair, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.sort(lists.score), np.sort(scores.groupby("user").score.nlargest(5)), rtol=1e-4, atol=1e-5
    )


def test_new_users_are_folded_in_as_the_part_alone_does(two, tmp_path):
    alone, mixed = two[0], coldstart.mix([two[0]], [[1.0, 1.0, 1.0]])
    touched = pd.DataFrame({"user": [9_999] * 2, "item": alone.encoder.items.ids[:2], "time": [0, 1]})
    jaxrec.save(mixed, tmp_path / "mixed")
    lists = [
        jaxrec.recommend(each, [9_999], interactions=touched, k=5)
        for each in (alone, mixed, jaxrec.load(tmp_path / "mixed"))
    ]
    for other in lists[1:]:
        assert list(other.item) == list(lists[0].item)
        np.testing.assert_allclose(other.score, lists[0].score, rtol=1e-5)


def test_a_mixture_of_a_mixture_folds_in_as_its_part_does(two):
    inner = coldstart.mix(two, WEIGHT)
    outer = coldstart.mix([inner], [[1.0, 1.0, 1.0]])
    assert outer.folding == two[0].folding is not None
    touched = pd.DataFrame({"user": [9_999] * 2, "item": two[0].encoder.items.ids[:2], "time": [0, 1]})
    lists = [jaxrec.recommend(each, [9_999], interactions=touched, k=5) for each in (inner, outer)]
    pd.testing.assert_frame_equal(*lists)
    other = dataclasses.replace(two[0].folding, item=coldstart.ImplicitSquares(0.0, 9.0))
    with refuses(ValueError, "Expected parts that fold interactions in alike"):
        coldstart.mix([inner, two[0].replace(folding=other)], WEIGHT)


def test_popularity_beside_least_squares_folds_nothing_in(two, parts):
    """Whoever comes with interactions is folded into the factorization, while the counts stay what they are."""
    both, often = coldstart.or_popular(two[0], parts.train), coldstart.popularity(parts.train)
    assert both.folding == two[0].folding
    mixed = coldstart.mix([two[0], often], [[1.0] * 3, [0.01] * 3])
    touched = pd.DataFrame({"user": [9_999] * 2, "item": two[0].encoder.items.ids[:2], "time": [0, 1]})
    pairs = pd.DataFrame({"user": 9_999, "item": two[0].encoder.items.ids[:9]})
    found, first, second = (
        jaxrec.predict(coldstart.add(each, interactions=touched), pairs) for each in (mixed, two[0], often)
    )
    np.testing.assert_allclose(found, first + 0.01 * second, rtol=1e-4, atol=1e-5)
    assert np.ptp(second) > 0


BY_USER = np.arange(1.0, 19.0).reshape(2, 3, 3) * [[[1.0]], [[-0.3]]]


def test_a_gate_looks_at_how_much_is_known_of_the_user(two, world, tmp_path):
    """Somebody new, one with two interactions and a trained one, each with weights of their own; as added, so known."""
    item, user, time = world.target.schema.item, world.target.schema.user, world.target.schema.time
    mixed = coldstart.mix(two, BY_USER, few=3)
    twin = world.target.items.head(1).assign(**{item: "new"})
    known = two[0].encoder.items.ids
    touched = pd.DataFrame({user: [-1, -1, -2, -2, -2], item: known[[0, 1, 0, 1, 2]], time: range(5)})
    first, second, ready = (coldstart.add(each, items=twin, interactions=touched) for each in (*two, mixed))
    trained = two[0].encoder.users.ids[int(np.argmax(two[0].trained.user_count[1:]))]
    users = [trained, -9, -1, -2]
    pairs = pd.DataFrame([(each, one) for each in users for one in ready.encoder.items.ids], columns=[user, item])
    count = np.append(two[0].trained.item_count[1 : len(known) + 1], 0)  # the new item comes last
    of_item = np.where(count == 0, 0, np.where(count < 3, 1, 2))
    weight = BY_USER[:, np.repeat([2, 0, 1, 2], len(of_item)), np.tile(of_item, len(users))]
    expected = weight[0] * jaxrec.predict(first, pairs) + weight[1] * jaxrec.predict(second, pairs)
    np.testing.assert_allclose(jaxrec.predict(ready, pairs), expected, rtol=1e-4, atol=1e-4)
    frame = pairs.assign(expected=expected).rename(columns={user: "user", item: "item"})
    lists = jaxrec.recommend(ready, users, k=5, exclude_seen=False).merge(frame, on=["user", "item"])
    assert len(lists) == 20
    np.testing.assert_allclose(lists.score, lists.expected, rtol=1e-4, atol=1e-4)
    # What is given for one call counts as what is added, and a file keeps the gate.
    jaxrec.save(mixed, tmp_path / "mixed")
    again = jaxrec.recommend(jaxrec.load(tmp_path / "mixed"), [-1, -2], interactions=touched, new_items=twin, k=5)
    pd.testing.assert_frame_equal(again, jaxrec.recommend(ready, [-1, -2], k=5))
    # An evaluation ranks as recommend does.
    best = frame[~ready.seen.contains(*(side.encode(frame[name]) for side, name in (
        (ready.encoder.users, "user"), (ready.encoder.items, "item"))))]  # fmt: skip
    best = best.loc[best.groupby("user").expected.idxmax()]
    rows = best.rename(columns={"user": user, "item": item})[[user, item]].assign(**{time: 9})
    report = jaxrec.evaluate(ready, rows, ks=(1,), draws=1)
    assert report["ndcg@1"] == 1.0


def test_the_gate_alone_reads_what_the_whole_reads_of_a_user(two):
    """``apply`` on histories, which an artefact serves: the third interaction moves a user to the last weights."""
    mixed = coldstart.mix([two[0]], BY_USER[:1], few=3)
    model, plain = mixed.model, two[0].model
    assert model.history == 3 and plain.history == 0 and coldstart.mix(two, WEIGHT).model.few == 0
    history = np.zeros((4, 3), np.int32)
    for row in range(4):
        history[row, :row] = np.arange(1, row + 1)
    batch = data.Batch(user=np.zeros(4, np.int32), item=np.full((4, 1), 5, np.int32), history=history)
    bucket = int(mixed.params["gate"]["bucket"][mixed.encoder.features.item_row[5], 0])
    expected = BY_USER[0, [0, 1, 1, 2], bucket] * np.asarray(plain.apply(two[0].params, batch, mixed.features))[:, 0]
    assert np.abs(expected).min() > 0
    np.testing.assert_allclose(model.apply(mixed.params, batch, mixed.features)[:, 0], expected, rtol=1e-5)


def test_a_part_is_given_the_latest_that_it_reads():
    case = MODELS["mixture by users"].model
    params = case.init(jax.random.key(0))
    long = batch_of(length=5)._replace(history=np.tile(np.array([1, 2, 3, 4, 0], np.int32), (8, 1)))
    short = long._replace(history=np.tile(np.array([3, 4, 0, 0, 0], np.int32), (8, 1)))
    other = long._replace(history=np.tile(np.array([1, 2, 3, 5, 0], np.int32), (8, 1)))
    found, same, changed = (case.apply(params, each, FEATURES) for each in (long, short, other))
    np.testing.assert_array_equal(found, same)  # weights are all one
    assert (found != changed).all()


def test_what_cannot_be_mixed_is_refused(two, factorization):
    encoder = two[0].encoder
    schema = dataclasses.replace(encoder.schema, user=None, user_features=())
    bare = two[0].replace(encoder=dataclasses.replace(encoder, schema=schema))
    other = dataclasses.replace(two[0].folding, item=coldstart.ImplicitSquares(0.0, 9.0))
    for parts, weight, options, message in (
        ([], [], {}, "at least one recommender"),
        (two, [[1.0, 1.0, 1.0]], {}, r"shape \(2, 3\)"),
        (two, [[1.0, 1.0, 1.0], [1.0, float("nan"), 1.0]], {}, "finite weights"),
        (two, [[[1.0] * 3] * 2] * 2, {}, r"or of shape \(2, 3, 3\), by users and by items"),
        ((bare, bare), BY_USER, {}, "Expected users for a gate that looks at them"),
        (two, WEIGHT, {"few": 0}, "few >= 1"),
        (two, BY_USER, {"few": 0}, "few >= 1"),
        ((two[0], factorization), WEIGHT, {}, "fold interactions in alike"),
        ((two[0], two[0].replace(folding=other)), WEIGHT, {}, r"l2=9.0.* the same fold_user and fold_item"),
        ((two[0], two[1].replace(num_trained=1)), WEIGHT, {}, "same training data"),
        ((two[0], two[1].replace(encoder=two[1].encoder.without_rows("user"))), WEIGHT, {}, "users have the same rows"),
    ):
        with pytest.raises(ValueError, match=message):
            coldstart.mix(parts, weight, **options)
    rows = dataclasses.replace(
        two[0].encoder.encode(pd.DataFrame({"user": [1], "item": ["film-00000"], "time": 0})), item=None
    )
    with refuses(ValueError, "Expected rows with items, got none"):
        jaxrec.predict(coldstart.mix(two, WEIGHT), rows)
    with refuses(ValueError, "Expected few >= 0, got -1"):
        models.Mixture(parts=(two[0].model,), item_rows=2, few=-1)


def test_parts_that_read_other_features_than_the_first_are_refused(two, parts):
    """All parts are told what the first one's encoder says."""
    encoder, whole = two[1].encoder, [[1.0] * 3] * 2
    features = encoder.features
    scaled = dataclasses.replace(encoder, features=features._replace(item_dense=2.0 * features.item_dense))
    with refuses(ValueError, r"trained on other features \(item_dense\)"):
        coldstart.mix([two[0], two[1].replace(encoder=scaled)], whole)
    older = dataclasses.replace(encoder, features=features._replace(user_dense=2.0 * features.user_dense))
    assert coldstart.mix([two[0], two[1].replace(encoder=older)], whole)  # neighbours do not look at users
    nothing = dict.fromkeys(("user_dense", "item_dense", "user_present", "item_present"))
    bare = features._replace(**nothing, user_codes={}, item_codes={})
    bare = dataclasses.replace(encoder, features=bare, user_features=(), item_features=())
    often = coldstart.popularity(parts.train).replace(encoder=bare)
    with refuses(ValueError, r"item_codes\['genres'\]\).* a part that reads features goes before one that reads none"):
        coldstart.mix([often, two[1]], whole)
    assert coldstart.mix([two[1], often], whole)


def test_parts_with_personal_parameters_of_different_users_are_refused(parts):
    model = models.TwoTower.for_data(parts.train, dim=2, hidden=(), code_dim=2)
    seen, encoder = parts.train.interactions, parts.train.encoder
    towers = train.Recommender(model, model.init(jax.random.key(0)), encoder, seen, len(seen))
    one = _personalise._wrapped(towers, coldstart.InnerLoop(personal="user/bias"))
    code = np.zeros((len(encoder.features.user_row), 1), np.int32)
    code[3] = 1
    other = one.replace(encoder=encoder.with_code("user", "personal row", code))
    whole = [[1.0] * 3] * 2
    for pair in ([one, other], [towers, one]):
        with refuses(ValueError, r"user_codes\['personal row'\]\)"):
            coldstart.mix(pair, whole)
    assert coldstart.mix([one, towers], whole)


def test_parts_whose_targets_are_scaled_otherwise_are_refused(rated_parts):
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=2)
    seen, encoder = rated_parts.train.interactions, rated_parts.train.encoder
    one = train.Recommender(model, model.init(jax.random.key(0)), encoder, seen, len(seen))
    scaler = dataclasses.replace(encoder.target, statistics=encoder.target.statistics + 1.0)
    pair = [one, one.replace(encoder=dataclasses.replace(encoder, target=scaler))]
    with refuses(ValueError, "targets are scaled alike"):
        coldstart.mix(pair, [[1.0] * 3] * 2)
    assert coldstart.mix([each.replace(link="rank") for each in pair], [[1.0] * 3] * 2)


@pytest.mark.parametrize("which", [0, 1])
def test_the_spread_of_scores_is_taken_block_by_block(two, which, monkeypatch):
    recommender = two[which]
    users = np.random.default_rng(0).permutation(np.flatnonzero(recommender.trained.user_count))[:500]
    items = np.flatnonzero(recommender.encoder.features.item_row).astype(np.int32)
    expected = float(np.asarray(scorer(recommender, items)(users, len(users))).std())
    assert spread(recommender, 0) == pytest.approx(expected, rel=1e-4)
    sizes = []

    def blocks(num_users, num_candidates):
        for start in range(0, num_users, 64):
            sizes.append(64)
            yield np.arange(start, min(start + 64, num_users)), 64

    monkeypatch.setattr(_default, "user_blocks", blocks)
    assert spread(recommender, 0) == pytest.approx(expected, rel=1e-4) and len(sizes) > 1


@pytest.fixture(scope="module")
def chosen():
    world = data.generate(seed=3, target_users=260, target_items=220, source_users=260, source_items=20).target
    return world, jaxrec.ColdStart(world.schema, seconds=1e-3).fit(
        world.interactions, users=world.users, items=world.items
    )


def test_the_default_says_what_it_chose_and_serves_new_items(chosen):
    world, cold = chosen
    assert "alternating least squares of width 64" in cold.explanation
    assert "Nearest neighbours by content make up" in cold.explanation
    assert {"known", "new items", "new users", "new users, 1 and 5 interactions"} <= set(cold.trials.columns)
    assert cold.trials["setting"].str.startswith("stretch of new items").any()
    found = cold.recommend(new_items=world.items.head(1).assign(**{world.schema.item: "brand-new"}), k=3)
    assert found.groupby("user").size().eq(3).all() and np.isfinite(found.score).all()


NOBODY = 99_999
BARE = {
    "least squares": lambda train_: train.fit_als(train_, dim=4, epochs=2),
    "least squares with content": lambda train_: train.fit_als(train_, dim=4, epochs=2, content=True),
    "ridge": lambda train_: coldstart.map_content(train.fit_als(train_, dim=4, epochs=2), train_),
    "perceptron": lambda train_: coldstart.map_content(
        train.fit_als(train_, dim=4, epochs=2), train_, kind="mlp", hidden=(4,), epochs=1
    ),
    "preferences by a game": lambda train_: coldstart.cfgan(train_, dim=4, latent=4, discriminator=(4,), epochs=1),
    "learned to learn": lambda train_: coldstart.meta_learn(
        models.TwoTower.for_data(train_, dim=4, hidden=()),
        train_,
        coldstart.InnerLoop(personal=("user/bias", "user/mlp/*")),
        epochs=1,
    ),
    "autoencoder": lambda train_: train.fit(
        models.VariationalAutoencoder.for_data(train_, dim=4, latent=2, history=9), train_, epochs=1
    ),
    "popularity": coldstart.popularity,
    "EASE or popular": lambda train_: coldstart.or_popular(train.fit_ease(train_), train_),
    "neighbours or popular": lambda train_: coldstart.or_popular(train.fit_item_knn(train_), train_),
    "content neighbours or popular": lambda train_: coldstart.or_popular(train.fit_content_knn(train_), train_),
}


def served_bare(recommender):
    """Checks what somebody gets of whom nothing is known, and what an item is worth of which nothing is."""
    known = recommender.encoder.users.ids[:5].tolist()
    lists = jaxrec.recommend(recommender, [NOBODY, *known], new_users=[NOBODY], new_items=["nothing"], k=9)
    assert np.isfinite(lists.score).all() and lists.groupby("user").size().eq(9).all()
    assert lists.score[lists.user == NOBODY].nunique() > 1  # an order, not the ids'
    bare = jaxrec.recommend(recommender, known, new_items=["nothing"], candidates=["nothing"], k=1)
    assert np.isfinite(bare.score).all() and len(bare) == len(known)


@pytest.mark.parametrize("name", BARE)
def test_users_and_items_of_whom_nothing_is_known_get_an_order(name, parts):
    served_bare(BARE[name](parts.train))


def test_the_default_serves_those_of_whom_nothing_is_known(chosen):
    cold = chosen[1]
    lists = cold.recommend(new_users=[NOBODY], new_items=["nothing"], k=9)
    assert np.isfinite(lists.score).all() and len(lists) == 9 and lists.score.nunique() > 1
    assert np.isfinite(cold.recommend(new_items=["nothing"], candidates=["nothing"], k=1).score).all()


def test_the_default_says_that_too_few_items_were_there_to_ask(monkeypatch):
    monkeypatch.setattr("jaxrec.coldstart._default._SETTINGS", ((0.3, 0.01),))
    world = data.generate(seed=3, target_users=60, target_items=40, source_users=60, source_items=20).target
    cold = jaxrec.ColdStart(world.schema, seconds=1e-3).fit(world.interactions, users=world.users, items=world.items)
    assert "too few items could be held out to ask how new ones compete" in cold.explanation
    assert "multiplied by" not in cold.explanation


def test_the_default_takes_a_single_row_and_refuses_too_few_ratings():
    row = pd.DataFrame({"user": [1], "item": [2], "stars": [3.0]})
    for seed in (0, 3):  # by which the row is held out, or is not
        cold = jaxrec.ColdStart(data.Schema(), seed=seed).fit(row)
        assert "no task, the data being too small" in cold.explanation and len(cold.recommender.seen) == 1
    few = pd.concat([row] * 4, ignore_index=True).assign(stars=[1.0, 2.0, 3.0, 4.0])
    with refuses(ValueError, "a tenth of the rows, and of 4 that is none. Give more rows"):
        jaxrec.ColdStart(data.Schema(target="stars")).fit(few)


def test_popularity_orders_what_a_method_scores_alike(parts):
    ease = train.fit_ease(parts.train)
    both, popular = coldstart.or_popular(ease, parts.train), coldstart.popularity(parts.train)
    first, second = (jaxrec.recommend(each, new_users=[NOBODY], k=9).drop(columns="score") for each in (both, popular))
    pd.testing.assert_frame_equal(first, second)
    known = parts.train.encoder.users.ids[:9]
    lists = [jaxrec.recommend(each, known, k=5) for each in (both, ease)]
    np.testing.assert_allclose(lists[0].score, lists[1].score, rtol=0, atol=2e-6)


def test_new_users_choose_what_they_are_folded_in_by(chosen, monkeypatch):
    world = chosen[0]

    def fitted(folds, revealed=(1, 5)):
        monkeypatch.setattr("jaxrec.coldstart._default._FOLDS", folds)
        monkeypatch.setattr("jaxrec.coldstart._default._REVEALED", revealed)
        cold = jaxrec.ColdStart(data.Schema(), seconds=1e-3, seed=1).fit(world.interactions)
        what = f"new users, {' and '.join(map(str, revealed))} interactions"
        return cold, float(cold.trials[what].iloc[0]), float(cold.trials["known"].iloc[0])

    plain, of_plain, known = fitted(((1.0, 1.0, 1.0),))
    better = (0.03, 8.0, 1.0)
    cold, value, same = fitted(((1.0, 1.0, 1.0), better))
    assert value > 1.1 * of_plain and same == known
    assert fitted((better,), (5,))[1] > fitted((better,), (1, 5))[1] == value
    assert cold.recommender.folding.user.unobserved == pytest.approx(0.3 * 0.03)
    assert cold.recommender.folding.user.l2 == pytest.approx(0.01 * 8)
    assert "weighs 0.03 times and the regularisation 8 times what it does in training" in cold.explanation
    assert "folding in with 0.03 and 8 times these and exponent 1" in cold.trials["setting"].iloc[0]
    assert "times what it does in training" not in plain.explanation
    flat = fitted(((0.01, 100.0, 0.0),))[0]
    assert flat.recommender.folding.user == coldstart.ImplicitSquares(0.003, 1.0, 0.0)
    assert plain.recommender.folding.user.unobserved == 0.3


def test_ranking_all_items_together_has_a_say(chosen, monkeypatch):
    world, cold = chosen
    tried = cold.trials[cold.trials["setting"].str.startswith("width")]
    assert tried["all items"].gt(0).all()
    monkeypatch.setattr("jaxrec.coldstart._default._SETTINGS", ((0.3, 0.01), (0.1, 0.01)))
    monkeypatch.setattr("jaxrec.coldstart._default._WIDTHS", (4,))

    def value(self, recommender, task):
        first = recommender.folding is not None and recommender.folding.user.l2 == pytest.approx(0.01 * 0.3)
        return (0.1 if first else 1.0) if task.name == "all items" else (1.0 if first else 0.95)

    monkeypatch.setattr("jaxrec.coldstart._default._FOLDS", ((1.0, 1.0, 1.0),))
    monkeypatch.setattr("jaxrec.coldstart._default._Search._value", value)
    monkeypatch.setattr(
        "jaxrec.coldstart._default._Setting.fold_user",
        property(lambda setting: coldstart.ImplicitSquares(setting.unobserved, setting.l2 * setting.unobserved)),
    )
    found = jaxrec.ColdStart(world.schema, seconds=100).fit(world.interactions, users=world.users, items=world.items)
    assert "unobserved pairs weighing 0.1 and" in found.explanation


def test_new_items_are_stretched_without_neighbours_too(monkeypatch):
    world = data.generate(seed=3, target_users=260, target_items=220, source_users=260, source_items=20).target
    monkeypatch.setattr("jaxrec.coldstart._default._SHARES", (0.0, 0.0))

    def scores(factor):
        monkeypatch.setattr("jaxrec.coldstart._default._FACTORS", (factor,))
        cold = jaxrec.ColdStart(world.schema, seconds=1e-3)
        cold.fit(world.interactions, users=world.users, items=world.items)
        assert f"are multiplied by {factor:g}" in cold.explanation
        grown = coldstart.add(cold.recommender, items=world.items.head(1).assign(item="brand-new"))
        pairs = pd.DataFrame({"user": world.users["user"].head(5)})
        return [jaxrec.predict(grown, pairs.assign(item=each)) for each in ("brand-new", world.items["item"].iloc[0])]

    (new, known), (plain, same) = scores(2.0), scores(1.0)
    ratio = known / same  # both on one scale
    np.testing.assert_allclose(new / plain, 2.0 * ratio, rtol=1e-4)


def test_neighbours_are_by_the_one_feature_that_the_others_dilute(monkeypatch):
    monkeypatch.setattr("jaxrec.coldstart._default._SETTINGS", ((0.3, 0.01),))
    monkeypatch.setattr("jaxrec.coldstart._default._WIDTHS", (4, 4))
    rng = np.random.default_rng(0)
    groups, members = 10, 22
    items = pd.DataFrame({"item": np.arange(groups * members)})
    items["group"] = [f"g{number}" for number in items["item"] % groups]
    items["noise"] = [f"n{number}" for number in rng.integers(0, groups, len(items))]
    rows = [(user, item) for user in range(220) for item in user % groups + groups * rng.permutation(members)[:12]]
    schema = data.Schema(item_features=(data.Categorical("noise"), data.Categorical("group")))
    cold = jaxrec.ColdStart(schema).fit(pd.DataFrame(rows, columns=["user", "item"]), items=items)
    found = cold.trials.set_index("setting")["new items"]
    assert found["neighbours by group"] > found["neighbours by all content"] > found["neighbours by noise"]
    assert "Nearest neighbours by group alone make up" in cold.explanation


def test_plays_of_one_pair_are_held_out_together(monkeypatch):
    """Ten plays of each pair rank as one does: none of what is held out has been met."""
    monkeypatch.setattr("jaxrec.coldstart._default._SETTINGS", ((0.3, 0.01),))
    monkeypatch.setattr("jaxrec.coldstart._default._WIDTHS", (4,))
    monkeypatch.setattr("jaxrec.coldstart._default._FOLDS", ((1.0, 1.0, 1.0),))
    rng = np.random.default_rng(0)
    once = pd.DataFrame({"user": np.repeat(np.arange(210), 8), "item": rng.integers(0, 40, 1680)}).drop_duplicates()
    plays = pd.concat([once] * 10, ignore_index=True)
    trials = jaxrec.ColdStart(data.Schema(), seconds=1e-3).fit(plays).trials
    assert {"known", "new users, 1 and 5 interactions"} <= set(trials.columns) and trials.notna().all(axis=None)

    def nothing(*_, ks, **__):
        return {f"ndcg@{ks[0]}": float("nan")}

    monkeypatch.setattr("jaxrec.evaluation.evaluate", nothing)
    with refuses(ValueError, "The task 'known' has no ndcg@20"):
        jaxrec.ColdStart(data.Schema(), seconds=1e-3).fit(once)


class Reached(Exception):
    """Training would begin."""


def test_a_feature_that_is_constant_in_the_rest_stops_nothing(monkeypatch):
    """The only item with an award is held out whole; of ratings, its only row."""

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr("jaxrec.coldstart._default.fit_als", reached)
    monkeypatch.setattr("jaxrec.coldstart._default.fit", reached)
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": np.arange(1200) % 120, "item": rng.integers(0, 210, 1200)})
    rows["stars"] = rng.integers(1, 6, len(rows))
    ids = rows["item"].unique()
    alone = data.split_random(rows, validation=0.1, test=0.0, seed=0).validation.index[0]
    rated = rows.assign(item=rows["item"].where(rows.index != alone, 999))
    first = ids[np.random.default_rng(0).permutation(len(ids))[0]]
    for frame, item, target in ((rows, first, None), (rated, 999, "stars")):
        items = pd.DataFrame({"item": [*range(210), 999]})
        items["award"] = (items["item"] == item).astype(float)
        schema = data.Schema(target=target, item_features=(data.Numeric("award"),))
        with pytest.raises(Reached):
            jaxrec.ColdStart(schema).fit(frame, items=items)


def test_the_default_takes_weights_and_items_without_a_row(monkeypatch):
    monkeypatch.setattr("jaxrec.coldstart._default._SETTINGS", ((0.3, 0.01),))
    monkeypatch.setattr("jaxrec.coldstart._default._WIDTHS", (4, 4))
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": rng.integers(0, 220, 3000), "item": rng.integers(0, 230, 3000)}).drop_duplicates()
    items = pd.DataFrame({"item": np.arange(0, 230, 3), "group": np.arange(77) % 3})  # of a third of them
    schema = data.Schema(weight="weight", item_features=(data.Categorical("group"),))
    with pytest.warns(UserWarning, match="items"):
        cold = jaxrec.ColdStart(schema).fit(rows.assign(weight=2.0), items=items)
    assert {"new items", "all items"} <= set(cold.trials.columns)
    assert cold.recommender.seen.weight is not None


def test_ratings_are_predicted_and_bad_calls_refused(rated_world):
    frames = rated_world.target
    bare = data.Schema(target=frames.schema.target, time=frames.schema.time)
    cold = jaxrec.ColdStart(bare).fit(frames.interactions)
    assert "a MatrixFactorization was trained" in cold.explanation and len(cold.trials)
    assert not jaxrec.ColdStart(bare, seed=1).fit(frames.interactions).trials["rmse"].equals(cold.trials["rmse"])
    rated = set(zip(frames.interactions["user"], frames.interactions["item"], strict=True))
    lists = cold.recommend(k=5)
    assert not rated & set(zip(lists["user"], lists["item"], strict=True))
    assert cold.recommender.num_trained == len(frames.interactions)
    assert f"after {cold.trials['rmse'].argmin() + 1} epoch" in cold.explanation
    with pytest.raises(ValueError, match="user"):
        jaxrec.ColdStart(bare).fit(frames.interactions.drop(columns="user"))
    with pytest.raises(ValueError, match="Nothing has been fitted yet"):
        _ = jaxrec.ColdStart(bare).recommender
    with pytest.raises(ValueError, match="seconds > 0"):
        jaxrec.ColdStart(bare, seconds=0)
    with pytest.raises(ValueError, match="schema with users and items"):
        jaxrec.ColdStart(data.Schema(item=None, target="y"))
    with refuses(TypeError, "Expected a Schema"):
        jaxrec.ColdStart("user")


def test_a_mixture_adds_its_parts_penalties():
    parts = tuple(MODELS[name].model for name in ("autoencoder", "linear"))
    model = models.Mixture(parts=parts, item_rows=7)
    params = model.init(jax.random.key(0))
    alone = [
        part.score(
            params["parts"][str(number)], _base.gather(params["parts"][str(number)], lookups), batch_of(), FEATURES
        )
        for number, part in enumerate(parts)
        for lookups in [part.lookups(batch_of(), FEATURES)]
    ]
    gathered = _base.gather(params, model.lookups(batch_of(), FEATURES))
    found = model.score(params, gathered, batch_of(), FEATURES)
    expected = sum(float(_base.scored(each).penalty) for each in alone)
    assert expected > 0 and float(found.penalty) == pytest.approx(expected, rel=1e-5) and found.warmup == 20


def test_popularity_counts_beyond_what_float32_adds_up():
    parts = data.encode(data.Parts(pd.DataFrame({"user": [0], "item": [0]}), None, None), data.Schema())
    many = np.broadcast_to(np.int32(1), 2**24 + 2)
    found = coldstart.popularity(dataclasses.replace(parts.train, user=many, item=many))
    assert float(found.params["item"]["count"][1, 0]) == 2**24 + 2
