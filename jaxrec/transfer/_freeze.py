"""What does not move in fine-tuning: whole leaves by pattern, and rows of tables."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxrec import _tree
from jaxrec._types import Params
from jaxrec.data import Encoder
from jaxrec.models import Model
from jaxrec.transfer._align import Rows
from jaxrec.transfer._copy import CopyReport


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    """Leaves and rows that do not move; ``fit(..., freeze=frozen.leaves, frozen_rows=frozen.rows)``."""

    leaves: tuple[str, ...]
    rows: Mapping[str, np.ndarray]  # by table path: bool, True where frozen

    def __str__(self) -> str:
        rows = ", ".join(f"{int(mask.sum()):,} rows of {path}" for path, mask in self.rows.items())
        return f"frozen: {', '.join([*self.leaves, *([rows] if rows else [])]) or 'nothing'}"


def freeze(params: Params, patterns: _tree.Patterns = (), *, rows: Mapping[str, np.ndarray] | None = None) -> Frozen:
    """Leaves by pattern, and rows of tables.

    Args:
      params: the whole tree.
      patterns: shell-style, of whole paths, such as ``"item/*"``.
      rows: by table path, numbers of rows that stay as they are, or a bool mask; see ``rows_of``.

    Raises:
      ValueError: a pattern matches nothing, a table is not there, is frozen as a whole already, or has no such row.

    Examples:
      >>> params = {"item": {"embedding": np.zeros((3, 2))}, "bias": np.zeros(())}
      >>> print(freeze(params, "bias", rows={"item/embedding": np.array([1])}))
      frozen: bias, 1 rows of item/embedding
    """
    leaves = _tree.match(_tree.flatten(params), patterns)
    masks = {}
    for path, which in (rows or {}).items():
        size = _tree.get(params, path).shape[0]
        if path in leaves:
            raise ValueError(f"{path!r} is frozen as a whole by {patterns!r}. Freeze either the leaf or rows of it.")
        which = np.asarray(which) if np.size(which) else np.zeros(0, np.int32)
        if which.dtype == bool and which.shape != (size,):
            raise ValueError(f"Expected a mask of {size} rows for {path!r}, got shape {which.shape}.")
        if which.dtype != bool and which.size and (which.min() < 0 or which.max() >= size):
            raise ValueError(f"Expected rows of {path!r} in 0 .. {size - 1}, got {which.min()} .. {which.max()}.")
        masks[path] = np.zeros(size, bool)
        masks[path][which] = True
    return Frozen(leaves, masks)


def all_but(*patterns: str) -> tuple[str, ...]:
    """Patterns of everything else, for ``freeze=``: what these name is all that is trained.

    ``all_but("*bias")`` trains biases alone (BitFit), ``all_but("*/mlp/1/*")`` the last layers of two towers with one
    hidden layer each.

    Examples:
      >>> all_but("*bias")
      ('*', '!*bias')

    References:
      Ben Zaken, Goldberg and Ravfogel, BitFit: simple parameter-efficient fine-tuning for transformer-based masked
      language-models, ACL 2022 (there with a new task's head).
    """
    return ("*", *(f"!{pattern}" for pattern in patterns))


def rows_of(
    encoder: Encoder, model: Model, *, users: Iterable[Any] = (), items: Iterable[Any] = ()
) -> dict[str, np.ndarray]:
    """Table rows of raw users and items by path, for ``freeze(..., rows=...)``. Those without a row are left out."""
    found = {}
    sides = (
        ("user", encoder.features.user_row, encoder.users, list(users)),
        ("item", encoder.features.item_row, encoder.items, list(items)),
    )
    for side, row, vocabulary, ids in sides:
        if ids:
            rows = row[vocabulary.encode(ids)]
            found |= {path: rows[rows > 0] for path, numbering in model.tables.items() if numbering == side}
    return found


def freeze_copied(params: Params, report: CopyReport, rows: Mapping[str, Rows]) -> Frozen:
    """Everything that was copied: whole leaves, and the copied rows of tables."""
    tables = {path: np.asarray(rows[path].target) for path in report.paths("rows copied")}
    return freeze(params, report.paths("copied"), rows=tables)
