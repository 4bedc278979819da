"""Users with parameters of their own, adapted to what they touched, in a recommender that ranks like any other."""

import functools

import jax
import numpy as np
import pandas as pd

from jaxrec import _tree
from jaxrec._add import add
from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Batch, Features, Params
from jaxrec.coldstart._episodes import with_negatives
from jaxrec.coldstart._inner import InnerLoop
from jaxrec.coldstart._meta import check_model
from jaxrec.data import Dataset, Interactions, Negatives
from jaxrec.data._negatives import Sampler
from jaxrec.data._sides import capacity_for
from jaxrec.models import Model
from jaxrec.models._personalised import ROW, Personalised

_NUMBERS = 2**22  # personal parameters adapted at once


def personalise(
    recommender: Recommender, inner: InnerLoop, interactions: pd.DataFrame | None = None, *, seed: int = 0
) -> Recommender:
    """A recommender in which users have personal parameters of their own, adapted to what they have touched.

    Each user starts from the recommender's parameters and takes the inner loop's steps on the latest ``inner.support``
    of all interactions that the recommender has seen of the user. Users without any, and those who are not adapted,
    are scored with the initialisation. Ranking, predicting, saving and ``add`` work as before; called again, users with
    new interactions are adapted anew, from the initialisation.

    It holds a copy of the personal parameters for each adapted user, and scores by users and items instead of by
    vectors. Adapting takes memory for about four million personal parameters at a time, however many users there are.

    Args:
      recommender: from ``meta_learn``, or any other whose model has no history; or from this function.
      inner: as for ``meta_learn``.
      interactions: what (new) users touched, with the schema's columns; they are added to ``seen``, and their users
        adapted. None to adapt every user with interactions that have been seen, those of the training part.
      seed: of the negatives.

    Returns:
      A recommender of ``models.Personalised``.

    Raises:
      ValueError: a personal pattern matches nothing or a table, the recommender was personalised with another part, no
        user has an interaction.
    """
    expect(recommender, Recommender, "recommender")
    expect(inner, InnerLoop, "inner")
    recommender = _wrapped(recommender, inner)
    if interactions is None:
        users = np.flatnonzero(recommender.seen.user_count)
    else:
        recommender = add(recommender, interactions=interactions)
        users = np.unique(recommender.encoder.users.encode(interactions[recommender.encoder.schema.user]))
    users = users[users > 0]
    if not len(users):
        raise ValueError("No user has an interaction to adapt to. Give interactions=.")
    recommender, rows = _with_rows(recommender, users)
    model = _personalised(recommender)
    seen, trained = recommender.seen, recommender.trained
    data = Dataset(recommender.encoder, seen.user, seen.item, seen.value)
    inner, _ = inner.chosen(model.base, data)
    sampler = Sampler(Dataset(recommender.encoder, trained.user, trained.item), Negatives(num=1), 1)
    start, copies = model.unwrap(recommender.params), recommender.params["personal"]
    block = _block(copies, len(users))
    rng = np.random.default_rng(seed)
    for first in range(0, len(users), block):
        part = users[first : first + block]
        row, used = _latest(seen, part, inner.support, block)
        flat = with_negatives(data, row.reshape(-1), used.reshape(-1), sampler, inner.drawn(data), rng)
        support = jax.tree.map(lambda each, shape=row.shape: each.reshape(*shape, *each.shape[1:]), flat)
        place = np.full(block, model.rows, np.int32)  # past the end: not written
        place[: len(part)] = rows[first : first + block]
        copies = _adapted(start, copies, place, support, recommender.features, model=model.base, inner=inner)
    return recommender.replace(params={**recommender.params, "personal": copies})


def _block(copies: Params, num_users: int) -> int:
    """Users adapted at once: a power of two, to compile few shapes."""
    size = sum(leaf[0].size for leaf in jax.tree.leaves(copies))
    most = max(1, min(_NUMBERS // size, 1024, num_users))
    return 1 << (most.bit_length() - 1)


@functools.partial(jax.jit, static_argnames=("model", "inner"))
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
    """The tables of copies with those of some users written."""

    def of_user(support: Batch) -> Params:
        return _tree.split(inner.adapt(model, start, support, features), inner.personal)[1]

    def written(table: jax.Array, new: jax.Array) -> jax.Array:
        return table.at[place].set(new.reshape(len(place), -1), mode="drop")

    return jax.tree.map(written, copies, jax.vmap(of_user)(support))


def _personalised(recommender: Recommender) -> Personalised:
    assert isinstance(recommender.model, Personalised)
    return recommender.model


def _wrapped(recommender: Recommender, inner: InnerLoop) -> Recommender:
    """A personalised recommender as it is; of any other one in which nobody has a copy yet."""
    if isinstance(recommender.model, Personalised):
        if recommender.model.personal != inner.personal:
            raise ValueError(
                f"Expected the personal part that this recommender was personalised with, "
                f"{recommender.model.personal!r}, got {inner.personal!r}. Personalise the recommender from before."
            )
        return recommender
    check_model(recommender, inner)
    model = Personalised(base=recommender.model, personal=inner.personal, rows=capacity_for(1))
    size = len(recommender.encoder.features.user_row)
    encoder = recommender.encoder.with_user_code(ROW, np.zeros((size, 1), np.int32))
    return recommender.replace(model=model, params=model.wrap(recommender.params), encoder=encoder)


def _with_rows(recommender: Recommender, users: np.ndarray) -> tuple[Recommender, np.ndarray]:
    """With a row of the tables of copies for each of these users, and which."""
    model = _personalised(recommender)
    code = np.array(recommender.encoder.features.user_codes[ROW])
    new = users[code[users, 0] == 0]
    used = int(code.max())
    code[new, 0] = np.arange(used + 1, used + 1 + len(new))
    needed = used + 1 + len(new)
    params = recommender.params
    if needed > model.rows:
        larger = Personalised(base=model.base, personal=model.personal, rows=capacity_for(needed))
        params = larger.wrap(model.unwrap(params))
        params["personal"] = jax.tree.map(
            lambda grown, old: grown.at[: len(old)].set(old), params["personal"], recommender.params["personal"]
        )
        model = larger
    encoder = recommender.encoder.with_user_code(ROW, code)
    return recommender.replace(model=model, params=params, encoder=encoder), code[users, 0]


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
