"""Rivals in the cold-start benchmark, by their own library or in NumPy: functions that score raw users and items.

Each takes a protocol and its setting and returns ``scores(slice) -> function of (users, items)``, or None for a slice
that it has no answer to.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from protocols import Protocol, Slice

from jaxrec.data import Vocabulary

Scores = Callable[[Slice], Callable[[np.ndarray, np.ndarray], np.ndarray] | None]


def _known(protocol: Protocol) -> tuple[Any, Vocabulary, Vocabulary]:
    """The training matrix of zeros and ones, and whose rows and columns it has (from 1 on)."""
    import scipy.sparse

    rows = protocol.frames["interactions"]
    users, items = (Vocabulary.fit(rows[column]) for column in (protocol.schema.user, protocol.schema.item))
    place = users.encode(rows[protocol.schema.user]) - 1, items.encode(rows[protocol.schema.item]) - 1
    shape = len(users), len(items)
    return scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), place), shape=shape), users, items


def _implicit_als(matrix: Any, seed: int, **setting: float) -> Any:
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # as implicit asks for: it has threads of its own
        model = AlternatingLeastSquares(iterations=15, random_state=seed, num_threads=2, **setting)
        model.fit(matrix, show_progress=False)
    return model


def implicit_als_then_ridge(
    protocol: Protocol, seed: int, *, factors: int, alpha: float, regularization: float
) -> Scores:
    """implicit's ALS; cold items get a ridge regression, its penalty cross-validated leaving each item out, from their
    labels' TF-IDF (dense content where there is) to the factors of trained items, each counting once."""
    from sklearn.linear_model import RidgeCV

    matrix, users, items = _known(protocol)
    model = _implicit_als(matrix, seed, factors=factors, alpha=alpha, regularization=regularization)
    frame, content = _content(protocol, items)
    known = items.encode(frame[protocol.schema.item])
    x, y = content[known > 0], np.asarray(model.item_factors)[known[known > 0] - 1]
    mean = y.mean(axis=0)
    ridge = RidgeCV(alphas=np.logspace(-1, 3, 9), fit_intercept=False).fit(x, y - mean)
    vectors = content @ ridge.coef_.T + mean
    vectors[known > 0] = y
    every = Vocabulary.fit(frame[protocol.schema.item])
    table = np.zeros((len(every) + 1, factors), np.float32)
    table[every.encode(frame[protocol.schema.item])] = vectors
    user_factors = np.asarray(model.user_factors)
    return lambda _: lambda us, its: user_factors[users.encode(us) - 1] @ table[every.encode(its)].T


def _content(protocol: Protocol, items: Vocabulary, most: int = 2000) -> tuple[pd.DataFrame, np.ndarray]:
    """Content of every item: a dense vector where the data has one, else TF-IDF of the commonest labels, unit rows."""
    from jaxrec.data import Categorical, TfidfSVD, Vector

    frame = protocol.frames["items"]
    dense = [each.column for each in protocol.schema.item_features if isinstance(each, Vector)]
    if dense:
        width = next(len(cell) for cell in frame[dense[0]] if cell is not None)
        return frame, np.stack([np.zeros(width) if cell is None else cell for cell in frame[dense[0]]])
    single = [each.column for each in protocol.schema.item_features if isinstance(each, Categorical)]
    frame = frame.assign(**{name: frame[name].map(lambda value: [] if pd.isna(value) else [value]) for name in single})
    trained = frame[frame[protocol.schema.item].isin(protocol.frames["interactions"][protocol.schema.item])]
    parts = []
    for feature in protocol.schema.item_features:
        separator = getattr(feature, "separator", None)
        fitted = TfidfSVD.fit(trained, feature.column, dim=2, separator=separator, min_items=1)  # for labels and idf
        codes = fitted.labels.encode(frame)
        common = np.argsort(np.bincount(codes[codes > 0], minlength=len(fitted.idf)))[::-1][:most]
        part = np.zeros((len(frame), len(fitted.idf)), np.float32)
        np.put_along_axis(part, codes, fitted.idf[codes].astype(np.float32), axis=1)
        part = part[:, np.sort(common[common > 0])]
        parts.append(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9))
    return frame, np.concatenate(parts, axis=1)


def implicit_als_fold_in(protocol: Protocol, seed: int, *, factors: int, alpha: float, regularization: float) -> Scores:
    """implicit's ALS and its ``recalculate_user`` for new users; nothing for a user without interactions."""
    matrix, users, items = _known(protocol)
    model = _implicit_als(matrix, seed, factors=factors, alpha=alpha, regularization=regularization)

    def scores(slice: Slice) -> Any:
        if slice.users is not None and slice.revealed is None:
            return None
        vectors, vocabulary = np.asarray(model.user_factors), users
        if slice.revealed is not None:
            rows, vocabulary = _revealed(protocol, slice, items)
            vectors = np.asarray(model.recalculate_user(np.arange(rows.shape[0]), rows))
        return lambda us, its: (
            vectors[vocabulary.encode(us) - 1] @ np.asarray(model.item_factors)[items.encode(its) - 1].T
        )

    return scores


def _revealed(protocol: Protocol, slice: Slice, items: Vocabulary) -> tuple[Any, Vocabulary]:
    import scipy.sparse

    assert slice.users is not None
    users = Vocabulary.fit(slice.users[protocol.schema.user])
    rows = slice.relevant.head(0) if slice.revealed is None else slice.revealed
    place = users.encode(rows[protocol.schema.user]) - 1, items.encode(rows[protocol.schema.item]) - 1
    shape = len(users), len(items)
    return scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), place), shape=shape), users


def ease_and_popularity(protocol: Protocol, seed: int, *, l2: float, weight: float, shrink: float = 300.0) -> Scores:
    """EASE on what a user touched, and ``weight`` times the popularity among people of the same features.

    The second is the popularity (as a share of users) times, for each feature, the ratio of the share within the user's
    category to it, shrunk by ``shrink`` users; its logarithm counts.
    """
    matrix, users, items = _known(protocol)
    gram = (matrix.T @ matrix).toarray()
    inverse = np.linalg.inv(gram + l2 * np.eye(len(gram)))
    ease = (-inverse / np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(ease, 0.0)
    names = [feature.column for feature in protocol.schema.user_features]
    frame = protocol.frames["users"].set_index(protocol.schema.user)
    of_users = frame.reindex(users.decode(np.arange(1, len(users) + 1)))
    share = np.asarray(matrix.mean(axis=0)).ravel()
    base = np.log(share + 1e-6)
    lifts: dict[tuple[str, Any], np.ndarray] = {}
    for name in names:
        for category in of_users[name].unique():
            inside = (of_users[name] == category).to_numpy()
            count = np.asarray(matrix[inside].sum(axis=0)).ravel()
            lifts[name, category] = np.log((count + shrink * share) / (inside.sum() + shrink) + 1e-6) - base

    def scores(slice: Slice) -> Any:
        if slice.users is None:
            rows, vocabulary, people = matrix, users, of_users
        else:
            rows, vocabulary = _revealed(protocol, slice, items)
            people = slice.users.set_index(protocol.schema.user)
            people = people.reindex(vocabulary.decode(np.arange(1, len(vocabulary) + 1)))

        def function(us: np.ndarray, its: np.ndarray) -> np.ndarray:
            at, columns = vocabulary.encode(us) - 1, items.encode(its) - 1
            popular = np.stack(
                [base + sum(lifts.get((name, people[name].iloc[one]), 0.0) for name in names) for one in at]
            )
            return (rows[at] @ ease + weight * popular)[:, columns]

        return function

    return scores
