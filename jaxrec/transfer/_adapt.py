"""Align, copy, freeze, fine-tune in one call, and train from scratch beside it to see what it was worth."""

import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec import _tree
from jaxrec._expect import expect, one_of
from jaxrec._metrics import check_metric, default_metric, lower_is_better, task_of
from jaxrec._recommender import Recommender, order_of
from jaxrec._types import Params
from jaxrec.data import Dataset, Encoder
from jaxrec.evaluation import Report, evaluate
from jaxrec.models import Model
from jaxrec.models._base import resized, with_unknown_rows
from jaxrec.train import fit
from jaxrec.train._fit import chosen_loss
from jaxrec.transfer._adapters import Adapters
from jaxrec.transfer._align import Alignment, align, rows_are_of, together
from jaxrec.transfer._copy import CopyReport, copy
from jaxrec.transfer._freeze import Frozen, freeze, freeze_copied
from jaxrec.transfer._rows import Unmatched, fill
from jaxrec.transfer._several import Conflict, Source, copy_all, union


class Adapted(NamedTuple):
    """A recommender for the target domain, and how it came about."""

    recommender: Recommender
    alignment: Alignment  # of several sources the first one's
    copied: CopyReport
    frozen: Frozen
    alignments: Mapping[str, Alignment] = {}  # of several sources by name

    @property
    def aligned(self) -> str:
        """In words, of every source."""
        if not self.alignments:
            return str(self.alignment)
        return "\n".join(f"{name}\n{alignment}" for name, alignment in self.alignments.items())

    def __str__(self) -> str:
        return f"{self.aligned}\n\n{self.copied}\n\n{self.frozen}"


def adapt(
    source: Recommender | Mapping[str, Recommender],
    train: Dataset,
    *,
    model: Model | None = None,
    alignment: Alignment | Mapping[str, Alignment] | None = None,
    conflict: Conflict = "first",
    patterns: _tree.Patterns = "*",
    rename: Mapping[str, str] | None = None,
    unmatched: Unmatched = "fresh",
    freeze: Literal["copied"] | _tree.Patterns | Frozen = (),
    adapters: Adapters | None = None,
    importance: Params | None = None,
    seed: int = 0,
    **options: Any,
) -> Adapted:
    """A recommender for the target domain that starts from what the source learned.

    Aligns the two vocabularies by raw id, copies the parameter tree by path and row, freezes a part and trains the rest
    on the target. A user or item that is cold in the target and known in the source keeps what the source knows.

    Args:
      source: from ``fit`` on the source domain; or several by name.
      train: the target's training part. Encode it with ``like=source.encoder`` where both have the same features, so
        that scales and label numbers agree.
      model: of the target, by default the source's. It is given the sizes of the target's data, with a row for every
        aligned user and item.
      alignment: from ``transfer.align(source.encoder, train.encoder, ...)``, to match by a table or by content; by
        default by raw id. Of several sources by name.
      conflict: of rows and leaves that several sources have the ``"first"`` one's are copied, the ``"last"`` one's or
        their ``"mean"``. They should share a space; see ``transfer.copy_all``.
      patterns: of the leaves to copy; the others (a head, a tower to be learned anew) are initialised.
      rename: for a target's model of another class or depth, the target's paths by the source's; see ``transfer.copy``.
      unmatched: what the other rows in use begin with, of tables of which rows were copied: ``"fresh"`` as the model
        initialises them; ``"unknown"``, the mean of the copied rows; ``"content"``, what a ridge regression predicts
        that is fitted to the copied rows on the target's features (as ``coldstart.map_content``, its penalty by
        generalised cross-validation); ``"neighbours"``, the mean of the 10 copied rows nearest by content, by
        similarity (as ``train.fit_content_knn`` measures it). Who has no content, and labels, begin as ``"unknown"``;
        the report counts them.
      freeze: ``"copied"`` for all that was copied, patterns of leaves, or what ``transfer.freeze`` returns; by default
        nothing, so that everything is fine-tuned, with ``LowRank`` adapters everything else, and with ``Bottleneck``
        ones, which learn nothing of single rows, what was copied.
      adapters: ``LowRank`` or ``Bottleneck`` ones, to train in the place of leaves, which ``freeze`` has to name among
        others (for a table rows of it are enough) if it is given.
      importance: from ``transfer.fisher``, for the optimiser ``optim.ewc``: it is copied row by row as the parameters
        are, and what was not copied has none. Of one source alone, and without adapters.
      seed: of the initial parameters and of training.
      options: for ``fit``: loss, optimizer, epochs, validation, ... Targets are learned by the kind of loss that the
        source was trained by, unless ``loss`` says otherwise.

    Returns:
      The recommender, the alignment, the copy report and what was frozen.

    Raises:
      ValueError: nothing can be copied, shapes or features differ, a pattern matches nothing, the alignment is of other
        encoders, ``unmatched`` has no copied row or no features to go by, or a leaf with an adapter is not frozen.
    """
    sources = _by_name(source)
    expect(train, Dataset, "train")
    inspect.signature(fit).bind(model, train, **options)  # of an option that fit lacks nobody may be silent
    one_of(unmatched, get_args(Unmatched), "unmatched")
    one_of(conflict, get_args(Conflict), "conflict")
    alignments = _alignments(sources, train.encoder, alignment)
    first = next(iter(sources.values()))
    several = isinstance(source, Mapping)
    options = _with_loss(first, train, options)
    if importance is not None and several:
        raise ValueError("importance= belongs to the parameters of one source. Adapt from that one, or leave it out.")
    if importance is not None and adapters is not None:
        raise ValueError("importance= weighs parameters that adapters leave as they are. Leave one of the two out.")
    train = dataclasses.replace(train, encoder=next(iter(alignments.values())).encoder)
    target = resized(first.model if model is None else model, train)
    by_name = {name: alignment.for_model(target) for name, alignment in alignments.items()}
    fresh = target.init(jax.random.split(jax.random.key(seed))[0])  # as fit does, so that scratch starts alike
    if several:
        given = {name: Source(each.params, by_name[name], rename or {}) for name, each in sources.items()}
        params, report = copy_all(given, fresh, conflict=conflict, patterns=patterns)
        rows = union(by_name, report)
    else:
        rows = next(iter(by_name.values()))
        params, report = copy(first.params, fresh, rows=rows, patterns=patterns, rename=rename)
    for name, each in sources.items():
        _check_inputs(each.encoder, train.encoder, report, target, name if several else None)
    params, report = fill(params, target, train, rows, report, unmatched)
    params = with_unknown_rows(target, params, train.features)  # of tables that are frozen nobody will do it later
    if adapters is not None and not isinstance(freeze, Frozen) and not freeze:
        freeze = adapters._freezes
    if isinstance(freeze, Frozen):
        frozen = freeze
    elif freeze == "copied":
        frozen = freeze_copied(params, report, rows)
    else:
        frozen = _freeze(params, freeze)
    if adapters is not None:
        target = adapters.on(target)
        held = {*frozen.leaves, *(path for path, mask in frozen.rows.items() if mask.any())}
        loose = [path for path in target.paths if path not in held]
        if loose and freeze != "copied":  # then what is not frozen began anew, and may have both
            raise ValueError(
                f"An adapter is trained in the place of its leaf, and freeze={freeze!r} leaves {loose[0]!r} to be "
                "trained too. Leave freeze= out to train the adapters alone, freeze that leaf, or name the leaves to "
                "adapt by the adapters' patterns=."
            )
        params = target.add(params, jax.random.key(seed))
    if importance is not None:
        nothing = jax.tree.map(jnp.zeros_like, fresh)
        weights, _ = copy(importance, nothing, rows=rows, patterns=patterns, rename=rename)
        options["hyperparams"] = {**(options.get("hyperparams") or {}), "importance": weights}
    told = next(iter(alignments.values())), report, frozen, alignments if several else {}
    if set(frozen.leaves) == set(_tree.flatten(params)) and not options.get("unfreeze"):
        seen = train.interactions
        orders = first.link == "rank" or (first.link == "identity" and first.encoder.schema.target is None)
        link = order_of(seen) if orders else first.link
        ready = Recommender(target, params, train.encoder, seen, len(seen), link=link)
        return Adapted(ready, *told)
    if first.link == "rank" and train.target is not None and options.get("loss") is None:
        raise ValueError(
            "The source was trained by a loss of ranking, whose scores are no targets, and by default targets are "
            "fitted by squared error. Say which loss to go on with, such as loss='bpr'."
        )
    fitted = fit(
        target, train, params=params, freeze=frozen.leaves, frozen_rows=dict(frozen.rows), seed=seed, **options
    )
    return Adapted(fitted, *told)


def _with_loss(source: Recommender, train: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    """A model that gives probabilities goes on to: by squared error its scores would be drawn to 0 and 1."""
    if source.link == "sigmoid" and train.target is not None and options.get("loss") is None:
        return {**options, "loss": "sigmoid_cross_entropy"}
    return options


def _by_name(source: Recommender | Mapping[str, Recommender]) -> dict[str, Recommender]:
    """Sources by name; one alone has none."""
    sources = dict(source) if isinstance(source, Mapping) else {"": source}
    if not sources:
        raise ValueError("Expected at least one source, got none.")
    for name, each in sources.items():
        expect(each, Recommender, f"source {name!r}" if name else "source")
    links = {"identity" if each.link == "rank" else each.link for each in sources.values()}
    if len(links) > 1:
        raise ValueError(
            f"Scores of the sources mean different things (links {', '.join(sorted(links))}): they were trained by "
            "losses of different kinds. Adapt from those of one kind."
        )
    return sources


def _alignments(
    sources: Mapping[str, Recommender], target: Encoder, given: Alignment | Mapping[str, Alignment] | None
) -> dict[str, Alignment]:
    """By source, all over one encoder of the target."""
    if isinstance(given, Mapping):
        alignments = dict(given)
    elif given is not None:
        alignments = dict.fromkeys([""], given)
    else:
        alignments = {name: align(each.encoder, target, require=False) for name, each in sources.items()}
    if set(alignments) != set(sources):
        raise ValueError(
            f"Expected an alignment for each of the sources {', '.join(map(repr, sources))}, got them for "
            f"{', '.join(map(repr, alignments))}. Give a dict with the names of the sources."
        )
    for name, each in sources.items():
        _check_alignment(alignments[name], each.encoder, target)
    return together({name: alignments[name] for name in sources}, target)


def _check_alignment(alignment: Alignment, source: Encoder, target: Encoder) -> None:
    expect(alignment, Alignment, "alignment")
    rows = {"user": source.features.user_row, "item": source.features.item_row}
    known = {"user": target.users, "item": target.items}
    sizes = {side: (int((row > 0).sum()), len(known[side])) for side, row in rows.items()}
    given = {side: alignment.sizes.get(side) for side in sizes}
    aligned = alignment.encoder
    same = np.array_equal(aligned.users.ids, target.users.ids) and np.array_equal(aligned.items.ids, target.items.ids)
    if given != sizes or not same or not rows_are_of(alignment, source, target):
        raise ValueError(
            "The alignment is of other encoders than the source's and the target's: trained there and known here are "
            f"{given} in the alignment and {sizes} in the data, or their rows differ. Make it by "
            "align(source.encoder, train.encoder)."
        )


def _check_inputs(source: Encoder, target: Encoder, report: CopyReport, model: Model, name: str | None) -> None:
    """A copied kernel reads features by position, so they must be the same ones in the same order.

    ``name`` is that of the source where there are several.
    """
    taken = [entry for entry in report.entries if name is None or name in dict(entry.sources)]
    whole = [entry.path for entry in taken if entry.outcome == "copied"]
    by_field = getattr(model, "by_field", "")  # a kernel beside the sides that reads all of them
    for side in ("user", "item", "context"):
        copied = [path for path in whole if path.startswith(f"{side}/") or path == by_field]
        ours, theirs = ([each.name for each in encoder.fitted(side)] for encoder in (source, target))
        if copied and ours != theirs:
            raise ValueError(
                f"{copied[0]!r} was learned on the {side} features {', '.join(ours) or 'none'} and the target has "
                f"{', '.join(theirs) or 'none'}: a copied kernel would read one as another. Name the same features in "
                "the same order, or choose what to copy with patterns=."
            )


_freeze = freeze  # `adapt` has a parameter of that name


class NegativeTransfer(UserWarning):
    """Transfer did worse than training from scratch, with an interval that excludes zero."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Transfer against training from scratch, on the same test users.

    Args:
      adapted: the transferred recommender and its reports.
      scratch: the recommender trained on the target alone.
      reports: of the two, ``"transfer"`` and ``"scratch"``.
      table: by slice: figures of both, ``difference`` with ``low`` and ``high`` and the ``p_value`` of no difference.
      metric: that the verdict is about.
      verdict: ``"helped"`` or ``"hurt"`` where the interval of the difference over all users excludes zero and the
        paired test rejects equality at the same level; with few users the one can do so without the other.
    """

    adapted: Adapted
    scratch: Recommender
    reports: dict[str, Report]
    table: pd.DataFrame
    metric: str
    verdict: Literal["helped", "hurt", "no difference"]

    @property
    def recommender(self) -> Recommender:
        """What to go on with: the transferred recommender, or where transfer hurt the one from scratch.

        It is chosen on the test part given to ``compare``. Give a validation part, and evaluate on test what it chose.
        """
        return self.scratch if self.verdict == "hurt" else self.adapted.recommender

    def __str__(self) -> str:
        """The verdict in words, and the table."""
        row = self.table.iloc[0]
        interval = f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
        better = "lower is better, gain " if lower_is_better(self.metric) else ""
        change = f"{self.metric} {row.scratch:.4f} -> {row.transfer:.4f} ({better}{interval})"
        units = "users" if self.reports["transfer"].table["users"].any() else "rows"
        words = {
            "helped": f"Transfer helped: {change}.",
            "hurt": (
                f"Transfer hurt: {change}. There was nothing to carry over that is true here, and what was copied "
                "misleads: train from scratch, or copy less."
            ),
            "no difference": (
                f"Transfer made no difference that can be told from chance: {change}. There was nothing to carry over, "
                f"or too little for {int(row.users)} test {units} to show."
            ),
        }
        table = self.table.to_string(index=False, float_format=lambda value: f"{value:.4f}")
        return f"{words[self.verdict]}\n{self.adapted.aligned}\n{table}"


def compare(
    source: Recommender | Mapping[str, Recommender],
    train: Dataset,
    test: Dataset,
    *,
    metric: str | None = None,
    model: Model | None = None,
    alignment: Alignment | Mapping[str, Alignment] | None = None,
    patterns: _tree.Patterns = "*",
    freeze: Literal["copied"] | _tree.Patterns | Frozen = (),
    strategy: Mapping[str, Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Did transfer help? Trains from scratch beside it, with the same model, budget, options and seed.

    Args:
      source: from ``fit`` on the source domain; or several by name.
      train: the target's training part.
      test: held-out interactions of the target, neither trained nor stopped on.
      metric: of the verdict: a name from ``evaluate``'s report that has a value per user, such as ``"ndcg@10"``, or
        ``"rmse"`` or ``"log_loss"`` for targets (the mean of users' errors, lower being better). By default
        ``"ndcg@10"``, cut to a smaller catalogue, or ``"rmse"`` where there is a target.
      model: as for ``adapt``, likewise ``alignment``, ``patterns`` and ``freeze``.
      alignment: see ``model``.
      patterns: see ``model``.
      freeze: see ``model``; only the transferred model is frozen.
      strategy: further options for ``adapt`` alone: ``adapters``, ``importance``, ``rename``, ``unmatched``,
        ``conflict``, and what of ``fit`` makes sense for the transferred model only, such as ``unfreeze`` or an
        ``optimizer`` with ``optim.l2_sp``.
      level: of the intervals.
      seed: of both trainings and of the bootstrap.
      options: for ``fit``, given to both.

    Returns:
      Both recommenders and reports, a table of paired differences by slice, a verdict, and the recommender to go on
      with. Where lower is better the difference is turned round, so that positive always means that transfer is ahead.

    Raises:
      ValueError: as ``adapt``, or the test part leaves nobody to measure on.

    Warns:
      NegativeTransfer: transfer hurt.
    """
    expect(test, Dataset, "test")
    first = next(iter(_by_name(source).values()))
    options = _with_loss(first, train, options)
    link = chosen_loss(first.model if model is None else model, train, options.get("loss"))[2]
    metric = metric or default_metric(test, link)
    check_metric(metric, test, link, by_user=True)
    chosen: dict[str, Any] = {**options, **(strategy or {})}
    named = sorted({"model", "alignment", "patterns", "freeze", "seed"} & set(chosen))
    if named:
        raise TypeError(f"{named[0]} is an option of compare itself: give compare(..., {named[0]}=...), not strategy=.")
    adapted = adapt(
        source, train, model=model, alignment=alignment, patterns=patterns, freeze=freeze, seed=seed, **chosen
    )
    alone = resized(first.model if model is None else model, train)
    scratch = fit(alone, train, seed=seed, **options)
    task, ks = task_of(metric)
    reports = {
        what: evaluate(recommender, test, ks=ks, task=task, level=level, seed=seed)
        for what, recommender in (("transfer", adapted.recommender), ("scratch", scratch))
    }
    sign = -1.0 if lower_is_better(metric) else 1.0
    rows = []
    for part in dict.fromkeys(reports["scratch"].per_user["slice"]):
        ours, theirs = (reports[what].users(metric, part) for what in ("transfer", "scratch"))
        paired = reports["transfer"].versus(reports["scratch"], metric, part, level=level, seed=seed)
        low, high = sorted((sign * paired.low, sign * paired.high))
        rows.append(
            (part, paired.users, theirs.mean(), ours.mean(), sign * paired.difference, low, high, paired.p_value)
        )
    if not rows:
        reasons = "; ".join(f"{count} rows, {why}" for why, count in reports["scratch"].left_out.items() if count)
        raise ValueError(
            f"The test part has nobody to measure {metric} on (left out: {reasons or 'nothing'}). Give held-out rows "
            "that are not those of training."
        )
    columns = ["slice", "users", "scratch", "transfer", "difference", "low", "high", "p_value"]
    table = pd.DataFrame(rows, columns=columns)
    verdict: Literal["helped", "hurt", "no difference"] = "no difference"
    if table.p_value[0] < 1 - level and not table.low[0] <= 0 <= table.high[0]:
        verdict = "helped" if table.low[0] > 0 else "hurt"
    comparison = Comparison(adapted, scratch, reports, table, metric, verdict)
    if verdict == "hurt":
        warnings.warn(str(comparison).partition("\n")[0], NegativeTransfer, stacklevel=2)
    return comparison
