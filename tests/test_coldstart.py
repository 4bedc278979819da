"""Folding in: closed forms against what they minimise, and what adding leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from cases import shaken

import jaxrec
from jaxrec import coldstart, data, losses, models
from jaxrec.ranking import _recommend, _vectors

RNG = np.random.default_rng(0)
DIM, BATCH, LENGTH = 4, 3, 5


def problem():
    errors, others = RNG.normal(size=(50, DIM)), RNG.normal(size=(40, DIM))
    share = RNG.random(40)
    prior = coldstart.prepare(errors, others, share / share.sum())
    vectors = RNG.normal(size=(BATCH, DIM)).astype(np.float32)
    touched = RNG.normal(size=(BATCH, LENGTH, DIM)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.float32)
    spread = np.cov(others, rowvar=False, aweights=share, bias=True)
    return errors, prior, vectors, touched, mask, spread


def test_fold_in_is_the_stated_ridge_solution():
    errors, prior, vectors, touched, mask, spread = problem()
    covariance = errors.T @ errors / len(errors)
    folded = coldstart.fold_in(vectors, prior, touched, mask)
    for row in range(BATCH):
        n = mask[row].sum()
        gap = ((touched[row] - prior.met) * mask[row][:, None]).sum(axis=0)
        expected = vectors[row] + np.linalg.solve(n * spread + np.linalg.inv(covariance), gap)
        np.testing.assert_allclose(folded[row], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(folded[2], vectors[2])


def test_fold_in_of_values_is_the_posterior_mean():
    errors, prior, vectors, touched, mask, _ = problem()
    covariance, noise = errors.T @ errors / len(errors), 0.3
    values = RNG.normal(size=(BATCH, LENGTH)).astype(np.float32)
    folded = coldstart.fold_in_values(vectors, prior, touched, mask, values, noise=noise)
    for row in range(BATCH):
        known = mask[row] > 0
        rows = touched[row][known]
        precision = rows.T @ rows / noise + np.linalg.inv(covariance)
        change = np.linalg.solve(precision, rows.T @ (values[row][known] - rows @ vectors[row]) / noise)
        np.testing.assert_allclose(folded[row], vectors[row] + change, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(folded[2], vectors[2])


def test_a_long_history_of_little_noise_is_folded_in_to_the_end():
    rng, dim = np.random.default_rng(2), 64
    axes, spread = np.linalg.qr(rng.normal(size=(dim, dim)))[0], 1.0 / np.arange(1, dim + 1)
    errors, touched = (rng.normal(size=(rows, dim)) * spread @ axes.T for rows in (200, 500))
    prior = coldstart.prepare(errors, touched, np.full(500, 1 / 500))
    values = (touched @ errors[0] + np.sqrt(1e-3) * rng.normal(size=500)).astype(np.float32)
    touched = touched.astype(np.float32)
    folded = coldstart.fold_in_values(
        np.zeros((1, dim), np.float32), prior, touched[None], np.ones((1, 500), np.float32), values[None], noise=1e-3
    )
    root, x = np.asarray(prior.root, np.float64), np.asarray(touched, np.float64)
    exact = root @ np.linalg.solve(root @ x.T @ x @ root / 1e-3 + np.eye(dim), root @ x.T @ values / 1e-3)
    assert np.linalg.norm(folded[0] - exact) < 5e-4 * np.linalg.norm(exact)
    often = np.repeat(touched[:1], 1000, axis=0)[None]  # one item, again and again
    folded = coldstart.fold_in_values(
        np.zeros((1, dim), np.float32), prior, often, np.ones((1, 1000), np.float32), np.ones((1, 1000), np.float32),
        noise=1e-6,
    )  # fmt: skip
    assert float(folded[0] @ touched[0]) == pytest.approx(1.0, abs=1e-4)


def test_fold_in_of_odds_is_the_mode_of_a_logistic_regression():
    errors, prior, vectors, touched, mask, _ = problem()
    covariance = errors.T @ errors / len(errors)
    values = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0] * 5], np.float32)
    weight = mask * np.array([1.0, 2.0, 0.5, 1.0, 3.0], np.float32)
    folded = np.asarray(coldstart.fold_in_odds(vectors, prior, touched, weight, values))
    for row in range(BATCH):
        slope = weight[row] * (values[row] - 1 / (1 + np.exp(-touched[row] @ folded[row])))
        np.testing.assert_allclose(covariance @ touched[row].T @ slope, folded[row] - vectors[row], atol=2e-2)
    assert np.abs(folded[:2] - vectors[:2]).max() > 0.3
    np.testing.assert_array_equal(folded[2], vectors[2])


@pytest.mark.parametrize("fold", [coldstart.fold_in, coldstart.fold_in_values, coldstart.fold_in_odds])
def test_an_interaction_of_weight_two_counts_as_two(fold):
    _, prior, vectors, touched, _, _ = problem()
    more = {} if fold is coldstart.fold_in else {"values": np.array([[1, 0, 1]] * BATCH, np.float32)}
    more |= {"noise": 0.5} if fold is coldstart.fold_in_values else {}
    weight = np.array([[1, 2, 0]] * BATCH, np.float32)
    once = fold(vectors, prior, touched[:, :3], weight, **more)
    twice = fold(vectors, prior, touched[:, [0, 1, 1]], np.ones((BATCH, 3), np.float32),
                 **(more | ({"values": more["values"][:, [0, 1, 1]]} if "values" in more else {})))  # fmt: skip
    np.testing.assert_allclose(once, twice, rtol=1e-3, atol=1e-4)


def test_clicks_and_their_lack_move_a_new_user_the_right_way(rated_world):
    clicks = rated_world.target.interactions
    clicks = clicks.assign(rating=(clicks["rating"] >= clicks["rating"].quantile(0.9)).astype(float))
    schema = data.Schema(target="rating", time="time")
    train = data.encode(data.Parts(clicks, None, None), schema).train
    model = models.MatrixFactorization.for_data(train, dim=4)
    fitted = jaxrec.fit(model, train, loss="sigmoid_cross_entropy", epochs=20, batch_size=128)
    items = train.encoder.items.ids[:8]
    pairs = pd.DataFrame({"user": -5, "item": items})
    before = jaxrec.predict(fitted, pairs)
    assert (before < 0.5).sum() > 4  # log-odds below zero
    for value, way in ((0.0, -1), (1.0, 1)):
        told = coldstart.add(fitted, interactions=pairs.assign(time=0, rating=value))
        assert (way * (jaxrec.predict(told, pairs) - before) > 0).all()


def test_a_loss_of_ranking_says_nothing_of_targets(rated_parts, rated_world):
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    fitted = jaxrec.fit(
        model, rated_parts.train, loss="bpr", epochs=2, batch_size=256, validation=rated_parts.validation
    )
    assert fitted.link == "rank" and "ndcg@10" in fitted.history
    rows = rated_parts.validation
    scores = _recommend.row_scores(fitted, rows)
    np.testing.assert_allclose(jaxrec.predict(fitted, rows), scores, rtol=1e-6)
    assert "ndcg@10" in set(jaxrec.evaluate(fitted, rows, draws=10).table.metric)
    with pytest.raises(ValueError, match="scores order items and predict no targets"):
        jaxrec.evaluate(fitted, rows, task="rating")
    with pytest.raises(ValueError, match="metric 'rmse' .*the loss is one of ranking"):
        jaxrec.fit(model, rated_parts.train, loss="bpr", validation=rows, metric="rmse")
    with pytest.raises(ValueError, match="Say which loss to go on with"):
        jaxrec.transfer.adapt(fitted, rated_parts.train, epochs=1)
    compared = jaxrec.transfer.compare(
        fitted, rated_parts.train, rows, loss="bpr", epochs=1, batch_size=256, progress=False
    )
    assert compared.metric == "ndcg@10"
    touched = pd.DataFrame({"user": -5, "item": fitted.encoder.items.ids[:3], "time": 0})
    liked, disliked = (
        coldstart.add(fitted, interactions=touched.assign(rating=rating)) for rating in (5.0, 1.0)
    )  # that somebody touched an item is all that these vectors know
    pair = touched[["user", "item"]]
    assert jaxrec.predict(liked, pair).mean() > jaxrec.predict(fitted, pair).mean()
    np.testing.assert_array_equal(jaxrec.predict(liked, pair), jaxrec.predict(disliked, pair))


def test_many_exact_values_recover_the_vector():
    errors, prior, vectors, *_ = problem()
    truth = RNG.normal(size=(BATCH, DIM)).astype(np.float32)
    touched = RNG.normal(size=(BATCH, 60, DIM)).astype(np.float32)
    values = np.einsum("bld,bd->bl", touched, truth).astype(np.float32)
    folded = coldstart.fold_in_values(vectors, prior, touched, np.ones((BATCH, 60), np.float32), values, noise=1e-3)
    np.testing.assert_allclose(folded, truth, atol=1e-2)


def test_a_coordinate_that_never_varied_stays():
    errors = np.concatenate([RNG.normal(size=(30, 2)), np.zeros((30, 1))], axis=1)
    prior = coldstart.prepare(errors, RNG.normal(size=(20, 3)), np.full(20, 1 / 20))
    vectors = np.ones((1, 3), np.float32)
    folded = coldstart.fold_in(
        vectors, prior, RNG.normal(size=(1, 4, 3)).astype(np.float32), np.ones((1, 4), np.float32)
    )
    assert folded[0, 2] == pytest.approx(1.0, abs=1e-6) and not np.allclose(folded[0, :2], 1.0)


@pytest.mark.parametrize("name", ["towers", "factorization"])
def test_vectors_of_the_catalogue_are_carried_over_when_items_are_added(request, world, name):
    recommender = request.getfixturevalue(name)
    _ = recommender.catalogue
    changed = world.target.items.tail(1).assign(**{world.target.schema.item: world.target.items.iloc[0]["item"]})
    frames = [world.target.items.head(2).assign(item=["new-a", "new-b"]), changed]
    for items in (*frames, pd.concat(frames)):
        grown = coldstart.add(recommender, items=items)
        assert "catalogue" in grown.__dict__
        anew = dataclasses.replace(grown)  # which carries nothing over
        np.testing.assert_allclose(grown.catalogue, anew.catalogue, rtol=1e-5, atol=1e-6)
    moved = np.abs(np.asarray(grown.catalogue) - np.asarray(recommender.catalogue)).sum(axis=1) > 1e-6
    assert moved.any() == (name == "towers")  # a factorization does not read what items are
    alone = coldstart.add(recommender, users=[10**7])
    assert alone.catalogue is recommender.catalogue


@pytest.mark.parametrize("name", ["towers", "factorization"])
def test_vectors_of_the_catalogue_are_carried_over_when_interactions_are_added(request, name):
    recommender = request.getfixturevalue(name)
    _ = recommender.catalogue
    users, item = recommender.encoder.users.ids[:3].tolist(), recommender.encoder.items.ids[0]
    for items in (["new-a", "new-b", item], ["new-b", item, item]):  # the second time one is known and not trained
        rows = pd.DataFrame({"user": users, "item": items, "time": 0})
        recommender = coldstart.add(recommender, interactions=rows)
        assert "catalogue" in recommender.__dict__
        anew = dataclasses.replace(recommender)  # which carries nothing over
        np.testing.assert_allclose(recommender.catalogue, anew.catalogue, rtol=1e-5, atol=1e-6)


def test_vectors_of_folded_items_follow_what_is_said_of_their_users_items(parts, world):
    """A user's vector is pooled from the history, and a new item's is folded in from its users'."""
    model = models.TwoTower.for_data(parts.train, dim=4, hidden=(), code_dim=2, history=5)
    seen, encoder = parts.train.interactions, parts.train.encoder
    recommender = jaxrec.train.Recommender(model, shaken(model.init(jax.random.key(0))), encoder, seen, len(seen))
    user = int(seen.user[0])
    read = encoder.items.decode(seen.item[seen.user == user][-1:])
    rows = pd.DataFrame({"user": encoder.users.decode(np.array([user])), "item": ["new"], "time": 0})
    touched = coldstart.add(recommender, interactions=rows)
    _ = touched.catalogue
    frame = world.target.items[~world.target.items["item"].isin(read)].head(1).assign(item=read)
    grown = coldstart.add(touched, items=frame)
    anew = dataclasses.replace(grown)  # which carries nothing over
    anew.__dict__["prior"] = grown.prior  # but what interactions are folded in by, measured when they came
    new = grown.encoder.items.encode(["new"])[0]
    np.testing.assert_allclose(grown.catalogue, anew.catalogue, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(grown.catalogue)[new] - np.asarray(touched.catalogue)[new]).max() > 1e-3


def test_a_few_rows_are_added_without_grouping_all_again(monkeypatch):
    rng = np.random.default_rng(0)
    many, few = (
        data.Interactions(rng.integers(1, users, rows).astype(np.int32), np.ones(rows, np.int32), users, 2)
        for users, rows in ((10, 60), (14, 9))
    )
    assert len(many.order)
    both = many.append(few)
    assert "order" in both.__dict__
    np.testing.assert_array_equal(both.order, np.argsort(both.user, kind="stable"))
    assert "order" not in few.append(many).__dict__


def test_adding_leaves_the_recommender_as_it_was(factorization):
    before = factorization.encoder, len(factorization.seen)
    touched = pd.DataFrame({"user": [42, 43], "item": ["film-00001", "brand-new"], "time": [0, 1]})
    added = coldstart.add(factorization, interactions=touched)
    assert (factorization.encoder, len(factorization.seen)) == before
    assert len(added.seen) == before[1] + 2 and added.num_trained == factorization.num_trained
    assert 42 in added.encoder.users and "brand-new" in added.encoder.items
    assert added.params is factorization.params and added.prior is factorization.prior
    assert "2 of 2" not in repr(added) and "Recommender(MatrixFactorization" in repr(added)


def test_empty_frames_add_nothing(factorization, world):
    frames = {"users": world.target.users[:0], "items": world.target.items[:0]}
    grown = coldstart.add(factorization, **frames, interactions=world.target.interactions[:0])
    assert grown.encoder is factorization.encoder and len(grown.seen) == len(factorization.seen)
    assert jaxrec.recommend(factorization, new_users=frames["users"]).empty
    pd.testing.assert_frame_equal(
        jaxrec.recommend(factorization, k=2, interactions=world.target.interactions[:0]),
        jaxrec.recommend(factorization, k=2),
    )


def test_new_items_are_folded_in_from_their_users(factorization, world):
    """Users who share a taste pull a new item towards it; items that were trained stay."""
    truth = world.target_truth
    fans = truth.users.ids[np.argsort(-truth.user_factors[:, 0])[:12]]
    known = [user for user in fans.tolist() if factorization.encoder.features.user_row[
        factorization.encoder.users.encode([user])[0]] > 0]  # fmt: skip
    touched = pd.DataFrame({"user": known, "item": "brand-new", "time": 0})
    added = coldstart.add(factorization, interactions=touched)
    pairs = pd.DataFrame({"user": known, "item": "brand-new"})
    others = [user for user in factorization.encoder.users.ids.tolist() if user not in known][:60]
    theirs = pd.DataFrame({"user": others, "item": "brand-new"})
    cold = coldstart.add(factorization, items=["brand-new"])
    gain = jaxrec.predict(added, pairs).mean() - jaxrec.predict(cold, pairs).mean()
    assert gain > jaxrec.predict(added, theirs).mean() - jaxrec.predict(cold, theirs).mean()
    old = theirs.assign(item="film-00001")
    np.testing.assert_allclose(jaxrec.predict(added, old), jaxrec.predict(cold, old), rtol=1e-5)


def test_a_new_item_is_folded_in_once_for_all_its_users(factorization, monkeypatch):
    users = factorization.encoder.users.ids[:20].tolist()
    touched = pd.DataFrame({"user": users * 3, "item": np.repeat(["new-a", "new-b", "new-c"], 20), "time": 0}).iloc[5:]
    added, asked, original = coldstart.add(factorization, interactions=touched), [], _vectors.item_vectors
    index = added.encoder.users.encode(users)
    alone = [_vectors.user_vectors(added, index[place : place + 1]) for place in range(len(index))]
    monkeypatch.setattr(
        _vectors, "item_vectors", lambda model, items: asked.append(items.size) or original(model, items)
    )
    together = _vectors.user_vectors(added, index)
    assert asked == [4]  # three, in a power of two
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("numbers", [1, 100])
def test_folding_in_a_few_at_a_time_changes_nothing(factorization, monkeypatch, numbers):
    users = factorization.encoder.users.ids[:9].tolist()
    pairs = [(user, f"new-{item}", item) for item in range(5) for user in users[item:]]
    added = coldstart.add(factorization, interactions=pd.DataFrame(pairs, columns=["user", "item", "time"]))
    whole = jaxrec.recommend(added, users, k=5)
    monkeypatch.setattr(_vectors, "_GRID", numbers)
    pd.testing.assert_frame_equal(jaxrec.recommend(added.replace(), users, k=5), whole, atol=1e-5)


def test_fold_in_helps_new_users_on_average(world):
    """The more of a new user's interactions are known, the better the ranking of the others."""
    from conftest import encoded

    from jaxrec import data, models

    rich = data.generate(seed=3, source_users=20, shared_users=0.0, source_items=20, target_users=500, target_items=80,
                         target_interactions=25.0)  # fmt: skip
    parts = encoded(rich.target, data.split_cold_users)
    frames = data.split_cold_users(rich.target.interactions, rich.target.schema, validation=0.15, test=0.15, seed=0)
    recommender = jaxrec.fit(
        models.MatrixFactorization.for_data(parts.train, dim=8), parts.train, epochs=30, batch_size=256
    )
    place = frames.test.groupby("user").cumcount()
    first, later = frames.test[place < 8], frames.test[place >= 8]
    values = []
    for shots in (0, 2, 8):
        known = coldstart.add(recommender, interactions=first[place[first.index] < shots]) if shots else recommender
        values.append(jaxrec.evaluate(known, later, exclude=first, ks=(10,), draws=1)["ndcg@10"])
    assert values[0] < values[1] < values[2]


def test_bad_interactions_are_refused_before_anything_is_added(factorization, rated_parts):
    with pytest.raises(ValueError, match="lacks the column 'time'"):
        coldstart.add(factorization, interactions=pd.DataFrame({"user": [1], "item": ["film-00001"]}))
    with pytest.raises(TypeError, match="Expected ids of type int.*got str"):
        coldstart.add(factorization, users=["somebody"])
    rated = jaxrec.coldstart.popularity(rated_parts.train)
    with pytest.raises(ValueError, match="Expected finite numbers in the target column 'rating'"):
        coldstart.add(rated, interactions=pd.DataFrame(
            {"user": [1], "item": ["film-00001"], "time": [0], "rating": [float("nan")]}
        ))  # fmt: skip


def test_folding_in_compiles_once_for_any_numbers():
    _, prior, vectors, touched, mask, _ = problem()
    coldstart.fold_in(vectors, prior, touched, mask)
    before = coldstart.fold_in._cache_size()
    coldstart.fold_in(vectors + 1, jax.tree.map(lambda x: x * 2, prior), touched, mask)
    assert coldstart.fold_in._cache_size() == before
    assert jnp.isfinite(coldstart.fold_in(vectors, prior, touched, mask)).all()


def test_what_orders_items_of_rated_data_says_so(rated_parts, rated_world):
    train = rated_parts.train
    often = coldstart.popularity(train)
    assert often.link == "rank" and "ndcg@10" in set(jaxrec.evaluate(often, rated_parts.test, draws=10).table.metric)
    model = models.MatrixFactorization.for_data(train, dim=4)
    options = {"epochs": 1, "batch_size": 256}
    ranked, rated = (jaxrec.fit(model, train, loss=loss, **options) for loss in ("bpr", "mse"))
    assert coldstart.mix([ranked, often], [[1.0] * 3] * 2).link == "rank"
    assert coldstart.or_popular(rated, train).link == "identity" and coldstart.or_popular(ranked, train).link == "rank"
    with pytest.raises(ValueError, match="same training data and link"):
        coldstart.mix([rated, often], [[1.0] * 3] * 2)
    assert jaxrec.transfer.blend([ranked, ranked], [1.0, 1.0]).link == "rank"
    by_function = jaxrec.fit(model, train, loss=losses.on_batch("bpr"), negatives=data.Negatives(num=1), **options)
    assert by_function.link == "rank"
    with pytest.raises(ValueError, match="Say which loss to train by"):
        coldstart.heater(ranked, train, experts=2, **options)
    found = jaxrec.sources.rank({"ranked": ranked}, data.encode(
        data.Parts(rated_world.target.interactions, None, None), rated_world.target.schema,
        users=rated_world.target.users, items=rated_world.target.items).train, epochs=1)  # fmt: skip
    assert not any("no trial" in note for note in found.notes.values())


def test_weights_are_kept_beside_rows_that_have_none():
    one = data.Interactions(np.ones(2, np.int32), np.ones(2, np.int32), 3, 3)
    two = dataclasses.replace(one, weight=np.full(2, 5.0, np.float32))
    assert one.append(one).weight is None
    assert one.append(two).weight.tolist() == [1, 1, 5, 5] and two.append(one).weight.tolist() == [5, 5, 1, 1]


@pytest.mark.parametrize("kind", [models.FactorizationMachine, models.Linear])
def test_interactions_are_added_to_a_model_that_reads_context(kind, rated_world, tmp_path):
    """They count as seen; somebody new has no vector of their own to be folded in."""
    frame = rated_world.target.interactions.iloc[:1500]
    frame = frame.assign(price=np.arange(len(frame)) % 7)
    schema = data.Schema(target="rating", context=(data.Numeric("price"),))
    train = data.encode(data.Parts(frame, None, None), schema).train
    recommender = jaxrec.fit(kind.for_data(train), train, epochs=1)
    _ = recommender.catalogue
    rows = frame.iloc[:4].assign(user=[-7, -7, *frame["user"].iloc[:2]], item=["premiere", *frame["item"].iloc[:3]])
    grown = coldstart.add(recommender, interactions=rows)
    assert len(grown.added) == 4
    known = coldstart.add(recommender, users=[-7], items=["premiere"])
    expected = jaxrec.predict(known, rows)
    np.testing.assert_array_equal(jaxrec.predict(grown, rows), expected)
    np.testing.assert_array_equal(dataclasses.replace(grown).catalogue, known.catalogue)
    if kind is models.FactorizationMachine:
        assert len(jaxrec.ranking.similar_items(dataclasses.replace(grown), ["premiere"], k=2)) == 2
    jaxrec.export.write_artefact(dataclasses.replace(grown), tmp_path / "artefact")
    served = jaxrec.export.load_artefact(tmp_path / "artefact")
    scores = served.score(rows["user"], rows["item"], context=rows[["price"]])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_histories_are_read_by_few_users_at_a_time(rated_parts, parts, monkeypatch):
    model = models.TwoTower.for_data(rated_parts.train, dim=4, hidden=(8,), code_dim=2, history=4)
    fitted = jaxrec.fit(model, rated_parts.train, epochs=1)
    users, items = fitted.encoder.users.ids, fitted.encoder.items.ids
    rows = pd.DataFrame({"user": users[:20], "item": "brand-new", "rating": 4.0, "time": 0})
    pairs = pd.DataFrame({"user": users[:30], "item": items[:30]})
    knn = jaxrec.train.fit_item_knn(parts.train)
    known = pd.DataFrame({"user": knn.encoder.users.ids[:30], "item": knn.encoder.items.ids[:30]})

    def found():
        grown = coldstart.add(fitted.replace(), interactions=rows)
        measured = [each for side in grown.prior[:2] for each in (side.met, side.root, side.curvature)]
        figures = grown.prior.noise, jaxrec.predict(grown, pairs), jaxrec.predict(knn, known)
        return [grown.catalogue, *measured, *figures]

    whole, sizes = found(), []

    def watched(module, name):
        original = getattr(module, name)

        def call(model, params, batch, features):
            sizes.append(len(batch.history))
            return original(model, params, batch, features)

        monkeypatch.setattr(module, name, call)

    for module, name in ((_vectors, "_user_vectors"), (_vectors, "apply"), (_recommend, "apply")):
        watched(module, name)
    long = fitted.replace(model=dataclasses.replace(model, history=200))
    assert _vectors._FEWEST <= _vectors.pairs_at_once(long) <= 256 < _vectors.pairs_at_once(fitted)
    monkeypatch.setattr(_vectors, "_ROWS", 64)
    monkeypatch.setattr(_vectors, "_FEWEST", 8)
    for ours, theirs in zip(found(), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(sizes) > 50 and set(sizes) == {8}
