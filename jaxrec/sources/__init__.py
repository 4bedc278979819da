"""Sources: which domain is worth transferring from, told before training on the target, and whether it would hurt."""

from jaxrec.sources._distances import mmd, proxy_a
from jaxrec.sources._evidence import evidence
from jaxrec.sources._ranking import Ranking, rank
from jaxrec.sources._score import Score, calibrate

__all__ = ["Ranking", "Score", "calibrate", "evidence", "mmd", "proxy_a", "rank"]
