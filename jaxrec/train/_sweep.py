"""Many small models trained at once: settings of traced hyper-parameters, folds and seeds by ``vmap``."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optax
import pandas as pd

from jaxrec import _tree, losses, optim
from jaxrec._expect import expect, log_ranges
from jaxrec._recommender import Recommender
from jaxrec._types import Params
from jaxrec.data import Dataset, Negatives, Parts
from jaxrec.models import Model
from jaxrec.train._choices import chosen_loss, chosen_negatives, chosen_optimizer, warn_unless_weighed
from jaxrec.train._judge import Judge, Metric
from jaxrec.train._runs import Runs, run_epoch, source_of


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """What ``sweep`` returns: a run per fold, seed and setting, in this order, the setting changing fastest.

    Args:
      table: a row per run: ``fold`` and ``seed`` (from what was given), ``setting`` (its number), the setting's
        values, ``epochs`` that it was trained for, ``loss`` of the last of them, ``diverged``, and the metric of the
        parameters that were kept (NaN if it diverged) where there is one.
      recommenders: of each row. One that diverged has the parameters of its best look or, without one, of its last good
        step; where that step left an infinite one, as they are.
      names: of the settings' values.
      metric: the metric's name; None without one.
      lower: whether a smaller figure of the metric is a better one.
    """

    table: pd.DataFrame
    recommenders: tuple[Recommender, ...]
    names: tuple[str, ...]
    metric: str | None
    lower: bool

    @property
    def best_setting(self) -> dict[str, float]:
        """The setting with the best mean of the metric over folds and seeds, the earlier of equals.

        Raises:
          ValueError: there is no metric, or each setting diverged somewhere.
        """
        return {name: float(self.table[name].iloc[self._best]) for name in self.names}

    @property
    def best(self) -> Recommender:
        """The recommender of the best setting.

        Raises:
          ValueError: as for ``best_setting``, or there were several folds or seeds, so that there is no such one.
        """
        if len(self.table[["fold", "seed"]].drop_duplicates()) > 1:
            raise ValueError(
                "Several folds or seeds were trained, so no single recommender is the best. Train one on all data "
                "with fit(..., hyperparams=swept.best_setting), or choose among swept.recommenders."
            )
        return self.recommenders[self._best]

    @property
    def _best(self) -> int:
        """The best setting's number, which is also its first row's."""
        if self.metric is None:
            raise ValueError("Without a metric no setting is the best. Give sweep(..., validation=...).")
        means = self.table[self.metric].to_numpy().reshape(-1, self.table["setting"].nunique()).mean(axis=0)
        if np.isnan(means).all():
            raise ValueError("Every setting diverged in some fold or seed. Try smaller learning rates.")
        return int(np.nanargmin(means) if self.lower else np.nanargmax(means))


def sweep(
    model: Model,
    train: Dataset | Sequence[Dataset],
    settings: Iterable[Mapping[str, float]],
    *,
    loss: str | losses.Loss | None = None,
    optimizer: optim.Optimizer | optax.GradientTransformation | None = None,
    epochs: int = 20,
    batch_size: int | None = 1024,
    negatives: Negatives | None = None,
    validation: Dataset | Sequence[Dataset] | None = None,
    metric: Metric | None = None,
    patience: int | None = 5,
    every: int = 1,
    rungs: Sequence[int] = (),
    params: Params | None = None,
    freeze: _tree.Patterns = (),
    seed: int | Sequence[int] = 0,
) -> Sweep:
    """Trains a model for every setting, fold and seed in one compiled loop.

    Each run gives what ``fit(model, fold, hyperparams=setting, seed=seed, ...)`` gives, up to rounding. Batches are
    made once per fold and seed. Memory holds all runs at once, so this is for small models.

    Folds keep their own rows, encoders, histories and negatives, so that nothing held out enters a training; shorter
    ones are filled up with examples of weight 0 and with steps that change nothing. Take them from ``data.k_fold``, one
    ``data.encode`` each, and a model of which the tables are large enough for all. Batches of users, of sequences and
    of the whole catalogue (``"softmax"``) are not filled up: such folds need as many users, stretches, trained items.

    Args:
      model: likewise for all runs.
      train: the training part, or that of each fold.
      settings: values of the optimiser's hyper-parameters by name, see ``optim.hyperparams``; the same names in each.
        Other values, and as many, compile nothing. ``[{}]`` for folds or seeds alone.
      loss: as for ``fit``, like all that is not named here.
      optimizer: with hyper-parameters that may be set, as ``optax.inject_hyperparams(optax.adam)(learning_rate=0.1)``.
      epochs: passes over the data, at most.
      batch_size: examples per step; None for full batches.
      negatives: as for ``fit``.
      validation: held-out interactions, or those of each fold.
      metric: what to judge on, and which epoch's parameters to keep.
      patience: a run stops after so many looks at the metric without improvement; None for never.
      every: epochs between looks at the metric, which are taken run by run; the last epoch has one too.
      rungs: epochs after which only the better half of the settings goes on, by the mean of their best figures over
        folds and seeds (successive halving). A step is compiled once for each number of settings.
      params: where to start from; by default ``model.init``.
      freeze: patterns of parameters that do not move.
      seed: of all runs, or several.

    Returns:
      A table with a row per run, and the runs' recommenders.

    Raises:
      ValueError: settings, folds or rungs do not fit together, or as for ``fit``.
      Diverged: a loss, gradient or validated score, or without a metric a parameter in the end, became infinite or NaN
        in all runs. Some that do are told in the table.

    Warns:
      UserWarning: as for ``fit``.

    References:
      Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016, for
      successive halving (by epochs).
    """
    values, count = _columns(settings)
    trains, held_out = _folds(train, validation)
    seeds = [int(seed)] if isinstance(seed, int | np.integer) else list(seed)
    _check(epochs, every, rungs, seeds, metric is not None or validation is not None)
    name, loss_function, link = [chosen_loss(model, each, loss) for each in trains][0]  # targets of all are looked at
    optimizer = chosen_optimizer(model, optimizer)
    sources = [
        source_of(
            model, number, trains, each, link, params, freeze, optimizer, batch_size=batch_size,
            negatives=chosen_negatives(trains[number], name, negatives),
        )
        for number, each in itertools.product(range(len(trains)), seeds)
    ]  # fmt: skip

    weighed = next((source for source in sources if source.batches.weighed), None)
    if name is None and weighed is not None:
        warn_unless_weighed(loss_function, model, weighed.batches.example(), weighed.blank.features)

    def judge(source: int) -> Judge:
        fold = source // len(seeds)
        return Judge(held_out[fold], metric, patience, encoder=trains[fold].encoder, link=link)

    runs = Runs(sources, values, count, judge)

    def epoch(*arguments: Any) -> Any:
        return run_epoch(*arguments, model=model, loss=loss_function, optimizer=optimizer)

    for number in range(1, epochs + 1):
        if not runs.train(number, epoch):
            break
        if number % every == 0 or number == epochs or number in rungs:
            runs.look()
        if number in rungs:
            runs.halve()
    runs.end()
    return _collected(runs, list(itertools.product(range(len(trains)), seeds)), values, count)


def random_settings(
    space: Mapping[str, tuple[float, float] | Callable[[np.random.Generator], float]], num: int, *, seed: int
) -> list[dict[str, float]]:
    """Settings for ``sweep``, drawn at random: all of them trained is random search.

    Args:
      space: by hyper-parameter a range ``(low, high)``, drawn uniformly in the logarithm, or a function of a NumPy
        generator, such as ``lambda rng: rng.choice([0.8, 0.9])``.
      num: how many.
      seed: of ``numpy.random.default_rng``.

    Raises:
      ValueError: a range is empty or not positive, or ``num < 1``.

    Examples:
      >>> drawn = random_settings({"learning_rate": (1e-3, 1e-1)}, 2, seed=0)
      >>> [f"{setting['learning_rate']:.4f}" for setting in drawn]
      ['0.0188', '0.0035']

    References:
      Bergstra and Bengio, Random search for hyper-parameter optimization, JMLR 13, 2012.
    """
    if num < 1:
        raise ValueError(f"Expected num >= 1, got {num}.")
    log_ranges(space, "a generator for what is not drawn in the logarithm, such as lambda rng: rng.uniform(0, 1)")
    rng = np.random.default_rng(seed)

    def drawn(values: tuple[float, float] | Callable[[np.random.Generator], float]) -> float:
        return float(values(rng) if callable(values) else np.exp(rng.uniform(*np.log(values))))

    return [{name: drawn(values) for name, values in space.items()} for _ in range(num)]


def _collected(runs: Runs, named: list[tuple[int, int]], values: dict[str, np.ndarray], count: int) -> Sweep:
    rows, recommenders = [], []
    first = runs.judges[0][0]
    for (source, (fold, seed)), setting in itertools.product(enumerate(named), range(count)):
        judge, log, diverged = runs.judges[source][setting], runs.logs[source][setting], runs.diverged[source, setting]
        row: dict[str, Any] = {"fold": fold, "seed": seed, "setting": setting}
        row |= {name: float(column[setting]) for name, column in values.items()}
        row |= {"epochs": len(log), "loss": log[-1]["loss"], "diverged": bool(diverged)}
        if judge.name is not None:
            row[judge.name] = float("nan") if diverged else -judge.value if judge.lower else judge.value
        rows.append(row)
        recommenders.append(runs.kept(source, setting))
    return Sweep(pd.DataFrame(rows), tuple(recommenders), tuple(values), first.name, first.lower)


def _columns(settings: Iterable[Mapping[str, float]]) -> tuple[dict[str, np.ndarray], int]:
    """A column per name, and the number of settings."""
    rows = [dict(setting) for setting in settings]
    if not rows:
        raise ValueError("Expected at least one setting, got none. For the optimiser's own values give [{}].")
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"Expected the same names in every setting, got {sorted(rows[0])} in the first and {sorted(row)} in "
                f"setting {number}. Give each a value everywhere."
            )
        for name, value in row.items():
            if np.ndim(value) or not np.isfinite(value):
                raise ValueError(f"Expected a finite number for {name!r} in setting {number}, got {value!r}.")
    return {name: np.asarray([row[name] for row in rows], np.float64) for name in rows[0]}, len(rows)


def _folds(
    train: Dataset | Sequence[Dataset], validation: Dataset | Sequence[Dataset] | None
) -> tuple[list[Dataset], list[Dataset | None]]:
    for name, given in (("train", train), ("validation", validation)):
        if isinstance(given, Parts):  # a tuple, but not of folds
            expect(given, Dataset, name)
    trains: list[Any] = list(train) if isinstance(train, (list, tuple)) else [train]
    held_out: list[Any] = list(validation) if isinstance(validation, (list, tuple)) else [validation]
    if validation is None:
        held_out = [None] * len(trains)
    if not trains or len(trains) != len(held_out):
        raise ValueError(
            f"Expected a validation part for each training part, got {len(held_out)} and {len(trains)}. Give lists of "
            "one length."
        )
    for name, parts in (("train", trains), ("validation", held_out if validation is not None else [])):
        for part in parts:
            expect(part, Dataset, name)
            if not len(part):
                raise ValueError(f"A {name} part is empty. Expected at least one row.")
    return trains, held_out


def _check(epochs: int, every: int, rungs: Sequence[int], seeds: list[int], judged: bool) -> None:
    for name, value in (("epochs", epochs), ("every", every)):
        if value < 1:
            raise ValueError(f"Expected {name} >= 1, got {value}.")
    if not seeds:
        raise ValueError("Expected at least one seed, got none.")
    if any(not 1 <= rung < epochs for rung in rungs):
        raise ValueError(f"Expected rungs in 1 .. {epochs - 1}, before the last epoch, got {list(rungs)}.")
    if rungs and not judged:
        raise ValueError("Rungs need a metric to halve by. Give sweep(..., validation=...).")
