"""What may happen to a picture on its way from HR to LR, as ranges that numbers are drawn from.

Drawing is `drawing.py`, doing it to pixels `second_order.py`, ready-made processes `presets.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

BlurKernel = Literal["isotropic", "anisotropic", "generalised", "plateau"]
ResizeMethod = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]
NoiseKind = Literal["gaussian", "poisson"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]


#: Most that the resizes of a process may enlarge together.
_LARGEST = 8.0


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the range {pair[0]} to {pair[1]} begins above its end: swap them")
    return pair


def _odd(pair: tuple[int, int]) -> tuple[int, int]:
    if not (pair[0] % 2 and pair[1] % 2):
        raise ValueError(f"kernel sizes are odd, not {pair[0]} to {pair[1]}")
    return pair


Probability = Annotated[float, Field(ge=0, le=1)]
Sigma = Annotated[
    tuple[Annotated[float, Field(ge=0.1, le=20)], Annotated[float, Field(ge=0.1, le=20)]],
    AfterValidator(_ordered),
]
Size = Annotated[
    tuple[Annotated[int, Field(ge=3, le=51)], Annotated[int, Field(ge=3, le=51)]],
    AfterValidator(_ordered),
    AfterValidator(_odd),
]
Quality = Annotated[
    tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]],
    AfterValidator(_ordered),
]


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Blur(_Step):
    """Convolution with a random low-pass kernel."""

    kind: Literal["blur"] = "blur"
    probability: Probability = Field(1.0, description="How often it happens.")
    kernels: tuple[BlurKernel, ...] = Field(
        ("isotropic", "anisotropic", "generalised", "plateau"),
        min_length=1,
        description="One of these, each as likely; naming one twice doubles its share.",
    )
    size: Size = Field((7, 21), description="Side of the kernel, odd (px).")
    isotropic_sigma: Sigma = Field((0.5, 4.0), description="Standard deviation (px).")
    anisotropic_sigma: Sigma = Field(
        (0.5, 6.0), description="Standard deviation of each axis (px); axes turn by any angle."
    )
    generalised_sigma: Sigma = Field((0.5, 4.0), description="σ of exp(-(r / σ)^β) (px).")
    generalised_beta: Annotated[
        tuple[Annotated[float, Field(ge=0.2, le=8)], Annotated[float, Field(ge=0.2, le=8)]],
        AfterValidator(_ordered),
    ] = Field((0.5, 2.0), description="β of exp(-(r / σ)^β).")
    plateau_sigma: Sigma = Field((1.0, 5.0), description="σ of the flank (px).")
    plateau_ratio: Annotated[
        tuple[Probability, Probability],
        AfterValidator(_ordered),
    ] = Field((0.3, 0.7), description="Radius of the flat top, as a share of σ.")


class Resize(_Step):
    """A change of size, without antialiasing except for `area`: as common tools do it."""

    kind: Literal["resize"] = "resize"
    probability: Probability = Field(1.0, description="How often it happens.")
    factor: (
        Annotated[
            tuple[Annotated[float, Field(ge=0.05, le=4)], Annotated[float, Field(ge=0.05, le=4)]],
            AfterValidator(_ordered),
        ]
        | None
    ) = Field(None, description="New over old size; exactly to the size of LR when left out.")
    methods: tuple[ResizeMethod, ...] = Field(
        ("nearest", "bilinear", "bicubic", "area", "lanczos"),
        min_length=1,
        description="One of these, each as likely.",
    )


class Noise(_Step):
    """Noise of a sensor or of film."""

    kind: Literal["noise"] = "noise"
    probability: Probability = Field(1.0, description="How often it happens.")
    kinds: tuple[NoiseKind, ...] = Field(
        ("gaussian", "poisson"), min_length=1, description="One of these, each as likely."
    )
    sigma: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]],
        AfterValidator(_ordered),
    ] = Field((0.01, 0.1), description="Gaussian: standard deviation, as a share of white.")
    photons: Annotated[
        tuple[Annotated[float, Field(ge=1, le=1000)], Annotated[float, Field(ge=1, le=1000)]],
        AfterValidator(_ordered),
    ] = Field((10.0, 100.0), description="Poisson: expected count at white.")
    grey: Probability = Field(0.4, description="Share of noise that is the same in all channels.")


class Jpeg(_Step):
    """JPEG compression by libjpeg-turbo."""

    kind: Literal["jpeg"] = "jpeg"
    probability: Probability = Field(1.0, description="How often it happens.")
    quality: Quality = Field((30, 95), description="As libjpeg defines it.")
    subsampling: tuple[Subsampling, ...] = Field(
        ("4:2:0", "4:2:0", "4:2:2", "4:4:4"),
        min_length=1,
        description="Of the chroma: one of these, each as likely.",
    )


class Webp(_Step):
    """Lossy WebP compression by libwebp."""

    kind: Literal["webp"] = "webp"
    probability: Probability = Field(1.0, description="How often it happens.")
    quality: Quality = Field((30, 95), description="As libwebp defines it.")


class Sinc(_Step):
    """A circular low-pass filter with ringing, as sharpening and resizing tools leave it."""

    kind: Literal["sinc"] = "sinc"
    probability: Probability = Field(1.0, description="How often it happens.")
    size: Size = Field((15, 21), description="Side of the kernel, odd (px).")
    cutoff: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]],
        AfterValidator(_ordered),
    ] = Field((0.5, 0.8), description="Cut-off frequency, as a share of the highest (π).")


Leaf = Annotated[Blur | Resize | Noise | Jpeg | Webp | Sinc, Field(discriminator="kind")]


class Shuffle(_Step):
    """Steps in a random order."""

    kind: Literal["shuffle"] = "shuffle"
    steps: tuple[Leaf, ...] = Field(min_length=2, description="The steps.")


Step = Annotated[Blur | Resize | Noise | Jpeg | Webp | Sinc | Shuffle, Field(discriminator="kind")]


class Process(_Step):
    """Steps from HR to LR, in order; one `resize` without `factor` makes the size of LR."""

    steps: tuple[Step, ...] = Field(min_length=1, description="The steps.")

    def leaves(self) -> Iterator[Leaf]:
        """Every step, those of a shuffle in the order in which they are written."""
        for step in self.steps:
            yield from step.steps if isinstance(step, Shuffle) else (step,)

    @model_validator(mode="after")
    def _ends_at_lr(self) -> Process:
        final = [i for i, s in enumerate(self.steps) if isinstance(s, Resize) and s.factor is None]
        if len(final) != 1:
            raise ValueError(
                f"steps: {len(final)} of them resize to the size of LR: exactly one `resize` must "
                "be without `factor`, outside a shuffle"
            )
        last = self.steps[final[0]]
        if last.probability < 1:  # type: ignore[union-attr]
            raise ValueError(
                f"steps.{final[0]}.probability: the resize to the size of LR always happens: "
                "leave it out"
            )
        for i, step in enumerate(self.steps):
            inside = step.steps if isinstance(step, Shuffle) else (step,)
            resizes = [s for s in inside if isinstance(s, Resize)]
            if i != final[0] and any(s.factor is None or i > final[0] for s in resizes):
                raise ValueError(
                    f"steps.{i}: a resize after the one to the size of LR, or a second such one in "
                    "a shuffle: leave it out"
                )
        factors = [s.factor for s in self.leaves() if isinstance(s, Resize) and s.factor]
        grown = prod(max(1.0, high) for _, high in factors)
        if grown > _LARGEST:
            raise ValueError(
                f"steps: resizes may enlarge a picture {grown:g} times together, more than "
                f"{_LARGEST:g}: lower the upper ends of `factor`"
            )
        return self
