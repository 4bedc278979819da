"""What every model is: ``init``, ``lookups`` and ``score`` on a plain nested dict, composed to ``apply``."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Int32, Key, Shaped

from jaxrec import _sharded, _tree
from jaxrec._expect import expect
from jaxrec._rows import rows_at
from jaxrec._types import Array, Batch, Features, HasSizes, Params, Sizes

Gathered = dict[str, jax.Array]
_AT_ONCE = 2**22  # numbers drawn at once
_FEW = 14  # columns of which a product per user costs more than a sum of as many terms


def sizes_of(data: HasSizes) -> Sizes:
    """What a model's ``for_data`` reads; says which object was meant where another one came."""
    expect(data, HasSizes, "data")
    return data.sizes


def resized(model: Any, data: HasSizes) -> Any:
    """The model with the sizes of other data. One that does not go by sizes stays as it is."""
    if not hasattr(model, "for_data"):
        return model
    options = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return type(model).for_data(data, **{name: value for name, value in options.items() if name not in Sizes._fields})


def sized(cls: type[Any], data: HasSizes) -> dict[str, Any]:
    """The data's sizes by the names of the model's fields; what only fusion reads is left to it."""
    names = {field.name for field in dataclasses.fields(cls)}
    sizes = sizes_of(data)._asdict()
    return {name: size for name, size in sizes.items() if name in names and not name.endswith("_modalities")}


class Lookup(NamedTuple):
    """Rows of one table that a batch touches; several lookups may share a table."""

    path: str  # of the table, for example "item/embedding"
    rows: Int32[jax.Array, "..."]  # 0 is the unknown's row, which training never changes


class Composed(NamedTuple):
    """A table that is the sum of one and a product of two thin ones; whoever looks rows up need not multiply it out."""

    table: Shaped[jax.Array, "rows dim"]
    a: Float[jax.Array, "rows rank"]
    b: Float[jax.Array, "rank dim"]


class Passed(NamedTuple):
    """A table whose rows pass through a narrow perceptron, one by one, when they are looked up."""

    table: Shaped[jax.Array, "rows dim"]
    down: Float[jax.Array, "dim width"]
    up: Float[jax.Array, "width dim"]


class Scored(NamedTuple):
    """What ``score`` may return instead of plain scores: with a term to add to the loss (a penalty, a KL)."""

    scores: Float[jax.Array, "batch columns"]
    penalty: Float[jax.Array, ""]
    warmup: int = 0  # steps in which training lets the penalty in, linearly from none of it; 0: all of it at once

    def penalty_at(self, step: Int32[jax.Array, ""]) -> Float[jax.Array, ""]:
        """The penalty after so many steps."""
        return self.penalty * jnp.minimum(step / self.warmup, 1.0) if self.warmup else self.penalty


@runtime_checkable
class Model(Protocol):
    """A frozen, hashable dataclass of hyper-parameters that holds no array.

    ``score`` gets the tables' gathered rows and must not read a table from ``params``, which lacks them while
    training. A model may also offer ``user_vectors(params, batch, features)`` and
    ``item_vectors(params, items, features)`` whose inner products are its scores: then catalogues are ranked by
    matrix products.

    ``tables`` says by path what numbers the rows of each table: ``"user"``, ``"item"`` or, for the labels of a feature,
    ``"user/NAME"`` and ``"item/NAME"``. ``unknown`` says what stands in row 0 of the first two after training: the
    ``"mean"`` of the trained rows, or ``"zero"``.

    A model whose parameters are counted or solved for, and are of no use with other data, says so by ``derived``, which
    is True: nothing of it is transferred, and nobody is folded in. If what it holds lies by entity index, it offers
    ``extend(params, features, seen, users=..., items=...) -> (model, params)``, which ``coldstart.add`` calls with the
    grown (NumPy) features, all interactions and the indices of the entities that are new, given features or touched.
    A model that does not factorise may say by ``columns`` how many items are best scored at once. ``context`` is how
    many of the interaction's own features a model reads; one that does not say reads none if it factorises, else maybe
    any.
    """

    @property
    def tables(self) -> dict[str, str]: ...

    @property
    def unknown(self) -> Literal["mean", "zero"]: ...

    def init(self, key: Key[jax.Array, ""]) -> Params: ...

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]: ...

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> jax.Array | Scored: ...

    def apply(self, params: Params, batch: Batch, features: Features, *, key: Any = None) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Over:
    """Base of models that put another one's parameters to a use of their own: the same tree and the same tables."""

    base: Model

    @property
    def tables(self) -> dict[str, str]:
        return self.base.tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return self.base.unknown

    def init(self, key: Key[jax.Array, ""]) -> Params:
        return self.base.init(key)


def safe_index(index: Int[Array, "..."], size: int) -> Int32[jax.Array, "..."]:
    """``index`` with everything outside ``0 .. size - 1`` turned to 0, the unknown.

    An index past the end of an array would read its last row, another user's vector, without a word.
    """
    index = as_index(index)
    return jnp.where((index >= 0) & (index < size), index, 0)


def take(
    values: Shaped[Array, "entities ..."] | Composed | Passed, index: Int[Array, "..."]
) -> Shaped[jax.Array, "..."]:
    """Rows of an array by entity or table row; negative and out-of-range indices read row 0."""
    if isinstance(values, Passed):
        return through(wide(take(values.table, index)), values.down, values.up)
    if isinstance(values, Composed):
        return wide(take(values.table, index)) + jnp.einsum("...r,rd->...d", take(values.a, index), values.b)
    values = jnp.asarray(values)
    return values.at[safe_index(index, values.shape[0])].get(mode="promise_in_bounds")


def through(
    rows: Float[jax.Array, "*index dim"], down: Float[jax.Array, "dim width"], up: Float[jax.Array, "width dim"]
) -> Float[jax.Array, "*index dim"]:
    """What ``Passed`` makes of rows."""
    hidden = jax.nn.relu(jnp.einsum("...d,dw->...w", rows, down))
    return rows + jnp.einsum("...w,wd->...d", hidden, up)


def gather(params: Params, lookups: dict[str, Lookup], mesh: Mesh | None = None) -> Gathered:
    """The rows that each lookup names, in float32 where a table holds fewer bits or integers.

    On a mesh tables are cut by rows, and row numbers must be inside them.
    """
    leaves = _tree.flatten(params)
    if mesh is not None:
        return {name: wide(_sharded.take(mesh, leaves[lookup.path], lookup.rows)) for name, lookup in lookups.items()}
    return {name: wide(_read(leaves[lookup.path], lookup.rows)) for name, lookup in lookups.items()}


def _read(values: Any, rows: Int32[Array, "..."]) -> jax.Array:
    """``take`` for the rows of tables."""
    if isinstance(values, Passed | Composed):
        return take(values, rows)
    return rows_at(values, safe_index(rows, values.shape[0]))


def rows_of(params: Params, path: str, rows: Int32[Array, "..."]) -> jax.Array:
    """One lookup outside training."""
    return gather(params, {"rows": Lookup(path, jnp.asarray(rows))})["rows"]


def factorises(model: Any) -> bool:
    """Whether scores are inner products of user and item vectors."""
    return hasattr(model, "user_vectors") and hasattr(model, "item_vectors")


def context_width(model: Any) -> int | None:
    """How many of the interaction's own features a model reads; None where it does not say and may read any."""
    said = getattr(model, "context", None)
    return 0 if said is None and factorises(model) else said


def need_positive(**widths: int) -> None:
    """Raises unless every width, given by its name, is at least 1."""
    for name, width in widths.items():
        if not width >= 1:
            raise ValueError(f"Expected {name} >= 1, got {width}. It is the width of vectors.")


def users_of(batch: Batch) -> Int32[jax.Array, " batch"]:
    """The batch's users, which this model needs."""
    if batch.user is None:
        raise ValueError("Expected a batch with `user` indices, got None. Name the user column in the schema.")
    return as_index(batch.user)


def history_of(batch: Batch) -> Int32[jax.Array, "batch length"]:
    """The batch's histories, which this model needs."""
    if batch.history is None:
        raise ValueError(
            "The model reads a history and the batch has none. Give `Batch.history`, entity indices of the items "
            "that each user touched, 0 where there are fewer; all 0 for a user without any."
        )
    return as_index(batch.history)


def context_of(batch: Batch, width: int) -> Float[jax.Array, "batch width"]:
    """The interactions' own features, which this model needs."""
    if batch.context is None or batch.context.shape[1] != width:
        came = "none" if batch.context is None else str(batch.context.shape[1])
        raise ValueError(
            f"The model was built for {width} context features and was given {came}. Encode the frame with the encoder "
            "that the model was trained with."
        )
    return jnp.asarray(batch.context)


def as_index(index: Int[Array, "..."]) -> Int32[jax.Array, "..."]:
    """The indices as a JAX array.

    Of a raw id of 64 bits JAX would keep the lower half, another user's index: it is refused while it can be seen, and
    under ``jit`` it is 0, the unknown.
    """
    if index.dtype.itemsize > 4 and not isinstance(index, Tracer):
        seen = np.asarray(index)
        outside = (seen < -(2**31)) | (seen >= 2**31)
        if outside.any():
            raise ValueError(
                f"Expected entity indices of 32 bits, got {seen[outside][0]}. A raw id is turned into an index by "
                "Encoder.encode or Vocabulary.encode."
            )
    index = jnp.asarray(index)
    if index.dtype.itemsize > 4:
        index = jnp.where((index >= 0) & (index < 2**31), index, 0)
    return index.astype(jnp.int32)


def multi_hot(index: Int32[jax.Array, "batch length"], size: int) -> Float[jax.Array, "size batch"]:
    """A column per row of ``index``: 1 where it names a number, however often; 0, the padding, is not named."""
    column = jnp.arange(index.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros((size, index.shape[0]), jnp.float32).at[index, column].set(1.0).at[0].set(0.0)


def among(values: Int[Array, "batch values"], given: Int[Array, "batch given"]) -> Bool[jax.Array, "batch values"]:
    """Which values are among those given for their row, by binary search."""
    if not given.shape[1]:  # what is read of an empty axis is 0, the number of an item
        return jnp.zeros(values.shape, bool)
    ordered = jnp.sort(given, axis=1)
    place = jax.vmap(jnp.searchsorted)(ordered, values)
    return jnp.take_along_axis(ordered, jnp.minimum(place, ordered.shape[1] - 1), axis=1) == values


def wide(rows: jax.Array) -> jax.Array:
    """Sums run in float32 whatever the tables hold."""
    narrow = rows.dtype.itemsize < 4 or not jnp.issubdtype(rows.dtype, jnp.floating)
    return rows.astype(jnp.float32) if narrow else rows


def scored(output: jax.Array | Scored) -> Scored:
    """``output`` with a zero penalty where the model returned none."""
    return output if isinstance(output, Scored) else Scored(output, jnp.zeros((), jnp.float32))


def apply(self: Model, params: Params, batch: Batch, features: Features, *, key: Any = None) -> jax.Array:
    """Scores of the batch's columns: look up, gather, score.

    Args:
      params: the whole parameter tree.
      batch: entity indices and whatever else the model reads; unknown, negative and out-of-range indices are
        scored as the unknown entity.
      features: arrays by entity.
      key: for dropout; without it the model is deterministic.

    Returns:
      float32 ``[batch, columns]``, columns as in ``Batch``.
    """
    gathered = gather(params, self.lookups(batch, features))
    return scored(self.score(params, gathered, batch, features, key=key)).scores


def pair_scores(
    user: Float[jax.Array, "batch dim"],
    own: Float[jax.Array, "batch own dim"] | None,
    shared: Float[jax.Array, "shared dim"] | None,
) -> Float[jax.Array, "batch columns"]:
    """Inner products of each user with its own items and with the items shared by the batch."""
    parts = []
    if own is not None and own.shape[1]:
        parts.append(_inner(user, own))
    if shared is not None:
        parts.append(user @ shared.T)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


@jax.custom_jvp
def _inner(
    user: Float[jax.Array, "batch dim"], own: Float[jax.Array, "batch own dim"]
) -> Float[jax.Array, "batch own"]:
    # As a row times a matrix: before "bd,bnd->bn" XLA copies the users' vectors on CPU.
    return (user[:, None, :] @ own.swapaxes(1, 2))[:, 0]


@_inner.defjvp
def _inner_jvp(vectors: tuple[jax.Array, jax.Array], moves: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The derivative that JAX would take, whose transpose is one sum of few products instead of a product per user.

    XLA calls a matrix product for each user's handful of items; the sum is fused into a single loop. A step with one
    negative takes a fifth less, with four a sixth, with eight a third (docs/design.md).
    """
    (user, own), (of_user, of_own) = vectors, moves
    if own.shape[1] > _FEW:
        moved = jnp.einsum("bd,bnd->bn", of_user, own)
    else:
        moved = jnp.stack([(of_user * own[:, column]).sum(axis=-1) for column in range(own.shape[1])], axis=1)
    return _inner(user, own), jnp.einsum("bd,bnd->bn", user, of_own) + moved


def item_fields(batch: Batch) -> dict[str, Int32[jax.Array, "..."]]:
    """The batch's item indices by lookup name: ``item`` (own columns) and ``shared``."""
    fields = {}
    if batch.item is not None and batch.item.shape[1]:
        fields["item"] = as_index(batch.item)
    if batch.shared_negatives is not None:
        fields["shared"] = as_index(batch.shared_negatives)
    if not fields:
        raise ValueError("Expected a batch with `item` or `shared_negatives`, got neither: there is nothing to score.")
    return fields


@functools.partial(jax.jit, static_argnames=("rows", "dim"))
def embedding(key: Key[jax.Array, ""], rows: int, dim: int, scale: float | jax.Array) -> Float[jax.Array, "rows dim"]:
    """A table of normal rows with standard deviation ``scale``; the unknown's row 0 is zero."""
    return normal(key, (rows, dim), scale).at[0].set(0.0)


def id_tables(key: Key[jax.Array, ""], user_rows: int, item_rows: int, dim: int) -> Params:
    """A table of ids for each side, rows of length about 1."""
    keys = zip(("user", "item"), jax.random.split(key), (user_rows, item_rows), strict=True)
    return {side: {"embedding": embedding(key, rows, dim, dim**-0.5)} for side, key, rows in keys}


@functools.partial(jax.jit, static_argnames=("shape",))
def normal(key: Key[jax.Array, ""], shape: tuple[int, ...], scale: float | jax.Array) -> Float[jax.Array, "..."]:
    """Normal numbers with standard deviation ``scale``, compiled once for each shape."""

    def drawn(key: Key[jax.Array, ""], shape: tuple[int, ...]) -> jax.Array:
        # Without the barrier XLA would multiply the constants first, and a seed's numbers depend on who compiles this.
        return scale * jax.lax.optimization_barrier(jax.random.normal(key, shape, jnp.float32))

    if math.prod(shape) <= _AT_ONCE:
        return drawn(key, shape)
    # Drawn at once they would take twice their own memory besides, more than training does. The last blocks overlap.
    size = max(_AT_ONCE // math.prod(shape[1:]), 1)

    def filled(block: jax.Array, table: jax.Array) -> jax.Array:
        rows = drawn(jax.random.fold_in(key, block), (size, *shape[1:]))
        return jax.lax.dynamic_update_slice_in_dim(table, rows, block * size, axis=0)

    return jax.lax.fori_loop(0, -(-shape[0] // size), filled, jnp.zeros(shape, jnp.float32))


def with_unknown_rows(
    model: Model,
    params: Params,
    features: Features,
    *,
    empty: Mapping[str, np.ndarray] | None = None,
    in_place: bool = False,
) -> Params:
    """``params`` with the unknown's row of each table set to the mean of the rows in use, where the model wants it.

    The mean vector is the best single guess for somebody unknown (it minimises the expected squared error of
    the vector). Tables that are not in ``params`` (because they are frozen) are left out. Rows that are ``empty``, by
    side, are not in the mean: nothing was learned of their entities, which are given the unknown's. ``in_place``: the
    tables given are used up, which saves a copy of each.
    """
    empty = {} if empty is None else empty
    if model.unknown == "zero" and not empty:
        return params
    leaves, changed = _tree.flatten(params), {}
    rows = {"user": features.user_row, "item": features.item_row}
    for path, numbering in model.tables.items():
        if path not in leaves or numbering not in rows:
            continue
        table, row = leaves[path], rows[numbering]
        if numbering in empty:
            row = np.where(np.isin(row, empty[numbering]), 0, row)
        if model.unknown != "zero":
            table = (_put_unknown if in_place else _set_unknown)(table, jnp.asarray(row))
        changed[path] = table.at[empty[numbering]].set(table[0]) if numbering in empty else table
    return _tree.replace(params, changed)


def _with_mean(table: jax.Array, row: jax.Array) -> jax.Array:
    used = jnp.zeros(len(table), jnp.float32).at[row].add((row > 0).astype(jnp.float32))  # no table is gathered
    total = jnp.matmul(used, wide(table), precision="highest")
    return table.at[0].set((total / jnp.maximum(used.sum(), 1.0)).astype(table.dtype))


_set_unknown = jax.jit(_with_mean)
_put_unknown = jax.jit(_with_mean, donate_argnums=0)
