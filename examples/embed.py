"""jaxrec's pure functions in somebody else's training loop, and somebody else's flax modules in jaxrec.

python examples/embed.py
"""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx

import jaxrec
from jaxrec import data, losses, models, optim, train


def own_loop(dataset: data.Dataset) -> float:
    """A loop with optax alone: a model is ``init`` and ``apply`` on a plain dict, a loss is a function of arrays."""
    model = models.MatrixFactorization.for_data(dataset, dim=16)
    params = model.init(jax.random.key(0))
    optimiser = optax.adam(0.01)
    state = optimiser.init(params)
    features = jax.tree.map(jnp.asarray, dataset.features)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return losses.bpr(model.apply(params, batch, features), weight=batch.weight)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    batches = data.Batches(dataset, batch_size=256, negatives=data.Negatives(num=1), history=0, seed=0)
    for chunk, steps in batches.epoch(1):
        for number in range(steps):
            params, state, value = step(params, state, jax.tree.map(lambda leaf, at=number: leaf[at], chunk))
    return float(value)


def row_sparse_loop(dataset: data.Dataset) -> float:
    """The same with jaxrec's step: only the rows a batch touches are read, differentiated and written."""
    model, optimizer = models.MatrixFactorization.for_data(dataset, dim=16), optim.row_sparse(optax.adam(0.01))
    batches = data.Batches(dataset, batch_size=256, negatives=data.Negatives(num=1), history=0, seed=0)
    features = jax.tree.map(jnp.asarray, dataset.features)
    state = train.init_state(
        model, model.init(jax.random.key(0)), optimizer, batches.example(), features, key=jax.random.key(1)
    )
    epoch = functools.partial(train.train_epoch, model=model, loss=losses.on_batch("bpr"), optimizer=optimizer)
    epoch = jax.jit(epoch, donate_argnums=0)  # donated: tables are updated in place
    for chunk, steps in batches.epoch(1):
        state, info = epoch(state, chunk, features, steps)
    return float(info.losses[int(info.steps) - 1])


class LinenTowers(linen.Module):
    """Somebody's Flax Linen module, on the users' and items' own features."""

    @linen.compact
    def __call__(self, batch: data.Batch, features: data.Features) -> jax.Array:
        user = linen.Dense(16)(features.user_dense[batch.user])
        item = linen.Dense(16)(features.item_dense[batch.item])
        return jnp.einsum("bd,bnd->bn", user, item)


class NNXScorer(nnx.Module):
    """Somebody's Flax NNX module, with a signature of its own."""

    def __init__(self, users: int, items: int, rngs: nnx.Rngs) -> None:
        self.user, self.item = nnx.Embed(users, 16, rngs=rngs), nnx.Embed(items, 16, rngs=rngs)

    def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
        return jnp.einsum("bd,bnd->bn", self.user(user), self.item(item))


def call(module: NNXScorer, batch: data.Batch, features: data.Features) -> jax.Array:
    shared = batch.shared_negatives
    item = batch.item if shared is None else jnp.broadcast_to(shared[None, :], (batch.user.shape[0], shared.shape[0]))
    return module(batch.user, item)


def main() -> None:
    frames = data.generate(seed=0).target
    parts = data.encode(
        data.split_random(frames.interactions, seed=0), frames.schema, users=frames.users, items=frames.items
    )
    print(f"own loop:        last loss {own_loop(parts.train):.4f}")
    print(f"row-sparse loop: last loss {row_sparse_loop(parts.train):.4f}")

    batches = data.Batches(parts.train, batch_size=8, negatives=data.Negatives(num=1), history=0, seed=0)
    towers = models.from_linen(LinenTowers(), batches.example(), parts.train.features)
    fitted = jaxrec.fit(towers, parts.train, loss="bpr", optimizer=optax.adam(0.01), epochs=3)
    print(f"linen module:    loss {fitted.history['loss'].iloc[-1]:.4f}")

    users, items = len(parts.train.features.user_row), len(parts.train.features.item_row)
    scorer = models.from_nnx(functools.partial(NNXScorer, users, items), call=call)
    fitted = jaxrec.fit(scorer, parts.train, loss="bpr", optimizer=optax.adam(0.01), epochs=10)
    print(f"nnx module:      ndcg@10 {jaxrec.evaluate(fitted, parts.test)['ndcg@10']:.4f}")


if __name__ == "__main__":
    main()
