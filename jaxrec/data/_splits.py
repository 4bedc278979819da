"""Splits of a frame of interactions. No row is lost: every one is in exactly one part."""

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._expect import one_of
from jaxrec.data._encoder import Parts
from jaxrec.data._schema import Schema, need_columns, times


class Domains(NamedTuple):
    """Two frames of interactions."""

    source: pd.DataFrame
    target: pd.DataFrame


def split_random(frame: pd.DataFrame, *, validation: float = 0.1, test: float = 0.1, seed: int) -> Parts:
    """Rows at random.

    Args:
      frame: interactions.
      validation: share of the rows, in [0, 1); 0 for no such part, likewise in the other splits.
      test: likewise.
      seed: of ``numpy.random.default_rng``.

    Raises:
      ValueError: the frame is empty, shares are out of range, or a part that was asked for, or the training part,
        gets no row. Likewise in the other splits.
    """
    need_columns(frame, (), "interactions")
    return _cut(frame, np.random.default_rng(seed).permutation(len(frame)), validation, test)


def split_temporal(frame: pd.DataFrame, schema: Schema, *, validation: float = 0.1, test: float = 0.1) -> Parts:
    """The latest rows of all are the test part, those before them the validation part: one cut for everybody.

    Rows of one time stay together, so a part may be somewhat larger than its share.
    """
    column = _named(schema.time, "time")
    need_columns(frame, (column,), "interactions")
    _check_shares(validation, test)
    time = times(frame, column)
    ordered = np.sort(time)
    part = np.zeros(len(frame), np.int8)
    for number, share in ((1, validation + test), (2, test)):
        first = len(ordered) - round(len(ordered) * share)
        if first < len(ordered):
            part[time >= ordered[first]] = number
    return _parts(frame, part, validation, test)


def split_leave_one_out(frame: pd.DataFrame, schema: Schema, *, validation: bool = True, seed: int) -> Parts:
    """Each user's last row is the test part, the last but one the validation part.

    Last by time, or in a random order drawn from ``seed`` if the schema names no time. Users with too few rows to
    keep one for training stay in the training part whole.
    """
    need_columns(frame, schema.columns(), "interactions")
    order = np.random.default_rng(seed).permutation(len(frame))
    if schema.time is not None:
        order = order[np.argsort(times(frame, schema.time)[order], kind="stable")]
    users = frame[_named(schema.user, "user")].iloc[order]
    from_last = users.groupby(users).cumcount(ascending=False).to_numpy()
    enough = users.groupby(users).transform("size").to_numpy() > 1 + validation
    part = np.zeros(len(frame), np.int8)
    part[order[enough & (from_last == 0)]] = 2
    if validation:
        part[order[enough & (from_last == 1)]] = 1
    return _parts(frame, part, validation, True)


def split_cold_users(
    frame: pd.DataFrame, schema: Schema, *, validation: float = 0.1, test: float = 0.1, seed: int
) -> Parts:
    """Whole users are held out; shares are of users."""
    return _cold(frame, (_named(schema.user, "user"),), validation, test, seed)


def split_cold_items(
    frame: pd.DataFrame, schema: Schema, *, validation: float = 0.1, test: float = 0.1, seed: int
) -> Parts:
    """Whole items are held out; shares are of items."""
    return _cold(frame, (_named(schema.item, "item"),), validation, test, seed)


def split_cold_both(
    frame: pd.DataFrame, schema: Schema, *, validation: float = 0.1, test: float = 0.1, seed: int
) -> Parts:
    """Users and items are held out: a row whose user or item is held out is not in the training part.

    The test part has all rows with a test user or item, so that ``evaluate`` can tell cold users, cold items and
    both apart; shares are of users and of items.
    """
    return _cold(frame, (_named(schema.user, "user"), _named(schema.item, "item")), validation, test, seed)


def split_by_domain(frame: pd.DataFrame, column: str, *, source: Any, target: Any) -> Domains:
    """The rows of two domains.

    Args:
      frame: interactions of both.
      column: says which domain a row belongs to.
      source: the value, or list of values, of the source domain.
      target: likewise of the target.

    Raises:
      ValueError: a domain has no row, is in both, or a row is in neither and would be lost.
    """
    need_columns(frame, (column,), "interactions")
    chosen = [list(value) if isinstance(value, list | tuple | set) else [value] for value in (source, target)]
    inside = [frame[column].isin(values).to_numpy() for values in chosen]
    for values, rows in zip(chosen, inside, strict=True):
        if not rows.any():
            present = ", ".join(map(repr, frame[column].unique()[:10].tolist()))
            raise ValueError(f"No row has {values} in the column {column!r}, which holds {present}.")
    if (inside[0] & inside[1]).any():
        raise ValueError(
            f"Source {chosen[0]} and target {chosen[1]} overlap. A domain cannot be transferred to itself."
        )
    nowhere = ~(inside[0] | inside[1])
    if nowhere.any():
        example = frame[column][nowhere].tolist()[0]
        raise ValueError(
            f"{int(nowhere.sum())} rows are in neither domain, such as {example!r}, and would be lost. Name "
            "every value, or filter the frame first."
        )
    return Domains(frame[inside[0]], frame[inside[1]])


def k_fold(
    frame: pd.DataFrame,
    schema: Schema,
    *,
    folds: int = 5,
    by: Literal["interaction", "user", "item"] = "interaction",
    seed: int,
) -> list[Parts]:
    """Folds whose test parts together are the frame; there is no validation part.

    Args:
      frame: interactions.
      schema: names the columns.
      folds: at least 2 and at most as many as there are rows, users or items.
      by: what is held out whole.
      seed: of ``numpy.random.default_rng``.
    """
    need_columns(frame, schema.columns(), "interactions")
    one_of(by, ("interaction", "user", "item"), "by")
    if by == "interaction":
        group, count = np.arange(len(frame)), len(frame)
    else:
        column = _named(schema.user if by == "user" else schema.item, by)
        group, values = pd.factorize(frame[column])
        count = len(values)
    if not 2 <= folds <= count:
        raise ValueError(f"Expected folds between 2 and the number of {by}s ({count}), got {folds}.")
    fold = np.random.default_rng(seed).permutation(count)[group] % folds
    return [Parts(frame[fold != number], None, frame[fold == number]) for number in range(folds)]


def _cold(frame: pd.DataFrame, columns: tuple[str, ...], validation: float, test: float, seed: int) -> Parts:
    need_columns(frame, columns, "interactions")
    rng = np.random.default_rng(seed)
    part = np.zeros(len(frame), np.int8)
    for column in columns:
        group, values = pd.factorize(frame[column])
        part = np.maximum(part, _assign(rng.permutation(len(values)), validation, test)[group])
    return _parts(frame, part, validation, test)


def _cut(frame: pd.DataFrame, order: np.ndarray, validation: float, test: float) -> Parts:
    return _parts(frame, _assign(order, validation, test), validation, test)


def _assign(order: np.ndarray, validation: float, test: float) -> np.ndarray:
    """0, 1 or 2 for each of ``len(order)`` things: training, validation, test."""
    _check_shares(validation, test)
    first_test = len(order) - round(len(order) * test)
    first_validation = first_test - round(len(order) * validation)
    part = np.zeros(len(order), np.int8)
    part[order[first_validation:first_test]] = 1
    part[order[first_test:]] = 2
    return part


def _check_shares(validation: float, test: float) -> None:
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"Expected shares in [0, 1) that leave something for training, got validation={validation}, test={test}."
        )


def _parts(frame: pd.DataFrame, part: np.ndarray, validation: float | bool, test: float | bool) -> Parts:
    found = [frame[part == number] for number in range(3)]
    asked = (True, bool(validation), bool(test))
    for name, rows, wanted in zip(Parts._fields, found, asked, strict=True):
        if wanted and not len(rows):
            raise ValueError(
                f"The split leaves no {name} row of {len(frame)}. Change the shares, or give more rows, users or items."
            )
    return Parts(*(rows if wanted else None for rows, wanted in zip(found, asked, strict=True)))


def _named(column: str | None, what: str) -> str:
    if column is None:
        raise ValueError(f"This split needs the {what} column. Name it in the schema: Schema({what}=...).")
    return column
