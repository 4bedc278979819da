"""Several sources into one target: who gives a row that more than one of them has?"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _tree
from jaxrec._expect import expect, one_of
from jaxrec._types import Params
from jaxrec.transfer._align import Rows
from jaxrec.transfer._copy import CopyReport, Entry, leaf_by_leaf, need_weight

Conflict = Literal["first", "last", "mean"]


class Source(NamedTuple):
    """One of several: trained parameters, and which rows of theirs go where (see ``Alignment.for_model``)."""

    params: Params
    rows: Mapping[str, Rows] = {}
    rename: Mapping[str, str] = {}


def copy_all(
    sources: Mapping[str, Source],
    target: Params,
    *,
    conflict: Conflict = "first",
    patterns: _tree.Patterns = "*",
) -> tuple[Params, CopyReport]:
    """``copy`` from several sources.

    Rows that one source alone has are copied from it. Vectors of several sources in one table mean something only where
    their models share a space, for instance because they began with one common pretraining: factorizations that were
    trained apart are turned against each other, and neither mixing their rows nor a mean makes up for it.

    Args:
      sources: by name.
      target: freshly initialised parameters of the target's model.
      conflict: what becomes of rows, and of leaves that are copied whole, that several sources have: the ``"first"``
        source's, the ``"last"`` one's or their ``"mean"``.
      patterns: of the target's leaves that may be copied.

    Returns:
      New parameters, and the report with the number of rows that each source gave; under ``"mean"`` a row counts for
      all that have it.

    Raises:
      ValueError: as ``copy``; there is no source, one has nothing that is copied, or a leaf is copied whole from one
        source and by rows from another.
    """
    one_of(conflict, get_args(Conflict), "conflict")
    if not sources:
        raise ValueError("Expected at least one source, got none.")
    for name, source in sources.items():
        expect(source, Source, f"source {name!r}")
    found: dict[str, dict[str, jax.Array]] = {}
    entries: dict[str, dict[str, Entry]] = {}
    rest: list[Entry] = []
    for name, source in sources.items():
        try:
            found[name], listed = leaf_by_leaf(
                source.params, target, rows=source.rows, patterns=patterns, rename=source.rename
            )
            need_weight(found[name], CopyReport(tuple(listed)))
        except ValueError as error:
            raise ValueError(f"Source {name!r}: {error}") from None
        entries[name] = {entry.path: entry for entry in listed if entry.outcome != "left over"}
        rest += [entry._replace(sources=((name, 0),)) for entry in listed if entry.outcome == "left over"]
    new, report = {}, []
    for path, leaf in _tree.flatten(target).items():
        having = [name for name in sources if entries[name][path].outcome in ("copied", "rows copied")]
        outcomes = {entries[name][path].outcome for name in having}
        if len(outcomes) > 1:
            raise ValueError(f"{path!r} is copied whole from one source and by rows from another. Give rows= of both.")
        if not having:
            new[path] = jnp.asarray(leaf)
            report.append(entries[next(iter(sources))][path])
        elif outcomes == {"copied"}:
            kept = {"first": having[:1], "last": having[-1:], "mean": having}[conflict]
            new[path] = _mean([found[name][path] for name in kept])
            total = entries[having[0]][path].of
            report.append(
                Entry(path, "copied", total, total, _whole(kept, having), tuple((name, total) for name in kept))
            )
        else:
            given = {name: np.asarray(sources[name].rows[path].target) for name in having}
            new[path], counts = _rows({name: found[name][path] for name in having}, given, jnp.asarray(leaf), conflict)
            many = np.unique(np.concatenate(list(given.values())), return_counts=True)[1]
            reason = ", ".join(f"{count:,} from {name}" for name, count in counts.items())
            shared = int((many > 1).sum())
            reason += f", {shared:,} in several of which the {conflict} counts" if shared else ""
            report.append(
                Entry(path, "rows copied", len(many), entries[having[0]][path].of, reason, tuple(counts.items()))
            )
    return _tree.unflatten(new), CopyReport((*report, *rest))


def union(alignments: Mapping[str, Mapping[str, Rows]], report: CopyReport) -> dict[str, Rows]:
    """By table that was copied its rows that a source with this table has; ``source`` is a row of the first such."""
    joined = {}
    having = {entry.path: dict(entry.sources) for entry in report.entries if entry.outcome == "rows copied"}
    for path, names in having.items():
        every = [rows[path] for name, rows in alignments.items() if name in names]
        source, target = (np.concatenate([np.asarray(rows[at]) for rows in every]) for at in (0, 1))
        target, first = np.unique(target, return_index=True)
        joined[path] = Rows(source[first], target)
    return joined


def _whole(kept: list[str], having: list[str]) -> str:
    if len(having) == 1:
        return f"from {having[0]}"
    return f"the mean of {', '.join(kept)}" if len(kept) > 1 else f"from {kept[0]}, which {len(having)} have"


def _mean(leaves: list[jax.Array]) -> jax.Array:
    if len(leaves) == 1:
        return leaves[0]
    return jnp.mean(jnp.stack([leaf.astype(jnp.float32) for leaf in leaves]), axis=0).astype(leaves[0].dtype)


def _rows(
    found: Mapping[str, jax.Array], given: Mapping[str, np.ndarray], leaf: jax.Array, conflict: Conflict
) -> tuple[jax.Array, dict[str, int]]:
    """The table, and how many rows each source gave."""
    if conflict == "mean":
        total, count = np.zeros(leaf.shape, np.float64), np.zeros(leaf.shape[0], np.int64)
        for name, rows in given.items():
            total[rows] += np.asarray(found[name], np.float64)[rows]
            count[rows] += 1
        rows = np.flatnonzero(count)
        mean = total[rows] / count[rows].reshape(-1, *(1,) * (leaf.ndim - 1))
        counts = {name: len(np.unique(rows)) for name, rows in given.items()}
        return leaf.at[rows].set(jnp.asarray(mean, leaf.dtype)), counts
    names = list(given) if conflict == "last" else list(given)[::-1]  # who comes later writes over the others
    giver = np.full(leaf.shape[0], -1)
    for at, name in enumerate(names):
        leaf = leaf.at[given[name]].set(found[name][given[name]])
        giver[given[name]] = at
    return leaf, {name: int((giver == names.index(name)).sum()) for name in given}
