"""Fixed enlargement with Magic Kernel Sharp 2021, and what ParagonSR2 was released with under it.

Nothing here is trained; Costella's kernel is given in closed form and in float64, and the released
approximation (a low-pass for "sharpening", one blur for every scale) only serves released weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Taps that turn the quadratic B-spline (the Magic Kernel) into Magic Kernel Sharp 2021:
#: [-1/4, 3/2, -1/4] convolved with [1/36, 0, 17/18, 0, 1/36]. Their response is 1 at frequency 0
#: and 2 at pi.
SHARPENING_TAPS = torch.tensor([-1, 6, -35, 204, -35, 6, -1], dtype=torch.float64) / 144

_REACH = 4  # LR px: the kernel ends at 4.5, the centre of a new pixel is less than 0.5 away

#: Half-band low-pass and binomial blur of the released weights.
_LEGACY_SHARP = (-1 / 32, 0.0, 9 / 32, 16 / 32, 9 / 32, 0.0, -1 / 32)
_LEGACY_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def b_spline(x: Tensor) -> Tensor:
    """The quadratic B-spline of support [-1.5, 1.5] in float64: the Magic Kernel."""
    r = x.double().abs()
    outer = torch.where(r < 1.5, 0.5 * (1.5 - r) ** 2, torch.zeros_like(r))
    return torch.where(r < 0.5, 0.75 - r**2, outer)


def mks2021(x: Tensor) -> Tensor:
    """Magic Kernel Sharp 2021 at `x` (any shape, LR px) in float64; its support is [-4.5, 4.5].

    A piecewise quadratic, in the closed form that Costella gives (and ImageMagick uses); it equals
    `b_spline` convolved with `SHARPENING_TAPS`, sums to 1 over the integers at every offset, and
    has first moment 0.
    """
    r = x.double().abs()
    value = torch.zeros_like(r)
    pieces = (
        (4.5, -((r - 4.5) ** 2) / 288),
        (3.5, (r - 3) * (r - 15 / 4) / 36),
        (2.5, (r - 2) * (65 / 24 - r) / 6),
        (1.5, (r - 1) * (r - 239 / 140) * 35 / 36),
        (0.5, 577 / 576 - 239 / 144 * r**2),
    )
    for end, piece in pieces:
        value = torch.where(r < end, piece, value)
    return value


def taps(scale: int, sharpness: float = 1.0) -> Tensor:
    """Weights of the LR pixels n-4..n+4 for each of the `scale` new pixels inside LR pixel n.

    Args:
        scale: whole factor, at least 1.
        sharpness: 1 is Magic Kernel Sharp 2021, 0 the B-spline alone; in between (and beyond) the
            sharpening is blended linearly.

    Returns:
        float64 [scale, 9]; every row sums to 1.

    Raises:
        ValueError: `scale` is below 1.
    """
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    centres = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    distance = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64) - centres[:, None]
    smooth = b_spline(distance)
    return smooth + sharpness * (mks2021(distance) - smooth)


class MagicKernelSharp(nn.Module):
    """Enlarges pictures with Magic Kernel Sharp 2021; the border pixels are repeated.

    Separable: one depthwise convolution a direction, each giving all phases, and one shuffle. The
    state dict is empty, since scale and sharpness say everything.

    Args:
        scale: whole factor.
        sharpness: as in `taps`.
        channels: of the pictures.
    """

    vertical: Tensor
    horizontal: Tensor

    def __init__(self, scale: int, sharpness: float = 1.0, channels: int = 3) -> None:
        super().__init__()
        self.scale, self.channels = scale, channels
        phases = taps(scale, sharpness).float()
        # Channel (c·s + row phase)·s + column phase: the order that pixel_shuffle takes apart.
        vertical = phases.view(1, scale, 1, -1, 1).repeat(channels, 1, 1, 1, 1).flatten(0, 1)
        horizontal = phases.view(1, scale, 1, 1, -1).repeat(channels * scale, 1, 1, 1, 1)
        self.register_buffer("vertical", vertical, persistent=False)
        self.register_buffer("horizontal", horizontal.flatten(0, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, h·scale, w·scale] in the type of the kernels, not clamped."""
        x = F.pad(x.to(self.vertical.dtype), (_REACH,) * 4, mode="replicate")
        x = F.conv2d(x, self.vertical, groups=self.channels)
        x = F.conv2d(x, self.horizontal, groups=self.channels * self.scale)
        return F.pixel_shuffle(x, self.scale)


class LegacyBase(nn.Module):
    """The base of ParagonSR2's released weights: blend, nearest neighbour, one blur, zero padding.

    `sharp` is a low-pass and the zero padding darkens the borders; both belong to the function that
    the released weights were trained with. New training takes `MagicKernelSharp`.

    Args:
        scale: whole factor.
        alpha: weight of `sharp`; 0 leaves it out.
        channels: of the pictures.
    """

    def __init__(self, scale: int, alpha: float, channels: int = 3) -> None:
        super().__init__()
        self.scale, self.alpha = scale, alpha
        self.sharp = FixedSeparable(_LEGACY_SHARP, channels)
        self.blur = FixedSeparable(_LEGACY_BLUR, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, h·scale, w·scale], not clamped."""
        x = x.to(self.blur.kernel.dtype)
        if self.alpha > 0:
            x = x + self.alpha * (self.sharp(x) - x)
        return self.blur(F.interpolate(x, scale_factor=float(self.scale), mode="nearest"))


class FixedSeparable(nn.Module):
    """One odd kernel along the rows, then along the columns, with zero padding; frozen.

    The state dict has it three times, as the released files do: `kernel`, `h.weight`, `v.weight`.
    """

    kernel: Tensor

    def __init__(self, kernel: tuple[float, ...], channels: int) -> None:
        super().__init__()
        size = len(kernel)
        self.register_buffer("kernel", torch.tensor(kernel))
        self.h = nn.Conv2d(
            channels, channels, (1, size), padding=(0, size // 2), groups=channels, bias=False
        )
        self.v = nn.Conv2d(
            channels, channels, (size, 1), padding=(size // 2, 0), groups=channels, bias=False
        )
        for line in (self.h, self.v):
            line.requires_grad_(False)
            line.weight.copy_(self.kernel.view(line.weight.shape[1:]).expand_as(line.weight))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        return self.v(self.h(x))
