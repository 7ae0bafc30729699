"""Normalisations over the channels of a feature map, computed in float32 whatever the map's type.

GroupNorm and BatchNorm are torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divides each pixel by the root mean square of its channels (Zhang and Sennrich 2019, eq. 4).

    Args:
        channels: of the map.
        eps: added to the mean square, so that a black pixel stays zero.

    The state dict has `scale` and `bias`, [C, 1, 1] each.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape and type."""
        wide = x.float()
        mean_square = wide.square().mean(1, keepdim=True)
        return (self.scale * (wide * torch.rsqrt(mean_square + self.eps)) + self.bias).to(x.dtype)
