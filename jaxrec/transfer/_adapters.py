"""Adapters on a trained recommender: added, merged into the base, and taken out again."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from jaxrec import _tree
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec.models import Bottleneck as _Bottleneck
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

    _freezes: ClassVar[str] = "*"  # beside them, unless adapt is told otherwise

    def on(self, model: Any) -> LoRA:
        """The model with these adapters."""
        return LoRA(base=model, paths=self.patterns, rank=self.rank, alpha=self.alpha)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """A narrow perceptron behind tables in the place of low-rank adapters; see ``models.Bottleneck``.

    It learns nothing of single rows. ``adapt`` so freezes what was copied, and trains the rows and leaves that no
    source has beside it.

    Args:
      patterns: of the tables to adapt; by default all that are wider than ``width`` and larger than their adapter.
      width: of the perceptron's hidden layer.
    """

    patterns: _tree.Patterns = ()
    width: int = 8

    _freezes: ClassVar[str] = "copied"

    def on(self, model: Any) -> _Bottleneck:
        """The model with these adapters."""
        return _Bottleneck(base=model, paths=self.patterns, width=self.width)


Adapters = LowRank | Bottleneck


class WithAdapters(NamedTuple):
    """A recommender with adapters, and its base, which is to stay as it is."""

    recommender: Recommender
    frozen: Frozen

    def __str__(self) -> str:
        leaves = _tree.flatten(self.recommender.params)
        trained = sum(leaf.size for path, leaf in leaves.items() if path not in self.frozen.leaves)
        total = sum(leaf.size for leaf in leaves.values()) - trained
        return f"{trained:,} trainable numbers, {trained / total:.1%} of the base's {total:,}"


def add_adapters(recommender: Recommender, adapters: Adapters | None = None, *, seed: int = 0) -> WithAdapters:
    """A recommender with adapters that change nothing yet.

    Train it by ``fit(model, train, params=params, freeze=frozen.leaves)`` with the model and parameters of the
    recommender that is returned.

    Args:
      recommender: of any model.
      adapters: which; by default ``LowRank()``.
      seed: of the factors that do not start at zero.

    Raises:
      TypeError: ``adapters`` is neither.
      ValueError: as ``models.LoRA`` and ``models.Bottleneck``.
    """
    expect(recommender, Recommender, "recommender")
    adapters = LowRank() if adapters is None else adapters
    if not isinstance(adapters, Adapters):
        raise TypeError(
            f"Expected transfer.LowRank(...) or transfer.Bottleneck(...) for adapters, got {type(adapters).__name__}. "
            "Patterns go inside: LowRank(patterns=...)."
        )
    model = adapters.on(recommender.model)
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
      ValueError: ``adapted`` has no adapters of low rank (a perceptron's inverse is not to be had), or they are not for
        the model of ``merged``.
    """
    expect(merged, Recommender, "merged")
    model = _adapted(adapted, "adapted")
    if not isinstance(model, LoRA):
        raise ValueError(
            "Only adapters of low rank can be taken out again, for what passed a bottleneck cannot be undone. Keep the "
            "recommender that still has them."
        )
    if merged.model != model.base:
        raise ValueError(f"The adapters are for {model.base}, and were to be taken out of {merged.model}.")
    return merged.replace(model=model, params=model.unmerge(merged.params, adapted.params))


def _adapted(recommender: Recommender, name: str) -> LoRA | _Bottleneck:
    expect(recommender, Recommender, name)
    if not isinstance(recommender.model, LoRA | _Bottleneck):
        raise ValueError(
            f"Expected a {name} with adapters, from transfer.add_adapters or adapt(..., adapters=), got one of "
            f"{recommender.model}."
        )
    return recommender.model
