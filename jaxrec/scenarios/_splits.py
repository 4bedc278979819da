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
    """Whole users (items), and 15 % of the others' pairs of user and item, two of three for the test.

    Args:
      rows: of the target.
      schema: names the columns.
      side: who is held out.
      among: ids of those who may be; by default everyone.
      most: distinct pairs of a newcomer that are shown at most; never more than half of what there is.
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
    warm_validation, warm = split_pairs(apart, schema, share=2 / 3, seed=seed)
    (first, chooses), (second, judges) = (_revealed(part, column, schema, most, seed) for part in parts[1:])
    return Splits(train, chooses, judges, pd.concat([first, second]), warm, warm_validation)


def split_pairs(rows: pd.DataFrame, schema: Schema, *, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows without and with a share of the distinct pairs of user and item, at random.

    All rows of a pair go together: a held-out play of what training has seen would be no candidate.
    """
    pair = rows.groupby([schema.user, schema.item], sort=False, observed=True).ngroup().to_numpy()
    numbers = pd.DataFrame({"pair": np.arange(pair.max() + 1)})
    chosen = split_random(numbers, validation=0.0, test=share, seed=seed).test
    assert chosen is not None
    apart = np.isin(pair, chosen["pair"])
    return rows[~apart], rows[apart]


def some_apart(rows: pd.DataFrame, schema: Schema, *, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows without and with a share of their pairs, whose users and items all keep another row."""
    train, apart = split_pairs(rows, schema, share=share, seed=seed)
    for column in (schema.user, schema.item):
        apart = apart[apart[column].isin(train[column])]
    pairs = len(apart[[schema.user, schema.item]].drop_duplicates())
    if pairs < 2:
        raise ValueError(
            f"Of known users and items {pairs} pairs can be held out, and at least 2 are needed: a user and an item "
            "must keep another row in training. Give users more than one interaction each, with items of others."
        )
    return rows[~rows.index.isin(apart.index)], apart


def _revealed(
    rows: pd.DataFrame, column: str, schema: Schema, most: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    order = np.random.default_rng(seed).permutation(len(rows))
    if schema.time is not None:
        order = order[np.argsort(times(rows, schema.time)[order], kind="stable")]
    rows = rows.iloc[order]
    number = distinct_so_far(rows, schema, column)  # of the pair, at its first row
    pairs = rows.groupby([schema.user, schema.item], sort=False, observed=True).ngroup()
    first = number.groupby(pairs).transform("first") <= np.minimum(
        most, number.groupby(rows[column]).transform("max") // 2
    )
    return rows[first], rows[~first]


def distinct_so_far(rows: pd.DataFrame, schema: Schema, column: str | None) -> pd.Series:
    """By row: how many distinct pairs its user (item) has in the rows up to it, itself included."""
    return (~rows.duplicated([schema.user, schema.item])).groupby(rows[column]).cumsum()


def as_parts(splits: Splits) -> Parts:
    """For ``data.encode``: whoever is held out belongs to the catalogue as cold."""
    return Parts(splits.train, splits.validation, pd.concat([splits.test, *splits[3:]]))
