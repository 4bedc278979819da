"""Recommenders of one target by different ways of transfer, as one factorisation."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxrec._expect import expect
from jaxrec._recommender import Recommender, need_no_context, order_of
from jaxrec.models import MatrixFactorization
from jaxrec.transfer._carry import vectors_of


def blend(parts: Sequence[Recommender], weight: Sequence[float]) -> Recommender:
    """The weighted sum of several recommenders' scores, each in units of its own spread.

    Unlike ``coldstart.mix`` the parts need not share an encoder, only the target's items by raw id; a user whom a part
    does not know is to it the unknown one. What is blended is a factorisation again, as wide as its parts together, so
    that ranking costs one matrix product.

    Args:
      parts: whose scores are inner products, with the target's catalogue, such as ``emcdr`` and ``regress`` return.
        What users have seen, and which of them are cold, is the first one's; what was added to another part since
        its training is not read.
      weight: of each part, multiplying its scores over their standard deviation (over all trained items and those users
        who are cold in the first part, or all users where none is).

    Returns:
      A recommender of a ``MatrixFactorization`` that knows the users of every part and the items of the first, each
      with a vector: of an item that no part was trained on, what the parts say of it by its content.

    Raises:
      ValueError: there is no part, one does not factorise or has no table row for an item of the first, weights are not
        finite or not as many, or all scores of a part are the same.
    """
    parts, scale = list(parts), [float(value) for value in weight]
    if not parts:
        raise ValueError("Expected at least one recommender to blend, got none.")
    if len(scale) != len(parts) or not np.isfinite(scale).all():
        raise ValueError(f"Expected a finite weight for each of {len(parts)} recommenders, got {list(weight)}.")
    for number, part in enumerate(parts):
        expect(part, Recommender, f"parts[{number}]")
        if not part.factorises:
            raise ValueError(
                f"Expected recommenders whose scores are inner products, got a {type(part.model).__name__}. "
                "coldstart.mix takes any, of one encoder."
            )
        need_no_context(part, f"part {number}")
    first = parts[0]
    encoder = first.encoder
    for part in parts[1:]:
        encoder = encoder.extend(users=part.encoder.users.ids)
    trained = np.flatnonzero(encoder.features.item_row)
    items = np.arange(1, len(encoder.items) + 1)
    encoder = encoder.with_rows("user", np.arange(1, len(encoder.users) + 1)).with_rows("item", items)
    features = encoder.features
    cold = np.ones(len(encoder.users) + 1, bool)
    cold[: first.trained.num_users] = first.trained.user_count[: len(cold)] == 0
    cold[0] = not cold[1:].any()
    of_users, of_items = [], []
    for part, factor in zip(parts, scale, strict=True):
        part = part.replace(seen=part.trained)  # what was added to the first is folded in later, not twice
        there = part.encoder.items.encode(encoder.items.decode(items))
        missing = int((np.asarray(part.encoder.features.item_row)[there[trained - 1]] == 0).sum())
        if missing:
            raise ValueError(
                f"{missing} of the {len(trained)} items that the first part has trained are not trained in {part!r}. "
                "Blend recommenders of one training part of the target."
            )
        ids = encoder.users.decode(np.arange(1, len(encoder.users) + 1))
        user = vectors_of(part, np.concatenate([[0], part.encoder.users.encode(ids)]), "user").astype(np.float64)
        item = vectors_of(part, there, "item").astype(np.float64)
        spread = _spread(user[cold] if not cold[0] else user, item[trained - 1])
        of_users.append(user * (factor / spread))
        of_items.append(item)
    user, item = np.concatenate(of_users, axis=1), np.concatenate(of_items, axis=1)
    model = MatrixFactorization(user_rows=encoder.user_rows, item_rows=encoder.item_rows, dim=user.shape[1], bias=False)
    tables = {"user": np.zeros((model.user_rows, model.dim)), "item": np.zeros((model.item_rows, model.dim))}
    tables["user"][np.asarray(features.user_row)[: len(user)]] = user
    tables["item"][np.asarray(features.item_row)[items]] = item
    tables["item"][0] = item[trained - 1].mean(axis=0)
    params = {side: {"embedding": jnp.asarray(table, jnp.float32)} for side, table in tables.items()}
    seen = dataclasses.replace(first.seen, num_users=len(features.user_row))
    return Recommender(model, params, encoder, seen, first.num_trained, link=order_of(seen))


def _spread(user: np.ndarray, item: np.ndarray) -> float:
    """Standard deviation of all inner products, from the moments of either side."""
    square = float(((user.T @ user) * (item.T @ item)).sum()) / (len(user) * len(item))
    variance = square - float(user.mean(axis=0) @ item.mean(axis=0)) ** 2
    if not variance > 1e-12 * square:
        raise ValueError("All scores of a part are the same, so it cannot be blended. Leave it out.")
    return variance**0.5
