"""Schema and cleaning: bad rows are found on the host, and every step says what it touched."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import refuses

from jaxrec import data
from jaxrec.data import _schema

SCHEMA = data.Schema(user="u", item="i", target="r", time="t", weight="w")


def frame(**columns):
    base = {"u": [1, 1, 2, 2], "i": [10, 11, 10, 11], "r": [1.0, 2.0, 3.0, 4.0], "t": [0, 1, 2, 3], "w": [1.0] * 4}
    return pd.DataFrame({**base, **columns})


def report_of(cleaned):
    return dict(zip(cleaned.report["step"], cleaned.report["rows"], strict=True))


def test_clean_rows_pass_untouched():
    cleaned = data.clean(frame(), SCHEMA, duplicates="error", target_range=(1, 5))
    pd.testing.assert_frame_equal(cleaned.frame, frame())
    assert cleaned.report["rows"].sum() == 0 and cleaned.report["left"].tolist() == [4] * 4


def test_missing_values_are_counted_and_dropped():
    dirty = frame(u=[1.0, None, 2.0, 2.0], r=[1.0, 2.0, np.nan, 4.0])
    cleaned = data.clean(dirty, SCHEMA)
    assert len(cleaned.frame) == 2 and report_of(cleaned)["missing values"] == 2
    with pytest.raises(ValueError, match="2 rows have a missing or infinite value in u, r"):
        data.clean(dirty, SCHEMA, missing="error")


def test_infinite_and_out_of_range_targets_are_counted_and_dropped():
    dirty = frame(r=[np.inf, 2.0, -3.0, 4.0])
    cleaned = data.clean(dirty, SCHEMA, target_range=(1, 5))
    assert cleaned.frame["r"].tolist() == [2.0, 4.0] and report_of(cleaned)["infinite or out of range"] == 2
    assert data.clean(dirty, SCHEMA).frame["r"].tolist() == [2.0, -3.0, 4.0]
    with pytest.raises(ValueError, match=r"1 targets in 'r' are infinite or outside \[-inf, inf\]"):
        data.clean(dirty, SCHEMA, out_of_range="error")


@pytest.mark.parametrize(
    ("policy", "targets"), [("last", [1.0, 3.0, 4.0]), ("mean", [1.5, 3.0, 4.0]), ("keep", [1.0, 2.0, 3.0, 4.0])]
)
def test_duplicate_pairs_by_policy(policy, targets):
    repeated = frame(i=[10, 10, 10, 11], t=[9, 1, 2, 3])  # the first row is the latest
    assert data.clean(repeated, SCHEMA, duplicates=policy).frame["r"].tolist() == targets


def test_duplicate_pairs_are_refused_when_asked():
    with pytest.raises(ValueError, match=r"1 rows repeat a pair of user and item, such as \[1, 10\]"):
        data.clean(frame(i=[10, 10, 10, 11]), SCHEMA, duplicates="error")


def test_without_time_the_last_row_by_position_stays():
    schema = data.Schema(user="u", item="i", target="r")
    repeated = frame(i=[10, 10, 10, 11])
    assert data.clean(repeated, schema).frame["r"].tolist() == [2.0, 3.0, 4.0]


def test_k_core_is_repeated_until_nothing_changes():
    # User 3 falls for having one row, then item 12 for having one, then user 2.
    chain = pd.DataFrame({"u": [1, 1, 1, 2, 2, 3], "i": [10, 11, 13, 10, 12, 12]})
    chain = pd.concat([chain, pd.DataFrame({"u": [4, 4, 4], "i": [10, 11, 13]})], ignore_index=True)
    schema = data.Schema(user="u", item="i")
    cleaned = data.clean(chain, schema, min_user=2, min_item=2)
    assert sorted(set(cleaned.frame["u"])) == [1, 4]
    assert report_of(cleaned)["fewer than 2 per user or 2 per item"] == 3
    counts = cleaned.frame.groupby("u").size(), cleaned.frame.groupby("i").size()
    assert all((count >= 2).all() for count in counts)


def test_all_rows_filtered_away_says_by_which_step():
    with pytest.raises(ValueError, match=r"Cleaning filtered all 4 rows away.*fewer than 3 per user.*: 4"):
        data.clean(frame(), SCHEMA, min_user=3)


@pytest.mark.parametrize(
    ("dirty", "error", "message"),
    [
        (frame().drop(columns="r"), ValueError, "lacks the column 'r'; it has u, i, t, w"),
        (frame().iloc[:0], ValueError, "is empty. Expected at least one row"),
        (frame(r=["good", "bad", "3", "4"]), ValueError, "Expected numbers in the target column 'r', got 'good'"),
        (frame(w=[1.0, -2.0, 1.0, 1.0]), ValueError, "Expected weights >= 0 in the column 'w', got -2.0"),
        (frame(w=[1.0, 1e-40, 0.0, 1e-50]), ValueError, "0 or at least 1.2e-38.*'w', got 1e-40 and 2 such rows in all"),
        (frame(u=[1, "1", 2, 2]), TypeError, "ids of one type, got a mixture of int, str"),
    ],
)
def test_bad_frames_are_refused(dirty, error, message):
    with pytest.raises(error, match=message):
        data.clean(dirty, SCHEMA)


def test_a_frame_is_expected():
    rows: Any = [(1, 2)]
    with refuses(TypeError, "Expected a pandas DataFrame of interactions, got list"):
        data.clean(rows, SCHEMA)


@pytest.mark.parametrize("values", [[1.0, np.nan, 1.0, 1.0], [1.0, np.inf, 1.0, 1.0]])
def test_targets_that_are_not_finite_are_refused_by_the_encoder(values):
    with pytest.raises(ValueError, match="Expected finite numbers in the target column 'r'.*data.clean"):
        data.Encoder.fit(frame(), SCHEMA).encode(frame(r=values))


@pytest.mark.parametrize("columns", [("a", "a"), ("a/b",)])
def test_feature_columns_must_name_parameters(columns):
    with pytest.raises(ValueError, match="Expected distinct columns without '/' in Schema.item_features"):
        data.Schema(item_features=tuple(data.Numeric(column) for column in columns))


def test_context_holds_numbers():
    category: Any = data.Categorical("city")
    with refuses(TypeError, "Expected Numeric or Vector in Schema.context"):
        data.Schema(context=(category,))


def test_dates_of_any_resolution_are_the_same_times():
    dates = pd.Series(pd.to_datetime(["2020-01-04", "2021-01-03"]))
    first, *others = (_schema.times(frame(t=dates.astype(f"datetime64[{unit}]").repeat(2).array), "t")
                      for unit in ("s", "ms", "us", "ns"))  # fmt: skip
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_times_may_be_dates():
    dated = frame(t=pd.to_datetime(["2020-01-04", "2020-01-03", "2020-01-02", "2020-01-01"]))
    encoded = data.Encoder.fit(dated, SCHEMA).encode(dated)
    assert np.argsort(encoded.time).tolist() == [3, 2, 1, 0]
    assert encoded.interactions.item.tolist() == encoded.item[::-1].tolist()
    with pytest.raises(ValueError, match="time column 't' has 1 missing"):
        data.Encoder.fit(dated.assign(t=dated["t"].where(dated.index > 0)), SCHEMA).encode(
            dated.assign(t=dated["t"].where(dated.index > 0))
        )


def test_what_is_done_to_a_frame_later_leaves_its_dataset_alone():
    rows = frame(t=[3.0, 2.0, 1.0, 0.0])
    encoded = data.Encoder.fit(rows, SCHEMA).encode(rows)
    for name in ("r", "t", "w"):
        rows.loc[1:, name] = 9.0
    assert encoded.target.tolist() == [1.0, 2.0, 3.0, 4.0] and encoded.weight.tolist() == [1.0] * 4
    assert encoded.time.tolist() == [3.0, 2.0, 1.0, 0.0] and encoded.time.flags.writeable


@pytest.mark.parametrize("option", ["missing", "out_of_range", "duplicates"])
def test_misspelt_policies_are_refused(option):
    frame = pd.DataFrame({"user": [1], "item": [1]})
    with refuses(ValueError, f"Expected {option} to be .*'drop|'last.*got 'frist'"):
        data.clean(frame, data.Schema(), **{option: "frist"})


def test_infinite_weights_and_times_are_dropped():
    frame = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 3], "w": [1.0, np.inf, 1.0], "t": [0.0, 1.0, -np.inf]})
    cleaned, report = data.clean(frame, data.Schema(weight="w", time="t"))
    assert cleaned["user"].tolist() == [1] and report["rows"].iloc[0] == 2
    with pytest.raises(ValueError, match="2 rows have a missing or infinite value in t, w. Use missing='drop'"):
        data.clean(frame, data.Schema(weight="w", time="t"), missing="error")


def test_integer_ids_that_a_missing_value_made_floats_are_integers_again():
    frame = pd.DataFrame({"user": [1.0, np.nan, 3.0], "item": ["a", "b", "c"]})
    assert data.clean(frame, data.Schema()).frame["user"].tolist() == [1, 3]
    with pytest.raises(TypeError, match="integers or strings, got floats such as 1.0.*astype"):
        data.encode(data.Parts(frame.dropna(), None, None), data.Schema())
    large = frame.assign(user=[2.0**60, np.nan, 3.0])
    for call in (
        lambda: data.clean(large, data.Schema()),
        lambda: data.encode(data.Parts(large.dropna(), None, None), data.Schema()),
    ):
        with pytest.raises(ValueError, match=r"1 values .* beyond 2\^53.*digits are lost.*dtype='Int64'"):
            call()


@pytest.mark.parametrize(
    ("dtype", "digits"), [("float32", 24), ("Float32", 24), ("float[pyarrow]", 24), ("float16", 11), ("Float64", 53)]
)
def test_floats_of_few_digits_are_ids_as_far_as_they_reach(dtype, digits):
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    exact, lost = ([2.0**digits - 1, 7.0, more, 3.0] for more in (5.0, 2.0**digits))
    assert data.clean(frame(u=pd.Series(exact, dtype=dtype)), SCHEMA).frame["u"].tolist() == exact
    with pytest.raises(ValueError, match=rf"1 values in 'u' are floats beyond 2\^{digits}.*digits are lost"):
        data.clean(frame(u=pd.Series(lost, dtype=dtype)), SCHEMA)


def test_categories_of_ids_are_cleaned_pair_by_pair():
    many = pd.DataFrame({"u": ["a", "a", "b", "b"], "i": ["x", "x", "x", "y"], "r": [1.0, 3.0, 4.0, 5.0]})
    kinds = {"u": pd.CategoricalDtype([*"abc"]), "i": pd.CategoricalDtype([*"xyz"])}
    schema = data.Schema(user="u", item="i", target="r")
    cleaned = data.clean(many.astype(kinds), schema, duplicates="mean").frame
    assert cleaned["r"].tolist() == [2.0, 4.0, 5.0]
    assert data.clean(many.astype(kinds), schema, min_user=2).frame["u"].tolist() == ["b", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user": None, "user_features": data.Numeric("age")}, "user_features names 'age' and user=None"),
        ({"item": None, "item_features": data.Numeric("price")}, "item_features names 'price' and item=None"),
        ({"target_scale": "zscores"}, "Expected target_scale to be None, 'zscore'.*got 'zscores'"),
    ],
)
def test_schemas_that_say_what_nothing_reads_are_refused(options, message):
    with refuses(ValueError, message):
        data.Schema(**options)


@pytest.mark.parametrize(
    ("kind", "scale"), [(data.Numeric, "z-score"), (data.Numeric, "rms"), (data.Vector, "rsm"), (data.Vector, "minmax")]
)
def test_scales_that_a_feature_does_not_have_are_refused(kind, scale):
    with refuses(ValueError, f"Expected scale of the (number|vectors) 'x' to be None, 'zscore'.*got '{scale}'"):
        kind("x", scale=scale)


@pytest.mark.parametrize(
    ("schema", "options", "message"),
    [
        (data.Schema(user="u", item="i"), {"target_range": (1, 5)}, "target_range is about targets"),
        (data.Schema(user="u", item="i"), {"duplicates": "mean"}, "duplicates='mean' is about targets"),
        (data.Schema(user="u", item=None), {"min_user": 2}, "min_user is about pairs"),
        (data.Schema(user=None, item="i"), {"min_item": 2}, "min_item is about pairs"),
        (data.Schema(user="u", item=None), {"duplicates": "error"}, "duplicates='error' is about pairs"),
    ],
)
def test_options_that_would_do_nothing_are_refused(schema, options, message):
    with pytest.raises(ValueError, match=message):
        data.clean(frame(), schema, **options)


def test_ids_and_dates_of_pyarrow_are_read():
    pytest.importorskip("pyarrow")
    ids = frame(u=pd.Series([1.0, None, 2.0, 2.0], dtype="double[pyarrow]"))
    assert data.clean(ids, SCHEMA).frame["u"].tolist() == [1, 2, 2]
    half = frame(u=pd.Series([1.5, 1.5, 2.5, 2.5], dtype="double[pyarrow]"))
    assert data.clean(half, SCHEMA).frame["u"].tolist() == [1.5, 1.5, 2.5, 2.5]
    days = pd.Series(pd.to_datetime(["2020-01-04", "2020-01-03", "2020-01-02", "2020-01-01"]))
    dates = frame(t=days.dt.date.astype("date32[pyarrow]"))
    np.testing.assert_array_equal(_schema.times(dates, "t"), _schema.times(frame(t=days), "t"))


def test_targets_that_are_numbers_in_strings_have_a_mean():
    repeated = frame(i=[10, 10, 10, 11], r=pd.Series(["1", "2", "3", "4"], dtype=object))
    assert data.clean(repeated, SCHEMA, duplicates="mean").frame["r"].tolist() == [1.5, 3.0, 4.0]


def test_two_columns_of_one_name_are_refused():
    twice = pd.concat([frame(), frame()[["i"]]], axis=1)
    for call in (lambda: data.clean(twice, SCHEMA), lambda: data.Encoder.fit(twice, SCHEMA)):
        with pytest.raises(ValueError, match="several columns 'i'. Rename or drop all but one"):
            call()


def test_a_long_chain_of_the_k_core_is_peeled_link_by_link(monkeypatch):
    # User n shares items n and n + 1 with neighbours; only the first falls at once, and each then pulls the next.
    count = 400
    number = np.repeat(np.arange(count), 2)
    chain = pd.DataFrame({"u": number, "i": number + np.tile([0, 1], count)}).iloc[1:]
    ring = pd.DataFrame({"u": [900, 900, 901, 901], "i": [900, 901, 900, 901]})
    both = pd.concat([chain, ring], ignore_index=True)
    looked_at = []
    original = data.Interactions.rows_of
    monkeypatch.setattr(
        data.Interactions,
        "rows_of",
        lambda self, users: looked_at.append(len(found := original(self, users))) or looked_at.append(len(found[1]))
        or found,
    )  # fmt: skip
    cleaned = data.clean(both, data.Schema(user="u", item="i"), min_user=2, min_item=2)
    pd.testing.assert_frame_equal(cleaned.frame, both.iloc[-4:])
    assert 0 < sum(looked_at) < 10 * len(both)
