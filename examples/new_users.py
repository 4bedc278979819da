"""New users: recommend to people who were not there when the model was trained.

python examples/new_users.py
"""

import pandas as pd

import jaxrec
from jaxrec import coldstart, data, models


def main() -> None:
    frames = data.generate(seed=0, target_interactions=20.0).target
    parts = data.split_cold_users(frames.interactions, frames.schema, validation=0.1, test=0.2, seed=0)
    encoded = data.encode(parts, frames.schema, users=frames.users, items=frames.items)

    # Histories are pooled, so a new user needs no training: the first few interactions are read when scoring.
    model = models.TwoTower.for_data(encoded.train, dim=16, hidden=(32,), code_dim=4, history=10)
    recommender = jaxrec.fit(model, encoded.train, validation=encoded.validation, epochs=15, batch_size=256)

    # The test users are new. How well are their later choices ranked, the more of the first ones are known?
    place = parts.test.groupby("user").cumcount()
    first, later = parts.test[place < 5], parts.test[place >= 5]
    for shots in (0, 1, 2, 5):
        known = coldstart.add(recommender, interactions=first[place[first.index] < shots]) if shots else recommender
        report = jaxrec.evaluate(known, later, exclude=first)
        low, high = report.interval("ndcg@10")
        print(f"{shots} interactions known: ndcg@10 {report['ndcg@10']:.4f} [{low:.4f}, {high:.4f}]")
    popular = jaxrec.evaluate(coldstart.popularity(encoded.train), encoded.test, exclude=first)
    print(f"popularity:            ndcg@10 {popular['ndcg@10']:.4f}\n")

    # Somebody who comes to the door now: features, and two items they just touched.
    visitor = pd.DataFrame({"user": [42], "age": [31], "group": ["C"]})
    touched = pd.DataFrame({"user": [42, 42], "item": ["film-00003", "film-00017"], "time": [0, 1]})
    print(jaxrec.recommend(recommender, new_users=visitor, interactions=touched, k=5).to_string(index=False))


if __name__ == "__main__":
    main()
