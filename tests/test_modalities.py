"""Several modalities of a user or an item: what the encoder says of them, and how models fuse those that are there."""

import dataclasses
import functools
import json
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from cases import FEATURES, batch_of
from helpers import refuses

import jaxrec
from jaxrec import _tree, data, export, models, transfer
from jaxrec.models._fusion import fuse, init_fusion

SCHEMA = data.Schema(
    item_features=(
        data.Numeric("year"),
        data.Categorical("kind"),
        data.Numeric("length"),
        data.Vector("text", scale="rms"),
        data.Vector("image", scale="unit"),
    )
)
ITEMS = pd.DataFrame(
    {
        "item": range(6),
        "year": [1.0, 3.0, 5.0, np.nan, np.nan, 3.0],
        "kind": ["a", "b", "a", None, "b", "a"],
        "length": [1.0, 2.0, 3.0, 4.0, np.nan, np.nan],
        "text": [[1.0, 3.0], [3.0, 3.0], None, [2.0, 9.0], None, [2.0, 3.0]],
        "image": [[3.0, 4.0], None, [0.0, 2.0], [0.0, 0.0], None, [1.0, 0.0]],
    }
)
TRAIN = pd.DataFrame({"user": [0, 1, 0, 2, 1], "item": [0, 1, 2, 0, 2]})


def encoder(**options) -> data.Encoder:
    return data.Encoder.fit(TRAIN, SCHEMA, items=ITEMS, **options)


def test_dense_features_are_cut_into_vectors_and_runs_of_numbers():
    sizes = encoder(also=[pd.DataFrame({"user": [3], "item": [9]})]).sizes
    assert sizes.item_modalities == (("year+length", 2), ("text", 2), ("image", 2)) and sizes.item_dense == 6
    assert sizes.user_modalities == () and encoder().features.user_present is None


def test_what_an_entity_has_is_told_from_placeholders():
    features = encoder(also=[pd.DataFrame({"user": [3], "item": [9]})]).features
    expected = [[0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(features.item_present[:8], np.array(expected, bool))
    assert features.item_present.dtype == bool
    new = pd.DataFrame({"item": [7, 8], "year": [3.0, None], "kind": ["a", None], "length": [1.0, None],
                        "text": [None, [1.0, 1.0]], "image": [None, None]})  # fmt: skip
    longer = encoder().extend(items=new)
    assert longer.features.item_present[7:10].tolist() == [[True, False, False], [False, True, False], [False] * 3]
    assert longer.features.item_present.shape == encoder().features.item_present.shape
    many = encoder().extend(items=range(100, 200)).features
    assert len(many.item_present) == len(many.item_dense) and not many.item_present[7:].any()


def test_vectors_are_scaled_as_a_whole_or_to_unit_length():
    dense = encoder().features.item_dense
    # Training items 0 and 1 have the texts [1, 3] and [3, 3]: mean [2, 3], root mean square of what is left 0.5 ** 0.5.
    root = 0.5**0.5
    np.testing.assert_allclose(dense[1:7, 2:4], np.array([[-1, 0], [1, 0], [0, 0], [0, 6], [0, 0], [0, 0]]) / root)
    np.testing.assert_allclose(dense[1:7, 4:], [[0.6, 0.8], [0, 0], [0, 1], [0, 0], [0, 0], [1, 0]])
    values = np.array([[1.0, 2.0], [3.0, 7.0]])
    rms = data.Scaler.fit(values, "rms", "v")
    np.testing.assert_allclose(rms.inverse(rms.transform(values, "v")), values)
    np.testing.assert_allclose(np.square(rms.transform(values, "v")).mean(), 1.0)


def test_scales_of_vectors_are_not_for_numbers():
    with pytest.raises(ValueError, match="'rms' is for vectors and 'x' is one number. Use 'zscore'"):
        data.Scaler.fit(np.array([[1.0], [2.0]]), "rms", "x")
    with pytest.raises(ValueError, match="vectors 'x' are all the same in the training part"):
        data.Scaler.fit(np.array([[1.0, 2.0], [1.0, 2.0]]), "rms", "x")
    with pytest.raises(ValueError, match="unit length cannot be turned back"):
        unit = data.Scaler.fit(np.eye(2), "unit", "x")
        unit.inverse(np.eye(2))
    scale: Any = "median"
    with refuses(ValueError, "for vectors 'rms', 'unit', or None, got 'median'"):
        data.Scaler.fit(np.eye(2), scale, "x")


# Fusing

KINDS = ("gated", "attention")
each_fusion = pytest.mark.parametrize("fusion", KINDS)
WIDTHS = (("text", 4), ("image", 3), ("numbers", 2))
start = jax.jit(init_fusion, static_argnums=(1, 2, 3))
fused = jax.jit(fuse, static_argnums=1)
apply = jax.jit(lambda model, params, batch, features: model.apply(params, batch, features), static_argnums=0)


def filled(params, seed=0):
    """All different from zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), params)


def parameters(fusion):
    return filled(start(jax.random.key(0), WIDTHS, 5, fusion))


def example(rows=8):
    rng = np.random.default_rng(0)
    inputs = {name: jnp.asarray(rng.normal(size=(rows, width)), jnp.float32) for name, width in WIDTHS}
    bits = (np.arange(rows)[:, None] >> np.arange(3)[None, :]) % 2 > 0  # every combination, the first without any
    return inputs, {name: jnp.asarray(bits[:, at]) for at, (name, _) in enumerate(WIDTHS)}


@each_fusion
def test_fusing_is_the_formula(fusion):
    params, (inputs, present) = parameters(fusion), example()
    found = fused(params, fusion, inputs, present)
    tree = jax.tree.map(np.asarray, params)
    for row in range(8):
        names = [name for name in inputs if present[name][row]]
        layers = {name: tree["modalities"][name] for name in names}
        h = {name: np.asarray(inputs[name][row]) @ layers[name]["kernel"] + layers[name]["bias"] for name in names}
        expected = tree["none"]["bias"]
        if names and fusion == "gated":
            total, expected = sum(np.tanh(h[name]) for name in names), np.zeros(5)
            for name in names:
                gate = layers[name]["gate"]
                logit = np.tanh(h[name]) @ gate["own"]["kernel"] + total @ gate["all"]["kernel"] + gate["bias"]
                expected += np.tanh(h[name]) / (1 + np.exp(-logit))
        elif names:
            weight = np.exp([np.tanh(h[name]) @ tree["query"]["kernel"] / 5**0.5 for name in names])
            expected = sum(w * h[name] for w, name in zip(weight / weight.sum(), names, strict=True))
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


@each_fusion
def test_a_missing_modality_is_as_if_it_did_not_exist(fusion):
    params, (inputs, present) = parameters(fusion), example()
    lacking = present | {"image": jnp.zeros(8, bool)}
    found = fused(params, fusion, inputs, lacking)
    without = {name: values for name, values in inputs.items() if name != "image"}
    np.testing.assert_allclose(found, fused(params, fusion, without, present), rtol=1e-5, atol=1e-6)
    spoilt = inputs | {"image": jnp.full((8, 3), jnp.nan)}
    np.testing.assert_array_equal(fused(params, fusion, spoilt, lacking), found)

    def loss(params):
        return jnp.square(fused(params, fusion, spoilt, lacking)).sum()

    slopes = _tree.flatten(jax.grad(loss)(params))
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    assert all(slope.any() != path.startswith("modalities/image") for path, slope in slopes.items())
    assert not np.allclose(found, fused(params, fusion, inputs, present | {"image": jnp.ones(8, bool)}))


@each_fusion
def test_the_order_of_modalities_does_not_matter(fusion):
    params, (inputs, present) = parameters(fusion), example()
    turned = dict(reversed(inputs.items()))
    np.testing.assert_allclose(
        fused(params, fusion, turned, present), fused(params, fusion, inputs, present), rtol=1e-5, atol=1e-6
    )


@each_fusion
def test_every_modality_is_learned_from(fusion):
    inputs, present = example(32)
    target = np.tanh(np.asarray(inputs["text"])[:, :1] - np.asarray(inputs["numbers"])[:, :1])
    params = start(jax.random.key(1), WIDTHS, 5, fusion)

    def loss(params):
        return jnp.square(fuse(params, fusion, inputs, present)[:, :1] - target).mean()

    @jax.jit
    def train(params):
        def step(params, _):
            value, slope = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda leaf, slope: leaf - 0.2 * slope, params, slope), (value, slope)

        return jax.lax.scan(step, params, length=300)

    trained, (values, slopes) = train(params)
    assert values[-1] < 0.5 * values[0]
    assert all(slopes["modalities"][name]["kernel"][0].any() for name in inputs)
    assert all(bool((new != old).any()) for new, old in zip(*map(jax.tree.leaves, (trained, params)), strict=True))


# In models

SIDES: dict[str, Any] = {
    "user_dense": 2, "item_dense": 3, "user_codes": (("group", 3),), "item_codes": (("tags", 4),),
    "user_modalities": (("age", 2),), "item_modalities": (("text", 2), ("year", 1)),
}  # fmt: skip
TOWERS = models.TwoTower(
    user_rows=9, item_rows=7, dim=4, hidden=(), code_dim=2, history=3, fusion="gated", id_dropout=0.0, **SIDES
)
SEQUENCE = models.SequenceTransformer(
    item_rows=7, dim=4, layers=1, heads=1, history=3, dropout=0.0, fusion="attention", code_dim=2,
    **{name: value for name, value in SIDES.items() if name.startswith("item")},
)  # fmt: skip
ITEM_INDEX = jnp.arange(10, dtype=jnp.int32)
items_of = jax.jit(lambda model, params, features: model.item_vectors(params, ITEM_INDEX, features), static_argnums=0)
users_of = jax.jit(lambda model, params, batch: model.user_vectors(params, batch, FEATURES), static_argnums=0)


@functools.cache
def initialised(model):
    return filled(jax.jit(model.init)(jax.random.key(0)))


def test_scores_do_not_read_what_stands_in_a_masked_slot():
    params = initialised(TOWERS)
    scores = apply(TOWERS, params, batch_of(), FEATURES)
    present = np.repeat(np.asarray(FEATURES.item_present), [2, 1], axis=1)
    spoilt = FEATURES._replace(
        item_dense=jnp.where(present, FEATURES.item_dense, jnp.nan),
        user_dense=jnp.where(FEATURES.user_present, FEATURES.user_dense, 1e30),
    )
    np.testing.assert_array_equal(apply(TOWERS, params, batch_of(), spoilt), scores)
    assert np.isfinite(scores).all()
    nothing = FEATURES._replace(item_present=jnp.zeros_like(FEATURES.item_present))
    assert not np.allclose(apply(TOWERS, params, batch_of(), nothing), scores)
    of_sequence = items_of(SEQUENCE, initialised(SEQUENCE), FEATURES)
    np.testing.assert_array_equal(items_of(SEQUENCE, initialised(SEQUENCE), spoilt), of_sequence)
    assert jax.eval_shape(SEQUENCE.apply, initialised(SEQUENCE), batch_of(), FEATURES).shape == (8, 2)


@pytest.mark.parametrize("model", [TOWERS, SEQUENCE], ids=["towers", "sequence"])
def test_an_item_without_any_modality_has_a_finite_vector_of_its_own(model):
    params = initialised(model)
    bare = FEATURES._replace(
        item_present=FEATURES.item_present.at[8].set(False),
        item_codes={"tags": FEATURES.item_codes["tags"].at[8].set(0)},
    )
    vectors = items_of(model, params, bare)
    tower = params["item"]
    expected = tower["fusion"]["none"]["bias"] @ tower["mlp"]["0"]["kernel"] + tower["embedding"][0]
    np.testing.assert_allclose(vectors[8], expected + tower.get("bias", 0.0), rtol=1e-4, atol=1e-5)
    assert np.isfinite(vectors).all() and np.abs(vectors[8] - vectors[9]).max() > 1e-3


def test_inner_products_of_fused_vectors_are_the_scores():
    params, batch = initialised(TOWERS), batch_of()
    products = np.asarray(users_of(TOWERS, params, batch)) @ np.asarray(items_of(TOWERS, params, FEATURES)).T
    expected = np.take_along_axis(products, np.asarray(batch.item), axis=1)
    np.testing.assert_allclose(apply(TOWERS, params, batch, FEATURES), expected, rtol=1e-4, atol=1e-5)


def test_concatenation_is_what_it_was():
    plain = {name: value for name, value in SIDES.items() if "modalities" not in name}
    model = models.TwoTower(user_rows=9, item_rows=7, dim=4, hidden=(), code_dim=2, id_dropout=0.0, **plain)
    params = initialised(model)
    assert not [path for path in _tree.flatten(params) if "fusion" in path]
    items = np.arange(7)
    tags = np.asarray(FEATURES.item_codes["tags"])[items]
    table = np.asarray(params["item"]["features"]["tags"]["embedding"])
    known = (tags > 0)[..., None]
    pooled = (table[tags] * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    x = np.concatenate([np.asarray(FEATURES.item_dense)[items], pooled], axis=1)
    tower = params["item"]
    expected = x @ tower["mlp"]["0"]["kernel"] + tower["embedding"] + tower["bias"][None]
    vectors = items_of(model, params, FEATURES)
    np.testing.assert_allclose(vectors[:7], expected, rtol=1e-5, atol=1e-6)
    unmarked = FEATURES._replace(user_present=None, item_present=None)
    np.testing.assert_array_equal(items_of(model, params, unmarked), vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_modalities": (("text", 2),)}, "add up to 3 .*'gated' and 3 dense item features, got 2"),
        ({"item_modalities": (("tags", 2), ("year", 1))}, "distinct names of item modalities, got tags, year, tags"),
        ({"fusion": "concatenation"}, "user_modalities to add up to 0 with fusion='concatenation'"),
        ({"fusion": "sum"}, "fusion to be 'concatenation', 'gated', 'attention', got 'sum'"),
    ],
)  # fmt: skip
def test_modalities_that_do_not_fit_are_refused(change, message):
    with refuses(ValueError, message):
        dataclasses.replace(TOWERS, **change)


def test_features_that_do_not_say_what_is_there_are_refused():
    params = initialised(TOWERS)
    with pytest.raises(ValueError, match="fuses 2 dense item modalities and Features.item_present has none. Fit the"):
        items_of(TOWERS, params, FEATURES._replace(item_present=None))
    with pytest.raises(ValueError, match="Features.item_present has 1 columns"):
        items_of(TOWERS, params, FEATURES._replace(item_present=FEATURES.item_present[:, :1]))


# From frames to a served model


@pytest.fixture(scope="module")
def recommender():
    """Trained on items some of which lack a modality."""
    dataset = encoder().encode(pd.concat([TRAIN] * 4))
    model = models.TwoTower.for_data(dataset, dim=4, hidden=(), code_dim=2, fusion="attention")
    return jaxrec.fit(model, dataset, epochs=1, batch_size=8)


@pytest.mark.parametrize("kind", [models.TwoTower, models.SequenceTransformer])
def test_no_two_kernels_begin_with_the_same_numbers(kind):
    options: dict = {"hidden": (4,)} if kind is models.TwoTower else {"hidden": (4,), "layers": 1, "history": 3}
    model = kind.for_data(encoder(), dim=4, code_dim=2, fusion="attention", **options)
    leaves = _tree.flatten(model.init(jax.random.key(0)))
    drawn = [np.asarray(leaf).ravel() for path, leaf in leaves.items() if path.endswith("kernel") and leaf.any()]
    assert len(drawn) > 4
    ratios = [first[:4] / second[:4] for n, first in enumerate(drawn) for second in drawn[:n]]
    assert all(np.ptp(ratio) > 1e-3 for ratio in ratios)


def test_a_model_that_fuses_is_trained_saved_served_and_transferred(recommender, tmp_path):
    assert recommender.model.item_modalities == encoder().sizes.item_modalities
    jaxrec.save(recommender, tmp_path / "file")
    loaded = jaxrec.load(tmp_path / "file")
    assert loaded.model == recommender.model and loaded.encoder == recommender.encoder
    lists = jaxrec.recommend(loaded, users=[1], k=3)
    export.write_artefact(recommender, tmp_path / "artefact", k=3)
    served = export.load_artefact(tmp_path / "artefact").recommend([1], k=3)[0]
    assert [item for item, _ in served] == lists["item"].tolist()
    new = pd.DataFrame({"item": [7, 8], "year": [2.0, None], "kind": ["a", None], "length": [1.0, None],
                        "text": [[9.0, 9.0], None], "image": [None, None]})  # fmt: skip
    more = jaxrec.recommend(recommender, users=[1], new_items=new, k=8)
    assert {7, 8} <= set(more["item"]) and np.isfinite(more["score"]).all()
    fewer = data.Encoder.fit(TRAIN[:3], SCHEMA, items=ITEMS[:3], like=recommender.encoder).encode(TRAIN[:3])
    adapted = transfer.adapt(recommender, fewer, freeze="*")
    assert "item/fusion/modalities/text/kernel" in adapted.copied.paths("copied")


def test_a_file_of_an_older_version_is_read_and_cannot_be_fused(recommender, tmp_path):
    plain = encoder().encode(TRAIN)
    model = models.TwoTower.for_data(plain, dim=4, hidden=(), code_dim=2)
    old = jaxrec.train.Recommender(model, model.init(jax.random.key(0)), plain.encoder, plain.interactions, len(plain))
    jaxrec.save(old, tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "new") as new, zipfile.ZipFile(tmp_path / "old", "w") as file:
        for name in new.namelist():
            content = new.read(name)
            if name == "manifest.json":
                tree = json.loads(content)
                fields = tree["tree"]["fields"]
                for added in ("fusion", "user_modalities", "item_modalities"):
                    del fields["model"]["fields"][added]
                for added in ("user_present", "item_present"):
                    del fields["encoder"]["fields"]["features"]["fields"][added]
                content = json.dumps(tree).encode()
            file.writestr(name, content)
    loaded = jaxrec.load(tmp_path / "old")
    assert loaded.model == model and loaded.features.item_present is None
    pd.testing.assert_frame_equal(jaxrec.recommend(loaded, k=3), jaxrec.recommend(old, k=3))
    grown = jaxrec.recommend(loaded, users=[1], new_items=ITEMS[3:4].assign(item=50), k=6)
    assert 50 in set(grown["item"])
    with pytest.raises(ValueError, match="item_present has none. Fit the encoder again if an older version saved it"):
        jaxrec.recommend(recommender.replace(encoder=loaded.encoder), k=3)
