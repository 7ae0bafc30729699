"""DySample: an upsampler that learns where in the LR features each output pixel is sampled.

Liu et al. 2023, "Learning to Upsample by Learning to Sample", static scope with a gating branch;
the fixed sub-pixel upsamplers are `upsamplers.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.registry import register_upsampler

GROUPS = 4  # of channels that share their sampling positions; at odd scales one an output channel
_REACH = 0.5  # LR px: static scope factor, so that neighbouring positions can just touch


@register_upsampler("dysample")
class DySample(nn.Module):
    """[B, channels, h, w] to [B, out_channels, h·s, w·s]; positions outside stop at the border.

    Coordinates come from running sums over the input, never from its shape as a number, so that no
    exporter can bake a size in.

    Args:
        channels: in; a multiple of the number of groups.
        out_channels: of the 1x1 convolution after sampling.
        scale: 2 or more.

    Raises:
        ValueError: `scale` is less than 2 or `channels` cannot be divided into the groups.
    """

    init_pos: Tensor

    def __init__(self, channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        if scale < 2:
            raise ValueError(f"dysample: scale {scale} does not enlarge, take pixelshuffle")
        self.scale, self.groups = scale, groups(out_channels, scale)
        if channels % self.groups:
            raise ValueError(f"dysample: {channels} channels do not divide into {self.groups}")
        positions = 2 * self.groups * scale**2  # across and down, a group and sub-pixel each
        self.end_conv = nn.Conv2d(channels, out_channels, 1)
        self.offset = nn.Conv2d(channels, positions, 1)
        self.scope = nn.Conv2d(channels, positions, 1, bias=False)
        nn.init.trunc_normal_(self.offset.weight, std=0.02)
        nn.init.zeros_(self.scope.weight)
        self.register_buffer("init_pos", _sub_pixels(scale, self.groups))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] to [B, out_channels, h·s, w·s], in the dtype of `x`."""
        offset = self.offset(x) * self.scope(x).sigmoid() * _REACH + self.init_pos
        # 8 bits of mantissa cannot tell one pixel from the next: positions are fp32 at least.
        wide = torch.promote_types(x.dtype, torch.float32)
        across, down = offset.to(wide).chunk(2, dim=1)
        ones = torch.ones_like(x[:1, :1], dtype=torch.int64)  # integer sums are deterministic
        across = _normalised(across, ones[:, :, :1, :].cumsum(3).to(wide))
        down = _normalised(down, ones[:, :, :, :1].cumsum(2).to(wide))
        grid = torch.stack(
            (F.pixel_shuffle(across, self.scale), F.pixel_shuffle(down, self.scale)), dim=-1
        ).flatten(0, 1)  # [B·groups, h·s, w·s, 2]
        sampled = F.grid_sample(
            x.to(wide).unflatten(1, (self.groups, -1)).flatten(0, 1),
            grid,
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        joined = sampled.unflatten(0, (-1, self.groups)).flatten(1, 2)
        return self.end_conv(joined.to(x.dtype))


def groups(out_channels: int, scale: int) -> int:
    """Number of groups that the published networks use at this scale."""
    return out_channels if scale % 2 else GROUPS


def _sub_pixels(scale: int, groups: int) -> Tensor:
    """Where a sub-pixel lies from its LR pixel's centre (LR px): [1, 2·groups·s², 1, 1]."""
    steps = torch.arange((-scale + 1) / 2, (scale - 1) / 2 + 1) / scale
    across = steps.repeat(scale)
    down = steps.repeat_interleave(scale)
    return torch.cat([across.repeat(groups), down.repeat(groups)]).view(1, -1, 1, 1)


def _normalised(offset: Tensor, count: Tensor) -> Tensor:
    """Offsets (px) from the pixels numbered by `count` (from 1) to grid_sample's [-1, 1]."""
    return 2 * (count - 0.5 + offset) / count.max() - 1
