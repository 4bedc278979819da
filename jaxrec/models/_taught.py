"""A model that is trained beside a teacher: what its scores should look like, for distillation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Key

from jaxrec import _tree, losses
from jaxrec._types import Batch, Features, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Scored

TEACHER = "teacher"
_TABLES = {f"{TEACHER}/user", f"{TEACHER}/item"}


def beside(student: Params, teacher: Mapping[Any, Any]) -> Params:
    """A student's parameters and a teacher's tables in one tree."""
    if TEACHER in student:
        raise ValueError(f"The student has parameters {TEACHER!r} of its own. Name that part of the model otherwise.")
    return {**student, TEACHER: {side: jnp.asarray(table) for side, table in teacher.items()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught:
    r"""A student with a teacher's vectors of users and items, which stay as they are.

    To the student's own loss it adds, with :math:`t` the teacher's scores of an example's columns and :math:`s` the
    student's, :math:`w \, \mathrm{KL}(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s))`, or where an example has one
    column (targets) :math:`w (t - s)^2`; means over the examples of the batch.

    Parameters are the student's under its own paths, which patterns of ``fit`` name, and ``teacher/user`` and
    ``teacher/item``: float32 ``[rows, dim]``, by table row.
    """

    student: Any
    user_rows: int
    item_rows: int
    dim: int
    weight: float
    temperature: float

    def __getattr__(self, name: str) -> Any:
        """What the student says of itself (``history``, ``link``), and its vectors if it has them."""
        student = self.__dict__.get("student")
        value = None if student is None or name.startswith("_") else getattr(student, name, None)
        if value is not None and name in ("user_vectors", "item_vectors"):
            return lambda params, *arguments: value(_tree.drop(params, _TABLES), *arguments)
        if value is None or callable(value):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value

    @property
    def tables(self) -> dict[str, str]:
        return {**self.student.tables, f"{TEACHER}/user": "user", f"{TEACHER}/item": "item"}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return self.student.unknown

    def init(self, key: Key[jax.Array, ""]) -> Params:
        tables = {"user": jnp.zeros((self.user_rows, self.dim)), "item": jnp.zeros((self.item_rows, self.dim))}
        return beside(self.student.init(key), tables)

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        found = dict(self.student.lookups(batch, features))
        users = _base.take(features.user_row, _base.users_of(batch))
        found[f"{TEACHER}/user"] = Lookup(f"{TEACHER}/user", users)
        for name, items in _base.item_fields(batch).items():
            found[f"{TEACHER}/{name}"] = Lookup(f"{TEACHER}/item", _base.take(features.item_row, items))
        return found

    def score(self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None) -> Scored:
        own = {name: rows for name, rows in gathered.items() if not name.startswith(f"{TEACHER}/")}
        found = _base.scored(self.student.score(_tree.drop(params, _TABLES), own, batch, features, key=key))
        theirs = [gathered.get(f"{TEACHER}/{name}") for name in ("item", "shared")]
        wanted = jax.lax.stop_gradient(_base.pair_scores(gathered[f"{TEACHER}/user"], *theirs))
        if wanted.shape != found.scores.shape:
            raise ValueError(
                f"Expected a student with a score for each of the batch's columns, {wanted.shape}, got "
                f"{found.scores.shape}. A model that is trained on all positions at once cannot be taught this way."
            )
        # A batch that is not full has padding among its columns, of which nobody has an opinion.
        padding = jnp.concatenate(
            [
                jnp.broadcast_to(_base.as_index(items) == 0, (wanted.shape[0], items.shape[-1]))
                for items in _base.item_fields(batch).values()
            ],
            axis=1,
        )
        if wanted.shape[1] == 1:
            distance = losses.mse(found.scores[:, 0], wanted[:, 0], weight=batch.weight)
        else:
            scores, wanted = (jnp.where(padding, -1e9, each) for each in (found.scores, wanted))
            distance = losses.distillation(scores, wanted, temperature=self.temperature, weight=batch.weight)
        return Scored(found.scores, found.penalty + self.weight * distance, found.warmup)

    apply = _base.apply
