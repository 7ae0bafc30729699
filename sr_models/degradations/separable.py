"""A blur kernel as a short sum of separable ones: few columns times rows, within a bound of error.

It decides from the kernel alone, with + - * / and square roots in a fixed order, so that every
machine gets the same terms; running them over a picture is not for here.
"""

from __future__ import annotations

import numpy as np

from sr_models.compiled import compiled

#: Sweeps of Jacobi rotations; the error is measured afterwards, so that they need not converge.
_SWEEPS = 12
#: Cosine between two rows that counts as orthogonal.
_ORTHOGONAL = 1e-6


@compiled
def separate(kernel: np.ndarray, allowance: float, limit: float) -> tuple:
    """Sum of terms column x row within `allowance` of the kernel, if it costs less than `limit`.

    Each factor is even or odd about its centre (the singular vectors of a kernel's four parity
    parts), so that only the half from the centre outwards is given. The sum of the weights is
    exact: terms are scaled for it.

    Args:
        kernel: float64 [n, n], n odd.
        allowance: largest sum of |kernel - terms|.
        limit: a cost as in `cost`; at or above it the search ends.

    Returns:
        cost (infinite: none found), columns float32 [terms, ry + 1], rows float32 [terms, rx + 1],
        odd uint8 [terms, 2] (column, row), terms in falling order of their norm.
    """
    reach = kernel.shape[0] // 2
    parts = _parities(kernel)
    vectors, norms = _singular_vectors(parts)
    columns, rows = np.zeros((len(norms), reach + 1)), np.zeros((len(norms), reach + 1))
    odd = np.zeros((len(norms), 2), np.uint8)
    approximation = np.zeros_like(kernel)
    best_cost, best_terms, best_y, best_x, best_gain = np.inf, 0, reach, reach, 1.0
    for term in range(len(norms)):
        longest = norms.argmax()
        if norms[longest] == 0.0:
            break
        _set_factors(columns[term], rows[term], odd[term], parts, vectors, longest)
        norms[longest] = 0.0
        if cost(odd, term + 1, 1, 1) >= min(limit, best_cost):
            break
        _add_outer(approximation, columns[term], rows[term], odd[term])
        _, error = _misfit(kernel, approximation, reach, reach)
        if error > allowance:
            continue
        reach_y, reach_x, gain = _trimmed(kernel, approximation, allowance)
        found = cost(odd, term + 1, reach_y, reach_x)
        if found < min(limit, best_cost):
            best_cost, best_terms = found, term + 1
            best_y, best_x, best_gain = reach_y, reach_x, gain
    halves_y = np.empty((best_terms, best_y + 1), np.float32)
    halves_x = np.empty((best_terms, best_x + 1), np.float32)
    for term in range(best_terms):
        for y in range(best_y + 1):
            halves_y[term, y] = columns[term, y] * best_gain * (1.0 if y > 0 else 0.5)
        for x in range(best_x + 1):
            halves_x[term, x] = rows[term, x] * (1.0 if x > 0 else 0.5)
    return best_cost, halves_y, halves_x, odd[:best_terms]


@compiled
def cost(odd: np.ndarray, terms: int, reach_y: int, reach_x: int) -> float:
    """Additions and multiplications a pixel: rows folded once a parity, then two passes a term."""
    odd_columns = 0
    for term in range(terms):
        odd_columns += odd[term, 0]
    folds = 1 if odd_columns in (0, terms) else 2
    return folds * (reach_y + 1.0) + terms * (2.0 * (reach_y + 1) + 3.0 * (reach_x + 1))


@compiled
def _parities(kernel: np.ndarray) -> np.ndarray:
    """[2, 2, reach + 1, reach + 1]: the parts even (0) or odd (1) in y and x, for y, x >= 0."""
    reach = kernel.shape[0] // 2
    parts = np.empty((2, 2, reach + 1, reach + 1))
    for y in range(reach + 1):
        for x in range(reach + 1):
            lower_right, lower_left = kernel[reach + y, reach + x], kernel[reach + y, reach - x]
            upper_right, upper_left = kernel[reach - y, reach + x], kernel[reach - y, reach - x]
            even, odd = lower_right + upper_left, lower_left + upper_right
            parts[0, 0, y, x] = 0.25 * (even + odd)
            parts[1, 1, y, x] = 0.25 * (even - odd)
            even, odd = lower_right - upper_left, lower_left - upper_right
            parts[0, 1, y, x] = 0.25 * (even - odd)
            parts[1, 0, y, x] = 0.25 * (even + odd)
    return parts


@compiled
def _singular_vectors(parts: np.ndarray) -> tuple:
    """Left singular vectors times values, [4, reach + 1, reach + 1], and the squared values [all].

    A place off the centre stands for two of the whole kernel: its weight of sqrt(2) makes these
    the singular vectors of the whole kernel.
    """
    length = parts.shape[-1]
    vectors, norms = np.empty((4, length, length)), np.zeros(4 * length)
    for parity in range(4):
        for x in range(length):
            for y in range(length):
                vectors[parity, x, y] = (
                    parts[parity // 2, parity % 2, y, x] * _weight(y) * _weight(x)
                )
        _orthogonalise(vectors[parity])
        for index in range(length):
            norms[parity * length + index] = _dot(vectors[parity, index], vectors[parity, index])
    return vectors, norms


@compiled
def _weight(place: int) -> float:
    return np.sqrt(2.0) if place > 0 else 1.0


@compiled
def _set_factors(
    column: np.ndarray,
    row: np.ndarray,
    odd: np.ndarray,
    parts: np.ndarray,
    vectors: np.ndarray,
    number: int,
) -> None:
    """The singular vector of this number as a column, and the row that fits it best."""
    length = parts.shape[-1]
    parity = number // length
    odd[0], odd[1] = parity // 2, parity % 2
    vector = vectors[parity, number % length]
    for y in range(length):
        column[y] = vector[y] / _weight(y)
    for x in range(length):
        total = 0.0
        for y in range(length):
            total += parts[odd[0], odd[1], y, x] * _weight(y) * vector[y]
        row[x] = total / _dot(vector, vector)


@compiled
def _orthogonalise(vectors: np.ndarray) -> None:
    """One-sided Jacobi: turns pairs of rows until all are orthogonal, the longer one first."""
    for _ in range(_SWEEPS):
        turned = False
        for first in range(len(vectors) - 1):
            for second in range(first + 1, len(vectors)):
                a, b = vectors[first], vectors[second]
                aa, bb, ab = _dot(a, a), _dot(b, b), _dot(a, b)
                if ab * ab <= _ORTHOGONAL * _ORTHOGONAL * aa * bb:
                    continue
                turned = True
                zeta = (bb - aa) / (2.0 * ab)
                root = np.sqrt(1.0 + zeta * zeta)
                tangent = 1.0 / (zeta + root) if zeta >= 0 else 1.0 / (zeta - root)
                cosine = 1.0 / np.sqrt(1.0 + tangent * tangent)
                sine = cosine * tangent
                for index in range(len(a)):
                    a[index], b[index] = (
                        cosine * a[index] - sine * b[index],
                        sine * a[index] + cosine * b[index],
                    )
        if not turned:
            break


@compiled
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for index in range(len(a)):
        total += a[index] * b[index]
    return total


@compiled
def _add_outer(kernel: np.ndarray, column: np.ndarray, row: np.ndarray, odd: np.ndarray) -> None:
    """Adds column x row to the kernel, both continued to negative places by their parity."""
    reach = len(row) - 1
    sign_y, sign_x = 1.0 - 2.0 * odd[0], 1.0 - 2.0 * odd[1]
    for y in range(reach + 1):
        for x in range(reach + 1):
            value = column[y] * row[x]
            kernel[reach + y, reach + x] += value
            if x > 0:
                kernel[reach + y, reach - x] += sign_x * value
            if y > 0:
                kernel[reach - y, reach + x] += sign_y * value
            if x > 0 and y > 0:
                kernel[reach - y, reach - x] += sign_y * sign_x * value


@compiled
def _trimmed(
    kernel: np.ndarray, approximation: np.ndarray, allowance: float
) -> tuple[int, int, float]:
    """The smallest reach in y and x that keeps the allowance, and the gain that goes with it."""
    reach_y = reach_x = kernel.shape[0] // 2
    gain, _ = _misfit(kernel, approximation, reach_y, reach_x)
    shrinking = True
    while shrinking:
        shrinking = False
        for step_y, step_x in ((0, 1), (1, 0)):
            if reach_y > step_y and reach_x > step_x:
                smaller, error = _misfit(kernel, approximation, reach_y - step_y, reach_x - step_x)
                if error <= allowance:
                    reach_y, reach_x, gain = reach_y - step_y, reach_x - step_x, smaller
                    shrinking = True
    return reach_y, reach_x, gain


@compiled
def _misfit(
    kernel: np.ndarray, approximation: np.ndarray, reach_y: int, reach_x: int
) -> tuple[float, float]:
    """Gain that gives the cropped approximation the kernel's sum, and the sum of |difference|."""
    reach = kernel.shape[0] // 2
    inside, total = 0.0, 0.0
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            total += kernel[reach + y, reach + x]
            if abs(y) <= reach_y and abs(x) <= reach_x:
                inside += approximation[reach + y, reach + x]
    gain = total / inside if inside != 0.0 else 1.0
    error = 0.0
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            value = kernel[reach + y, reach + x]
            if abs(y) <= reach_y and abs(x) <= reach_x:
                value -= gain * approximation[reach + y, reach + x]
            error += abs(value)
    return gain, error
