"""User and item vectors of a recommender, and scores of candidates for blocks of users."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _sharded
from jaxrec._exact import exact
from jaxrec._fold_in import folded, prepare
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, Folding, ImplicitSquares, Params, Prior, Squares
from jaxrec.data import Encoder, Interactions
from jaxrec.data._counting import distinct
from jaxrec.data._sides import Side
from jaxrec.models import take
from jaxrec.ranking._top_k import padded

_ROWS = 2**16  # rows that are gathered at once for vectors of entities
_FEWEST = 64  # entities whose vectors are computed at once, however many rows each takes
_GRID = 2**26  # numbers of the grid of vectors by which entities are folded in at once
_SAMPLE = 20_000  # entities that stand for all in the statistics of fold-in

Scorer = Callable[[np.ndarray, int], jax.Array]
"""``(users, size)``: entity indices, to be padded to ``size`` rows -> scores ``[size, candidates]``."""


def scorer(recommender: Recommender, candidates: np.ndarray) -> Scorer:
    """Scores of ``candidates`` (entity indices, padded with 0) for any users: by inner products where the model
    factorises, else by ``apply`` on blocks of users x items."""
    if recommender.parts:
        return _mixed(recommender, candidates)
    if not recommender.factorises:
        return functools.partial(_score_pairs, recommender, candidates)
    items = candidate_vectors(recommender, candidates)
    return lambda users, size: _product(user_vectors(recommender, padded(users, size)), items)


def _mixed(recommender: Recommender, candidates: np.ndarray) -> Scorer:
    """Each part as it would score alone, so that users are folded in where a part does that."""
    scorers = [scorer(part, candidates) for part in recommender.parts]
    model: Any = recommender.model
    weights = model.weights(recommender.params, candidates, recommender.features)

    def score(users: np.ndarray, size: int) -> jax.Array:
        return _weighted([each(users, size) for each in scorers], weights, gated(recommender, users, size), model=model)

    return score


def gated(recommender: Recommender, users: np.ndarray, size: int) -> Batch:
    """As much of these users as a mixture's gate looks at."""
    model: Any = recommender.model
    users = padded(users, size).astype(np.int32)
    return Batch(user=users, history=recommender.seen.latest(users, model.few))


@functools.partial(jax.jit, static_argnames=("model",))
def _weighted(scores: list[jax.Array], weights: jax.Array, batch: Batch, *, model: Any) -> jax.Array:
    if not model.few:  # the same for all users
        return jnp.einsum("ki,kbi->bi", weights[:, 0], jnp.stack(scores))
    return jnp.einsum("kbi,kbi->bi", weights[:, model.user_buckets(batch)], jnp.stack(scores))


def candidate_vectors(recommender: Recommender, candidates: np.ndarray) -> jax.Array:
    """Vectors of candidates (entity indices) of a model that factorises."""
    if np.array_equal(candidates, everything(recommender.encoder)):
        return recommender.catalogue
    return take(recommender.catalogue, candidates)


def everything(encoder: Encoder) -> np.ndarray:
    """All items as candidates: entity indices in their own place, 0 in the spare capacity."""
    index = np.arange(len(encoder.features.item_row), dtype=np.int32)
    return np.where(index <= len(encoder.items), index, 0)


def user_vectors(recommender: Recommender, users: np.ndarray) -> jax.Array:
    """Vectors ``[len(users), dim]`` by entity index; users with interactions added since the training are folded in."""
    vectors = _plain_user_vectors(recommender, users)
    added = recommender.added
    if not recommender.folds or not len(added):
        return vectors
    # An item that many users touched is folded in once: its own users times theirs would be gigabytes.
    return _with_added(recommender, "user", vectors, added, users, functools.partial(item_vectors, recommender))


def item_vectors(recommender: Recommender, items: np.ndarray) -> jax.Array:
    """Vectors ``[*items.shape, dim]`` by entity index; untrained items with interactions are folded in."""
    vectors = _plain_item_vectors(recommender, items)
    added = recommender.added
    if not len(added) or recommender.derived or recommender.reads_context:
        return vectors
    if items.ndim > 1:
        return item_vectors(recommender, items.reshape(-1)).reshape(*items.shape, -1)
    turned = added.turned()
    untrained = np.where(recommender.encoder.features.item_row[items] == 0, items, 0)
    users_of = functools.partial(_plain_user_vectors, recommender)
    return _with_added(recommender, "item", vectors, turned, untrained, users_of)


def measure(recommender: Recommender) -> Prior:
    """What fold-in needs to know of the trained vectors. Where statistics do, 20,000 users and items stand for all."""
    rng = np.random.default_rng(0)
    trained = recommender.trained
    recommender = recommender.replace(seen=trained)  # histories as training left them, whatever was added since
    if trained.weight is not None and not trained.weight.all():
        trained = trained.part(trained.weight > 0)  # the others trained nothing
    if recommender.folding is not None:
        return _squares(recommender, trained, recommender.folding)
    samples = []
    for count in (trained.user_count, trained.item_count):
        known = np.flatnonzero(count)
        known = known if len(known) <= _SAMPLE else np.sort(rng.choice(known, _SAMPLE, replace=False))
        samples.append((known, count[known] / max(count[known].sum(), 1)))
    (users, user_share), (items, item_share) = samples
    user_vector = np.asarray(_plain_user_vectors(recommender, users))
    item_vector = np.asarray(_plain_item_vectors(recommender, items))
    # What the model would say of the same entities if it had not been trained on them.
    features = recommender.features
    unknown = features._replace(user_row=jnp.zeros_like(features.user_row), item_row=jnp.zeros_like(features.item_row))
    user_guess = np.asarray(_plain_user_vectors(recommender, users, unknown))
    item_guess = np.asarray(_plain_item_vectors(recommender, items, unknown))
    noise = 1.0
    if trained.value is not None and len(trained) and recommender.link == "identity":
        rows = rng.integers(0, len(trained), min(len(trained), _SAMPLE))

        def scored(rows: np.ndarray) -> jax.Array:
            batch = recommender.batch(trained.user[rows])._replace(item=trained.item[rows][:, None])
            return apply(recommender.model, recommender.params, batch, features)[:, 0]

        scores = np.asarray(_in_blocks(rows, pairs_at_once(recommender), scored))
        noise = max(float(np.mean((scores - trained.value[rows]) ** 2)), 1e-6)
    return Prior(
        user=prepare(user_vector - user_guess, item_vector, item_share),
        item=prepare(item_vector - item_guess, user_vector, user_share),
        noise=noise,
    )


def _squares(recommender: Recommender, trained: Interactions, folding: Folding) -> Prior:
    """Sums over the vectors that training moved."""

    def of_other(vectors: jax.Array, objective: ImplicitSquares) -> Squares:
        weight = jnp.float32(objective.unobserved)
        gram = weight * _product(vectors.T, vectors.T)
        return Squares(gram, weight * len(vectors), jnp.float32(objective.l2), jnp.float32(objective.exponent))

    users, items = np.flatnonzero(trained.user_count), np.flatnonzero(trained.item_count)
    return Prior(
        user=of_other(_plain_item_vectors(recommender, items), folding.user),
        item=of_other(_plain_user_vectors(recommender, users), folding.item),
        noise=1.0,
    )


def _plain_user_vectors(recommender: Recommender, users: np.ndarray, features: Features | None = None) -> jax.Array:
    """Without fold-in; by the recommender's features or others."""
    features = recommender.features if features is None else features

    def vectors(users: np.ndarray) -> jax.Array:
        return _user_vectors(recommender.model, recommender.params, recommender.batch(users), features)

    return _in_blocks(users, users_at_once(recommender), vectors)


def _plain_item_vectors(recommender: Recommender, items: np.ndarray, features: Features | None = None) -> jax.Array:
    """Likewise; ``items`` of any shape."""
    features = recommender.features if features is None else features

    def vectors(items: np.ndarray) -> jax.Array:
        return _item_vectors(recommender.model, recommender.params, _sharded.shared(recommender.mesh, items), features)

    flat = items.reshape(-1).astype(np.int32)
    found = _in_blocks(flat, _at_once(recommender, _labels(recommender, "item")), vectors)
    return found.reshape(*items.shape, found.shape[-1])


def pairs_at_once(recommender: Recommender) -> int:
    """How many pairs of a user and an item are scored at once, so that memory is bounded."""
    return min(users_at_once(recommender), _at_once(recommender, _labels(recommender, "item")))


def users_at_once(recommender: Recommender) -> int:
    """How many users' vectors are computed at once: fewer where long histories are read, of items with many labels."""
    history = recommender.pooled_history * max(_labels(recommender, "item"), 1)
    return _at_once(recommender, _labels(recommender, "user") + history)


def _labels(recommender: Recommender, side: Side) -> int:
    """How many labels of an entity the model reads; for each it gathers a row."""
    codes = recommender.features.user_codes if side == "user" else recommender.features.item_codes
    read = set(recommender.model.tables.values())
    return sum(code.shape[1] for name, code in codes.items() if f"{side}/{name}" in read)


def _at_once(recommender: Recommender, rows: int) -> int:
    """How many entities of which each takes so many rows: with 357 tags and 512 numbers _ROWS of them are 48 GB."""
    return _sharded.rounded(max(_ROWS // _power(max(rows, 1)), _FEWEST), recommender.mesh)


def _in_blocks(index: np.ndarray, most: int, of_block: Callable[[np.ndarray], jax.Array]) -> jax.Array:
    """``of_block`` of ``most`` numbers at once, of which the last are padded to the shape of the others."""
    size = min(most, max(len(index), 1))
    blocks = [of_block(padded(index[start : start + size], size)) for start in range(0, max(len(index), 1), size)]
    values = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks)
    return values if len(values) == len(index) else values[: len(index)]


def _with_added(
    recommender: Recommender,
    side: str,
    vectors: jax.Array,
    added: Interactions,
    entities: np.ndarray,
    others_of: Callable[[np.ndarray], jax.Array],
) -> jax.Array:
    """``vectors`` of the entities, folded in where they have interactions; ``others_of`` the ones they met."""
    position, row = added.rows_of(entities)
    if not len(row):
        return vectors
    other = distinct(added.item[row])
    others = others_of(padded(other, _power(len(other))))
    count = np.bincount(position, minlength=len(entities))

    def part(chosen: np.ndarray, size: int) -> jax.Array:
        """Of those at ``chosen``, in one grid that is padded to powers of two, to compile few shapes."""
        position, row = added.rows_of(entities[chosen])
        shape = size, _power(int(count[chosen].max()))
        met = take(others, _grid(np.searchsorted(other, added.item[row]).astype(np.int32), position, shape))
        some = padded(chosen, size)
        ours = settled(recommender, entities[some]) if side == "user" else np.zeros(size, bool)
        return _folded(recommender, side, take(vectors, some), met, added, row, position, ours)

    if len(entities) * _power(int(count.max())) * vectors.shape[1] <= _GRID:
        return part(np.arange(len(entities)), len(entities))
    order = np.argsort(-count, kind="stable")[: np.count_nonzero(count)]
    start, whole = 0, vectors
    while start < len(order):  # those with most interactions first, and fewer of them at once
        width = _power(int(count[order[start]]))
        size = min(1 << (max(_GRID // (width * vectors.shape[1]), 1).bit_length() - 1), _power(len(order) - start))
        chosen = order[start : start + size]
        place = np.pad(chosen, (0, size - len(chosen)), constant_values=len(vectors))
        whole = whole.at[place].set(part(chosen, size), mode="drop")
        start += size
    return whole


def settled(recommender: Recommender, users: np.ndarray) -> np.ndarray:
    """Whether a user's vector was trained on interactions of the user's own."""
    seen, added = recommender.seen, recommender.added
    inside = np.where(users < seen.num_users, users, 0)
    return (inside > 0) & (seen.user_count[inside] > added.user_count[inside])


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def _grid(values: np.ndarray, position: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values side by side in their position's row, padded with 0."""
    count = np.bincount(position, minlength=shape[0])
    column = np.arange(len(position)) - np.repeat(np.cumsum(count) - count, count)
    grid = np.zeros(shape, values.dtype)
    grid[position, column] = values
    return grid


def _folded(
    recommender: Recommender,
    side: str,
    vectors: jax.Array,
    others: jax.Array,
    added: Interactions,
    row: np.ndarray,
    position: np.ndarray,
    settled: np.ndarray,
) -> jax.Array:
    shape = (others.shape[0], others.shape[1])
    weight = np.ones(len(row), np.float32) if added.weight is None else added.weight[row]
    mask = _grid(weight, position, shape)
    values = None if added.value is None else _grid(added.value[row], position, shape)
    prior = getattr(recommender.prior, side)
    noise = recommender.prior.noise
    return folded(vectors, prior, others, mask, values, link=recommender.link, noise=noise, settled=settled)


def _score_pairs(recommender: Recommender, candidates: np.ndarray, users: np.ndarray, size: int) -> jax.Array:
    batch = recommender.batch(padded(users, size))
    blocks = []
    # A model that does not factorise holds users x items x width numbers, if it says nothing else.
    columns = getattr(recommender.model, "columns", 512)
    for start in range(0, len(candidates), columns):
        block = batch._replace(shared_negatives=candidates[start : start + columns])
        blocks.append(apply(recommender.model, recommender.params, block, recommender.features))
    return jnp.concatenate(blocks, axis=1)


@functools.partial(jax.jit, static_argnames=("model",))
def apply(model: Any, params: Params, batch: Batch, features: Features) -> jax.Array:
    """The model's scores of a batch, compiled once per model and shape."""
    return model.apply(params, batch, features)


@functools.partial(jax.jit, static_argnames=("model",))
def _item_vectors(model: Any, params: Params, items: jax.Array, features: Features) -> jax.Array:
    return model.item_vectors(params, items, features)


@functools.partial(jax.jit, static_argnames=("model",))
def _user_vectors(model: Any, params: Params, batch: Batch, features: Features) -> jax.Array:
    return model.user_vectors(params, batch, features)


@jax.jit
@exact
def _product(users: jax.Array, items: jax.Array) -> jax.Array:
    return users @ items.T
