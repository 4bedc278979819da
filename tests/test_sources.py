"""Ranking of sources: what each signal is by definition, and that the order and the verdict are true."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import refuses

import jaxrec
from jaxrec import data, models, sources, train
from jaxrec.sources import _distances, _signals


def bare(frames: data.Frames) -> data.Frames:
    return data.Frames(frames.interactions[["user", "item"]], None, None, data.Schema())


def encoded(frames: data.Frames) -> data.Dataset:
    parts = data.Parts(frames.interactions, None, None)
    return data.encode(parts, frames.schema, users=frames.users, items=frames.items).train


def fitted(frames: data.Frames) -> train.Recommender:
    return train.fit_als(encoded(frames), dim=8, epochs=4)


def with_users(frames: data.Frames, change) -> data.Frames:
    rows = frames.interactions
    return frames._replace(interactions=rows.assign(user=change(rows["user"].to_numpy())))


def permuted(users: np.ndarray) -> np.ndarray:
    every = np.unique(users)
    return np.random.default_rng(0).permutation(every)[np.searchsorted(every, users)]


@pytest.fixture(scope="module")
def film_world() -> data.World:
    return data.generate(
        seed=3, transferable=0.95, source_users=240, target_users=180, shared_users=0.9, source_items=60,
        target_items=50, source_interactions=20.0, target_interactions=10.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def films(film_world) -> data.Dataset:
    return encoded(bare(film_world.target))


@pytest.fixture(scope="module")
def candidates(film_world) -> dict[str, train.Recommender]:
    """A source that is related, the same one with its users mixed up, and one whose users nobody knows."""
    books = bare(film_world.source)
    return {
        "mixed": fitted(with_users(books, permuted)),
        "strangers": fitted(with_users(books, lambda users: users + 10**8)),
        "related": fitted(books),
    }


@pytest.fixture(scope="module")
def ranking(candidates, films) -> sources.Ranking:
    return sources.rank(candidates, films, dim=8)


class TestDistances:
    def test_mmd_is_its_definition(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(5, 2)), rng.normal(size=(4, 2)) + 1.0
        both = np.concatenate([x, y])
        pairs = [((a - b) ** 2).sum() for at, a in enumerate(both) for b in both[:at]]

        def k(a, b):
            return np.exp(-((a - b) ** 2).sum() / (2 * np.median(pairs)))

        within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
        expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
        assert sources.mmd(x, y) == pytest.approx(expected)

    @pytest.mark.parametrize("distance", [sources.mmd, sources.proxy_a])
    def test_grows_with_the_shift_from_about_0(self, distance):
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(2, 400, 3))
        values = [distance(x, y + shift) for shift in (0.0, 0.7, 2.0, 8.0)]
        assert abs(values[0]) < 0.2 and values == sorted(values) and values[-1] <= 2.0
        assert values[-1] > 0.9 and values[1] > values[0] + 0.02

    def test_proxy_a_is_2_where_no_row_is_mistaken(self):
        x = np.random.default_rng(2).normal(size=(60, 2))
        assert sources.proxy_a(x, x + 100.0) == 2.0

    def test_same_rows_and_draws(self):
        same = np.ones((4, 2))
        assert sources.mmd(same, same) == sources.proxy_a(same, same) == 0.0
        x = np.random.default_rng(3).normal(size=(90, 2))
        few = [sources.mmd(x, x + 1.0, most=10, seed=seed) for seed in (0, 0, 1)]
        assert few[0] == few[1] != few[2]

    def test_errors(self):
        x = np.zeros((3, 2))
        with refuses(ValueError, "at least 2 rows with the same columns, got \\(3, 2\\) and \\(3, 1\\)"):
            sources.mmd(x, np.zeros((3, 1)))
        with refuses(ValueError, "at least 2 rows"):
            sources.proxy_a(x, x[:1])
        with refuses(ValueError, "same columns, got \\(3,\\) and \\(3,\\)"):
            sources.mmd(x[:, 0], x[:, 0])
        with refuses(ValueError, "same columns, got \\(3, 0\\)"):
            sources.proxy_a(x[:, :0], x[:, :0])
        with refuses(ValueError, "got NaN or infinite"):
            sources.mmd(x, x + np.nan)

    def test_common_features_are_in_the_unit_of_the_data(self):
        """Each domain is scaled by its own statistics, which would hide that one has older users."""

        def domain(ages, labels):
            users = pd.DataFrame({"user": range(len(ages)), "age": ages, "tags": labels})
            rows = pd.DataFrame({"user": users["user"], "item": users["user"] % 3})
            schema = data.Schema(user_features=(data.Numeric("age", scale="zscore"), data.Labels("tags", "|")))
            return encoded(data.Frames(rows, users, None, schema)).encoder

        first = domain([20.0, 30.0, 40.0], ["a", "a|b", "b"])
        second = domain([60.0, 70.0, 80.0, 90.0], ["b", "c", "b|c", "c"])
        found = _distances.common_features(first, second, "user")
        assert found is not None
        x, y = found
        deviation = np.std([20, 30, 40, 60, 70, 80, 90])
        np.testing.assert_allclose(x[:, 0] * deviation, [20, 30, 40], rtol=1e-5)
        np.testing.assert_allclose(y[:, 0] * deviation, [60, 70, 80, 90], rtol=1e-5)
        names = ["b", "c", "a"]  # the target's numbering goes first
        shares = {"a": [0, 0, 1], "a|b": [0.5, 0, 0.5], "b": [1, 0, 0], "c": [0, 1, 0], "b|c": [0.5, 0.5, 0]}
        assert second.user_features[1].vocabulary.extend(["a", "b"]).ids.tolist() == names
        np.testing.assert_array_equal(x[:, 1:], [shares[each] for each in ("a", "a|b", "b")])
        np.testing.assert_array_equal(y[:, 1:], [shares[each] for each in ("b", "c", "b|c", "c")])
        assert _distances.common_features(first, second, "item") is None

    def test_of_many_entities_with_many_labels_some_are_drawn(self, monkeypatch):
        users = pd.DataFrame({"user": range(40), "tag": [f"t{number}" for number in range(40)]})
        rows = pd.DataFrame({"user": users["user"], "item": users["user"] % 3})
        encoder = encoded(data.Frames(rows, users, None, data.Schema(user_features=(data.Categorical("tag"),)))).encoder
        whole = _distances.common_features(encoder, encoder, "user")
        monkeypatch.setattr(_distances, "_FEWEST", 10)
        monkeypatch.setattr(_distances, "_CELLS", 800)
        some = _distances.common_features(encoder, encoder, "user")
        assert whole[0].shape == (40, 40) and some[0].shape == some[1].shape == (10, 40)
        assert some[0].sum() == 10


class TestEvidence:
    def test_is_the_density_maximised_over_both_precisions(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(12, 3))
        y = x @ rng.normal(size=(3, 2)) + 0.7 * rng.normal(size=(12, 2))
        y[:, 1] = 40 * y[:, 1] + 5
        basis = np.linalg.qr(np.column_stack([np.ones(12), np.eye(12)[:, :11]]))[0][:, 1:]  # of what centring leaves
        x0, y0 = basis.T @ x, basis.T @ y

        def density(values, alpha, beta):
            covariance = np.eye(11) / beta + x0 @ x0.T / alpha
            return -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + values @ np.linalg.solve(covariance, values))

        gains = []
        for column in y0.T:
            beta_alone = 11 / (column @ column)
            alone = density(column, 1e12, beta_alone)
            grid = np.exp(np.linspace(-3, 5, 161))
            best = max(
                density(column, alpha, beta)
                for beta in beta_alone * grid
                for alpha in beta_alone * np.exp(np.linspace(-4, 4, 81))
            )
            gains.append((best - alone) / 12)
        assert sources.evidence(x, y) == pytest.approx(np.mean(gains), abs=2e-4)
        assert sources.evidence(7 * x, y) == pytest.approx(sources.evidence(x, y))

    @pytest.mark.parametrize("rows", [3, 5, 10, 30])
    def test_vectors_wider_than_there_are_rows_explain_nothing_as_such(self, rows):
        rng = np.random.default_rng(rows)
        assert 0 <= sources.evidence(rng.normal(size=(rows, 64)), rng.normal(size=(rows, 4))) < 0.1

    def test_every_column_counts_whatever_the_scale_of_others(self):
        rng = np.random.default_rng(2)
        x = rng.normal(size=(50, 3))
        y = x[:, :1] + rng.normal(size=(50, 1))
        assert sources.evidence(x, np.column_stack([1e9 * y, y])) == pytest.approx(sources.evidence(x, y))

    def test_nothing_to_explain_and_nothing_to_explain_it_with(self):
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(200, 3)), rng.normal(size=(200, 2))
        assert 0 <= sources.evidence(x, y) < 0.02 < sources.evidence(y @ rng.normal(size=(2, 3)), y)
        assert sources.evidence(x[:2], y[:2]) == sources.evidence(np.ones((9, 2)), y[:9]) == 0.0
        assert sources.evidence(x, np.ones((200, 1))) == 0.0
        assert np.isfinite(sources.evidence(x, x))  # without any noise
        with refuses(ValueError, "as many rows of x as of y, got shapes \\(200, 3\\) and \\(3, 2\\)"):
            sources.evidence(x, y[:3])
        with refuses(ValueError, "finite numbers"):
            sources.evidence(x * np.inf, y)
        with refuses(ValueError, "two matrices"):
            sources.evidence(x[:, 0], y)


class TestScore:
    def test_calibration_recovers_a_planted_score(self):
        rng = np.random.default_rng(0)
        signals = pd.DataFrame(rng.normal(size=(60, 3)), columns=["evidence", "item_mmd", "gain"])
        gains = 0.5 + 2.0 * signals["gain"] - 1.0 * signals["item_mmd"]
        score = sources.calibrate(signals, gains, l2=0.0)
        deviation = signals.std(ddof=0)
        expected = {"evidence": 0.0, "item_mmd": deviation["item_mmd"], "gain": 2 * deviation["gain"]}
        assert score.table["weight"].to_dict() == pytest.approx(expected, abs=1e-6)
        np.testing.assert_allclose(score(signals), gains, atol=1e-6)
        assert score.pairs == 60 and "fitted on 60 pairs" in str(score)
        shrunk = sources.calibrate(signals, gains, l2=1.0)
        assert shrunk.table["weight"]["gain"] < 0.6 * score.table["weight"]["gain"]

    def test_a_signal_that_does_not_vary_has_no_weight(self):
        """0.1 seven times is not its own mean in floats: what is left must not be divided by itself."""
        signals = pd.DataFrame({"gain": [0.1] * 7, "evidence": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]})
        weight = sources.calibrate(signals, [0.3, 0.1, 0.7, 0.9, 0.2, 1.3, 0.17], l2=0.0).table["weight"]
        assert weight["gain"] == 0.0 < weight["evidence"]

    def test_no_weight_is_against_its_sign(self):
        signals = pd.DataFrame({"evidence": [0.0, 1, 2, 3], "gain": [1.0, 1, 1, 1], "verdict": list("abcd")})
        score = sources.calibrate(signals, [3.0, 2, 1, 0])
        assert (
            score.table["weight"].to_dict() == {"gain": 0.0, "evidence": 0.0} and score(signals).tolist() == [1.5] * 4
        )

    def test_gains_are_matched_by_name(self):
        signals = pd.DataFrame({"gain": [0.1, 0.7, 0.2, 0.4]}, index=list("dbca"))
        gains = 2 * signals["gain"]
        assert sources.calibrate(signals, gains.sort_index(), l2=0.0)(signals).tolist() == pytest.approx(gains.tolist())

    def test_errors(self):
        signals = pd.DataFrame({"gain": [0.0, 1.0, 2.0]})
        with refuses(ValueError, "columns among user_overlap"):
            sources.calibrate(signals.rename(columns={"gain": "x"}), [0, 1, 2])
        with refuses(ValueError, "gains of 3 pairs or more, one per row of signals, got 2 and 3"):
            sources.calibrate(signals, [0, 1])
        with refuses(ValueError, "Expected finite gains, got 1 others"):
            sources.calibrate(signals, [0, 1, np.nan])
        with refuses(ValueError, "finite signals, got others in gain"):
            sources.calibrate(signals * np.inf, [0, 1, 2])
        with refuses(ValueError, "l2 >= 0"):
            sources.calibrate(signals, [0, 1, 2], l2=-1.0)
        with refuses(ValueError, "gains have another index than the signals"):
            sources.calibrate(signals.set_axis(list("abc")), pd.Series([0, 1, 2]))
        with refuses(ValueError, "The signals lack gain"):
            sources.calibrate(signals, [0, 1, 2])(pd.DataFrame({"evidence": [1.0]}))


class TestRank:
    def test_a_related_source_is_ahead_of_unrelated_ones(self, ranking):
        assert ranking.best == "related" == ranking.table.index[0]
        related, mixed = ranking.table.loc["related"], ranking.table.loc["mixed"]
        assert related.verdict == "helpful" and ranking.table["verdict"]["strangers"] == "no evidence of help"
        assert related.gain > 0.05 > mixed.gain and related.evidence > 5 * mixed.evidence
        assert related.low < related.gain < related.high
        assert related.score == ranking.table["score"].max()
        text = str(ranking)
        assert text.startswith("Try 'related' first, for its") and "strangers: no evidence of help, gain" in text

    def test_counts_are_those_of_the_frames(self, ranking, film_world):
        there, here = (each.interactions for each in (film_world.source, film_world.target))
        shared = np.intersect1d(there["user"], here["user"])
        row = ranking.table.loc["related"]
        assert row.shared_users == len(shared) and row.shared_items == 0
        assert row.user_overlap == pytest.approx(len(shared) / here["user"].nunique())
        count = there[there["user"].isin(shared)].groupby("user").size()
        assert row.activity == pytest.approx(np.log1p(count).mean())

    def test_everything_is_finite_where_nothing_is_shared(self, ranking):
        row = ranking.table.loc["strangers"].drop("verdict").astype(float)
        assert np.isfinite(row).all()
        assert (row[["shared_users", "user_overlap", "activity", "popularity", "evidence", "gain"]] == 0).all()
        assert (row[["user_mmd", "item_mmd", "user_proxy_a", "item_proxy_a"]] == 2).all()
        assert (row.low, row.high) == (-1, 1) and "no trial" in ranking.notes["strangers"]
        assert "no trial" in str(ranking)

    def test_popularity_of_shared_items(self, film_world, films):
        """The same items: the counts correlate wholly with themselves."""
        found = _signals.told(fitted(bare(film_world.target)), films, 0)
        assert found["popularity"] == pytest.approx(1.0) and found["item_overlap"] == 1.0
        assert _signals.rank_correlation(np.array([1, 2, 2]), np.array([5, 1, 1])) == pytest.approx(-1.0)
        assert _signals.rank_correlation(np.array([1, 1, 1]), np.array([5, 1, 1])) == 0.0

    def test_harm_is_reported_and_comes_last(self, candidates, films):
        """In one matrix with a domain whose users are mixed up, newcomers get what somebody else likes."""
        ranking = sources.rank(candidates, films, strategy="stack", dim=8)
        assert ranking.table.loc["mixed", "verdict"] == "harmful" and ranking.table.index[-1] == "mixed"
        assert ranking.table["high"]["mixed"] < 0
        only = sources.rank({"mixed": candidates["mixed"]}, films, strategy="stack", dim=8)
        assert only.best is None and "No source is worth transferring from" in str(only)

    def test_harm_of_copied_weights_is_a_verdict_and_no_warning(self):
        """Targets: users' vectors were learned in a domain where each user is somebody else."""
        rng = np.random.default_rng(0)
        user, item = (each.ravel() for each in np.meshgrid(np.arange(120), np.arange(12), indexing="ij"))
        of_user, of_item = rng.normal(size=(120, 3)), rng.normal(size=(12, 3))

        def domain(users, scale):
            rated = pd.DataFrame(
                {"user": user, "item": item, "y": scale * (of_user[users] * of_item[item]).sum(axis=1)}
            )
            return data.encode(data.Parts(rated, None, None), data.Schema(target="y")).train

        there = domain(rng.permutation(120)[user], 4.0)
        model = models.MatrixFactorization.for_data(there, dim=4)
        source = jaxrec.fit(model, there, epochs=40, progress=False)
        found = sources.rank({"others": source}, domain(user, 1.0), epochs=1)
        assert found.metric == "rmse" and found.best is None and found.table["verdict"]["others"] == "harmful"

    def test_sources_that_are_tried_by_different_metrics_are_not_compared_by_their_gains(self, rated_world):
        there, here = (encoded(frames) for frames in (rated_world.source, rated_world.target))
        model = models.MatrixFactorization.for_data(there, dim=3)
        options = {"epochs": 2, "batch_size": 512, "progress": False}
        values, order = (jaxrec.fit(model, there, loss=loss, **options) for loss in ("mse", "bpr"))
        found = sources.rank({"values": values, "order": order}, here, epochs=1)
        assert found.metrics == {"values": "rmse", "order": "ndcg@10"} and found.metric == "ndcg@10, rmse"
        assert (found.table["users"] > 0).all() and found.score.table["weight"]["gain"] == 0.0
        assert found.notes["order"] == "tried by ndcg@10 and others by rmse: the gains do not compare."
        text = str(found)
        assert "in a trial (ndcg@10, " in text and "in a trial (rmse, " in text
        alone = sources.rank({"order": order}, here, epochs=1)
        assert alone.metric == "ndcg@10" and not alone.notes

    def test_ids_of_another_type_are_noted(self, candidates, films, film_world):
        texts = encoded(with_users(bare(film_world.target), lambda users: users.astype(str)))
        found = sources.rank({"related": candidates["related"]}, texts, dim=8)
        assert "no user is shared: int ids there and str ids here can never match" in str(found)

    def test_a_score_of_ones_own(self, ranking, candidates, films):
        signals = pd.concat([ranking.table] * 2)
        by_overlap = sources.calibrate(signals[["user_overlap"]], -signals["gain"] + 5 * signals["user_overlap"])
        other = sources.rank(candidates, films, score=by_overlap, dim=8, held_out=0.5, level=0.5, seed=1)
        assert other.score is by_overlap
        np.testing.assert_allclose(other.table["score"], by_overlap(other.table))
        ours, theirs = (each.table.loc["related"] for each in (ranking, other))
        assert theirs.users > ours.users and theirs.high - theirs.low < 0.8 * (ours.high - ours.low)
        assert theirs.gain != ours.gain
        against = sources.Score(pd.DataFrame({"mean": 0.0, "deviation": 1.0, "weight": [-1.0]}, index=["gain"]))
        third = sources.rank(candidates, films, score=against, dim=8)  # the verdict goes before the score
        assert third.table.index[0] == "related" == third.table["score"].idxmin()
        assert third.table["score"]["strangers"] > third.table["score"]["related"]
        heavy = sources.rank({"related": candidates["related"]}, films, dim=8, least=12)
        assert 3 <= heavy.table.loc["related"].users < 0.7 * ours.users
        nobody = sources.rank(candidates, films, dim=8, least=10**6)
        assert (
            "0 users with 1000000 rows or more" in nobody.notes["related"] and nobody.table["gain"].tolist() == [0] * 3
        )

    def test_domains_that_share_features_alone_are_tried_by_copying(self, parts, world):
        """No id in common: distances of features are known, and a trial copies the towers."""
        stranger = data.encode(
            data.Parts(world.source.interactions.assign(user=lambda rows: rows["user"] + 10**8), None, None),
            data.Schema(item_features=(data.Vector("content"),)), items=world.source.items,
        ).train  # fmt: skip
        target = data.encode(
            data.Parts(world.target.interactions, None, None), stranger.encoder.schema, items=world.target.items,
            like=stranger.encoder,
        ).train  # fmt: skip
        model = models.TwoTower.for_data(stranger, dim=4, hidden=())
        source = jaxrec.fit(model, stranger, epochs=2, batch_size=512, progress=False)
        found = sources.rank({"books": source}, target, epochs=1)
        row = found.table.iloc[0]
        assert row.users > 50 and row.low < row.gain < row.high and not found.notes
        assert -0.2 < row.item_mmd < 0.2 and row.item_proxy_a < 1 and row.user_mmd == 2
        assert found.metric == "ndcg@10"

    def test_errors(self, candidates, films):
        with refuses(ValueError, "at least one candidate"):
            sources.rank({}, films)
        with refuses(TypeError, "candidates as a dict of recommenders by name, got Recommender"):
            sources.rank(candidates["mixed"], films)
        with refuses(TypeError, "Expected a Recommender for candidates\\['x'\\], got Dataset"):
            sources.rank({"x": films}, films)
        with refuses(TypeError, "names of candidates as strings, got 1"):
            sources.rank({1: candidates["mixed"]}, films)
        with refuses(ValueError, "strategy to be 'emcdr', 'stack'"):
            sources.rank(candidates, films, strategy="all")
        with refuses(ValueError, "held_out and level in \\(0, 1\\), got 1.0"):
            sources.rank(candidates, films, held_out=1.0)
        with refuses(TypeError, "Expected a Score for score, got function"):
            sources.rank(candidates, films, score=sources.calibrate)
        table = pd.DataFrame({"mean": 0.0, "deviation": 1.0, "weight": [1.0]}, index=["age"])
        with refuses(ValueError, "The signals lack age"):
            sources.rank(candidates, films, score=sources.Score(table))
        with refuses(ValueError, "least, dim and epochs of 1 or more, got 0, 32 and 5"):
            sources.rank(candidates, films, least=0)
        with refuses(ValueError, "no users or no items"):
            sources.rank(candidates, dataclasses.replace(films, user=None))


def test_a_candidate_that_cannot_be_read_is_named_and_one_that_diverges_is_noted(films, candidates, monkeypatch):
    related = candidates["related"]
    bad = related.replace(
        params={side: {"embedding": each["embedding"] * np.nan} for side, each in related.params.items()}
    )
    with refuses(ValueError, "Candidate 'bad': "):
        sources.rank({"related": related, "bad": bad}, films, dim=4, epochs=2)

    def diverges(*_):
        raise FloatingPointError("The loss became nan")

    monkeypatch.setattr("jaxrec.sources._ranking.Trials.__call__", diverges)
    found = sources.rank({"related": related}, films, dim=4, epochs=2)
    assert "no trial: The loss became nan" in found.notes["related"]
