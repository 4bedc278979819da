"""A search by optuna (extra ``search``), which proposes settings one after another and stops what looks bad."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxrec._expect import log_ranges
from jaxrec._metrics import lower_is_better
from jaxrec._recommender import Recommender
from jaxrec.train._fit import Progress

TrainOne = Callable[[dict[str, Any], Sequence[Callable[[Progress], bool]]], Recommender]


def optuna_objective(
    train_one: TrainOne,
    space: Mapping[str, tuple[float, float] | Callable[[Any], Any]],
    *,
    metric: str = "ndcg@10",
) -> Callable[[Any], float]:
    """What ``optuna``'s ``study.optimize`` calls for each trial: trains with the settings that the trial proposes.

    Every epoch's figure is reported to the trial, and where the study's pruner gives it up, training ends and the trial
    counts as pruned. Settings that ``train_one`` passes on as ``hyperparams`` of one optimiser compile nothing after
    the first trial. For many small models ``train.sweep`` trains at once what optuna would propose one by one.

    Args:
      train_one: ``(setting, callbacks) -> recommender``, which calls ``fit(..., validation=..., callbacks=callbacks)``.
      space: by name a range ``(low, high)``, searched in the logarithm, or a function of the trial, such as
        ``lambda trial: trial.suggest_categorical("loss", ["bpr", "warp"])``.
      metric: that ``fit`` stops on, a column of the history.

    Returns:
      A function of a trial: the best epoch's figure. Create the study with ``direction="maximize"``, or ``"minimize"``
      for a metric of which less is better, such as ``"rmse"``.

    Raises:
      ModuleNotFoundError: the extra ``search`` (optuna) is not installed.
      ValueError: a range is empty or not positive; in a trial: the study goes the other way, or the history lacks the
        metric.

    References:
      Akiba et al., Optuna: a next-generation hyperparameter optimization framework, KDD 2019.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "train.optuna_objective needs optuna. Install the extra: pip install 'jaxrec[search]'."
        ) from error
    otherwise = "such as lambda trial: trial.suggest_float('dropout', 0.0, 0.5)"
    log_ranges(space, f"the trial for what is not searched in the logarithm, {otherwise}")
    better = min if lower_is_better(metric) else max

    def objective(trial: Any) -> float:
        wanted = "MINIMIZE" if better is min else "MAXIMIZE"
        if trial.study.direction.name != wanted:
            raise ValueError(f"Expected a study with direction={wanted.lower()!r} for {metric!r}.")
        setting = {
            name: values(trial) if callable(values) else trial.suggest_float(name, *values, log=True)
            for name, values in space.items()
        }
        pruned = False

        def need(columns: Iterable[str]) -> None:
            if metric not in columns:
                raise ValueError(
                    f"The history has no {metric!r}, it has {', '.join(columns)}. Pass validation= and metric= to fit, "
                    "or name another metric=."
                )

        def report(progress: Progress) -> bool:
            nonlocal pruned
            need(progress.row)
            trial.report(float(progress.row[metric]), progress.epoch)
            pruned = trial.should_prune()
            return pruned

        history = train_one(setting, [report]).history
        if pruned:
            raise optuna.TrialPruned
        need(history.columns)  # also of a `train_one` that leaves the callbacks out
        return float(better(history[metric]))

    return objective
