"""jaxrec: cold-start transfer learning for recommender systems on JAX.

Rooms are submodules (``jaxrec.data``, ``jaxrec.models``, ...); the few verbs stand here. Both are imported when they
are first used, so that ``import jaxrec`` is light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrec import (
        coldstart,
        data,
        evaluation,
        export,
        losses,
        models,
        optim,
        plot,
        ranking,
        scenarios,
        sharding,
        sources,
        train,
        transfer,
    )
    from jaxrec.coldstart import ColdStart
    from jaxrec.evaluation import evaluate
    from jaxrec.export import load, save
    from jaxrec.ranking import predict, recommend
    from jaxrec.train import fit

__version__ = "0.1.0"

__all__ = [
    "ColdStart",
    "coldstart",
    "data",
    "evaluate",
    "evaluation",
    "export",
    "fit",
    "load",
    "losses",
    "models",
    "optim",
    "plot",
    "predict",
    "ranking",
    "recommend",
    "save",
    "scenarios",
    "sharding",
    "sources",
    "train",
    "transfer",
]

_VERBS = {
    "ColdStart": "coldstart",
    "evaluate": "evaluation",
    "fit": "train",
    "load": "export",
    "predict": "ranking",
    "recommend": "ranking",
    "save": "export",
}


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(f"jaxrec.{_VERBS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"jaxrec.{name}")
    raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
