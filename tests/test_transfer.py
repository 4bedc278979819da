"""Alignment, copying with a report, freezing, adapting and comparing: what is carried over, and whether it helps."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from conftest import encoded
from helpers import refuses

import jaxrec
from jaxrec import _tree, coldstart, data, models, train, transfer
from jaxrec.models._base import resized
from jaxrec.ranking._vectors import item_vectors, user_vectors


@pytest.fixture(scope="module")
def source(world):
    parts = encoded(world.source)
    model = models.TwoTower.for_data(parts.train, dim=8, hidden=(16,), code_dim=4)
    return jaxrec.fit(model, parts.train, epochs=3, batch_size=256)


@pytest.fixture(scope="module")
def target(world, source):
    return encoded(world.target, data.split_cold_users, like=source.encoder)


# Alignment


def test_rows_are_aligned_by_raw_id(source, target):
    alignment = transfer.align(source.encoder, target.train.encoder)
    for numbering in ("user", "item"):
        ours, theirs = source.encoder.vocabulary(numbering), alignment.encoder.vocabulary(numbering)
        row_of = [getattr(each.features, f"{numbering}_row") for each in (source.encoder, alignment.encoder)]
        back = [{int(row): at for at, row in enumerate(rows) if row} for rows in row_of]
        pairs = alignment.rows[numbering]
        for one, other in zip(np.asarray(pairs.source), np.asarray(pairs.target), strict=True):
            assert ours.decode([back[0][int(one)]]) == theirs.decode([back[1][int(other)]])
    shared = set(source.encoder.users.ids) & set(target.train.encoder.users.ids)
    assert len(alignment.rows["user"].source) == len(shared) == 140 and not len(alignment.rows["item"].source)
    assert "user: 140 aligned by raw id, of" in str(alignment) and "200 known in the target" in str(alignment)


def test_a_user_who_is_cold_in_the_target_gets_a_row(source, target):
    alignment = transfer.align(source.encoder, target.train.encoder)
    before, after = target.train.features.user_row, alignment.encoder.features.user_row
    assert (after > 0).sum() > (before > 0).sum()
    np.testing.assert_array_equal(after[before > 0], before[before > 0])


def test_labels_are_aligned_by_name_even_where_they_are_numbered_differently(world, source):
    alone = encoded(world.target)  # fitted without like=
    shuffled = alone.train.encoder
    genres = next(each for each in shuffled.item_features if each.name == "genres")
    turned = dataclasses.replace(genres.vocabulary, ids=genres.vocabulary.ids[::-1].copy())
    features = tuple(
        dataclasses.replace(each, vocabulary=turned) if each.name == "genres" else each
        for each in shuffled.item_features
    )
    alignment = transfer.align(source.encoder, dataclasses.replace(shuffled, item_features=features))
    pairs = alignment.rows["item/genres"]
    ours = next(each for each in source.encoder.item_features if each.name == "genres").vocabulary
    assert ours.decode(pairs.source).tolist() == turned.decode(pairs.target).tolist() and len(pairs.source) == 8


def test_domains_without_anything_in_common_are_refused():
    one, other = (
        data.encode(data.Parts(pd.DataFrame({"user": users, "item": items}), None, None), data.Schema())
        for users, items in (([1, 2], ["a", "b"]), ([3, 4], ["c", "d"]))
    )
    with pytest.raises(ValueError, match="share no vocabulary: users Vocabulary\\(2 int ids: 1 ... 2\\)"):
        transfer.align(one.train.encoder, other.train.encoder)
    nothing = transfer.align(one.train.encoder, other.train.encoder, require=False)
    assert not len(nothing.rows["user"].source)
    strings = data.encode(data.Parts(pd.DataFrame({"user": ["1", "2"], "item": ["a", "b"]}), None, None), data.Schema())
    assert len(transfer.align(one.train.encoder, strings.train.encoder).rows["item"].source) == 2


# Copying


def trees():
    ours = {
        "user": {"embedding": jnp.arange(8.0).reshape(4, 2)},
        "head": {"kernel": jnp.ones((2, 2))},
        "old": jnp.ones(3),
    }
    theirs = {"user": {"embedding": -jnp.ones((3, 2))}, "head": {"kernel": jnp.zeros((2, 2))}, "new": jnp.zeros(())}
    rows = {"user/embedding": transfer.Rows(np.array([3, 1]), np.array([1, 2]))}
    return ours, theirs, rows


def test_copying_accounts_for_every_leaf():
    ours, theirs, rows = trees()
    params, report = transfer.copy(ours, theirs, rows=rows)
    assert params["user"]["embedding"].tolist() == [[-1.0, -1.0], [6.0, 7.0], [2.0, 3.0]]
    assert params["head"]["kernel"].tolist() == [[1.0, 1.0], [1.0, 1.0]] and params["new"] == 0.0
    outcome = {entry.path: (entry.outcome, entry.rows, entry.of) for entry in report.entries}
    assert outcome == {
        "user/embedding": ("rows copied", 2, 3), "head/kernel": ("copied", 2, 2), "new": ("initialised", 0, 1),
        "old": ("left over", 0, 3),
    }  # fmt: skip
    text = str(report)
    assert "2 of 3" in text and "the target has no such leaf" in text and "the source has no such leaf" in text
    assert report.paths("copied", "rows copied") == ("user/embedding", "head/kernel")


def test_copies_share_nothing_with_the_source():
    ours, theirs, rows = trees()
    params, _ = transfer.copy(ours, theirs, rows=rows)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(params)
    assert ours["head"]["kernel"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_head_may_be_initialised_anew():
    ours, theirs, rows = trees()
    params, report = transfer.copy(ours, theirs, rows=rows, patterns="user/*")
    assert not params["head"]["kernel"].any()
    assert next(entry for entry in report.entries if entry.path == "head/kernel").reason == "not selected"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": {"kernel": jnp.zeros((2, 3))}}, "Cannot copy 'head/kernel': the source has shape \\(2, 2\\)"),
        ({"user": {"embedding": jnp.zeros((3, 5))}}, "Cannot copy 'user/embedding'.*leave the leaf out with patterns"),
    ],
)
def test_shapes_that_differ_are_refused(change, message):
    ours, theirs, rows = trees()
    with pytest.raises(ValueError, match=message):
        transfer.copy(ours, {**theirs, **change}, rows=rows)


def test_copying_nothing_is_refused():
    ours, theirs, rows = trees()
    with pytest.raises(ValueError, match="Nothing of weight was copied, so there is no transfer. Leaf by leaf"):
        transfer.copy({"other": ours["old"]}, theirs, rows=rows)
    with pytest.raises(ValueError, match="'tower/\\*' matches no parameter"):
        transfer.copy(ours, theirs, rows=rows, patterns="tower/*")
    outside = {"user/embedding": transfer.Rows(np.array([9]), np.array([1]))}
    with pytest.raises(ValueError, match="Expected source rows in 0 .. 3, got 9 .. 9"):
        transfer.copy(ours, theirs, rows=outside)


def test_leaves_are_renamed_on_the_way():
    ours, theirs, rows = trees()
    theirs = {"customer": theirs["user"], "new": theirs["head"]}
    rows = {"customer/embedding": rows["user/embedding"]}
    params, report = transfer.copy(ours, theirs, rows=rows, rename={"user/*": "customer/*", "head/*": "new/*"})
    assert params["customer"]["embedding"].tolist() == [[-1.0, -1.0], [6.0, 7.0], [2.0, 3.0]]
    assert params["new"]["kernel"].tolist() == [[1.0, 1.0], [1.0, 1.0]] and report.paths("left over") == ("old",)
    assert "from user/embedding, aligned by raw id" in str(report) and "from head/kernel" in str(report)
    with pytest.raises(
        ValueError, match="'head/\\*' to 'tail/\\*' leads to no leaf of the target. Its paths: customer/"
    ):
        transfer.copy(ours, theirs, rows=rows, rename={"user/*": "customer/*", "head/*": "tail/*"})
    ours, theirs = {"size [cm]": ours["head"], **ours}, {"size": theirs["new"]}
    params, _ = transfer.copy(ours, theirs, rename={"size [cm]/*": "size/*"})
    assert params["size"]["kernel"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


# Freezing


def test_freezing_by_pattern_and_by_rows(factorization):
    rows = transfer.rows_of(
        factorization.encoder, factorization.model, items=factorization.encoder.items.ids[:5].tolist()
    )
    frozen = transfer.freeze(factorization.params, ("user/*", "bias"), rows=rows)
    assert set(frozen.leaves) == {"user/embedding", "user/bias", "bias"}
    assert frozen.rows["item/embedding"].sum() == 5 and frozen.rows["item/bias"].sum() == 5
    assert "5 rows of item/embedding" in str(frozen)


@pytest.mark.parametrize(
    ("patterns", "rows", "message"),
    [
        ("towers/*", {}, "matches no parameter"),
        ("item/*", {"item/embedding": np.array([1])}, "is frozen as a whole"),
        ((), {"item/embedding": np.array([10_000])}, "Expected rows of 'item/embedding' in 0"),
        ((), {"item/embedding": np.array([-1])}, "Expected rows"),
        ((), {"item/embedding": np.ones(3, bool)}, "Expected a mask of"),
        ((), {"item/nothing": np.array([1])}, "No parameter 'item/nothing'"),
    ],
)
def test_what_cannot_be_frozen_is_refused(factorization, patterns, rows, message):
    with pytest.raises(ValueError, match=message):
        transfer.freeze(factorization.params, patterns, rows=rows)


# Adapting


def test_adapt_carries_over_what_the_source_knows(source, target):
    adapted = transfer.adapt(source, target.train, epochs=1, optimizer=optax.sgd(0.0))
    rows = adapted.alignment.for_model(adapted.recommender.model)["user/embedding"]
    np.testing.assert_allclose(
        adapted.recommender.params["user"]["embedding"][rows.target], source.params["user"]["embedding"][rows.source]
    )
    np.testing.assert_array_equal(
        adapted.recommender.params["item"]["mlp"]["0"]["kernel"], source.params["item"]["mlp"]["0"]["kernel"]
    )
    assert {"item/embedding"} == set(adapted.copied.paths("initialised"))
    assert "140 of" in str(adapted) and "frozen: nothing" in str(adapted)


def test_what_was_copied_can_stay_frozen(source, target):
    adapted = transfer.adapt(source, target.train, freeze="copied", epochs=2, batch_size=64)
    params, rows = adapted.recommender.params, adapted.alignment.for_model(adapted.recommender.model)
    for path in adapted.copied.paths("copied"):
        np.testing.assert_array_equal(_tree.get(params, path), _tree.get(source.params, path), err_msg=path)
    for path in adapted.copied.paths("rows copied"):
        np.testing.assert_array_equal(
            _tree.get(params, path)[rows[path].target], _tree.get(source.params, path)[rows[path].source], err_msg=path
        )
    fresh = adapted.recommender.model.init(jax.random.split(jax.random.key(0))[0])
    assert (params["item"]["embedding"] != fresh["item"]["embedding"]).any()
    assert (params["user"]["embedding"] != fresh["user"]["embedding"]).any()


def test_patterns_and_a_frozen_value_steer_adapt(source, target):
    adapted = transfer.adapt(source, target.train, patterns="user/*", freeze="user/mlp/*", epochs=1)
    assert set(adapted.copied.paths("initialised")) == {
        path for path in _tree.flatten(adapted.recommender.params) if path.startswith("item/")
    }
    np.testing.assert_array_equal(
        adapted.recommender.params["user"]["mlp"]["0"]["kernel"], source.params["user"]["mlp"]["0"]["kernel"]
    )
    frozen = transfer.freeze(source.params, "item/mlp/*")
    by_value = transfer.adapt(source, target.train, freeze=frozen, epochs=1)
    assert by_value.frozen is frozen
    for side, stayed in (("item", True), ("user", False)):
        ours, theirs = (each.params[side]["mlp"]["0"]["kernel"] for each in (by_value.recommender, source))
        assert bool((ours == theirs).all()) == stayed
    whole = transfer.adapt(source, target.train, freeze="*")
    assert whole.recommender.log == () and len(jaxrec.recommend(whole.recommender, k=3))


@pytest.mark.parametrize(("side", "other"), [("user", "item"), ("item", "user")])
def test_who_is_cold_and_of_whom_nothing_was_copied_is_the_unknown(side, other):
    pairs = pd.DataFrame([(user, item) for user in range(8) for item in range(8)], columns=["user", "item"])
    frames = {name: pd.DataFrame({name: range(8)}) for name in ("user", "item")}
    few = pairs[(pairs["user"] < 5) & (pairs["item"] < 5)]
    ours, theirs = (
        data.encode(data.Parts(rows, None, None), data.Schema(), users=frames["user"], items=frames["item"]).train
        for rows in (pairs, few)
    )
    known = jaxrec.fit(models.MatrixFactorization.for_data(ours, dim=3), ours, epochs=1)
    found = transfer.adapt(known, theirs, patterns=f"{other}/*", epochs=1).recommender
    index = {name: found.encoder.vocabulary(name).encode([7])[0] for name in ("user", "item")}
    row = {name: np.asarray(getattr(found.encoder.features, f"{name}_row")) for name in ("user", "item")}
    assert row[side][index[side]] == 0 < row[other][index[other]]
    of_side = user_vectors if side == "user" else item_vectors
    unknown, cold = np.asarray(of_side(found, np.array([0, index[side]], np.int32)))
    np.testing.assert_array_equal(cold, unknown)
    table, trained = np.asarray(found.params[side]["embedding"]), row[side][row[side] > 0]
    assert len(trained) == 5
    np.testing.assert_allclose(table[0], table[trained].mean(axis=0), atol=1e-6)
    copied = transfer.adapt(known, theirs, patterns=f"{other}/embedding", freeze="*").recommender
    np.testing.assert_array_equal(
        copied.params[other]["embedding"][row[other][index[other]]],
        known.params[other]["embedding"][getattr(known.encoder.features, f"{other}_row")[index[other]]],
    )


def test_the_target_keeps_the_sources_options(source, target):
    adapted = transfer.adapt(source, target.train, epochs=1)
    assert adapted.recommender.model.hidden == source.model.hidden
    assert adapted.recommender.model.item_rows == target.train.sizes.item_rows != source.model.item_rows
    wider = models.TwoTower.for_data(target.train, dim=4, hidden=(16,), code_dim=4)
    with pytest.raises(ValueError, match="Cannot copy 'user/embedding'"):
        transfer.adapt(source, target.train, model=wider, epochs=1)


def test_a_subtree_is_copied_into_a_model_of_another_class_or_depth(world, source, target):
    deeper = models.TwoTower.for_data(target.train, dim=8, hidden=(16, 16), code_dim=4)
    adapted = transfer.adapt(
        source, target.train, model=deeper, patterns=("item/mlp/0/*", "item/mlp/2/*"), freeze="*",
        rename={"item/mlp/1/*": "item/mlp/2/*"},
    )  # fmt: skip
    ours, theirs = source.params["item"]["mlp"], adapted.recommender.params["item"]["mlp"]
    np.testing.assert_array_equal(theirs["2"]["kernel"], ours["1"]["kernel"])
    np.testing.assert_array_equal(theirs["0"]["kernel"], ours["0"]["kernel"])
    other = models.MatrixFactorization.for_data(target.train, dim=8, bias=False)
    moved = transfer.adapt(source, target.train, model=other, patterns="user/embedding", freeze="*")
    rows = moved.alignment.rows["user"]
    np.testing.assert_array_equal(
        moved.recommender.params["user"]["embedding"][rows.target], source.params["user"]["embedding"][rows.source]
    )


def test_domains_that_share_a_feature_space_alone_transfer_their_towers(world, source):
    frames = world.target
    renamed = frames.interactions.assign(user="u" + frames.interactions["user"].astype(str))
    parts = data.encode(
        data.split_random(renamed, seed=0), frames.schema,
        users=frames.users.assign(user="u" + frames.users["user"].astype(str)), items=frames.items, like=source.encoder,
    )  # fmt: skip
    adapted = transfer.adapt(source, parts.train, epochs=1)
    assert "item/mlp/0/kernel" in adapted.copied.paths("copied")
    assert "user/embedding" in adapted.copied.paths("initialised")


@pytest.mark.parametrize("name", ["factorization", "linear"])
def test_other_models_adapt_too(rated_world, name):
    ours, theirs = encoded(rated_world.source), encoded(rated_world.target)
    model = {
        "factorization": models.MatrixFactorization.for_data(ours.train, dim=4),
        "linear": models.Linear.for_data(ours.train),
    }[name]
    rich = jaxrec.fit(model, ours.train, epochs=2)
    adapted = transfer.adapt(rich, theirs.train, epochs=2, validation=theirs.validation)
    assert adapted.copied.paths("copied", "rows copied")
    assert np.isfinite(jaxrec.evaluate(adapted.recommender, theirs.test)["rmse"])


# Comparing


@pytest.fixture(scope="module")
def comparison(source, target):
    return transfer.compare(source, target.train, target.test, epochs=4, batch_size=64, validation=target.validation)


def test_compare_says_what_transfer_is_worth(comparison, target):
    options = {"epochs": 4, "batch_size": 64, "validation": target.validation}
    assert comparison.table["slice"].tolist()[0] == "all"
    row = comparison.table.iloc[0]
    assert row.difference == pytest.approx(row.transfer - row.scratch) and row.low <= row.difference <= row.high
    assert row.transfer == pytest.approx(comparison.reports["transfer"]["ndcg@10"])
    alone = jaxrec.fit(models.TwoTower.for_data(target.train, dim=8, hidden=(16,), code_dim=4), target.train, **options)
    for path, leaf in _tree.flatten(alone.params).items():
        np.testing.assert_array_equal(leaf, _tree.get(comparison.scratch.params, path))
    assert comparison.verdict in ("helped", "hurt", "no difference") and "ndcg@10" in str(comparison)


def test_intervals_and_verdict_of_compare_are_of_the_level(source, target):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", transfer.NegativeTransfer)
        found = transfer.compare(source, target.train, target.test, epochs=1, batch_size=256, level=0.5)
    row, ours, theirs = found.table.iloc[0], found.reports["transfer"], found.reports["scratch"]
    half, most = (ours.versus(theirs, "ndcg@10", level=level) for level in (0.5, 0.95))
    assert most.low < half.low == row.low < row.high == half.high < most.high
    assert (found.verdict == "no difference") == (row.p_value >= 0.5 or row.low <= 0 <= row.high)
    wide = jaxrec.evaluate(found.scratch, target.test, ks=(10,)).interval("ndcg@10")
    narrow = theirs.interval("ndcg@10")
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_compare_trains_the_model_that_is_named_and_copies_what_is_named(source, target):
    model = models.TwoTower.for_data(target.train, dim=8, hidden=(16,), code_dim=4, id_dropout=0.0)
    assert model != resized(source.model, target.train)
    found = transfer.compare(
        source, target.train, target.test, model=model, patterns="user/*", epochs=1, batch_size=256
    )
    assert found.scratch.model == resized(model, target.train)
    assert found.adapted.recommender.model.id_dropout == 0.0
    copied = found.adapted.copied.paths("copied", "rows copied")
    assert copied and all(path.startswith("user/") for path in copied)


def test_compare_turns_errors_round(rated_world):
    ours, theirs = encoded(rated_world.source), encoded(rated_world.target)
    rich = jaxrec.fit(models.MatrixFactorization.for_data(ours.train, dim=4), ours.train, epochs=2)
    comparison = transfer.compare(rich, theirs.train, theirs.test, metric="rmse", epochs=2, strategy={"epochs": 3})
    assert len(comparison.adapted.recommender.log) == 3 and len(comparison.scratch.log) == 2
    row = comparison.table.iloc[0]
    assert row.difference == pytest.approx(row.scratch - row.transfer) and row.low <= row.high


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (0.01, 0.03, "helped", "Transfer helped: ndcg@10 0.1000 -> 0.1200"),
        (-0.03, -0.01, "hurt", "nothing to carry over that is true here, and what was copied misleads"),
        (
            -0.01,
            0.03,
            "no difference",
            "no difference that can.*nothing to carry over, or too little for 50 test users",
        ),
    ],
)
def test_verdicts_are_in_words(comparison, low, high, verdict, words):
    import re

    columns = ["slice", "users", "scratch", "transfer", "difference", "low", "high", "p_value"]
    table = pd.DataFrame([("all", 50, 0.1, 0.12, 0.02, low, high, 0.5)], columns=columns)
    told = dataclasses.replace(comparison, table=table, verdict=verdict)
    assert re.search(words, str(told))
    assert told.recommender is (told.scratch if verdict == "hurt" else told.adapted.recommender)


def test_negative_transfer_is_a_warning(source, target):
    noise = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape), source.params)
    with pytest.warns(transfer.NegativeTransfer, match="Transfer hurt: ndcg@10 .* train from scratch"):
        found = transfer.compare(
            source.replace(params=noise), target.train, target.test, freeze="*", epochs=4, batch_size=64
        )
    assert found.verdict == "hurt" and found.recommender is found.scratch


def test_a_test_part_that_was_seen_measures_nobody(source, target):
    with refuses(ValueError, "nobody to measure ndcg@10 on \\(left out: .* rows.*Give held-out rows"):
        transfer.compare(source, target.train, target.train, epochs=1, batch_size=64)


def gains(share, seeds):
    """Gain of transfer for cold users of small worlds, and the verdicts."""
    found, verdicts = [], []
    for seed in seeds:
        world = data.generate(
            seed=seed, transferable=share, content=0.8, source_users=500, target_users=300, source_items=150,
            target_items=120, source_interactions=25.0,
        )  # fmt: skip
        ours = encoded(world.source)
        model = models.TwoTower.for_data(ours.train, dim=8, hidden=(16,), code_dim=4)
        rich = jaxrec.fit(model, ours.train, validation=ours.validation, epochs=15, batch_size=512, seed=seed)
        frames = world.target
        parts = data.split_cold_users(frames.interactions, frames.schema, validation=0.15, test=0.35, seed=seed)
        theirs = data.encode(parts, frames.schema, users=frames.users, items=frames.items, like=rich.encoder)
        comparison = transfer.compare(
            rich, theirs.train, theirs.test, validation=theirs.validation, epochs=15, batch_size=128, seed=seed
        )
        found.append(comparison.table.difference[0])
        verdicts.append((comparison.verdict, str(comparison)))
    return np.array(found), verdicts


@pytest.mark.filterwarnings("ignore::jaxrec.transfer.NegativeTransfer")  # of worlds that have nothing in common
def test_the_gain_rises_with_the_transferable_share():
    """The full run over ten seeds and four shares is benchmarks/shares.py."""
    (none, at_zero), (much, at_nine) = gains(0.0, range(3)), gains(0.9, range(3))
    assert much.mean() > 0 > none.mean()
    assert [verdict for verdict, _ in at_nine].count("helped") >= 2
    for verdict, words in at_zero:
        assert verdict != "helped" and "nothing to carry over" in words


def test_misspelt_options_are_refused(source, target):
    with refuses(TypeError, "unexpected keyword argument 'epoch'"):
        transfer.adapt(source, target.train, epoch=3)


# What must not be carried over


def test_kernels_are_not_copied_onto_other_features(world):
    users = world.source.users.assign(income=np.arange(len(world.source.users)) % 17)

    def part(*names):
        schema = data.Schema(user_features=tuple(map(data.Numeric, names)))
        frame = world.source.interactions[["user", "item"]]
        return data.encode(data.Parts(frame, None, None), schema, users=users).train

    trained = part("age", "income")
    model = models.TwoTower.for_data(trained, dim=4, hidden=(4,))
    source = jaxrec.fit(model, trained, epochs=1)
    turned = part("income", "age")
    with pytest.raises(ValueError, match="learned on the user features age, income and the target has income, age"):
        transfer.adapt(source, turned, epochs=1)
    assert transfer.adapt(source, turned, patterns="item/*", epochs=1).copied.paths("copied")


def test_kernels_are_not_copied_onto_numbers_of_another_scale(world):
    def part(feature):
        schema = data.Schema(user_features=(feature,))
        frame = world.source.interactions[["user", "item"]]
        return data.encode(data.Parts(frame, None, None), schema, users=world.source.users).train

    trained, raw = part(data.Numeric("age")), part(data.Numeric("age", scale=None))
    source = jaxrec.fit(models.TwoTower.for_data(trained, dim=4, hidden=()), trained, epochs=1)
    with refuses(ValueError, "user feature Numeric.*'zscore'.*the target's is Numeric.*None.*like=source.encoder"):
        transfer.adapt(source, raw, freeze="*")
    assert transfer.adapt(source, raw, patterns="item/*", freeze="*").copied.paths("copied")


@pytest.mark.parametrize("verb", [transfer.adapt, transfer.distill])
def test_targets_of_another_scale_are_refused(verb, rated_world):
    frame = rated_world.target.interactions
    schema = data.Schema(target="rating")
    plain, scaled = (
        data.encode(data.Parts(frame, None, None), dataclasses.replace(schema, target_scale=scale)).train
        for scale in (None, "zscore")
    )
    model = models.MatrixFactorization.for_data(plain, dim=3)
    source = jaxrec.fit(model, plain, epochs=1)
    with refuses(ValueError, "target_scale=None, and the training part has 'rating' with target_scale='zscore'"):
        verb(source, scaled, epochs=1)


def test_kernels_beside_the_sides_read_features_by_position_too(world):
    items = world.source.items.assign(kind=np.where(np.arange(len(world.source.items)) % 2, "a", "b"))

    def part(*names):
        schema = data.Schema(item_features=tuple(map(data.Categorical, names)))
        frame = world.source.interactions[["user", "item"]]
        return data.encode(data.Parts(frame, None, None), schema, items=items.assign(other=items["kind"])).train

    trained = part("kind", "other")
    deep = models.FactorizationMachine.for_data(trained, dim=4, hidden=(4,))
    source = jaxrec.fit(deep, trained, epochs=1, batch_size=4096)
    with refuses(ValueError, "learned on the item features kind, other and the target has other, kind"):
        transfer.adapt(source, part("other", "kind"), epochs=1)


def test_probabilities_go_on_as_probabilities(rated_world):
    ours, theirs = encoded(rated_world.source), encoded(rated_world.target)
    ours, theirs = (
        dataclasses.replace(parts.train, target=(parts.train.target > np.median(parts.train.target)).astype(np.float32))
        for parts in (ours, theirs)
    )
    model = models.MatrixFactorization.for_data(ours, dim=4)
    source = jaxrec.fit(model, ours, loss="sigmoid_cross_entropy", epochs=1)
    assert transfer.adapt(source, theirs, epochs=1).recommender.link == "sigmoid"
    assert transfer.adapt(source, theirs, epochs=1, loss="mse").recommender.link == "identity"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "ndgc@10"}, ValueError, "metric such as 'ndcg@10', of recall"),
        ({"metric": "ndcg@1000"}, ValueError, "metric at 1 .. \\d+ "),
        ({"level": 95}, ValueError, "level in \\(0, 1\\), .* got 95"),
        ({"strategy": {"freeze": "*"}}, TypeError, "freeze is an option of compare itself"),
        ({"strategy": {"adapters": "rank4"}}, TypeError, "Expected a LowRank or Bottleneck for adapters, got str"),
        ({"strategy": {"params": {}}}, TypeError, "adapt sets params= of fit itself. .* patterns="),
        ({"strategy": {"frozen_rows": {}}}, TypeError, "adapt sets frozen_rows= of fit itself. .* freeze="),
        ({"unmatched": "unknown"}, TypeError, "transferred model alone.*give compare.*strategy={'unmatched': ...}"),
        ({"unfreeze": {2: "*"}}, TypeError, "transferred model alone.*give compare.*strategy={'unfreeze': ...}"),
    ],
)
def test_compare_refuses_before_it_trains(source, target, monkeypatch, options, error, message):
    @functools.wraps(jaxrec.fit)  # whose arguments are looked at
    def never(*_, **__):
        raise AssertionError("trained")

    for module in (transfer._adapt, transfer._compare):
        monkeypatch.setattr(module, "fit", never)
    with refuses(error, message):
        transfer.compare(source, target.train, target.test, **options)


def test_losses_whose_scores_mean_different_things_are_not_compared(rated_world):
    ours, theirs = encoded(rated_world.source), encoded(rated_world.target)
    source = jaxrec.fit(models.MatrixFactorization.for_data(ours.train, dim=4), ours.train, epochs=1)
    with refuses(ValueError, "got 'bpr' in strategy= and None for both"):
        transfer.compare(source, theirs.train, theirs.test, strategy={"loss": "bpr"}, epochs=1)
    likes = dataclasses.replace(ours.train.encoder.schema, target=None)
    rows = ours.train.encoder.users.decode(ours.train.user), ours.train.encoder.items.decode(ours.train.item)
    frame = pd.DataFrame({"user": rows[0], "item": rows[1], "time": 0, "rating": 1.0})
    liked = data.encode(
        data.Parts(frame, None, None), likes, users=rated_world.source.users, items=rated_world.source.items
    ).train
    both = {"rated": source, "liked": jaxrec.fit(source.model, liked, epochs=1)}
    with refuses(ValueError, "mean different things \\(orders, targets\\)"):
        transfer.adapt(both, theirs.train)


@pytest.mark.parametrize(
    ("link", "loss", "message"),
    [
        ("rank", None, "loss of ranking, whose scores are no targets.*such as loss='bpr'"),
        ("rank", "mse", "'rmse' compares predictions with targets, and the loss is one of ranking"),
        ("liked", None, "'rmse' compares predictions with targets, and the loss is one of ranking"),
    ],
)
def test_frozen_scores_that_only_order_are_not_compared_with_targets(rated_world, monkeypatch, link, loss, message):
    theirs = encoded(rated_world.target)
    given = theirs.train
    if link == "liked":
        given = dataclasses.replace(
            given,
            encoder=dataclasses.replace(given.encoder, schema=dataclasses.replace(given.encoder.schema, target=None)),
            target=None,
        )
    model = models.MatrixFactorization.for_data(given, dim=2)
    source = jaxrec.fit(model, given, loss="bpr", epochs=1)

    @functools.wraps(jaxrec.fit)
    def never(*_, **__):
        raise AssertionError("trained")

    for module in (transfer._adapt, transfer._compare):
        monkeypatch.setattr(module, "fit", never)
    with refuses(ValueError, message):
        transfer.compare(source, theirs.train, theirs.test, freeze="*", loss=loss)


def test_a_frozen_copy_folds_in_as_its_source(parts):
    known = train.fit_als(parts.train, dim=4, epochs=3)
    frozen = transfer.adapt(known, parts.train, freeze="*").recommender
    rows = parts.train.encoder.items.ids[:4]
    visits = pd.DataFrame({"user": -1, "item": rows, "time": 0})
    ours, theirs = (jaxrec.predict(coldstart.add(each, interactions=visits), visits) for each in (frozen, known))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_mixture_is_adapted_part_by_part(parts, factorization):
    mixed = coldstart.mix([factorization, factorization], [[0.5] * 3] * 2)
    with refuses(ValueError, r"The source is a mixture.*Adapt its parts \(source.parts\)"):
        transfer.adapt(mixed, parts.train, freeze="*")


def test_features_that_a_model_does_not_read_may_differ(world):
    bare = dataclasses.replace(world.target.schema, user_features=())
    sources, targets = (encoded(frames) for frames in (world.source, world.target._replace(schema=bare, users=None)))
    model = models.SequenceTransformer.for_data(sources.train, dim=4, layers=1, history=4, code_dim=2)
    source = jaxrec.fit(model, sources.train, epochs=1, batch_size=512)
    adapted = transfer.adapt(source, targets.train, freeze="*")
    assert "user/bias" in adapted.copied.paths("copied")


@pytest.mark.parametrize("freeze", ["user/*", "*"])
def test_the_unknown_row_of_a_frozen_table_is_the_mean(parts, factorization, freeze):
    adapted = transfer.adapt(factorization, parts.train, freeze=freeze, epochs=1)
    table, row = adapted.recommender.params["user"]["embedding"], parts.train.features.user_row
    np.testing.assert_allclose(table[0], np.asarray(table)[row[row > 0]].mean(axis=0), atol=1e-6)


def test_a_scalar_alone_is_no_transfer(parts, factorization):
    frame = pd.DataFrame({"user": ["a", "b", "c"], "item": ["x", "y", "z"]})
    strangers = data.encode(data.Parts(frame, None, None), data.Schema()).train
    with pytest.raises(ValueError, match="Nothing of weight was copied"):
        transfer.adapt(factorization, strangers, epochs=1)
    alignment = transfer.align(factorization.encoder, strangers.encoder, require=False)
    assert "int ids there and str ids here can never match" in str(alignment)


def test_what_was_made_of_the_right_object_is_named(source, target):
    adapted = transfer.adapt(source, target.train, epochs=1)
    with refuses(TypeError, "Expected a Recommender for recommender, got Adapted. Pass its .recommender"):
        jaxrec.recommend(adapted)
    with refuses(TypeError, "Expected a Dataset for train, got Parts"):
        transfer.adapt(source, target)
    with refuses(TypeError, "Expected a Dataset for test, got Parts"):
        transfer.compare(source, target.train, target)


def test_trees_of_numpy_arrays_are_copied_and_no_rows_frozen():
    tree = {"user": {"embedding": np.arange(6.0, dtype=np.float32).reshape(3, 2)}}
    copied, _ = transfer.copy(tree, jax.tree.map(np.zeros_like, tree))
    np.testing.assert_array_equal(copied["user"]["embedding"], tree["user"]["embedding"])
    assert not transfer.freeze(tree, rows={"user/embedding": np.array([])}).rows["user/embedding"].any()
