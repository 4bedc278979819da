"""Negatives on the host: what to draw, and from which distribution."""

import dataclasses
from typing import Literal

import numpy as np

from jaxrec._expect import one_of
from jaxrec.data._counting import counted, distinct
from jaxrec.data._encoder import Dataset

_DRAWS = 2**16  # drawn at once by alias: what is between two passes over them stays in the cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Negatives:
    """How a batch gets the items that its positives are compared with. Only trained items are drawn.

    Args:
      num: own negatives of each example.
      shared: negatives drawn once for the whole batch and scored for every user in it.
      in_batch: every example's positive is a negative of the others; excludes ``num``. With ``shared`` besides,
        negatives are *mixed*: unpopular items are then met too, of which a batch has few.
      catalogue: all trained items, scored for every user in the batch; nothing is drawn, and no other is given.
      sampling: ``"uniform"`` over trained items or ``"popularity"``, in proportion to count ** power. The latter
        fills ``Batch.log_q``, and so does ``in_batch``, whose items come in proportion to their count. A mixed
        column has the probability of the mixture, ``(batch * count / rows + shared * drawn) / (batch + shared)``,
        wherever it came from.
      power: exponent of the count, finite; of ``"popularity"`` alone.
      reject_seen: draw own negatives again until none is an item of the user's training rows, whatever these weigh.

    References:
      Yang et al., Mixed negative sampling for learning two-tower neural networks in recommendations, WWW 2020 (the
      draws from the catalogue are of trained items); Walker, An efficient method for generating discrete random
      variables with general distributions, ACM TOMS 3(3), 1977, for drawing by popularity.
    """

    num: int = 0
    shared: int = 0
    in_batch: bool = False
    catalogue: bool = False
    sampling: Literal["uniform", "popularity"] = "uniform"
    power: float = 0.75
    reject_seen: bool = False

    def __post_init__(self) -> None:
        if self.num < 0 or self.shared < 0:
            raise ValueError(f"Expected counts of negatives >= 0, got num={self.num}, shared={self.shared}.")
        if self.in_batch and self.num:
            raise ValueError(
                "In-batch negatives are the batch's own positives: leave num at 0. Further ones for the whole batch "
                "are shared=."
            )
        if self.catalogue and (self.num or self.shared or self.in_batch):
            raise ValueError("Negatives(catalogue=True) has every trained item: leave out num, shared and in_batch.")
        one_of(self.sampling, ("uniform", "popularity"), "sampling")
        if not np.isfinite(self.power):
            raise ValueError(f"Expected a finite power, got {self.power}.")
        if self.sampling == "uniform" and self.power != type(self).power:
            raise ValueError(f"power={self.power} is of sampling='popularity', and sampling is uniform.")
        if self.catalogue and self.sampling != "uniform":
            raise ValueError("Negatives(catalogue=True) draws nothing: leave sampling out.")
        if self.sampling != "uniform" and not (self.num or self.shared):
            given = "in_batch=True" if self.in_batch else "num=0, shared=0"
            raise ValueError(
                f"Negatives({given}) draws nothing, so sampling={self.sampling!r} would change nothing: leave it out, "
                f"or draw some with {'' if self.in_batch else 'num= or '}shared=."
            )
        if self.reject_seen and not self.num:
            raise ValueError("reject_seen applies to own negatives: give num >= 1.")


class Sampler:
    """Draws the negatives of a dataset whose rows have items.

    Args:
      dataset: rows to train on.
      negatives: what to draw.
      batch_size: of the mixture that in-batch and shared negatives make.
      rows: numbers of those that are examples, whose items are drawn; all by default.
    """

    def __init__(self, dataset: Dataset, negatives: Negatives, batch_size: int, rows: np.ndarray | None = None) -> None:
        assert dataset.item is not None
        self._data, self._how = dataset, negatives
        item = dataset.item if rows is None else dataset.item[rows]
        count = counted(item, int(dataset.item.max()) + 1)
        self._pool = np.flatnonzero(count).astype(np.int32)
        share = np.maximum(count, 1) / len(item)
        weight = np.zeros(len(count))
        weight[self._pool] = 1.0 if negatives.sampling == "uniform" else count[self._pool] ** float(negatives.power)
        weight /= weight.sum()
        self.log_q = np.zeros(len(count), np.float32)  # of a drawn item, by entity index
        self.log_q[self._pool] = np.log(weight[self._pool])
        mixed = (batch_size * share + negatives.shared * weight) / (batch_size + negatives.shared)
        self.log_in_batch = np.log(mixed).astype(np.float32)  # of a column in a batch; finite for the padding too
        if negatives.sampling == "popularity":
            self._keep, other = alias_table(weight[self._pool])
            self._other = self._pool[other]
        if negatives.reject_seen:
            self._need_negatives(dataset.item, count > 0)

    @property
    def catalogue(self) -> np.ndarray:
        """Entity indices of all that could be drawn, int32."""
        return self._pool

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """int32 items of this shape."""
        if self._how.sampling == "uniform":
            return self._pool.take(rng.integers(0, len(self._pool), shape, dtype=np.int32))
        drawn = np.empty(shape, np.int32)
        flat = drawn.reshape(-1)
        for start in range(0, len(flat), _DRAWS):
            part = flat[start : start + _DRAWS]
            # One double has the place in its whole part and, with over 20 bits to spare, the toss in its fraction.
            toss = rng.random(len(part))
            toss *= len(self._pool)
            place = toss.astype(np.int32)
            toss -= place
            part[:] = np.where(toss < self._keep.take(place), self._pool.take(place), self._other.take(place))
        return drawn

    def own(self, rng: np.random.Generator, rows: int, user: np.ndarray | None) -> np.ndarray:
        """int32 ``[rows, num]``: each example's own negatives. Only ``reject_seen`` asks whose they are."""
        drawn = self.draw(rng, (rows, self._how.num))
        if self._how.reject_seen:
            assert user is not None  # checked above
            seen = self._data.interactions
            place = np.flatnonzero(seen.contains(np.repeat(user, self._how.num), drawn.reshape(-1)))
            while len(place):
                again = self.draw(rng, (len(place),))
                drawn.reshape(-1)[place] = again
                place = place[seen.contains(user[place // self._how.num], again)]
        return drawn

    def _need_negatives(self, item: np.ndarray, drawn: np.ndarray) -> None:
        user = self._data.user
        if user is None:
            raise ValueError("reject_seen needs users. Name the user column in the schema.")
        # A user with as many items of the pool as there are has no negative at all.
        busy = counted(user) >= len(self._pool)
        row = np.flatnonzero(busy[user] & drawn[item])
        pairs = distinct(user[row].astype(np.int64) * len(self.log_q) + item[row])
        if (counted(pairs // len(self.log_q)) >= len(self._pool)).any():
            raise ValueError("A user has touched every trained item, so reject_seen leaves no negative to draw.")


def alias_table(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's table of a distribution: ``(keep, other)``, float32 and int32 ``[len(weight)]``.

    A place drawn uniformly is kept with probability ``keep[place]``, and is ``other[place]`` otherwise. Light places
    (below the mean) are filled up by heavy ones in order; running sums say who fills whom, so that there is no loop.

    Args:
      weight: non-negative, float64; sums to 1.

    References:
      Huebschle-Schneider and Sanders, Parallel weighted random sampling, ESA 2019 (the sweep of their section 4).
    """
    load = weight * len(weight)
    light = load < 1.0
    light[load.argmax()] = False  # rounding must leave somebody to fill the others
    lights, heavies = np.flatnonzero(light), np.flatnonzero(~light)
    keep, other = np.ones(len(load)), np.arange(len(load), dtype=np.int32)
    if not len(lights):
        return keep.astype(np.float32), other
    lacking = np.cumsum(1.0 - load[lights])
    before = lacking - (1.0 - load[lights])  # what lights before this one took
    spare = np.cumsum(load[heavies] - 1.0)
    filler = np.minimum(np.searchsorted(spare, before, side="right"), len(heavies) - 1)
    keep[lights], other[lights] = load[lights], heavies[filler]
    # A heavy place ends with what it had beyond the lights up to the one that it filled last; the next fills it up.
    last = np.searchsorted(before, spare[:-1], side="left") - 1
    left = np.where(last >= 0, np.minimum(1.0 + spare[:-1] - lacking[np.maximum(last, 0)], 1.0), 1.0)
    keep[heavies[:-1]], other[heavies[:-1]] = np.maximum(left, 0.0), heavies[1:]
    return keep.astype(np.float32), other
