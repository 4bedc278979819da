"""The ahead-of-time artefact: compiled functions, their arrays and a reader, for machines without jaxrec."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxrec import _tree
from jaxrec._fold_in import fold_in, fold_in_squares, fold_in_values
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, FoldIn, Squares
from jaxrec.data import Vocabulary
from jaxrec.data._scaling import backward, forward
from jaxrec.export import _serve
from jaxrec.export._pack import text_arrays
from jaxrec.models import take
from jaxrec.ranking._top_k import top_k

PLATFORMS = ("cpu", "cuda", "tpu")

load_artefact = _serve.load


def write_artefact(recommender: Recommender, folder: str | Path, *, k: int = 100) -> None:
    """Writes a folder from which jax and numpy alone score and recommend, on CPU, GPU and TPU.

    The folder has ``manifest.json``, ``arrays.npz``, functions exported by ``jax.export`` with a batch of any size, and
    ``serve.py``, which reads it. Users who are not known are recommended to from what they touched. It is written
    under a temporary name and then renamed; an older artefact there is replaced.

    Args:
      recommender: from ``fit``, ``load`` or ``transfer.adapt``.
      folder: is made.
      k: longest list; cut to the number of items.

    Raises:
      TypeError: ids are neither integers nor strings.
      FileExistsError: the folder exists and holds no artefact.
      ImportError: the extra ``export`` (flatbuffers) is not installed.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise FileExistsError(f"{folder} exists and holds no artefact. Give another folder, or remove it.")
    encoder = recommender.encoder
    has_items = encoder.schema.item is not None
    plan = _Plan(recommender, min(k, max(len(encoder.items), 1)))
    device = _tree.flatten(plan.arrays())
    functions: dict[str, Callable[..., Any]] = {"score": plan.score}
    if has_items and not recommender.reads_context:
        functions["recommend"] = plan.recommend
    exported = {name: _export(function, plan, device, name) for name, function in functions.items()}

    host = {**_id_arrays("user", encoder.users), **_id_arrays("item", encoder.items), **_seen_arrays(recommender)}
    stored = {name: np.asarray(array) for name, array in device.items()}
    odd = {name: array.dtype.name for name, array in stored.items() if array.dtype.kind not in "biufc"}
    stored |= {name: stored[name].view(f"u{stored[name].dtype.itemsize}") for name in odd}
    manifest = {
        "format": _serve.FORMAT,
        "version": _serve.VERSION,
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "functions": list(functions),
        "device": list(device),
        "dtypes": odd,
        "k": plan.k,
        "history": recommender.pooled_history,
        "folds": plan.folds,
        "has_items": has_items,
        "context": sum(each.width for each in encoder.context),
        "model": repr(recommender.model),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        np.savez(temporary / "arrays.npz", allow_pickle=False, **stored, **host)
        for name, function in exported.items():
            (temporary / f"{name}.jaxexport").write_bytes(function.serialize())
        shutil.copyfile(_serve.__file__, temporary / "serve.py")
        names = sorted(path.name for path in temporary.iterdir() if path.name != "serve.py")
        manifest["sha256"] = {name: hashlib.sha256((temporary / name).read_bytes()).hexdigest() for name in names}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(old / "artefact")
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class _Plan:
    """The functions to be exported, of dicts of arrays."""

    def __init__(self, recommender: Recommender, k: int) -> None:
        self._of = recommender
        self.k = k
        foldable = (
            recommender.factorises and not recommender.pooled_history and recommender.encoder.schema.item is not None
        )
        self.folds = None if not foldable else "counts" if recommender.seen.value is None else "values"

    def arrays(self) -> dict[str, Any]:
        recommender = self._of
        size = len(recommender.encoder.features.item_row)
        live = (np.arange(size) > 0) & (np.arange(size) <= len(recommender.encoder.items))
        features = {name: value for name, value in recommender.features._asdict().items() if value is not None}
        arrays = {"params": recommender.params, "features": features, "items": {"live": jnp.asarray(live)}}
        if recommender.factorises:
            arrays["items"]["vectors"] = recommender.catalogue
        if self.folds:
            arrays["prior"] = recommender.prior.user._asdict() | {"noise": jnp.float32(recommender.prior.noise)}
        return arrays

    def inputs(self, name: str) -> dict[str, jax.ShapeDtypeStruct]:
        scope = jax.export.SymbolicScope()

        def shape(dimensions: str, dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(jax.export.symbolic_shape(dimensions, scope=scope), dtype)

        length, context = self._of.pooled_history, sum(each.width for each in self._of.encoder.context)
        inputs = {"user": shape("b", jnp.int32)}
        if length:
            inputs["touched"] = shape(f"b, {length}", jnp.int32)
        elif self.folds:
            inputs["touched"] = shape("b, t", jnp.int32)
            if self.folds == "values":
                inputs |= {"value": shape("b, t", jnp.float32), "given": shape("b, t", jnp.float32)}
        if name == "recommend":
            inputs["exclude"] = shape("b, e", jnp.int32)
        elif self._of.encoder.schema.item is not None:
            inputs["item"] = shape("b", jnp.int32)
        if context:
            inputs["context"] = shape(f"b, {context}", jnp.float32)
        return inputs

    def recommend(self, arrays: dict[str, Any], inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        live = arrays["items"]["live"]
        if self._of.factorises:
            scores = self._user_vectors(arrays, inputs) @ arrays["items"]["vectors"].T
        else:
            everything = jnp.arange(live.shape[0], dtype=jnp.int32)
            batch = Batch(user=inputs["user"], shared_negatives=everything, history=inputs.get("touched"))
            scores = self._of.model.apply(arrays["params"], batch, _features(arrays))
        row = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
        gone = jnp.zeros(scores.shape, bool).at[row, inputs["exclude"]].set(True, mode="drop") | ~live[None, :]
        top = top_k(scores, k=self.k, exclude=gone)
        return {"item": jnp.maximum(top.position, 0), "score": top.score}

    def score(self, arrays: dict[str, Any], inputs: dict[str, jax.Array]) -> jax.Array:
        recommender = self._of
        item, context = inputs.get("item"), inputs.get("context")
        if recommender.factorises and item is not None and context is None:
            vectors = take(arrays["items"]["vectors"], item)
            scores = jnp.einsum("bd,bd->b", self._user_vectors(arrays, inputs), vectors)
        else:
            batch = Batch(user=inputs["user"], history=inputs.get("touched") if recommender.pooled_history else None)
            batch = batch._replace(item=None if item is None else item[:, None], context=self._context(context))
            scores = recommender.model.apply(arrays["params"], batch, _features(arrays))[:, 0]
        if recommender.link == "sigmoid":
            return jax.nn.sigmoid(scores)
        target = recommender.encoder.target
        return (
            scores
            if target is None
            else backward(jnp, target.scale, _float32(target.statistics), scores[:, None])[:, 0]
        )

    def _user_vectors(self, arrays: dict[str, Any], inputs: dict[str, jax.Array]) -> jax.Array:
        features, touched = _features(arrays), inputs.get("touched")
        batch = Batch(user=inputs["user"], history=touched)
        model: Any = self._of.model
        vectors = model.user_vectors(arrays["params"], batch, features)
        if not self.folds or touched is None:
            return vectors
        prior = dict(arrays["prior"])
        noise, mask = prior.pop("noise"), (touched > 0).astype(jnp.float32)
        others = take(arrays["items"]["vectors"], touched)
        if "gram" in prior:
            return fold_in_squares(vectors, Squares(**prior), others, mask)
        if self.folds == "counts":
            return fold_in(vectors, FoldIn(**prior), others, mask)
        return fold_in_values(
            vectors,
            FoldIn(**prior),
            others,
            mask,
            self._scaled(inputs["value"], inputs["given"]),
            noise=noise,
        )

    def _scaled(self, value: jax.Array, given: jax.Array) -> jax.Array:
        """Values that the caller gives are in the target's own unit, stored ones are scaled already."""
        target = self._of.encoder.target
        if target is None:
            return value
        scaled = forward(jnp, target.scale, _float32(target.statistics), value.reshape(-1, 1)).reshape(value.shape)
        return jnp.where(given > 0, scaled, value)

    def _context(self, context: jax.Array | None) -> jax.Array | None:
        if context is None:
            return None
        columns, start = [], 0
        for each in self._of.encoder.context:
            part = context[:, start : start + each.width]
            if each.scaler is not None:
                part = forward(jnp, each.scaler.scale, _float32(each.scaler.statistics), part)
            columns.append(jnp.nan_to_num(part, nan=0.0))
            start += each.width
        return jnp.concatenate(columns, axis=1)


def _export(function: Any, plan: _Plan, device: dict[str, Any], name: str) -> jax.export.Exported:
    shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in device.items()}
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(_tree.unflatten(shapes), plan.inputs(name))


def _features(arrays: dict[str, Any]) -> Features:
    return Features(**arrays["features"])


def _float32(statistics: np.ndarray) -> jax.Array:
    return jnp.asarray(statistics, jnp.float32)


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
    }
