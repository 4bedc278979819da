"""Models: frozen dataclasses of hyper-parameters with pure ``init``, ``lookups``, ``score`` and ``apply``."""

from jaxrec.models._base import Lookup, Model, Scored, take
from jaxrec.models._factorization import MatrixFactorization, Popularity
from jaxrec.models._flax import from_linen, from_nnx
from jaxrec.models._linear import Linear
from jaxrec.models._lora import LoRA
from jaxrec.models._neumf import NeuMF
from jaxrec.models._sequence import SequenceTransformer
from jaxrec.models._two_tower import TwoTower

__all__ = [
    "Linear",
    "LoRA",
    "Lookup",
    "MatrixFactorization",
    "Model",
    "NeuMF",
    "Popularity",
    "Scored",
    "SequenceTransformer",
    "TwoTower",
    "from_linen",
    "from_nnx",
    "take",
]
