"""How well do vectors explain values, whatever the weights? The marginal evidence of a linear model."""

import numpy as np
from jaxtyping import Float

_STEPS, _ZOOMS, _REACH = 81, 4, 1e8  # of the search for the noise's share; reach in units of the mean eigenvalue


def evidence(x: Float[np.ndarray, "rows inputs"], y: Float[np.ndarray, "rows outputs"]) -> float:
    r"""Log evidence per row that a linear model on ``x`` has above one that knows the mean of ``y`` alone, in nats.

    With weights :math:`w \sim N(0, \alpha^{-1})` and noise :math:`N(0, \beta^{-1})`, the columns of both sides centred
    and written in the :math:`n - 1` coordinates that centring leaves of :math:`n` rows,

    .. math:: \frac1n \max_{\alpha, \beta} \log N(y;\, 0,\, \beta^{-1} I + \alpha^{-1} X X^\top)
        - \frac1n \max_\beta \log N(y;\, 0,\, \beta^{-1} I)

    a mean over the columns of ``y``. Given :math:`t = \alpha / \beta` the best :math:`\beta` is known in closed form,
    and :math:`t` is looked for on a grid that is refined around its best point. Wide ``x`` is not favoured as such:
    weights that the rows do not ask for cost evidence.

    Args:
      x: such as the source's vectors of shared users. Its scale does not matter.
      y: such as what the same users did in the target, reduced to a few numbers.

    Returns:
      At least 0, and 0 with fewer than 3 rows, for constant columns, and where nothing is explained.

    Raises:
      ValueError: x or y is no matrix, the numbers of rows differ, or a number is not finite.

    Examples:
      >>> x = np.arange(6.0)[:, None]
      >>> print(f"{evidence(x, 2 * x + np.array([[1.0], [-1.0]] * 3)):.2f} {evidence(x, x % 2):.2f}")
      0.62 0.00

    References:
      You et al., LogME: practical assessment of pre-trained models for transfer learning, ICML 2021 (on centred
      columns, as the difference to the empty model, so that outputs of any scale and sources with any number of shared
      users can be compared).
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"Expected two matrices, as many rows of x as of y, got shapes {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Expected finite numbers. Train the source again with a smaller learning rate.")
    rows, free = len(x), len(x) - 1  # along the constant, centred columns say nothing
    if rows < 3 or not x.shape[1] or not y.shape[1]:
        return 0.0
    size = np.abs(y).max(axis=0).astype(np.float64)  # to which centring leaves rounding
    x, y = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (x, y))
    left, root, _ = np.linalg.svd(x, full_matrices=False)
    kept = root > 1e-9 * max(float(root[0]), 1e-300)
    eigenvalues, along = np.square(root[kept]), np.square(left[:, kept].T @ y)
    total = np.square(y).sum(axis=0)
    varies = total > rows * np.square(np.maximum(1e-12 * size, 1e-150))
    if not kept.any() or not varies.any():
        return 0.0
    along, total = along[:, varies], total[varies]
    rest = np.maximum(total - along.sum(axis=0), 0.0)

    def gained(ratio: np.ndarray) -> np.ndarray:
        """``[candidates, columns]`` nats over all rows, by ``t`` ``[candidates, columns]``."""
        shrunk = ratio[:, None] / (eigenvalues[None, :, None] + ratio[:, None])
        left_over = rest + (along * shrunk).sum(axis=1)
        return 0.5 * (np.log(shrunk).sum(axis=1) - free * np.log(left_over / total))

    middle = np.full(len(total), np.log(eigenvalues.mean()))
    reach, best = np.log(_REACH), np.zeros(len(total))  # 0 is what an infinite t gives
    for _ in range(_ZOOMS):
        grid = middle + np.linspace(-reach, reach, _STEPS)[:, None]
        values = gained(np.exp(grid))
        at = values.argmax(axis=0)
        best = np.maximum(best, values.max(axis=0))
        middle, reach = np.take_along_axis(grid, at[None, :], axis=0)[0], reach / 10
    return float(best.sum() / rows / len(varies))
