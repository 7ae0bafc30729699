"""Sub-pixel upsamplers: from LR-size features to pictures or features `scale` times as large.

The one that learns where to sample is `dysample.py`.
"""

from __future__ import annotations

from torch import nn

from sr_models.registry import register_upsampler


@register_upsampler("pixelshuffle")
def pixel_shuffle(channels: int, out_channels: int, scale: int) -> nn.Module:
    """[B, out·s², h, w] to [B, out, h·s, w·s] without weights (Shi et al. 2016, ESPCN).

    Raises:
        ValueError: `channels` is not `out_channels`·`scale`².
    """
    if channels != out_channels * scale**2:
        raise ValueError(
            f"pixelshuffle x{scale} to {out_channels} channels takes "
            f"{out_channels * scale**2} channels, not {channels}"
        )
    return nn.PixelShuffle(scale)


@register_upsampler("conv_pixelshuffle")
def conv_pixel_shuffle(channels: int, out_channels: int, scale: int) -> nn.Sequential:
    """A 3x3 convolution to out·s² channels, then the shuffle, in one step for every scale."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)
    )
