"""The named tuples that cross room borders: what a batch holds and what is known of each entity."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int32

Array = jax.Array | np.ndarray
Link = Literal["identity", "sigmoid", "rank"]
"""What a score says of a target: its scaled value, its probability, or nothing but an order of items."""
Params = dict[str, Any]
"""Nested dict of arrays; a leaf is named by its path, for example ``item/embedding``."""


class Batch(NamedTuple):
    """Examples that are scored together. Fields that a model or loss does not use are None.

    ``user``, ``item``, ``shared_negatives`` and ``history`` hold *entity indices* (rows of the catalogue); 0 is
    the unknown entity, which is also the padding. A model scores ``columns`` = the columns of ``item`` followed
    by ``shared_negatives``.

    A batch of *sequences*, which only some models read, scores what follows each position: ``user`` and ``history``
    have a row per sequence, and ``item``, ``target``, ``weight``, ``log_q`` and ``context`` have ``length + 1`` rows of
    it, one after the other: the first is scored for an empty history, the second after the first item, and so on.

    A batch of *users*, which only some models read, has the whole trained catalogue in ``shared_negatives``, neither
    ``item`` nor ``history``, and a ``target`` for each column: 1 where the user touched the item, else 0.
    """

    user: Int[Array, " batch"] | None = None
    item: Int[Array, "batch own"] | None = None  # a positive first, then its own negatives
    shared_negatives: Int[Array, " shared"] | None = None  # scored for every user of the batch
    target: Float[Array, " batch"] | Float[Array, "batch columns"] | None = None  # as trained on, after scaling
    weight: Float[Array, " batch"] | None = None  # non-negative; 0 marks padding
    log_q: Float[Array, "#batch columns"] | None = None  # log of each column's sampling probability
    history: Int[Array, "batch length"] | None = None  # items the user touched, 0 where there are fewer
    context: Float[Array, "batch features"] | None = None  # of the interaction: time, price, a plain matrix's row


class Features(NamedTuple):
    """What is known of every entity, by entity index. Neither parameters nor constants of a model.

    ``*_row`` maps an entity to its row in the embedding tables, 0 where nothing was trained. ``*_dense`` holds
    numbers and vectors, ``*_codes`` one array per categorical or multi-label feature (0 = unknown or padding).
    ``*_present`` says which modalities of the dense array (``Sizes.*_modalities``) an entity has; what stands in
    the columns of one that it lacks is a placeholder.
    """

    user_row: Int32[Array, " users"]
    item_row: Int32[Array, " items"]
    user_dense: Float[Array, "users user_width"] | None = None
    item_dense: Float[Array, "items item_width"] | None = None
    user_codes: dict[str, Int32[Array, "users length"]] = {}
    item_codes: dict[str, Int32[Array, "items length"]] = {}
    user_present: Bool[Array, "users user_modalities"] | None = None
    item_present: Bool[Array, "items item_modalities"] | None = None


class FoldIn(NamedTuple):
    """What folding in one side needs to know of the trained vectors, float32.

    With :math:`S` the mean square of this side's vectors around what the model gives an unknown one, and :math:`C` the
    covariance of the other side's as training met them, :math:`S^{1/2} C S^{1/2} = Q L Q^T`.
    """

    met: Float[Array, " dim"]  # mean of the other side's vectors, each weighing as often as training met it
    root: Float[Array, "dim dim"]  # S^(1/2)
    basis: Float[Array, "dim dim"]  # S^(1/2) Q
    curvature: Float[Array, " dim"]  # diagonal of L


@dataclasses.dataclass(frozen=True)
class ImplicitSquares:
    """What the vector of a new user or item minimises, those that ``train.fit_als`` found being fixed.

    Args:
      unobserved: weight of a pair that was not observed, >= 0. At 0 only what was observed is fitted.
      l2: regularisation, positive.
      exponent: what ``fit_als`` calls by that name, >= 0; 0 regularises alike however much is known.

    Raises:
      ValueError: an argument is out of range.
    """

    unobserved: float
    l2: float
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.unobserved < math.inf and 0 < self.l2 < math.inf and 0 <= self.exponent < math.inf):
            raise ValueError(
                "Expected finite numbers unobserved >= 0, l2 > 0 and exponent >= 0, got "
                f"{self.unobserved}, {self.l2} and {self.exponent}."
            )


@dataclasses.dataclass(frozen=True)
class Folding:
    """How ``train.fit_als`` says that interactions since the training are folded in.

    Args:
      user: what a new user's vector minimises.
      item: what a new item's does; by default only what was observed is fitted.
    """

    user: ImplicitSquares
    item: ImplicitSquares = ImplicitSquares(0.0, 0.5, 0.0)


class Squares(NamedTuple):
    """What folding in one side by least squares needs to know of the other side, float32."""

    gram: Float[Array, "dim dim"]  # sum of the squares of its vectors, times the weight of an unobserved pair
    unseen: Float[Array, ""]  # number of its vectors times that weight
    l2: Float[Array, ""]
    exponent: Float[Array, ""]


class Prior(NamedTuple):
    """What is known of vectors before a single interaction."""

    user: FoldIn | Squares
    item: FoldIn | Squares
    noise: float  # mean squared error of the training targets


class Sizes(NamedTuple):
    """What a model must know of the data to allocate its parameters: rows of tables and widths of features.

    ``*_modalities`` cuts the columns of the dense array, in order, into parts that an entity has or lacks as a whole:
    name and width of each vector, and of each run of numbers (named ``"age+income"``).
    """

    user_rows: int
    item_rows: int
    context: int = 0
    user_dense: int = 0
    item_dense: int = 0
    user_codes: tuple[tuple[str, int], ...] = ()
    item_codes: tuple[tuple[str, int], ...] = ()
    user_modalities: tuple[tuple[str, int], ...] = ()
    item_modalities: tuple[tuple[str, int], ...] = ()


@runtime_checkable
class HasSizes(Protocol):
    """A dataset, an encoder: whatever knows its sizes."""

    @property
    def sizes(self) -> Sizes: ...
