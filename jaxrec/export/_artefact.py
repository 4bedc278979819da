"""The ahead-of-time artefact: lowered functions, their arrays and a reader, for machines without jaxrec."""

import hashlib
import importlib.util
import json
import operator
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

from jaxrec import _tree
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec.data import Vocabulary
from jaxrec.data._scaling import centred
from jaxrec.export import _serve
from jaxrec.export._files import as_new
from jaxrec.export._functions import AFFINE, Functions, exported
from jaxrec.export._pack import text_arrays
from jaxrec.ranking._top_k import most_users
from jaxrec.ranking._vectors import pairs_at_once, users_at_once

PLATFORMS = ("cpu", "cuda", "tpu")

load_artefact = _serve.load


def write_artefact(recommender: Recommender, folder: str | Path, *, k: int = 100) -> None:
    """Writes a folder from which jax, numpy and flatbuffers alone score and recommend, on CPU, GPU and TPU.

    The folder has ``manifest.json``, ``arrays.npz``, functions exported by ``jax.export`` with a batch of any size, and
    ``serve.py``, which reads it. Users who are not known are recommended to from what they touched. It is written
    under a temporary name and then renamed; an older artefact there is replaced.

    Args:
      recommender: from ``fit``, ``load`` or ``transfer.adapt(...).recommender``.
      folder: is made.
      k: longest list; cut to the number of items.

    Raises:
      TypeError: the recommender is none, or ids are neither integers nor strings.
      FileExistsError: the folder exists and holds no artefact.
      ImportError: the extra ``export`` (flatbuffers) is not installed.
    """
    expect(recommender, Recommender, "recommender")
    folder = Path(folder)
    if folder.exists() and not _is_artefact(folder):
        raise FileExistsError(f"{folder} exists and holds no artefact. Give another folder, or remove it.")
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("An artefact needs flatbuffers. Install the extra: pip install 'jaxrec[export]'.")
    encoder = recommender.encoder
    host = {**_id_arrays("user", encoder.users), **_id_arrays("item", encoder.items), **_seen_arrays(recommender)}
    has_items = encoder.schema.item is not None
    functions = Functions(recommender, min(operator.index(k), max(len(encoder.items), 1)))
    device = _tree.flatten(functions.arrays())
    names = ["score"] + ["recommend"] * (has_items and not recommender.reads_context)
    programs = {name: exported(functions, name, device, PLATFORMS) for name in names}

    stored = {name: np.asarray(array) for name, array in device.items()}
    odd = {name: array.dtype.name for name, array in stored.items() if array.dtype.kind not in "biufc"}
    stored |= {name: stored[name].view(f"u{stored[name].dtype.itemsize}") for name in odd}
    manifest = {
        "format": _serve.FORMAT,
        "version": _serve.VERSION,
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "functions": names,
        "device": list(device),
        "dtypes": odd,
        "k": functions.k,
        "users_at_once": min(most_users(len(encoder.features.item_row)), users_at_once(recommender)),
        "pairs_at_once": min(_serve.ROWS, pairs_at_once(recommender)),
        "history": functions.history,
        "folds": functions.folds,
        "has_items": has_items,
        "context": sum(each.width for each in encoder.context) if recommender.reads_context else 0,
        "context_centre": _context_centre(recommender),
        "log1p_context": _log1p_columns(recommender),
        "log1p_target": encoder.schema.target if encoder.schema.target_scale == "log1p" else None,
        "target_range": _target_range(recommender),
        "target_affine": _target_affine(recommender),
        "model": repr(recommender.model),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        np.savez(temporary / "arrays.npz", allow_pickle=False, **stored, **host)
        for name, program in programs.items():
            (temporary / f"{name}.jaxexport").write_bytes(program.serialize())
        shutil.copyfile(_serve.__file__, temporary / "serve.py")
        files = sorted(path for path in temporary.iterdir() if path.name != "serve.py")
        manifest["sha256"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        as_new(temporary, 0o777)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(old / "artefact")
            try:
                temporary.rename(folder)
            except BaseException:
                (old / "artefact").rename(folder)
                old.rmdir()
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _log1p_columns(recommender: Recommender) -> list[tuple[int, str]]:
    """Number and name of each column of context that has to be above -1."""
    names: list[tuple[bool, str]] = []
    for each in recommender.encoder.context if recommender.reads_context else ():
        names += [(each.scaler is not None and each.scaler.scale == "log1p", each.feature.column)] * each.width
    return [(number, name) for number, (bounded, name) in enumerate(names) if bounded]


def _context_centre(recommender: Recommender) -> list[float]:
    """What is taken from each column of context before it is float32."""
    centres: list[float] = []
    for each in recommender.encoder.context if recommender.reads_context else ():
        scaler = each.scaler
        centres += [0.0] * each.width if scaler is None else centred(scaler.scale, scaler.statistics)[0].tolist()
    return centres


def _target_range(recommender: Recommender) -> tuple[str | None, float, float] | None:
    """The target's name and its ends in training where its scale ends there."""
    target = recommender.encoder.target
    if target is None or target.scale != "quantile":
        return None
    return recommender.encoder.schema.target, float(target.statistics[0, 0]), float(target.statistics[-1, 0])


def _target_affine(recommender: Recommender) -> list[float] | None:
    """What a scaled target lacks, and its unit."""
    target = recommender.encoder.target
    if target is None or target.scale not in AFFINE or recommender.link == "rank":
        return None
    return target.statistics[:, 0].tolist()


def _is_artefact(folder: Path) -> bool:
    """Other folders have a ``manifest.json`` too, those of ``data.encode_to_disk`` among them."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == _serve.FORMAT


def _id_arrays(side: str, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    if vocabulary.kind == "int":
        return {f"ids/{side}": vocabulary.ids}
    if vocabulary.kind != "str":
        raise TypeError(f"An artefact holds integer and string ids, got {vocabulary!r}. Convert the {side} ids to str.")
    text, ends = text_arrays(vocabulary.ids)
    return {f"ids/{side}_text": text, f"ids/{side}_ends": ends}


def _seen_arrays(recommender: Recommender) -> dict[str, np.ndarray]:
    seen, added = recommender.seen, recommender.added
    return {
        "seen/start": seen.start,
        "seen/item": seen.item[seen.order],
        "seen/added_start": added.start,
        "seen/added_item": added.item[added.order],
        "seen/added_value": np.zeros(0, np.float32) if added.value is None else added.value[added.order],
        "seen/added_weight": (np.ones(len(added), np.float32) if added.weight is None else added.weight)[added.order],
    }
