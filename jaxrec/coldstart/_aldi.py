"""Distillation from a trained factorisation to a model of items' content."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._recommender import Recommender
from jaxrec.coldstart._backbone import reserve
from jaxrec.coldstart._vectors import vectors_by_row
from jaxrec.data import Dataset
from jaxrec.models import ALDI
from jaxrec.train import fit


def aldi(
    backbone: Recommender,
    train: Dataset,
    *,
    hidden: tuple[int, ...] = (200,),
    code_dim: int = 16,
    rating: float = 1.0,
    ranking: float = 1.0,
    identification: float = 1.0,
    qualify: float = 5.0,
    **options: Any,
) -> Recommender:
    """Recommends items that nobody has touched from their content, as a trained recommender would.

    Warm items go on being ranked as the backbone ranks them (its scores are scaled to unit spread); a student learns to
    say of an item's content what the backbone says of the item, see ``models.ALDI``.

    Args:
      backbone: a trained recommender that factorises, such as ``train.fit_als`` returns. Its vectors do not move.
      train: what it was trained on, with item features.
      hidden: widths of the hidden layers of the student's perceptrons.
      code_dim: width of the embedding of a category or label.
      rating: weight of the alignment of ratings.
      ranking: weight of the alignment of rankings.
      identification: weight of the alignment of items' likeness.
      qualify: interactions at which the backbone's word about an item has a weight of 0.76; 0 to trust all alike.
      options: of ``fit``, such as ``epochs``, ``validation``, ``metric``, ``seed``; by default the loss is ``"bpr"``.

    Returns:
      A recommender of an ``ALDI``.

    Raises:
      ValueError: there are no item features, an option is out of range, or the backbone does not factorise, does not
        know the same entities or was not trained on all of them.

    References:
      Huang et al., Aligning distillation for cold-start item recommendation, SIGIR 2023.
    """
    reserve(options, "aldi", "params", "freeze")
    tables = vectors_by_row(backbone, train)
    model = ALDI.for_data(
        train,
        dim=tables["user"].shape[1],
        hidden=hidden,
        code_dim=code_dim,
        rating=rating,
        ranking=ranking,
        identification=identification,
        qualify=qualify,
    )
    params = model.init(jax.random.key(options.get("seed", 0)))
    count = np.zeros((model.item_rows, 1), np.float32)
    np.add.at(count[:, 0], train.features.item_row[train.interactions.item], 1.0)
    params["backbone"] = {**tables, "count": jnp.asarray(count)}
    return fit(model, train, **{"loss": "bpr", **options, "params": params, "freeze": "backbone/*"})
