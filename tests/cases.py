"""Every model and every optimiser, each put through the same tests; and small batches for them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from jaxrec import _tree, losses, models, optim, train
from jaxrec.data import Batch, Features

USERS, ITEMS, DIM = 12, 10, 4
FEATURES = Features(
    user_row=jnp.asarray([0, *range(1, 9), 0, 0, 0], jnp.int32),  # entities 9 to 11 are cold
    item_row=jnp.asarray([0, *range(1, 7), 0, 0, 0], jnp.int32),  # entities 7 to 9 are cold
    user_dense=jnp.asarray(np.random.default_rng(1).normal(size=(USERS, 2)), jnp.float32),
    item_dense=jnp.asarray(np.random.default_rng(2).normal(size=(ITEMS, 3)), jnp.float32),
    user_codes={
        "group": jnp.asarray(np.arange(USERS)[:, None] % 3, jnp.int32),
        "personal row": jnp.asarray(np.arange(USERS)[:, None] % 4, jnp.int32),
    },
    item_codes={
        "tags": jnp.asarray(np.stack([np.arange(ITEMS) % 4, np.arange(ITEMS) % 2], axis=1), jnp.int32),
        "domain": jnp.asarray(np.arange(ITEMS)[:, None] % 3, jnp.int32),
        "personal row": jnp.asarray(np.arange(ITEMS)[:, None] % 4, jnp.int32),
    },
    user_present=jnp.asarray(np.arange(USERS)[:, None] % 4 > 0),
    item_present=jnp.asarray(np.stack([np.arange(ITEMS) % 3 > 0, np.arange(ITEMS) % 4 > 0], axis=1)),
)
_SIDES: dict[str, Any] = {
    "user_dense": 2, "item_dense": 3, "user_codes": (("group", 3),), "item_codes": (("tags", 4),),
}  # fmt: skip
_ITEMS: dict[str, Any] = {"item_dense": 3, "item_codes": (("tags", 4),)}


class LinenScorer(linen.Module):
    """A module of somebody's own."""

    dim: int = DIM

    @linen.compact
    def __call__(self, batch: Batch, features: Features) -> jax.Array:
        user = linen.Embed(USERS, self.dim, name="user")(batch.user)
        item = linen.Embed(ITEMS, self.dim, name="item")(columns(batch))
        hidden = linen.Dense(self.dim, name="head")(user)
        return jnp.einsum("bd,bnd->bn", hidden, item)


class NNXScorer(nnx.Module):
    """Likewise."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.user = nnx.Embed(USERS, DIM, rngs=rngs)
        self.item = nnx.Embed(ITEMS, DIM, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(DIM, DIM, rngs=rngs)])

    def __call__(self, batch: Batch, features: Features) -> jax.Array:
        return jnp.einsum("bd,bnd->bn", self.layers[0](self.user(batch.user)), self.item(columns(batch)))


def columns(batch: Batch) -> jax.Array:
    """The items scored for each user."""
    own = jnp.asarray(batch.item)
    if batch.shared_negatives is None:
        return own
    shared = jnp.asarray(batch.shared_negatives)[None, :]
    return jnp.concatenate([own, jnp.broadcast_to(shared, (own.shape[0], shared.shape[1]))], axis=1)


def make_nnx(rngs: nnx.Rngs) -> nnx.Module:
    return NNXScorer(rngs)


class Case(NamedTuple):
    """A model, leaves to freeze, and a table of which some rows are frozen (None where it has no table)."""

    model: Any
    freeze: tuple[str, ...]
    table: str | None


def batch_of(size: int = 8, *, seed: int = 0, length: int = 3) -> Batch:
    """Random known users and items, one negative each, with a history and a context."""
    rng = np.random.default_rng(seed)
    return Batch(
        user=jnp.asarray(rng.integers(1, 9, size), jnp.int32),
        item=jnp.asarray(rng.integers(1, 7, (size, 2)), jnp.int32),
        weight=jnp.ones(size, jnp.float32),
        history=jnp.asarray(rng.integers(0, 7, (size, length)), jnp.int32),
        context=jnp.asarray(rng.normal(size=(size, 2)), jnp.float32),
    )


def stack_of(steps: int, size: int = 8) -> Batch:
    """Batches for ``train_epoch``."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(batch_of(size, seed=step) for step in range(steps)))


def shaken(params: Any, seed: int = 0, size: float = 0.3) -> Any:
    """Parameters with something added to every leaf; integers, which number table rows, are drawn anew."""
    rng = np.random.default_rng(seed)

    def shake(_: str, leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jax.device_put(rng.integers(0, 7, leaf.shape, np.int32))
        return jax.device_put(np.asarray(leaf) + np.asarray(size * rng.normal(size=leaf.shape), leaf.dtype))

    return _tree.map_with_path(shake, params)


MODELS: dict[str, Case] = {
    "linear": Case(
        models.Linear(context=2, **_SIDES, l2=0.01), ("context/kernel",), "user/features/group/embedding"
    ),
    "factorization": Case(
        models.MatrixFactorization(user_rows=9, item_rows=7, dim=DIM), ("item/embedding", "bias"), "user/embedding"
    ),
    "factorization without bias": Case(
        models.MatrixFactorization(user_rows=9, item_rows=7, dim=DIM, bias=False), ("user/*",), "item/embedding"
    ),
    "shared and specific": Case(
        models.SharedSpecific(
            user_rows=9, item_rows=7, dim=DIM, domains=3, orthogonality=0.1, adversarial=0.1
        ),
        ("item/*", "classifier/bias"), "user/specific",
    ),
    "towers": Case(
        models.TwoTower(user_rows=9, item_rows=7, dim=DIM, hidden=(5,), code_dim=2, **_SIDES),
        ("item/mlp/*", "user/bias"),
        "user/embedding",
    ),
    "towers with history": Case(
        models.TwoTower(user_rows=9, item_rows=7, dim=DIM, hidden=(), code_dim=2, history=3, **_SIDES),
        ("user/embedding", "user/features/*"),
        "item/embedding",
    ),
    "towers of ids": Case(
        models.TwoTower(user_rows=9, item_rows=7, dim=DIM, id_dropout=0.0), ("item/bias",), "item/embedding"
    ),
    "neumf": Case(
        models.NeuMF(user_rows=9, item_rows=7, dim=DIM, mlp_dim=3, hidden=(6, 5)), ("item/*", "mlp/0/*"),
        "user/mlp/embedding",
    ),
    "sequence": Case(
        models.SequenceTransformer(item_rows=7, dim=DIM, layers=1, heads=2, history=3, dropout=0.1),
        ("blocks/0/*", "position/embedding"), "item/embedding",
    ),
    "sequence with content": Case(
        models.SequenceTransformer(
            item_rows=7, dim=DIM, layers=1, heads=1, history=4, dropout=0.0, histories="before", hidden=(5,),
            item_dense=3, item_codes=(("tags", 4),), code_dim=2,
        ),
        ("item/mlp/*", "blocks/0/attention/*"), "item/features/tags/embedding",
    ),
    "item weights": Case(models.ItemWeights(item_rows=7, history=3), (), "item/weights"),
    "neighbours": Case(
        models.Neighbours(items=ITEMS, history=3, neighbours=4, normalise=0.5), ("item/neighbours",), None
    ),
    "mixture": Case(
        models.Mixture(
            parts=(
                models.MatrixFactorization(user_rows=9, item_rows=7, dim=2, bias=False),
                models.ItemWeights(item_rows=7, history=3),
            ),
            item_rows=7,
        ),
        ("parts/0/item/*", "gate/*"), "parts/0/user/embedding",
    ),
    "mixture by users": Case(
        models.Mixture(
            parts=(
                models.MatrixFactorization(user_rows=9, item_rows=7, dim=2, bias=False),
                models.SequenceTransformer(item_rows=7, dim=DIM, layers=1, heads=2, history=2, dropout=0.0),
            ),
            item_rows=7, few=3,
        ),
        ("parts/1/item/*", "gate/*"), "parts/0/user/embedding",
    ),
    "autoencoder": Case(
        models.VariationalAutoencoder(item_rows=7, dim=DIM, latent=3, history=3, beta=0.1, anneal=20),
        ("item/decoder/*", "autoencoder/mean/kernel"), "item/encoder/embedding",
    ),
    "factorization machine": Case(
        models.FactorizationMachine(user_rows=9, item_rows=7, dim=3, context=2, **_SIDES),
        ("context/kernel", "item/features/*"), "user/features/group/embedding",
    ),
    "deep factorization machine": Case(
        models.FactorizationMachine(user_rows=9, item_rows=7, dim=3, hidden=(5,), **_SIDES),
        ("item/*", "mlp/0/kernel"), "user/embedding",
    ),
    "content map": Case(
        models.BackboneTowers(
            user_rows=9, item_rows=7, dim=DIM, item=models.ContentMap(hidden=(), code_dim=2), similarity=0.5, **_SIDES
        ),
        ("backbone/*", "item/bias"), "item/features/tags/embedding",
    ),
    "dropoutnet and heater": Case(
        models.BackboneTowers(
            user_rows=9, item_rows=7, dim=DIM, user=models.DropoutNet(hidden=(), code_dim=2), history=3,
            item=models.Heater(experts=2, hidden=(), refine=(5,), code_dim=2), similarity=0.5, distil=0.5, **_SIDES,
        ),
        ("backbone/*", "item/experts/*"), "user/features/group/embedding",
    ),
    "clcrec": Case(
        models.CLCRec(user_rows=9, item_rows=7, dim=DIM, hidden=(5,), code_dim=2, **_ITEMS),
        ("item/mlp/*",), "item/embedding",
    ),
    "aldi": Case(
        models.ALDI(user_rows=9, item_rows=7, dim=DIM, hidden=(5,), code_dim=2, **_ITEMS),
        ("backbone/*", "user/mlp/1/*"), "item/features/tags/embedding",
    ),
    "gar": Case(
        models.GAR(user_rows=9, item_rows=7, dim=DIM, hidden=(5,), code_dim=2, **_ITEMS), ("backbone/*",), None
    ),
    "personalised": Case(
        models.Personalised(
            base=models.TwoTower(user_rows=9, item_rows=7, dim=DIM, hidden=(5,), code_dim=2, **_SIDES),
            personal=("user/bias", "user/mlp/*"), rows=4,
        ),
        ("item/mlp/*", "personal/user/bias"), "user/embedding",
    ),
    "personalised items": Case(
        models.Personalised(
            base=models.TwoTower(user_rows=9, item_rows=7, dim=DIM, hidden=(5,), code_dim=2, **_SIDES),
            personal=("item/bias", "item/mlp/1/*"), rows=4, side="item",
        ),
        ("user/mlp/*", "personal/item/bias"), "item/embedding",
    ),
    "adapters": Case(
        models.LoRA(base=models.MatrixFactorization(user_rows=9, item_rows=7, dim=DIM, bias=False), rank=2, alpha=3.0,
                    paths="*"),
        ("user/*", "item/*"), "adapters/item/embedding/a",
    ),
    "bottleneck": Case(
        models.Bottleneck(base=models.TwoTower(user_rows=9, item_rows=7, dim=DIM, hidden=(5,), code_dim=2, **_SIDES),
                          paths=("*/embedding",), width=3),
        ("adapters/user/*", "item/*"), "user/embedding",
    ),
    "linen": Case(models.from_linen(LinenScorer(), batch_of(), FEATURES), ("user/*",), None),
    "nnx": Case(models.from_nnx(make_nnx), ("layers/*",), None),
}  # fmt: skip

OPTIMISERS: dict[str, optax.GradientTransformation] = {
    "sgd with momentum": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.3),
    "adagrad": optax.adagrad(0.05),
    "clipped": optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(0.01, weight_decay=0.1), optax.ema(0.9)),
    "row-wise adagrad": optim.rowwise_adagrad(0.05),
}

epoch = jax.jit(train.train_epoch, static_argnames=("model", "loss", "optimizer"), donate_argnums=(0,))
step = jax.jit(train.train_step, static_argnames=("model", "loss", "optimizer"))
BPR = losses.on_batch("bpr")
