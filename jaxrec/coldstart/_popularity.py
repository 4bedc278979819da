"""The baseline that everything else is measured by."""

import jax.numpy as jnp
import numpy as np

from jaxrec._recommender import Recommender
from jaxrec.data import Dataset
from jaxrec.models import Popularity


def popularity(train: Dataset) -> Recommender:
    """The baseline that recommends what was touched most often, the same to everybody."""
    model = Popularity.for_data(train)
    count = np.zeros((train.sizes.item_rows, 1), np.float32)
    row = train.features.item_row
    np.add.at(count[:, 0], row[train.interactions.item], 1.0)
    count[0] = 0.0
    return Recommender(
        model=model,
        params={"item": {"count": jnp.asarray(count)}},
        encoder=train.encoder,
        seen=train.interactions,
        num_trained=len(train.interactions),
    )
