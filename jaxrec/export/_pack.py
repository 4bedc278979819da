"""Frozen values as JSON and arrays, without pickle: only classes named here are ever built."""

import dataclasses
import datetime
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import models
from jaxrec._recommender import Recommender
from jaxrec._types import Features, Folding, ImplicitSquares
from jaxrec.data import (
    Categorical,
    Encoder,
    Interactions,
    Labels,
    Numeric,
    Scaler,
    Schema,
    TfidfSVD,
    Vector,
    Vocabulary,
)
from jaxrec.data._features import FittedFeature

_MODELS = tuple(
    cls for name in models.__all__ if isinstance(cls := getattr(models, name), type) and dataclasses.is_dataclass(cls)
)
_CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        Categorical, Encoder, Features, FittedFeature, Folding, ImplicitSquares, Interactions, Labels, Numeric,
        Recommender, Scaler, Schema, TfidfSVD, Vector, Vocabulary, *_MODELS,
    )
}  # fmt: skip


def pack(value: Any, arrays: dict[str, np.ndarray], *, name: str = "") -> Any:
    """``value`` as JSON; its arrays go to ``arrays`` by name.

    Raises:
      TypeError: something in it cannot be stored without pickle.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.integer | np.floating):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray | jax.Array):
        return _pack_array(np.asarray(value), arrays, name, device=isinstance(value, jax.Array))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) is _CLASSES.get(type(value).__name__):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {"class": type(value).__name__, "fields": _pack_all(fields, arrays, name)}
        if name.partition("/")[0] == "model":  # nothing else of a class of one's own could be given to ``load``
            return {"custom": type(value).__name__}
    if isinstance(value, Features):
        return {"class": "Features", "fields": _pack_all(value._asdict(), arrays, name)}
    if isinstance(value, tuple | list):
        return {"tuple": [pack(each, arrays, name=f"{name}/{at}") for at, each in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": _pack_all(value, arrays, name)}
    raise TypeError(f"Cannot store {name} of type {type(value).__name__} without pickle.")


def unpack(packed: Any, arrays: dict[str, np.ndarray], *, custom: Any = None) -> Any:
    """The value that ``pack`` was given; ``custom`` stands in for a class of the user's own.

    Raises:
      ValueError: the JSON names a class or array that is not known, or ``custom`` is of another class.
    """
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return _unpack_array(packed, arrays)
    if "tuple" in packed:
        return tuple(unpack(each, arrays, custom=custom) for each in packed["tuple"])
    if "dict" in packed:
        return {name: unpack(each, arrays, custom=custom) for name, each in packed["dict"].items()}
    if "custom" in packed:
        if custom is None:
            raise ValueError(
                f"The file holds a model of a class of your own, {packed['custom']}. Give it: load(path, model=...)."
            )
        if type(custom).__name__ != packed["custom"]:
            raise ValueError(
                f"The file holds a model of a class of your own, {packed['custom']}, got {custom!r}. Give that one."
            )
        return custom
    if packed.get("class") not in _CLASSES:
        raise ValueError(f"The file names {packed.get('class')!r}, which this version of jaxrec does not know.")
    fields = {name: unpack(each, arrays, custom=custom) for name, each in packed["fields"].items()}
    return _CLASSES[packed["class"]](**fields)


def customs(value: Any) -> list[Any]:
    """The models in a model, or itself, that are of a class of the user's own, which a file cannot hold."""
    if isinstance(value, tuple):
        return [found for each in value for found in customs(each)]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    if type(value) is not _CLASSES.get(type(value).__name__):  # a subclass of one of ours is the user's own
        return [value]
    return [found for field in dataclasses.fields(value) for found in customs(getattr(value, field.name))]


def _pack_all(values: dict[str, Any], arrays: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    return {key: pack(each, arrays, name=f"{name}/{key}" if name else key) for key, each in values.items()}


def _pack_array(array: np.ndarray, arrays: dict[str, np.ndarray], name: str, *, device: bool) -> dict[str, Any]:
    if array.dtype == object:
        if all(type(each) is str for each in array):
            arrays[f"{name}/text"], arrays[f"{name}/ends"] = text_arrays(array)
            return {"array": name, "kind": "text"}
        return {"array": name, "kind": "objects", "values": [_pack_object(each) for each in array]}
    stored = array
    if array.dtype.kind not in "biufc":  # bfloat16 and its like, which a .npy file would not name
        stored = array.view(f"u{array.dtype.itemsize}")
    arrays[name] = stored
    return {"array": name, "kind": "device" if device else "host", "dtype": array.dtype.name}


def _unpack_array(packed: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    name, kind = packed["array"], packed["kind"]
    if kind == "objects":
        values = np.empty(len(packed["values"]), dtype=object)
        values[:] = [_unpack_object(each) for each in packed["values"]]
        return values
    if kind == "text":
        return text_from(arrays[f"{name}/text"], arrays[f"{name}/ends"])
    array = arrays[name]
    if array.dtype.name != packed["dtype"]:
        array = array.view(jnp.dtype(packed["dtype"]))
    return jnp.asarray(array) if kind == "device" else array


def text_arrays(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strings as one array of UTF-8 bytes and the end of each."""
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(each) for each in encoded], dtype=np.int64)


def text_from(text: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The inverse of ``text_arrays``."""
    data, values = text.tobytes(), np.empty(len(ends), dtype=object)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    values[:] = [data[start:end].decode("utf-8", "surrogatepass") for start, end in zip(starts, ends, strict=True)]
    return values


_OBJECTS: dict[str, tuple[type, Any, Any]] = {
    "bool": (bool, bool, bool),
    "int": (int, int, int),
    "float": (float, float.hex, float.fromhex),
    "str": (str, str, str),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
}


def _pack_object(value: Any) -> Any:
    if isinstance(value, tuple):
        return ["tuple", [_pack_object(each) for each in value]]
    for name, (cls, to_json, _) in _OBJECTS.items():
        if type(value) is cls:
            return [name, to_json(value)]
    raise TypeError(
        f"Cannot store ids of type {type(value).__name__} without pickle. Stored are integers, strings, bytes, floats, "
        "bools, dates, UUIDs and tuples of them: convert the ids, for example to str."
    )


def _unpack_object(packed: Any) -> Any:
    kind, value = packed
    return tuple(_unpack_object(each) for each in value) if kind == "tuple" else _OBJECTS[kind][2](value)
