"""New users and items: add them, fold them in from a few interactions, and the methods that are trained for them."""

from jaxrec._add import add
from jaxrec._fold_in import fold_in, fold_in_squares, fold_in_values, prepare
from jaxrec._types import FoldIn, Prior
from jaxrec.coldstart._default import ColdStart
from jaxrec.coldstart._mix import mix
from jaxrec.coldstart._popularity import popularity

__all__ = [
    "ColdStart",
    "FoldIn",
    "Prior",
    "add",
    "dropoutnet",
    "fold_in",
    "fold_in_squares",
    "fold_in_values",
    "heater",
    "map_content",
    "mix",
    "popularity",
    "prepare",
]
from jaxrec.coldstart._aldi import aldi
from jaxrec.coldstart._clcrec import clcrec
from jaxrec.coldstart._gar import gar

__all__ = ["FoldIn", "Prior", "add", "aldi", "clcrec", "fold_in", "fold_in_values", "gar", "popularity", "prepare"]
