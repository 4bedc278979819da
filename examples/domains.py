"""Pairs of a rich source and a poor target domain: generated, or from a folder of real data.

Real data is never part of the project; a folder's name says which definition it gets. Files are Parquet tables of
interactions and items, as described in docs/demo.md.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxrec import data


class Pair(NamedTuple):
    """Two domains, and the planted truth of the target where they are generated."""

    title: str
    source: data.Frames
    target: data.Frames
    truth: data.Planted | None


def load(folder: str | None) -> Pair:
    """The generated pair, or the one that the folder's name stands for."""
    if folder is None:
        return generated()
    path = Path(folder)
    readers = {"ml-1m": movies, "goodbooks": books, "amazon-": amazon}
    for prefix, read in readers.items():
        if path.name.startswith(prefix):
            return read(path)
    raise ValueError(
        f"Expected a folder named {', '.join(readers)}..., got {path.name!r}. Add a reader for yours here."
    )


def generated() -> Pair:
    """A world in which 80 % of tastes and of what content means carry over."""
    world = data.generate(
        seed=0,
        transferable=0.8,
        content=0.8,
        source_items=1200,
        target_users=800,
        target_items=500,
        target_interactions=16.0,
    )
    return Pair("generated worlds: books -> films", world.source, world.target, world.target_truth)


def movies(folder: Path) -> Pair:
    """MovieLens 1M: everything but comedies -> comedies, of which a quarter of the users' histories are known."""
    interactions = _read(folder / "interactions.parquet").astype("int64")
    items = _read(folder / "movies.parquet").astype({"movie_id": "int64"})
    users = _read(folder / "users.parquet").astype({"user_id": "int64", "age": str, "occupation": str})
    schema = data.Schema(
        user="user_id",
        item="movie_id",
        user_features=(data.Categorical("gender"), data.Categorical("age"), data.Categorical("occupation")),
        item_features=(data.Labels("genres", "|"), data.Numeric("year")),
    )
    comedy = items["genres"].str.split("|").map(lambda genres: "Comedy" in genres)
    return _by_items("MovieLens 1M: other films -> comedies", interactions, users, items, comedy, schema)


def books(folder: Path) -> Pair:
    """goodbooks: fantasy -> mystery, without the books that are both."""
    ratings = _read(folder / "ratings.parquet")[["user_id", "book_id"]].astype("int64")
    genres = _read(folder / "book_genres.parquet").merge(_read(folder / "genres.parquet"), on="genre_id")
    labels = genres.groupby("book_id")["genre"].agg(list)
    items = _read(folder / "books.parquet").astype({"book_id": "int64"})
    items = items.assign(genres=labels.reindex(items["book_id"]).to_numpy())
    has = {name: items["genres"].map(lambda cell, name=name: name in cell) for name in ("fantasy", "mystery")}
    only = has["fantasy"] ^ has["mystery"]
    ratings = ratings[ratings["book_id"].isin(items["book_id"][only])]
    schema = data.Schema(
        user="user_id",
        item="book_id",
        item_features=(data.Labels("genres"), data.Labels("authors", ","), data.Numeric("year")),
    )
    title = "goodbooks: fantasy -> mystery"
    return _by_items(title, ratings, None, items[only], has["mystery"][only], schema)


def amazon(folder: Path) -> Pair:
    """Amazon pairs: two files, users in both, no features. Rows of the published training part only."""
    first, second = sorted(folder.glob("*.parquet"), key=lambda path: -path.stat().st_size)
    schema = data.Schema(user="user", item="item")
    frames = []
    for path in (first, second):
        rows = _read(path)
        rows = rows[rows["part"] == 0].astype("int64")
        # Item numbers are per domain, so equal numbers do not mean the same item.
        rows = rows.assign(item=path.stem + "-" + rows["item"].astype(str).str.zfill(5))[["user", "item"]]
        frames.append(data.Frames(rows, None, None, schema))
    return Pair(f"Amazon: {first.stem} -> {second.stem}", *frames, None)


def _by_items(
    title: str,
    interactions: pd.DataFrame,
    users: pd.DataFrame | None,
    items: pd.DataFrame,
    in_target: pd.Series,
    schema: data.Schema,
) -> Pair:
    """Domains that differ in items; the target knows a random quarter of the users, so that it is poor."""
    of_target = set(items[schema.item][in_target])
    target = interactions[interactions[schema.item].isin(of_target)]
    source = interactions[~interactions[schema.item].isin(of_target)]
    known = np.random.default_rng(0).permutation(target[schema.user].unique())
    target = target[target[schema.user].isin(known[: len(known) // 4])]
    rated = set(interactions[schema.item])
    frames = []
    for rows, inside in ((source, ~in_target), (target, in_target)):
        frames.append(data.Frames(rows, users, items[inside & items[schema.item].isin(rated)], schema))
    return Pair(title, *frames, None)


def _read(path: Path) -> pd.DataFrame:
    return data.read_table(path)
