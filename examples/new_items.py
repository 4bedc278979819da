"""New items: rank what nobody has touched yet, by its content.

python examples/new_items.py
"""

import numpy as np
import pandas as pd

import jaxrec
from jaxrec import coldstart, data, models


def main() -> None:
    frames = data.generate(seed=0, content=0.8, target_interactions=20.0).target
    parts = data.split_cold_items(frames.interactions, frames.schema, validation=0.1, test=0.2, seed=0)
    encoded = data.encode(parts, frames.schema, users=frames.users, items=frames.items)
    held_out, new = parts.validation["item"].unique(), parts.test["item"].unique()

    def among_new_items(recommender: jaxrec.train.Recommender) -> float:
        return jaxrec.evaluate(recommender, encoded.validation, candidates=held_out, draws=1)["ndcg@10"]

    model = models.TwoTower.for_data(encoded.train, dim=16, hidden=(32,), code_dim=4)
    recommender = jaxrec.fit(model, encoded.train, metric=among_new_items, epochs=30, batch_size=256)

    # The new items among themselves, and where they stand in the whole catalogue.
    rng = np.random.default_rng(0)
    chance = jaxrec.evaluate(
        lambda users, items: rng.random((len(users), len(items))), encoded.test, seen=encoded.train, candidates=new
    )
    print(f"content:    ndcg@10 {jaxrec.evaluate(recommender, encoded.test, candidates=new)['ndcg@10']:.4f}")
    print(f"popularity: ndcg@10 {among(coldstart.popularity(encoded.train), encoded, new):.4f} (all tie and go by id)")
    print(f"chance:     ndcg@10 {chance['ndcg@10']:.4f}\n")
    print(jaxrec.evaluate(recommender, encoded.test), "\n")

    # An item of today, which no split knew: one row of features.
    vector = np.asarray(frames.items["content"].iloc[0])
    today = pd.DataFrame({"item": ["premiere"], "content": [vector], "genres": ["comedy|art"]})
    fans = coldstart.add(recommender, items=today)
    everybody = pd.DataFrame({"user": fans.encoder.users.ids, "item": "premiere"})
    best = everybody.assign(score=jaxrec.predict(fans, everybody)).nlargest(3, "score")
    print("Whom to tell of the premiere:\n" + best.to_string(index=False))


def among(recommender: jaxrec.train.Recommender, encoded: data.Parts, items: np.ndarray) -> float:
    return jaxrec.evaluate(recommender, encoded.test, candidates=items)["ndcg@10"]


if __name__ == "__main__":
    main()
