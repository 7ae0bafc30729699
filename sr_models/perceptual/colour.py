"""Colours of a refined picture brought back to those of the picture that was refined.

A diffusion model may shift them. Which fix is taken is said by `pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 5  # of the wavelet: together a blur of 13 px (standard deviation)
_KERNEL = (0.25, 0.5, 0.25)
_SMALL = 1e-5  # of a variance


def wavelet_colour(refined: Tensor, like: Tensor) -> Tensor:
    """The detail of `refined` on the blurred colours of `like`.

    A stationary ("à trous") wavelet of five levels with the kernel 1 2 1, as in StableSR (Wang et
    al. 2023).

    Args:
        refined, like: [B, C, H, W].

    Returns:
        [B, C, H, W], not clamped.
    """
    return refined + _low(like - refined)


def adain_colour(refined: Tensor, like: Tensor) -> Tensor:
    """`refined` with the mean and standard deviation of each channel of `like`.

    Huang and Belongie 2017, "AdaIN".

    Args:
        refined, like: [B, C, H, W].

    Returns:
        [B, C, H, W], not clamped.
    """
    own, given = (
        torch.var_mean(picture, dim=(-2, -1), keepdim=True) for picture in (refined, like)
    )
    factor = ((given[0] + _SMALL) / (own[0] + _SMALL)).sqrt()
    return (refined - own[1]) * factor + given[1]


def _low(picture: Tensor) -> Tensor:
    """What is left after all levels, which is linear in `picture`."""
    channels = picture.shape[1]
    kernel = torch.tensor(_KERNEL, device=picture.device, dtype=picture.dtype)
    down = kernel.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
    across = kernel.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    for level in range(_LEVELS):
        step = 2**level
        wide = F.pad(picture, (step, step, step, step), mode="replicate")
        tall = F.conv2d(wide, across, dilation=step, groups=channels)
        picture = F.conv2d(tall, down, dilation=step, groups=channels)
    return picture


#: Name -> the fix: (refined, like) -> refined.
COLOURS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": wavelet_colour,
    "adain": adain_colour,
    "none": lambda refined, like: refined,
}
