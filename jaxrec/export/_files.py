"""``save`` and ``load``: one file with JSON and arrays, checked before anything is built, never unpickled."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec.data import Encoder, TfidfSVD
from jaxrec.export._pack import customs, pack, unpack
from jaxrec.train._step import check_params

_FORMAT, _VERSION = "jaxrec", 2


def save(value: Recommender | Encoder | TfidfSVD, path: str | Path) -> None:
    """Writes a recommender (model, parameters, encoder and what users have seen) to one file, or an encoder alone.

    The file is a zip archive of ``manifest.json`` and ``.npy`` arrays. It is written under a temporary name and then
    renamed, so that an interrupted call leaves an older file as it was. Devices are not stored: a recommender that lay
    on a mesh is loaded without one.

    Args:
      value: from ``fit``, ``transfer.adapt(...).recommender``, ``Encoder.fit`` or ``TfidfSVD.fit``.
      path: of the file; a folder that does not exist is made.

    Raises:
      TypeError: the value is of another kind, ids are of a type that cannot be stored without pickle, or a model has
        parts of different classes of your own.
    """
    expect(value, (Recommender, Encoder, TfidfSVD), "value")
    own = customs(value.model) if isinstance(value, Recommender) else []
    if any(each != own[0] for each in own):
        names = ", ".join(type(each).__name__ for each in own)
        raise TypeError(
            f"Cannot store models of classes of your own that differ, {names}: "
            "load(path, model=...) takes one. Save their recommenders one by one and mix them again."
        )
    if isinstance(value, Recommender):
        value = value.replace(mesh=None)
    arrays: dict[str, np.ndarray] = {}
    tree = pack(value, arrays)
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "tree": tree,
        "arrays": {name: _describe(array) for name, array in arrays.items()},
    }
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for number, array in enumerate(arrays.values()):
            with archive.open(f"arrays/{number}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def load(path: str | Path, *, model: Any = None) -> Any:
    """The recommender, encoder or ``TfidfSVD`` that ``save`` wrote.

    Names, shapes, dtypes and a checksum of every array are checked before anything is built.

    Args:
      path: of the file.
      model: the model, if it is of a class of your own, which a file cannot hold; as it was saved.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: ``save`` did not write the file, or it is of another version, truncated or changed; or ``model`` is
        missing, of another class, or not the one that the parameters belong to.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Expected one that jaxrec.save wrote.")
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read("manifest.json"))
            if manifest.get("format") != _FORMAT:
                raise ValueError(f"{path} is {manifest.get('format')!r}, expected {_FORMAT!r}.")
            if manifest["version"] != _VERSION:
                raise ValueError(
                    f"{path} has version {manifest['version']} of the file format and this jaxrec reads {_VERSION}. "
                    "Load it with the jaxrec that wrote it, or train again."
                )
            arrays = {
                name: _read(archive.read(f"arrays/{number}.npy"), name, described)
                for number, (name, described) in enumerate(manifest["arrays"].items())
            }
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a file that jaxrec.save wrote, or it is truncated ({error}). Save it again."
        ) from None
    value = unpack(manifest["tree"], arrays, custom=model)
    if not isinstance(value, Recommender | Encoder | TfidfSVD):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a recommender, an encoder or a TfidfSVD.")
    if model is not None and not (isinstance(value, Recommender) and customs(value.model)):
        raise ValueError(f"{path} needs no model from you: it holds {value}. Leave model= out.")
    if model is not None and isinstance(value, Recommender):
        check_params(value.model, value.params)
    return value


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place if the block ends well, and vanishes if not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    as_new(name, 0o666)
    try:
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def as_new(path: str | Path, mode: int) -> None:
    """Gives a temporary file or folder, which is for its owner alone, the permissions of any other new one."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, mode & ~mask)


def _describe(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": _digest(array)}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(array, order="C").tobytes()).hexdigest()


def _read(data: bytes, name: str, described: dict[str, Any]) -> np.ndarray:
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"The array {name!r} cannot be read ({error}). The file is damaged: save it again.") from None
    if _describe(array) != described:
        raise ValueError(
            f"The array {name!r} is {array.dtype.name}{list(array.shape)} and does not agree with the manifest's "
            f"{described['dtype']}{described['shape']} and checksum. The file is damaged: save it again."
        )
    return array
