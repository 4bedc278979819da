"""Learning a target's recommender from its data and from what a teacher makes of them."""

from typing import Any

import jax
import numpy as np

from jaxrec import losses
from jaxrec._expect import expect
from jaxrec._recommender import Recommender, need_no_context
from jaxrec._types import Array
from jaxrec.data import Dataset
from jaxrec.data._sides import Side
from jaxrec.models import Model
from jaxrec.models._base import resized
from jaxrec.models._taught import TEACHER, Taught, beside
from jaxrec.train import fit
from jaxrec.train._choices import chosen_loss
from jaxrec.transfer._adapt import kind_of, need_same_scale, with_loss
from jaxrec.transfer._carry import vectors_of


def distill(
    teacher: Recommender,
    train: Dataset,
    *,
    model: Model | None = None,
    weight: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Recommender:
    """Trains a recommender on the target's data and on a teacher's scores of the same examples.

    Unlike a copied tree, a teacher may be of another model, width or domain: only its scores are learned from. It may
    be the source's recommender where users and items are shared, or what another way of transfer made of it, such as
    ``emcdr`` or ``blend``; the student may be smaller, or read features that the teacher lacks. Users and items are
    matched by raw id; of those whom it does not know the teacher's scores are those of the unknown.

    Args:
      teacher: whose scores are inner products. It stays as it is.
      train: the target's training part.
      model: the student; by default the teacher's model with the target's sizes.
      weight: of the teacher's term beside the loss, not negative; 0 is ``fit``.
      temperature: of the teacher's scores, see ``losses.distillation``. For targets (one column) the term is the
        squared difference of the scores and there is no temperature: the teacher must have learned the same targets on
        the same scale (``data.encode(..., like=)``).
      seed: of the initial parameters and of training.
      options: for ``fit``: loss, negatives, optimizer, epochs, validation, ... ``freeze`` and ``params`` are not among
        them. On targets the loss is by default one that gives what the teacher's scores are, values or log-odds; what
        the scores of a function of your own mean is not known here.

    Returns:
      A recommender of the student alone, with the training's ``history``.

    Raises:
      ValueError: the teacher does not factorise or knows no user or no item of the target, its scores are not what
        a loss of targets gives or on another ``target_scale``, an option is out of range, or the student gives no score
        for each of a batch's columns.

    References:
      Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015; of rankings: Tang and Wang, Ranking
      distillation, KDD 2018 (here over the columns of the batch instead of the teacher's top items).
    """
    expect(teacher, Recommender, "teacher")
    expect(train, Dataset, "train")
    if not teacher.factorises:
        raise ValueError(
            "Expected a teacher whose scores are inner products of user and item vectors, got a "
            f"{type(teacher.model).__name__}."
        )
    need_no_context(teacher, "teacher")
    if not 0 <= weight < np.inf:
        raise ValueError(f"Expected weight >= 0, got {weight}.")
    if not temperature > 0:
        raise ValueError(f"Expected temperature > 0, got {temperature}.")
    for name in {"freeze", "params", "unfreeze"} & set(options):
        raise ValueError(f"distill takes no {name}=: the student starts anew and learns everything. Use adapt or fit.")
    student = resized(teacher.model, train) if model is None else model
    options = with_loss(teacher, train, options)
    _check_scores(teacher, student, train, options.get("loss"))
    tables: dict[Side, Array] = {side: _table(teacher, train, side) for side in ("user", "item")}
    taught = Taught(
        student=student,
        user_rows=len(tables["user"]),
        item_rows=len(tables["item"]),
        dim=tables["user"].shape[1],
        weight=float(weight),
        temperature=float(temperature),
    )
    key = jax.random.split(jax.random.key(seed))[0]  # as fit does, so that weight 0 starts alike
    fitted = fit(taught, train, params=beside(student.init(key), tables), freeze=f"{TEACHER}/*", seed=seed, **options)
    params = {name: part for name, part in fitted.params.items() if name != TEACHER}
    return fitted.replace(model=student, params=params)


def _check_scores(teacher: Recommender, student: Model, train: Dataset, loss: Any) -> None:
    """Raises where the squared difference of scores would be between a target and something else."""
    name, _, link = chosen_loss(student, train, loss)
    if train.target is None or name not in losses.POINTWISE:
        return
    given, learned = kind_of(teacher), "probabilities" if link == "sigmoid" else "targets"
    if given != learned:
        fitting = {"probabilities": "sigmoid_cross_entropy", "targets": "mse"}.get(given)
        remedy = f"loss={fitting!r}, with a model of that link" if fitting else "a loss of ranking, such as loss='bpr'"
        raise ValueError(
            f"The teacher's scores are of {given} and those that the loss {name!r} learns of {learned}, so the student "
            f"would be drawn to two numbers at once. Give {remedy}, or another teacher."
        )
    need_same_scale(teacher, train)


def _table(teacher: Recommender, train: Dataset, side: Side) -> np.ndarray:
    """The teacher's vectors by table row of the target, row 0 the unknown's."""
    encoder = train.encoder
    row = np.asarray(encoder.features.user_row if side == "user" else encoder.features.item_row)
    trained = np.flatnonzero(row)
    ours, theirs = encoder.vocabulary(side), teacher.encoder.vocabulary(side)
    index = np.zeros(len(trained), np.int32)
    if ours.type_name == theirs.type_name:
        index = theirs.encode(ours.decode(trained))
    if not index.any():
        raise ValueError(
            f"The teacher knows no {side} of the target by raw id: {theirs!r} and {ours!r}. Distil from a recommender "
            "that does, for example what transfer.emcdr or transfer.blend returns."
        )
    vectors = vectors_of(teacher, np.concatenate([[0], index]), side)
    if not np.isfinite(vectors).all():
        raise ValueError(f"The teacher's vectors of {side}s are not finite. Train it anew.")
    table = np.tile(vectors[:1], (int(row.max()) + 1, 1))
    table[row[trained]] = vectors[1:]
    return table
