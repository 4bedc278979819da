"""Several recommenders as one: their scores added by a gate, whose weights are given or found on held-out rows."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec._recommender import Recommender
from jaxrec._types import Folding
from jaxrec.models import Mixture


def mix(parts: Sequence[Recommender], weight: np.ndarray | Sequence[Any], *, few: int = 5) -> Recommender:
    """A recommender whose score is the weighted sum of several recommenders' scores.

    Args:
      parts: trained on the same interactions with the same encoder.
      weight: float ``[len(parts), 3]``: what each part's score is multiplied by for an item that was not trained, for
        one with fewer than ``few`` interactions, and for the others. Or float ``[len(parts), 3, 3]``, first by user:
        without any interaction, with fewer than ``few``, others; then by item. A part with weight 0 has no say.
      few: below which a user or item is little known, at least 1.

    Returns:
      A recommender of a ``models.Mixture``. New users and items are scored by each part in its own way. What is known
      of an item is what training met; of a user all that has been seen, so that interactions that ``coldstart.add``
      adds count, and a user's first ones move the user to the next weights.

    Raises:
      ValueError: there is no part, the parts are not of the same data or number it differently, weights are not finite
        or of another shape, or two parts fold interactions in differently.
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
