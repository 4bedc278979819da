"""What scenarios hold out: newcomers whole, with first interactions to be shown, and rows of those who are known."""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec.data import Parts, Schema, split_cold_items, split_cold_users, split_random
from jaxrec.data._schema import times


class Splits(NamedTuple):
    """Frames of the target's interactions: every row is in exactly one."""

    train: pd.DataFrame
    validation: pd.DataFrame  # by which settings and strategy are chosen
    test: pd.DataFrame  # read once
    shown: pd.DataFrame  # first rows of held-out users (items), which become known a few at a time, in this order
    warm: pd.DataFrame  # test rows of users (items) who have other rows in training
    warm_validation: pd.DataFrame  # likewise, by which is chosen too


def hold_out(
    rows: pd.DataFrame,
    schema: Schema,
    *,
    side: Literal["user", "item"],
    among: pd.Series | None = None,
    most: int,
    validation: float,
    test: float,
    seed: int,
) -> Splits:
    """Whole users (items), and 15 % of the others' rows, two of three for the test.

    Args:
      rows: of the target.
      schema: names the columns.
      side: who is held out.
      among: ids of those who may be; by default everyone.
      most: interactions of a newcomer that are shown at most; never more than half of what there is.
      validation: share of the newcomers.
      test: likewise.
      seed: of what is held out, and of the order in which it is shown where there is no time.
    """
    column = str(schema.user if side == "user" else schema.item)
    inside = np.ones(len(rows), bool) if among is None else rows[column].isin(among).to_numpy()
    split = split_cold_users if side == "user" else split_cold_items
    parts = split(rows[inside], schema, validation=validation, test=test, seed=seed)
    assert parts.validation is not None and parts.test is not None
    train, apart = some_apart(pd.concat([parts.train, rows[~inside]]), schema, share=0.15, seed=seed)
    halves = split_random(apart, validation=0.0, test=2 / 3, seed=seed)
    assert halves.test is not None
    (first, chooses), (second, judges) = (_revealed(part, column, schema, most, seed) for part in parts[1:])
    return Splits(train, chooses, judges, pd.concat([first, second]), halves.test, halves.train)


def some_apart(rows: pd.DataFrame, schema: Schema, *, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows without and with a share of them, whose users and items all keep another row."""
    parts = split_random(rows, validation=0.0, test=share, seed=seed)
    assert parts.test is not None
    apart = parts.test
    for column in (schema.user, schema.item):
        apart = apart[apart[column].isin(parts.train[column])]
    return rows[~rows.index.isin(apart.index)], apart


def _revealed(
    rows: pd.DataFrame, column: str, schema: Schema, most: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    order = np.random.default_rng(seed).permutation(len(rows))
    if schema.time is not None:
        order = order[np.argsort(times(rows, schema.time)[order], kind="stable")]
    rows = rows.iloc[order]
    place, size = (getattr(rows.groupby(column)[column], way) for way in ("cumcount", "transform"))
    first = (place() < np.minimum(most, size("size") // 2)).to_numpy()
    return rows[first], rows[~first]


def as_parts(splits: Splits) -> Parts:
    """For ``data.encode``: whoever is held out belongs to the catalogue as cold."""
    return Parts(splits.train, splits.validation, pd.concat([splits.test, *splits[3:]]))
