"""What features say of vectors: a ridge regression of one side's vectors on its features, alternated with them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxrec import _sharded
from jaxrec._exact import exact
from jaxrec._types import Array, Features, Params
from jaxrec.data import Dataset
from jaxrec.data._counting import counted
from jaxrec.models import TwoTower

_STEPS = 5  # of conjugate gradients in an epoch, which starts where the last one ended


class _Design(NamedTuple):
    """The features of one side's trained entities, in the order of their table rows from 1 on.

    All categories and labels share one numbering. An entity's labels of one feature are a row of unit length: with
    their mean an entity of many labels would have little to go by (docs/design.md).
    """

    dense: Array  # float32 [entities, width]
    entity: Array  # int32 [pairs]
    label: Array  # int32 [pairs]
    share: Array  # float32 [pairs]


class _Regression(NamedTuple):
    """Coefficients, by rows of ``_Design``."""

    bias: jax.Array  # [dim]
    dense: jax.Array  # [width, dim]
    labels: jax.Array  # [labels, dim]


class Priors:
    """Each side's regression on features and what it says of every table row."""

    def __init__(
        self,
        train: Dataset,
        dim: int,
        options: dict[str, jax.Array],
        l2: float,
        joint: tuple[str, ...],
        mesh: Mesh | None,
    ) -> None:
        self.model = TwoTower.for_data(train, dim=dim, hidden=(), code_dim=dim, id_dropout=0.0, pooling="sqrtn")
        self._mesh, self._l2, self._joint = mesh, jnp.float32(l2), joint
        rows = {"user": self.model.user_rows, "item": self.model.item_rows}
        self._design = {
            side: jax.tree.map(jnp.asarray, _design_of(self.model, train.features, side, size))
            for side, size in rows.items()
        }
        self._regression = {side: _nothing(self.model, side) for side in rows}
        self.tables: dict[str, jax.Array | None] = dict.fromkeys(rows)
        assert train.user is not None and train.item is not None
        met = slice(None) if train.weight is None else train.weight > 0
        counts = {
            "user": counted(train.user[met], len(train.features.user_row)),
            "item": counted(train.item[met], len(train.features.item_row)),
        }
        self._weight = {}
        for side, other in (("user", "item"), ("item", "user")):
            row = getattr(train.features, f"{side}_row")
            known = np.flatnonzero(counts[side])  # others have the vector zero, which their features know nothing of
            weight = np.zeros(rows[side], np.float32)
            # An error counts as much as the vector's own regularisation in the objective.
            unseen = float(options["unobserved"]) * np.count_nonzero(counts[other])
            weight[row[known]] = (counts[side][known] + unseen) ** float(options["exponent"])
            self._weight[side] = jnp.asarray(weight / weight[row[known]].mean() if len(known) else weight)

    def refit(self, side: str, table: jax.Array) -> None:
        self._regression[side] = _refitted(
            self._regression[side], self._design[side], table, self._weight[side], self._l2
        )
        if side not in self._joint:
            return
        prior = _priors(self._design[side], self._regression[side])
        self.tables[side] = prior if self._mesh is None else _sharded.placed(prior, _sharded.everywhere(self._mesh))

    def params(self, tables: dict[str, jax.Array]) -> Params:
        return {
            side: _tower(self.model, self._regression[side], table, self._design[side], side)
            for side, table in tables.items()
        }


def _design_of(model: TwoTower, features: Features, side: str, rows: int) -> _Design:
    """The trained entities' features. Rows that no entity has (spare capacity) come out empty."""
    row = np.asarray(getattr(features, f"{side}_row"))
    known = np.flatnonzero(row)
    count = rows - 1
    dense = getattr(features, f"{side}_dense")
    table = np.zeros((count, 0 if dense is None else dense.shape[1]), np.float32)
    if dense is not None:
        table[row[known] - 1] = np.asarray(dense)[known]
    entity, label, share, first = [], [], [], 0
    for name, size in getattr(model, f"{side}_codes"):
        codes = np.asarray(getattr(features, f"{side}_codes")[name])[known]
        of, column = np.nonzero(codes)
        entity.append(row[known[of]] - 1)
        label.append(first + codes[of, column])
        share.append(1.0 / np.sqrt((codes > 0).sum(axis=1)[of]))
        first += size
    return _Design(
        table,
        *(
            np.concatenate([*parts, np.zeros(0)]).astype(kind)
            for parts, kind in ((entity, np.int32), (label, np.int32), (share, np.float32))
        ),
    )


def _nothing(model: TwoTower, side: str) -> _Regression:
    """No coefficient yet: a prior of zero."""
    dense = getattr(model, f"{side}_dense")
    labels = sum(size for _, size in getattr(model, f"{side}_codes"))
    return _Regression(*(jnp.zeros((*shape, model.dim), jnp.float32) for shape in ((), (dense,), (labels,))))


def _predicted(design: _Design, by: _Regression) -> Float[jax.Array, "entities dim"]:
    parts = by.labels[design.label] * jnp.asarray(design.share)[:, None]
    labels = jax.ops.segment_sum(parts, design.entity, num_segments=design.dense.shape[0])
    return by.bias[None, :] + jnp.asarray(design.dense) @ by.dense + labels


@jax.jit
@exact
def _priors(design: _Design, by: _Regression) -> Float[jax.Array, "rows dim"]:
    """What the features say, by table row; zeros for the unknown's row."""
    return jnp.pad(_predicted(design, by), ((1, 0), (0, 0)))


@functools.partial(jax.jit, donate_argnums=(0,))
@exact
def _refitted(
    by: _Regression,
    design: _Design,
    table: Float[jax.Array, "rows dim"],
    weight: Float[jax.Array, " rows"],
    l2: Float[jax.Array, ""],
) -> _Regression:
    """Some steps from ``by`` towards the regression of the table's rows on the features.

    ``weight`` says how much each row's error counts, 0 for rows not in use; the intercept is not regularised.
    """
    weight = weight[1:, None]

    def transposed(errors: jax.Array) -> _Regression:
        labels = (
            jnp.zeros_like(by.labels).at[design.label].add(errors[design.entity] * jnp.asarray(design.share)[:, None])
        )
        return _Regression(errors.sum(axis=0), jnp.asarray(design.dense).T @ errors, labels)

    def normal(x: _Regression) -> _Regression:
        image = transposed(weight * _predicted(design, x))
        return _Regression(image.bias, image.dense + l2 * x.dense, image.labels + l2 * x.labels)

    right = transposed(weight * table[1:])
    return jax.scipy.sparse.linalg.cg(normal, right, x0=by, tol=1e-7, maxiter=_STEPS)[0]


@exact
def _tower(model: TwoTower, by: _Regression, table: Float[jax.Array, "rows dim"], design: _Design, side: str) -> Params:
    """The regression and what the vectors have beside it, as the parameters of one tower."""
    used = jnp.abs(table).sum(axis=1, keepdims=True) > 0
    params: dict[str, Any] = {"embedding": jnp.where(used, table - _priors(design, by), 0.0), "bias": by.bias}
    codes, dense = getattr(model, f"{side}_codes"), getattr(model, f"{side}_dense")
    if codes:
        ends = np.cumsum([0, *(size for _, size in codes)])
        params["features"] = {
            name: {"embedding": by.labels[ends[number] : ends[number + 1]]} for number, (name, _) in enumerate(codes)
        }
    if codes or dense:
        eyes = [jnp.eye(model.dim, dtype=jnp.float32) for _ in codes]
        params["mlp"] = {"0": {"kernel": jnp.concatenate([by.dense, *eyes])}}
    return params
