"""Generated two-domain worlds with a planted truth: jaxrec's embedded data."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxrec._expect import one_of
from jaxrec.data._readers import Frames
from jaxrec.data._schema import Categorical, Labels, Numeric, Schema, Vector
from jaxrec.data._vocabulary import Vocabulary

_GENRES = ("action", "art", "comedy", "drama", "history", "nature", "romance", "science")


@dataclasses.dataclass(frozen=True)
class Planted:
    """The truth of one domain: what drew users to items.

    ``scores`` is the expected utility that choices were drawn from, so ranking by it is the best any model can do.
    """

    users: Vocabulary
    items: Vocabulary
    user_factors: np.ndarray  # float64 [users, factors], in the vocabulary's order
    item_factors: np.ndarray  # float64 [items, factors]
    popularity: np.ndarray  # float64 [items], log

    def scores(self, users: Iterable[Any], items: Iterable[Any]) -> np.ndarray:
        """float64 ``[users, items]`` by raw ids; an id that is not of this domain is an error."""
        user, item = self.users.encode(users), self.items.encode(items)
        if not (user.all() and item.all()):
            raise ValueError("Expected users and items of this planted domain, got ids that are not in it.")
        return self.user_factors[user - 1] @ self.item_factors[item - 1].T + self.popularity[item - 1][None, :]


class World(NamedTuple):
    """Two domains and what is true of them."""

    source: Frames
    target: Frames
    source_truth: Planted
    target_truth: Planted


def generate(
    *,
    seed: int,
    transferable: float = 0.7,
    content: float = 0.6,
    source_users: int = 3000,
    target_users: int = 2000,
    shared_users: float = 0.7,
    source_items: int = 800,
    target_items: int = 600,
    source_interactions: float = 40.0,
    target_interactions: float = 12.0,
    feedback: Literal["implicit", "explicit"] = "implicit",
    factors: int = 8,
    taste: float = 2.0,
    zipf: float = 0.8,
) -> World:
    r"""A rich source and a poor target domain with disjoint items and partly the same users.

    A user's taste in the target is :math:`\sqrt t\, p_u + \sqrt{1 - t}\, p'_u` with :math:`t` the transferable share,
    :math:`p_u` the taste in the source and :math:`p'_u` independent of it; so is the map from an item's content, and
    from a user's features, to the factors. With :math:`t = 0` the domains have nothing in common but raw user ids. A
    user picks items without replacement with probability proportional to
    :math:`\exp(p_u^\top q_i + \log \mathrm{popularity}_i)`.

    Args:
      seed: the same seed gives the same world.
      transferable: share of the variance of tastes and content maps that both domains have in common, in [0, 1].
      content: share of the variance of an item's factors that its content explains, and of a user's that the
        features explain to half this amount, in [0, 1].
      source_users: users of the source.
      target_users: users of the target.
      shared_users: share of the target's users who are in the source too.
      source_items: items of the source.
      target_items: items of the target.
      source_interactions: mean interactions per user, log-normally distributed, at least 2.
      target_interactions: likewise.
      feedback: ``"implicit"`` (a row is a choice) or ``"explicit"`` (with a rating from 1 to 5 that follows taste).
      factors: number of planted factors.
      taste: standard deviation of the taste's part of the utility; 0 leaves popularity alone.
      zipf: exponent of item popularity by rank.

    Returns:
      Frames with schemas, and the planted truth. Interactions have ``user``, ``item``, ``time`` (and ``rating``);
      users ``age``, ``group``; items ``content`` (a vector) and ``genres``.

    Raises:
      ValueError: a share is outside [0, 1], or a count is too small.
    """
    for name, share in (("transferable", transferable), ("content", content), ("shared_users", shared_users)):
        if not 0 <= share <= 1:
            raise ValueError(f"Expected {name} in [0, 1], got {share}. It is a share.")
    one_of(feedback, ("implicit", "explicit"), "feedback")
    if min(source_interactions, target_interactions) < 2:
        raise ValueError("Expected at least 2 interactions per user on average in each domain.")
    if round(shared_users * target_users) > source_users:
        raise ValueError(
            f"{shared_users:g} of {target_users} target users cannot all be among {source_users} source users. Lower "
            "shared_users, or raise source_users."
        )
    if min(source_users, target_users, source_items, target_items, factors) < 4:
        raise ValueError("Expected at least 4 users and items in each domain, and 4 factors.")
    rng = np.random.default_rng(seed)
    num_shared = round(shared_users * target_users)
    num_users = source_users + target_users - num_shared

    group = rng.integers(0, 6, num_users)
    age = rng.integers(18, 71, num_users)
    traits = np.concatenate([np.eye(6)[group] * 6**0.5, (age[:, None] - 44) / 15.3], axis=1)
    everyone = pd.DataFrame(
        {"user": np.arange(num_users) * 7 + 1_000_003, "age": age, "group": np.array(list("ABCDEF"))[group]}
    )

    def of_users(explained: float) -> np.ndarray:
        explained_part = traits @ rng.normal(size=(traits.shape[1], factors)) / traits.shape[1] ** 0.5
        return _blend(explained_part, rng.normal(size=(num_users, factors)), explained)

    source_taste, other_taste = of_users(content / 2), of_users(content / 2)
    width = 2 * factors
    shared_map, other_map = (rng.normal(size=(width, factors)) / width**0.5 for _ in range(2))
    target_map = _blend(shared_map, other_map, transferable)
    plan = (
        ("book", slice(0, source_users), source_taste, shared_map, source_items, source_interactions),
        ("film", slice(num_users - target_users, None), _blend(source_taste, other_taste, transferable), target_map,
         target_items, target_interactions),
    )  # fmt: skip
    found = []
    for name, members, tastes, content_map, num_items, mean in plan:
        users = everyone.iloc[members].sort_values("user")
        described = rng.normal(size=(num_items, width))
        item_factors = _blend(described @ content_map, rng.normal(size=(num_items, factors)), content)
        user_factors = tastes[members] * taste / factors**0.5
        popularity = -zipf * np.log1p(rng.permutation(num_items))
        ids = [f"{name}-{number:05d}" for number in range(num_items)]
        truth = Planted(Vocabulary.fit(users["user"]), Vocabulary.fit(ids), user_factors, item_factors, popularity)
        labels = ["|".join(_GENRES[j] for j in np.sort(np.argsort(-row[:8])[:2])) for row in described]
        items = pd.DataFrame({"item": ids, "genres": labels, "content": list(described.astype(np.float32))})
        interactions = _choose(rng, truth, mean, feedback)
        schema = Schema(
            target="rating" if feedback == "explicit" else None,
            target_scale="zscore" if feedback == "explicit" else None,
            time="time",
            user_features=(Numeric("age"), Categorical("group")),
            item_features=(Vector("content"), Labels("genres", "|")),
        )
        found.append((Frames(interactions, users.reset_index(drop=True), items, schema), truth))
    (source, source_truth), (target, target_truth) = found
    return World(source, target, source_truth, target_truth)


def _blend(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """``a`` has ``share`` of the variance, ``b`` the rest."""
    return share**0.5 * a + (1 - share) ** 0.5 * b


def _choose(rng: np.random.Generator, truth: Planted, mean: float, feedback: str) -> pd.DataFrame:
    num_users, num_items = len(truth.users), len(truth.items)
    spread = 0.7
    count = np.exp(rng.normal(np.log(mean) - spread**2 / 2, spread, num_users))
    count = np.clip(np.round(count), 2, num_items // 2).astype(int)
    taste = truth.user_factors @ truth.item_factors.T
    # The largest of utility plus Gumbel noise are a sample without replacement from the softmax.
    noisy = taste + truth.popularity + rng.gumbel(size=taste.shape)
    ranked = np.argsort(-noisy, axis=1)
    user = np.repeat(np.arange(num_users), count)
    place = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    item = ranked[user, place]
    frame = pd.DataFrame({"user": truth.users.ids[user], "item": truth.items.ids[item]})
    frame["time"] = rng.permutation(len(frame))
    if feedback == "explicit":
        liking = 3.2 + 0.7 * taste[user, item] + rng.normal(scale=0.5, size=len(frame))
        frame["rating"] = np.clip(np.round(liking), 1, 5).astype(int)
    return frame.sort_values("time").reset_index(drop=True)
