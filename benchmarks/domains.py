"""Pairs of domains on real data: what a target's training part shows of its held-out users, and what is asked of them.

``game`` and ``video`` come with published cold users (CDRIB). The other pairs are cut here, one way for all: of the
users with 12 rows or more in the target (and, where users are shared, 5 in the source) half are held out, a third of
them for validation and the rest for test. Their rows in the target are put in random order: the first 0, 1, 2, 5 or 10
stand in the target's training part, those from the tenth on are asked for. Candidates, and all that is asked for, are
items of users who are not held out. So all numbers of shots ask the same questions.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import data

SHOTS: tuple[int | None, ...] = (0, 1, 2, 5, 10, None)  # None: all that is not asked for
_ASKED, _LEAST, _LEAST_SOURCE = 10, 12, 5
_KEYS = ["user", "item"]
_BARE = data.Schema()


class Pair(NamedTuple):
    """A source and a target, in whose training part held-out users have ``shots`` rows."""

    source: str
    target: str
    domains: dict[str, data.Frames]  # training parts
    validation: pd.DataFrame  # held-out rows of the target
    test: pd.DataFrame
    candidates: np.ndarray
    held: np.ndarray  # users who are held out
    shots: int | None = 0
    negatives: bool = False  # whether the data set's protocol ranks each row among 999 others
    shared: Literal["user", "item"] = "user"  # whose raw ids mean the same in both domains


def _bare(rows: pd.DataFrame) -> data.Frames:
    return data.Frames(rows[_KEYS].reset_index(drop=True), None, None, _BARE)


def _among(candidates: np.ndarray, rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[rows["item"].isin(candidates), _KEYS]


def _cut(
    source: tuple[str, data.Frames], target: tuple[str, data.Frames], shots: int | None, *, negatives: bool = False,
    shared: Literal["user", "item"] = "user", seed: int = 0,
) -> Pair:  # fmt: skip
    rows = target[1].interactions
    rng = np.random.default_rng(seed)
    count = rows.groupby("user").size()
    able = count.index[count >= _LEAST]
    if shared == "user":
        there = source[1].interactions.groupby("user").size()
        able = np.intersect1d(able, there.index[there >= _LEAST_SOURCE])
    chosen = rng.permutation(np.sort(np.asarray(able)))[: len(able) // 2]
    part = pd.Series(np.where(np.arange(len(chosen)) % 3 == 0, 1, 2), index=chosen)
    held = rows["user"].map(part).fillna(0).to_numpy(int)
    place = rows.assign(_order=rng.random(len(rows))).groupby("user")["_order"].rank(method="first").to_numpy() - 1
    asked = (held > 0) & (place >= _ASKED)
    shown = (held == 0) | (place < (_ASKED if shots is None else shots))
    candidates = rows.loc[held == 0, "item"].unique()
    training = rows[shown & rows["item"].isin(candidates)].reset_index(drop=True)
    domains = {source[0]: source[1], target[0]: target[1]._replace(interactions=training)}
    questions = (_among(candidates, rows[asked & (held == number)]) for number in (1, 2))
    return Pair(source[0], target[0], domains, *questions, candidates, chosen, shots, negatives, shared)


@functools.cache
def _games_and_videos(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(folder / "amazon-game-video-cdrib" / f"{name}.parquet") for name in ("game", "video")}


def game_video(folder: Path, source: str, target: str, shots: int | None) -> Pair:
    """The published cold users; part 2 of their rows is asked for.

    Without shots part 1 is validation. With shots up to that many rows of part 1 are shown, and validation is a hundred
    other users of both domains with 8 rows or more in the target, cut likewise: half of the rows may be shown.
    """
    frames = _games_and_videos(folder)
    rows = frames[target]
    training = known = rows[rows.part == 0]
    validation = rows[rows.part == 1]
    held = rows.loc[rows.part > 0, "user"].unique()
    if shots != 0:
        rng = np.random.default_rng(0)
        count = training.groupby("user").size()
        both = np.intersect1d(count.index[count >= 8], frames[source].loc[frames[source].part == 0, "user"])
        others = rng.permutation(both)[:100]
        theirs = training[training.user.isin(others)]
        place = theirs.assign(_order=rng.random(len(theirs))).groupby("user")["_order"].rank(pct=True)
        shown = pd.concat([rows[rows.part == 1], theirs[place <= 0.5]])
        validation = theirs[place > 0.5]
        order = shown.assign(_order=rng.random(len(shown))).groupby("user")["_order"].rank(method="first")
        shown = shown if shots is None else shown[order <= shots]
        known = training[~training.user.isin(others)]
        held = np.union1d(held, others)
        training = pd.concat([known, shown[shown["item"].isin(known["item"])]])
    domains = {name: _bare(frames[name][frames[name].part == 0]) for name in ("game", "video")}
    domains[target] = _bare(training)
    candidates = known["item"].unique()
    asked = (_among(candidates, part) for part in (validation, rows[rows.part == 2]))
    return Pair(source, target, domains, *asked, candidates, held, shots, negatives=True)


def sport_phone(folder: Path, source: str, target: str, shots: int | None) -> Pair:
    """Every user is in both. The published test rows belong to users with training rows; here users are cold."""
    frames = []
    for name in (source, target):
        rows = pd.read_parquet(folder / "amazon-sport-phone-disencdr" / f"{name}.parquet")
        frames.append((name, _bare(rows)))
    return _cut(*frames, shots, negatives=True)


def _watched(folder: Path) -> pd.DataFrame:
    """Whatever was watched counts."""
    rows = pd.read_parquet(folder / "anime" / "interactions.parquet")
    return rows.rename(columns={"user_id": "user", "anime_id": "item"})


def _rated(folder: Path) -> pd.DataFrame:
    rows = pd.read_parquet(folder / "goodbooks" / "ratings.parquet")
    return rows.rename(columns={"user_id": "user", "book_id": "item"})


def communities(rows: pd.DataFrame, share: float, shots: int | None) -> Pair:
    """The same items in a large and a small community of other users: half of all users, and a share of the rest."""
    users = np.random.default_rng(0).permutation(np.sort(rows["user"].unique()))
    half = len(users) // 2
    small_half = users[half : half + int(half * share)]
    large, small = (rows[rows["user"].isin(part)] for part in (users[:half], small_half))
    return _cut(("large", _bare(large)), ("small", _bare(small)), shots, shared="item")


def anime_communities(folder: Path, shots: int | None) -> Pair:
    return communities(_watched(folder), 0.2, shots)


def goodbooks_communities(folder: Path, shots: int | None) -> Pair:
    return communities(_rated(folder), 0.5, shots)


def anime(folder: Path, source: str, target: str, shots: int | None) -> Pair:
    """Types of anime."""
    kinds = pd.read_parquet(folder / "anime" / "items.parquet").set_index("anime_id")["type"]
    rows = _watched(folder)
    kind = rows["item"].map(kinds)
    return _cut(*((name, _bare(rows[kind == name])) for name in (source, target)), shots)


def goodbooks(folder: Path, source: str, target: str, shots: int | None) -> Pair:
    """Books with one of two genres, those with both being in neither; every rating counts."""
    names = pd.read_parquet(folder / "goodbooks" / "genres.parquet").set_index("genre")["genre_id"]
    labels = pd.read_parquet(folder / "goodbooks" / "book_genres.parquet")
    books = {name: set(labels.loc[labels.genre_id == names[name], "book_id"]) for name in (source, target)}
    rows = _rated(folder)
    frames = []
    for name, other in ((source, target), (target, source)):
        frames.append((name, _bare(rows[rows["item"].isin(books[name] - books[other])])))
    return _cut(*frames, shots)


_OCCUPATIONS = (
    "other academic/educator artist clerical/admin college/grad-student customer-service doctor/health executive "
    "farmer homemaker K-12-student lawyer programmer retired sales scientist self-employed technician tradesman "
    "unemployed writer"
).split()
_ALIKE = {  # occupations of the smaller set in the words of the larger
    "educator": "academic/educator", "administrator": "clerical/admin", "student": "college/grad-student",
    "healthcare": "doctor/health", "doctor": "doctor/health", "salesman": "sales", "marketing": "sales",
    "engineer": "technician", "none": "unemployed", "entertainment": "artist", "librarian": "clerical/admin",
}  # fmt: skip


def movielens(folder: Path, shots: int | None) -> Pair:
    """MovieLens 1M to 100K: other users, the same films under other ids, which are aligned by title and year here.

    Users have gender, age and occupation in both, in the words and brackets of the larger set.
    """
    large, small = folder / "ml-1m", folder / "ml-100k"
    titles = [pd.read_parquet(large / "movies.parquet").set_index("movie_id")["title"]]
    titles.append(pd.read_parquet(small / "items.parquet").set_index("item_id")["title"])
    films = [each.str.lower().str.strip() for each in titles]
    schema = data.Schema(user_features=tuple(data.Categorical(name) for name in ("gender", "age", "occupation")))
    rows = pd.read_parquet(large / "interactions.parquet")
    rows = pd.DataFrame({"user": rows["user_id"], "item": rows["movie_id"].map(films[0])}).drop_duplicates()
    users = pd.read_parquet(large / "users.parquet").rename(columns={"user_id": "user"})
    users["occupation"] = users["occupation"].map(dict(enumerate(_OCCUPATIONS)))
    source = data.Frames(rows, users[["user", "gender", "age", "occupation"]], None, schema)
    rows = pd.read_parquet(small / "ratings.parquet")
    rows = pd.DataFrame({"user": rows["user_id"], "item": rows["item_id"].map(films[1])}).drop_duplicates()
    users = pd.read_parquet(small / "users.parquet").rename(columns={"user_id": "user"})
    edges = np.array([1, 18, 25, 35, 45, 50, 56])
    users["age"] = edges[np.searchsorted(edges, users["age"], side="right") - 1]
    users["occupation"] = users["occupation"].replace(_ALIKE)
    target = data.Frames(rows, users[["user", "gender", "age", "occupation"]], None, schema)
    return _cut(("ml-1m", source), ("ml-100k", target), shots, shared="item")


def _of(make: Callable[..., Pair], source: str, target: str) -> Callable[[Path, int | None], Pair]:
    return lambda folder, shots: make(folder, source, target, shots)


PAIRS: dict[str, Callable[[Path, int | None], Pair]] = {
    "video-game": _of(game_video, "video", "game"),
    "game-video": _of(game_video, "game", "video"),
    "sport-phone": _of(sport_phone, "sport", "phone"),
    "phone-sport": _of(sport_phone, "phone", "sport"),
    "TV-Movie": _of(anime, "TV", "Movie"),
    "fantasy-mystery": _of(goodbooks, "fantasy", "mystery"),
    "history-romance": _of(goodbooks, "history", "romance"),
    "ml-1m-ml-100k": movielens,
}
