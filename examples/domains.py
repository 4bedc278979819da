"""Pairs of a rich source and a poor target domain: generated, or from a folder of real data.

Real data is never part of the project; a folder's name says which definition it gets. MovieLens and goodbooks are read
as they are downloaded, or from Parquet tables; the Amazon pairs are two Parquet tables. docs/demo.md and
benchmarks/README.md list the columns.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxrec import data

_IDS = ("user_id", "movie_id")


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
    readers = {"ml-": movies, "goodbooks": books, "amazon-": amazon}
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
    """MovieLens: everything but comedies -> comedies, of which a quarter of the users' histories are known."""
    if (folder / "interactions.parquet").exists():
        tables = (_read(folder / f"{name}.parquet") for name in ("interactions", "users", "movies"))
        interactions, users, items = (table.astype({key: "int64" for key in _IDS if key in table}) for table in tables)
    else:
        interactions, users, items, _ = data.read_movielens(folder)
        interactions = interactions.sort_values("timestamp", kind="stable")[["user_id", "movie_id"]]
    assert items is not None
    if users is not None:
        users = users.astype({"age": str, "occupation": str})
    schema = data.Schema(
        user="user_id",
        item="movie_id",
        user_features=() if users is None else tuple(map(data.Categorical, ("gender", "age", "occupation"))),
        item_features=(data.Labels("genres", "|"), data.Numeric("year")),
    )
    comedy = items["genres"].str.split("|").map(lambda genres: "Comedy" in genres)
    title = {"ml-1m": "MovieLens 1M"}.get(folder.name, f"MovieLens ({folder.name})")
    return _by_items(f"{title}: other films -> comedies", interactions, users, items, comedy, schema)


def books(folder: Path) -> Pair:
    """goodbooks: fantasy -> mystery, without the books that are both."""
    if (folder / "ratings.parquet").exists():
        ratings = _read(folder / "ratings.parquet").astype({key: "int64" for key in ("user_id", "book_id")})
        items = _read(folder / "books.parquet").astype({"book_id": "int64"})
        genres = _read(folder / "book_genres.parquet").merge(_read(folder / "genres.parquet"), on="genre_id")
        labels = genres.groupby("book_id")["genre"].agg(list).reindex(items["book_id"])
        items = items.assign(genres=labels.to_numpy())
    else:
        ratings, _, items, _ = data.read_goodbooks(folder)
        assert items is not None
        items = items.rename(columns={"tags": "genres"})
    items["genres"] = [cell if isinstance(cell, list) else [] for cell in items["genres"]]
    has = {name: items["genres"].map(lambda cell, name=name: name in cell) for name in ("fantasy", "mystery")}
    only = has["fantasy"] ^ has["mystery"]
    ratings = ratings.loc[ratings["book_id"].isin(items["book_id"][only]), ["user_id", "book_id"]]
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
