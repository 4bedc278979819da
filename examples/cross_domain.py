"""Cross-domain: what is known of readers helps to recommend films to them, and the comparison says how much.

python examples/cross_domain.py
"""

import jaxrec
from jaxrec import data, models, transfer


def main() -> None:
    world = data.generate(seed=0, transferable=0.8, target_users=800)
    books, films = world.source, world.target

    # Pretrain on the rich domain.
    rich = data.encode(
        data.split_random(books.interactions, test=0.0, seed=0), books.schema, users=books.users, items=books.items
    )
    model = models.TwoTower.for_data(rich.train, dim=16, hidden=(32,), code_dim=4)
    source = jaxrec.fit(model, rich.train, validation=rich.validation, epochs=20)

    # The poor domain: new users have no film yet, though many of them have read books. `like=` reads features alike.
    parts = data.split_cold_users(films.interactions, films.schema, validation=0.15, test=0.3, seed=0)
    poor = data.encode(parts, films.schema, users=films.users, items=films.items, like=source.encoder)

    # Align ids, copy the parameter tree, keep what was copied, learn the rest; and train from scratch beside it.
    options = {"validation": poor.validation, "epochs": 20, "batch_size": 256}
    comparison = transfer.compare(source, poor.train, poor.test, freeze="copied", **options)
    print(comparison.adapted, "\n")
    print(comparison, "\n")

    # Freeze by pattern instead, or learn one tower anew.
    towers = transfer.adapt(source, poor.train, freeze=("user/mlp/*", "item/mlp/*"), **options)
    print(f"{towers.frozen}: ndcg@10 {jaxrec.evaluate(towers.recommender, poor.test)['ndcg@10']:.4f}")
    users_only = transfer.adapt(source, poor.train, patterns="user/*", **options)
    print(f"users alone copied: ndcg@10 {jaxrec.evaluate(users_only.recommender, poor.test)['ndcg@10']:.4f}")


if __name__ == "__main__":
    main()
