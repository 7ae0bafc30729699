"""Phase 4 of a fusion: experts' features learn from each other, agree, and modulate the pictures.

Only experts that have features take part; the pictures of the others pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.fusion.attention import ChannelNorm, LargeKernelAttention, TokenAttention

_HEADS = 8
_STRENGTH = 0.2  # a picture is multiplied by 1 - half of this up to 1 + half of it
_GROUPS = 4  # of the consensus convolution: a quarter of the weights of a full one


class Collaboration(nn.Module):
    """Aligned features, attention across experts, a consensus, and a factor for each HR pixel.

    The large-kernel attention acts on the consensus, which all experts share.

    Args:
        channels: expert name -> channels of its features, in the order of the experts.
        scale: upscaling factor.
        width: channels that all features are brought to.
    """

    def __init__(self, channels: Mapping[str, int], scale: int, width: int) -> None:
        super().__init__()
        self.scale = scale
        self.names = tuple(channels)
        # One channel more: how strong the features are, which the norm takes away.
        self.align = nn.ModuleList(nn.Conv2d(c + 1, width, 1) for c in channels.values())
        self.norm_across = ChannelNorm(width)
        # A single expert has nobody to attend to.
        self.across = (
            TokenAttention(width, _HEADS, _HEADS * max(1, width // (4 * _HEADS)))
            if len(channels) > 1
            else None
        )
        self.norm_around = ChannelNorm(width)
        self.around = LargeKernelAttention(width)
        self.refine = nn.Conv2d(width, width, 3, padding=1, groups=_GROUPS)
        self.settle = nn.Conv2d(width, width, 1)
        self.modulate = nn.ModuleList(_modulation(width, scale) for _ in channels)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the experts agree on, and how to modulate their pictures.

        Args:
            features: name -> [B, C, h, w]; any range, since they are normalised.

        Returns:
            The consensus [B, width, h, w], and name -> factor [B, 3, scale h, scale w] around 1:
            1 + 0.2 (m - 0.5) with m in (0, 1), at first exactly 1.
        """
        count = len(self.names)
        aligned = torch.stack(
            [
                align(_normalised(features[name]))
                for name, align in zip(self.names, self.align, strict=True)
            ],
            1,
        )
        maps = self.norm_across(aligned.flatten(0, 1)).unflatten(0, (-1, count))
        if self.across is not None:
            maps = aligned + self.across(maps)
        mean = maps.mean(1)
        consensus = mean + self.settle(F.gelu(self.refine(mean)))
        consensus = consensus + self.around(self.norm_around(consensus))
        factors = {}
        for index, (name, modulate) in enumerate(zip(self.names, self.modulate, strict=True)):
            m = F.pixel_shuffle(modulate(maps[:, index] + consensus), self.scale)
            factors[name] = 1 + _STRENGTH * (m.sigmoid() - 0.5)
        return consensus, factors


def _normalised(features: Tensor) -> Tensor:
    """Each pixel's features to mean square 1, and the logarithm of what they were divided by.

    Experts differ a hundredfold in the size of their features.
    """
    strength = (features.square().mean(1, keepdim=True) + 1e-8).sqrt()
    return torch.cat([features / strength, strength.log()], 1)


def _modulation(width: int, scale: int) -> nn.Sequential:
    last = nn.Conv2d(32, 3 * scale * scale, 1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Conv2d(width, 32, 1), nn.GELU(), last)
