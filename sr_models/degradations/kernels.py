"""Blur kernels of the degradation process: four Gaussian kinds and the low-pass of ringing.

Each is a pure function of its numbers that gives the same bits on any machine; drawing the numbers
and applying the kernel to a picture are not for here.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import j1

#: Smallest and largest side of a kernel, in pixels.
SIZES = (3, 51)
#: Step of the weights before they are normalised, in parts of the peak.
_STEPS = 2.0**24


def gaussian(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """Anisotropic Gaussian, turned: exp(-r^2 / 2) with r the elliptic radius; isotropic if equal.

    Args:
        size: side in pixels, odd, 3 to 51.
        sigma_x: standard deviation along the first axis in pixels, above 0.
        sigma_y: standard deviation along the second axis in pixels, above 0.
        angle: angle from the x axis (to the right) to the first axis in radians, towards +y (down).

    Returns:
        float64 [size, size], indexed [y, x]; its values are float32 numbers that sum to 1 +- 1e-6.

    Raises:
        ValueError: a number is outside its range.
    """
    return _normalised(np.exp(-0.5 * _radius_squared(size, sigma_x, sigma_y, angle)))


def generalised(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> np.ndarray:
    """Generalised Gaussian: exp(-r^beta) with r the elliptic radius, so exp(-(d / sigma)^beta).

    There is no factor 1/2: at beta = 2 the variance an axis is sigma^2 / 2. Sharper than a Gaussian
    and with heavier tails below 2.

    Args:
        size: side in pixels, odd, 3 to 51.
        sigma_x: scale along the first axis in pixels, above 0.
        sigma_y: scale along the second axis in pixels, above 0.
        angle: angle of the first axis in radians, as in `gaussian`.
        beta: exponent, above 0.

    Returns:
        float64 [size, size], indexed [y, x]; its values are float32 numbers that sum to 1 +- 1e-6.

    Raises:
        ValueError: a number is outside its range.
    """
    _positive("beta", beta)
    return _normalised(np.exp(-(_radius_squared(size, sigma_x, sigma_y, angle) ** (0.5 * beta))))


def plateau(size: int, sigma: float, ratio: float) -> np.ndarray:
    """A flat disc with a Gaussian edge: 1 up to e = sigma ratio, then exp(-(d - e)^2 / 2 sigma^2).

    Args:
        size: side in pixels, odd, 3 to 51.
        sigma: standard deviation of the edge in pixels, above 0.
        ratio: radius of the disc in sigmas, at least 0 (0 is the isotropic Gaussian).

    Returns:
        float64 [size, size]; its values are float32 numbers that sum to 1 +- 1e-6.

    Raises:
        ValueError: a number is outside its range.
    """
    _positive("sigma", sigma)
    if not (math.isfinite(ratio) and ratio >= 0):
        raise ValueError(f"ratio must be at least 0, got {ratio}")
    beyond = np.maximum(np.sqrt(_radius_squared(size, sigma, sigma, 0.0)) - ratio, 0.0)
    return _normalised(np.exp(-0.5 * beyond * beyond))


def sinc(size: int, cutoff: float) -> np.ndarray:
    """Circular low-pass, which rings: w J1(w d) / (2 pi d), w = cutoff pi, under a Lanczos window.

    The inverse transform of a disc of radius w (its value at d = 0 is w^2 / 4 pi), times
    sin(pi t) / (pi t) with t = d / R. The window is zero at R = (size + 1) / 2, the first pixel
    outside the kernel, and beyond it, so that the corners are zero.

    Args:
        size: side in pixels, odd, 3 to 51.
        cutoff: cut-off in parts of the Nyquist frequency, above 0 to 1; there the gain is 1/2.

    Returns:
        float64 [size, size]; its values are float32 numbers that sum to 1 +- 1e-6.

    Raises:
        ValueError: a number is outside its range.
    """
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff must be above 0 and at most 1, got {cutoff}")
    distance = np.sqrt(_radius_squared(size, 1.0, 1.0, 0.0))
    phase = np.maximum(cutoff * math.pi * distance, 1e-9)  # 2 J1(p) / p is 1 there to the last bit
    window = np.sinc(np.minimum(2.0 * distance / (size + 1), 1.0))
    return _normalised(2.0 * j1(phase) / phase * window)


def _radius_squared(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """[size, size] of (u / sigma_x)^2 + (v / sigma_y)^2, with (u, v) the turned coordinates."""
    if size % 2 != 1 or not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size must be odd, {SIZES[0]} to {SIZES[1]}, got {size}")
    _positive("sigma_x", sigma_x)
    _positive("sigma_y", sigma_y)
    if not math.isfinite(angle):
        raise ValueError(f"angle must be finite, got {angle}")
    x = np.arange(size, dtype=np.float64) - size // 2
    y = x[:, None]
    cosine, sine = math.cos(angle), math.sin(angle)
    u, v = cosine * x + sine * y, cosine * y - sine * x
    return (u / sigma_x) ** 2 + (v / sigma_y) ** 2


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be above 0, got {value}")


def _normalised(weights: np.ndarray) -> np.ndarray:
    """Weights with peak 1 -> float32 numbers with sum 1, each rounded to half a unit of its last.

    exp and J1 differ in the last bit from one maths library to the next. Whole steps hide that,
    and since their sum is exact in any order, nothing after them can differ. The last rounding is
    relative, 2^-24 an entry, and moves the sum by no more than that share of the sum of |entry|.
    """
    steps = np.rint(weights * _STEPS)
    kernel: np.ndarray = (steps / steps.sum()).astype(np.float32).astype(np.float64)
    return kernel
