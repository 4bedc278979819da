"""Readers for the files that people have. Each returns frames and the schema that fits them."""

import csv
import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._expect import expect
from jaxrec.data._schema import Categorical, Labels, Numeric, Schema, need_columns

_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip

_MISSING = [  # what pandas takes for a missing value
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
]  # fmt: skip


class Frames(NamedTuple):
    """A domain as it was read."""

    interactions: pd.DataFrame
    users: pd.DataFrame | None
    items: pd.DataFrame | None
    schema: Schema


def read_table(path: str | Path, *, dtype: Mapping[str, Any] | None = None, quoted: bool | None = None) -> pd.DataFrame:
    """A CSV (``.csv``), tab-separated (``.tsv``), Parquet (``.parquet``) or JSON-lines (``.jsonl``) file.

    Text files may be compressed (``.gz``). Parquet needs the extra ``data``.

    Args:
      path: of the file.
      dtype: of columns of a CSV or tab-separated file, by name. There a column of digits alone is read as integers,
        ``012`` as 12: say ``dtype={"item": str}`` where leading zeros tell ids apart. In columns read as text only an
        empty cell is missing; in others ``NA``, ``null`` and the like are too.
      quoted: of such files, whether a quotation mark opens a text that may hold separators and line ends. By default
        in CSV files; in tab-separated ones marks are mostly parts of titles, and one without a partner would swallow
        the lines up to the next.

    Raises:
      ValueError: the suffix is none of these, an option is given for a file of another kind, or ``dtype`` names a
        column that the file does not have.
      TypeError: ``dtype`` is no mapping.
      FileNotFoundError: there is no such file.
    """
    path = _existing(path)
    if dtype is not None:
        expect(dtype, Mapping, "dtype, such as {'item': str}")
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind in (".csv", ".tsv"):
        quoted = kind == ".csv" if quoted is None else quoted
        return _read_separated(path, "," if kind == ".csv" else "\t", dtype or {}, quoted)
    for name, option in (("dtype", dtype), ("quoted", quoted)):
        if option is not None and kind in (".parquet", ".jsonl"):
            raise ValueError(
                f"{name}= is for CSV and tab-separated files: {path.name!r} says itself what its columns are."
            )
    if kind == ".parquet":
        return pd.read_parquet(path)
    if kind == ".jsonl":
        return pd.read_json(path, lines=True, dtype=False)  # "012" and "12" are two ids
    raise ValueError(
        f"Expected a .csv, .tsv, .parquet or .jsonl file, got {path.name!r}. Read it with pandas: any DataFrame "
        "will do."
    )


def _read_separated(path: Path, separator: str, dtype: Mapping[str, Any], quoted: bool) -> pd.DataFrame:
    options: dict[str, Any] = {"sep": separator, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    text = [name for name, kind in dtype.items() if pd.api.types.is_string_dtype(pd.api.types.pandas_dtype(kind))]
    header = pd.read_csv(path, nrows=0, **options).columns if dtype else ()
    wrong = [name for name in dtype if name not in header]
    if wrong:
        raise ValueError(
            f"dtype= names the column {wrong[0]!r}; {path.name} has {', '.join(header)}. Name one of these: what is of "
            "no column would be left out."
        )
    if text:
        options["na_values"] = {name: [""] if name in text else _MISSING for name in header}
        options["keep_default_na"] = False
    return pd.read_csv(
        path, dtype=dtype, low_memory=False, **options
    )  # in pieces ids might be numbers here, text there


def read_movielens(folder: str | Path) -> Frames:
    """MovieLens in any of its forms: 100K (``u.data``), 1M and 10M (``ratings.dat``), 20M and later (``ratings.csv``).

    Columns: ``user_id``, ``movie_id``, ``rating``, ``timestamp`` (seconds); movies with ``title``, ``year`` (from the
    title, missing where it has none) and ``genres`` (joined by ``|``); users, where the release has them, with
    ``gender``, ``age``, ``occupation``, ``zip``. Ages of 1M are codes: the lower end of a range, 1 for under 18.

    References:
      Harper and Konstan, The MovieLens datasets, ACM TiiS 5(4), 2015. The data may not be redistributed.
    """
    folder = _existing(folder)
    columns = ["user_id", "movie_id", "rating", "timestamp"]
    users, first = None, 1  # line of the ratings
    if (folder / "u.data").exists():
        interactions = pd.read_csv(folder / "u.data", sep="\t", names=columns)
        users = pd.read_csv(folder / "u.user", sep="|", names=["user_id", "age", "gender", "occupation", "zip"])
        names = ["movie_id", "title", "released", "video", "url", *_GENRES_100K]
        movies = pd.read_csv(folder / "u.item", sep="|", names=names, encoding="latin-1")
        flags = movies[list(_GENRES_100K)].to_numpy() == 1
        genres = ["|".join(name for name, on in zip(_GENRES_100K, row, strict=True) if on) for row in flags]
        movies = movies[["movie_id", "title"]].assign(genres=genres)
    elif (folder / "ratings.dat").exists():
        # Fields are numbers, so a '::' is an empty column between two single colons: the fast parser can read it.
        interactions = pd.read_csv(folder / "ratings.dat", sep=":", header=None, usecols=[0, 2, 4, 6])
        interactions.columns = columns
        movies = _read_double_colons(folder / "movies.dat", ["movie_id", "title", "genres"])
        if (folder / "users.dat").exists():
            users = _read_double_colons(folder / "users.dat", ["user_id", "gender", "age", "occupation", "zip"])
            users = users.astype({"user_id": "int64", "age": "int64", "occupation": "int64"})
        movies = movies.astype({"movie_id": "int64"})
    elif (folder / "ratings.csv").exists():
        names, first = {"userId": "user_id", "movieId": "movie_id"}, 2
        interactions = pd.read_csv(folder / "ratings.csv").rename(columns=names)
        movies = pd.read_csv(folder / "movies.csv").rename(columns=names)
    else:
        raise FileNotFoundError(
            f"No MovieLens release in {folder}: expected u.data (100K), ratings.dat (1M, 10M) or ratings.csv (20M and "
            "later). Give the unpacked folder."
        )
    need_columns(interactions, tuple(columns), "ratings")
    incomplete = interactions[columns].isna().any(axis=1)
    if incomplete.any():
        raise ValueError(
            f"Line {int(np.flatnonzero(incomplete)[0]) + first} of the ratings in {folder} lacks a value: "
            f"{interactions[columns][incomplete].iloc[0].tolist()}. The file may be truncated."
        )
    movies["genres"] = movies["genres"].replace("(no genres listed)", "")
    movies["year"] = pd.to_numeric(movies["title"].str.extract(r"\((\d{4})\)\s*$", expand=False))
    schema = Schema(
        user="user_id",
        item="movie_id",
        target="rating",
        time="timestamp",
        user_features=() if users is None else (Categorical("gender"), Numeric("age"), Categorical("occupation")),
        item_features=(Labels("genres", "|"), Numeric("year")),
    )
    return Frames(interactions, users, movies, schema)


def read_amazon_reviews(path: str | Path) -> Frames:
    """Amazon review files, one JSON object per line, plain or gzipped, of the 2014, 2018 or 2023 release.

    Columns: ``user_id``, ``item_id`` (the parent product in 2023), ``rating``, ``timestamp`` as in the file (seconds;
    milliseconds in 2023). Text is left out.

    Raises:
      ValueError: a line is no JSON object or lacks a field; the message names the line.

    References:
      Ni, Li and McAuley, EMNLP 2019; Hou et al., Bridging language and items for retrieval and recommendation, 2024.
    """
    path = _existing(path)
    old, new = ("reviewerID", "asin", "overall", "unixReviewTime"), ("user_id", "parent_asin", "rating", "timestamp")
    rows, number = [], 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    review = json.loads(line)
                    names = new if "parent_asin" in review else old
                    rows.append(tuple(review[name] for name in names))
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"Line {number} of {path.name} is no Amazon review ({error!r}): expected a JSON object with "
                        f"{', '.join(old)} or {', '.join(new)}."
                    ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path.name} is no whole gzip file ({error}, after line {number}). Download it again, or unpack it."
        ) from None
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    need_columns(interactions, (), "reviews")
    return Frames(interactions, None, None, Schema(user="user_id", item="item_id", target="rating", time="timestamp"))


def read_goodbooks(folder: str | Path, *, min_tag_count: int = 100, max_tags: int = 10) -> Frames:
    """goodbooks-10k: ``ratings.csv`` and ``books.csv``, and shelf names as tags where ``book_tags.csv`` is there.

    Columns: ``user_id``, ``book_id``, ``rating``; books with ``title``, ``authors``, ``year``, ``language`` and
    ``tags``. Totals over all of Goodreads (average rating, counts) are left out: they say how popular a book became.

    Args:
      folder: with the CSV files.
      min_tag_count: how often a shelf name must stand on a book to be a tag of it.
      max_tags: the most frequent ones kept per book.

    References:
      Zajac, goodbooks-10k, 2017, CC BY-SA 4.0.
    """
    folder = _existing(folder)
    interactions = pd.read_csv(_existing(folder / "ratings.csv"))
    need_columns(interactions, ("user_id", "book_id", "rating"), "ratings")
    books = pd.read_csv(_existing(folder / "books.csv"))
    names = {"original_publication_year": "year", "language_code": "language"}
    books = books.rename(columns=names)
    kept = ["book_id", "title", "authors", "year", "language"]
    need_columns(books, (*kept, "goodreads_book_id"), "books")
    features: list[Any] = [Labels("authors", ","), Numeric("year"), Categorical("language")]
    if (folder / "book_tags.csv").exists():
        tags = pd.read_csv(folder / "book_tags.csv").merge(pd.read_csv(_existing(folder / "tags.csv")), on="tag_id")
        tags = tags[tags["count"] >= min_tag_count].sort_values("count", ascending=False, kind="stable")
        tags = tags.groupby("goodreads_book_id", sort=False).head(max_tags)
        names_of = tags.groupby("goodreads_book_id")["tag_name"].agg(list)
        books = books.assign(tags=names_of.reindex(books["goodreads_book_id"]).to_numpy())
        kept.append("tags")
        features.append(Labels("tags"))
    schema = Schema(user="user_id", item="book_id", target="rating", item_features=tuple(features))
    return Frames(interactions, None, books[kept], schema)


def _read_double_colons(path: Path, columns: list[str]) -> pd.DataFrame:
    content = _existing(path).read_bytes()
    try:
        text = content.decode("utf-8")  # 10M
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # 1M, whose letters with accents are no UTF-8
    lines = text.split("\n")  # splitlines would cut at other characters too
    rows = [line.rstrip("\r").split("::") for line in lines if line]
    wrong = [number for number, row in enumerate(rows, 1) if len(row) != len(columns)]
    if wrong:
        raise ValueError(
            f"Line {wrong[0]} of {path.name} has {len(rows[wrong[0] - 1])} fields between '::', expected "
            f"{len(columns)}: {', '.join(columns)}. The file may be truncated."
        )
    return pd.DataFrame(rows, columns=columns)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. Expected a file or folder that was downloaded and unpacked.")
    return path
