"""Methods across domains: what each is by definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import FEATURES, batch_of
from helpers import refuses

import jaxrec
from jaxrec import coldstart, data, models, optim, sources, train, transfer
from jaxrec.models import _base
from jaxrec.ranking._vectors import item_vectors, user_vectors
from jaxrec.transfer._regress import regressed


@pytest.fixture(scope="module")
def domains() -> dict[str, data.Frames]:
    """Two domains of bare ids, with the numbers of items overlapping and two thirds of the users shared."""
    world = data.generate(
        seed=3, transferable=0.95, source_users=240, target_users=180, shared_users=0.8, source_items=50,
        target_items=40, source_interactions=15.0, target_interactions=8.0,
    )  # fmt: skip

    def bare(frames: data.Frames) -> data.Frames:
        number = {item: at for at, item in enumerate(sorted(frames.interactions["item"].unique()))}
        rows = frames.interactions[["user", "item"]]
        return data.Frames(rows.assign(item=rows["item"].map(number)), None, None, data.Schema())

    return {"books": bare(world.source), "films": bare(world.target)}


@pytest.fixture(scope="module")
def cold(domains) -> np.ndarray:
    """Shared users whose films are held out."""
    shared = np.intersect1d(domains["books"].interactions["user"], domains["films"].interactions["user"])
    return shared[::4]


@pytest.fixture(scope="module")
def films(domains, cold) -> data.Frames:
    rows = domains["films"].interactions
    return domains["films"]._replace(interactions=rows[~rows["user"].isin(cold)])


def encoded(frames: data.Frames) -> data.Dataset:
    parts = data.Parts(frames.interactions, None, None)
    return data.encode(parts, frames.schema, users=frames.users, items=frames.items).train


@pytest.fixture(scope="module")
def source(domains) -> train.Recommender:
    return train.fit_als(encoded(domains["books"]), dim=6, epochs=6, l2=0.003)


@pytest.fixture(scope="module")
def target(films) -> train.Recommender:
    return train.fit_als(encoded(films), dim=5, epochs=6, l2=0.003)


def vectors(recommender: train.Recommender, ids: np.ndarray) -> np.ndarray:
    return np.asarray(user_vectors(recommender, recommender.encoder.users.encode(ids)))


def shared_ids(source, target) -> np.ndarray:
    ids = [each.encoder.users.decode(np.flatnonzero(each.trained.user_count)) for each in (source, target)]
    return np.intersect1d(*ids)


@pytest.mark.parametrize("method", ["emcdr", "ptupcdr", "blend"])
def test_what_was_added_before_is_folded_in_once(source, target, method):
    def of(target):
        if method == "blend":
            return transfer.blend([target], [1.0])
        options = {"epochs": 1, "progress": False} if method == "ptupcdr" else {}
        return getattr(transfer, method)(source, target, **options)

    user = shared_ids(source, target)[:1]
    items = target.encoder.items.ids[:12]
    added = pd.DataFrame({"user": np.repeat(user, len(items)), "item": items})
    before, after = of(coldstart.add(target, interactions=added)), coldstart.add(of(target), interactions=added)
    np.testing.assert_allclose(vectors(before, user), vectors(after, user), rtol=1e-4, atol=1e-5)
    if method != "blend":  # and as the target itself does it
        own = coldstart.add(target, interactions=added)
        np.testing.assert_allclose(vectors(after, user), vectors(own, user), rtol=1e-4, atol=1e-5)


def test_bridges_need_a_target_of_its_own(source, target):
    blended = transfer.blend([target, transfer.emcdr(source, target)], [1.0, 1.0])
    with refuses(ValueError, "users and 0 items of the target have a table row and no training interaction"):
        transfer.emcdr(source, blended)


class TestStack:
    def test_items_are_apart_and_users_are_not(self, domains):
        stacked = transfer.stack(domains)
        rows = stacked.interactions
        assert len(rows) == sum(len(each.interactions) for each in domains.values())
        assert rows["item"].iloc[0] == f"books/{domains['books'].interactions['item'].iloc[0]}"
        assert rows["item"].nunique() == sum(each.interactions["item"].nunique() for each in domains.values())
        assert set(rows["user"]) == set(domains["books"].interactions["user"]) | set(
            domains["films"].interactions["user"]
        )
        assert stacked.schema.item_features == (data.Categorical("domain"),)
        assert (stacked.items["domain"] == stacked.items["item"].str.split("/").str[0]).all()

    def test_ids_that_could_never_match_are_refused(self, domains, films):
        items = pd.DataFrame({"item": films.interactions["item"].unique().astype(str)})
        with refuses(TypeError, "Expected ids of one type, got a mixture of int, str"):
            transfer.stack({**domains, "films": films._replace(items=items)})

    def test_by_users(self, domains):
        stacked = transfer.stack(domains, side="user")
        assert stacked.interactions["user"].iloc[-1].startswith("films/")
        assert stacked.users["domain"].nunique() == 2
        assert stacked.interactions["item"].iloc[0] == domains["books"].interactions["item"].iloc[0]

    def test_weights(self, domains):
        stacked = transfer.stack(domains, weight={"books": 0.25, "films": 1.0})
        assert stacked.schema.weight == "weight"
        expected = np.where(stacked.interactions["item"].str.startswith("books/"), 0.25, 1.0)
        np.testing.assert_array_equal(stacked.interactions["weight"], expected)
        own = {
            name: frames._replace(interactions=frames.interactions.assign(w=2.0), schema=data.Schema(weight="w"))
            for name, frames in domains.items()
        }
        twice = transfer.stack(own, weight={"books": 0.25, "films": 1.0})
        np.testing.assert_array_equal(twice.interactions["w"], 2 * expected)

    def test_a_model_of_the_stack_serves_users_from_the_other_domain(self, domains, films, cold):
        recommender = train.fit_ease(encoded(transfer.stack({**domains, "films": films})), l2=50.0)
        held_out = domains["films"].interactions
        held_out = held_out[held_out["user"].isin(cold)]
        test = transfer.stack({"films": films._replace(interactions=held_out)})
        candidates = transfer.stack({"films": films}).interactions["item"].unique()
        report = jaxrec.evaluate(recommender, test.interactions, ks=(5,), candidates=candidates)
        chance = 5 / len(candidates)
        assert report["recall@5"] > 1.5 * chance

    def test_errors(self, domains):
        with refuses(ValueError, "at least one domain"):
            transfer.stack({})
        with refuses(ValueError, "without '/', got 'a/b'"):
            transfer.stack({"a/b": domains["books"]})
        with refuses(ValueError, "one schema"):
            other = domains["films"]._replace(schema=data.Schema(time="time"))
            transfer.stack({"books": domains["books"], "films": other})
        with refuses(ValueError, "a weight >= 0 for each of books, films"):
            transfer.stack(domains, weight={"books": 1.0})
        with refuses(ValueError, "nothing to learn from"):
            transfer.stack(domains, weight={"books": 0.0, "films": 0.0})
        missing = domains["books"].interactions.assign(item=None)
        with refuses(ValueError, "in the column 'item' are missing"):
            transfer.stack({"books": domains["books"]._replace(interactions=missing)})
        own = data.Frames(missing.assign(item=1), None, None, data.Schema(item_features=(data.Categorical("domain"),)))
        with refuses(ValueError, "a feature 'domain' of its own"):
            transfer.stack({"books": own})
        with refuses(ValueError, "users and items"):
            transfer.stack({"books": domains["books"]._replace(schema=data.Schema(user=None))})


class TestBridges:
    def test_linear_emcdr_is_the_ridge_of_shared_users(self, source, target, cold):
        """By the normal equations, on the users trained in both."""
        found = transfer.emcdr(source, target, l2=3.0)
        shared = shared_ids(source, target)
        x, y = vectors(source, shared).astype(np.float64), vectors(target, shared).astype(np.float64)
        mean = x.mean(axis=0)
        x = (x - mean) / np.sqrt(np.square(x - mean).mean())
        y_mean = y.mean(axis=0)
        kernel = np.linalg.solve(x.T @ x + 3.0 * np.eye(x.shape[1]), x.T @ (y - y_mean))
        new = vectors(source, cold).astype(np.float64)
        old = vectors(source, shared).astype(np.float64)
        new = (new - mean) / np.sqrt(np.square(old - mean).mean())
        np.testing.assert_allclose(vectors(found, cold), new @ kernel + y_mean, atol=2e-5)
        np.testing.assert_array_equal(vectors(found, shared), vectors(target, shared))

    @pytest.mark.parametrize("kind", ["linear", "mlp"])
    def test_emcdr_beats_knowing_nothing(self, domains, films, source, target, cold, kind):
        options = {} if kind == "linear" else {"hidden": (16,), "epochs": 20, "batch_size": 32}
        found = transfer.emcdr(source, target, kind=kind, **options)
        held_out = domains["films"].interactions
        held_out = held_out[held_out["user"].isin(cold)]
        value, nothing = (jaxrec.evaluate(each, held_out, ks=(5,))["ndcg@5"] for each in (found, target))
        assert value > 1.1 * nothing

    def test_emcdr_is_stopped_on_users_whom_it_maps(self, domains, films, source, target, cold):
        options = {"kind": "mlp", "hidden": (8,), "epochs": 2, "batch_size": 32}
        warm = target.encoder.encode(films.interactions.iloc[:30])
        with refuses(ValueError, "nobody whom the map serves, no user .*a vector of the source.*split_cold_users"):
            transfer.emcdr(source, target, validation=warm, **options)
        rows = domains["films"].interactions
        both = data.encode(data.Parts(films.interactions, rows[rows["user"].isin(cold)], None), films.schema)
        alone = train.fit_als(both.train, dim=4, epochs=2)
        assert transfer.emcdr(source, alone, validation=both.validation, **options).history["ndcg@10"].nunique() == 2

    def test_the_bridge_of_ptupcdr_depends_on_the_history(self, domains, source, target, cold):
        options = {"epochs": 3, "batch_size": 64, "optimizer": optim.row_sparse(optax.adam(3e-3))}
        found = transfer.ptupcdr(source, target, hidden=(8,), **options)
        index = found.encoder.users.encode(cold)
        kept = found.encoder.features
        width = kept.user_dense.shape[1] // 2
        other = kept.user_dense.copy()
        other[index, width:] = other[index[::-1], width:]  # the same vectors, others' histories

        def of(dense):
            features = kept._replace(user_dense=jnp.asarray(dense))
            return np.asarray(found.model.user_vectors(found.params, found.batch(index), features))

        assert np.abs(of(other) - of(kept.user_dense)).max() > 1e-3
        shared = shared_ids(source, target)
        np.testing.assert_array_equal(vectors(found, shared), vectors(target, shared))
        items = np.arange(1, 20, dtype=np.int32)
        np.testing.assert_array_equal(item_vectors(found, items), item_vectors(target, items))
        untouched = transfer.ptupcdr(source, target, hidden=(8,), epochs=1, optimizer=optax.sgd(0.0))
        np.testing.assert_allclose(vectors(untouched, cold), vectors(transfer.emcdr(source, target), cold), atol=1e-5)

    def test_what_is_carried(self, source, target, domains):
        frame = transfer.carry(source, taste=True)
        assert set(frame["user"]) == set(domains["books"].interactions["user"])
        np.testing.assert_allclose(np.stack(frame["source"]), vectors(source, frame["user"].to_numpy()), rtol=1e-6)
        user = frame["user"].iloc[3]
        rows = domains["books"].interactions
        touched = rows["item"][rows["user"] == user].unique()
        items = np.asarray(item_vectors(source, source.encoder.items.encode(touched)))
        np.testing.assert_allclose(frame["source taste"].iloc[3], items.mean(axis=0), rtol=1e-5, atol=1e-6)
        frame = transfer.carry(source, side="item", taste=True)
        assert set(frame["item"]) == set(rows["item"])
        item = frame["item"].iloc[3]
        known = np.asarray(item_vectors(source, source.encoder.items.encode([item])))
        np.testing.assert_allclose(frame["source"].iloc[3], known[0], rtol=1e-6)
        touching = rows["user"][rows["item"] == item].unique()
        np.testing.assert_allclose(
            frame["source taste"].iloc[3], vectors(source, touching).mean(axis=0), rtol=1e-5, atol=1e-6
        )

    def test_errors(self, source, target, domains):
        with refuses(ValueError, "side to be 'user', 'item'"):
            transfer.carry(source, side="both")  # pyright: ignore[reportArgumentType]
        neighbours = train.fit_item_knn(encoded(domains["books"]))
        with refuses(ValueError, "a source whose scores are inner products"):
            transfer.emcdr(neighbours, target)
        with refuses(ValueError, "kind to be 'linear', 'mlp'"):
            transfer.emcdr(source, target, kind="cubic")  # pyright: ignore[reportArgumentType]
        rows = domains["films"].interactions
        strangers = rows.assign(user=rows["user"] + 10**6)
        alone = train.fit_als(encoded(domains["films"]._replace(interactions=strangers)), dim=2, epochs=1)
        with refuses(ValueError, "No user was trained in both"):
            transfer.emcdr(source, alone)
        named = train.fit_als(
            encoded(domains["films"]._replace(interactions=rows.assign(user=rows["user"].astype(str)))), dim=2, epochs=1
        )
        with refuses(ValueError, "can never match"):
            transfer.emcdr(source, named)


@pytest.mark.parametrize(("shared", "message"), [(0, "No user was trained in both"), (1, "Only one user was trained")])
def test_domains_need_users_in_both(domains, films, source, shared, message):
    rows = films.interactions
    of_both = np.intersect1d(rows["user"], domains["books"].interactions["user"])[:shared]
    apart = films._replace(
        interactions=rows.assign(user=rows["user"].where(rows["user"].isin(of_both), -rows["user"] - 1))
    )
    with refuses(ValueError, f"{message}.*learned on two or more who are in both"):
        transfer.emcdr(source, train.fit_als(encoded(apart), dim=2, epochs=1))
    with refuses(ValueError, f"{message}.*learned on two or more who are in both"):
        transfer.regress(encoded(domains["books"]), encoded(apart))


def test_a_source_of_one_number_is_carried(domains, target, cold):
    thin = train.fit_als(encoded(domains["books"]), dim=1, epochs=2)
    found = vectors(transfer.emcdr(thin, target), cold)
    number = np.concatenate([vectors(thin, cold), np.ones((len(cold), 1))], axis=1)
    line = np.linalg.lstsq(number, found, rcond=None)[0]
    np.testing.assert_allclose(number @ line, found, atol=1e-5)
    assert np.abs(line[0]).max() > 1e-3


class TestRegression:
    def test_it_is_the_ridge_on_histories(self, domains, films, cold):
        """With as many dimensions as there are items it is the ridge on TF-IDF itself."""
        books, there = encoded(domains["books"]), encoded(films)
        width = books.interactions.item_count.astype(bool).sum()
        found = transfer.regress(books, there, dim=int(width), l2=2.0)
        histories = table(domains["books"])
        shared = np.intersect1d(histories.index, films.interactions["user"])
        count = (histories.loc[shared] > 0).sum().to_numpy()
        x = histories * np.where(count, np.log((1 + len(shared)) / (1 + count)) + 1, 0.0)[None, :]
        x = x / np.sqrt(np.square(x).sum(axis=1).to_numpy())[:, None]
        y = table(films).loc[shared]
        centred = x.loc[shared] - x.loc[shared].mean()
        kernel = np.linalg.solve(centred.T @ centred + 2.0 * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
        expected = (x.loc[cold] - x.loc[shared].mean()).to_numpy() @ kernel + y.mean().to_numpy()[None, :]
        items = item_vectors(found, found.encoder.items.encode(y.columns))
        np.testing.assert_allclose(vectors(found, cold) @ np.asarray(items).T, expected, atol=1e-5)
        unknown = np.asarray(user_vectors(found, np.zeros(1, np.int32))) @ np.asarray(items).T
        np.testing.assert_allclose(unknown[0], y.mean(), atol=1e-5)
        wide = transfer.resize(found, found.model.dim + 2)
        nobody = np.arange(len(wide.encoder.users) + 1, dtype=np.int32)[[0, -1]]
        everything = np.arange(len(wide.encoder.items) + 1, dtype=np.int32)  # 0 and those without a row as well
        before, after = (
            np.asarray(user_vectors(each, nobody)) @ np.asarray(item_vectors(each, everything)).T
            for each in (found, wide)
        )
        np.testing.assert_allclose(after, before, atol=1e-5)

    def test_the_width_follows_what_is_shared(self, domains, films):
        books, there = encoded(domains["books"]), encoded(films)
        shared = there.encoder.users.encode(books.encoder.users.decode(books.user)) > 0
        touched = len(np.unique(books.item[shared]))
        model = transfer.regress(books, there, l2=2.0).model
        assert isinstance(model, models.MatrixFactorization) and model.dim == touched // 2 < 256
        assert regressed(books, there, l2=2.0, most=4).model.dim == 4

    def test_a_blend_is_the_sum_of_scores(self, domains, films, source, target, cold):
        parts = [transfer.emcdr(source, target), transfer.regress(encoded(domains["books"]), encoded(films), dim=20)]
        found = transfer.blend(parts, [1.0, 0.25])
        items = np.sort(films.interactions["item"].unique())
        users = np.concatenate([cold, films.interactions["user"].unique()[:5]])
        known = np.unique(np.concatenate([domains["books"].interactions["user"], films.interactions["user"]]))
        newcomers = np.setdiff1d(known, films.interactions["user"])
        expected = 0.0
        for part, weight in zip(parts, (1.0, 0.25), strict=True):
            of = [np.asarray(vectors(part, ids)) for ids in (users, newcomers)]
            scores = [each @ np.asarray(item_vectors(part, part.encoder.items.encode(items))).T for each in of]
            expected = expected + weight * scores[0] / scores[1].std()
        blended = vectors(found, users) @ np.asarray(item_vectors(found, found.encoder.items.encode(items))).T
        np.testing.assert_allclose(blended, expected, rtol=1e-3, atol=1e-3)
        held_out = domains["films"].interactions
        held_out = held_out[held_out["user"].isin(cold)]
        nothing = jaxrec.evaluate(target, held_out, ks=(5,))["ndcg@5"]
        for each in (found, parts[1]):  # who know them already
            assert jaxrec.evaluate(each, each.encoder.encode(held_out), ks=(5,))["ndcg@5"] > 1.1 * nothing

    def test_errors(self, domains, films, source, target):
        books, there = encoded(domains["books"]), encoded(films)
        with refuses(ValueError, "Expected 1 <= dim < "):
            transfer.regress(books, there, dim=1000)
        with refuses(ValueError, "Expected l2 > 0"):
            transfer.regress(books, there, dim=4, l2=0.0)
        with refuses(ValueError, "The source has no users or no items. Name both columns"):
            transfer.regress(dataclasses.replace(books, user=None), there)
        named = films._replace(interactions=films.interactions.astype({"user": str}))
        with refuses(ValueError, "No user is shared: ids .* of different types. Convert one column"):
            transfer.regress(books, encoded(named))
        with refuses(ValueError, "at least one recommender"):
            transfer.blend([], [])
        with refuses(ValueError, "a finite weight for each of 1"):
            transfer.blend([target], [1.0, 2.0])
        with refuses(ValueError, "coldstart.mix takes any"):
            transfer.blend([train.fit_item_knn(there)], [1.0])
        with refuses(ValueError, "are not trained in"):
            transfer.blend([source, target], [1.0, 1.0])


def test_blending_keeps_what_content_says_of_new_items(world):
    films = world.target
    known = films.interactions[films.interactions["item"] != films.items["item"].iloc[0]]
    rows = data.encode(data.Parts(known, None, None), films.schema, users=films.users, items=films.items).train
    parts = [train.fit_als(rows, dim=dim, epochs=4, content=True) for dim in (3, 4)]
    blended = transfer.blend(parts, [1.0, 0.0])
    user = known["user"].iloc[0]
    pairs = pd.DataFrame({"user": user, "item": films.items["item"].iloc[:12], "time": 0})
    expected, found = jaxrec.predict(parts[0], pairs), jaxrec.predict(blended, pairs)
    np.testing.assert_allclose(found / found[1], expected / expected[1], rtol=1e-3, atol=1e-4)
    assert np.ptp(jaxrec.predict(transfer.blend(parts, [1.0, 1.0]), pairs)) > 0


def test_bridges_weigh_rows_as_the_target_does(domains, films, source):
    rows = films.interactions.assign(weight=np.linspace(0.5, 2.0, len(films.interactions)))
    weighed = train.fit_als(encoded(data.Frames(rows, None, None, data.Schema(weight="weight"))), dim=4, epochs=2)
    _, bridged = transfer._carry.carried(source, weighed)
    np.testing.assert_array_equal(bridged.weight, weighed.trained.weight)


def test_vectors_do_not_take_the_place_of_ids(films):
    rows = films.interactions.rename(columns={"user": "source"})
    named = train.fit_als(encoded(data.Frames(rows, None, None, data.Schema(user="source"))), dim=2, epochs=1)
    with refuses(ValueError, "column of ids is called 'source', as the vectors will be"):
        transfer.carry(named)


def test_who_reads_the_interaction_has_no_vector_alone(films, source):
    rows = films.interactions.assign(price=np.arange(len(films.interactions)) % 5 * 1.0)
    schema = data.Schema(context=(data.Numeric("price"),))
    priced = encoded(data.Frames(rows, None, None, schema))
    machine = jaxrec.fit(models.FactorizationMachine.for_data(priced, dim=2), priced, epochs=1, progress=False)
    for wrong in (
        lambda: transfer.carry(machine),
        lambda: transfer.blend([machine], [1.0]),
        lambda: transfer.emcdr(source, machine),
        lambda: transfer.ptupcdr(source, machine),
    ):
        with refuses(ValueError, "so that a user alone has no vector and no list of items. Train it without them"):
            wrong()
    ranked = sources.rank({"machine": machine}, encoded(films), dim=4, epochs=1)
    assert np.isfinite(ranked.table.drop(columns="verdict").to_numpy(float)).all()
    assert ranked.table["evidence"].item() == 0.0


def test_histories_that_all_have_are_reduced_to_what_they_span(films):
    here = encoded(films)
    users = here.encoder.users.ids[:12]
    same = pd.DataFrame({"user": np.repeat(users, 4), "item": np.tile(np.arange(4), 12)})
    there = encoded(data.Frames(same, None, None, data.Schema()))
    assert transfer.regress(there, here).model.dim == 1
    with refuses(ValueError, "could not be reduced to 2 numbers"):
        transfer.regress(there, here, dim=2)


def test_histories_are_read_again_only_to_be_reduced_further(films, monkeypatch):
    here = encoded(films)
    same = pd.DataFrame({"user": np.repeat(here.encoder.users.ids[:40], 16), "item": np.tile(np.arange(16), 40)})
    there = encoded(data.Frames(same, None, None, data.Schema()))
    widths, fit = [], data.TfidfSVD.fit

    def noted(frame, column, *, dim, **options):
        widths.append(dim)
        return fit(frame, column, dim=dim, **options)

    monkeypatch.setattr(data.TfidfSVD, "fit", noted)
    assert transfer.regress(there, here).model.dim == 1 and widths == [8, 1]
    monkeypatch.setattr("jaxrec.data._features._CODES", 100)
    with refuses(ValueError, "could not be reduced to 8 numbers: .*would be padded"):
        transfer.regress(there, here)
    assert widths == [8, 1, 8]


def test_a_stack_is_evaluated_without_weights(domains, films, cold):
    stack = transfer.stack({"books": domains["books"], "films": films}, weight={"books": 0.5, "films": 1.0})
    fitted = train.fit_als(encoded(stack), dim=4, epochs=2)
    held = domains["films"].interactions
    test = transfer.stack({"films": films._replace(interactions=held[held["user"].isin(cold)])})
    report = jaxrec.evaluate(fitted, test.interactions, ks=(10,), candidates=test.items["item"])
    assert report["ndcg@10"] > 0
    taken = data.Schema(context=(data.Numeric("weight"),))
    frames = films._replace(interactions=held.assign(weight=1.0), schema=taken)
    with refuses(ValueError, "reads a column 'weight' as something else"):
        transfer.stack({"films": frames}, weight={"films": 1.0})


@pytest.fixture(scope="module")
def stacked(domains, films) -> data.Dataset:
    """Books without a weight beside films."""
    return encoded(transfer.stack({"books": domains["books"], "films": films}, weight={"books": 0.0, "films": 1.0}))


class TestSharedSpecific:
    def fit(self, train, **options):
        model = models.SharedSpecific.for_data(train, dim=4, **options)
        return jaxrec.fit(model, train, batch_size=None, epochs=3, optimizer=optax.sgd(3.0), progress=False)

    def test_with_no_weight_of_the_source_it_is_the_target_alone(self, stacked):
        of_films = np.char.startswith(stacked.encoder.items.decode(stacked.item).astype(str), "films/")
        joint, alone = (self.fit(rows, specific=False) for rows in (stacked, stacked.subset(of_films)))
        for side, index in (("user", stacked.user[of_films]), ("item", stacked.item[of_films])):
            row = getattr(stacked.features, f"{side}_row")[np.unique(index)]
            found, expected = (np.asarray(each.params[side]["embedding"])[row] for each in (joint, alone))
            np.testing.assert_allclose(found, expected, atol=1e-5)
        start = alone.model.init(jax.random.split(jax.random.key(0))[0])["item"]["embedding"]
        assert np.abs(np.asarray(alone.params["item"]["embedding"] - start))[row].max() > 0.01
        weighed = self.fit(dataclasses.replace(stacked, weight=None), specific=False)
        assert np.abs(np.asarray(weighed.params["item"]["embedding"] - joint.params["item"]["embedding"])).max() > 0.01

    def test_a_newcomer_is_scored_by_the_shared_part(self, stacked, cold):
        found = self.fit(dataclasses.replace(stacked, weight=None))
        index = found.encoder.users.encode(cold)
        whole = np.asarray(user_vectors(found, index))
        code = {name: found.encoder.item_features[0].vocabulary.encode([name])[0] for name in ("books", "films")}
        parts = whole[:, 4:].reshape(len(cold), -1, 4)
        assert (parts[:, code["films"]] == 0).all()
        assert np.abs(parts[:, code["books"]]).max() > 0
        items = found.encoder.items.encode(["films/3"])
        shared = np.asarray(found.params["item"]["embedding"])[found.features.item_row[items]]
        np.testing.assert_allclose(
            whole @ np.asarray(item_vectors(found, items)).T, whole[:, :4] @ shared.T, rtol=1e-5, atol=1e-6
        )

    def test_a_domains_part_is_not_taken_for_anothers(self, domains, films):
        books, other = (
            encoded(transfer.stack({"films": films, name: domains["books"]})) for name in ("books", "games")
        )
        found = self.fit(books)
        with refuses(ValueError, "'user/specific' holds a part for each of the domains books, films .* films, games"):
            transfer.adapt(found, other, epochs=1)
        assert transfer.adapt(found, other, patterns="*/embedding", freeze="*").copied

    @pytest.mark.parametrize("cosine", [0.0, 0.6])
    def test_orthogonality_is_the_squared_cosine(self, cosine):
        model = models.SharedSpecific(user_rows=9, item_rows=7, dim=2, domains=3, orthogonality=2.0)
        params = model.init(jax.random.key(0))
        shared = jnp.tile(jnp.asarray([[3.0, 0.0]]), (9, 1))
        own = jnp.tile(jnp.asarray([[cosine, (1 - cosine**2) ** 0.5]]), (9, 3))
        params["user"] = {"embedding": shared, "specific": own}
        batch = batch_of()
        gathered = _base.gather(params, model.lookups(batch, FEATURES))
        found = model.score(params, gathered, batch, FEATURES, key=jax.random.key(1))
        np.testing.assert_allclose(found.penalty, 2.0 * cosine**2, atol=1e-6)

    def test_other_domains_do_not_compete(self):
        model = models.SharedSpecific(user_rows=9, item_rows=7, dim=2, domains=3)
        batch = batch_of()
        gathered = _base.gather(model.init(jax.random.key(0)), model.lookups(batch, FEATURES))
        scores = model.score({}, gathered, batch, FEATURES, key=jax.random.key(1)).scores
        domain = np.asarray(batch.item) % 3
        np.testing.assert_array_equal(np.asarray(scores[:, 1]) < -1e8, domain[:, 0] != domain[:, 1])
        assert (np.asarray(scores[:, 0]) > -1e8).all()

    def test_the_adversary_learns_and_the_shared_part_unlearns(self):
        model = models.SharedSpecific(user_rows=9, item_rows=7, dim=2, domains=3, adversarial=0.5)
        params = model.init(jax.random.key(0))
        params["classifier"]["kernel"] = jnp.asarray([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])
        batch = batch_of()
        gathered = _base.gather(params, model.lookups(batch, FEATURES))

        def penalty(users, classifier):
            given = {**gathered, "user": users}
            tree = {"classifier": classifier}
            return model.score(tree, given, batch, FEATURES, key=jax.random.key(1)).penalty

        def plain(users, classifier):
            logits = users @ classifier["kernel"] + classifier["bias"][None, :]
            own = jnp.asarray(np.asarray(batch.item)[:, 0] % 3)
            return 0.5 * optax.softmax_cross_entropy_with_integer_labels(logits, own).mean()

        found, expected = (
            jax.grad(each, argnums=(0, 1))(gathered["user"], params["classifier"]) for each in (penalty, plain)
        )
        np.testing.assert_allclose(found[0], -expected[0], atol=1e-6)
        np.testing.assert_allclose(found[1]["kernel"], expected[1]["kernel"], atol=1e-6)

    def test_errors(self, films):
        with refuses(ValueError, "no item feature 'domain'"):
            models.SharedSpecific.for_data(encoded(films))
        with refuses(ValueError, "Expected adversarial >= 0"):
            models.SharedSpecific(user_rows=2, item_rows=2, domains=3, adversarial=-1.0)
        with refuses(ValueError, "Leave specific=True"):
            models.SharedSpecific(user_rows=2, item_rows=2, domains=3, specific=False, orthogonality=1.0)
        with refuses(ValueError, "domains >= 2"):
            models.SharedSpecific(user_rows=2, item_rows=2, domains=1)
        model = models.SharedSpecific(user_rows=9, item_rows=7, dim=2, domains=3)
        with refuses(ValueError, "features lack the item code 'domain'. Use those of the stacked domains"):
            model.item_vectors(model.init(jax.random.key(0)), jnp.ones(1, jnp.int32), FEATURES._replace(item_codes={}))


def table(frames: data.Frames) -> pd.DataFrame:
    """Ones where a user touched an item."""
    rows = frames.interactions.drop_duplicates().assign(one=1.0)
    return rows.pivot(index="user", columns="item", values="one").fillna(0.0)
