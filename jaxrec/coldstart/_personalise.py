"""Users or items with parameters of their own, adapted to their interactions, in an ordinary recommender."""

import dataclasses
import functools

import jax
import numpy as np
import pandas as pd

from jaxrec import _tree, losses
from jaxrec._add import add
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, Params
from jaxrec.coldstart._episodes import pool_of, whose, with_negatives
from jaxrec.coldstart._inner import InnerLoop
from jaxrec.coldstart._meta import check_model
from jaxrec.data import Dataset, Interactions
from jaxrec.data._sides import capacity_for
from jaxrec.models import Model
from jaxrec.models._personalised import ROW, Personalised

_NUMBERS = 2**22  # personal parameters adapted at once


def personalise(
    recommender: Recommender, inner: InnerLoop, interactions: pd.DataFrame | None = None, *, seed: int = 0
) -> Recommender:
    """A recommender in which users (or items) have personal parameters of their own, adapted to their interactions.

    Each user starts from the recommender's parameters and takes the inner loop's steps on the latest ``inner.support``
    of all interactions that the recommender has seen of the user. Users without any, and those who are not adapted,
    are scored with the initialisation. Ranking, predicting, saving and ``add`` work as before; called again, users with
    new interactions are adapted anew, from the initialisation. With ``inner.side="item"`` it is the items that are
    adapted, each to the users who touched it.

    It holds a copy of the personal parameters for each adapted user, and scores by users and items instead of by
    vectors. Adapting takes memory for about four million personal parameters at a time, however many users there are.
    Scoring by items' own parameters takes a layer's width of numbers for each pair of a block.

    Args:
      recommender: from ``meta_learn``, or any other whose model has no history; or from this function.
      inner: as for ``meta_learn``.
      interactions: what (new) users touched, with the schema's columns; they are added to ``seen``, and their users
        (or items) adapted. None to adapt all with interactions that have been seen, those of the training part.
      seed: of the negatives.

    Returns:
      A recommender of ``models.Personalised``.

    Raises:
      ValueError: a personal pattern matches nothing or a table, the recommender was personalised with another part or
        side, nobody has an interaction, the loss takes targets for something else than the recommender's scores say, or
        none is named where these only order items.
    """
    expect(recommender, Recommender, "recommender")
    expect(inner, InnerLoop, "inner")
    recommender = _wrapped(recommender, inner)
    side = inner.side
    if interactions is None:
        chosen = np.unique(whose(recommender.seen, side)[0])
    else:
        recommender = add(recommender, interactions=interactions)
        column = getattr(recommender.encoder.schema, side)
        chosen = np.unique(recommender.encoder.vocabulary(side).encode(interactions[column]))
    chosen = chosen[chosen > 0]
    if not len(chosen):
        raise ValueError(f"No {side} has an interaction to adapt to. Give interactions=.")
    recommender, rows = _with_rows(recommender, chosen)
    model = _personalised(recommender)
    seen = recommender.seen
    data = Dataset(recommender.encoder, seen.user, seen.item, seen.value, seen.weight)
    inner = _with_loss(inner, recommender, model.base, data)
    pool = pool_of(recommender.trained, side)
    start = model.unwrap(recommender.params)
    copies = _tree.copied(recommender.params["personal"])  # written in place, block by block
    block = _block(copies, len(chosen))
    grouped = seen if side == "user" else seen.turned()
    rng = np.random.default_rng(seed)
    for first in range(0, len(chosen), block):
        part = chosen[first : first + block]
        row, used = _latest(grouped, part, inner.support, block)
        flat = with_negatives(data, row.reshape(-1), used.reshape(-1), pool, inner.drawn(data), rng, side=side)
        support = jax.tree.map(lambda each, shape=row.shape: each.reshape(*shape, *each.shape[1:]), flat)
        place = np.full(block, model.rows, np.int32)  # past the end: not written
        place[: len(part)] = rows[first : first + block]
        copies = _adapted(start, copies, place, support, recommender.features, model=model.base, inner=inner)
    return recommender.replace(params={**recommender.params, "personal": copies})


def _with_loss(inner: InnerLoop, recommender: Recommender, model: Model, data: Dataset) -> InnerLoop:
    """With a loss under which the scores go on to mean what they do: the link may have come of the loss of the training
    and not be the model's. By squared error log-odds would be drawn to 0 and 1."""
    link = recommender.link
    if inner.loss is None and link == "sigmoid":
        inner = dataclasses.replace(inner, loss="sigmoid_cross_entropy")
    if inner.loss is None and link == "rank" and data.target is not None:
        raise ValueError(
            "The recommender was trained by a loss of ranking, whose scores are no targets, and by default targets are "
            "fitted by squared error. Say which loss to adapt by, such as InnerLoop(loss='bpr')."
        )
    chosen, found = inner.chosen(model, data)
    if data.target is not None and chosen.loss in losses.POINTWISE and found != link:
        fitting = "sigmoid_cross_entropy" if link == "sigmoid" else "mse" if link == "identity" else "bpr"
        raise ValueError(
            f"The recommender has the link {link!r}, which goes with a loss such as {fitting!r}, got {chosen.loss!r}. "
            "Give InnerLoop that one, or train by the other."
        )
    return chosen


def _block(copies: Params, number: int) -> int:
    """How many are adapted at once: a power of two, to compile few shapes."""
    size = sum(leaf[0].size for leaf in jax.tree.leaves(copies))
    most = max(1, min(_NUMBERS // size, 1024, number))
    return 1 << (most.bit_length() - 1)


@functools.partial(jax.jit, static_argnames=("model", "inner"), donate_argnames=("copies",))
def _adapted(
    start: Params,
    copies: Params,
    place: jax.Array,
    support: Batch,
    features: Features,
    *,
    model: Model,
    inner: InnerLoop,
) -> Params:
    """The tables of copies with some of them written."""

    def of_one(support: Batch) -> Params:
        return _tree.split(inner.adapt(model, start, support, features), inner.personal)[1]

    def written(table: jax.Array, new: jax.Array) -> jax.Array:
        return table.at[place].set(new.reshape(len(place), -1), mode="drop")

    return jax.tree.map(written, copies, jax.vmap(of_one)(support))


def _personalised(recommender: Recommender) -> Personalised:
    assert isinstance(recommender.model, Personalised)
    return recommender.model


def _wrapped(recommender: Recommender, inner: InnerLoop) -> Recommender:
    """A personalised recommender as it is; of any other one in which nobody has a copy yet."""
    if isinstance(recommender.model, Personalised):
        model = recommender.model
        if (model.personal, model.side) != (inner.personal, inner.side):
            raise ValueError(
                f"Expected the personal part that this recommender was personalised with, {model.personal!r} by "
                f"{model.side}, got {inner.personal!r} by {inner.side}. Personalise the recommender from before."
            )
        return recommender
    check_model(recommender, inner)
    model = Personalised(base=recommender.model, personal=inner.personal, rows=capacity_for(1), side=inner.side)
    size = len(getattr(recommender.encoder.features, f"{inner.side}_row"))
    encoder = recommender.encoder.with_code(inner.side, ROW, np.zeros((size, 1), np.int32))
    return recommender.replace(model=model, params=model.wrap(recommender.params), encoder=encoder)


def _with_rows(recommender: Recommender, entities: np.ndarray) -> tuple[Recommender, np.ndarray]:
    """With a row of the tables of copies for each of these users or items, and which."""
    model = _personalised(recommender)
    code = np.array(getattr(recommender.encoder.features, f"{model.side}_codes")[ROW])
    new = entities[code[entities, 0] == 0]
    used = int(code.max())
    code[new, 0] = np.arange(used + 1, used + 1 + len(new))
    needed = used + 1 + len(new)
    params = recommender.params
    if needed > model.rows:
        larger = dataclasses.replace(model, rows=capacity_for(needed))
        params = larger.wrap(model.unwrap(params))
        params["personal"] = jax.tree.map(
            lambda grown, old: grown.at[: len(old)].set(old), params["personal"], recommender.params["personal"]
        )
        model = larger
    encoder = recommender.encoder.with_code(model.side, ROW, code)
    return recommender.replace(model=model, params=params, encoder=encoder), code[entities, 0]


def _latest(seen: Interactions, users: np.ndarray, most: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of each user's latest interactions ``[size, most]``, and which places are in use."""
    position, row = seen.rows_of(users)
    count = np.bincount(position, minlength=len(users))
    place = np.arange(len(position)) - np.repeat(np.cumsum(count) - count, count)
    column = place - np.maximum(count - most, 0)[position]
    kept = column >= 0
    rows, used = np.zeros((size, most), np.int64), np.zeros((size, most), bool)
    rows[position[kept], column[kept]] = row[kept]
    used[position[kept], column[kept]] = True
    return rows, used
