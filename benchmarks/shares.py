"""Does the verdict on transfer follow what there is to carry over?

Generates pairs of domains whose tastes and content agree to a planted share, transfers a two-tower model from one to
the other, and compares with training from scratch on cold users. Rows are written as they come; those that are there
are not computed again.

python benchmarks/shares.py                      # 4 shares x 10 seeds, about 8 minutes on two cores
python benchmarks/shares.py --seeds 2 --out x.json
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import harness
import jax
import pandas as pd

import jaxrec
from jaxrec import data, models, transfer

SHARES = (0.0, 0.3, 0.6, 0.9)
WORLD: dict[str, Any] = {
    "source_users": 2000,
    "target_users": 600,
    "source_items": 600,
    "target_items": 400,
    "target_interactions": 16.0,
    "content": 0.8,
}
TOWERS: dict[str, Any] = {"dim": 16, "hidden": (32,), "code_dim": 4}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--out", default=str(Path(__file__).parent / "results" / "shares.json"))
    options = arguments.parse_args()
    out = Path(options.out)
    rows = harness.saved(out)["rows"] if out.exists() else []
    done = {(row["share"], row["seed"]) for row in rows}
    for share in SHARES:
        for seed in range(options.seeds):
            if (share, seed) in done:
                continue
            start = time.perf_counter()
            rows.append({"share": share, "seed": seed, **measure(share, seed)})
            rows[-1]["seconds"] = round(time.perf_counter() - start, 1)
            print(rows[-1], flush=True)
            harness.save(out, {"device": device(), "world": WORLD, "model": str(TOWERS), "rows": rows})
    print(summary(pd.DataFrame(rows)).to_string(index=False))


def measure(share: float, seed: int) -> dict[str, Any]:
    """One pair of domains: NDCG@10 of cold users with and without transfer, and what ``compare`` says of it."""
    world = data.generate(seed=seed, transferable=share, **WORLD)
    rich, poor = world.source, world.target
    parts = data.split_random(rich.interactions, validation=0.1, test=0.0, seed=seed)
    encoded = data.encode(parts, rich.schema, users=rich.users, items=rich.items)
    source = jaxrec.fit(
        models.TwoTower.for_data(encoded.train, **TOWERS),
        encoded.train,
        validation=encoded.validation,
        epochs=30,
        batch_size=1024,
        seed=seed,
    )
    parts = data.split_cold_users(poor.interactions, poor.schema, validation=0.15, test=0.3, seed=seed)
    encoded = data.encode(parts, poor.schema, users=poor.users, items=poor.items, like=source.encoder)
    comparison = transfer.compare(
        source, encoded.train, encoded.test, validation=encoded.validation, epochs=30, batch_size=256, seed=seed
    )
    overall = comparison.table.iloc[0]
    figures = {name: round(float(overall[name]), 4) for name in ("scratch", "transfer", "difference", "low", "high")}
    return {**figures, "users": int(overall["users"]), "verdict": comparison.verdict}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """By share: mean figures over seeds and how often each verdict came."""
    groups = rows.groupby("share")
    means = groups[["scratch", "transfer", "difference"]].mean().round(4)
    means["sd over seeds"] = groups["difference"].std().round(4)
    for verdict in ("helped", "no difference", "hurt"):
        means[verdict] = groups["verdict"].apply(lambda column, verdict=verdict: (column == verdict).sum())
    return means.reset_index()


def device() -> str:
    return f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"


if __name__ == "__main__":
    main()
