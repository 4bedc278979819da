"""Scenarios of cold start and transfer: splits, baselines, strategies, a verdict and a report, in one call each."""

from jaxrec.scenarios._domains import cross_domain
from jaxrec.scenarios._html import write_html
from jaxrec.scenarios._newcomers import new_item, new_user
from jaxrec.scenarios._platforms import cross_platform
from jaxrec.scenarios._scenario import Scenario
from jaxrec.scenarios._splits import Splits
from jaxrec.scenarios._tail import long_tail

__all__ = ["Scenario", "Splits", "cross_domain", "cross_platform", "long_tail", "new_item", "new_user", "write_html"]
