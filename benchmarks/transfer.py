"""Transfer on real data: what another domain is worth to users who are new to this one, one evaluator for all.

python benchmarks/transfer.py                               # what is not measured yet
python benchmarks/transfer.py --pairs TV-Movie --shots 0 5  # one pair (source-target), two numbers of shots
python benchmarks/transfer.py --methods "stacked iALS"      # one method
python benchmarks/transfer.py --seeds 0 1 2 --finalists     # more seeds of what validation chose, and of what it faced
python benchmarks/transfer.py --pooled                      # what validation chose against scratch, all shots together
python benchmarks/transfer.py --table                       # the table of README.md, and results/transfer.md

``JAXREC_DATA`` names the folder of data; what each pair asks stands in ``domains.py``, what is done in
``strategies.py``. Settings come from the validation rows at 0, at 2 (which serve 1) and at 5 shots (which serve 10);
each method is trained once per number of shots with them and reads the test rows once. "Scratch" is the method that
knows nothing of the source and is best on validation; differences are to it, paired. ``all`` shots, every row of the
held-out users that is not asked for, tell what there is to gain. Rows go to ``results/transfer.json`` as they are
measured, so that a run can be stopped and gone on with.

Two protocols over the pair's candidates: ``full`` ranks them all, means over users; ``999 negatives``, of the data
sets that are published with it, ranks each held-out row against 999 others drawn with replacement, means over rows. The
latter is computed as an expectation over the draws, not from one of them: of a row with a share p of the other items
above it (equal scores count half) the number of better negatives is binomial.
"""

import argparse
import dataclasses
import gc
import math
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import pandas as pd
from domains import PAIRS, SHOTS, Pair
from strategies import Fitted, Method, Setting, forget, methods_for, settings_of

import jaxrec
from jaxrec.evaluation import Report

_RESULTS = Path(__file__).parent / "results" / "transfer.json"
_NEGATIVES, _DRAWS = 999, 1000
_ALONE, _CHOSEN, _MEAN = " alone", "chosen on validation", "mean"
Rows = list[dict[str, Any]]


class Answers(NamedTuple):
    """Figures of one method on the questions of one part."""

    full: Report
    rows: pd.DataFrame | None  # of each held-out row among 999 negatives

    def chosen_by(self) -> float:
        return float(self.full["ndcg@10"]) if self.rows is None else float(self.rows["hr@10"].mean())


def answers(fitted: Fitted, pair: Pair, asked: pd.DataFrame) -> Answers:
    catalogue = fitted.named(pd.DataFrame({"user": 0, "item": pair.candidates}), pair)["item"]
    report = jaxrec.evaluate(fitted.recommender, fitted.named(asked, pair), ks=(10, 20), candidates=catalogue)
    if fitted.stacked is not None and pair.shared == "item":  # users by their own names again, to be paired
        own = report.per_user["user"].str.removeprefix(f"{fitted.stacked}/").astype(asked["user"].dtype)
        report = dataclasses.replace(report, per_user=report.per_user.assign(user=own))
    return Answers(report, by_row(fitted, pair, asked) if pair.negatives else None)


def by_row(fitted: Fitted, pair: Pair, rows: pd.DataFrame) -> pd.DataFrame:
    """Expected HR@10, NDCG@10 and MRR of each held-out row among 999 items that are not in the user's training rows."""
    catalogue = fitted.named(pd.DataFrame({"user": 0, "item": pair.candidates}), pair)["item"]
    users, row = np.unique(rows["user"].to_numpy(), return_inverse=True)
    listed = jaxrec.recommend(fitted.recommender, users, k=len(catalogue), candidates=catalogue, exclude_seen=False)
    scores = np.full((len(users), len(catalogue)), -np.inf, np.float32)
    places = pd.Index(catalogue).get_indexer(pd.Index(listed["item"]))
    scores[pd.Index(users).get_indexer(pd.Index(listed["user"])), places] = listed["score"]
    known = pair.domains[pair.target].interactions
    known = known[known["user"].isin(users)]
    places = pd.Index(pair.candidates).get_indexer(pd.Index(known["item"]))
    scores[np.searchsorted(users, known["user"]), places] = -np.inf
    count = len(catalogue) - np.bincount(np.searchsorted(users, known["user"]), minlength=len(users))
    place = pd.Index(pair.candidates).get_indexer(pd.Index(rows["item"]))
    own = scores[row, place][:, None]
    if not np.isfinite(own).all():
        raise ValueError("A held-out item is not finite, or is in the user's training rows.")
    above = (scores[row] > own).sum(axis=1) + 0.5 * ((scores[row] == own).sum(axis=1) - 1)
    share = above / (count[row] - 1)
    ranks = np.arange(10)
    choose = np.array([math.comb(_NEGATIVES, int(rank)) for rank in ranks], np.float64)
    chance = choose * share[:, None] ** ranks * (1.0 - share[:, None]) ** (_NEGATIVES - ranks)
    mrr = np.where(share > 0, (1 - (1 - share) ** (_NEGATIVES + 1)) / ((_NEGATIVES + 1) * np.maximum(share, 1e-12)), 1)
    values = {"hr@10": chance.sum(axis=1), "ndcg@10": chance @ (1 / np.log2(ranks + 2)), "mrr": mrr}
    return pd.DataFrame({"user": rows["user"].to_numpy(), **values})


def interval(users: pd.Series, values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over rows, users being drawn."""
    groups = pd.Series(values).groupby(users.to_numpy()).agg(["sum", "count"]).to_numpy()
    drawn = np.random.default_rng(0).integers(0, len(groups), (_DRAWS, len(groups)))
    total = groups[drawn].sum(axis=1)
    low, high = np.quantile(total[:, 0] / total[:, 1], [0.025, 0.975])
    return float(low), float(high)


def figures(found: Answers, scratch: Answers) -> Rows:
    """A row by protocol and metric, with the difference to scratch."""
    rows = []
    for metric in ("recall@20", "ndcg@10", "ndcg@20"):
        low, high = found.full.interval(metric)
        paired = found.full.versus(scratch.full, metric)
        row = {"protocol": "full", "metric": metric, "value": float(found.full[metric]), "low": low, "high": high}
        differences = {"difference": paired.difference, "difference_low": paired.low, "difference_high": paired.high}
        rows.append(row | differences)
    if found.rows is not None and scratch.rows is not None:
        users = found.rows["user"]
        for metric in ("hr@10", "ndcg@10", "mrr"):
            values, theirs = found.rows[metric].to_numpy(), scratch.rows[metric].to_numpy()
            low, high = interval(users, values)
            row = {"protocol": "999 negatives", "metric": metric, "value": float(values.mean())}
            row |= {"low": low, "high": high, "difference": float((values - theirs).mean())}
            low, high = interval(users, values - theirs)
            rows.append(row | {"difference_low": low, "difference_high": high})
    return rows


def tuned(pair: Pair, method: Method, settings: list[Setting]) -> Setting:
    if len(settings) == 1:
        return settings[0]
    values = []
    for setting in settings:
        values.append(answers(method.fit(pair, 0, **setting), pair, pair.validation).chosen_by())
        gc.collect()  # weights of items by items take gigabytes
        print("   ", setting, f"{values[-1]:.4f}", flush=True)
    return settings[int(np.argmax(values))]


def _setting(rows: Rows, name: str, shots: Any, method: str) -> Setting | None:
    key = (name, shots, method)
    return next((row["setting"] for row in rows if (row["pair"], row["shots"], row["method"]) == key), None)


def best_of(rows: Rows, name: str, shots: Any, alone: bool) -> str | None:
    """The method that validation prefers, of those that know nothing of the source or of the others."""
    found = {
        row["method"]: row["validation"]
        for row in rows
        if (row["pair"], row["shots"], row["seed"]) == (name, shots, 0)
        and row["method"].endswith(_ALONE) == alone
        and row["validation"] is not None  # rows of an earlier form of this benchmark
    }
    return max(found, key=lambda method: found[method]) if found else None


def measure(name: str, shots: int | None, folder: Path, only: list[str] | None, seeds: list[int], again: bool) -> None:
    pair, label = PAIRS[name](folder, shots), "all" if shots is None else shots
    tuning_at = 5 if shots is None else {0: 0, 1: 2, 2: 2}.get(shots, 5)
    methods = methods_for(pair)
    scratch: tuple[str, Answers] | None = None
    for what, method in methods.items():
        if (shots is None and not what.endswith(_ALONE)) or (only and what not in only):
            continue
        rows = harness.saved(_RESULTS)
        key = {"pair": name, "source": pair.source, "target": pair.target, "shots": label, "system": "jaxrec"}
        key["method"] = what
        done = {row["seed"] for row in rows if all(row.get(field) == value for field, value in key.items())}
        missing = [seed for seed in seeds if again or seed not in done]
        if not missing:
            continue
        # What every gain is over is tuned at its own number of shots, the others at 0, 2 and 5.
        setting = _setting(rows, name, label, what)
        if setting is None and not what.endswith(_ALONE):
            setting = _setting(rows, name, tuning_at, what)
        if setting is None:
            if tuning_at != shots and not what.endswith(_ALONE):
                raise ValueError(f"{name} has no setting of {what!r} at {tuning_at} shots. Run those first.")
            chosen = {each: found for each in methods if (found := _setting(rows, name, label, each)) is not None}
            setting = tuned(pair, method, settings_of(what, method, chosen, pair))
        for seed in missing:
            fitted = method.fit(pair, seed, **setting)
            validation = answers(fitted, pair, pair.validation).chosen_by()
            found = answers(fitted, pair, pair.test)
            if not what.endswith(_ALONE):
                best = best_of(rows, name, label, alone=True)
                if best is None:
                    raise ValueError(f"{name} at {label} shots has no scratch to compare with. Run it first.")
                if scratch is None or scratch[0] != best:
                    theirs = methods[best].fit(pair, 0, **(_setting(rows, name, label, best) or {}))
                    scratch = best, answers(theirs, pair, pair.test)
            new = figures(found, found if scratch is None else scratch[1])
            about = {"seed": seed, "validation": validation, "seconds": round(fitted.seconds, 1), "setting": setting}
            values = f"{validation:.4f} {found.chosen_by():.4f}"
            print(name, label, what, seed, values, f"{fitted.seconds:.1f} s", flush=True)
            kept = [row for row in rows if any(row.get(k) != v for k, v in (key | {"seed": seed}).items())]
            rows = kept + [key | each | about | {"commit": harness.commit()} for each in new]
            harness.save(_RESULTS, rows)
    forget()


def pooled(name: str, folder: Path) -> None:
    """What validation chose at each number of shots against scratch there: the mean over shots, users being drawn."""
    rows = harness.saved(_RESULTS)
    protocol, metric = _measure_of(rows, name)
    users, values, differences, seconds = [], [], [], 0.0
    for shots in (count for count in SHOTS if count is not None):
        pair = PAIRS[name](folder, shots)
        methods, found = methods_for(pair), []
        scratch_name, best_name = (best_of(rows, name, shots, alone) for alone in (True, False))
        if scratch_name is None or best_name is None:
            raise ValueError(f"{name} has not been measured at {shots} shots. Run it first.")
        if _validation(rows, name, shots, best_name) <= _validation(rows, name, shots, scratch_name):
            best_name = scratch_name  # the source would not be taken
        for best in (scratch_name, best_name):
            fitted = methods[best].fit(pair, 0, **(_setting(rows, name, shots, best) or {}))
            found.append(_values(answers(fitted, pair, pair.test), metric))
            seconds += fitted.seconds
        scratch, chosen = found
        if not scratch["user"].equals(chosen["user"]):
            raise ValueError(f"{name} at {shots} shots: scratch and the chosen method answered for other users.")
        users.append(chosen["user"])
        values.append(chosen["value"].to_numpy())
        differences.append(chosen["value"].to_numpy() - scratch["value"].to_numpy())
        print(name, shots, f"{values[-1].mean():.4f} {differences[-1].mean():+.4f}", flush=True)
        forget()
    everybody, value, difference = pd.concat(users), np.concatenate(values), np.concatenate(differences)
    new: dict[str, Any] = {"pair": name, "source": pair.source, "target": pair.target, "shots": _MEAN}
    new |= {"system": "jaxrec", "method": _CHOSEN, "protocol": protocol, "metric": metric, "seed": 0}
    new |= {"validation": None, "setting": None, "seconds": round(seconds, 1)}
    new |= {"value": float(value.mean()), "difference": float(difference.mean()), "commit": harness.commit()}
    for start, numbers in (("", value), ("difference_", difference)):
        new[f"{start}low"], new[f"{start}high"] = interval(everybody, numbers)
    kept = [row for row in rows if (row["pair"], row["shots"]) != (name, _MEAN)]
    harness.save(_RESULTS, [*kept, new])


def _validation(rows: Rows, name: str, shots: int, method: str) -> float:
    key = (name, shots, method, 0)
    return next(r["validation"] for r in rows if (r["pair"], r["shots"], r["method"], r["seed"]) == key)


def _values(found: Answers, metric: str) -> pd.DataFrame:
    """By user, or by held-out row of a user, in an order that is every method's."""
    if found.rows is not None:
        return found.rows[["user", metric]].set_axis(["user", "value"], axis=1)
    return found.full.users(metric).sort_index().rename_axis("user").rename("value").reset_index()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shots = ["all" if count is None else str(count) for count in SHOTS]
    arguments.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    arguments.add_argument("--shots", nargs="*", default=shots, choices=shots)
    arguments.add_argument("--methods", nargs="*", help="by default all that the pair allows")
    arguments.add_argument("--finalists", action="store_true", help="what validation chose, scratch, and stacked iALS")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments.add_argument("--again", action="store_true", help="measure what has been measured already")
    arguments.add_argument("--pooled", action="store_true", help="the mean over shots of what validation chose")
    arguments.add_argument("--table", action="store_true", help="print the tables and stop")
    options = arguments.parse_args()
    if options.table:
        rows = harness.saved(_RESULTS)
        print(summary(rows))
        spent, unknown = hours(rows)
        print(
            f"\nAbout {spent:.1f} hours of fits with the settings chosen; of {unknown} fits the seconds are not known."
        )
        text = "\n\n".join(["# Transfer, method by method", *(details(rows, name) for name in PAIRS)])
        _RESULTS.with_suffix(".md").write_text(text + "\n")
        return
    folder = harness.data_folder()
    if options.pooled:
        if options.shots != shots or options.methods or options.finalists or options.again or options.seeds != [0]:
            arguments.error("--pooled takes all shots, seed 0 and what validation chose: give --pairs alone.")
        for name in options.pairs:
            pooled(name, folder)
        return
    order = sorted(options.shots, key=["0", "2", "1", "5", "10", "all"].index)
    for name in options.pairs:
        for text in order:
            label = text if text == "all" else int(text)
            only = options.methods
            if options.finalists:
                best = (best_of(harness.saved(_RESULTS), name, label, alone) for alone in (True, False))
                only = [*(each for each in best if each is not None), "stacked iALS"]
            measure(name, None if text == "all" else int(text), folder, only, options.seeds, options.again)


def _means(rows: Rows, name: str, shots: Any, method: str, protocol: str, metric: str) -> Rows:
    key = {"pair": name, "shots": shots, "method": method, "protocol": protocol, "metric": metric}
    return sorted(
        (row for row in rows if all(row[field] == value for field, value in key.items())), key=lambda row: row["seed"]
    )


def _measure_of(rows: Rows, name: str) -> tuple[str, str]:
    has = any(row["pair"] == name and row["protocol"] == "999 negatives" for row in rows)
    return ("999 negatives", "hr@10") if has else ("full", "ndcg@10")


def summary(rows: Rows) -> str:
    """Markdown: by pair and shots scratch, what there is to gain, stacked iALS, and what validation prefers of the
    methods that know the source; it is taken where it is ahead of scratch there. Means over seeds; the interval is the
    hull of theirs."""
    lines = ["| pair | shots | scratch | | all | stacked iALS | best with the source | | gain | 95 % | seeds | taken |"]
    lines.append("|---|---:|---|---:|---:|---:|---|---:|---:|---|---:|---|")
    for name in PAIRS:
        for shots in (count for count in SHOTS if count is not None):
            alone, best = (best_of(rows, name, shots, alone=each) for each in (True, False))
            if alone is None or best is None:
                continue
            theirs, found, stacked = (_headline(rows, name, shots, each) for each in (alone, best, "stacked iALS"))
            everything = _headline(rows, name, "all", best_of(rows, name, "all", alone=True))
            cells = [name, shots, alone.removesuffix(_ALONE), _mean(theirs), _mean(everything), _mean(stacked), best]
            cells.append(_mean(found))
            if any(row["difference"] is None for row in found):  # to a scratch of before
                cells += ["", ""]
            else:
                ends = (("low", min), ("high", max))
                low, high = (end(row[f"difference_{side}"] for row in found) for side, end in ends)
                cells += [f"{np.mean([row['difference'] for row in found]):+.4f}", f"[{low:+.4f}, {high:+.4f}]"]
            cells += [len(found), "yes" if found[0]["validation"] > theirs[0]["validation"] else "no"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        for row in _headline(rows, name, _MEAN, _CHOSEN):
            gain = f"**{row['difference']:+.4f}** | [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
            scratch = row["value"] - row["difference"]
            lines.append(f"| {name} | mean | | {scratch:.4f} | | | | {row['value']:.4f} | {gain} | 1 | |")
    return "\n".join(lines)


def hours(rows: Rows) -> tuple[float, int]:
    """Of the fits with the settings chosen, and how many have no seconds. Roughly: methods made of others are left out
    for seed 0, whose parts are mostly rows of their own, and parts that rows share count in each."""
    parted = {"parts", "first", "l2_source"}  # in the setting of what is made of other rows
    fits = {
        (row["pair"], row["shots"], row["method"], row["seed"]): row["seconds"]
        for row in rows
        if row["shots"] != _MEAN and (row["seed"] > 0 or not parted & set(row["setting"]))
    }
    known = [seconds for seconds in fits.values() if seconds is not None]
    return sum(known) / 3600, len(fits) - len(known)


def _headline(rows: Rows, name: str, shots: Any, method: str | None) -> Rows:
    return _means(rows, name, shots, method or "", *_measure_of(rows, name))


def _mean(rows: Rows) -> str:
    return f"{np.mean([row['value'] for row in rows]):.4f}" if rows else ""


def details(rows: Rows, name: str) -> str:
    """Markdown: every method by shots, a table for each metric; behind a figure half of its 95 % interval."""
    here = [row for row in rows if row["pair"] == name and row["shots"] != _MEAN]
    columns = [("full", "recall@20", "R@20"), ("full", "ndcg@10", "N@10"), ("full", "ndcg@20", "N@20")]
    if _measure_of(rows, name)[0] != "full":
        columns += [("999 negatives", each, each.upper()) for each in ("hr@10", "ndcg@10", "mrr")]
    shots = [count for count in SHOTS if count is not None and any(row["shots"] == count for row in here)]
    lines = []
    for protocol, metric, title in columns:
        of = f", {protocol}" if protocol != "full" else ""
        lines += [f"**{name}**, {title}{of}", "", "| method | " + " | ".join(map(str, shots)) + " |"]
        lines.append("|---|" + "---:|" * len(shots))
        for method in dict.fromkeys(row["method"] for row in here):
            cells = []
            for count in shots:
                found = _means(rows, name, count, method, protocol, metric)
                half = (found[0]["high"] - found[0]["low"]) / 2 if found else 0.0
                cells.append(f"{np.mean([row['value'] for row in found]):.4f} ± {half:.4f}" if found else "")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
