"""Fits the methods, chooses on validation, and reads the test part once."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec.evaluation import Interval, Report, bootstrap_interval, paired_test
from jaxrec.scenarios._question import Fitted, Method, Question
from jaxrec.scenarios._scenario import Scenario, Verdict, sign

_SEGMENTS, _DECILES = 6, 10
_DRAWS, _USERS = 1000, 1000
_TRIALS = ["method", "role", "setting", "seconds", "value", "first", "rest"]


class _Tried(NamedTuple):
    method: Method
    setting: Any
    value: float  # by which is chosen: the mean of the next two
    first: float  # of those the scenario is about
    rest: float  # of the others
    fitted: Fitted


class Told(NamedTuple):
    """What is said of a scenario, and by what its users and items are told apart."""

    name: str
    title: str
    data: str
    scratch: str
    known: str
    activity: dict[str, pd.Series]  # by name: a number per user
    groups: dict[str, pd.Series]  # by name: a category per user
    popularity: pd.Series  # interactions per item
    notes: tuple[str, ...] = ()
    rest: str = "known users and items"  # name of the slice of the other test rows


def settle(
    question: Question,
    methods: Sequence[Method],
    told: Told,
    *,
    curve: Callable[[Method, Any], dict[int, Report]] | None = None,
) -> Scenario:
    """The scenario's result.

    Args:
      question: what is held out and how it is judged.
      methods: baselines first: of equal ones the earlier is taken.
      told: for the reader.
      curve: test reports of a method and its setting by interactions known, where they are not those of the question.
    """
    start = time.perf_counter()
    deciding, others = (_some(question, rows) for rows in (question.splits.validation, question.splits.warm_validation))
    # All new items of the part are revealed, as on the test part; a new user who is not asked is in nobody's way.
    among = question.splits.validation if question.side == "item" else None
    best: dict[str, _Tried] = {}
    trials = []
    for method in methods:
        for setting in method.settings:
            begin = time.perf_counter()
            fitted = method.fit(setting)
            fitted = fitted if isinstance(fitted, Fitted) else Fitted(fitted)
            reports = question.reports(fitted, deciding, among=among)
            first = float(np.mean([report[question.metric] for report in reports.values()]))
            rest = question.report(fitted, others)[question.metric]
            value = (first + rest) / 2
            if np.isnan(value):  # every comparison with it is False, so that the first method would win
                raise ValueError(
                    f"{method.name} has no {question.metric} on validation: {first} for {question.who}, {rest} for "
                    f"{told.rest}. No held-out item is a candidate of its user; give more rows, or hold out more."
                )
            words = "" if setting is None else str(setting)
            trials.append((method.name, _role(method), words, time.perf_counter() - begin, value, first, rest))
            if method.name not in best or value > best[method.name].value:
                best[method.name] = _Tried(method, setting, value, first, rest, fitted)
    ours, theirs = (
        _first([each for each in best.values() if each.method.strategy is which]) for which in (True, False)
    )
    chosen = ours if ours.value > theirs.value else theirs
    tested = {name: each for name, each in best.items() if not each.method.strategy} | {ours.method.name: ours}
    reports = {name: question.reports(each.fitted, question.splits.test) for name, each in tested.items()}
    warm = {name: question.report(each.fitted, question.splits.warm) for name, each in tested.items()}
    values = {
        part: {name: {metric: of(name, metric) for metric in question.metrics} for name in tested}
        for part, of in _slices(question, told, reports, warm).items()
    }
    table = _table(question, tested, values)
    differences = _differences(question, values, ours.method.name, (theirs.method.name, told.scratch))
    against = differences[differences["against"] == theirs.method.name]
    verdict = _verdict(against.iloc[0], against.iloc[-1], question.level, ours is chosen)
    shown = dict.fromkeys(["popularity", told.scratch, theirs.method.name, ours.method.name])
    lines = {
        name: reports[name] if curve is None else curve(tested[name].method, tested[name].setting) for name in shown
    }
    segments = _segments(question, told, ours, theirs, values)
    return Scenario(
        name=told.name, title=told.title, data=told.data, verdict=verdict, chosen=chosen.method.name,
        strategy=ours.method.name, baseline=theirs.method.name, scratch=told.scratch,
        why=_why(question, told, (deciding, others), ours, theirs, best), metric=question.metric, who=question.who,
        known=told.known, table=table, trials=pd.DataFrame(trials, columns=_TRIALS),
        differences=differences, curve=_curve(question, lines), segments=segments, splits=question.splits,
        schema=question.schema, recommender=chosen.fitted.recommender, notes=told.notes, level=question.level,
        seed=question.seed, seconds=time.perf_counter() - start,
    )  # fmt: skip


def _some(question: Question, rows: pd.DataFrame) -> pd.DataFrame:
    """The validation rows that decide: of many users a random thousand, so that many settings can be tried."""
    users = rows[question.schema.user].unique()
    chosen = np.random.default_rng(question.seed).permutation(users)[:_USERS]
    return rows[rows[question.schema.user].isin(chosen)]


def _role(method: Method) -> str:
    return "strategy" if method.strategy else "baseline"


def _first(tried: list[_Tried]) -> _Tried:
    return tried[int(np.argmax([each.value for each in tried]))]


def _slices(
    question: Question, told: Told, reports: dict[str, dict[int, Report]], warm: dict[str, Report]
) -> dict[str, Callable[[str, str], pd.Series]]:
    """By slice: the users' values of a method and metric."""
    slices: dict[str, Callable[[str, str], pd.Series]] = {
        question.who: lambda name, metric: question.by_user(reports[name], metric)
    }
    if len(question.shots) > 1:
        shot = question.shots[0]
        slices[f"{shot or 'nothing'} known"] = lambda name, metric: reports[name][shot].users(metric)
    slices[told.rest] = lambda name, metric: warm[name].users(metric)
    return slices


def _interval(question: Question, values: pd.Series) -> Interval:
    return bootstrap_interval(values.to_numpy(), level=question.level, draws=_DRAWS, seed=question.seed)


def _table(question: Question, tested: dict[str, _Tried], values: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for part, by_name in values.items():
        for name, by_metric in by_name.items():
            for metric, users in by_metric.items():
                rows.append((name, _role(tested[name].method), part, metric, *_interval(question, users), len(users)))
    return pd.DataFrame(rows, columns=["method", "role", "slice", "metric", "mean", "low", "high", "users"])


def _differences(question: Question, values: dict[str, Any], ours: str, against: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for part, by_name in values.items():
        for other in dict.fromkeys(against):
            mine, its = (by_name[name][question.metric] for name in (ours, other))
            paired = paired_test(
                mine.to_numpy(), its.reindex(mine.index).to_numpy(), level=question.level, seed=question.seed
            )
            rows.append((other, part, *paired))
    return pd.DataFrame(rows, columns=["against", "slice", "difference", "low", "high", "p_value", "users"])


def _verdict(first: pd.Series, rest: pd.Series, level: float, kept: bool) -> Verdict:
    """Of differences from the best baseline: of those the scenario is about, and of the others."""
    change, price = (sign(row, level) for row in (first, rest))
    if change < 0 or (change == 0 and price < 0):
        return "hurt"
    if change > 0 and price < 0:
        return "trade-off"
    return "helped" if change > 0 and kept else "no difference"


def _curve(question: Question, lines: dict[str, dict[int, Report]]) -> pd.DataFrame:
    rows = []
    for name, by_shot in lines.items():
        for shot, report in by_shot.items():
            rows.append((name, shot, *_interval(question, report.users(question.metric))))
    return pd.DataFrame(rows, columns=["method", "shots", "mean", "low", "high"])


def _segments(question: Question, told: Told, ours: _Tried, theirs: _Tried, values: dict[str, Any]) -> pd.DataFrame:
    names = ours.method.name, theirs.method.name

    def gain(by: str, segment: str, mine: pd.Series, its: pd.Series) -> tuple[Any, ...]:
        its = its.reindex(mine.index)
        found = _interval(question, mine - its)
        return by, segment, len(mine), mine.mean(), its.mean(), *found

    rows = [
        gain("slice: cold and warm", part, *(by_name[name][question.metric] for name in names))
        for part, by_name in values.items()
    ]
    mine, its = (values[question.who][name][question.metric] for name in names)
    labels = {by: quartiles(numbers.reindex(mine.index)) for by, numbers in told.activity.items()}
    labels |= {by: _largest(groups.reindex(mine.index)) for by, groups in told.groups.items()}
    for by, label in labels.items():
        for segment in label.cat.categories:
            inside = (label == segment).to_numpy()
            if inside.any():
                rows.append(gain(by, str(segment), mine[inside], its[inside]))
    shot = question.shots[len(question.shots) // 2]
    by = "item popularity decile" + (f", {shot} known" if len(question.shots) > 1 else "")
    item, test = question.schema.item, question.splits.test
    decile = deciles(told.popularity.reindex(test[item].unique(), fill_value=0), told.popularity)
    of_row = test[item].map(decile)
    for number in sorted(of_row.unique()):
        part = test[of_row == number]
        found = (question.report(each.fitted, part, shot, among=test).users(question.metric) for each in (ours, theirs))
        name = {0: "1 (most)", _DECILES - 1: f"{_DECILES} (least)"}.get(number, str(number + 1))
        rows.append(gain(by, name, *found))
    return pd.DataFrame(rows, columns=["by", "segment", "users", "strategy", "baseline", "gain", "low", "high"])


def quartiles(numbers: pd.Series) -> pd.Series:
    """Four segments of users of about equal size, fewer where many users have the same number."""
    edges = np.unique(np.quantile(numbers.fillna(0), [0, 0.25, 0.5, 0.75, 1.0], method="lower"))
    lows = edges[:-1] if len(edges) > 1 else edges
    place = np.searchsorted(lows, numbers.fillna(0).to_numpy(), side="right") - 1
    names = []
    for number in range(len(lows)):
        inside = numbers.fillna(0)[place == number]
        names.append(f"{inside.min():g}" if inside.min() == inside.max() else f"{inside.min():g} to {inside.max():g}")
    return pd.Series(pd.Categorical([names[number] for number in place], categories=names), index=numbers.index)


def _largest(groups: pd.Series) -> pd.Series:
    """The largest groups, and the others together."""
    groups = groups.astype(object).where(groups.notna(), "unknown").astype(str)
    large = groups.value_counts().index[:_SEGMENTS]
    rest = "all others" if "others" in large else "others"
    names = sorted(large) + ([rest] if groups.nunique() > _SEGMENTS else [])
    return pd.Series(pd.Categorical(groups.where(groups.isin(large), rest), categories=names), index=groups.index)


def deciles(items: pd.Series, popularity: pd.Series) -> pd.Series:
    """0 (most popular) to 9 for each item: tenths of the catalogue, in which equally popular items stay together."""
    ordered = np.sort(-popularity.to_numpy())
    above = np.searchsorted(ordered, -items.to_numpy(), side="left")
    return pd.Series(np.minimum(above * _DECILES // max(len(ordered), 1), _DECILES - 1), index=items.index)


def _why(
    question: Question,
    told: Told,
    deciding: tuple[pd.DataFrame, pd.DataFrame],
    ours: _Tried,
    theirs: _Tried,
    best: dict[str, _Tried],
) -> str:
    def figure(each: _Tried) -> str:
        setting = "" if each.setting is None else f"; {each.setting}"
        return f"{each.method.name} ({each.value:.4f} = mean of {each.first:.4f} and {each.rest:.4f}{setting})"

    points = (
        f", on average over {', '.join(map(str, question.shots))} interactions known" if len(question.shots) > 1 else ""
    )
    first, rest = (f"{rows[question.schema.user].nunique():,} users" for rows in deciding)
    how = (
        f"by {question.metric} on validation rows of {question.who} ({first}{points}) and of {told.rest} ({rest}), "
        "half and half"
    )
    if ours.value > theirs.value:
        return (
            f"Chosen {how}: {figure(ours)}, {ours.method.words}. It was best of {len(best)} methods; the best baseline "
            f"was {figure(theirs)}."
        )
    return (
        f"Kept {how}: {figure(theirs)}, a baseline. No strategy was ahead of it, the best being {figure(ours)}, so "
        "nothing is transferred."
    )
