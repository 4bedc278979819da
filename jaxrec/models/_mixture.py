"""A gate over several models: their scores are added with weights that depend on how much is known of an item."""

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
    r"""Weighted sum of the scores of other models, gated by how often training met the item.

    .. math:: s_{ui} = \sum_k g_{k, b(i)} \, s^{(k)}_{ui}

    :math:`b(i)` is 0 for an item that was not trained, 1 for one that training met at most a few times and 2 for the
    others (``coldstart.mix`` says how many are few). So a cold item can be scored by content, a warm one mostly by what
    was learned of it, and both on one scale. Where a part knows nothing of a user or item, its own answer for the
    unknown counts.

    Parameters are ``parts/0/...``, ``parts/1/...``, the weights ``gate/weight`` float32 ``[parts, 3]`` and each item's
    ``gate/bucket`` int32 ``[item_rows, 1]``, by table row.

    Args:
      parts: the models.
      item_rows: rows of the table of buckets, the unknown's row 0 included.

    References:
      Jacobs et al., Adaptive mixtures of local experts, Neural Computation 3(1), 1991 (here the gate is a table by
      counts); for cold start: Zhu et al., Heater, SIGIR 2020, mix within one network.
    """

    parts: tuple[Any, ...]
    item_rows: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("Expected at least one part, got none.")

    @property
    def history(self) -> int:
        """The longest that a part reads."""
        return max(getattr(part, "history", 0) for part in self.parts)

    @property
    def columns(self) -> int:
        """As many items as every part can score at once."""
        return min(_columns(part) for part in self.parts)

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
                "weight": jnp.ones((len(self.parts), 3), jnp.float32),
                "bucket": jnp.zeros((self.item_rows, 1), jnp.int32),
            },
        }

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = {
            f"{number}/{name}": Lookup(f"parts/{number}/{lookup.path}", lookup.rows)
            for number, part in enumerate(self.parts)
            for name, lookup in part.lookups(batch, features).items()
        }
        for name, items in _base.item_fields(batch).items():
            found[f"gate/{name}"] = Lookup("gate/bucket", _base.take(features.item_row, items))
        return found

    def score(self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None) -> Scored:
        keys = [None] * len(self.parts) if key is None else jax.random.split(key, len(self.parts))
        total, penalty, warmup = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), 0
        gates = [self._gate(params, gathered[f"gate/{name}"]) for name in _base.item_fields(batch)]
        for number, part in enumerate(self.parts):
            prefix = f"{number}/"
            own = {name[len(prefix) :]: rows for name, rows in gathered.items() if name.startswith(prefix)}
            leaves = params.get("parts", {}).get(str(number), {})
            found = _base.scored(part.score(leaves, own, batch, features, key=keys[number]))
            scores, penalty, warmup = found.scores, penalty + found.penalty, max(warmup, found.warmup)
            weights = [gate[number][None, :] if gate.ndim == 2 else gate[number] for gate in gates]
            whole = [jnp.broadcast_to(weight, (scores.shape[0], weight.shape[-1])) for weight in weights]
            total = total + jnp.concatenate(whole, axis=1) * scores
        return Scored(total, penalty, warmup)

    apply = _base.apply

    def _gate(self, params: Params, bucket: Float[jax.Array, "... 1"]) -> Float[jax.Array, "parts ..."]:
        return _base.take(params["gate"]["weight"].T, bucket[..., 0].astype(jnp.int32)).transpose(
            -1, *range(bucket.ndim - 1)
        )

    def weights(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "parts items"]:
        """What each part's scores of these items are multiplied by."""
        return self._gate(params, _base.rows_of(params, "gate/bucket", _base.take(features.item_row, items)))

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


def _columns(part: Any) -> int:
    factorises = hasattr(part, "user_vectors") and hasattr(part, "item_vectors")
    return getattr(part, "columns", 2**24 if factorises else 512)
