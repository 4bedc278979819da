"""Training and retrieval against other libraries, in turn.

python benchmarks/engine.py                # all tasks, quick form: a turn for each package -> results/engine.json
python benchmarks/engine.py --turns 3      # three turns, as the committed figures are made
python benchmarks/engine.py --only T5 T6   # some of the tasks
python benchmarks/engine.py --full         # larger tables too, three turns

Tasks: T1 BPR, T2 logistic factorization, T3 NeuMF, T4 two towers, T5 one step against the size of the tables, T6 exact
top-100 of a million items, T7 linear and logistic regression, T8 iALS, T9 evaluation, T11 a causal transformer. T10,
seconds to quality, is quality.py; page.py makes tables and plots of what both wrote.
Rivals that are not installed are left out (``pip install -e '.[bench]'``).
"""

import argparse
import json
from pathlib import Path

import harness
from tasks import als, factorization, linear, neural, ranking


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    arguments.add_argument("--full", action="store_true")
    arguments.add_argument("--turns", type=int, help="how often each package has a turn: 1, with --full 3")
    arguments.add_argument("--out", default="engine.json")
    arguments.add_argument("--package", help="measure one package in this process")
    arguments.add_argument("--rows", help="file to write its rows to")
    options = arguments.parse_args()
    full = ["--full"] if options.full else []
    turns = options.turns or (3 if options.full else 1)
    for task in options.only:
        if options.package is None:
            harness.write(options.out, harness.rounds(__file__, task, PACKAGES[task], *full, number=turns))
            continue
        harness.PACKAGE = options.package
        if options.package == "jaxrec":
            harness.LIMITS.update(harness.limits())
        Path(options.rows).write_text(json.dumps(TASKS[task](options.full), default=float))


TASKS = {
    "T1": factorization.bpr,
    "T2": factorization.logistic,
    "T3": neural.neumf,
    "T4": neural.towers,
    "T5": factorization.step,
    "T6": ranking.top_k,
    "T7": linear.regression,
    "T8": als.als,
    "T9": ranking.evaluation,
    "T11": neural.transformer,
}
PACKAGES = {
    "T1": ("jaxrec", "torch", "implicit", "cornac"),
    "T2": ("jaxrec", "torch"),
    "T3": ("jaxrec", "torch"),
    "T4": ("jaxrec", "torch"),
    "T5": ("jaxrec", "torch", "optax", "jax"),
    "T6": ("jaxrec", "implicit", "faiss", "torch", "numpy"),
    "T7": ("jaxrec", "torch", "sklearn"),
    "T8": ("jaxrec", "implicit"),
    "T9": ("jaxrec", "numpy", "implicit"),
    "T11": ("jaxrec", "torch"),
}

if __name__ == "__main__":
    main()
