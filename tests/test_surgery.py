"""Surgery on what is carried over: other widths, rows that nothing was found for, several sources."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import encoded
from helpers import refuses

import jaxrec
from jaxrec import _tree, data, models, plot, transfer

# Widening and narrowing


@pytest.fixture(scope="module")
def reading(parts):
    """Towers with a history."""
    model = models.TwoTower.for_data(parts.train, dim=4, hidden=(), code_dim=4, history=5)
    return jaxrec.fit(model, parts.train, epochs=1, batch_size=256)


def scores(recommender):
    """Of all users and items."""
    users, items = (np.arange(len(each) + 1) for each in (recommender.encoder.users, recommender.encoder.items))
    batch = recommender.batch(users)._replace(shared_negatives=jnp.asarray(items, jnp.int32))
    return np.asarray(recommender.model.apply(recommender.params, batch, recommender.features))


@pytest.mark.parametrize("name", ["factorization", "towers", "reading"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_widening_keeps_every_score(request, name, noise):
    recommender = request.getfixturevalue(name)
    wide = transfer.resize(recommender, 11, noise=noise)
    assert wide.model.dim == 11 and wide.model.for_data(recommender.encoder, dim=11).dim == 11
    np.testing.assert_allclose(scores(wide), scores(recommender), atol=1e-5)
    shapes = jax.tree.map(jnp.shape, wide.params)
    assert shapes == jax.tree.map(jnp.shape, wide.model.init(jax.random.key(0)))
    vectors = np.asarray(wide.model.item_vectors(wide.params, jnp.arange(1, 5, dtype=jnp.int32), wide.features))
    assert (np.abs(vectors[:, recommender.model.dim : 11]).max() > 1e-3) == (noise > 0)


def test_what_is_said_of_an_unknown_item_stays_nothing(parts):
    rows = pd.DataFrame({"user": parts.train.user, "item": parts.train.item})
    plain = data.encode(data.Parts(rows, None, None), data.Schema()).train
    model = models.TwoTower.for_data(plain, dim=3, hidden=())
    wide = transfer.resize(jaxrec.fit(model, plain, epochs=1, progress=False), 5, noise=0.5)
    table = np.asarray(wide.params["item"]["embedding"])
    assert not table[0].any() and np.abs(table[1:, 3:]).max() > 1e-3


def test_new_numbers_learn_only_from_noise(parts, factorization):
    for noise, moved in ((0.0, False), (0.1, True)):
        wide = transfer.resize(factorization, 10, noise=noise)
        fitted = jaxrec.fit(wide.model, parts.train, params=wide.params, epochs=1, batch_size=256)
        assert bool(np.asarray(fitted.params["user"]["embedding"])[:, 8:].any()) == moved
    one, same, other = (transfer.resize(factorization, 10, seed=seed).params["item"]["embedding"] for seed in (0, 0, 1))
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize("name", ["factorization", "towers"])
def test_narrowing_is_the_best_that_the_rank_allows(request, name):
    recommender = request.getfixturevalue(name)
    narrow = transfer.resize(recommender, 3)
    assert jax.tree.map(jnp.shape, narrow.params) == jax.tree.map(jnp.shape, narrow.model.init(jax.random.key(0)))
    features = recommender.encoder.features
    grid = np.ix_(np.flatnonzero(features.user_row), np.flatnonzero(features.item_row))
    if name == "factorization":  # its biases stay
        bare = [each.replace(params=_tree.replace(each.params, {
            path: jnp.zeros_like(_tree.get(each.params, path)) for path in ("user/bias", "item/bias", "bias")
        })) for each in (recommender, narrow)]  # fmt: skip
        assert (narrow.params["item"]["bias"] == recommender.params["item"]["bias"]).all()
    else:
        bare = [recommender, narrow]
    before, after = (scores(each)[grid] for each in bare)
    left, values, right = np.linalg.svd(before.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(after, (left[:, :3] * values[:3]) @ right[:3], atol=1e-5)
    assert np.square(before - after).sum() == pytest.approx(np.square(values[3:]).sum(), rel=1e-3)


def test_narrowing_to_the_true_rank_is_exact(factorization):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 8))  # all vectors lie in two dimensions, of users and items other ones
    params = {
        side: {**leaves, "embedding": jnp.asarray(rng.normal(size=(len(leaves["embedding"]), 2)) @ mixing, jnp.float32)}
        for side, leaves in factorization.params.items()
        if side != "bias"
    }
    recommender = factorization.replace(params={**params, "bias": factorization.params["bias"]})
    trained = np.ix_(*(np.flatnonzero(row) for row in (recommender.features.user_row, recommender.features.item_row)))
    for dim in (2, 5):
        narrow = transfer.resize(recommender, dim)
        np.testing.assert_allclose(scores(narrow)[trained], scores(recommender)[trained], atol=1e-4)
    back = transfer.resize(transfer.resize(factorization, 12), 8)
    np.testing.assert_allclose(scores(back)[trained], scores(factorization)[trained], atol=1e-4)


def test_a_resized_source_is_adapted_to_a_model_of_that_width(parts, factorization):
    narrow = transfer.resize(factorization, 4)
    adapted = transfer.adapt(narrow, parts.train, freeze="*")
    np.testing.assert_allclose(scores(adapted.recommender), scores(narrow), atol=1e-5)


def test_what_cannot_be_resized_is_refused(parts, factorization, towers, reading):
    for dim in (0, 8):
        with refuses(ValueError, f"Expected dim >= 1 and another width than the model's 8, got {dim}"):
            transfer.resize(factorization, dim)
    with refuses(ValueError, "Expected noise >= 0 and finite, got -1"):
        transfer.resize(factorization, 9, noise=-1)
    with refuses(ValueError, "Expected noise >= 0 and finite, got inf"):
        transfer.resize(factorization, 9, noise=float("inf"))
    with refuses(ValueError, "reads a history cannot be narrowed"):
        transfer.resize(reading, 2)
    with refuses(ValueError, "Expected a MatrixFactorization or a TwoTower with fusion='concatenation', got LoRA"):
        transfer.resize(transfer.add_adapters(factorization, transfer.LowRank(rank=1)).recommender, 4)
    whole = factorization.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.int8), factorization.params))
    with refuses(ValueError, "Expected parameters that are floats, got int8 in 'user/embedding'"):
        transfer.resize(whole, 4)


# Rows that nothing was found for

SCHEMA = data.Schema(item_features=(data.Numeric("year", scale=None), data.Labels("genres", "|")))


@pytest.fixture(scope="module")
def shelves():
    """A factorization of films whose vectors are linear in their content, and a target in which half are new."""
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"item": range(40), "year": rng.normal(size=40), "genres": rng.choice(["a", "b", "a|b"], 40)})
    items.loc[39, "year"] = np.nan
    items["genres"] = items["genres"].where(items["item"] < 39, "")

    def part(chosen):
        pairs = [(user, item) for user in range(3) for item in chosen]
        frame = pd.DataFrame(pairs, columns=["user", "item"])
        return data.encode(data.Parts(frame, None, None), SCHEMA, items=items[items["item"].isin(chosen)]).train

    ours, theirs = part(range(20)), part([*range(10, 30), 39])
    model = models.MatrixFactorization.for_data(ours, dim=3, bias=False)
    source = jaxrec.fit(model, ours, epochs=1)
    share = np.stack([items["genres"].str.contains(label).to_numpy(float) for label in "ab"], axis=1)
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1)
    truth = np.concatenate([items[["year"]].to_numpy(), share], axis=1) @ rng.normal(size=(3, 3)) + 0.5
    table = np.asarray(source.params["item"]["embedding"]).copy()
    table[ours.features.item_row[ours.encoder.items.encode(range(20))]] = truth[:20]
    source = source.replace(params=_tree.replace(source.params, {"item/embedding": jnp.asarray(table)}))
    return source, theirs, truth


def begun(shelves, how):
    """Rows of films 10 to 29 and 39 of the target, and the report."""
    source, theirs, _ = shelves
    adapted = transfer.adapt(source, theirs, unmatched=how, freeze="*")
    rows = adapted.recommender.encoder.features.item_row[theirs.encoder.items.encode([*range(10, 30), 39])]
    return np.asarray(adapted.recommender.params["item"]["embedding"])[rows], adapted.copied


def test_matched_rows_are_copied_whatever_the_others_begin_with(shelves):
    for how in ("fresh", "unknown", "content", "neighbours"):
        np.testing.assert_allclose(begun(shelves, how)[0][:10], shelves[2][10:20], atol=1e-6)


def test_unmatched_rows_begin_fresh_or_as_the_mean(shelves):
    source, theirs, truth = shelves
    fresh, report = begun(shelves, "fresh")
    model = models.MatrixFactorization.for_data(theirs, dim=3, bias=False)
    start = model.init(jax.random.split(jax.random.key(0))[0])["item"]["embedding"]
    rows = theirs.features.item_row[theirs.encoder.items.encode(range(20, 30))]
    np.testing.assert_array_equal(fresh[10:20], start[rows])
    assert all(not entry.filled for entry in report.entries)
    mean, report = begun(shelves, "unknown")
    np.testing.assert_allclose(mean[10:], np.repeat(truth[10:20].mean(axis=0)[None], 11, axis=0), atol=1e-6)
    assert "aligned by raw id, 11 the mean of those copied" in str(report)


def test_unmatched_rows_are_predicted_from_content(shelves):
    rows, report = begun(shelves, "content")
    np.testing.assert_allclose(rows[10:20], shelves[2][20:30], atol=1e-3)  # linear, so a ridge finds it
    np.testing.assert_allclose(rows[20], shelves[2][10:20].mean(axis=0), atol=1e-6)  # nothing is known of film 39
    entry = next(entry for entry in report.entries if entry.path == "item/embedding")
    assert entry.rows == 10 and entry.filled == (("content", 10), ("unknown", 1))
    assert "10 predicted from content, 1 the mean of those copied" in str(report)


def test_unmatched_rows_are_the_mean_of_their_neighbours(shelves):
    source, theirs, truth = shelves
    rows, report = begun(shelves, "neighbours")
    features = theirs.features
    index = theirs.encoder.items.encode([*range(10, 30), 39])
    codes = np.asarray(features.item_codes["genres"])[index]
    weight = np.log(11 / (1 + np.array([(codes[:10] == label).any(axis=1).sum() for label in (1, 2)]))) + 1
    labels = np.stack([(codes == label).any(axis=1) * weight[label - 1] for label in (1, 2)], axis=1)
    labels /= np.maximum(np.linalg.norm(labels, axis=1, keepdims=True), 1e-9)
    cosine = (labels @ labels.T + np.sign(np.outer(*2 * [features.item_dense[index, 0]]))) / 2
    near = np.maximum(cosine[10:20, :10], 0.0)
    np.testing.assert_allclose(rows[10:20], near @ truth[10:20] / near.sum(axis=1, keepdims=True), atol=1e-5)
    assert dict(next(each.filled for each in report.entries if each.path == "item/embedding")) == {
        "neighbours": 10, "unknown": 1
    }  # fmt: skip


def test_a_number_that_is_missing_has_no_neighbours():
    items = pd.DataFrame({"item": range(12), "year": np.arange(12.0)})
    items.loc[11, "year"] = np.nan
    schema = data.Schema(item_features=(data.Numeric("year", scale="minmax"),))

    def part(chosen):
        frame = pd.DataFrame([(user, item) for user in range(3) for item in chosen], columns=["user", "item"])
        return data.encode(data.Parts(frame, None, None), schema, items=items[items["item"].isin(chosen)]).train

    ours, theirs = part(range(8)), part(range(4, 12))
    source = jaxrec.fit(models.MatrixFactorization.for_data(ours, dim=2, bias=False), ours, epochs=1)
    report = transfer.adapt(source, theirs, unmatched="neighbours", freeze="*").copied
    entry = next(each for each in report.entries if each.path == "item/embedding")
    assert entry.filled == (("neighbours", 3), ("unknown", 1))


def test_labels_that_are_new_begin_as_the_mean(world, towers):
    genres = world.target.items["genres"].str.replace("nature", "gardens")
    theirs = encoded(world.target._replace(items=world.target.items.assign(genres=genres))).train
    adapted = transfer.adapt(towers, theirs, unmatched="content", freeze="*", patterns="item/features/*")
    table = np.asarray(adapted.recommender.params["item"]["features"]["genres"]["embedding"])
    vocabulary = theirs.encoder.item_features[1].vocabulary
    others = [label for label in vocabulary.ids if label != "gardens"]
    np.testing.assert_allclose(
        table[vocabulary.encode(["gardens"])[0]], table[vocabulary.encode(others)].mean(axis=0), atol=1e-6
    )
    assert next(entry.filled for entry in adapted.copied.entries if "genres" in entry.path) == (("unknown", 1),)


def test_unmatched_rows_need_something_to_go_by(shelves, parts, towers):
    source, theirs, _ = shelves
    with refuses(ValueError, "Expected unmatched to be 'fresh', 'unknown', 'content', 'neighbours', got 'mean'"):
        transfer.adapt(source, theirs, unmatched="mean")
    with refuses(ValueError, "unmatched='unknown' starts rows from those that were copied, and none was"):
        transfer.adapt(towers, parts.train, unmatched="unknown", patterns="item/mlp/*")
    strangers = pd.DataFrame({"user": [7, 8, 9], "item": [70, 80, 90]})
    plain = data.encode(data.Parts(strangers, None, None), data.Schema()).train
    with refuses(ValueError, "Nothing of weight was copied"):
        transfer.adapt(source, plain, unmatched="unknown")
    biased = jaxrec.fit(models.MatrixFactorization.for_data(plain, dim=2), plain, epochs=1)
    known = data.encode(data.Parts(strangers.assign(user=[8, 9, 10]), None, None), data.Schema()).train
    with refuses(ValueError, "reads features of users and items, of which rows were copied, and the schema has none"):
        transfer.adapt(biased, known, unmatched="content")


# Several sources


def two_sources():
    tree = {"user": {"embedding": jnp.zeros((5, 1))}, "head": {"kernel": jnp.zeros((2, 2))}, "new": jnp.zeros(3)}
    one = {"user": {"embedding": jnp.asarray([[10.0], [11.0], [12.0]])}, "head": {"kernel": jnp.ones((2, 2))}}
    two = {"user": {"embedding": jnp.asarray([[20.0], [21.0]])}, "head": {"kernel": 3 * jnp.ones((2, 2))}, "old": 1.0}
    rows = [transfer.Rows(np.array([1, 2]), np.array([1, 2])), transfer.Rows(np.array([0, 1]), np.array([2, 3]))]
    sources = {
        name: transfer.Source(params, {"user/embedding": pairs})
        for name, params, pairs in zip(("a", "b"), (one, two), rows, strict=True)
    }
    return sources, tree


@pytest.mark.parametrize(
    ("conflict", "table", "kernel", "gave", "words"),
    [
        ("first", [0, 11, 12, 21, 0], 1.0, (("a", 2), ("b", 1)), "2 from a, 1 from b, 1 in several of which the first"),
        ("last", [0, 11, 20, 21, 0], 3.0, (("a", 1), ("b", 2)), "from b, which 2 have"),
        ("mean", [0, 11, 16, 21, 0], 2.0, (("a", 2), ("b", 2)), "the mean of a, b"),
    ],
)
def test_conflicts_between_sources(conflict, table, kernel, gave, words):
    sources, tree = two_sources()
    params, report = transfer.copy_all(sources, tree, conflict=conflict)
    assert params["user"]["embedding"][:, 0].tolist() == table and (params["head"]["kernel"] == kernel).all()
    entries = {entry.path: entry for entry in report.entries}
    assert entries["user/embedding"].sources == gave and entries["user/embedding"].rows == 3
    assert entries["new"].outcome == "initialised" and entries["old"].sources == (("b", 0),)
    assert words in str(report)
    alone, _ = transfer.copy_all({"a": sources["a"]}, tree, conflict=conflict)
    copied, _ = transfer.copy(sources["a"].params, tree, rows=sources["a"].rows)
    assert jax.tree.all(jax.tree.map(lambda one, other: bool((one == other).all()), alone, copied))


def test_sources_that_cannot_be_joined_are_refused():
    sources, tree = two_sources()
    with refuses(ValueError, "Source 'b': Nothing of weight was copied"):
        transfer.copy_all({**sources, "b": transfer.Source({"other": jnp.ones(3)})}, tree)
    with refuses(ValueError, "Expected at least one source, got none"):
        transfer.copy_all({}, tree)
    with refuses(ValueError, "Expected conflict to be 'first', 'last', 'mean', got 'sum'"):
        transfer.copy_all(sources, tree, conflict="sum")
    whole = {"a": sources["a"], "c": transfer.Source({"user": tree["user"]})}
    with refuses(ValueError, "'user/embedding' is copied whole from one source and by rows from another"):
        transfer.copy_all(whole, tree)
    with refuses(ValueError, "Nothing of weight was copied"):
        transfer.copy_all({**sources, "c": transfer.Source({"other": jnp.ones(3)})}, tree)
    with refuses(TypeError, "Expected a Source for source 'c', got dict"):
        transfer.copy_all({"c": tree}, tree)


@pytest.fixture(scope="module")
def three():
    """Two sources of which each knows half of the target's users, and one user is in both."""

    def part(users, items):
        frame = pd.DataFrame([(user, item) for user in users for item in items], columns=["user", "item"])
        return data.encode(data.Parts(frame, None, None), data.Schema()).train

    def trained(part, seed):
        return jaxrec.fit(models.MatrixFactorization.for_data(part, dim=2), part, epochs=1, seed=seed)

    books, games = part(range(6), ["b1", "b2"]), part(range(5, 10), ["g1", "g2"])
    everybody = pd.DataFrame({"user": range(12)})
    frame = pd.DataFrame([(user, item) for user in (0, 11) for item in ("f1", "f2")], columns=["user", "item"])
    target = data.encode(data.Parts(frame, None, None), data.Schema(), users=everybody).train
    return {"books": trained(books, 0), "games": trained(games, 1)}, target


def row(recommender, user):
    index = recommender.encoder.users.encode([user])
    return np.asarray(recommender.params["user"]["embedding"])[recommender.encoder.features.user_row[index]][0]


@pytest.mark.parametrize("conflict", ["first", "last", "mean"])
def test_adapt_from_several_sources(three, conflict):
    sources, target = three
    adapted = transfer.adapt(sources, target, conflict=conflict, freeze="*", unmatched="unknown")
    books, games = sources["books"], sources["games"]
    for user in range(10):
        one, other = row(books, user) if user < 6 else None, row(games, user) if user > 4 else None
        expected = other if one is None else one
        if one is not None and other is not None:
            expected = {"first": one, "last": other, "mean": (one + other) / 2}[conflict]
        np.testing.assert_allclose(row(adapted.recommender, user), expected, atol=1e-6)
    copied = np.stack([row(adapted.recommender, user) for user in range(10)])
    np.testing.assert_allclose(row(adapted.recommender, 11), copied.mean(axis=0), atol=1e-6)
    text = str(adapted)
    assert "books\nuser: 6 aligned by raw id, of 6" in text and "games\nuser: 5 aligned by raw id, of 5" in text
    entry = next(entry for entry in adapted.copied.entries if entry.path == "user/embedding")
    assert entry.rows == 10 and entry.filled == (("unknown", 1),)
    only = transfer.adapt({"games": games}, target, freeze="*")
    np.testing.assert_array_equal(
        row(only.recommender, 7), row(transfer.adapt(games, target, freeze="*").recommender, 7)
    )


def test_what_several_sources_gave_stays_frozen(three):
    sources, target = three
    adapted = transfer.adapt(sources, target, freeze="copied", patterns="user/embedding", epochs=3, batch_size=2)
    assert adapted.frozen.rows["user/embedding"].sum() == 10
    np.testing.assert_array_equal(row(adapted.recommender, 0), row(sources["books"], 0))
    np.testing.assert_array_equal(row(adapted.recommender, 7), row(sources["games"], 7))
    aligned = {name: transfer.align(each.encoder, target.encoder) for name, each in sources.items()}
    given = transfer.adapt(sources, target, alignment=aligned, freeze="*")  # rows for newcomers are numbered together
    np.testing.assert_array_equal(row(given.recommender, 7), row(sources["games"], 7))
    np.testing.assert_array_equal(row(given.recommender, 3), row(sources["books"], 3))


def test_a_table_that_one_source_lacks_is_copied_for_the_others_users_alone(three):
    sources, target = three
    books = sources["books"]
    books = books.replace(
        model=dataclasses.replace(books.model, bias=False), params=_tree.drop(books.params, ["user/bias", "item/bias"])
    )
    given = {"games": sources["games"], "books": books}
    adapted = transfer.adapt(given, target, freeze="copied", unmatched="unknown", epochs=1, batch_size=2)
    assert adapted.frozen.rows["user/embedding"].sum() == 10 and adapted.frozen.rows["user/bias"].sum() == 5
    entry = next(entry for entry in adapted.copied.entries if entry.path == "user/bias")
    assert entry.rows == 5 and entry.filled == (("unknown", 6),)


def test_several_sources_that_do_not_fit_together_are_refused(three):
    sources, target = three
    with refuses(ValueError, "Expected at least one source"):
        transfer.adapt({}, target)
    with refuses(TypeError, "Expected a Recommender for source 'x', got Dataset"):
        transfer.adapt({"x": target}, target)
    with refuses(ValueError, "Expected conflict to be"):
        transfer.adapt(sources, target, conflict="sum")
    with refuses(ValueError, "importance= belongs to the parameters of one source"):
        transfer.adapt(sources, target, importance={})
    with refuses(ValueError, "mean different things \\(orders, probabilities\\)"):
        transfer.adapt({**sources, "games": sources["games"].replace(link="sigmoid")}, target)
    one = transfer.align(sources["books"].encoder, target.encoder)
    with refuses(ValueError, "for each of the sources 'books', 'games', got them for ''"):
        transfer.adapt(sources, target, alignment=one)
    wide = transfer.resize(sources["games"], 3)
    with refuses(ValueError, "Cannot copy 'user/embedding'"):
        transfer.adapt({"books": sources["books"], "games": wide}, target)


# Reports


@pytest.fixture(scope="module")
def report(three):
    sources, target = three
    return transfer.adapt(sources, target, freeze="*", unmatched="unknown").copied


def test_reports_are_frames_and_json(report):
    frame = report.to_frame().set_index("path")
    assert frame.loc["user/embedding", ["outcome", "rows", "from books", "from games", "unknown"]].tolist() == [
        "rows copied", 10, 6, 4, 1
    ]  # fmt: skip
    assert frame.loc["item/embedding", ["rows", "from books", "unknown"]].tolist() == [0, 0, 0]
    assert list(frame.columns) == ["outcome", "rows", "of", "reason", "from books", "from games", "unknown"]
    text = json.dumps(report.to_dict())
    assert transfer.CopyReport.from_dict(json.loads(text)) == report and '"filled": {"unknown": 1}' in text
    assert not len(transfer.CopyReport(()).to_frame())


def test_an_alignment_is_json(three):
    sources, target = three
    told = json.loads(json.dumps(transfer.align(sources["books"].encoder, target.encoder).to_dict()))
    assert told["user"] == {
        "aligned": 6, "trained in the source": 6, "known in the target": 12, "how": {"raw id": 6}, "note": ""
    }  # fmt: skip
    assert told["item"]["aligned"] == 0 and told["item"]["how"] == {}


def test_a_report_is_drawn(report, tmp_path):
    figure = plot.copied(report)
    axes = figure.axes[0]
    leaves = [entry for entry in report.entries if entry.outcome != "left over"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [entry.path for entry in leaves]
    bars = {container.get_label(): [bar.get_width() for bar in container] for container in axes.containers}
    assert list(bars) == ["copied from books", "copied from games", "mean of those copied", "as initialised"]
    at = [entry.path for entry in leaves].index("user/embedding")
    total = leaves[at].of
    assert [round(widths[at] * total, 6) for widths in bars.values()] == [6, 4, 1, total - 11]
    np.testing.assert_allclose(np.sum(list(bars.values()), axis=0), 1.0)
    assert f"10 of {total}" in [text.get_text() for text in axes.texts]
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    with refuses(ValueError, "Expected a report of at least one leaf of the target, got none"):
        plot.copied(transfer.CopyReport(()))
