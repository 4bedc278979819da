"""Meta-learning: gradients by hand and by finite differences, what moves and what does not, and that it helps."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import FEATURES
from conftest import encoded
from helpers import refuses

import jaxrec
from jaxrec import _tree, coldstart, data, models, train
from jaxrec.coldstart._episodes import Episodes, pool_of
from jaxrec.coldstart._inner import TaskLoss, Tasks
from jaxrec.coldstart._meta import _losses
from jaxrec.data import Batch
from jaxrec.models import _base
from jaxrec.ranking._vectors import apply

RATE = 0.3
TOWERS = models.TwoTower(
    user_rows=9, item_rows=7, dim=3, hidden=(4,), user_dense=2, item_dense=3, code_dim=2, id_dropout=0.0
)
PERSONAL = ("user/bias", "user/mlp/*")


@dataclasses.dataclass(frozen=True)
class Slope:
    """score = (w + u) * c_i, of which only w is personal: gradients can be written down."""

    tables: ClassVar = {}
    unknown: ClassVar = "zero"

    def init(self, key):
        return {"own": {"w": jnp.asarray(0.5)}, "all": {"u": jnp.asarray(0.25)}}

    def lookups(self, batch, features):
        return {}

    def score(self, params, gathered, batch, features, *, key=None):
        return (params["own"]["w"] + params["all"]["u"]) * _base.take(features.item_dense, batch.item)[..., 0]

    apply = _base.apply


def lines(item, target, weight=None) -> Batch:
    """Rows of one task for ``Slope``."""
    weight = np.ones(len(item)) if weight is None else weight
    return Batch(
        user=jnp.ones(len(item), jnp.int32),
        item=jnp.asarray(item, jnp.int32)[:, None],
        target=jnp.asarray(target, jnp.float32),
        weight=jnp.asarray(weight, jnp.float32),
    )


C = np.asarray(FEATURES.item_dense, np.float64)[:, 0]
ITEM, TARGET = np.array([1, 2, 3, 4, 5]), np.array([1.0, -0.5, 0.3, 0.8, -1.0])


def slope_after(w, u, item, target, steps=1, most=None):
    for _ in range(steps):
        w = w - RATE * np.sum(2 * ((w + u) * C[item] - target) * C[item]) / (most or len(item))
    return w


def inner_of(steps=1, **options):
    return coldstart.InnerLoop(**{"personal": ("own/*",), "rate": RATE, "steps": steps, "loss": "mse", **options})


@pytest.mark.parametrize("steps", [1, 3])
def test_the_inner_loop_is_gradient_descent_on_the_support(steps):
    model = Slope()
    params = model.init(jax.random.key(0))
    adapted = inner_of(steps, support=8).adapt(model, params, lines(ITEM, TARGET), FEATURES)
    expected = slope_after(0.5, 0.25, ITEM, TARGET, steps, most=8)
    assert float(adapted["own"]["w"]) == pytest.approx(expected, rel=1e-5)
    assert adapted["all"]["u"] is params["all"]["u"]


def meta_gradient(method, params, batch, *, steps=1, support=2):
    tasks = Tasks(Slope(), inner_of(steps, support=support), len(ITEM) - support, method)
    return jax.grad(lambda params: TaskLoss(tasks)(tasks.apply(params, batch, FEATURES), batch))(params)


def query_loss(w, u, steps, support=2):
    w = slope_after(w, u, ITEM[:support], TARGET[:support], steps)
    return np.mean(((w + u) * C[ITEM[support:]] - TARGET[support:]) ** 2)


@dataclasses.dataclass(frozen=True)
class UserSlope(Slope):
    """score = (w + u) * c_user."""

    def score(self, params, gathered, batch, features, *, key=None):
        slope = _base.take(features.user_dense, batch.user)[:, :1]
        return (params["own"]["w"] + params["all"]["u"]) * jnp.broadcast_to(slope, batch.item.shape)


def test_an_items_inner_step_compares_the_users_who_touched_it_with_others():
    """BPR by hand: each row has a user who touched the item and one drawn; the item itself is the same in all."""
    model, c = UserSlope(), np.asarray(FEATURES.user_dense, np.float64)[:, 0]
    params = model.init(jax.random.key(0))
    users = np.array([[1, 4], [2, 5], [3, 6]])
    support = Batch(user=np.full(3, 5, np.int32), item=users.astype(np.int32), weight=np.ones(3, np.float32))
    inner = inner_of(loss="bpr", support=4, side="item")
    adapted = inner.adapt(model, params, support, FEATURES)
    gap = c[users[:, 0]] - c[users[:, 1]]
    gradient = np.sum(-gap / (1 + np.exp(0.75 * gap))) / 4
    assert float(adapted["own"]["w"]) == pytest.approx(0.5 - RATE * gradient, rel=1e-5)
    assert abs(gradient) > 0.01 and adapted["all"]["u"] is params["all"]["u"]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_outer_gradient_goes_through_the_inner_steps(steps):
    """Against finite differences of the whole, in float64; the first-order form leaves out a known factor."""
    params, batch, h = Slope().init(jax.random.key(0)), lines(ITEM, TARGET), 1e-6
    grads = meta_gradient("maml", params, batch, steps=steps)
    for leaf, by in ((grads["own"]["w"], (h, 0.0)), (grads["all"]["u"], (0.0, h))):
        up, down = query_loss(0.5 + by[0], 0.25 + by[1], steps), query_loss(0.5 - by[0], 0.25 - by[1], steps)
        assert float(leaf) == pytest.approx((up - down) / (2 * h), rel=1e-4)
    first = meta_gradient("first_order", params, batch, steps=steps)
    factor = (1 - RATE * np.mean(2 * C[ITEM[:2]] ** 2)) ** steps  # of the personal leaf: dphi / dtheta
    assert float(grads["own"]["w"]) == pytest.approx(float(first["own"]["w"]) * factor, rel=1e-4)
    assert abs(factor - 1) > 0.1


def test_reptile_goes_where_the_inner_loop_went():
    """One row a step, of two tasks: the personal gradient is the way gone by rate and steps, averaged over tasks."""
    params = Slope().init(jax.random.key(0))
    twice = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), lines(ITEM, TARGET), lines(ITEM[::-1], -TARGET))
    grads = meta_gradient("reptile", params, twice, steps=5)
    ways = []
    for item, target in ((ITEM, TARGET), (ITEM[::-1], -TARGET)):
        w = 0.5
        for row in range(5):
            w = slope_after(w, 0.25, item[row : row + 1], target[row : row + 1])
        ways.append((0.5 - w) / (5 * RATE))
    assert float(grads["own"]["w"]) == pytest.approx(np.mean(ways), rel=1e-4)
    assert float(grads["all"]["u"]) == pytest.approx(np.mean(ways), rel=1e-4)  # of a sum, both have one gradient


def some_tasks(num=6, rows=5, columns=3, seed=0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        user=jnp.asarray(np.repeat(rng.integers(1, 9, num), rows), jnp.int32),
        item=jnp.asarray(rng.integers(1, 7, (num * rows, columns)), jnp.int32),
        weight=jnp.asarray(rng.integers(0, 2, num * rows), jnp.float32),
    )


@pytest.mark.parametrize("method", ["maml", "first_order", "reptile"])
def test_tasks_side_by_side_are_tasks_one_by_one(method):
    inner = coldstart.InnerLoop(personal=PERSONAL, rate=RATE, steps=2, loss="bpr", support=2)
    tasks = Tasks(TOWERS, inner, 3, method)
    params = TOWERS.init(jax.random.key(1))
    score = jax.jit(lambda batch: tasks.apply(params, batch, FEATURES))
    batch = some_tasks()
    whole = score(batch)
    for task in range(6):
        part = jax.tree.map(lambda leaf, task=task: leaf[5 * task : 5 * task + 5], batch)
        np.testing.assert_allclose(score(part), whole[5 * task : 5 * task + 5], rtol=1e-5, atol=1e-6)
    if method == "maml":  # the rows asked for are scored by the base with the adapted parameters
        known, asked = (jax.tree.map(lambda leaf, p=p: leaf[p], batch) for p in (slice(0, 2), slice(2, 5)))
        adapted = inner.adapt(TOWERS, params, known, FEATURES)
        np.testing.assert_allclose(TOWERS.apply(adapted, asked, FEATURES), whole[2:5], rtol=1e-5, atol=1e-6)


def test_padding_of_the_support_changes_nothing_and_none_keeps_the_initialisation():
    inner = coldstart.InnerLoop(personal=PERSONAL, loss="sampled_softmax", steps=3)
    params = TOWERS.init(jax.random.key(1))
    batch = some_tasks(num=1)._replace(weight=jnp.ones(5))
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), batch)
    padded = padded._replace(weight=jnp.asarray([1.0] * 5 + [0.0] * 5))
    adapted = inner.adapt(TOWERS, params, batch, FEATURES)
    for path, leaf in _tree.flatten(inner.adapt(TOWERS, params, padded, FEATURES)).items():
        np.testing.assert_allclose(leaf, _tree.get(adapted, path), rtol=1e-5, atol=1e-6)
    moved = {path for path, leaf in _tree.flatten(adapted).items() if (leaf != _tree.get(params, path)).any()}
    assert moved == {path for path in _tree.flatten(params) if path == "user/bias" or path.startswith("user/mlp")}
    nothing = inner.adapt(TOWERS, params, batch._replace(weight=jnp.zeros(5)), FEATURES)
    jax.tree.map(np.testing.assert_array_equal, nothing, params)


# Tasks on the host


def test_every_user_is_a_task_of_rows_that_do_not_overlap(parts):
    dataset = parts.train
    episodes = Episodes(dataset, pool_of(dataset, "user"), support=4, query=3, negatives=2, batch_size=32, seed=0)
    count = np.bincount(dataset.user)
    sizes, users = [], []
    for stack, steps in episodes.epoch(1):
        assert stack.item.shape[1:] == (32 * 7, 3) and steps <= stack.item.shape[0]
        for user, item, weight in zip(*(np.asarray(leaf).reshape(-1, 7, *leaf.shape[2:]) for leaf in stack[:2]),
                                      np.asarray(stack.weight).reshape(-1, 7), strict=True):  # fmt: skip
            used = weight > 0
            if not used.any():
                continue
            (owner,) = set(user[used].tolist())
            users.append(owner)
            known = int(used[:4].sum())
            assert used[:known].all() and used[4:].sum() == min(3, count[owner] - known) > 0
            assert dataset.interactions.contains(user[used], item[used, 0]).all()
            assert not item[~used].any() and item[used].all()
            touched = dataset.item[dataset.user == owner]
            assert all((touched == one).sum() >= (item[used, 0] == one).sum() for one in item[used, 0])
            sizes.append(known)
    assert sorted(users) == np.unique(dataset.user).tolist() and set(sizes) == set(range(5))
    first, again, other = (next(episodes.epoch(number))[0].item for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_pair_that_the_support_shows_is_not_asked_for_again(side):
    """Of a log of plays, in which pairs repeat."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 12, 300), "item": rng.integers(0, 6, 300)})
    dataset = data.encode(data.Parts(frame, None, None), data.Schema()).train
    options: dict[str, Any] = {"support": 4, "query": 6, "negatives": 2, "batch_size": 4, "seed": 0, "side": side}
    asked = {}
    for whole in (False, True):
        episodes = Episodes(dataset, pool_of(dataset, side), whole=whole, **options)
        asked[whole] = 0
        for stack, _ in episodes.epoch(0):
            of_tasks = stack.item[..., 0].reshape(-1, 10), stack.weight.reshape(-1, 10) > 0
            for other, used in zip(*of_tasks, strict=True):
                shown, query = set(other[:4][used[:4]]), set(other[4:][used[4:]])
                assert whole or not shown & query
                asked[whole] += used[4:].sum()
    assert 0 < asked[False] < asked[True] == 6 * len(np.unique(frame[side]))


def test_an_items_support_are_its_first_users(parts):
    dataset = parts.train
    pool = pool_of(dataset, "item")
    episodes = Episodes(dataset, pool, support=4, query=3, negatives=2, batch_size=16, seed=0, side="item")
    order = np.argsort(dataset.time, kind="stable")
    items, drawn = [], set()
    for number in range(2):
        for stack, _ in episodes.epoch(number):
            item, users, weight = (
                np.asarray(each).reshape(-1, 7, *each.shape[2:]) for each in stack[:2] + (stack.weight,)
            )
            for one in np.flatnonzero(weight.any(axis=1)):
                (owner,) = set(item[one][weight[one] > 0].tolist())
                touched = dataset.user[order][dataset.item[order] == owner]
                known = int((weight[one, :4] > 0).sum())
                np.testing.assert_array_equal(users[one, :known, 0], touched[:known])
                asked = users[one, 4:, 0][weight[one, 4:] > 0]
                assert len(asked) == min(3, len(touched) - known) and np.isin(asked, touched[known:]).all()
                items.append(owner)
                drawn |= set(users[one, 4:, 1][weight[one, 4:] > 0].tolist())
    assert sorted(items) == np.repeat(np.unique(dataset.item), 2).tolist()
    assert len(drawn) > len(np.unique(dataset.item)) and drawn <= set(pool.tolist())  # users, not items


# Whole trainings, on the generated world

LAYERS = coldstart.InnerLoop(personal=("mlp/*",), rate=1.0, support=5)


def _world(split, *, seed, users, items, interactions, **shares):
    """Frames of one domain in which taste counts more than popularity, split, and their encoding."""
    target = data.generate(
        seed=seed, source_users=20, shared_users=0.0, source_items=20, target_users=users, target_items=items,
        target_interactions=interactions, taste=4.0, zipf=0.2, factors=4,
    ).target  # fmt: skip
    frames = split(target.interactions, target.schema, **shares, seed=0)
    return frames, data.encode(frames, target.schema, users=target.users, items=target.items)


@pytest.fixture(scope="module")
def tastes():
    """A world in which taste counts more than popularity, with cold users held out."""
    return _world(data.split_cold_users, seed=3, users=500, items=40, interactions=15.0, validation=0.15, test=0.25)[1]


@pytest.fixture(scope="module")
def decisions(tastes):
    """Decision layers that have learned to adapt."""
    model = models.NeuMF.for_data(tastes.train, dim=0, mlp_dim=8, hidden=(16,), link="identity")
    return coldstart.meta_learn(model, tastes.train, LAYERS, epochs=40, optimizer=optax.adam(1e-2))


def query_losses(recommender, dataset) -> np.ndarray:
    """Without and with one inner step on five interactions, of users who have more; a mean over several cuts."""
    inner, _ = LAYERS.chosen(recommender.model, dataset)
    episodes = Episodes(
        dataset,
        pool_of(dataset, "user"),
        support=5,
        query=10,
        negatives=16,
        batch_size=len(dataset),
        seed=5,
        whole=True,
    )
    tasks = Tasks(recommender.model, inner, 10, "first_order")
    found = []
    for number in range(4):
        stack, _ = next(episodes.epoch(number))
        weight = np.asarray(stack.weight).reshape(-1, 15)
        weight = weight * weight[:, :6].all(axis=1)[:, None]
        for known in (0.0, 1.0):
            part = weight * np.where(np.arange(15) < 5, known, 1.0)[None, :]
            batch = stack._replace(weight=part.reshape(stack.weight.shape).astype(np.float32))
            loss, count = _losses(recommender.params, batch, recommender.features, tasks=tasks)
            assert int(count.sum()) > 100
            found.append(float(loss[0]))
    return np.reshape(found, (4, 2)).mean(axis=0)


def test_meta_learning_makes_one_step_help_new_users(decisions, tastes):
    """More than the same step from parameters trained on the same loss as one usually does."""
    usual = jaxrec.fit(
        decisions.model, tastes.train, epochs=15, batch_size=128, loss="sampled_softmax",
        negatives=data.Negatives(num=16),
    )  # fmt: skip
    before, after = query_losses(decisions, tastes.test)
    usual_before, usual_after = query_losses(usual, tastes.test)
    assert before - after > usual_before - usual_after + 0.03 and after < usual_after - 0.03


def test_new_users_are_adapted_and_everybody_else_is_scored_with_the_initialisation(decisions, tmp_path):
    items = decisions.encoder.items.ids[:4]
    touched = pd.DataFrame({"user": [7, 7, 8], "item": items[[0, 1, 2]], "time": [0, 1, 2]})
    mine = coldstart.personalise(decisions, LAYERS, touched)
    pairs = pd.DataFrame({"user": np.repeat([7, 8, 9], 4), "item": np.tile(items, 3)})
    scores, start = jaxrec.predict(mine, pairs).reshape(3, 4), jaxrec.predict(decisions, pairs).reshape(3, 4)
    np.testing.assert_allclose(scores[2], start[2], rtol=1e-5, atol=1e-6)
    assert (np.abs(scores[:2] - start[:2]).max(axis=1) > 1e-3).all()
    assert (jaxrec.predict(coldstart.personalise(decisions, LAYERS, touched, seed=1), pairs) != scores.ravel()).any()
    for path, leaf in _tree.flatten(decisions.params).items():  # what is shared did not move, nor row 0 of the copies
        where = f"personal/{path}" if path.startswith("mlp/") else path
        kept = _tree.get(mine.params, where)
        np.testing.assert_array_equal(kept[0].reshape(leaf.shape) if path.startswith("mlp/") else kept, leaf)
    best = jaxrec.recommend(mine, [7, 9], k=3)
    assert not set(best.item[best.user == 7]) & set(items[:2]) and len(best) == 6
    np.testing.assert_allclose(
        best.score[best.user == 7], jaxrec.predict(mine, best[best.user == 7]), rtol=1e-5, atol=1e-6
    )
    jaxrec.save(mine, tmp_path / "mine")
    np.testing.assert_array_equal(jaxrec.predict(jaxrec.load(tmp_path / "mine"), pairs), scores.ravel())
    # Once more, for users of whom more is known now; the others stay.
    again = coldstart.personalise(mine, LAYERS, pd.DataFrame({"user": [8, 9], "item": items[3], "time": 3}))
    later = jaxrec.predict(again, pairs).reshape(3, 4)
    np.testing.assert_array_equal(later[0], scores[0])
    assert (later[1:] != scores[1:]).any(axis=1).all()


def test_nobody_has_a_row_after_meta_learning(decisions, tastes):
    """So a user of the training part is scored as one who came later, and tables of users did not move."""
    assert not decisions.encoder.features.user_row.any() and tastes.train.features.user_row.any()
    start = decisions.model.init(jax.random.split(jax.random.key(0))[0])
    np.testing.assert_array_equal(decisions.params["user"]["mlp"]["embedding"], start["user"]["mlp"]["embedding"])
    assert (decisions.params["item"]["mlp"]["embedding"] != start["item"]["mlp"]["embedding"]).any()


def test_ratings_are_adapted_to_without_negatives_block_by_block(rated_parts, monkeypatch):
    """The latest ratings of each user, as a loop over users gives it, however many users are adapted at once."""
    train = rated_parts.train
    inner = coldstart.InnerLoop(personal=("mlp/*",), rate=0.1, steps=2, support=4)
    model = models.NeuMF.for_data(train, dim=0, mlp_dim=4, hidden=(5,), link="identity")
    recommender = coldstart.meta_learn(
        model, train, inner, method="first_order", epochs=2, validation=rated_parts.validation, patience=1
    )
    assert recommender.history.query_loss.notna().all() and recommender.link == "identity"
    mine = coldstart.personalise(recommender, inner)
    monkeypatch.setattr("jaxrec.coldstart._personalise._NUMBERS", 8 * 50)
    blocks = coldstart.personalise(recommender, inner)
    for path, leaf in _tree.flatten(mine.params).items():
        np.testing.assert_allclose(leaf, _tree.get(blocks.params, path), rtol=1e-5, atol=1e-6)
    seen, chosen = train.interactions, dataclasses.replace(inner, loss="mse")
    for user in np.unique(train.user)[[0, 5, -1]]:
        rows = np.flatnonzero(seen.user == user)[-4:]
        support = Batch(
            user=seen.user[rows], item=seen.item[rows][:, None], target=seen.value[rows],
            weight=np.ones(len(rows), np.float32),
        )  # fmt: skip
        adapted = chosen.adapt(model, recommender.params, support, recommender.features)
        row = mine.encoder.features.user_codes["personal row"][user, 0]
        for path, leaf in _tree.flatten(adapted["mlp"]).items():
            copy = _tree.get(mine.params["personal"]["mlp"], path)[row]
            np.testing.assert_allclose(copy, leaf.reshape(-1), rtol=1e-4, atol=1e-5)
    report = jaxrec.evaluate(mine, rated_parts.test, draws=1)
    assert 0 < report["rmse"] < 2


def test_interactions_count_by_their_weights_when_adapted_to(rated_parts):
    dataset = rated_parts.train
    model = models.NeuMF.for_data(dataset, dim=0, mlp_dim=4, hidden=(5,), link="identity")
    weight = np.random.default_rng(0).uniform(0.2, 3.0, len(dataset)).astype(np.float32)
    seen = dataclasses.replace(dataset.interactions, weight=weight)
    recommender = train.Recommender(model, model.init(jax.random.key(0)), dataset.encoder, seen, len(seen))
    inner = coldstart.InnerLoop(personal=("mlp/*",), rate=0.5, steps=1, support=4)
    mine = coldstart.personalise(recommender, inner)
    user = int(seen.user[0])
    rows = np.flatnonzero(seen.user == user)[-4:]
    support = Batch(user=seen.user[rows], item=seen.item[rows][:, None], target=seen.value[rows], weight=weight[rows])
    adapted = dataclasses.replace(inner, loss="mse").adapt(model, recommender.params, support, recommender.features)
    row = mine.encoder.features.user_codes["personal row"][user, 0]
    for path, leaf in _tree.flatten(adapted["mlp"]).items():
        copy = _tree.get(mine.params["personal"]["mlp"], path)[row]
        np.testing.assert_allclose(copy, leaf.reshape(-1), rtol=1e-4, atol=1e-6)


def linked(dataset, link, value=0.0):
    """Untrained towers, which name no link, whose scores mean what a training's loss says; all targets are the same."""
    model = models.TwoTower.for_data(dataset, dim=4, hidden=(), code_dim=2)
    seen = dataclasses.replace(dataset.interactions, value=np.full(len(dataset), value, np.float32))
    return train.Recommender(model, model.init(jax.random.key(0)), dataset.encoder, seen, len(seen), link=link)


def test_log_odds_are_adapted_as_log_odds_though_the_model_names_no_link(rated_parts):
    """Whoever refused something is less likely to click, and so on with every refusal: not until the score is 0."""
    inner = coldstart.InnerLoop(personal=PERSONAL, rate=1.0, steps=5, support=4)
    recommender = linked(rated_parts.train, "sigmoid")
    mine = coldstart.personalise(recommender, inner)
    named = coldstart.personalise(recommender, dataclasses.replace(inner, loss="sigmoid_cross_entropy"))
    jax.tree.map(np.testing.assert_array_equal, mine.params, named.params)
    seen = recommender.seen
    batch = Batch(user=seen.user[:200], item=seen.item[:200, None])
    before, after = (apply(each.model, each.params, batch, each.features) for each in (recommender, mine))
    assert after.mean() < before.mean() - 0.1 and mine.link == "sigmoid"


@pytest.mark.parametrize(
    ("link", "loss", "message"),
    [
        ("sigmoid", "mse", "has the link 'sigmoid', which goes with a loss such as 'sigmoid_cross.*got 'mse'"),
        ("identity", "sigmoid_cross_entropy", "has the link 'identity', which goes with a loss such as 'mse'"),
        ("rank", "mse", "has the link 'rank', which goes with a loss such as 'bpr'"),
        ("rank", None, r"scores are no targets.*Say which loss to adapt by, such as InnerLoop\(loss='bpr'\)"),
    ],
)
def test_targets_are_not_taken_for_what_the_scores_do_not_say(rated_parts, link, loss, message):
    with refuses(ValueError, message):
        coldstart.personalise(linked(rated_parts.train, link), coldstart.InnerLoop(personal=PERSONAL, loss=loss))


def test_a_table_may_be_taken_out_of_what_is_personal(parts):
    model = models.TwoTower.for_data(parts.train, dim=2, hidden=(), code_dim=2)
    options: dict[str, Any] = {"support": 2, "negatives": 1}
    taken, named = (
        coldstart.InnerLoop(personal=personal, **options) for personal in (("user/*", "!user/*embedding"), PERSONAL)
    )
    found = [coldstart.meta_learn(model, parts.train, inner, query=2, epochs=1) for inner in (taken, named)]
    jax.tree.map(np.testing.assert_array_equal, found[0].params, found[1].params)
    assert coldstart.personalise(found[0], taken).model.personal == taken.personal


ITEM_LAYERS = coldstart.InnerLoop(personal=("mlp/*",), rate=1.0, support=8, side="item")


@pytest.fixture(scope="module")
def shelf():
    """Many items and few users, with cold items held out; and layers that have learned to adapt to an item's users."""
    frames, found = _world(
        data.split_cold_items, seed=4, users=80, items=300, interactions=60.0, validation=0.1, test=0.2
    )
    model = models.NeuMF.for_data(found.train, dim=0, mlp_dim=8, hidden=(16,), link="identity")
    recommender = coldstart.meta_learn(
        model, found.train, ITEM_LAYERS, epochs=25, optimizer=optax.adam(1e-2), validation=found.validation
    )
    return frames, recommender


def test_a_new_item_is_scored_better_after_its_first_users(shelf, tmp_path):
    """Area under the curve of those who touch it later among all others; and it is the inner loop's own step."""
    frames, recommender = shelf
    assert not recommender.encoder.features.item_row.any() and recommender.encoder.features.user_row.any()
    start = recommender.model.init(jax.random.split(jax.random.key(0))[0])
    np.testing.assert_array_equal(recommender.params["item"]["mlp"]["embedding"], start["item"]["mlp"]["embedding"])
    assert (recommender.params["user"]["mlp"]["embedding"] != start["user"]["mlp"]["embedding"]).any()
    rows = frames.test.sort_values("time", kind="stable")
    place = rows.groupby("item").cumcount()
    first, later = rows[place < 8], rows[place >= 8]
    mine = coldstart.personalise(recommender, ITEM_LAYERS, first)
    users, items = recommender.encoder.users.ids, later["item"].unique()
    pairs = pd.DataFrame([(user, item) for item in items for user in users], columns=["user", "item"])
    shape = len(items), len(users)
    before, after = (jaxrec.predict(each, pairs).reshape(shape) for each in (recommender, mine))

    def area(scores):
        found = []
        for row, item in zip(scores, items, strict=True):
            known, hit = (np.isin(users, each.user[each.item == item]) for each in (first, later))
            found.append((row[hit][:, None] > row[~known & ~hit][None, :]).mean())
        return np.mean(found)

    assert len(items) > 30 and area(after) > area(before) + 0.05
    untouched = pd.DataFrame({"user": users, "item": frames.train["item"].iloc[0]})
    np.testing.assert_allclose(jaxrec.predict(mine, untouched), jaxrec.predict(recommender, untouched), rtol=1e-4)
    best = jaxrec.recommend(mine, users[:3], k=4)
    np.testing.assert_allclose(best.score, jaxrec.predict(mine, best), rtol=1e-4, atol=1e-5)
    jaxrec.save(mine, tmp_path / "mine")
    again = jaxrec.load(tmp_path / "mine")
    np.testing.assert_array_equal(jaxrec.predict(again, pairs).reshape(shape), after)
    with refuses(ValueError, "by item, got .* by user"):
        coldstart.personalise(mine, dataclasses.replace(ITEM_LAYERS, side="user"))


def test_an_items_ratings_are_adapted_to_as_a_loop_over_items_gives_it(rated_parts):
    train = rated_parts.train
    inner = coldstart.InnerLoop(
        personal=("item/bias", "item/mlp/*"), rate=0.1, steps=2, support=4, side="item", loss="mse"
    )
    model = models.TwoTower.for_data(train, dim=4, hidden=(), code_dim=2)
    recommender = coldstart.meta_learn(model, train, inner, method="reptile", query=2, epochs=1)
    mine = coldstart.personalise(recommender, inner)
    seen, adapt = train.interactions, jax.jit(functools.partial(inner.adapt, model))
    for item in np.unique(train.item)[[0, 5, -1]]:
        rows = np.flatnonzero(seen.item == item)[-4:]
        support = Batch(
            user=seen.item[rows], item=seen.user[rows][:, None], target=seen.value[rows],
            weight=np.ones(len(rows), np.float32),
        )  # fmt: skip
        support = jax.tree.map(lambda leaf: np.pad(leaf, [(0, 4 - len(leaf))] + [(0, 0)] * (leaf.ndim - 1)), support)
        adapted = adapt(recommender.params, support, recommender.features)
        pairs = Batch(user=np.arange(1, 9, dtype=np.int32), item=np.full((8, 1), item, np.int32))
        expected = apply(model, adapted, pairs, recommender.features)
        for batch in (pairs, pairs._replace(item=None, shared_negatives=np.array([item], np.int32))):
            found = apply(mine.model, mine.params, batch, mine.features)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(np.asarray(expected) - apply(model, recommender.params, pairs, recommender.features)).max() > 1e-3


OPTIONS = {
    "method": {"method": "first_order"},
    "reptile": {"method": "reptile", "steps": 2},
    "query": {"query": 2},
    "batch_size": {"batch_size": 8},
    "optimizer": {"optimizer": optax.sgd(0.1)},
    "seed": {"seed": 1},
    "freeze": {"freeze": "all/*"},
    "epochs": {"epochs": 2},
    "params": {"params": {"own": {"w": jnp.asarray(0.1)}, "all": {"u": jnp.asarray(0.2)}}},
    "steps": {"steps": 2},
    "rate": {"rate": 0.7},
    "loss": {"loss": "bpr"},
    "negatives": {"negatives": 3},
    "support": {"support": 3},
    "side": {"side": "item"},
}


def slope_of(parts, **options):
    fields = {field.name for field in dataclasses.fields(coldstart.InnerLoop)}
    inner = {name: options.pop(name) for name in fields & set(options)}
    inner = coldstart.InnerLoop(**{"personal": ("own/*",), "rate": RATE, "support": 5, "negatives": 2, **inner})
    return coldstart.meta_learn(Slope(), parts.train, inner, **{"epochs": 1, **options})


@pytest.fixture(scope="module")
def slope(parts):
    return slope_of(parts)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_what_is_learned(name, slope, parts):
    other = slope_of(parts, **OPTIONS[name])
    assert float(other.params["own"]["w"]) != float(slope.params["own"]["w"])
    if name == "freeze":
        assert float(other.params["all"]["u"]) == 0.25 != float(slope.params["all"]["u"])


def test_the_same_arguments_learn_the_same_and_patience_stops(slope, parts):
    jax.tree.map(np.testing.assert_array_equal, slope_of(parts).params, slope.params)
    worse = {"optimizer": optax.sgd(-0.1), "validation": parts.validation, "epochs": 9}
    told = []
    stopped = slope_of(parts, **worse, patience=2, callbacks=[lambda now: told.append(now.epoch)])
    assert stopped.history.query_loss.is_monotonic_increasing and told == [1, 2, 3]
    one = slope_of(parts, **{**worse, "epochs": 1})
    jax.tree.map(np.testing.assert_array_equal, stopped.params, one.params)  # of the best epoch
    with pytest.raises(jaxrec.train.Diverged, match="Training stopped"):
        slope_of(parts, optimizer=optax.sgd(np.inf), epochs=3)


def test_inner_loops_that_cannot_be_are_refused():
    for options, message in [
        ({"personal": ()}, "got none: nothing would adapt"),
        ({"rate": 0.0}, "Expected rate > 0"),
        ({"steps": 0}, "Expected steps >= 1"),
        ({"negatives": 0}, "Expected negatives >= 1"),
        ({"support": 0}, "Expected support >= 1"),
        ({"side": "items"}, "Expected side to be 'user', 'item'"),
        ({"loss": "nothing"}, "Expected a loss among"),
        ({"loss": "in_batch_softmax"}, "neither other tasks nor the catalogue to take negatives from, as 'in_batch"),
        ({"loss": "softmax"}, "neither other tasks nor the catalogue to take negatives from, as 'softmax"),
    ]:
        with refuses(ValueError, message):
            coldstart.InnerLoop(**{"personal": "own/*", **options})
    assert coldstart.InnerLoop(personal="own/*").personal == ("own/*",)
    with refuses(ValueError, "The loss is left open"):
        params = Slope().init(jax.random.key(0))
        coldstart.InnerLoop(personal="own/*").adapt(Slope(), params, lines(ITEM, TARGET), FEATURES)


def test_what_cannot_be_meta_learned_is_refused(parts, tastes, world, decisions):
    weightless = dataclasses.replace(parts.train, weight=np.zeros(len(parts.train), np.float32))
    for options, message in [
        ({"query": 0}, "Expected query >= 1"),
        ({"epochs": 0}, "Expected epochs >= 1"),
        ({"batch_size": 0}, "Expected batch_size >= 1"),
        ({"method": "second"}, "Expected method to be 'maml'"),
        ({"method": "reptile"}, "at least 2 inner steps"),
        ({"method": "reptile", "steps": 16}, "at most as many inner steps as a task has rows.*15"),
        ({"personal": "nothing/*"}, "matches no parameter"),
        ({"validation": encoded(world.source).train}, "numbered by another encoder"),
        ({"validation": weightless}, "No row of the validation part can be asked for"),
    ]:
        with refuses(ValueError, message):
            slope_of(parts, **options)
    with refuses(TypeError, "Expected a InnerLoop for inner"):
        coldstart.meta_learn(Slope(), parts.train, "own/*")
    towers = models.TwoTower.for_data(parts.train, dim=4, history=3)
    with refuses(ValueError, "reads a history"):
        coldstart.meta_learn(towers, parts.train, coldstart.InnerLoop(personal="user/bias"))
    with refuses(ValueError, "no tables, got item/mlp/embedding"):
        coldstart.meta_learn(decisions.model, tastes.train, coldstart.InnerLoop(personal="item/*"))
    with refuses(ValueError, "have items that the encoder does not know"):
        unknown = dataclasses.replace(parts.train, item=np.zeros_like(parts.train.item))
        coldstart.meta_learn(Slope(), unknown, inner_of())
    with refuses(ValueError, "Tasks are users and the items that they prefer. Name both columns"):
        coldstart.meta_learn(Slope(), dataclasses.replace(parts.train, user=None), inner_of())
    with refuses(ValueError, "There is no interaction"):
        coldstart.meta_learn(Slope(), parts.train.subset(np.zeros(0, np.int64)), inner_of())


def test_what_cannot_be_personalised_is_refused(decisions):
    mine = coldstart.personalise(decisions, LAYERS, pd.DataFrame({"user": [7], "item": ["film-00001"], "time": 0}))
    with refuses(ValueError, "the personal part that this recommender was personalised with"):
        coldstart.personalise(mine, coldstart.InnerLoop(personal="mlp/0/*"))
    empty = decisions.replace(seen=decisions.seen.part(slice(0)), num_trained=0)
    with refuses(ValueError, "No user has an interaction"):
        coldstart.personalise(empty, LAYERS)
    batch = Batch(user=jnp.ones(1, jnp.int32), item=jnp.ones((1, 1), jnp.int32))
    with refuses(ValueError, "lack the user code 'personal row'"):
        mine.model.apply(mine.params, batch, decisions.features)


def test_context_that_the_model_does_not_read_is_no_hindrance(world):
    frame = world.target.interactions.iloc[:300].assign(price=np.arange(300) % 7)
    train = data.encode(data.Parts(frame, None, None), data.Schema(context=(data.Numeric("price"),))).train
    model = models.NeuMF.for_data(train, dim=0, mlp_dim=4, hidden=(4,), link="identity")
    mine = coldstart.personalise(coldstart.meta_learn(model, train, LAYERS, epochs=1), LAYERS)
    assert not mine.reads_context and len(jaxrec.recommend(mine, frame["user"].iloc[:1], k=3)) == 3
    machine = models.FactorizationMachine.for_data(train, dim=2, hidden=(4,))
    with refuses(ValueError, "reads columns of the interaction itself"):
        coldstart.meta_learn(machine, train, LAYERS)
