"""Checks of arguments. Objects that carry one another are easily mixed up: says which one was meant."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

_WAYS = ("recommender", "recommender.encoder", "train", "train.encoder", "encoder")


def expect(value: Any, kind: type | tuple[type, ...], name: str) -> None:
    """Raises a TypeError unless ``value`` is of this kind, or of one of several; where it carries one, the message says
    under which name."""
    if isinstance(value, kind):
        return
    hint = ""
    for way in _WAYS:
        try:
            found = operator.attrgetter(way)(value)
        except AttributeError:
            continue
        if isinstance(found, kind):
            hint = f" Pass its .{way}."
            break
    if isinstance(value, pd.DataFrame):
        hint = " Split the frame and encode it first: data.encode(data.split_random(frame, seed=0), schema)."
    came = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
    raise TypeError(f"Expected a {kinds} for {name}, got {came}.{hint}")


def log_ranges(space: Mapping[str, Any], instead: str) -> None:
    """Raises a ValueError unless each value is callable or a pair ``(low, high)`` to draw between in the logarithm."""
    for name, values in space.items():
        if callable(values):
            continue
        try:
            low, high = values
            good = bool(0 < low <= high < math.inf)
        except (TypeError, ValueError):  # no pair, or not of numbers
            good = False
        if not good:
            raise ValueError(
                f"Expected a pair (low, high) with 0 < low <= high for {name!r}, got {values!r}. Give a function of "
                f"{instead}."
            )


def one_of(value: Any, options: Sequence[Any], name: str) -> None:
    """Raises a ValueError unless ``value`` is one of the options."""
    if value not in options:
        raise ValueError(f"Expected {name} to be {', '.join(map(repr, options))}, got {value!r}.")


def need_level(level: float) -> None:
    """Raises a ValueError unless intervals can cover with this probability."""
    if not 0 < level < 1:
        raise ValueError(f"Expected level in (0, 1), the probability that an interval covers, got {level}. Say 0.95.")


def raw_ids(ids: Any, name: str) -> None:
    """Raises a TypeError unless these can be raw ids one after the other: a string would be read letter by letter, and
    a frame gives the names of its columns."""
    if isinstance(ids, pd.DataFrame):
        raise TypeError(f"Expected raw ids for {name}, got a DataFrame. Give its column of ids.")
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise TypeError(f"Expected a list of raw ids for {name}, got {ids!r}. Say [{ids!r}].")
