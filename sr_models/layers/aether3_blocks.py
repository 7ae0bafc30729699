"""What one block of AetherNet 3 is made of, and how it mixes the features of its stages.

The network around them, and what weights tell of it, is `students/aethernet3.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Aether3Block(nn.Module):
    """x + res_scale · attention(ffn(norm(conv(x)))): [B, C, h, w] to the same."""

    def __init__(
        self,
        conv: nn.Module,
        norm: nn.Module,
        ffn: nn.Module,
        channel_attn: nn.Module,
        spatial_attn: nn.Module,
        drop_path: nn.Module,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.ffn = ffn
        self.channel_attn = channel_attn
        self.spatial_attn = spatial_attn
        self.drop_path = drop_path

    def forward(self, x: Tensor, res_scale: Tensor) -> Tensor:
        """[B, C, h, w] to the same; `res_scale` is one number."""
        branch = self.spatial_attn(self.channel_attn(self.ffn(self.norm(self.conv(x)))))
        return x + self.drop_path(branch) * res_scale


class GatedConvFFN(nn.Module):
    """out(SiLU(gate · temperature) · main) of 1x1 convolutions (Shazeer 2020, SwiGLU)."""

    def __init__(self, channels: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))
        self.conv_gate = nn.Conv2d(channels, hidden, 1)
        self.conv_main = nn.Conv2d(channels, hidden, 1)
        self.act = nn.SiLU()
        self.drop = nn.Dropout(drop)
        self.conv_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        gate = self.act(self.conv_gate(x) * self.temperature)
        return self.conv_out(self.drop(gate * self.conv_main(x)))


class StageFusion(nn.Module):
    """The stages' features side by side, mixed by a 1x1 convolution, plus a learnt offset."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.error_comp = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.fusion_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """A list of [B, part, h, w], C channels together, to [B, C, h, w]."""
        return self.fusion_conv(torch.cat(list(features), 1)) + self.error_comp
