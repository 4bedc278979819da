"""Cleaning: every step says how many rows it touched."""

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._expect import one_of
from jaxrec.data._counting import distinct
from jaxrec.data._interactions import Interactions
from jaxrec.data._schema import Schema, need_columns, numbers, times, weights
from jaxrec.data._vocabulary import Vocabulary, check_exact


class Cleaned(NamedTuple):
    """The rows that are left, and what became of the others."""

    frame: pd.DataFrame
    report: pd.DataFrame  # columns: step, rows (touched), left (rows after the step)


def clean(
    frame: pd.DataFrame,
    schema: Schema,
    *,
    missing: Literal["drop", "error"] = "drop",
    target_range: tuple[float, float] | None = None,
    out_of_range: Literal["drop", "error"] = "drop",
    duplicates: Literal["last", "mean", "error", "keep"] = "last",
    min_user: int = 1,
    min_item: int = 1,
) -> Cleaned:
    """Rows fit for training, in the order in which they came.

    The steps, in order: rows with a missing id, target, time or weight, or an infinite time or weight; targets that
    are infinite or outside ``target_range``; repeated pairs of user and item; users and items with too few rows,
    repeatedly until none is left (the k-core).

    Args:
      frame: interactions.
      schema: names the columns.
      missing: what to do with rows that lack a value.
      target_range: lowest and highest allowed target.
      out_of_range: what to do with targets outside, or infinite.
      duplicates: keep the last row of a pair by time (by position without a time column), or the last row with the
        mean of the pair's targets, or every row; ``"error"`` refuses them.
      min_user: fewest rows per user, k of the k-core.
      min_item: fewest rows per item.

    Returns:
      The frame and the report. Integer ids that a missing value had made floats are integers again.

    Raises:
      ValueError: an option asks for a column that the schema does not name, a column is missing, ids are floats beyond
        2^53 (2^24 in float32), which have lost digits, a target is no number, a weight is negative or too
        small for float32, a policy is ``"error"`` and finds something, or no row is left.
      TypeError: ids of mixed types.
    """
    one_of(missing, ("drop", "error"), "missing")
    one_of(out_of_range, ("drop", "error"), "out_of_range")
    one_of(duplicates, ("last", "mean", "error", "keep"), "duplicates")
    _need_use(schema, target_range, duplicates, min_user, min_item)
    need_columns(frame, schema.columns(), "interactions")
    steps: list[tuple[str, int, int]] = []

    def after(step: str, touched: int, kept: pd.DataFrame) -> pd.DataFrame:
        steps.append((step, touched, len(kept)))
        if not len(kept):
            done = "; ".join(f"{name}: {rows}" for name, rows, _ in steps)
            raise ValueError(
                f"Cleaning filtered all {len(frame)} rows away (rows by step: {done}). Loosen the last step."
            )
        return kept

    named = [name for name in (schema.user, schema.item, schema.target, schema.time, schema.weight) if name is not None]
    lacking, columns = np.zeros(len(frame), bool), []
    for name in dict.fromkeys(named):
        wrong = frame[name].isna().to_numpy()
        if name in (schema.time, schema.weight) and not pd.api.types.is_datetime64_any_dtype(frame[name]):
            wrong = wrong | np.isinf(numbers(frame, name, "time" if name == schema.time else "weight"))
        lacking |= wrong
        columns += [name] if wrong.any() else []
    if columns and missing == "error":
        raise ValueError(
            f"{int(lacking.sum())} rows have a missing or infinite value in {', '.join(columns)}. Use missing='drop' "
            "or fill them."
        )
    kept = after("missing values", int(lacking.sum()), frame[~lacking])
    for name in (schema.user, schema.item):
        if name is not None:
            if pd.api.types.is_float_dtype(kept[name]):
                dtype: Any = getattr(kept[name].dtype, "numpy_dtype", kept[name].dtype)  # of any array library
                ids = pd.Series(kept[name].to_numpy(dtype), kept.index, name=name)
                if (ids % 1 == 0).all():
                    check_exact(ids)
                    kept = kept.assign(**{name: ids.astype("int64")})  # integers that a missing value had made floats
            Vocabulary.fit(kept[name])  # refuses mixed types
    if schema.weight is not None:
        weights(kept, schema.weight)

    if schema.target is not None:
        values = numbers(kept, schema.target, "target")
        low, high = target_range or (-np.inf, np.inf)
        wrong = ~((values >= low) & (values <= high) & np.isfinite(values))
        if wrong.any() and out_of_range == "error":
            raise ValueError(
                f"{int(wrong.sum())} targets in {schema.target!r} are infinite or outside [{low}, {high}], such as "
                f"{values[wrong][0]}. Use out_of_range='drop', or widen target_range."
            )
        kept = after("infinite or out of range", int(wrong.sum()), kept[~wrong])

    if schema.user is not None and schema.item is not None:
        pair = [schema.user, schema.item]
        repeated = kept.duplicated(pair, keep=False)
        count = int(kept.duplicated(pair).sum())
        if count and duplicates == "error":
            example = kept.loc[repeated, pair].iloc[0].tolist()
            raise ValueError(
                f"{count} rows repeat a pair of user and item, such as {example}. Use duplicates='last' or 'mean'."
            )
        if count and duplicates != "keep":
            kept = _without_repetition(kept, schema, pair, mean=duplicates == "mean")
        kept = after(f"duplicate pairs ({duplicates})", count, kept)
        before = len(kept)
        kept = _core(kept, schema.user, schema.item, min_user, min_item)
        kept = after(f"fewer than {min_user} per user or {min_item} per item", before - len(kept), kept)
    return Cleaned(kept, pd.DataFrame(steps, columns=["step", "rows", "left"]))


def _need_use(
    schema: Schema, target_range: tuple[float, float] | None, duplicates: str, min_user: int, min_item: int
) -> None:
    """Raises where an option would do nothing."""
    of_target = {"target_range": target_range is not None, "duplicates='mean'": duplicates == "mean"}
    of_pairs = {
        "min_user": min_user != 1,
        "min_item": min_item != 1,
        f"duplicates={duplicates!r}": duplicates in ("mean", "error"),
    }
    for name in (name for name, asked in of_target.items() if asked and schema.target is None):
        raise ValueError(f"{name} is about targets and the schema names none. Name the column, or leave it out.")
    for name in (name for name, asked in of_pairs.items() if asked and None in (schema.user, schema.item)):
        raise ValueError(
            f"{name} is about pairs of user and item, and the schema does not name both. Name the columns, or leave it "
            "out."
        )


def _without_repetition(frame: pd.DataFrame, schema: Schema, pair: list[str], *, mean: bool) -> pd.DataFrame:
    order = np.arange(len(frame)) if schema.time is None else np.argsort(times(frame, schema.time), kind="stable")
    last = frame.iloc[order].duplicated(pair, keep="last").to_numpy()
    kept = frame.iloc[np.sort(order[~last])]
    if mean and schema.target is not None:
        frame = frame.assign(**{schema.target: numbers(frame, schema.target, "target")})
        of_pair = frame.groupby(pair, sort=False, observed=True)[schema.target].mean()
        index = pd.MultiIndex.from_frame(kept[pair])
        kept = kept.assign(**{schema.target: of_pair.reindex(index).to_numpy()})
    return kept


def _core(frame: pd.DataFrame, user: str, item: str, min_user: int, min_item: int) -> pd.DataFrame:
    """Each round looks only at the rows of who has just become too few, so that a long chain takes no longer."""
    of_user, of_item = ((pd.factorize(frame[name])[0] + 1).astype(np.int32) for name in (user, item))
    pairs = Interactions(of_user, of_item, int(of_user.max(initial=0)) + 1, int(of_item.max(initial=0)) + 1)
    sides = [(pairs, min_user), (pairs.turned(), min_item)]
    counts = [side.user_count.copy() for side, _ in sides]
    few = [np.flatnonzero(count < least) for count, (_, least) in zip(counts, sides, strict=True)]
    left = np.ones(len(frame), bool)
    while len(few[0]) or len(few[1]):
        rows = np.concatenate([side.rows_of(each)[1] for each, (side, _) in zip(few, sides, strict=True)])
        rows = distinct(rows[left[rows]])
        left[rows] = False
        for number, (side, least) in enumerate(sides):
            touched, lost = np.unique(side.user[rows], return_counts=True)
            enough = counts[number][touched] >= least
            counts[number][touched] -= lost
            few[number] = touched[enough & (counts[number][touched] < least)]
    return frame[left]
