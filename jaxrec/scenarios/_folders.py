"""Data for the command: generated, or from a folder of real data, which is never part of the project."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from jaxrec import data
from jaxrec.data import Frames


class Case(NamedTuple):
    """What a scenario is run on."""

    name: str  # of the scenario
    words: str
    read: Callable[[], tuple[Frames, ...]]  # when it is run: another's missing file is no concern of it

    @property
    def frames(self) -> tuple[Frames, ...]:
        return self.read()


def generated(seed: int) -> list[Case]:
    """One world of two domains for all."""
    world = data.generate(
        seed=seed, transferable=0.8, content=0.8, source_users=1200, target_users=800, source_items=400,
        target_items=400, source_interactions=30.0, target_interactions=16.0,
    )  # fmt: skip
    words = f"generated worlds (seed {seed}): 80 % of tastes and of what content means carry over from books to films"

    def target() -> tuple[Frames, ...]:
        return (world.target,)

    def pair() -> tuple[Frames, ...]:
        return world.source, world.target

    return [
        *(Case(name, words, target) for name in ("new_user", "new_item")),
        Case("cross_platform", words, pair),
        Case("long_tail", words, target),
        Case("cross_domain", words, pair),
    ]


def real(folder: Path) -> tuple[list[Case], dict[str, str]]:
    """Of each scenario the first data set that is there, and why others are missing."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Expected one that holds folders of data sets.")
    cases, missing = [], {}
    for name, options in _PLAN.items():
        for folders, words, read in options:
            if all((folder / each).is_dir() for each in folders):
                cases.append(Case(name, words, functools.partial(read, *(folder / each for each in folders))))
                break
        else:
            wanted = " or ".join(" and ".join(folders) for folders, _, _ in options)
            missing[name] = f"it needs {wanted} in {folder.name or folder}"
    if not cases:
        raise ValueError(f"{folder} has no data set that a scenario knows: {'; '.join(missing.values())}.")
    return cases, missing


def movielens(folder: Path) -> Frames:
    """MovieLens 100K or 1M, as GroupLens or as tables; ratings of 4 and more where there are any."""
    if (folder / "ratings.parquet").exists():
        rows = _table(folder / "ratings.parquet").rename(columns={"item_id": "movie_id"})
        items = _table(folder / "items.parquet").rename(columns={"item_id": "movie_id"})
        items["year"] = pd.to_numeric(items["title"].str.extract(r"\((\d{4})\)\s*$", expand=False))
        users = _table(folder / "users.parquet")
    elif (folder / "interactions.parquet").exists():
        rows, items, users = (_table(folder / f"{name}.parquet") for name in ("interactions", "movies", "users"))
    else:
        rows, users, items, _ = data.read_movielens(folder)
    assert items is not None
    rows = rows[rows["rating"] >= 4] if "rating" in rows else rows
    described = () if users is None else (data.Categorical("gender"), data.Numeric("age"))
    schema = data.Schema(
        user="user_id",
        item="movie_id",
        time="timestamp" if "timestamp" in rows else None,
        user_features=described,
        item_features=(data.Labels("genres", "|"), data.Numeric("year")),
    )
    items = items[items["movie_id"].isin(rows["movie_id"])]
    return Frames(rows.reset_index(drop=True), users, items, schema)


def goodbooks(folder: Path) -> Frames:
    """Ratings of 4 and more of books that were rated so twenty times, with genres and year."""
    rows = _table(folder / "ratings.parquet")
    rows = rows[rows["rating"] >= 4]
    rows = rows[rows.groupby("book_id")["book_id"].transform("size") >= 20]
    genres = _table(folder / "book_genres.parquet").merge(_table(folder / "genres.parquet"), on="genre_id")
    items = _table(folder / "books.parquet")
    labels = genres.groupby("book_id")["genre"].agg(list)
    items = items.assign(genres=labels.reindex(items["book_id"]).to_numpy())
    items = items[items["book_id"].isin(rows["book_id"])]
    schema = data.Schema(
        user="user_id",
        item="book_id",
        time="order" if "order" in rows else None,
        item_features=(data.Labels("genres"), data.Numeric("year")),
    )
    return Frames(rows.reset_index(drop=True), None, items, schema)


def anime(folder: Path, kind: str | None = None) -> Frames:
    """What was watched of one type, or of all."""
    rows, items = _table(folder / "interactions.parquet"), _table(folder / "items.parquet")
    items = items if kind is None else items[items["type"] == kind]
    rows = rows[rows["anime_id"].isin(items["anime_id"])]
    rows = rows[rows.groupby("anime_id")["anime_id"].transform("size") >= 5]
    features = (data.Labels("genres", ", "), data.Categorical("type"), data.Numeric("episodes", "log1p"))
    schema = data.Schema(user="user_id", item="anime_id", item_features=features)
    items = items[items["anime_id"].isin(rows["anime_id"])]
    return Frames(rows.reset_index(drop=True), None, items, schema)


def amazon(folder: Path, *names: str) -> tuple[Frames, ...]:
    """Training rows of the named domains."""
    found = []
    for name in names:
        rows = _table(folder / f"{name}.parquet")
        rows = rows.loc[rows["part"] == 0, ["user", "item"]].reset_index(drop=True)
        found.append(Frames(rows, None, None, data.Schema()))
    return tuple(found)


def _half(frames: Frames) -> Frames:
    """Every second user: pretraining is the longest part."""
    return frames._replace(interactions=frames.interactions[frames.interactions[frames.schema.user] % 2 == 0])


def _table(path: Path) -> pd.DataFrame:
    frame = data.read_table(path)
    unsigned = {name: "int64" for name, kind in frame.dtypes.items() if str(kind).startswith("uint")}
    return frame.astype(unsigned)


_Read = Callable[..., tuple[Frames, ...]]
_MOVIES = "MovieLens 100K, ratings of 4 and 5"
_GAMES, _SPORT = "amazon-game-video-cdrib", "amazon-sport-phone-disencdr"
_PLAN: dict[str, list[tuple[tuple[str, ...], str, _Read]]] = {
    "new_user": [(("ml-100k",), _MOVIES, lambda folder: (movielens(folder),))],
    "new_item": [
        (("goodbooks",), "goodbooks, ratings of 4 and 5", lambda folder: (goodbooks(folder),)),
        (("ml-100k",), _MOVIES, lambda folder: (movielens(folder),)),
    ],
    "cross_platform": [
        (("ml-1m", "ml-100k"), "half of MovieLens 1M's users to MovieLens 100K, no id being shared",
         lambda source, target: (_half(movielens(source)), movielens(target))),
    ],
    "long_tail": [
        (("ml-100k",), _MOVIES, lambda folder: (movielens(folder),)),
        (("goodbooks",), "goodbooks, ratings of 4 and 5", lambda folder: (goodbooks(folder),)),
    ],
    "cross_domain": [
        ((_GAMES,), "Amazon games to videos", lambda folder: amazon(folder, "game", "video")),
        (("anime",), "anime: TV to films", lambda folder: (anime(folder, "TV"), anime(folder, "Movie"))),
        ((_SPORT,), "Amazon sport to phones", lambda folder: amazon(folder, "sport", "phone")),
    ],
}  # fmt: skip
