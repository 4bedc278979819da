"""Alternating least squares for implicit feedback: each side in turn is a regression on the other."""

import functools
import math
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from jaxrec import _sharded, _threads
from jaxrec._exact import exact
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._rows import rows_at
from jaxrec._types import Array, Features, Folding, ImplicitSquares, Params
from jaxrec.data import Dataset
from jaxrec.data._batches import rows_that_weigh
from jaxrec.data._counting import counted
from jaxrec.models import MatrixFactorization
from jaxrec.models._base import with_unknown_rows
from jaxrec.train._als_plan import Plan, filled, laid_out, parts_of
from jaxrec.train._choices import check_rows
from jaxrec.train._implicit import need_implicit
from jaxrec.train._judge import Judge, Metric
from jaxrec.train._prior import Priors
from jaxrec.train._step import check_params

_NUMBERS = 2**18  # of the vectors gathered at once: they should stay in the cache over all steps
_PADDED = 2**22  # most numbers by which a table is lengthened so that what one side compiles serves both
_LOOKED_AT, _LEAST_SCORE = 4096, 1e-6  # vectors that have only begun to grow have some 1e-4
_CONTENT_L2, _JOINT = 0.3, ("item",)


def fit_als(
    train: Dataset,
    *,
    dim: int = 64,
    epochs: int = 16,
    unobserved: float = 0.3,
    l2: float = 0.01,
    exponent: float = 1.0,
    steps: int = 3,
    validation: Dataset | None = None,
    metric: Metric | None = None,
    patience: int | None = 3,
    params: Params | None = None,
    content: bool = False,
    content_l2: float = _CONTENT_L2,
    joint: str | tuple[str, ...] = _JOINT,
    fold_user: ImplicitSquares | None = None,
    fold_item: ImplicitSquares | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Recommender:
    r"""Matrix factorization of implicit feedback by alternating least squares (iALS).

    Minimises, over user vectors :math:`p` and item vectors :math:`q`, with :math:`S` the interactions, :math:`w` their
    weights, :math:`\alpha` ``unobserved``, :math:`\lambda` ``l2`` and :math:`\nu` ``exponent``,

    .. math:: \sum_{(u,i) \in S} w_{ui} (1 - p_u^\top q_i)^2 + \alpha \sum_{u,i} (p_u^\top q_i)^2
        + \lambda \sum_u (|S_u| + \alpha |I|)^\nu \lVert p_u \rVert^2
        + \lambda \sum_i (|S_i| + \alpha |U|)^\nu \lVert q_i \rVert^2

    Each half is a ridge regression per user (item), solved by a few steps of conjugate gradients from the last epoch's
    vector. A strong baseline for warm users, in a few seconds. The same arguments give the same parameters.

    With ``content`` a linear regression :math:`b + W x` on the features of each side's entities is fitted to their
    vectors after each half. Users and items that have only features are scored by it, comparably with the others, and
    are folded in from it; without features it is :math:`b`, the average. While training, the vectors of the sides in
    ``joint`` are drawn towards it instead of towards zero. In :math:`x` each of an entity's :math:`n` labels of one
    feature is :math:`1 / \sqrt n`.

    Users that are added later are folded in by the regression that an epoch solves, weights included, but drawn towards
    what is known of them without interactions (:math:`b + W x`, or the average user) instead of towards zero, unless
    ``fold_user`` gives it an :math:`\alpha`, :math:`\lambda` and :math:`\nu` of its own: of somebody who has just come,
    a pair that was not observed says less than of those who have had the time. Of a new item it says nothing, since
    hardly anyone can have met it: items are folded in by what was observed alone.

    Args:
      train: implicit feedback; weights are confidences, and rows of weight 0 count nowhere.
      dim: width of the vectors.
      epochs: passes over both sides, at most.
      unobserved: weight of a pair that was not observed, positive.
      l2: regularisation. It counts in proportion to ``unobserved`` and the catalogue: with hundreds of thousands of
        items and a few interactions each, a tenth of the defaults of both is a start; a warning says when nothing
        is left of the vectors.
      exponent: 1 regularises in proportion to the loss that an entity takes part in, 0 all alike.
      steps: of conjugate gradients, at least 1.
      validation: held-out interactions of the same encoder.
      metric: as for ``fit``.
      patience: as for ``fit``.
      params: of a ``MatrixFactorization`` without biases of this size, to start from; by default items at
        small random vectors, and users, who are solved for first, at zero. Whoever has no interactions here, or none
        that weighs anything, has the vector zero, whatever was given.
      content: whether to fit regressions on the features of users and items.
      content_l2: regularisation of :math:`W`, beside squared errors that count 1 per entity on average. Tenths suit
        labels and text; vectors of another domain (``transfer.carry``) want 30 to 3,000.
      joint: ``"user"``, ``"item"``, both or none. Content of items is worth it; of people little is known by their age
        and occupation, and their vectors are better left alone (docs/design.md).
      fold_user: what the vector of a user who is folded in minimises; by default what an epoch minimises. Where little
        is known of users a thirtieth of ``unobserved`` with eight times ``l2`` is often better (docs/design.md).
      fold_item: likewise of an item; by default ``ImplicitSquares(0, 0.5, 0)``, good on three data sets
        (docs/design.md).
      mesh: devices that share the rows to be solved, from ``sharding.make_mesh``. Vectors lie on every one of them. The
        result is that of one device but for rounding.
      seed: of the initial vectors.

    Returns:
      A recommender of a ``MatrixFactorization`` without biases, or with ``content`` of a linear ``TwoTower``, with the
      training's ``history``.

    Raises:
      ValueError: the data has targets, no users or no items, users or items without a table row, or weights that are
        all 0; an option is out of range, or of ``content`` where there is none.

    Warns:
      UserWarning: the regularisation has made the vectors nearly zero.

    References:
      Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008; the objective and its
      regularisation as in Rendle et al., Revisiting the performance of iALS on item recommendation benchmarks, RecSys
      2022; conjugate gradients as in Takács, Pilászy and Tikk, Applications of the conjugate gradient method for
      implicit feedback collaborative filtering, RecSys 2011. The prior: Wang and Blei, Collaborative topic modeling for
      recommending scientific articles, KDD 2011 (here of both sides, and a regression on features instead of topics of
      words).
    """
    expect(train, Dataset, "train")
    need_implicit(train)
    for name, value, least in (("epochs", epochs, 1), ("steps", steps, 1), ("dim", dim, 1)):
        if value < least:
            raise ValueError(f"Expected {name} >= {least}, got {value}.")
    for name, fold in (("fold_user", fold_user), ("fold_item", fold_item)):
        if fold is not None:
            expect(fold, ImplicitSquares, name)
    for name, number in (("unobserved", unobserved), ("l2", l2), ("content_l2", content_l2)):
        if not 0 < number < math.inf:
            raise ValueError(f"Expected a finite {name} > 0, got {number}.")
    joint = (joint,) if isinstance(joint, str) else tuple(joint)
    if not set(joint) <= {"user", "item"}:
        raise ValueError(f"Expected joint among 'user' and 'item', got {joint!r}.")
    if not content and (content_l2, joint) != (_CONTENT_L2, _JOINT):
        raise ValueError(
            f"content_l2={content_l2:g} and joint={joint} are of the regressions on features, of which there are none: "
            "say content=True, or leave them out."
        )
    own = ImplicitSquares(unobserved, l2, exponent)
    model, features = MatrixFactorization.for_data(train, dim=dim, bias=False), train.features
    check_rows(model, train)
    _sharded.check(mesh)
    if params is not None:
        check_params(model, params)
    judge, score = Judge(validation, metric, patience, encoder=train.encoder), 1.0
    known = {"user": int(features.user_row.max()), "item": int(features.item_row.max())}
    assert train.user is not None and train.item is not None
    some = rows_that_weigh(train)
    rows = slice(None) if some is None else some
    user, item = (
        np.asarray(row)[index[rows]]
        for row, index in ((features.user_row, train.user), (features.item_row, train.item))
    )
    heights = {"user": model.user_rows, "item": model.item_rows}
    if mesh is None and not content and abs(model.user_rows - model.item_rows) * dim <= _PADDED:
        heights = dict.fromkeys(heights, max(heights.values()))
    weight = np.ones(len(user), np.float32) if train.weight is None else train.weight[rows]
    met = {side: counted(row, heights[side]) > 0 for side, row in (("user", user), ("item", item))}
    if params is None:
        tables = _drawn(heights, np.flatnonzero(met["item"]), dim, seed)
    else:
        tables = {side: _begun(params[side]["embedding"], met[side]) for side in heights}
    lay_out = functools.partial(laid_out, weight=weight, cells=max(_NUMBERS // dim, 64))
    found = _threads.spread(lay_out, [user, item], [item, user], list(heights.values()), threads=2)
    if mesh is None:
        plans = dict(zip(heights, parts_of(found, dim), strict=True))
    else:
        plans = dict(zip(heights, found, strict=True))
        plans = {side: filled(plan, _sharded.rounded(len(plan.row), mesh)) for side, plan in plans.items()}
        plans = _sharded.placed(plans, _sharded.by_rows(mesh))
        tables = _sharded.placed(tables, _sharded.everywhere(mesh))
    options = {"unobserved": unobserved, "l2": l2, "exponent": exponent}
    options = jax.device_put({name: np.float32(value) for name, value in options.items()})  # jnp.float32 compiles
    priors = Priors(train, dim, options, content_l2, joint, mesh) if content else None
    blank = Recommender(
        model if priors is None else priors.model,
        {},
        train.encoder,
        train.interactions,
        len(train.interactions),
        folding=Folding(fold_user or own, fold_item or Folding.item),
    )
    # Whoever has no vector is no part of the mean that the unknown gets.
    rows_of = ("user", features.user_row), ("item", features.item_row)
    moved = features._replace(**{f"{side}_row": np.where(met[side][row], row, 0) for side, row in rows_of})
    log: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        for side, other in (("user", "item"), ("item", "user")):
            prior = None if priors is None else priors.tables[side]
            task = _task(tables[other], options, prior)
            if mesh is None:
                tables[side] = _sweep(tables[side], plans[side], task, steps=steps)
            else:
                tables[side] = _sweep_shards(tables[side], plans[side], task, steps=steps, mesh=mesh)
            if priors is not None:
                priors.refit(side, tables[side].addressable_data(0))
        here = {side: table.addressable_data(0) for side, table in tables.items()}
        if priors is None:
            params = _ending(model, here, moved)
        else:
            params = priors.params(here)
        jax.block_until_ready(params)
        row = {"epoch": epoch, "seconds": time.perf_counter() - start}
        recommender = blank.replace(params=params, log=tuple(log))
        stop = judge.look(recommender, row)
        log.append(row)
        if judge.improved and (judge.name is not None or epoch == epochs):
            score = _mean_score(here, user, item)
        if stop:
            break
    _warn_if_nothing_is_left(score, known, (unobserved, l2, exponent))
    return blank.replace(params=params if judge.best is None else judge.best, log=tuple(log))


def _mean_score(tables: dict[str, jax.Array], user: np.ndarray, item: np.ndarray) -> float:
    """Of some training pairs, by table row."""
    some = np.linspace(0, len(user) - 1, min(len(user), _LOOKED_AT)).astype(np.int64)
    of_users, of_items = np.asarray(tables["user"])[user[some]], np.asarray(tables["item"])[item[some]]
    return float((of_users * of_items).sum(axis=1).mean()) if len(some) else 1.0


def _warn_if_nothing_is_left(score: float, known: dict[str, int], options: tuple[float, float, float]) -> None:
    """Too strong a regularisation makes every vector zero, and what ranks then is rounding."""
    unobserved, l2, exponent = options
    if abs(score) < _LEAST_SCORE:
        warnings.warn(
            f"The vectors have shrunk to nearly nothing: training pairs score {score:.1g} on average, where 1 is "
            f"sought. For {known['user']:,} users and {known['item']:,} items the regularisation is too strong at "
            f"l2={l2:g}, unobserved={unobserved:g}, exponent={exponent:g}: a user has l2 * (interactions + unobserved "
            "* items) ** exponent of it. Lower l2 or unobserved, to a tenth for a start.",
            UserWarning,
            stacklevel=3,
        )


def _drawn(heights: dict[str, int], items: np.ndarray, dim: int, seed: int) -> dict[str, jax.Array]:
    """Tables to begin with: small random vectors of the items that somebody touched, and zeros.

    Drawn by NumPy: compiling this took a fifth of a first run on MovieLens 1M.
    """
    tables = {side: np.zeros((height, dim), np.float32) for side, height in heights.items()}
    vectors = np.random.default_rng(seed).standard_normal((len(items), dim))
    tables["item"][items] = 0.1 * dim**-0.5 * vectors
    return jax.device_put(tables)


@jax.jit
def _begun(table: Array, met: Array) -> jax.Array:
    """As high as ``met``, with zeros for all without interactions, who would count as unobserved pairs and stay."""
    return jnp.where(met[:, None], jnp.pad(table, ((0, len(met) - len(table)), (0, 0))), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def _ending(model: MatrixFactorization, tables: dict[str, jax.Array], features: Features) -> Params:
    heights = {"user": model.user_rows, "item": model.item_rows}
    params = {side: {"embedding": table[: heights[side]]} for side, table in tables.items()}
    return with_unknown_rows(model, params, features)


class _Task(NamedTuple):
    """What the vectors of one side are fitted to."""

    others: Float[Array, "others dim"]
    gram: Float[Array, "dim dim"]  # of all others, times ``unobserved``
    num_others: Float[Array, ""]
    options: dict[str, jax.Array]
    prior: Float[Array, "rows dim"] | None


def _task(others: jax.Array, options: dict[str, jax.Array], prior: jax.Array | None) -> _Task:
    gram, num_others = _whole(others, options["unobserved"])
    return _Task(others, gram, num_others, options, prior)


@jax.jit
@exact
def _whole(others: jax.Array, unobserved: jax.Array) -> tuple[jax.Array, jax.Array]:
    return unobserved * (others.T @ others), (jnp.abs(others).sum(axis=1) > 0).sum().astype(jnp.float32)


def _sweep(table: jax.Array, parts: list[Plan], task: _Task, *, steps: int) -> Float[jax.Array, "rows dim"]:
    """Every vector of one side anew, the other side being fixed."""
    solved = _threads.spread(lambda part: _solved(table, part, task, steps=steps), parts, threads=len(parts))
    return _written(table, [part.row for part in parts], solved)


@functools.partial(jax.jit, donate_argnums=(0,))
def _written(table: jax.Array, rows: list[jax.Array], solved: list[jax.Array]) -> jax.Array:
    for row, vectors in zip(rows, solved, strict=True):
        table = table.at[row].set(vectors, mode="drop")
    return table


@functools.partial(jax.jit, static_argnames=("steps", "mesh"), donate_argnums=(0,))
def _sweep_shards(table: jax.Array, plan: Plan, task: _Task, *, steps: int, mesh: Mesh) -> Float[jax.Array, "rows dim"]:
    """``_sweep`` with the blocks of the plan cut over devices."""
    axis = mesh.axis_names[0]

    def of_shard(table: jax.Array, plan: Plan, task: _Task) -> tuple[jax.Array, jax.Array]:
        """Its own rows and zeros elsewhere, added up: sums of one number and zeros are exact."""
        mine = jnp.zeros(table.shape[0], jnp.int32).at[plan.row].set(1, mode="drop")
        solved = _solved(table, plan, task, steps=steps)
        own = jnp.zeros_like(table).at[plan.row].set(solved, mode="drop")
        return jax.lax.psum(own, axis), jax.lax.psum(mine, axis)

    everything = PartitionSpec()
    solved, touched = jax.shard_map(
        of_shard, mesh=mesh, in_specs=(everything, PartitionSpec(axis), everything), out_specs=everything
    )(table, plan, task)
    return jnp.where((touched > 0)[:, None], solved, table)


@functools.partial(jax.jit, static_argnames=("steps",))
@exact
def _solved(table: jax.Array, plan: Plan, task: _Task, *, steps: int) -> Float[jax.Array, "blocks chunks dim"]:
    """The vector of every slot, from a few steps of conjugate gradients that begin at its row of ``table``."""
    others, gram, num_others, options, prior = task
    tiny = jnp.finfo(jnp.float32).tiny

    def block(number: jax.Array, solved: jax.Array) -> jax.Array:
        at = functools.partial(jax.lax.dynamic_index_in_dim, index=number, keepdims=False, allow_negative_indices=False)
        part = jax.tree.map(at, plan)
        vectors = rows_at(others, part.other)
        scale = options["l2"] * (part.count + options["unobserved"] * num_others) ** options["exponent"]

        def by_slot(chunks: jax.Array) -> jax.Array:
            return jax.ops.segment_sum(chunks, part.slot, num_segments=len(part.slot), indices_are_sorted=False)

        def step(number: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            """One step; the first goes from zero to the start and leaves its residual: compiled apart it costs more."""
            x, residual, direction, square = state
            first = number == 0
            sought = jnp.where(first, 1.0, 0.0).astype(jnp.float32)
            # The normal equations' matrix times the direction, less their right side for a sought score.
            missing = (jnp.einsum("cld,cd->cl", vectors, direction[part.slot]) - sought) * part.weight
            image = by_slot(jnp.einsum("cld,cl->cd", vectors, missing)) + direction @ gram + scale[:, None] * direction
            along = jnp.where(first, 1.0, square / jnp.maximum((direction * image).sum(axis=1), tiny))
            x = x + along[:, None] * direction
            residual = residual - along[:, None] * image
            new = jnp.square(residual).sum(axis=1)
            turn = jnp.where(first, 0.0, new / jnp.maximum(square, tiny))
            return x, residual, residual + turn[:, None] * direction, new

        start = table.at[part.row].get(mode="clip")  # empty slots, whose row is past the end, are not written back
        nothing = jnp.zeros_like(start)
        drawn = nothing if prior is None else scale[:, None] * jnp.asarray(prior).at[part.row].get(mode="clip")
        state = (nothing, drawn, start, nothing[:, 0])
        return solved.at[number].set(jax.lax.fori_loop(0, 1 + steps, step, state)[0])

    used = (plan.row[:, 0] < len(table)).sum()  # what fills a plan up stands at its end
    nothing = jnp.zeros_like(plan.count)[..., None]  # on a mesh of the plan's type, which a bare zero has not
    return jax.lax.fori_loop(0, used, block, jnp.broadcast_to(nothing, (*plan.row.shape, table.shape[1])))
