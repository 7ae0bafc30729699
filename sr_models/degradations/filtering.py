"""Convolution of a picture with a blur kernel, the cheapest way that stays within 0.25 levels.

The way follows from the kernel alone: a few separable terms, or the taps themselves where the
kernel is thin or small. Making kernels and drawing their numbers are not for here.
"""

from __future__ import annotations

import numpy as np

from sr_models.compiled import compiled, inlined
from sr_models.degradations.separable import separate

#: Largest sum of |difference| between the kernel and what is applied. The differences sum to 0, so
#: that a picture in 0..255 changes by at most half of it times 255: 0.245, which leaves 0.005 for
#: the rounding of float32.
_ALLOWANCE = 0.245 / 127.5


def convolve(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves each plane with the kernel; the border continues as its mirror image (reflect-101).

    The edge pixel is not doubled, and where the picture is smaller than the kernel the mirror image
    is mirrored again. For pictures in 0..255 the result is within 0.25 of exact arithmetic, and
    flat areas keep their value to float32's rounding, if the kernel sums to 1.

    Args:
        planes: float32 [C, H, W] in levels, in any memory layout; H and W at least 1.
        kernel: float64 [n, n], n odd.

    Returns:
        float32 [C, H, W], C-contiguous, a new array, the same bytes on every machine.

    Raises:
        ValueError: `planes` or `kernel` has another type or shape, or the kernel is not finite.
    """
    if planes.dtype != np.float32 or planes.ndim != 3 or 0 in planes.shape:
        raise ValueError(
            f"planes must be float32 [C, H, W], got {planes.dtype} {list(planes.shape)}"
        )
    if kernel.dtype != np.float64 or kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel must be float64 [n, n], got {kernel.dtype} {list(kernel.shape)}")
    if len(kernel) % 2 == 0 or not np.isfinite(kernel).all():
        raise ValueError(f"kernel must have an odd side and finite values, got side {len(kernel)}")
    out = np.empty(planes.shape, np.float32)
    # numba compiles anew for each layout, read-only arrays included: all come as one.
    _convolve(
        np.require(planes, requirements=["C", "A", "W"]),
        np.require(kernel, requirements=["C", "A", "W"]),
        out,
    )
    return out


@compiled
def _convolve(planes: np.ndarray, kernel: np.ndarray, out: np.ndarray) -> None:
    taps, ranges, direct_cost = _taps(kernel)
    cost, columns, rows, odd = separate(kernel, _ALLOWANCE, direct_cost)
    if cost < direct_cost:
        _apply_terms(planes, columns, rows, odd, out)
    else:
        _apply_taps(planes, taps, ranges, out)


@compiled
def _taps(kernel: np.ndarray) -> tuple:
    """The kernel's own taps, less the smallest, for pairs of pixels opposite about the centre.

    Returns:
        taps float32 [2, reach + 1, n], the part of the kernel even (0) and odd (1) under a half
        turn, rows from the centre downwards; ranges int64 [2, reach + 1, 2], first and past the
        last tap in each row; cost in additions and multiplications a pixel.
    """
    reach = kernel.shape[0] // 2
    limit, gain = _smallest(kernel)
    taps = np.zeros((2, reach + 1, 2 * reach + 1), np.float32)
    ranges = np.zeros((2, reach + 1, 2), np.int64)
    cost = 0.0
    for y in range(reach + 1):
        for x in range(-reach if y > 0 else 0, reach + 1):
            here, opposite = kernel[reach + y, reach + x], kernel[reach - y, reach - x]
            here = gain * here if abs(here) > limit else 0.0
            opposite = gain * opposite if abs(opposite) > limit else 0.0
            for odd in range(2):
                value = 0.5 * (here - opposite) if odd else 0.5 * (here + opposite)
                if value == 0.0:
                    continue
                if x == 0 and y == 0:
                    value *= 0.5  # a pair with itself
                taps[odd, y, reach + x] = value
                if ranges[odd, y, 1] == 0:
                    ranges[odd, y, 0] = reach + x
                ranges[odd, y, 1] = reach + x + 1
        for odd in range(2):
            cost += 3.0 * (ranges[odd, y, 1] - ranges[odd, y, 0])
    return taps, ranges, cost


@compiled
def _smallest(kernel: np.ndarray) -> tuple[float, float]:
    """Size up to which taps may go, and the gain that then restores the kernel's sum."""
    best_limit, best_gain = 0.0, 1.0
    limit = 0.5 * _ALLOWANCE / kernel.size
    while True:
        dropped, kept, kept_size, total = 0.0, 0.0, 0.0, 0.0
        for value in kernel.flat:
            total += value
            if abs(value) > limit:
                kept += value
                kept_size += abs(value)
            else:
                dropped += abs(value)
        gain = total / kept if kept != 0.0 else np.inf
        if not dropped + abs(1.0 - gain) * kept_size <= _ALLOWANCE:
            return best_limit, best_gain
        best_limit, best_gain = limit, gain
        limit *= 1.25


@compiled
def _apply_terms(
    planes: np.ndarray, columns: np.ndarray, rows: np.ndarray, odd: np.ndarray, out: np.ndarray
) -> None:
    """Fold, columns, rows for one line after another: what they share stays in the first cache."""
    count, height, width = planes.shape
    reach_y, reach_x = columns.shape[1] - 1, rows.shape[1] - 1
    down, across = _mirrored(height, reach_y), _mirrored(width, reach_x)
    folded = np.empty((2, reach_y + 1, width), np.float32)
    line = np.empty(width + 2 * reach_x, np.float32)
    middle = line[reach_x : reach_x + width]
    wanted = np.zeros(2, np.bool_)
    for term in range(len(odd)):
        wanted[odd[term, 0]] = True
    for plane in range(count):
        for y in range(height):
            for parity in range(2):
                if wanted[parity]:
                    _fold(folded[parity], planes[plane], down[y : y + 2 * reach_y + 1], parity)
            target = out[plane, y]
            target[:] = 0.0
            for term in range(len(odd)):
                middle[:] = 0.0
                _add_rows(middle, folded[odd[term, 0]], columns[term])
                _continue(line, across, reach_x)
                _add_pairs(target, line, reach_x, reach_x, rows[term], odd[term, 1])


@compiled
def _apply_taps(planes: np.ndarray, taps: np.ndarray, ranges: np.ndarray, out: np.ndarray) -> None:
    count, height, width = planes.shape
    reach = taps.shape[1] - 1
    pitch = width + 2 * reach
    down, across = _mirrored(height, reach), _mirrored(width, reach)
    padded = np.empty((height, pitch), np.float32)
    pixels = padded.reshape(-1)
    for plane in range(count):
        for y in range(height):
            padded[y, reach : reach + width] = planes[plane, y]
            _continue(padded[y], across, reach)
        for y in range(height):
            target = out[plane, y]
            target[:] = 0.0
            for step in range(reach + 1):
                above, below = down[y + reach - step] * pitch, down[y + reach + step] * pitch
                for odd in range(2):
                    begin, end = ranges[odd, step]
                    if end > begin:
                        left, right = above + 2 * reach - begin, below + begin
                        weights = taps[odd, step, begin:end]
                        _add_pairs(target, pixels, left, right, weights, odd)


@compiled
def _mirrored(length: int, reach: int) -> np.ndarray:
    """For the places -reach to length + reach - 1: the place inside whose mirror image lies there.

    The edge is not doubled: the mirror stands on the last pixel.
    """
    period = max(2 * length - 2, 1)
    places = np.empty(length + 2 * reach, np.int64)
    for index in range(len(places)):
        place = abs(index - reach) % period
        places[index] = place if place < length else period - place
    return places


@inlined
def _continue(line: np.ndarray, places: np.ndarray, reach: int) -> None:
    """Fills `reach` pixels on each side of a line's middle with its mirror image."""
    for step in range(reach):
        line[step] = line[reach + places[step]]
        line[len(line) - 1 - step] = line[reach + places[len(line) - 1 - step]]


# The loops over x below become vector code only with views that start at the first pixel used:
# with sums of places in the brackets neither numba's test for negative ones nor LLVM's for
# overlap leaves the loop.


@inlined
def _fold(out: np.ndarray, plane: np.ndarray, places: np.ndarray, odd: int) -> None:
    """out[k] = the row k above the middle one of `places` plus (odd: minus) the row k below."""
    reach = len(out) - 1
    for k in range(reach + 1):
        target, above, below = out[k], plane[places[reach - k]], plane[places[reach + k]]
        if odd:
            for x in range(len(target)):
                target[x] = above[x] - below[x]
        else:
            for x in range(len(target)):
                target[x] = above[x] + below[x]


@inlined
def _add_rows(out: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> None:
    """out += weights @ rows, four rows at a time so that sums stay in registers."""
    fours = len(weights) // 4 * 4
    for k in range(0, fours, 4):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        r0, r1, r2, r3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        for x in range(len(out)):
            out[x] = out[x] + w0 * r0[x] + w1 * r1[x] + w2 * r2[x] + w3 * r3[x]
    for k in range(fours, len(weights)):
        w0, r0 = weights[k], rows[k]
        for x in range(len(out)):
            out[x] += w0 * r0[x]


@inlined
def _add_pairs(
    out: np.ndarray, pixels: np.ndarray, left: int, right: int, weights: np.ndarray, odd: int
) -> None:
    """out[x] += sum over k of weights[k] * (pixels[left - k + x] + pixels[right + k + x]).

    Where odd, the right one is subtracted. Four k at a time, as in `_add_rows`.
    """
    width = len(out)
    fours = len(weights) // 4 * 4
    for k in range(0, fours, 4):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        a, b = pixels[left - k - 3 : left - k + width], pixels[right + k : right + k + 3 + width]
        if odd:
            for x in range(width):
                total = out[x] + w0 * (a[x + 3] - b[x]) + w1 * (a[x + 2] - b[x + 1])
                out[x] = total + w2 * (a[x + 1] - b[x + 2]) + w3 * (a[x] - b[x + 3])
        else:
            for x in range(width):
                total = out[x] + w0 * (a[x + 3] + b[x]) + w1 * (a[x + 2] + b[x + 1])
                out[x] = total + w2 * (a[x + 1] + b[x + 2]) + w3 * (a[x] + b[x + 3])
    for k in range(fours, len(weights)):
        w0, a, b = weights[k], pixels[left - k : left - k + width], pixels[right + k :]
        if odd:
            for x in range(width):
                out[x] += w0 * (a[x] - b[x])
        else:
            for x in range(width):
                out[x] += w0 * (a[x] + b[x])
