"""Exact top-k, recommending and predicting: exclusions, candidates, ties, unknown and new users and items."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import LinenScorer, batch_of
from helpers import refuses

import jaxrec
from jaxrec import data, models, optim, ranking
from jaxrec.ranking import _search, _top_k, top_k
from jaxrec.ranking._recommend import candidate_items


def by_user(frame):
    return {user: rows["item"].tolist() for user, rows in frame.groupby("user", sort=False)}


def test_top_k_sorts_by_score_then_position():
    scores = jnp.asarray([[1.0, 3.0, 3.0, -jnp.inf], [-0.0, 0.0, -0.0, 0.0]])
    assert top_k(scores, k=4).position.tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]
    excluded = top_k(scores, k=4, exclude=jnp.asarray([[False, True, False, False], [True] * 4]))
    assert excluded.position.tolist() == [[2, 0, 3, -1], [-1] * 4]
    assert np.isneginf(excluded.score[1]).all()


@pytest.mark.parametrize("k", (1, 7, 40))
def test_top_k_of_many_candidates_is_a_stable_sort(k):
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (5, 3001)).astype(np.float32)  # ties within groups of neighbours and across them
    exclude = rng.random(scores.shape) < 0.5
    exclude[0, 3:] = True  # fewer than k are left
    exclude[1] = True
    found = top_k(jnp.asarray(scores), k=k, exclude=jnp.asarray(exclude))
    for row in range(len(scores)):
        order = np.argsort(-scores[row], kind="stable")
        expected = order[~exclude[row][order]][:k]
        np.testing.assert_array_equal(found.position[row], np.pad(expected, (0, k - len(expected)), constant_values=-1))


@pytest.mark.parametrize("k", [0, 5])
def test_top_k_refuses_lists_longer_than_the_catalogue(k):
    with pytest.raises(ValueError, match=f"k in 1 .. 4 .*got {k}"):
        top_k(jnp.ones((1, 4)), k=k)


@pytest.mark.parametrize("candidates", (30, 3000))
def test_top_k_lowers_for_cpu_cuda_and_tpu(candidates):
    users = jax.export.symbolic_shape("users")[0]
    shape = jax.ShapeDtypeStruct((users, candidates), jnp.float32)
    exported = jax.export.export(jax.jit(lambda s: tuple(top_k(s, k=5))), platforms=("cpu", "cuda", "tpu"))(shape)
    scores = jax.random.normal(jax.random.key(0), (4, candidates))
    np.testing.assert_array_equal(exported.call(scores)[1], top_k(scores, k=5).position)


@pytest.mark.parametrize("name", ["factorization", "towers"])
def test_lists_are_the_sorted_predictions_of_unseen_items(name, request, parts):
    recommender = request.getfixturevalue(name)
    users, items = recommender.encoder.users.ids[:7].tolist(), recommender.encoder.items.ids.tolist()
    listed = jaxrec.recommend(recommender, users, k=8)
    assert list(listed.columns) == ["user", "item", "score", "rank"]
    assert listed["rank"].tolist() == list(range(1, 9)) * 7 and listed["user"].unique().tolist() == users
    pairs = pd.DataFrame([(user, item) for user in users for item in items], columns=["user", "item"])
    scores = jaxrec.predict(recommender, pairs).reshape(7, -1)
    for row, user in enumerate(users):
        index = recommender.encoder.users.encode([user])[0]
        seen = set(parts.train.encoder.items.decode(parts.train.item[parts.train.user == index]))
        order = sorted((j for j in range(len(items)) if items[j] not in seen), key=lambda j, row=row: -scores[row, j])
        mine = listed[listed["user"] == user]
        assert mine["item"].tolist() == [items[j] for j in order[:8]]
        np.testing.assert_allclose(mine["score"], scores[row, order[:8]], rtol=1e-5, atol=1e-6)


def test_excluded_items_are_never_recommended(factorization, parts):
    user = int(factorization.encoder.users.ids[0])
    free = jaxrec.recommend(factorization, [user], k=5, exclude_seen=False)
    some = free["item"].tolist()[:2]
    assert not set(some) & set(jaxrec.recommend(factorization, [user], k=5, exclude=some)["item"])
    pairs = pd.DataFrame({"user": [user] * 2, "item": some})
    other = int(factorization.encoder.users.ids[1])
    lists = by_user(jaxrec.recommend(factorization, [user, other], k=20, exclude=pairs, exclude_seen=False))
    assert (
        not set(some) & set(lists[user])
        and lists[other] == by_user(jaxrec.recommend(factorization, [other], k=20, exclude_seen=False))[other]
    )


def test_candidates_restrict_the_lists(factorization):
    user, items = int(factorization.encoder.users.ids[0]), factorization.encoder.items.ids[[3, 30, 7]].tolist()
    listed = jaxrec.recommend(factorization, [user], k=3, candidates=items, exclude_seen=False)
    assert sorted(listed["item"]) == sorted(items)
    everything = jaxrec.recommend(factorization, [user], k=60, exclude_seen=False).set_index("item")["score"]
    np.testing.assert_allclose(listed["score"], everything.reindex(listed["item"]), rtol=1e-6)


def test_lists_are_shorter_where_fewer_items_are_left(factorization, parts):
    index = parts.train.user[0]
    user = parts.train.encoder.users.decode(np.array([index])).tolist()
    seen = len(np.unique(parts.train.item[parts.train.user == index]))
    assert len(jaxrec.recommend(factorization, user, k=60)) == 60 - seen


def test_blocks_of_users_change_nothing(factorization, monkeypatch):
    whole = jaxrec.recommend(factorization, k=4)
    monkeypatch.setattr(_top_k, "_USERS", 8)
    pd.testing.assert_frame_equal(jaxrec.recommend(factorization, k=4), whole)


def test_equal_scores_go_by_raw_id(parts):
    recommender = jaxrec.coldstart.popularity(parts.train)
    flat = jaxrec.train.Recommender(
        recommender.model, {"item": {"count": jnp.zeros_like(recommender.params["item"]["count"])}},
        recommender.encoder, recommender.seen, 0,
    )  # fmt: skip
    listed = jaxrec.recommend(flat, [1], k=5)
    assert listed["item"].tolist() == sorted(recommender.encoder.items.ids)[:5]


def test_a_model_that_does_not_factorise_gives_the_same_kind_of_lists(parts):
    """Scoring pairs of users and items in blocks and multiplying vectors give the same lists up to rounding."""
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    recommender = jaxrec.fit(model, parts.train, epochs=2)
    plain = jaxrec.train.Recommender(
        Pairwise(model), recommender.params, recommender.encoder, recommender.seen, recommender.num_trained
    )
    assert not plain.factorises and recommender.factorises
    ours, theirs = (jaxrec.recommend(each, k=10) for each in (plain, recommender))
    assert ours["item"].tolist() == theirs["item"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-5)


class Pairwise:
    """A model that offers scores and no vectors."""

    tables: dict = {}
    unknown = "zero"

    def __init__(self, model):
        self.model = model

    def __hash__(self):
        return hash(self.model)

    def __eq__(self, other):
        return isinstance(other, Pairwise) and self.model == other.model

    def init(self, key):
        return self.model.init(key)

    def lookups(self, batch, features):
        return self.model.lookups(batch, features)

    def score(self, params, gathered, batch, features, *, key=None):
        return self.model.score(params, gathered, batch, features, key=key)

    def apply(self, params, batch, features, *, key=None):
        return self.model.apply(params, batch, features, key=key)


def test_a_module_of_ones_own_is_ranked(parts):
    model = models.from_linen(OwnScorer(), batch_of(), parts.train.features)
    recommender = jaxrec.fit(model, parts.train, loss="bpr", epochs=2)
    listed = jaxrec.recommend(recommender, recommender.encoder.users.ids[:3].tolist(), k=4)
    assert len(listed) == 12 and listed["score"].notna().all()


class OwnScorer(LinenScorer):
    """Tables large enough for the small world."""

    def __call__(self, batch, features):
        return super().__call__(
            batch._replace(
                user=batch.user % 12, item=batch.item if batch.item is None else batch.item % 10,
                shared_negatives=None if batch.shared_negatives is None else batch.shared_negatives % 10,
            )
            if batch.item is not None
            else batch._replace(user=batch.user % 12, item=jnp.zeros((batch.user.shape[0], 0), jnp.int32),
                                shared_negatives=batch.shared_negatives % 10),
            features,
        )  # fmt: skip


# What an unknown user or item is scored with


def test_an_unknown_user_is_the_average_one_for_factorization(factorization):
    listed = jaxrec.recommend(factorization, [987654321], k=60)
    table, bias = (np.asarray(factorization.params["user"][name]) for name in ("embedding", "bias"))
    trained = factorization.encoder.features.user_row.max() + 1
    mean, offset = table[1:trained].mean(axis=0), bias[1:trained].mean()
    rows = factorization.encoder.features.item_row[1:61]
    items = np.asarray(factorization.params["item"]["embedding"])[rows]
    scores = items @ mean + np.asarray(factorization.params["item"]["bias"])[rows, 0] + offset
    expected = dict(zip(factorization.encoder.items.ids, scores + float(factorization.params["bias"]), strict=True))
    np.testing.assert_allclose(listed["score"], [expected[item] for item in listed["item"]], rtol=1e-4, atol=1e-5)


def test_unknown_ids_do_not_read_another_row(factorization, towers):
    for recommender in (factorization, towers):
        unknown = pd.DataFrame({"user": [5, -5, 2**40 + 1], "item": ["?", "film-99999", ""]})
        first, *others = jaxrec.predict(recommender, unknown)
        assert np.isfinite(first) and others == [first, first]


def test_new_users_and_items_are_scored_from_their_features(towers, world):
    person = world.target.users.iloc[:1].assign(user=42)
    other = person.assign(age=70, group="F" if person["group"].iloc[0] != "F" else "A")
    thing = world.target.items.iloc[:1].assign(item="zzz")
    listed = jaxrec.recommend(towers, new_users=person, new_items=thing, k=61)
    assert set(listed["user"]) == {42} and "zzz" in set(listed["item"])
    again = jaxrec.recommend(towers, new_users=other, new_items=thing, k=61)
    assert not np.allclose(again["score"], listed["score"])
    twin = thing.assign(item="yyy", content=[-thing["content"].iloc[0]])
    both = jaxrec.recommend(towers, new_users=person, new_items=pd.concat([thing, twin]), k=62).set_index("item")
    assert both.loc["zzz", "score"] != both.loc["yyy", "score"]
    assert len(towers.encoder.items) == 60  # the recommender itself has not changed


def test_cold_items_keep_their_own_features_and_rank(world):
    frames = world.target
    parts = data.split_cold_items(frames.interactions, frames.schema, seed=0)
    encoded = data.encode(parts, frames.schema, users=frames.users, items=frames.items)
    model = models.TwoTower.for_data(encoded.train, dim=4, hidden=(8,), code_dim=2)
    recommender = jaxrec.fit(model, encoded.train, epochs=2)
    cold = sorted(set(parts.test["item"]))
    listed = jaxrec.recommend(recommender, [1], k=len(cold), candidates=cold)
    assert listed["score"].nunique() == len(cold)


@pytest.mark.parametrize("name", ["factorization", "towers"])
def test_a_few_interactions_move_a_new_user_towards_what_they_touched(name, request, world):
    recommender = request.getfixturevalue(name)
    truth = world.target_truth
    liked = truth.items.ids[np.argsort(-truth.item_factors[:, 0])[:6]].tolist()
    touched = pd.DataFrame({"user": [42] * 6, "item": liked, "time": range(6)})
    before = jaxrec.recommend(recommender, [42], k=60).set_index("item")["score"]
    after = jaxrec.recommend(recommender, [42], k=60, interactions=touched, exclude_seen=False).set_index("item")[
        "score"
    ]
    gain = (after - before.reindex(after.index)).loc[liked].mean() - (after - before.reindex(after.index)).mean()
    assert gain > 0
    hidden = jaxrec.recommend(recommender, [42], k=54, interactions=touched)
    assert not set(liked) & set(hidden["item"])


def test_history_pooling_reads_a_new_users_interactions(parts):
    model = models.TwoTower.for_data(parts.train, dim=8, hidden=(8,), code_dim=2, history=5)
    recommender = jaxrec.fit(model, parts.train, epochs=2, batch_size=128)
    items = recommender.encoder.items.ids[:3].tolist()
    touched = pd.DataFrame({"user": [42] * 3, "item": items, "time": range(3)})
    before = jaxrec.recommend(recommender, [42], k=57, exclude=items)
    after = jaxrec.recommend(recommender, [42], k=57, interactions=touched)
    assert set(before["item"]) == set(after["item"]) and not np.allclose(before["score"], after["score"])


def test_adding_within_the_capacity_compiles_nothing(towers, world):
    from test_train import record

    def serve(number):
        person = world.target.users.iloc[:2].assign(user=[number, number + 1])
        thing = world.target.items.iloc[:1].assign(item=f"new-{number}")
        touched = pd.DataFrame({"user": [number], "item": ["film-00003"], "time": [0]})
        return jaxrec.recommend(towers, new_users=person, new_items=thing, interactions=touched, k=5)

    serve(1)
    compiled: list[str] = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        record(patch, compiled)
        serve(7)
    assert compiled == []


def test_some_of_a_large_catalogue_take_the_shapes_of_as_many_others():
    from test_train import record

    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": rng.integers(0, 20, 3000), "item": rng.permutation(3000)})
    train = data.encode(data.Parts(rows, None, None), data.Schema()).train
    recommender = jaxrec.fit(models.MatrixFactorization.for_data(train, dim=4), train, epochs=1)
    sizes = [len(candidate_items(recommender.encoder, range(count))) for count in (3, 1100, 2000, 2049, 3000)]
    assert sizes == [1024, 2048, 2048, *[min(4096, len(recommender.encoder.features.item_row))] * 2]
    users = recommender.encoder.users.ids[:3].tolist()
    everything = jaxrec.recommend(recommender, users, k=2000)
    some = rng.permutation(3000)
    compiled: list[str] = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        for count in (1100, 2000):  # of one power of two
            listed = jaxrec.recommend(recommender, users, candidates=some[:count].tolist(), k=20)
            expected = everything[everything["item"].isin(some[:count])].groupby("user", sort=False).head(20)
            assert by_user(listed) == by_user(expected)
            record(patch, compiled)
    assert compiled == []


def test_predictions_come_in_the_targets_unit(rated_parts):
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    recommender = jaxrec.fit(model, rated_parts.train, epochs=3)
    predicted = jaxrec.predict(recommender, rated_parts.test)
    assert predicted.dtype == np.float64 and 2.0 < predicted.mean() < 5.0
    touched = pd.DataFrame({"user": [42] * 3, "item": ["film-00001", "film-00002", "film-00003"], "time": [0, 1, 2]})
    means = {}
    for rating in (1.0, 5.0):
        added = jaxrec.coldstart.add(recommender, interactions=touched.assign(rating=rating))
        means[rating] = jaxrec.predict(added, touched[["user", "item"]]).mean()
    assert means[1.0] < means[5.0]


def test_probabilities_follow_a_sigmoid_loss(parts):
    model = models.MatrixFactorization.for_data(parts.train, dim=4)
    recommender = jaxrec.fit(model, parts.train, loss="sigmoid_cross_entropy", epochs=2)
    probabilities = jaxrec.predict(recommender, parts.test)
    scores = jaxrec.predict(jaxrec.train.Recommender(
        recommender.model, recommender.params, recommender.encoder, recommender.seen, recommender.num_trained
    ), parts.test)  # fmt: skip
    assert ((probabilities > 0) & (probabilities < 1)).all()
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-scores)), rtol=1e-6)
    low = recommender.replace(params={**recommender.params, "bias": jnp.float32(-60.0)})
    np.testing.assert_allclose(np.log(jaxrec.predict(low, parts.test)).mean(), -60.0, atol=2.0)  # not minus infinity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 61}, "k in 1 .. 60 .*got 61"),
        ({"k": 0}, "k in 1 .. 60"),
        ({"candidates": ["film-00001"], "k": 2}, "k in 1 .. 1 "),
        ({"candidates": ["nope"]}, "1 of the candidates are unknown items, such as 'nope'"),
        ({"exclude": ["nope"]}, "1 of the excluded items are unknown items"),
        ({"users": [3, 3]}, "each user once, got 3 twice"),
        ({"new_users": pd.DataFrame({"user": [1]})}, "lacks the column 'age'"),
        ({"interactions": pd.DataFrame({"user": [1]})}, "lacks the column 'item'"),
    ],
)
def test_requests_that_cannot_be_are_refused(towers, options, message):
    with refuses(ValueError, message):
        jaxrec.recommend(towers, **options)


def test_nan_scores_are_refused(factorization):
    broken = jaxrec.train.Recommender(
        factorization.model, jax.tree.map(lambda leaf: leaf * jnp.nan, factorization.params), factorization.encoder,
        factorization.seen, factorization.num_trained,
    )  # fmt: skip
    with pytest.raises(ValueError, match="A score is NaN"):
        jaxrec.recommend(broken, k=3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_found_whatever_its_sign_unless_it_is_excluded(sign):
    scores = np.zeros((2, 40), np.float32)
    scores[1, 7] = np.copysign(np.nan, sign)
    live, nobody = jnp.ones(40, bool), _top_k.Pairs.padded(np.zeros(0), np.zeros(0), 40)
    assert _top_k.select(jnp.asarray(scores), live, nobody, k=3).nan
    assert not _top_k.select(jnp.asarray(scores), live, _top_k.Pairs.padded(np.array([1]), np.array([7]), 40), k=3).nan


def test_pairs_are_excluded_for_users_of_whom_nothing_is_known(factorization):
    best = jaxrec.recommend(factorization, [5555, 6666], k=3)
    gone = pd.DataFrame({"user": 5555, "item": best["item"][:3]})
    lists = by_user(jaxrec.recommend(factorization, [5555, 6666], k=3, exclude=gone))
    assert not set(lists[5555]) & set(gone["item"]) and lists[6666] == best["item"].tolist()[3:]


def test_a_frame_of_exclusions_adds_nobody_to_the_lists(factorization):
    known = set(factorization.encoder.users.ids)
    gone = pd.DataFrame({"user": [5555, 1], "item": [factorization.encoder.items.ids[0], "film-99999"]})
    assert set(jaxrec.recommend(factorization, k=2, exclude=gone)["user"]) == known


def test_a_string_is_no_list(factorization):
    with refuses(TypeError, r"Expected a list of raw ids for users, got 'ann'. Say \['ann'\]"):
        jaxrec.recommend(factorization, "ann")
    with refuses(TypeError, r"Expected a list of raw ids for new_users, got 7. Say \[7\]"):
        jaxrec.recommend(factorization, new_users=7)
    with refuses(TypeError, "interpreted as an integer"):
        jaxrec.recommend(factorization, k=3.5)


def test_context_that_the_model_does_not_read_changes_nothing(world):
    frame = world.target.interactions.assign(price=np.arange(len(world.target.interactions)) % 7)
    schema = data.Schema(time="time", context=(data.Numeric("price"),))
    train = data.encode(data.Parts(frame, None, None), schema).train
    fitted = jaxrec.fit(models.MatrixFactorization.for_data(train, dim=4), train, epochs=2)
    touched = pd.DataFrame({"user": 900, "item": frame["item"].iloc[:3], "time": 0, "price": 0.0})
    grown = jaxrec.coldstart.add(fitted, interactions=touched)
    listed = jaxrec.recommend(grown, [900], k=5, exclude=frame[["user", "item"]].iloc[:1])
    predicted = jaxrec.predict(grown, listed[["user", "item"]].assign(price=0.0))
    np.testing.assert_allclose(listed["score"], predicted, atol=1e-5)


@pytest.fixture(scope="module")
def priced(world):
    """Interactions with a price, in three parts."""
    frame = world.target.interactions.iloc[:1500]
    frame = frame.assign(price=np.arange(len(frame)) % 7)
    parts = data.split_random(frame, validation=0.15, test=0.15, seed=0)
    return data.encode(parts, data.Schema(context=(data.Numeric("price"),)))


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_a_model_that_reads_context_has_no_lists_for_users_alone(priced, hidden, monkeypatch):
    model = models.FactorizationMachine.for_data(priced.train, dim=2, hidden=hidden)
    fitted = jaxrec.fit(model, priced.train, loss="bpr", epochs=1)
    encoder = fitted.encoder
    users = encoder.users.decode(np.unique(priced.test.user[priced.test.user > 0]))
    own = pd.DataFrame({"user": users, "item": encoder.items.ids[0]})
    settings: dict[str, Any] = {"validation": priced.validation, "loss": "bpr", "epochs": 1}
    injected = optim.row_sparse(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1))
    monkeypatch.setattr("jaxrec.train._fit._run", None)
    monkeypatch.setattr("jaxrec.train._sweep.run_epoch", None)
    for asked in (
        lambda: jaxrec.recommend(fitted, users[:2], k=3),
        lambda: jaxrec.evaluate(fitted, priced.test),
        lambda: jaxrec.evaluate(fitted, priced.test, candidates=own),
        lambda: jaxrec.fit(model, priced.train, **settings),
        lambda: jaxrec.fit(models.Mixture(parts=(model,), item_rows=99), priced.train, freeze="gate/*", **settings),
        lambda: jaxrec.train.sweep(model, priced.train, [{"learning_rate": 0.1}], optimizer=injected, **settings),
    ):
        with refuses(ValueError, "reads columns of the interaction itself.*score rows that have them with"):
            asked()


def test_a_module_of_ones_own_may_leave_context_unread(priced):
    model = models.from_linen(OwnScorer(), batch_of(), priced.train.features)
    recommender = jaxrec.fit(model, priced.train, loss="bpr", epochs=1, validation=priced.validation)
    assert len(jaxrec.recommend(recommender, recommender.encoder.users.ids[:2], k=3)) == 6


# Large catalogues


@pytest.mark.parametrize(("num", "k", "levels"), [(4096, 10, None), (4096, 100, 7), (2048, 1, 3), (2048, 64, None)])
def test_searching_by_groups_is_sorting_everything(num, k, levels):
    rng = np.random.default_rng(k)
    users, items = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (6, num))
    if levels is not None:  # many ties
        users, items = (np.round(values[:, :1] * levels / 3) for values in (users, items))
    live = rng.random(num) > 0.1
    exclude = np.full((6, 64), num, np.int32)
    best = np.argsort(-(users @ items.T), axis=1)
    exclude[1:, :40] = best[1:, :40]  # the hardest case: what would have been listed
    exclude[5, :40] = best[5, 0]  # one and the same
    top, nan = _search._search(users, items, live, exclude, k=k)
    gone = np.zeros((6, num + 1), bool)
    gone[np.arange(6)[:, None], exclude] = True
    expected = top_k(jnp.asarray(users @ items.T), k=k, exclude=jnp.asarray(gone[:, :num] | ~live[None, :]))
    assert not nan
    np.testing.assert_allclose(top.score, expected.score, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(top.position, expected.position)


@pytest.mark.parametrize("users", [5, 40])
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")])
def test_narrow_vectors_have_scores_in_full(users, dtypes):
    """Of items nearly alike, whose scores a narrow type could not tell apart."""
    rng = np.random.default_rng(0)
    shape = jnp.ones((users, 64)), 1.0 + 0.02 * rng.normal(size=(3000, 64))
    vectors = [jnp.asarray(values, dtype) for values, dtype in zip(shape, dtypes, strict=True)]
    wide = [values.astype(jnp.float32) for values in vectors]
    found, expected = ranking.search(*vectors, k=20), ranking.search(*wide, k=20)
    assert found.score.dtype == jnp.float32 and len(np.unique(expected.score[0])) > len(
        np.unique(expected.score[0].astype(dtypes[1]))
    )
    np.testing.assert_array_equal(found.position, expected.position)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)


def test_searching_finds_scores_that_are_not_numbers():
    items = np.ones((2048, 2), np.float32)
    items[77] = np.nan
    nothing = np.full((1, 1), 2048, np.int32)
    for value in (np.nan, [np.inf, -np.inf]):  # what infinities add up to has a sign on x86
        items[77] = value
        for live, bad in ((np.ones(2048, bool), True), (np.arange(2048) != 77, False)):
            assert bool(_search._search(np.ones((1, 2), np.float32), items, live, nothing, k=2)[1]) == bad
    items[77] = 1.0
    items[100:] = -np.inf  # ranks before nobody at all
    found = _search._search(np.ones((1, 2), np.float32), items, np.arange(2048) >= 1000, nothing, k=2).top
    assert found.position.tolist() == [[1000, 1001]]


@pytest.mark.parametrize("name", ["factorization", "towers"])
def test_large_catalogues_give_the_same_lists_and_figures(name, request, parts, monkeypatch):
    recommender = request.getfixturevalue(name)
    grown = jaxrec.coldstart.add(recommender, items=[f"film-9{number:04d}" for number in range(2000)])
    unseen = parts.test.encoder.items.ids[:3].tolist()
    plain = jaxrec.recommend(grown, k=7, exclude=unseen), jaxrec.evaluate(grown, parts.test, ks=(7,))
    monkeypatch.setattr(_search, "_LARGE", 1)
    large = jaxrec.recommend(grown, k=7, exclude=unseen), jaxrec.evaluate(grown, parts.test, ks=(7,))
    assert_alike(plain, large)
    searched, original = [], _search._search_any
    monkeypatch.setattr(_search, "_GATHERED", 2**15)
    monkeypatch.setattr(
        _search,
        "_search_any",
        lambda users, *args, **options: searched.append(len(users)) or original(users, *args, **options),
    )
    assert_alike(plain, (jaxrec.recommend(grown, k=7, exclude=unseen), jaxrec.evaluate(grown, parts.test, ks=(7,))))
    assert len(set(searched)) > 1  # halves of blocks in which somebody has touched much


def assert_alike(one, other):
    pd.testing.assert_frame_equal(one[0], other[0], atol=1e-5)
    pd.testing.assert_frame_equal(one[1].table, other[1].table)


def test_search_takes_any_number_of_items():
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(rows, 3)).astype(np.float32) for rows in (20, 50))
    expected = np.argsort(-(users @ items.T), axis=1)
    np.testing.assert_array_equal(ranking.search(users, items, k=5).position, expected[:, :5])
    without = ranking.search(users, items, k=50, exclude=expected[:, :2].astype(np.int32)).position
    np.testing.assert_array_equal(without[:, :48], expected[:, 2:])
    assert (np.asarray(without)[:, 48:] == -1).all()
    live = np.arange(50) != expected[0, 0]
    assert int(ranking.search(users[:1], items, k=1, live=live).position[0, 0]) == expected[0, 1]
    for exclude in (np.zeros((20, 0), np.int32), np.full((20, 2), np.iinfo(np.int64).min), np.full((20, 1), 2**32)):
        found = ranking.search(users, items, k=50, exclude=exclude).position
        np.testing.assert_array_equal(found, expected)  # item 0 is excluded by none of these
    with refuses(TypeError, r"live to hold True or False for each item, got int.*Say live > 0"):
        ranking.search(users, items, k=1, live=live.astype(np.int64))
    with refuses(TypeError, r"positions of items, \[users, excluded\], got bool. A mask, .* ranking.top_k"):
        ranking.search(users, items, k=1, exclude=np.zeros((20, 50), bool))
    with pytest.raises(ValueError, match="k in 1 .. 50 .*got 51"):
        ranking.search(users, items, k=51)


@pytest.fixture(scope="module")
def lettered():
    """An untrained factorization whose ids are letters."""
    frame = pd.DataFrame({"user": [*"abca"], "item": [*"xyzy"]})
    train = data.encode(data.Parts(frame, None, None), data.Schema()).train
    model = models.MatrixFactorization.for_data(train, dim=2)
    return jaxrec.train.Recommender(
        model, model.init(jax.random.key(0)), train.encoder, train.interactions, len(frame)
    )  # fmt: skip


def test_users_of_a_frame_are_its_user_column(lettered):
    users = pd.DataFrame({"age": [30, 40], "user": ["b", "a"]})
    expected = jaxrec.recommend(lettered, ["b", "a"], k=2)
    pd.testing.assert_frame_equal(jaxrec.recommend(lettered, users, k=2), expected)
    with pytest.raises(ValueError, match="lacks the schema's user column 'user'; it has age"):
        jaxrec.recommend(lettered, users[["age"]])
    for call in (
        lambda frame: jaxrec.recommend(lettered, candidates=frame),
        lambda frame: ranking.similar_items(lettered, frame),
        lambda frame: ranking.similar_items(lettered, ["x"], candidates=frame),
    ):
        with refuses(TypeError, "raw ids for (candidates|items), got a DataFrame. Give its column"):
            call(pd.DataFrame({"item": ["x"]}))


def test_a_string_is_no_list_of_ids(lettered):
    test = lettered.encoder.encode(pd.DataFrame({"user": ["a"], "item": ["z"]}))
    for call in (
        lambda ids: jaxrec.coldstart.add(lettered, users=ids),
        lambda ids: lettered.encoder.extend(items=ids),
        lambda ids: jaxrec.evaluate(lettered, test, candidates=ids),
        lambda ids: ranking.similar_items(lettered, ids),
        lambda ids: ranking.similar_items(lettered, ["x"], candidates=ids),
    ):
        with refuses(TypeError, r"Expected a list of raw ids for .*, got 'xyz'. Say \['xyz'\]"):
            call("xyz")


def test_nobody_has_no_lists():
    none = ranking.search(jnp.ones((0, 2)), jnp.ones((3, 2)), k=2)
    assert none.score.shape == none.position.shape == (0, 2)


def test_similar_items_compile_nothing_for_an_item_more(lettered):
    from test_train import record

    ranking.similar_items(jaxrec.coldstart.add(lettered, items=["one"]), ["x"], k=2)
    grown = jaxrec.coldstart.add(lettered, items=["one", "two"])
    _ = grown.catalogue
    compiled: list[str] = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        record(patch, compiled)
        ranking.similar_items(grown, ["x"], k=2)
    assert compiled == []


def test_few_shapes_are_compiled_for_predictions_of_a_mixture(lettered):
    from test_train import record

    mixed = jaxrec.coldstart.mix([lettered, lettered], [[1.0] * 3, [2.0] * 3])
    pairs = pd.DataFrame({"user": [*"abcabcab"], "item": [*"xyzyzxzx"]})
    whole = jaxrec.predict(mixed, pairs)
    np.testing.assert_allclose(whole, 3 * jaxrec.predict(lettered, pairs), rtol=1e-6)
    compiled: list[str] = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        record(patch, compiled)
        for rows in (5, 6, 7):
            np.testing.assert_array_equal(jaxrec.predict(mixed, pairs.head(rows)), whole[:rows])
    assert compiled == []
