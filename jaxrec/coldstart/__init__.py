"""New users and items: add them, fold them in from a few interactions, and the methods that are trained for them."""

from jaxrec._add import add
from jaxrec._fold_in import fold_in, fold_in_odds, fold_in_squares, fold_in_values, prepare
from jaxrec._types import FoldIn, Folding, ImplicitSquares, Prior
from jaxrec.coldstart._aldi import aldi
from jaxrec.coldstart._cfgan import cfgan
from jaxrec.coldstart._clcrec import clcrec
from jaxrec.coldstart._default import ColdStart
from jaxrec.coldstart._dropoutnet import dropoutnet
from jaxrec.coldstart._gar import gar
from jaxrec.coldstart._heater import heater
from jaxrec.coldstart._inner import InnerLoop
from jaxrec.coldstart._mapping import map_content
from jaxrec.coldstart._meta import meta_learn
from jaxrec.coldstart._mix import mix
from jaxrec.coldstart._personalise import personalise
from jaxrec.coldstart._popularity import or_popular, popularity

__all__ = [
    "ColdStart",
    "FoldIn",
    "Folding",
    "ImplicitSquares",
    "InnerLoop",
    "Prior",
    "add",
    "aldi",
    "cfgan",
    "clcrec",
    "dropoutnet",
    "fold_in",
    "fold_in_odds",
    "fold_in_squares",
    "fold_in_values",
    "gar",
    "heater",
    "map_content",
    "meta_learn",
    "mix",
    "or_popular",
    "personalise",
    "popularity",
    "prepare",
]
