"""The main job: pretrain on a rich domain, transfer to a poor one, see what it is worth for new users and new items.

python examples/demo.py                      # generated worlds
python examples/demo.py --data path/to/ml-1m # real data, see examples/domains.py
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import domains
import pandas as pd

import jaxrec
from jaxrec import coldstart, data, evaluation, export, models, plot, transfer

SHOTS = (0, 1, 2, 5, 10)
METRIC = "ndcg@10"
FIT = {"epochs": 40, "batch_size": 256, "seed": 0}
LABELS = {"popularity": "popularity", "scratch": "from scratch", "frozen": "copied and frozen",
          "tuned": "copied and fine-tuned", "oracle": "oracle"}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--data", help="folder of real data; generated worlds without it")
    arguments.add_argument("--out", default="demo-output", help="folder for plots, model and artefact")
    options = arguments.parse_args()
    start, out = time.perf_counter(), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    pair = domains.load(options.data)

    print(f"{pair.title}\n\nPretraining on {len(pair.source.interactions):,} interactions of the source ...")
    source = pretrain(pair.source)
    print(f"{source}\n\nTransfer to {len(pair.target.interactions):,} interactions of the target ...\n")
    reports, users = new_users(pair, source)
    reports |= new_items(pair, source)
    print_table(reports)

    histories = {LABELS[name]: recommender.history for name, recommender in users.items()}
    plot.learning_curves(histories, metric=METRIC).savefig(out / "learning_curve.png")
    plot.cold_start(curves(reports), metric=f"{METRIC} of new users").savefig(out / "cold_start.png")
    jaxrec.save(users["tuned"], out / "model.jaxrec")
    export.write_artefact(users["tuned"], out / "artefact", k=20)
    some = users["tuned"].encoder.users.ids[:1].tolist()
    print(f"\nThe artefact, read by jax, numpy and flatbuffers alone, recommends to user {some[0]}:")
    script = f"import serve; print(serve.load('.').recommend({some}, k=5)[0])"
    subprocess.run([sys.executable, "-c", script], cwd=out / "artefact", check=True)
    print(f"\nWritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    print(f"{time.perf_counter() - start:.0f} s")


def pretrain(frames: data.Frames) -> jaxrec.train.Recommender:
    parts = data.split_random(frames.interactions, validation=0.1, test=0.0, seed=0)
    encoded = data.encode(parts, frames.schema, users=frames.users, items=frames.items)
    model = models.TwoTower.for_data(encoded.train, dim=32, hidden=(64,), code_dim=8, history=10)
    return jaxrec.fit(model, encoded.train, validation=encoded.validation, **FIT | {"batch_size": 1024})


def recommenders(
    source: jaxrec.train.Recommender, parts: data.Parts, **validation: Any
) -> dict[str, jaxrec.train.Recommender]:
    """Every method, trained alike."""
    options = {**validation, **FIT}
    model = models.TwoTower.for_data(parts.train, dim=32, hidden=(64,), code_dim=8, history=10)
    return {
        "scratch": jaxrec.fit(model, parts.train, **options),
        "frozen": transfer.adapt(source, parts.train, freeze="copied", **options).recommender,
        "tuned": transfer.adapt(source, parts.train, **options).recommender,
    }


def new_users(
    pair: domains.Pair, source: jaxrec.train.Recommender
) -> tuple[dict[tuple[str, str], evaluation.Report], dict[str, jaxrec.train.Recommender]]:
    """Users without target interactions, of whom the first few are then revealed; the rest is what counts."""
    frames, schema = pair.target, pair.target.schema
    parts = data.split_cold_users(frames.interactions, schema, validation=0.15, test=0.35, seed=0)
    place = parts.test.groupby(schema.user).cumcount()
    first, later = parts.test[place < max(SHOTS)], parts.test[place >= max(SHOTS)]
    encoded = data.encode(
        parts._replace(test=later), schema, users=frames.users, items=frames.items, like=source.encoder
    )
    found = recommenders(source, encoded, validation=encoded.validation)
    reports = {}
    for name, recommender in ({"popularity": coldstart.popularity(encoded.train)} | found).items():
        for shots in SHOTS:
            revealed = (
                coldstart.add(recommender, interactions=first[place[first.index] < shots]) if shots else recommender
            )
            reports[name, str(shots)] = jaxrec.evaluate(revealed, later, ks=(10,), exclude=first)
    if pair.truth is not None:
        oracle = jaxrec.evaluate(pair.truth.scores, encoded.test, ks=(10,), seen=encoded.train, exclude=first)
        reports |= {("oracle", str(shots)): oracle for shots in SHOTS}
    return reports, found


def new_items(pair: domains.Pair, source: jaxrec.train.Recommender) -> dict[tuple[str, str], evaluation.Report]:
    """Items without target interactions, ranked among themselves."""
    frames, schema = pair.target, pair.target.schema
    if not schema.item_features:
        print("The items have no features, so nothing tells new ones apart: no column for them.\n")
        return {}
    parts = data.split_cold_items(frames.interactions, schema, validation=0.15, test=0.35, seed=0)
    encoded = data.encode(parts, schema, users=frames.users, items=frames.items, like=source.encoder)
    held_out = parts.validation[schema.item].unique()

    def among_new_items(recommender: jaxrec.train.Recommender) -> float:
        # In the whole catalogue new items stand behind the trained ones, and the figure would hardly move.
        return jaxrec.evaluate(recommender, encoded.validation, ks=(10,), candidates=held_out, draws=1)[METRIC]

    found = {"popularity": coldstart.popularity(encoded.train)}
    found |= recommenders(source, encoded, metric=among_new_items)
    options = {"ks": (10,), "candidates": parts.test[schema.item].unique()}
    reports = {(name, "items"): jaxrec.evaluate(each, encoded.test, **options) for name, each in found.items()}
    if pair.truth is not None:
        reports["oracle", "items"] = jaxrec.evaluate(pair.truth.scores, encoded.test, seen=encoded.train, **options)
    return reports


def print_table(reports: dict[tuple[str, str], evaluation.Report]) -> None:
    columns = list(dict.fromkeys(column for _, column in reports))
    heads = {column: "new items" if column == "items" else f"{column} known" for column in columns}
    counts = {column: int(reports["scratch", column].table["users"].max()) for column in columns}
    print(f"{METRIC}, mean over test users and 95 % interval: new users by the interactions known of them" +
          (", and new items" if "items" in columns else ""))  # fmt: skip
    print(" " * 22 + "".join(f"{heads[column]:>18}" for column in columns))
    for name, label in LABELS.items():
        cells = []
        for column in columns:
            report = reports.get((name, column))
            low, high = report.interval(METRIC) if report else (0.0, 0.0)
            cells.append(f"{report[METRIC]:.4f} ±{(high - low) / 2:.4f}" if report else "")
        if any(cells):
            print(f"{label:22}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{'users':22}" + "".join(f"{counts[column]:>18,}" for column in columns))
    print("\nTransfer (copied and fine-tuned) minus from scratch, paired by user:")
    for column in columns:
        paired = reports["tuned", column].versus(reports["scratch", column], METRIC)
        verdict = "ahead" if paired.low > 0 else "behind" if paired.high < 0 else "no difference shown"
        print(f"  {heads[column]:>10}: {paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]  {verdict}")


def curves(reports: dict[tuple[str, str], evaluation.Report]) -> pd.DataFrame:
    rows = [
        (LABELS[name], int(column), report[METRIC], *report.interval(METRIC))
        for (name, column), report in reports.items()
        if column != "items"
    ]
    return pd.DataFrame(rows, columns=["method", "shots", "mean", "low", "high"])


if __name__ == "__main__":
    main()
