"""ParagonSR: gated convolutional blocks with depthwise context of three shapes, in residual groups.

Its second generation is `paragonsr2.py`; opening weights files and training belong elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.layers.layer_scale import LayerScale
from sr_models.layers.upsamplers import conv_pixel_shuffle
from sr_models.registry import register_architecture, register_block

SCALES = (2, 3, 4, 8)


@dataclass(frozen=True)
class Preset:
    """The size of a network, in the arguments of `ParagonSR`."""

    num_feat: int
    num_groups: int
    num_blocks: int
    ffn_expansion: float = 2.0


PRESETS = {
    "paragonsr_nano": Preset(24, 3, 2, 1.5),
    "paragonsr_tiny": Preset(32, 3, 2),
    "paragonsr_tiny9": Preset(32, 3, 3),
    "paragonsr_xs": Preset(48, 4, 4),
    "paragonsr_s": Preset(64, 6, 6),
    "paragonsr_m": Preset(96, 8, 8),
    "paragonsr_l": Preset(128, 10, 10),
    "paragonsr_xl": Preset(160, 12, 12),
}


@register_architecture("paragonsr")
class ParagonSR(nn.Module):
    """Philip Hofmann's ParagonSR of 2025: names, shapes and function of the published weights.

    There is no skip from the picture itself: the output is what the last convolution says. The
    published code fuses its branches anew in every evaluation; here they stay apart until `fuse()`,
    which changes the output by rounding only. Group norm sees the whole image, so that tiles are
    not exact.

    Args:
        scale: upscaling factor, one of `SCALES`.
        num_feat: channels.
        num_groups: residual groups.
        num_blocks: blocks in a group.
        ffn_expansion: channels in a gated transform over `num_feat`.
        square_kernel_size: side of the square context, odd.
        band_kernel_size: length of the horizontal and the vertical context, odd.
        branch_ratio: channels of each of the three contexts over `num_feat`.
        fused_init: build what `fuse()` leaves.

    Raises:
        ValueError: a value that no network can have; the message names it.
    """

    feature_module = "conv_fuse"
    tileable = False
    minimum_size = 1
    multiple_of = 1

    def __init__(
        self,
        *,
        scale: int = 4,
        num_feat: int = 64,
        num_groups: int = 6,
        num_blocks: int = 6,
        ffn_expansion: float = 2.0,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
        fused_init: bool = False,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"ParagonSR: scale {scale} is not one of {SCALES}")
        if num_groups < 1 or num_blocks < 1:
            raise ValueError(
                f"ParagonSR: num_groups {num_groups} and num_blocks {num_blocks} must be 1 or more"
            )
        self.scale = scale
        block = {
            "ffn_expansion": ffn_expansion,
            "square_kernel_size": square_kernel_size,
            "band_kernel_size": band_kernel_size,
            "branch_ratio": branch_ratio,
            "fused_init": fused_init,
        }
        self.hyperparameters: dict[str, Any] = {
            "scale": scale,
            "num_feat": num_feat,
            "num_groups": num_groups,
            "num_blocks": num_blocks,
            **block,
            # As built: of all ratios that come to the same channels, the one the weights tell.
            "ffn_expansion": _ratio(int(num_feat * ffn_expansion), num_feat),
            "branch_ratio": _ratio(int(num_feat * branch_ratio), num_feat),
        }
        self.conv_in = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = nn.Sequential(
            *(ResidualGroup(num_feat, num_blocks, block) for _ in range(num_groups))
        )
        self.conv_fuse = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsampler = conv_pixel_shuffle(num_feat, num_feat, scale)
        self.conv_out = nn.Conv2d(num_feat, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] in [0, 1] to [B, 3, h·scale, w·scale], not clamped; any h and w."""
        shallow = self.conv_in(x)
        deep = self.conv_fuse(self.body(shallow))
        return self.conv_out(self.upsampler(deep + shallow))

    def fuse(self) -> Self:
        """Makes one depthwise convolution of each three, in place; a second call does nothing."""
        for module in list(self.modules()):
            if isinstance(module, GatedFFN):
                module.fuse()
        self.hyperparameters["fused_init"] = True
        return self

    @staticmethod
    def detect(state: Mapping[str, Tensor]) -> bool:
        """Whether these are a ParagonSR's tensors, fused or not."""
        shapes = {
            name: tuple(getattr(tensor, "shape", ()))
            for name, tensor in ParagonSR.canonical(state).items()
        }

        def size(name: str, axis: int) -> int:
            return (shapes.get(name) or (0,))[axis]

        width = size("conv_in.weight", 0)
        hidden = size(f"{_GATED}.project_in_g.weight", 0)
        part = size(f"{_CONTEXT}.dwconv_hw.weight", 0)
        square = size(f"{_CONTEXT}.dwconv_hw.weight", -1)
        band = size(f"{_CONTEXT}.dwconv_w.weight", -1)
        up = size("upsampler.0.weight", 0)
        expected = {
            "conv_in.weight": (width, 3, 3, 3),
            f"{_BLOCK}.ls1.gamma": (width,),
            f"{_CONTEXT}.dwconv_hw.weight": (part, 1, square, square),
            f"{_CONTEXT}.dwconv_w.weight": (part, 1, 1, band),
            f"{_CONTEXT}.dwconv_h.weight": (part, 1, band, 1),
            f"{_GATED}.project_in_g.weight": (hidden, width, 1, 1),
            f"{_GATED}.project_in_i.weight": (hidden, width, 1, 1),
            "conv_fuse.weight": (width, width, 3, 3),
            "upsampler.0.weight": (up, width, 3, 3),
            "conv_out.weight": (3, width, 3, 3),
        }
        mixers = (shapes.get(f"{_MIXER}.{name}weight") for name in ("", "conv3x3."))
        return (
            all(shapes.get(name) == shape for name, shape in expected.items())
            and (hidden, 1, 3, 3) in mixers
            and up in [width * scale**2 for scale in SCALES]
        )

    @staticmethod
    def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict without the prefix of a parallel wrapper; there are no older names."""
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}

    @staticmethod
    def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The constructor's arguments, read from the tensors of a state dict that is detected."""
        state = ParagonSR.canonical(state)
        num_feat = state["conv_in.weight"].shape[0]
        context = state[f"{_CONTEXT}.dwconv_hw.weight"]
        return {
            "scale": math.isqrt(state["upsampler.0.weight"].shape[0] // num_feat),
            "num_feat": num_feat,
            "num_groups": _children(state, "body"),
            "num_blocks": _children(state, "body.0.blocks"),
            "ffn_expansion": _ratio(state[f"{_GATED}.project_in_g.weight"].shape[0], num_feat),
            "square_kernel_size": context.shape[-1],
            "band_kernel_size": state[f"{_CONTEXT}.dwconv_w.weight"].shape[-1],
            "branch_ratio": _ratio(context.shape[0], num_feat),
            "fused_init": f"{_MIXER}.weight" in state,
        }


@register_architecture("paragonsr_nano")
def paragonsr_nano(scale: int = 4, **options: Any) -> ParagonSR:
    """0.11 M parameters at x4: video on small machines."""
    return _from_preset("paragonsr_nano", scale, options)


@register_architecture("paragonsr_tiny")
def paragonsr_tiny(scale: int = 4, **options: Any) -> ParagonSR:
    """0.21 M parameters at x4, with the two blocks a group of the released weights."""
    return _from_preset("paragonsr_tiny", scale, options)


@register_architecture("paragonsr_tiny9")
def paragonsr_tiny9(scale: int = 4, **options: Any) -> ParagonSR:
    """The tiny one as its document describes it, with three blocks a group."""
    return _from_preset("paragonsr_tiny9", scale, options)


@register_architecture("paragonsr_xs")
def paragonsr_xs(scale: int = 4, **options: Any) -> ParagonSR:
    """0.62 M parameters at x4."""
    return _from_preset("paragonsr_xs", scale, options)


@register_architecture("paragonsr_s")
def paragonsr_s(scale: int = 4, **options: Any) -> ParagonSR:
    """1.65 M parameters at x4: the one its author recommends for common graphics cards."""
    return _from_preset("paragonsr_s", scale, options)


@register_architecture("paragonsr_m")
def paragonsr_m(scale: int = 4, **options: Any) -> ParagonSR:
    """5.3 M parameters at x4."""
    return _from_preset("paragonsr_m", scale, options)


@register_architecture("paragonsr_l")
def paragonsr_l(scale: int = 4, **options: Any) -> ParagonSR:
    """13 M parameters at x4."""
    return _from_preset("paragonsr_l", scale, options)


@register_architecture("paragonsr_xl")
def paragonsr_xl(scale: int = 4, **options: Any) -> ParagonSR:
    """27 M parameters at x4."""
    return _from_preset("paragonsr_xl", scale, options)


def _from_preset(name: str, scale: int, options: dict[str, Any]) -> ParagonSR:
    return ParagonSR(**{**asdict(PRESETS[name]), "scale": scale, **options})


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
        own = {name: _double(tensor) for name, tensor in self.state_dict().items()}
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


_BLOCK = "body.0.blocks.0"  # the names by which weights are told
_CONTEXT, _GATED = f"{_BLOCK}.context", f"{_BLOCK}.transformer"
_MIXER = f"{_GATED}.spatial_mixer"


def _ratio(part: int, whole: int) -> float:
    """A ratio of which `int(whole * ratio)` is `part` again, in spite of rounding."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, math.inf)


def _children(state: Mapping[str, Tensor], path: str) -> int:
    """How many modules a list has."""
    depth = path.count(".") + 1
    return len({name.split(".")[depth] for name in state if name.startswith(f"{path}.")})


def _double(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.is_mps else tensor).double()  # MPS has no float64
