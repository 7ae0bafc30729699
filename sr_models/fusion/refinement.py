"""Phase 7 of a fusion: a deep refinement, edges by a Laplacian pyramid, and the global residual.

The learnt convolutions run on the LR grid, where an HR pixel is one of scale² channels; only the
coarse edges at scales that are no multiple of 4 do not fit there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.fusion.levels import LEVELS, folds, halved, on_grid, resized, zero_conv

_RATE = 0.1  # of the refinement beside the fused picture
_EDGE_RATE = 0.15
_EDGE_WIDTH = 24


class Refinement(nn.Module):
    """Six 3x3 convolutions, the middle ones in residual pairs, times 0.1; and the global residual.

    Args:
        scale: upscaling factor.
        context: channels of the maps on the LR grid that it also sees.
        width: channels.
        depth: convolutions, the first and the last included.
    """

    def __init__(self, scale: int, context: int, width: int, depth: int) -> None:
        super().__init__()
        self.scale = scale
        self.entry = nn.Conv2d(3 * scale * scale, width, 3, padding=1)
        self.context = nn.Conv2d(context, width, 1)
        self.body = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(max(0, depth - 2))
        )
        self.exit = zero_conv(width, 3 * scale * scale, 3)
        self.back_projection = BackProjection(scale)

    def forward(self, lr: Tensor, fused: Tensor, context: Tensor) -> Tensor:
        """The refined picture.

        Args:
            lr: [B, 3, h, w] in [0, 1].
            fused: [B, 3, H, W].
            context: [B, context, h, w].

        Returns:
            [B, 3, H, W], at first exactly `fused`.
        """
        x = self.entry(F.pixel_unshuffle(fused - 0.5, self.scale)) + self.context(context)
        skip = x
        for number, convolution in enumerate(self.body):
            x = convolution(F.gelu(x))
            if number % 2:
                x = skip = skip + x
        fused = fused + F.pixel_shuffle(_RATE * self.exit(F.gelu(x)), self.scale)
        return fused + self.back_projection(lr, fused)


class BackProjection(nn.Module):
    """The global residual: what LR has and the picture, made small, has not (Irani and Peleg 1991).

    A picture that is complete already gets nothing, whatever the learnt factor.

    Args:
        scale: upscaling factor.
    """

    taps: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        taps, before = _bicubic_taps(scale)
        self.register_buffer("taps", taps, persistent=False)
        self.margin = (before, len(taps) - before - scale)
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, lr: Tensor, picture: Tensor) -> Tensor:
        """factor * enlarged(LR - shrunk(picture)): [B, 3, h, w], [B, 3, H, W] -> [B, 3, H, W]."""
        missing = lr - self.shrunk(picture)
        enlarged = F.interpolate(missing, scale_factor=self.scale, mode="bilinear")
        return self.factor * enlarged

    def shrunk(self, picture: Tensor) -> Tensor:
        """Antialiased bicubic, as LR is made: [B, 3, H, W] -> [B, 3, H / scale, W / scale]."""
        across, down = self.taps[None, :], self.taps[:, None]
        rows = _mirrored(picture.shape[-2], self.margin, picture.device)
        columns = _mirrored(picture.shape[-1], self.margin, picture.device)
        x = picture[..., rows, :][..., columns]
        x = F.conv2d(x, across.expand(3, 1, -1, -1), stride=(1, self.scale), groups=3)
        return F.conv2d(x, down.expand(3, 1, -1, -1), stride=(self.scale, 1), groups=3)


class EdgeEnhancement(nn.Module):
    """Learnt additions from the edges of three levels, each lvl - blur(lvl); 0.15 of their sum.

    Args:
        scale: upscaling factor.
    """

    kernel: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale, self.folds = scale, folds(scale)
        distances = torch.arange(-2, 3).float()
        kernel = torch.exp(-0.5 * distances.square())  # sigma 1
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)
        self.blocks = nn.ModuleList(_edge_block(3 * fold * fold) for fold in self.folds)

    def forward(self, picture: Tensor) -> Tensor:
        """[B, 3, H, W] -> the same shape, at first exactly `picture`."""
        level, total = picture, torch.zeros_like(picture)
        for number, (fold, block) in enumerate(zip(self.folds, self.blocks, strict=True)):
            edges = F.pixel_unshuffle(level - self._blurred(level), fold)
            total = total + resized(F.pixel_shuffle(block(edges), fold), picture)
            if number < LEVELS - 1:
                level = halved(level, on_grid(number + 1, self.scale))
        return picture + _EDGE_RATE * total

    def _blurred(self, x: Tensor) -> Tensor:
        across, down = self.kernel[None, :], self.kernel[:, None]
        x = F.pad(x, (2, 2, 2, 2), mode="replicate")
        x = F.conv2d(x, across.expand(3, 1, -1, -1), groups=3)
        return F.conv2d(x, down.expand(3, 1, -1, -1), groups=3)


def _mirrored(size: int, margin: tuple[int, int], device: torch.device) -> Tensor:
    """Indices of a line of `size` pixels mirrored at both ends, the end pixels standing twice."""
    n = torch.arange(size, device=device)
    period = 2 * (n[-1:] + 1)
    places = torch.arange(size + sum(margin), device=device) - margin[0]
    return torch.minimum(places % period, period - 1 - places % period)


def _edge_block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, _EDGE_WIDTH, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(_EDGE_WIDTH, _EDGE_WIDTH, 3, padding=1),
        nn.GELU(),
        zero_conv(_EDGE_WIDTH, channels, 3),
    )


def _bicubic_taps(scale: int) -> tuple[Tensor, int]:
    """Keys' cubic (1981, a = -0.5) widened by `scale`, and how many taps lie before a cell."""
    centre = (scale - 1) / 2
    first, last = math.floor(centre - 2 * scale) + 1, math.ceil(centre + 2 * scale) - 1
    distances = ((torch.arange(first, last + 1, dtype=torch.float64) - centre) / scale).abs()
    inner = (1.5 * distances - 2.5) * distances.square() + 1
    outer = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    taps = torch.where(distances <= 1, inner, outer)
    return (taps / taps.sum()).float(), -first
