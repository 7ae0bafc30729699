"""The best fixed mix of experts: constant weights, none negative, that sum to one.

It is the control that a trained fusion has to beat; which samples it is fitted on is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def error_products(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Sums of products of the experts' errors, all that a fit of fixed weights needs.

    Args:
        pairs: (experts' pictures float [n, ...], target float [...]), one a sample.

    Returns:
        float64 [n, n]: the mean of `(x_i - y) * (x_j - y)` over all values of all samples.

    Raises:
        ValueError: there is no sample.
    """
    total: np.ndarray | None = None
    count = 0
    for pictures, target in pairs:
        errors = (pictures.astype(np.float64) - target).reshape(len(pictures), -1)
        products = errors @ errors.T
        total = products if total is None else total + products
        count += errors.shape[1]
    if total is None:
        raise ValueError("no sample to fit the mix of experts on")
    return total / count


def convex_weights(products: np.ndarray) -> np.ndarray:
    """Weights w >= 0, sum 1, with the least squared error of `sum(w_i * expert_i)`.

    Because the weights sum to one, that error is w' E w with E from `error_products`. Its minimum
    on the simplex points where the minimum of w' E w + (sum(w) - 1)² over w >= 0 points, which is a
    non-negative least-squares problem and has no step size or tolerance to choose.

    Args:
        products: float64 [n, n], symmetric, no negative eigenvalue beyond rounding.

    Returns:
        float64 [n].
    """
    from scipy.optimize import nnls

    count = len(products)
    scale = np.trace(products) / count
    if scale <= 0:  # every expert is exact
        return np.full(count, 1 / count)
    values, vectors = np.linalg.eigh(products / scale)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T  # root' root = E
    weights, _ = nnls(np.vstack([root, np.ones(count)]), np.append(np.zeros(count), 1.0))
    return weights / weights.sum()
