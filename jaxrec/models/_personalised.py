"""A model some of whose parameters every user, or every item, has a copy of."""

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
from jaxrec.models._item_encoder import mean_of_rows

ROW = "personal row"  # the array of Features.user_codes or item_codes that says which copy is whose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Personalised:
    """A base model with a copy of some dense parameters for each user or item; ``coldstart.personalise`` returns it.

    The copies of a leaf ``mlp/0/kernel``, each laid flat, are the rows of a table ``personal/mlp/0/kernel``. Row 0 is
    what users without a copy of their own are scored with. Which row is a user's stands in
    ``Features.user_codes["personal row"]``, an item's in ``item_codes``.

    Args:
      base: any model.
      personal: patterns of the parameters that are copied; none of them a table.
      rows: of each table of copies, row 0 included.
      side: whose the copies are; of ``"item"`` the base reads no history or context.

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
    side: Literal["user", "item"] = "user"

    def __post_init__(self) -> None:
        personal = (self.personal,) if isinstance(self.personal, str) else tuple(self.personal)
        object.__setattr__(self, "personal", personal)
        _ = self._own

    @property
    def tables(self) -> dict[str, str]:
        return self.base.tables | {path: f"{self.side}/{ROW}" for path in self._copies}

    @property
    def unknown(self) -> Literal["mean", "zero"]:
        return self.base.unknown

    @property
    def context(self) -> int | None:
        """As of the base."""
        return _base.context_width(self.base)

    @functools.cached_property
    def _own(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the personal leaves by their path in the base."""
        leaves = _tree.flatten(_tree.shapes(self.base))
        return {path: leaves[path].shape for path in check_personal(self.base, leaves, self.personal)}

    @property
    def _copies(self) -> tuple[str, ...]:
        """Paths of the tables of copies. Lookups by users have these names; by items the field stands before."""
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
        codes = features.user_codes if self.side == "user" else features.item_codes
        if ROW not in codes:
            raise ValueError(
                f"The features lack the {self.side} code {ROW!r}, which says whose the personal parameters are. Use "
                "those of the recommender that coldstart.personalise returned."
            )
        found = self.base.lookups(batch, features)
        fields = {"": _base.users_of(batch)} if self.side == "user" else _base.item_fields(batch)
        for field, index in fields.items():
            rows = _base.take(codes[ROW], index)[..., 0]
            found |= {self._name(field, path): Lookup(path, rows) for path in self._copies}
        return found

    def _name(self, field: str, copy: str) -> str:
        return f"{field}/{copy}" if field else copy

    def _taken(self, gathered: Gathered, field: str = "") -> dict[str, jax.Array]:
        """The copies that were looked up, in the shape of their leaves, one after the other."""
        copies = {path: gathered[self._name(field, f"personal/{path}")] for path in self._own}
        return {path: copies[path].reshape(-1, *shape) for path, shape in self._own.items()}

    def score(
        self, params: Params, gathered: Gathered, batch: Batch, features: Features, *, key: Any = None
    ) -> Float[jax.Array, "batch columns"] | Scored:
        if self.side == "item":
            return self._score_items(params, gathered, batch, features, key)
        shared = _tree.drop(params, self._copies)
        own = self._taken(gathered)
        of_users = self._of_users(batch, features)
        mine = {name: rows for name, rows in gathered.items() if name in of_users}
        common = {name: rows for name, rows in gathered.items() if name not in of_users and name not in self._copies}
        each = batch._replace(shared_negatives=None, target=None, weight=None, log_q=None)
        keys = None if key is None else jax.random.split(key, _base.users_of(batch).shape[0])
        warmup = 0

        def of_user(own: dict[str, jax.Array], mine: Gathered, each: Batch, key: Any) -> tuple[jax.Array, jax.Array]:
            mine, each = jax.tree.map(lambda leaf: leaf[None], (mine, each))
            each = each._replace(shared_negatives=batch.shared_negatives)
            whole = _tree.merge(shared, _tree.unflatten(own))
            found = _base.scored(self.base.score(whole, {**mine, **common}, each, features, key=key))
            nonlocal warmup
            warmup = found.warmup  # a Python number, which vmap would make an array
            return found.scores, found.penalty

        scores, penalty = jax.vmap(of_user)(own, mine, each, keys)
        return Scored(scores[:, 0], mean_of_rows(penalty, batch), warmup)

    apply = _base.apply

    def _score_items(self, params: Params, gathered: Gathered, batch: Batch, features: Features, key: Any) -> Scored:
        """Each column with its item's copies: own items pair by pair, shared ones for all users at once."""
        shared, users = _tree.drop(params, self._copies), _base.users_of(batch)
        one = {"item": jnp.zeros((len(users), 1), jnp.int32), "shared": jnp.zeros((1,), jnp.int32)}
        named = {
            field: set(self.base.lookups(_of_field(users, field, column), features)) for field, column in one.items()
        }
        of_users = {name: gathered[name] for name in named["item"] & named["shared"]}
        blocks, penalties, weights, warmup = [], [], [], 0
        weight = jnp.ones(len(users), jnp.float32) if batch.weight is None else jnp.asarray(batch.weight)
        for field, index in _base.item_fields(batch).items():
            mine = {name: gathered[name] for name in named[field] if name not in of_users}
            own, whom, theirs = self._taken(gathered, field), users, of_users
            if field == "item":
                # A row for each pair, users as often as they have columns.
                mine = {name: rows.reshape(-1, 1, 1, *rows.shape[2:]) for name, rows in mine.items()}
                whom = jnp.repeat(users, index.shape[1])[:, None]
                theirs = {name: jnp.repeat(rows, index.shape[1], axis=0)[:, None] for name, rows in of_users.items()}
                item = index.reshape(-1, 1, 1)
            else:
                mine, item = {name: rows[:, None] for name, rows in mine.items()}, index[:, None]

            def of_item(
                own: dict[str, jax.Array],
                mine: Gathered,
                item: jax.Array,
                key: Any,
                whom: jax.Array,
                theirs: Gathered,
                field: str = field,
            ) -> tuple[jax.Array, jax.Array]:
                whole = _tree.merge(shared, _tree.unflatten(own))
                pairs = _of_field(whom, field, item)
                pairs = pairs._replace(weight=None if field == "item" else weight)
                found = _base.scored(self.base.score(whole, {**mine, **theirs}, pairs, features, key=key))
                nonlocal warmup
                warmup = found.warmup
                return found.scores[:, 0], found.penalty

            keys = None if key is None else jax.random.split(key, index.size)
            axis = 0 if field == "item" else None
            scores, penalty = jax.vmap(of_item, in_axes=(0, 0, 0, 0, axis, axis))(own, mine, item, keys, whom, theirs)
            blocks.append(scores.reshape(index.shape) if field == "item" else scores.T)
            penalties.append(penalty)
            # A pair weighs as its row does, and an item shared by all rows as they do on average.
            each = jnp.repeat(weight, index.shape[1]) if field == "item" else jnp.full(index.shape, weight.mean())
            weights.append(each)
        penalty = mean_of_rows(jnp.concatenate(penalties), Batch(weight=jnp.concatenate(weights)))
        return Scored(jnp.concatenate(blocks, axis=1), penalty, warmup)

    def _of_users(self, batch: Batch, features: Features) -> set[str]:
        """Names of the base's lookups that have a row for each user; the others are shared by the batch."""
        users = _base.users_of(batch)
        item = jnp.zeros((users.shape[0], 1), jnp.int32)
        return set(self.base.lookups(batch._replace(item=item, shared_negatives=None), features))


def _of_field(users: jax.Array, field: str, items: jax.Array) -> Batch:
    return Batch(user=users, item=items) if field == "item" else Batch(user=users, shared_negatives=items)


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
