"""Text and labels as vectors: by a language model of the user's, or by TF-IDF and a decomposition."""

import sys
import types

import numpy as np
import pandas as pd
import pytest
from helpers import refuses

import jaxrec
from jaxrec import data

TITLES = pd.DataFrame(
    {"item": [30, 10, 20, 40], "title": ["Heat", "  ", None, "Alien"], "plot": ["cops", "ships", None, None]},
    index=[7, 3, 5, 1],
)


def letters(texts):
    """As many of each of three letters as a text has, which tells texts apart."""
    assert isinstance(texts, list) and len(texts) <= 2
    return np.array([[text.count(letter) for letter in "aet"] for text in texts], np.float32)


def vectors(frame, column):
    return [None if cell is None else cell.tolist() for cell in frame[column]]


def test_texts_become_vectors_and_missing_ones_none():
    encoded = data.encode_text(TITLES, ["title", "plot"], model=letters, batch_size=2, normalize=False)
    assert encoded["item"].tolist() == TITLES["item"].tolist() and encoded.index.tolist() == [7, 3, 5, 1]
    assert vectors(encoded, "text") == [
        [1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0],
        None,
        [0.0, 1.0, 0.0],
    ]  # blank: plot alone
    assert encoded["text"].iloc[0].dtype == np.float32 and "text" not in TITLES.columns
    unit = data.encode_text(TITLES, "title", model=letters, batch_size=2, into="unit")
    np.testing.assert_allclose(unit["unit"].iloc[0], [3**-0.5] * 3, rtol=1e-6)
    assert unit["unit"].iloc[1] is None and unit["unit"].iloc[2] is None  # blank, and missing


def test_each_text_is_encoded_once_in_an_order_of_its_own():
    calls = []

    def model(texts):
        calls.append(texts)
        return [[len(text), 1.0] for text in texts]

    frame = pd.DataFrame({"title": ["b", "a", "b", "c", None, "a"]})
    encoded = data.encode_text(frame, "title", model=model, batch_size=2, prefix="passage: ")
    assert calls == [["passage: a", "passage: b"], ["passage: c"]]
    turned = data.encode_text(frame[::-1], "title", model=model, batch_size=2, prefix="passage: ")
    assert vectors(turned[::-1], "text") == vectors(encoded, "text")
    joined = []
    pair = pd.DataFrame({"a": ["x"], "b": [" y "]})
    data.encode_text(pair, ["a", "b"], model=lambda texts: (joined.extend(texts), [[1.0]])[1], separator=" | ")
    assert joined == ["x | y"]


def test_a_name_or_path_is_run_by_sentence_transformers(monkeypatch, tmp_path):
    seen = []

    class SentenceTransformer:
        def __init__(self, name):
            seen.append(name)

        def encode(self, texts, *, batch_size, show_progress_bar, convert_to_numpy):
            seen.append((texts, batch_size))
            return np.ones((len(texts), 4), np.float32)

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    encoded = data.encode_text(TITLES, "title", model="some/model", batch_size=8)
    assert seen == ["some/model", (["Alien", "Heat"], 8)] and vectors(encoded, "text")[0] == [0.5] * 4
    data.encode_text(TITLES, "title", model=tmp_path)
    data.encode_text(TITLES, "title", model=SentenceTransformer("loaded"))
    assert seen[2] == str(tmp_path) and seen[4] == "loaded" and seen[5] == (["Alien", "Heat"], 32)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'jaxrec\[text\]'. Or give a function"):
        data.encode_text(TITLES, "title", model="some/model")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"columns": "year"}, ValueError, "frame of texts lacks the column 'year'"),
        ({"into": "plot"}, ValueError, "has a column 'plot' already"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1, got 0"),
        ({"columns": "item"}, TypeError, r"strings in the column 'item', got 30 \(int\)"),
        ({"frame": TITLES.iloc[2:3]}, ValueError, "No row has text in title"),
        ({"frame": TITLES.iloc[:0]}, ValueError, "frame of texts is empty"),
        ({"model": 3}, TypeError, "name or path of a sentence-transformers model, a loaded one, or a function"),
        ({"model": lambda texts: [1.0] * len(texts)}, ValueError, r"one vector per text.*got shapes \[\(2,\)\]"),
        ({"model": lambda texts: [[1.0]]}, ValueError, r"got shapes \[\(1, 1\)\] for 2 texts"),
        ({"model": lambda texts: [[np.nan]] * len(texts)}, ValueError, "vector of 'Alien' is not finite"),
    ],
)
def test_what_cannot_be_encoded_is_refused(change, error, message):
    arguments = {"frame": TITLES, "columns": "title", "model": letters, **change}
    with refuses(error, message):
        data.encode_text(arguments.pop("frame"), arguments.pop("columns"), **arguments)


def tagged(seed=0, items=40, tags=12):
    """Items with some of the tags each; the last has none."""
    rng = np.random.default_rng(seed)
    has = (rng.random((items, tags)) < 0.3) | (np.arange(items)[:, None] % tags == np.arange(tags)[None, :])
    lists = [[f"t{tag}" for tag in np.flatnonzero(row)] for row in has]
    return pd.DataFrame({"item": range(items), "tags": ["|".join(each) for each in (*lists[:-1], [])]})


TAGGED = tagged()
REDUCED = data.TfidfSVD.fit(TAGGED, "tags", separator="|", dim=4)


def stacked(frame, column="tags_vector"):
    return np.stack([np.zeros(4) if cell is None else cell for cell in frame[column]])


def test_labels_are_reduced_as_plain_linear_algebra_does():
    has = np.array([[f"t{tag}" in cell.split("|") for tag in range(12)] for cell in TAGGED["tags"]], float)
    weights = has * (np.log((1 + len(has)) / (1 + has.sum(axis=0))) + 1)
    weights /= np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-9)
    kernel = np.linalg.svd(weights)[2][:4].T
    kernel *= np.sign(kernel[np.abs(kernel).argmax(axis=0), range(4)])
    expected = weights @ kernel
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    found = REDUCED.transform(TAGGED)
    assert found["tags_vector"].iloc[-1] is None and found["tags_vector"].iloc[0].dtype == np.float32
    np.testing.assert_allclose(stacked(found), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(stacked(found)[:-1], axis=1), 1.0, rtol=1e-6)


def test_reducing_is_deterministic_and_reads_training_items_alone():
    assert data.TfidfSVD.fit(TAGGED, "tags", separator="|", dim=4) == REDUCED and REDUCED.dim == 4
    other = data.TfidfSVD.fit(TAGGED.sample(frac=1, random_state=1), "tags", separator="|", dim=4, seed=3)
    np.testing.assert_allclose(other.components, REDUCED.components, atol=1e-6)  # whatever the start and the order
    new = pd.DataFrame({"tags": ["t1|t2", "unheard of", None, "t2|unheard of|t1"]})
    vectors = REDUCED.transform(new, into="v")["v"]
    np.testing.assert_array_equal(vectors[0], vectors[3])
    assert vectors[1] is None and vectors[2] is None and "12 labels to 4 numbers" in repr(REDUCED)
    rare = pd.concat([TAGGED, pd.DataFrame({"tags": ["once|t1"]})])
    left_out, kept = (data.TfidfSVD.fit(rare, "tags", separator="|", dim=4, min_items=n) for n in (2, 1))
    assert REDUCED.transform(new)["tags_vector"][1] is None
    once = pd.DataFrame({"tags": ["once"]})
    assert left_out.transform(once)["tags_vector"][0] is None and kept.transform(once)["tags_vector"][0] is not None
    lists = TAGGED.assign(tags=TAGGED["tags"].str.split("|"))[:-1]
    assert data.TfidfSVD.fit(lists, "tags", dim=2).transform(lists)["tags_vector"].notna().all()


def test_pieces_of_the_product_make_the_whole(monkeypatch):
    from jaxrec.data import _tfidf

    monkeypatch.setattr(_tfidf, "_CHUNK", 20)
    np.testing.assert_allclose(
        data.TfidfSVD.fit(TAGGED, "tags", separator="|", dim=4).components, REDUCED.components, atol=1e-9
    )


def test_a_reduction_is_saved_without_pickle(tmp_path):
    jaxrec.save(REDUCED, tmp_path / "tags")
    assert jaxrec.load(tmp_path / "tags") == REDUCED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim >= 1 and min_items >= 1, got 0 and 2"),
        ({"dim": 13}, "span 12 dimensions and dim=13 were asked for"),
        ({"column": "genre"}, "frame of training items lacks the column 'genre'"),
        ({"separator": None}, "are strings .* and no separator was given"),
    ],
)
def test_labels_that_cannot_be_reduced_are_refused(change, message):
    arguments = {"column": "tags", "separator": "|", "dim": 4, **change}
    with pytest.raises(ValueError, match=message):
        data.TfidfSVD.fit(TAGGED, **arguments)
    with pytest.raises(ValueError, match="has a column 'tags' already"):
        REDUCED.transform(TAGGED, into="tags")


def test_labels_of_too_few_items_are_refused():
    items = pd.DataFrame({"tags": ["a|b", "c", "d"]})
    with pytest.raises(ValueError, match="No label of 'tags' is one of 2 or more items. Lower min_items"):
        data.TfidfSVD.fit(items, "tags", separator="|", dim=1)
