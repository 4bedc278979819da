"""The verb ``fit``: batches in, a recommender out, with validation, early stopping and a guard against NaN."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxrec import _sharded, _tree, losses, optim
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Array, Params
from jaxrec.data import Batches, Dataset, Negatives, prepared
from jaxrec.data._prepared import Chunks, EpochSource
from jaxrec.evaluation._rows import NaNScore
from jaxrec.models import Model
from jaxrec.models._base import with_unknown_rows
from jaxrec.train._choices import (
    check_rows,
    chosen_loss,
    chosen_negatives,
    chosen_optimizer,
    empty_rows,
    warn_unless_weighed,
)
from jaxrec.train._judge import Judge, Metric
from jaxrec.train._phases import Phases, refreeze
from jaxrec.train._step import EpochInfo, TrainState, all_finite, init_state, train_epoch

_epoch = jax.jit(train_epoch, static_argnames=("model", "loss", "optimizer", "mesh"), donate_argnums=(0,))
_finite = jax.jit(lambda params: all_finite(jnp.float32(0.0), params))
_REMEDY = "Try a smaller learning rate, optax.clip_by_global_norm, or look for extreme values in features and targets."


class Progress(NamedTuple):
    """What a callback is told after an epoch."""

    epoch: int  # from 1
    row: dict[str, Any]  # of the history
    recommender: Recommender  # valid during the call: the next epoch reuses its arrays, so copy what you keep


class Diverged(FloatingPointError):
    """A loss or gradient became infinite or NaN, or a validated score or a parameter is.

    ``recommender`` has the parameters of the last good step; where a score is not finite, of the best epoch before.
    """

    def __init__(self, message: str, recommender: Recommender) -> None:
        super().__init__(message)
        self.recommender = recommender

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.recommender)  # by default the message alone crosses to another process


def fit(
    model: Model,
    train: Dataset,
    *,
    loss: str | losses.Loss | None = None,
    optimizer: optim.Optimizer | optax.GradientTransformation | None = None,
    epochs: int = 20,
    batch_size: int | None = 1024,
    negatives: Negatives | None = None,
    validation: Dataset | None = None,
    metric: Metric | None = None,
    patience: int | None = 5,
    params: Params | None = None,
    freeze: _tree.Patterns = (),
    frozen_rows: Mapping[str, Array] | None = None,
    unfreeze: Mapping[int, _tree.Patterns] | None = None,
    hyperparams: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[Progress], bool | None]] = (),
    progress: bool | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Recommender:
    """Trains a model.

    The same arguments give the same parameters, bit for bit, on the CPU of one machine; an accelerator may add up in
    another order each time, unless its compiler is asked not to. Nothing is compiled twice for data of the same shape,
    the same model and the same optimiser object.

    Args:
      model: for example ``TwoTower.for_data(train)``.
      train: from ``data.encode``; every user and item in it must be known to its encoder. Rows of weight 0
        are no examples (see ``data.Batches``), and belong to the recommender's interactions all the same. Users and
        items without any example are given the unknown's row, unless ``params`` brings one.
      loss: ``"mse"``, ``"sigmoid_cross_entropy"``, ``"bpr"``, ``"warp"``, ``"softmax"``,
        ``"sampled_softmax"``, ``"in_batch_softmax"``, or a function ``(scores, batch) -> scalar``, which has to weigh
        rows by ``batch.weight``: 0 marks examples that only fill a batch up. By default ``"mse"``
        (``"sigmoid_cross_entropy"`` for a model with a sigmoid link) where there is a target, else
        ``"in_batch_softmax"`` (``"softmax"`` for a model whose examples are users).
      optimizer: from ``jaxrec.optim``, or an optax transformation, which is made row-sparse. By default AdamW with a
        rate of 0.01 and decay 1 for embeddings, 0.003 and 3 for kernels, Adam for biases; Adam with 0.001 for an
        autoencoder, with 0.01 for ``Linear`` and models without tables.
      epochs: passes over the data, at most.
      batch_size: examples per step; None for full-batch gradient descent.
      negatives: how they are drawn; by default what a loss that is named needs, and none for a function of
        your own.
      validation: held-out interactions of the same encoder, whose users are all known to it where lists are ranked.
      metric: what to stop on, computed on ``validation`` after every epoch: a name from ``evaluate``'s report, by
        default ``"ndcg@10"`` (cut to a smaller catalogue; ``"rmse"`` where there is a target and the loss is not one
        of ranking), or a function of the recommender, higher being better. The best epoch's parameters are returned.
      patience: stop after so many epochs without improvement; None for never.
      params: where to start from; by default ``model.init``. They are copied, not consumed.
      freeze: patterns of parameters that do not move, such as ``"item/*"``.
      frozen_rows: by table path, a bool mask of rows that do not move. They are copied too.
      unfreeze: by epoch (from 1), patterns of leaves that are trained from then on: what ``freeze`` names of them, or
        else their ``frozen_rows``. What was trained before goes on with its optimiser's state, see ``train.refreeze``.
        A step is compiled once for each phase. Patience counts from the start of each phase, and running out of it ends
        the training in the last one alone.
      hyperparams: values for the optimiser's state, see ``optim.with_hyperparams``. Other values compile nothing.
      callbacks: called after each epoch; one that returns True ends the training.
      progress: whether to show a progress bar; by default where the error stream is a terminal.
      mesh: devices to train on, from ``sharding.make_mesh``: batches are cut by examples, tables by rows. The result
        is that of one device up to rounding; what is returned, and what validation and callbacks see, lies on one.
      seed: of the initial parameters, the order of examples, negatives and dropout.

    Returns:
      A recommender with the training's ``history``.

    Raises:
      ValueError: an option does not fit the data, a pattern matches nothing, everything is frozen.
      TypeError: an argument is of another kind.
      Diverged: loss or gradient is not finite, and the exception carries the last good parameters; or a validated score
        or, where nothing is validated, a parameter is not.

    Warns:
      UserWarning: the loss is a function of scores that does not look at ``batch.weight``, and weights differ.
    """
    if isinstance(model, type):
        raise TypeError(
            f"Expected a model, got the class {model.__name__}. Make one: {model.__name__}.for_data(train)."
        )
    _sharded.check(mesh)
    expect(train, Dataset, "train")
    if validation is not None:
        expect(validation, Dataset, "validation")
    if epochs < 1:
        raise ValueError(f"Expected epochs >= 1, got {epochs}.")
    if not len(train):
        raise ValueError("The training part is empty. Expected at least one row.")
    name, loss_function, link = chosen_loss(model, train, loss)
    negatives = chosen_negatives(train, name, negatives)
    optimizer = chosen_optimizer(model, optimizer)
    batches = Batches(
        train,
        batch_size=batch_size,
        negatives=negatives,
        history=getattr(model, "history", 0),
        seed=seed,
        histories=getattr(model, "histories", "subset"),
        multiple_of=1 if mesh is None else mesh.size,
    )
    check_rows(model, train)
    judge = Judge(validation, metric, patience, encoder=train.encoder, link=link)
    blank = Recommender(model, {}, train.encoder, train.interactions, len(train.interactions), link=link)
    features = blank.features if mesh is None else _sharded.placed(blank.features, _sharded.everywhere(mesh))
    key_init, key_train = jax.random.split(jax.random.key(seed))
    phases = Phases(model, freeze, frozen_rows or {}, unfreeze, epochs)
    example = batches.example()
    if name is None and batches.weighed:
        warn_unless_weighed(loss_function, model, example, features)

    def started(epoch: int, state: TrainState | None) -> TrainState:
        given = (frozen_rows or {}).items()
        masks = {path: jnp.array(mask, bool) for path, mask in given if phases.holds_rows(path, epoch)}
        options: dict[str, Any] = {"freeze": phases.frozen(epoch), "frozen_rows": masks, "mesh": mesh}
        if state is None:
            start = model.init(key_init) if params is None else _tree.copied(params)
            state = init_state(model, start, optimizer, example, features, key=key_train, **options)
        else:
            state = refreeze(state, model, optimizer, example, features, **options)
        return state._replace(opt_state=_set(state.opt_state, hyperparams, model, mesh))

    for epoch in phases.later:  # what would be refused after many epochs is refused now
        jax.eval_shape(functools.partial(started, epoch, None))
    return run_epochs(
        blank,
        started(1, None),
        batches,
        features,
        model=model,
        loss=loss_function,
        optimizer=optimizer,
        epochs=epochs,
        judge=judge,
        callbacks=callbacks,
        progress=progress,
        mesh=mesh,
        phases=phases,
        restart=started,
        empty=empty_rows(model, train) if params is None else None,
    )


def run_epochs(
    blank: Recommender,
    state: TrainState,
    batches: EpochSource,
    features: Any,
    *,
    model: Model,
    loss: losses.Loss,
    optimizer: optim.Optimizer,
    epochs: int,
    judge: Judge,
    callbacks: Sequence[Callable[[Progress], bool | None]] = (),
    progress: bool | None = None,
    mesh: Mesh | None = None,
    phases: Phases | None = None,
    restart: Callable[[int, TrainState], TrainState] | None = None,
    empty: Mapping[str, np.ndarray] | None = None,
) -> Recommender:
    """``blank`` with the parameters that training ``model`` from ``state`` gives.

    ``model`` has the parameters of the recommender's own and may score them in another way. Where a phase begins,
    ``restart`` makes the state that it goes on with. Rows that are ``empty`` are given the unknown's.
    """
    done = functools.partial(finished, blank, mesh=mesh, empty=empty)
    log: list[dict[str, Any]] = []
    judge.check(blank)
    watched = bool(callbacks) or judge.name is not None
    with _bar(progress, epochs * batches.steps) as advance:
        for epoch, chunks in enumerate(prepared(batches, epochs), 1):
            start = time.perf_counter()
            if phases is not None and restart is not None and phases.begins(epoch):
                state = restart(epoch, state)
                judge.restart()
            state, infos = _run(state, chunks, features, advance, model, loss, optimizer, mesh)
            mean, failed = _summary(infos)
            if failed is not None:
                what = f"The loss became {failed}" if not np.isfinite(failed) else "A gradient became infinite or NaN"
                raise Diverged(
                    f"{what} in step {int(state.step) + 1} (epoch {epoch}). Training stopped "
                    f"and this exception's `recommender` has the parameters before that step. {_REMEDY}",
                    blank.replace(params=done(state), log=tuple(log)),
                )
            row = {"epoch": epoch, "loss": mean, "seconds": time.perf_counter() - start}
            if not watched:  # the parameters of an epoch are a copy, which nobody would look at
                log.append(row)
                continue
            recommender = blank.replace(params=done(state), log=tuple(log))
            stop = look(judge, recommender, row) and not (phases is not None and phases.more(epoch))
            log.append(row)
            recommender = recommender.replace(log=tuple(log))
            told = [callback(Progress(epoch, row, recommender)) for callback in callbacks]
            del recommender
            if stop or any(told):
                break
    diverged = judge.best is None and not _finite(state.params)
    final = done(state, in_place=True) if judge.best is None else judge.best
    recommender = blank.replace(params=final, log=tuple(log))
    if diverged:
        raise Diverged(
            "A parameter is infinite or NaN after the last step. This exception's `recommender` has the parameters as "
            f"they are. {_REMEDY}",
            recommender,
        )
    return recommender


def look(judge: Judge, recommender: Recommender, row: dict[str, Any]) -> bool:
    """``judge.look``, where a NaN means that training has diverged."""
    try:
        return judge.look(recommender, row)
    except NaNScore as error:
        best = recommender if judge.best is None else recommender.replace(params=judge.best)
        raise Diverged(
            f"{error} Training stopped after epoch {row['epoch']}, and this exception's `recommender` has the "
            f"parameters of the best one before, or of this one if there is none. {_REMEDY}",
            best,
        ) from error


def _set(opt_state: Any, values: Mapping[str, Any] | None, model: Model, mesh: Mesh | None) -> Any:
    """The optimiser's state with the caller's hyper-parameters."""
    values = dict(values or {})
    if mesh is not None and "importance" in values:
        leaves = _tree.flatten(values["importance"])
        filled = {path: _sharded.padded(mesh, leaf) for path, leaf in leaves.items() if path in model.tables}
        values["importance"] = _tree.unflatten({**leaves, **filled})
    return optim.with_hyperparams(opt_state, values) if values else opt_state


def _run(
    state: TrainState,
    chunks: Chunks,
    features: Any,
    advance: Callable[[int], None],
    model: Model,
    loss: losses.Loss,
    optimizer: optim.Optimizer,
    mesh: Mesh | None,
) -> tuple[TrainState, list[EpochInfo]]:
    """One epoch. The device works on a chunk while the host prepares the next."""
    infos: list[EpochInfo] = []
    for chunk, steps in chunks:
        if infos and not infos[-1].ok:
            break
        if mesh is not None:
            chunk = _sharded.split(mesh, chunk, lead=1)
        state, info = _epoch(state, chunk, features, steps, model=model, loss=loss, optimizer=optimizer, mesh=mesh)
        infos.append(info)
        advance(steps)
    return state, infos


def _summary(infos: list[EpochInfo]) -> tuple[float, float | None]:
    """Mean loss of the steps taken, and the loss of the step that failed, if one did."""
    taken = np.concatenate([np.asarray(info.losses)[: int(info.steps)] for info in infos])
    last = infos[-1]
    failed = None if last.ok else float(last.losses[int(last.steps)])
    return float(taken.mean()) if len(taken) else float("nan"), failed


def finished(
    blank: Recommender,
    state: TrainState,
    *,
    mesh: Mesh | None = None,
    empty: Mapping[str, np.ndarray] | None = None,
    in_place: bool = False,
) -> Params:
    """All parameters, with the unknown's rows filled in where they follow the trained ones; of a state that is not
    needed any more ``in_place``."""
    model, params, frozen = blank.model, state.params, state.frozen
    if mesh is not None:
        params, frozen = _sharded.whole(model, params), _sharded.whole(model, frozen)
    features = blank.encoder.features
    return _tree.merge(with_unknown_rows(model, params, features, empty=empty, in_place=in_place), frozen)


@contextlib.contextmanager
def _bar(show: bool | None, steps: int) -> Iterator[Callable[[int], None]]:
    """A function that moves the progress bar by some steps."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, force_terminal=show), transient=True) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda steps: bar.advance(task, steps)
