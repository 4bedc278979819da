"""Nearest neighbours: an item is scored by how similar it is to what the user touched."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Key

from jaxrec import _nearest
from jaxrec._types import Array, Batch, Features, Params
from jaxrec.data import Interactions
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    r"""Sum of the similarities of an item to those that the user touched, over the item's nearest neighbours.

    .. math:: s_{ui} = \sum_{j \in N(i) \cap H_u} c_{ij} \Big/ \Big(\sum_{j \in N(i)} c_{ij}\Big)^\nu

    :math:`N(i)` are the trained items nearest to :math:`i`, never :math:`i` itself, :math:`H_u` is the user's history
    (an item counts once) and :math:`\nu` is ``normalise``. The user's id is not read, so somebody new is served from
    interactions alone. Parameters lie by *entity index*: ``item/neighbours`` int32 ``[items, neighbours]``, 0 behind
    where there are fewer, and ``item/similarity`` float32, positive where there is a neighbour. They are counted by
    ``train.fit_item_knn`` and ``train.fit_content_knn``, not trained; an item without neighbours, a user without
    history and the unknown item score 0 (``coldstart.or_popular`` gives such a user the most popular items).

    Args:
      items: entities of the catalogue, the unknown's index 0 and spare capacity included.
      history: longest history read; of a longer one the latest.
      neighbours: of each item.
      normalise: 0 for the plain sum, 1 for the weighted share of the neighbours that the user touched.
      dense: similarity by content: parts of ``Features.item_dense``, first column and the one behind the last.
      codes: likewise: names in ``Features.item_codes``. Without either, similarity is by the users in common.
      similarity: of two items by their users, ``"cosine"`` or ``"jaccard"``.
      shrink: of similarity by users.
      modalities: of each part in ``dense`` the column of ``Features.item_present`` that says which items have it; of
        the others it is no content. None given: every item has all of them.

    References:
      Sarwar et al., Item-based collaborative filtering recommendation algorithms, WWW 2001 (a candidate looks for its
      own neighbours among the user's items); the plain sum as in Deshpande and Karypis, Item-based top-N recommendation
      algorithms, ACM TOIS 22(1), 2004.
    """

    items: int
    history: int
    neighbours: int = 100
    normalise: float = 0.0
    dense: tuple[tuple[int, int], ...] = ()
    codes: tuple[str, ...] = ()
    similarity: _nearest.Similarity = "cosine"
    shrink: float = 0.0
    modalities: tuple[int, ...] = ()

    context = 0  # not a field: of the class

    def __post_init__(self) -> None:
        for name in ("items", "history", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} >= 1, got {getattr(self, name)}.")
        for name in ("normalise", "shrink"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"Expected {name} >= 0, got {getattr(self, name)}.")
        if self.similarity not in ("cosine", "jaccard"):
            raise ValueError(f"Expected similarity 'cosine' or 'jaccard', got {self.similarity!r}.")
        if self.modalities and len(self.modalities) != len(self.dense):
            raise ValueError(f"Expected a modality for each of {len(self.dense)} dense parts, got {self.modalities}.")

    @property
    def tables(self) -> dict[str, str]:
        return {}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "zero"

    @property
    def derived(self) -> bool:
        """Parameters belong to the data that they were counted in."""
        return True

    @property
    def columns(self) -> int:
        """Items to be scored at once: but for their scores memory does not grow with them."""
        return 2**24

    def init(self, key: Key[jax.Array, ""]) -> Params:
        shape = (self.items, self.neighbours)
        return {"item": {"neighbours": jnp.zeros(shape, jnp.int32), "similarity": jnp.zeros(shape, jnp.float32)}}

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        return {}

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        entities = params["item"]["neighbours"].shape[0]
        history = _base.safe_index(_base.history_of(batch), entities)
        fields, parts = _base.item_fields(batch), []
        if "item" in fields:
            parts.append(self._own(params, fields["item"], history))
        if "shared" in fields:
            parts.append(self._shared(params, fields["shared"], history))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    apply = _base.apply

    def _weights(self, params: Params, items: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Neighbours of items, and what each adds to the score."""
        neighbours, similarity = self.similar(params, items)
        similarity = jnp.where(neighbours > 0, _base.wide(similarity), 0.0)
        if self.normalise:
            total = similarity.sum(axis=-1, keepdims=True)
            similarity = similarity * jnp.where(total > 0, total, 1.0) ** -self.normalise
        return neighbours, similarity

    def _own(
        self, params: Params, items: Int32[jax.Array, "batch own"], history: Int32[jax.Array, "batch length"]
    ) -> Float[jax.Array, "batch own"]:
        neighbours, weights = self._weights(params, items)
        touched = _base.among(neighbours.reshape(items.shape[0], -1), history).reshape(neighbours.shape)
        return jnp.where(touched, weights, 0.0).sum(axis=-1)

    def _shared(
        self, params: Params, items: Int32[jax.Array, " shared"], history: Int32[jax.Array, "batch length"]
    ) -> Float[jax.Array, "batch shared"]:
        touched = _base.multi_hot(history, params["item"]["neighbours"].shape[0])

        def of_item(item: jax.Array) -> jax.Array:
            neighbours, weights = self._weights(params, item)
            return weights @ touched[neighbours]

        def score(item: jax.Array) -> jax.Array:
            return jax.lax.cond(item > 0, of_item, lambda _: jnp.zeros(touched.shape[1], jnp.float32), item)

        # An item at a time, so that nothing is users x items x neighbours, and padding costs nothing.
        return jax.lax.map(score, items).T

    def similar(
        self, params: Params, items: Int[Array, "..."]
    ) -> tuple[Int32[jax.Array, "... k"], Float[jax.Array, "... k"]]:
        """The kept neighbours of items and their similarity, best first; 0 where there is none."""
        leaves = params["item"]
        return _base.take(leaves["neighbours"], items), _base.take(leaves["similarity"], items)

    def find(self, features: Features, seen: Interactions, items: Int[np.ndarray, " items"]) -> Params:
        """Parameters of some items alone ``[len(items), neighbours]``, as fitting on these interactions finds them."""
        if self.dense or self.codes:
            parts: dict[str, Any] = {"dense": self.dense, "codes": self.codes, "modalities": self.modalities}
            found = _nearest.by_content(features, items, k=self.neighbours, **parts)
        else:
            found = _nearest.by_interactions(
                features, seen, items, k=self.neighbours, similarity=self.similarity, shrink=self.shrink
            )
        return {"item": {name: jnp.asarray(values) for name, values in found._asdict().items()}}

    def extend(
        self,
        params: Params,
        features: Features,
        seen: Interactions,
        *,
        users: Int[np.ndarray, " users"],
        items: Int[np.ndarray, " items"],
    ) -> tuple["Neighbours", Params]:
        """With neighbours for new items, found as the trained ones' were, whose own lists stay."""
        if not (self.dense or self.codes):
            items = items[features.item_row[items] == 0]
        model = dataclasses.replace(self, items=max(self.items, len(features.item_row)))
        if model == self and not len(items):
            return self, params
        new = self.find(features, seen, items)

        def grown(old: Float32[Array, "..."] | Int32[Array, "..."], rows: jax.Array) -> jax.Array:
            return jnp.pad(old, ((0, model.items - old.shape[0]), (0, 0))).at[items].set(rows)

        return model, {"item": {name: grown(leaf, new["item"][name]) for name, leaf in params["item"].items()}}
