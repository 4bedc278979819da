"""Neural collaborative filtering: a weighted inner product beside a perceptron of user and item embeddings."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxrec import _tree
from jaxrec._types import Batch, Features, HasSizes, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup
from jaxrec.models._content import init_mlp, pair_mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuMF:
    r"""Neural matrix factorization: two branches, each with embeddings of its own, added by one output layer.

    .. math::
        s_{ui} = b + h_G^\top (p_u \odot q_i) + h_M^\top \phi_L(\dots \phi_1([p'_u, q'_i])), \quad
        \phi_l(x) = \mathrm{relu}(W_l^\top x + b_l)

    The first branch is generalised matrix factorization (GMF), the second a perceptron (MLP). A width of 0 leaves a
    branch out, and such a part can be trained first: see ``fuse``. An unknown user or item is scored with the mean of
    the trained rows.

    The perceptron's first layer is the sum of a user half and an item half, :math:`W_1^\top [p', q'] = U^\top p' +
    V^\top q'`. Each half is computed once per user and once per item of the batch, not once per pair.

    Args:
      user_rows: rows of each user table, the unknown's row 0 and spare capacity included.
      item_rows: likewise for items.
      dim: width of the embeddings of the GMF branch; 0 for the perceptron alone.
      mlp_dim: width of each embedding of the MLP branch; 0 for GMF alone.
      hidden: widths of the perceptron's hidden layers; ``()`` makes it linear.
      link: ``"sigmoid"`` for interactions (fit with sigmoid cross-entropy and sampled negatives) or ``"identity"``
        for ratings (fit with MSE). ``apply`` returns the score before the link.

    Examples:
      >>> model = NeuMF(user_rows=3, item_rows=4, dim=2, mlp_dim=5, hidden=(8,))
      >>> params = model.init(jax.random.key(0))
      >>> params["item"]["gmf"]["embedding"].shape, params["mlp"]["0"]["kernel"].shape
      ((4, 2), (10, 8))

    References:
      He et al., Neural collaborative filtering, WWW 2017 (NeuMF; the output layer has a bias; :math:`h_G` starts at 1,
      where GMF is matrix factorization).
    """

    user_rows: int
    item_rows: int
    dim: int = 32
    mlp_dim: int = 32
    hidden: tuple[int, ...] = (64, 32, 16)
    link: Literal["identity", "sigmoid"] = "sigmoid"

    context = 0  # not a field: of the class

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.link not in ("identity", "sigmoid"):
            raise ValueError(f"Expected link 'identity' or 'sigmoid', got {self.link!r}.")
        if min(self.dim, self.mlp_dim) < 0 or not self.dim + self.mlp_dim:
            raise ValueError(
                f"Expected dim and mlp_dim >= 0, one of them positive, got dim={self.dim}, mlp_dim={self.mlp_dim}. A "
                "width of 0 leaves its branch out."
            )

    @classmethod
    def for_data(cls, data: HasSizes, **options: Any) -> "NeuMF":
        """The model that fits a dataset's or encoder's sizes; ``options`` are the other arguments."""
        return cls(**_base.sized(cls, data), **options)

    @property
    def _widths(self) -> dict[str, int]:
        """Of the embeddings of each branch that is there."""
        return {name: width for name, width in (("gmf", self.dim), ("mlp", self.mlp_dim)) if width}

    @property
    def tables(self) -> dict[str, str]:
        return {f"{side}/{branch}/embedding": side for side in ("user", "item") for branch in self._widths}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return "mean"

    def init(self, key: Key[jax.Array, ""]) -> Params:
        key_mlp, *keys = jax.random.split(key, 5)
        params: Params = {"user": {}, "item": {}, "bias": jnp.zeros((), jnp.float32)}
        for number, (side, rows) in enumerate((("user", self.user_rows), ("item", self.item_rows))):
            for key_table, (branch, width) in zip(keys[2 * number :], self._widths.items(), strict=False):
                table = _base.embedding(key_table, rows, width, width**-0.5)
                params[side][branch] = {"embedding": table}
        if self.dim:
            params["gmf"] = {"kernel": jnp.ones((self.dim,), jnp.float32)}
        if self.mlp_dim:
            params["mlp"] = init_mlp(key_mlp, (2 * self.mlp_dim, *self.hidden, 1), 1.0)
        return params

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        rows = {"user": _base.take(features.user_row, _base.users_of(batch))}
        for name, items in _base.item_fields(batch).items():
            rows[name] = _base.take(features.item_row, items)
        return {
            f"{name}/{branch}": Lookup(f"{'user' if name == 'user' else 'item'}/{branch}/embedding", of_side)
            for name, of_side in rows.items()
            for branch in self._widths
        }

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"]:
        total = params["bias"].reshape(1, 1)
        if self.dim:
            user = gathered["user/gmf"] * params["gmf"]["kernel"][None, :]
            total = total + _base.pair_scores(user, gathered.get("item/gmf"), gathered.get("shared/gmf"))
        if self.mlp_dim:
            fields = [name for name in ("item/mlp", "shared/mlp") if name in gathered]
            parts = [pair_mlp(params["mlp"], gathered["user/mlp"], gathered[name]) for name in fields]
            total = total + jnp.concatenate(parts, axis=1)
        return total

    apply = _base.apply

    def fuse(self, gmf: Params, mlp: Params, *, alpha: float = 0.5) -> Params:
        r"""Parameters to start from, put together of a trained GMF and a trained perceptron.

        .. math:: h = [\alpha h_G, (1 - \alpha) h_M], \quad b = \alpha b_G + (1 - \alpha) b_M

        so that the score is the mean of the two parts' scores, weighted by ``alpha``.

        Args:
          gmf: parameters of the model with ``mlp_dim=0``.
          mlp: parameters of the model with ``dim=0``.
          alpha: weight of GMF, in [0, 1].

        Returns:
          The whole tree; pass it to ``fit(..., params=)``.

        Raises:
          ValueError: ``alpha`` is out of range, or parameters are not those of the part.

        References:
          He et al., Neural collaborative filtering, WWW 2017, section 3.4.1.
        """
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"Expected alpha in [0, 1], got {alpha}. It is the weight of GMF in a mean.")
        parts = []
        for name, change, given, weight in (
            ("gmf", {"mlp_dim": 0}, gmf, alpha),
            ("mlp", {"dim": 0}, mlp, 1.0 - alpha),
        ):
            part = dataclasses.replace(self, **change)
            shapes = {path: leaf.shape for path, leaf in _tree.flatten(given).items()}
            expected = _tree.shapes(part)
            if shapes != {path: leaf.shape for path, leaf in _tree.flatten(expected).items()}:
                raise ValueError(f"Expected for {name} the parameters of {part}, got leaves of the shapes {shapes}.")
            output = "gmf/kernel" if name == "gmf" else f"mlp/{len(self.hidden)}/kernel"
            scaled = {path: weight * _base.wide(_tree.get(given, path)) for path in (output, "bias")}
            parts.append(_tree.replace(given, scaled))
        bias = parts[0]["bias"] + parts[1]["bias"]
        return _tree.merge(*(_tree.drop(part, {"bias"}) for part in parts), {"bias": bias})
