"""Transfer: align vocabularies, copy the parameter tree, freeze a part, fine-tune, and say whether it helped."""

from jaxrec.transfer._adapt import Adapted, adapt
from jaxrec.transfer._adapters import Bottleneck, LowRank, WithAdapters, add_adapters, merge_adapters, unmerge
from jaxrec.transfer._align import Alignment, Rows, align
from jaxrec.transfer._blend import blend
from jaxrec.transfer._bridge import emcdr, ptupcdr
from jaxrec.transfer._carry import carry
from jaxrec.transfer._compare import Comparison, NegativeTransfer, compare
from jaxrec.transfer._copy import CopyReport, Entry, copy
from jaxrec.transfer._distill import distill
from jaxrec.transfer._fisher import fisher
from jaxrec.transfer._freeze import Frozen, all_but, freeze, freeze_copied, rows_of
from jaxrec.transfer._match import match
from jaxrec.transfer._regress import regress
from jaxrec.transfer._resize import resize
from jaxrec.transfer._several import Source, copy_all
from jaxrec.transfer._stack import stack

__all__ = [
    "Adapted",
    "Alignment",
    "Bottleneck",
    "Comparison",
    "CopyReport",
    "Entry",
    "Frozen",
    "LowRank",
    "NegativeTransfer",
    "Rows",
    "Source",
    "WithAdapters",
    "adapt",
    "add_adapters",
    "align",
    "all_but",
    "blend",
    "carry",
    "compare",
    "copy",
    "copy_all",
    "distill",
    "emcdr",
    "fisher",
    "freeze",
    "freeze_copied",
    "match",
    "merge_adapters",
    "ptupcdr",
    "regress",
    "resize",
    "rows_of",
    "stack",
    "unmerge",
]
