"""Approximate top-k: nearly the exact lists, exactly scored; exclusions; what it does not go with."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import refuses

import jaxrec
from jaxrec import coldstart, ranking


@pytest.fixture(scope="module")
def vectors():
    """Users and items of eight tastes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 12))
    users, items = (centres[rng.integers(0, 8, size)] + 0.4 * rng.normal(size=(size, 12)) for size in (40, 3000))
    return users.astype(np.float32), items.astype(np.float32)


@pytest.fixture(scope="module")
def index(vectors):
    return ranking.Index(vectors[1])


def test_most_of_the_best_items_are_found_and_exactly_scored(vectors, index):
    users, items = vectors
    exact, found = ranking.search(users, items, k=20), index.search(users, k=20)
    ours, theirs = np.asarray(found.position), np.asarray(exact.position)
    shared = (ours[:, :, None] == theirs[:, None, :]).sum(axis=(1, 2))
    assert np.mean(shared) > 19
    scores = np.take_along_axis(users @ items.T, np.asarray(found.position), axis=1)
    np.testing.assert_allclose(found.score, scores, rtol=1e-4, atol=1e-5)
    assert (found.score[:, 1:] <= found.score[:, :-1]).all()


def test_a_direction_that_all_have_hides_nobody(vectors):
    """As popularity gives one to factorizations: lengths differ, and one number decides much."""
    users, items = (
        np.column_stack([each, shift]).astype(np.float32)
        for each, shift in zip(
            vectors, (np.full(40, 2.0), 3 * np.random.default_rng(1).exponential(size=3000)), strict=True
        )
    )
    ours, theirs = (
        np.asarray(each.position)
        for each in (ranking.Index(items).search(users, k=20), ranking.search(users, items, k=20))
    )
    assert (ours[:, :, None] == theirs[:, None, :]).sum() > 0.9 * theirs.size


def test_a_crowd_of_equal_items_hides_nobody():
    items = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    items[::2] = [1.0, 0.0, 0.0, 0.0]
    users = np.asarray([[0.5, -0.3, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]], np.float32)
    ours, theirs = ranking.Index(items).search(users, k=900), ranking.search(users, items, k=900)
    np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-5)
    crowd = np.asarray(ours.position)[1]
    assert (np.diff(crowd[crowd % 2 == 0]) > 0).all()


def test_more_effort_finds_no_fewer(vectors):
    users, items = vectors
    thin = ranking.Index(items, links=2, effort=1)
    best = np.asarray(ranking.search(users, items, k=5).position)
    little, much = (np.asarray(thin.search(users, k=5, effort=effort).position) for effort in (1, 3000))
    assert (little[:, :, None] == best[:, None, :]).sum() < (much[:, :, None] == best[:, None, :]).sum()


def test_excluded_and_dead_items_are_not_found(vectors):
    users, items = vectors
    live = np.arange(3000) % 3 != 0
    index = ranking.Index(items, live=live)
    exclude = np.asarray(ranking.search(users, items, k=30, live=jnp.asarray(live)).position)
    assert np.isin(index.search(users, k=10).position, exclude).any()
    found = np.asarray(index.search(users, k=10, exclude=jnp.asarray(exclude)).position)
    assert live[found].all() and not (found[:, :, None] == exclude[:, None, :]).any()
    others = index.search(users[:1], k=10, exclude=jnp.asarray(exclude[1:2]))  # another user's exclusions
    np.testing.assert_array_equal(others.position[0, :3], index.search(users[:1], k=3).position[0])


@pytest.mark.parametrize("filler", [-1, -2, -(2**31), 3000, 2**31 - 1, None])
def test_any_number_that_is_no_position_fills_up_exclusions(vectors, filler):
    """Below -1 it was the last positions of the user before."""
    users, items = vectors
    items = np.concatenate([items[:-1], 3 * users[:1]])  # the last item is the first user's best
    index, exclude = ranking.Index(items), np.full((2, 3 if filler else 0), filler or 0, np.int32)
    found = index.search(users[:2], k=5, exclude=jnp.asarray(exclude))
    np.testing.assert_array_equal(found.position, index.search(users[:2], k=5).position)
    assert found.position[0, 0] == 2999


def test_lists_are_as_long_as_exact_ones(vectors):
    users, items = vectors
    index = ranking.Index(items[:30], live=np.arange(30) < 25)
    exclude = jnp.asarray(np.tile(np.arange(20), (len(users), 1)), jnp.int32)
    found = index.search(users, k=8, exclude=exclude)
    exact = ranking.search(users, items[:30], k=8, live=jnp.arange(30) < 25, exclude=exclude)
    np.testing.assert_array_equal(found.position, exact.position)
    np.testing.assert_allclose(found.score, exact.score, rtol=1e-5)
    assert (np.asarray(found.position)[:, 5:] == -1).all() and np.isneginf(found.score[:, 5:]).all()


def test_whoever_has_seen_much_is_ranked_exactly_beside_others(vectors, monkeypatch):
    users, items = vectors
    monkeypatch.setattr("jaxrec.ranking._index._WALKED", 50)
    index = ranking.Index(items)
    exclude = np.full((len(users), 200), 2**30, np.int32)
    exclude[3] = np.asarray(ranking.search(users[3:4], items, k=200).position)[0]
    exclude[5, 100:130] = np.asarray(ranking.search(users[5:6], items, k=30).position)[0]  # not in front
    widths = []
    walk = ranking.Index._walk
    monkeypatch.setattr(ranking.Index, "_walk", lambda *given: widths.append(given[2]) or walk(*given))
    found = index.search(users, k=10, exclude=jnp.asarray(exclude))
    exact = ranking.search(users, items, k=10, exclude=jnp.asarray(exclude))
    assert widths == [10, 40]  # nobody walks deeper for what another one has seen
    np.testing.assert_array_equal(found.position[3], exact.position[3])
    assert np.mean(np.asarray(found.position)[5] == np.asarray(exact.position)[5]) > 0.8
    assert not np.isin(found.position[5], exclude[5, 100:130]).any()
    monkeypatch.setattr("jaxrec.ranking._index._GATHERED", 2000)
    few = index.search(users, k=10, exclude=jnp.asarray(exclude))
    np.testing.assert_array_equal(few.position, found.position)
    assert widths[2:] == [10] * 3 + [40]


def test_the_exact_search_of_some_compiles_nothing_for_a_user_more(vectors):
    from test_train import record

    users, items = vectors
    index, compiled = ranking.Index(items[:30]), []
    index.search(users[:3], k=8, exclude=np.tile(np.arange(28), (3, 1)))
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        record(patch, compiled)
        found = index.search(users[:4], k=8, exclude=np.tile(np.arange(28), (4, 1)))
    assert not [name for name in compiled if "search" in name]
    position = np.sort(found.position, axis=1)
    assert (position[:, :6] == -1).all() and (position[:, 6:] == [28, 29]).all()


def test_many_items_kept_from_everybody_are_left_to_the_exact_search(factorization, monkeypatch):
    monkeypatch.setattr("jaxrec.ranking._index._WALKED", 2)
    index, ids = ranking.Index.of(factorization), factorization.encoder.items.ids
    monkeypatch.setattr(ranking.Index, "search", None)
    found = jaxrec.recommend(factorization, k=5, exclude=ids[:3], index=index)
    pd.testing.assert_frame_equal(found, jaxrec.recommend(factorization, k=5, exclude=ids[:3]))


def test_equal_scores_go_by_position():
    items = np.asarray([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    assert ranking.Index(items).search(np.asarray([[1.0, 0.0]], np.float32), k=4).position.tolist() == [[1, 2, 3, 0]]


def test_recommending_by_an_index_is_recommending(factorization):
    index = ranking.Index.of(factorization)
    ids = factorization.encoder.items.ids
    exact = jaxrec.recommend(factorization, k=5, exclude=ids[:3])
    pd.testing.assert_frame_equal(jaxrec.recommend(factorization, k=5, exclude=ids[:3], index=index), exact, rtol=1e-5)
    assert not exact["item"].isin(ids[:3]).any()
    touched = pd.DataFrame({"user": 1, "item": ids[5:8], "time": 0})
    fresh = {"users": [1], "interactions": touched, "k": 5}
    pd.testing.assert_frame_equal(
        jaxrec.recommend(factorization, **fresh, index=index), jaxrec.recommend(factorization, **fresh), rtol=1e-5
    )


def test_what_an_index_does_not_go_with_is_refused(factorization, towers, world, parts):
    index = ranking.Index.of(factorization)
    ids = factorization.encoder.items.ids
    with refuses(ValueError, "Leave out candidates, new_items and mesh, or the index"):
        jaxrec.recommend(factorization, candidates=ids[:9], index=index)
    with refuses(ValueError, "is not of this recommender's items, .* Build it anew"):
        jaxrec.recommend(towers, index=index)
    grown = coldstart.add(factorization, items=["film-99999"])  # whose vector is that of an empty place
    for known, other in ((grown, index), (factorization, ranking.Index.of(grown))):
        with refuses(ValueError, "Build it anew"):
            jaxrec.recommend(known, index=other)
    wrong_type: Any = 5
    with refuses(TypeError, "index"):
        jaxrec.recommend(factorization, index=wrong_type)
    new = world.target.items.iloc[:1].assign(item="film-99999")
    with refuses(ValueError, "Build it anew"):
        jaxrec.recommend(coldstart.add(towers, items=new), index=ranking.Index.of(towers))
    counted = jaxrec.train.fit_item_knn(parts.train)
    for wrong in (lambda: ranking.Index.of(counted), lambda: jaxrec.recommend(counted, index=index)):
        with refuses(ValueError, "factorise|vectors of items"):
            wrong()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"links": 1}, "links >= 2, got 1"),
        ({"effort": 0}, "effort >= 1, got 0"),
        ({"live": np.zeros(3, bool)}, "at least one live item, got none"),
        ({"items": np.full((3, 2), np.nan, np.float32)}, "item vector is not finite"),
    ],
)
def test_indexes_that_cannot_be_are_refused(options, message):
    with refuses(ValueError, message):
        ranking.Index(**{"items": np.ones((3, 2), np.float32)} | options)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with refuses(ModuleNotFoundError, r"needs faiss. Install the extra: pip install 'jaxrec\[ann\]'"):
        ranking.Index(np.ones((3, 2), np.float32))


def test_questions_that_cannot_be_are_refused(index):
    with refuses(ValueError, "k in 1 .. 3000 .*got 3001"):
        index.search(np.ones((1, 12), np.float32), k=3001)
    with refuses(ValueError, r"vectors \[users, 12\], got shape \(1, 11\)"):
        index.search(np.ones((1, 11), np.float32), k=1)
    with refuses(ValueError, "effort >= 1, got -5"):
        index.search(np.ones((1, 12), np.float32), k=1, effort=-5)
    with refuses(TypeError, "positions of items, .* got bool"):
        index.search(np.ones((1, 12), np.float32), k=1, exclude=np.zeros((1, 3000), bool))
    with refuses(ValueError, "user vector is not finite"):
        index.search(np.full((1, 12), np.nan, np.float32), k=1)
