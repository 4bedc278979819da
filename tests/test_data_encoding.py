"""Vocabularies, scaling, features and encoders: what the training part says, kept and used again."""

import dataclasses
import datetime
import uuid

import numpy as np
import pandas as pd
import pytest
from helpers import refuses, untyped

from jaxrec import data, transfer
from jaxrec.data._counting import distinct, grouped
from jaxrec.data._features import FittedFeature
from jaxrec.data._sides import capacity_for

BIG = 2**40 + 5


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([30, 10, 20], "int"),
        (np.array([3, 1, 2], np.uint8), "int"),
        ([BIG, 1, 2**62], "int"),
        (np.array([2**63 + 7, 1], np.uint64), "int"),
        (["b", "a", "ü\u2028"], "str"),
        (pd.Series(["b", "a"]), "str"),
        (pd.Series(["b", "a"], dtype="category"), "str"),
        (pd.Series([5, 4], dtype="Int64"), "int"),
        ([("x", 2), ("x", 1)], "other"),
        ([uuid.UUID(int=2), uuid.UUID(int=1)], "other"),
        ([datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)], "other"),
        ([b"b", b"a"], "other"),
        ([1.5, 0.5], "other"),
        ([True, False], "other"),
    ],
)
def test_ids_of_any_type_go_to_rows_and_back_in_ascending_order(values, kind):
    vocabulary = data.Vocabulary.fit(values)
    index = vocabulary.encode(values)
    assert vocabulary.kind == kind and index.dtype == np.int32
    assert sorted(index.tolist()) == list(range(1, len(list(values)) + 1))
    assert vocabulary.decode(index).tolist() == list(values)
    assert sorted(vocabulary.ids.tolist()) == vocabulary.ids.tolist()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (list(np.array(["b", "a"])), "str"),
        ([np.str_("b"), "a"], "str"),
        (pd.Series(list(np.array(["b", "a"])), dtype=object), "str"),
        (list(np.array([2, 1])), "int"),
        ([np.float32(1.5), 0.5], "other"),
        (list(np.array([True, False])), "other"),
        ([np.bytes_(b"b"), b"a"], "other"),
        ([np.datetime64("2020-01-02"), np.datetime64("2020-01-01")], "other"),
    ],
)
def test_elements_of_numpy_arrays_are_pythons_own(values, kind):
    vocabulary = data.Vocabulary.fit(values)
    given = [each.item() if isinstance(each, np.generic) else each for each in values]
    assert vocabulary.kind == kind and vocabulary.encode(values).tolist() == vocabulary.encode(given).tolist() == [2, 1]
    longer = data.Vocabulary.fit(values[1:]).extend(values)
    for each in (vocabulary, longer):
        assert {type(raw) for raw in each.ids.tolist()} == {type(raw) for raw in given}


def test_elements_of_numpy_arrays_that_cannot_be_ids_are_refused_too():
    for value, message in ((np.nan, "ids are missing"), (1.0, "got floats such as 1.0")):
        with pytest.raises((ValueError, TypeError), match=message):
            data.Vocabulary.fit([np.float64(value)])


@pytest.mark.parametrize("kind", [np.str_, np.bool_, np.float32])
def test_labels_may_be_elements_of_numpy_arrays(kind):
    tags = [kind(each) for each in ("ab" if kind is np.str_ else (0, 1) if kind is np.bool_ else (0.5, 1.5))]
    items = pd.DataFrame(
        {"item": [1, 2], "tags": [np.array(tags), list(tags[1:])], "one": pd.Series(tags, dtype=object)}
    )
    schema = data.Schema(item_features=(data.Labels("tags"), data.Categorical("one")))
    features = data.Encoder.fit(pd.DataFrame({"user": [1, 2], "item": [1, 2]}), schema, items=items).item_features
    for each in features:
        assert [type(label) for label in each.vocabulary.ids] == [type(tags[0].item())] * 2
        assert each.encode(items).tolist() == ([[1, 2], [2, 0]] if each.name == "tags" else [[1], [2]])


def test_unknown_ids_become_zero():
    vocabulary = data.Vocabulary.fit([1, 2, BIG])
    assert vocabulary.encode([BIG, BIG + 1, -1, 2]).tolist() == [3, 0, 0, 2]
    assert vocabulary.encode([]).tolist() == [] and data.Vocabulary.fit([]).encode([1]).tolist() == [0]
    assert BIG in vocabulary and 7 not in vocabulary


def test_64_bit_ids_are_not_confused_with_their_lower_halves():
    vocabulary = data.Vocabulary.fit([5, BIG])
    assert vocabulary.encode([5]).tolist() != vocabulary.encode([BIG]).tolist()
    assert vocabulary.decode(vocabulary.encode([BIG])).tolist() == [BIG]


def test_extending_keeps_old_numbers():
    vocabulary = data.Vocabulary.fit(["m", "k"])
    longer = vocabulary.extend(["z", "a", "k"])
    assert longer.ids.tolist() == ["k", "m", "a", "z"] and len(vocabulary) == 2
    assert vocabulary.extend(["k"]) is vocabulary
    assert longer == data.Vocabulary("str", np.array(["k", "m", "a", "z"], dtype=object)) != vocabulary


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([1, "a"], TypeError, "ids of one type, got a mixture of int, str"),
        ([None, None], ValueError, "ids are missing"),
        ([1.0, float("nan")], ValueError, "ids are missing"),
        (pd.Series([1.0, None]), ValueError, "1 ids are missing"),
        ([[1], [2]], TypeError, "Expected hashable ids, got list"),
    ],
)
def test_ids_that_cannot_be_numbered_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        data.Vocabulary.fit(values)


def test_ids_of_another_type_can_never_match_and_are_refused():
    with pytest.raises(TypeError, match="Expected ids of type int.*got str"):
        data.Vocabulary.fit([1, 2]).encode(["1"])
    day, moment = datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1)
    for ours, theirs, message in ((day, moment, "date.*got datetime"), (uuid.UUID(int=1), b"1", "UUID.*got bytes")):
        for call in (data.Vocabulary.fit([ours]).encode, data.Vocabulary.fit([ours]).extend):
            with pytest.raises(TypeError, match=f"Expected ids of type {message}"):
                call([theirs])
    assert data.Vocabulary.fit([pd.Timestamp(moment)]).encode([moment]).tolist() == [1]
    with pytest.raises(ValueError, match=r"indices in 1 .. 2, got 0 .. 2"):
        data.Vocabulary.fit([1, 2]).decode(np.array([0, 2]))
    with pytest.raises(ValueError, match="fit 64 bits, all signed or all unsigned, got -1"):
        data.Vocabulary.fit([-1]).extend([2**63 + 1])


@pytest.mark.parametrize("scale", ["zscore", "minmax", "log1p", "quantile"])
def test_scaling_is_undone(scale):
    values = np.random.default_rng(0).gamma(2.0, 3.0, (200, 2))
    scaler = data.Scaler.fit(values, scale, "x")
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values, "x")), values, rtol=1e-8, atol=1e-8)
    assert scaler == data.Scaler.fit(values, scale, "x") and scaler != data.Scaler.fit(values + 1, scale, "x")
    assert scale in repr(scaler)


def test_scales_are_what_their_names_say():
    values = np.array([[1.0], [3.0], [5.0]])
    assert data.Scaler.fit(values, "zscore", "x").transform(values, "x").std() == pytest.approx(1.0)
    assert data.Scaler.fit(values, "minmax", "x").transform(values, "x").ravel().tolist() == [0.0, 0.5, 1.0]
    assert data.Scaler.fit(values, "quantile", "x").transform(values, "x").ravel().tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(data.Scaler.fit(values, "log1p", "x").transform(values, "x"), np.log1p(values))


@pytest.mark.parametrize(("scale", "middle"), [("zscore", 0.0), ("minmax", 0.5), ("quantile", 0.5)])
def test_missing_numbers_take_the_middle(scale, middle):
    values = np.array([[1.0], [2.0], [6.0], [np.nan]])
    assert data.Scaler.fit(values, scale, "x").transform(values, "x")[3, 0] == pytest.approx(middle)


def test_scales_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'x' is constant \\(2\\) in the training part"):
        data.Scaler.fit(np.full((3, 1), 2.0), "zscore", "x")
    with pytest.raises(ValueError, match="'x' has no value in the training part"):
        data.Scaler.fit(np.full((3, 1), np.nan), "zscore", "x")
    with pytest.raises(ValueError, match="above -1 for the log1p scale of 'x', got -3"):
        data.Scaler.fit(np.array([[-3.0], [1.0]]), "log1p", "x")


USERS = pd.DataFrame({"user": [1, 2, 3, 4], "age": [20.0, 40.0, 90.0, np.nan], "job": ["a", "b", "c", None]})
ITEMS = pd.DataFrame(
    {"item": ["x", "y", "z"], "tags": ["t|s", "s", "t|new|s"], "vector": [[1.0, 2.0], [3.0, 4.0], None]}
)
TRAIN = pd.DataFrame({"user": [1, 2, 1], "item": ["x", "y", "y"], "rating": [1.0, 3.0, 5.0]})
SCHEMA = data.Schema(
    target="rating",
    target_scale="zscore",
    user_features=(data.Numeric("age"), data.Categorical("job")),
    item_features=(data.Labels("tags", "|"), data.Vector("vector")),
)


def fitted(**options):
    return data.Encoder.fit(TRAIN, SCHEMA, users=USERS, items=ITEMS, **options)


def test_statistics_come_from_the_training_part_alone():
    encoder = fitted()
    ages = encoder.features.user_dense[1:5, 0]
    np.testing.assert_allclose(ages, [-1.0, 1.0, 6.0, 0.0])  # mean 30, deviation 10: users 3 and 4 are not in training
    jobs = encoder.features.user_codes["job"][1:5, 0]
    assert jobs.tolist() == [1, 2, 0, 0]  # "c" was never seen in training, None is missing
    tags = encoder.features.item_codes["tags"]
    assert sorted(tags[1].tolist()) == [1, 2] and tags[2].tolist() == [1, 0]
    assert sorted(tags[3].tolist()) == [1, 2]  # "new" is unknown
    assert encoder.features.item_dense[3].tolist() == [0.0, 0.0]
    assert encoder.target.statistics[:, 0].tolist() == [3.0, np.sqrt(8 / 3)]


def test_two_numberings_cold_entities_have_an_index_and_no_row():
    encoder = fitted()
    assert encoder.users.encode([1, 2, 3, 4]).tolist() == [1, 2, 3, 4]
    assert encoder.features.user_row[:5].tolist() == [0, 1, 2, 0, 0]
    assert encoder.features.item_row[:4].tolist() == [0, 1, 2, 0]
    sizes = encoder.sizes
    assert sizes.user_rows == capacity_for(3) and len(encoder.features.user_row) == capacity_for(5)
    assert sizes.user_codes == (("job", 3),) and sizes.item_codes == (("tags", 3),) and sizes.item_dense == 2


def test_entities_are_sorted_by_raw_id_whatever_their_order():
    shuffled = data.Encoder.fit(
        TRAIN.iloc[::-1], SCHEMA, users=USERS.sample(frac=1, random_state=1), items=ITEMS.iloc[::-1]
    )
    assert shuffled.users == fitted().users and shuffled.items == fitted().items
    np.testing.assert_array_equal(shuffled.features.user_dense, fitted().features.user_dense)


def test_encoders_are_values():
    assert fitted() == fitted()
    assert fitted() != fitted(also=[TRAIN.assign(user=99)])
    assert "4 users (2 with a table row; features: age, job)" in repr(fitted())


def test_encoding_scales_targets_and_marks_unknown_ids():
    encoder = fitted()
    dataset = encoder.encode(pd.DataFrame({"user": [2, 77], "item": ["z", "?"], "rating": [3.0, 5.0]}))
    assert dataset.user.tolist() == [2, 0] and dataset.item.tolist() == [3, 0]
    np.testing.assert_allclose(dataset.target, [0.0, 2 / np.sqrt(8 / 3)], rtol=1e-6)
    np.testing.assert_allclose(encoder.original_target(dataset.target), [3.0, 5.0], rtol=1e-6)
    assert encoder.encode(pd.DataFrame({"user": [1], "item": ["x"]}), labelled=False).target is None


def test_held_out_ids_belong_to_the_catalogue():
    parts = data.Parts(TRAIN, None, pd.DataFrame({"user": [9], "item": ["w"], "rating": [1.0]}))
    encoded = data.encode(parts, data.Schema(target="rating"))
    assert encoded.validation is None and encoded.test.user.tolist() == [3] and encoded.test.item.tolist() == [1]
    assert encoded.train.encoder is encoded.test.encoder and encoded.test.features.user_row[3] == 0


def test_extending_within_the_capacity_keeps_every_shape():
    encoder = fitted()
    new = pd.DataFrame({"user": [50, 51], "age": [30.0, 40.0], "job": ["b", "unheard of"]})
    longer = encoder.extend(users=new, items=["q"])
    for ours, theirs in zip(encoder.features, longer.features, strict=True):
        assert not isinstance(ours, np.ndarray) or (ours.shape == theirs.shape and ours.dtype == theirs.dtype)
    assert longer.sizes == encoder.sizes
    np.testing.assert_allclose(longer.features.user_dense[5:7, 0], [0.0, 1.0])
    assert longer.features.user_codes["job"][5:7, 0].tolist() == [2, 0]
    assert longer.features.user_row[5] == 0 and not encoder.features.user_dense[5].any()


def test_the_capacity_doubles_when_it_is_used_up():
    encoder = fitted()
    size = len(encoder.features.item_row)
    longer = encoder.extend(items=[f"new-{number}" for number in range(size)])
    assert len(longer.features.item_row) == 2 * size == len(longer.features.item_dense)
    assert longer.items.encode(["x", "new-0"]).tolist() == [1, 4]


def test_longer_lists_of_known_labels_widen_the_codes():
    encoder = data.Encoder.fit(TRAIN, SCHEMA, users=USERS, items=ITEMS.assign(tags=["t|s", "u", "new|u"]))
    assert encoder.features.item_codes["tags"][1:4].tolist() == [[2, 1], [3, 0], [3, 0]]
    longer = encoder.extend(items=pd.DataFrame({"item": ["m"], "tags": ["v|s|t|s|u|w"], "vector": [[0.0, 0.0]]}))
    assert longer.features.item_codes["tags"][1:5].tolist() == [[2, 1, 0], [3, 0, 0], [3, 0, 0], [1, 2, 3]]


def test_rows_are_given_without_disturbing_others():
    encoder = fitted()
    more = encoder.with_rows("user", np.array([4, 1, 0]))
    assert more.features.user_row[:5].tolist() == [0, 1, 2, 0, 3] and more.user_rows == encoder.user_rows
    many = encoder.extend(users=range(100, 400)).with_rows("user", np.arange(5, 305))
    assert many.user_rows > encoder.user_rows and many.features.user_row.max() == 302


def test_features_may_be_read_like_another_domain():
    other = pd.DataFrame({"user": [1, 2], "item": ["x", "y"], "rating": [1.0, 2.0]})
    users = pd.DataFrame({"user": [1, 2], "age": [100.0, 200.0], "job": ["b", "zzz"]})
    like = fitted()
    with pytest.warns(UserWarning, match="1 of 3 items in the frame of items belong to the source domain"):
        encoder = data.Encoder.fit(other, SCHEMA, users=users, items=ITEMS, like=like)
    np.testing.assert_allclose(encoder.features.user_dense[1:3, 0], [7.0, 17.0])
    assert encoder.features.user_codes["job"][1:3, 0].tolist() == [2, 3]  # "zzz" is appended
    assert encoder.target == like.target


@pytest.mark.parametrize(
    ("source", "target", "came"),
    [
        ([1, 2, 3], ["1", "2", "3"], r"int ids: 1 ... 3.*'x', got only others such as '1' \(str\)"),
        (["1", "2", None], [1.0, 2.0, np.nan], r"str ids.*such as 1 \(int\)"),
        ([True, False, True], [1, 0, 1], r"other ids: False ... True.*such as 1 \(int\)"),
        ([["a"], ["b"], []], [[7], [], [8]], r"str ids.*such as 7 \(int\)"),
    ],
)
def test_labels_that_could_never_match_those_of_the_source_are_refused(source, target, came):
    feature = data.Labels("x") if isinstance(source[0], list) else data.Categorical("x")
    schema = data.Schema(user_features=(feature,))
    rows = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1]})
    users = pd.DataFrame({"user": [1, 2, 3], "x": source})
    like = data.Encoder.fit(rows, schema, users=users)
    with pytest.raises(TypeError, match=f"{came}.*Convert the column, for example with .astype"):
        data.Encoder.fit(rows, schema, users=users.assign(x=target), like=like)
    some = [target[0], *source[1:]]  # one of another type is a new value like any other
    codes = data.Encoder.fit(rows, schema, users=users.assign(x=some), like=like).features.user_codes["x"]
    np.testing.assert_array_equal(codes[2:4], like.features.user_codes["x"][2:4])
    assert not codes[1].any()


def test_context_features_are_scaled_per_row():
    schema = data.Schema(user=None, item=None, target="y", context=(data.Numeric("a"), data.Vector("v")))
    frame = pd.DataFrame({"a": [1.0, 3.0], "v": [[1.0, 2.0], [3.0, 4.0]], "y": [0.0, 1.0]})
    dataset = data.Encoder.fit(frame, schema).encode(frame)
    assert dataset.context.tolist() == [[-1.0, 1.0, 2.0], [1.0, 3.0, 4.0]] and len(dataset) == 2
    assert dataset.user is None and len(dataset.interactions) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": None}, "names user features \\(age, job\\) and no frame of users"),
        ({"users": USERS.drop(columns="age")}, "frame of users lacks the column 'age'"),
        ({"users": pd.concat([USERS, USERS.iloc[:1]])}, "one row per user, but 1 has several"),
        ({"users": USERS.assign(age=1.0)}, "'age' is constant"),
        ({"users": USERS.assign(job="same")}, "'job' is constant"),
        ({"users": USERS.assign(age=np.inf)}, "'age' has 2 infinite values"),
        ({"users": USERS.assign(age="old")}, "Expected numbers in the feature column 'age', got 'old'"),
        ({"items": ITEMS.assign(vector=[[1.0], [1.0, 2.0], None])}, "vectors of one length in the column 'vector'"),
    ],
)
def test_features_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        data.Encoder.fit(TRAIN, SCHEMA, **{"users": USERS, "items": ITEMS, **change})


def test_strings_of_labels_need_a_separator():
    schema = data.Schema(target="rating", item_features=(data.Labels("tags"),))
    with pytest.raises(ValueError, match="are strings .* and no separator was given"):
        data.Encoder.fit(TRAIN, schema, items=ITEMS)
    lists = ITEMS.assign(tags=[["t", "s"], ["s"], []])
    codes = data.Encoder.fit(TRAIN, schema, items=lists).features.item_codes["tags"]
    assert codes[1:4].tolist() == [[2, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("cells", "ids", "codes"),
    [
        ([np.array(["a", None], object), ["b", np.nan], [None]], ["a", "b"], [1, 2, 0]),
        ([np.array([1.0, np.nan]), np.array([2]), None], [1, 2], [1, 2, 0]),  # a list of integers with a null in Arrow
        ([[1.0], [2.0], [pd.NA]], [1, 2], [1, 2, 0]),
        ([[0.5], [2.0], []], [0.5, 2.0], [1, 2, 0]),
    ],
)
def test_lists_of_labels_may_have_missing_elements_and_whole_floats(cells, ids, codes):
    items = ITEMS.assign(tags=cells)
    train = TRAIN.assign(item=["x", "y", "z"])
    encoder = data.Encoder.fit(train, data.Schema(item_features=(data.Labels("tags"),)), items=items)
    assert encoder.item_features[0].vocabulary.ids.tolist() == ids
    assert encoder.features.item_codes["tags"][1:4].tolist() == [[code] for code in codes]


def test_labels_that_cannot_be_numbered_name_their_column():
    schema = data.Schema(item_features=(data.Labels("tags"),))
    with pytest.raises(TypeError, match="Labels in the column 'tags': Expected ids of one type, got a mixture of int"):
        data.Encoder.fit(TRAIN, schema, items=ITEMS.assign(tags=[["a"], [1], []]))
    schema = data.Schema(item_features=(data.Categorical("brand"),))
    for dtype, large in (("float64", 2.0**53), ("float32", 2.0**24)):
        items = ITEMS.assign(brand=np.array([large, 1.0, np.nan], dtype))
        with pytest.raises(ValueError, match="1 values in 'brand' are floats beyond.*different ones may have become"):
            data.Encoder.fit(TRAIN, schema, items=items)


def test_vectors_keep_their_length_at_serving():
    with pytest.raises(ValueError, match="vectors of one length in the column 'vector', 2 as in training"):
        fitted().extend(items=pd.DataFrame({"item": ["m"], "tags": ["s"], "vector": [[1.0, 2.0, 3.0]]}))


def test_datasets_keep_arrays_of_one_length_and_compare():
    dataset = fitted().encode(TRAIN)
    assert dataset == fitted().encode(TRAIN) and dataset != dataset.subset(np.array([0, 1]))
    assert len(dataset.subset(dataset.user == 1)) == 2 and "3 interactions, with a target" in repr(dataset)


def test_datasets_hold_entity_indices_and_no_raw_ids():
    dataset = fitted().encode(TRAIN)
    with pytest.raises(
        TypeError, match="int32 entity indices in Dataset.user, got int64. Raw ids, which may need 64 bits"
    ):
        dataclasses.replace(dataset, user=np.array([BIG, 1, 2]))
    with pytest.raises(ValueError, match=r"entity indices 0 .. 3 in Dataset.item, got 1 .. 99"):
        dataclasses.replace(dataset, item=np.array([1, 2, 99], np.int32))
    with pytest.raises(ValueError, match="Expected arrays of one length, got {'user': 3, 'item': 2"):
        dataclasses.replace(dataset, item=np.array([1, 2], np.int32))


@pytest.mark.parametrize("scale", ["zscore", "minmax", "log1p", "quantile"])
def test_whoever_has_no_features_has_those_of_a_missing_value(scale):
    schema = data.Schema(user_features=(data.Numeric("age", scale),))
    train = pd.DataFrame({"user": [1, 2, 3, 4], "item": [1, 2, 1, 2]})
    users = pd.DataFrame({"user": [1, 2, 3], "age": [10.0, 20.0, np.nan]})
    with pytest.warns(UserWarning, match="1 of 4 users of the training part have no row in the frame of users"):
        encoder = data.Encoder.fit(train, schema, users=users)
    grown = encoder.extend(users=range(100, 200))
    dense = grown.features.user_dense[:, 0]
    assert len(dense) > len(encoder.features.user_dense)
    np.testing.assert_array_equal(dense[[0, 4, 5, -1]], dense[3])


def test_the_targets_scale_is_taken_over_only_if_it_is_the_same_kind():
    frame = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1], "r": [1.0, 2.0, 6.0]})
    like = data.Encoder.fit(frame, data.Schema(target="r", target_scale="zscore"))
    other = data.Encoder.fit(frame.assign(r=frame["r"] * 10), data.Schema(target="r", target_scale="minmax"), like=like)
    assert other.target.scale == "minmax" and other.encode(frame.assign(r=frame["r"] * 10)).target.max() == 1.0


def test_unsigned_and_signed_64_bit_ids_live_together():
    vocabulary = data.Vocabulary.fit(np.array([1, 2**63 + 5], np.uint64)).extend(np.array([7], np.uint64))
    assert vocabulary.encode([1, 2**63 + 5, 7, 2**63 + 4]).tolist() == [1, 2, 3, 0]
    assert vocabulary.encode([-1, 7]).tolist() == [0, 3]
    grown = data.Vocabulary.fit([1, 2]).extend([2**63 + 1])
    assert grown.encode([2**63 + 1]).tolist() == [3] and grown.encode([2, -5]).tolist() == [2, 0]
    small = data.Vocabulary.fit([1, 2])
    assert small.encode([2**63 + 1, 2]).tolist() == [0, 2]
    train = pd.DataFrame({"user": np.array([2**63 + 5, 1], np.uint64), "item": [1, 2]})
    users = pd.DataFrame({"user": np.array([1, 2, 2**63 + 5], np.uint64), "age": [3.0, 4.0, 5.0]})
    encoder = data.Encoder.fit(train, data.Schema(user_features=(data.Numeric("age"),)), users=users)
    assert encoder.users.ids.tolist() == [1, 2, 2**63 + 5]
    for ids in ([2**63 + 1, -1], [2**70, 1]):
        with pytest.raises(ValueError, match="fit 64 bits"):
            data.Vocabulary.fit(ids)


def test_categories_of_another_type_are_unknown_and_whole_floats_are_integers():
    schema = data.Schema(user_features=(data.Categorical("job"),))
    train = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1]})
    encoder = data.Encoder.fit(train, schema, users=pd.DataFrame({"user": [1, 2, 3], "job": [1, 2, np.nan]}))
    dates = [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2), None]
    dated = data.Encoder.fit(train, schema, users=pd.DataFrame({"user": [1, 2, 3], "job": dates}))
    for each, value, code in (
        *((encoder, value, code) for value, code in ((2, 2), (2.0, 2), ("x", 0), (9, 0))),
        *((dated, value, code) for value, code in ((dates[1], 2), (pd.Timestamp(dates[1]), 0))),
    ):
        grown = each.extend(users=pd.DataFrame({"user": [9], "job": [value]}))
        assert grown.features.user_codes["job"][4, 0] == code


@pytest.mark.parametrize("years", [[1999.0, 2000.0, np.nan], [1999.0, 2000.0, 2000.5]])
def test_what_a_number_means_does_not_depend_on_its_neighbours(years):
    schema = data.Schema(user_features=(data.Categorical("year"),))
    train = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1]})
    encoder = data.Encoder.fit(train, schema, users=pd.DataFrame({"user": [1, 2, 3], "year": years}))
    for others in ([2000.0, 1999.0], [2000, 1999], [1999.5, 1999.0], ["x", 1999.0], [None, 1999.0]):
        users = pd.DataFrame({"user": [8, 9], "year": pd.Series(others, dtype=object)})
        assert encoder.extend(users=users).features.user_codes["year"][5, 0] == 1
    target = pd.DataFrame({"user": [1, 2, 3], "year": [1999.0, 2003.0, 0.5]})
    like = data.Encoder.fit(train, schema, users=target, like=encoder)
    ids = like.user_features[0].vocabulary.ids.tolist()
    assert ids[:2] == [1999, 2000] and 2003 in ids and {type(each) for each in ids} <= {int, float}
    assert like.features.user_codes["year"][2, 0] == ids.index(2003) + 1


def test_floats_that_go_with_others_may_be_whole():
    vocabulary = data.Vocabulary.fit([1999.0, 2000.5])
    assert vocabulary.encode([1999.0]).tolist() == [1] and vocabulary.encode(pd.Series([7.0])).tolist() == [0]
    assert vocabulary.extend([7.0]).ids.tolist() == [1999.0, 2000.5, 7.0]
    assert data.Vocabulary.fit([7.0], [2000.5, 1999.0], [7.0]).ids.tolist() == [7.0, 1999.0, 2000.5]
    for refused in (data.Vocabulary.fit, data.Vocabulary.fit([1, 2]).encode, lambda ids: data.Vocabulary.fit([1], ids)):
        with pytest.raises(TypeError, match="got floats such as 1999.0"):
            refused([1999.0])


def test_labels_of_nobody_are_constant():
    with pytest.raises(ValueError, match="'a' is constant"):
        FittedFeature.fit(data.Labels("a", "|"), pd.DataFrame({"a": []}))


@pytest.mark.parametrize(
    "feature", [data.Numeric("a"), data.Numeric("a", None), data.Vector("a"), data.Vector("a", "rms")]
)
def test_constant_features_are_refused_whatever_their_scale(feature):
    users = pd.DataFrame({"user": [1, 2], "a": [[1.0, 2.0]] * 2 if isinstance(feature, data.Vector) else [1.0, 1.0]})
    train = pd.DataFrame({"user": [1, 2], "item": [1, 2]})
    with pytest.raises(ValueError, match="'a' is constant .* Leave it out of the schema; if it should vary"):
        data.Encoder.fit(train, data.Schema(user_features=(feature,)), users=users)


@pytest.mark.parametrize(
    ("values", "option", "message"),
    [
        ([1.0, 1.0, np.nan], "scale", "feature 'x' is constant"),  # whether there is one says something
        ([[1.0, 2.0], [1.0, 3.0], None], "scale", "Number 0 of the vectors 'x' is constant"),
        ([5.0, 5.0, 5.0], "target_scale", "target 'x' is constant"),
    ],
)
def test_what_is_said_of_a_scale_that_cannot_be_helps(values, option, message):
    frame = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1], "x": values})

    def fit(**options):
        if option == "target_scale":
            return data.Encoder.fit(frame, data.Schema(target="x", **options))
        kind = data.Vector if "vectors" in message else data.Numeric
        return data.Encoder.fit(frame, data.Schema(user_features=(kind("x", **options),)), users=frame[["user", "x"]])

    with pytest.raises(ValueError, match=f"{message} .*[^_]{option}=.*None"):
        fit(**{option: "zscore"})
    fit(**{option: None})


@pytest.mark.parametrize(
    ("feature", "cells"),
    [
        (data.Labels("x"), [["sale"], [], ["sale"], []]),
        (data.Categorical("x"), ["gold", None, "gold", None]),
        (data.Categorical("x"), [7.0, np.nan, 7.0, np.nan]),
    ],
)
def test_whether_there_is_a_label_says_something(feature, cells):
    schema = data.Schema(user_features=(feature,))
    train = pd.DataFrame({"user": [1, 2, 3, 4], "item": [1, 2, 1, 2]})
    users = train[["user"]].assign(x=cells)
    assert data.Encoder.fit(train, schema, users=users).features.user_codes["x"][1:5].tolist() == [[1], [0], [1], [0]]
    for same in ([cells[0]] * 4, [None] * 4):
        with pytest.raises(ValueError, match="'x' is constant in the training part"):
            data.Encoder.fit(train, schema, users=users.assign(x=same))


def test_objects_that_carry_the_right_one_are_named(parts, world):
    frame = world.target.interactions
    with refuses(TypeError, "Expected a Parts for parts, got DataFrame.*data.split_random"):
        data.encode(frame, world.target.schema)
    with refuses(TypeError, "Expected a Encoder for like, got Parts. Pass its .train.encoder"):
        data.encode(data.Parts(frame, None, None), data.Schema(), like=parts)
    with refuses(TypeError, "Expected Numeric, Categorical, Labels or Vector .* got 'age'"):
        data.Schema(user_features=("age",))
    with untyped():  # the comma that makes a tuple is easily forgotten
        assert data.Schema(user_features=data.Numeric("age")) == data.Schema(user_features=(data.Numeric("age"),))
    with pytest.raises(ValueError, match="numbers or datetimes in the time column 't', got '2020'.*pandas.to_datetime"):
        data.encode(
            data.Parts(pd.DataFrame({"user": [1], "item": [1], "t": ["2020"]}), None, None), data.Schema(time="t")
        )


def test_rows_without_users_are_counted():
    frame = pd.DataFrame({"item": ["a", "b"]})
    assert len(data.Encoder.fit(frame, data.Schema(user=None)).encode(frame)) == 2


def test_parts_of_different_id_types_are_refused():
    train, test = (pd.DataFrame({"user": users, "item": [1, 2]}) for users in ([1, 2], ["a", "b"]))
    with pytest.raises(TypeError, match="ids of one type, got a mixture of int, str"):
        data.encode(data.Parts(train, None, test), data.Schema())


def test_domains_of_ids_that_can_never_match_share_none():
    schema = data.Schema(item_features=(data.Numeric("year"),))
    source, target = (
        pd.DataFrame({"user": ids, "item": ids, "year": [1999, 2000]})
        for ids in ([uuid.UUID(int=1), uuid.UUID(int=2)], [b"1", b"2"])
    )
    like = data.Encoder.fit(source, schema, items=source)
    more = pd.concat([target, pd.DataFrame({"item": [b"3"], "year": [2001]})])  # which might be one of the source's
    encoder = data.Encoder.fit(target, schema, items=more[["item", "year"]], like=like)
    alignment = str(transfer.align(like, encoder, require=False))
    assert "UUID ids there and bytes ids here can never match" in alignment


def test_pairs_need_users_and_items():
    encoder = data.Encoder.fit(pd.DataFrame({"user": [1, 2], "item": [1, 2]}), data.Schema())
    assert len(encoder.pairs(pd.DataFrame({"user": [1, 9], "item": [2, 2]}))) == 1
    with pytest.raises(ValueError, match="frame of pairs lacks the column 'item'"):
        encoder.pairs(pd.DataFrame({"user": [1]}))
    alone = data.Encoder.fit(pd.DataFrame({"item": [1, 2]}), data.Schema(user=None))
    with pytest.raises(ValueError, match="Pairs need users and items"):
        alone.pairs(pd.DataFrame({"item": [1]}))


def test_a_missing_truth_value_is_a_missing_number():
    schema = data.Schema(user_features=(data.Numeric("member", "minmax"),))
    users = pd.DataFrame({"user": [1, 2, 3], "member": pd.array([True, False, None], dtype="boolean")})
    encoder = data.Encoder.fit(pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1]}), schema, users=users)
    assert encoder.features.user_dense[1:4, 0].tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feedback": "explict"}, "feedback to be 'implicit', 'explicit', got 'explict'"),
        ({"source_interactions": 0.0}, "at least 2 interactions per user"),
        ({"shared_users": 1.0, "source_users": 10, "target_users": 20}, "cannot all be among 10 source users"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options, message):
    with refuses(ValueError, message):
        data.generate(seed=0, **options)


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, "int32"), (7, "uint8"), (2**16 - 1, "int32"), (2**16, "int32"), (2**31 - 1, "int32"), (2**32 - 1, "int64")]
    + [(2**32, "int64"), (2**40, "int64")],
)
@pytest.mark.parametrize("rows", [0, 1, 500])
def test_large_arrays_are_grouped_and_sorted_as_numpy_does_it(largest, dtype, rows):
    values = np.random.default_rng(rows).integers(0, largest, rows, endpoint=True).astype(dtype)
    values[: rows // 2] = values[rows - rows // 2 :]  # some twice
    values[:1] = largest
    for given in (values, np.sort(values)):
        np.testing.assert_array_equal(grouped(given), np.argsort(given, kind="stable"))
        np.testing.assert_array_equal(distinct(given), np.unique(given))


def test_targets_beyond_the_ends_of_quantiles_are_refused():
    train = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 1], "r": [1.0, 2.0, 6.0]})
    encoder = data.Encoder.fit(train, data.Schema(target="r", target_scale="quantile"))
    for beyond in (645.0, -1.0):
        with pytest.raises(ValueError, match=r"1 targets in 'r' are outside .* \[1, 6\].*target_scale='zscore'"):
            encoder.encode(train.assign(r=[1.0, 6.0, beyond]))
    assert len(encoder.encode(train.assign(r=99.0), labelled=False)) == 3


HUGE = pd.DataFrame({"user": [1, 2], "item": [1, 2], "x": [1.0, 1e39], "unit": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (data.Schema(target="x"), "Use target_scale="),
        (data.Schema(weight="x"), "Use a smaller unit"),
        (data.Schema(context=(data.Numeric("x", scale=None), data.Numeric("unit"))), "Use scale='zscore'"),
    ],
)
def test_numbers_that_overflow_float32_are_refused(schema, message):
    with pytest.raises(ValueError, match=rf"up to 3.4e\+38.* in the column 'x', got 1e\+39. {message}"):
        data.encode(data.Parts(HUGE, None, None), schema)
    data.encode(data.Parts(HUGE, None, None), data.Schema(target="x", target_scale="zscore"))


@pytest.mark.parametrize("feature", [data.Vector("x"), data.Numeric("x"), data.Categorical("x")])
def test_features_of_other_entities_are_told_by_their_ids(feature):
    values = [[1.0, 2.0], [3.0, 4.0]] if isinstance(feature, data.Vector) else [1.0, 2.0]
    items = pd.DataFrame({"item": ["p", "q"], "x": values})
    with pytest.raises(ValueError, match="No row with the features x is of the training part.*whether the ids"):
        data.Encoder.fit(TRAIN, data.Schema(item_features=(feature,)), items=items)


@pytest.mark.parametrize(
    ("feature", "value"), [(data.Vector("v"), [1.0]), (data.Numeric("v"), 1.0), (data.Numeric("v", scale=None), 1.0)]
)
def test_what_no_training_item_has_is_refused(feature, value):
    items = pd.DataFrame({"item": ["x", "y", "z"], "v": [None, None, value]})
    with pytest.raises(ValueError, match="'v' has no (vector|value) in the training part. Leave it out of the schema"):
        data.Encoder.fit(TRAIN, data.Schema(item_features=(feature,)), items=items)


def test_further_interactions_need_the_columns_of_ids():
    with pytest.raises(ValueError, match="frame of further interactions lacks the column 'item'"):
        data.Encoder.fit(TRAIN, data.Schema(), also=[TRAIN[["user"]]])
    alone = data.Encoder.fit(TRAIN, data.Schema())
    assert data.Encoder.fit(TRAIN, data.Schema(), also=[pd.DataFrame(), TRAIN.iloc[:0]]) == alone


def test_ids_that_come_one_by_one_are_read_once():
    assert data.Vocabulary.fit([]).extend(each for each in (2, 1)).ids.tolist() == [1, 2]


def test_weights_are_kept_where_rows_are_appended_to_themselves():
    one = np.ones(1, np.int32)
    rows = data.Interactions(one, one, 2, 2, weight=np.float32([3.0]))
    assert rows.append(rows).weight.tolist() == [3.0, 3.0]
    assert rows.append(data.Interactions(one, one, 2, 2)).weight.tolist() == [3.0, 1.0]
    plain = data.Interactions(one, one, 2, 2)
    assert plain.append(plain).weight is None


def test_a_list_of_labels_that_would_widen_all_rows_too_far_is_refused(monkeypatch):
    monkeypatch.setattr("jaxrec.data._features._CODES", 40)
    items = pd.DataFrame({"item": ["x", "y", "z"], "tags": [["a"], ["b"], [*"abcdefghijklmnop"]]})
    schema = data.Schema(item_features=(data.Labels("tags"),))
    with pytest.raises(ValueError, match="Row 2 has 16 labels in the column 'tags' .the mean is 6.0.*Keep the labels"):
        data.Encoder.fit(TRAIN.assign(item=["x", "y", "z"]), schema, items=items)
    data.Encoder.fit(TRAIN, schema, items=items)  # of whose labels training saw two
    encoder = data.Encoder.fit(TRAIN, schema, items=items.assign(tags=[["a", "b"], ["c"], []]))
    with pytest.raises(ValueError, match="Row 0 has 3 labels .* all 16 rows would be padded to as many"):
        encoder.extend(items=pd.DataFrame({"item": ["m"], "tags": [["c", "a", "new", "b"]]}))
