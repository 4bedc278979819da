"""A gate over several models: their scores are added with weights by how much is known of an item and a user."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, Params
from jaxrec.data import Interactions
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    r"""Weighted sum of the scores of other models, gated by how much is known of the item, and maybe of the user.

    .. math:: s_{ui} = \sum_k g_{k, b(u), b(i)} \, s^{(k)}_{ui}

    :math:`b(i)` is 0 for an item that was not trained, 1 for one that training met at most a few times and 2 for the
    others (``coldstart.mix`` says how many are few). So a cold item can be scored by content, a warm one mostly by what
    was learned of it, and both on one scale. Where a part knows nothing of a user or item, its own answer for the
    unknown counts.

    With ``few`` the gate looks at the user too: :math:`b(u)` is 0 for an empty history, 1 for one of fewer than ``few``
    items and 2 for the others. The model then reads histories of at least ``few`` items, whatever its parts read, so
    that a user who touches something after the training is in the right bucket without any change of parameters.

    Parameters are ``parts/0/...``, ``parts/1/...``, the weights ``gate/weight`` float32 ``[parts, 3]``, with ``few``
    ``[parts, 3, 3]`` by user and item, and each item's ``gate/bucket`` int32 ``[item_rows, 1]``, by table row.

    Args:
      parts: the models. Each is given the latest items of a longer history, as many as it reads.
      item_rows: rows of the table of buckets, the unknown's row 0 included.
      few: below how many items a user is little known; 0 for a gate that does not look at users.

    References:
      Jacobs et al., Adaptive mixtures of local experts, Neural Computation 3(1), 1991 (here the gate is a table by
      counts); for cold start: Zhu et al., Heater, SIGIR 2020, mix within one network.
    """

    parts: tuple[Any, ...]
    item_rows: int
    few: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("Expected at least one part, got none.")
        if self.few < 0:
            raise ValueError(f"Expected few >= 0, got {self.few}. 0 is a gate that does not look at users.")

    @property
    def history(self) -> int:
        """The longest that a part or the gate reads."""
        return max(self.few, *(getattr(part, "history", 0) for part in self.parts))

    @property
    def columns(self) -> int:
        """As many items as every part can score at once."""
        return min(_columns(part) for part in self.parts)

    @property
    def context(self) -> int | None:
        """The widest that a part reads; None where no part reads any for certain and one does not say."""
        said = [width for part in self.parts if (width := _base.context_width(part)) is not None]
        return max(said) if any(said) or len(said) == len(self.parts) else None

    @property
    def derived(self) -> bool:
        """Whether any part is of no use with other data."""
        return any(getattr(part, "derived", False) for part in self.parts)

    @property
    def tables(self) -> dict[str, str]:
        of_parts = {
            f"parts/{number}/{path}": numbering
            for number, part in enumerate(self.parts)
            for path, numbering in part.tables.items()
        }
        return of_parts | {"gate/bucket": "item"}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        keys = jax.random.split(key, len(self.parts))
        return {
            "parts": {str(number): part.init(keys[number]) for number, part in enumerate(self.parts)},
            "gate": {
                "weight": jnp.ones((len(self.parts), *((3, 3) if self.few else (3,))), jnp.float32),
                "bucket": jnp.zeros((self.item_rows, 1), jnp.int32),
            },
        }

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = {
            f"{number}/{name}": Lookup(f"parts/{number}/{lookup.path}", lookup.rows)
            for number, part in enumerate(self.parts)
            for name, lookup in part.lookups(latest(part, batch), features).items()
        }
        for name, items in _base.item_fields(batch).items():
            found[f"gate/{name}"] = Lookup("gate/bucket", _base.take(features.item_row, items))
        return found

    def score(self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None) -> Scored:
        keys = [None] * len(self.parts) if key is None else jax.random.split(key, len(self.parts))
        total, penalty, warmup = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), 0
        users = self.user_buckets(batch)[:, None]
        items = [gathered[f"gate/{name}"][..., 0] for name in _base.item_fields(batch)]
        weights = self._gate(params, users, [each if each.ndim == 2 else each[None, :] for each in items])
        for number, part in enumerate(self.parts):
            prefix = f"{number}/"
            own = {name[len(prefix) :]: rows for name, rows in gathered.items() if name.startswith(prefix)}
            leaves = params.get("parts", {}).get(str(number), {})
            found = _base.scored(part.score(leaves, own, latest(part, batch), features, key=keys[number]))
            scores, penalty, warmup = found.scores, penalty + found.penalty, max(warmup, found.warmup)
            total = total + weights[number] * scores
        return Scored(total, penalty, warmup)

    apply = _base.apply

    def user_buckets(self, batch: Batch) -> Int[jax.Array, " batch"]:
        """How much is known of the batch's users: 0 for nothing, 1 for little, 2 for more; all 0 without ``few``."""
        if not self.few:
            return jnp.zeros(jax.tree.leaves(batch)[0].shape[:1], jnp.int32)
        count = (_base.history_of(batch) > 0).sum(axis=1, dtype=jnp.int32)
        return jnp.where(count == 0, 0, jnp.where(count < self.few, 1, 2)).astype(jnp.int32)

    def weights(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "parts buckets items"]:
        """What each part's scores of these items are multiplied by, for users of bucket 0, 1 and 2.

        Of a gate that does not look at users all are in bucket 0, and there is no other.
        """
        buckets = _base.rows_of(params, "gate/bucket", _base.take(features.item_row, items))[:, 0]
        return self._gate(params, jnp.arange(3 if self.few else 1, dtype=jnp.int32)[:, None], [buckets[None, :]])

    def _gate(
        self, params: Params, users: Int[jax.Array, "users 1"], items: list[Float[jax.Array, "_ _"]]
    ) -> Float[jax.Array, "parts users columns"]:
        """Weights of pairs by the buckets of users and of items; rows are 1 or as many as users."""
        weight = params["gate"]["weight"]
        cells = [3 * users + each.astype(jnp.int32) for each in items]
        found = _base.take(weight.reshape(len(weight), -1).T, jnp.concatenate(cells, axis=1))
        return found.transpose(2, 0, 1)

    def extend(
        self,
        params: Params,
        features: Features,
        seen: Interactions,
        *,
        users: Int[np.ndarray, " users"],
        items: Int[np.ndarray, " items"],
    ) -> tuple["Mixture", Params]:
        """With every part extended that can be; the others' parameters are passed on as they are."""
        parts, leaves = list(self.parts), dict(params["parts"])
        for number, part in enumerate(self.parts):
            if hasattr(part, "extend"):
                parts[number], leaves[str(number)] = part.extend(
                    leaves[str(number)], features, seen, users=users, items=items
                )
        return dataclasses.replace(self, parts=tuple(parts)), {**params, "parts": leaves}


def latest(part: Any, batch: Batch) -> Batch:
    """The batch as it is told to a part that reads shorter histories than the whole."""
    length = getattr(part, "history", 0)
    if batch.history is None or not 0 < length < batch.history.shape[1]:
        return batch
    history = _base.as_index(batch.history)
    first = jnp.maximum((history > 0).sum(axis=1, keepdims=True, dtype=jnp.int32) - length, 0)
    place = first + jnp.arange(length, dtype=jnp.int32)[None, :]
    return batch._replace(history=jnp.take_along_axis(history, place, axis=1))


def _columns(part: Any) -> int:
    return getattr(part, "columns", 2**24 if _base.factorises(part) else 512)
