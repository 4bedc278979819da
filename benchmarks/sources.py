"""Which source is worth transferring from? What ``jaxrec.sources`` says before training against what comes out.

python benchmarks/sources.py                    # what is not measured yet, target by target
python benchmarks/sources.py --targets history  # some targets

``JAXREC_DATA`` names the folder of data. Domains are five genres of goodbooks and five types of anime; users are shared
within a data set. A book belongs to one domain alone: of the five genres to the rarest that it has as a label. A fifth
of the users with 5 rows or more in the target and in some other domain are held out of the target, the same ones for
all sources. The true gain of a source is what a strategy adds for them to iALS of the target alone (where they get the
mean user's vector), NDCG@10 over all items of the target's training part, as a part of the latter. Two strategies:
EMCDR over iALS, and iALS of both domains as one matrix. All settings are the library's defaults with 32 dimensions;
none was tuned.

Beside the real sources each target has three planted ones: the largest other domain with its users' ids permuted, a
generated world with the data set's user ids, and one meant to do harm: of the largest other domain the light users (all
but the 30 % with most rows in the target) have the history of the user whose taste there is most opposed to theirs, so
that what the heavy ones teach is wrong for most.

Scores are calibrated leaving the whole target out, and leaving the whole data set out; planted sources are in no
calibration. Rows go to ``results/sources.json``.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pandas as pd

import jaxrec
from jaxrec import data, sources, train, transfer

_RESULTS = Path(__file__).parent / "results" / "sources.json"
GENRES = ("fantasy", "romance", "mystery", "history", "science-fiction")
TYPES = ("TV", "Movie", "OVA", "Special", "ONA")
STRATEGIES = ("emcdr", "stack")
PLANTED = ("permuted users", "generated", "opposed users")
_DIM, _HEAVY, _LEAST = 32, 0.7, 5
_KEYS = ["user", "item"]
_SCHEMA = data.Schema(item_features=(data.Labels("labels", "|"),))


@functools.cache
def domains(dataset: str) -> dict[str, data.Frames]:
    """By name. Labels of items are features, which only distances read."""
    folder = harness.data_folder() / dataset
    if dataset == "anime":
        items = pd.read_parquet(folder / "items.parquet").rename(columns={"anime_id": "item"})
        items = items.assign(domain=items["type"], labels=items["genres"].str.replace(", ", "|"))
        rows = pd.read_parquet(folder / "interactions.parquet")
        rows = rows.rename(columns={"user_id": "user", "anime_id": "item"})
        names = TYPES
    else:
        labels = pd.read_parquet(folder / "book_genres.parquet").merge(pd.read_parquet(folder / "genres.parquet"))
        labels = labels.rename(columns={"book_id": "item"}).sort_values(["item", "genre"])
        of_ours = labels[labels["genre"].isin(GENRES)]
        size = of_ours["genre"].map(of_ours["genre"].value_counts())
        own = of_ours.assign(size=size).sort_values(["item", "size"]).drop_duplicates("item").set_index("item")["genre"]
        items = labels.groupby("item")["genre"].agg("|".join).rename("labels").reset_index()
        items["domain"] = items["item"].map(own)
        rows = pd.read_parquet(folder / "ratings.parquet").rename(columns={"user_id": "user", "book_id": "item"})
        names = GENRES
    kind = rows["item"].map(items.set_index("item")["domain"])
    return {
        name: data.Frames(
            rows.loc[kind == name, _KEYS].reset_index(drop=True), None, items.loc[items["domain"] == name], _SCHEMA
        )
        for name in names
    }


def encoded(frames: data.Frames) -> data.Dataset:
    items = frames.items
    if items is not None:
        items = items[items["item"].isin(frames.interactions["item"])]
    return data.encode(data.Parts(frames.interactions, None, None), frames.schema, items=items).train


def fitted(frames: data.Frames) -> train.Recommender:
    return train.fit_als(encoded(frames), dim=_DIM)


@functools.cache
def source(dataset: str, name: str) -> train.Recommender:
    return fitted(domains(dataset)[name])


@functools.cache
def generated(dataset: str) -> train.Recommender:
    """A world that has nothing to do with the data but the ids of users."""
    users = np.unique(np.concatenate([each.interactions["user"] for each in domains(dataset).values()]))
    frames = data.generate(
        seed=0, source_users=len(users), target_users=4, shared_users=0.0, source_items=800, target_items=4,
        source_interactions=20.0, target_interactions=2.0,
    ).source  # fmt: skip
    ids = np.sort(frames.interactions["user"].unique())
    drawn = np.random.default_rng(0).permutation(users)[np.searchsorted(ids, frames.interactions["user"])]
    return fitted(data.Frames(frames.interactions.assign(user=drawn)[_KEYS], None, None, data.Schema()))


def permuted(frames: data.Frames) -> data.Frames:
    users = np.unique(frames.interactions["user"])
    others = np.random.default_rng(0).permutation(users)
    drawn = others[np.searchsorted(users, frames.interactions["user"])]
    return frames._replace(interactions=frames.interactions.assign(user=drawn))


def opposed(frames: data.Frames, recommender: train.Recommender, target: pd.DataFrame) -> data.Frames:
    """Light users of the target get the history of whoever has the most opposed taste in the source."""
    vectors = transfer.carry(recommender)
    users = vectors["user"].to_numpy()
    taste = np.stack(vectors["source"].to_list())
    taste -= taste.mean(axis=0)
    taste /= np.linalg.norm(taste, axis=1, keepdims=True)
    other = users[(taste @ taste.T).argmin(axis=1)]
    count = target.groupby("user").size()
    heavy = np.isin(users, count.index[count > count.quantile(_HEAVY)])
    other = np.where(heavy, users, other)
    histories = dict(list(frames.interactions.groupby("user")["item"]))
    rows = [pd.DataFrame({"user": user, "item": histories[whose]}) for user, whose in zip(users, other, strict=True)]
    return frames._replace(interactions=pd.concat(rows, ignore_index=True))


def cut(dataset: str, target: str) -> tuple[data.Frames, pd.DataFrame]:
    """The target's training part, and the rows of its held-out users."""
    every = domains(dataset)
    rows = every[target].interactions
    counts = {name: frames.interactions.groupby("user").size() for name, frames in every.items()}
    elsewhere = np.concatenate([count.index[count >= _LEAST] for name, count in counts.items() if name != target])
    able = np.intersect1d(counts[target].index[counts[target] >= _LEAST], elsewhere)
    cold = np.random.default_rng(0).permutation(able)[: len(able) // 5]
    held = rows["user"].isin(cold)
    training, test = rows[~held].reset_index(drop=True), rows[held]
    return every[target]._replace(interactions=training), test[test["item"].isin(training["item"])]


def measured(dataset: str, target: str) -> list[dict[str, Any]]:
    """Rows of all sources of a target."""
    every = domains(dataset)
    frames, test = cut(dataset, target)
    rows = encoded(frames)
    others = [name for name in every if name != target]
    largest = max(others, key=lambda name: len(every[name].interactions))
    candidates = {name: source(dataset, name) for name in others}
    candidates[PLANTED[0]] = fitted(permuted(every[largest]))
    candidates[PLANTED[1]] = generated(dataset)
    candidates[PLANTED[2]] = fitted(opposed(every[largest], candidates[largest], every[target].interactions))
    alone = train.fit_als(rows, dim=_DIM)
    report = jaxrec.evaluate(alone, test, ks=(10,))
    scale = report["ndcg@10"]
    popular = jaxrec.evaluate(jaxrec.coldstart.popularity(rows), test, ks=(10,))["ndcg@10"]
    found = []
    for strategy in STRATEGIES:
        start = time.perf_counter()
        ranking = sources.rank(candidates, rows, strategy=strategy, least=_LEAST)
        seconds = (time.perf_counter() - start) / len(candidates)
        for name, recommender in candidates.items():
            paired = transferred(recommender, alone, test, strategy).versus(report, "ndcg@10")
            signals = ranking.table.drop(columns=["score", "verdict"]).loc[name]
            found.append(
                {
                    "source": name,
                    "target": target,
                    "dataset": dataset,
                    "strategy": strategy,
                    "signals": {key: round(float(value), 5) for key, value in signals.items()},
                    "verdict": ranking.table.loc[name, "verdict"],
                    "gain": paired.difference / scale,
                    "low": paired.low / scale,
                    "high": paired.high / scale,
                    "users": paired.users,
                    "alone": scale,
                    "popular": popular,
                    "default_score": float(ranking.table.loc[name, "score"]),
                    "seconds": round(seconds, 1),
                    "commit": harness.commit(),
                }
            )
    return found


def transferred(
    recommender: train.Recommender, alone: train.Recommender, test: pd.DataFrame, strategy: str
) -> jaxrec.evaluation.Report:
    """The held-out users' figures after the transfer in full."""
    if strategy == "emcdr":
        return jaxrec.evaluate(transfer.emcdr(recommender, alone), test, ks=(10,))
    parts = {"source": bare(recommender), "target": bare(alone)}
    stacked = transfer.stack(parts)
    joint = train.fit_als(data.encode(data.Parts(stacked.interactions, None, None), data.Schema()).train, dim=_DIM)
    held = transfer.stack({"target": parts["target"]._replace(interactions=test)}).interactions
    items = transfer.stack({"target": parts["target"]}).interactions["item"].unique()
    return jaxrec.evaluate(joint, held, ks=(10,), candidates=items)


def bare(recommender: train.Recommender) -> data.Frames:
    """What a recommender was trained on."""
    encoder, rows = recommender.encoder, recommender.trained
    frame = pd.DataFrame({"user": encoder.users.decode(rows.user), "item": encoder.items.decode(rows.item)})
    return data.Frames(frame, None, None, data.Schema())


def spearman(rows: pd.DataFrame, column: str, draws: int = 2000) -> tuple[float, float, float]:
    """Rank correlation with the true gain, and its 95 % interval, pairs being drawn."""

    values = rows[[column, "gain"]].to_numpy(float)

    def of(pairs: np.ndarray) -> float:
        # mean ranks of ties: how many are below, and half of how many are the same
        ranks = [(each[:, None] > each).sum(axis=1) + 0.5 * (each[:, None] == each).sum(axis=1) for each in pairs.T]
        return float(np.corrcoef(ranks)[0, 1]) if all(np.ptp(each) > 0 for each in ranks) else 0.0

    rng = np.random.default_rng(0)
    drawn = [of(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return of(values), float(low), float(high)


def scored(table: pd.DataFrame, leave: str, columns: list[str] | None = None) -> pd.Series:
    """Scores of all rows, each calibrated on the real pairs of other targets (data sets)."""
    found = pd.Series(index=table.index, dtype=float)
    for value in table[leave].unique():
        fit = table[(table[leave] != value) & ~table["source"].isin(PLANTED)]
        if len(fit) >= 3:
            signals = fit[columns] if columns else fit.drop(columns=["gain"]).rename(columns={"trial": "gain"})
            score = sources.calibrate(signals, fit["gain"])
            inside = table[leave] == value
            found[inside] = score(table[inside].drop(columns=["gain"]).rename(columns={"trial": "gain"}))
    return found


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Signals as columns; the trial's gain is called ``trial`` beside the true one."""
    flat = []
    for row in rows:
        signals = {key: value for key, value in row["signals"].items() if key not in ("gain", "low", "high", "users")}
        kept = {key: value for key, value in row.items() if key != "signals"}
        assert not set(kept) & set(signals)
        flat.append({**signals, "trial": row["signals"]["gain"], **kept})
    return pd.DataFrame(flat)


def summary(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Prints what the page says, and returns the table with the scores, in the order of rows."""
    table, parts = as_table(rows), []
    measures = ("shared_users", "shared_items", "gain", "low", "high", "users")
    cheap = [name for name in rows[0]["signals"] if name not in measures]
    for strategy, part in table.groupby("strategy"):
        part = part.assign(
            **{
                "score": scored(part, "target"),
                "score, data set left out": scored(part, "dataset"),
                "score without the trial": scored(part, "target", cheap),
            }
        )
        parts.append(part)
        real = part[~part["source"].isin(PLANTED)]
        print(f"\n{strategy}: {len(real)} real pairs, rank correlation with the true gain [95 % interval over pairs]")
        for name in [*part.columns[-3:], "default_score", "trial", *cheap]:
            if real[name].notna().all() and real[name].nunique() > 1:
                value, low, high = spearman(real, name)
                within = np.mean([spearman(each, name, draws=1)[0] for _, each in real.groupby("target")])
                print(f"  {name:26} {value:+.2f} [{low:+.2f}, {high:+.2f}], within a target on average {within:+.2f}")
        place = part["verdict"].map({"harmful": 0, "no evidence of help": 1, "helpful": 2})
        part = part.assign(place=place, alone_place=0)
        for first_by, name in (("place", "score"), ("alone_place", "score"), ("place", "default_score")):
            last = first = 0
            for _, each in part.groupby("target"):
                order = each[each["source"] != PLANTED[2]].sort_values([first_by, name])["source"].tolist()
                last += set(order[:2]) == set(PLANTED[:2])
                first += order[-1] == each.loc[each["gain"].idxmax(), "source"]
            number = part["target"].nunique()
            how = f"verdict, then {name}" if first_by == "place" else f"{name} alone"
            print(f"  by {how}: unrelated ones last in {last}, best source first in {first} of {number} targets")
        kinds = part["source"].where(part["source"].isin(PLANTED), "real")
        truth = np.select([part["low"] > 0, part["high"] < 0], ["helped", "hurt"], "neither")
        print(pd.crosstab([kinds, pd.Series(truth, part.index, name="truth")], part["verdict"]).to_string())
    return pd.concat(parts).sort_index()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--targets", nargs="*", default=[*GENRES, *TYPES], choices=[*GENRES, *TYPES])
    arguments.add_argument("--again", action="store_true", help="measure what has been measured already")
    options = arguments.parse_args()
    for target in options.targets:
        rows = harness.saved(_RESULTS)
        if any(row["target"] == target for row in rows) and not options.again:
            continue
        start = time.perf_counter()
        new = measured("anime" if target in TYPES else "goodbooks", target)
        for row in new:
            print(
                f"{row['strategy']:5} {row['source']:16} -> {target:16} {row['gain']:+.3f} [{row['low']:+.3f}, "
                f"{row['high']:+.3f}]  trial {row['signals']['gain']:+.3f}  {row['verdict']}",
                flush=True,
            )
        print(f"{target}: {time.perf_counter() - start:.0f} s", flush=True)
        rows = [row for row in rows if row["target"] != target] + new
        harness.save(_RESULTS, rows)
    rows = harness.saved(_RESULTS)
    scores = summary(rows)["score"]
    rows = [{**row, "score": None if np.isnan(score) else score} for row, score in zip(rows, scores, strict=True)]
    harness.save(_RESULTS, rows)


if __name__ == "__main__":
    main()
