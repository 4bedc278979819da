"""Training in phases: another part of the tree is frozen in each, and what stays trainable goes on as it was."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Bool

from jaxrec import _sharded, _tree
from jaxrec._types import Batch, Features
from jaxrec.models import Model
from jaxrec.optim import Optimizer
from jaxrec.train._step import TrainState, init_state


class Phases:
    """Which leaves, and of which leaves some rows, are frozen in which epoch."""

    def __init__(
        self,
        model: Model,
        freeze: _tree.Patterns,
        rows: Iterable[str],
        unfreeze: Mapping[int, _tree.Patterns] | None,
        epochs: int,
    ) -> None:
        self._freeze, self._since, self._rows_since = freeze, {}, {}
        if not unfreeze:
            return
        if min(unfreeze) < 1 or max(unfreeze) > epochs:
            raise ValueError(
                f"Expected unfreeze to name epochs in 1 .. {epochs}, got {min(unfreeze)} .. {max(unfreeze)}. Train for "
                "more epochs, or begin earlier."
            )
        paths = tuple(_tree.flatten(_tree.shapes(model)))
        frozen, held = _tree.match(paths, freeze), set(rows)
        for epoch, patterns in sorted(unfreeze.items()):
            named = set(_tree.match(paths, patterns))
            lifted = named & set(frozen)
            thawed = named & held - lifted
            if not lifted and not thawed:
                still = ", ".join([*frozen, *(f"rows of {path}" for path in sorted(held))]) or "nothing"
                raise ValueError(
                    f"Nothing that {patterns!r} names is frozen in epoch {epoch}, only {still}. Name it in freeze=, or "
                    "leave it out of unfreeze=."
                )
            self._since |= dict.fromkeys(lifted, epoch)
            self._rows_since |= dict.fromkeys(thawed, epoch)
            frozen, held = tuple(path for path in frozen if path not in lifted), held - thawed
        self._freeze = frozen

    def frozen(self, epoch: int) -> _tree.Patterns:
        """Patterns of the leaves that do not move in this epoch."""
        waiting = self.waiting(epoch)
        return (*self._freeze, *waiting) if waiting else self._freeze

    def waiting(self, epoch: int) -> tuple[str, ...]:
        """Leaves that do not move yet."""
        return tuple(path for path, since in self._since.items() if since > epoch)

    def holds_rows(self, path: str, epoch: int) -> bool:
        """Whether the rows of this leaf that are named do not move in this epoch while others do."""
        return path not in self.waiting(epoch) and self._rows_since.get(path, epoch + 1) > epoch

    def begins(self, epoch: int) -> bool:
        """Whether other parameters are trained in this epoch than in the one before."""
        return epoch in self.later

    def more(self, epoch: int) -> bool:
        """Whether another phase follows."""
        return any(since > epoch for since in self.later)

    @property
    def later(self) -> list[int]:
        """Epochs with which further phases begin."""
        return sorted({*self._since.values(), *self._rows_since.values()} - {1})


def refreeze(
    state: TrainState,
    model: Model,
    optimizer: Optimizer,
    batch: Batch,
    features: Features,
    *,
    freeze: _tree.Patterns = (),
    frozen_rows: dict[str, Bool[jax.Array, " rows"]] | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state with another part of the tree frozen, for gradual unfreezing.

    Leaves that stay trainable keep their part of the optimiser's state, and so do step counts and whatever else does
    not belong to a leaf (Adam's bias correction of a leaf that joins late is therefore over already). Leaves that join
    start with a fresh one. ``train_step`` compiles anew, once for each set of trainable leaves.

    Args:
      state: as it is now; consumed as by ``init_state``.
      model: as for ``init_state``, likewise all other arguments.
      optimizer: the one that the state was made with.
      batch: see ``model``.
      features: see ``model``.
      freeze: patterns of leaves that do not move from now on.
      frozen_rows: likewise, rows.
      mesh: the one that the state was made with.

    Raises:
      ValueError: as ``init_state``.

    References:
      Howard and Ruder, Universal language model fine-tuning for text classification, ACL 2018 (gradual unfreezing).
    """
    params = _tree.merge(state.params, state.frozen)
    if mesh is not None:
        params = _sharded.whole(model, params)
    new = init_state(
        model, params, optimizer, batch, features, key=state.key, freeze=freeze, frozen_rows=frozen_rows, mesh=mesh
    )
    return new._replace(opt_state=_carried(state.opt_state, new.opt_state), step=state.step)


def _carried(old: Any, new: Any) -> Any:
    """``new`` with the values of ``old`` wherever both have a leaf in the same place."""
    known = dict(jax.tree_util.tree_flatten_with_path(old)[0])

    def take(path: Any, leaf: Any) -> Any:
        kept = known.get(path)
        return leaf if kept is None or kept.shape != leaf.shape else kept

    return jax.tree_util.tree_map_with_path(take, new)
