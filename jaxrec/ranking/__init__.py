"""Ranking: top-k with exclusions, exact or by an index, for known and for new users and items."""

from jaxrec.ranking._index import Index
from jaxrec.ranking._recommend import predict, recommend
from jaxrec.ranking._search import search
from jaxrec.ranking._similar import similar_items
from jaxrec.ranking._top_k import TopK, top_k

__all__ = ["Index", "TopK", "predict", "recommend", "search", "similar_items", "top_k"]
