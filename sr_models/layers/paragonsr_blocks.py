"""The blocks of ParagonSR: depthwise context and a gated transform whose branches can be merged.

How many there are and what stands around them is `sr_models/students/paragonsr.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.layers.double_precision import double
from sr_models.layers.layer_scale import LayerScale
from sr_models.registry import register_block


class ResidualGroup(nn.Module):
    """Blocks in sequence, and the input added to what they say; `options` are a block's."""

    def __init__(self, channels: int, num_blocks: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ParagonBlock(channels, **options) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return self.blocks(x) + x


@register_block("paragonblock")
class ParagonBlock(nn.Module):
    """Context, then gated transform, each normalised before and scaled by channel after.

    Args:
        channels: in and out.
        ffn_expansion: as `GatedFFN` has it, like `fused_init`.
        context: arguments of `InceptionDWConv2d`.
    """

    def __init__(
        self,
        channels: int,
        *,
        ffn_expansion: float = 2.0,
        fused_init: bool = False,
        **context: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, channels)
        self.context = InceptionDWConv2d(channels, **context)
        self.norm2 = nn.GroupNorm(1, channels)
        self.transformer = GatedFFN(channels, expansion_ratio=ffn_expansion, fused_init=fused_init)
        self.ls1 = LayerScale((channels,))
        self.ls2 = LayerScale((channels,))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        x = x + self.ls1(self.context(self.norm1(x)))
        return x + self.ls2(self.transformer(self.norm2(x)))


@register_block("inceptiondwconv2d")
class InceptionDWConv2d(nn.Module):
    """Depthwise context on a few channels, the others as they are (Yu et al. 2024, InceptionNeXt).

    Channels come out in the order untouched, square, horizontal, vertical.

    Raises:
        ValueError: an even kernel, or `branch_ratio` gives a branch no channel or too many.
    """

    def __init__(
        self,
        channels: int,
        *,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
    ) -> None:
        super().__init__()
        part = int(channels * branch_ratio)
        if not 1 <= part <= channels // 3:
            raise ValueError(
                f"branch_ratio {branch_ratio} of {channels} channels is {part} for each of three "
                f"branches: it must be 1 to {channels // 3}"
            )
        sizes = {"square_kernel_size": square_kernel_size, "band_kernel_size": band_kernel_size}
        for name, size in sizes.items():
            if size % 2 != 1:
                raise ValueError(f"{name} {size} must be odd")
        square, band = square_kernel_size, band_kernel_size
        self.dwconv_hw = _depthwise(part, (square, square))
        self.dwconv_w = _depthwise(part, (1, band))
        self.dwconv_h = _depthwise(part, (band, 1))
        self.parts = [channels - 3 * part, part, part, part]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        rest, square, horizontal, vertical = torch.split(x, self.parts, dim=1)
        return torch.cat(
            (rest, self.dwconv_hw(square), self.dwconv_w(horizontal), self.dwconv_h(vertical)), 1
        )


@register_block("gatedffn")
class GatedFFN(nn.Module):
    """Pointwise transform whose value is gated by mish of its spatially mixed other half.

    Raises:
        ValueError: `expansion_ratio` leaves no channel.
    """

    spatial_mixer: nn.Module

    def __init__(
        self, channels: int, *, expansion_ratio: float = 2.0, fused_init: bool = False
    ) -> None:
        super().__init__()
        hidden = int(channels * expansion_ratio)
        if hidden < 1:
            raise ValueError(f"expansion_ratio {expansion_ratio} of {channels} channels is none")
        self.project_in_g = nn.Conv2d(channels, hidden, 1)
        self.project_in_i = nn.Conv2d(channels, hidden, 1)
        self.spatial_mixer = _depthwise(hidden, (3, 3)) if fused_init else ReparamConvV2(hidden)
        self.project_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        gate = F.mish(self.spatial_mixer(self.project_in_g(x)))
        return self.project_out(gate * self.project_in_i(x))

    def fuse(self) -> None:
        """Makes one convolution of the mixer's three, in place; a second call does nothing."""
        if isinstance(self.spatial_mixer, ReparamConvV2):
            self.spatial_mixer = self.spatial_mixer.fused()


@register_block("reparamconvv2")
class ReparamConvV2(nn.Module):
    """Sum of depthwise 3x3, 1x1 and again 3x3 convolutions (after Ding et al. 2021, RepVGG).

    The second 3x3 adds no expressivity, only another start: the released weights have it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3x3 = _depthwise(channels, (3, 3))
        self.conv1x1 = _depthwise(channels, (1, 1))
        self.dw_conv3x3 = _depthwise(channels, (3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return self.conv3x3(x) + self.conv1x1(x) + self.dw_conv3x3(x)

    def fused(self) -> nn.Conv2d:
        """One 3x3 depthwise convolution of the same function, summed in float64."""
        like = self.conv3x3.weight
        with torch.random.fork_rng(devices=[]):  # its random start must not cost whoever fuses
            conv = _depthwise(len(like), (3, 3)).to(like)
        own = {name: double(tensor) for name, tensor in self.state_dict().items()}
        centre = F.pad(own["conv1x1.weight"], (1, 1, 1, 1))
        conv.load_state_dict(
            {
                "weight": own["conv3x3.weight"] + own["dw_conv3x3.weight"] + centre,
                "bias": own["conv3x3.bias"] + own["dw_conv3x3.bias"] + own["conv1x1.bias"],
            }
        )
        return conv.requires_grad_(like.requires_grad).train(self.training)


def _depthwise(channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)
