"""Low-rank adapters on a trained recommender: added, merged into the base, and taken out again."""

import dataclasses
from typing import Any, NamedTuple

import jax

from jaxrec import _tree
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec.models import LoRA
from jaxrec.transfer._freeze import Frozen, freeze


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """What adapters ``adapt`` is to train in the place of the leaves themselves; see ``models.LoRA``.

    Args:
      patterns: of the leaves to adapt; by default all of which an adapter is smaller than the leaf.
      rank: of the adapters.
      alpha: their weight is ``alpha / rank``; by default 1.
    """

    patterns: _tree.Patterns = ()
    rank: int = 4
    alpha: float | None = None

    def on(self, model: Any) -> LoRA:
        """The model with these adapters."""
        return LoRA(base=model, paths=self.patterns, rank=self.rank, alpha=self.alpha)


class WithAdapters(NamedTuple):
    """A recommender with adapters, and its base, which is to stay as it is."""

    recommender: Recommender
    frozen: Frozen

    def __str__(self) -> str:
        leaves = _tree.flatten(self.recommender.params)
        trained = sum(leaf.size for path, leaf in leaves.items() if path not in self.frozen.leaves)
        total = sum(leaf.size for leaf in leaves.values()) - trained
        return f"{trained:,} trainable numbers, {trained / total:.1%} of the base's {total:,}"


def add_adapters(
    recommender: Recommender,
    patterns: _tree.Patterns = (),
    *,
    rank: int = 4,
    alpha: float | None = None,
    seed: int = 0,
) -> WithAdapters:
    """A recommender with low-rank adapters that change nothing yet.

    Train it by ``fit(model, train, params=params, freeze=frozen.leaves)`` with the model and parameters of the
    recommender that is returned.

    Args:
      recommender: of any model.
      patterns: of the leaves to adapt; by default all of which an adapter is smaller than the leaf.
      rank: of the adapters.
      alpha: their weight is ``alpha / rank``; by default 1.
      seed: of the factors that do not start at zero.

    Raises:
      ValueError: as ``models.LoRA``.
    """
    expect(recommender, Recommender, "recommender")
    model = LowRank(patterns=patterns, rank=rank, alpha=alpha).on(recommender.model)
    params = model.add(recommender.params, jax.random.key(seed))
    return WithAdapters(recommender.replace(model=model, params=params), freeze(params, model.base_paths))


def merge_adapters(recommender: Recommender) -> Recommender:
    """The recommender of the base's model that predicts the same (up to rounding), with nothing more to compute.

    Raises:
      ValueError: there are no adapters, or an adapted leaf holds integers.
    """
    model = _adapted(recommender, "recommender")
    return recommender.replace(model=model.base, params=model.merge(recommender.params))


def unmerge(merged: Recommender, adapted: Recommender) -> Recommender:
    """The inverse of ``merge_adapters``: ``merged`` with the adapters of ``adapted`` taken out and laid beside it.

    The base may so be given other adapters, or those of one target be trained further.

    Raises:
      ValueError: ``adapted`` has no adapters, or they are not for the model of ``merged``.
    """
    expect(merged, Recommender, "merged")
    model = _adapted(adapted, "adapted")
    if merged.model != model.base:
        raise ValueError(f"The adapters are for {model.base}, and were to be taken out of {merged.model}.")
    return merged.replace(model=model, params=model.unmerge(merged.params, adapted.params))


def _adapted(recommender: Recommender, name: str) -> LoRA:
    expect(recommender, Recommender, name)
    if not isinstance(recommender.model, LoRA):
        raise ValueError(
            f"Expected a {name} with adapters, from transfer.add_adapters or adapt(..., adapters=), got one of "
            f"{recommender.model}."
        )
    return recommender.model
