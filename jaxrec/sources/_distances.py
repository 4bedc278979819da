"""How far apart are two samples of features?"""

import numpy as np
from jaxtyping import Float

from jaxrec.coldstart._ridge import ridge
from jaxrec.data import Encoder, Vocabulary
from jaxrec.data._features import FittedFeature
from jaxrec.data._sides import Side, label_shares

FARTHEST = 2.0  # of both distances
_FEWEST, _CELLS = 1000, 2**25  # entities that are compared at least, and numbers that they may take


def mmd(
    x: Float[np.ndarray, "rows columns"], y: Float[np.ndarray, "others columns"], *, most: int = 500, seed: int = 0
) -> float:
    r"""Squared maximum mean discrepancy of two samples, the unbiased estimate, with a Gaussian kernel.

    .. math:: \frac{1}{m(m-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n(n-1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{mn} \sum_{i,j} k(x_i, y_j), \quad k(a, b) = \exp(-\lVert a - b \rVert^2 / 2 s^2)

    with :math:`s` the median distance of all pairs (their root mean square where the median is 0).

    Args:
      x: one row per entity.
      y: of the other domain, with the same columns.
      most: rows of each that are drawn where there are more.
      seed: of the draw.

    Returns:
      At most 2; around 0, also a little below it, for samples of one distribution.

    Raises:
      ValueError: a sample has fewer than 2 rows or no column, columns differ, or a number is not finite.

    References:
      Gretton et al., A kernel two-sample test, JMLR 13, 2012 (lemma 6; the bandwidth as in its section 8).
    """
    x, y = _drawn(x, y, most, seed)
    both = np.concatenate([x, y])
    square = np.square(both).sum(axis=1)
    distance = np.maximum(square[:, None] + square[None, :] - 2.0 * both @ both.T, 0.0)
    pairs = distance[np.triu_indices(len(both), 1)]
    bandwidth = float(np.median(pairs)) or float(pairs.mean())
    if bandwidth == 0.0:
        return 0.0  # all rows are the same
    kernel = np.exp(-distance / (2.0 * bandwidth))
    np.fill_diagonal(kernel, 0.0)
    m, n = len(x), len(y)
    within = kernel[:m, :m].sum() / (m * (m - 1)) + kernel[m:, m:].sum() / (n * (n - 1))
    return float(within - 2.0 * kernel[:m, m:].mean())


def proxy_a(
    x: Float[np.ndarray, "rows columns"], y: Float[np.ndarray, "others columns"], *, most: int = 500, seed: int = 0
) -> float:
    r"""Proxy A-distance :math:`2 (1 - 2 \epsilon)`: can a linear classifier tell two samples apart?

    :math:`\epsilon` is its error on the half of the rows that it was not fitted on, as many of either sample. The
    classifier is the sign of a ridge regression on -1 and 1, its penalty chosen by generalised cross-validation.

    Args:
      x: one row per entity.
      y: of the other domain, with the same columns.
      most: rows of each that are drawn where there are more.
      seed: of the draw and of the halves.

    Returns:
      At most 2, where no row is mistaken; around 0, also below it, where the classifier is no better than chance.

    Raises:
      ValueError: a sample has fewer than 2 rows or no column, columns differ, or a number is not finite.

    References:
      Ben-David et al., Analysis of representations for domain adaptation, NIPS 2006 (the form of Ganin et al., JMLR 17,
      2016, section 5.2.5).
    """
    rows = min(len(x), len(y), most)
    x, y = _drawn(x, y, rows, seed)
    half = rows // 2
    label = np.ones((half, 1))
    fitted = ridge(np.concatenate([x[:half], y[:half]]), np.concatenate([label, -label]), l2=None)
    told = (each[half:] @ fitted.kernel + fitted.intercept for each in (x, y))
    sides = np.stack([sign * np.sign(values) for sign, values in zip((1.0, -1.0), told, strict=True)])
    error = 0.5 - 0.5 * sides.mean()  # a value of 0 says nothing: half an error
    return float(2.0 * (1.0 - 2.0 * error))


def _drawn(x: np.ndarray, y: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most so many rows of each, in random order, float64."""
    if x.ndim != 2 or y.ndim != 2 or min(len(x), len(y), most) < 2 or not x.shape[1] or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Expected two samples of at least 2 rows with the same columns, got {x.shape} and {y.shape}, of which at "
            f"most {most} rows are used."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Expected finite numbers, got NaN or infinite ones. Fill or drop them.")
    rng = np.random.default_rng(seed)
    first, second = (each[rng.permutation(len(each))[:most]].astype(np.float64) for each in (x, y))
    return first, second


def common_features(source: Encoder, target: Encoder, side: Side) -> tuple[np.ndarray, np.ndarray] | None:
    """Features that trained users (items) have in both domains under one name, in the same unit; None without any.

    Numbers and vectors are put back into the unit of the data where their scale can be undone, and divided by the
    deviation over both domains. Of labels each that an entity has counts one part of 1, by its own name.
    """
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    drawn = _described(source, target, side)
    theirs = {each.name: (place, each) for place, each in _placed(source, side)}
    for place, each in _placed(target, side):
        if each.name not in theirs:
            continue
        there, other = theirs[each.name]
        if each.is_code != other.is_code or (not each.is_code and each.width != other.width):
            continue
        if each.is_code:
            assert each.vocabulary is not None and other.vocabulary is not None
            if each.vocabulary.type_name != other.vocabulary.type_name:
                continue
            union = each.vocabulary.extend(other.vocabulary.ids)
            for kept, encoder, fitted, entities in zip(columns, (source, target), (other, each), drawn, strict=True):
                kept.append(_shares(encoder, side, fitted, union, entities))
            continue
        scales = [None if fitted.scaler is None else fitted.scaler.scale for fitted in (other, each)]
        undone = "unit" not in scales  # which cannot be undone
        if not undone and scales[0] != scales[1]:
            continue
        for kept, encoder, fitted, at, entities in zip(
            columns, (source, target), (other, each), (there, place), drawn, strict=True
        ):
            values = np.asarray(getattr(encoder.features, f"{side}_dense"))[entities, at]
            values = values.astype(np.float64)
            kept.append(fitted.scaler.inverse(values) if undone and fitted.scaler is not None else values)
        deviation = np.concatenate([columns[0][-1], columns[1][-1]]).std(axis=0)
        for kept in columns:
            kept[-1] = kept[-1] / np.where(deviation > 0, deviation, 1.0)
    if not columns[0]:
        return None
    first, second = (np.concatenate(kept, axis=1) for kept in columns)
    return (first, second) if min(len(first), len(second)) >= 2 else None


def _placed(encoder: Encoder, side: Side) -> list[tuple[slice, FittedFeature]]:
    """Features with their columns of the dense array."""
    found, at = [], 0
    for each in encoder.fitted(side):
        width = 0 if each.is_code else each.width
        found.append((slice(at, at + width), each))
        at += width
    return found


def _described(source: Encoder, target: Encoder, side: Side) -> list[np.ndarray]:
    """Trained entities of both; at random so many that a number for each of their labels takes bounded memory."""
    labels = sum(len(each.vocabulary or ()) for encoder in (source, target) for each in encoder.fitted(side))
    most, found = max(_FEWEST, _CELLS // max(labels, 1)), []
    for encoder in (source, target):
        trained = np.flatnonzero(encoder.features.user_row if side == "user" else encoder.features.item_row)
        some = np.random.default_rng(0).permutation(len(trained))[:most] if len(trained) > most else slice(None)
        found.append(np.sort(trained[some]))
    return found


def _shares(encoder: Encoder, side: Side, fitted: FittedFeature, union: Vocabulary, entities: np.ndarray) -> np.ndarray:
    """Of each entity's labels, each label's part, by the numbering of ``union``."""
    assert fitted.vocabulary is not None
    codes = np.asarray(getattr(encoder.features, f"{side}_codes")[fitted.name])[entities]
    number = np.concatenate([[0], union.encode(fitted.vocabulary.ids)])
    return label_shares(number[codes], len(union) + 1, np.float64)
