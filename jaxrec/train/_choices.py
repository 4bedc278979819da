"""What is trained by where nothing is said, and what does not go together."""

import warnings

import jax
import numpy as np
import optax
from jax.interpreters.partial_eval import dce_jaxpr

from jaxrec import _tree, losses, optim
from jaxrec._types import Batch, Features, Link
from jaxrec.data import Dataset, Negatives
from jaxrec.data._batches import rows_that_weigh
from jaxrec.data._counting import counted
from jaxrec.models import Linear, Model

# Chosen on validation parts of generated worlds, MovieLens 100K and 1M (docs/design.md): without decay, models with
# embeddings are past their best after a few epochs. Biases do not decay, or ratings would be pulled to zero; nor does
# an autoencoder, whose kernels only learn through each other: they would shrink until nothing passes.
_DEFAULT_OPTIMIZER = optim.row_sparse(
    optim.per_path(
        {
            **dict.fromkeys(("*autoencoder/*", "*item/encoder/*", "*item/decoder/*"), optax.adam(1e-3)),
            **dict.fromkeys(("*/embedding", "*/specific"), optax.adamw(1e-2, weight_decay=1.0)),
            "*/kernel": optax.adamw(3e-3, weight_decay=3.0),
            "*": optax.adam(3e-3),
        }
    )
)
# A coefficient has the unit of the target, and AdamW's decay of d would keep it below 1 / d.
_DEFAULT_OF_REGRESSIONS = optim.row_sparse(optax.adam(1e-2))
_DEFAULT_NEGATIVES = {
    "in_batch_softmax": Negatives(in_batch=True),
    "sampled_softmax": Negatives(shared=256),
    "softmax": Negatives(catalogue=True),
    "warp": Negatives(shared=256),
    "bpr": Negatives(num=1),
    "sigmoid_cross_entropy": Negatives(num=4),
    "mse": Negatives(num=4),
}
_NAMES = {losses.on_batch(name): name for name in _DEFAULT_NEGATIVES}


def chosen_optimizer(model: Model, optimizer: optim.Optimizer | optax.GradientTransformation | None) -> optim.Optimizer:
    """The default for None, and an optax transformation in its row-sparse form."""
    if optimizer is None:
        while (inner := getattr(model, "student", getattr(model, "base", None))) is not None:
            model = inner
        return _DEFAULT_OPTIMIZER if model.tables and not isinstance(model, Linear) else _DEFAULT_OF_REGRESSIONS
    return optimizer if isinstance(optimizer, optim.Optimizer) else optim.row_sparse(optimizer)


def warn_unless_weighed(loss: losses.Loss, model: Model, batch: Batch, features: Features) -> None:
    """A loss of scores alone would also train on the examples that fill a batch up, in silence."""

    def of(weight: jax.Array, scores: jax.Array, batch: Batch) -> jax.Array:
        return loss(scores, batch._replace(weight=weight))

    scores = jax.eval_shape(model.apply, _tree.shapes(model), batch, features)
    traced = jax.make_jaxpr(of)(batch.weight, scores, batch._replace(weight=None)).jaxpr
    weighs, reads, *_ = dce_jaxpr(traced, [True] * len(traced.outvars))[1]  # what the result comes from, within jit too
    if reads and not weighs:  # one without scores leaves all to the model's penalty
        warnings.warn(
            "The loss looks at scores and not at batch.weight, so that it also counts the examples that fill batches "
            "up, whose weight is 0, and that the rows' own weights change nothing. Weigh each row by it, as in "
            "losses.bpr(scores, weight=batch.weight).",
            UserWarning,
            stacklevel=3,
        )


def check_rows(model: Model, train: Dataset) -> None:
    """Every entity of the training part needs a row of the model's tables: row 0, the unknown's, learns nothing."""
    sizes = train.sizes
    needed = {f"user/{name}": rows for name, rows in sizes.user_codes}
    needed |= {f"item/{name}": rows for name, rows in sizes.item_codes}
    sides = (("user", train.user, train.features.user_row), ("item", train.item, train.features.item_row))
    for side, index, row in sides:
        needed[side] = int(row.max()) + 1
        if index is None or side not in model.tables.values():
            continue
        without = np.flatnonzero((counted(index, len(row)) > 0) & (row == 0))
        if len(without):
            raise ValueError(
                f"{len(without)} {side}s of the training part have no row in the model's tables, so nothing could be "
                f"learned of them. Encode the training part with data.encode, and use transfer.adapt to go on from a "
                "recommender that does not know them."
            )
    shapes = _tree.flatten(_tree.shapes(model))
    for path, numbering in model.tables.items():
        if shapes[path].shape[0] < needed.get(numbering, 0):
            raise ValueError(
                f"The model's table {path!r} has {shapes[path].shape[0]} rows and the data needs "
                f"{needed[numbering]}. Make the model with for_data(train), and carry parameters over with "
                "transfer.adapt."
            )


def empty_rows(model: Model, train: Dataset) -> dict[str, np.ndarray]:
    """By side, table rows of those who are in no example, which would stay as they were drawn; sides without are left
    out. Of a model that reads histories an item may be in that of an example."""
    rows, found = rows_that_weigh(train), {}
    for side, index in (("user", train.user), ("item", train.item)):
        if index is None or side not in model.tables.values():
            continue
        row = np.asarray(getattr(train.features, f"{side}_row"))
        whole = rows is None or (side == "item" and getattr(model, "history", 0))  # histories hold every row
        without = row[counted(index if whole else index[rows], len(row)) == 0]
        if without.any():
            found[side] = without[without > 0]
    return found


def chosen_loss(model: Model, train: Dataset, loss: str | losses.Loss | None) -> tuple[str | None, losses.Loss, Link]:
    """The loss's name if it has one, the function, and the link of its predictions."""
    link = getattr(model, "link", None)
    by_users = train.target is None and getattr(model, "histories", None) == "users"
    if loss is None:
        fallback = "mse" if train.target is not None else "softmax" if by_users else "in_batch_softmax"
        loss = "sigmoid_cross_entropy" if link == "sigmoid" else fallback
        if link == "rank" and train.target is not None:
            raise ValueError(
                "The model goes on from scores that only order items, and by default rows with targets are fitted by "
                "squared error. Say which loss to train by, such as loss='bpr'."
            )
    if not isinstance(loss, str):
        loss = _NAMES.get(loss, loss)
    if not isinstance(loss, str):
        return None, loss, link or "identity"
    if link is not None and (link == "sigmoid") != (loss == "sigmoid_cross_entropy") and loss in losses.POINTWISE:
        fitting = "sigmoid_cross_entropy" if link == "sigmoid" else "mse"
        raise ValueError(f"The model has the link {link!r}, which goes with the loss {fitting!r}, got {loss!r}.")
    found = losses.on_batch(loss)
    if loss == "sigmoid_cross_entropy" and train.target is not None:
        low, high = float(train.target.min()), float(train.target.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"Expected targets in [0, 1] for sigmoid_cross_entropy, got {low:g} .. {high:g}. Turn ratings into 0 "
                "and 1, scale them with Schema(target_scale='minmax'), or use loss='mse'."
            )
    if by_users and loss != "softmax":
        raise ValueError(
            f"The model learns from users with all of their items, by the loss 'softmax' or a function, got {loss!r}. "
            "Give the model histories='subset' for examples of interactions."
        )
    if loss == "sigmoid_cross_entropy":
        return loss, found, "sigmoid"
    return loss, found, "rank" if train.target is not None and loss not in losses.POINTWISE else "identity"


def chosen_negatives(train: Dataset, loss: str | None, negatives: Negatives | None) -> Negatives | None:
    if negatives is not None and not isinstance(negatives, Negatives):
        raise TypeError(
            f"Expected data.Negatives for negatives, got {negatives!r}. Say how they are drawn, for example "
            "negatives=data.Negatives(num=1)."
        )
    pointwise = loss in losses.POINTWISE
    if train.item is None:
        if negatives is not None or (loss is not None and not pointwise):
            raise ValueError("Negatives are items, and the data has none. Name the item column in the schema.")
        return None
    if pointwise and train.target is not None:
        if negatives is not None:
            raise ValueError(
                "The data has a target, so rows say themselves what is negative; sampled negatives would be given the "
                "row's target. Leave the target out of the schema to train on implicit feedback."
            )
        return None
    if negatives is None:
        return _DEFAULT_NEGATIVES.get(loss or "")
    if loss is not None and negatives.in_batch != (loss == "in_batch_softmax"):
        raise ValueError(f"Negatives(in_batch=True) and the loss 'in_batch_softmax' go together, got {loss!r}.")
    if negatives.catalogue and loss not in (None, "softmax", "sampled_softmax"):
        raise ValueError(
            f"With Negatives(catalogue=True) a positive is among its negatives, which the loss {loss!r} does not know. "
            "Use 'softmax', or negatives that are drawn."
        )
    if loss == "softmax" and not negatives.catalogue:
        raise ValueError(
            f"The loss 'softmax' is over all items: expected Negatives(catalogue=True), its default, got {negatives}. "
            "For a part of them use 'sampled_softmax'."
        )
    return negatives
