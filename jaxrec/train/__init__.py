"""Training: a pure step, a compiled loop of steps, and ``fit`` around them. The verb is ``fit``."""

from jaxrec._recommender import Recommender
from jaxrec.train._als import fit_als
from jaxrec.train._ease import fit_ease
from jaxrec.train._fit import Diverged, Progress, fit
from jaxrec.train._knn import fit_content_knn, fit_item_knn
from jaxrec.train._optuna import optuna_objective
from jaxrec.train._phases import refreeze
from jaxrec.train._step import EpochInfo, StepInfo, TrainState, init_state, train_epoch, train_step
from jaxrec.train._sweep import Sweep, random_settings, sweep

__all__ = [
    "Diverged",
    "EpochInfo",
    "Progress",
    "Recommender",
    "StepInfo",
    "Sweep",
    "TrainState",
    "fit",
    "fit_als",
    "fit_content_knn",
    "fit_ease",
    "fit_item_knn",
    "init_state",
    "optuna_objective",
    "random_settings",
    "refreeze",
    "sweep",
    "train_epoch",
    "train_step",
]
