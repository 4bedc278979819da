"""Several domains as one: their interactions in one matrix, so that any model is a cross-domain model."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import pandas as pd

from jaxrec._expect import expect, one_of
from jaxrec.data import Categorical, Frames, Vocabulary
from jaxrec.data._schema import need_columns, weights
from jaxrec.models._shared_specific import DOMAIN


def stack(
    domains: Mapping[str, Frames], *, side: Literal["user", "item"] = "item", weight: Mapping[str, float] | None = None
) -> Frames:
    """The interactions of several domains as one domain, in which shared users meet the items of all.

    The strong and simple baseline of transfer: what is fitted to it (``fit_als``, ``fit_ease``, ``fit_item_knn``, or
    ``fit`` of any model) serves users of one domain from what they did in another. Items of different domains are
    never the same, so their ids become strings: item 7 of the domain ``"films"`` is ``"films/7"``. Held-out
    interactions of one domain, and its items as candidates, are named alike by stacking them alone:
    ``stack({"films": frames._replace(interactions=test)})``.

    Args:
      domains: by name, without '/'. Their schemas are the same, and so are the ids of shared users.
      side: whose ids belong to one domain; ``"user"`` where items are shared and users are not.
      weight: by domain, non-negative: what its examples weigh in a loss (times the weight that they have). At 0
        they are no examples; histories and what users have seen hold them still. Without it there are no weights but
        the schema's own.

    Returns:
      Frames whose schema has one more feature of that side, the category ``"domain"``, which ``models.SharedSpecific``
      reads, and with ``weight`` a column of weights. A shared user with features has those of the last domain named.

    Raises:
      ValueError: there is no domain, schemas differ, a domain has no or an impossible weight, a name holds '/', or a
        column is missing.
      TypeError: a domain's ids are of one type in its interactions and of another in its frame, or floats that were
        integers.
    """
    one_of(side, ("user", "item"), "side")
    if not domains:
        raise ValueError("Expected at least one domain to stack, got none.")
    for name, frames in domains.items():
        expect(frames, Frames, f"domains[{name!r}]")
        if not isinstance(name, str) or "/" in name:
            raise ValueError(f"Expected names of domains without '/', got {name!r}. It is joined to ids by one.")
    schema = next(iter(domains.values())).schema
    for name, frames in domains.items():
        if frames.schema != schema:
            raise ValueError(f"Expected one schema, but that of {name!r} is {frames.schema}, and the first's {schema}.")
    column = schema.item if side == "item" else schema.user
    specs = schema.item_features if side == "item" else schema.user_features
    if column is None or schema.user is None or schema.item is None:
        raise ValueError("Stacking needs users and items. Name both columns in the schema.")
    if DOMAIN in [spec.column for spec in specs]:
        raise ValueError(f"The schema has a feature {DOMAIN!r} of its own. Rename its column.")
    weighed = schema.weight or "weight"
    if weight is not None:
        _check_weights(weight, domains)
        if schema.weight is None and weighed in schema.columns():
            raise ValueError(f"The schema reads a column {weighed!r} as something else. Rename it.")
    interactions, owned, shared = [], [], []
    for name, frames in domains.items():
        need_columns(frames.interactions, schema.columns(), f"interactions of {name!r}")
        rows = frames.interactions[list(schema.columns())]
        rows = rows.assign(**{column: qualified(rows[column], name)})
        if weight is not None:
            own = weights(rows, schema.weight) if schema.weight else 1.0
            rows = rows.assign(**{weighed: weight[name] * own})
        interactions.append(rows)
        own, other = (frames.items, frames.users) if side == "item" else (frames.users, frames.items)
        if own is None:
            own = frames.interactions[[column]].drop_duplicates()
        Vocabulary.fit(frames.interactions[column].unique(), own[column].unique())  # types that would hide as strings
        owned.append(own.assign(**{column: qualified(own[column], name), DOMAIN: name}))
        if other is not None:
            shared.append(other)
    other_column = schema.user if side == "item" else schema.item
    of_side = pd.concat(owned, ignore_index=True)
    of_others = pd.concat(shared, ignore_index=True).drop_duplicates(other_column, keep="last") if shared else None
    changed = {f"{side}_features": (*specs, Categorical(DOMAIN))}
    schema = dataclasses.replace(schema, weight=weighed if weight is not None else schema.weight, **changed)
    users, items = (of_others, of_side) if side == "item" else (of_side, of_others)
    return Frames(pd.concat(interactions, ignore_index=True), users, items, schema)


def qualified(ids: pd.Series, name: str) -> pd.Series:
    """The ids as those of one domain, ``name/id``; raises if some are missing, which would all be one."""
    if ids.isna().any():
        raise ValueError(f"{int(ids.isna().sum())} ids of {name!r} in the column {ids.name!r} are missing. Drop them.")
    return name + "/" + ids.astype(str)


def _check_weights(weight: Mapping[str, float], domains: Mapping[str, Frames]) -> None:
    if set(weight) != set(domains) or not all(0 <= value < float("inf") for value in weight.values()):
        raise ValueError(f"Expected a weight >= 0 for each of {', '.join(domains)}, got {dict(weight)}.")
    if not any(weight.values()):
        raise ValueError("Expected a domain with a weight above 0, got none: there would be nothing to learn from.")
