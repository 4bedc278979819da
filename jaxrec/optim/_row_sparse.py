"""Row-sparse optimisation: any elementwise optax transformation, applied only to the table rows a batch touched.

A step of dense Adam over a table of a million rows moves gigabytes; the rows a batch touches are a few thousand. The
transformation sees one tree: dense leaves as they are, and each table as its touched rows (gradients of repeated
ids summed) with their slice of the optimiser's state. So step counts and schedules are shared, and a global norm is
taken over everything. See docs/design.md for the measurements.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int32

from jaxrec import _sharded, _tree
from jaxrec._rows import rows_at
from jaxrec._types import Params
from jaxrec.models._base import wide
from jaxrec.optim._layout import layout_of

OptState = Any

_WHOLE = 2  # times as many rows as a batch names may a table have that a step looks at as a whole


class RowGrads(NamedTuple):
    """Gradient of the loss with respect to some rows of one table; rows may repeat."""

    rows: Int32[jax.Array, " touched"]
    grads: Float[jax.Array, "touched ..."]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation and the way it treats tables; made by ``row_sparse`` or ``dense``."""

    transformation: optax.GradientTransformation
    sparse: bool

    def init(self, params: Params, tables: tuple[str, ...], mesh: Mesh | None = None) -> OptState:
        """The transformation's state for the trainable ``params``, of which ``tables`` are trained by rows.

        On a mesh, what belongs to a table is cut by rows as the table is.

        Raises:
          ValueError: the optimiser is row-sparse and the transformation would treat a row differently when it
            does not see the whole table.
        """
        params = jax.tree.map(wide, params)
        owners = layout_of(self.transformation, params, tables, sparse=self.sparse).owners
        init = self.transformation.init
        with jax.numpy_dtype_promotion("standard"):
            if mesh is None:
                return init(params)
            places = [_sharded.everywhere(mesh) if owner is None else _sharded.by_rows(mesh) for owner in owners]
            treedef = jax.tree.structure(jax.eval_shape(init, params))
            return jax.jit(init, out_shardings=treedef.unflatten(places))(params)

    def update(
        self,
        params: Params,
        state: OptState,
        slots: Mapping[str, Int32[jax.Array, " _"]],
        *,
        grads: Params,
        row_grads: Mapping[str, RowGrads],
        frozen_rows: Mapping[str, Bool[jax.Array, " rows"]],
        value: Float[jax.Array, ""],
        ok: Bool[jax.Array, ""],
        mesh: Mesh | None = None,
    ) -> tuple[Params, OptState, dict[str, Int32[jax.Array, " _"]]]:
        """One step.

        Args:
          params: the trainable parameters.
          state: as from ``init``.
          slots: scratch space by table path, an entry for each row; contents do not matter. Of tables that are given
            the same array of rows only the first needs one.
          grads: of the dense leaves, a tree without the tables.
          row_grads: by table path.
          frozen_rows: by table path, rows that must not move. Row 0, the unknown's, never does.
          value: the loss, for transformations that look at it.
          ok: where False, nothing moves: parameters and state come back as they were.
          mesh: over which the tables and what belongs to them are cut by rows. Each device is given all of
            ``row_grads`` and looks after its own rows, so that no row of a table or of the state travels.

        Returns:
          The new parameters, state and scratch space.
        """
        tables = {path: _tree.get(params, path) for path in row_grads}
        owners, linear = layout_of(self.transformation, params, tuple(tables), sparse=self.sparse)
        touched, slots = self._touched(row_grads, tables, frozen_rows, slots, merge=not linear, mesh=mesh)
        leaves, treedef = jax.tree.flatten(state)
        parts = [
            leaf if owner is None else _rows(leaf, touched[owner], linear, mesh)
            for leaf, owner in zip(leaves, owners, strict=True)
        ]
        small = _tree.replace(params, {path: wide(_rows(tables[path], touched[path], linear, mesh)) for path in tables})
        gradient = _tree.merge(grads, _tree.unflatten({path: touched[path].grads for path in tables}))
        update = optax.with_extra_args_support(self.transformation).update
        with jax.numpy_dtype_promotion("standard"):
            updates: Any
            updates, state = update(gradient, treedef.unflatten(parts), small, value=value)
            applied: Any = optax.apply_updates(small, updates)
            moved = _tree.flatten(applied)

        new = {}
        for path, old in _tree.flatten(params).items():
            if path not in tables:
                new[path] = jnp.where(ok, moved[path], old)
            elif linear:
                new[path] = _add(old, _tree.get(updates, path), touched[path], ok, mesh)
            else:
                new[path] = _scatter(old, moved[path], touched[path], ok, mesh)
        leaves = [
            jnp.where(ok, part, old) if owner is None else _scatter(old, part, touched[owner], ok, mesh)
            for old, part, owner in zip(leaves, jax.tree.leaves(state), owners, strict=True)
        ]
        new = {path: _sharded.held(mesh, leaf, cut=path in tables) for path, leaf in new.items()}
        leaves = [_sharded.held(mesh, leaf, cut=owner is not None) for leaf, owner in zip(leaves, owners, strict=True)]
        return _tree.unflatten(new), treedef.unflatten(leaves), slots

    def _touched(
        self,
        row_grads: Mapping[str, RowGrads],
        tables: Mapping[str, jax.Array],
        frozen_rows: Mapping[str, jax.Array],
        slots: Mapping[str, jax.Array],
        *,
        merge: bool,
        mesh: Mesh | None,
    ) -> tuple[dict[str, "_Touched"], dict[str, jax.Array]]:
        """What the transformation is to see of each table."""
        touched, slots = {}, dict(slots)
        merged: dict[int, tuple[jax.Array, jax.Array]] = {}  # tables looked up by the same rows share the merging
        for path, (of_batch, grads) in row_grads.items():
            table = tables[path]
            rows, grads = _sharded.own(mesh, of_batch, grads, table.shape[0])
            # A table that has few more rows than the batch names (words of texts, say) costs less as a whole than a
            # copy of a row and of its state for every time that it is named. What comes out is the same.
            if not self.sparse or (merge and table.shape[0] <= _WHOLE * of_batch.shape[0]):
                touched[path] = _whole(table, rows, grads, frozen_rows.get(path), mesh, lazy=self.sparse)
                continue
            if not merge:
                first = jnp.ones(rows.shape, bool)
            else:
                if id(of_batch) not in merged:
                    representative, first, slots[path] = _finder(mesh)(rows, slots[path])
                    merged[id(of_batch)] = representative, first
                representative, first = merged[id(of_batch)]
                grads = _sharded.on_shards(mesh, _summed)(representative, grads)
            frozen = rows == (0 if mesh is None else table.shape[0] // mesh.size)  # row 0, or rows of other devices
            if path in frozen_rows:
                frozen |= _reader(mesh)(frozen_rows[path], rows)
            grads = jnp.where(_column(frozen, grads), 0.0, grads)
            touched[path] = _Touched(rows, grads, first & ~frozen)
        return touched, slots


class _Touched(NamedTuple):
    """What the transformation sees of a table. On a mesh: device after device, each with its own row numbers."""

    rows: Int32[jax.Array, " touched"] | None  # None: all rows, in their own order
    grads: Float[jax.Array, "touched ..."]  # zero where not live
    live: Bool[jax.Array, " touched"]  # False for repetitions and frozen rows, which are not written back


def row_sparse(transformation: optax.GradientTransformation) -> Optimizer:
    """The transformation, applied to the rows that a batch touched and nothing else.

    Equal to the dense algorithm for plain gradient descent. Momentum, Adagrad, Adam and the like become their
    *lazy* forms: a row moves, decays and ages only in steps that touch it. Dense Adam is a different algorithm,
    which also moves rows whose gradient is zero; ``dense`` offers it. Clipping by global norm is exact.

    Args:
      transformation: treats every element of a parameter alike, whatever its neighbours are, up to one global
        norm. Others (LAMB, Adafactor, adaptive clipping by unit, gradient accumulation) are refused when the
        state is made.

    Returns:
      An optimiser for ``fit`` and ``train_step``.

    Examples:
      >>> row_sparse(optax.adagrad(0.05)).sparse
      True

    References:
      Abadi et al., TensorFlow, OSDI 2016, and the sparse optimisers of PyTorch (lazy Adam as in ``SparseAdam``).
    """
    return Optimizer(transformation, sparse=True)


def dense(transformation: optax.GradientTransformation) -> Optimizer:
    """The transformation, applied to whole tables in every step: exact for all of optax, slow for large tables."""
    return Optimizer(transformation, sparse=False)


def _positions(rows: jax.Array) -> jax.Array:
    return jnp.arange(rows.shape[0], dtype=jnp.int32)


def _whole(
    table: jax.Array,
    rows: jax.Array,
    grads: jax.Array,
    frozen_rows: jax.Array | None,
    mesh: Mesh | None,
    *,
    lazy: bool,
) -> _Touched:
    """All rows of a table, most of them with a zero gradient; ``lazy``: live are those that the batch touched alone."""

    def spread(table: jax.Array, rows: jax.Array, grads: jax.Array) -> tuple[jax.Array, jax.Array]:
        full = jnp.zeros(table.shape, grads.dtype).at[rows].add(grads, mode="drop")
        touched = jnp.full(table.shape[:1], not lazy)
        return full, touched.at[rows].set(True, mode="drop") if lazy else touched

    full, live = _sharded.on_shards(mesh, spread)(table, rows, grads)
    live &= _positions(table) != 0
    if frozen_rows is not None:
        live &= ~frozen_rows
    return _Touched(None, jnp.where(_column(live, full), full, 0.0), live)


def _reader(mesh: Mesh | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Rows of an array; on a mesh, a row that another device holds reads zero."""

    def read(leaf: jax.Array, rows: jax.Array) -> jax.Array:
        if mesh is None:
            return rows_at(leaf, rows)
        return leaf.at[rows].get(mode="fill", fill_value=0)

    return _sharded.on_shards(mesh, read)


def _finder(mesh: Mesh | None) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """``_representatives``; on a mesh, a row that another device holds stands for itself."""

    def find(rows: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _representatives(rows, slot, inside=mesh is None)

    return _sharded.on_shards(mesh, find)


def _representatives(rows: jax.Array, slot: jax.Array, *, inside: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each position the one position that stands for all with the same row, whether it is that one itself, and
    the used scratch space.

    Every position writes itself to its row's slot and reads back the winner: O(touched), no sort.
    """
    position = _positions(rows)
    if inside:
        slot = slot.at[rows].set(position, mode="promise_in_bounds")
        representative = slot.at[rows].get(mode="promise_in_bounds")
    else:
        slot = slot.at[rows].set(position, mode="drop")
        winner = slot.at[rows].get(mode="fill", fill_value=0)
        representative = jnp.where(rows < slot.shape[0], winner, position)
    return representative, representative == position, slot


def _summed(representative: jax.Array, grads: jax.Array) -> jax.Array:
    return jnp.zeros_like(grads).at[representative].add(grads)


def _column(mask: jax.Array, like: jax.Array) -> jax.Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))


def _rows(leaf: jax.Array, touched: _Touched, linear: bool, mesh: Mesh | None) -> jax.Array:
    """The touched rows; a row that stands for nothing is zero, or a norm of updates would count its momentum too."""
    rows = leaf if touched.rows is None else _reader(mesh)(leaf, touched.rows)
    return rows if linear else jnp.where(_column(touched.live, rows), rows, jnp.zeros((), rows.dtype))


def _target(rows: jax.Array, live: jax.Array, table: jax.Array) -> jax.Array:
    """Where each touched row is written; whatever must not be written goes, each to its own place, past the end."""
    return jnp.where(live, rows, table.shape[0] + _positions(rows))


def _scatter(table: jax.Array, rows: jax.Array, touched: _Touched, ok: jax.Array, mesh: Mesh | None) -> jax.Array:
    rows, live = rows.astype(table.dtype), touched.live & ok
    if touched.rows is None:
        return jnp.where(_column(live, table), rows, table)

    def write(table: jax.Array, rows: jax.Array, index: jax.Array, live: jax.Array) -> jax.Array:
        return table.at[_target(index, live, table)].set(rows, mode="drop", unique_indices=True)

    return _sharded.on_shards(mesh, write)(table, rows, touched.rows, live)


def _add(table: jax.Array, change: jax.Array, touched: _Touched, ok: jax.Array, mesh: Mesh | None) -> jax.Array:
    def add(table: jax.Array, change: jax.Array, index: jax.Array, live: jax.Array) -> jax.Array:
        return table.at[_target(index, live, table)].add(change, mode="drop")

    return _sharded.on_shards(mesh, add)(table, change.astype(table.dtype), touched.rows, touched.live & ok)
