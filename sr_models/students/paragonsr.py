"""ParagonSR: gated convolutional blocks with depthwise context of three shapes, in residual groups.

Its second generation is `paragonsr2.py`; opening weights files and training belong elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import Tensor, nn

from sr_models.layers.fitted import load_fitted
from sr_models.layers.paragonsr_blocks import GatedFFN, ResidualGroup
from sr_models.layers.told import without_prefix
from sr_models.layers.upsamplers import conv_pixel_shuffle
from sr_models.registry import register_architecture

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
        self.register_load_state_dict_pre_hook(load_fitted)

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
        return without_prefix(state)

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
