"""Metrics against a slow reference, the project's data folder's evaluator and scikit-learn; slices and intervals."""

import dataclasses
import math
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from helpers import refuses

import jaxrec
from jaxrec import data, evaluation, models
from jaxrec.evaluation import _intervals, _pointwise, _top_k_metrics
from jaxrec.ranking import _recommend

METRICS = {
    "recall": evaluation.recall_at_k,
    "precision": evaluation.precision_at_k,
    "hit": evaluation.hit_rate_at_k,
    "ndcg": evaluation.ndcg_at_k,
    "mrr": evaluation.mrr_at_k,
    "map": evaluation.map_at_k,
}


def slow(scores, relevant, exclude, k):
    """All metrics of one user, by the definitions and nothing else."""
    pool = [item for item in range(len(scores)) if not exclude[item]]
    wanted = {item for item in pool if relevant[item]}
    if not wanted:
        return dict.fromkeys(METRICS, math.nan)
    ranked = sorted(pool, key=lambda item: (-scores[item], item))[:k]
    hits = [item in wanted for item in ranked]
    best = min(k, len(wanted))
    found, precision = 0, 0.0
    for rank, hit in enumerate(hits, 1):
        found += hit
        precision += hit * found / rank
    return {
        "recall": sum(hits) / len(wanted),
        "precision": sum(hits) / k,
        "hit": float(any(hits)),
        "ndcg": sum(hit / math.log2(rank + 1) for rank, hit in enumerate(hits, 1))
        / sum(1 / math.log2(rank + 1) for rank in range(1, best + 1)),
        "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        "map": precision / best,
    }


def adversarial(seed, users=12, items=15):
    """Scores with many ties, signed zeros and infinities, users without positives, with everything excluded, ..."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (users, items)).astype(np.float32)
    scores[0] = 0.0
    scores[1] = np.where(rng.random(items) < 0.5, 0.0, -0.0)
    scores[2, ::3] = np.inf
    scores[3, ::2] = -np.inf
    relevant = rng.random((users, items)) < 0.3
    exclude = rng.random((users, items)) < 0.3
    relevant[4] = False
    exclude[5] = True
    exclude[6] = relevant[6]
    exclude[7] = ~relevant[7]
    relevant[8] = True
    exclude[9] = False
    exclude[10, 1:] = True
    return scores, relevant, exclude


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("k", [1, 4, 15])
def test_metrics_equal_the_slow_reference_on_adversarial_cases(name, k):
    for seed in range(3):
        scores, relevant, exclude = adversarial(seed)
        values = METRICS[name](jnp.asarray(scores), jnp.asarray(relevant), k=k, exclude=jnp.asarray(exclude))
        expected = [slow(*rows, k)[name] for rows in zip(scores, relevant, exclude, strict=True)]
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", METRICS)
def test_jit_and_batching_change_nothing(name):
    scores, relevant, _ = adversarial(5)
    metric = METRICS[name]
    whole = metric(jnp.asarray(scores), jnp.asarray(relevant), k=5)
    jitted = jax.jit(metric, static_argnames="k")(jnp.asarray(scores), jnp.asarray(relevant), k=5)
    np.testing.assert_allclose(whole, jitted, rtol=1e-6)
    single = [metric(jnp.asarray(scores[i : i + 1]), jnp.asarray(relevant[i : i + 1]), k=5)[0] for i in range(3)]
    np.testing.assert_allclose(whole[:3], single, rtol=1e-6)


def test_cutoffs_beyond_the_catalogue_are_refused():
    with pytest.raises(ValueError, match=r"Expected k in 1 .. 3 .*, got 4.*longer than the catalogue"):
        evaluation.recall_at_k(jnp.ones((1, 3)), jnp.ones((1, 3), bool), k=4)


def planted(seed, *, cold=True):
    """A random data set whose items and users are numbers, and a function that scores it adversarially."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"user": rng.integers(0, 40, 600), "item": rng.integers(0, 50, 600)}).drop_duplicates()
    parts = data.split_cold_both(frame, data.Schema(), validation=0, test=0.3, seed=seed)
    if not cold:
        parts = data.split_random(frame, validation=0, test=0.3, seed=seed)
    encoded = data.encode(parts, data.Schema())
    table = rng.integers(0, 4, (40, 50)).astype(np.float32)

    def score(users, items):
        return table[np.asarray(users, int)][:, np.asarray(items, int)]

    return parts, encoded, score


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cold", [True, False])
def test_evaluate_equals_the_slow_reference(seed, cold):
    parts, encoded, score = planted(seed, cold=cold)
    report = jaxrec.evaluate(score, encoded.test, seen=encoded.train, ks=(3, 10))
    items = encoded.train.encoder.items.ids
    for user, values in report.per_user[report.per_user["slice"] == "all"].set_index("user").iterrows():
        relevant = np.isin(items, parts.test["item"][parts.test["user"] == user])
        exclude = np.isin(items, parts.train["item"][parts.train["user"] == user])
        for k in (3, 10):
            for name, value in slow(score([user], items)[0], relevant, exclude, k).items():
                assert values[f"{name}@{k}"] == pytest.approx(value, abs=1e-6)
    assert len(report.users("ndcg@3")) == parts.test["user"].nunique()


@pytest.mark.parametrize("seed", range(3))
def test_evaluate_agrees_with_the_reference_evaluator(seed, reference):
    parts, encoded, score = planted(seed)
    items = np.asarray(encoded.train.encoder.items.ids, np.int64)
    candidates = items[::2] if seed else items
    ours = jaxrec.evaluate(score, encoded.test, seen=encoded.train, ks=(1, 5, 20), candidates=candidates.tolist())

    def by_user(frame):
        return {int(user): rows.to_numpy() for user, rows in frame.groupby("user")["item"]}

    theirs = reference.evaluate(
        lambda users: score(users, candidates), by_user(parts.test), candidates, by_user(parts.train), ks=(1, 5, 20)
    )
    assert ours.users("recall@1").index.tolist() == theirs["users"].tolist()
    for name, values in theirs["per_user"].items():
        np.testing.assert_allclose(ours.users(name).to_numpy(), values, atol=1e-6, err_msg=name)
        assert ours[name] == pytest.approx(theirs["mean"][name], abs=1e-6)
    for k, share in theirs["coverage"].items():
        assert ours.coverage[k] == pytest.approx(share)


def test_cold_and_warm_are_told_apart():
    parts, encoded, score = planted(0)
    report = jaxrec.evaluate(score, encoded.test, seen=encoded.train, ks=(10,))
    count = parts.train["user"].value_counts()
    users = report.per_user.groupby("slice")["user"].agg(set)
    known = parts.test["user"].map(count).fillna(0)
    assert users["cold users"] == set(parts.test["user"][known == 0])
    assert users["few-shot users"] == set(parts.test["user"][(known > 0) & (known <= 10)])
    assert users["warm users"] == set(parts.test["user"][known > 10])
    cold = ~parts.test["item"].isin(parts.train["item"])
    assert users["cold items"] == set(parts.test["user"][cold])
    total = sum(report.table[report.table["slice"] == name]["users"].iloc[0]
                for name in ("cold users", "few-shot users", "warm users"))  # fmt: skip
    assert total == len(users["all"])


def test_rows_that_enter_no_figure_are_counted():
    parts, encoded, score = planted(1)
    doubled = data.encode(
        parts._replace(test=pd.concat([parts.test, parts.test.iloc[:5], parts.train.iloc[:3]])), data.Schema()
    )
    report = jaxrec.evaluate(score, doubled.test, seen=doubled.train, ks=(5,))
    assert report.left_out["repeated pairs"] == 5 and report.left_out["excluded, having been seen"] == 3
    assert "left out: 5 rows, repeated pairs" in str(report)
    kept = jaxrec.evaluate(score, doubled.test, seen=doubled.train, ks=(5,), exclude_seen=False)
    assert kept.left_out["excluded, having been seen"] == 0
    fewer = jaxrec.evaluate(score, encoded.test, seen=encoded.train, ks=(5,), candidates=range(10))
    outside = int((parts.test["item"] >= 10).sum())
    assert fewer.left_out["items that are no candidates"] == outside


def test_further_exclusions_leave_items_out():
    parts, encoded, score = planted(2)
    gone = parts.test.groupby("user").head(1)
    report = jaxrec.evaluate(score, encoded.test, seen=encoded.train, ks=(5,), exclude=gone)
    assert report.left_out["excluded, having been seen"] == len(gone)


def test_a_user_may_have_candidates_of_their_own():
    parts, encoded, score = planted(1)
    rng, items = np.random.default_rng(0), np.asarray(encoded.train.encoder.items.ids)
    users = np.append(parts.test["user"].unique(), parts.train["user"].unique())
    own = pd.DataFrame([(user, item) for user in np.unique(users) for item in rng.choice(items, 6, replace=False)])
    own.columns = ["user", "item"]
    report = jaxrec.evaluate(score, encoded.test, seen=encoded.train, ks=(1, 4), candidates=own)
    assert report["hit@1"] > jaxrec.evaluate(score, encoded.test, seen=encoded.train, ks=(1,))["hit@1"]
    for user, values in report.per_user[report.per_user["slice"] == "all"].set_index("user").iterrows():
        relevant = np.isin(items, parts.test["item"][parts.test["user"] == user])
        ranked = relevant | np.isin(items, own["item"][own["user"] == user])
        exclude = np.isin(items, parts.train["item"][parts.train["user"] == user]) | ~ranked
        for k in (1, 4):
            for name, value in slow(score([user], items)[0], relevant, exclude, k).items():
                assert values[f"{name}@{k}"] == pytest.approx(value, abs=1e-6)


def test_the_whole_catalogue_as_everybodys_own_candidates_changes_nothing(factorization, parts):
    ids = factorization.encoder.items.ids
    users = factorization.encoder.users.decode(np.unique(parts.test.user))
    own = pd.DataFrame({"user": np.repeat(users, len(ids)), "item": np.tile(ids, len(users))})
    report = jaxrec.evaluate(factorization, parts.test, ks=(5,), candidates=own)
    whole = jaxrec.evaluate(factorization, parts.test, ks=(5,))
    pd.testing.assert_frame_equal(report.table, whole.table)
    assert report.left_out == whole.left_out and report.coverage == whole.coverage


def test_candidates_of_ones_own_are_known_and_nobody_is_without(factorization, parts):
    ids = factorization.encoder.items.ids
    user = factorization.encoder.users.decode(parts.test.user[:1])[0]
    with pytest.raises(ValueError, match="users of the test part have no candidates of their own, such as"):
        jaxrec.evaluate(factorization, parts.test, candidates=pd.DataFrame({"user": [user], "item": [ids[0]]}))
    with pytest.raises(ValueError, match="1 of the candidates are unknown items, such as 'no'"):
        jaxrec.evaluate(factorization, parts.test, candidates=pd.DataFrame({"user": [user], "item": ["no"]}))
    with pytest.raises(ValueError, match="item"):
        jaxrec.evaluate(factorization, parts.test, candidates=pd.DataFrame({"user": [user]}))


def test_relevance_may_start_at_a_target(rated_parts):
    report = jaxrec.evaluate(
        lambda users, items: np.zeros((len(users), len(items))), rated_parts.test, seen=rated_parts.train,
        task="ranking", relevant_from=4, ks=(5,),
    )  # fmt: skip
    ratings = rated_parts.test.encoder.original_target(rated_parts.test.target)
    users = rated_parts.test.user[ratings >= 3.999]
    assert len(report.users("recall@5")) == len(np.unique(users))


def test_a_frame_with_new_users_and_items_is_evaluated_as_cold(factorization, world):
    frame = pd.DataFrame({"user": [1, 1, 2], "item": ["film-00001", "brand-new", "film-00002"], "time": [1, 2, 3]})
    report = jaxrec.evaluate(factorization, frame, ks=(5,))
    assert report.users("recall@5").index.tolist() == [1, 2]
    assert report.left_out["items that are no candidates"] == 0


def test_rating_metrics_agree_with_scikit_learn(rated_parts):
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    recommender = jaxrec.fit(model, rated_parts.train, epochs=3)
    report = jaxrec.evaluate(recommender, rated_parts.test)
    predictions = jaxrec.predict(recommender, rated_parts.test)
    targets = rated_parts.test.encoder.original_target(rated_parts.test.target)
    assert set(np.round(targets, 4)) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert report["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(targets, predictions))
    assert report["rmse"] == pytest.approx(sklearn.metrics.mean_squared_error(targets, predictions) ** 0.5)
    assert report["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(targets, predictions))
    low, high = report.interval("rmse")
    assert low < report["rmse"] < high
    assert {"rmse", "mse", "mae"} <= set(report.per_user.columns)


@pytest.mark.parametrize("weighted", [False, True])
def test_probability_metrics_agree_with_scikit_learn(weighted):
    rng = np.random.default_rng(0)
    p = np.round(rng.random(300), 2)
    t = (rng.random(300) < p).astype(float)
    w = rng.random(300) if weighted else None
    inside = np.clip(p, 1e-6, 1 - 1e-6)
    assert evaluation.log_loss(inside, t, weight=w) == pytest.approx(
        sklearn.metrics.log_loss(t, inside, sample_weight=w)
    )
    assert evaluation.auc(p, t, weight=w) == pytest.approx(sklearn.metrics.roc_auc_score(t, p, sample_weight=w))
    assert evaluation.accuracy(p, t, weight=w) == pytest.approx(
        sklearn.metrics.accuracy_score(t, p >= 0.5, sample_weight=w)
    )
    weights = np.ones(300) if w is None else w
    bins = np.minimum((p * 10).astype(int), 9)
    expected = sum(
        abs(np.sum(weights[bins == b] * (p - t)[bins == b])) for b in range(10)
    ) / weights.sum()  # fmt: skip
    assert evaluation.calibration_error(p, t, weight=w) == pytest.approx(expected)


def test_extreme_probabilities_cost_much_but_not_infinitely():
    assert evaluation.log_loss(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(0.0, abs=1e-12)
    assert 700 < evaluation.log_loss(np.array([0.0]), np.array([1.0])) < 720
    assert np.isnan(evaluation.auc(np.array([0.3]), np.array([1.0])))
    assert np.isnan(evaluation.mse(np.zeros(0), np.zeros(0)))


def test_bootstrap_intervals_cover_the_mean(reference):
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    ours = evaluation.bootstrap_interval(values, draws=4000)
    low, high = reference.bootstrap_interval(values, draws=4000)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(low, abs=0.02) and ours.high == pytest.approx(high, abs=0.02)


def test_intervals_narrow_with_users_and_widen_with_the_level():
    rng = np.random.default_rng(0)
    values = rng.random(400)

    def width(values, **options):
        interval = evaluation.bootstrap_interval(values, **options)
        return interval.high - interval.low

    normal = 2 * 1.96 * values.std() / 20
    assert width(values) == pytest.approx(normal, rel=0.1)
    assert width(values[:100]) > 1.5 * width(values) and width(values, level=0.5) < width(values)
    assert width(values, seed=1) != width(values) == width(values)
    assert np.isnan(evaluation.bootstrap_interval(np.full(3, np.nan)).mean)
    assert evaluation.bootstrap_interval(np.array([1.0, np.nan])).mean == 1.0


def test_paired_tests_see_what_separate_intervals_do_not():
    rng = np.random.default_rng(0)
    base = rng.random(300)
    better = base + 0.01 + 0.005 * rng.normal(size=300)
    paired = evaluation.paired_test(better, base)
    assert paired.low > 0 and paired.p_value < 0.01 and paired.users == 300
    same = evaluation.paired_test(base, base[::-1].copy())
    assert same.low < 0 < same.high and same.p_value > 0.05
    with refuses(ValueError, r"each of the same users, got the shapes \(3,\) and \(4,\)"):
        evaluation.paired_test(np.zeros(3), np.zeros(4))


def test_of_many_users_the_limit_is_taken(monkeypatch):
    rng = np.random.default_rng(0)
    values, others = rng.random(5000), rng.random(5000)
    drawn = evaluation.bootstrap_interval(values, draws=4000), evaluation.paired_test(values, others, draws=4000)
    monkeypatch.setattr(_intervals, "_MANY", 4999)
    monkeypatch.setattr(_intervals, "resampled", None)
    limit = evaluation.bootstrap_interval(values, draws=4000), evaluation.paired_test(values, others, draws=4000)
    for ours, theirs in zip(limit, drawn, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.0005 if ours is limit[0] else 0.02)
    same = evaluation.paired_test(values, values)
    assert same[:4] == (0.0, 0.0, 0.0, 1.0)


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(1)
    alarms = [
        evaluation.paired_test(rng.random(60), rng.random(60), draws=200, seed=n).p_value < 0.05 for n in range(200)
    ]
    assert np.mean(alarms) < 0.09


def test_reports_answer_and_compare(factorization, towers, parts):
    ours, theirs = (jaxrec.evaluate(each, parts.test, ks=(5, 10)) for each in (towers, factorization))
    assert ours["ndcg@10"] == ours.value("ndcg@10", "all") == pytest.approx(ours.users("ndcg@10").mean())
    paired = ours.versus(theirs, "ndcg@10")
    assert paired.difference == pytest.approx(ours["ndcg@10"] - theirs["ndcg@10"])
    assert "ndcg@10" in str(ours) and "30" in str(ours)
    with pytest.raises(ValueError, match="No figure 'ndcg@7' for 'all'. Metrics: recall@5"):
        ours["ndcg@7"]
    fewer = jaxrec.evaluate(factorization, parts.test.subset(parts.test.user == parts.test.user[0]), ks=(10,))
    with pytest.raises(ValueError, match="about different users"):
        ours.versus(fewer, "ndcg@10")


@pytest.mark.parametrize("task", ["ranking", "rating"])
def test_level_and_seed_are_those_of_the_intervals(factorization, parts, clicks, task):
    recommender, test = (factorization, parts.test) if task == "ranking" else clicks
    metric = "ndcg@10" if task == "ranking" else "auc"
    reports = [jaxrec.evaluate(recommender, test, **options) for options in ({}, {"level": 0.5}, {"seed": 1})]
    (low, high), (inner_low, inner_high), drawn_anew = (report.interval(metric) for report in reports)
    assert low < inner_low < inner_high < high and drawn_anew != (low, high)
    zeros = recommender.replace(params=jax.tree.map(jnp.zeros_like, recommender.params))
    other, metric = jaxrec.evaluate(zeros, test, draws=1), metric if task == "ranking" else "mae"
    wide, narrow, anew = (reports[0].versus(other, metric, **options) for options in ({}, {"level": 0.5}, {"seed": 1}))
    assert wide.low < narrow.low < narrow.high < wide.high and anew[1:3] != wide[1:3]
    for level in (0, 1.0, 95, -0.5, math.nan):
        with refuses(ValueError, r"level in \(0, 1\)"):
            jaxrec.evaluate(recommender, test, level=level)
        with refuses(ValueError, r"level in \(0, 1\)"):
            reports[0].versus(other, metric, level=level)


def test_coverage_is_the_share_of_candidates_listed():
    _, encoded, _ = planted(0, cold=False)
    same = jaxrec.evaluate(lambda users, items: np.tile(-np.arange(len(items)), (len(users), 1)), encoded.test,
                           seen=encoded.train, ks=(1,), exclude_seen=False)  # fmt: skip
    assert same.coverage[1] == pytest.approx(1 / len(encoded.train.encoder.items))


def test_a_popularity_baseline_counts(parts, world):
    recommender = jaxrec.coldstart.popularity(parts.train)
    listed = jaxrec.recommend(recommender, [int(parts.train.encoder.users.ids[0])], k=5, exclude_seen=False)
    counts = pd.Series(parts.train.encoder.items.decode(parts.train.item)).value_counts()
    assert listed["score"].tolist() == sorted(counts, reverse=True)[:5]
    assert [counts[item] for item in listed["item"]] == listed["score"].tolist()


def test_cross_validation_trains_anew_in_every_fold(world):
    frames = world.target
    seen = []

    def train(dataset):
        seen.append(dataset)
        return jaxrec.coldstart.popularity(dataset)

    table = evaluation.cross_validate(
        train, frames.interactions, frames.schema, users=frames.users, items=frames.items, folds=3, by="user", seed=0,
        ks=(5,),
    )  # fmt: skip
    assert len(seen) == 3 and {"fold 1", "fold 2", "fold 3", "mean", "std"} <= set(table.columns)
    row = table[(table["slice"] == "all") & (table["metric"] == "ndcg@5")].iloc[0]
    assert row["mean"] == pytest.approx(np.mean([row[f"fold {n}"] for n in (1, 2, 3)]))
    trained = [set(each.encoder.users.decode(np.unique(each.user))) for each in seen]
    assert set.intersection(*trained) == set()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test, ks=(61,)), ValueError, r"in 1 .. 60 .*got \(61,\)"),
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test.subset([])), ValueError, "test part is empty"),
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test, task="rating"), ValueError, "need a target"),
        (
            lambda rec, parts: jaxrec.evaluate(lambda u, i: None, parts.test, seen=parts.train, task="rating"),
            TypeError,
            "Row-wise metrics need a recommender",
        ),
        (
            lambda rec, parts: jaxrec.evaluate(rec, dataclasses.replace(parts.test, user=None)),
            ValueError,
            "Ranking needs users and items. Name both",
        ),
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test, relevant_from=3.0), ValueError, "from needs a target"),
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test, candidates=["no"]), ValueError, "items, such as 'no'"),
        (lambda rec, parts: jaxrec.evaluate(len, parts.test), TypeError, "give test and seen="),
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test, seen=parts.train), TypeError, "Leave seen= out"),
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test, exclude=[1]), TypeError, "a Dataset for exclude"),
        (lambda rec, parts: jaxrec.evaluate(rec, parts.test, ks=10), TypeError, r"Say ks=\(10,\)"),
        (
            lambda rec, parts: jaxrec.evaluate(lambda u, i: np.zeros((1, 1)), parts.test, seen=parts.train),
            ValueError,
            "Expected scores of shape",
        ),
        (
            lambda rec, parts: jaxrec.evaluate(
                lambda u, i: np.full((len(u), len(i)), np.nan), parts.test, seen=parts.train
            ),
            ValueError,
            "A score is infinite or NaN",
        ),
    ],
)  # fmt: skip
def test_evaluations_that_cannot_be_are_refused(factorization, parts, call, error, message):
    with refuses(error, message):
        call(factorization, parts)


def test_scores_that_overflow_are_refused_of_a_recommender_and_taken_of_a_function(factorization, parts):
    grown = factorization.replace(params=jax.tree.map(lambda leaf: 1e25 * jnp.sign(leaf), factorization.params))
    with refuses(ValueError, "A score is infinite or NaN"):
        jaxrec.evaluate(grown, parts.test, draws=10)
    report = jaxrec.evaluate(lambda u, i: np.full((len(u), len(i)), np.inf), parts.test, seen=parts.train, draws=10)
    assert np.isfinite(report["ndcg@10"])


def test_data_of_another_encoder_are_refused(factorization, parts):
    _, others, _ = planted(0)
    for call in (jaxrec.evaluate, jaxrec.predict):
        with pytest.raises(ValueError, match="dataset's users were numbered by another encoder"):
            call(factorization, others.test)
    unknown = dataclasses.replace(parts.test, user=parts.test.user * 0)
    with pytest.raises(ValueError, match="test rows have users that the encoder does not know"):
        jaxrec.evaluate(factorization, unknown)
    task: Any = "guessing"
    with refuses(ValueError, "task 'ranking' or 'rating', got 'guessing'"):
        jaxrec.evaluate(factorization, parts.test, task=task)


def test_evaluation_lowers_for_cpu_cuda_and_tpu():
    shape = jax.ShapeDtypeStruct((8, 10), jnp.float32)

    def figures(scores, relevant, exclude):
        from jaxrec.ranking import top_k

        position = top_k(scores, k=5, exclude=exclude).position
        hit = jnp.take_along_axis(relevant, jnp.maximum(position, 0), axis=1) & (position >= 0)
        return _top_k_metrics.from_hits(hit, relevant.sum(axis=1, dtype=jnp.int32), k=5)

    mask = jax.ShapeDtypeStruct((8, 10), jnp.bool_)
    exported = jax.export.export(jax.jit(figures), platforms=("cpu", "cuda", "tpu"))(shape, mask, mask)
    scores, relevant, exclude = (jnp.asarray(values[:8, :10]) for values in adversarial(0))
    values = jax.export.deserialize(exported.serialize()).call(scores, relevant & ~exclude, exclude)
    np.testing.assert_allclose(values["ndcg"], evaluation.ndcg_at_k(scores, relevant, k=5, exclude=exclude), rtol=1e-6)


@pytest.mark.parametrize("scale", ["zscore", "minmax", "log1p", "quantile"])
def test_rows_at_the_threshold_are_relevant_whatever_the_scale(rated_world, scale):
    frame = rated_world.target.interactions.assign(score=rated_world.target.interactions["rating"] * 1000.0)
    split = data.split_random(frame, validation=0.0, test=0.3, seed=1)
    counts = []
    for each in (None, scale):
        encoded = data.encode(split, data.Schema(target="score", target_scale=each))
        fitted = jaxrec.fit(models.MatrixFactorization.for_data(encoded.train, dim=2), encoded.train, epochs=1)
        report = jaxrec.evaluate(fitted, encoded.test, task="ranking", relevant_from=4000, draws=1)
        counts.append(report.table["users"].iloc[0])
    assert counts[0] == counts[1] > 10


def test_datasets_of_another_encoder_are_refused(parts, factorization, world):
    frame = world.target.interactions
    other = data.encode(data.Parts(frame[frame["item"] > "film-00005"], None, None), data.Schema()).train
    with pytest.raises(ValueError, match="numbered by another encoder"):
        jaxrec.evaluate(factorization, parts.test, exclude=other)
    with pytest.raises(ValueError, match="numbered by another encoder"):
        jaxrec.evaluate(lambda users, items: np.zeros((len(users), len(items))), parts.test, seen=other)


@pytest.mark.parametrize("values", [lambda x: 1 + 1e-9 * x, lambda x: 1e300 * x, lambda x: 2**24 + x, lambda x: x])
def test_scores_of_a_function_keep_their_order_beyond_float32(parts, values):
    def figure(change):
        def scores(users, items):
            rng = np.random.default_rng(0)
            return change(rng.permuted(np.tile(np.arange(float(len(items))), (len(users), 1)), axis=1))

        return jaxrec.evaluate(scores, parts.test, seen=parts.train, draws=1)["ndcg@10"]

    assert figure(values) == figure(lambda x: x)


def test_a_function_is_asked_for_one_block_after_another(parts, monkeypatch):
    """It may not be safe to call from several threads, as recommenders' blocks are ranked."""
    monkeypatch.setattr("jaxrec.ranking._top_k._USERS", 8)
    asked = []

    def scores(users, items):
        asked.append((threading.get_ident(), len(users)))
        return np.zeros((len(users), len(items)))

    report = jaxrec.evaluate(scores, parts.test, seen=parts.train, draws=1)
    assert len(asked) > 2
    assert {thread for thread, _ in asked} == {threading.get_ident()}
    assert sum(number for _, number in asked) == report.table["users"].iloc[0]


@pytest.mark.parametrize(
    ("options", "message"), [({"ks": ()}, "cut-offs"), ({"ks": (0,)}, "cut-offs"), ({"draws": 0}, "draws")]
)
def test_empty_options_are_refused(parts, factorization, options, message):
    with pytest.raises(ValueError, match=message):
        jaxrec.evaluate(factorization, parts.test, **options)


def test_rows_with_targets_read_no_options_of_lists(rated_parts):
    model = models.MatrixFactorization.for_data(rated_parts.train, dim=4)
    fitted = jaxrec.fit(model, rated_parts.train, epochs=1, batch_size=256)
    items = fitted.encoder.items.ids[:30]
    lists = {"ks": (5,), "candidates": items, "exclude": rated_parts.train, "exclude_seen": False, "relevant_from": 4.0}
    for task in (None, "rating"):
        for name in lists if task else list(lists)[:-1]:
            with pytest.raises(ValueError, match=f"^{name}= is of ranked lists.*Say task='ranking'"):
                jaxrec.evaluate(fitted, rated_parts.test, task=task, **{name: lists[name]})
    report = jaxrec.evaluate(fitted, rated_parts.test, relevant_from=4.0, ks=(5,), draws=10)
    assert "ndcg@5" in set(report.table.metric)
    for metric, message in (("auc", "one of probabilities"), ("ndcg@99", "metric at 1 .. 60")):
        with pytest.raises(ValueError, match=message):
            jaxrec.fit(model, rated_parts.train, validation=rated_parts.validation, metric=metric)
    broken = fitted.replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, fitted.params))
    with pytest.raises(ValueError, match="predictions are infinite or NaN"):
        jaxrec.evaluate(broken, rated_parts.test)


@pytest.fixture(scope="module")
def clicks():
    """A model of clicks, and rows with them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 30, 400), "item": rng.integers(0, 20, 400)})
    frame["click"] = ((frame["user"] + frame["item"]) % 3 == 0).astype(float)
    train = data.encode(data.Parts(frame, None, None), data.Schema(target="click")).train
    model = models.MatrixFactorization.for_data(train, dim=4)
    return jaxrec.fit(model, train, loss="sigmoid_cross_entropy", epochs=3, batch_size=64), train


def test_metrics_are_checked_before_training(parts, factorization, clicks):
    with pytest.raises(ValueError, match="'rmse' compares predictions with targets.*names no target"):
        jaxrec.fit(factorization.model, parts.train, validation=parts.validation, metric="rmse")
    with pytest.raises(ValueError, match="'auc' has no value per user"):
        jaxrec.transfer.compare(*clicks, clicks[1], metric="auc")
    with pytest.raises(ValueError, match="'auc' has no value per user. It is a figure of all rows together"):
        jaxrec.evaluate(*clicks, draws=1).users("auc")


def test_few_shapes_are_compiled_for_predictions(factorization):
    users, items = factorization.encoder.users.ids, factorization.encoder.items.ids
    pairs = pd.DataFrame({"user": users[:64], "item": items[:32].tolist() * 2})
    whole = jaxrec.predict(factorization, pairs)
    before = _recommend._inner._cache_size()
    for rows in (33, 40, 63):
        np.testing.assert_array_equal(jaxrec.predict(factorization, pairs.head(rows)), whole[:rows])
    assert _recommend._inner._cache_size() == before


def test_nothing_excluded_is_nothing_left_out(factorization, parts):
    empty = pd.DataFrame({"user": pd.Series([], dtype="int64"), "item": pd.Series([], dtype="int64")})
    user = factorization.encoder.users.ids[:1]
    pd.testing.assert_frame_equal(
        jaxrec.recommend(factorization, user, k=3, exclude=empty), jaxrec.recommend(factorization, user, k=3)
    )


def test_a_function_is_evaluated_on_users_who_came_later(parts):
    encoder = parts.train.encoder.extend(users=[-number for number in range(1, 400)])
    frame = pd.DataFrame({"user": [-399, -1], "item": encoder.items.ids[:2], "time": 0})
    report = jaxrec.evaluate(
        lambda users, items: np.zeros((len(users), len(items))), encoder.encode(frame), seen=parts.train, draws=10
    )
    assert report.table.users.iloc[0] == 2


def test_adding_what_is_known_makes_no_new_encoder(factorization):
    encoder = factorization.encoder
    assert encoder.extend(users=encoder.users.ids[:3], items=encoder.items.ids[:2]) is encoder


def test_intervals_of_rows_are_those_of_passes_over_them(clicks):
    recommender, test = clicks
    report = jaxrec.evaluate(recommender, test, draws=50)
    predictions, group = jaxrec.predict(recommender, test), np.unique(test.user, return_inverse=True)[1]
    for metric in ("rmse", "mae", "log_loss", "accuracy"):
        function = getattr(_pointwise, metric)
        values = _intervals.bootstrap_statistic(
            lambda weight, of=function: of(predictions, test.target.astype(float), weight=weight),
            group,
            draws=50,
            seed=0,
        )
        np.testing.assert_allclose(report.interval(metric), np.quantile(values, [0.025, 0.975]), rtol=1e-6)


def untrained(train, **options):
    """A recommender of which nothing but its shapes and scales is looked at."""
    model = models.MatrixFactorization.for_data(train, dim=2)
    seen = train.interactions
    return jaxrec.train.Recommender(
        model, model.init(jax.random.key(0)), train.encoder, seen, len(seen), **options
    )  # fmt: skip


RATED = pd.DataFrame({"user": [1, 1, 2, 2, 3, 3], "item": [1, 2, 2, 3, 3, 1], "r": [1.0, 2.0, 3.0, 5.0, 4.0, 2.0]})


@pytest.mark.parametrize("scale", [None, "zscore", "minmax", "log1p"])
def test_targets_are_unscaled_by_the_encoder_that_scaled_them(scale):
    schema = data.Schema(target="r", target_scale=scale)
    ours = data.encode(data.Parts(RATED, None, None), schema).train
    larger = RATED.assign(r=RATED["r"] * 100)
    theirs = data.encode(data.Parts(larger, None, None), schema).train
    recommender = untrained(ours)
    expected = jaxrec.evaluate(recommender, larger, draws=5)["rmse"]
    assert jaxrec.evaluate(recommender, theirs, draws=5)["rmse"] == pytest.approx(expected, rel=1e-6)
    assert expected > 100


MORE = pd.DataFrame({"user": [9, 1, 8, 1, 9], "item": [3, 1, 1, 2, 7], "r": [5.0, 2.0, 1.0, 4.0, 3.0]})


def test_slices_of_rows_have_their_users_values():
    encoded = data.encode(data.Parts(RATED, None, MORE), data.Schema(target="r"))
    recommender = untrained(encoded.train)
    report = jaxrec.evaluate(recommender, encoded.test, draws=5)
    error = pd.Series(np.abs(jaxrec.predict(recommender, MORE) - MORE["r"]))
    cold = MORE["user"] > 3
    slices = {"all": cold | True, "cold users": cold, "warm users": ~cold, "cold items": MORE["item"] == 7}
    for name, chosen in slices.items():
        expected = error[chosen].groupby(MORE["user"]).mean()
        found = report.users("mae", name)
        assert found.index.tolist() == expected.index.tolist()
        np.testing.assert_allclose(found, expected)
        assert report.table.set_index("slice").loc[name, "users"].tolist() == [len(expected)] * 3
    moved = recommender.replace(params=jax.tree.map(lambda leaf: leaf + 1.0, recommender.params))
    paired = report.versus(jaxrec.evaluate(moved, encoded.test, draws=5), "mae", "cold users")
    assert paired.users == 2 and paired.difference != 0


def test_weights_and_times_need_not_be_given_for_they_are_not_read():
    full = RATED.assign(when=np.arange(6.0), weight=np.arange(6.0))
    schema = data.Schema(target="r", time="when", weight="weight", context=(data.Numeric("when"),))
    train = data.encode(data.Parts(full, None, None), schema).train
    frame = full.drop(columns="weight")
    report = jaxrec.evaluate(untrained(train), frame, draws=5)
    pd.testing.assert_frame_equal(report.table, jaxrec.evaluate(untrained(train), train, draws=5).table)
    with pytest.raises(ValueError, match="lacks the column 'when'"):  # which is context too
        jaxrec.evaluate(untrained(train), frame.drop(columns="when"))
    plain = data.encode(data.Parts(full, None, None), dataclasses.replace(schema, context=())).train
    for options in ({"task": "rating"}, {"task": "ranking", "exclude_seen": False}):
        found, expected = (jaxrec.evaluate(untrained(plain), test, draws=5, **options) for test in (RATED, plain))
        pd.testing.assert_frame_equal(found.table, expected.table)


def test_rows_of_unknown_users_are_drawn_one_by_one():
    train = data.encode(data.Parts(RATED, None, None), data.Schema(target="r")).train
    recommender = untrained(train)
    report = jaxrec.evaluate(recommender, train.encoder.encode(MORE), draws=50)
    for name, users, rows in (("all", 1, 5), ("cold users", 0, 3), ("warm users", 1, 2)):
        row = report.table[report.table["slice"] == name].iloc[0]
        assert (row["users"], row["rows"]) == (users, rows)
        assert (row["low"] < row["high"]) == (name != "warm users")
    assert report.users("mae").index.tolist() == [1]
    with pytest.raises(ValueError, match="The encoder knows no user of 'cold users'.*Pass the test part as a frame"):
        report.users("mae", "cold users")


@pytest.mark.parametrize("scale", ["minmax", "quantile"])
def test_probabilities_of_scaled_targets_come_back_in_the_targets_own_unit(scale):
    train = data.encode(data.Parts(RATED, None, None), data.Schema(target="r", target_scale=scale)).train
    recommender = untrained(train, link="sigmoid")
    p = 1 / (1 + np.exp(-_recommend.row_scores(recommender, train).astype(float)))
    expected = train.encoder.original_target(p)
    np.testing.assert_allclose(jaxrec.predict(recommender, RATED), expected, rtol=1e-6)
    report = jaxrec.evaluate(recommender, train, draws=5)
    assert report["rmse"] == pytest.approx(np.sqrt(np.mean((expected - RATED["r"]) ** 2)), rel=1e-6)
    assert report["rmse"] < 2 and set(report.table["metric"]) == {"rmse", "mse", "mae"}


@pytest.mark.parametrize("scale", [None, "minmax", "log1p", "quantile"])
def test_probabilities_are_of_targets_that_no_scale_moves(scale):
    frame = RATED.assign(r=[0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    train = data.encode(data.Parts(frame, None, None), data.Schema(target="r", target_scale=scale)).train
    report = jaxrec.evaluate(untrained(train, link="sigmoid"), train, draws=5)
    assert ("log_loss" in set(report.table["metric"])) == (scale in (None, "minmax"))


def test_context_that_another_encoder_scaled_is_refused():
    frame = RATED.assign(price=np.arange(6.0))
    schema = data.Schema(context=(data.Numeric("price"),))
    ours, theirs = (
        data.encode(data.Parts(each, None, None), schema).train for each in (frame, frame.assign(price=frame["r"]))
    )
    for call in (jaxrec.evaluate, jaxrec.predict):
        with pytest.raises(ValueError, match="context was scaled by another encoder.*recommender.encoder"):
            call(untrained(ours), theirs)
    assert len(jaxrec.predict(untrained(ours), ours)) == len(frame)


def test_thresholds_beyond_the_ends_of_quantiles_are_refused():
    encoded = data.encode(data.Parts(RATED, None, None), data.Schema(target="r", target_scale="quantile")).train
    options = {"exclude_seen": False, "draws": 5, "ks": (1,)}
    with pytest.raises(ValueError, match=r"'relevant_from' are outside the training part's range \[1, 5\]"):
        jaxrec.evaluate(untrained(encoded), encoded, relevant_from=6.0, **options)
    counts = [
        jaxrec.evaluate(untrained(encoded), encoded, relevant_from=least, **options).table["users"].iloc[0]
        for least in (0.0, 5.0)
    ]
    assert counts == [3, 1]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_lists_check_shapes_and_nan(name):
    scores, metric = jnp.array([[3.0, 2.0, 1.0]]), METRICS[name]
    for relevant in (jnp.ones((1, 2), bool), jnp.ones((1, 4), bool), jnp.ones((2, 3), bool), jnp.ones(3, bool)):
        with refuses(ValueError, r"arrays \[users, items\] of one shape, got"):
            metric(scores, relevant, k=1)
    with refuses(ValueError, "'exclude': .*Give a row for each user"):
        metric(scores, jnp.ones((1, 3), bool), k=1, exclude=jnp.zeros((2, 3), bool))
    with refuses(TypeError, "Expected bool for relevant, got int32.*Say relevant > 0"):
        metric(scores, jnp.array([[0, 2, 3]]), k=3)
    with refuses(TypeError, "Expected bool for exclude, got float32"):
        metric(scores, jnp.ones((1, 3), bool), k=3, exclude=jnp.zeros((1, 3)))
    broken, relevant = jnp.array([[3.0, jnp.nan, 1.0], [3.0, 2.0, 1.0]]), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match="1 scores are NaN.*exclude them"):
        metric(broken, relevant, k=1)
    found = jax.jit(metric, static_argnames="k")(broken, relevant, k=1)
    assert np.isnan(found).tolist() == [True, False]
    assert not np.isnan(metric(broken, relevant, k=1, exclude=jnp.isnan(broken))).any()


@pytest.mark.parametrize("name", ["mse", "rmse", "mae", "log_loss", "auc", "accuracy", "calibration_error"])
def test_metrics_of_rows_check_shapes_and_nan(name):
    metric, two = getattr(evaluation, name), np.array([0.0, 1.0])
    for predictions in (two[:, None], two[:1], np.array(0.5)):
        with refuses(ValueError, "one number for each row, got the shapes"):
            metric(predictions, two)
    with refuses(ValueError, "'weight'"):
        metric(two, two, weight=np.ones(3))
    with pytest.raises(ValueError, match="1 of 2 predictions are NaN"):
        metric(np.array([np.nan, 0.5]), two)
    assert np.isnan(metric(two[:0], two[:0]))


@pytest.mark.parametrize("name", ["log_loss", "auc", "accuracy", "calibration_error"])
def test_metrics_of_probabilities_take_no_logits_and_no_ratings(name):
    metric, ends = getattr(evaluation, name), np.array([0.0, 1.0])
    assert np.isfinite(metric(ends, ends))
    for beyond in (-0.5, 3.2):
        if name == "auc":  # of any scores
            assert metric(np.array([-1.0, beyond]), ends) in (0.0, 1.0)
        else:
            with pytest.raises(ValueError, match=f"predictions in .0, 1., got {beyond} in one of 1 .* Apply a sigmoid"):
                metric(np.array([0.5, beyond]), ends)
        with pytest.raises(ValueError, match=f"targets in .0, 1., got {beyond} .* Turn them into 0 and 1"):
            metric(ends, np.array([0.0, beyond]))


def test_intervals_take_one_value_of_each_user():
    with refuses(ValueError, r"one value of each of the same users, got the shapes \(3,\) and \(3, 3\)"):
        evaluation.paired_test(np.arange(3.0), np.zeros((3, 3)))
    with refuses(ValueError, r"one value of each user, got the shape \(3, 3\)"):
        evaluation.bootstrap_interval(np.zeros((3, 3)))


def test_intervals_need_a_level_and_drawings():
    for options, message in (({"level": 1.0}, r"level in \(0, 1\), .* got 1.0"), ({"draws": 0}, "draws >= 1, got 0")):
        with pytest.raises(ValueError, match=message):
            evaluation.bootstrap_interval(np.arange(3.0), **options)
        with pytest.raises(ValueError, match=message):
            evaluation.paired_test(np.arange(3.0), np.zeros(3), **options)


def test_figures_that_are_means_take_as_many_draws_as_are_asked_for(clicks):
    recommender, test = clicks
    few, many = (jaxrec.evaluate(recommender, test.subset(np.arange(80)), draws=draws) for draws in (200, 300))
    for metric in ("rmse", "mse", "mae", "log_loss", "accuracy"):
        assert few.interval(metric) != many.interval(metric)
    for metric in ("auc", "calibration_error"):
        assert few.interval(metric) == many.interval(metric)


def test_rows_of_one_class_have_no_auc_and_no_warning(clicks):
    recommender, test = clicks
    report = jaxrec.evaluate(recommender, test.subset(test.target == 1), draws=10)
    assert np.isnan([report["auc"], *report.interval("auc")]).all() and np.isfinite(report.interval("log_loss")).all()


def test_no_rows_have_no_errors(clicks):
    recommender, test = clicks
    with pytest.raises(ValueError, match="test part is empty. Expected at least one held-out row"):
        jaxrec.evaluate(recommender, test.subset(np.arange(0)))


def test_candidates_of_each_user_when_the_recommender_has_outgrown_the_test_part():
    train = data.encode(data.Parts(RATED, None, None), data.Schema()).train
    recommender = untrained(train)
    own = pd.DataFrame({"user": np.repeat([1, 2, 3], 3), "item": [1, 2, 3] * 3})
    options = {"candidates": own, "exclude_seen": False, "draws": 5, "ks": (1,)}
    expected = jaxrec.evaluate(recommender, train, **options)
    grown = jaxrec.coldstart.add(recommender, users=range(10, 60), items=range(10, 60))
    pd.testing.assert_frame_equal(jaxrec.evaluate(grown, train, **options).table, expected.table)
    more = pd.concat([own, pd.DataFrame({"user": [59], "item": [59]})])
    pd.testing.assert_frame_equal(jaxrec.evaluate(grown, train, **options | {"candidates": more}).table, expected.table)
