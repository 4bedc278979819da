"""Meta-learning: an initialisation from which a few gradient steps on a few interactions fit a new user or item."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import _tree, optim
from jaxrec._expect import expect, one_of
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, Params
from jaxrec.coldstart._episodes import Episodes, pool_of
from jaxrec.coldstart._inner import InnerLoop, Method, TaskLoss, Tasks
from jaxrec.coldstart._mirrored import mirrored
from jaxrec.data import Dataset
from jaxrec.models import Model
from jaxrec.models._personalised import check_personal
from jaxrec.train._choices import check_rows, chosen_optimizer
from jaxrec.train._fit import Progress, run_epochs
from jaxrec.train._judge import Judge
from jaxrec.train._step import init_state


def meta_learn(
    model: Model,
    train: Dataset,
    inner: InnerLoop,
    *,
    method: Method = "maml",
    query: int = 10,
    epochs: int = 20,
    batch_size: int = 32,
    optimizer: optim.Optimizer | optax.GradientTransformation | None = None,
    validation: Dataset | None = None,
    patience: int | None = 5,
    params: Params | None = None,
    freeze: _tree.Patterns = (),
    callbacks: Sequence[Callable[[Progress], bool | None]] = (),
    progress: bool | None = None,
    seed: int = 0,
) -> Recommender:
    r"""Trains a model so that the inner loop, from its parameters, fits a new user (or item) well.

    Every user of the training part is a task, once an epoch: some of the interactions, 0 to ``inner.support`` of them,
    are the support that the inner loop adapts the personal parameters :math:`\theta` to; others are the query, and the
    loss on it is what the outer loop lowers, by :math:`\theta` and by all that is shared. A pair that the support shows
    is not asked for again, however often it is repeated. Methods:

    - ``"maml"``: the gradient of :math:`L(\phi(\theta), \text{query})`, through the inner steps;
    - ``"first_order"``: the same with :math:`\partial\phi/\partial\theta` taken as the identity, which is cheaper;
    - ``"reptile"``: :math:`(\theta - \phi) / (\eta \cdot \text{steps})` as the gradient of the personal part, and of
      the rest the mean gradient along the way. Support and query are one, and cut into a part for each step.

    A new user has no row of an embedding table, so none has one here: all users are scored as unknown ones, from
    content and what the inner loop makes of their interactions, in the recommender returned too. Tables of users are
    not trained.

    With ``inner.side="item"`` every item is a task in the same way: the support are the first users who touched it, and
    items have no rows.

    Args:
      model: whose personal parameters are dense, for example ``TwoTower.for_data(train)``. ``NeuMF`` needs no ``dim``:
        the inner product of an unknown user is the same for all.
      train: from ``data.encode``; every user and item in it must be known to its encoder.
      inner: what is personal, and how it adapts.
      method: of the outer gradient.
      query: most interactions of a task's query, at least 1.
      epochs: passes over the tasks, at most.
      batch_size: tasks of a step.
      optimizer: of the outer loop, as for ``fit``.
      validation: held-out interactions of the same encoder. Each user (or item) in it is a task, cut once.
      patience: stop after so many epochs in which the loss on the query of ``validation`` did not fall; None for never.
        The best epoch's parameters are returned.
      params: where to start from, for example those of an ordinary ``fit``; by default ``model.init``. They are copied,
        not consumed.
      freeze: patterns of parameters that the outer loop does not move. The inner loop may.
      callbacks: as for ``fit``.
      progress: as for ``fit``.
      seed: of the initial parameters, tasks, negatives and dropout.

    Returns:
      A recommender of ``model`` with the initialisation, for ``coldstart.personalise``. Its ``history`` has the
      ``query_loss`` on ``validation``.

    Raises:
      ValueError: a personal pattern matches nothing or a table, the model reads a history or a context, an option does
        not fit the data, or ``validation`` has nothing to ask for.
      Diverged: loss or gradient is not finite; the exception carries the last good parameters.

    References:
      Finn, Abbeel and Levine, Model-agnostic meta-learning for fast adaptation of deep networks, ICML 2017 (``"maml"``
      and its first-order approximation). Nichol, Achiam and Schulman, On first-order meta-learning algorithms, 2018
      (``"reptile"``: the way gone as a gradient for any optimiser, minibatches that differ). Lee et al., MeLU:
      meta-learned user preference estimator for cold-start recommendation, KDD 2019 (which part is personal; here
      shared parameters are trained in the same outer step).
    """
    expect(train, Dataset, "train")
    expect(inner, InnerLoop, "inner")
    one_of(method, ("maml", "first_order", "reptile"), "method")
    for name, value in (("query", query), ("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"Expected {name} >= 1, got {value}.")
    if method == "reptile" and inner.steps < 2:
        raise ValueError(
            "Expected at least 2 inner steps for method='reptile', got 1, with which it is training on all users' "
            "interactions together. Give InnerLoop(steps=...)."
        )
    if method == "reptile" and inner.steps > inner.support + query:
        raise ValueError(
            f"Expected at most as many inner steps as a task has rows for method='reptile', {inner.support + query}, "
            f"got {inner.steps}. Each step looks at rows of its own."
        )
    for data in (train,) if validation is None else (train, validation):
        expect(data, Dataset, "validation")
        check_data(data)
    check_rows(model, train)
    inner, link = inner.chosen(model, train)
    side = inner.side
    blank = Recommender(model, {}, train.encoder.without_rows(side), train.interactions, len(train), link=link)
    # Paths instead of patterns: a step has no tables, and what takes one out ("!user/embedding") would match nothing.
    inner = dataclasses.replace(inner, personal=check_model(blank, inner))
    tasks = Tasks(mirrored(model, side), inner, query, method)
    pool = pool_of(train, side)
    options: dict[str, Any] = {
        "support": inner.support, "query": query, "batch_size": batch_size, "seed": seed, "side": side,
    }  # fmt: skip
    episodes = Episodes(train, pool, negatives=inner.drawn(train), whole=method == "reptile", **options)
    judged = None
    if validation is not None:
        train.encoder.check(validation.encoder)
        judged = _query_loss(Episodes(validation, pool, negatives=inner.drawn(train), **options), tasks)
    key_init, key_train = jax.random.split(jax.random.key(seed))
    optimizer = chosen_optimizer(model, optimizer)
    of_tasks = tuple(path for path, numbering in model.tables.items() if numbering == side)
    state = init_state(
        tasks,
        model.init(key_init) if params is None else _tree.copied(params),
        optimizer,
        episodes.example(),
        blank.features,
        key=key_train,
        freeze=((freeze,) if isinstance(freeze, str) else tuple(freeze)) + of_tasks,
    )
    return run_epochs(
        blank,
        state,
        episodes,
        blank.features,
        model=tasks,
        loss=TaskLoss(tasks),
        optimizer=optimizer,
        epochs=epochs,
        judge=Judge(None, judged, patience, lower=True),
        callbacks=callbacks,
        progress=progress,
    )


def check_data(data: Dataset) -> None:
    """Raises unless the rows can be cut into tasks."""
    if data.user is None or data.item is None:
        raise ValueError("Tasks are users and the items that they prefer. Name both columns in the schema.")
    if not len(data):
        raise ValueError("There is no interaction to make tasks of. Expected at least one row.")
    for name, index in (("users", data.user), ("items", data.item)):
        if not index.all():
            raise ValueError(
                f"{int((index == 0).sum())} of {len(index)} rows have {name} that the encoder does not know. Encode "
                "all parts together with data.encode."
            )


def check_model(recommender: Recommender, inner: InnerLoop) -> tuple[str, ...]:
    """The paths of the personal parameters; raises unless users or items of this model can be adapted."""
    model = recommender.model
    personal = check_personal(model, _tree.flatten(_tree.shapes(model)), inner.personal)
    if recommender.pooled_history:
        raise ValueError(
            "The model reads a history, so it knows a user's interactions already, and a task has none to show it. "
            "Make the model with history=0."
        )
    if recommender.reads_context:
        raise ValueError(
            "The model reads columns of the interaction itself, which a recommender does not keep of its users. Leave "
            "context out of the schema."
        )
    return personal


def _query_loss(episodes: Episodes, tasks: Tasks) -> Callable[[Recommender], float]:
    stacks = [stack for stack, _ in episodes.epoch(0)]
    if not any(_asked(stack, tasks).any() for stack in stacks):
        raise ValueError(
            "No row of the validation part can be asked for: users (or items) repeat what their support shows, or all "
            "rows have weight 0. Leave validation= out, or hold out others."
        )
    # Whatever the outer gradient, what counts is how well a task is fitted by the whole support.
    tasks = Tasks(tasks.base, tasks.inner, tasks.query, "first_order")

    def query_loss(recommender: Recommender) -> float:
        found = [_losses(recommender.params, stack, recommender.features, tasks=tasks) for stack in stacks]
        loss, count = (np.concatenate([np.asarray(each[part]) for each in found]) for part in range(2))
        return float((loss * count).sum() / count.sum())

    return query_loss


@functools.partial(jax.jit, static_argnames=("tasks",))
def _losses(params: Params, stack: Batch, features: Features, *, tasks: Tasks) -> tuple[jax.Array, jax.Array]:
    """Of each step: the mean over its tasks, and their number."""

    def of_step(batch: Batch) -> tuple[jax.Array, jax.Array]:
        loss = TaskLoss(tasks)(tasks.apply(params, batch, features), batch)
        return loss, (_asked(batch, tasks).sum(axis=1) > 0).sum()

    return jax.lax.map(of_step, stack)


def _asked(batch: Batch, tasks: Tasks) -> jax.Array:
    """Weights of the rows of all queries ``[tasks, query]``."""
    return jnp.asarray(batch.weight).reshape(-1, tasks.inner.support + tasks.query)[:, tasks.inner.support :]
