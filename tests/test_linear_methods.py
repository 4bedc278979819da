"""EASE and nearest neighbours against plain NumPy; new users and items as if they had been there; similar items."""

import dataclasses
import functools

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import encoded
from helpers import refuses

import jaxrec
from jaxrec import coldstart, data, models, ranking, train, transfer
from jaxrec.train import _ease

SCHEMA = data.Schema(item_features=(data.Vector("vector"), data.Labels("tags")))
USERS, ITEMS, COLD, BARE = 14, 12, (10, 11), 9  # item 9 has no content, 10 and 11 no interaction


def frames():
    """Interactions with repeated pairs, and items with a vector and labels."""
    rng = np.random.default_rng(3)
    pairs = np.unique(np.stack([rng.integers(0, USERS, 90), rng.integers(0, 10, 90)], axis=1), axis=0)
    pairs = np.concatenate([pairs, pairs[:7], [[0, item] for item in range(10)], [[1, BARE]]])
    interactions = pd.DataFrame({"user": pairs[:, 0], "item": pairs[:, 1]})
    items = pd.DataFrame({"item": np.arange(ITEMS)})
    items["vector"] = list(rng.normal(size=(ITEMS, 3)) + 0.3)
    items["tags"] = [[f"t{tag}" for tag in rng.choice(7, rng.integers(1, 5), replace=False)] for _ in range(ITEMS)]
    items["tags"] = [[*tags, "never trained"] if item == 10 else tags for item, tags in enumerate(items["tags"])]
    items["vector"] = [None if item == BARE else vector for item, vector in enumerate(items["vector"])]
    items["tags"] = [[] if item == BARE else tags for item, tags in enumerate(items["tags"])]
    return interactions, items


INTERACTIONS, CONTENT = frames()


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.encode(data.Parts(INTERACTIONS, None, None), SCHEMA, items=CONTENT).train


def touched_by(interactions=INTERACTIONS):
    matrix = np.zeros((USERS + 5, ITEMS + 3))
    matrix[interactions["user"], interactions["item"]] = 1.0
    return matrix


def scores_of(recommender, users=range(USERS), items=range(ITEMS)):
    """Scores ``[users, items]`` by raw id."""
    pairs = pd.DataFrame([(user, item) for user in users for item in items], columns=["user", "item"])
    predicted = jaxrec.predict(recommender, pairs).reshape(len(users), len(items))
    listed = jaxrec.recommend(recommender, list(users), k=len(items), exclude_seen=False, candidates=list(items))
    table = listed.pivot(index="user", columns="item", values="score").loc[list(users), list(items)]
    np.testing.assert_allclose(predicted, table, rtol=1e-5, atol=1e-6)
    return predicted


def content_of(features, items=CONTENT, trained=10):
    """Rows whose inner products are cosines."""
    tags = sorted({tag for of_one in items["tags"][:trained] for tag in of_one})
    has = np.array([[tag in of_one for tag in tags] for of_one in items["tags"]], float)
    parts = {
        "tags": has * (np.log((1 + trained) / (1 + has[:trained].sum(axis=0))) + 1),
        "vector": np.stack([np.zeros(3) if vector is None else vector for vector in items["vector"]]),
    }
    unit = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in map(parts.get, features)]
    joined = np.concatenate(unit, axis=1)
    return joined / np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-12)


def knn_scores(similarity, touched, k, normalise=0.0, trained=10):
    """An item at a time, as the definition says."""
    scores = np.zeros((len(touched), len(similarity)))
    for item, row in enumerate(similarity.astype(np.float32)):
        others = [other for other in range(trained) if other != item and row[other] > 0]
        nearest = sorted(others, key=lambda other: (-row[other], other))[:k]
        total = sum(row[other] for other in nearest)
        for other in nearest:
            scores[:, item] += touched[:, other] * row[other] / total**normalise
    return scores


def shared_users(touched, similarity, shrink):
    both, count = touched.T @ touched, touched.sum(axis=0)
    ours, theirs = count[:, None], count[None, :]
    size = np.sqrt(ours * theirs) if similarity == "cosine" else ours + theirs - both
    return both / np.maximum(size + shrink, 1e-12)


# EASE


@pytest.mark.parametrize("users", [USERS, 5])  # of few users the matrix that is inverted is theirs
@pytest.mark.parametrize("l2", [0.5, 20.0])
def test_ease_is_its_closed_form(l2, users):
    interactions = INTERACTIONS[INTERACTIONS["user"] < users]
    dataset = data.encode(data.Parts(interactions, None, None), SCHEMA, items=CONTENT).train
    touched = touched_by(interactions)[:users, :ITEMS]
    inverse = np.linalg.inv(touched.T @ touched + l2 * np.eye(ITEMS))
    weights = np.eye(ITEMS) - inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0.0)
    found = scores_of(train.fit_ease(dataset, l2=l2), range(users))
    np.testing.assert_allclose(found, touched @ weights, rtol=1e-4, atol=1e-5)


def popular_and_rare(users, items):
    """Touches ``[users, items]`` of which a few items have most."""
    share = (np.arange(items) + 3.0) ** -0.8
    touched = np.random.default_rng(0).random((users, items)) < 0.6 * share / share.max()
    touched[np.arange(users), np.arange(users) % items] = True
    return touched.astype(np.float32)


def test_ease_is_solved_by_users_where_they_are_few_and_digits_suffice(monkeypatch):
    touched = popular_and_rare(120, 260)
    user, item = np.nonzero(touched)
    frame = pd.DataFrame({"user": user, "item": item})
    few = data.encode(data.Parts(frame, None, None), data.Schema()).train
    found = train.fit_ease(few, l2=2.0).params["item"]["weights"]
    monkeypatch.setattr(_ease, "_solved_by_users", None)
    with pytest.raises(TypeError, match="NoneType"):
        train.fit_ease(few, l2=2.0)
    train.fit_ease(few, l2=1.0)
    inverse = np.linalg.inv(touched.T.astype(np.float64) @ touched + 2.0 * np.eye(260))
    weights = -inverse / np.diag(inverse)[:, None]
    np.fill_diagonal(weights, 0.0)
    order = few.encoder.items.decode(np.arange(1, len(few.encoder.items) + 1))
    row = np.asarray(few.features.item_row)[1 : len(order) + 1]
    ours = np.asarray(found)[np.ix_(row, row)]
    np.testing.assert_allclose(ours, weights[np.ix_(order, order)], atol=1e-5 * np.abs(weights).max())


def test_ease_says_where_digits_do_not_suffice():
    few = data.encode(data.Parts(INTERACTIONS[INTERACTIONS["user"].isin([1, 2])], None, None), data.Schema()).train
    with refuses(ValueError, "too few digits for l2 down to 1e-30 with 2 users. Raise l2"):
        train.fit_ease(few, l2=1e-30)


def test_ease_trusts_some_items_less(dataset):
    """Column by column: a ridge regression on the other items, each with a penalty of its own."""
    touched = touched_by()[:USERS, :ITEMS].astype(float)
    ids = dataset.encoder.items.ids
    l2 = pd.Series(np.linspace(0.5, 30.0, len(ids)), index=ids)
    weights = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        x, penalty = touched[:, others], np.diag(l2.to_numpy()[others])
        weights[others, item] = np.linalg.solve(x.T @ x + penalty, x.T @ touched[:, item])
    found = scores_of(train.fit_ease(dataset, l2=l2.sample(frac=1.0, random_state=0)))
    np.testing.assert_allclose(found, touched @ weights, rtol=1e-4, atol=1e-5)
    with refuses(ValueError, "l2 for each of 10 items .* missing: 2, such as 0, 1"):
        train.fit_ease(dataset, l2=l2.iloc[2:])
    with pytest.raises(ValueError, match="l2 > 0 and finite in float32, got -1"):
        train.fit_ease(dataset, l2=l2 * 0.0 - 1.0)
    for size in (1e-60, 1e60, np.inf):
        with pytest.raises(ValueError, match="finite in float32, got (1e.60|inf)"):
            train.fit_ease(dataset, l2=l2.where(l2 > l2.min(), size))
    with refuses(ValueError, "one l2 for each item, 0 has several"):
        train.fit_ease(dataset, l2=pd.concat([l2, l2.iloc[:1]]))
    with refuses(TypeError, "number or a Series by raw id of the items, got ndarray"):
        train.fit_ease(dataset, l2=l2.to_numpy())


def test_ease_of_users_in_several_blocks_is_that_of_one(dataset, monkeypatch):
    whole = train.fit_ease(dataset, l2=2.0)
    monkeypatch.setattr("jaxrec.train._ease._NUMBERS", 40)
    jax.tree.map(np.testing.assert_array_equal, train.fit_ease(dataset, l2=2.0).params, whole.params)


@pytest.mark.parametrize("users", [USERS, 5])
def test_ease_of_items_in_several_blocks_is_that_of_one(monkeypatch, users):
    few = INTERACTIONS[INTERACTIONS["user"] < users]
    dataset = data.encode(data.Parts(few, None, None), SCHEMA, items=CONTENT).train
    whole = train.fit_ease(dataset, l2=2.0)
    solve = _ease._solved if users == USERS else _ease._solved_by_users
    monkeypatch.setattr(_ease, "_BLOCK", 4)
    monkeypatch.setattr(_ease, solve.__name__, jax.jit(solve.__wrapped__))  # traced anew
    found = train.fit_ease(dataset, l2=2.0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found.params, whole.params)


@pytest.mark.parametrize("pairs", [1, 50, 2**22])
def test_ease_counts_the_pairs_of_sparse_data_one_by_one(dataset, monkeypatch, pairs):
    whole = train.fit_ease(dataset, l2=2.0)
    monkeypatch.setattr(_ease, "_PAIR", 0)
    monkeypatch.setattr(_ease, "_PAIRS", pairs)
    monkeypatch.setattr(_ease, "_with_products", None)
    jax.tree.map(np.testing.assert_array_equal, train.fit_ease(dataset, l2=2.0).params, whole.params)


def test_item_weights_can_be_trained_by_gradient_too(world):
    parts = encoded(world.target)
    model = models.ItemWeights.for_data(parts.train, history=30)
    fitted = jaxrec.fit(model, parts.train, epochs=5, batch_size=256)
    assert fitted.log[-1]["loss"] < fitted.log[0]["loss"]
    ours, popular = (
        jaxrec.evaluate(each, parts.validation, ks=(10,), draws=10)["ndcg@10"]
        for each in (fitted, coldstart.popularity(parts.train))
    )
    assert ours > popular


# Nearest neighbours


@pytest.mark.parametrize("similarity", ["cosine", "jaccard"])
@pytest.mark.parametrize(("k", "shrink", "normalise"), [(4, 0.0, 0.0), (4, 3.0, 0.5), (500, 3.0, 1.0)])
def test_item_neighbours_are_those_of_a_plain_loop(dataset, similarity, k, shrink, normalise):
    touched = touched_by()[:USERS, :ITEMS]
    expected = knn_scores(shared_users(touched, similarity, shrink), touched, k, normalise)
    fitted = train.fit_item_knn(dataset, neighbours=k, shrink=shrink, similarity=similarity, normalise=normalise)
    np.testing.assert_allclose(scores_of(fitted), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [("tags",), ("vector",), ("vector", "tags")])
@pytest.mark.parametrize(("k", "normalise"), [(3, 0.0), (3, 0.5), (500, 1.0)])
def test_content_neighbours_are_those_of_a_plain_loop(dataset, features, k, normalise):
    touched, content = touched_by()[:USERS, :ITEMS], content_of(features)
    expected = knn_scores(content @ content.T, touched, k, normalise)
    chosen = None if len(features) == 2 else features
    fitted = train.fit_content_knn(dataset, neighbours=k, normalise=normalise, features=chosen)
    scores = scores_of(fitted)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert not scores[:, BARE].any() and scores[:, COLD].any(axis=0).all()


@pytest.mark.parametrize("few", [0, 10**9])  # everything sorted, everything added up in rows
def test_blocks_of_items_and_of_postings_change_nothing(dataset, monkeypatch, few):
    fits = [lambda: train.fit_item_knn(dataset, neighbours=4), lambda: train.fit_content_knn(dataset, neighbours=4)]
    whole = [fit().params for fit in fits]
    monkeypatch.setattr("jaxrec._nearest._CELLS", 35)
    monkeypatch.setattr("jaxrec._nearest._POSTINGS", 5)
    monkeypatch.setattr("jaxrec._nearest._FEW", few)
    for fit, expected in zip(fits, whole, strict=True):
        found = fit().params
        np.testing.assert_array_equal(found["item"]["neighbours"], expected["item"]["neighbours"])
        np.testing.assert_allclose(found["item"]["similarity"], expected["item"]["similarity"], rtol=1e-6)


def test_numbers_beside_one_another_are_one_part_of_content():
    items = CONTENT.assign(a=np.arange(ITEMS) % 5 - 2.0, b=np.arange(ITEMS) % 3 - 1.0)
    numeric = (data.Numeric("a", scale=None), data.Numeric("b", scale=None))
    schema = data.Schema(item_features=(*numeric, data.Vector("vector")))
    encoded = data.encode(data.Parts(INTERACTIONS, None, None), schema, items=items).train
    assert train.fit_content_knn(encoded).model.dense == ((0, 2), (2, 5))
    fitted = train.fit_content_knn(encoded, features=["b", "a"], neighbours=3, normalise=0.0)
    length = np.maximum(np.hypot(items["a"], items["b"]), 1e-12)
    unit = np.stack([items["a"] / length, items["b"] / length], axis=1)
    found = np.asarray(fitted.params["item"]["similarity"])[1 : ITEMS + 1, 0]
    cosine = unit @ unit[:10].T
    cosine[np.arange(10), np.arange(10)] = -1.0
    np.testing.assert_allclose(found, np.maximum(cosine.max(axis=1), 0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["minmax", "quantile", "log1p"])
def test_a_number_that_is_missing_is_no_content(scale):
    items = CONTENT[["item", "tags"]].assign(price=np.arange(ITEMS) % 5 + 1.0)
    items.loc[BARE, "price"] = np.nan
    items["tags"] = [["t1", "t2"] if item == BARE else tags for item, tags in enumerate(items["tags"])]
    schema = data.Schema(item_features=(data.Labels("tags"), data.Numeric("price", scale=scale)))
    encoded = data.encode(data.Parts(INTERACTIONS, None, None), schema, items=items).train
    alone = coldstart.add(train.fit_content_knn(encoded, features=["price"]), items=[77])
    index = alone.encoder.items.encode([3, BARE, 77])
    assert np.asarray(alone.params["item"]["neighbours"])[index].any(axis=1).tolist() == [True, False, False]
    both = train.fit_content_knn(encoded)
    tags = content_of(("tags",), items.assign(vector=[np.zeros(3)] * ITEMS))
    parts = 1 + (np.asarray(encoded.features.item_dense)[1 : ITEMS + 1, 0] > 0)
    expected = np.sort(np.delete(tags[BARE] @ tags.T / np.sqrt(parts), [BARE, *COLD]))[:-4:-1]
    np.testing.assert_allclose(both.params["item"]["similarity"][1 + BARE, :3], expected, rtol=1e-5)


# New users and items


FITS = {
    "ease": lambda dataset: train.fit_ease(dataset, l2=5.0),
    "item": lambda dataset: train.fit_item_knn(dataset, neighbours=4),
    "content": lambda dataset: train.fit_content_knn(dataset, neighbours=4),
}


@pytest.fixture(scope="module", params=FITS)
def fitted(request, dataset):
    return FITS[request.param](dataset)


def test_a_new_user_is_scored_as_an_old_one_with_the_same_history(fitted):
    twin = INTERACTIONS[INTERACTIONS["user"] == 0].assign(user=77)
    listed = jaxrec.recommend(fitted, [77], interactions=pd.concat([twin, twin]), k=5, exclude_seen=False)
    old = jaxrec.recommend(fitted, [0], k=5, exclude_seen=False)
    pd.testing.assert_frame_equal(listed.drop(columns="user"), old.drop(columns="user"))
    grown = coldstart.add(fitted, interactions=twin)
    pairs = pd.DataFrame({"user": 77, "item": range(ITEMS)})
    np.testing.assert_allclose(jaxrec.predict(grown, pairs), jaxrec.predict(fitted, pairs.assign(user=0)), rtol=1e-6)
    nothing = jaxrec.predict(fitted, pairs)
    np.testing.assert_array_equal(nothing, np.zeros(ITEMS))


def test_a_new_item_with_content_is_scored_as_if_it_had_been_there(dataset):
    new = CONTENT.iloc[[3, 5]].assign(item=[ITEMS, ITEMS + 1])
    new["tags"] = [["t1", "t5"], ["t0"]]
    there = data.encode(data.Parts(INTERACTIONS, None, None), SCHEMA, items=pd.concat([CONTENT, new])).train
    expected = scores_of(train.fit_content_knn(there, neighbours=4), items=range(ITEMS + 2))
    recommender = train.fit_content_knn(dataset, neighbours=4)
    grown = coldstart.add(recommender, items=new)
    np.testing.assert_allclose(scores_of(grown, items=range(ITEMS + 2)), expected, rtol=1e-6)
    assert jaxrec.recommend(recommender, [0], new_items=new, candidates=[ITEMS], k=1)["score"][0] > 0
    # Once the capacity is used up, twice over.
    many = new.iloc[:1].loc[np.repeat(new.index[0], 90)].assign(item=np.arange(100, 190))
    larger = coldstart.add(grown, items=many)
    assert larger.params["item"]["neighbours"].shape[0] == larger.model.items > recommender.model.items
    again = scores_of(larger, items=[*range(ITEMS + 2), 100, 189])
    np.testing.assert_allclose(again, expected[:, [*range(ITEMS + 2), ITEMS, ITEMS]], rtol=1e-6)
    replaced = coldstart.add(grown, items=new.assign(item=[11, 12]))  # new features of items that are known
    np.testing.assert_allclose(scores_of(replaced, items=[11, 12]), expected[:, [ITEMS, ITEMS + 1]], rtol=1e-6)


def test_a_new_item_gets_neighbours_from_its_interactions(dataset):
    new = pd.DataFrame({"user": [0, 2, 5, 0], "item": ITEMS})
    items = pd.concat([CONTENT, CONTENT.iloc[[3]].assign(item=ITEMS)])
    there = data.encode(data.Parts(pd.concat([INTERACTIONS, new]), None, None), SCHEMA, items=items).train
    expected = scores_of(train.fit_item_knn(there, neighbours=4), items=[ITEMS])
    recommender = train.fit_item_knn(dataset, neighbours=4)
    grown = coldstart.add(recommender, interactions=new)
    np.testing.assert_allclose(scores_of(grown, items=[ITEMS]), expected, rtol=1e-6)
    np.testing.assert_array_equal(scores_of(grown, [3]), scores_of(recommender, [3]))  # trained lists stay
    assert not scores_of(coldstart.add(recommender, items=[ITEMS]), items=[ITEMS]).any()


def test_interactions_with_a_new_item_leave_ease_finite(dataset):
    recommender = train.fit_ease(dataset)
    grown = coldstart.add(recommender, interactions=pd.DataFrame({"user": [0, 99], "item": [ITEMS, ITEMS]}))
    assert not scores_of(grown, [0, 99], [ITEMS]).any()
    np.testing.assert_array_equal(scores_of(grown, [0]), scores_of(recommender, [0]))


def test_a_shorter_history_reads_the_latest(dataset):
    for fit in (train.fit_ease, train.fit_item_knn, train.fit_content_knn):
        whole, capped = fit(dataset), fit(dataset, history=2)
        assert whole.model.history == INTERACTIONS["user"].value_counts().max() and capped.model.history == 2
        last = INTERACTIONS[INTERACTIONS["user"] == 0].iloc[-2:].assign(user=50)
        pairs = pd.DataFrame({"user": [0] * ITEMS, "item": range(ITEMS)})
        few = jaxrec.predict(coldstart.add(whole, interactions=last), pairs.assign(user=50))
        np.testing.assert_allclose(jaxrec.predict(capped, pairs), few, rtol=1e-6)
        assert (jaxrec.predict(whole, pairs) != few).any()


def test_they_survive_a_file_and_rank_alike(fitted, tmp_path):
    jaxrec.save(fitted, tmp_path / "model")
    loaded = jaxrec.load(tmp_path / "model")
    assert loaded.model == fitted.model
    jax.tree.map(np.testing.assert_array_equal, loaded.params, fitted.params)
    pd.testing.assert_frame_equal(jaxrec.recommend(loaded, k=3), jaxrec.recommend(fitted, k=3))
    held_out = pd.DataFrame({"user": [1, 2], "item": [10, 11]})
    assert 0 <= jaxrec.evaluate(loaded, held_out, ks=(5,))["ndcg@5"] <= 1


def test_an_artefact_serves_them(fitted, tmp_path):
    jaxrec.export.write_artefact(fitted, tmp_path / "artefact", k=5)
    artefact = jaxrec.export.load_artefact(tmp_path / "artefact")
    listed = artefact.recommend([0, 99], k=5, touched=[[], [1, 2, 2]], exclude_seen=False)
    touched = pd.DataFrame({"user": 99, "item": [1, 2, 2]})
    expected = jaxrec.recommend(fitted, [0, 99], interactions=touched, k=5, exclude_seen=False)
    assert [item for of_one in listed for item, _ in of_one] == expected["item"].tolist()
    scores = artefact.score([0, 0], [3, 10])
    pairs = pd.DataFrame({"user": [0, 0], "item": [3, 10]})
    np.testing.assert_allclose(scores, jaxrec.predict(fitted, pairs), rtol=1e-5, atol=1e-6)


# Similar items


@pytest.mark.parametrize("name", ["factorization", "towers"])
def test_similar_items_have_the_largest_cosine(name, request):
    recommender = request.getfixturevalue(name)
    ids = recommender.encoder.items.ids
    vectors = np.asarray(recommender.catalogue)[1 : len(ids) + 1].astype(np.float64)
    vectors = vectors[:, np.ptp(vectors, axis=0) > 0]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2.0)
    found = ranking.similar_items(recommender, ids, k=4)
    assert list(found.columns) == ["item", "similar", "score", "rank"] and len(found) == 4 * len(ids)
    scores = found["score"].to_numpy().reshape(-1, 4)
    np.testing.assert_allclose(scores, np.sort(cosine, axis=1)[:, :-5:-1], rtol=1e-4, atol=1e-5)
    place = {raw: at for at, raw in enumerate(ids)}
    own = [cosine[place[row.item], place[row.similar]] for row in found.itertuples()]
    np.testing.assert_allclose(found["score"], own, rtol=1e-4, atol=1e-5)
    few = ranking.similar_items(recommender, ids[:2], candidates=ids[:3])
    assert few.groupby("item", sort=False)["similar"].apply(set).tolist() == [set(ids[1:3]), {ids[0], ids[2]}]
    assert few["rank"].tolist() == [1, 2, 1, 2]


def test_similar_items_of_neighbours_are_those_kept(dataset):
    content = content_of(("vector", "tags"))
    cosine = content @ content[:10].T
    cosine[np.arange(10), np.arange(10)] = 0.0
    recommender = train.fit_content_knn(dataset, neighbours=5)
    found = ranking.similar_items(recommender, [11, BARE, 0], k=3)
    assert set(found["item"]) == {11, 0} and found["rank"].tolist() == [1, 2, 3] * 2
    expected = np.sort(cosine[[11, 0]], axis=1)[:, :-4:-1]
    np.testing.assert_allclose(found["score"], expected.reshape(-1), rtol=1e-5)
    best, second = found["similar"][:2]
    fewer = ranking.similar_items(recommender, [11], candidates=[second, 10], k=2)
    assert fewer["similar"].tolist() == [second] and fewer["rank"].tolist() == [1] and best != second


def test_similar_items_says_what_is_wrong(dataset, factorization, parts):
    recommender = train.fit_item_knn(dataset)
    for options, message in (
        ({"items": [1, 99]}, "of the items are unknown items, such as 99"),
        ({"items": [1, 1]}, "each item once, got 1 twice"),
        ({"items": [1], "k": 13}, r"k in 1 \.\. 12"),
        ({"items": [1], "candidates": [99]}, "of the candidates are unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            ranking.similar_items(recommender, **options)
    with refuses(TypeError, r"list of raw ids for items, got 'a'. Say \['a'\]"):
        ranking.similar_items(recommender, "a")
    model = models.NeuMF.for_data(parts.train, dim=2, mlp_dim=2, hidden=(2,))
    no_vectors = factorization.replace(model=model, params=model.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="NeuMF has no vectors of items"):
        ranking.similar_items(no_vectors, no_vectors.encoder.items.ids[:1])
    broken = factorization.replace(params=jax.tree.map(lambda leaf: leaf * np.float32(np.nan), factorization.params))
    with pytest.raises(ValueError, match="item vector is not finite"):
        ranking.similar_items(broken, broken.encoder.items.ids[:1])


# What is refused


def test_data_and_options_that_do_not_fit_are_refused(dataset, rated_parts):
    weighted = dataclasses.replace(dataset, weight=np.ones(len(dataset), np.float32))
    for fit in (train.fit_ease, train.fit_item_knn, train.fit_content_knn):
        with pytest.raises(ValueError, match="Expected implicit feedback"):
            fit(rated_parts.train)
        with pytest.raises(ValueError, match="without weights.*weight=None"):
            fit(weighted)
        with pytest.raises(ValueError, match="history >= 1, or None"):
            fit(dataset, history=0)
        with refuses(TypeError, "Expected a Dataset for train"):
            fit(INTERACTIONS)
        with refuses(ValueError, "training part is empty. Expected at least one interaction"):
            fit(dataset.subset(np.zeros(0, np.int32)))
        with refuses(ValueError, "1 of 1 rows of the training part are of unknown items"):
            fit(dataset.encoder.encode(pd.DataFrame({"user": [0], "item": [777]})))
    with pytest.raises(ValueError, match="l2 > 0 and finite in float32, got 0"):
        train.fit_ease(dataset, l2=0.0)
    for options, message in (
        ({"neighbours": 0}, "neighbours >= 1, got 0"),
        ({"shrink": -1.0}, "shrink >= 0, got -1"),
        ({"normalise": -0.5}, "normalise >= 0, got -0.5"),
        ({"similarity": "dice"}, "similarity 'cosine' or 'jaccard', got 'dice'"),
    ):
        with refuses(ValueError, message):
            train.fit_item_knn(dataset, **options)
    for features in (["colour"], "tags", []):
        with refuses(ValueError, r"names of item features \(vector, tags\), got"):
            train.fit_content_knn(dataset, features=features)
    with pytest.raises(ValueError, match="history >= 1, got 0"):
        models.ItemWeights(item_rows=3, history=0)


def test_what_was_counted_is_neither_trained_by_gradient_nor_transferred(dataset, parts):
    knn = train.fit_item_knn(dataset)
    with pytest.raises(ValueError, match=r"'item/neighbours' holds int32.*Freeze it, or.*fit_item_knn"):
        jaxrec.fit(knn.model, dataset, epochs=1)
    learned = jaxrec.fit(knn.model, dataset, params=knn.params, freeze="item/neighbours", epochs=2)
    np.testing.assert_array_equal(learned.params["item"]["neighbours"], knn.params["item"]["neighbours"])
    assert (learned.params["item"]["similarity"] != knn.params["item"]["similarity"]).any()
    for recommender in (knn, train.fit_ease(dataset)):
        with pytest.raises(ValueError, match="cannot be carried over by rows. Fit it on the target instead"):
            transfer.adapt(recommender, dataset)
