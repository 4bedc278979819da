"""Saving, loading, and an ahead-of-time artefact that needs no jaxrec. The verbs are ``save`` and ``load``."""

from jaxrec.export._artefact import load_artefact, write_artefact
from jaxrec.export._files import load, save

__all__ = ["load", "load_artefact", "save", "write_artefact"]
