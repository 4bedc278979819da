"""Distillation: a student that knows items by their content learns from a teacher that knows interactions."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxrec._types import Array, Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored
from jaxrec.models._content import Codes, Content, init_mlp, mlp
from jaxrec.models._item_encoder import ItemEncoder, contrasted, is_warm, mean_of_rows, need_content


@dataclasses.dataclass(frozen=True, kw_only=True)
class ALDI:
    r"""Aligning distillation: warm items are scored by a teacher, cold ones by a student that was aligned with it.

    The teacher's score is :math:`t_{ui} = p_u^\top q_i`, from fixed vectors of a trained factorisation. The student's
    is :math:`s_{ui} = f_U(p_u)^\top f_I(x_i)`, from the teacher's user and the item's content. While training
    (``key`` given) the scores are the student's, which the loss supervises, and three terms join it. With a positive
    :math:`i`, negatives :math:`j` and :math:`D(a, b)` the divergence :math:`\mathrm{KL}(\sigma(a) \,\|\, \sigma(b))`
    of two Bernoulli distributions:

    .. math::
        \text{rating: } & |t_{ui} - s_{ui}| + \overline{|t_{uj} - s_{uj}|} \\
        \text{ranking: } & w_i \, \overline{D(t_{ui} - t_{uj},\; s_{ui} - s_{uj})} \\
        \text{identification: } & w_i \, D\bigl(q_i^\top q_i - \overline{q_i^\top q_j},\;
            f_I(x_i)^\top f_I(x_i) - \overline{f_I(x_i)^\top f_I(x_j)}\bigr)

    where a bar is the mean over the negatives, and :math:`w_i = \tanh(c_i / \text{qualify})` trusts the teacher more
    about items with more training interactions :math:`c_i`. Each term is zero where student and teacher agree.

    An unknown user has the teacher's vector of one.

    Args:
      user_rows: rows of the teacher's user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of the teacher's vectors, and of the student's.
      hidden: widths of the hidden layers of both perceptrons; ``()`` makes them linear.
      item_dense: width of ``Features.item_dense``.
      item_codes: name and number of rows of each array in ``Features.item_codes``.
      code_dim: width of the embedding of a category or label.
      rating: weight of the term, at least 0; likewise for the next two.
      ranking: see above.
      identification: see above.
      qualify: count at which a teacher's word has the weight tanh(1) = 0.76; 0 to trust all alike.

    References:
      Huang et al., Aligning distillation for cold-start item recommendation, SIGIR 2023 (cross-entropies less their
      smallest value, so that agreement is zero; any number of negatives; no batch normalisation).
    """

    user_rows: int
    item_rows: int
    dim: int = 64
    hidden: tuple[int, ...] = (200,)
    item_dense: int = 0
    item_codes: Codes = ()
    code_dim: int = 16
    rating: float = 1.0
    ranking: float = 1.0
    identification: float = 1.0
    qualify: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _base.need_positive(dim=self.dim)
        need_content(self._encoder.content, "ALDI")
        for name in ("rating", "ranking", "identification", "qualify"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Expected {name} >= 0, got {getattr(self, name)}.")

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "ALDI":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def _encoder(self) -> ItemEncoder:
        content = Content("item", self.item_dense, self.item_codes, self.code_dim)
        return ItemEncoder(content, self.hidden, self.dim, jnp.tanh)

    @property
    def tables(self) -> dict[str, str]:
        backbone = {"backbone/user": "user", "backbone/item": "item", "backbone/count": "item"}
        return backbone | self._encoder.tables

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_user, key_item, key_content, key_tower = jax.random.split(key, 4)
        scale = self.dim**-0.5
        backbone = {
            "user": _base.embedding(key_user, self.user_rows, self.dim, scale),
            "item": _base.embedding(key_item, self.item_rows, self.dim, scale),
            "count": jnp.zeros((self.item_rows, 1), jnp.float32),
        }
        return {
            "backbone": backbone,
            "item": self._encoder.init(key_content, scale),
            "user": {"mlp": init_mlp(key_tower, (self.dim, *self.hidden, self.dim), 1.0)},
        }

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = {"user": Lookup("backbone/user", _base.take(features.user_row, _base.users_of(batch)))}
        for name, items in _base.item_fields(batch).items():
            rows = _base.take(features.item_row, items)
            found |= {name: Lookup("backbone/item", rows), f"{name}_count": Lookup("backbone/count", rows)}
            found |= self._encoder.lookups(name, items, features)
        return found

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"] | Scored:
        fields = _base.item_fields(batch)
        contents = {
            name: self._encoder.encode(params["item"], gathered, name, items, features)
            for name, items in fields.items()
        }
        user = self._student_user(params, gathered["user"])
        student = _base.pair_scores(user, contents.get("item"), contents.get("shared"))
        teacher = _base.pair_scores(gathered["user"], gathered.get("item"), gathered.get("shared"))
        items = _columns(fields, student.shape[0])
        if key is None:
            return jnp.where(is_warm(items, features)[..., 0], teacher, student)
        return Scored(student, self._terms(gathered, contents, teacher, student, items, batch))

    apply = _base.apply

    def user_vectors(self, params: Params, batch: Batch, features: Features) -> Float[jax.Array, "batch twice"]:
        rows = _base.take(features.user_row, _base.users_of(batch))
        teacher = _base.rows_of(params, "backbone/user", rows)
        return jnp.concatenate([teacher, self._student_user(params, teacher)], axis=1)

    def item_vectors(
        self, params: Params, items: Int[Array, " items"], features: Features
    ) -> Float[jax.Array, "items twice"]:
        items = _base.as_index(items)
        gathered = _base.gather(params, self._encoder.lookups("item", items, features))
        student = self._encoder.encode(params["item"], gathered, "item", items, features)
        teacher = _base.rows_of(params, "backbone/item", _base.take(features.item_row, items))
        warm = is_warm(items, features)
        return jnp.concatenate([jnp.where(warm, teacher, 0.0), jnp.where(warm, 0.0, student)], axis=1)

    def _student_user(self, params: Params, teacher: Float[jax.Array, "batch dim"]) -> Float[jax.Array, "batch dim"]:
        return mlp(params["user"]["mlp"], teacher, jnp.tanh)

    def _terms(
        self,
        gathered: Gathered,
        contents: dict[str, jax.Array],
        teacher: Float[jax.Array, "batch columns"],
        student: Float[jax.Array, "batch columns"],
        items: Int[jax.Array, "batch columns"],
        batch: Batch,
    ) -> jax.Array:
        diagonal = "item" not in contents
        rows = student.shape[0]
        t_positive, weight = contrasted(teacher, items, diagonal)
        s_positive, _ = contrasted(student, items, diagonal)
        rating = jnp.abs(t_positive - s_positive)[:, 0] + (weight * jnp.abs(teacher - student)).sum(axis=1)
        ranking = (weight * _divergence(t_positive - teacher, s_positive - student)).sum(axis=1)

        def of_positives(values: dict[str, jax.Array], suffix: str = "") -> jax.Array:
            return values["shared" + suffix][:rows] if diagonal else values["item" + suffix][:, 0]

        def identified(vectors: dict[str, jax.Array]) -> jax.Array:
            """How much better an item's vector matches itself than the negatives."""
            positive = of_positives(vectors)
            alike = _base.pair_scores(positive, vectors.get("item"), vectors.get("shared"))
            return jnp.square(positive).sum(axis=1) - (weight * alike).sum(axis=1)

        identification = _divergence(identified(gathered), identified(contents))
        trust = jnp.ones(rows, jnp.float32)
        if self.qualify:
            trust = jnp.tanh(of_positives(gathered, "_count")[:, 0] / self.qualify)
        total = self.rating * rating + trust * (self.ranking * ranking + self.identification * identification)
        return mean_of_rows(total, batch)


def _columns(fields: dict[str, jax.Array], rows: int) -> Int[jax.Array, "batch columns"]:
    """Entity indices of all columns that are scored."""
    parts = [
        items if items.ndim > 1 else jnp.broadcast_to(items[None, :], (rows, items.shape[0]))
        for items in fields.values()
    ]
    return jnp.concatenate(parts, axis=1)


def _divergence(teacher: Float[jax.Array, "*any"], student: Float[jax.Array, "*any"]) -> Float[jax.Array, "*any"]:
    """Of two Bernoulli distributions given by their logits."""
    sigmoid, softplus = jax.nn.sigmoid(teacher), jax.nn.softplus
    return softplus(student) - softplus(teacher) + sigmoid * (teacher - student)
