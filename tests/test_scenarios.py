"""Scenarios: no leaks, the choice is validation's, verdicts follow planted truth, and the page stands alone."""

import base64
import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import refuses

import jaxrec
from jaxrec import data, scenarios
from jaxrec.coldstart import popularity
from jaxrec.scenarios import __main__ as command
from jaxrec.scenarios import _domains, _newcomers, _options, _platforms, _tail
from jaxrec.scenarios._domains import _Domains
from jaxrec.scenarios._folders import real
from jaxrec.scenarios._options import Options
from jaxrec.scenarios._question import SHRINKS, SQUARES, Fitted, Method, Question
from jaxrec.scenarios._scenario import Verdict
from jaxrec.scenarios._settle import _largest, _some, _verdict, deciles, quartiles, settle
from jaxrec.scenarios._splits import _revealed, distinct_so_far

EVIL = "<script>alert('$x')"
NAMES = ("cross_domain", "cross_platform", "long_tail", "new_item", "new_user")
SHOTS, SMALL = (0, 2), {"shots": (0, 2), "dim": 8}


@pytest.fixture(scope="session")
def planted() -> data.World:
    """Two small domains in which everything carries over, and a category of users that is no friend of HTML."""
    world = data.generate(
        seed=0, transferable=1.0, content=0.9, source_users=260, target_users=220, source_items=60, target_items=60,
        source_interactions=25.0, shared_users=1.0,
    )  # fmt: skip
    domains = []
    for frames in (world.source, world.target):
        schema = dataclasses.replace(frames.schema, user_features=(data.Numeric("age"), data.Categorical(EVIL)))
        users = frames.users.rename(columns={"group": EVIL}).replace({EVIL: {"A": f"{EVIL}A"}})
        domains.append(frames._replace(users=users, schema=schema))
    return world._replace(source=domains[0], target=domains[1])


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """One setting of each factorisation, and three classes of popularity instead of ten."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_question", "_newcomers", "_domains", "_platforms"):
            patch.setattr(f"jaxrec.scenarios.{name}.SQUARES", SQUARES[3:4])
        patch.setattr("jaxrec.scenarios._tail._SQUARES", SQUARES[2:3])
        patch.setattr("jaxrec.scenarios._question.SHRINKS", SHRINKS[:1])
        patch.setattr("jaxrec.scenarios._question._EASE", 0)
        patch.setattr("jaxrec.scenarios._settle._DECILES", 3)
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)  # worlds are small: nearly all the time compiles
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def results(planted) -> dict[str, scenarios.Scenario]:
    """All five, each with one strategy."""
    source, target = planted.source, planted.target
    with quick():
        return {
            "cross_domain": scenarios.cross_domain(source, target, strategies=["EMCDR"], **SMALL),
            "cross_platform": scenarios.cross_platform(
                source, target, strategies=["towers, fine-tuned"], epochs=3, **SMALL
            ),
            "long_tail": scenarios.long_tail(target, strategies=["iALS with features"], **SMALL),
            "new_item": scenarios.new_item(target, strategies=["iALS, features mapped"], **SMALL),
            "new_user": scenarios.new_user(target, strategies=["iALS, features mapped"], **SMALL),
        }


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_finite_and_of_test_users(results, name):
    result = results[name]
    assert result.name == name and result.verdict in get_args(Verdict)
    for frame, columns in (
        (result.table, ["mean", "low", "high"]), (result.curve, ["mean", "low", "high"]), (result.trials, ["value"]),
        (result.segments, ["strategy", "baseline"]), (result.differences, ["difference", "p_value"]),
    ):  # fmt: skip
        assert len(frame) and np.isfinite(frame[columns].to_numpy(np.float64)).all()
    assert result.table[["mean", "low", "high"]].apply(lambda row: row.low <= row["mean"] <= row.high, axis=1).all()
    assert result.table["mean"].between(0, 1).all() and (result.segments["users"] > 0).all()
    first = result.table[result.table["slice"] == result.who]
    assert set(first["users"]) == {result.splits.test["user"].nunique()}
    assert set(first["metric"]) == {"ndcg@10", "recall@20", "mrr@10"}
    assert {result.strategy, result.baseline, result.scratch, "popularity"} == set(result.curve["method"])
    assert set(result.curve["shots"]) == set(SHOTS)
    gain = result.segments["strategy"] - result.segments["baseline"]
    np.testing.assert_allclose(gain.to_numpy(), result.segments["gain"].to_numpy(), atol=1e-12)
    kinds = set(result.segments["by"])
    assert {"slice: cold and warm", f"user's {EVIL}"} <= kinds and len(kinds) == 4


@pytest.mark.parametrize("name", NAMES)
def test_splits_lose_no_row_and_do_not_leak(results, planted, name):
    splits = results[name].splits
    rows = pd.concat(splits)
    assert sorted(rows.index) == sorted(planted.target.interactions.index)  # every row once
    column = {"new_item": "item", "long_tail": None}.get(name, "user")
    if column is not None:
        cold = [set(pd.concat([part, splits.shown])[column]) - set(splits.train[column]) for part in splits[1:3]]
        assert (
            set(splits.validation[column]) | set(splits.test[column]) | set(splits.shown[column]) <= cold[0] | cold[1]
        )
        assert not set(splits.validation[column]) & set(splits.test[column])
        counts = splits.shown.groupby(column).size()
        assert (
            counts.max() <= max(SHOTS)
            and (counts <= splits.test.groupby(column).size().reindex(counts.index, fill_value=99)).all()
        )
    for column in ("user", "item"):
        assert set(splits.warm[column]) <= set(splits.train[column])
    trained = results[name].recommender.trained
    assert trained.user_count.sum() <= len(splits.train) + len(planted.source.interactions)


def pairs_of(rows):
    return set(zip(rows["user"], rows["item"], strict=True))


@pytest.mark.parametrize("name", ["long_tail", "new_user"])
def test_plays_of_one_pair_are_held_out_together(asked, planted, name):
    rows = planted.target.interactions
    plays = pd.concat([rows.assign(time=rows["time"] + number) for number in range(10)], ignore_index=True)
    question, methods, _ = asked(name, planted.target._replace(interactions=plays), **SMALL)
    splits = question.splits
    assert sorted(pd.concat(splits).index) == list(plays.index)
    found = [pairs_of(part) for part in splits]
    assert sum(map(len, found)) == len(set.union(*found)) == len(pairs_of(plays))
    popular = Fitted(methods[0].fit(None))
    for part in (splits.validation, splits.warm_validation, splits.warm):
        report = question.report(popular, part)
        assert np.isfinite(report["ndcg@10"]) and not report.left_out["excluded, having been seen"]


def test_what_is_shown_of_a_newcomer_are_so_many_distinct_items():
    rows = pd.DataFrame({"user": 1, "item": list("aabacbdcd"), "time": range(9)})
    shown, rest = _revealed(rows, "user", data.Schema(time="time"), 2, seed=0)
    assert list(shown["item"]) == list("aabab") and list(rest["item"]) == list("cdcd")
    assert list(distinct_so_far(shown, data.Schema(), "user")) == [1, 1, 2, 2, 2]


def test_a_method_without_a_figure_is_refused(asked, planted, monkeypatch):
    question, methods, told = asked("new_user", planted.target, **SMALL)
    monkeypatch.setattr("jaxrec.scenarios._settle.Question.report", lambda *_, **__: {"ndcg@10": float("nan")})
    with refuses(ValueError, "popularity has no ndcg@10 on validation: nan for new users"):
        settle(question, methods, told)


def test_rare_items_are_the_tail(results):
    splits = results["long_tail"].splits
    popularity = splits.train["item"].value_counts()
    assert popularity[splits.test["item"].unique()].max() <= popularity[splits.warm["item"].unique()].min() + 3
    assert set(splits.test["item"]).isdisjoint(splits.warm["item"])


@pytest.mark.parametrize("name", NAMES)
def test_the_choice_is_the_best_on_validation(results, name):
    result = results[name]
    best = result.trials.groupby("method", sort=False)["value"].max()
    assert set(result.splits.warm_validation.index).isdisjoint(result.splits.warm.index)
    assert result.chosen == best.idxmax() and result.chosen in (result.strategy, result.baseline)
    of_role = {role: rows.groupby("method", sort=False)["value"].max().idxmax()
               for role, rows in result.trials.groupby("role")}  # fmt: skip
    assert of_role == {"strategy": result.strategy, "baseline": result.baseline}
    printed = str(result)
    assert result.chosen in result.why and printed.startswith(f"{result.strategy} ")
    assert result.elsewhere in printed and all(method in printed for method in result.table["method"])


def test_shared_users_help_and_an_unrelated_source_does_not(results, planted):
    assert results["cross_domain"].verdict == "helped"
    assert results["cross_domain"].chosen == "EMCDR"
    assert results["cross_domain"].differences["low"].iloc[0] > 0
    rng = np.random.default_rng(0)
    source = planted.source
    users = source.interactions["user"].unique()
    mixed_up = dict(zip(users, rng.permutation(users), strict=True))
    strangers = source._replace(interactions=source.interactions.assign(user=source.interactions["user"].map(mixed_up)))
    with quick():
        unrelated = scenarios.cross_domain(strangers, planted.target, strategies=["EMCDR"], **SMALL)
    assert unrelated.verdict != "helped"
    assert unrelated.chosen == unrelated.baseline and unrelated.why.startswith("Kept")
    assert "nothing is transferred" in str(unrelated)
    assert unrelated.differences["difference"].iloc[0] < results["cross_domain"].differences["difference"].iloc[0]


def test_a_prior_from_the_source_and_the_three_blended_use_it(planted):
    names = ["prior", "EMCDR + regression", "EMCDR + prior + regression"]
    with quick():
        found = scenarios.cross_domain(planted.source, planted.target, strategies=names, **SMALL)
    values = found.trials.set_index("method")["value"]
    assert (values.groupby("method").max()[names] > values["iALS"].max()).all()
    tried = set(found.trials.loc[found.trials["method"] == "prior", "setting"])
    assert {setting.rpartition(", ")[2] for setting in tried} == {"content_l2 30", "content_l2 1000"}
    two, three = (values[name].to_numpy() for name in names[1:])  # of the same settings, without and with the prior
    assert len(two) == len(three) and (two != three).all()


def test_histories_that_span_few_dimensions_narrow_the_regression(asked, planted):
    users = planted.target.interactions["user"].unique()
    bundles = np.arange(20).reshape(2, 10)[np.arange(len(users)) % 2]  # every user has one of two
    rows = pd.DataFrame({"user": np.repeat(users, 10), "item": bundles.ravel()})
    _, methods, _ = asked("cross_domain", data.Frames(rows, None, None, data.Schema()), planted.target, **SMALL)
    regression = next(method for method in methods if method.name == "regression")
    assert regression.fit(None).model.dim == 2


def test_a_prior_of_one_number_beside_a_column_of_its_name(asked, planted):
    target, column = planted.target, {"user": "source"}
    renamed = data.Frames(
        target.interactions.rename(columns=column), target.users.rename(columns=column), target.items,
        dataclasses.replace(target.schema, user="source"),
    )  # fmt: skip
    with quick():
        question, _, _ = asked("cross_domain", planted.source, renamed, shots=SHOTS, dim=1)
        options = Options(None, "ndcg@10", SHOTS, 1, 0.15, 0.25, 0.95, 0)
        domains = _Domains(planted.source.interactions[["user", "item"]], renamed, question.splits, options)
        (vector,) = domains.with_source(SQUARES[0]).encoder.user_features
    assert (vector.name, vector.width) == ("vector", 1)


def test_content_serves_new_items_that_factors_alone_cannot(results):
    result = results["new_item"]
    nothing = result.table[(result.table["slice"] == "nothing known") & (result.table["metric"] == "ndcg@10")]
    by_method = nothing.set_index("method")["mean"]
    assert by_method["iALS, features mapped"] > by_method["iALS"]


def test_a_verdict_needs_the_interval_the_test_and_for_help_validation():
    def row(difference, low, high, p):
        return pd.Series({"difference": difference, "low": low, "high": high, "p_value": p})

    up, down, level = row(0.1, 0.05, 0.15, 0.001), row(-0.1, -0.15, -0.05, 0.001), row(0.0, -0.1, 0.1, 0.9)
    for rest in (up, level):
        assert _verdict(up, rest, 0.95, True) == "helped"
        assert _verdict(up, rest, 0.95, False) == "no difference"
        assert _verdict(level, rest, 0.95, True) == "no difference"
        assert _verdict(row(0.1, -0.05, 0.15, 0.001), rest, 0.95, True) == "no difference"
        assert _verdict(row(0.1, 0.05, 0.15, 0.06), rest, 0.95, True) == "no difference"
    for kept in (True, False):
        assert _verdict(up, down, 0.95, kept) == "trade-off"  # what newcomers gain, others pay
        assert _verdict(level, down, 0.95, kept) == "hurt"
        assert {_verdict(down, rest, 0.95, kept) for rest in (up, level, down)} == {"hurt"}


def test_a_gain_that_costs_others_more_is_not_chosen(asked, planted):
    """Lifting the tail above everything gains there, and loses the head: validation charges for both."""
    question, methods, told = asked("long_tail", planted.target, **SMALL)
    popular, splits = Fitted(methods[0].fit(None)), question.splits
    by_one = splits.validation.assign(user=splits.train["user"].iloc[0])  # so that others have not seen the tail
    rare = popularity(popular.recommender.encoder.encode(by_one))
    tail_first = Method("tail first", "", lambda _: rare)
    found = settle(question, [methods[0], tail_first], told._replace(scratch="popularity"))
    assert found.trials["first"].iloc[1] > found.trials["first"].iloc[0] and found.price["difference"] < 0
    assert found.verdict == "trade-off" and found.chosen == "popularity"
    assert "is a trade-off" in found.summary and "; on head items -" in found.summary
    np.testing.assert_allclose(found.trials["value"], found.trials[["first", "rest"]].mean(axis=1), atol=1e-12)


def test_words_follow_the_verdict(results):
    result = results["cross_domain"]
    hurt = dataclasses.replace(result, verdict="hurt", chosen=result.baseline)
    assert "hurt" in hurt.summary and "it was kept out" in hurt.summary
    assert "validation had chosen it" in dataclasses.replace(hurt, chosen=hurt.strategy).summary
    assert "can be told from chance" in dataclasses.replace(result, verdict="no difference").summary
    kept_out = dataclasses.replace(result, verdict="no difference", chosen=result.baseline)
    assert "kept out by validation, though ahead" in kept_out.summary
    unsure = kept_out.differences.assign(p_value=0.07)  # the interval says so, and the test does not
    assert "can be told from chance" in dataclasses.replace(kept_out, differences=unsure).summary


def test_a_baseline_that_is_ahead_for_newcomers_alone_is_named(results):
    result = results["cross_domain"]
    assert "a baseline, is ahead" not in result.elsewhere
    table = result.table.assign(mean=result.table["mean"].where(result.table["method"] != "popularity", 0.9))
    ahead = dataclasses.replace(result, table=table).elsewhere
    assert ahead.endswith("For users new to the target alone popularity, a baseline, is ahead of EMCDR: 0.9000.")


def test_segments_are_told_apart_by_number():
    numbers = pd.Series([1, 1, 2, 3, 5, 8, 13, np.nan], index=list("abcdefgh"))
    labels = quartiles(numbers)
    assert labels["a"] == labels["b"] and labels.notna().all() and labels["g"] != labels["c"]
    assert quartiles(pd.Series([4, 4, 4])).tolist() == ["4"] * 3
    popularity = pd.Series(np.arange(20), index=np.arange(20))
    assert deciles(popularity, popularity).value_counts().eq(2).all() and deciles(popularity, popularity)[19] == 0
    assert deciles(pd.Series([0, 0]), pd.Series([9, 0, 0])).nunique() == 1
    groups = _largest(pd.Series(list("aabbccddeeffg") + [None]))
    assert groups.iloc[-1] == groups.iloc[-2] == "others" and groups.iloc[0] == "a"
    named = _largest(pd.Series(["others"] * 3 + list("aabbccddeeffg")))
    assert named.iloc[0] == "others" and named.iloc[-1] == "all others"


def test_of_many_validation_users_some_decide(asked, planted, monkeypatch):
    question = asked("new_user", planted.target)[0]
    rows = question.splits.validation
    assert len(_some(question, rows)) == len(rows)
    monkeypatch.setattr("jaxrec.scenarios._settle._USERS", 5)
    some = _some(question, rows)
    assert some["user"].nunique() == 5 and some["user"].isin(rows["user"]).all()


# Options


class Asked(Exception):
    """Carries what a scenario would have settled."""


@pytest.fixture
def asked(monkeypatch):
    """The question, methods and words of a scenario, without anything being fitted."""

    def stop(question, methods, told, **_):
        raise Asked(question, methods, told)

    for module in (_domains, _newcomers, _platforms, _tail):
        monkeypatch.setattr(module, "settle", stop)

    def ask(name, *frames, **options):
        with pytest.raises(Asked) as caught:
            getattr(scenarios, name)(*frames, **options)
        return caught.value.args

    return ask


def test_options_reach_the_question(asked, planted):
    target = planted.target
    question, methods, _ = asked("new_user", target)
    assert question.shots == (0, 1, 2, 5, 10) and question.metric == "ndcg@10" and question.level == 0.95
    assert [method.name for method in methods if method.strategy] == ["iALS with features", "iALS, features mapped"]
    other, fewer, _ = asked(
        "new_user",
        target,
        strategies=["iALS, features mapped"],
        metric="recall@5",
        shots=[0, 3],
        level=0.8,
        seed=1,
        test=0.5,
        dim=4,
    )
    assert (
        other.metric == "recall@5" and other.metrics[0] == "recall@5" and other.shots == (0, 3) and other.level == 0.8
    )
    assert [method.name for method in fewer if method.strategy] == ["iALS, features mapped"]
    assert other.splits.test["user"].nunique() == 110 and question.splits.test["user"].nunique() == 55
    assert asked("new_user", target, validation=0.3)[0].splits.validation["user"].nunique() == 66
    assert set(asked("new_user", target, seed=1)[0].splits.test["user"]) != set(question.splits.test["user"])
    assert fewer[1].fit(SQUARES[0]).model.dim == 4


def test_options_of_one_scenario_matter(asked, planted, monkeypatch):
    half, most = (asked("long_tail", planted.target, tail=share)[0] for share in (0.5, 0.9))
    assert half.splits.test["item"].nunique() < most.splits.test["item"].nunique()

    def pretraining(model, train, **options):
        raise Asked(model.dim, options["epochs"])

    monkeypatch.setattr(_platforms, "fit", pretraining)
    _, methods, _ = asked("cross_platform", planted.source, planted.target, epochs=1, dim=4)
    towers = next(method for method in methods if method.name == "towers, frozen")
    with pytest.raises(Asked) as caught:
        towers.fit(None)
    assert caught.value.args == (4, 1)


def test_baselines_across_platforms_read_the_targets_own_statistics(asked, planted, monkeypatch):
    """Prices of the target, in another currency, are all below the source's."""
    features = data.Numeric("price", "quantile"), data.Categorical("shelf")
    domains = []
    for frames, unit, shelves in ((planted.source, 100.0, ["x", "y"]), (planted.target, 1.0, ["x", "x"])):
        number = np.arange(len(frames.items))
        items = frames.items.assign(price=unit * (1 + number), shelf=np.array(shelves)[number % 2])
        schema = dataclasses.replace(frames.schema, user_features=(), item_features=features)
        domains.append(frames._replace(items=items, schema=schema))
    monkeypatch.setattr(_platforms, "factoriser", lambda train, **_: lambda _: popularity(train))
    _, methods, told = asked("cross_platform", *domains, **SMALL)
    fits = {method.name: method.fit for method in methods}
    neighbours, read = fits["content k-NN"](None), []

    def trained(_, train, *, validation, **options):
        read.append((train, validation))
        return neighbours

    monkeypatch.setattr(_platforms, "fit", trained)
    monkeypatch.setattr(_platforms, "adapt", lambda *args, **how: SimpleNamespace(recommender=trained(*args, **how)))
    for name in ("towers from scratch", "towers, frozen"):  # the second is pretrained before
        fits[name](None)
    scratch, _, carried = read
    items = domains[1].items["item"]
    for (train, validation), width in ((scratch, 1.0), (carried, 0.0)):
        assert validation.encoder is train.encoder
        prices = train.features.item_dense[train.encoder.items.encode(items)]
        assert np.ptp(prices) == pytest.approx(width, abs=0.1)
    for baseline in (neighbours, fits["iALS with features"](SQUARES[0])):
        assert baseline.encoder == scratch[0].encoder
    assert [each.name for each in scratch[0].encoder.item_features] == ["price"] and "reads it: shelf." in told.notes[0]
    schema = dataclasses.replace(domains[0].schema, item_features=features[1:])
    _, bare, _ = asked("cross_platform", *(frames._replace(schema=schema) for frames in domains), **SMALL)
    assert {method.name for method in methods} - {method.name for method in bare} == {
        "content k-NN", "iALS with features",
    }  # fmt: skip


def test_folding_by_squares_and_by_softmax_differ(asked, planted):
    question, methods, _ = asked("new_user", planted.target, **SMALL)
    als = next(method for method in methods if method.name == "iALS")
    one, other = (question.report(Fitted(als.fit(setting)), question.splits.validation, 2) for setting in SQUARES[:2])
    assert "squares" in str(SQUARES[0]) and "softmax" in str(SQUARES[1])
    assert not one.users("ndcg@10").equals(other.users("ndcg@10"))


def test_the_same_candidates_are_ranked_whatever_is_known(asked, planted):
    question, methods, _ = asked("new_user", planted.target, **SMALL)
    popular = Fitted(methods[0].fit(None))
    none, some = (question.report(popular, question.splits.validation, shot) for shot in SHOTS)
    pd.testing.assert_frame_equal(none.per_user, some.per_user)  # popularity learns nothing of a user


def test_newcomers_of_other_segments_and_of_users_not_asked_stay_newcomers(asked, planted, monkeypatch):
    """A part of the held-out rows is ranked as all of them are: the figures of a segment are those of the whole."""
    question, methods, told = asked("new_item", planted.target, **SMALL)
    fitted = Fitted(methods[1].fit(methods[1].settings[0]))
    rows = question.splits.validation
    part = rows[rows["item"] == rows["item"].iloc[0]]
    whole = question.report(fitted, rows, 2)
    alone, among = question.report(fitted, part, 2), question.report(fitted, part, 2, among=rows)
    assert whole.coverage.keys() == among.coverage.keys() and set(among.users("ndcg@10").index) <= set(part["user"])
    assert not alone.users("ndcg@10").equals(among.users("ndcg@10"))
    reports = Question.reports

    def stop(*args, **options):
        raise Asked(reports(*args, **options))

    monkeypatch.setattr(Question, "reports", stop)
    monkeypatch.setattr("jaxrec.scenarios._settle._USERS", 10)
    with pytest.raises(Asked) as caught:
        settle(question, methods[1:], told)
    some = caught.value.args[0][2].users("ndcg@10")
    assert 0 < len(some) <= 10
    np.testing.assert_allclose(some, whole.users("ndcg@10")[some.index])


def test_a_feature_that_is_constant_in_the_head_stops_nothing(asked, planted):
    frames = planted.target
    count = frames.interactions["item"].value_counts()
    items = frames.items.assign(shelf=np.where(frames.items["item"].map(count).fillna(0) > count.median(), "x", "y"))
    schema = dataclasses.replace(frames.schema, item_features=(data.Categorical("shelf"),))
    _, methods, _ = asked("long_tail", frames._replace(items=items, schema=schema), **SMALL)
    head = next(method for method in methods if method.name == "head first")
    assert np.isfinite(np.asarray(head.fit(head.settings[0]).params["item"]["embedding"])).all()


def test_without_features_what_needs_them_is_left_out(asked, planted):
    bare = data.Frames(planted.target.interactions, None, None, data.Schema(time="time"))
    _, methods, told = asked("new_user", bare)
    assert [method.name for method in methods] == ["popularity", "iALS", "EASE", "item k-NN"] and not told.groups
    assert [method.strategy for method in methods] == [False, False, True, True]


def test_where_nothing_is_known_item_to_item_methods_are_popularity(asked, planted):
    question, methods, _ = asked("new_user", planted.target, **SMALL)
    found = [question.reports(Fitted(method.fit(method.settings[0])), question.splits.validation)
             for method in methods if method.name in ("popularity", "EASE", "item k-NN", "content k-NN")]  # fmt: skip
    assert len(found) == 4
    for other in found[1:]:
        assert found[0][0].users("ndcg@10").equals(other[0].users("ndcg@10"))
        assert not found[0][2].users("ndcg@10").equals(other[2].users("ndcg@10"))


def test_too_few_rows_to_hold_known_users_out_are_refused():
    rows = pd.DataFrame({"user": range(30), "item": [number % 3 for number in range(30)]})
    with refuses(ValueError, "0 pairs can be held out, and at least 2 are needed.*more than one interaction each"):
        scenarios.new_user(data.Frames(rows, None, None, data.Schema()), metric="ndcg@2")


def test_features_that_two_domains_do_not_read_stop_nothing(asked, planted):
    source, target = planted.source, planted.target
    constant = target._replace(users=target.users.assign(age=30.0))
    for frames in (constant, target._replace(users=None, items=None)):
        _, methods, _ = asked("cross_domain", source, frames, **SMALL)
        encoder = methods[0].fit(None).encoder
        assert not encoder.user_features and not encoder.item_features


def test_ease_is_left_out_of_large_catalogues(asked, planted, monkeypatch):
    monkeypatch.setattr("jaxrec.scenarios._question._EASE", 59)
    _, methods, _ = asked("new_user", planted.target)
    assert [method.name for method in methods if not method.strategy][-1] == "item k-NN" and len(methods) == 6
    monkeypatch.setattr("jaxrec.scenarios._question._EASE", 60)
    items = planted.target.items
    unread = pd.concat([items, items.assign(item=items["item"] + "-unread")], ignore_index=True)
    _, methods, _ = asked("new_user", planted.target._replace(items=unread))
    assert "EASE" in [method.name for method in methods]


# Errors


def test_ids_of_two_kinds_share_nobody(planted):
    target = planted.target
    named = planted.source._replace(interactions=planted.source.interactions.astype({"user": str}))
    with pytest.raises(ValueError, match="0 users are in both domains.*of one kind"):
        scenarios.cross_domain(named, target)


@pytest.mark.parametrize("column", ["user", "item"])
def test_missing_ids_are_nobody(planted, column):
    source, target = planted.source, planted.target

    def lacking(frame):
        return frame.assign(**{column: frame[column].astype(object).where(frame.index % 50 > 0, None)})

    for name, pair in (
        ("source", (source._replace(interactions=lacking(source.interactions)), target)),
        ("target", (source, target._replace(interactions=lacking(target.interactions)))),
    ):
        with refuses(ValueError, f"ids in the column '{column}' of {name} are missing.*data.clean"):
            scenarios.cross_platform(*pair)
    described = {f"{column}s": lacking(getattr(source, f"{column}s"))}
    with refuses(ValueError, f"ids of 'source' in the column '{column}' are missing"):
        scenarios.cross_platform(source._replace(**described), target)


def test_categories_that_no_row_has_are_nobody():
    column = pd.Series(["a", "b", "a"], dtype=pd.CategoricalDtype(["a", "b", "c"]))
    assert _options.per_id(column).to_dict() == {"a": 2, "b": 1}


def test_popularity_among_shared_users_lists_nothing_that_anybody_has(asked, planted):
    _, methods, _ = asked("cross_domain", planted.source, planted.target)
    (among,) = [method for method in methods if method.name == "popularity among shared users"]
    recommender = among.fit(None)
    lists = jaxrec.recommend(recommender, k=5)
    seen = recommender.trained
    encoder = recommender.encoder
    assert not seen.contains(encoder.users.encode(lists["user"]), encoder.items.encode(lists["item"])).any()
    assert len(seen) == len(methods[0].fit(None).trained)


def test_strategies_are_checked_before_anything_is_pretrained(planted, monkeypatch):
    monkeypatch.setattr("jaxrec.scenarios._platforms.fit", None)
    with pytest.raises(ValueError, match="strategies among 'towers, fine-tuned'.*got \\['tower, frozen'\\]"):
        scenarios.cross_platform(planted.source, planted.target, strategies=["tower, frozen"])


def test_bad_calls_are_refused(planted, rated_world):
    source, target = planted.source, planted.target
    with pytest.raises(ValueError, match="Expected choices without target.*rated|Keep the rows"):
        scenarios.new_user(rated_world.target)
    with refuses(TypeError, "Expected a Frames for frames, got DataFrame"):
        scenarios.new_user(target.interactions)
    with pytest.raises(ValueError, match="strategies among 'iALS with features'.*got \\['magic'\\]"):
        scenarios.new_user(target, strategies=["magic"])
    with pytest.raises(ValueError, match="metric such as 'ndcg@10'"):
        scenarios.new_user(target, metric="rmse")
    with pytest.raises(ValueError, match="metric at 1 .. 60"):
        scenarios.new_user(target, metric="ndcg@100")
    with pytest.raises(ValueError, match="shots that ascend"):
        scenarios.new_user(target, shots=(2, 1))
    with pytest.raises(ValueError, match="dim >= 1"):
        scenarios.new_user(target, dim=0)
    with pytest.raises(ValueError, match="level in \\(0, 1\\)"):
        scenarios.new_user(target, level=95)
    with pytest.raises(ValueError, match="repeated index labels"):
        scenarios.new_user(target._replace(interactions=pd.concat([target.interactions] * 2)))
    with pytest.raises(ValueError, match="no users or no items"):
        scenarios.new_user(target._replace(schema=data.Schema(item=None)))
    bare = target._replace(items=None, schema=data.Schema())
    for scenario in (scenarios.new_item, scenarios.long_tail):
        with pytest.raises(ValueError, match="Items have no features"):
            scenario(bare)
    with pytest.raises(ValueError, match="tail in \\(0, 1\\)"):
        scenarios.long_tail(target, tail=1.0)
    for shares in ({"validation": 0.0}, {"test": 0.0}, {"validation": 0.5, "test": 0.5}, {"test": float("nan")}):
        for name in NAMES:
            domains = (source, target) if name.startswith("cross") else (target,)
            with pytest.raises(ValueError, match="shares above 0"):
                getattr(scenarios, name)(*domains, **shares)
    with pytest.raises(ValueError, match="The tail or the head has no"):
        scenarios.long_tail(target, tail=0.001)
    with pytest.raises(ValueError, match="share no feature of items"):
        scenarios.cross_platform(source, bare)
    with pytest.raises(ValueError, match="epochs >= 1"):
        scenarios.cross_platform(source, target, epochs=0)
    others = source._replace(interactions=source.interactions.assign(user=source.interactions["user"] + 10**9))
    with pytest.raises(ValueError, match="0 users are in both domains"):
        scenarios.cross_domain(others, target)


# The page


@pytest.fixture(scope="session")
def page(results, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    scenarios.write_html([results[name] for name in NAMES], path, title=f"{EVIL} & more", about=f"About {EVIL}")
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing(page):
    leads = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)", page)
    assert leads and all(lead.startswith(("data:image/svg+xml;base64,", "#")) for lead in leads)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|url\(", page)
    images = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)">', page)
    assert len(images) == page.count("<img") == 5 * len(NAMES) and all(alt.strip() for alt, _ in images)
    plots = [base64.b64decode(code).decode() for _, code in images]
    assert all(plot.rstrip().endswith("</svg>") and "<script" not in plot for plot in plots)
    assert not any(re.search(r'(href|src)="(?!#)', plot) for plot in plots)
    assert any("&lt;script" in plot for plot in plots)  # the category's name is drawn as it is, formula or not


def test_the_page_says_what_was_found(page, results):
    for number, name in enumerate(NAMES):
        result = results[name]
        assert page.count(f'href="#case-{number}"') == page.count(f'id="case-{number}"') == 1
        assert f">{result.title}</h2>" in page and result.verdict in page
        assert result.summary.split(":")[0] in page
    assert f"jaxrec {jaxrec.__version__}" in page and "Seed 0." in page and "Run on 20" in page


def test_names_are_escaped(page):
    assert EVIL not in page and "<script" not in page
    assert (
        "<title>&lt;script&gt;" in page
        and "About &lt;script&gt;" in page
        and "Gain by user&#x27;s &lt;script&gt;" in page
    )


def test_a_page_that_cannot_be_written_leaves_the_older_one(results, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("older")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        scenarios.write_html([results["new_user"]], path)
    monkeypatch.undo()
    assert path.read_text() == "older" and [each.name for each in tmp_path.iterdir()] == ["report.html"]
    scenarios.write_html([results["new_user"]], path)
    assert path.read_text().startswith("<!DOCTYPE html>") and len(list(tmp_path.iterdir())) == 1


def test_pages_of_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one result"):
        scenarios.write_html([], tmp_path / "report.html")
    with refuses(TypeError, "Expected a Scenario for results\\[0\\], got str"):
        scenarios.write_html(["new_user"], tmp_path / "report.html")


def test_plots_without_matplotlib_say_what_to_install(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jaxrec.plot", raising=False)
    monkeypatch.delitem(vars(jaxrec), "plot", raising=False)  # hasattr would import it
    with pytest.raises(ModuleNotFoundError, match="pip install 'jaxrec\\[plot\\]'"):
        results["new_user"].figures()


# The command


@pytest.fixture
def ready(results, monkeypatch):
    """The command's scenarios, measured already."""
    for name in NAMES:
        monkeypatch.setattr(scenarios, name, lambda *_, name=name, seed: results[name])


def test_the_command_runs_all_five_on_generated_data(ready, results, monkeypatch, capsys):
    written = {}

    def write(found, path, *, about):
        written[path] = found, about

    monkeypatch.setattr(scenarios, "write_html", write)
    command.main(["--out", "report.html"])
    found, about = written["report.html"]
    assert {result.name for result in found} == set(NAMES) and "generated worlds (seed 0)" in about
    printed = capsys.readouterr().out
    assert all(f"{name}: generated worlds" in printed for name in NAMES) and printed.endswith("report.html\n")
    command.main(["--out", "one.html", "--only", "new_item", "--seed", "1"])
    assert written["one.html"][0] == [results["new_item"]] and "(seed 1)" in written["one.html"][1]


def test_a_scenario_that_fails_loses_no_other(ready, results, monkeypatch, tmp_path, capsys):
    failures = [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), ImportError("no pyarrow"),
                OSError("no file"), ValueError("too few rows")]  # fmt: skip

    def fails(*_, seed):
        raise failures[-1]

    monkeypatch.setattr(command, "generated", functools.cache(command.generated))
    monkeypatch.setattr(scenarios, "long_tail", fails)
    with pytest.raises(SystemExit, match="Failed: long_tail"):
        command.main(["--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<section") == 4 and "long_tail failed: ValueError: too few rows" in page
    while failures:
        with pytest.raises(SystemExit, match="No scenario succeeded: long_tail"):
            command.main(["--out", str(tmp_path / "report.html"), "--only", "long_tail"])
        failures.pop()


def test_the_command_reads_what_it_runs_and_asks_for_matplotlib_first(tmp_path, monkeypatch, capsys):
    for name in ("ml-100k", "anime"):
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="No scenario succeeded: cross_domain"):
        command.main(["--data", str(tmp_path), "--only", "cross_domain"])  # and nothing of the empty ml-100k
    assert "cross_domain failed" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jaxrec.plot", raising=False)
    monkeypatch.delitem(vars(jaxrec), "plot", raising=False)
    monkeypatch.setattr(command, "generated", None)
    with pytest.raises(SystemExit, match="pip install 'jaxrec\\[plot\\]'"):
        command.main([])


def test_a_page_that_could_not_be_written_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "generated", None)
    (tmp_path / "file").touch()
    for out, message in (
        (tmp_path, "expected a file to write the page to"),
        (tmp_path / "file" / "x.html", "cannot be written"),
    ):
        with pytest.raises(SystemExit):
            command.main(["--out", str(out)])
        assert message in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_command_takes_what_a_folder_has(ready, planted, tmp_path, capsys):
    folder = tmp_path / "sets" / "ml-100k"
    folder.mkdir(parents=True)
    items = pd.DataFrame({"item_id": [1, 2], "title": ["A (1990)", "B"], "genres": ["Art|Drama", ""]})
    rows = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 1], "rating": [5, 3, 4], "timestamp": [1, 2, 3]})
    users = pd.DataFrame({"user_id": [1, 2], "age": [20, 30], "gender": ["F", "M"]})
    for name, frame in (("items", items), ("ratings", rows), ("users", users)):
        frame.astype({frame.columns[0]: "uint16"}).to_parquet(folder / f"{name}.parquet")
    cases, missing = real(tmp_path / "sets")
    assert [case.name for case in cases] == ["new_user", "new_item", "long_tail"]
    assert missing["cross_platform"] == "it needs ml-1m and ml-100k in sets"
    frames = cases[0].frames[0]
    assert frames.interactions["rating"].tolist() == [5, 4] and frames.schema.target is None
    assert frames.items["year"].tolist() == [1990.0] and frames.interactions["user_id"].dtype == "int64"
    command.main(["--out", str(tmp_path / "report.html"), "--data", str(tmp_path / "sets")])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<section") == 3 and "cross_domain was left out: it needs amazon" in page
    assert "cross_platform is left out" in capsys.readouterr().out


def test_folders_without_data_are_refused(ready, tmp_path, capsys):
    for folder, message in (
        (tmp_path, "has no data set that a scenario knows"),
        (tmp_path / "no", "There is no folder"),
    ):
        with pytest.raises(SystemExit):
            command.main(["--out", str(tmp_path / "report.html"), "--data", str(folder)])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--only", "everything"])
    assert "expected names among new_user" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="No scenario was run"):
        (tmp_path / "ml-100k").mkdir()
        for name in ("items", "ratings", "users"):
            pd.DataFrame(
                {f"{name[:4]}_id": [1], "item_id": [1], "user_id": [1], "rating": [5], "title": ["A"]}
            ).to_parquet(tmp_path / "ml-100k" / f"{name}.parquet")
        command.main(["--data", str(tmp_path), "--only", "cross_domain", "--out", str(tmp_path / "report.html")])


def test_real_data_suits_every_scenario(real_data, asked):
    cases, missing = real(real_data)
    assert not missing and len(cases) == 5
    for case in cases:
        if case.name != "cross_platform":  # it would pretrain
            question, methods, told = asked(case.name, *case.frames)
            assert len(question.splits.test) > 300 and len(methods) > 3 and told.data


def test_only_what_is_ranked_needs_as_many_items_as_the_metric(planted):
    options = Options(None, "ndcg@61", (0,), 8, 0.1, 0.1, 0.95, 0)
    with refuses(ValueError, "metric at 1 .. 60, the number of items in source"):
        options.check(planted.source, "source")
    options.check(planted.source, "source", ranked=False)
