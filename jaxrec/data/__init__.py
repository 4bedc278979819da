"""From pandas frames to arrays: schema, cleaning, vocabularies, splits, batches, and a generator of worlds."""

from jaxrec._types import Batch, Features, Sizes
from jaxrec.data._batches import Batches
from jaxrec.data._clean import Cleaned, clean
from jaxrec.data._encoder import Dataset, Encoder, Parts, encode
from jaxrec.data._interactions import Interactions
from jaxrec.data._negatives import Negatives
from jaxrec.data._prepared import prepared
from jaxrec.data._readers import Frames, read_amazon_reviews, read_goodbooks, read_movielens, read_table
from jaxrec.data._scaling import Scaler
from jaxrec.data._schema import Categorical, Labels, Numeric, Schema, Vector
from jaxrec.data._splits import (
    Domains,
    k_fold,
    split_by_domain,
    split_cold_both,
    split_cold_items,
    split_cold_users,
    split_leave_one_out,
    split_random,
    split_temporal,
)
from jaxrec.data._stream import encode_to_disk, open_dataset
from jaxrec.data._text import encode_text
from jaxrec.data._tfidf import TfidfSVD
from jaxrec.data._vocabulary import Vocabulary
from jaxrec.data._world import Planted, World, generate

__all__ = [
    "Batch",
    "Batches",
    "Categorical",
    "Cleaned",
    "Dataset",
    "Domains",
    "Encoder",
    "Features",
    "Frames",
    "Interactions",
    "Labels",
    "Negatives",
    "Numeric",
    "Parts",
    "Planted",
    "Scaler",
    "Schema",
    "Sizes",
    "TfidfSVD",
    "Vector",
    "Vocabulary",
    "World",
    "clean",
    "encode",
    "encode_text",
    "encode_to_disk",
    "generate",
    "k_fold",
    "open_dataset",
    "prepared",
    "read_amazon_reviews",
    "read_goodbooks",
    "read_movielens",
    "read_table",
    "split_by_domain",
    "split_cold_both",
    "split_cold_items",
    "split_cold_users",
    "split_leave_one_out",
    "split_random",
    "split_temporal",
]
