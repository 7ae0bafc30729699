"""Fusion, first form: a gate that weighs frozen experts per pixel and adds a small residual.

It only combines pictures that experts have made; running the experts is `experts/running.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.fusion.experts import check_names, check_pictures, expert_mean
from sr_models.fusion.levels import excess

#: Experts differ by about a hundredth; this brings what the trunk sees of it near one.
_CONTRAST = 16.0
#: Slows the residual down beside the gate: at full rate it learns the training set's noise first,
#: which cost 0.1 dB on Set5 after training on 80 patches.
_RESIDUAL_RATE = 0.1


class GateFusion(nn.Module):
    """Per-pixel softmax weights over experts, and a residual; both start at exactly nothing.

    The output is `mean + sum((w - 1/n) * (expert - mean)) + residual` with `mean` as
    `expert_mean` defines it. A fresh network has w = 1/n and residual = 0 bit for bit, so its
    output is `expert_mean` (`torch.equal`). Everything is computed at LR resolution, where an HR
    pixel is one of scale² channels, from LR, from how each expert deviates from the mean and from
    the mean's own detail. No statistics of the whole image: a tile with `halo` LR pixels around it
    gives the same pixels as the whole.

    Args:
        experts: names, at least one, all different; their order is that of the weights.
        scale: upscaling factor.
        width: channels of the trunk.
        depth: 3x3 convolutions of the trunk, at least one.

    Raises:
        ValueError: an argument is out of range or a name is there twice.
    """

    def __init__(self, experts: Sequence[str], scale: int, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        if scale < 1 or width < 1 or depth < 1:
            raise ValueError(
                f"scale {scale}, width {width}, depth {depth}: each must be at least 1"
            )
        self.experts = check_names(experts)
        self.scale = scale
        cells = scale * scale
        n = len(self.experts)
        self.entry = nn.Conv2d(3 + cells * (n + 1), width, 1)
        self.trunk = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.gate = nn.Conv2d(width, n * cells, 1)
        self.residual = nn.Conv2d(width, 3 * cells, 1)
        for last in (self.gate, self.residual):
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)

    @property
    def halo(self) -> int:
        """LR pixels around a tile on which its output depends."""
        return len(self.trunk)

    def forward(self, lr: Tensor, sr: Mapping[str, Tensor]) -> Tensor:
        """Fuses the experts' pictures.

        Args:
            lr: [B, 3, h, w] in [0, 1].
            sr: expert name -> its SR [B, 3, scale h, scale w], about [0, 1], not clamped; the
                order of the mapping does not matter.

        Returns:
            [B, 3, scale h, scale w], not clamped.

        Raises:
            ValueError: names are missing or unknown, or a picture has another size.
        """
        check_pictures(lr, sr, self.experts, self.scale)
        mean = expert_mean(sr, self.experts)
        deviations = [sr[name] - mean for name in self.experts]
        features = self._features(lr, mean, deviations)
        shares = excess(F.pixel_shuffle(self.gate(features), self.scale))
        output = mean + F.pixel_shuffle(_RESIDUAL_RATE * self.residual(features), self.scale)
        for index, deviation in enumerate(deviations):
            output = output + shares[:, index : index + 1] * deviation
        return output

    def _features(self, lr: Tensor, mean: Tensor, deviations: list[Tensor]) -> Tensor:
        grey = mean.mean(1, keepdim=True)
        detail = grey - F.interpolate(F.avg_pool2d(grey, self.scale), scale_factor=self.scale)
        seen = torch.cat([detail, *(d.mean(1, keepdim=True) for d in deviations)], 1)
        seen = F.pixel_unshuffle(seen * _CONTRAST, self.scale)
        x = self.entry(torch.cat([lr - 0.5, seen], 1))
        for convolution in self.trunk:
            x = x + convolution(F.relu(x))
        return F.relu(x)
