"""The classic pipeline, step by step: load, preprocess, pretrain, transfer, train, evaluate and deploy.

First a line is fitted by gradient descent on the mean squared error. Then a click is predicted with
y = sigmoid(theta . x) from age, gender and browsing history: pretrained in a shop with many visits, transferred to a
new shop with few, and asked about a user whom neither has seen.

    python examples/teaching.py --out teaching-output
"""

import argparse
from pathlib import Path

import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

import jaxrec
from jaxrec import data, export, models, transfer

LINE = data.Schema(user=None, item=None, target="spent", context=(data.Numeric("hours"),))
CLICK = data.Schema(
    user=None,
    item=None,
    target="clicked",
    context=(
        data.Numeric("age"),
        data.Numeric("female", scale=None),
        data.Numeric("sports_pages", scale="log1p"),
        data.Numeric("books_pages", scale="log1p"),
    ),
)


def load_data(rows: int, *, seed: int, offset: float = 0.0) -> pd.DataFrame:
    """Visits to a shop. Younger people and readers of sports pages click more; ``offset`` is the shop's own habit."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "hours": rng.gamma(2.0, 1.5, rows),
            "age": rng.integers(18, 71, rows),
            "female": rng.integers(0, 2, rows),
            "sports_pages": rng.poisson(3.0, rows),
            "books_pages": rng.poisson(2.0, rows),
        }
    )
    logit = 1.5 - 0.05 * frame["age"] + 0.4 * frame["female"] + 0.9 * np.log1p(frame["sports_pages"])
    logit = logit - 0.7 * np.log1p(frame["books_pages"]) + offset
    frame["clicked"] = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(float)
    frame["spent"] = 5.0 + 8.0 * frame["hours"] + rng.normal(scale=6.0, size=rows)
    return frame


def preprocess_data(
    frame: pd.DataFrame, schema: data.Schema, *, test: float = 0.5, like: data.Encoder | None = None
) -> data.Parts:
    """Cleans, splits and scales; statistics come from the training part, or from the shop we learned from."""
    cleaned, report = data.clean(frame, schema)
    print(report.to_string(index=False))
    return data.encode(data.split_random(cleaned, validation=0.0, test=test, seed=0), schema, like=like)


def pretrain_model(parts: data.Parts, *, link: str, epochs: int = 300) -> jaxrec.train.Recommender:
    """Full-batch gradient descent: on the squared error for a line, on the cross-entropy for a probability."""
    model = models.Linear.for_data(parts.train, link=link, l2=1e-3)
    return jaxrec.fit(model, parts.train, optimizer=optax.sgd(0.3), batch_size=None, epochs=epochs)


def transfer_learning(source: jaxrec.train.Recommender, parts: data.Parts) -> transfer.Adapted:
    """Copies all weights, freezes those of the features and learns the new shop's intercept alone."""
    return transfer.adapt(
        source, parts.train, freeze="context/kernel", optimizer=optax.sgd(0.3), batch_size=None, epochs=300
    )


def train_and_optimize(source: jaxrec.train.Recommender, parts: data.Parts) -> transfer.Comparison:
    """Fine-tunes everything from the copied weights, and trains from scratch beside it."""
    return transfer.compare(
        source, parts.train, parts.test, metric="log_loss", optimizer=optax.sgd(0.3), batch_size=None, epochs=40
    )


def evaluate_and_deploy(
    recommender: jaxrec.train.Recommender, parts: data.Parts, visitor: pd.DataFrame, out: Path
) -> float:
    """Prints the figures, writes model and artefact, and asks the artefact about a new user."""
    print(jaxrec.evaluate(recommender, parts.test))
    jaxrec.save(recommender, out / "click.jaxrec")
    export.write_artefact(recommender, out / "click-artefact")
    columns = [feature.column for feature in CLICK.context]
    return float(export.load_artefact(out / "click-artefact").score(context=visitor[columns].to_numpy(float))[0])


def plot_line(recommender: jaxrec.train.Recommender, frame: pd.DataFrame, path: Path) -> None:
    """Scatter plot of feature and label with the fitted line."""
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.scatter(frame["hours"], frame["spent"], s=12, alpha=0.5, color="#0072b2", label="visits")
    ends = pd.DataFrame({"hours": [frame["hours"].min(), frame["hours"].max()]})
    axes.plot(ends["hours"], jaxrec.predict(recommender, ends), color="#d55e00", linewidth=2, label="fitted line")
    axes.set_xlabel("hours of browsing")
    axes.set_ylabel("money spent")
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default="teaching-output")
    out = Path(arguments.parse_args().out)
    out.mkdir(parents=True, exist_ok=True)

    print("A line by gradient descent\n")
    visits = load_data(400, seed=0)
    line_parts = preprocess_data(visits, LINE)
    line = pretrain_model(line_parts, link="identity")
    print(jaxrec.evaluate(line, line_parts.test))
    plot_line(line, visits, out / "line.png")

    print("\nClicks: y = sigmoid(theta . x), pretrained where there is much data\n")
    source = pretrain_model(preprocess_data(load_data(5000, seed=1), CLICK), link="sigmoid")
    shop = preprocess_data(load_data(1000, seed=2, offset=-1.0), CLICK, test=0.95, like=source.encoder)
    adapted = transfer_learning(source, shop)
    print(f"\n{adapted.copied}\n{adapted.frozen}\n")
    print(train_and_optimize(source, shop))
    visitor = pd.DataFrame({"age": [23], "female": [1], "sports_pages": [9], "books_pages": [0]})
    probability = evaluate_and_deploy(adapted.recommender, shop, visitor, out)
    print(f"\nA new user of 23 who reads sports pages clicks with probability {probability:.2f}")


if __name__ == "__main__":
    main()
