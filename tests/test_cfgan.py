"""The game of users' preferences: its losses by the dense formula, and what it learns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import DIM, FEATURES, shaken
from helpers import refuses

import jaxrec
from jaxrec import coldstart, data, models
from jaxrec.coldstart import _cfgan
from jaxrec.coldstart._cfgan import Preferences
from jaxrec.train import _adversarial

ROWS = 7
TOUCHED = np.asarray([[4, 2, 5], [6, 0, 0]])  # all of them trained: entity = row
DRAWN = np.asarray([[[1, 3], [6, 1], [3, 6]], [[2, 5], [0, 0], [0, 0]]])
BATCH = data.Batch(
    history=jnp.asarray(TOUCHED[:, :2], jnp.int32),
    item=jnp.asarray(np.concatenate([TOUCHED[:, :, None], DRAWN], axis=2).reshape(6, 3), jnp.int32),
)
GENERATOR = models.VariationalAutoencoder(item_rows=ROWS, dim=DIM, latent=2, history=2, dropout=0.0, beta=0.0)
player_loss = jax.jit(
    lambda game, player, params, features: game.player_loss(player, params, BATCH, features, key=None),
    static_argnums=(0, 1),
)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_the_players_losses_are_those_of_vectors_as_long_as_the_catalogue():
    game = Preferences(GENERATOR, (5,), 0.4, 0.0)
    params = shaken(game.init(jax.random.key(0)))
    given, values, bias, head = (
        np.asarray(leaf, np.float64)
        for leaf in (*(params["discriminator"][name] for name in ("given", "values", "bias")),
                     params["discriminator"]["mlp"]["0"]["kernel"])
    )  # fmt: skip
    history = jnp.asarray(TOUCHED, jnp.int32)
    everything = data.Batch(history=history, shared_negatives=jnp.arange(ROWS, dtype=jnp.int32))
    made_up = sigmoid(np.asarray(game.apply(params, everything, FEATURES), np.float64))
    losses, slopes = [], []
    for user in range(2):
        touched, drawn = (list(filter(None, row)) for row in (TOUCHED[user], DRAWN[user].ravel().tolist()))
        hot, count = np.zeros(ROWS), np.zeros(ROWS)
        hot[touched] = 1.0
        np.add.at(count, touched + drawn, 1.0)  # what is drawn twice counts twice

        def logit(y, hot=hot, count=count):
            hidden = np.tanh(bias + ((count * y) @ values + hot @ given) / np.sqrt(hot.sum()))
            return (hidden @ head)[0], hidden

        (real, hidden), (fake, _) = logit(hot), logit(made_up[user])
        squares = np.mean(made_up[user][drawn] ** 2)
        losses.append([np.log1p(np.exp(-real)) + np.log1p(np.exp(fake)), np.log1p(np.exp(-fake)) + 0.4 * squares])
        slope = values[touched + drawn] @ ((1 - hidden**2) * head[:, 0]) / np.sqrt(hot.sum())
        slopes.append(len(slope) * (slope**2).sum())
    for player, expected in zip(_adversarial.PLAYERS, np.mean(losses, axis=0), strict=True):
        assert player_loss(game, player, params, FEATURES) == pytest.approx(expected, rel=1e-5)
    smooth = player_loss(Preferences(GENERATOR, (5,), 0.4, 0.3), "discriminator", params, FEATURES)
    assert smooth == pytest.approx(np.mean(losses, axis=0)[0] + 0.3 * np.mean(slopes), rel=1e-5)


def test_a_stretch_without_items_changes_no_loss():
    game = Preferences(GENERATOR, (5,), 0.4, 0.3)
    params = shaken(game.init(jax.random.key(0)))
    padded = data.Batch(
        history=jnp.pad(BATCH.history, ((0, 1), (0, 0))), item=jnp.pad(BATCH.item, ((0, 3), (0, 0)))
    )  # fmt: skip
    for player in _adversarial.PLAYERS:
        loss = jax.jit(lambda batch, player=player: game.player_loss(player, params, batch, FEATURES, key=None))
        assert loss(padded) == pytest.approx(float(loss(BATCH)), rel=1e-6)


def test_a_user_has_so_many_draws_for_each_item_touched(trained):
    """Batches draw for the padding behind short users too, and now and then what the user touched."""
    parts, _ = trained
    options: dict[str, Any] = {"history": 12, "histories": "sequences", "batch_size": 13 * 8, "seed": 0}
    batch = data.Batches(parts.train, negatives=data.Negatives(num=2), **options).example()
    touched, drawn = map(np.asarray, _cfgan._touched_and_drawn(jax.tree.map(jnp.asarray, batch)))
    assert touched.shape == (8, 13) and drawn.shape == (8, 26)
    lengths = (touched > 0).sum(axis=1)
    assert lengths.max() < 13 and len(set(lengths)) > 1
    assert ((drawn > 0).sum(axis=1) <= 2 * lengths).all() and (drawn > 0).sum() > 1.2 * lengths.sum()
    for row, other in zip(touched, drawn, strict=True):
        assert not set(row[row > 0]) & set(other)


OPTIONS: dict[str, Any] = {"dim": 16, "latent": 8, "history": 24, "discriminator": (16,), "batch_size": 8}


@pytest.fixture(scope="module")
def frame():
    """Users who keep to one of four shelves of ten equally popular items."""
    rng = np.random.default_rng(0)
    rows = [(user, 10 * (user % 4) + item) for user in range(120) for item in rng.permutation(10)[:7]]
    return pd.DataFrame(rows, columns=["user", "item"])


@pytest.fixture(scope="module")
def trained(frame):
    parts = data.split_random(frame, validation=0.0, test=0.2, seed=0)
    parts = data.encode(parts, data.Schema())
    rates = {f"{player}_optimizer": optax.adamw(0.01, b1=0.5) for player in _adversarial.PLAYERS}
    return parts, coldstart.cfgan(parts.train, epochs=30, **rates, **OPTIONS)


def test_the_game_teaches_whose_items_go_together(trained, tmp_path):
    parts, found = trained
    assert isinstance(found.model, models.VariationalAutoencoder) and set(found.params) == {"item", "autoencoder"}
    log = found.history
    assert len(log) == 30 and np.isfinite(log[["generator_loss", "discriminator_loss"]]).all(axis=None)
    fresh = found.replace(params=found.model.init(jax.random.key(0)))
    values = [
        jaxrec.evaluate(each, parts.test, ks=(10,), draws=1)["ndcg@10"]
        for each in (found, fresh, coldstart.popularity(parts.train))
    ]
    assert values[0] > 2.0 * max(values[1:])
    jaxrec.save(found, tmp_path / "model")
    pairs = pd.DataFrame({"user": [3, 3, 4], "item": [1, 11, 21]})
    np.testing.assert_array_equal(jaxrec.predict(jaxrec.load(tmp_path / "model"), pairs), jaxrec.predict(found, pairs))


def test_new_users_are_served_by_what_they_touch(trained):
    _, found = trained
    grown = coldstart.add(found, users=[900, 901])
    grown = coldstart.add(grown, interactions=pd.DataFrame({"user": 900, "item": [20, 21, 22]}))
    lists = jaxrec.recommend(grown, [900], k=5)
    assert (lists["item"] // 10 == 2).sum() >= 4
    assert np.isfinite(jaxrec.predict(grown, pd.DataFrame({"user": 901, "item": [20, 3]}))).all()


def test_the_same_seed_gives_the_same_preferences(trained):
    parts, _ = trained
    first, again, other = (coldstart.cfgan(parts.train, epochs=1, seed=seed, **OPTIONS) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert (first.params["autoencoder"]["bias"] != other.params["autoencoder"]["bias"]).any()


def test_every_option_counts(trained):
    parts, _ = trained
    plain = coldstart.cfgan(parts.train, epochs=1, **OPTIONS)
    rate = optax.sgd(0.01)
    for other in (
        {"dropout": 0.1}, {"negatives": 1}, {"history": 5}, {"discriminator": (16, 8)},
        {"discriminator_optimizer": rate}, {"generator_optimizer": rate},
    ):  # fmt: skip
        found = coldstart.cfgan(parts.train, epochs=1, **OPTIONS | other)
        assert (found.params["autoencoder"]["bias"] != plain.params["autoencoder"]["bias"]).any(), other


def test_options_reach_the_game(trained, monkeypatch):
    parts, found = trained
    told: dict[str, Any] = {}

    def caught(game, part, params, *given, **options):
        told.update(options, game=game)
        return found

    monkeypatch.setattr(_cfgan, "play", caught)
    coldstart.cfgan(parts.train, zero_weight=0.1, smoothness=0.2, dim=3, latent=5)
    game = told["game"]
    assert (game.zero_weight, game.smoothness, game.base.dim, game.base.latent) == (0.1, 0.2, 3, 5)


def test_it_stops_by_the_recommender_that_it_returns(frame):
    """Of which items without training have the mean of the trained ones."""
    parts = data.split_random(frame, validation=0.2, test=0.0, seed=0)
    items = pd.DataFrame({"item": np.arange(60), "shelf": np.arange(60) // 10 % 4})  # the last twenty have no row
    schema = data.Schema(item_features=(data.Categorical("shelf"),))
    encoded = data.encode(parts, schema, items=items)
    rates = {f"{player}_optimizer": optax.adamw(0.01, b1=0.5) for player in _adversarial.PLAYERS}
    options: dict[str, Any] = {"epochs": 12, "patience": 3, "validation": encoded.validation, **rates}
    found = coldstart.cfgan(encoded.train, **OPTIONS | options)
    best = jaxrec.evaluate(found, encoded.validation, draws=1)["ndcg@10"]
    assert best == pytest.approx(found.history["ndcg@10"].max(), rel=1e-6) and best > 0.1
    values, seen = iter([0.1, 0.3, 0.2, 0.1]), []

    def metric(recommender):
        seen.append((recommender.model, np.array(recommender.params["autoencoder"]["bias"])))
        return next(values)

    stopped = coldstart.cfgan(encoded.train, **OPTIONS | options | {"metric": metric, "patience": 2})
    assert len(stopped.history) == 4 and isinstance(seen[0][0], models.VariationalAutoencoder)
    np.testing.assert_array_equal(stopped.params["autoencoder"]["bias"], seen[1][1])


def test_somebody_who_touched_everything_has_no_draws():
    rows = [(user, item) for user in range(20) for item in range(4 if user else 6)]
    parts = data.encode(data.Parts(pd.DataFrame(rows, columns=["user", "item"]), None, None), data.Schema())
    found = coldstart.cfgan(parts.train, epochs=2, **OPTIONS)
    assert np.isfinite(found.history[["generator_loss", "discriminator_loss"]]).all(axis=None)
    lone = data.encode(data.Parts(pd.DataFrame({"user": [1, 2], "item": [7, 7]}), None, None), data.Schema())
    found = coldstart.cfgan(lone.train, epochs=1, **OPTIONS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives >= 1"),
        ({"dim": 0}, "dim >= 1"),
        ({"latent": 0}, "latent >= 1"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"discriminator": ()}, r"one or more widths >= 1 for the discriminator, got \(\)"),
        ({"zero_weight": -1.0}, "zero_weight >= 0"),
        ({"smoothness": float("nan")}, "smoothness >= 0, got nan"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"history": 0}, "history >= 1"),
        ({"epochs": 0}, "epochs >= 1"),
    ],
)
def test_wrong_options_are_refused(trained, options, message):
    parts, _ = trained
    with pytest.raises(ValueError, match=message):
        coldstart.cfgan(parts.train, **OPTIONS | options)


def test_what_is_no_dataset_of_users_is_refused(frame):
    with refuses(TypeError, "Expected an? .*got str"):
        coldstart.cfgan("train")  # pyright: ignore[reportArgumentType]
    nobody = data.encode(data.Parts(frame[["item"]], None, None), data.Schema(user=None))
    with pytest.raises(ValueError, match="implicit feedback of users and items"):
        coldstart.cfgan(nobody.train, **OPTIONS)
    weighed = data.encode(data.Parts(frame.assign(often=2.0), None, None), data.Schema(weight="often"))
    with pytest.raises(ValueError, match="without weights"):
        coldstart.cfgan(weighed.train, **OPTIONS)
