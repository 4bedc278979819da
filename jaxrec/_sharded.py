"""Reading and writing arrays that lie on a mesh: tables by rows, batches by examples, everything else on every device.

The partitioner would find its own way to gather from an array that is cut along the gathered axis. Here the way is
written out, so that only touched rows travel. Without a mesh every function here does nothing at all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int32, Num

from jaxrec import _tree
from jaxrec._expect import expect
from jaxrec._types import Array, Batch, Params


def check(mesh: Mesh | None) -> None:
    """Raises unless the mesh is one that jaxrec can use."""
    if mesh is None:
        return
    expect(mesh, Mesh, "mesh")
    if len(mesh.axis_names) != 1 or mesh.axis_types != (AxisType.Auto,):
        axes = ", ".join(f"{name} ({kind.name})" for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True))
        raise ValueError(
            f"Expected a mesh with one axis of type Auto, got the axes {axes}. Make it with sharding.make_mesh()."
        )


def by_rows(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the leading axis."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Each device holds all."""
    return NamedSharding(mesh, PartitionSpec())


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """The arrays where ``sharding`` says, whether they are traced or not."""

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, Tracer):
            return jax.lax.with_sharding_constraint(leaf, sharding)
        return jax.device_put(leaf, sharding)

    return jax.tree.map(place, tree)


def held(mesh: Mesh | None, leaf: jax.Array, *, cut: bool) -> jax.Array:
    """A leaf of the next state where it was in the last one; left to choose, the compiler may move it."""
    return leaf if mesh is None else placed(leaf, by_rows(mesh) if cut else everywhere(mesh))


def rounded(size: int, mesh: Mesh | None) -> int:
    """``size`` or a little more, so that every device gets as much."""
    return size if mesh is None else -(-size // mesh.size) * mesh.size


def padded(mesh: Mesh, table: Num[Any, "rows ..."] | Bool[Any, "rows ..."]) -> jax.Array:
    """A table cut by rows over the devices, filled up with rows of zeros that no index names."""
    missing = rounded(table.shape[0], mesh) - table.shape[0]
    if missing:
        table = jnp.pad(table, ((0, missing), *((0, 0),) * (table.ndim - 1)))
    return placed(table, by_rows(mesh))


def whole(model: Any, params: Params) -> Params:
    """Parameters of a state as ordinary arrays of one device, with the shapes that the model gives them."""
    sizes = _tree.flatten(_tree.shapes(model))

    def cut(path: str, leaf: jax.Array) -> jax.Array:
        values = np.asarray(leaf)
        return jnp.asarray(values if not values.ndim else values[: sizes[path].shape[0]])

    return _tree.map_with_path(cut, params)


def split(mesh: Mesh, batch: Batch, *, lead: int = 0) -> Batch:
    """A batch cut by examples, or stacked batches with ``lead=1``.

    Raises:
      ValueError: the number of examples is no multiple of the number of devices.
    """

    def cut(name: str, values: Any) -> Any:
        if values is None:
            return None
        fits = values.shape[lead] % mesh.size == 0
        by_example = name not in ("shared_negatives", "log_q")
        if by_example and not fits:
            raise ValueError(
                f"Expected a number of examples that {mesh.size} devices can share, got `{name}` of "
                f"{values.shape[lead]}. Make the batches with data.Batches(..., multiple_of={mesh.size}), which fills "
                "them up with examples of weight 0."
            )
        spec = PartitionSpec(*(None,) * lead, mesh.axis_names[0]) if fits else PartitionSpec()
        return placed(values, NamedSharding(mesh, spec))

    return Batch(**{name: cut(name, values) for name, values in batch._asdict().items()})


def shared(mesh: Mesh | None, values: Array) -> Any:
    """An array cut along its leading axis if the devices can share it evenly, else as it is."""
    if mesh is None or not len(values) or len(values) % mesh.size:
        return values
    return placed(values, by_rows(mesh))


def on_shards(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of each device's share of the leading axes; without a mesh the function itself."""
    if mesh is None:
        return function
    axis = PartitionSpec(mesh.axis_names[0])
    return jax.shard_map(function, mesh=mesh, in_specs=axis, out_specs=axis)


def take(mesh: Mesh, table: Num[jax.Array, "rows ..."], rows: Int32[jax.Array, "..."]) -> Num[jax.Array, "..."]:
    """Rows of a table that is cut by rows; each device gets those of its own examples.

    Every device is told all row numbers, fills in the rows that it holds, and the sum over devices (in which one
    term is not zero) is handed out by examples. All rows must be inside the table.
    """
    axis = mesh.axis_names[0]
    flat = rows.reshape(-1)
    fits = len(flat) % mesh.size == 0 and len(flat) > 0

    def of_shard(table: jax.Array, rows: jax.Array) -> jax.Array:
        mine = rows - jax.lax.axis_index(axis) * table.shape[0]
        # A row that is elsewhere is past the end; a negative index would count from there.
        mine = jnp.where((mine >= 0) & (mine < table.shape[0]), mine, table.shape[0])
        found = table.at[mine].get(mode="fill", fill_value=0)
        return jax.lax.psum_scatter(found, axis, tiled=True) if fits else jax.lax.psum(found, axis)

    cut = PartitionSpec(axis)
    found = jax.shard_map(
        of_shard, mesh=mesh, in_specs=(cut, PartitionSpec()), out_specs=cut if fits else PartitionSpec()
    )(table, placed(flat, everywhere(mesh)))
    return found.reshape(*rows.shape, *table.shape[1:])


def common(mesh: Mesh | None, values: Num[jax.Array, "touched ..."]) -> Num[jax.Array, "touched ..."]:
    """What each device knows of its own examples, told to all."""
    if mesh is None:
        return values
    if values.shape[0] % mesh.size == 0:
        values = placed(values, by_rows(mesh))  # or the partitioner computes all of it everywhere
    return placed(values, everywhere(mesh))


def own(
    mesh: Mesh | None,
    rows: Int32[jax.Array, " touched"],
    grads: Float[jax.Array, "touched ..."],
    size: int,
) -> tuple[Int32[jax.Array, " shards_x_touched"], Float[jax.Array, "shards_x_touched ..."]]:
    """What each device has to write of what all know, device after device: local row numbers and gradients.

    Rows that a device does not hold, and row 0 of the whole table, are past the end of its share and have a zero
    gradient. ``size`` is the number of rows of the whole table. Without a mesh, what came.
    """
    if mesh is None:
        return rows, grads
    axis, share = mesh.axis_names[0], size // mesh.size

    def of_shard(rows: jax.Array, grads: jax.Array) -> tuple[jax.Array, jax.Array]:
        local = rows - jax.lax.axis_index(axis) * share
        mine = (local >= 0) & (local < share) & (rows > 0)
        column = mine.reshape(mine.shape + (1,) * (grads.ndim - 1))
        return jnp.where(mine, local, share), jnp.where(column, grads, 0.0)

    everything, cut = PartitionSpec(), PartitionSpec(axis)
    return jax.shard_map(of_shard, mesh=mesh, in_specs=everything, out_specs=cut)(rows, grads)
