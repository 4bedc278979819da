"""Batches: every row once per epoch, negatives as asked for, histories that do not show the answer."""

import dataclasses

import numpy as np
import pytest
from helpers import refuses

from jaxrec import data


def epoch_of(dataset, *, batch_size=32, negatives=None, history=0, seed=0, number=1):
    """All examples of an epoch as flat arrays, without the padding."""
    batches = data.Batches(dataset, batch_size=batch_size, negatives=negatives, history=history, seed=seed)
    found = []
    for stack, steps in batches.epoch(number):
        flat = {
            name: values[:steps].reshape(-1, *values.shape[2:])
            for name, values in stack._asdict().items()
            if values is not None and values.shape[:2] == stack.weight.shape
        }
        found.append({name: values[flat["weight"] > 0] for name, values in flat.items()})
    return {name: np.concatenate([chunk[name] for chunk in found]) for name in found[0]}


def test_every_row_comes_once_and_in_another_order_each_epoch(parts):
    first, second = epoch_of(parts.train), epoch_of(parts.train, number=2)
    pairs = sorted(zip(parts.train.user, parts.train.item, strict=True))
    for epoch in (first, second):
        assert sorted(zip(epoch["user"], epoch["item"][:, 0], strict=True)) == pairs
    assert (first["user"] != second["user"]).any()
    np.testing.assert_array_equal(first["user"], epoch_of(parts.train)["user"])
    assert (first["user"] != epoch_of(parts.train, seed=1)["user"]).any()


def test_a_full_batch_keeps_the_order_of_rows(rated_parts):
    epoch = epoch_of(rated_parts.train, batch_size=None)
    np.testing.assert_array_equal(epoch["user"], rated_parts.train.user)
    np.testing.assert_array_equal(epoch["target"], rated_parts.train.target)


def test_chunks_of_large_data_cover_it_all(parts, monkeypatch):
    monkeypatch.setattr(data._batches, "_CHUNK", 64 * 16)
    batches = data.Batches(parts.train, batch_size=32, negatives=None, history=0, seed=0)
    chunks = list(batches.epoch(1))
    assert len(chunks) > 3 and sum(steps for _, steps in chunks) == batches.steps
    assert len({stack.user.shape for stack, _ in chunks}) == 1
    assert len(epoch_of(parts.train)["user"]) == len(parts.train)


def test_prepared_epochs_are_those_of_batches_and_begun_before_they_are_asked_for(parts, monkeypatch):
    monkeypatch.setattr(data._batches, "_CHUNK", 64 * 16)
    batches = data.Batches(parts.train, batch_size=32, negatives=data.Negatives(num=1), history=0, seed=0)
    made = []

    class Watched:
        steps = batches.steps

        def epoch(self, number):
            for chunk in batches.epoch(number):
                made.append(number)
                yield chunk

    epochs = data.prepared(Watched(), 3)
    for number in (1, 2, 3):
        ours = list(next(epochs))
        assert made.count(number) == len(ours) > 1 and made.count(number + 1) == (number < 3)
        for (stack, steps), (expected, number_of_steps) in zip(ours, batches.epoch(number), strict=True):
            assert steps == number_of_steps
            np.testing.assert_array_equal(stack.item, expected.item)
    assert next(epochs, None) is None and 4 not in made


def test_an_epoch_left_early_prepares_nothing(parts, monkeypatch):
    monkeypatch.setattr(data._batches, "_CHUNK", 64 * 16)
    batches = data.Batches(parts.train, batch_size=32, negatives=None, history=0, seed=0)
    epochs = data.prepared(batches, 2)
    next(next(epochs))
    (stack, _), *_ = second = list(next(epochs))
    expected = list(batches.epoch(2))
    assert len(second) == len(expected)
    np.testing.assert_array_equal(stack.user, expected[0][0].user)


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_negatives_are_trained_items(parts, sampling):
    epoch = epoch_of(parts.train, negatives=data.Negatives(num=5, sampling=sampling))
    assert epoch["item"].shape[1] == 6
    assert set(epoch["item"][:, 1:].ravel()) <= set(parts.train.item)
    assert 0 not in epoch["item"]


def test_popular_items_are_drawn_more_often_and_log_q_says_how_often(parts):
    many = data.Negatives(num=50, sampling="popularity", power=1.0)
    batches = data.Batches(parts.train, batch_size=64, negatives=many, history=0, seed=0)
    stack, _ = next(batches.epoch(0))
    drawn = np.bincount(stack.item[..., 1:][stack.weight > 0].ravel(), minlength=70)
    count = np.bincount(parts.train.item, minlength=70)
    assert np.corrcoef(drawn, count)[0, 1] > 0.98
    item = stack.item[0, 0]
    np.testing.assert_allclose(stack.log_q[0, 0], np.log(count[item] / count.sum()), rtol=1e-5)
    flat = data.Batches(parts.train, batch_size=64, negatives=dataclasses.replace(many, power=0.0), history=0, seed=0)
    even = np.bincount(next(flat.epoch(0))[0].item[..., 1:].ravel(), minlength=70)[count > 0]
    assert even.std() / even.mean() < 0.2


def test_rejected_negatives_are_no_known_positives(parts):
    epoch = epoch_of(parts.train, negatives=data.Negatives(num=4, reject_seen=True))
    user = np.broadcast_to(epoch["user"][:, None], epoch["item"][:, 1:].shape)
    assert not parts.train.interactions.contains(user, epoch["item"][:, 1:]).any()
    loose = epoch_of(parts.train, negatives=data.Negatives(num=4))
    assert parts.train.interactions.contains(user, loose["item"][:, 1:]).any()


def test_a_user_without_a_possible_negative_is_refused(parts):
    user = int(parts.train.user[0])
    everything = np.unique(parts.train.item)
    rows = parts.train.subset(np.arange(len(everything)))
    greedy = dataclasses.replace(rows, user=np.full(len(everything), user, np.int32), item=everything)
    with pytest.raises(ValueError, match="has touched every trained item"):
        data.Batches(greedy, batch_size=4, negatives=data.Negatives(num=1, reject_seen=True), history=0, seed=0)


def test_in_batch_items_are_shared_and_carry_their_log_frequency(parts):
    batches = data.Batches(parts.train, batch_size=32, negatives=data.Negatives(in_batch=True), history=0, seed=0)
    stack, _ = next(batches.epoch(1))
    assert stack.item.shape[2] == 0 and stack.shared_negatives.shape == stack.user.shape
    count = np.bincount(parts.train.item)
    expected = np.log(count[stack.shared_negatives[0]] / len(parts.train))
    np.testing.assert_allclose(stack.log_q[0, 0], expected, rtol=1e-5)


def test_shared_negatives_are_one_draw_per_step(parts):
    batches = data.Batches(
        parts.train, batch_size=32, negatives=data.Negatives(num=1, shared=7, sampling="popularity"), history=0, seed=0
    )
    stack, steps = next(batches.epoch(1))
    assert stack.shared_negatives.shape == (stack.user.shape[0], 7) and stack.log_q.shape[2] == 2 + 7
    assert (stack.shared_negatives[0] != stack.shared_negatives[1]).any() and steps > 1


def test_histories_hold_other_items_of_the_same_user(parts):
    epoch = epoch_of(parts.train, history=4)
    assert epoch["history"].shape[1] == 4
    for user, item, history in zip(epoch["user"], epoch["item"][:, 0], epoch["history"], strict=True):
        items = [each for each in history if each]
        assert item not in items and len(set(items)) == len(items)
        assert set(items) <= set(parts.train.item[parts.train.user == user])
    lengths = np.count_nonzero(epoch["history"], axis=1)
    assert set(lengths) == {0, 1, 2, 3, 4}


def test_a_repeated_pair_does_not_show_the_answer(parts):
    doubled = parts.train.subset(np.repeat(np.arange(40), 3))
    epoch = epoch_of(doubled, history=6)
    assert not (epoch["history"] == epoch["item"][:, :1]).any() and epoch["history"].any()


def in_order(dataset):
    """Rows of each user by time."""
    order = np.lexsort((np.arange(len(dataset)), dataset.time, dataset.user))
    return {user: order[dataset.user[order] == user] for user in np.unique(dataset.user)}


def test_wide_rows_come_in_smaller_chunks(parts, monkeypatch):
    monkeypatch.setattr(data._batches, "_CHUNK", 2**14)
    options = {"batch_size": 8, "negatives": None, "seed": 0}
    narrow, wide = (data.Batches(parts.train, history=length, **options) for length in (0, 60))
    lengths = [next(each.epoch(1))[0].weight.shape[0] for each in (narrow, wide)]
    assert lengths == [128, 8]  # a row takes 16 bytes, or 256


def test_histories_before_a_row_hold_what_came_before_in_order(parts):
    train = parts.train
    batches = data.Batches(train, batch_size=None, negatives=None, history=4, seed=0, histories="before")
    (stack, _), *_ = batches.epoch(1)
    for rows in in_order(train).values():
        for place, row in enumerate(rows):
            before = train.item[rows[max(place - 4, 0) : place]].tolist()
            assert stack.history[0, row].tolist() == before + [0] * (4 - len(before))


@pytest.mark.parametrize("history", [1, 4, 200])
def test_sequences_hold_every_row_once_behind_what_came_before(parts, history):
    train = parts.train
    negatives = data.Negatives(num=1, shared=3, sampling="popularity")
    options = {"negatives": negatives, "history": history, "seed": 0, "histories": "sequences"}
    batches = data.Batches(train, batch_size=64, **options)
    followed = {user: train.item[rows].tolist() for user, rows in in_order(train).items()}
    found, whole = [], 0
    for stack, steps in batches.epoch(1):
        size = stack.history.shape[1]
        assert size == max(64 // (history + 1), 1) and stack.weight.shape[1] == size * (history + 1)
        assert stack.item.shape == (*stack.weight.shape, 2) and stack.log_q.shape == (*stack.weight.shape, 5)
        for step, sequence in np.ndindex(steps, size):
            user, known = int(stack.user[step, sequence]), np.count_nonzero(stack.history[step, sequence])
            inputs = stack.history[step, sequence, :known].tolist()
            rows = slice(sequence * (history + 1), (sequence + 1) * (history + 1))
            kept, item = stack.weight[step, rows] > 0, stack.item[step, rows, 0]
            assert not kept[known + 1 :].any() and not item[~kept].any() and kept[1 : known + 1].all()
            found += [(user, each) for each in item[kept]]
            if user:
                both = [*inputs, int(item[known])]
                assert inputs[1:] == item[1:known].tolist() and str(both)[1:-1] in str(followed[user])
                whole += bool(kept[0])
                assert not kept[0] or item[0] == followed[user][0]
    assert sorted(found) == sorted(zip(train.user, train.item, strict=True)) and whole == len(followed)
    everything = data.Batches(train, batch_size=None, **options)
    assert everything.steps == 1 and everything.example().weight.sum() == len(train)


def test_sequences_keep_targets_and_weights_beside_their_rows(rated_parts):
    rows = rated_parts.train
    rows = dataclasses.replace(rows, weight=np.arange(1, len(rows) + 1, dtype=np.float32))
    batches = data.Batches(rows, batch_size=None, negatives=None, history=3, seed=0, histories="sequences")
    batch = batches.example()
    kept = batch.weight > 0
    which = batch.weight[kept].astype(int) - 1
    assert sorted(which) == list(range(len(rows)))
    np.testing.assert_array_equal(batch.target[kept], rows.target[which])
    np.testing.assert_array_equal(batch.item[kept, 0], rows.item[which])
    np.testing.assert_array_equal(np.repeat(batch.user, 4)[kept], rows.user[which])


def test_in_batch_items_of_sequences_are_the_next_items(parts):
    negatives = data.Negatives(in_batch=True)
    batches = data.Batches(parts.train, batch_size=40, negatives=negatives, history=3, seed=0, histories="sequences")
    batch = batches.example()
    assert batch.item.shape == (40, 0) and batch.log_q.shape == (1, 40) and batch.history.shape == (10, 3)
    np.testing.assert_array_equal(batch.shared_negatives > 0, batch.weight > 0)


@pytest.mark.parametrize("batch_size", [60, None])
def test_a_batch_of_users_has_each_user_once_with_all_items_marked(parts, batch_size):
    train = parts.train
    options = {"history": 2, "seed": 0, "histories": "users", "negatives": data.Negatives(catalogue=True)}
    batches = data.Batches(train, batch_size=batch_size, **options, multiple_of=4)
    everything, met = np.unique(train.item), []
    for stack, steps in batches.epoch(1):
        assert stack.item is None and stack.history is None and stack.weight.shape[1] % 4 == 0
        np.testing.assert_array_equal(stack.shared_negatives, np.tile(everything, (len(stack.weight), 1)))
        assert not stack.weight[steps:].any() and not stack.target[stack.weight == 0].any()
        real = stack.weight > 0
        for user, marked in zip(stack.user[real], stack.target[real], strict=True):
            met.append(user)
            np.testing.assert_array_equal(everything[marked == 1], np.unique(train.item[train.user == user]))
            assert set(marked) <= {0, 1}
    assert sorted(met) == np.unique(train.user).tolist()
    mean = len(train) / len(met)
    assert batches.steps == (1 if batch_size is None else -(-len(met) // (batch_size // int(mean))))
    again = [stack.user for stack, _ in batches.epoch(2)]
    assert batch_size is None or (again[0] != next(batches.epoch(1))[0].user).any()


def test_the_catalogue_stands_beside_every_row(parts):
    batches = data.Batches(parts.train, batch_size=8, negatives=data.Negatives(catalogue=True), history=0, seed=0)
    stack, _ = next(batches.epoch(1))
    assert stack.item.shape[2] == 1 and stack.log_q is None
    np.testing.assert_array_equal(stack.shared_negatives[-1], np.unique(parts.train.item))


def test_users_as_examples_need_the_catalogue_and_nothing_besides(parts, rated_parts):
    options = {"batch_size": 8, "history": 2, "seed": 0, "histories": "users"}
    with refuses(
        ValueError, r"expected Negatives\(catalogue=True\), the default of loss='softmax', got Negatives\(num=1"
    ):
        data.Batches(parts.train, negatives=data.Negatives(num=1), **options)
    everything = data.Negatives(catalogue=True)
    with refuses(ValueError, "the data has targets, which would not be read"):
        data.Batches(rated_parts.train, negatives=everything, **options)
    weighted = dataclasses.replace(parts.train, weight=np.ones(len(parts.train), np.float32))
    with refuses(ValueError, "the data has weights, which would not be read"):
        data.Batches(weighted, negatives=everything, **options)
    with refuses(ValueError, "draws nothing: leave sampling out"):
        data.Negatives(catalogue=True, sampling="popularity")
    with refuses(ValueError, "has every trained item: leave out num, shared and in_batch"):
        data.Negatives(catalogue=True, shared=3)


def test_histories_of_no_length_or_of_another_kind_are_refused(parts):
    options = {"batch_size": 8, "negatives": None, "seed": 0}
    with refuses(ValueError, "history >= 1 for histories='before', got 0"):
        data.Batches(parts.train, history=0, histories="before", **options)
    with refuses(ValueError, "history >= 0, the length of histories, got -1"):
        data.Batches(parts.train, history=-1, **options)
    with refuses(ValueError, "histories to be 'subset', 'before', 'sequences', 'users', got 'latest'"):
        data.Batches(parts.train, history=2, histories="latest", **options)


def test_interactions_know_histories_counts_and_pairs():
    pairs = data.Interactions(np.array([2, 1, 2, 2]), np.array([5, 6, 7, 8]), 4, 9)
    assert pairs.latest(np.array([2, 1, 3, 0, 99, -1]), 2).tolist() == [[7, 8], [6, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    position, row = pairs.rows_of(np.array([1, 3, 2]))
    assert position.tolist() == [0, 2, 2, 2] and pairs.item[row].tolist() == [6, 5, 7, 8]
    assert pairs.user_count.tolist() == [0, 1, 3, 0]
    assert pairs.contains(np.array([2, 2, 1, 3]), np.array([5, 6, 6, 5])).tolist() == [True, False, True, False]
    assert pairs.sized(4, 9) is pairs
    wider = pairs.sized(6, 9)
    assert wider.order is pairs.order and wider.num_users == 6
    assert wider.user_count.tolist() == [0, 1, 3, 0, 0, 0] and wider.latest(np.array([2, 5]), 1).tolist() == [[8], [0]]
    both = pairs.append(data.Interactions(np.array([1]), np.array([8]), 4, 9))
    assert both.latest(np.array([1]), 3).tolist() == [[6, 8, 0]] and len(pairs) == 4
    empty = data.Interactions(np.zeros(0, int), np.zeros(0, int), 4, 9)
    assert (
        empty.latest(np.array([1]), 2).tolist() == [[0, 0]] and not empty.contains(np.array([1]), np.array([1])).any()
    )


def test_a_popularity_draw_by_alias_has_the_probabilities_of_the_weights():
    rng = np.random.default_rng(0)
    for weight in (rng.random(1000) ** 8, np.ones(7), np.array([1.0]), np.array([1e-12, 1.0, 1e-12]), np.arange(1, 50)):
        weight = weight / weight.sum()
        keep, other = data._negatives.alias_table(weight)
        back = keep.astype(float) + np.bincount(other, 1.0 - keep, minlength=len(weight))
        np.testing.assert_allclose(back / len(weight), weight, atol=1e-7)
        assert keep.min() >= 0 and keep.max() <= 1 and other.dtype == np.int32


def test_mixed_negatives_have_the_probability_of_the_mixture(parts):
    how = data.Negatives(in_batch=True, shared=300, sampling="popularity", power=0.5)
    batches = data.Batches(parts.train, batch_size=32, negatives=how, history=0, seed=0)
    stack, steps = next(batches.epoch(1))
    assert stack.item.shape[2] == 0 and stack.shared_negatives.shape == (len(stack.user), 32 + 300)
    assert stack.log_q.shape == (len(stack.user), 1, 332)
    count = np.bincount(parts.train.item)
    root = np.sqrt(count) / np.sqrt(count).sum()
    mixture = (32 * count / count.sum() + 300 * root) / 332
    columns = stack.shared_negatives[: steps - 1]
    np.testing.assert_allclose(stack.log_q[: steps - 1, 0], np.log(mixture[columns]), rtol=1e-5)
    drawn = np.bincount(columns[:, 32:].ravel(), minlength=len(count)) / columns[:, 32:].size
    assert np.abs(drawn - root).sum() < 0.1
    plain, _ = next(
        data.Batches(parts.train, batch_size=32, negatives=data.Negatives(in_batch=True), history=0, seed=0).epoch(1)
    )
    np.testing.assert_array_equal(plain.shared_negatives, stack.shared_negatives[:, :32])


def test_pairs_are_found_with_and_without_a_bit_for_each(monkeypatch):
    rng = np.random.default_rng(0)
    user, item = rng.integers(1, 300, 2000, dtype=np.int32), rng.integers(1, 200, 2000, dtype=np.int32)
    asked = rng.integers(-3, 400, (500, 8)), rng.integers(-3, 400, (500, 8))
    asked[0][:250], asked[1][:250] = user.reshape(250, 8), item.reshape(250, 8)
    known = set(zip(user.tolist(), item.tolist(), strict=True))
    expected = [
        [pair in known for pair in zip(*row, strict=True)] for row in zip(*map(np.ndarray.tolist, asked), strict=True)
    ]
    assert data.Interactions(user, item, 300, 200).contains(*asked).tolist() == expected
    monkeypatch.setattr(data._interactions, "_MOST_BITS", 1000)
    assert data.Interactions(user, item, 300, 200).contains(*asked).tolist() == expected


def test_counting_goes_by_parts(monkeypatch):
    monkeypatch.setattr(data._counting, "_ROWS", 7)
    index = np.random.default_rng(0).integers(0, 20, 100, dtype=np.int32)
    parts, original = [], np.bincount
    monkeypatch.setattr(np, "bincount", lambda part, **options: parts.append(len(part)) or original(part, **options))
    for size, rows in ((0, [20] * 5), (30, [30, 30, 30, 10]), (1000, [100])):  # no shorter than the result
        np.testing.assert_array_equal(data._counting.counted(index, size), original(index, minlength=size))
        assert parts == rows
        parts.clear()


def test_rows_that_are_in_order_are_not_copied(parts):
    sorted_rows = parts.train.subset(np.argsort(parts.train.time, kind="stable"))
    assert sorted_rows.interactions.user is sorted_rows.user
    backwards = sorted_rows.subset(np.arange(len(sorted_rows))[::-1])
    np.testing.assert_array_equal(backwards.interactions.user, sorted_rows.user)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": -1}, "negatives >= 0"),
        ({"in_batch": True, "num": 1}, "leave num at 0"),
        ({"in_batch": True, "num": 1, "shared": 3}, "Further ones for the whole batch are shared="),
        ({"sampling": "clever"}, "'uniform', 'popularity', got 'clever'"),
        ({"reject_seen": True}, "give num >= 1"),
        ({"in_batch": True, "sampling": "popularity", "power": 0.5}, "leave it out, or draw some with shared="),
        ({"sampling": "popularity"}, "leave it out, or draw some with num= or shared="),
        ({"num": 1, "power": 0.5}, "power=0.5 is of sampling='popularity'"),
        ({"num": 1, "sampling": "popularity", "power": np.nan}, "finite power, got nan"),
    ],
)
def test_negatives_that_contradict_themselves_are_refused(options, message):
    with refuses(ValueError, message):
        data.Negatives(**options)


def test_rows_without_users_have_negatives_of_their_own(parts):
    alone = dataclasses.replace(parts.train, user=None)
    batches = data.Batches(alone, batch_size=64, negatives=data.Negatives(num=3), history=0, seed=0)
    stack, _ = next(batches.epoch(0))
    assert stack.item.shape[-1] == 4 and set(stack.item[stack.weight > 0].ravel()) <= set(parts.train.item)


@pytest.mark.parametrize("options", [{"num": 4}, {"catalogue": True}, {}])
def test_rows_without_items_have_no_negatives(rated_parts, options):
    alone = dataclasses.replace(rated_parts.train, item=None)
    with pytest.raises(ValueError, match="Negatives are items, and the data has none. Name the item column"):
        data.Batches(alone, batch_size=8, negatives=data.Negatives(**options), history=0, seed=0)
    assert data.Batches(alone, batch_size=8, negatives=None, history=0, seed=0).steps


@pytest.mark.parametrize("batch_size", [None, 2])
def test_no_rows_make_no_batches(parts, batch_size):
    with pytest.raises(ValueError, match="The dataset is empty. Expected at least one row"):
        data.Batches(parts.train.subset(np.arange(0)), batch_size=batch_size, negatives=None, history=0, seed=0)


def thinned(dataset):
    """Of which every third row weighs nothing, and all rows of the first user; and the numbers of the others."""
    weight = np.where((np.arange(len(dataset)) % 3 == 0) | (dataset.user == dataset.user[0]), 0.0, 2.0)
    return dataclasses.replace(dataset, weight=weight.astype(np.float32)), np.flatnonzero(weight)


@pytest.mark.parametrize(
    "how",
    [
        {"negatives": data.Negatives(in_batch=True, shared=3), "batch_size": 32},
        {"negatives": data.Negatives(num=2, sampling="popularity"), "batch_size": None},
        {"negatives": data.Negatives(catalogue=True), "batch_size": 32},
    ],
)
def test_rows_that_weigh_nothing_are_no_examples_and_their_items_no_negatives(parts, how):
    dataset, rows = thinned(parts.train)
    ours, theirs = (data.Batches(each, history=0, seed=0, **how) for each in (dataset, dataset.subset(rows)))
    assert ours.steps == theirs.steps
    for (stack, steps), (expected, _) in zip(ours.epoch(1), theirs.epoch(1), strict=True):
        assert (stack.weight.sum(axis=1) > 0).sum() == steps
        for values, wanted in zip(stack, expected, strict=True):
            np.testing.assert_array_equal(values, wanted)
    nothing = dataclasses.replace(dataset, weight=np.zeros(len(dataset), np.float32))
    with pytest.raises(ValueError, match=f"All of the {len(dataset)} rows weigh 0, so there is nothing to learn from"):
        data.Batches(nothing, history=0, seed=0, **how)


@pytest.mark.parametrize("kind", ["subset", "before"])
def test_histories_hold_rows_that_weigh_nothing(parts, kind):
    dataset, rows = thinned(parts.train)
    options = {"batch_size": None, "negatives": None, "seed": 0, "histories": kind, "history": 200}
    found, whole = (data.Batches(each, **options).example() for each in (dataset, parts.train))
    np.testing.assert_array_equal(found.item[:, 0], dataset.item[rows])
    pairs = set(zip(dataset.user[dataset.weight == 0], dataset.item[dataset.weight == 0], strict=True))
    assert any((user, item) in pairs for user, items in zip(found.user, found.history, strict=True) for item in items)
    if kind == "before":
        np.testing.assert_array_equal(found.history, whole.history[rows])


def test_sequences_hold_rows_that_weigh_nothing_as_history_alone(parts):
    dataset, rows = thinned(parts.train)
    options = {"negatives": data.Negatives(num=2), "history": 4, "seed": 0, "histories": "sequences"}
    found, read = [], set()
    for stack, steps in data.Batches(dataset, batch_size=64, **options).epoch(1):
        weight = stack.weight[:steps].reshape(-1, 5)
        user, item = stack.user[:steps].reshape(-1), stack.item[:steps].reshape(-1, 5, 3)
        assert not item[weight == 0].any() and ((weight > 0).any(axis=1) == (user > 0)).all()
        found += list(zip(np.repeat(user, 5)[weight.reshape(-1) > 0], item[weight > 0][:, 0], strict=True))
        read |= set(zip(np.repeat(user, 4), stack.history[:steps].reshape(-1), strict=True))
    assert sorted(found) == sorted(zip(dataset.user[rows], dataset.item[rows], strict=True))
    assert read & set(zip(dataset.user[dataset.weight == 0], dataset.item[dataset.weight == 0], strict=True))
