"""The state of many runs, ``[sources, settings]``: one compiled loop of steps, and the metric looked at run by run."""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

from jaxrec import _tree, losses, optim
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, Params
from jaxrec.data import Batches, Dataset, Negatives
from jaxrec.evaluation._rows import NaNScore
from jaxrec.models import Model
from jaxrec.train._choices import check_rows, empty_rows
from jaxrec.train._fit import Diverged, finished
from jaxrec.train._judge import Judge
from jaxrec.train._step import TrainState, all_finite, init_state, train_step

_finite = jax.jit(jax.vmap(jax.vmap(lambda params: all_finite(jnp.float32(0.0), params))))


class Source(NamedTuple):
    """What the settings have in common: a fold and a seed."""

    blank: Recommender
    batches: Batches
    state: TrainState
    empty: dict[str, np.ndarray]


def source_of(
    model: Model,
    number: int,
    trains: list[Dataset],
    seed: int,
    link: Any,
    params: Params | None,
    freeze: _tree.Patterns,
    optimizer: optim.Optimizer,
    *,
    batch_size: int | None,
    negatives: Negatives | None,
) -> Source:
    train, most = trains[number], max(map(len, trains))
    check_rows(model, train)
    histories: Any = getattr(model, "histories", "subset")
    batches = Batches(
        train,
        batch_size=batch_size,
        negatives=negatives,
        history=getattr(model, "history", 0),
        seed=seed,
        histories=histories,
        multiple_of=1 if len(trains) == 1 or histories in ("sequences", "users") else min(batch_size or most, most),
    )
    blank = Recommender(model, {}, train.encoder, train.interactions, len(train.interactions), link=link)
    key_init, key_train = jax.random.split(jax.random.key(seed))  # as fit does
    start = model.init(key_init) if params is None else _tree.copied(params)
    state = init_state(model, start, optimizer, batches.example(), blank.features, key=key_train, freeze=freeze)
    return Source(blank, batches, state, empty_rows(model, train) if params is None else {})


class Runs:
    """The state of all runs, ``[sources, settings]``, and what is known of each."""

    def __init__(
        self,
        sources: list[Source],
        values: dict[str, np.ndarray],
        settings: int,
        judges: Callable[[int], Judge],
    ) -> None:
        for number in range(settings):  # before they are traced, when no value can be looked at any more
            optim.with_hyperparams(sources[0].state.opt_state, {name: each[number] for name, each in values.items()})
        self._sources, self._settings = sources, settings
        self._kept = np.arange(self._settings)  # numbers of the settings that are still trained
        self._features = _stacked([source.blank.features for source in sources], "features")
        self._state = _begun(_stacked([source.state for source in sources], "parameters"), values, settings)
        shape = (len(sources), self._settings)
        self._moving, self.diverged = np.ones(shape, bool), np.zeros(shape, bool)
        self.judges = [[judges(number) for _ in range(self._settings)] for number in range(len(sources))]
        for source, of_source in zip(sources, self.judges, strict=True):
            of_source[0].check(source.blank)
        self.logs: list[list[list[dict[str, Any]]]] = [[[] for _ in range(self._settings)] for _ in sources]
        self._final: dict[tuple[int, int], Params] = {}  # of runs that are no longer part of the state

    def train(self, number: int, epoch: Callable[..., Any]) -> bool:
        """An epoch of the runs that still move; False if none does."""
        moving = self._moving[:, self._kept]
        if not moving.any():
            return False
        start = time.perf_counter()
        alive = jnp.asarray(moving)
        parts = []
        for chunks in itertools.zip_longest(*(source.batches.epoch(number) for source in self._sources)):
            batches, steps = _aligned(chunks)
            self._state, total, taken, alive = epoch(self._state, batches, self._features, steps, alive)
            parts.append((total, taken))
        total, taken = (np.sum([np.asarray(part[side]) for part in parts], axis=0) for side in (0, 1))
        seconds, ended = time.perf_counter() - start, moving & ~np.asarray(alive)
        for source, place in np.argwhere(moving).tolist():
            loss = float(total[source, place] / taken[source, place]) if taken[source, place] else float("nan")
            self.logs[source][self._kept[place]].append({"epoch": number, "loss": loss, "seconds": seconds})
        self.diverged[:, self._kept] |= ended
        self._moving[:, self._kept] &= ~ended
        self._need_one()
        return True

    def end(self) -> None:
        """Without a metric, which looks at the last epoch, parameters tell what its last step did."""
        if self.judges[0][0].name is None:
            self.diverged[:, self._kept] |= ~np.asarray(_finite(self._state.params))
            self._need_one()

    def _need_one(self) -> None:
        """Raises if no run is left that has not diverged."""
        if self.diverged.all():
            raise Diverged(
                "A loss, a gradient, a parameter or a validated score became infinite or NaN in every run. This "
                "exception's `recommender` has the first one's parameters before that, or as they are. Try smaller "
                "learning rates, or look for extreme values in features and targets.",
                self.kept(0, 0),
            )

    def look(self) -> None:
        """Computes the metric of the runs that moved."""
        for source, place in np.argwhere(self._moving[:, self._kept]).tolist():
            setting = int(self._kept[place])
            judge = self.judges[source][setting]
            if judge.name is None:
                return
            try:
                stop = judge.look(self._recommender(source, setting), self.logs[source][setting][-1])
            except NaNScore:
                stop = self.diverged[source, setting] = True
            self._moving[source, setting] = not stop
        self._need_one()

    def halve(self) -> None:
        """Only the better half of the settings goes on, at least one."""
        figures = np.array([[judge.value for judge in judges] for judges in self.judges])
        figures = np.where(self.diverged, -np.inf, figures).mean(axis=0)[self._kept]
        better = np.sort(np.argsort(-figures, kind="stable")[: -(-len(figures) // 2)])
        for place in np.setdiff1d(np.arange(len(figures)), better):
            setting = int(self._kept[place])
            for source in range(len(self._sources)):
                self._final[source, setting] = self._params(source, setting)
        self._moving[:, np.setdiff1d(self._kept, self._kept[better])] = False
        self._state = _taken(self._state, jnp.asarray(better))
        self._kept = self._kept[better]

    def _params(self, source: int, setting: int) -> Params:
        if (source, setting) in self._final:
            return self._final[source, setting]
        place = int(np.flatnonzero(self._kept == setting)[0])
        state = _one(self._state._replace(opt_state=(), slots={}), source, place)
        return finished(self._sources[source].blank, state, empty=self._sources[source].empty)

    def _recommender(self, source: int, setting: int) -> Recommender:
        log = tuple(self.logs[source][setting])
        return self._sources[source].blank.replace(params=self._params(source, setting), log=log)

    def kept(self, source: int, setting: int) -> Recommender:
        """With the parameters of the best look, or the last good ones."""
        recommender, judge = self._recommender(source, setting), self.judges[source][setting]
        return recommender if judge.best is None else recommender.replace(params=judge.best)


def _steps(
    states: TrainState,
    batches: Batch,
    features: Features,
    steps: Int32[jax.Array, " sources"],
    alive: Bool[jax.Array, "sources settings"],
    *,
    model: Model,
    loss: losses.Loss,
    optimizer: optim.Optimizer,
) -> tuple[
    TrainState,
    Float[jax.Array, "sources settings"],
    Int32[jax.Array, "sources settings"],
    Bool[jax.Array, "sources settings"],
]:
    """A loop of steps of all runs: the next states, the sum of losses, the steps taken, and who was fine throughout.

    The step is mapped and not the loop of ``train_epoch``: where runs end apart, a mapped loop copies every table in
    every step.
    """
    constant = {"frozen": states.frozen, "frozen_rows": states.frozen_rows}

    def one(state: TrainState, batch: Batch, features: Features, moving: jax.Array) -> Any:
        def own(scores: jax.Array, batch: Batch) -> jax.Array:
            return jnp.where(moving, loss(scores, batch), jnp.nan)  # and a step without a finite loss changes nothing

        return train_step(state, batch, features, model=model, loss=own, optimizer=optimizer)

    every = jax.vmap(jax.vmap(one, in_axes=(0, None, None, 0)))

    def body(number: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        moving, total, taken, alive = carry
        batch = jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, number, axis=1, keepdims=False), batches)
        due = alive & (number < steps)[:, None]
        moved, info = every(moving._replace(**constant), batch, features, due)
        total += jnp.where(info.ok, info.loss, 0.0)
        return (
            moved._replace(frozen={}, frozen_rows={}),
            total,
            taken + info.ok.astype(jnp.int32),
            alive & ~(due & ~info.ok),
        )

    start = (
        states._replace(frozen={}, frozen_rows={}),
        jnp.zeros(alive.shape, jnp.float32),
        jnp.zeros(alive.shape, jnp.int32),
        alive,
    )
    moved, total, taken, alive = jax.lax.fori_loop(0, steps.max(), body, start)
    return moved._replace(**constant), total, taken, alive


run_epoch = jax.jit(_steps, static_argnames=("model", "loss", "optimizer"), donate_argnums=(0,))


def _begun(states: TrainState, values: dict[str, np.ndarray], settings: int) -> TrainState:
    """The states of the sources, once for each setting."""

    def begun(state: TrainState, values: Any) -> TrainState:
        return state._replace(opt_state=optim.with_hyperparams(state.opt_state, values))

    traced = {name: column.astype(np.float32) for name, column in values.items()}
    return jax.vmap(jax.vmap(begun, in_axes=(None, 0), axis_size=settings), in_axes=(0, None))(states, traced)


@jax.jit
def _one(states: TrainState, source: int | jax.Array, place: int | jax.Array) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[source, place], states)


@jax.jit
def _taken(states: TrainState, places: jax.Array) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[:, places], states)


def _stacked(trees: list[Any], what: str) -> Any:
    """Trees as one with a leading axis."""
    shapes = [(jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)]) for tree in trees]
    for number, each in enumerate(shapes):
        if each != shapes[0]:
            raise ValueError(
                f"The {what} of run {number} have other shapes than those of the first, {each[1]} and {shapes[0][1]}, "
                "so they cannot be trained at once. Train these folds by evaluation.cross_validate."
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _aligned(chunks: tuple[tuple[Batch, int] | None, ...]) -> tuple[Batch, jax.Array]:
    """A chunk of each source, some of which may have none left, with as many steps in each."""
    there = [chunk[0] for chunk in chunks if chunk is not None]
    if len(chunks) == 1:
        batches: Any = jax.tree.map(lambda leaf: np.asarray(leaf)[None], there[0])
    else:
        most = max(len(jax.tree.leaves(batch)[0]) for batch in there)
        blank = jax.tree.map(lambda leaf: np.zeros_like(leaf[:0]), there[0])
        batches = _stacked(
            [
                jax.tree.map(lambda leaf: np.pad(leaf, ((0, most - len(leaf)), *((0, 0),) * (leaf.ndim - 1))), batch)
                for batch in (blank if chunk is None else chunk[0] for chunk in chunks)
            ],
            "batches",
        )
    return batches, jnp.asarray([0 if chunk is None else chunk[1] for chunk in chunks], jnp.int32)
