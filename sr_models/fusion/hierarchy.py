"""Phase 5 of a fusion: experts weighed at 1/4, 1/2 and full resolution, and routed by frequency.

Works on how each expert deviates from their mean; the features stay on the LR grid throughout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.fusion.levels import (
    LEVELS,
    excess,
    folds,
    halved,
    on_grid,
    resized,
    weighed,
    zero_conv,
)

#: Experts differ by about a hundredth; this brings what the network sees of it near one.
CONTRAST = 16.0
_SHARE = 0.7  # of the hierarchy at first; the routing has the rest


class Hierarchy(nn.Module):
    """Laplacian pyramid fusion (Burt and Adelson 1983), weights learnt for each level and pixel.

    Args:
        experts: how many.
        scale: upscaling factor.
        guidance: channels of the guidance.
        consensus: channels of the consensus, 0 without one.
        width: channels of the features.
    """

    def __init__(
        self, experts: int, scale: int, guidance: int, consensus: int, width: int = 48
    ) -> None:
        super().__init__()
        self.scale, self.width = scale, width
        self.folds = folds(scale)
        self.entry = nn.Conv2d(guidance + consensus, width, 1)
        self.stages = nn.ModuleList(
            Stage(experts, fold, width) for fold in reversed(self.folds)
        )  # coarse to fine
        self.routing = None
        if experts > 1:
            self.routing = nn.Sequential(
                nn.Conv2d(guidance, 64, 1), nn.GELU(), zero_conv(64, experts * scale * scale)
            )
            self.share = nn.Parameter(torch.tensor(math.log(_SHARE / (1 - _SHARE))))

    def forward(
        self, mean: Tensor, deviations: Tensor, guidance: Tensor, consensus: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The fused picture and the features behind it.

        Args:
            mean: [B, 3, H, W], of the experts' pictures.
            deviations: [B, n, 3, H, W], of each picture from the mean.
            guidance: [B, guidance, h, w].
            consensus: [B, consensus, h, w] or None.

        Returns:
            [B, 3, H, W], at first exactly `mean`, and [B, width, h, w].
        """
        x = self.entry(guidance if consensus is None else torch.cat([guidance, consensus], 1))
        levels, details = self._pyramid(mean, deviations)
        total: Tensor | None = None
        for level, stage in zip(reversed(range(LEVELS)), self.stages, strict=True):
            x, added = stage(x, levels[level], details[level], on_grid(level, self.scale))
            total = added if total is None else added + resized(total, added)
        assert total is not None
        if self.routing is None:
            return mean + total, x
        shares = excess(F.pixel_shuffle(self.routing(guidance), self.scale))
        share = self.share.sigmoid()
        return mean + share * total + (1 - share) * weighed(shares, deviations), x

    def _pyramid(self, mean: Tensor, deviations: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Bands of the deviations [B, n, 3, ...] and detail [B, 1, ...] by level, full first."""
        count = deviations.shape[1]
        pictures = [deviations.flatten(1, 2)]
        greys = [mean.mean(1, keepdim=True)]
        for level in range(1, LEVELS):
            even = on_grid(level, self.scale)
            pictures.append(halved(pictures[-1], even))
            greys.append(halved(greys[-1], even))
        bands, details = [], []
        # Not strict: neighbours, so the lists without their first are one shorter.
        for fine, coarse, grey, blurred in zip(
            pictures, pictures[1:], greys, greys[1:], strict=False
        ):
            bands.append((fine - resized(coarse, fine)).unflatten(1, (count, 3)))
            details.append(grey - resized(blurred, grey))
        bands.append(pictures[-1].unflatten(1, (count, 3)))
        details.append(greys[-1] - 0.5)
        return bands, details


class Stage(nn.Module):
    """One level: sees its bands, passes a residual block and a spatial gate, gives its weights.

    Args:
        experts: how many.
        fold: side of the cell of this level's pixels that one LR pixel holds.
        width: channels of the features.
    """

    def __init__(self, experts: int, fold: int, width: int) -> None:
        super().__init__()
        cell = fold * fold
        self.fold = fold
        self.see = nn.Conv2d((experts + 1) * cell, width, 1)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Sequential(
            nn.Conv2d(width, width // 4, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 4, 1, 3, padding=1),
        )
        self.weights = zero_conv(width, experts * cell) if experts > 1 else None
        self.residual = zero_conv(width, 3 * cell)

    def forward(
        self, x: Tensor, bands: Tensor, detail: Tensor, on_grid: bool
    ) -> tuple[Tensor, Tensor]:
        """The features after this level, and what it adds at this level's resolution.

        Args:
            x: [B, width, h, w] on the LR grid.
            bands: [B, n, 3, H', W'] of the deviations, at this level's resolution.
            detail: [B, 1, H', W'] of the mean.
            on_grid: whether H', W' are `fold` times h, w.

        Returns:
            [B, width, h, w] and [B, 3, H', W'].
        """
        seen = torch.cat([detail, bands.mean(2) * CONTRAST], 1)
        if not on_grid:
            seen = resized(seen, x)
        x = x + self.see(F.pixel_unshuffle(seen, self.fold))
        x = x + self.second(F.gelu(self.first(F.gelu(x))))
        x = x * self.gate(x).sigmoid()
        added = self._unfolded(0.1 * self.residual(x), detail, on_grid)
        if self.weights is not None:
            logits = self._unfolded(self.weights(x), detail, on_grid)
            added = added + weighed(excess(logits), bands)
        return x, added

    def _unfolded(self, folded: Tensor, like: Tensor, on_grid: bool) -> Tensor:
        unfolded = F.pixel_shuffle(folded, self.fold)
        return unfolded if on_grid else resized(unfolded, like)
