"""Gaussian and Poisson noise from exact distributions, much faster than numpy draws them.

The generator handed in only seeds a stream, by a fixed number of raw words; numpy promises those,
but not its samplers, to be the same in every version. Which noise is added is decided in
`drawing.py`.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache

import numpy as np

from sr_models.compiled import compiled
from sr_models.degradations.random_words import ULP, fill, rare, seeds_from, uniform

#: Words that are made at a time; they stay in the first-level cache.
_BLOCK = 1024

#: Layers of the ziggurat: the lower 8 bits of a word choose one.
_LAYERS = 256
#: Where its tail starts, and area of a layer: they solve the equations of Marsaglia and Tsang
#: (2000) for 256 layers under exp(-x^2 / 2).
_TAIL = Decimal("3.654152885361008771645429720399515763")
_AREA = Decimal("0.004928673233974655347361775402336028")

#: Cells of the guide into each cumulative distribution: one for each value of a word's upper bits.
_CELLS = 256
_CELL_SHIFT = 55
#: Terms below this share of the largest one are left out: less than a uniform number can resolve.
_NEGLIGIBLE = 1e-18


def gaussian(
    planes: np.ndarray, sigma: float, grey: bool, generator: np.random.Generator
) -> np.ndarray:
    """Adds white Gaussian noise by the ziggurat method, in float64, and clamps.

    Args:
        planes: float32 [C, H, W] in levels, C-contiguous.
        sigma: standard deviation in levels, at least 0.
        grey: the same noise in all channels.
        generator: 68 raw words are taken from it.

    Returns:
        float32 [C, H, W], clamped to 0..255, rounded once.
    """
    noisy: np.ndarray = _gaussian(planes, sigma, grey, seeds_from(generator), _layers())
    return noisy


def poisson(
    planes: np.ndarray, scale: float, grey: bool, generator: np.random.Generator
) -> np.ndarray:
    """Turns levels into counts of photons, and counts into levels: Poisson(v / 255 * s) / s * 255.

    A level v has whole part n and rest f: its count is the sum of a Poisson variate of mean
    n * s / 255, from a table, and one of f * s / 255, by inversion (Devroye 1986, III.2 and X.3).

    Args:
        planes: float32 [C, H, W] in levels, C-contiguous; clamped to 0..255 first. C is 3 for grey.
        scale: expected photons at level 255, above 0; time and memory grow with it beyond 1000.
        grey: the noise of the luma (BT.601, full range) is added to all channels.
        generator: 68 raw words are taken from it.

    Returns:
        float32 [C, H, W], clamped to 0..255, rounded once.
    """
    draw = _grey_poisson if grey else _poisson
    noisy: np.ndarray = draw(planes, scale, seeds_from(generator))
    return noisy


@cache
def _layers() -> np.ndarray:
    """Widths of the ziggurat's layers from the widest (which holds the tail) to 0, float64 [257].

    Decimal's functions are rounded correctly: the table is the same on every machine.
    """
    with localcontext() as context:
        context.prec = 30
        x = _TAIL
        widths = [_AREA / (-x * x / 2).exp(), x]
        for _ in range(_LAYERS - 2):
            x = (-2 * (_AREA / x + (-x * x / 2).exp()).ln()).sqrt()
            widths.append(x)
    return np.array([float(width) for width in [*widths, Decimal(0)]])


@compiled
def _gaussian(
    planes: np.ndarray, sigma: float, grey: bool, seeds: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    noisy = np.empty_like(planes)
    shared = 1 if not grey else len(planes)
    values = planes.reshape(shared, -1)
    results = noisy.reshape(shared, -1)
    words = np.empty(_BLOCK, np.uint64)
    normal = np.empty(_BLOCK, np.float64)
    for start in range(0, values.shape[1], _BLOCK):
        fill(seeds, words)
        _normal(seeds, words, widths, normal)
        end = min(start + _BLOCK, values.shape[1])
        for c in range(shared):
            for i in range(start, end):
                results[c, i] = min(max(values[c, i] + sigma * normal[i - start], 0.0), 255.0)
    return noisy


@compiled
def _normal(seeds: np.ndarray, words: np.ndarray, widths: np.ndarray, normal: np.ndarray) -> None:
    """A standard normal variate for each word, with more words where it falls outside."""
    for i in range(len(words)):
        word = words[i]
        layer = np.int64(word & np.uint64(_LAYERS - 1))
        # 53 bits with a sign, in (-1, 1) and never 0.
        x = (np.float64(np.int64(word) >> 11) + 0.5) * (2 * ULP) * widths[layer]
        if abs(x) >= widths[layer + 1]:
            x = _outside(seeds, x, layer, widths)
        normal[i] = x


@compiled
def _outside(seeds: np.ndarray, x: float, layer: np.int64, widths: np.ndarray) -> float:
    """The variate when `x` is not in the part of its layer that is wholly under the curve."""
    while True:
        if layer == 0:
            return math.copysign(_tail(seeds, widths[1]), x)
        low, high = math.exp(-0.5 * widths[layer] ** 2), math.exp(-0.5 * widths[layer + 1] ** 2)
        if low + uniform(seeds) * (high - low) < math.exp(-0.5 * x * x):
            return x
        word = rare(seeds)
        layer = np.int64(word & np.uint64(_LAYERS - 1))
        x = (np.float64(np.int64(word) >> 11) + 0.5) * (2 * ULP) * widths[layer]
        if abs(x) < widths[layer + 1]:
            return x


@compiled
def _tail(seeds: np.ndarray, start: float) -> float:
    """A normal variate beyond `start` (Marsaglia 1964)."""
    while True:
        beyond = -math.log(uniform(seeds)) / start
        if -2.0 * math.log(uniform(seeds)) > beyond * beyond:
            return start + beyond


@compiled
def _poisson(planes: np.ndarray, scale: float, seeds: np.ndarray) -> np.ndarray:
    noisy = np.empty_like(planes)
    values, results = planes.reshape(-1), noisy.reshape(-1)
    for i in range(len(values)):
        results[i] = min(max(values[i], np.float32(0)), np.float32(255))
    _photons(results, scale, seeds, results)
    for i in range(len(values)):
        results[i] = min(results[i] * (255.0 / scale), 255.0)
    return noisy


@compiled
def _grey_poisson(planes: np.ndarray, scale: float, seeds: np.ndarray) -> np.ndarray:
    noisy = np.empty_like(planes)
    values, results = planes.reshape(3, -1), noisy.reshape(3, -1)
    for c in range(3):
        for i in range(values.shape[1]):
            results[c, i] = min(max(values[c, i], np.float32(0)), np.float32(255))
    luma = np.empty(values.shape[1], np.float32)
    for i in range(len(luma)):
        luma[i] = 0.299 * results[0, i] + 0.587 * results[1, i] + 0.114 * results[2, i]
    counts = np.empty_like(luma)
    _photons(luma, scale, seeds, counts)
    for c in range(3):
        for i in range(len(luma)):
            noise = counts[i] * (255.0 / scale) - luma[i]
            results[c, i] = min(max(results[c, i] + noise, 0.0), 255.0)
    return noisy


@compiled
def _photons(levels: np.ndarray, scale: float, seeds: np.ndarray, counts: np.ndarray) -> None:
    """A Poisson variate of mean level / 255 * scale for each level, float32 both, in place or not.

    The cumulative distribution of a whole level, in units of 2^-63, is made when it is first met.
    """
    # Beyond 9 standard deviations, and a little for skewness, every term is negligible.
    entries = np.int64(20.0 * math.sqrt(scale) + 60.0)
    terms = np.empty(entries, np.float64)
    firsts = np.full(256, -1, np.int64)
    cumulative = np.empty((256, entries), np.int64)
    guide = np.empty((256, _CELLS), np.uint16)
    words = np.empty(2 * _BLOCK, np.uint64)
    for start in range(0, len(levels), _BLOCK):
        fill(seeds, words)
        for i in range(min(_BLOCK, len(levels) - start)):
            value = np.float64(levels[start + i])
            level = np.int64(value)
            if firsts[level] < 0:
                firsts[level], made = _terms(level * scale / 255.0, terms)
                _accumulate(terms[:made], cumulative[level], guide[level])
            at = np.int64(words[i] >> np.uint64(1))
            entry = np.int64(guide[level, at >> _CELL_SHIFT])
            # One step without a jump is nearly always enough.
            entry += np.int64(at >= cumulative[level, entry])
            while at >= cumulative[level, entry]:
                entry += 1
            rest = (value - level) * (scale / 255.0)
            above = (np.float64(np.int64(words[_BLOCK + i] >> np.uint64(11))) + 0.5) * ULP
            if above < rest:
                entry += _few(rest, above)
            counts[start + i] = firsts[level] + entry


@compiled
def _few(mean: float, above: float) -> int:
    """Inverse of the upper tail, for any mean: the n with P(N > n) <= above < P(N >= n)."""
    # With m the mean, m - m^2 / 2 <= P(N >= 1) <= m - m^2 / 2 + m^3 / 6 and P(N >= 2) <= m^2 / 2:
    # mostly no exponential is needed.
    half_square = 0.5 * mean * mean
    one = mean - half_square
    if above >= one + half_square * mean / 3.0:
        return 0
    if half_square <= above < one:
        return 1
    count, tail = 0, -math.expm1(-mean)
    term = 1.0 - tail
    # Rounding can leave `tail` above the smallest values: what is beyond 2^-60 does not happen.
    while above < tail and term > 2.0**-60:
        count += 1
        term *= mean / count
        tail -= term
    return count


@compiled
def _terms(mean: float, terms: np.ndarray) -> tuple[np.int64, np.int64]:
    """Probabilities up to a common factor, by p(k) = p(k - 1) mean / k from the mode both ways.

    Returns:
        The count that the first term is for, and how many terms there are.
    """
    mode = np.int64(mean)
    first, term = mode, 1.0
    while first > 0 and term > _NEGLIGIBLE:
        term *= first / mean
        first -= 1
    term = 1.0
    for k in range(mode, first, -1):
        terms[k - first] = term
        term *= k / mean
    terms[0] = term
    count, term = mode - first, 1.0
    while term > _NEGLIGIBLE:
        terms[count] = term
        count += 1
        term *= mean / (first + count)
    return first, count


@compiled
def _accumulate(terms: np.ndarray, cumulative: np.ndarray, guide: np.ndarray) -> None:
    """P(N <= first + k) in units of 2^-63, the last one at the end of all, and where to start.

    A cell of the guide holds the first k at which the distribution exceeds the cell's start.
    """
    total = 0.0
    for k in range(len(terms)):
        total += terms[k]
    share, cell = 0.0, 0
    for k in range(len(terms)):
        share += terms[k] / total
        # Rounded to 53 bits; the last one is above every word, whatever the sum's rounding was.
        cumulative[k] = np.int64(min(share, 1.0 - ULP) * 2.0**53) << 10
        if k == len(terms) - 1:
            cumulative[k] = np.int64(2**63 - 1)
        while cell < _CELLS and cell << _CELL_SHIFT < cumulative[k]:
            guide[cell] = k
            cell += 1
