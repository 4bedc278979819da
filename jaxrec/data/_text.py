"""Titles and descriptions as vectors, by a language model of the user's."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.data._features import is_missing
from jaxrec.data._schema import need_columns


def encode_text(
    frame: pd.DataFrame,
    columns: str | Sequence[str],
    *,
    model: Any,
    into: str = "text",
    batch_size: int = 32,
    normalize: bool = True,
    separator: str = "\n",
    prefix: str = "",
) -> pd.DataFrame:
    """A copy of the frame with a column of text vectors, for ``Vector("text", scale="rms")`` in a schema.

    Each text that occurs is encoded once, in alphabetical order, so that neither the order of rows nor repetitions
    change a vector. Nothing is kept between calls: store the frame to encode once.

    Args:
      frame: for example one row per item; it stays as it is.
      columns: of strings. The texts of one row are joined; a missing or blank one is left out.
      model: name or path of a sentence-transformers model (extra ``text``; a name may be downloaded, as that library
        does), one that is loaded already (for a device or precision of your choice), or a function from a list of
        strings to as many vectors.
      into: name of the new column. Its cells are float32 arrays of one length, or None for a row without any text:
        no vector is made up for it, and models that fuse modalities leave it out.
      batch_size: texts that the model is given at once.
      normalize: whether vectors are brought to length 1; one of zeros stays.
      separator: between the texts of one row.
      prefix: put before every text, where a model was trained with one ("passage: ").

    Raises:
      ImportError: ``model`` is a name or path and the extra is not installed.
      TypeError: a cell is no string, or ``model`` is of another kind.
      ValueError: a column is missing, ``into`` exists, the frame has no row or no text, or what the model returned are
        not finite vectors of one length, one for each text.

    Examples:
      >>> items = pd.DataFrame({"item": [1, 2], "title": ["Heat", None]})
      >>> encoded = encode_text(items, "title", model=lambda texts: [[len(text), 0.0] for text in texts])
      >>> encoded["text"].tolist()
      [array([1., 0.], dtype=float32), None]

    References:
      Reimers and Gurevych, Sentence-BERT: sentence embeddings using Siamese BERT-networks, EMNLP 2019 (the models).
    """
    columns = (columns,) if isinstance(columns, str) else tuple(columns)
    need_columns(frame, columns, "texts")
    need_new(frame, into)
    if batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, got {batch_size}.")
    pieces = [_pieces(frame, column) for column in columns]
    texts = [separator.join(part for part in row if part) for row in zip(*pieces, strict=True)]
    distinct = sorted({text for text in texts if text})
    if not distinct:
        raise ValueError(f"No row has text in {', '.join(columns)}, so there is nothing to encode.")
    vectors = _encode([prefix + text for text in distinct], model, batch_size)
    if normalize:
        length = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        vectors = vectors / np.where(length > 0, length, 1.0)
    place = {text: at for at, text in enumerate(distinct)}
    rows = np.array([place.get(text, -1) for text in texts])
    return with_vectors(frame, into, vectors[rows].astype(np.float32), rows >= 0)


def need_new(frame: pd.DataFrame, into: str) -> None:
    """Raises where a column of vectors would replace another one."""
    if into in frame.columns:
        raise ValueError(f"The frame has a column {into!r} already. Name another one with into=, or drop it.")


def with_vectors(frame: pd.DataFrame, into: str, vectors: np.ndarray, present: np.ndarray) -> pd.DataFrame:
    """A copy of the frame with ``vectors [rows, width]`` in the cells of a column, None where not present."""
    cells = np.empty(len(frame), dtype=object)
    for at in np.flatnonzero(present):
        cells[at] = vectors[at]
    return frame.assign(**{into: pd.Series(cells, index=frame.index, dtype=object)})


def _pieces(frame: pd.DataFrame, column: str) -> list[str]:
    cells = ["" if is_missing(cell) else cell for cell in frame[column].tolist()]
    wrong = [cell for cell in cells if not isinstance(cell, str)]
    if wrong:
        raise TypeError(
            f"Expected strings in the column {column!r}, got {wrong[0]!r} ({type(wrong[0]).__name__}). Turn the column "
            "into text first; a number that means something is a data.Numeric feature."
        )
    return [cell.strip() for cell in cells]


def _encode(texts: list[str], model: Any, batch_size: int) -> np.ndarray:
    """float64 ``[texts, width]``."""
    if isinstance(model, str | Path):
        model = _sentence_transformer(str(model))
    if hasattr(model, "encode"):  # sorts by length within the call, so it is given all
        found = [model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)]
    elif callable(model):
        found = [model(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
    else:
        raise TypeError(
            f"Expected for model the name or path of a sentence-transformers model, a loaded one, or a function from "
            f"strings to vectors, got {type(model).__name__}."
        )
    arrays = [np.asarray(each, dtype=np.float64) for each in found]
    shapes = [array.shape for array in arrays]
    counts = [shape[0] for shape in shapes if len(shape) == 2 and shape[1]]
    if len(counts) < len(shapes) or sum(counts) != len(texts) or len({shape[1] for shape in shapes}) != 1:
        raise ValueError(
            f"Expected of the model one vector per text, all of one length, got shapes {sorted(set(shapes))} for "
            f"{len(texts)} texts in batches of {batch_size}."
        )
    vectors = np.concatenate(arrays)
    wrong = ~np.isfinite(vectors).all(axis=1)
    if wrong.any():
        raise ValueError(f"The model's vector of {texts[int(np.argmax(wrong))][:80]!r} is not finite.")
    return vectors


def _sentence_transformer(name: str) -> Any:
    try:
        library = importlib.import_module("sentence_transformers")
    except ImportError:
        raise ImportError(
            "Models given by name or path are run by sentence-transformers, which is not installed: pip install "
            "'jaxrec[text]'. Or give a function from a list of strings to vectors."
        ) from None
    return library.SentenceTransformer(name)
