"""Cross-validation that trains anew in every fold."""

from collections.abc import Callable
from typing import Any, Literal

import pandas as pd

from jaxrec._recommender import Recommender
from jaxrec.data import Dataset, Schema, encode, k_fold
from jaxrec.evaluation._evaluate import evaluate


def cross_validate(
    train: Callable[[Dataset], Recommender],
    frame: pd.DataFrame,
    schema: Schema,
    *,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    folds: int = 5,
    by: Literal["interaction", "user", "item"] = "interaction",
    seed: int,
    **options: Any,
) -> pd.DataFrame:
    """Trains and evaluates once per fold. Vocabularies and statistics are fitted anew on each fold's training part.

    Args:
      train: makes a recommender of a dataset, for example
        ``lambda data: jaxrec.fit(TwoTower.for_data(data), data, epochs=5)``.
      frame: interactions.
      schema: names the columns.
      users: one row per user with the features, if there are any.
      items: likewise.
      folds: how many.
      by: what is held out whole; ``"user"`` and ``"item"`` make every test user or item a cold one.
      seed: of the folds.
      options: for ``evaluate``.

    Returns:
      A row per slice and metric: its value in each fold (``fold 1``, ...), ``mean`` and ``std`` over the folds (the
      sample deviation).
    """
    columns = {}
    for number, parts in enumerate(k_fold(frame, schema, folds=folds, by=by, seed=seed), 1):
        encoded = encode(parts, schema, users=users, items=items)
        report = evaluate(train(encoded.train), encoded.test, **options)
        columns[f"fold {number}"] = report.table.set_index(["slice", "metric"])["mean"]
    table = pd.DataFrame(columns)
    return table.assign(mean=table.mean(axis=1), std=table.std(axis=1)).reset_index()
