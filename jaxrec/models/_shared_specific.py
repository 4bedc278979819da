"""Users with a part that all domains share and a part for each: joint models of stacked domains."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int, Int32, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.losses import reverse_gradient
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored

DOMAIN = "domain"  # the feature by which transfer.stack says whose an item (or user) is
_OUT = -1e9  # the score of an item of another domain while training


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedSpecific:
    r"""Joint factorisation of several domains with shared users; data from ``transfer.stack``.

    .. math:: \hat y_{ui} = (s_u + p_{u,d(i)})^\top q_i

    with :math:`d(i)` the item's domain, :math:`s_u` what a user is everywhere and :math:`p_{u,d}` what only in one
    domain. :math:`p` starts at 0, so who is new to a domain is scored there by the shared part alone. Without
    ``specific`` it is collective matrix factorisation, whose domains are weighed by ``transfer.stack(weight=...)``.

    While training an item competes only with items of its own domain: pairs across domains are neither positive nor
    negative. For that the loss must compare scores or squash them (softmax, BPR, WARP, sigmoid cross-entropy), and draw
    enough negatives that some are of the domain. Two penalties may join it, means over the examples that count:

    - ``orthogonality`` times the squared cosine of :math:`s_u` and :math:`p_{u,d}`;
    - ``adversarial`` times the cross-entropy of a linear classifier that reads :math:`s_u` and tells the example's
      domain, its gradient being reversed on the way to :math:`s_u`: the classifier learns, and the shared part unlearns
      what gives the domain away.

    Args:
      user_rows: rows of the user tables, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      domains: rows of ``Features.item_codes["domain"]``: the domains and one more for the unknown, 0.
      dim: width of each part.
      specific: whether there is a part for each domain.
      orthogonality: weight of that penalty, not negative.
      adversarial: likewise.

    References:
      Singh and Gordon, Relational learning via collective matrix factorization, KDD 2008 (users shared; sampled or
      ranking losses instead of Bregman divergences over all cells). The decomposition: Bousmalis et al., Domain
      separation networks, NeurIPS 2016 (here of users' vectors, orthogonal user by user instead of over the batch).
      Gradient reversal: Ganin et al., Domain-adversarial training of neural networks, JMLR 17(59), 2016.
    """

    user_rows: int
    item_rows: int
    domains: int
    dim: int = 64
    specific: bool = True
    orthogonality: float = 0.0
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        _base.need_positive(dim=self.dim)
        if self.domains < 2:
            raise ValueError(f"Expected domains >= 2, one and the unknown, got {self.domains}.")
        for name in ("orthogonality", "adversarial"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Expected {name} >= 0, got {getattr(self, name)}. It is the weight of a penalty.")
        if self.orthogonality and not self.specific:
            raise ValueError("orthogonality= is between the shared and the specific part. Leave specific=True.")

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "SharedSpecific":
        """The model that fits a stacked dataset's or its encoder's sizes; ``options`` are the other arguments."""
        codes = dict(_base.sizes_of(data).item_codes)
        if DOMAIN not in codes:
            raise ValueError(
                f"The data has no item feature {DOMAIN!r}, which says whose an item is. Stack the domains first: "
                "transfer.stack, and give its frame of items to data.encode."
            )
        return cls(**{**options, **_base.sized(cls, data), "domains": codes[DOMAIN]})

    @property
    def tables(self) -> dict[str, str]:
        found = {"user/embedding": "user", "item/embedding": "item"}
        return found | ({"user/specific": "user"} if self.specific else {})

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        params = _base.id_tables(key, self.user_rows, self.item_rows, self.dim)
        if self.specific:
            params["user"]["specific"] = jnp.zeros((self.user_rows, self.domains * self.dim), jnp.float32)
        if self.adversarial:
            params["classifier"] = {
                "kernel": jnp.zeros((self.dim, self.domains), jnp.float32),
                "bias": jnp.zeros((self.domains,), jnp.float32),
            }
        return params

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = self._user_lookups(batch, features)
        for name, items in _base.item_fields(batch).items():
            found[name] = Lookup("item/embedding", _base.take(features.item_row, items))
        return found

    def _user_lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        rows = _base.take(features.user_row, _base.users_of(batch))
        found = {"user": Lookup("user/embedding", rows)}
        return found | ({"specific": Lookup("user/specific", rows)} if self.specific else {})

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"] | Scored:
        fields = _base.item_fields(batch)
        domain = {name: self._domain(items, features) for name, items in fields.items()}
        items = {name: self._of_items(gathered[name], domain[name]) for name in fields}
        scores = _base.pair_scores(self._of_users(gathered), items.get("item"), items.get("shared"))
        if key is None:
            return scores
        # In-batch positives stand in the columns of the whole batch, a row's own on the diagonal.
        own = domain["item"][:, :1] if "item" in fields else domain["shared"][: len(scores), None]
        columns = [jnp.broadcast_to(each, (len(scores), each.shape[-1])) for each in domain.values()]
        scores = jnp.where(jnp.concatenate(columns, axis=1) == own, scores, _OUT)
        return Scored(scores, self._penalty(params, gathered, own[:, 0], batch))

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch vector"]:
        return self._of_users(_base.gather(params, self._user_lookups(batch, features)))

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items vector"]:
        items = _base.as_index(items)
        vectors = _base.rows_of(params, "item/embedding", _base.take(features.item_row, items))
        return self._of_items(vectors, self._domain(items, features))

    def _domain(self, items: Int32[jax.Array, "*index"], features: Features) -> Int32[jax.Array, "*index"]:
        if DOMAIN not in features.item_codes:
            raise ValueError(f"The features lack the item code {DOMAIN!r}. Use those of the stacked domains' encoder.")
        return _base.take(features.item_codes[DOMAIN], items)[..., 0]

    def _of_users(self, gathered: Gathered) -> jax.Array:
        if not self.specific:
            return gathered["user"]
        return jnp.concatenate([gathered["user"], gathered["specific"]], axis=-1)

    def _of_items(self, vectors: Float[jax.Array, "*index dim"], domain: Int32[jax.Array, "*index"]) -> jax.Array:
        """With a copy in the place of the own domain, zeros in that of others."""
        if not self.specific:
            return vectors
        places = jax.nn.one_hot(domain, self.domains, dtype=vectors.dtype)
        copies = jnp.einsum("...k,...d->...kd", places, vectors)
        return jnp.concatenate([vectors, copies.reshape(*vectors.shape[:-1], -1)], axis=-1)

    def _penalty(
        self, params: Params, gathered: Gathered, domain: Int32[jax.Array, " batch"], batch: Batch
    ) -> Float[jax.Array, ""]:
        shared = gathered["user"]
        each = jnp.zeros(len(shared), jnp.float32)
        if self.orthogonality:
            parts = gathered["specific"].reshape(len(shared), self.domains, self.dim)
            own = jnp.take_along_axis(parts, domain[:, None, None], axis=1)[:, 0]
            squares = jnp.square(shared).sum(axis=1) * jnp.square(own).sum(axis=1)
            each += self.orthogonality * jnp.square((shared * own).sum(axis=1)) / jnp.maximum(squares, 1e-12)
        if self.adversarial:
            kernel, bias = (params["classifier"][name] for name in ("kernel", "bias"))
            logits = reverse_gradient(shared) @ kernel + bias[None, :]
            each += self.adversarial * optax.softmax_cross_entropy_with_integer_labels(logits, domain)
        if batch.weight is None:
            return each.mean()
        counts = (jnp.asarray(batch.weight) > 0).astype(jnp.float32)
        return (counts * each).sum() / jnp.maximum(counts.sum(), 1.0)
