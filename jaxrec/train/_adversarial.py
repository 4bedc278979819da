"""Two players with a loss each, moved in turn: one step with two optimisers, and the loop around it."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

from jaxrec import _tree
from jaxrec._expect import expect
from jaxrec._recommender import Recommender, order_of
from jaxrec._types import Batch, Features, Params
from jaxrec.data import Batches, Dataset, Negatives, prepared
from jaxrec.data._histories import Kind
from jaxrec.models import Model
from jaxrec.optim import Optimizer
from jaxrec.train._choices import check_rows
from jaxrec.train._fit import Diverged, look
from jaxrec.train._judge import Judge, Metric
from jaxrec.train._step import all_finite, batch_at, check_params, unshared

PLAYERS = ("discriminator", "generator")  # in the order in which they move


class Game(Model, Protocol):
    """A model of which two parts play against each other; what belongs to neither does not move."""

    @property
    def players(self) -> Mapping[str, _tree.Patterns]:
        """Patterns of the parameters of ``"discriminator"`` and ``"generator"``."""
        ...

    def player_loss(self, player: str, params: Params, batch: Batch, features: Features, *, key: Any) -> jax.Array: ...


class Optimizers(NamedTuple):
    """Of each player. Tables of labels are moved as a whole."""

    discriminator: Optimizer
    generator: Optimizer


class AdversarialState(NamedTuple):
    """Everything a step reads and writes; donate it."""

    params: dict[str, Params]  # by player, and "fixed"
    opt_states: dict[str, Any]  # by player
    key: jax.Array  # step t uses fold_in(key, t)
    step: Int32[jax.Array, ""]


class AdversarialInfo(NamedTuple):
    """How a loop of steps went; entries after ``steps`` are zero."""

    losses: Float[jax.Array, "most_steps 2"]  # in the order of PLAYERS
    steps: Int32[jax.Array, ""]
    ok: Bool[jax.Array, ""]


def init_adversarial(game: Game, params: Params, optimizers: Optimizers, *, key: jax.Array) -> AdversarialState:
    """The state before the first step. The parameters' arrays become part of it.

    Raises:
      ValueError: the parameters are not the game's, or a player has none.
    """
    check_params(game, params)
    parts: dict[str, Params] = {}
    rest = params
    for player in PLAYERS:
        rest, parts[player] = _tree.split(rest, game.players[player])
    states = {player: getattr(optimizers, player).init(parts[player], ()) for player in PLAYERS}
    trainable, states = unshared((parts, states))  # as in init_state
    return AdversarialState({**trainable, "fixed": rest}, states, key, jnp.zeros((), jnp.int32))


def adversarial_step(
    state: AdversarialState, batch: Batch, features: Features, *, game: Game, optimizers: Optimizers
) -> tuple[AdversarialState, Float[jax.Array, " 2"], Bool[jax.Array, ""]]:
    """The discriminator moves against the generator as it is, then the generator against the moved discriminator.

    Returns:
      The next state, both losses before their player moved, and whether they and their gradients were finite. If not,
      nothing moved.
    """
    key = jax.random.fold_in(state.key, state.step)
    params, opt_states = dict(state.params), dict(state.opt_states)
    values, ok = [], jnp.bool_(True)
    for number, player in enumerate(PLAYERS):
        others = _tree.merge(*(part for name, part in params.items() if name != player))

        def objective(own: Params, player: str = player, others: Params = others, number: int = number) -> jax.Array:
            everything = _tree.merge(own, others)
            return game.player_loss(player, everything, batch, features, key=jax.random.fold_in(key, number))

        value, grads = jax.value_and_grad(objective)(params[player])
        ok &= all_finite(value, grads)
        optimizer: Optimizer = getattr(optimizers, player)
        params[player], opt_states[player], _ = optimizer.update(
            params[player], opt_states[player], {}, grads=grads, row_grads={}, frozen_rows={}, value=value, ok=ok
        )
        values.append(value)
    # The discriminator had moved when the generator's half turned out not to be finite.
    params, opt_states = jax.tree.map(
        lambda new, old: jnp.where(ok, new, old), (params, opt_states), (state.params, state.opt_states)
    )
    step = state.step + ok.astype(jnp.int32)
    return AdversarialState(params, opt_states, state.key, step), jnp.stack(values), ok


def adversarial_epoch(
    state: AdversarialState,
    batches: Batch,
    features: Features,
    num_steps: Int32[jax.Array, ""] | int,
    *,
    game: Game,
    optimizers: Optimizers,
) -> tuple[AdversarialState, AdversarialInfo]:
    """A compiled loop of steps over stacked batches. It ends at the first step that is not finite."""
    most = jax.tree.leaves(batches)[0].shape[0]
    fixed, limit = state.params["fixed"], jnp.asarray(num_steps, jnp.int32)

    def carried(state: AdversarialState, fixed: Params) -> AdversarialState:
        return state._replace(params={**state.params, "fixed": fixed})

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        return (carry[2] < limit) & carry[3]

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        moving, losses, taken, _ = carry
        batch = batch_at(batches, taken)
        moved, values, ok = adversarial_step(carried(moving, fixed), batch, features, game=game, optimizers=optimizers)
        return carried(moved, {}), losses.at[taken].set(values), taken + ok.astype(jnp.int32), ok

    start = (carried(state, {}), jnp.zeros((most, len(PLAYERS)), jnp.float32), jnp.int32(0), jnp.bool_(True))
    moved, losses, taken, ok = jax.lax.while_loop(unfinished, body, start)
    return carried(moved, fixed), AdversarialInfo(losses, taken, ok)


_epoch = jax.jit(adversarial_epoch, static_argnames=("game", "optimizers"), donate_argnums=(0,))


def play(
    game: Game,
    train: Dataset,
    params: Params,
    optimizers: Optimizers,
    *,
    epochs: int,
    batch_size: int | None,
    negatives: Negatives | None,
    history: int = 0,
    histories: Kind = "subset",
    validation: Dataset | None,
    metric: Metric | None,
    patience: int | None,
    seed: int,
    served: Callable[[Recommender], Recommender] = lambda recommender: recommender,
) -> Recommender:
    """``fit`` for a game: batches, validation, early stopping and the guard against NaN are the same.

    ``history`` and ``histories`` are those of ``Batches``, where the game reads other ones than ``fit`` would give it.
    ``served`` makes a recommender of the game into the one that is validated and returned.
    The log has the mean loss of each player by epoch.
    """
    expect(train, Dataset, "train")
    if validation is not None:
        expect(validation, Dataset, "validation")
    if epochs < 1:
        raise ValueError(f"Expected epochs >= 1, got {epochs}.")
    check_rows(game, train)
    options: dict[str, Any] = {"batch_size": batch_size, "negatives": negatives, "seed": seed}
    batches = Batches(train, history=history, histories=histories, **options)
    link = order_of(train.interactions)
    blank = Recommender(game, {}, train.encoder, train.interactions, len(train.interactions), link=link)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    state = init_adversarial(game, _tree.copied(params), optimizers, key=key)
    judge = Judge(validation, metric, patience, encoder=train.encoder, link=link)
    log: list[dict[str, Any]] = []
    recommender = blank
    for epoch, chunks in enumerate(prepared(batches, epochs), 1):
        start = time.perf_counter()
        infos: list[AdversarialInfo] = []
        for chunk, steps in chunks:
            if infos and not infos[-1].ok:
                break
            state, info = _epoch(state, chunk, blank.features, steps, game=game, optimizers=optimizers)
            infos.append(info)
        recommender = served(blank.replace(params=_tree.merge(*state.params.values()), log=tuple(log)))
        if not infos[-1].ok:
            raise Diverged(
                f"A loss or gradient became infinite or NaN in step {int(state.step) + 1} (epoch {epoch}). Training "
                "stopped and this exception's `recommender` has the parameters before that step. Try smaller learning "
                "rates, or look for extreme values in features.",
                recommender,
            )
        mean = np.concatenate([np.asarray(info.losses)[: int(info.steps)] for info in infos]).mean(axis=0)
        named = {f"{player}_loss": float(value) for player, value in zip(PLAYERS, mean, strict=True)}
        row = {"epoch": epoch, **named, "seconds": time.perf_counter() - start}
        stop = look(judge, recommender, row)
        log.append(row)
        if stop:
            break
    return recommender.replace(params=recommender.params if judge.best is None else judge.best, log=tuple(log))
