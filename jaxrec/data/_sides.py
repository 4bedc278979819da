"""The arrays of one side's entities: checked, fitted, allocated to a capacity and written."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxrec.data._features import FittedFeature, side_arrays
from jaxrec.data._schema import Feature, need_columns

Side = Literal["user", "item"]
SIDES: dict[str, Side] = {"user": "user", "item": "item"}


def capacity_for(entries: int) -> int:
    """Rows to allocate for ``entries``: an eighth to spare, rounded up so that similar sizes share shapes."""
    wanted = entries + entries // 8 + 8
    granule = 2 ** max(3, wanted.bit_length() - 4)
    return -(-wanted // granule) * granule


def entity_frame(frame: pd.DataFrame | None, column: str, specs: Sequence[Feature], side: str) -> pd.DataFrame | None:
    if frame is None:
        if specs:
            raise ValueError(
                f"The schema names {side} features ({', '.join(spec.column for spec in specs)}) and no frame of "
                f"{side}s was given. Pass {side}s=, one row per {side}."
            )
        return None
    need_columns(frame, (column, *(spec.column for spec in specs)), f"{side}s")
    repeated = frame[column].duplicated()
    if repeated.any():
        example = frame[column][repeated].tolist()[0]
        raise ValueError(
            f"Expected one row per {side}, but {example!r} has several in the frame of {side}s "
            f"({int(repeated.sum())} rows too many). Drop duplicates of {column!r}."
        )
    return frame


def fit_features(
    specs: Sequence[Feature], frame: pd.DataFrame, inherited: Sequence[FittedFeature]
) -> tuple[FittedFeature, ...]:
    by_feature = {each.feature: each for each in inherited}
    fresh = [spec.column for spec in specs if spec not in by_feature]
    if fresh and not len(frame):
        raise ValueError(
            f"No row with the features {', '.join(fresh)} is of the training part, so there is nothing to fit. See "
            "whether the ids in the frame of features are those of the interactions."
        )
    return tuple(
        by_feature[spec].extended(frame) if spec in by_feature else FittedFeature.fit(spec, frame) for spec in specs
    )


def blank(side: Side, fitted: Sequence[FittedFeature], size: int) -> dict[str, Any]:
    """Arrays in which every entity has the features of one of whom nothing is known."""
    nothing = pd.DataFrame({each.name: [None] for each in fitted}, dtype=object)
    dense, present, _ = side_arrays(fitted, nothing)
    return {
        f"{side}_dense": None if dense is None else np.repeat(dense, size, axis=0),
        f"{side}_present": None if present is None else np.repeat(present, size, axis=0),
        f"{side}_codes": {each.name: np.zeros((size, each.width), np.int32) for each in fitted if each.is_code},
    }


def write(
    features: dict[str, Any], side: Side, fitted: Sequence[FittedFeature], index: np.ndarray, frame: pd.DataFrame
) -> None:
    """Features of the frame's entities into the arrays, which a longer list of known labels than any before widens."""
    everybody = max(map(len, features[f"{side}_codes"].values()), default=0)
    dense, present, codes = side_arrays(fitted, frame, among=everybody)
    if dense is not None:
        features[f"{side}_dense"][index] = dense
    if features[f"{side}_present"] is not None:  # an encoder that an older version saved has none
        features[f"{side}_present"][index] = present
    for name, code in codes.items():
        old = features[f"{side}_codes"][name]
        if code.shape[1] > old.shape[1]:
            old = np.pad(old, ((0, 0), (0, code.shape[1] - old.shape[1])))
        old[index] = np.pad(code, ((0, 0), (0, old.shape[1] - code.shape[1])))
        features[f"{side}_codes"][name] = old


def grown(values: np.ndarray | None, size: int) -> np.ndarray | None:
    """A copy with ``size`` rows, the new ones as the first, which is the unknown's."""
    if values is None:
        return None
    return np.concatenate([values, np.repeat(values[:1], size - len(values), axis=0)])


def label_shares(codes: np.ndarray, number: int, dtype: Any) -> np.ndarray:
    """``[entities, number - 1]``: each label's part of an entity's labels, those of code 0 (padding, unknown) left
    out; zeros where an entity has none."""
    share = np.zeros((len(codes), number), dtype)
    np.add.at(share, (np.arange(len(codes))[:, None], codes), 1.0)
    share = share[:, 1:]
    return share / np.maximum(share.sum(axis=1, keepdims=True), 1.0)
