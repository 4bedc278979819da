"""How much each parameter matters to the source: the diagonal of the Fisher information."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import _tree, losses
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, Params
from jaxrec.data import Batches, Dataset, Negatives
from jaxrec.data._batches import rows_that_weigh
from jaxrec.models import Model
from jaxrec.models._base import Gathered, gather, safe_index, scored


def fisher(
    recommender: Recommender, dataset: Dataset, *, examples: int = 4096, negatives: int = 16, seed: int = 0
) -> Params:
    r"""Diagonal of the empirical Fisher information, for ``optim.ewc``.

    .. math:: F_j = \frac{1}{N} \sum_n \left(\frac{\partial}{\partial w_j} \log p(y_n \mid x_n, w)\right)^2

    Squares of the gradients of single examples at the labels in the data: mean squared error or, for a sigmoid link,
    cross-entropy where there is a target; without one, and after a loss of ranking, the softmax of the positive among
    negatives drawn uniformly. Histories and negatives are of the whole dataset whichever rows are drawn. Rows of tables
    that no example touched have 0. Weights of the dataset do not count, but for rows of weight 0.

    Args:
      recommender: trained on the source.
      dataset: the source's, of the recommender's encoder.
      examples: rows drawn from it without repetition; all of them where there are fewer.
      negatives: for each positive, at least 1; of no use where targets are predicted.
      seed: of rows and negatives.

    Returns:
      A tree like the recommender's parameters, float32, non-negative.

    Raises:
      ValueError: the dataset is empty or another encoder's, or a count is less than 1.

    References:
      Kirkpatrick et al., PNAS 114(13), 2017; the empirical form, whose labels are the data's and not drawn from the
      model (Kunstner, Balles and Hennig, NeurIPS 2019, on the difference).
    """
    expect(recommender, Recommender, "recommender")
    expect(dataset, Dataset, "dataset")
    recommender.check(dataset)
    if min(examples, negatives) < 1 or not len(dataset):
        raise ValueError(
            f"Expected rows, and examples and negatives >= 1, got {len(dataset)} rows, {examples} and {negatives}."
        )
    model = recommender.model
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(recommender.params)):
        raise ValueError(
            f"Parameters of {type(model).__name__} were counted or are a gate's, and have no gradient. Give a "
            "recommender that fit trains."
        )
    pointwise = dataset.item is None or (dataset.target is not None and recommender.link != "rank")
    counting = rows_that_weigh(dataset)
    examples = min(examples, len(dataset) if counting is None else len(counting))
    batches = Batches(
        dataclasses.replace(dataset, window=None),  # an epoch's order is a permutation of all rows
        batch_size=min(64, examples),
        negatives=None if pointwise else Negatives(num=negatives),
        history=getattr(model, "history", 0),
        seed=seed,
        histories="before" if getattr(model, "histories", "") in ("before", "sequences") else "subset",
    )
    name = "sampled_softmax" if not pointwise else "sigmoid_cross_entropy" if recommender.link == "sigmoid" else "mse"
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), recommender.params)
    for chunk in _first(examples, batches.epoch(1)):
        total = _added(total, recommender.params, chunk, recommender.features, model=model, loss=losses.on_batch(name))
    return jax.tree.map(lambda leaf: leaf / examples, total)


def _first(examples: int, chunks: Iterator[tuple[Batch, int]]) -> Iterator[Batch]:
    """Stacked batches with so many examples; what is behind them in the last batch weighs 0."""
    while examples > 0:
        chunk, _ = next(chunks)
        assert chunk.weight is not None
        steps = -(-examples // chunk.weight.shape[1])
        chunk = Batch(*(None if values is None else values[:steps] for values in chunk))
        assert chunk.weight is not None
        size = chunk.weight.size
        counts = np.arange(size).reshape(chunk.weight.shape) < examples
        yield chunk._replace(weight=chunk.weight * counts)
        examples -= size


@functools.partial(jax.jit, static_argnames=("model", "loss"), donate_argnums=0)
def _added(
    total: Params, params: Params, batches: Batch, features: Features, *, model: Model, loss: losses.Loss
) -> Params:
    """``total`` with the squared gradients of all examples of stacked batches."""

    def of_example(example: Batch) -> tuple[Params, dict[str, tuple[jax.Array, jax.Array]]]:
        batch = jax.tree.map(lambda leaf: leaf[None], example)
        lookups = model.lookups(batch, features)
        dense = _tree.drop(params, {lookup.path for lookup in lookups.values()})

        def objective(dense: Params, gathered: Gathered) -> jax.Array:
            output = scored(model.score(dense, gathered, batch, features))
            return loss(output.scores, batch)

        grads, row_grads = jax.grad(objective, argnums=(0, 1))(dense, gather(params, lookups))
        squares = {}
        for path in {lookup.path: None for lookup in lookups.values()}:
            table = _tree.get(params, path)
            names = [name for name, lookup in lookups.items() if lookup.path == path]
            rows = jnp.concatenate([safe_index(lookups[name].rows, table.shape[0]).reshape(-1) for name in names])
            flat = jnp.concatenate([row_grads[name].reshape(-1, *table.shape[1:]) for name in names])
            # A row that the example looks up twice has one gradient, the sum, and counts once.
            same = rows[:, None] == rows[None, :]
            first = jnp.argmax(same, axis=1) == jnp.arange(len(rows))
            summed = jnp.tensordot(same.astype(jnp.float32), flat, axes=1)
            squares[path] = rows, jnp.where(first[:, None], jnp.square(summed), 0.0)
        return jax.tree.map(jnp.square, grads), squares

    def body(total: Params, batch: Batch) -> tuple[Params, None]:
        dense, tables = jax.vmap(of_example)(batch)
        leaves = _tree.flatten(total)
        for path, square in _tree.flatten(dense).items():
            leaves[path] = leaves[path] + square.sum(axis=0)
        for path, (rows, square) in tables.items():
            leaves[path] = leaves[path].at[rows.reshape(-1)].add(square.reshape(-1, *square.shape[2:]))
        return _tree.unflatten(leaves), None

    return jax.lax.scan(body, total, batches)[0]
