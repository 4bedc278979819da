"""New users and items: add them, fold them in from a few interactions, and the methods that are trained for them."""

from jaxrec._add import add
from jaxrec._fold_in import fold_in, fold_in_values, prepare
from jaxrec._types import FoldIn, Prior
from jaxrec.coldstart._inner import InnerLoop
from jaxrec.coldstart._meta import meta_learn
from jaxrec.coldstart._personalise import personalise
from jaxrec.coldstart._popularity import popularity

__all__ = [
    "FoldIn",
    "InnerLoop",
    "Prior",
    "add",
    "fold_in",
    "fold_in_values",
    "meta_learn",
    "personalise",
    "popularity",
    "prepare",
]
