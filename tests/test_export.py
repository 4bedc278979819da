"""Files and artefacts: what comes back is what went in, and damage is found before anything is built."""

import dataclasses
import datetime
import functools
import io
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import uuid
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from cases import LinenScorer, batch_of
from helpers import refuses, untyped

import jaxrec
from jaxrec import _tree, _values, data, export, models
from jaxrec.export import _artefact, _files, _pack
from jaxrec.ranking import _vectors


def rewritten(path, target, *, manifest=None, arrays=None):
    """A copy of a saved file with another manifest or other array bytes."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json" and manifest is not None:
                content = json.dumps(manifest(json.loads(content))).encode()
            if name.endswith(".npy") and arrays is not None:
                content = arrays(content)
            new.writestr(name, content)
    return target


@pytest.fixture(scope="module")
def saved(towers, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "towers.jaxrec"
    jaxrec.save(towers, path)
    return path


@pytest.mark.parametrize("name", ["factorization", "towers"])
def test_a_recommender_survives_the_round_trip(name, request, tmp_path, parts):
    recommender = request.getfixturevalue(name)
    jaxrec.save(recommender, tmp_path / "deep" / "file.jaxrec")
    loaded = jaxrec.load(tmp_path / "deep" / "file.jaxrec")
    assert loaded.model == recommender.model and loaded.encoder == recommender.encoder
    assert loaded.seen == recommender.seen and loaded.num_trained == recommender.num_trained
    assert _values.same(loaded.params, recommender.params)
    pd.testing.assert_frame_equal(loaded.history, recommender.history)
    pd.testing.assert_frame_equal(jaxrec.recommend(loaded, k=5), jaxrec.recommend(recommender, k=5))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.jaxrec"]


def test_an_encoder_can_be_saved_alone(towers, tmp_path):
    jaxrec.save(towers.encoder, tmp_path / "encoder")
    assert jaxrec.load(tmp_path / "encoder") == towers.encoder


IDS: dict[str, Any] = {
    "64-bit integers": [2**40 + 5, 5, -(2**62), 2**33],
    "unsigned": np.array([2**63 + 9, 1, 2, 3], np.uint64),
    "text": ["a", "b\x00", "ü\u2028", "𝄞"],
    "tuples": [("a", 1), ("a", 2), ("b", 1), ("c", 0)],
    "uuids": [uuid.UUID(int=n) for n in (5, 3, 9, 1)],
    "dates": [datetime.date(2020, 1, n) for n in (4, 3, 2, 1)],
    "times": [datetime.datetime(2020, 1, n, 1, 2, 3, 4) for n in (4, 3, 2, 1)],
    "bytes": [b"\xff", b"", b"a", b"b"],
    "floats": [0.1, 1e300, -0.5, 2.0],
    "bools": [True, False],
}


@pytest.mark.parametrize("kind", IDS)
def test_raw_ids_of_every_kind_survive(kind, tmp_path):
    ids = list(IDS[kind])
    series = pd.Series(ids, dtype=object) if kind != "unsigned" else pd.Series(IDS[kind])
    frame = pd.DataFrame({"user": series, "item": range(len(ids))})
    recommender = jaxrec.coldstart.popularity(data.encode(data.Parts(frame, None, None), data.Schema()).train)
    jaxrec.save(recommender, tmp_path / "file")
    loaded = jaxrec.load(tmp_path / "file")
    assert loaded.encoder == recommender.encoder
    assert loaded.encoder.users.encode(series).tolist() == recommender.encoder.users.encode(series).tolist()
    assert {type(each) for each in loaded.encoder.users.ids.tolist()} == {type(each) for each in series.tolist()}


def test_ids_that_were_elements_of_an_array_can_be_saved(factorization, tmp_path):
    grown = jaxrec.coldstart.add(factorization, items=[np.array(["a premiere"])[0]])
    jaxrec.save(grown, tmp_path / "file")
    assert jaxrec.load(tmp_path / "file").encoder == grown.encoder


def test_ids_that_need_pickle_are_refused(tmp_path):
    frame = pd.DataFrame({"user": pd.Series([complex(1, 2)], dtype=object), "item": [1]})
    recommender = jaxrec.coldstart.popularity(data.encode(data.Parts(frame, None, None), data.Schema()).train)
    with pytest.raises(TypeError, match="Cannot store ids of type complex without pickle"):
        jaxrec.save(recommender, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_and_integer_parameters_survive(factorization, tmp_path):
    params = {
        "item": {"embedding": factorization.params["item"]["embedding"].astype(jnp.bfloat16)},
        "user": {"embedding": jnp.ones((3, 2), jnp.int8)},
        "bias": jnp.zeros(()),
    }
    jaxrec.save(dataclasses.replace(factorization, params=params), tmp_path / "file")
    loaded = jaxrec.load(tmp_path / "file").params
    assert loaded["item"]["embedding"].dtype == jnp.bfloat16 and _values.same(loaded, params)


def test_a_model_of_ones_own_is_given_back_by_the_caller(parts, tmp_path):
    model = models.from_linen(LinenScorer(), batch_of(), parts.train.features)
    params = model.init(jax.random.key(0))
    recommender = jaxrec.train.Recommender(model, params, parts.train.encoder, parts.train.interactions, 3)
    jaxrec.save(recommender, tmp_path / "file")
    with pytest.raises(ValueError, match="a model of a class of your own, LinenModel. Give it: load"):
        jaxrec.load(tmp_path / "file")
    assert jaxrec.load(tmp_path / "file", model=model).model is model


def test_a_model_that_inherits_from_one_of_ours_is_given_back_too(factorization, tmp_path):
    class Inherited(models.MatrixFactorization):
        """As it is, under another name."""

    model = Inherited(**vars(factorization.model))
    jaxrec.save(factorization.replace(model=model), tmp_path / "file")
    with pytest.raises(ValueError, match="of your own, Inherited"):
        jaxrec.load(tmp_path / "file")
    assert jaxrec.load(tmp_path / "file", model=model).model is model
    for other, message in (
        (factorization.model, "a class of your own, Inherited, got MatrixFactorization.*Give that one"),
        (dataclasses.replace(model, bias=False), "The parameters are not those of .*Inherited"),
        (dataclasses.replace(model, dim=3), "The parameters are not those of .*Inherited"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxrec.load(tmp_path / "file", model=other)


def test_what_no_file_could_give_back_is_refused_before_anything_is_written(parts, factorization, tmp_path):
    adapted = jaxrec.transfer.adapt(factorization, parts.train, freeze="*")
    for value, message in (
        (adapted, "Adapted. Pass its .recommender"),
        (parts.train, "Dataset"),
        (factorization.params, "dict"),
        (factorization.model, "MatrixFactorization"),
    ):
        with refuses(TypeError, f"Expected a Recommender or Encoder or TfidfSVD for value, got {message}"):
            jaxrec.save(value, tmp_path / "file")
        with refuses(TypeError, f"Expected a Recommender for recommender, got {message}"):
            export.write_artefact(value, tmp_path / "artefact")

    class Mine(data.Schema):
        """Which ``load`` cannot be given."""

    schema = Mine(**vars(factorization.encoder.schema))
    with pytest.raises(TypeError, match="Cannot store schema of type Mine"):
        jaxrec.save(dataclasses.replace(factorization.encoder, schema=schema), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_nothing_is_unpickled(saved, tmp_path):
    with zipfile.ZipFile(saved) as archive:
        assert all(name == "manifest.json" or name.endswith(".npy") for name in archive.namelist())

    def evil(_):
        file = io.BytesIO()
        np.save(file, np.array([print], dtype=object), allow_pickle=True)
        return file.getvalue()

    with pytest.raises(ValueError, match="cannot be read.*The file is damaged"):
        jaxrec.load(rewritten(saved, tmp_path / "evil", arrays=evil))


def test_an_interrupted_save_leaves_the_older_file(saved, factorization, monkeypatch):
    before = saved.read_bytes()

    def fails(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(_files.np.lib.format, "write_array", fails)
    with pytest.raises(OSError, match="disk full"):
        jaxrec.save(factorization, saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.999])
def test_truncated_files_are_refused(saved, tmp_path, share):
    content = saved.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="is not a file that jaxrec.save wrote, or it is truncated"):
        jaxrec.load(tmp_path / "cut")


def test_other_files_versions_and_damage_are_refused(saved, tmp_path):
    def changed(**fields):
        return rewritten(saved, tmp_path / "changed", manifest=lambda old: {**old, **fields})

    with pytest.raises(ValueError, match="is 'something', expected 'jaxrec'"):
        jaxrec.load(changed(format="something"))
    with pytest.raises(ValueError, match="has version 99 of the file format and this jaxrec reads 2"):
        jaxrec.load(changed(version=99))
    with pytest.raises(ValueError, match="names 'Popen', which this version of jaxrec does not know"):
        jaxrec.load(changed(tree={"class": "Popen", "fields": {}}))
    with pytest.raises(ValueError, match="holds a Schema, expected a recommender, an encoder or"):
        jaxrec.load(changed(tree={"class": "Schema", "fields": {}}))

    def flipped(content):
        return content[:-1] + bytes([content[-1] ^ 1])

    with pytest.raises(ValueError, match="does not agree with the manifest's.*damaged"):
        jaxrec.load(rewritten(saved, tmp_path / "flipped", arrays=flipped))
    with pytest.raises(FileNotFoundError, match="There is no file"):
        jaxrec.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="needs no model from you.*Leave model= out"):
        jaxrec.load(saved, model=models.Linear(context=1))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="is not a file that jaxrec.save wrote"):
        jaxrec.load(tmp_path / "text")


def test_packing_refuses_what_it_does_not_know():
    with refuses(TypeError, "Cannot store x of type set without pickle"):
        _pack.pack({1, 2}, {}, name="x")


# Artefacts

SCRIPT = """
import json, sys
for line in sys.stdin:
    folder, users, items, values = json.loads(line)
    sys.path.insert(0, folder)
    import serve
    artefact = serve.load(folder)
    lists = artefact.recommend(users, k=6)
    values = values if artefact.manifest["folds"] == "values" else None
    touched = artefact.recommend([987654321], k=6, touched=[items], values=values)
    scores = artefact.score(users, [row[0][0] for row in lists])
    assert not [name for name in sys.modules if name.split(".")[0] in ("jaxrec", "pandas", "flax", "optax")]
    print(json.dumps({"lists": lists, "touched": touched, "scores": scores.tolist()}), flush=True)
"""


@pytest.fixture(scope="session")
def served():
    """What an artefact says in a process without jaxrec, one for all of them, since starting takes seconds."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-I", "-c", SCRIPT], **pipes) as process:

        def ask(folder, users, items, values):
            process.stdin.write(json.dumps([str(folder), users, items, values]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask


def trained(name, train):
    if name in ("als", "weighted als"):
        return jaxrec.train.fit_als(train, dim=4, epochs=2)
    if name in ("clicks", "ranked"):
        loss = "sigmoid_cross_entropy" if name == "clicks" else "bpr"
        return jaxrec.fit(model_of("factorization", train), train, loss=loss, epochs=2, batch_size=128)
    if name == "rated mixture":
        parts = [jaxrec.fit(model_of(each, train), train, epochs=1) for each in ("factorization", "neumf")]
        return jaxrec.coldstart.mix(parts, [[0.5, 1.0, 1.5], [1.0, 0.5, 0.2]])
    if name == "mixture":
        few = jaxrec.fit(models.TwoTower.for_data(train, dim=4, hidden=(8,), history=3), train, epochs=1)
        parts = [jaxrec.train.fit_als(train, dim=4, epochs=2), jaxrec.train.fit_content_knn(train), few]
        weight = 0.1 + np.random.default_rng(0).random((3, 3, 3))
        return jaxrec.coldstart.mix(parts, weight, few=4)
    return jaxrec.fit(model_of(name, train), train, epochs=2, batch_size=128)


def model_of(name, train):
    return {
        "factorization": models.MatrixFactorization.for_data(train, dim=4),
        "towers": models.TwoTower.for_data(train, dim=4, hidden=(8,), code_dim=2),
        "history": models.TwoTower.for_data(train, dim=4, hidden=(8,), code_dim=2, history=4),
        "linear": models.Linear.for_data(train),
        "sequence": models.SequenceTransformer.for_data(train, dim=4, layers=1, history=4, code_dim=2),
        "autoencoder": models.VariationalAutoencoder.for_data(train, dim=8, latent=4, history=4),
        "machine": models.FactorizationMachine.for_data(train, dim=4),
        "neumf": models.NeuMF.for_data(
            train, dim=4, mlp_dim=4, hidden=(8,), link="sigmoid" if train.target is None else "identity"
        ),
    }[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(
            ["factorization", "towers", "history", "linear", "neumf", "sequence"], ["implicit", "rated"]
        ),
        ("als", "implicit"),
        ("autoencoder", "implicit"),
        ("mixture", "implicit"),
        ("machine", "rated"),
        ("ranked", "rated"),
        ("rated mixture", "rated"),
    ],
)
def test_an_artefact_recommends_as_in_process_without_jaxrec(name, kind, parts, rated_parts, served, tmp_path):
    train = (parts if kind == "implicit" else rated_parts).train
    recommender = trained(name, train)
    jaxrec.save(recommender, tmp_path / "file")
    assert jaxrec.load(tmp_path / "file").model == recommender.model
    items = recommender.encoder.items.ids.tolist()
    row = {"user": [2] * 3, "item": items[:3], "time": [0, 1, 2]} | (
        {"rating": [5.0, 1.0, 3.0]} if kind == "rated" else {}
    )
    recommender = jaxrec.coldstart.add(recommender, interactions=pd.DataFrame(row))
    export.write_artefact(recommender, tmp_path / "artefact", k=10)
    assert {path.name for path in (tmp_path / "artefact").iterdir()} == {
        "arrays.npz", "manifest.json", "recommend.jaxexport", "score.jaxexport", "serve.py",
    }  # fmt: skip
    users = [2, 1, *recommender.encoder.users.ids[:20].tolist()]
    users = list(dict.fromkeys(users))
    values = [[4.0, 2.0]] if kind == "rated" else None
    found = served(tmp_path / "artefact", users, items[5:7], values)
    for listed, (_, rows) in zip(
        found["lists"], jaxrec.recommend(recommender, users, k=6).groupby("user", sort=False), strict=True
    ):
        assert [item for item, _ in listed] == rows["item"].tolist()
        np.testing.assert_allclose([score for _, score in listed], rows["score"], rtol=1e-4, atol=1e-5)
    touched = pd.DataFrame({"user": 987654321, "item": items[5:7], "time": [0, 1], "rating": [4.0, 2.0]})
    expected = jaxrec.recommend(recommender, [987654321], k=6, interactions=touched)
    assert [item for item, _ in found["touched"][0]] == expected["item"].tolist()
    pairs = pd.DataFrame({"user": users, "item": [listed[0][0] for listed in found["lists"]]})
    np.testing.assert_allclose(found["scores"], jaxrec.predict(recommender, pairs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", ["minmax", "quantile"])
def test_an_artefact_turns_probabilities_of_scaled_targets_back(scale, rated_world, tmp_path):
    schema = dataclasses.replace(rated_world.target.schema, target_scale=scale, user_features=(), item_features=())
    train = data.encode(data.Parts(rated_world.target.interactions, None, None), schema).train
    recommender = trained("clicks", train)
    export.write_artefact(recommender, tmp_path / "artefact")
    pairs = rated_world.target.interactions.head(20)
    served = export.load_artefact(tmp_path / "artefact").score(pairs["user"], pairs["item"])
    np.testing.assert_allclose(served, jaxrec.predict(recommender, pairs), rtol=1e-4)
    assert served.min() >= 1 and served.max() > 1.5


def test_an_artefact_takes_any_batch_and_lowers_everywhere(factorization, tmp_path, monkeypatch):
    monkeypatch.setattr(_vectors, "_ROWS", 128)
    with untyped():  # numbers of NumPy's
        export.write_artefact(factorization, tmp_path / "artefact", k=np.int64(5))
    artefact = export.load_artefact(tmp_path / "artefact")
    assert artefact.manifest["pairs_at_once"] == artefact.manifest["users_at_once"] == 128  # as in process
    assert artefact._functions["recommend"].platforms == ("cpu", "cuda", "tpu")
    users = factorization.encoder.users.ids.tolist()
    one, many = artefact.recommend(users[:1], k=5), artefact.recommend(users, k=5)
    assert [item for item, _ in one[0]] == [item for item, _ in many[0]] and len(many) == 200
    assert not {item for item, _ in one[0]} & {item for item, _ in artefact.recommend(users[:1], exclude=[
        item for item, _ in one[0]], k=5)[0]}  # fmt: skip
    assert len(artefact.recommend([users[0]], k=2)[0]) == 2
    assert artefact.recommend([5], k=5) == artefact.recommend([-(2**45)], k=5)  # two unknown users
    seen = artefact.recommend(users[:1], k=5, exclude_seen=False)
    assert seen != one


def test_a_plain_regression_can_be_served(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=50), "b": rng.gamma(2.0, size=50)})
    frame["y"] = 3 * frame["a"] - np.log1p(frame["b"]) + 7
    schema = data.Schema(
        user=None, item=None, target="y", target_scale="zscore",
        context=(data.Numeric("a"), data.Numeric("b", scale="log1p")),
    )  # fmt: skip
    train = data.Encoder.fit(frame, schema).encode(frame)
    recommender = jaxrec.fit(models.Linear.for_data(train), train, epochs=400, batch_size=None)
    export.write_artefact(recommender, tmp_path / "artefact")
    artefact = export.load_artefact(tmp_path / "artefact")
    served = artefact.score(context=frame[["a", "b"]].to_numpy())
    np.testing.assert_allclose(served, jaxrec.predict(recommender, frame), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(served, frame["y"], atol=0.2)
    missing = frame.assign(b=np.nan)
    blank = artefact.score(context=missing[["a", "b"]].to_numpy())
    np.testing.assert_allclose(blank, jaxrec.predict(recommender, missing), rtol=1e-4, atol=1e-4)
    assert artefact.score(context=[0.5, 1.0]).shape == (1,) and artefact.score(context=[]).shape == (0,)
    for context, message in (
        (np.ones((3, 4)), "context of shape .pairs, 2., got .3, 4."),
        (np.ones(4), "context of shape .pairs, 2., got .4."),
        ([[np.inf, 1.0]], "1 numbers of context are infinite"),
        ([[0.0, -3.0]], "above -1 for the log1p scale of 'b', got -3"),
    ):
        with pytest.raises(ValueError, match=message):
            artefact.score(context=context)
    with pytest.raises(ValueError, match="This artefact only scores: its model has no items to recommend"):
        artefact.recommend([1])
    for options, message in (
        ({"users": [1]}, "knows no users. Leave users= out"),
        ({"items": [1]}, "knows no items. Leave items= out"),
        ({"touched": [[]]}, "do not depend on touched=. Leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            artefact.score(context=[0.5, 1.0], **options)


def test_items_without_users_are_scored_with_their_context_or_without(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"film": list("abcd") * 5, "price": rng.normal(size=20), "stars": rng.random(20)})
    items = pd.DataFrame({"film": list("abcd"), "year": [1.0, 2.0, 3.0, 5.0]})
    for context in ((), (data.Numeric("price"),)):
        schema = data.Schema(
            user=None, item="film", target="stars", item_features=(data.Numeric("year"),), context=context
        )
        train = data.encode(data.Parts(frame, None, None), schema, items=items).train
        recommender = jaxrec.fit(models.Linear.for_data(train), train, epochs=2)
        export.write_artefact(recommender, tmp_path / "artefact")
        served = export.load_artefact(tmp_path / "artefact")
        given = {"context": frame[["price"]].to_numpy()} if context else {}
        expected = jaxrec.predict(recommender, frame)
        np.testing.assert_allclose(served.score(items=frame["film"], **given), expected, rtol=1e-4)
        np.testing.assert_array_equal(
            served.score([None] * 20, frame["film"], **given), served.score(items=frame["film"], **given)
        )
    with pytest.raises(ValueError, match="only scores: its model reads columns of the interaction itself"):
        served.recommend([None])


def test_artefacts_of_another_version_or_damaged_are_refused(factorization, tmp_path):
    folder = tmp_path / "artefact"
    export.write_artefact(factorization, folder, k=5)
    with pytest.raises(ValueError, match="k in 1 .. 5, the length the artefact was made for, got 6"):
        export.load_artefact(folder).recommend([1], k=6)
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, message in (
        ({"version": 99}, "has version 99 and this reader reads 2 to 4"),
        ({"format": "other"}, "is 'other', expected 'jaxrec artefact'"),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match=message):
            export.load_artefact(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    content = (folder / "arrays.npz").read_bytes()
    (folder / "arrays.npz").write_bytes(content[:-5])
    with pytest.raises(ValueError, match="is damaged: its checksum does not agree"):
        export.load_artefact(folder)
    with pytest.raises(FileNotFoundError, match="No artefact in"):
        export.load_artefact(tmp_path / "nowhere")


def test_writing_replaces_an_artefact_and_nothing_else(factorization, tmp_path, monkeypatch):
    folder = tmp_path / "artefact"
    export.write_artefact(factorization, folder, k=5)
    export.write_artefact(factorization, folder, k=7)
    assert export.load_artefact(folder).manifest["k"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]
    (tmp_path / "precious").mkdir()
    with pytest.raises(FileExistsError, match="holds no artefact"):
        export.write_artefact(factorization, tmp_path / "precious")
    frame = pd.DataFrame({"user": [("a", 1)], "item": [1]})
    tuples = jaxrec.coldstart.popularity(data.encode(data.Parts(frame, None, None), data.Schema()).train)
    monkeypatch.setattr(_artefact, "exported", None)  # which takes long
    with pytest.raises(TypeError, match="holds integer and string ids"):
        export.write_artefact(tuples, tmp_path / "tuples")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artefact", "precious"]


def test_a_dataset_on_disk_is_not_taken_for_an_artefact(factorization, world, tmp_path):
    data.encode_to_disk(lambda: [world.target.interactions], data.Schema(), tmp_path / "ratings")
    with pytest.raises(FileExistsError, match="holds no artefact"):
        export.write_artefact(factorization, tmp_path / "ratings")
    assert len(data.open_dataset(tmp_path / "ratings"))


def test_an_older_artefact_stays_where_the_new_one_cannot_take_its_place(factorization, tmp_path, monkeypatch):
    folder = tmp_path / "artefact"
    export.write_artefact(factorization, folder, k=5)
    rename = pathlib.Path.rename

    def fails(path, target):
        if path.name.startswith(".artefact.") and pathlib.Path(target) == folder:
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails)
    with pytest.raises(OSError, match="disk full"):
        export.write_artefact(factorization, folder, k=7)
    assert export.load_artefact(folder).manifest["k"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_serving_compiles_few_shapes_and_works_in_blocks(artefact, factorization, monkeypatch):
    served, users = export.load_artefact(artefact), factorization.encoder.users.ids.tolist()
    whole = served.recommend(users, k=3)
    shapes: list[tuple[int, int]] = []
    call = served._call

    def counted(name, inputs):
        found = call(name, inputs)
        if name == "recommend":
            shapes.append((len(found["item"]), inputs["exclude"].shape[1]))
        return found

    monkeypatch.setattr(served, "_call", counted)
    served.manifest["users_at_once"] = 64
    assert [[item for item, _ in row] for row in served.recommend(users, k=3)] == [
        [item for item, _ in row] for row in whole
    ]
    assert [rows for rows, _ in shapes] == [64] * 3 + [8]
    assert all(rows & (rows - 1) == 0 and width & (width - 1) == 0 for rows, width in shapes)
    items = factorization.encoder.items.ids.tolist()
    served.manifest["pairs_at_once"] = 16
    pairs = pd.DataFrame({"user": users[:40], "item": (items * 2)[:40]})
    np.testing.assert_allclose(
        served.score(users[:40], (items * 2)[:40]), jaxrec.predict(factorization, pairs), rtol=1e-4, atol=1e-4
    )
    assert served.score([], []).shape == (0,)


def test_a_saved_file_may_be_read_by_whoever_may_read_new_files(saved, tmp_path):
    (tmp_path / "plain").touch()
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_artefact_is_open_to_whom_the_umask_lets_in(factorization, tmp_path):
    before = os.umask(0o027)
    try:
        export.write_artefact(factorization, tmp_path / "artefact", k=5)
        (tmp_path / "plain").mkdir()
    finally:
        os.umask(before)
    assert (tmp_path / "artefact").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.fixture(scope="module")
def artefact(factorization, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefact") / "factorization"
    export.write_artefact(factorization, folder, k=5)
    return folder


@pytest.mark.parametrize(
    ("content", "message"), [('{"format": "jax', "no JSON"), ("[]", "expected 'jaxrec artefact'"), (None, "is missing")]
)
def test_artefacts_with_a_damaged_manifest_or_a_lost_file_are_refused(artefact, tmp_path, content, message):
    shutil.copytree(artefact, tmp_path / "copy")
    if content is None:
        (tmp_path / "copy" / "arrays.npz").unlink()
    else:
        (tmp_path / "copy" / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        export.load_artefact(tmp_path / "copy")


def test_an_artefact_refuses_ids_that_could_never_match(artefact, factorization):
    served = export.load_artefact(artefact)
    user, item = factorization.encoder.users.ids.tolist()[0], factorization.encoder.items.ids.tolist()[0]
    assert served.recommend([]) == [] and len(served.recommend([user], k=2)[0]) == 2
    for call in (
        lambda: served.recommend("ann"),
        lambda: served.recommend([str(user)]),
        lambda: served.recommend(user),
        lambda: served.score([str(user)], [item]),
        lambda: served.score([user], [7]),
        lambda: served.recommend([user], touched=[[7]]),
        lambda: served.recommend([user], exclude=[7]),
    ):
        with pytest.raises(TypeError, match="Expected"):
            call()
    for told in (pd.DataFrame({"item": [item]}), {item: 1.0}):  # whose columns and keys would be read as ids
        with pytest.raises(TypeError, match="for each of touched, got a (DataFrame|dict). Give its column of ids"):
            served.recommend([user], touched=[told])
    for options, message in (
        ({"touched": [[], []]}, "a list of touched for each of 1 users, got 2"),
        ({"exclude": [item, "nothing"]}, "1 excluded items are unknown, such as 'nothing'"),
        ({"touched": [[item]], "values": [[1.0]]}, "values= changes nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            served.recommend([user], **options)
    with pytest.raises(ValueError, match=r"equally many users, items and rows of context, got \[1, 2\]"):
        served.score([user], [item, item])
    several = factorization.encoder.items.ids[:2]
    assert served.recommend([-1], touched=np.array([several])) == served.recommend([-1], touched=[several.tolist()])


def test_artefacts_without_flatbuffers_say_what_to_install(artefact, factorization, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("jax.") and name.endswith("export.serialization")]:
        monkeypatch.delitem(sys.modules, name)  # which is imported when it is needed
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.setattr(_artefact, "exported", None)  # which takes long
    for call, extra in (
        (lambda: export.write_artefact(factorization, tmp_path / "artefact", k=5), r"jaxrec\[export\]"),
        (lambda: export.load_artefact(artefact), "flatbuffers"),
    ):
        with pytest.raises(ImportError, match=f"install '{extra}'"):
            call()
    assert not list(tmp_path.iterdir())


def test_an_artefact_refuses_scores_that_are_nan(parts, tmp_path):
    sound = trained("history", parts.train)  # where users are folded in, NaN is found before
    table = sound.params["item"]["embedding"].at[2].set(-np.nan)  # it would rank last
    broken = dataclasses.replace(sound, params=_tree.replace(sound.params, {"item/embedding": table}))
    export.write_artefact(broken, tmp_path / "artefact", k=3)
    served, users = export.load_artefact(tmp_path / "artefact"), sound.encoder.users.ids[:3].tolist()
    for recommend in (functools.partial(jaxrec.recommend, broken), served.recommend):
        with pytest.raises(ValueError, match="A score is NaN"):
            recommend(users, k=3)


def test_an_artefact_refuses_targets_that_the_process_would(world, tmp_path):
    frame = world.target.interactions.iloc[:500].assign(hours=lambda rows: np.arange(len(rows)) % 9)
    train = data.encode(data.Parts(frame, None, None), data.Schema(target="hours", target_scale="log1p")).train
    export.write_artefact(trained("ranked", train), tmp_path / "artefact", k=3)
    served, item = export.load_artefact(tmp_path / "artefact"), frame["item"].iloc[0]
    assert len(served.recommend([-1], touched=np.array([[item]]), values=np.array([[2.0]]), k=3)[0]) == 3
    for values, message in (
        ([[np.nan]], "finite values, got nan"),
        ([[-3.0]], "log1p scale of 'hours', got -3"),
        ([[2.0, 2.0]], "one value for each touched item, got 2 for 1"),
        (None, "trained on targets: give values= beside touched="),
    ):
        with pytest.raises(ValueError, match=message):
            served.recommend([-1], touched=[[item]], values=values)


def test_folding_in_does_not_depend_on_what_was_asked_before(world, tmp_path):
    frame = world.target.interactions
    train = data.encode(data.Parts(frame, None, None), world.target.schema, users=world.target.users,
                        items=world.target.items).train  # fmt: skip
    model = models.TwoTower.for_data(train, dim=4, hidden=(4,), history=4)
    fitted = jaxrec.fit(model, train, epochs=1)
    premiere = world.target.items.iloc[:1].assign(item="premiere")
    fans = pd.DataFrame({"user": frame["user"].unique()[:2], "item": "premiere", "time": 10**6})
    later = frame.iloc[:200].assign(time=10**6 + 1)
    pair = pd.DataFrame({"user": frame["user"].unique()[2:3], "item": "premiere"})
    asked = jaxrec.coldstart.add(fitted, items=premiere, interactions=fans)
    jaxrec.recommend(asked, k=3)
    predicted = jaxrec.predict(jaxrec.coldstart.add(asked, interactions=later), pair)
    fresh = jaxrec.coldstart.add(jaxrec.coldstart.add(fitted, items=premiere, interactions=fans), interactions=later)
    jaxrec.save(fresh, tmp_path / "file")
    np.testing.assert_array_equal(jaxrec.predict(jaxrec.load(tmp_path / "file"), pair), predicted)
    np.testing.assert_array_equal(jaxrec.predict(fresh, pair), predicted)


def test_a_model_of_ones_own_may_be_a_part_of_another(parts, factorization, tmp_path):
    def of_ones_own(number):
        model = models.from_linen(LinenScorer(), batch_of(), parts.train.features)
        return factorization.replace(model=model, params=model.init(jax.random.key(number)))

    one = of_ones_own(1)
    mixed = jaxrec.coldstart.mix([factorization, one], [[1.0] * 3, [2.0] * 3])
    jaxrec.save(mixed, tmp_path / "file")
    with pytest.raises(ValueError, match="of your own, LinenModel"):
        jaxrec.load(tmp_path / "file")
    assert jaxrec.load(tmp_path / "file", model=one.model).model.parts == (factorization.model, one.model)

    class Inherited(models.MatrixFactorization):
        """Another one."""

    other = factorization.replace(model=Inherited(**vars(factorization.model)))
    with pytest.raises(TypeError, match="that differ, LinenModel, Inherited"):
        jaxrec.save(jaxrec.coldstart.mix([one, other], [[1.0] * 3, [2.0] * 3]), tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("name", ["clicks", "weighted als", "context"])
def test_an_artefact_folds_in_as_in_process(name, world, tmp_path):
    """What differs by the loss, by weights and by a context that is not read."""
    frame = world.target.interactions.iloc[:1500]
    number = np.arange(len(frame)) % 7
    columns = {"clicks": ("click", (number > 4) * 1.0), "weighted als": ("weight", 1.0 + 5 * number)}
    more = {each: {column: values} for each, (column, values) in (columns | {"context": ("price", number)}).items()}
    frame = frame.assign(**more[name])
    schema = {
        "clicks": data.Schema(target="click"),
        "weighted als": data.Schema(weight="weight"),
        "context": data.Schema(context=(data.Numeric("price"),)),
    }[name]
    train = data.encode(data.Parts(frame, None, None), schema).train
    recommender = trained(name if name != "context" else "ranked", train)
    rows = frame.iloc[[3, 50, 700]].assign(user=-7)
    recommender = jaxrec.coldstart.add(recommender, interactions=rows)
    export.write_artefact(recommender, tmp_path / "artefact", k=8)
    served = export.load_artefact(tmp_path / "artefact")
    known = frame["user"].iloc[0]
    listed = jaxrec.recommend(recommender, [-7, known], k=8)
    for (_, expected), found in zip(
        listed.groupby("user", sort=False), served.recommend([-7, known], k=8), strict=True
    ):
        assert [item for item, _ in found] == expected["item"].tolist()
        np.testing.assert_allclose([score for _, score in found], expected["score"], rtol=1e-4, atol=1e-5)
    pairs = listed[["user", "item"]].assign(**{column: 0.0 for column in more[name]})
    np.testing.assert_allclose(
        served.score(pairs["user"], pairs["item"]), jaxrec.predict(recommender, pairs), rtol=1e-4, atol=1e-5
    )
    if name == "clicks":
        told = served.recommend([-9], touched=[rows["item"].tolist()], values=[rows["click"].tolist()], k=8)[0]
    else:
        told = served.recommend([-9], touched=[rows["item"].tolist()], k=8)[0]
    grown = rows.assign(user=-9, **({"weight": 1.0} if name == "weighted als" else {}))
    expected = jaxrec.recommend(recommender, [-9], interactions=grown, k=8)
    assert [item for item, _ in told] == expected["item"].tolist()
    with pytest.raises(ValueError, match="reads no context"):
        served.score([-7], [listed["item"].iloc[0]], context=[[1.0]])


@pytest.mark.parametrize("name", ["neumf", "neighbours", "deep", "mixture"])
def test_an_artefact_recommends_where_context_is_not_read(name, world, tmp_path):
    """By models that do not factorise, and so might read anything if they did not say that they read none."""
    frame = world.target.interactions.iloc[:1500]
    frame = frame.assign(price=np.arange(len(frame)) % 7)
    train = data.encode(data.Parts(frame, None, None), data.Schema(context=(data.Numeric("price"),))).train
    if name in ("neighbours", "mixture"):
        with untyped():  # a number of NumPy's
            recommender = jaxrec.train.fit_item_knn(train, history=np.int64(20) if name == "neighbours" else None)
    elif name == "deep":
        model = models.FactorizationMachine.for_data(train, dim=4, hidden=(4,))
        recommender = jaxrec.fit(dataclasses.replace(model, context=0), train, loss="bpr", epochs=1)
    else:
        recommender = trained("neumf", train)
    if name == "mixture":
        recommender = jaxrec.coldstart.mix([recommender, trained("als", train)], [[1.0] * 3, [0.5] * 3])
    with untyped():
        export.write_artefact(recommender, tmp_path / "artefact", k=5)
    served, user = export.load_artefact(tmp_path / "artefact"), frame["user"].iloc[0]
    expected = jaxrec.recommend(recommender, [user], k=5)
    np.testing.assert_allclose([score for _, score in served.recommend([user], k=5)[0]], expected["score"], rtol=1e-4)
    pairs = expected[["user", "item"]].assign(price=0.0)
    scores = served.score(pairs["user"], pairs["item"])
    np.testing.assert_allclose(scores, jaxrec.predict(recommender, pairs), rtol=1e-4, atol=1e-5)


def test_an_artefact_refuses_targets_beyond_the_ends_of_quantiles(world, tmp_path):
    frame = world.target.interactions.iloc[:500].assign(hours=lambda rows: 1.1 + np.arange(len(rows)) % 9)
    train = data.encode(data.Parts(frame, None, None), data.Schema(target="hours", target_scale="quantile")).train
    recommender = trained("ranked", train)
    export.write_artefact(recommender, tmp_path / "artefact", k=3)
    served, item = export.load_artefact(tmp_path / "artefact"), frame["item"].iloc[0]
    for value in (1.1, 9.1):  # which float32 rounds away from the middle and towards it
        assert len(served.recommend([-1], touched=[[item]], values=[[value]])[0]) == 3
    for value in (1.0, 500.0):
        with pytest.raises(ValueError, match=rf"1 values are outside the range .1.1, 9.1. that 'hours'.*{value:g}"):
            served.recommend([-1], touched=[[item]], values=[[value]])
        with pytest.raises(ValueError, match="outside the training part's range"):
            told = pd.DataFrame({"user": -1, "item": [item], "hours": value})
            jaxrec.recommend(recommender, [-1], interactions=told)


@pytest.mark.parametrize("scale", ["zscore", "minmax"])
def test_an_artefact_turns_targets_far_from_0_back(scale, world, tmp_path):
    """Of unix times float32 keeps two minutes."""
    frame = world.target.interactions.iloc[:800]
    frame = frame.assign(when=1.7e9 + 20 * np.random.default_rng(0).normal(size=len(frame)))
    train = data.encode(data.Parts(frame, None, None), data.Schema(target="when", target_scale=scale)).train
    recommender = trained("factorization", train)
    export.write_artefact(recommender, tmp_path / "artefact")
    served, new = export.load_artefact(tmp_path / "artefact"), frame.iloc[:8].assign(user=-1)
    expected = jaxrec.predict(recommender, frame)
    assert expected.std() > 1
    np.testing.assert_allclose(served.score(frame["user"], frame["item"]), expected, rtol=0, atol=0.01)
    with refuses(ValueError, "Give users= beside items="):
        served.score(items=frame["item"])
    told = {"touched": [new["item"].tolist()] * 8, "values": [new["when"].tolist()] * 8}
    expected = jaxrec.predict(jaxrec.coldstart.add(recommender, interactions=new), new)
    np.testing.assert_allclose(served.score(new["user"], new["item"], **told), expected, rtol=0, atol=0.01)


@pytest.fixture(scope="module")
def timed():
    """A regression on unix times that differ by minutes, scaled in every way, and its frame."""
    rng = np.random.default_rng(0)
    times = 1.7e9 + 1000 * rng.normal(size=(200, 6))
    frame = pd.DataFrame({"z": times[:, 0], "m": times[:, 1], "q": times[:, 2], "v": list(times[:, 3:5]), "p": 2.0})
    frame["p"] += rng.random(200)
    frame["y"] = (times @ [1.0, -1.0, 2.0, 1.0, 1.0, 0.0] - 4 * 1.7e9) / 1000
    schema = data.Schema(
        user=None, item=None, target="y",
        context=(
            data.Numeric("z"), data.Numeric("m", scale="minmax"), data.Numeric("q", scale="quantile"),
            data.Vector("v", scale="rms"), data.Numeric("p", scale="log1p"),
        ),
    )  # fmt: skip
    train = data.Encoder.fit(frame, schema).encode(frame)
    return jaxrec.fit(models.Linear.for_data(train), train, epochs=50, batch_size=None), frame


def context_rows(frame):
    return np.column_stack([frame[["z", "m", "q"]], np.stack(frame["v"].tolist()), frame["p"]])


def test_an_artefact_tells_times_apart_that_float32_does_not(timed, tmp_path):
    recommender, frame = timed
    export.write_artefact(recommender, tmp_path / "artefact")
    served = export.load_artefact(tmp_path / "artefact")
    frame = pd.concat([frame, frame.iloc[:3].assign(z=np.nan), frame.iloc[:3].assign(q=np.nan)])
    expected = jaxrec.predict(recommender, frame)
    assert expected.std() > 0.1
    np.testing.assert_allclose(served.score(context=context_rows(frame)), expected, atol=1e-5)


def test_an_artefact_of_the_version_before_is_read(timed, tmp_path, monkeypatch):
    """Its functions take context as it comes, and its manifest says of nothing what to take from it."""
    recommender, frame = timed
    monkeypatch.setattr("jaxrec.export._functions.centred", lambda scale, statistics: (None, statistics))
    export.write_artefact(recommender, tmp_path / "artefact")
    path = tmp_path / "artefact" / "manifest.json"
    manifest = json.loads(path.read_text())
    kept = {name: value for name, value in manifest.items() if name not in ("context_centre", "target_range")}
    path.write_text(json.dumps(kept | {"version": 2}))
    frame = frame.assign(**{name: frame[name].astype(np.float32).astype(float) for name in "zmq"})
    frame["v"] = [each.astype(np.float32).astype(float) for each in frame["v"]]
    scores = export.load_artefact(tmp_path / "artefact").score(context=context_rows(frame))
    difference = np.abs(scores - jaxrec.predict(recommender, frame))
    assert 0 < difference.max() < 1.0  # float32 rounds the mean too
