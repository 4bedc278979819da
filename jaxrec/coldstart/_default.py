"""The default for newcomers: it tries a few settings on held-out rows and says in words what it took."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import evaluation, ranking
from jaxrec._add import add
from jaxrec._recommender import Recommender
from jaxrec._types import Folding, ImplicitSquares
from jaxrec.coldstart._mix import mix
from jaxrec.coldstart._part import encode_part
from jaxrec.data import Parts, Schema, encode, split_random
from jaxrec.data._schema import need_columns
from jaxrec.models import MatrixFactorization, TwoTower
from jaxrec.ranking._top_k import user_blocks
from jaxrec.ranking._vectors import everything, scorer
from jaxrec.train import fit, fit_als, fit_content_knn

_SETTINGS = (
    (0.3, 0.01),
    (1.0, 0.01),
    (0.1, 0.01),
    (0.03, 0.003),
    (0.01, 0.01),
)  # weight of an unobserved pair, regularisation
_WIDTHS = (64, 128, 256, 512)
_Fold = tuple[float, float, float]
_FOLDS: tuple[_Fold, ...] = (
    (1.0, 1.0, 1.0),
    (0.33, 1.0, 1.0),
    (0.33, 2.0, 1.0),
    (0.33, 4.0, 1.0),
    (0.1, 4.0, 1.0),
    (0.03, 8.0, 1.0),
    (0.03, 300.0, 0.0),
    (0.01, 100.0, 0.0),
)  # what the two are multiplied by for a user who is folded in, and the exponent
_FINALISTS = 2  # settings that are tried in wider models too
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of nearest neighbours in a score
_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # by which scores of new items are stretched to compete with known ones
_HELD_OUT, _FEW = 0.1, 5
_REVEALED = (1, 5, 10)  # interactions of a new user, fewer where few have so many; asked for are those after them all
_LEAST = 20  # entities without which a task is left out: its figure would be noise
_SAMPLE = 500


class _Setting(NamedTuple):
    """Of a factorization."""

    width: int
    unobserved: float
    l2: float
    fold: _Fold

    @property
    def fold_user(self) -> ImplicitSquares:
        """By which new users are folded in."""
        by_unobserved, by_l2, exponent = self.fold
        return ImplicitSquares(self.unobserved * by_unobserved, self.l2 * by_l2, exponent)

    @property
    def options(self) -> dict[str, Any]:
        """For ``fit_als``."""
        return {"dim": self.width, "unobserved": self.unobserved, "l2": self.l2, "fold_user": self.fold_user}


class _Task(NamedTuple):
    """Something that the chosen recommender should be good at."""

    name: str
    rows: pd.DataFrame
    candidates: np.ndarray  # raw ids of items
    revealed: tuple[pd.DataFrame, ...] = ()  # what is known of new users, in one question each; their mean counts


class ColdStart:
    """Recommendations for users and items of which little or nothing is known, without settings.

    ``fit`` holds out a tenth of the items, of the users and of the rows, tries a few settings on the rest by how well
    they rank what was held out (new items among new items by their features, new and known ones among all, new users
    before and after up to ten interactions, known users and items), and trains the best on everything:

    - implicit feedback: ``train.fit_als`` with the features as prior, of growing width as long as that helps and time
      is left, folding in by the weights that serve new users best; with item features, mixed
      with nearest neighbours by content (by all, or by the one feature that serves new items best), for new items and
      for known ones apart, and new items' scores stretched so that they compete with known ones;
    - a target such as a rating: a two-tower model, or a matrix factorization where there are no features, for as many
      epochs as were best for a tenth of the rows.

    Args:
      schema: names the columns and features.
      seconds: after which no further setting of a factorization, nor other neighbours, are tried, positive; one that
        runs is finished, and what is chosen is mixed and trained on everything afterwards. A target is not bound by it.
      seed: of what is held out and of training.

    Attributes:
      recommender: for ``jaxrec.recommend``, ``evaluate``, ``save`` and ``coldstart.add``.
      explanation: what was chosen and why, in words.
      trials: a row per setting tried: seconds (of a factorization those of training), NDCG@20 of each task.

    Examples:
      >>> from jaxrec import data
      >>> world = data.generate(seed=0, target_users=60, target_items=40).target
      >>> cold = ColdStart(world.schema, seconds=5).fit(world.interactions, users=world.users, items=world.items)
      >>> cold.recommend(new_users=world.users.head(1).assign(user=-1), k=3).shape
      (3, 4)
    """

    def __init__(self, schema: Schema, *, seconds: float = 600.0, seed: int = 0) -> None:
        if not isinstance(schema, Schema):
            raise TypeError(f"Expected a Schema, got {type(schema).__name__}. Say ColdStart(data.Schema(...)).")
        if not seconds > 0:
            raise ValueError(f"Expected seconds > 0, got {seconds}.")
        if schema.user is None or schema.item is None:
            raise ValueError("Expected a schema with users and items. Name both columns.")
        self._schema, self._seconds, self._seed = schema, seconds, seed
        self._recommender: Recommender | None = None
        self.explanation = "Nothing has been fitted yet."
        self.trials = pd.DataFrame()

    @property
    def recommender(self) -> Recommender:
        if self._recommender is None:
            raise ValueError("Nothing has been fitted yet. Call fit(interactions, users=..., items=...) first.")
        return self._recommender

    def fit(
        self, interactions: pd.DataFrame, *, users: pd.DataFrame | None = None, items: pd.DataFrame | None = None
    ) -> "ColdStart":
        """Chooses and trains.

        Args:
          interactions: all that is known, with the schema's columns.
          users: with the schema's user features; may hold users without interactions.
          items: likewise.

        Returns:
          Itself.

        Raises:
          ValueError: columns are missing, the frame is empty, or as for ``data.encode``.
        """
        need_columns(interactions, self._schema.columns(), "interactions")
        if self._schema.target is not None:
            self._fit_target(interactions, users, items)
        else:
            _Search(self, self._schema, self._seconds, self._seed, users, items).run(interactions)
        return self

    def recommend(self, *args: Any, **options: Any) -> pd.DataFrame:
        """``jaxrec.recommend`` of the recommender chosen."""
        return ranking.recommend(self.recommender, *args, **options)

    def _fit_target(self, interactions: pd.DataFrame, users: pd.DataFrame | None, items: pd.DataFrame | None) -> None:
        if round(_HELD_OUT * len(interactions)) < 1:
            raise ValueError(
                f"The number of epochs is chosen on a tenth of the rows, and of {len(interactions)} that is none. Give "
                "more rows, or train for a number of epochs of your own: jaxrec.fit(model, dataset, epochs=...)."
            )
        parts = split_random(interactions, validation=_HELD_OUT, test=0.0, seed=self._seed)
        whole = encode(Parts(interactions, None, None), self._schema, users=users, items=items).train
        found = encode_part(parts, whole.encoder, users=users, items=items)
        features = bool(self._schema.user_features or self._schema.item_features)
        model = (TwoTower if features else MatrixFactorization).for_data(found.train)
        self.trials = fit(model, found.train, validation=found.validation, seed=self._seed).history
        error, epochs = self.trials["rmse"].min(), int(self.trials["epoch"][self.trials["rmse"].argmin()])
        self._recommender = fit(type(model).for_data(whole), whole, epochs=epochs, seed=self._seed)
        self.explanation = (
            f"The data has a target ({self._schema.target}), so a {type(model).__name__} was trained on nine tenths of "
            f"the rows until the error of the others was least: {error:.4g} in the target's unit, after {epochs} "
            f"epoch{'s' * (epochs > 1)}; and then on all rows for as many. "
            + ("It reads features, so new users and items are predicted from them." if features else
               "There are no features, so new users and items are predicted as the average one.")
        )  # fmt: skip


class _Search:
    def __init__(
        self,
        owner: ColdStart,
        schema: Schema,
        seconds: float,
        seed: int,
        users: pd.DataFrame | None,
        items: pd.DataFrame | None,
    ) -> None:
        self.owner, self.schema, self.seed = owner, schema, seed
        self.users, self.items = users, items
        self.end = time.monotonic() + seconds
        self.content = bool(schema.user_features or schema.item_features)
        self.trials: list[dict[str, Any]] = []
        self.reasons: list[str] = []

    def run(self, interactions: pd.DataFrame) -> None:
        train, self.tasks = self._held_out(interactions)
        whole = encode(Parts(interactions, None, None), self.schema, users=self.users, items=self.items).train
        inner = encode_part(Parts(train, None, None), whole.encoder, users=self.users, items=self.items).train
        setting, best = self._factorization(inner)
        recommender = self._als(whole, setting)
        if self.schema.item_features:
            content, neighbours = self._neighbours(inner)
            weight = self._weights(best, neighbours, f"by {content[0]} alone" if content else "by content")
            if weight[1].any():
                recommender = mix([recommender, self._knn(whole, content)], weight, few=_FEW)
            elif np.ptp(weight[0]) > 0:  # no neighbours, but a stretch of new items
                recommender = mix([recommender], weight[:1], few=_FEW)
        self.owner._recommender = recommender
        self.owner.trials = pd.DataFrame(self.trials)
        self.owner.explanation = " ".join(self.reasons)

    def _als(self, dataset: Any, setting: _Setting) -> Recommender:
        return fit_als(dataset, epochs=10, content=self.content, seed=self.seed, **setting.options)

    def _knn(self, dataset: Any, features: list[str] | None) -> Recommender:
        """Neighbours read what a user touched, and not how much that weighs."""
        return fit_content_knn(dataclasses.replace(dataset, weight=None), features=features)

    def _held_out(self, interactions: pd.DataFrame) -> tuple[pd.DataFrame, list[_Task]]:
        """A training part, and what it lacks as tasks."""
        rng = np.random.default_rng(self.seed)
        user, item = str(self.schema.user), str(self.schema.item)
        group_user, ids_user = pd.factorize(interactions[user])
        group_item, ids_item = pd.factorize(interactions[item])
        cold_item = np.zeros(len(ids_item), bool)
        if self.schema.item_features and len(ids_item) >= 10 * _LEAST:
            cold_item[rng.permutation(len(ids_item))[: int(_HELD_OUT * len(ids_item))]] = True
        cold_user = np.zeros(len(ids_user), bool)
        if len(ids_user) >= 10 * _LEAST:
            cold_user[rng.permutation(len(ids_user))[: int(_HELD_OUT * len(ids_user))]] = True
        of_cold_item, of_cold_user = cold_item[group_item], cold_user[group_user]
        known = ~of_cold_item & ~of_cold_user
        # Pairs and not rows: a held-out play of what training has seen would be no candidate.
        pair = interactions.groupby([user, item], sort=False, observed=True).ngroup().to_numpy()
        apart = known & (rng.random(pair.max() + 1)[pair] < _HELD_OUT)
        train = interactions[known & ~apart]
        warm = train[item].unique()
        tasks = [_Task("known", _within(interactions[apart], {user: train[user].unique(), item: warm}), warm)]
        if cold_item.any():
            rows = _within(interactions[of_cold_item & ~of_cold_user], {user: train[user].unique()})
            tasks.append(_Task("new items", rows, rows[item].unique()))
            both = set(rows[user]) & set(tasks[0].rows[user])
            every = np.concatenate([warm, rows[item].unique()])  # who has no row at all can be right for nobody here
            tasks.append(_Task("all items", _within(pd.concat([rows, tasks[0].rows]), {user: both}), every))
        if cold_user.any():
            rows = _within(interactions[of_cold_user & ~of_cold_item], {item: warm})
            rows = rows.iloc[rng.permutation(len(rows))].drop_duplicates([user, item])
            place = rows.groupby(user).cumcount()
            if self.schema.user_features:
                tasks.append(_Task("new users", rows, warm))
            for count in range(len(_REVEALED), 0, -1):
                numbers = _REVEALED[:count]
                rest = rows[place >= numbers[-1]]
                if rest[user].nunique() >= _LEAST:
                    name = f"new users, {' and '.join(map(str, numbers))} interactions"
                    tasks.append(_Task(name, rest, warm, tuple(rows[place < number] for number in numbers)))
                    break
        tasks = [task for task in tasks if task.rows[user].nunique() >= _LEAST]
        return train if tasks else interactions, tasks  # where nothing is asked, nothing need be held out

    def _value(self, recommender: Recommender, task: _Task) -> float:
        return float(np.mean([self._ranked(recommender, task, known) for known in task.revealed or (None,)]))

    def _ranked(self, recommender: Recommender, task: _Task, revealed: pd.DataFrame | None) -> float:
        if self.users is not None and str(self.schema.user) in task.rows:
            inside = self.users[str(self.schema.user)].isin(task.rows[str(self.schema.user)])
            recommender = add(recommender, users=self.users[inside], interactions=revealed)
        elif revealed is not None:
            recommender = add(recommender, interactions=revealed)
        exclude = task.revealed[-1] if task.revealed else None  # the same candidates whatever is known
        unknown = task.candidates[recommender.encoder.items.encode(task.candidates) == 0]
        if len(unknown):  # held out, and not in the frame of items
            recommender = add(recommender, items=unknown)
        k = min(20, len(task.candidates))
        name = f"ndcg@{k}"
        options: dict[str, Any] = {"ks": (k,), "candidates": task.candidates, "exclude": exclude, "draws": 1}
        value = float(evaluation.evaluate(recommender, task.rows, **options)[name])
        if np.isnan(value):  # every comparison with it is False, so that the first setting would win
            raise ValueError(
                f"The task {task.name!r} has no {name}: no held-out item is a candidate of its user. Give more "
                "interactions, or another seed=."
            )
        return value

    def _try(self, inner: Any, setting: _Setting, folds: tuple[_Fold, ...]) -> tuple[_Setting, Recommender]:
        """Trains once, and folds in by the best of ``folds``. Adds a trial."""
        start = time.monotonic()
        recommender = self._als(inner, setting)
        seconds = time.monotonic() - start
        newcomers = next((task for task in self.tasks if task.revealed), None)
        values = {task.name: self._value(recommender, task) for task in self.tasks if task is not newcomers}
        what = f"width {setting.width}, unobserved {setting.unobserved:g}, l2 {setting.l2:g}"
        if newcomers is not None:
            found = []
            for fold in folds:
                option = setting._replace(fold=fold)
                ready = recommender.replace(folding=Folding(option.fold_user))
                found.append((self._value(ready, newcomers), option, ready))
            values[newcomers.name], setting, recommender = max(found, key=lambda each: each[0])
            what += ", folding in with {:g} and {:g} times these and exponent {:g}".format(*setting.fold)
        self.trials.append({"setting": what, "seconds": seconds} | values)
        return setting, recommender

    def _factorization(self, inner: Any) -> tuple[_Setting, Recommender]:
        """What is best on average over the tasks, each measured by its best trial."""
        tried: list[tuple[_Setting, Recommender]] = []

        def order() -> list[int]:
            """Trials, the best first."""
            names = [task.name for task in self.tasks]
            table = np.array([[row[name] for name in names] for row in self.trials])
            if not names:
                return [0]
            value = (table / np.maximum(table.max(axis=0), 1e-12)).mean(axis=1)
            return np.argsort(-value, kind="stable").tolist()

        for unobserved, l2 in _SETTINGS if self.tasks else _SETTINGS[:1]:
            if tried and time.monotonic() > self.end:
                break
            tried.append(self._try(inner, _Setting(_WIDTHS[0], unobserved, l2, _FOLDS[0]), _FOLDS))
        finalists = [tried[number][0] for number in order()[:_FINALISTS]]
        for width in _WIDTHS[1:] if self.tasks else ():
            before = len(tried)
            for setting in finalists:  # what is best in a narrow model need not be in a wide one
                if time.monotonic() <= self.end:
                    tried.append(self._try(inner, setting._replace(width=width), (setting.fold,)))
            if order()[0] < before:  # wider was not better, or there was no time
                break
        setting, recommender = tried[order()[0]]
        names = " and ".join(side for side in ("user", "item") if getattr(self.schema, f"{side}_features"))
        self.reasons.append(
            f"Implicit feedback: alternating least squares of width {setting.width}, with unobserved pairs weighing "
            f"{setting.unobserved:g} and regularisation {setting.l2:g}, "
            + (f"and with {names} features as prior, " if names else "without features to go by, ")
            + f"was best of {len(tried)} settings on "
            + (", ".join(task.name for task in self.tasks) if self.tasks else "no task, the data being too small")
            + ". New users and items are scored by " + ("their features and " if names else "")
            + "their first interactions, without retraining"
            + ("." if setting.fold == _FOLDS[0] else
               "; of a new user an unobserved pair weighs {:g} times and the regularisation {:g} times what it does "
               "in training (its exponent is {:g}), which serves them best.".format(*setting.fold))
        )  # fmt: skip
        return setting, recommender

    def _neighbours(self, inner: Any) -> tuple[list[str] | None, Recommender]:
        """By the content that tells new items apart best: all, or one feature that the others would dilute."""
        names = [feature.name for feature in inner.encoder.item_features]
        task = next((task for task in self.tasks if task.name == "new items"), None)
        options: list[list[str] | None] = [None, *([name] for name in names if len(names) > 1)]
        found = []
        for option in options if task else options[:1]:
            if found and time.monotonic() > self.end:
                break
            start, value = time.monotonic(), 0.0
            recommender = self._knn(inner, option)
            if task:
                value = self._value(recommender, task)
                what = f"neighbours by {option[0] if option else 'all content'}"
                self.trials.append({"setting": what, "seconds": time.monotonic() - start, task.name: value})
            found.append((value, recommender))
        number = int(np.argmax([value for value, _ in found]))
        return options[number], found[number][1]

    def _weights(self, factors: Recommender, neighbours: Recommender, which: str) -> np.ndarray:
        """The gate's weights, each bucket's found on its own task, and then both on one scale.

        ``which`` says in words whose neighbours they are.
        """
        scale = [1.0 / max(spread(part, self.seed), 1e-12) for part in (factors, neighbours)]
        by_name = {task.name: task for task in self.tasks}

        def weight(cold: float, warm: float, factor: float = 1.0) -> np.ndarray:
            shares = np.array([[1 - cold, 1 - warm, 1 - warm], [cold, warm, warm]]) * np.array(scale)[:, None]
            return shares * np.array([factor, 1.0, 1.0])[None, :]

        def mixed(values: np.ndarray) -> Recommender:
            return mix([factors, neighbours], values, few=_FEW)

        def best(task: _Task, options: tuple[float, ...], of: Callable[[float], np.ndarray], what: str) -> float:
            found = []
            for option in options:
                start = time.monotonic()
                value = self._value(mixed(of(option)), task)
                self.trials.append(
                    {"setting": f"{what} {option:g}", "seconds": time.monotonic() - start, task.name: value}
                )
                found.append(value)
            return options[int(np.argmax(found))]

        cold = warm = 0.0
        factor = 1.0
        if "known" in by_name:
            warm = best(by_name["known"], _SHARES[:-1], lambda share: weight(0.0, share), "neighbours of known items")
        if "new items" in by_name:
            task = by_name["new items"]
            cold = best(task, _SHARES, lambda share: weight(share, warm), "neighbours of new items")
            if "all items" in by_name:
                every = by_name["all items"]
                factor = best(every, _FACTORS, lambda option: weight(cold, warm, option), "stretch of new items")
        stretched = f"new items' scores are multiplied by {factor:g}, so that they compete with known ones."
        if "all items" not in by_name:
            stretched = "too few items could be held out to ask how new ones compete with known ones."
        self.reasons.append(
            f"Nearest neighbours {which} make up {cold:.0%} of a new item's score and {warm:.0%} of a known one's; "
            + stretched
        )
        return weight(cold, warm, factor)


def _within(rows: pd.DataFrame, allowed: dict[str, Any]) -> pd.DataFrame:
    for column, values in allowed.items():
        rows = rows[rows[column].isin(values)]
    return rows


def spread(recommender: Recommender, seed: int) -> float:
    """Standard deviation of the scores of trained users and items."""
    users = np.flatnonzero(recommender.trained.user_count)
    chosen = np.random.default_rng(seed).permutation(users)[:_SAMPLE]
    candidates = everything(recommender.encoder)
    candidates = np.where(recommender.encoder.features.item_row > 0, candidates, 0)
    score_of, chosen, live = scorer(recommender, candidates.astype(np.int32)), np.sort(chosen), candidates > 0
    moments = np.zeros(3)  # number, sum and sum of squares
    for block, size in user_blocks(len(chosen), len(candidates)):
        scores = np.asarray(score_of(chosen[block], size))[: len(block)][:, live]
        moments += scores.size, scores.sum(dtype=np.float64), np.square(scores, dtype=np.float64).sum()
    mean, square = moments[1:] / moments[0]
    return math.sqrt(max(square - mean**2, 0.0))
