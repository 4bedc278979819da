"""One training step and a loop of them: pure functions that the caller jits and donates to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int32

from jaxrec import _sharded, _tree
from jaxrec._rows import rows_at
from jaxrec._types import Batch, Features, Params
from jaxrec.losses import Loss
from jaxrec.models import MatrixFactorization
from jaxrec.models._base import Lookup, Model, gather, safe_index, scored
from jaxrec.optim import Optimizer, RowGrads

# Models whose scores are sums of products of rows and nothing else: the gradients of rows are sums of products of the
# scores' gradients and rows. Where scores are finite so are the rows, and where their gradients are below 3e19 what is
# added up can only overflow if a number of a row is beyond 1e19. Looking at the scores takes up to a quarter less.
_PRODUCTS = (MatrixFactorization,)
_LARGE = 1e19


class TrainState(NamedTuple):
    """Everything a step reads and writes. Donate it: a step updates the tables in place."""

    params: Params  # the trainable half of the tree
    frozen: Params  # the other half: no gradient, no optimiser state
    opt_state: Any  # of the optax transformation, for the trainable half
    frozen_rows: dict[str, Bool[jax.Array, " rows"]]  # by table path: rows that do not move, though the table does
    slots: dict[str, Int32[jax.Array, " rows"]]  # by table path: scratch space for summing gradients of repeated ids
    key: jax.Array  # PRNG key; step t uses fold_in(key, t)
    step: Int32[jax.Array, ""]  # updates made so far


class StepInfo(NamedTuple):
    """How a step went."""

    loss: Float[jax.Array, ""]
    ok: Bool[jax.Array, ""]  # False: loss or gradient was not finite, and the step changed nothing


class EpochInfo(NamedTuple):
    """How a loop of steps went.

    The first ``steps`` entries of ``losses`` are those of steps taken. Where ``ok`` is False the next one is the loss
    of the step that failed. All others are zero.
    """

    losses: Float[jax.Array, " most_steps"]
    steps: Int32[jax.Array, ""]  # taken; the loop ends early at a step that was not ok
    ok: Bool[jax.Array, ""]


def init_state(
    model: Model,
    params: Params,
    optimizer: Optimizer,
    batch: Batch,
    features: Features,
    *,
    key: jax.Array,
    freeze: _tree.Patterns = (),
    frozen_rows: dict[str, Bool[jax.Array, " rows"]] | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      model: whose parameters these are.
      params: the whole tree. Its arrays become part of the state, so a donating step consumes them, like those of
        ``frozen_rows`` and ``key``.
      optimizer: from ``optim.row_sparse`` or ``optim.dense``.
      batch: an example of what will be trained on; only shapes count.
      features: likewise.
      key: for dropout.
      freeze: patterns of leaves that do not move, such as ``"item/*"``.
      frozen_rows: by table path, a mask of rows that do not move.
      mesh: from ``sharding.make_mesh``. Tables, and what belongs to them, are cut by rows over its devices, filled
        up with rows of zeros where they cannot share them; ``sharding.whole`` undoes it. Everything else lies on
        every device. ``train_step`` needs the same mesh.

    Raises:
      ValueError: the parameters are not the model's, a pattern matches nothing, everything is frozen, a parameter that
        is not holds integers, the optimiser cannot train a table by rows, or is ``optim.dense`` and the devices cannot
        share the rows of a table evenly.
    """
    _sharded.check(mesh)
    check_params(model, params)
    trainable, frozen = _tree.split(params, freeze)
    leaves = _tree.flatten(trainable)
    if not leaves:
        raise ValueError(f"All parameters are frozen by {freeze!r}, so there is nothing to train. Freeze fewer.")
    for path, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"The parameter {path!r} holds {leaf.dtype}, which no gradient moves. Freeze it, or fit the model by "
                "its own function, for example train.fit_item_knn."
            )
    groups = _tables(model, params, batch, features, set(leaves))
    tables = tuple(sorted(path for group in groups for path in group))
    frozen_rows = dict(frozen_rows or {})
    for path, mask in frozen_rows.items():
        if path not in tables or mask.shape != leaves[path].shape[:1]:
            shape = leaves[path].shape[:1] if path in leaves else "none"
            raise ValueError(
                f"Expected masks of rows of trainable tables ({', '.join(tables) or 'there is none'}), got one for "
                f"{path!r} of shape {mask.shape} where the table has {shape}. Freeze a whole leaf by pattern instead."
            )
    slots = {group[0]: jnp.zeros(leaves[group[0]].shape[:1], jnp.int32) for group in groups}
    step = jnp.zeros((), jnp.int32)
    if mesh is not None:
        _check_shares(optimizer, mesh, {path: leaves[path].shape[0] for path in tables})
        cut = _lookup_paths(model, params, batch, features)
        trainable, frozen = _placed(mesh, trainable, cut), _placed(mesh, frozen, cut)
        frozen_rows, slots = _placed(mesh, frozen_rows, cut, flat=True), _placed(mesh, slots, cut, flat=True)
        key, step = _sharded.placed((key, step), _sharded.everywhere(mesh))
    # Some transformations keep the parameters themselves, and one buffer cannot be donated twice.
    opt_state = optimizer.init(trainable, tables, mesh)
    trainable, frozen, masks, opt_state = unshared((trainable, frozen, frozen_rows, opt_state))
    return TrainState(trainable, frozen, opt_state, masks, slots, key, step)


def _lookup_paths(model: Model, params: Params, batch: Batch, features: Features) -> set[str]:
    """Paths of all tables that a batch looks up."""
    paths: set[str] = set()
    jax.eval_shape(
        lambda batch, features: paths.update(lookup.path for lookup in model.lookups(batch, features).values()),
        batch,
        features,
    )
    return paths


def _placed(mesh: Mesh, params: Params, tables: set[str], *, flat: bool = False) -> Params:
    """Tables cut by rows, other leaves everywhere. ``flat``: a dict by path."""

    def place(path: str, leaf: Any) -> jax.Array:
        return _sharded.padded(mesh, leaf) if path in tables else _sharded.placed(leaf, _sharded.everywhere(mesh))

    if flat:
        return {path: place(path, leaf) for path, leaf in params.items()}
    return _tree.map_with_path(place, params)


def _check_shares(optimizer: Optimizer, mesh: Mesh, sizes: dict[str, int]) -> None:
    """A transformation that sees whole tables would also see the rows that fill them up."""
    for path, size in sizes.items():
        if not optimizer.sparse and size % mesh.size:
            raise ValueError(
                f"Expected tables whose rows {mesh.size} devices can share, since optim.dense looks at whole tables, "
                f"got {size} rows of {path!r}. Give the model {_sharded.rounded(size, mesh)} rows (spare ones do no "
                "harm), or use optim.row_sparse."
            )


def check_params(model: Model, params: Params) -> None:
    expected = _tree.flatten(_tree.shapes(model))
    given = _tree.flatten(params)
    for path in sorted(expected.keys() | given.keys()):
        ours, theirs = (tree[path].shape if path in tree else "nothing" for tree in (expected, given))
        if ours != theirs:
            raise ValueError(
                f"The parameters are not those of {model}: at {path!r} it has {ours}, and {theirs} was given. To carry "
                "parameters over to a model of another size use transfer.adapt or transfer.copy."
            )


def unshared(tree: Any) -> Any:
    """The tree with a copy of whatever array stands in it twice."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, tree)


def _tables(
    model: Model, params: Params, batch: Batch, features: Features, trainable: set[str]
) -> list[tuple[str, ...]]:
    """Paths of the trainable tables, those that are looked up by the same rows together."""
    groups: dict[int, list[str]] = {}

    def trace(params: Params, batch: Batch, features: Features) -> None:
        sizes = {path: leaf.shape[0] for path, leaf in _tree.flatten(params).items() if leaf.ndim}
        lookups = _checked(model.lookups(batch, features), sizes)
        rows = _rows_by_table({name: lookup for name, lookup in lookups.items() if lookup.path in trainable})
        for path, of_table in rows.items():
            groups.setdefault(id(of_table), []).append(path)

    jax.eval_shape(trace, params, batch, features)
    return [tuple(paths) for paths in groups.values()]


def train_step(
    state: TrainState,
    batch: Batch,
    features: Features,
    *,
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    mesh: Mesh | None = None,
) -> tuple[TrainState, StepInfo]:
    """One update of the trainable parameters.

    Gathers the rows of tables that the batch touches, differentiates the loss with respect to them and to the
    trainable dense leaves, and writes the moved rows back. Cost and memory do not depend on the tables' size.

    Args:
      state: from ``init_state``; donate it under ``jit``.
      batch: examples.
      features: arrays by entity.
      model: static under ``jit``, like ``loss`` and ``optimizer``.
      loss: function ``(scores, batch) -> scalar``, for example from ``losses.on_batch``. It has to weigh rows by
        ``batch.weight``, which is 0 for those that only fill the batch up.
      optimizer: the one that ``init_state`` was given.
      mesh: likewise; static under ``jit``. The batch is cut by examples, features lie on every device, and of the
        tables only the touched rows and their gradients travel. Up to rounding the result is that of one device.

    Returns:
      The next state and the loss before the update. If the loss or a gradient is not finite the parameters and the
      optimiser's state are those that came in. (Of ``MatrixFactorization`` the scores and their gradient may be looked
      at instead of its rows' gradients: a step is also refused where the former is beyond 3e19, and only a row with
      numbers beyond 1e19 can still overflow.)

    Raises:
      ValueError: the devices of ``mesh`` cannot share the batch's examples evenly.
    """
    _sharded.check(mesh)
    if mesh is not None:
        batch = _sharded.split(mesh, batch)
    lookups = _checked(model.lookups(batch, features), _sizes(model, state, mesh))
    trainable = _tree.flatten(state.params)
    rows_of = {name: lookup for name, lookup in lookups.items() if lookup.path in trainable}
    fixed = gather(state.frozen, {name: lookup for name, lookup in lookups.items() if name not in rows_of}, mesh)
    tables = {lookup.path for lookup in lookups.values()}
    dense, fixed_dense = _tree.drop(state.params, tables), _tree.drop(state.frozen, tables)
    key = jax.random.fold_in(state.key, state.step)

    def scores_of(dense: Params, rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        params = _tree.merge(dense, fixed_dense)
        output = scored(model.score(params, {**fixed, **rows}, batch, features, key=key))
        return output.scores, output.penalty_at(state.step)

    (scores, penalty), back = jax.vjp(scores_of, dense, gather(state.params, rows_of, mesh))
    of_scores, score_grads = jax.value_and_grad(loss)(scores, batch)
    value = of_scores + penalty
    grads, row_grads = back((score_grads, jnp.ones_like(penalty)))
    by_table = _grads_by_table(rows_of, row_grads, mesh)
    looked_at = [table.grads for table in by_table.values()]
    if type(model) in _PRODUCTS and 2 * scores.size < sum(grad.size for grad in looked_at):
        looked_at = [scores, _LARGE * score_grads]
    ok = all_finite(value, (grads, looked_at))
    params, opt_state, slots = optimizer.update(
        state.params,
        state.opt_state,
        state.slots,
        grads=grads,
        row_grads=by_table,
        frozen_rows=state.frozen_rows,
        value=value,
        ok=ok,
        mesh=mesh,
    )
    step = _sharded.held(mesh, state.step + ok.astype(jnp.int32), cut=False)
    return state._replace(params=params, opt_state=opt_state, slots=slots, step=step), StepInfo(value, ok)


def train_epoch(
    state: TrainState,
    batches: Batch,
    features: Features,
    num_steps: Int32[jax.Array, ""] | int | None = None,
    *,
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    mesh: Mesh | None = None,
) -> tuple[TrainState, EpochInfo]:
    """A compiled loop of ``train_step`` over stacked batches. It ends at the first step that is not finite.

    Args:
      state: from ``init_state``; donate it under ``jit``.
      batches: a batch whose arrays have one more leading axis, the steps.
      features: arrays by entity.
      num_steps: how many of the stacked batches to use, traced, so that a shorter loop compiles nothing; all by
        default.
      model: static under ``jit``, like ``loss`` and ``optimizer``.
      loss: as for ``train_step``.
      optimizer: as for ``train_step``.
      mesh: as for ``train_step``.

    Returns:
      The state after the last good step, and how it went.
    """
    most = jax.tree.leaves(batches)[0].shape[0]
    if isinstance(num_steps, int | np.integer) and not 0 <= num_steps <= most:
        raise ValueError(f"Expected num_steps in 0 .. {most}, the number of stacked batches, got {num_steps}.")
    limit = jnp.minimum(jnp.asarray(most if num_steps is None else num_steps, jnp.int32), most)
    # What no step changes stays out of the loop's carry.
    constant = {"frozen": state.frozen, "frozen_rows": state.frozen_rows, "key": state.key}
    start = (state._replace(frozen={}, frozen_rows={}), jnp.zeros((most,), jnp.float32), jnp.int32(0), jnp.bool_(True))

    def unfinished(carry: tuple[TrainState, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, _, taken, ok = carry
        return (taken < limit) & ok

    def body(
        carry: tuple[TrainState, jax.Array, jax.Array, jax.Array],
    ) -> tuple[TrainState, jax.Array, jax.Array, jax.Array]:
        moving, losses, taken, _ = carry
        batch = batch_at(batches, taken, mesh)
        moved, info = train_step(
            moving._replace(**constant), batch, features, model=model, loss=loss, optimizer=optimizer, mesh=mesh
        )
        moved = moved._replace(frozen={}, frozen_rows={})
        return moved, losses.at[taken].set(info.loss), taken + info.ok.astype(jnp.int32), info.ok

    moved, losses, taken, ok = jax.lax.while_loop(unfinished, body, start)
    return moved._replace(**constant), EpochInfo(losses, taken, ok)


def batch_at(batches: Batch, number: jax.Array, mesh: Mesh | None = None) -> Batch:
    """One of stacked batches."""
    if mesh is None:
        return jax.tree.map(lambda stack: rows_at(stack, number), batches)
    return jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, number, keepdims=False), batches)


def _sizes(model: Model, state: TrainState, mesh: Mesh | None) -> dict[str, int]:
    """Rows of each table by path, without those that fill it up."""
    params = _tree.merge(state.params, state.frozen)
    shapes = params if mesh is None else _tree.shapes(model)
    return {path: leaf.shape[0] for path, leaf in _tree.flatten(shapes).items() if leaf.ndim}


def _checked(lookups: dict[str, Lookup], sizes: dict[str, int]) -> dict[str, Lookup]:
    """Rows outside a table turned to row 0. Lookups by the same rows keep sharing one array."""
    safe: dict[tuple[int, int], jax.Array] = {}
    checked = {}
    for name, lookup in lookups.items():
        size = sizes[lookup.path]
        which = (id(lookup.rows), size)
        if which not in safe:
            safe[which] = safe_index(lookup.rows, size)
        checked[name] = lookup._replace(rows=safe[which])
    return checked


def all_finite(value: jax.Array, grads: Any) -> jax.Array:
    """Whether a loss and all gradients are: zero times anything else is NaN.

    A product with zeros is one pass over a gradient. ``isfinite(grad).all()`` took a quarter of a BPR step on CPU:
    XLA writes the booleans down and reduces them in further passes.
    """
    ok = jnp.isfinite(value)
    for grad in jax.tree.leaves(grads):
        zeros = jnp.zeros(grad.shape[-1:], grad.dtype)
        ok &= jnp.sum(jnp.dot(grad, zeros, precision="highest")) == 0  # fewer bits would round large numbers to inf
    return ok


def _names_by_table(lookups: dict[str, Lookup]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, lookup in lookups.items():
        names.setdefault(lookup.path, []).append(name)
    return names


def _rows_by_table(lookups: dict[str, Lookup], mesh: Mesh | None = None) -> dict[str, jax.Array]:
    """All rows looked up of each table; tables that are looked up by the same rows share one array."""
    joined: dict[tuple[int, ...], jax.Array] = {}
    rows = {}
    for path, names in _names_by_table(lookups).items():
        which = tuple(id(lookups[name].rows) for name in names)
        if which not in joined:
            joined[which] = jnp.concatenate([_sharded.common(mesh, lookups[name].rows.reshape(-1)) for name in names])
        rows[path] = joined[which]
    return rows


def _grads_by_table(lookups: dict[str, Lookup], grads: dict[str, jax.Array], mesh: Mesh | None) -> dict[str, RowGrads]:
    """All lookups of a table as one, of all devices on each."""
    rows = _rows_by_table(lookups, mesh)
    tables = {}
    for path, names in _names_by_table(lookups).items():
        flat = [grads[name].reshape(-1, *grads[name].shape[lookups[name].rows.ndim :]) for name in names]
        tables[path] = RowGrads(rows[path], jnp.concatenate([_sharded.common(mesh, each) for each in flat]))
    return tables
