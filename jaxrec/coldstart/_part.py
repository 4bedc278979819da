"""Some rows of a domain, encoded as all of them are."""

import warnings

import pandas as pd

from jaxrec.data import Encoder, Parts, encode


def encode_part(
    parts: Parts, whole: Encoder, *, users: pd.DataFrame | None = None, items: pd.DataFrame | None = None
) -> Parts:
    """``data.encode`` with features read as in ``whole``, which is fitted on more rows of the same frames.

    Of those who are in the training part alone a feature may be constant, which fitting refuses.
    """
    with warnings.catch_warnings():  # the whole is no other domain, whose items should not be listed
        warnings.filterwarnings("ignore", message=".*belong to the source domain", category=UserWarning)
        return encode(parts, whole.schema, users=users, items=items, like=whole)
