"""Data larger than memory: encoded once, in passes, into columns on disk that ``fit`` reads a window at a time."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.data._encoder import Dataset, Encoder, need_window
from jaxrec.data._schema import Schema, need_columns
from jaxrec.data._vocabulary import Vocabulary, of_part

_FORMAT, _VERSION = "jaxrec rows", 1
_READ = 2**18  # rows of a Parquet file in memory at once
WINDOW = 2**22

Source = str | Path | Sequence[str | Path] | Callable[[], Iterable[pd.DataFrame]]
_Frames = Callable[[list[str]], Iterable[pd.DataFrame]]
"""Reads the source in parts that have at least these columns, if it has them."""


def encode_to_disk(
    source: Source,
    schema: Schema,
    folder: str | Path,
    *,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    also: Sequence[pd.DataFrame] = (),
    like: Encoder | None = None,
    window: int = WINDOW,
) -> Dataset:
    """Training rows that need not fit in memory, encoded into a folder of columns; what ``open_dataset`` opens.

    Two passes over the source: the first collects ids, the second writes. The encoder and the columns are those that
    ``Encoder.fit`` and ``Encoder.encode`` would make of one frame with all rows; rows are not cleaned. Memory holds one
    part of the source (2^18 rows of a Parquet file), the distinct ids and the features. The folder is written under a
    temporary name and then renamed.

    Args:
      source: a Parquet file, a folder of them (``*.parquet``, by name) or several paths; or a function that returns an
        iterator of frames, the same ones each time, for any other source. Rows keep their order: see ``open_dataset``.
      schema: names the columns.
      folder: to be made.
      users: one row per user with the features, in memory; users that are not in the source are cold.
      items: likewise.
      also: further interactions whose ids belong to the catalogue as cold ones (validation and test). Encode them with
        the result's ``encoder``.
      like: an encoder whose statistics are taken over, see ``Encoder.fit``. Needed for a scaled target and for context
        columns, whose statistics are not fitted in passes: fit one on as many rows as memory holds.
      window: see ``open_dataset``.

    Returns:
      The dataset, as ``open_dataset`` returns it.

    Raises:
      ImportError: the extra ``data`` (pyarrow) is not installed and the source is Parquet.
      FileNotFoundError: there is no such file, or no Parquet file in the folder.
      FileExistsError: the folder exists.
      ValueError: a column is missing, there is no row, statistics need ``like``, a file is not Parquet, or what
        ``Encoder.encode`` refuses.
      TypeError: ids of mixed types.
    """
    folder = Path(folder)
    need_window(window)
    if folder.exists():
        raise FileExistsError(
            f"{folder} exists. Open what was written there with data.open_dataset, or remove it or name another."
        )
    _need_statistics(schema, like)
    frames = (lambda columns: source()) if callable(source) else _parquet(_files(source))
    rows, ids = _survey(frames, schema)
    encoder = Encoder.fit(ids, schema, users=users, items=items, also=also, like=like)
    with _replacing(folder) as temporary:
        _write(temporary, encoder, frames, rows)
    return open_dataset(folder, window=window)


def open_dataset(folder: str | Path, *, window: int = WINDOW) -> Dataset:
    """A dataset whose columns stay on disk, for ``fit`` and ``data.Batches``. Nothing is encoded again.

    The columns are memory-mapped: the system reads pages as they are needed and takes their memory back when it is
    short. While training, one window is in memory; ``Batches`` says how rows are shuffled.

    *What needs memory for every row all the same*: rows that are not in the order of their time are sorted (over 20
    bytes a row): sort the source, or leave time out of the schema. Validation, ``recommend`` and ``write_artefact``
    group rows by user to leave out what was seen (8 bytes). ``save`` copies one column at a time, and a recommender
    that ``load`` returns has them in memory. Where some rows weigh 0 the others take 8 bytes. A model with a history
    takes 8 bytes, and about 40 while fit prepares; ``reject_seen`` 12, and more while it sorts, where users times items
    exceed 2^28.

    Args:
      folder: that ``encode_to_disk`` wrote.
      window: rows that are read and shuffled together, rounded up to whole chunks of steps. A larger one mixes better
        and takes more memory: 4 bytes a row and column, and 8 for the order.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: ``encode_to_disk`` did not write it, a file is missing, or sizes, types or indices are not what was
        written. Contents are not hashed, which would read all of them.
    """
    folder = Path(folder)
    need_window(window)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Expected one that data.encode_to_disk wrote.")
    from jaxrec.export import load  # files of encoders are that room's, which imports this one

    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != _FORMAT or manifest["version"] != _VERSION:
            raise ValueError(f"format {manifest['format']!r}, version {manifest['version']}")
        arrays = {name: _mapped(folder / f"{name}.npy", told) for name, told in manifest["arrays"].items()}
        return Dataset(load(folder / "encoder.jaxrec"), window=window, **arrays)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder} is not what data.encode_to_disk of this version wrote, or it was changed ({error}). Remove it "
            "and encode the source again."
        ) from None


def _mapped(path: Path, told: dict[str, Any]) -> np.ndarray:
    size = path.stat().st_size
    if size != told["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes, expected {told['bytes']}")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if [array.dtype.str, list(array.shape)] != [told["dtype"], told["shape"]]:
        raise ValueError(f"{path.name} is {array.dtype}{list(array.shape)}, expected {told['dtype']}{told['shape']}")
    return array.view(np.ndarray)  # slices of a memmap cost more, and the map stays its base


def _need_statistics(schema: Schema, like: Encoder | None) -> None:
    scaled = schema.target_scale is not None and (
        like is None or getattr(like.target, "scale", "") != schema.target_scale
    )
    known = () if like is None else tuple(each.feature for each in like.context)
    lacking = [repr(schema.target)] if scaled else []
    lacking += [repr(each.column) for each in schema.context if each not in known]
    if lacking:
        raise ValueError(
            f"Statistics of {', '.join(lacking)} are not fitted in passes. Fit them on rows that fit in memory and "
            "take them over: like=data.Encoder.fit(rows, schema, ...)."
        )


def _files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    paths = [Path(each) for each in ([source] if isinstance(source, str | Path) else source)]
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        what = missing[0] if missing else f"Parquet file in {', '.join(map(str, paths)) or 'an empty list'}"
        raise FileNotFoundError(f"There is no {what}. Expected .parquet files, or a folder of them.")
    return files


def _parquet(files: list[Path]) -> _Frames:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError(
            "Parquet files are read with pyarrow, which is not installed: pip install 'jaxrec[data]'. Or give a "
            "function that returns an iterator of frames."
        ) from None

    def frames(columns: list[str]) -> Iterator[pd.DataFrame]:
        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    for part in file.iter_batches(batch_size=_READ, columns=columns):
                        yield part.to_pandas()
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path} is no whole Parquet file ({error}). Convert it, or write it again.") from None

    return frames


def _survey(frames: _Frames, schema: Schema) -> tuple[int, pd.DataFrame]:
    """The number of rows, and a frame that has every id of the source and no value in the other columns."""
    names = [name for name in (schema.user, schema.item) if name is not None] or list(schema.columns())
    parts: dict[str, list[Vocabulary]] = {name: [] for name in names if name in (schema.user, schema.item)}
    rows = 0
    for frame in _parts(frames, names):
        rows += len(frame)
        for name, vocabularies in parts.items():
            vocabularies.append(of_part(frame[name].unique()))
            while len(vocabularies) > 1 and len(vocabularies[-2]) < 2 * len(vocabularies[-1]):  # an id moves rarely
                _join(vocabularies)
    if not rows:
        raise ValueError("The source is empty. Expected at least one row.")
    for vocabularies in parts.values():
        while len(vocabularies) > 1:
            _join(vocabularies)
    found = {name: vocabularies[0] for name, vocabularies in parts.items()}
    longest = max([1, *map(len, found.values())])
    ids = {name: np.resize(vocabulary.ids, longest) for name, vocabulary in found.items()}
    return rows, pd.DataFrame(ids, index=range(longest)).reindex(columns=list(schema.columns()))


def _join(vocabularies: list[Vocabulary]) -> None:
    """The last two become one."""
    last = vocabularies.pop()
    vocabularies[-1] = vocabularies[-1].extend(last.ids)


def _parts(frames: _Frames, columns: list[str]) -> Iterator[pd.DataFrame]:
    for frame in frames(columns):
        if len(frame):
            need_columns(frame, tuple(columns), "interactions")
            yield frame


def _write(folder: Path, encoder: Encoder, frames: _Frames, rows: int) -> None:
    from jaxrec.export import save

    written, arrays = 0, {}
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for frame in _parts(frames, list(encoder.schema.columns())):
            columns = encoder.encode(frame).columns()
            if not files:
                for name, values in columns.items():
                    files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
                    shape, dtype = (rows, *values.shape[1:]), values.dtype.str
                    header = {"descr": dtype, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(files[name], header)
                    arrays[name] = {"dtype": dtype, "shape": list(shape)}
            for name, values in columns.items():
                files[name].write(np.ascontiguousarray(values).data)
            written += len(frame)
    if written != rows:
        raise ValueError(
            f"The source had {rows} rows in the first pass and {written} in the second. Give the same rows each time."
        )
    for name, told in arrays.items():
        told["bytes"] = (folder / f"{name}.npy").stat().st_size
    save(encoder, folder / "encoder.jaxrec")
    (folder / "manifest.json").write_text(json.dumps({"format": _FORMAT, "version": _VERSION, "arrays": arrays}))


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside that takes the name if the block ends well, and vanishes if not."""
    from jaxrec.export._files import as_new

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        as_new(temporary, 0o777)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
