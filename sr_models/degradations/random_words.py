"""Streams of random 64-bit words for numba code, seeded from numpy's generators.

A stream takes a fixed number of words from its generator however long it gets; distributions are
made of the words in `noise.py`.
"""

from __future__ import annotations

import numpy as np

from sr_models.compiled import compiled

#: xoshiro256++ generators that run side by side, for the vector units; the last one is for the
#: draws that are rarely needed.
_LANES = 17
#: Steps of a uniform number in [0, 1) made of a word's upper 53 bits.
ULP = 2.0**-53


def seeds_from(generator: np.random.Generator) -> np.ndarray:
    """States of `_LANES` generators, uint64 [4, lanes]."""
    return generator.bit_generator.random_raw(4 * _LANES).reshape(4, _LANES)


@compiled
def fill(seeds: np.ndarray, words: np.ndarray) -> None:
    """Words of all lanes but the last, in turn: xoshiro256++ (Blackman and Vigna 2021)."""
    a, b, c, d = seeds[0], seeds[1], seeds[2], seeds[3]
    for start in range(0, len(words), _LANES - 1):
        made = words[start : start + _LANES - 1]
        for lane in range(_LANES - 1):
            made[lane], a[lane], b[lane], c[lane], d[lane] = _next(
                a[lane], b[lane], c[lane], d[lane]
            )


@compiled
def rare(seeds: np.ndarray) -> np.uint64:
    """A word of the last lane."""
    a, b, c, d = seeds[0], seeds[1], seeds[2], seeds[3]
    word, a[-1], b[-1], c[-1], d[-1] = _next(a[-1], b[-1], c[-1], d[-1])
    return word


@compiled
def _next(
    a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """The word, and the state after it."""
    total = a + d
    word = ((total << np.uint64(23)) | (total >> np.uint64(41))) + a
    shifted = b << np.uint64(17)
    c, d = c ^ a, d ^ b
    a, b, c = a ^ d, b ^ c, c ^ shifted
    return word, a, b, c, (d << np.uint64(45)) | (d >> np.uint64(19))


@compiled
def uniform(seeds: np.ndarray) -> float:
    """In (0, 1), from the last lane."""
    return (np.int64(rare(seeds) >> np.uint64(11)) + 0.5) * ULP
