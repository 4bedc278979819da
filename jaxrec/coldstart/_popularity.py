"""The baseline that everything else is measured by, and what orders what a method scores alike."""

import jax.numpy as jnp
import numpy as np

from jaxrec._expect import expect
from jaxrec._recommender import Recommender, order_of
from jaxrec.coldstart._mix import mix
from jaxrec.data import Dataset
from jaxrec.data._counting import counted
from jaxrec.models import Popularity


def popularity(train: Dataset) -> Recommender:
    """The baseline that recommends what was touched most often, the same to everybody."""
    model = Popularity.for_data(train)
    # Whole numbers, made float32 at the end: added up in it they would stop at 2^24.
    row = np.asarray(train.features.item_row)[train.interactions.item]
    count = counted(row, train.sizes.item_rows).astype(np.float32)[:, None]
    count[0] = 0.0
    return Recommender(
        model=model,
        params={"item": {"count": jnp.asarray(count)}},
        encoder=train.encoder,
        seen=train.interactions,
        num_trained=len(train.interactions),
        link=order_of(train.interactions),
    )


def or_popular(recommender: Recommender, train: Dataset) -> Recommender:
    """The recommender, with popularity among items that it scores 0, or nearly.

    EASE and nearest neighbours score everything 0 for a user who touched nothing, and ties go by raw id. With this such
    a user gets the most popular items; other scores move by a millionth at most. Where items tie at a score that is
    larger, this is mostly lost in rounding: at 1 it tells apart counts that differ by a tenth of the largest or more.

    Args:
      recommender: trained on ``train``, before anything is added to it.
      train: what the popularity is counted in.

    Returns:
      A recommender of a ``models.Mixture``, as by ``mix``.

    Raises:
      ValueError: the two are not of the same data.
    """
    expect(recommender, Recommender, "recommender")
    often = popularity(train)
    least = 1e-6 / max(float(often.params["item"]["count"].max()), 1.0)
    return mix([recommender, often.replace(link=recommender.link)], [[1.0] * 3, [least] * 3])
