"""Copying a parameter tree between models, with an account of every leaf."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec import _tree
from jaxrec._types import Params
from jaxrec.transfer._align import Rows

Outcome = Literal["copied", "rows copied", "initialised", "left over"]

_BEGUN = {
    "content": "predicted from content",
    "neighbours": "the mean of neighbours",
    "unknown": "the mean of those copied",
}


class Entry(NamedTuple):
    """What became of one leaf."""

    path: str
    outcome: Outcome
    rows: int  # copied
    of: int  # rows of the target's leaf, or of the source's if it is left over
    reason: str
    sources: tuple[tuple[str, int], ...] = ()  # of several: rows that each gave
    filled: tuple[tuple[str, int], ...] = ()  # other rows that were given a start: how, and how many


@dataclasses.dataclass(frozen=True)
class CopyReport:
    """What ``copy`` did, leaf by leaf. Printing it gives a table, ``plot.copied`` a figure."""

    entries: tuple[Entry, ...]

    def paths(self, *outcomes: Outcome) -> tuple[str, ...]:
        """Paths of the leaves with these outcomes."""
        return tuple(entry.path for entry in self.entries if entry.outcome in outcomes)

    def with_filled(self, filled: Mapping[str, tuple[tuple[str, int], ...]]) -> "CopyReport":
        """The report with how rows that were not copied begin, by path."""
        return CopyReport(tuple(entry._replace(filled=filled.get(entry.path, entry.filled)) for entry in self.entries))

    def to_dict(self) -> dict[str, Any]:
        """The report as what JSON has; the inverse of ``from_dict``."""
        entries = [
            entry._asdict() | {"sources": dict(entry.sources), "filled": dict(entry.filled)} for entry in self.entries
        ]
        return {"entries": entries}

    @classmethod
    def from_dict(cls, report: Mapping[str, Any]) -> "CopyReport":
        """A report that ``to_dict`` gave, also by way of JSON."""
        pairs = ("sources", "filled")
        entries = [entry | {name: tuple(entry[name].items()) for name in pairs} for entry in report["entries"]]
        return cls(tuple(Entry(**entry) for entry in entries))

    def to_frame(self) -> pd.DataFrame:
        """A row per leaf: ``path``, ``outcome``, ``rows`` copied, ``of`` how many, ``reason``.

        Further columns: rows that each of several sources gave (``"from NAME"``), and how rows that were not copied
        begin (``"content"``, ``"neighbours"``, ``"unknown"``).
        """
        counts = [{f"from {name}": count for name, count in each.sources} | dict(each.filled) for each in self.entries]
        frame = pd.DataFrame([entry[:5] for entry in self.entries], columns=list(Entry._fields[:5]))
        for name in dict.fromkeys(name for of_leaf in counts for name in of_leaf):
            frame[name] = [of_leaf.get(name, 0) for of_leaf in counts]
        return frame

    def __str__(self) -> str:
        lines = [("leaf", "outcome", "rows", "why")]
        for entry in self.entries:
            share = f"{entry.rows:,} of {entry.of:,}" if entry.outcome == "rows copied" else ""
            begun = ", ".join(f"{count:,} {_BEGUN[how]}" for how, count in entry.filled)
            lines.append((entry.path, entry.outcome, share, _joined(entry.reason, begun)))
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def copy(
    source: Params,
    target: Params,
    *,
    rows: Mapping[str, Rows] | None = None,
    patterns: _tree.Patterns = "*",
    rename: Mapping[str, str] | None = None,
) -> tuple[Params, CopyReport]:
    """The target's parameters with what the source has in their place.

    Args:
      source: trained parameters.
      target: freshly initialised parameters of the target's model.
      rows: by path of a table, which rows to copy where; see ``Alignment.for_model``. A leaf that is not in it is
        copied whole. Row 0, the unknown's, is copied only by a pair that says so.
      patterns: of the target's leaves that may be copied; the others stay initialised.
      rename: for models whose trees differ, the target's paths by the source's: ``{"user/*": "customer/*"}``. What
        stood for each ``*`` on the left takes its place on the right. Leaves that no rule covers keep their path,
        unless a rule gives it to another one.

    Returns:
      New parameters and the report. Nothing is shared with ``source``: its arrays are copied.

    Raises:
      ValueError: a pattern or a rule matches nothing, a rule leads to no leaf of the target, rules lead two leaves
        of the source to one, shapes differ, or nothing was copied but scalars.
    """
    new, entries = leaf_by_leaf(source, target, rows=rows or {}, patterns=patterns, rename=rename or {})
    report = CopyReport(tuple(entries))
    need_weight(new, report)
    return _tree.unflatten(new), report


def leaf_by_leaf(
    source: Params, target: Params, *, rows: Mapping[str, Rows], patterns: _tree.Patterns, rename: Mapping[str, str]
) -> tuple[dict[str, jax.Array], list[Entry]]:
    """``copy`` without the last check, the parameters by path."""
    ours, theirs = (
        {path: jnp.asarray(leaf) for path, leaf in _tree.flatten(tree).items()} for tree in (source, target)
    )
    chosen = set(_tree.match(theirs, patterns))
    renamed = _renamed(ours, theirs, rename)
    displaced = {path: leaf for path, leaf in ours.items() if path not in renamed}
    ours, origin = {new: ours[old] for old, new in renamed.items()}, {new: old for old, new in renamed.items()}
    new: dict[str, jax.Array] = {}
    whole: dict[str, jax.Array] = {}
    entries: list[Entry] = []
    for path, leaf in theirs.items():
        new[path] = leaf
        total = leaf.shape[0] if leaf.ndim else 1
        was = "" if origin.get(path, path) == path else f"from {origin[path]}"
        if path not in chosen:
            entries.append(Entry(path, "initialised", 0, total, "not selected"))
        elif path not in ours:
            entries.append(Entry(path, "initialised", 0, total, "the source has no such leaf"))
        elif path in rows:
            pairs = rows[path]
            if ours[path].shape[1:] != leaf.shape[1:]:
                raise ValueError(_mismatch(path, ours[path], leaf))
            if len(pairs.source):
                new[path] = _copy_rows(ours[path], leaf, pairs)
                entries.append(
                    Entry(path, "rows copied", len(pairs.source), total, _joined(was, f"aligned {pairs.how}"))
                )
            else:
                entries.append(Entry(path, "initialised", 0, total, f"none aligned {pairs.how}"))
        else:
            if ours[path].shape != leaf.shape:
                raise ValueError(_mismatch(path, ours[path], leaf))
            whole[path] = jnp.asarray(ours[path], leaf.dtype)
            entries.append(Entry(path, "copied", total, total, was))
    new |= _tree.copied(whole)
    unused = {origin[path]: (leaf, "the target has no such leaf") for path, leaf in ours.items() if path not in theirs}
    unused |= {path: (leaf, "another leaf is renamed to this") for path, leaf in displaced.items()}
    for path, (leaf, reason) in unused.items():
        entries.append(Entry(path, "left over", 0, leaf.shape[0] if leaf.ndim else 1, reason))
    return new, entries


def need_weight(params: Mapping[str, jax.Array], report: CopyReport) -> None:
    """Raises where nothing was copied but scalars."""
    if all(params[path].ndim == 0 for path in report.paths("copied", "rows copied")):
        raise ValueError(
            f"Nothing of weight was copied, so there is no transfer. Leaf by leaf:\n{report}\nDo the models have the "
            "same paths, and the domains a raw id, a label or a feature space in common?"
        )


def _renamed(source: Mapping[str, Any], target: Mapping[str, Any], rules: Mapping[str, str]) -> dict[str, str]:
    renamed = _tree.rename(source, rules)
    for old, new in rules.items():
        if not any(renamed[path] in target for path in renamed if _tree.under_rule(old, path)):
            raise ValueError(
                f"The rule {old!r} to {new!r} leads to no leaf of the target. Its paths: {', '.join(target)}."
            )
    return renamed


def _joined(*reasons: str) -> str:
    return ", ".join(reason for reason in reasons if reason)


def _copy_rows(source: jax.Array, target: jax.Array, pairs: Rows) -> jax.Array:
    for name, index, leaf in (("source", pairs.source, source), ("target", pairs.target, target)):
        if np.min(index) < 0 or np.max(index) >= leaf.shape[0]:
            raise ValueError(
                f"Expected {name} rows in 0 .. {leaf.shape[0] - 1}, got {np.min(index)} .. {np.max(index)}. Align the "
                "encoders that the two models were made for."
            )
    return _with_rows(target, source, pairs.target, pairs.source)


@jax.jit
def _with_rows(target: jax.Array, source: jax.Array, to: jax.Array, of: jax.Array) -> jax.Array:
    """In one program; one operation after the other would compile ten."""
    return target.at[to].set(source[of].astype(target.dtype))


def _mismatch(path: str, source: jax.Array, target: jax.Array) -> str:
    return (
        f"Cannot copy {path!r}: the source has shape {source.shape} and the target {target.shape}. Give the target's "
        "model the source's widths and features, or leave the leaf out with patterns."
    )
