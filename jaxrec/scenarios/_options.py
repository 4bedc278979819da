"""Options that all scenarios share, and the checks that frames pass before anything is fitted."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from jaxrec._expect import expect, need_level
from jaxrec._metrics import task_of
from jaxrec.data import Categorical, Frames, Schema
from jaxrec.data._schema import need_columns
from jaxrec.evaluation._top_k_metrics import NAMES
from jaxrec.scenarios._question import Method

SHOTS = (0, 1, 2, 5, 10)


class Options(NamedTuple):
    """See ``new_user``."""

    strategies: Sequence[str] | None
    metric: str
    shots: tuple[int, ...]
    dim: int
    validation: float
    test: float
    level: float
    seed: int

    def check(self, frames: Frames, name: str = "frames", *, ranked: bool = True) -> None:
        """Raises unless options are in range and the frames, whose items may be ranked, are of implicit feedback."""
        expect(frames, Frames, name)
        schema = frames.schema
        if schema.user is None or schema.item is None:
            raise ValueError(f"The schema of {name} has no users or no items. Name both columns.")
        if schema.target is not None or schema.weight is not None or schema.context:
            raise ValueError(
                f"Expected choices without target, weight or context in {name}: every row is a positive. Keep the rows "
                "that count, such as ratings of 4 and more, and leave these columns out of the schema: "
                "frames._replace(schema=dataclasses.replace(schema, target=None, weight=None, context=()))."
            )
        need_columns(frames.interactions, schema.columns(), f"interactions of {name}")
        for column in (schema.user, schema.item):
            missing = int(frames.interactions[column].isna().sum())
            if missing:
                raise ValueError(
                    f"{missing} ids in the column {column!r} of {name} are missing (None or NaN), and would be one and "
                    "the same. Drop these rows with data.clean."
                )
        if frames.interactions.index.has_duplicates:
            raise ValueError(f"The interactions of {name} have repeated index labels. Call reset_index(drop=True).")
        if self.metric.partition("@")[0] not in NAMES or "@" not in self.metric:
            raise ValueError(f"Expected a metric such as 'ndcg@10', of {', '.join(NAMES)}, got {self.metric!r}.")
        k, items = task_of(self.metric)[1][0], frames.interactions[schema.item].nunique()
        if ranked and not 1 <= k <= items:
            raise ValueError(f"Expected a metric at 1 .. {items}, the number of items in {name}, got {self.metric!r}.")
        if not self.shots or min(self.shots) < 0 or list(self.shots) != sorted(set(self.shots)):
            raise ValueError(f"Expected shots that ascend from 0 or more, such as (0, 1, 5), got {self.shots}.")
        if self.dim < 1:
            raise ValueError(f"Expected dim >= 1, got {self.dim}.")
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise ValueError(
                "Expected shares above 0 that leave something for training, got "
                f"validation={self.validation} and test={self.test}."
            )
        need_level(self.level)

    def need_item_features(self, frames: Frames) -> None:
        """Raises unless items are described."""
        if not frames.schema.item_features or frames.items is None:
            raise ValueError(
                "Items have no features, so nothing tells rare or new ones apart. Name some in "
                "Schema(item_features=...) and give a frame of items."
            )

    def picked(self, methods: list[Method]) -> list[Method]:
        """Baselines, then the strategies that were asked for."""
        names = [method.name for method in methods if method.strategy]
        wanted = names if self.strategies is None else list(self.strategies)
        if isinstance(self.strategies, str) or not wanted or not set(wanted) <= set(names):
            raise ValueError(f"Expected strategies among {', '.join(map(repr, names))}, got {self.strategies!r}.")
        return [method for method in methods if not method.strategy or method.name in wanted]


def counted(rows: pd.DataFrame, schema: Schema) -> str:
    """How much there is, in words."""
    users, items = (rows[column].nunique() for column in (schema.user, schema.item))
    return f"{len(rows):,} interactions of {users:,} users with {items:,} items"


def per_id(ids: pd.Series) -> pd.Series:
    """Rows by id, most first; a category that no row has is nobody."""
    counts = ids.value_counts()
    return counts[counts > 0]


def groups_of(frames: Frames) -> dict[str, pd.Series]:
    """By its name: the first category that users are described by."""
    found = [feature.column for feature in frames.schema.user_features if isinstance(feature, Categorical)]
    if not found or frames.users is None:
        return {}
    user = frames.schema.user
    return {f"user's {found[0]}": frames.users.drop_duplicates(user).set_index(user)[found[0]]}
