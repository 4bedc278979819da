"""Data on disk: the same columns, batches and models as in memory, in memory that does not grow with the rows."""

import json
import os
import sys
import tracemalloc

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec import data, models

SCHEMA = data.Schema(target="stars", time="time", weight="weight")


def ratings(rows=600, *, users=40, items=30, seed=0):
    """In the order of time; every user and item is there."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": rng.permutation(np.arange(rows) % users) + 2**40,
            "item": [f"item {number:03d}" for number in rng.permutation(np.arange(rows) % items)],
            "stars": rng.integers(1, 6, rows),
            "time": np.sort(rng.integers(0, 10**9, rows)),
            "weight": rng.random(rows),
        }
    )


@pytest.fixture
def folder(tmp_path):
    """Two Parquet files of the rows of ``ratings()``."""
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    ratings().iloc[:250].to_parquet(parquet / "part-0.parquet", index=False)
    ratings().iloc[250:].to_parquet(parquet / "part-1.parquet", index=False)
    return parquet


def in_memory(frame, schema=SCHEMA, **options):
    return data.encode(data.Parts(frame, None, None), schema, **options).train


def synthetic(tmp_path, rows, **options):
    """Implicit feedback of many rows, on disk."""
    rng = np.random.default_rng(0)

    def frames():
        for start in range(0, rows, 2**15):
            at = np.arange(start, min(start + 2**15, rows))
            yield pd.DataFrame({"user": at % 1000, "item": rng.permutation(at % 128)})

    return data.encode_to_disk(frames, data.Schema(), tmp_path / f"rows-{rows}", **options)


def mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_columns_and_encoder_are_those_of_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data._stream, "_READ", 64)
    held_out = ratings(50, users=60, items=45, seed=1)
    users = pd.DataFrame({"user": np.arange(70) + 2**40, "age": np.arange(70) % 50})
    schema = data.Schema(target="stars", time="time", weight="weight", user_features=(data.Numeric("age"),))
    streamed = data.encode_to_disk(folder, schema, tmp_path / "rows", users=users, also=[held_out])
    expected = data.encode(data.Parts(ratings(), None, held_out), schema, users=users)
    assert streamed.encoder == expected.train.encoder
    assert streamed.columns().keys() == {"user", "item", "target", "time", "weight"}
    for name, values in expected.train.columns().items():
        np.testing.assert_array_equal(streamed.columns()[name], values)
        assert streamed.columns()[name].dtype == values.dtype and mapped(streamed.columns()[name])
    assert streamed.encoder.encode(held_out) == expected.test
    again = data.open_dataset(tmp_path / "rows")
    assert again == streamed and "streamed by 4194304" in repr(again)
    files = sorted(folder.glob("*.parquet"))
    listed = data.encode_to_disk(files[::-1], schema, tmp_path / "other", users=users, also=[held_out])
    np.testing.assert_array_equal(listed.target, np.roll(streamed.target, 350))


@pytest.mark.parametrize("window", [40, 64, 300, 10_000])
def test_every_row_comes_once_an_epoch_whatever_the_window(folder, tmp_path, monkeypatch, window):
    monkeypatch.setattr(data._batches, "_BLOCK", 16)
    monkeypatch.setattr(data._batches, "_CHUNK", 32 * 16)
    streamed = data.encode_to_disk(folder, SCHEMA, tmp_path / "rows", window=window)
    batches = data.Batches(streamed, batch_size=10, negatives=None, history=0, seed=0)

    def rows_of(number):
        found = []
        for stack, steps in batches.epoch(number):
            flat = [values[:steps].reshape(-1) for values in (stack.user, stack.item, stack.target, stack.weight)]
            found.append(np.stack(flat)[:, flat[3] > 0])
        return np.concatenate(found, axis=1)

    expected = np.stack([streamed.user, streamed.item, streamed.target, streamed.weight])
    first, second = rows_of(1), rows_of(2)
    assert sum(steps for _, steps in batches.epoch(1)) == batches.steps == 60
    for rows in (first, second):
        np.testing.assert_array_equal(rows[:, np.lexsort(rows)], expected[:, np.lexsort(expected)])
    np.testing.assert_array_equal(first, rows_of(1))
    assert (first != second).any()
    # Blocks and windows come in another order too, not only rows within them.
    starts = [batches._windows(np.random.default_rng(number)) for number in (1, 2)]
    assert (starts[0] != starts[1]) == (window < 600)


def test_a_window_of_all_rows_trains_what_memory_trains(folder, tmp_path, monkeypatch):
    streamed, memory = data.encode_to_disk(folder, SCHEMA, tmp_path / "rows"), in_memory(ratings())
    model = models.MatrixFactorization.for_data(memory, dim=4)
    options = {"epochs": 2, "batch_size": 32, "negatives": data.Negatives(in_batch=True, shared=8)}
    options["loss"] = "in_batch_softmax"
    one, two = (jaxrec.fit(model, train, **options) for train in (streamed, memory))
    monkeypatch.setattr(data._batches, "_CHUNK", 64 * 16)
    narrow = jaxrec.fit(model, data.open_dataset(tmp_path / "rows", window=1), **options)
    monkeypatch.undo()
    plain = jaxrec.fit(model, memory, **options | {"negatives": data.Negatives(in_batch=True)})
    for leaf, same, other, unmixed in zip(*(jax.tree.leaves(each.params) for each in (one, two, narrow, plain)),
                                          strict=True):  # fmt: skip
        np.testing.assert_array_equal(leaf, same)
        if leaf.ndim == 2 and leaf.shape[1] == 4:
            assert (leaf != other).any() and (leaf != unmixed).any()
    assert mapped(one.seen.user) and one.seen.item is streamed.item
    assert jaxrec.recommend(one, users=[2**40], k=3).equals(jaxrec.recommend(two, users=[2**40], k=3))


def test_users_as_examples_are_the_same_from_disk(folder, tmp_path):
    schema = data.Schema(time="time")
    streamed = data.encode_to_disk(folder, schema, tmp_path / "rows", window=64)
    memory = in_memory(ratings(), schema)
    model = models.VariationalAutoencoder.for_data(memory, dim=4, latent=2, history=5)
    one, two = (jaxrec.fit(model, train, epochs=2, batch_size=64) for train in (streamed, memory))
    for leaf, other in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_histories_and_rejection_work_on_disk(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data._batches, "_CHUNK", 64 * 16)
    monkeypatch.setattr(data._batches, "_BLOCK", 16)
    schema = data.Schema()
    streamed = data.encode_to_disk(folder, schema, tmp_path / "rows", window=64)
    negatives = data.Negatives(num=2, reject_seen=True)
    batches = data.Batches(streamed, batch_size=64, negatives=negatives, history=3, seed=0)
    pairs, filled = set(zip(streamed.user.tolist(), streamed.item.tolist(), strict=True)), 0
    for stack, steps in batches.epoch(1):
        for user, items, history, weight in zip(*(each[:steps].reshape(-1, *each.shape[2:]) for each in (
            stack.user, stack.item, stack.history, stack.weight)), strict=True):  # fmt: skip
            if weight:
                assert (user, items[0]) in pairs and (user, items[1]) not in pairs and (user, items[2]) not in pairs
                assert items[0] not in history and {(user, item) for item in history if item} <= pairs
                filled += (history > 0).any()
    assert filled > 100


def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = {}
    for rows in (800_000, 2_400_000):
        tracemalloc.start()
        dataset = synthetic(tmp_path, rows, window=2**16)
        batches = data.Batches(dataset, batch_size=1024, negatives=data.Negatives(num=1), history=0, seed=0)
        assert len(dataset.interactions) == rows
        assert sum(steps for _, steps in batches.epoch(1)) == batches.steps
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[2_400_000] < 1.1 * peaks[800_000]


def test_rows_out_of_order_are_sorted_and_the_order_of_the_source_counts_without_time(tmp_path):
    mixed = ratings().sample(frac=1.0, random_state=0)
    with_time = data.encode_to_disk(lambda: [mixed], SCHEMA, tmp_path / "time")
    assert with_time.interactions == in_memory(ratings()).interactions
    without = data.encode_to_disk(lambda: [mixed], data.Schema(), tmp_path / "no time")
    assert without.interactions.user is without.user


def test_statistics_of_target_and_context_come_from_an_encoder(folder, tmp_path):
    schema = data.Schema(target="stars", target_scale="zscore", context=(data.Numeric("weight"),))
    with pytest.raises(ValueError, match="Statistics of 'stars', 'weight' are not fitted in passes"):
        data.encode_to_disk(folder, schema, tmp_path / "rows")
    sample = data.Encoder.fit(ratings().iloc[:100], schema)
    streamed = data.encode_to_disk(folder, schema, tmp_path / "rows", like=sample)
    assert streamed == data.open_dataset(tmp_path / "rows") and streamed.context.shape == (600, 1)
    expected = in_memory(ratings(), schema, like=sample)
    np.testing.assert_array_equal(streamed.context, expected.context)
    np.testing.assert_array_equal(streamed.target, expected.target)


def test_a_column_may_have_two_roles(folder, tmp_path):
    schema = data.Schema(target="stars", weight="stars", time="time", context=(data.Numeric("time"),))
    assert schema.columns() == ("user", "item", "stars", "time")
    expected = in_memory(ratings(), schema)
    for number, source in enumerate((folder, lambda: [ratings()])):
        streamed = data.encode_to_disk(source, schema, tmp_path / f"rows {number}", like=expected.encoder)
        assert streamed.encoder == expected.encoder
        for name, values in expected.columns().items():
            np.testing.assert_array_equal(streamed.columns()[name], values)
    assert len(expected.encoder.encode(ratings().drop(columns="stars"), labelled=False)) == 600
    with pytest.raises(ValueError, match="lacks the column 'time'"):  # for it is context too
        expected.encoder.encode(ratings().drop(columns="time"), labelled=False)


def test_an_interrupted_call_leaves_nothing(tmp_path):
    passes = []

    def frames():
        passes.append(1)
        yield ratings().iloc[:300]
        if len(passes) == 2:
            raise RuntimeError("the power fails")
        yield ratings().iloc[300:]

    with pytest.raises(RuntimeError, match="the power fails"):
        data.encode_to_disk(frames, SCHEMA, tmp_path / "rows")
    assert len(passes) == 2 and not list(tmp_path.iterdir())
    assert len(data.encode_to_disk(frames, SCHEMA, tmp_path / "rows")) == 600
    with pytest.raises(FileExistsError, match="Open what was written there with data.open_dataset"):
        data.encode_to_disk(frames, SCHEMA, tmp_path / "rows")


def test_ids_that_are_floats_may_be_whole_in_a_part(tmp_path):
    rows = pd.DataFrame({"user": [1.0, 2.0, 2.5, 3.0], "item": [1, 2, 1, 2]})
    for name, parts in (("front", [rows[:2], rows[2:]]), ("behind", [rows[2:], rows[:2]])):
        streamed = data.encode_to_disk(lambda parts=parts: parts, data.Schema(), tmp_path / name)
        assert streamed.encoder == in_memory(pd.concat(parts), data.Schema()).encoder
    with pytest.raises(TypeError, match="got floats such as 1.0: integers become floats"):
        data.encode_to_disk(lambda: [rows.iloc[:2], rows.iloc[3:]], data.Schema(), tmp_path / "whole")


def test_a_folder_of_rows_is_open_to_whom_the_umask_lets_in(tmp_path):
    before = os.umask(0o027)
    try:
        data.encode_to_disk(lambda: [ratings()], SCHEMA, tmp_path / "rows")
        (tmp_path / "plain").mkdir()
    finally:
        os.umask(before)
    assert (tmp_path / "rows").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_sources_that_cannot_be_read_are_refused(folder, tmp_path, monkeypatch):
    def refused(error, message, source=folder, schema=SCHEMA, **options):
        with pytest.raises(error, match=message):
            data.encode_to_disk(source, schema, tmp_path / "rows", **options)
        assert not (tmp_path / "rows").exists() and not list(tmp_path.glob(".rows*"))

    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    refused(FileNotFoundError, "There is no Parquet file in .*empty", source=tmp_path / "empty")
    refused(FileNotFoundError, "There is no .*absent.parquet", source=[tmp_path / "absent.parquet"])
    refused(ValueError, "bad.parquet is no whole Parquet file", source=tmp_path / "bad.parquet")
    refused(ValueError, "lacks the column 'movie'", schema=data.Schema(item="movie"))
    refused(ValueError, "lacks the column 'rating'", schema=data.Schema(target="rating"))
    refused(ValueError, "The source is empty", source=list)
    refused(ValueError, "window >= 1", window=0)
    refused(TypeError, "got int", source=lambda: [ratings(), ratings().assign(item=3)])
    growing = iter([[ratings()], [ratings(), ratings()]])
    refused(ValueError, "600 rows in the first pass and 1200 in the second", source=lambda: next(growing))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(ImportError, r"pip install 'jaxrec\[data\]'")


def test_folders_that_were_changed_are_refused(folder, tmp_path):
    def spoilt(change):
        where = tmp_path / "rows"
        if not where.exists():
            data.encode_to_disk(folder, SCHEMA, where)
        spare = {path: path.read_bytes() for path in where.iterdir()}
        change(where)
        with pytest.raises(ValueError, match="is not what data.encode_to_disk of this version wrote") as caught:
            data.open_dataset(where)
        for path, content in spare.items():
            path.write_bytes(content)
        assert len(data.open_dataset(where)) == 600
        return str(caught.value)

    def version(where):
        manifest = json.loads((where / "manifest.json").read_text())
        (where / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))

    def cut(where):
        (where / "item.npy").write_bytes((where / "item.npy").read_bytes()[:-4])

    assert "item.npy has" in spoilt(cut)
    assert "version 2" in spoilt(version)
    assert "manifest.json" in spoilt(lambda where: (where / "manifest.json").unlink())
    assert "weight.npy" in spoilt(lambda where: (where / "weight.npy").unlink())
    assert "Expecting value" in spoilt(lambda where: (where / "manifest.json").write_text("no json"))
    assert "arrays" in spoilt(
        lambda where: (where / "manifest.json").write_text('{"format": "jaxrec rows", "version": 1}')
    )
    assert "user.npy is int32[300, 2]" in spoilt(lambda where: np.save(where / "user.npy", np.ones((300, 2), np.int32)))
    assert "0 .. 30" in spoilt(lambda where: np.save(where / "item.npy", np.full(600, 31, np.int32)))
    assert "encoder.jaxrec" in spoilt(lambda where: (where / "encoder.jaxrec").write_bytes(b"nothing"))
    with pytest.raises(FileNotFoundError, match="Expected one that data.encode_to_disk wrote"):
        data.open_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="window >= 1"):
        data.open_dataset(tmp_path / "rows", window=0)


@pytest.mark.parametrize("window", [64, 10_000])
def test_rows_that_weigh_nothing_are_left_out_of_a_stream(tmp_path, monkeypatch, window):
    monkeypatch.setattr(data._batches, "_BLOCK", 16)
    monkeypatch.setattr(data._batches, "_CHUNK", 32 * 16)
    frame = ratings().assign(weight=(np.arange(600) % 3 > 0) * 1.0)
    streamed = data.encode_to_disk(lambda: [frame], SCHEMA, tmp_path / "rows", window=window)
    options = {"batch_size": 10, "negatives": data.Negatives(num=1), "history": 3, "histories": "before", "seed": 0}
    ours, memory = (data.Batches(each, **options) for each in (streamed, in_memory(frame)))
    found = []
    for stack, steps in ours.epoch(1):
        assert stack.weight[:steps].all() and not stack.weight[steps:].any()
        found += list(zip(stack.user[:steps].ravel(), stack.item[:steps, :, 0].ravel(), strict=True))
    kept = streamed.weight > 0
    assert sorted(found) == sorted(zip(streamed.user[kept], streamed.item[kept], strict=True))
    assert len(found) == 10 * ours.steps == 400
    if window > 600:
        for (stack, _), (expected, _) in zip(ours.epoch(1), memory.epoch(1), strict=True):
            for values, wanted in zip(stack, expected, strict=True):
                np.testing.assert_array_equal(values, wanted)
