"""Data of a stated size, a loop of training, and one evaluator for everybody."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec import data, evaluate, losses, models, optim, train

DIM, BATCH = 64, 4096
LARGE_SIZE = 1_000_000, 200_000, 11_000_000  # users, items, rows
Scores = dict[str, Callable[[], train.Recommender]]
"""By system, what ``evaluate`` takes."""


@functools.cache
def ratings(users: int, items: int, rows: int) -> data.Parts:
    """Distinct pairs of a stated size, items by Zipf's law; a tenth of the rows is held out for validation."""
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, items + 1) ** 0.8
    user = rng.integers(0, users, int(1.3 * rows))
    # Tastes by group of users, so that there is something to learn.
    item = (rng.choice(items, len(user), p=share / share.sum()) + (user % 50) * (items // 50)) % items
    frame = pd.DataFrame({"user": user, "item": item}).drop_duplicates().iloc[:rows]
    return data.encode(data.split_random(frame, validation=0.1, test=0.0, seed=0), data.Schema())


def of_some(parts: data.Parts, users: int) -> data.Parts:
    """With the validation rows of so many users alone, drawn at random."""
    rows = parts.validation
    drawn = np.random.default_rng(0).choice(np.unique(rows.user), users, replace=False)
    return parts._replace(validation=rows.subset(np.flatnonzero(np.isin(rows.user, drawn))))


def size_of(dataset: data.Dataset) -> str:
    return f"{len(dataset.encoder.users)} x {len(dataset.encoder.items)}, {len(dataset):,} rows"


def trainer(
    name: str,
    scores: Scores,
    dataset: data.Dataset,
    model: Any,
    loss: str | losses.Loss,
    optimizer: optim.Optimizer,
    *,
    negatives: data.Negatives | None = None,
    size: int = BATCH,
    scale: float = 1.0,
    units: float = 1.0,
    passes: int = 1,
) -> harness.Run:
    """``passes`` epochs of ``model``; sampling and shuffling are part of them.

    ``scale`` shrinks the initial parameters, ``units`` says how many units of work an example is.
    """
    batches = data.Batches(dataset, batch_size=size, negatives=negatives, history=0, seed=0)
    features = jax.tree.map(jnp.asarray, dataset.features)
    params = jax.tree.map(lambda leaf: scale * leaf, model.init(jax.random.key(0)))
    state = train.init_state(model, params, optimizer, batches.example(), features, key=jax.random.key(1))
    epoch = jax.jit(
        functools.partial(
            train.train_epoch,
            model=model,
            loss=losses.on_batch(loss) if isinstance(loss, str) else loss,
            optimizer=optimizer,
        ),
        donate_argnums=(0,),
    )
    box, epochs = [state], data.prepared(batches, sys.maxsize)

    def run() -> float:
        for _ in range(passes):
            for chunk, steps in next(epochs):
                box[0], _ = epoch(box[0], chunk, features, steps)
        jax.block_until_ready(box[0].params)
        return passes * units * len(dataset)

    def recommender() -> train.Recommender:
        params = jax.tree.map(jnp.copy, box[0].params)
        return train.Recommender(model, params, dataset.encoder, dataset.interactions, len(dataset.interactions))

    scores[name] = recommender
    return run


def ndcg(parts: data.Parts, scores: Scores, name: str) -> float:
    """NDCG@10 on the validation part over the full catalogue, training pairs left out."""
    return evaluate(scores[name](), parts.validation, draws=1)["ndcg@10"]


def by_tables(
    dataset: data.Dataset, user: np.ndarray, item: np.ndarray, bias: np.ndarray | None = None
) -> train.Recommender:
    """What the evaluator takes, of a rival's tables by entity index."""
    if bias is not None:  # of items: one more number, against a one
        user, item = np.column_stack([user, np.ones(len(user))]), np.column_stack([item, bias])
    model = models.MatrixFactorization.for_data(dataset, dim=user.shape[1], bias=False)
    params = {}
    for side, values, rows in (("user", user, model.user_rows), ("item", item, model.item_rows)):
        table, row = np.zeros((rows, values.shape[1]), np.float32), getattr(dataset.features, f"{side}_row")
        table[row[: len(values)]] = values
        table[0] = values[0]  # whoever has no row is the unknown one, not the last of them written there
        params[side] = {"embedding": jnp.asarray(table)}
    return train.Recommender(model, params, dataset.encoder, dataset.interactions, len(dataset.interactions))


def matrix(dataset: data.Dataset) -> Any:
    """Users x items by entity index, sparse, for implicit."""
    import scipy.sparse

    shape = len(dataset.encoder.users) + 1, len(dataset.encoder.items) + 1
    return scipy.sparse.csr_matrix((np.ones(len(dataset), np.float32), (dataset.user, dataset.item)), shape=shape)


def known_share(dataset: data.Dataset) -> float:
    """How many draws of (user of a row, uniform item) are known positives, which implicit and Cornac skip."""
    negative = np.random.default_rng(1).integers(1, len(dataset.encoder.items) + 1, len(dataset), dtype=np.int32)
    return float(dataset.interactions.contains(dataset.user, negative).mean())
