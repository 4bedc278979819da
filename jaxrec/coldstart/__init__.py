"""New users and items: add them, fold them in from a few interactions, and the methods that are trained for them."""

from jaxrec._add import add
from jaxrec._fold_in import fold_in, fold_in_values, prepare
from jaxrec._types import FoldIn, Prior
from jaxrec.coldstart._dropoutnet import dropoutnet
from jaxrec.coldstart._heater import heater
from jaxrec.coldstart._mapping import map_content
from jaxrec.coldstart._popularity import popularity

__all__ = [
    "FoldIn",
    "Prior",
    "add",
    "dropoutnet",
    "fold_in",
    "fold_in_values",
    "heater",
    "map_content",
    "popularity",
    "prepare",
]
