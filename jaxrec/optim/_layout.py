"""Which part of an optimiser's state belongs to which table, and may a table be updated by rows at all?"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import _tree
from jaxrec._types import Params

_ROWS = 272  # of a table in the small copy on which a transformation is tried
_STEPS = (0, *(10**power for power in range(7)))  # at which it may be tried, since a rate may begin at 0
_ELEMENTWISE = frozenset(
    "abs add and clamp convert_element_type copy cos div eq exp expm1 ge gt integer_pow is_finite le log log1p "
    "logistic lt max min mul ne neg not or pow rsqrt select_n sign sin sqrt square sub tanh".split()
)

Shapes = tuple[tuple[str, jax.ShapeDtypeStruct], ...]


class Layout(NamedTuple):
    owners: tuple[str | None, ...]  # of each leaf of the state: the table whose rows it follows
    linear: bool  # whether repeated rows may be given one by one instead of summed first


def layout_of(
    transformation: optax.GradientTransformation, params: Params, tables: tuple[str, ...], *, sparse: bool
) -> Layout:
    """The layout of the transformation's state for ``params``; ``sparse`` also checks that rows are independent.

    Raises:
      ValueError: ``sparse``, and the transformation mixes the rows of a table.
    """
    shapes = tuple((path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) for path, leaf in _tree.flatten(params).items())
    return _layout(transformation, shapes, tables, sparse)


@functools.lru_cache(maxsize=256)
def _layout(
    transformation: optax.GradientTransformation, shapes: Shapes, tables: tuple[str, ...], sparse: bool
) -> Layout:
    with jax.numpy_dtype_promotion("standard"):
        owners = _owners(transformation, dict(shapes), tables, sparse)
        if not sparse or not tables:
            return Layout(owners, linear=False)
        # Of a table only its width counts, so that models of one kind and any size are tried once.
        small = tuple(
            (path, (_ROWS, *leaf.shape[1:]) if path in tables else (2,) * len(leaf.shape)) for path, leaf in shapes
        )
        with jax.ensure_compile_time_eval():  # for the small copy only: it would make abstract tables real
            linear = _check_rows(transformation, small, tables, owners)
        # In half precision, changes added one by one are lost in the rounding of each.
        return Layout(owners, linear and all(leaf.dtype.itemsize >= 4 for path, leaf in shapes if path in tables))


def _owners(
    transformation: optax.GradientTransformation,
    shapes: dict[str, jax.ShapeDtypeStruct],
    tables: tuple[str, ...],
    sparse: bool,
) -> tuple[str | None, ...]:
    """Found by giving one table one row more and looking at which leaves of the state grow with it."""

    def state(shapes: dict[str, jax.ShapeDtypeStruct]) -> Any:
        return jax.eval_shape(transformation.init, _tree.unflatten(shapes))

    before = jax.tree.leaves(state(shapes))
    owners: list[str | None] = [None] * len(before)
    for table in tables:
        rows, *rest = shapes[table].shape
        longer = {**shapes, table: jax.ShapeDtypeStruct((rows + 1, *rest), shapes[table].dtype)}
        for number, (old, new) in enumerate(zip(before, jax.tree.leaves(state(longer)), strict=True)):
            if old.shape == new.shape:
                continue
            if new.shape == (rows + 1, *old.shape[1:]):
                owners[number] = table
            elif sparse:
                raise ValueError(_refusal(table, f"its state has the shape {old.shape}, which does not go by rows"))
    return tuple(owners)


@functools.lru_cache(maxsize=256)
def _check_rows(
    transformation: optax.GradientTransformation,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    tables: tuple[str, ...],
    owners: tuple[str | None, ...],
) -> bool:
    """Tries the transformation on a small copy of the tree: raises if it mixes rows, returns whether it is linear.

    One that remembers rows, and so is not linear, need not be tried where its program shows that it mixes none. Two
    updates of tables whose first half has no gradient must be the same as two updates of the other half alone.
    The copy, of the given shapes, keeps the tables' width and more than 128 rows in each half, since some
    transformations treat small arrays apart. The trial is most of what a first training costs beside its own program,
    so the updates are compiled for tables of two heights alone; all else is NumPy's work, which compiles nothing.
    """
    rng = np.random.default_rng(0)
    rows = np.arange(_ROWS // 2, _ROWS)  # not the first ones, or random noise by position would pass

    def random(size: float = 1.0) -> dict[str, np.ndarray]:
        return {path: np.asarray(size * rng.normal(size=shape), np.float32) for path, shape in shapes}

    params = random()
    for path in tables:
        params[path][rows[0]] = 0.0  # see _refuse_mixing; in the state too, where it keeps the parameters
    like = jax.eval_shape(transformation.init, _tree.unflatten(params))
    _refuse_accumulation(like, tables)
    update = functools.partial(optax.with_extra_args_support(transformation).update, value=jnp.ones((), jnp.float32))
    part_params = {path: leaf[rows] if path in tables else leaf for path, leaf in params.items()}
    if any(owner is not None for owner in owners):
        numbers = [_numbers(update, transformation.init, _tree.unflatten(each)) for each in (params, part_params)]
        if numbers[0] is not None and numbers[0] == numbers[1]:  # else it may look at how many rows there are
            return False
    state = jax.jit(transformation.init)(_tree.unflatten(params))
    leaves, treedef = jax.tree.flatten(state)
    part_state = treedef.unflatten(
        [leaf if owner is None else np.asarray(leaf)[rows] for leaf, owner in zip(leaves, owners, strict=True)]
    )

    @jax.jit
    def compiled(grads: dict[str, Any], state: Any, params: dict[str, Any]) -> dict[str, jax.Array]:
        tree = _tree.unflatten(params)
        _, state = update(_tree.unflatten(grads), state, tree)
        updates: Any = update(_tree.unflatten(grads), state, tree)[0]
        return {path: leaf for path, leaf in _tree.flatten(updates).items() if path in tables}

    def second(grads: dict[str, Any], state: Any, params: dict[str, Any]) -> dict[str, np.ndarray]:
        return {path: np.asarray(leaf) for path, leaf in compiled(grads, state, params).items()}

    linear = all(owner is None for owner in owners) and _vanishes(second, part_state, part_params, tables)
    steps = _awake(second, part_state, part_params, tables)
    state, part_state = _later(state, steps), _later(part_state, steps)
    _refuse_mixing(second, part_state, part_params, tables, rng)
    for size in (1.0, 1e6):  # the large one is beyond any sensible clipping
        grads = random(size)
        for path in tables:
            grads[path][: rows[0]] = 0.0
        part_grads = {path: leaf[rows] if path in tables else leaf for path, leaf in grads.items()}
        whole, part = second(grads, state, params), second(part_grads, part_state, part_params)
        for path in tables:
            if not np.allclose(whole[path][rows], part[path], rtol=1e-4, atol=1e-6 * np.abs(whole[path]).max()):
                raise ValueError(_refusal(path, "a row's update depends on rows that the batch did not touch"))
        if linear:
            halves = {
                path: np.repeat(leaf / 2, 2, axis=0) if path in tables else leaf for path, leaf in part_grads.items()
            }
            twice = {path: np.repeat(leaf, 2, axis=0) if path in tables else leaf for path, leaf in part_params.items()}
            split = second(halves, part_state, twice)
            linear = all(
                np.abs(part[path]).max() > 0
                and np.allclose(
                    split[path][0::2] + split[path][1::2], part[path], rtol=1e-4, atol=1e-6 * np.abs(part[path]).max()
                )
                for path in tables
            )
    return linear


def _numbers(update: Any, init: Any, params: Params) -> list[Any] | None:
    """The numbers in an update's program; None unless each element of an array plainly comes of those in its place and
    of scalars.

    So it is with most transformations, and compiling the trial takes longer than all else before a first step.
    """
    found: list[Any] = []
    program = jax.make_jaxpr(update)(params, jax.eval_shape(init, params), params)
    return found if _elementwise(program, found) else None


def _elementwise(program: Any, numbers: list[Any]) -> bool:
    """Of a closed jaxpr, whose numbers are appended."""
    if any(map(np.ndim, program.consts)):
        return False
    numbers += [np.asarray(const).tolist() for const in program.consts]
    for equation in program.jaxpr.eqns:
        name, variables = equation.primitive.name, (*equation.invars, *equation.outvars)
        numbers += [np.asarray(each.val).tolist() for each in equation.invars if hasattr(each, "val")]
        if name in ("jit", "pjit"):
            plain = _elementwise(equation.params["jaxpr"], numbers)
        elif name == "broadcast_in_dim":
            plain = not equation.invars[0].aval.ndim
        else:
            plain = name in _ELEMENTWISE or not any(each.aval.ndim for each in variables)
        if not plain:
            return False
    return True


def _awake(second: Any, state: Any, params: dict[str, np.ndarray], tables: tuple[str, ...]) -> int:
    """After how many steps most tables move: where no update is made, rows do not mix, and nothing is learnt of it."""

    def moving(steps: int) -> int:
        updates = second(params, _later(state, steps), params)  # any gradient will do
        return sum(bool(update.any() and np.isfinite(update).all()) for update in updates.values())

    return 0 if moving(0) == len(tables) else max(_STEPS, key=moving)


def _later(state: Any, steps: int) -> Any:
    """The state after so many steps (0: as it is), and with other numbers for those that are 0, such as a rate."""

    def other(leaf: Any) -> Any:
        if leaf.ndim or not steps:
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.where(np.asarray(leaf) == 0, np.asarray(0.1, leaf.dtype), np.asarray(leaf))
        return _added(leaf, steps)

    return jax.tree.map(other, state)


def _added(leaf: Any, number: float) -> Any:
    """The leaf and a number, whole for one of integers; what is neither float nor integer is left."""
    is_number = jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer)
    return np.asarray(leaf) + np.asarray(number).astype(leaf.dtype) if is_number else leaf


def _vanishes(second: Any, state: Any, params: dict[str, np.ndarray], tables: tuple[str, ...]) -> bool:
    """Whether no gradient gives no update, whatever numbers the state is set to: a decay that is 0 now may be set, or
    begin at a later step."""

    def other(leaf: Any, steps: int) -> Any:
        return _added(leaf, 0.1 if jnp.issubdtype(leaf.dtype, jnp.floating) else steps)

    nothing = {path: np.zeros_like(leaf) for path, leaf in params.items()}
    later = [jax.tree.map(functools.partial(other, steps=steps), state) for steps in (1, 10**6)]
    updates = [second(nothing, each, params) for each in (state, *later)]
    return not any(update[path].any() for update in updates for path in tables)


def _refuse_mixing(
    second: Any, state: Any, params: dict[str, np.ndarray], tables: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Another gradient of the first row, of the same norm, must leave the other rows' updates as they are.

    That row of the parameters is 0, or the norm of weight decay, or of a pull, plus gradient would change.
    """
    for path in tables:
        grads = {name: np.asarray(rng.normal(size=leaf.shape), np.float32) for name, leaf in params.items()}
        grads[path][0] *= 30.0
        other = grads | {path: grads[path].copy()}
        other[path][:1] = -grads[path][:1][..., ::-1]  # turned round too: some (muon) carry a sign through
        a, b = (second(each, state, params)[path][1:] for each in (grads, other))
        if not np.allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(a).max()):
            raise ValueError(_refusal(path, "a row's update depends on the gradients of other rows"))


def _refuse_accumulation(state: Any, tables: tuple[str, ...]) -> None:
    kinds = (optax.MultiStepsState, optax.ApplyEvery)
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kinds))
    if any(isinstance(part, kinds) for part in parts):
        raise ValueError(_refusal(tables[0], "gradients saved for a later step are lost for rows it does not touch"))


def _refusal(table: str, reason: str) -> str:
    return (
        f"This optax transformation cannot train the table {table!r} by rows: {reason}. Elementwise transformations "
        "(sgd, momentum, adagrad, adam, adamw, ...) and clip_by_global_norm can. Use optim.dense(...) to update the "
        "whole table in every step, or optim.per_path to keep this transformation for the other parameters."
    )
