"""Approximate top-k of inner products: a graph over the items, of which a search visits a small part."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec._expect import expect
from jaxrec._recommender import Recommender
from jaxrec._types import Array
from jaxrec.ranking._search import Ranker, as_positions, excluded_grid, ranker, search
from jaxrec.ranking._top_k import Block, Pairs, TopK, padded, user_blocks
from jaxrec.ranking._vectors import everything, user_vectors

_BUILDING = 100  # items looked at for each that joins the graph
_WALKED = 2**10  # exclusions up to which a walk that looks for as many items more is worth it
_GATHERED = 2**26  # numbers of the items that are scored at once; more where one user alone needs more
_USERS_SHARE = 2**10  # a search holds lists alone; this bounds the blocks of users all the same


class Index:
    """Items in a graph whose edges join those that are alike; a search walks it to where inner products are large.

    Lists are nearly those of ``search``: ``recommend(..., index=)`` and ``Index.search`` find most of the best items,
    may miss some, and score exactly what they find. For one or a few users of a large catalogue they take a small part
    of the time; of a small one, or for many users at once, the exact search is about as fast. Equal vectors are found
    together, those at lower positions first.

    Built on all cores; the graph, and so a list, may differ a little from one building to the next. Extra ``ann``.

    Args:
      items: vectors, kept by reference and copied twice.
      live: False for items that are never listed, such as padding.
      links: edges of an item, at least 2. More find more, and take memory (8 bytes each) and time.
      effort: items looked at for a user, at least 1; more find more and take longer. How many of the best are found
        depends on the vectors (benchmarks/README.md): of random ones few, of trained ones nine in ten or more.

    Raises:
      ValueError: no item is live, a vector is not finite, an option is out of range.
      ModuleNotFoundError: faiss is not installed.

    References:
      Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using hierarchical navigable small
      world graphs, IEEE TPAMI 42(4), 2020, in faiss (Douze et al., The faiss library, 2024). Bachrach et al., Speeding
      up the Xbox recommender system using a Euclidean transformation for inner-product spaces, RecSys 2014, for the
      number that makes distances of inner products.
    """

    def __init__(
        self,
        items: Float[Array, "candidates dim"],
        *,
        live: Bool[Array, " candidates"] | None = None,
        links: int = 16,
        effort: int = 400,
    ) -> None:
        for name, value, least in (("links", links, 2), ("effort", effort, 1)):
            if value < least:
                raise ValueError(f"Expected {name} >= {least}, got {value}.")
        self.items, self._effort = items, effort
        vectors = np.asarray(items, np.float32)
        self.positions = np.arange(len(vectors)) if live is None else np.flatnonzero(np.asarray(live))
        if not len(self.positions):
            raise ValueError("Expected at least one live item, got none. There would be nothing to find.")
        chosen = vectors[self.positions]
        if not np.isfinite(chosen).all():
            raise ValueError("An item vector is not finite, so it has no rank. Look for NaN in the parameters.")
        # A walk cannot leave a crowd of equal vectors, so each is in the graph once and stands for its items.
        distinct, which, self._count = np.unique(chosen, axis=0, return_inverse=True, return_counts=True)
        self._members = self.positions[np.argsort(which.reshape(-1), kind="stable")]
        self._first = np.cumsum(self._count) - self._count
        # With one number more all vectors are equally long, and the nearest has the largest inner product.
        length = np.square(distinct).sum(axis=1, dtype=np.float64)
        lifted = np.sqrt(length.max() - length).astype(np.float32)
        faiss = _faiss()
        self._graph: Any = faiss.IndexHNSWFlat(distinct.shape[1] + 1, links)
        self._graph.hnsw.efConstruction = _BUILDING
        self._graph.add(np.ascontiguousarray(np.column_stack([distinct, lifted])))
        self._distinct, self._parameters = distinct, faiss.SearchParametersHNSW

    @classmethod
    def of(cls, recommender: Recommender, **options: Any) -> "Index":
        """Of all items of a recommender whose model factorises, for ``recommend(recommender, ..., index=)``.

        Raises:
          ValueError: the model does not factorise, or as for the class.
        """
        expect(recommender, Recommender, "recommender")
        if not recommender.factorises:
            raise ValueError(
                f"{type(recommender.model).__name__} has no vectors of items to build an index of. Rank "
                "exactly, without index=."
            )
        return cls(recommender.catalogue, live=everything(recommender.encoder) > 0, **options)

    def search(
        self,
        users: Float[Array, "users dim"],
        *,
        k: int,
        exclude: Int[Array, "users excluded"] | None = None,
        effort: int | None = None,
    ) -> TopK:
        """About the ``k`` best items of each user by inner product.

        Args:
          users: vectors.
          k: length of the lists.
          exclude: for each user positions that are not listed; fill up with any number that is no position. The search
            looks for as many items more, and exactly for whoever has more than a thousand of them.
          effort: as for the class, which gives the default.

        Returns:
          Scores in float32 and positions; equal scores: lower position first. Lists are as long as those of the exact
          search, which stands in where the walk finds too few.

        Raises:
          ValueError: ``k`` is outside ``1 .. items``, ``effort`` < 1, a user's vector of another width or not finite.
          TypeError: ``exclude`` is not of integers.
        """
        if not 1 <= k <= len(self.items):
            raise ValueError(
                f"Expected k in 1 .. {len(self.items)} (the number of items), got {k}. Lists cannot be longer."
            )
        effort = self._effort if effort is None else effort
        if effort < 1:
            raise ValueError(f"Expected effort >= 1, got {effort}.")
        asked = np.asarray(users, np.float32)
        if asked.ndim != 2 or asked.shape[1] != self.items.shape[1]:
            raise ValueError(f"Expected users' vectors [users, {self.items.shape[1]}], got shape {asked.shape}.")
        if not np.isfinite(asked).all():
            raise ValueError("A user vector is not finite, so no item has a rank. Look for NaN in the parameters.")
        given = np.full((len(asked), 1), -1) if exclude is None else np.asarray(exclude)
        given = -np.sort(-as_positions(given, len(self.items)), axis=1)  # those that are positions come first
        count = (given >= 0).sum(axis=1)
        score, position = np.full((len(asked), k), -np.inf, np.float32), np.full((len(asked), k), -1)
        for block in self._blocks(count, k):
            fewer = given[block, : count[block].max()]
            score[block], position[block] = self._lists(asked[block], fewer, k, effort)
        short = np.flatnonzero(position[:, -1] < 0)
        if len(short):
            live = np.zeros(len(self.items), bool)
            live[self.positions] = True
            size = 1 << (len(short) - 1).bit_length()  # a power of two, to compile few shapes
            exact = search(padded(asked[short], size), self.items, k=k, live=live, exclude=padded(given[short], size))
            score[short], position[short] = (np.asarray(each)[: len(short)] for each in exact)
        return TopK(jnp.asarray(score, jnp.float32), jnp.asarray(position, jnp.int32))

    def _blocks(self, count: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """Those who walk, in blocks with about as many exclusions, which make a walk deep, and of bounded memory."""
        kind = np.where(count <= _WALKED, np.frexp(count)[1], -1)
        for each in np.unique(kind[kind >= 0]):
            users = np.flatnonzero(kind == each)
            size = max(_GATHERED // ((k + int(count[users].max())) * self.items.shape[1]), 1)
            yield from (users[start : start + size] for start in range(0, len(users), size))

    def _lists(self, asked: np.ndarray, exclude: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions ``[users, k]`` of what the graph finds and is not excluded, -1 where that is less."""
        score, position = self._walk(asked, min(k + exclude.shape[1], len(self.positions)), effort)
        row = np.arange(len(asked))[:, None] * (len(self.items) + 1)  # nobody's exclusion is another one's
        gone = (position < 0) | np.isin(row + position, row + exclude)
        order = np.lexsort((position, -score, gone), axis=1)[:, :k]
        score, position, gone = (np.take_along_axis(each, order, axis=1) for each in (score, position, gone))
        missing = ((0, 0), (0, k - score.shape[1]))
        score = np.pad(np.where(gone, -np.inf, score), missing, constant_values=-np.inf)
        return score, np.pad(np.where(gone, -1, position), missing, constant_values=-1)

    def _walk(self, asked: np.ndarray, more: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions ``[users, more]`` of what the graph finds, -1 where it finds fewer."""
        near = min(more, len(self._distinct))
        flat = np.ascontiguousarray(np.pad(asked, ((0, 0), (0, 1))))
        _, found = self._graph.search(flat, near, params=self._parameters(efSearch=max(effort, near)))
        score = np.einsum("ud,und->un", asked, self._distinct[found])
        score = np.where(found < 0, -np.inf, np.where(score == 0, 0.0, score))  # -0 ranks as 0
        order = np.argsort(-score, axis=1, kind="stable")
        score, found = np.take_along_axis(score, order, axis=1), np.take_along_axis(found, order, axis=1)
        count = np.where(found < 0, 0, self._count[found])
        before = np.cumsum(count, axis=1) - count
        count = np.clip(more - before, 0, count)  # of equal ones those that come first
        user, place = np.nonzero(count)
        number = count[user, place]
        inside = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        to = np.repeat(user, number), np.repeat(before[user, place], number) + inside
        scores, positions = np.full((len(asked), more), -np.inf, np.float32), np.full((len(asked), more), -1)
        scores[to] = np.repeat(score[user, place], number)
        positions[to] = self._members[np.repeat(self._first[found[user, place]], number) + inside]
        return scores, positions


def by_index(recommender: Recommender, candidates: np.ndarray, index: Index) -> Ranker:
    """How to rank ``candidates`` (entity indices in their own place, 0 where one is none) by an index of all items."""
    if not recommender.factorises:
        raise ValueError(f"An index ranks for a model that factorises, not for {type(recommender.model).__name__}.")
    catalogue, known = recommender.catalogue, np.flatnonzero(everything(recommender.encoder))
    same = index.items is catalogue or bool(jnp.array_equal(index.items, catalogue))
    if not same or not np.array_equal(index.positions, known):
        raise ValueError(
            "The index is not of this recommender's items, which change with training and with new ones. Build it "
            "anew: ranking.Index.of(recommender)."
        )
    # Items that nobody may be told of are asked for like each one's own exclusions.
    barred = known[candidates[known] == 0].astype(np.int32)
    if len(barred) > _WALKED:
        return ranker(recommender, candidates)

    def rank(users: np.ndarray, size: int, exclude: Pairs, k: int) -> Block:
        vectors = np.asarray(user_vectors(recommender, padded(users, size)))[: len(users)]
        given = excluded_grid(exclude, len(users), len(candidates))
        given = np.concatenate([given, np.tile(barred, (len(users), 1))], axis=1)
        return Block(index.search(vectors, k=k, exclude=given), jnp.bool_(False))

    return Ranker(rank, lambda num_users: list(user_blocks(num_users, _USERS_SHARE)), len(candidates), threads=False)


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ranking.Index needs faiss. Install the extra: pip install 'jaxrec[ann]'.") from error
    return faiss
