"""Splits: no row lost, whole users and items held out, nothing drawn without a seed."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import refuses

from jaxrec import data

SCHEMA = data.Schema(time="time")


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": rng.integers(0, 30, 400), "item": rng.integers(0, 40, 400)})
    return rows.assign(time=rng.permutation(400), domain=np.where(rows["item"] < 15, "book", "film"))


SPLITS = {
    "random": lambda frame, seed: data.split_random(frame, seed=seed),
    "temporal": lambda frame, seed: data.split_temporal(frame, SCHEMA),
    "leave one out": lambda frame, seed: data.split_leave_one_out(frame, SCHEMA, seed=seed),
    "cold users": lambda frame, seed: data.split_cold_users(frame, SCHEMA, validation=0.2, test=0.3, seed=seed),
    "cold items": lambda frame, seed: data.split_cold_items(frame, SCHEMA, validation=0.2, test=0.3, seed=seed),
    "cold both": lambda frame, seed: data.split_cold_both(frame, SCHEMA, validation=0.2, test=0.3, seed=seed),
}


@pytest.mark.parametrize("name", SPLITS)
def test_every_row_is_in_exactly_one_part_as_it_was(frame, name):
    parts = SPLITS[name](frame, 0)
    together = pd.concat(list(parts)).sort_index()
    pd.testing.assert_frame_equal(together, frame)
    assert all(len(part) for part in parts)


@pytest.mark.parametrize("name", SPLITS)
def test_the_seed_decides(frame, name):
    first, again, other = SPLITS[name](frame, 0), SPLITS[name](frame, 0), SPLITS[name](frame, 1)
    pd.testing.assert_frame_equal(first.test, again.test)
    assert first.test.index.equals(other.test.index) == (name in ("temporal", "leave one out"))


def test_shares_are_kept(frame):
    parts = data.split_random(frame, validation=0.25, test=0.1, seed=0)
    assert [len(part) for part in parts] == [260, 100, 40]
    assert data.split_random(frame, validation=0.0, seed=0).validation is None


def test_temporal_parts_follow_each_other(frame):
    parts = data.split_temporal(frame, SCHEMA)
    assert parts.train["time"].max() < parts.validation["time"].min()
    assert parts.validation["time"].max() < parts.test["time"].min() and len(parts.test) == 40
    tied = data.split_temporal(frame.assign(time=frame["time"] // 50), SCHEMA)
    assert not set(tied.train["time"]) & set(tied.test["time"])


def test_leave_one_out_takes_the_latest(frame):
    parts = data.split_leave_one_out(frame, SCHEMA, seed=0)
    assert parts.test["user"].is_unique and parts.validation["user"].is_unique
    latest = frame.groupby("user")["time"].max()
    last = parts.test.set_index("user")["time"]
    assert (last == latest.reindex(last.index)).all()
    before = parts.validation.set_index("user")["time"]
    assert (before < last.reindex(before.index)).all()


def test_leave_one_out_leaves_short_histories_in_training():
    short = pd.DataFrame({"user": [1, 1, 2, 3, 3, 3], "item": range(6), "time": range(6)})
    parts = data.split_leave_one_out(short, SCHEMA, seed=0)
    assert sorted(parts.train["user"]) == [1, 1, 2, 3] and parts.test["item"].tolist() == [5]
    assert data.split_leave_one_out(short, SCHEMA, validation=False, seed=0).test["item"].tolist() == [1, 5]


def test_cold_users_and_items_are_nowhere_in_training(frame):
    users = data.split_cold_users(frame, SCHEMA, seed=0)
    assert not set(users.train["user"]) & (set(users.test["user"]) | set(users.validation["user"]))
    items = data.split_cold_items(frame, SCHEMA, seed=0)
    assert not set(items.train["item"]) & (set(items.test["item"]) | set(items.validation["item"]))
    both = data.split_cold_both(frame, SCHEMA, validation=0, test=0.3, seed=0)
    cold_user, cold_item = (~both.test[name].isin(both.train[name]) for name in ("user", "item"))
    assert (cold_user | cold_item).all() and (cold_user & cold_item).any() and (cold_user & ~cold_item).any()


def test_domains_share_no_row(frame):
    source, target = data.split_by_domain(frame, "domain", source="book", target=["film"])
    assert len(source) + len(target) == len(frame) and set(target["domain"]) == {"film"}
    with pytest.raises(ValueError, match=r"No row has \['song'\] in the column 'domain', which holds 'film', 'book'"):
        data.split_by_domain(frame, "domain", source="book", target="song")
    with pytest.raises(ValueError, match="rows are in neither domain, such as 2"):
        data.split_by_domain(frame.assign(domain=frame["item"] % 3), "domain", source=0, target=1)
    with pytest.raises(ValueError, match="overlap"):
        data.split_by_domain(frame, "domain", source="book", target=["film", "book"])


@pytest.mark.parametrize("by", ["interaction", "user", "item"])
def test_folds_cover_everything_once(frame, by):
    folds = data.k_fold(frame, SCHEMA, folds=4, by=by, seed=0)
    together = pd.concat([fold.test for fold in folds]).sort_index()
    pd.testing.assert_frame_equal(together, frame)
    for fold in folds:
        assert fold.validation is None and len(fold.train) + len(fold.test) == len(frame)
        if by != "interaction":
            assert not set(fold.train[by]) & set(fold.test[by])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda frame: data.split_random(frame, validation=0.5, test=0.5, seed=0), "leave something for training"),
        (lambda frame: data.split_random(frame, test=-0.1, seed=0), "Expected shares in"),
        (lambda frame: data.split_random(frame.iloc[:3], seed=0), "no validation row of 3"),
        (lambda frame: data.split_random(frame.iloc[:0], seed=0), "is empty"),
        (lambda frame: data.split_temporal(frame.assign(time=1), SCHEMA), "leaves no train row of 400"),
        (lambda frame: data.split_temporal(frame, data.Schema()), "needs the time column"),
        (lambda frame: data.split_cold_users(frame, data.Schema(user=None), seed=0), "needs the user column"),
        (lambda frame: data.split_cold_users(frame.drop(columns="user"), SCHEMA, seed=0), "lacks the column 'user'"),
        (lambda frame: data.k_fold(frame, SCHEMA, folds=31, by="user", seed=0), "number of users \\(30\\), got 31"),
        (lambda frame: data.k_fold(frame, SCHEMA, folds=1, seed=0), "Expected folds between 2"),
    ],
)
def test_splits_that_cannot_be_are_refused(frame, call, message):
    with pytest.raises(ValueError, match=message):
        call(frame)


def test_folds_go_by_known_things(frame):
    by: Any = "day"
    with refuses(ValueError, "Expected by to be 'interaction', 'user', 'item', got 'day'"):
        data.k_fold(frame, SCHEMA, by=by, seed=0)
