"""Draws what is done to one sample from the ranges of a process; no pixel is touched.

Every step has a random stream of its own, so that a step keeps what it drew when another is added
after it or gets other ranges: recipes can be compared sample by sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from sr_models.degradations.steps import (
    Blur,
    Jpeg,
    Leaf,
    Noise,
    Process,
    Resize,
    Shuffle,
    Sinc,
)


@dataclass(frozen=True)
class Drawn:
    """One step as it is done to one sample."""

    op: str
    """Kind of the step: blur, resize, noise, jpeg, webp or sinc."""
    kind: str
    """Kernel, method, kind of noise, or chroma subsampling."""
    numbers: Mapping[str, float]
    """What was drawn, by name; lengths in px of the picture at this step."""
    position: int
    """Number of the step in the process, in the order in which steps are written."""


def sample_key(seed: int, patch: bytes, variant: int) -> bytes:
    """What decides a sample's degradation beside the process.

    Args:
        seed: of the recipe.
        patch: sha256 of the HR pixels.
        variant: from 0.
    """
    return hashlib.sha256(b"%d:%s:%d" % (seed, patch.hex().encode(), variant)).digest()


def stream(key: bytes, position: int, use: str) -> int:
    """Seed of one step's random numbers, an integer of 128 bits."""
    return int.from_bytes(hashlib.sha256(b"%s:%d:%s" % (key, position, use.encode())).digest()[:16])


def draw(process: Process, height: int, width: int, scale: int, key: bytes) -> tuple[Drawn, ...]:
    """The steps that happen to one sample, in order, with their numbers.

    Args:
        process: the ranges.
        height: of HR (px), a multiple of `scale`; `width` likewise.
        width: see `height`.
        scale: HR over LR.
        key: the sample, see `sample_key`; the same arguments give the same steps on every machine
            and with every version of Python (only `Random.random` is used, which is stable).

    Raises:
        ValueError: HR is no multiple of `scale`.
    """
    if height % scale or width % scale:
        raise ValueError(f"HR of {height}x{width} px is no multiple of scale {scale}")
    size, lr = (height, width), (height // scale, width // scale)
    steps: list[Drawn] = []
    for position, leaf in _ordered(process, key):
        random = Random(stream(key, position, "draw"))  # noqa: S311 - not for secrets
        if random.random() >= leaf.probability:
            continue
        if isinstance(leaf, Resize):
            size = lr if leaf.factor is None else _scaled(size, _uniform(random, leaf.factor))
            numbers: dict[str, float] = {"height": size[0], "width": size[1]}
            steps.append(Drawn("resize", _one(random, leaf.methods), numbers, position))
        else:
            kind, numbers = _numbers(leaf, random)
            steps.append(Drawn(leaf.kind, kind, numbers, position))
    return tuple(steps)


def _ordered(process: Process, key: bytes) -> Iterator[tuple[int, Leaf]]:
    """(position, step), with the steps of each shuffle in the order that the sample has."""
    position = 0
    for step in process.steps:
        if not isinstance(step, Shuffle):
            yield position, step
            position += 1
            continue
        random = Random(stream(key, position, "order"))  # noqa: S311 - not for secrets
        inside = [(random.random(), position + i, leaf) for i, leaf in enumerate(step.steps)]
        position += len(inside)
        for _, at, leaf in sorted(inside, key=lambda entry: entry[:2]):
            yield at, leaf


def _numbers(leaf: Any, random: Random) -> tuple[str, dict[str, float]]:
    if isinstance(leaf, Blur):
        kind = _one(random, leaf.kernels)
        return kind, {"size": _odd(random, leaf.size), **_shape(leaf, kind, random)}
    if isinstance(leaf, Noise):
        kind = _one(random, leaf.kinds)
        grey = float(random.random() < leaf.grey)
        strength = (
            {"sigma": _uniform(random, leaf.sigma)}
            if kind == "gaussian"
            else {"photons": _uniform(random, leaf.photons)}
        )
        return kind, {**strength, "grey": grey}
    if isinstance(leaf, Sinc):
        return "sinc", {
            "size": _odd(random, leaf.size),
            "cutoff": _uniform(random, leaf.cutoff),
        }
    quality: dict[str, float] = {"quality": _whole(random, leaf.quality)}
    return (_one(random, leaf.subsampling) if isinstance(leaf, Jpeg) else "lossy"), quality


def _shape(blur: Blur, kind: str, random: Random) -> dict[str, float]:
    if kind == "isotropic":
        return {"sigma": _uniform(random, blur.isotropic_sigma)}
    if kind == "anisotropic":
        return {
            "sigma_x": _uniform(random, blur.anisotropic_sigma),
            "sigma_y": _uniform(random, blur.anisotropic_sigma),
            "degrees": _uniform(random, (0.0, 180.0)),
        }
    if kind == "generalised":
        return {
            "sigma": _uniform(random, blur.generalised_sigma),
            "beta": _uniform(random, blur.generalised_beta),
        }
    return {
        "sigma": _uniform(random, blur.plateau_sigma),
        "ratio": _uniform(random, blur.plateau_ratio),
    }


def _uniform(random: Random, limits: tuple[float, float]) -> float:
    return limits[0] + (limits[1] - limits[0]) * random.random()


def _whole(random: Random, limits: tuple[int, int]) -> int:
    return limits[0] + int(random.random() * (limits[1] - limits[0] + 1))


def _odd(random: Random, limits: tuple[int, int]) -> int:
    return limits[0] + 2 * int(random.random() * ((limits[1] - limits[0]) // 2 + 1))


def _one(random: Random, options: tuple[str, ...]) -> str:
    return options[int(random.random() * len(options))]


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width
