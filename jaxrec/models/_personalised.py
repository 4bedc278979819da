"""A model some of whose parameters every user has a copy of."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxrec import _tree
from jaxrec._types import Batch, Features, Params
from jaxrec.models import _base
from jaxrec.models._base import Gathered, Lookup, Model, Scored

ROW = "personal row"  # the array of Features.user_codes that says which copy is whose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Personalised:
    """A base model with a copy of some dense parameters for each user; what ``coldstart.personalise`` returns.

    The copies of a leaf ``mlp/0/kernel``, each laid flat, are the rows of a table ``personal/mlp/0/kernel``. Row 0 is
    what users without a copy of their own are scored with. Which row is a user's stands in
    ``Features.user_codes["personal row"]``.

    Args:
      base: any model.
      personal: patterns of the parameters that are copied; none of them a table.
      rows: of each table of copies, row 0 included.

    Examples:
      >>> from jaxrec.models import NeuMF
      >>> base = NeuMF(user_rows=3, item_rows=4, dim=0, mlp_dim=5, hidden=(8,))
      >>> params = Personalised(base=base, personal=("mlp/1/*",), rows=6).init(jax.random.key(0))
      >>> params["personal"]["mlp"]["1"]["kernel"].shape, list(params["mlp"])
      ((6, 8), ['0'])
    """

    base: Model
    personal: _tree.Patterns
    rows: int

    def __post_init__(self) -> None:
        personal = (self.personal,) if isinstance(self.personal, str) else tuple(self.personal)
        object.__setattr__(self, "personal", personal)
        _ = self._own

    @property
    def tables(self) -> dict[str, str]:
        return self.base.tables | {path: f"user/{ROW}" for path in self._copies}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return self.base.unknown

    @functools.cached_property
    def _own(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the personal leaves by their path in the base."""
        leaves = _tree.flatten(jax.eval_shape(self.base.init, jax.random.key(0)))
        return {path: leaves[path].shape for path in check_personal(self.base, leaves, self.personal)}

    @property
    def _copies(self) -> tuple[str, ...]:
        """Paths of the tables of copies, and names of their lookups."""
        return tuple(f"personal/{path}" for path in self._own)

    def init(self, key: Key[jax.Array, ""]) -> Params:
        return self.wrap(self.base.init(key))

    def wrap(self, params: Params) -> Params:
        """Parameters of the base with ``rows`` copies of the personal ones."""
        shared, own = _tree.split(params, self.personal)
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf.reshape(1, -1), (self.rows, leaf.size)), own)
        return _tree.merge(shared, {"personal": copies})

    def unwrap(self, params: Params) -> Params:
        """Parameters of the base, as users without a copy of their own are scored with."""
        leaves = _tree.flatten(params)
        own = {path: leaves.pop(f"personal/{path}")[0].reshape(shape) for path, shape in self._own.items()}
        return _tree.unflatten({**leaves, **own})

    def lookups(self, batch: Batch, features: Features) -> dict[str, Lookup]:
        if ROW not in features.user_codes:
            raise ValueError(
                f"The features lack the user code {ROW!r}, which says whose the personal parameters are. Use those of "
                "the recommender that coldstart.personalise returned."
            )
        rows = _base.take(features.user_codes[ROW], _base.users_of(batch))[:, 0]
        return {**self.base.lookups(batch, features), **{path: Lookup(path, rows) for path in self._copies}}

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"] | Scored:
        shared = _tree.drop(params, self._copies)
        own = {path: gathered[f"personal/{path}"].reshape(-1, *shape) for path, shape in self._own.items()}
        of_users = self._of_users(batch, features)
        mine = {name: rows for name, rows in gathered.items() if name in of_users}
        common = {name: rows for name, rows in gathered.items() if name not in of_users and name not in self._copies}
        each = batch._replace(shared_negatives=None, target=None, weight=None, log_q=None)
        keys = None if key is None else jax.random.split(key, _base.users_of(batch).shape[0])

        def of_user(own: dict[str, jax.Array], mine: Gathered, each: Batch, key: Any) -> tuple[jax.Array, jax.Array]:
            mine, each = jax.tree.map(lambda leaf: leaf[None], (mine, each))
            each = each._replace(shared_negatives=batch.shared_negatives)
            whole = _tree.merge(shared, _tree.unflatten(own))
            found = _base.scored(self.base.score(whole, {**mine, **common}, each, features, key=key))
            return found.scores, found.penalty

        scores, penalty = jax.vmap(of_user)(own, mine, each, keys)
        return Scored(scores[:, 0], penalty.mean())

    apply = _base.apply

    def _of_users(self, batch: Batch, features: Features) -> set[str]:
        """Names of the base's lookups that have a row for each user; the others are shared by the batch."""
        users = _base.users_of(batch)
        item = jnp.zeros((users.shape[0], 1), jnp.int32)
        return set(self.base.lookups(batch._replace(item=item, shared_negatives=None), features))


def check_personal(model: Model, paths: Iterable[str], personal: _tree.Patterns) -> tuple[str, ...]:
    """The paths that the patterns cover; raises where there is none, or one is a table."""
    found = _tree.match(paths, personal)
    tables = sorted(set(found) & set(model.tables))
    if tables:
        raise ValueError(
            f"Expected personal parameters that are no tables, got {', '.join(tables)} with {personal!r}. A row for "
            "each user is what a table is; name layers and biases, for example 'mlp/*'."
        )
    return found
