"""Alignment by a table and by content, and matching of frames: what counts as the same where no id is shared."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import refuses

import jaxrec
from jaxrec import data, models, transfer

SCHEMA = data.Schema(item_features=(data.Labels("genres", "|"), data.Vector("plot")))
OURS = pd.DataFrame(
    {
        "item": ["a", "b", "c", "d", "e"],
        "genres": ["Drama", "Drama|War", "Comedy", "War", "Drama|War"],
        "plot": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 1.0]],
    }
)
THEIRS = pd.DataFrame(
    {
        "item": [1, 2, 3, 4],
        "genres": ["Drama|War", "Comedy", "Western", "War"],
        "plot": [[0.0, 2.0], [1.0, 0.9], [0.0, -1.0], [-3.0, 0.0]],
    }
)


def domain(items, touched, schema=SCHEMA, users=("u", "v")):
    pairs = [(user, item) for user in users for item in touched]
    frame = pd.DataFrame(pairs, columns=["user", "item"])
    return data.encode(data.Parts(frame, None, None), schema, items=items).train


@pytest.fixture(scope="module")
def ours():
    return domain(OURS, list("abcd"))  # e is known and not trained


@pytest.fixture(scope="module")
def theirs():
    return domain(THEIRS, [1, 2, 3])


def pairs(alignment, numbering="item"):
    frame = alignment.pairs(numbering)
    return dict(zip(frame["target"], frame["source"], strict=True))


# By a table


def test_a_table_takes_the_place_of_raw_ids(ours, theirs):
    table = pd.DataFrame({"source": ["c", "b", "b", "e", "zz"], "target": [2, 4, 4, 1, 99]})
    alignment = transfer.align(ours.encoder, theirs.encoder, tables={"item": table})
    assert pairs(alignment) == {2: "c", 4: "b"}
    rows = alignment.rows["item"]
    here, there = ours.encoder.items.encode(["c", "b"]), theirs.encoder.items.encode([2, 4])
    np.testing.assert_array_equal(rows.source, ours.features.item_row[here])
    np.testing.assert_array_equal(rows.target, alignment.encoder.features.item_row[there])
    assert (rows.target > 0).all()  # film 4 was cold
    text = str(alignment)
    assert (
        "item: 2 aligned by table, of 4 trained in the source and 4 known in the target (left out of the table: 2 "
        in text
    )
    assert "rows whose id the source has not trained, 1 whose id the target does not know)" in text
    assert "user: 2 aligned by raw id" in text and alignment.pairs("item")["how"].tolist() == ["table", "table"]
    assert alignment.pairs("item")["similarity"].isna().all()


def test_one_of_the_source_may_serve_several_of_the_target(ours, theirs):
    table = pd.DataFrame({"source": ["c", "c"], "target": [2, 4], "similarity": [0.5, 0.25]})
    alignment = transfer.align(ours.encoder, theirs.encoder, tables={"item": table})
    assert pairs(alignment) == {2: "c", 4: "c"} and alignment.pairs("item")["similarity"].tolist() == [0.5, 0.25]


def test_a_table_renames_labels_and_users(ours, theirs):
    tables = {
        "item/genres": pd.DataFrame({"source": ["War"], "target": ["Western"]}),
        "user": pd.DataFrame({"source": ["u"], "target": ["v"]}),
    }
    alignment = transfer.align(ours.encoder, theirs.encoder, tables=tables)
    assert pairs(alignment, "item/genres") == {"Western": "War"} and pairs(alignment, "user") == {"v": "u"}
    assert "item/genres: 1 aligned by table" in str(alignment)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ([("a", 1), ("b", 1)], ValueError, "gives 1 ids of the target to several of the source, such as 1 to 'a', 'b'"),
        ([("x", 1)], ValueError, "No row of the table of 'item' names .* 0 and 1 of 1 rows do.*begins with 'x'"),
        ([], ValueError, "tables\\['item'\\] is empty"),
        ([(1, "a")], TypeError, "Expected ids of type str"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_meant_are_refused(ours, theirs, table, error, message):
    frame = pd.DataFrame(table, columns=["source", "target"])
    with refuses(error, message):
        transfer.align(ours.encoder, theirs.encoder, tables={"item": frame})


def test_what_cannot_be_aligned_is_named(ours, theirs):
    frame = pd.DataFrame({"source": ["a"], "to": [1]})
    with refuses(ValueError, "lacks the column 'target'; it has source, to"):
        transfer.align(ours.encoder, theirs.encoder, tables={"item": frame})
    with refuses(
        ValueError, "Nothing is numbered as 'items' for tables= to align. Expected one of user, item, item/genres"
    ):
        transfer.align(ours.encoder, theirs.encoder, tables={"items": frame})
    with refuses(ValueError, "'item/genres' for content= to align. Expected one of user, item\\."):
        transfer.align(ours.encoder, theirs.encoder, content={"item/genres": 0.5})
    with refuses(ValueError, "Expected a cosine in \\(0, 1\\]"):
        transfer.align(ours.encoder, theirs.encoder, content={"item": 0.0})
    with refuses(ValueError, "No user feature can be compared by content: the source has none and the target none"):
        transfer.align(ours.encoder, theirs.encoder, content={"user": 0.5})
    with refuses(ValueError, "No numbering 'genres'. There are"):
        transfer.align(ours.encoder, theirs.encoder).pairs("genres")
    with refuses(TypeError, "content= by numbering, such as \\{'item': 0.8\\}, got float"):
        transfer.align(ours.encoder, theirs.encoder, content=0.5)
    with refuses(TypeError, "tables= by numbering, such as \\{'item': frame\\}, got DataFrame"):
        transfer.align(ours.encoder, theirs.encoder, tables=frame)
    with refuses(TypeError, "Expected a Encoder for source, got Dataset. Pass its .encoder"):
        transfer.align(ours, theirs)


# By content


def cosine(one, other, among):
    """As the docstring has it, entity by entity."""

    def weight(label):
        having = sum(label in genres.split("|") for genres in among["genres"])
        return np.log((1 + len(among)) / (1 + having)) + 1

    def row(entity):
        labels = {label: weight(label) for label in entity.genres.split("|")}
        length = np.sqrt(sum(value**2 for value in labels.values()))
        vector = np.asarray(entity.plot) / np.linalg.norm(entity.plot)
        return {label: value / length for label, value in labels.items()} | dict(enumerate(vector))

    first, second = row(one), row(other)
    return sum(first[key] * second.get(key, 0.0) for key in first) / 2


def test_the_nearest_by_content_is_that_of_a_slow_loop(ours, theirs):
    alignment = transfer.align(ours.encoder, theirs.encoder, content={"item": 0.01})
    trained = OURS[OURS["item"].isin(list("abcd"))]
    expected = {}
    for other in THEIRS.itertuples():
        best = max(((cosine(one, other, trained), one.item) for one in trained.itertuples()), key=lambda pair: pair[0])
        if best[0] >= 0.01:
            expected[other.item] = best
    found = alignment.pairs("item").set_index("target")
    assert set(found.index) == set(expected) == {1, 2, 4} and set(found["how"]) == {"content"}
    for item, (similarity, source) in expected.items():
        assert found["source"][item] == source
        assert found["similarity"][item] == pytest.approx(similarity, abs=1e-6)
    assert "3 aligned by content" in str(alignment) and "1 with nothing in common)" in str(alignment)


def test_the_threshold_leaves_the_less_similar_unmatched(ours, theirs):
    loose, strict = (transfer.align(ours.encoder, theirs.encoder, content={"item": at}) for at in (0.5, 0.9999))
    assert pairs(loose) == {1: "b", 2: "c", 4: "d"} and pairs(strict) == {1: "b", 4: "d"}
    assert "(by content: mean cosine 1.00, 1 below 0.9999 and 1 with nothing in common)" in str(strict)


def test_ties_go_to_the_lower_raw_id_even_of_one_that_was_added_later():
    schema = data.Schema(item_features=(data.Labels("genres", "|"),))
    items = pd.DataFrame({"item": [10, 20, 30], "genres": ["Drama", "Drama", "War"]})
    source = domain(items, [10, 20, 30], schema).encoder
    added = source.extend(items=pd.DataFrame({"item": [5], "genres": ["Drama"]}))
    added = added.with_rows("item", added.items.encode([5]))
    target = domain(pd.DataFrame({"item": ["x", "y"], "genres": ["Drama", "War"]}), ["x", "y"], schema).encoder
    assert pairs(transfer.align(source, target, content={"item": 0.5})) == {"x": 10, "y": 30}
    assert pairs(transfer.align(added, target, content={"item": 0.5})) == {"x": 5, "y": 30}


def test_content_serves_whom_neither_id_nor_table_matched(ours, theirs):
    table = pd.DataFrame({"source": ["a"], "target": [1]})
    alignment = transfer.align(ours.encoder, theirs.encoder, tables={"item": table}, content={"item": 0.5})
    assert pairs(alignment) == {1: "a", 2: "c", 4: "d"}
    assert alignment.pairs("item")["how"].tolist() == ["table", "content", "content"]
    assert "item: 3 aligned 1 by table, 2 by content, of" in str(alignment)
    same = transfer.align(ours.encoder, ours.encoder, content={"item": 0.5})  # e is not trained, so its id is no match
    assert pairs(same) == {item: item for item in "abcd"} | {"e": "b"}


def test_content_may_find_nobody_to_match(ours):
    nobody = transfer.align(ours.encoder.without_rows("item"), ours.encoder, content={"item": 0.5})
    assert not len(nobody.pairs("item")) and "0 below 0.5 and 5 with nothing in common" in str(nobody)
    trained = ours.encoder.with_rows("item", ours.encoder.items.encode(OURS["item"]))
    everybody = transfer.align(trained, trained, content={"item": 0.5})
    assert "item: 5 aligned by raw id, of 5" in str(everybody) and "0 with nothing in common" in str(everybody)


def test_labels_that_a_table_renames_count_as_the_same(ours, theirs):
    labels = pd.DataFrame({"source": ["Comedy", "Drama", "War"], "target": ["Western", "Drama", "War"]})
    alignment = transfer.align(
        ours.encoder, theirs.encoder, tables={"item/genres": labels}, content={"item": 0.01}, require=True
    )
    found = alignment.pairs("item").set_index("target")["similarity"]
    before = transfer.align(ours.encoder, theirs.encoder, content={"item": 0.01}).pairs("item").set_index("target")
    assert found[2] == pytest.approx(before["similarity"][2] - 0.5, abs=1e-3)  # its comedy is now another label
    assert 3 not in before.index and found[1] == pytest.approx(1.0)


def test_vectors_are_compared_in_the_source_scale():
    plain = data.Schema(item_features=(data.Vector("plot"),))
    scaled = data.Schema(item_features=(data.Vector("plot", scale="zscore"),))
    ours = domain(OURS.assign(item=range(5)), [0, 1, 2, 3], plain).encoder
    theirs = domain(THEIRS, [1, 2, 3, 4], scaled).encoder
    alignment = transfer.align(ours, theirs, content={"item": 0.9})
    assert pairs(transfer.align(ours, theirs))[1] == 1  # by raw id, which here means nothing
    nothing = {"item": pd.DataFrame({"source": [3], "target": [4]})}
    alignment = transfer.align(ours, theirs, tables=nothing, content={"item": 0.9})
    found = alignment.pairs("item").set_index("target")
    assert found["source"].to_dict() == {4: 3, 1: 1, 2: 2} and found["similarity"][1] == pytest.approx(1.0)
    unit = data.Schema(item_features=(data.Vector("plot", scale="unit"),))
    with refuses(ValueError, "No item feature can be compared by content: the source has plot and the target plot"):
        transfer.align(ours, domain(THEIRS, [1, 2, 3], unit).encoder, content={"item": 0.9})


# Frames


def test_frames_are_matched_by_their_words():
    titles = pd.DataFrame({"item": [1, 2, 3], "title": ["Toy Story (1995)", "Heat, The (1995)", None]})
    others = pd.DataFrame({"item": ["x", "y", "z", "w"], "title": ["TOY STORY", "heat the (1995)", "Alien", ""]})
    found = transfer.match(titles, others, "item", text="title", at_least=0.5)
    assert found["target"].tolist() == ["x", "y"] and found["source"].tolist() == [1, 2]
    assert found["similarity"][1] == pytest.approx(1.0, abs=1e-6) and found["similarity"][0] < 1
    assert len(transfer.match(titles, others, "item", text="title", at_least=0.95)) == 1
    both = transfer.match(
        titles.assign(genres=["A", "B", "B"]), others.assign(genres=["A", "A", "A", "B"]), "item", text=["title"],
        features=[data.Labels("genres", "|")], at_least=0.8,
    )  # fmt: skip
    assert dict(zip(both["target"], both["source"], strict=True)) == {"x": 1, "w": 3}


def test_identical_vectors_match_at_a_cosine_of_one():
    vectors = list(np.random.default_rng(0).normal(size=(60, 7)))
    one, other = (pd.DataFrame({"item": np.arange(60) + shift, "plot": vectors}) for shift in (0, 100))
    found = transfer.match(one, other, "item", features=data.Vector("plot"), at_least=1.0)
    assert (found["target"] - found["source"] == 100).sum() == len(found) == 60


def test_frames_of_one_entity_are_matched():
    one, other = pd.DataFrame({"item": [1], "title": ["Heat"]}), pd.DataFrame({"item": ["x"], "title": ["heat"]})
    assert transfer.match(one, other, "item", text="title").to_numpy().tolist() == [[1, "x", 1.0]]
    plots = [frame.assign(plot=[[0.0, 2.0]]) for frame in (one, other)]
    assert len(transfer.match(*plots, "item", features=data.Vector("plot"))) == 1
    assert not len(transfer.match(one.assign(title=""), other.assign(title=None), "item", text="title"))


def test_a_matched_frame_is_a_table(ours, theirs):
    table = transfer.match(OURS, THEIRS, "item", features=SCHEMA.item_features, at_least=0.9)
    alignment = transfer.align(ours.encoder, theirs.encoder, tables={"item": table})
    assert pairs(alignment) == {1: "b", 2: "c", 4: "d"} and alignment.pairs("item")["similarity"].min() > 0.9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, ValueError, "Nothing to compare. Name columns by text= or features="),
        ({"text": "title"}, ValueError, "The frame of entities of the source lacks the column 'title'"),
        ({"text": "plot"}, TypeError, "Expected strings in the column 'plot', got \\[1.0, 0.0\\]"),
        ({"features": data.Numeric("year")}, TypeError, "A cosine compares labels and directions"),
        ({"features": data.Labels("genres", "|"), "at_least": 2}, ValueError, "Expected a cosine"),
        ({"text": "genres", "at_least": "0.5"}, ValueError, "Expected a cosine in .* got '0.5'"),
        ({"features": data.Labels("genres", "|"), "text": "genres"}, ValueError, "distinct columns, got item, g"),
    ],
)  # fmt: skip
def test_frames_that_cannot_be_matched_are_refused(change, error, message):
    with refuses(error, message):
        transfer.match(OURS, THEIRS, "item", **change)
    with refuses(ValueError, "Expected one row per source, but 'a' has several"):
        transfer.match(pd.concat([OURS, OURS]), THEIRS, "item", features=data.Labels("genres", "|"))


# In adapt and compare


def test_adapt_copies_what_an_alignment_says(ours, theirs):
    model = models.MatrixFactorization.for_data(ours, dim=4)
    source = jaxrec.fit(model, ours, epochs=2, batch_size=4)
    alignment = transfer.align(ours.encoder, theirs.encoder, content={"item": 0.5})
    adapted = transfer.adapt(source, theirs, alignment=alignment, freeze="*")
    rows = alignment.rows["item"]
    np.testing.assert_array_equal(
        np.asarray(adapted.recommender.params["item"]["embedding"])[rows.target],
        np.asarray(source.params["item"]["embedding"])[rows.source],
    )
    assert "aligned by content" in str(adapted.copied)
    assert "none aligned by raw id" in str(transfer.adapt(source, theirs, freeze="*").copied)
    held_out = theirs.encoder.encode(pd.DataFrame({"user": ["u", "v"], "item": [4, 4]}))
    comparison = transfer.compare(source, theirs, held_out, metric="ndcg@1", alignment=alignment, epochs=1)
    assert "item: 3 aligned by content" in str(comparison)


def test_an_alignment_of_other_encoders_is_refused(ours, theirs):
    source = jaxrec.fit(models.MatrixFactorization.for_data(ours, dim=4), ours, epochs=1)
    alignment = transfer.align(theirs.encoder, ours.encoder)
    with refuses(
        ValueError, "The alignment is of other encoders .*trained there and known here are .*'item': \\(3, 5\\)"
    ):
        transfer.adapt(source, theirs, alignment=alignment)
    renamed = dataclasses.replace(theirs.encoder, items=data.Vocabulary.fit([5, 6, 7, 8]))
    with refuses(ValueError, "Make it by align\\(source.encoder, train.encoder\\)"):
        transfer.adapt(source, theirs, alignment=transfer.align(ours.encoder, renamed))
    mirrored = domain(OURS.assign(item=list("edcba")), list("bcde")).encoder  # as large, other rows
    with refuses(ValueError, "or their rows differ"):
        transfer.adapt(source, theirs, alignment=transfer.align(mirrored, theirs.encoder, content={"item": 0.5}))
    relabelled = domain(OURS.assign(genres=["Drama", "Drama|War", "War", "War", "War"]), list("abcd")).encoder
    with refuses(ValueError, "or their rows differ"):
        transfer.adapt(source, theirs, alignment=transfer.align(relabelled, theirs.encoder))
    right = transfer.align(ours.encoder, theirs.encoder)
    with refuses(ValueError, "or their rows differ"):
        transfer.adapt(source, theirs, alignment=transfer.Alignment(right.encoder, right.rows, right.sizes))


def test_the_same_content_is_as_alike_as_can_be():
    """In float32 a vector's cosine with itself may fall short of 1."""
    rng = np.random.default_rng(0)
    vectors = list(rng.normal(size=(60, 7)))

    def encoder(prefix):
        ids = [f"{prefix}{number}" for number in range(60)]
        rows = pd.DataFrame({"user": prefix, "item": ids})
        schema = data.Schema(item_features=(data.Vector("v"),))
        items = pd.DataFrame({"item": ids, "v": vectors})
        return data.encode(data.Parts(rows, None, None), schema, items=items).train.encoder

    assert len(transfer.align(encoder("a"), encoder("b"), content={"item": 1.0}).pairs("item")) == 60
