"""Attention that phases 3 and 4 share: across tokens at one pixel, and over a large neighbourhood.

What the tokens are (bands, experts) is known to the phases alone.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel: [B, C, h, w] -> the same shape.

    Unlike batch normalisation or pooling it looks at no other pixel, so tiles do not change it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Each pixel's channels to mean 0 and variance 1, then scaled and shifted."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, eq. 1) across the tokens of each pixel.

    Queries, keys and values have no bias: one on the keys would shift all scores of a query alike,
    which the softmax undoes, and never learn.

    Args:
        width: channels of a token.
        heads: must divide `width`.
        key_width: channels of queries and keys together, over all heads.
    """

    def __init__(self, width: int, heads: int, key_width: int) -> None:
        super().__init__()
        if width % heads or key_width % heads:
            raise ValueError(f"{heads} heads do not divide widths {width} and {key_width}")
        self.heads, self.key_width = heads, key_width
        self.query_key_value = nn.Conv2d(width, 2 * key_width + width, 1, bias=False)
        self.output = nn.Conv2d(width, width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, n, width, h, w], n tokens a pixel -> what each token takes from all of them.

        Pixels stay the last axes throughout: sums over a few tokens are then long and quick.
        """
        count, width = tokens.shape[1:3]
        joined = self.query_key_value(tokens.flatten(0, 1)).unflatten(0, (-1, count))
        parts = joined.split([self.key_width, self.key_width, width], 2)
        query, key, value = (part.unflatten(2, (self.heads, -1)) for part in parts)
        scale = (self.key_width // self.heads) ** -0.5
        scores = (scale * query[:, :, None] * key[:, None]).sum(4)
        shares = scores.softmax(2)[:, :, :, :, None]  # [B, n, n, heads, 1, h, w]
        mixed = shares[:, :, 0] * value[:, None, 0]
        for other in range(1, count):
            mixed = mixed + shares[:, :, other] * value[:, None, other]
        return self.output(mixed.flatten(0, 1).flatten(1, 2)).unflatten(0, (-1, count))


class LargeKernelAttention(nn.Module):
    """x times a map of what lies around it (Guo et al. 2022, "Visual Attention Network", eq. 2).

    A depthwise 5x5, a depthwise 5x5 of dilation 4 and a 1x1: the field is exactly
    5 + 4 * 4 = 21 pixels wide, without holes, since 5 neighbouring taps bridge steps of 4.

    Args:
        width: channels.
    """

    FIELD = 21

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.far = nn.Conv2d(width, width, 5, padding=8, dilation=4, groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape; any size."""
        return x * self.mix(self.far(self.near(x)))


class LargeKernelBlock(nn.Module):
    """Norm, large-kernel attention, residual; norm, feed-forward of four times the width, residual.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.attention = LargeKernelAttention(width)
        self.norm_forward = ChannelNorm(width)
        self.widen = nn.Conv2d(width, 4 * width, 1)
        self.narrow = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape."""
        x = x + self.attention(self.norm(x))
        return x + self.narrow(F.gelu(self.widen(self.norm_forward(x))))
