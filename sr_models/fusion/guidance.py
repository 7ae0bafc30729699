"""Phase 3 of a fusion: the bands look at each other, then at their surroundings, to give guidance.

The bands come from `frequency.py`; guidance has the size of LR and steers the later phases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_models.fusion.attention import ChannelNorm, LargeKernelBlock, TokenAttention

_HEADS = 4
_TOKEN = 16  # channels of a band in the attention across bands


class Guidance(nn.Module):
    """Tiers of LR, and what attention makes of the bands, as a map on the LR grid.

    Args:
        bands: bands of LR, 0 for none.
        tiers: channels of the tiers.
        width: channels of the guidance.
        attentive: with cross-band and large-kernel attention; without, only the tiers projected.
    """

    def __init__(self, bands: int, tiers: int, width: int, attentive: bool) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3 + tiers, width, 1)
        self.cross_band = CrossBandAttention(bands, width) if attentive and bands > 1 else None
        self.surroundings = LargeKernelBlock(width) if attentive else None

    def forward(self, lr: Tensor, bands: Tensor | None, tiers: Tensor | None) -> Tensor:
        """Guidance [B, width, h, w].

        Args:
            lr: [B, 3, h, w] in [0, 1].
            bands: [B, n, 3, h, w], or None.
            tiers: [B, tiers, h, w], or None.
        """
        x = self.entry(lr - 0.5 if tiers is None else torch.cat([lr - 0.5, tiers], 1))
        if self.cross_band is not None and bands is not None:
            x = x + self.cross_band(bands)
        return x if self.surroundings is None else self.surroundings(x)


class CrossBandAttention(nn.Module):
    """Attention with 4 heads across the bands of each pixel, and a softmax gate over the bands.

    Each band keeps itself and adds what it learnt from the others, times its gate; the gates then
    also weigh the bands in the sum that goes on.

    Args:
        bands: how many.
        width: channels of the result.
    """

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.bands = bands
        self.project = nn.Conv2d(3, _TOKEN, 1)
        # Which band a token is: the projection is the same for all.
        self.identity = nn.Parameter(torch.randn(bands, _TOKEN, 1, 1) * 0.02)
        self.norm = ChannelNorm(_TOKEN)
        self.attention = TokenAttention(_TOKEN, _HEADS, _TOKEN // 2)
        self.gate = nn.Conv2d(_TOKEN, 1, 1, bias=False)  # a bias would move all gates alike
        self.output = nn.Conv2d(_TOKEN, width, 1)

    def forward(self, bands: Tensor) -> Tensor:
        """[B, bands, 3, h, w] -> [B, width, h, w]."""
        tokens = self.project(bands.flatten(0, 1)).unflatten(0, (-1, self.bands)) + self.identity
        normed = self.norm(tokens.flatten(0, 1)).unflatten(0, (-1, self.bands))
        learnt = self.attention(normed)
        scores = self.gate((tokens + learnt).flatten(0, 1)).unflatten(0, (-1, self.bands))
        gates = scores.softmax(1)
        return self.output((gates * (tokens + gates * learnt)).sum(1) * self.bands)
