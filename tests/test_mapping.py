"""Content over a trained recommender: what each method is by definition, and that it helps cold items."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from cases import BPR, DIM, FEATURES, MODELS, batch_of, shaken
from conftest import encoded
from helpers import refuses

import jaxrec
from jaxrec import _tree, coldstart, data, models, optim, train
from jaxrec.coldstart import _dropoutnet, _heater, _mapping
from jaxrec.coldstart._ridge import _GRID, ridge
from jaxrec.models import _base
from jaxrec.ranking._vectors import user_vectors as ranking_vectors

FAST = optim.row_sparse(optax.adam(0.01))
COLD = FEATURES._replace(user_row=jnp.zeros_like(FEATURES.user_row), item_row=jnp.zeros_like(FEATURES.item_row))
KEY = jax.random.key(3)
apply = jax.jit(
    lambda model, params, batch, features, key: _base.scored(
        model.score(params, _base.gather(params, model.lookups(batch, features)), batch, features, key=key)
    ),
    static_argnums=0,
)
user_vectors = jax.jit(
    lambda model, params, batch, features: model.user_vectors(params, batch, features), static_argnums=0
)
item_vectors = jax.jit(
    lambda model, params, items, features: model.item_vectors(params, items, features), static_argnums=0
)


def towers(user, item, **options):
    """A model over random vectors, and its parameters, none of which is zero."""
    given: dict[str, Any] = {name: getattr(MODELS["towers"].model, name) for name in SIDES} | options
    model = models.BackboneTowers(user_rows=9, item_rows=7, dim=DIM, user=user, item=item, **given)
    start = model.init(jax.random.key(0))
    return model, _tree.map_with_path(
        lambda path, leaf: _tree.get(start, path) if "deviation" in path else leaf, shaken(start)
    )


SIDES = ("user_dense", "item_dense", "user_codes", "item_codes")


def other_tables(params):
    """The same parameters over other vectors."""
    changed = {f"backbone/{side}/embedding": params["backbone"][side]["embedding"][::-1] for side in ("user", "item")}
    return _tree.replace(params, changed)


@pytest.fixture(scope="module")
def cold() -> data.Parts:
    world = data.generate(
        seed=5, source_users=20, shared_users=0.0, source_items=20, target_users=250, target_items=100,
        target_interactions=15.0, content=0.9,
    )  # fmt: skip
    return encoded(world.target, data.split_cold_items)


@pytest.fixture(scope="module")
def backbone(cold) -> train.Recommender:
    return train.fit_als(cold.train, dim=6, epochs=6, l2=0.002, unobserved=0.1)


@pytest.fixture(scope="module")
def fitted(cold, backbone) -> dict[str, train.Recommender]:
    """Each method once."""
    options: dict[str, Any] = {"batch_size": 128, "optimizer": FAST}
    return {
        "ridge": coldstart.map_content(backbone, cold.train),
        "mlp": coldstart.map_content(backbone, cold.train, kind="mlp", hidden=(16,), code_dim=2, epochs=5, **options),
        "dropoutnet": coldstart.dropoutnet(backbone, cold.train, hidden=(32,), history=4, epochs=5, **options),
        "heater": coldstart.heater(
            backbone, cold.train, experts=2, hidden=(8,), refine=(16,), code_dim=2, epochs=5, **options
        ),
    }


def cold_items(recommender, parts):
    index = np.unique(parts.test.item)
    ids = parts.train.encoder.items.decode(index).tolist()
    return jaxrec.evaluate(recommender, parts.test, candidates=ids, ks=(5,), draws=1)["ndcg@5"]


# What all have in common


@pytest.mark.parametrize("method", ["ridge", "mlp", "dropoutnet", "heater"])
def test_cold_items_are_ranked_better_than_without_content(method, fitted, backbone, cold):
    assert cold_items(fitted[method], cold) > cold_items(backbone, cold) + 0.05


@pytest.mark.parametrize("method", ["ridge", "mlp", "dropoutnet", "heater"])
def test_the_backbone_is_bit_identical_after_training(method, fitted, backbone):
    for side in ("user", "item"):
        ours, theirs = fitted[method].params["backbone"][side], np.asarray(backbone.params[side]["embedding"])
        row = getattr(backbone.encoder.features, f"{side}_row")
        used = row[row > 0]
        np.testing.assert_array_equal(np.asarray(ours["embedding"])[used], theirs[used])
        assert not np.asarray(ours["embedding"])[0].any()
        np.testing.assert_allclose(ours["mean"], theirs[used].mean(axis=0), rtol=1e-4, atol=1e-6)
        spread = np.sqrt(np.square(theirs[used] - theirs[used].mean(axis=0)).mean())
        assert float(ours["deviation"]) == pytest.approx(float(spread), rel=1e-4)


@pytest.mark.parametrize("method", ["ridge", "dropoutnet", "heater"])
def test_items_added_later_are_read_from_their_features(method, fitted, cold, tmp_path):
    recommender = fitted[method]
    known = cold.train.encoder.items.decode(np.unique(cold.test.item)[:2]).tolist()
    place = cold.train.encoder.items.encode(known)
    frame = pd.DataFrame({
        "item": ["twin", "other"],
        "genres": ["|".join(_labels(cold, at)) for at in place],
        "content": list(np.asarray(cold.train.features.item_dense)[place]),
    })  # fmt: skip
    grown = coldstart.add(coldstart.add(recommender, items=frame), items=["nothing known"], users=[42])
    users = [42, *recommender.encoder.users.ids[:5].tolist()]
    scores = [
        jaxrec.predict(grown, pd.DataFrame({"user": users, "item": [name] * len(users)}))
        for name in ["twin", "other", *known, "nothing known"]
    ]
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores[1], scores[3], rtol=1e-5, atol=1e-6)
    assert np.isfinite(scores).all() and np.abs(scores[0] - scores[1]).max() > 1e-3
    jaxrec.save(grown, tmp_path / "file")
    loaded = jaxrec.load(tmp_path / "file")
    assert loaded.model == grown.model
    pd.testing.assert_frame_equal(jaxrec.recommend(loaded, users, k=4), jaxrec.recommend(grown, users, k=4))


def _labels(parts, entity):
    vocabulary = parts.train.encoder.fitted("item")[1].vocabulary
    codes = parts.train.features.item_codes["genres"][entity]
    return vocabulary.decode(codes[codes > 0]).tolist()


def test_the_seed_decides(cold, backbone):
    def make(seed):
        options: dict[str, Any] = {"experts": 1, "hidden": (), "refine": (), "epochs": 1, "batch_size": 512}
        return coldstart.heater(backbone, cold.train, seed=seed, **options).params

    first, again, other = (make(seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (np.asarray(first["item"]["bias"]) != np.asarray(other["item"]["bias"])).any()


def test_options_reach_the_model_and_fit(cold, backbone, monkeypatch):
    told: dict[str, Any] = {}

    def caught(model, part, **options):
        told.update(options, model=model, part=part)
        return train.Recommender(model, options["params"], part.encoder, part.interactions, len(part.interactions))

    for module in (_mapping, _dropoutnet, _heater):
        monkeypatch.setattr(module, "fit", caught)
    sigmoid = dataclasses.replace(backbone, link="sigmoid")
    coldstart.heater(sigmoid, cold.train, experts=3, hidden=(4,), refine=(), alpha=0.2, share=0.1, code_dim=3, epochs=7)
    assert told["model"].user == models.Heater(experts=3, hidden=(4,), refine=(), share=0.1, code_dim=3)
    assert told["model"].item == told["model"].user and told["model"].similarity == 0.2 and not told["model"].distil
    assert told["epochs"] == 7 and not {"loss", "negatives"} & set(told)
    assert told["freeze"] == "backbone/*" and told["seed"] == 0
    coldstart.heater(sigmoid, cold.train, loss="mse")
    assert told["loss"] == "mse" and told["negatives"].num == 5 and told["model"].similarity == 1.0
    net = coldstart.dropoutnet(sigmoid, cold.train, hidden=(4,), dropout=0.2, history=5, code_dim=3)
    assert told["model"].user == told["model"].item == models.DropoutNet(hidden=(4,), dropout=0.2, code_dim=3)
    assert told["model"].history == 5 and told["model"].distil == 1.0 and told["model"].link == "sigmoid"
    assert told["negatives"].in_batch and not net.model.distil and net.pooled_history == 5
    coldstart.map_content(sigmoid, cold.train, side="user", kind="mlp", hidden=(3,), code_dim=5)
    assert told["model"].user == models.ContentMap(hidden=(3,), code_dim=5) and told["model"].item is None
    assert told["model"].similarity == 1.0 and told["model"].link == "sigmoid" and told["freeze"] == ("backbone/*",)
    totals = np.bincount(told["part"].user, told["part"].weight)
    np.testing.assert_allclose(totals[totals > 0], 1.0, rtol=1e-5)
    assert coldstart.map_content(sigmoid, cold.train).link == "sigmoid"


def test_a_side_with_nothing_to_stand_in_is_never_left_out(cold, backbone, monkeypatch):
    told = []

    class Stop(Exception):
        pass

    def caught(model, part, **options):
        told.append(model)
        raise Stop

    monkeypatch.setattr(_dropoutnet, "fit", caught)
    schema = dataclasses.replace(cold.train.encoder.schema, user_features=())
    encoder = dataclasses.replace(
        cold.train.encoder, schema=schema, user_features=(),
        features=cold.train.features._replace(user_dense=None, user_codes={}),
    )  # fmt: skip
    bare = dataclasses.replace(cold.train, encoder=encoder)
    for history in (0, 3):
        with pytest.raises(Stop):
            coldstart.dropoutnet(backbone, bare, history=history)
    assert [model.user.dropout for model in told] == [0.0, 0.5] and told[0].item.dropout == 0.5


def test_scales_of_the_backbone_do_not_matter():
    """Vectors ten times as long give scores a hundred times as large, and the same penalties."""
    model, params = towers(
        models.DropoutNet(hidden=(), code_dim=2), models.Heater(experts=1, hidden=(), refine=(), code_dim=2),
        similarity=0.5, distil=0.5,
    )  # fmt: skip
    longer = {**params, "backbone": jax.tree.map(lambda leaf: 10.0 * leaf, params["backbone"])}
    ours, theirs = (apply(model, each, batch_of(), FEATURES, KEY) for each in (params, longer))
    np.testing.assert_allclose(theirs.scores, 100.0 * ours.scores, rtol=1e-3, atol=1e-3)
    assert float(theirs.penalty) == pytest.approx(float(ours.penalty), rel=1e-3)


# Ridge


@pytest.mark.parametrize(("rows", "inputs"), [(12, 4), (6, 9)])
def test_ridge_is_the_normal_equations_solution(rows, inputs):
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, inputs)) + 3.0, rng.normal(size=(rows, 2))
    y = y + x[:, :2] - 5.0

    def solved(x, y, l2):
        design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        penalty = l2 * np.diag([*[1.0] * x.shape[1], 0.0])
        hat = design @ np.linalg.solve(design.T @ design + penalty, design.T)
        return np.linalg.solve(design.T @ design + penalty, design.T @ y), hat

    found = ridge(x, y, l2=0.7)
    expected, _ = solved(x, y, 0.7)
    np.testing.assert_allclose(np.concatenate([found.kernel, found.intercept[None, :]]), expected, rtol=1e-6, atol=1e-8)
    errors = []
    for row in range(rows):
        others = np.arange(rows) != row
        coefficients, _ = solved(x[others], y[others], 0.7)
        errors.append(y[row] - x[row] @ coefficients[:-1] - coefficients[-1])
    assert found.error == pytest.approx(np.square(errors).mean(), rel=1e-6)

    def generalised(l2):
        _, hat = solved(x, y, l2)
        return np.square(y - hat @ y).sum() / (rows - np.trace(hat)) ** 2

    chosen = ridge(x, y, l2=None).l2
    scale = np.square(x - x.mean(axis=0)).sum() / min(rows - 1, inputs)
    others = [generalised(scale * factor) for factor in _GRID if factor > 1e-4]
    assert generalised(chosen) == pytest.approx(min(others), rel=1e-6)


@pytest.mark.parametrize("side", ["item", "user"])
def test_a_ridge_map_is_the_closed_form_and_leaves_warm_entities_alone(side, cold, backbone):
    l2, features = 3.0, cold.train.features._asdict()
    mapped = coldstart.map_content(backbone, cold.train, side=side, l2=l2)
    row, dense = np.asarray(features[f"{side}_row"]), np.asarray(features[f"{side}_dense"], np.float64)
    (codes,) = features[f"{side}_codes"].values()
    share = np.zeros((len(codes), codes.max() + 1))
    for entity, label in zip(*np.nonzero(codes), strict=True):
        share[entity, codes[entity, label]] += 1.0 / (codes[entity] > 0).sum()
    x, table = np.concatenate([dense, share[:, 1:]], axis=1), np.asarray(backbone.params[side]["embedding"])
    warm = row > 0
    mean_x, mean_y = x[warm].mean(axis=0), table[row[warm]].mean(axis=0)
    centred = x[warm] - mean_x
    kernel = np.linalg.solve(centred.T @ centred + l2 * np.eye(x.shape[1]), centred.T @ (table[row[warm]] - mean_y))
    vectors = _vectors(mapped, side)
    np.testing.assert_array_equal(vectors[warm], table[row[warm]])
    known = len(cold.train.encoder.vocabulary(side))
    of_cold = np.flatnonzero(~warm[: known + 1])[1:]
    expected = mean_y + (x[of_cold] - mean_x) @ kernel
    np.testing.assert_allclose(vectors[of_cold], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(vectors[0], mean_y, rtol=1e-4, atol=1e-6)  # without content: the mean
    assert mapped.history["l2"].tolist() == [l2]
    other = "user" if side == "item" else "item"
    other_row = np.asarray(features[f"{other}_row"])
    ours, theirs = _vectors(mapped, other), _vectors(backbone, other)
    np.testing.assert_array_equal(ours[other_row > 0], theirs[other_row > 0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # who is cold is the mean, as before


def _vectors(recommender, side):
    features = recommender.features
    if side == "item":
        return np.asarray(recommender.catalogue)
    batch = recommender.batch(np.arange(len(features.user_row)))
    return np.asarray(user_vectors(recommender.model, recommender.params, batch, features))


def test_a_number_that_is_nought_is_content_and_one_that_is_missing_is_not():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": rng.integers(0, 30, 300), "item": rng.integers(0, 20, 300)})
    items = pd.DataFrame({"item": np.arange(20), "number": np.where(np.arange(20) < 5, 0.0, np.arange(20))})
    items.loc[19, "number"] = np.nan
    schema = data.Schema(item_features=(data.Numeric("number", scale=None),))
    dataset = data.encode(data.Parts(rows, None, None), schema, items=items).train
    content = models.BackboneTowers.for_data(dataset, dim=2, item=models.ContentMap()).content("item")
    index = jnp.asarray(dataset.encoder.items.encode(np.arange(20)))
    known = np.asarray(content.described(index, jax.tree.map(jnp.asarray, dataset.features)))
    assert known.tolist() == [True] * 19 + [False]
    older = dataset.features._replace(item_present=None)  # what stands at 0 cannot be told from nothing
    assert np.asarray(content.described(index, jax.tree.map(jnp.asarray, older))).sum() == 14


def test_the_second_side_is_mapped_by_a_second_call(cold, backbone):
    items = coldstart.map_content(backbone, cold.train)
    both = coldstart.map_content(items, cold.train, side="user")
    np.testing.assert_array_equal(_vectors(both, "item"), _vectors(items, "item"))
    alone = coldstart.map_content(backbone, cold.train, side="user")
    np.testing.assert_array_equal(_vectors(both, "user"), _vectors(alone, "user"))


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_a_map_folds_in_as_the_backbone_does_and_keeps_what_was_added_since(kind, cold, backbone):
    options = {"kind": kind, "epochs": 1, "batch_size": 512, "hidden": ()} if kind == "mlp" else {}
    known = cold.train.encoder
    items = known.items.decode(np.flatnonzero(known.features.item_row)[:3])  # the others' vectors are what is mapped
    touched = pd.DataFrame({"user": known.users.ids[[0, 0, 1]], "item": items, "time": 0})
    own = coldstart.add(backbone, interactions=touched)
    mapped = coldstart.map_content(own, cold.train, **options)
    assert mapped.folding == backbone.folding and mapped.folding is not None
    assert mapped.num_trained == backbone.num_trained and mapped.seen == own.seen
    trained = np.flatnonzero(known.features.user_row)[:9]
    ours, theirs = (np.asarray(ranking_vectors(each, trained)) for each in (mapped, own))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_map_and_dropoutnet_keep_the_unit_of_what_the_backbone_predicts(rated_world, rated_parts):
    train_part = rated_parts.train
    model = models.MatrixFactorization.for_data(train_part, dim=2)
    params = model.init(KEY)
    rated = train.Recommender(model, params, train_part.encoder, train_part.interactions, len(train_part))
    schema, scaler = train_part.encoder.schema, train_part.encoder.target
    assert scaler is not None
    encoder = dataclasses.replace(
        train_part.encoder, target=dataclasses.replace(scaler, statistics=scaler.statistics + 1.0)
    )
    others = {"with target_scale='zscore'": dataclasses.replace(train_part, encoder=encoder)}
    for change, what in (({"target_scale": None}, "target_scale=None"), ({"target": None}, "no target")):
        plain = dataclasses.replace(schema, **({"target_scale": None} | change))
        others[what] = encoded(rated_world.target._replace(schema=plain)).train
    for what, other in others.items():
        for method in (coldstart.map_content, coldstart.dropoutnet):
            with refuses(ValueError, f"predicts 'rating' with target_scale='zscore', and the training .*{what}"):
                method(rated, other)
        assert coldstart.map_content(rated.replace(link="rank"), other).link == "rank"  # of which nothing has a unit
    assert coldstart.map_content(rated, train_part).encoder is train_part.encoder


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_those_whose_rows_all_weigh_nothing_are_mapped_as_cold(kind, cold):
    weight = np.where(cold.train.item % 3 == 0, np.float32(0), np.float32(1))
    weighed = dataclasses.replace(cold.train, weight=weight)
    backbone = train.fit_als(weighed, dim=3, epochs=2, l2=0.002, unobserved=0.1)
    options: dict[str, Any] = {"kind": kind, "hidden": (), "epochs": 1, "batch_size": 512} if kind == "mlp" else {}
    mapped = coldstart.map_content(backbone, weighed, **options)
    assert mapped.seen == backbone.seen and mapped.num_trained == backbone.num_trained
    row = cold.train.features.item_row
    met = np.setdiff1d(cold.train.item, np.flatnonzero(np.arange(len(row)) % 3 == 0))
    vectors = _vectors(backbone, "item")
    np.testing.assert_allclose(
        mapped.params["backbone"]["item"]["mean"], vectors[met].mean(axis=0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(_vectors(mapped, "item")[met], vectors[met])
    nothing = np.setdiff1d(cold.train.item, met)
    assert len(nothing) > 20 and not vectors[nothing].any() and _vectors(mapped, "item")[nothing].any(axis=1).all()
    if kind == "ridge":
        inputs = np.concatenate(list(_mapping.content_inputs(cold.train, "item", np.arange(len(row))).values()), axis=1)
        found = ridge(inputs[met], vectors[met], l2=float(mapped.history["l2"][0]))
        expected = inputs[nothing] @ found.kernel + found.intercept
        np.testing.assert_allclose(_vectors(mapped, "item")[nothing], expected, rtol=1e-3, atol=1e-4)


def test_a_backbone_that_others_were_added_to_is_not_mapped(cold, backbone):
    with refuses(ValueError, "knows 1 users and 0 items that the training part does not, as after coldstart.add"):
        coldstart.map_content(coldstart.add(backbone, users=[-1]), cold.train)


def test_a_biased_backbone_keeps_its_biases(cold):
    model = models.MatrixFactorization.for_data(cold.train, dim=2)
    biased = jaxrec.fit(model, cold.train, epochs=1, batch_size=512)
    mapped = coldstart.map_content(biased, cold.train)
    assert mapped.model.dim == 4
    np.testing.assert_allclose(mapped.catalogue[:, 2], 1.0, rtol=1e-4)


# DropoutNet


def test_with_all_input_dropped_dropoutnet_is_content_only():
    head = models.DropoutNet(hidden=(5,), dropout=1.0, code_dim=2)
    model, params = towers(head, head)
    served, dropped = (apply(model, params, batch_of(), *each).scores for each in ((FEATURES, None), (FEATURES, KEY)))
    others = other_tables(params)
    np.testing.assert_array_equal(dropped, apply(model, others, batch_of(), FEATURES, KEY).scores)
    np.testing.assert_allclose(dropped, apply(model, params, batch_of(), COLD, None).scores, rtol=1e-6)
    assert np.abs(served - apply(model, others, batch_of(), FEATURES, None).scores).max() > 1e-3
    assert np.abs(served - dropped).max() > 1e-3
    kept = dataclasses.replace(head, dropout=0.0)
    model = dataclasses.replace(model, user=kept, item=kept)
    np.testing.assert_array_equal(apply(model, params, batch_of(), FEATURES, KEY).scores, served)


def test_the_history_stands_in_for_a_cold_user():
    head = models.DropoutNet(hidden=(5,), dropout=1.0, code_dim=2)
    model, params = towers(head, head, history=3)
    user, item = params["backbone"]["user"], params["backbone"]["item"]
    history = jnp.asarray([[2, 5, 0], [7, 0, 0], [0, 0, 0]], jnp.int32)  # 7 is cold: it has no vector
    batch = data.Batch(user=jnp.full(3, 9, jnp.int32), history=history)
    found = user_vectors(model, params, batch, FEATURES)
    pooled = (item["embedding"][jnp.asarray([2, 5])].mean(axis=0) - item["mean"]) / item["deviation"]
    table = user["embedding"].at[1].set(user["mean"] + user["deviation"] * pooled)
    like = _tree.replace(params, {"backbone/user/embedding": table})
    as_nine = FEATURES._replace(user_row=FEATURES.user_row.at[9].set(1))
    np.testing.assert_allclose(user_vectors(model, like, batch, as_nine)[0], found[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], found[2], rtol=1e-6)
    # While training a vector that is left out is replaced by zeros or by the history's mean.
    many = data.Batch(
        user=jnp.full(40, 1, jnp.int32), history=jnp.broadcast_to(history[:1], (40, 3)),
        item=jnp.full((40, 1), 7, jnp.int32),
    )  # fmt: skip
    scores = apply(model, params, many, FEATURES, KEY).scores[:, 0]
    empty = apply(model, params, many._replace(history=jnp.zeros_like(many.history)), FEATURES, KEY).scores[0, 0]
    values = np.unique(np.round(np.asarray(scores), 4))
    assert len(values) == 2 and np.abs(values - float(empty)).min() < 1e-3


def test_distilling_is_the_mean_squared_distance_of_scores():
    model, params = towers(models.DropoutNet(hidden=(), dropout=0.0), None, distil=0.5)
    batch = batch_of()._replace(
        shared_negatives=jnp.asarray([3, 0, 8], jnp.int32), weight=jnp.asarray([1, 0, 2, 1, 1, 1, 1, 1], jnp.float32)
    )
    found = apply(model, params, batch, FEATURES, KEY)
    backbone = dataclasses.replace(model, user=None, distil=0.0)
    target = apply(backbone, {"backbone": params["backbone"]}, batch, FEATURES, KEY).scores
    weight = np.asarray(batch.weight)[:, None] * np.asarray([1, 1, 1, 0, 1])[None, :]
    unit = params["backbone"]["user"]["deviation"] * params["backbone"]["item"]["deviation"]
    expected = 0.5 * (weight * np.square(found.scores - target)).sum() / weight.sum() / (DIM * unit**2)
    assert float(found.penalty) == pytest.approx(float(expected), rel=1e-4) and float(expected) > 0
    assert float(apply(model, params, batch, FEATURES, None).penalty) == 0.0


# Heater


def test_one_expert_is_a_plain_perceptron():
    one = models.Heater(experts=1, hidden=(3,), refine=(), share=0.0, code_dim=2)
    model, params = towers(None, one)
    refine = np.asarray(params["item"]["refine"]["0"]["kernel"])
    layers = jax.tree.map(lambda leaf: np.asarray(leaf[0]), params["item"]["experts"])
    content = model.content("item")
    items = jnp.arange(1, 10, dtype=jnp.int32)
    gathered = _base.gather(params, content.lookups("item", items, FEATURES))
    x = np.asarray(content.inputs("item", gathered, items, FEATURES))
    mapped = np.tanh(x @ layers["0"]["kernel"] + layers["0"]["bias"]) @ layers["1"]["kernel"]
    of_side = jax.tree.map(np.asarray, params["backbone"]["item"])
    expected = of_side["mean"] + of_side["deviation"] * (mapped @ refine + np.asarray(params["item"]["bias"]))
    np.testing.assert_allclose(item_vectors(model, params, items, COLD), expected, rtol=1e-4, atol=1e-5)
    # Two experts are their mean by the gate, so that equal ones are one.
    two, _ = towers(None, dataclasses.replace(one, experts=2))
    twice = {**params, "item": {
        **params["item"],
        "experts": jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), params["item"]["experts"]),
        "gate": {"0": {"kernel": jax.random.normal(KEY, (content.width, 2))}},
    }}  # fmt: skip
    np.testing.assert_allclose(item_vectors(two, twice, items, COLD), expected, rtol=1e-4, atol=1e-5)


def test_the_share_decides_what_training_is_fed():
    def scores(share, features, key):
        head = models.Heater(experts=2, hidden=(3,), refine=(5,), share=share, code_dim=2)
        model, params = towers(head, head)
        return apply(model, params, batch_of(64), features, key).scores, params, model

    served, params, model = scores(0.0, FEATURES, None)
    np.testing.assert_allclose(scores(0.0, FEATURES, KEY)[0], served, rtol=1e-5, atol=1e-6)
    without_content = _tree.flatten(params)
    without_content |= {path: 2.0 * leaf for path, leaf in without_content.items() if "/experts/" in path}
    np.testing.assert_array_equal(  # nothing of the experts is used
        apply(model, _tree.unflatten(without_content), batch_of(64), FEATURES, KEY).scores, served
    )
    of_content = scores(1.0, COLD, None)[0]
    np.testing.assert_allclose(scores(1.0, FEATURES, KEY)[0], of_content, rtol=1e-5, atol=1e-6)
    mixed = np.asarray(scores(0.5, FEATURES, KEY)[0])
    share = np.isclose(mixed, served, rtol=1e-5).mean()
    assert 0.1 < share < 0.45 and np.isclose(mixed, of_content, rtol=1e-5).any()  # a quarter keeps both vectors


def test_the_similarity_constraint_is_zero_where_content_gives_the_vector():
    head = models.Heater(experts=2, hidden=(3,), refine=(), code_dim=2)
    model, params = towers(None, head, similarity=2.0)
    batch = batch_of()._replace(shared_negatives=jnp.asarray([2, 9], jnp.int32))
    before = apply(model, params, batch, FEATURES, KEY)
    plain = {**params["item"], "refine": {"0": {"kernel": jnp.eye(DIM)}}, "bias": jnp.zeros(DIM)}
    reading = {**params, "item": plain}
    index = jnp.arange(len(FEATURES.item_row), dtype=jnp.int32)
    table = jnp.zeros((7, DIM)).at[FEATURES.item_row].set(item_vectors(model, reading, index, COLD))
    agreeing = _tree.replace(params, {"backbone/item/embedding": table})
    assert float(apply(model, agreeing, batch, FEATURES, KEY).penalty) == pytest.approx(0.0, abs=1e-9)
    columns = np.concatenate([np.asarray(batch.item).reshape(-1), [2]])  # 9 is cold and has no vector
    gap = np.asarray((params["backbone"]["item"]["embedding"] - table)[FEATURES.item_row[columns]])
    expected = 2.0 * np.square(gap / params["backbone"]["item"]["deviation"]).mean()
    assert float(before.penalty) == pytest.approx(float(expected), rel=1e-4)
    doubled = dataclasses.replace(model, similarity=4.0)
    assert float(apply(doubled, params, batch, FEATURES, KEY).penalty) == pytest.approx(2 * float(expected), rel=1e-4)


# What is refused


def test_backbones_and_data_that_do_not_fit_are_refused(cold, backbone, parts, factorization):
    neumf = models.NeuMF.for_data(cold.train, dim=2, mlp_dim=0)
    pairwise = dataclasses.replace(backbone, model=neumf)
    with pytest.raises(ValueError, match="scores are inner products.*such as fit_als returns.*got NeuMF"):
        coldstart.map_content(pairwise, cold.train)
    with pytest.raises(ValueError, match="numbered by another encoder"):
        coldstart.heater(factorization, cold.train)
    half = dataclasses.replace(backbone, seen=backbone.seen.part(slice(20)), num_trained=20)
    with pytest.raises(ValueError, match="was not trained on .* of the .* users with a table row. Give the"):
        coldstart.dropoutnet(half, cold.train)
    broken = dataclasses.replace(backbone, params=jax.tree.map(lambda leaf: leaf * jnp.inf, backbone.params))
    with pytest.raises(ValueError, match="user vectors are not finite"):
        coldstart.map_content(broken, cold.train)
    with refuses(TypeError, "Expected a Recommender for backbone"):
        coldstart.heater(cold.train, cold.train)


def test_data_without_features_is_refused(cold, backbone):
    features = cold.train.features._replace(user_dense=None, item_dense=None, user_codes={}, item_codes={})
    encoder = dataclasses.replace(cold.train.encoder, features=features, user_features=(), item_features=())
    bare = dataclasses.replace(cold.train, encoder=encoder)
    for name in ("map_content", "dropoutnet", "heater"):
        with pytest.raises(ValueError, match=f"{name} reads item features and the data has none. Name them"):
            getattr(coldstart, name)(backbone, bare)
    same = cold.train.features._replace(
        item_dense=np.zeros_like(cold.train.features.item_dense),
        item_present=np.zeros_like(cold.train.features.item_present),
        item_codes={name: np.zeros_like(codes) for name, codes in cold.train.features.item_codes.items()},
    )
    empty = dataclasses.replace(cold.train, encoder=dataclasses.replace(cold.train.encoder, features=same))
    with pytest.raises(ValueError, match="No trained item has any content"):
        coldstart.map_content(backbone, empty)


def test_options_that_do_not_fit_are_refused(cold, backbone):
    for head in (None, models.DropoutNet(hidden=(), code_dim=2)):
        with refuses(ValueError, "similarity=0.5 is of heads that map content alone.*Leave it out"):
            models.BackboneTowers.for_data(cold.train, dim=2, item=head, similarity=0.5)
    calls: list[tuple[Any, dict[str, Any], str]] = [
        (coldstart.map_content, {"hidden": (3,), "epochs": 2}, "closed form and takes no hidden, epochs"),
        (coldstart.map_content, {"l2": 0.0}, "Expected l2 > 0, or None"),
        (coldstart.map_content, {"kind": "mlp", "l2": 1.0}, "l2= is the ridge's"),
        (coldstart.map_content, {"kind": "forest"}, "Expected kind to be 'ridge', 'mlp'"),
        (coldstart.map_content, {"side": "both"}, "Expected side to be 'user', 'item'"),
        (coldstart.dropoutnet, {"dropout": 1.5}, r"Expected dropout in \[0, 1\], got 1.5"),
        (coldstart.heater, {"share": -0.1}, r"Expected share in \[0, 1\]"),
        (coldstart.heater, {"experts": 0}, "Expected experts >= 1"),
        (coldstart.heater, {"alpha": -1.0}, "Expected similarity >= 0"),
    ]
    for function, options, message in calls:
        with refuses(ValueError, message):
            function(backbone, cold.train, **options)
    with pytest.raises(ValueError, match="Only a DropoutNet of users reads a history"):
        models.BackboneTowers(user_rows=2, item_rows=2, dim=2, user=models.Heater(), history=3)
    with pytest.raises(ValueError, match="A ContentMap maps content, and this side has no features"):
        models.BackboneTowers(user_rows=2, item_rows=2, dim=2, user=models.ContentMap()).init(KEY)
    for width in (0, 3):
        with pytest.raises(ValueError, match=f"two vectors of one width side by side, got content of width {width}"):
            models.Bridge().init(KEY, content=width, dim=2)


def test_a_map_is_stopped_on_those_whom_it_serves(cold, backbone):
    """Whoever was trained is scored with the backbone's vector after every epoch, and the first would be kept."""
    options: dict[str, Any] = {"kind": "mlp", "hidden": (4,), "code_dim": 2, "batch_size": 256, "optimizer": FAST}
    warm = cold.validation.subset(cold.train.features.user_row[cold.validation.user] > 0)
    for validation, side in ((cold.train.subset(np.arange(40)), "item"), (warm, "user")):
        with refuses(ValueError, f"nobody whom the map serves, no {side} .*data.split_cold_{side}s"):
            coldstart.map_content(backbone, cold.train, side=side, validation=validation, **options)
    found = coldstart.map_content(backbone, cold.train, validation=cold.validation, epochs=2, **options)
    assert found.history["ndcg@10"].nunique() == 2


def test_the_penalty_alone_is_what_a_map_learns_from():
    assert float(_mapping.penalty_alone(jnp.ones((2, 2)), batch_of(2))) == 0.0
    assert float(BPR(jnp.ones((2, 2)), batch_of(2))) > 0.0
