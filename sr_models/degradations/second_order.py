"""Makes LR from HR by a random process of several steps, and shows each step on request.

What happens is drawn by `drawing.py`; the steps themselves are the modules beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import radians

import numpy as np

from sr_models.degradations import codecs, kernels, noise
from sr_models.degradations.drawing import Drawn, draw, stream
from sr_models.degradations.filtering import convolve
from sr_models.degradations.pixels import to_pixels, to_planes
from sr_models.degradations.resizing import resize
from sr_models.degradations.steps import Process


def degrade(hr: np.ndarray, process: Process, scale: int, key: bytes) -> np.ndarray:
    """LR of one patch, a pure function of its arguments: the same bytes on every machine.

    Args:
        hr: uint8 [H, W, 3], sRGB; H and W are multiples of `scale`.
        process: what may happen.
        scale: HR over LR.
        key: the sample, see `drawing.sample_key`.

    Returns:
        uint8 [H / scale, W / scale, 3].

    Raises:
        ValueError: `hr` is no uint8 [H, W, 3], or no multiple of `scale`.
    """
    _check(hr)
    return apply(hr, draw(process, hr.shape[0], hr.shape[1], scale, key), key)


def apply(hr: np.ndarray, steps: Sequence[Drawn], key: bytes) -> np.ndarray:
    """LR of one patch by steps that were drawn before; see `degrade`."""
    planes = to_planes(hr)
    for step in steps:
        planes = _done(step, planes, key)
    return to_pixels(planes)


def pictures(
    hr: np.ndarray, steps: Sequence[Drawn], key: bytes
) -> Iterator[tuple[Drawn, np.ndarray]]:
    """Each step and the picture after it, uint8 [h, w, 3]; the last picture is LR."""
    planes = to_planes(hr)
    for step in steps:
        planes = _done(step, planes, key)
        yield step, to_pixels(planes)


def _done(step: Drawn, planes: np.ndarray, key: bytes) -> np.ndarray:
    """float32 [3, H, W] in levels (0 to 255) -> the same after one step."""
    n = step.numbers
    if step.op in ("blur", "sinc"):
        return convolve(planes, kernel_of(step))
    if step.op == "resize":
        return resize(planes, int(n["height"]), int(n["width"]), step.kind)
    if step.op == "noise":
        generator = np.random.Generator(np.random.PCG64(stream(key, step.position, "noise")))
        grey = bool(n["grey"])
        if step.kind == "gaussian":
            return noise.gaussian(planes, 255 * n["sigma"], grey, generator)
        return noise.poisson(planes, n["photons"], grey, generator)
    return codecs.round_trip(planes, step.op, int(n["quality"]), step.kind)


def kernel_of(step: Drawn) -> np.ndarray:
    """The kernel of a blur or sinc step, float64 [size, size], of sum 1."""
    n, size = step.numbers, int(step.numbers["size"])
    if step.op == "sinc":
        return kernels.sinc(size, n["cutoff"])
    if step.kind == "isotropic":
        return kernels.gaussian(size, n["sigma"], n["sigma"], 0.0)
    if step.kind == "anisotropic":
        return kernels.gaussian(size, n["sigma_x"], n["sigma_y"], radians(n["degrees"]))
    if step.kind == "generalised":
        return kernels.generalised(size, n["sigma"], n["sigma"], 0.0, n["beta"])
    return kernels.plateau(size, n["sigma"], n["ratio"])


def _check(hr: np.ndarray) -> None:
    if hr.dtype != np.uint8 or hr.ndim != 3 or hr.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], got {hr.dtype} {list(hr.shape)}")
