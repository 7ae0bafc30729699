"""Attention as factors on a feature map: one a channel, or one a pixel.

Attention between pixels is in `window_attention.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Weighs channels by their means over the whole map (Hu et al. 2018, squeeze-and-excitation).

    The means are global, so that a tile gives other factors than the image.

    Args:
        channels: of the map.
        reduction: the inner width is `channels` // `reduction`.

    Raises:
        ValueError: there are fewer channels than `reduction`.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(
                f"channel attention with reduction {reduction} takes no fewer channels: {channels}"
            )
        inner = channels // reduction
        self.fc = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return x * self.fc(x.mean((2, 3), keepdim=True))


class SpatialAttention(nn.Module):
    """Weighs pixels by the maximum and mean over channels around them (Woo et al. 2018, CBAM).

    Args:
        kernel: side of the neighbourhood, odd.
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        pooled = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), 1)
        return x * torch.sigmoid(self.conv(pooled))
