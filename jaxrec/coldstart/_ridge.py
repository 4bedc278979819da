"""Ridge regression in closed form, its penalty chosen by generalised cross-validation."""

from typing import NamedTuple

import numpy as np

_GRID = 10.0 ** np.arange(-6.0, 3.25, 0.25)  # of the mean eigenvalue


class Ridge(NamedTuple):
    """A linear map with an intercept."""

    kernel: np.ndarray  # float64 [inputs, outputs]
    intercept: np.ndarray  # float64 [outputs]
    l2: float
    error: float  # mean squared error of each row as predicted from all others


def ridge(x: np.ndarray, y: np.ndarray, *, l2: float | None) -> Ridge:
    r"""Minimises :math:`\lVert y - x W - b \rVert^2 + \lambda \lVert W \rVert^2`; the intercept is not penalised.

    With hat matrix :math:`H` and residuals :math:`e`, the error of row :math:`i` when it is left out is
    :math:`e_i / (1 - H_{ii})`, exactly. Generalised cross-validation puts the mean of :math:`H_{ii}` in its place,
    which needs no pass over the rows for each :math:`\lambda` (Golub, Heath and Wahba, Technometrics 21(2), 1979). In
    float64, with a square matrix of ``min(rows, inputs)``.

    Args:
      x: ``[rows, inputs]``.
      y: ``[rows, outputs]``.
      l2: :math:`\lambda`; None for the one of 37, from a millionth to a thousand times the mean eigenvalue of the
        inputs' scatter, that generalised cross-validation likes best.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    wide = x.shape[1] > len(x)
    values, axes = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = values > 1e-12 * max(float(values[-1]), 1e-300)  # the others' axes are rounding
    values, axes = values[kept], axes[:, kept]
    if wide:
        axes = x.T @ (axes / np.sqrt(values))
    along = x @ axes
    fitted = along.T @ y
    explained = np.square(fitted).sum(axis=1) / values
    rest = max(float(np.square(y).sum() - explained.sum()), 0.0)

    def generalised(candidate: float) -> float:
        remaining = rest + float((np.square(candidate / (values + candidate)) * explained).sum())
        free = len(x) - 1.0 - float((values / (values + candidate)).sum())
        return remaining / free**2 if free > 1e-9 * len(x) else np.inf

    if l2 is None:
        l2 = float(min((float(values.mean()) if len(values) else 1.0) * _GRID, key=generalised))
    shrunk = along / (values + l2)
    leverage = 1.0 / len(x) + np.einsum("ne,ne->n", shrunk, along)
    # A row that no other one resembles has leverage 1 and a residual of 0.
    left_out = (y - shrunk @ fitted) / np.maximum(1.0 - leverage, 1e-9)[:, None]
    kernel = axes @ (fitted / (values + l2)[:, None])
    return Ridge(kernel, mean_y - mean_x @ kernel, l2, float(np.square(left_out).mean()))
