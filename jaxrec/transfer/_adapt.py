"""Align, copy, freeze, fine-tune in one call, and train from scratch beside it to see what it was worth."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _tree
from jaxrec._expect import expect, one_of
from jaxrec._recommender import Recommender, order_of
from jaxrec._types import Params
from jaxrec.data import Dataset, Encoder
from jaxrec.data._counting import counted
from jaxrec.data._features import FittedFeature
from jaxrec.data._schema import Categorical, Labels
from jaxrec.models import Mixture, Model, SharedSpecific
from jaxrec.models._base import resized, with_unknown_rows
from jaxrec.models._shared_specific import DOMAIN
from jaxrec.train import fit
from jaxrec.train._choices import check_rows
from jaxrec.transfer._adapters import Adapters, Bottleneck, LowRank
from jaxrec.transfer._align import Alignment, Rows, align, rows_are_of, together
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
    on the target. A user or item that is cold in the target and known in the source keeps what the source knows, if its
    row is among what is copied, and else has the row of the unknown.

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
      options: for ``fit``: loss, optimizer, epochs, validation, ... Unless ``loss`` says otherwise targets are learned
        by squared error, or as probabilities where the source gives those; after a loss of ranking on targets it has
        to say.

    Returns:
      The recommender, the alignment, the copy report and what was frozen.

    Raises:
      ValueError: nothing can be copied, shapes or features differ, the target's scale is not the source's, a pattern
        matches nothing, the alignment is of other encoders, ``unmatched`` has no copied row or no features to go by, or
        a leaf with an adapter is not frozen.
    """
    sources = sources_by_name(source)
    expect(train, Dataset, "train")
    inspect.signature(fit).bind(model, train, **options)  # of an option that fit lacks nobody may be silent
    for name, instead in (("params", "patterns="), ("frozen_rows", "freeze=")):
        if name in options:
            raise TypeError(f"adapt sets {name}= of fit itself. Say what is copied and frozen by {instead}.")
    one_of(unmatched, get_args(Unmatched), "unmatched")
    one_of(conflict, get_args(Conflict), "conflict")
    alignments = _alignments(sources, train.encoder, alignment)
    first = next(iter(sources.values()))
    several = isinstance(source, Mapping)
    options = with_loss(first, train, options)
    for each in sources.values():
        need_same_scale(each, train)
    if importance is not None and several:
        raise ValueError("importance= belongs to the parameters of one source. Adapt from that one, or leave it out.")
    if importance is not None and adapters is not None:
        raise ValueError("importance= weighs parameters that adapters leave as they are. Leave one of the two out.")
    before = train.encoder
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
    train = _without_empty_rows(train, before, target, report, rows)
    params, report = fill(params, target, train, rows, report, unmatched)
    params = with_unknown_rows(target, params, train.features)  # of tables that are frozen nobody will do it later
    if adapters is not None:
        expect(adapters, (LowRank, Bottleneck), "adapters")
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
        orders = kind_of(first) == "orders"
        link = order_of(seen) if orders else first.link
        check_rows(target, train)
        folding = None if several else first.folding
        ready = Recommender(target, params, train.encoder, seen, len(seen), link=link, folding=folding)
        return Adapted(ready, *told)
    need_loss(first, train, options)
    fitted = fit(
        target, train, params=params, freeze=frozen.leaves, frozen_rows=dict(frozen.rows), seed=seed, **options
    )
    return Adapted(fitted, *told)


def with_loss(source: Recommender, train: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    """A model that gives probabilities goes on to: by squared error its scores would be drawn to 0 and 1."""
    if source.link == "sigmoid" and train.target is not None and options.get("loss") is None:
        return {**options, "loss": "sigmoid_cross_entropy"}
    return options


def need_loss(source: Recommender, train: Dataset, options: Mapping[str, Any]) -> None:
    """Raises where the default loss would take scores that only order items for targets."""
    if source.link == "rank" and train.target is not None and options.get("loss") is None:
        raise ValueError(
            "The source was trained by a loss of ranking, whose scores are no targets, and by default targets are "
            "fitted by squared error. Say which loss to go on with, such as loss='bpr'."
        )


def sources_by_name(source: Recommender | Mapping[str, Recommender]) -> dict[str, Recommender]:
    """Sources by name; one alone has none."""
    sources = dict(source) if isinstance(source, Mapping) else {"": source}
    if not sources:
        raise ValueError("Expected at least one source, got none.")
    for name, each in sources.items():
        expect(each, Recommender, f"source {name!r}" if name else "source")
        if isinstance(each.model, Mixture):
            raise ValueError(
                f"{f'The source {name!r}' if name else 'The source'} is a mixture, whose gate goes by what was trained "
                "there. Adapt its parts (source.parts) and mix what comes out."
            )
    kinds = {kind_of(each) for each in sources.values()}
    if len(kinds) > 1:
        raise ValueError(
            f"Scores of the sources mean different things ({', '.join(sorted(kinds))}): they were trained by losses of "
            "different kinds. Adapt from those of one kind."
        )
    return sources


def kind_of(source: Recommender) -> str:
    """What the scores say."""
    if source.link == "rank" or (source.link == "identity" and source.encoder.schema.target is None):
        return "orders"
    return "probabilities" if source.link == "sigmoid" else "targets"


def need_same_scale(source: Recommender, train: Dataset) -> None:
    """Raises where the source's scores would be read as numbers of another scale."""
    ours, theirs = (encoder.schema for encoder in (source.encoder, train.encoder))
    if kind_of(source) != "targets" or theirs.target is None or ours.target_scale == theirs.target_scale:
        return
    raise ValueError(
        f"The source predicts {ours.target!r} with target_scale={ours.target_scale!r}, and the training part has "
        f"{theirs.target!r} with target_scale={theirs.target_scale!r}. Encode both with one scale."
    )


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


def _without_empty_rows(
    train: Dataset, before: Encoder, model: Model, report: CopyReport, rows: Mapping[str, Rows]
) -> Dataset:
    """Whoever was aligned, but copied into no table and is not trained on, has the unknown's row again: one of their
    own would stay as it was drawn."""
    features = {}
    for side, index in (("user", train.user), ("item", train.item)):
        name = f"{side}_row"
        row, own = (getattr(encoder.features, name) for encoder in (train.encoder, before))
        copied = [np.asarray(rows[path].target) for path in report.paths("rows copied") if model.tables[path] == side]
        kept = (own > 0) | np.isin(row, np.concatenate([*copied, np.zeros(0, np.int32)]))
        if index is not None:
            kept |= counted(index, len(row)) > 0
        features[name] = np.where(kept, row, 0)
    return dataclasses.replace(
        train, encoder=dataclasses.replace(train.encoder, features=train.features._replace(**features))
    )


def _check_inputs(source: Encoder, target: Encoder, report: CopyReport, model: Model, name: str | None) -> None:
    """A copied kernel reads features by position, so they must be the same ones in the same order.

    ``name`` is that of the source where there are several.
    """
    taken = [entry for entry in report.entries if name is None or name in dict(entry.sources)]
    whole = [entry.path for entry in taken if entry.outcome == "copied"]
    by_field = getattr(model, "by_field", "")  # a kernel beside the sides that reads all of them
    if isinstance(model, SharedSpecific):
        _check_domains(source, target, [entry.path for entry in taken if entry.outcome in ("copied", "rows copied")])
    for side in ("user", "item", "context"):
        if side == "user" and hasattr(model, "item_dense") and not hasattr(model, "user_dense"):
            continue  # such as a model of sequences, which reads features of items alone
        copied = [path for path in whole if path.startswith(f"{side}/") or path == by_field]
        fitted = [encoder.fitted(side) for encoder in (source, target)]
        ours, theirs = ([each.name for each in features] for features in fitted)
        if copied and ours != theirs:
            raise ValueError(
                f"{copied[0]!r} was learned on the {side} features {', '.join(ours) or 'none'} and the target has "
                f"{', '.join(theirs) or 'none'}: a copied kernel would read one as another. Name the same features in "
                "the same order, or choose what to copy with patterns=."
            )
        for one, other in zip(*fitted, strict=True) if copied else ():
            if _scale(one) != _scale(other):
                raise ValueError(
                    f"{copied[0]!r} was learned on the {side} feature {one.feature} and the target's is "
                    f"{other.feature}: a copied kernel would read one as the other. Name it in the schema as the "
                    "source does and encode with data.encode(..., like=source.encoder), or choose what to copy with "
                    "patterns=."
                )


def _scale(fitted: FittedFeature) -> object:
    """What a number's size depends on beside the statistics; labels are matched by name, however a cell lists them."""
    return "codes" if isinstance(fitted.feature, Categorical | Labels) else fitted.feature.scale


def _check_domains(source: Encoder, target: Encoder, copied: list[str]) -> None:
    """What belongs to one domain stands at the place of its number."""
    ours, theirs = (
        [each.vocabulary.ids.tolist() for each in encoder.item_features if each.name == DOMAIN and each.vocabulary]
        for encoder in (source, target)
    )
    of_domain = [path for path in copied if path == "user/specific" or path.startswith("classifier/")]
    if of_domain and ours != theirs:
        raise ValueError(
            f"{of_domain[0]!r} holds a part for each of the domains {', '.join(map(str, *ours))} in order, and the "
            f"target has {', '.join(map(str, *theirs))}: one domain's would be taken for another's. Encode the target "
            "with data.encode(..., like=source.encoder), or leave those leaves out by patterns=."
        )


_freeze = freeze  # `adapt` has a parameter of that name
