"""The peer of `degrade.py`: Real-ESRGAN's degradation of a batch, in torch and with DiffJPEG.

It does what BasicSR and Real-ESRGAN do in their order, with the ranges of our `realworld`; where it
is not the same it costs less. Nothing else in this project uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import j1
from steps import Stopwatch
from torch import Tensor

SCALE = 4
_SIDE = 21  # of every kernel; smaller ones are padded with zeros, so that a batch has one shape
_SIZES = range(7, _SIDE + 1, 2)
_SINC_SIZES = range(15, _SIDE + 1, 2)
_SINC_PROBABILITY = 0.6
_CUTOFF = (0.5, 0.8)  # of the Nyquist frequency
_FACTOR = (0.5, 1.0)
#: `F.interpolate` has Lanczos in recent versions alone: bicubic, which is cheaper, has its share.
_MODES = ("nearest", "bilinear", "area", "bicubic", "bicubic")
_SIGMA = (0.01, 0.1)  # of 1.0
_PHOTONS = (10.0, 100.0)  # of a value of 1.0
_GREY_PROBABILITY = 0.4
_LUMA = (0.2989, 0.587, 0.114)
_NEGLIGIBLE = 1e-30


@dataclass(frozen=True)
class Pass:
    """Probabilities and ranges in which the two passes differ."""

    name: str
    blur: float
    noise: float
    quality: tuple[float, float]


FIRST = Pass("first", blur=0.8, noise=0.7, quality=(75, 95))
SECOND = Pass("second", blur=0.7, noise=0.5, quality=(30, 85))
KERNELS, SINC, ROUND = "kernels", "sinc", "clamp and round"
#: Parts of the watch of `degrade_batch`.
STAGES = (
    KERNELS,
    *(f"first {step}" for step in ("blur", "resize", "Gaussian noise", "Poisson noise", "JPEG")),
    *(f"second {step}" for step in ("blur", "resize", "Gaussian noise", "Poisson noise")),
    SINC,
    "second JPEG",
    ROUND,
)


@torch.no_grad()
def degrade_batch(hr: Tensor, rng: np.random.Generator, watch: Stopwatch | None = None) -> Tensor:
    """Degrades a batch as `RealESRGANModel.feed_data` does, without its sharpening and its queue.

    Blur or none, the resize mode and factor, noise or none and of which kind, and the order of sinc
    and JPEG are drawn once for the batch; kernels, strengths and qualities for each sample.

    Args:
        hr: [B, 3, H, W] float32 in [0, 1]; LR is to be 11 px or larger.
        rng: makes every draw; that of torch is seeded from it.
        watch: gets the seconds of those of `STAGES` that the batch goes through.

    Returns:
        [B, 3, H // 4, W // 4] float32 in [0, 1], whole levels of 255.
    """
    watch = watch or Stopwatch()
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    batch, _, height, width = hr.shape
    with watch.part(KERNELS):
        first, second = (
            _batched([blur_kernel(rng) for _ in range(batch)]) if rng.random() < p.blur else None
            for p in (FIRST, SECOND)
        )
        sinc = _batched([_maybe_sinc(rng) for _ in range(batch)])
    x = _blur_resize_noise(hr, FIRST, first, None, rng, generator, watch)
    x = _compress(x, FIRST, generator, watch)
    size = (height // SCALE, width // SCALE)
    x = _blur_resize_noise(x, SECOND, second, size, rng, generator, watch)
    if rng.random() < 0.5:
        x = _compress(_ring(x, sinc, watch), SECOND, generator, watch)
    else:
        x = _ring(_compress(x, SECOND, generator, watch), sinc, watch)
    with watch.part(ROUND):
        return (x * 255).round().clamp(0, 255) / 255


def _blur_resize_noise(
    x: Tensor,
    settings: Pass,
    kernels: Tensor | None,
    size: tuple[int, int] | None,
    rng: np.random.Generator,
    generator: torch.Generator,
    watch: Stopwatch,
) -> Tensor:
    if kernels is not None:
        with watch.part(f"{settings.name} blur"):
            x = filter_batch(x, kernels)
    factor = rng.uniform(*_FACTOR) if size is None else None
    mode = str(rng.choice(_MODES))
    with watch.part(f"{settings.name} resize"):
        x = F.interpolate(x, size=size, scale_factor=factor, mode=mode)
    if rng.random() < settings.noise:
        kind, add = NOISES[rng.integers(2)]
        with watch.part(f"{settings.name} {kind} noise"):
            x = add(x, generator)
    return x


def _compress(x: Tensor, settings: Pass, generator: torch.Generator, watch: Stopwatch) -> Tensor:
    with watch.part(f"{settings.name} JPEG"):
        quality = _uniform(x, settings.quality, generator)
        return jpeg(x.clamp(0, 1), quality)


def _ring(x: Tensor, sinc: Tensor, watch: Stopwatch) -> Tensor:
    with watch.part(SINC):
        return filter_batch(x, sinc)


def blur_kernel(rng: np.random.Generator) -> np.ndarray:
    """One of the four kinds of kernel, [k, k] float64 that sums to 1, k odd in 7..21."""
    size = int(rng.choice(_SIZES))
    kind = rng.choice(("isotropic", "anisotropic", "generalised", "plateau"))
    if kind == "anisotropic":
        angle = rng.uniform(-np.pi, np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        kernel = np.exp(-0.5 * _distance(size, turn, rng.uniform(0.5, 6, 2)))
    elif kind == "plateau":
        sigma, ratio = rng.uniform(1, 5), rng.uniform(0.3, 0.7)
        beyond = np.sqrt(_distance(size, np.eye(2), np.array([sigma, sigma]))) - ratio
        kernel = np.exp(-0.5 * np.maximum(beyond, 0) ** 2)
    else:
        sigma = rng.uniform(0.5, 4)
        distance = _distance(size, np.eye(2), np.array([sigma, sigma]))
        generalised = kind == "generalised"
        kernel = np.exp(-(distance ** (rng.uniform(0.5, 2) / 2)) if generalised else -distance / 2)
    return kernel / kernel.sum()


def _distance(size: int, turn: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of each place of a kernel from its centre."""
    axis = np.arange(size) - size // 2
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    precision = np.linalg.inv(turn @ np.diag(sigmas**2) @ turn.T)
    return np.sum((grid @ precision) * grid, axis=2)


def _maybe_sinc(rng: np.random.Generator) -> np.ndarray:
    """A sinc kernel, or a pulse that leaves a picture as it is."""
    if rng.random() >= _SINC_PROBABILITY:
        return np.ones((1, 1))
    size, omega = int(rng.choice(_SINC_SIZES)), np.pi * rng.uniform(*_CUTOFF)
    axis = np.arange(size) - size // 2
    radius = np.hypot(axis[:, None], axis)
    radius[size // 2, size // 2] = 1  # its value is set below
    kernel = omega * j1(omega * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = omega**2 / (4 * np.pi)
    return kernel / kernel.sum()


def _batched(kernels: list[np.ndarray]) -> Tensor:
    margins = [(_SIDE - len(kernel)) // 2 for kernel in kernels]
    padded = [np.pad(kernel, margin) for kernel, margin in zip(kernels, margins, strict=True)]
    batch = np.stack(padded)
    # A CPU multiplies denormal numbers at a tenth of its speed; a GPU, which the original is
    # written for, does not.
    batch[np.abs(batch) < _NEGLIGIBLE] = 0
    return torch.from_numpy(batch.astype(np.float32))


def filter_batch(x: Tensor, kernels: Tensor) -> Tensor:
    """Filters [B, C, H, W], mirrored at its edges, by a kernel for each sample, [B, k, k]."""
    batch, channels, height, width = x.shape
    side = kernels.shape[-1]
    mirrored = F.pad(x, (side // 2,) * 4, mode="reflect")
    weight = kernels[:, None].repeat(1, channels, 1, 1).view(batch * channels, 1, side, side)
    groups = mirrored.reshape(1, batch * channels, *mirrored.shape[-2:])
    return F.conv2d(groups, weight, groups=batch * channels).view(batch, channels, height, width)


def add_gaussian(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise, in colour or grey for each sample, clipped to [0, 1]."""
    sigma, grey = _strength_and_grey(x, _SIGMA, generator)
    coloured = torch.randn(x.shape, generator=generator) * sigma
    if grey.any():
        pattern = torch.randn(x.shape[-2:], generator=generator)  # the batch shares it
        coloured = coloured * (1 - grey) + pattern * sigma * grey
    return (x + coloured).clamp(0, 1)


def add_poisson(x: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson noise, in colour or grey for each sample, clipped to [0, 1]."""
    photons, grey = _strength_and_grey(x, _PHOTONS, generator)
    coloured = _shot_noise(x, photons, generator)
    if grey.any():
        luma = (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        coloured = coloured * (1 - grey) + _shot_noise(luma, photons, generator) * grey
    return (x + coloured).clamp(0, 1)


#: Kinds of noise, equally likely.
NOISES = (("Gaussian", add_gaussian), ("Poisson", add_poisson))


def _shot_noise(x: Tensor, photons: Tensor, generator: torch.Generator) -> Tensor:
    x = (x * 255).round().clamp(0, 255) / 255
    # A power of two from how many values a sample has, and noise scaled to the variance of
    # Poisson with `photons`: the original draws its noise so, with a scale of its own.
    counts = [2 ** np.ceil(np.log2(len(torch.unique(sample)))) for sample in x]
    levels = x.new_tensor(counts).view(-1, 1, 1, 1)
    noise = torch.poisson(x * levels, generator=generator) / levels - x
    return noise * (levels / photons).sqrt()


def _strength_and_grey(
    x: Tensor, bounds: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    strength = _uniform(x, bounds, generator).view(-1, 1, 1, 1)
    grey = torch.rand(len(x), generator=generator) < _GREY_PROBABILITY
    return strength, grey.float().view(-1, 1, 1, 1)


def _uniform(x: Tensor, bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    return x.new_empty(len(x)).uniform_(*bounds, generator=generator)


# Tables K.1 and K.2 of ITU-T T.81, a row a vertical frequency.
_LUMA_TABLE = torch.tensor(
    [
        [16.0, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMA_TABLE = torch.full((8, 8), 99.0)
_CHROMA_TABLE[:4, :4] = torch.tensor(
    [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
)
# JFIF, a column a channel of the result.
_TO_YCBCR = torch.tensor(
    [[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]]
)
_TO_RGB = torch.tensor([[1.0, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]])
_CHROMA_SHIFT = torch.tensor([0.0, 128, 128])
_PLACES = torch.arange(8.0)[:, None]
_COSINES = torch.cos((2 * _PLACES + 1) * torch.arange(8.0) * torch.pi / 16)  # [place, frequency]
_DCT = torch.einsum("xu,yv->xyuv", _COSINES, _COSINES)
_INVERSE_DCT = _DCT.permute(2, 3, 0, 1).contiguous()
_ALPHA = torch.tensor([0.5**0.5] + [1.0] * 7)
_ALPHAS = torch.outer(_ALPHA, _ALPHA)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Compresses and decodes as DiffJPEG does: 4:2:0 by 2x2 means, chroma back by repetition.

    Args:
        x: [B, 3, H, W] float32 RGB in [0, 1].
        quality: [B], 1 to 99, of libjpeg's scale, not rounded.

    Returns:
        [B, 3, H, W] float32 RGB in [0, 1].
    """
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50).view(-1, 1, 1, 1)
    luma, chroma = _LUMA_TABLE * factor, _CHROMA_TABLE * factor
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % 16, 0, -height % 16))  # with black, as the original
    pixels = torch.tensordot((x * 255).permute(0, 2, 3, 1), _TO_YCBCR, dims=1) + _CHROMA_SHIFT
    halves = F.avg_pool2d(pixels[..., 1:].permute(0, 3, 1, 2), 2)
    y = _quantised(pixels[..., 0], luma)
    cb, cr = (_quantised(plane, chroma) for plane in halves.unbind(1))
    planes = [y, *(half.repeat_interleave(2, 1).repeat_interleave(2, 2) for half in (cb, cr))]
    rgb = torch.tensordot(torch.stack(planes, 3) - _CHROMA_SHIFT, _TO_RGB, dims=1)
    # Contiguous, since what follows is faster so.
    return rgb.permute(0, 3, 1, 2)[..., :height, :width].contiguous().clamp_(0, 255).div_(255)


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """[B, H, W] levels to the same after quantising each 8x8 block's DCT by [B, 1, 8, 8]."""
    batch, height, width = plane.shape
    blocks = plane.reshape(batch, height // 8, 8, width // 8, 8).permute(0, 1, 3, 2, 4)
    blocks = blocks.reshape(batch, -1, 8, 8)
    coefficients = 0.25 * _ALPHAS * torch.tensordot(blocks - 128, _DCT, dims=2)
    coefficients = (coefficients / table).round() * table
    blocks = 0.25 * torch.tensordot(coefficients * _ALPHAS, _INVERSE_DCT, dims=2) + 128
    blocks = blocks.view(batch, height // 8, width // 8, 8, 8).permute(0, 1, 3, 2, 4)
    return blocks.reshape(batch, height, width)
