"""Several recommenders as one: their scores added by a gate, whose weights are given or found on held-out rows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _values
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Folding
from jaxrec.models import Mixture, Neighbours


def mix(parts: Sequence[Recommender], weight: np.ndarray | Sequence[Any], *, few: int = 5) -> Recommender:
    """A recommender whose score is the weighted sum of several recommenders' scores.

    Args:
      parts: trained on the same interactions with the same encoder. What others than the first read of users and items
        has to stand in its encoder, in the same numbers.
      weight: float ``[len(parts), 3]``: what each part's score is multiplied by for an item that was not trained, for
        one with fewer than ``few`` interactions, and for the others. Or float ``[len(parts), 3, 3]``, first by user:
        without any interaction, with fewer than ``few``, others; then by item. A part with weight 0 has no say.
      few: below which a user or item is little known, at least 1.

    Returns:
      A recommender of a ``models.Mixture``. New users and items are scored by each part in its own way. What is known
      of an item is what training met; of a user all that has been seen, so that interactions that ``coldstart.add``
      adds count, and a user's first ones move the user to the next weights.

    Raises:
      ValueError: there is no part, the parts are not of the same data, number it differently or read other features,
        weights are not finite or of another shape, or two parts fold interactions in differently.
    """
    parts = list(parts)
    weight = np.asarray(weight, np.float32)
    if not parts:
        raise ValueError("Expected at least one recommender to mix, got none.")
    first = parts[0]
    for other in parts[1:]:
        first.encoder.check(other.encoder)
        if len(other.seen) != len(first.seen) or other.num_trained != first.num_trained or other.link != first.link:
            raise ValueError(
                f"Expected recommenders of the same training data and link, got {first!r} and {other!r}. Train each "
                "on the same dataset, and mix them before anything is added."
            )
        for side in ("user_row", "item_row"):
            if not np.array_equal(*(getattr(each.encoder.features, side) for each in (first, other))):
                raise ValueError(
                    f"Expected recommenders whose {side.removesuffix('_row')}s have the same rows in their tables, got "
                    f"{first!r} and {other!r}. What coldstart.meta_learn gives knows no user (item) by its own row: "
                    "mix it with others of its kind."
                )
        if first.link != "rank" and not _values.same(first.encoder.target, other.encoder.target):
            raise ValueError(
                "Expected recommenders whose targets are scaled alike: scores in different units cannot be added. "
                "Train each on data of one encoder, or encode with like=."
            )
        differing = _read_otherwise(other, first)
        if differing:
            raise ValueError(
                f"Expected recommenders of one encoder: {first!r} stands first, so all parts are told what its encoder "
                f"says of users and items, and {other!r} was trained on other features ({', '.join(differing)}). Train "
                "each on data of one encoder; a part that reads features goes before one that reads none, and one with "
                "personal parameters before all others."
            )
    if weight.shape not in ((len(parts), 3), (len(parts), 3, 3)) or not np.isfinite(weight).all():
        raise ValueError(
            f"Expected finite weights of shape ({len(parts)}, 3): a row per recommender, for items that are cold, "
            f"little known and well known; or of shape ({len(parts)}, 3, 3), by users and by items. "
            f"Got {weight.tolist()}."
        )
    if weight.ndim == 3 and first.encoder.schema.user is None:
        raise ValueError("Expected users for a gate that looks at them. Name the user column in the schema.")
    if few < 1:
        raise ValueError(f"Expected few >= 1, got {few}.")
    foldings = {folding for part in parts for folding in _foldings(part)}
    if len(foldings) > 1:
        raise ValueError(
            f"Expected parts that fold interactions in alike, got {', '.join(sorted(map(str, foldings)))}. Give "
            "fit_als the same fold_user and fold_item; of a factorization of fit_als (Folding) and one of "
            "fit (None) mix only one, with models that read histories."
        )
    row = first.encoder.features.item_row
    size = max(first.encoder.sizes.item_rows, int(row.max()) + 1)
    bucket = np.zeros((size, 1), np.int32)
    known = np.flatnonzero(row)
    bucket[row[known], 0] = np.where(first.trained.item_count[known] < few, 1, 2)
    return first.replace(
        model=Mixture(parts=tuple(part.model for part in parts), item_rows=size, few=few if weight.ndim == 3 else 0),
        params={
            "parts": {str(number): part.params for number, part in enumerate(parts)},
            "gate": {"weight": jnp.asarray(weight), "bucket": jnp.asarray(bucket)},
        },
        folding=foldings.pop() if foldings else None,
        log=(),
    )


def _foldings(recommender: Recommender) -> set[Folding | None]:
    """By what a recommender, or each part of a mixture, folds interactions in; None is a softmax."""
    if recommender.parts:
        return {folding for part in recommender.parts for folding in _foldings(part)}
    return {recommender.folding} if recommender.folds else set()


def _read_otherwise(part: Recommender, first: Recommender) -> list[str]:
    """Names of the features that a part reads and the first one's encoder lacks or gives in other numbers."""
    if part.encoder is first.encoder:
        return []
    if part.parts:
        return sorted({name for each in part.parts for name in _read_otherwise(each, first)})
    ours = dict(jax.tree_util.tree_leaves_with_path(first.encoder.features))
    theirs = jax.tree_util.tree_leaves_with_path(part.encoder.features)
    differing = [path for path, values in theirs if not _values.same(ours.get(path), values)]
    read = _read(part) if differing else set()
    return [jax.tree_util.keystr(path).removeprefix(".") for path in differing if path in read]


def _read(part: Recommender) -> set[Any]:
    """Paths of the features that a part's scores come from, or the neighbours of items that are added."""
    model, features = part.model, part.encoder.features
    width = part.encoder.sizes.context
    batch = Batch(
        user=np.zeros(1, np.int32),
        item=np.zeros((1, 1), np.int32),
        history=np.zeros((1, part.pooled_history), np.int32) if part.pooled_history else None,
        context=np.zeros((1, width), np.float32) if width else None,
    )
    traced = jax.make_jaxpr(model.apply)(part.params, batch, features).jaxpr
    used = {id(each) for eqn in traced.eqns for each in eqn.invars}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(features)]
    given = traced.invars[-len(paths) :]
    found = {path for path, each in zip(paths, given, strict=True) if id(each) in used}
    if isinstance(model, Neighbours):
        codes = [("item_codes", name) for name in model.codes]
        for path in paths:
            field, *name = (getattr(step, "name", getattr(step, "key", None)) for step in path)
            if (field, *name) in codes or (field == "item_dense" and model.dense):
                found.add(path)
    return found
