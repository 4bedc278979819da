"""Equality of frozen values that hold arrays."""

import dataclasses
from typing import Any

import jax
import numpy as np


def equal(self: Any, other: Any) -> bool:
    """``__eq__`` of a dataclass whose fields may be arrays, or nested in tuples, dicts and further dataclasses."""
    if type(self) is not type(other):
        return NotImplemented
    return same(self, other)


def same(a: Any, b: Any) -> bool:
    """Whether two trees of dataclasses, tuples, dicts and arrays hold the same; NaN equals NaN."""
    if a is b:
        return True
    if isinstance(a, np.ndarray | jax.Array) or isinstance(b, np.ndarray | jax.Array):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return bool(a == b)
