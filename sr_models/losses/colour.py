"""Loss term on colour and lightness as they are seen: Oklab chroma and CIE L*.

The mean offset of colours that reports show is `sr_models/metrics`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMINANCE = (0.2126, 0.7152, 0.0722)  # Y of linear sRGB (IEC 61966-2-1)
# Björn Ottosson, "A perceptual color space for image processing", 2020.
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_CHROMA = (
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_DARK = 1e-6  # squared linear light under which the cube root turns straight
_GREY = 0.02  # chroma under which a hue stops counting, about one just noticeable difference
_CIE_KNEE = (6 / 29) ** 3


def consistency_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of Oklab chroma + (1 - cosine of Oklab chroma) + L1 of CIE L* / 100; 0-dimensional.

    Chroma is the pair (a, b) of a pixel. Two singular places of the formulas are smoothed, so that
    every gradient is finite: the cube root near black is t (t² + 1e-6)^(-1/3), and the cosine is
    that of (a, b, 0.02), which is 1 for two greys.

    Args:
        output, target: floating sRGB [B, 3, H, W] from 1x1 up, about [0, 1]; the transfer curve
            goes on as an odd function below 0, and above 1 as it is.
    """
    light, wanted_light = _linear(output), _linear(target)
    chroma, wanted_chroma = _oklab_chroma(light), _oklab_chroma(wanted_light)
    lightness = F.l1_loss(_cie_lightness(light), _cie_lightness(wanted_light)) / 100
    return F.l1_loss(chroma, wanted_chroma) + _hue_error(chroma, wanted_chroma) + lightness


def _linear(srgb: Tensor) -> Tensor:
    size = srgb.abs()
    # Clamped under the power alone: `where` would pass on its infinite gradient times zero.
    curve = ((size.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(size <= 0.04045, srgb / 12.92, srgb.sign() * curve)


def _oklab_chroma(light: Tensor) -> Tensor:
    """a and b: [B, 3, H, W] -> [B, 2, H, W]."""
    cones = _mix(_TO_CONES, light)
    roots = cones * (cones.square() + _DARK) ** (-1 / 3)
    return _mix(_TO_CHROMA, roots)


def _cie_lightness(light: Tensor) -> Tensor:
    """L* of CIE 1976, 0 to 100: [B, 3, H, W] -> [B, 1, H, W]."""
    luminance = _mix((_LUMINANCE,), light)
    root = luminance.clamp(min=_CIE_KNEE) ** (1 / 3)
    straight = luminance / (3 * (6 / 29) ** 2) + 4 / 29
    return 116 * torch.where(luminance > _CIE_KNEE, root, straight) - 16


def _hue_error(chroma: Tensor, wanted: Tensor) -> Tensor:
    product = (chroma * wanted).sum(dim=1) + _GREY**2
    lengths = (chroma.square().sum(dim=1) + _GREY**2) * (wanted.square().sum(dim=1) + _GREY**2)
    return (1 - product * lengths.rsqrt()).mean()


def _mix(matrix: tuple[tuple[float, ...], ...], channels: Tensor) -> Tensor:
    return torch.einsum("oi,bihw->bohw", channels.new_tensor(matrix), channels)
