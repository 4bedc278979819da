"""Cold-start protocols on real data: what a method may see, what it is asked, and what it is asked while tuned.

Two come as files with the data (``citeulike-a``, ``ml-1m``); those made here are cut the same way. ``cold_items``: a
tenth of the items for validation and a tenth for test have no row in training, the other rows are cut 8 : 1 : 1.
``cold_users``: likewise with users of 20 rows or more, of whom the first 0, 1, 5 or 10 rows in random order are
revealed and those from the tenth on are asked for. Held-out rows of users or items that training would not know go to
training.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import jaxrec
from jaxrec import coldstart, data

REVEALED = (0, 1, 5, 10)


class Slice(NamedTuple):
    """A question put to a recommender, who is told of ``users`` and their ``revealed`` rows first."""

    name: str
    relevant: pd.DataFrame
    candidates: np.ndarray
    users: pd.DataFrame | None = None
    revealed: pd.DataFrame | None = None
    exclude: pd.DataFrame | None = None

    def ready(self, recommender: jaxrec.train.Recommender) -> jaxrec.train.Recommender:
        if self.users is None:
            return recommender
        return coldstart.add(recommender, users=self.users, interactions=self.revealed)


class Protocol(NamedTuple):
    title: str
    frames: dict[str, Any]  # interactions, users and items to train on
    schema: data.Schema
    validation: list[Slice]
    test: list[Slice]
    main: tuple[str, ...]  # slices whose NDCG@20 chooses settings, by their mean
    neighbours: tuple[str, ...] = ()  # item features that nearest neighbours read; by default all
    neural: tuple[str, ...] = ()  # item features that methods with perceptrons read; by default all

    def encoded(self, features: tuple[str, ...] = ()) -> data.Dataset:
        """The training part; of the items' features only these, if any are named."""
        schema = self.schema
        if features:
            kept = tuple(each for each in schema.item_features if each.column in features)
            schema = data.Schema(
                user=schema.user, item=schema.item, user_features=schema.user_features, item_features=kept
            )
        parts = data.Parts(self.frames["interactions"], None, None)
        return data.encode(parts, schema, users=self.frames["users"], items=self.frames["items"]).train


def _item_slices(rows: pd.DataFrame, warm_part: int, cold_part: int, user: str, item: str) -> list[Slice]:
    """Cold items among themselves, warm items, and all items together for users who have both.

    Among all items are those of the other cold part, which can be right for nobody; ``answerable`` leaves them out.
    """
    of_warm, of_cold = (rows.loc[rows.part == part, [user, item]] for part in (warm_part, cold_part))
    warm = rows.loc[rows.part == 0, item].unique()
    joined = pd.concat([of_warm, of_cold])
    both = joined[joined[user].isin(np.intersect1d(of_warm[user].unique(), of_cold[user].unique()))]
    cold = of_cold[item].unique()
    return [
        Slice("cold", of_cold, cold),
        Slice("warm", of_warm, warm),
        Slice("overall", both, rows[item].unique()),
        Slice("answerable", both, np.concatenate([warm, cold])),
    ]


def _of_items(rows: pd.DataFrame, schema: data.Schema, items: pd.DataFrame, **options: Any) -> Protocol:
    keys = [str(schema.user), str(schema.item)]
    halves = [_item_slices(rows, *parts, *keys) for parts in ((1, 3), (2, 4))]
    frames = {"interactions": rows.loc[rows.part == 0, keys], "users": None, "items": items}
    return Protocol("cold items", frames, schema, *halves, ("cold", "warm", "overall"), **options)


def _of_users(rows: pd.DataFrame, schema: data.Schema, users: pd.DataFrame) -> Protocol:
    keys = [str(schema.user), str(schema.item)]
    known = rows[rows.part == 0]
    candidates = known[keys[1]].unique()
    rows = rows[rows[keys[1]].isin(candidates)]

    def slices(warm_part: int, cold_part: int) -> list[Slice]:
        cold = rows[rows.part == cold_part]
        their = users[users[keys[0]].isin(cold[keys[0]])]
        relevant, hidden = cold.loc[cold.order >= REVEALED[-1], keys], cold.loc[cold.order < REVEALED[-1], keys]
        return [
            *(
                Slice(
                    f"r={count}",
                    relevant,
                    candidates,
                    their,
                    cold.loc[cold.order < count, keys] if count else None,
                    hidden,
                )
                for count in REVEALED
            ),
            Slice("warm", rows.loc[rows.part == warm_part, keys], candidates),
        ]

    frames = {"interactions": known[keys], "users": users[users[keys[0]].isin(known[keys[0]])], "items": None}
    main = tuple(f"r={count}" for count in REVEALED)
    return Protocol("cold users", frames, schema, slices(1, 3), slices(2, 4), main)


def _parted(rows: pd.DataFrame, cold: str, other: str, *, least: int, seed: int = 0) -> pd.DataFrame:
    """With a ``part`` as in the files: 0 training, 1 and 2 warm, 3 and 4 cold; ``cold`` names what is cold."""
    rng = np.random.default_rng(seed)
    rows = rows.reset_index(drop=True)
    count = rows.groupby(cold)[other].size()
    able = np.sort(count.index[count >= least].to_numpy())
    chosen = rng.permutation(able)[: len(count) // 5]
    half = pd.Series(np.where(np.arange(len(chosen)) % 2 == 0, 3, 4), index=chosen)
    part = rows[cold].map(half).fillna(0).to_numpy(int)
    warm = part == 0
    part[warm] = rng.choice(3, size=warm.sum(), p=[0.8, 0.1, 0.1])
    for column in (cold, other):  # nothing is asked of what training does not know
        outside = ~rows[column].isin(rows.loc[part == 0, column])
        part[outside & np.isin(part, (1, 2))] = 0
    rows = rows.assign(part=part, order=rng.random(len(rows)))
    kept = (rows.part < 3) | rows[other].isin(rows.loc[rows.part == 0, other])
    rows = rows[kept]
    return rows.assign(order=rows.groupby(cold)["order"].rank(method="first").astype(int) - 1)


def _words(texts: pd.Series) -> list[list[str]]:
    """The distinct words of three letters or more, in lower case."""
    return [sorted(set(re.findall(r"[^\W\d_]{3,}", str(text or "").lower()))) for text in texts]


def citeulike(folder: Path) -> Protocol:
    """2,378 cold articles by tags, all 16,980 overall. Neighbours and factors read the sparse form of the content,
    perceptrons the dense one, ``ColdStart`` is given both."""
    rows = pd.read_parquet(folder / "citeulike-a" / "cold_item_protocol.parquet")
    dense = np.load(folder / "citeulike-a" / "content_300.npz")
    tags = pd.read_parquet(folder / "citeulike-a" / "item_tags.parquet").groupby("item").tag.agg(list)
    count = len(dense["has_content"])
    items = pd.DataFrame({"item": np.arange(count)})
    vectors = dense["content"].astype(np.float32)
    items["content"] = [vector if known else None for vector, known in zip(vectors, dense["has_content"], strict=True)]
    items["tags"] = [tags.get(item, []) for item in range(count)]
    schema = data.Schema(item_features=(data.Vector("content"), data.Labels("tags")))
    return _of_items(rows, schema, items, neighbours=("tags",), neural=("content",))


def movielens_users(folder: Path) -> Protocol:
    """604 cold users by gender, age and occupation."""
    rows = pd.read_parquet(folder / "ml-1m" / "cold_user_protocol.parquet")
    users = pd.read_parquet(folder / "ml-1m" / "users.parquet")[["user_id", "gender", "age", "occupation"]]
    features = tuple(data.Categorical(name) for name in ("gender", "age", "occupation"))
    return _of_users(rows, data.Schema(user="user_id", item="movie_id", user_features=features), users)


def movielens_items(folder: Path) -> Protocol:
    """Cold films by genres, director, actors and the words of the plot."""
    rows = pd.read_parquet(folder / "ml-1m" / "interactions.parquet")
    items = pd.read_parquet(folder / "ml-1m" / "movies.parquet")
    items = items.assign(plot=_words(items["plot"]))[["movie_id", "genres", "director", "actors", "plot"]]
    features = (
        data.Labels("genres", "|"),
        data.Labels("director", ", "),
        data.Labels("actors", ", "),
        data.Labels("plot"),
    )
    schema = data.Schema(user="user_id", item="movie_id", item_features=features)
    return _of_items(_parted(rows, "movie_id", "user_id", least=1), schema, items)


def anime(folder: Path) -> Protocol:
    """Cold series and films by genres, type and the words of the name; whatever was watched counts."""
    rows = pd.read_parquet(folder / "anime" / "interactions.parquet")[["user_id", "anime_id"]]
    items = pd.read_parquet(folder / "anime" / "items.parquet")
    items = items.assign(words=_words(items["name"]))[["anime_id", "genres", "type", "words"]]
    features = (data.Labels("genres", ", "), data.Categorical("type"), data.Labels("words"))
    schema = data.Schema(user="user_id", item="anime_id", item_features=features)
    return _of_items(_parted(rows, "anime_id", "user_id", least=1), schema, items)


def goodbooks(folder: Path) -> Protocol:
    """Cold books by genres, authors, language and the words of the title; every rating counts."""
    rows = pd.read_parquet(folder / "goodbooks" / "ratings.parquet")[["user_id", "book_id"]]
    genres = pd.read_parquet(folder / "goodbooks" / "book_genres.parquet").groupby("book_id").genre_id.agg(list)
    items = pd.read_parquet(folder / "goodbooks" / "books.parquet")
    items = items.assign(words=_words(items["title"]), genres=[genres.get(book, []) for book in items.book_id])
    features = (
        data.Labels("genres"), data.Labels("authors", ", "), data.Categorical("language"), data.Labels("words"),
    )  # fmt: skip
    schema = data.Schema(user="user_id", item="book_id", item_features=features)
    items = items[["book_id", "genres", "authors", "language", "words"]]
    return _of_items(_parted(rows, "book_id", "user_id", least=1), schema, items)


def movielens_small(folder: Path) -> Protocol:
    """Cold users of MovieLens 100K by gender, decade of age and occupation; every rating counts."""
    rows = pd.read_parquet(folder / "ml-100k" / "ratings.parquet")[["user_id", "item_id"]]
    users = pd.read_parquet(folder / "ml-100k" / "users.parquet")
    users = users.assign(age=users.age // 10)[["user_id", "gender", "age", "occupation"]]
    features = tuple(data.Categorical(name) for name in ("gender", "age", "occupation"))
    schema = data.Schema(user="user_id", item="item_id", user_features=features)
    return _of_users(_parted(rows, "user_id", "item_id", least=20), schema, users)


PROTOCOLS: dict[str, Callable[[Path], Protocol]] = {
    "citeulike-a": citeulike,
    "ml-1m": movielens_users,
    "ml-1m-items": movielens_items,
    "anime": anime,
    "goodbooks": goodbooks,
    "ml-100k": movielens_small,
}
