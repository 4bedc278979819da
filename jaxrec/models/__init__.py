"""Models: frozen dataclasses of hyper-parameters with pure ``init``, ``lookups``, ``score`` and ``apply``."""

from jaxrec.models._adversarial import GAR
from jaxrec.models._autoencoder import VariationalAutoencoder
from jaxrec.models._backbone import BackboneTowers
from jaxrec.models._base import Lookup, Model, Scored, take
from jaxrec.models._bottleneck import Bottleneck
from jaxrec.models._contrastive import CLCRec
from jaxrec.models._distilled import ALDI
from jaxrec.models._factorization import MatrixFactorization, Popularity
from jaxrec.models._factorization_machine import FactorizationMachine
from jaxrec.models._flax import from_linen, from_nnx
from jaxrec.models._heads import Bridge, ContentMap, DropoutNet, Heater
from jaxrec.models._item_weights import ItemWeights
from jaxrec.models._linear import Linear
from jaxrec.models._lora import LoRA
from jaxrec.models._mixture import Mixture
from jaxrec.models._neighbours import Neighbours
from jaxrec.models._neumf import NeuMF
from jaxrec.models._personalised import Personalised
from jaxrec.models._sequence import SequenceTransformer
from jaxrec.models._shared_specific import SharedSpecific
from jaxrec.models._two_tower import TwoTower

__all__ = [
    "ALDI",
    "BackboneTowers",
    "Bottleneck",
    "Bridge",
    "CLCRec",
    "ContentMap",
    "DropoutNet",
    "FactorizationMachine",
    "GAR",
    "Heater",
    "ItemWeights",
    "Linear",
    "LoRA",
    "Lookup",
    "MatrixFactorization",
    "Mixture",
    "Model",
    "Neighbours",
    "NeuMF",
    "Personalised",
    "Popularity",
    "Scored",
    "SequenceTransformer",
    "SharedSpecific",
    "TwoTower",
    "VariationalAutoencoder",
    "from_linen",
    "from_nnx",
    "take",
]
