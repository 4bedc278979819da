"""Every example runs, on worlds small enough to wait for."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec import data

FOLDER = Path(__file__).parents[1] / "examples"
SMALL = {
    "source_users": 150,
    "target_users": 120,
    "source_items": 60,
    "target_items": 220,
    "source_interactions": 20.0,
    "target_interactions": 18.0,
}


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Imports an example by name, in a folder of its own and with small worlds."""
    generate = data.generate
    monkeypatch.setattr(data, "generate", lambda **options: generate(**{**options, **SMALL}))
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example", "--out", "out"])
    with jax.numpy_dtype_promotion("standard"):  # optax itself, called from a user's loop, is not strict
        yield importlib.import_module


def test_no_example_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        "cross_domain", "demo", "domains", "embed", "new_items", "new_users", "teaching",
    }  # fmt: skip


def test_demo(example, monkeypatch, capsys):
    demo = example("demo")
    monkeypatch.setitem(demo.FIT, "epochs", 3)
    monkeypatch.setattr(demo, "SHOTS", (0, 2))
    demo.main()
    printed = capsys.readouterr().out
    table = [line.split("  ")[0] for line in printed.splitlines()]
    assert [label in table for label in demo.LABELS.values()] == [True] * 5
    assert "0 known" in printed and "new items" in printed and printed.count(": +") + printed.count(": -") == 3
    written = {path.name for path in Path("out").iterdir()}
    assert written == {"artefact", "cold_start.png", "learning_curve.png", "model.jaxrec"}


def test_teaching(example, capsys):
    example("teaching").main()
    printed = capsys.readouterr().out
    assert float(printed.rstrip().rsplit(" ", 1)[1]) > 0.5
    assert {"line.png", "click.jaxrec", "click-artefact"} == {path.name for path in Path("out").iterdir()}


def test_teaching_finds_the_planted_line(example):
    teaching = example("teaching")
    parts = teaching.preprocess_data(teaching.load_data(20_000, seed=0), teaching.LINE, test=0.1)
    line = teaching.pretrain_model(parts, link="identity")
    low, high = jaxrec.predict(line, pd.DataFrame({"hours": [0.0, 1.0]}))
    assert abs(low - 5.0) < 0.3 and abs(high - low - 8.0) < 0.1


@pytest.mark.parametrize("name", ["new_users", "new_items", "cross_domain", "embed"])
def test_short_examples(example, capsys, name):
    example(name).main()
    assert "ndcg@10" in capsys.readouterr().out


def test_ready_domains_as_they_are_downloaded(example, tmp_path):
    movielens, goodbooks = tmp_path / "ml-1m", tmp_path / "goodbooks-10k"
    for folder in (movielens, goodbooks):
        folder.mkdir()
    users, films = range(1, 9), {1: "Comedy", 2: "Drama|Comedy", 3: "Drama", 4: "Action"}
    (movielens / "ratings.dat").write_text("".join(f"{user}::{film}::4::7\n" for user in users for film in films))
    (movielens / "users.dat").write_text("".join(f"{user}::F::25::{user % 3}::1\n" for user in users))
    (movielens / "movies.dat").write_text("".join(f"{film}::A (1999)::{genres}\n" for film, genres in films.items()))
    tags = {"1": "fantasy", "2": "fantasy", "3": "mystery", "4": "poetry"}
    (goodbooks / "ratings.csv").write_text(
        "user_id,book_id,rating\n" + "".join(f"{user},{book},5\n" for user in users for book in tags)
    )
    (goodbooks / "books.csv").write_text(
        "book_id,goodreads_book_id,title,authors,original_publication_year,language_code\n"
        + "".join(f"{book},{book}0,T,A,1999,eng\n" for book in (*tags, "5"))
    )
    (goodbooks / "tags.csv").write_text("tag_id,tag_name\n" + "".join(f"{tag},{name}\n" for tag, name in tags.items()))
    (goodbooks / "book_tags.csv").write_text(
        "goodreads_book_id,tag_id,count\n" + "".join(f"{tag}0,{tag},500\n" for tag in tags)
    )
    domains = example("domains")
    pair = domains.load(str(movielens))
    assert pair.title == "MovieLens 1M: other films -> comedies" and len(pair.source.schema.user_features) == 3
    assert set(pair.target.items["movie_id"]) == {1, 2} and set(pair.source.items["movie_id"]) == {3, 4}
    assert len(pair.source.interactions) == 16 and len(pair.target.interactions) == 4  # a quarter of the users
    pair = domains.load(str(goodbooks))
    assert set(pair.source.items["book_id"]) == {1, 2} and set(pair.target.items["book_id"]) == {3}
    with pytest.raises(ValueError, match="Expected a folder named ml-, goodbooks, amazon-"):
        domains.load(str(tmp_path))


def test_books_of_no_genre_are_in_no_domain(example, tmp_path):
    folder = tmp_path / "goodbooks"
    folder.mkdir()
    books = [1, 2, 3]
    tables = {
        "ratings": {"user_id": np.repeat(range(8), 3), "book_id": books * 8},
        "books": {"book_id": books, "authors": "A", "year": 1999},
        "genres": {"genre_id": [1, 2], "genre": ["fantasy", "mystery"]},
        "book_genres": {"book_id": books[:2], "genre_id": [1, 2]},
    }
    for name, columns in tables.items():
        pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet")
    pair = example("domains").load(str(folder))
    assert pair.source.items["book_id"].tolist() == [1] and pair.target.items["book_id"].tolist() == [2]


@pytest.mark.parametrize("folder", ["ml-1m", "goodbooks", "amazon-sport-phone-disencdr", "amazon-game-video-cdrib"])
def test_ready_domains_of_real_data(example, real_data, folder):
    pair = example("domains").load(str(real_data / folder))
    for frames in (pair.source, pair.target):
        assert len(data.clean(frames.interactions, frames.schema)[0]) > 5_000
        if frames.items is not None:
            assert set(frames.interactions[frames.schema.item]) <= set(frames.items[frames.schema.item])
    users = pair.target.schema.user
    assert set(pair.source.interactions[users]) & set(pair.target.interactions[users])
    items = pair.target.schema.item
    assert not set(pair.source.interactions[items]) & set(pair.target.interactions[items])


def test_unknown_folders_are_refused(example):
    with pytest.raises(ValueError, match="Expected a folder named ml-, goodbooks, amazon-..., got 'netflix'"):
        example("domains").load("somewhere/netflix")
