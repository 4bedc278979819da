"""The functions of an artefact: pure, of dicts of arrays, with a batch of any size."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxrec import _tree
from jaxrec._exact import exact
from jaxrec._fold_in import folded
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, FoldIn, Squares
from jaxrec.data._scaling import backward, centred, forward
from jaxrec.models import Mixture, take
from jaxrec.models._mixture import latest
from jaxrec.ranking._top_k import top_k
from jaxrec.ranking._vectors import settled

AFFINE = ("zscore", "minmax")  # of such targets the reader takes and gives numbers in float64, which these never see
Arrays = dict[str, Any]
Inputs = dict[str, jax.Array]


class Functions:
    """``score`` and ``recommend`` of a recommender, of ``arrays`` and of what is asked.

    Inputs are ``user`` [b] (entity indices, 0 for somebody unknown), and where the model wants them ``history``
    [b, length] (the latest of all items touched), ``added`` [b, t] (those touched since the training, with their
    ``weight``, ``value`` and whether that is ``given`` in the target's own unit) and ``context`` (in its own unit, less
    the manifest's ``context_centre``); then ``item`` [b] for ``score`` or ``exclude`` [b, e] for ``recommend``.
    """

    def __init__(self, recommender: Recommender, k: int) -> None:
        self._of = recommender
        self._scores = _scores_of(recommender)
        self.k = k
        self.history: int = recommender.pooled_history
        self.folds = None if not self._scores.folds else "counts" if recommender.seen.value is None else "values"

    def arrays(self) -> Arrays:
        recommender = self._of
        size = len(recommender.encoder.features.item_row)
        live = (np.arange(size) > 0) & (np.arange(size) <= len(recommender.encoder.items))
        features = {name: value for name, value in recommender.features._asdict().items() if value is not None}
        return {"model": self._scores.arrays(), "features": features, "live": jnp.asarray(live)}

    def inputs(self, name: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, with symbols for whatever may have any size."""
        scope = jax.export.SymbolicScope()

        def shape(dimensions: str, dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(jax.export.symbolic_shape(dimensions, scope=scope), dtype)

        context = sum(each.width for each in self._of.encoder.context) if self._of.reads_context else 0
        inputs = {"user": shape("b", jnp.int32)}
        if self.history:
            inputs["history"] = shape(f"b, {self.history}", jnp.int32)
        if self.folds:
            inputs |= {"added": shape("b, t", jnp.int32), "weight": shape("b, t", jnp.float32)}
        if self.folds == "values":
            inputs |= {"value": shape("b, t", jnp.float32), "given": shape("b, t", jnp.float32)}
        if name == "recommend":
            inputs["exclude"] = shape("b, e", jnp.int32)
        elif self._of.encoder.schema.item is not None:
            inputs["item"] = shape("b", jnp.int32)
        if context:
            inputs["context"] = shape(f"b, {context}", jnp.float32)
        return inputs

    def recommend(self, arrays: Arrays, inputs: Inputs) -> dict[str, jax.Array]:
        live = arrays["live"]
        scores = self._scores.of_all(arrays["model"], self._prepared(inputs), Features(**arrays["features"]))
        scores = jnp.where(jnp.isnan(scores), jnp.nan, scores)  # one with a sign would come last and not be seen
        row = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
        gone = jnp.zeros(scores.shape, bool).at[row, inputs["exclude"]].set(True, mode="drop") | ~live[None, :]
        top = top_k(scores, k=self.k, exclude=gone)
        return {"item": jnp.where(top.position < 0, 0, top.position), "score": top.score}

    def score(self, arrays: Arrays, inputs: Inputs) -> jax.Array:
        scores = self._scores.of_pairs(arrays["model"], self._prepared(inputs), Features(**arrays["features"]))
        if self._of.link == "sigmoid":
            scores = jax.nn.sigmoid(scores)
        target = self._of.encoder.target
        if target is None or self._of.link == "rank" or target.scale in AFFINE:
            return scores
        return backward(jnp, target.scale, _float32(target.statistics), scores[:, None])[:, 0]

    def _prepared(self, inputs: Inputs) -> Inputs:
        """With context and values on the scales of the training."""
        new = dict(inputs)
        if "context" in inputs:
            columns, start = [], 0
            for each in self._of.encoder.context:
                part = inputs["context"][:, start : start + each.width]
                if each.scaler is not None:
                    scale, statistics = each.scaler.scale, each.scaler.statistics
                    part = forward(jnp, scale, _float32(centred(scale, statistics)[1]), part)
                columns.append(jnp.nan_to_num(part, nan=0.0))
                start += each.width
            new["context"] = jnp.concatenate(columns, axis=1)
        target = self._of.encoder.target
        if "value" in inputs and target is not None:  # stored values are scaled already
            value = inputs["value"]
            scaled = forward(jnp, target.scale, _float32(target.statistics), value.reshape(-1, 1)).reshape(value.shape)
            new["value"] = jnp.where(inputs["given"] > 0, scaled, value)
        return new


def _scores_of(recommender: Recommender) -> "_Single | _Gated":
    return _Gated(recommender) if recommender.parts else _Single(recommender)


class _Single:
    """Of one model, with fold-in where it factorises and reads no histories."""

    def __init__(self, recommender: Recommender) -> None:
        self._of = recommender
        self.folds = recommender.folds and recommender.encoder.schema.item is not None

    def arrays(self) -> Arrays:
        recommender = self._of
        arrays: Arrays = {"params": recommender.params}
        if recommender.factorises:
            arrays["vectors"] = recommender.catalogue
        if self.folds:
            arrays["prior"] = recommender.prior.user._asdict() | {"noise": jnp.float32(recommender.prior.noise)}
            users = np.arange(len(recommender.encoder.features.user_row))
            arrays["settled"] = jnp.asarray(settled(recommender, users))
        return arrays

    def of_all(self, arrays: Arrays, inputs: Inputs, features: Features) -> jax.Array:
        if self._of.factorises:
            return self._users(arrays, inputs, features) @ arrays["vectors"].T
        size, model = len(self._of.encoder.features.item_row), self._of.model
        width = min(getattr(model, "columns", 512), size)
        blocks = np.pad(np.arange(size, dtype=np.int32), (0, -size % width)).reshape(-1, width)
        batch = self._batch(inputs)

        def of_block(items: jax.Array) -> jax.Array:
            return model.apply(arrays["params"], batch._replace(shared_negatives=items), features)

        scores = jax.lax.map(of_block, jnp.asarray(blocks))
        return jnp.moveaxis(scores, 0, 1).reshape(scores.shape[1], -1)[:, :size]

    def of_pairs(self, arrays: Arrays, inputs: Inputs, features: Features) -> jax.Array:
        item, context = inputs.get("item"), inputs.get("context")
        if self._of.factorises and item is not None and not self._of.reads_context:
            return jnp.einsum("bd,bd->b", self._users(arrays, inputs, features), take(arrays["vectors"], item))
        batch = self._batch(inputs)._replace(item=None if item is None else item[:, None], context=context)
        return self._of.model.apply(arrays["params"], batch, features)[:, 0]

    def _batch(self, inputs: Inputs) -> Batch:
        batch = Batch(user=inputs["user"], history=inputs["history"] if self._of.pooled_history else None)
        return latest(self._of.model, batch)

    def _users(self, arrays: Arrays, inputs: Inputs, features: Features) -> jax.Array:
        model: Any = self._of.model
        vectors = model.user_vectors(arrays["params"], self._batch(inputs), features)
        if not self.folds:
            return vectors
        prior, mask = dict(arrays["prior"]), inputs["weight"]
        noise, others = prior.pop("noise"), take(arrays["vectors"], inputs["added"])
        kind = Squares if "gram" in prior else FoldIn
        ours, link = take(arrays["settled"], inputs["user"]), self._of.link
        return folded(vectors, kind(**prior), others, mask, inputs.get("value"), link=link, noise=noise, settled=ours)


class _Gated:
    """Of a mixture: each part as it would score alone, and the gate."""

    def __init__(self, recommender: Recommender) -> None:
        assert isinstance(recommender.model, Mixture)
        self._model, self._params = recommender.model, recommender.params
        self._parts = [_scores_of(part) for part in recommender.parts]
        self._items = np.arange(len(recommender.encoder.features.item_row), dtype=np.int32)
        self.folds = any(part.folds for part in self._parts)

    def arrays(self) -> Arrays:
        return {
            "gate": self._params["gate"],
            "parts": {str(number): part.arrays() for number, part in enumerate(self._parts)},
        }

    def of_all(self, arrays: Arrays, inputs: Inputs, features: Features) -> jax.Array:
        weights = self._model.weights(arrays, self._items, features)
        scores = [part.of_all(own, inputs, features) for part, own in self._with(arrays)]
        return jnp.einsum("kbi,kbi->bi", weights[:, self._buckets(inputs)], jnp.stack(scores))

    def of_pairs(self, arrays: Arrays, inputs: Inputs, features: Features) -> jax.Array:
        weights = self._model.weights(arrays, inputs["item"], features)
        scores = [part.of_pairs(own, inputs, features) for part, own in self._with(arrays)]
        place = jnp.arange(inputs["item"].shape[0])
        return jnp.einsum("kb,kb->b", weights[:, self._buckets(inputs), place], jnp.stack(scores))

    def _with(self, arrays: Arrays) -> list[tuple["_Single | _Gated", Arrays]]:
        return [(part, arrays["parts"][str(number)]) for number, part in enumerate(self._parts)]

    def _buckets(self, inputs: Inputs) -> jax.Array:
        return self._model.user_buckets(Batch(user=inputs["user"], history=inputs.get("history")))


def exported(functions: Functions, name: str, arrays: dict[str, jax.Array], platforms: tuple[str, ...]) -> Any:
    """One of the functions, of arrays by path, as ``jax.export`` has it."""
    shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in arrays.items()}
    function = jax.jit(exact(getattr(functions, name)))
    return jax.export.export(function, platforms=platforms)(_tree.unflatten(shapes), functions.inputs(name))


def _float32(statistics: np.ndarray) -> jax.Array:
    return jnp.asarray(statistics, jnp.float32)
