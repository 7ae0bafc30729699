"""ParagonSR2, version 11: a fixed enlargement plus the detail that a plain body of blocks adds.

The blocks are in `sr_models/layers/paragonsr2_blocks.py`, the fixed enlargement in
`sr_models/layers/magic_kernel.py`; blending frames of a video belongs to `sr_models/inference`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sr_models.layers.fitted import load_fitted
from sr_models.layers.magic_kernel import LegacyBase, MagicKernelSharp
from sr_models.layers.paragonsr2_blocks import REACH, AttentionMode, Group, told_block
from sr_models.layers.told import number, without_prefix
from sr_models.layers.upsamplers import conv_pixel_shuffle
from sr_models.registry import get_block, register_architecture

Base = Literal["mks2021", "legacy"]
Windows = Literal["masked", "legacy"]
SCALES = (2, 3, 4, 8)
RELEASED_WINDOW = 16
RELEASED_ALPHA = {"nano": 0.3, "stream": 0.0, "photo": 0.4, "pro": 0.4}  # of the legacy base
#: Names of versions 7 and 8 to those of version 11.
_RENAMED = (
    (r"^base_upsampler\.resample_conv\.", "base.blur."),
    (r"^base_upsampler\.sharpen\.", "base.sharp."),
    (r"^base\.(sharp|blur)\.conv_([hv])\.", r"base.\1.\2."),
    (r"(\.blocks\.\d+)\.net\.0\.", r"\1.conv1."),
    (r"(\.blocks\.\d+)\.net\.2\.", r"\1.dw."),
    (r"(\.blocks\.\d+)\.net\.4\.", r"\1.conv2."),
    (r"^global_detail_gain$", "detail_gain"),
    (r"^detail_upsampler\.up_conv\.", "up.0."),
    (r"^conv_fuse\.", "conv_mid."),
)


@dataclass(frozen=True)
class Preset:
    """What distinguishes the released variants."""

    block: str
    channels: int
    groups: int
    blocks: int
    detail_gain: float = 0.1


#: What others call our arguments.
_OURS = {"window_size": "window", "upscale": "scale"}

PRESETS = {
    "paragonsr2_realtime": Preset("nano", 16, 1, 3, detail_gain=0.05),
    "paragonsr2_stream": Preset("stream", 32, 2, 3),
    "paragonsr2_photo": Preset("photo", 64, 4, 4),
    "paragonsr2_pro": Preset("pro", 64, 6, 6),
}


@register_architecture("paragonsr2")
class ParagonSR2(nn.Module):
    """float [B,3,h,w] in [0,1] to [B,3,h·scale,w·scale], not clamped; any h, w >= 1.

    Released weights are those of `base="legacy"`, which brings its windows and strength along. What
    a file's names and shapes do not tell, and what differs from what they would be taken for, is
    kept in the state dict as `upsampler_alpha`, `window` or `masked`. Loading a file that says
    another value than the network was built with is an error; one that says none takes what was
    built.

    `hyperparameters` are the arguments that build the same network from its weights: without window
    attention they say `attention_mode` "none", and the arguments about windows are the defaults.
    """

    feature_module = "conv_mid"
    minimum_size = 1
    multiple_of = 1

    def __init__(
        self,
        *,
        scale: int = 4,
        block: str = "photo",  # a registered block; the four of the presets are told from weights
        channels: int = 64,
        groups: int = 4,
        blocks: int = 4,  # of each group
        detail_gain: float = 0.1,  # initial weight of the detail; learnt
        base: Base = "mks2021",  # the true kernel; "legacy" is what released weights need
        upsampler_alpha: float | None = None,  # 3 digits; None: mks2021 1, legacy the released one
        attention_mode: AttentionMode | None = "sdpa",  # None is "none"
        export_safe: bool = False,  # another word for attention_mode="none"
        window: int = RELEASED_WINDOW,
        windows: Windows | None = None,  # see WindowAttention; None: "legacy" with the legacy base
        use_checkpointing: bool = False,  # each block is computed again in the backward pass
        **unknown: Any,  # refused: presets hand on what they are given
    ) -> None:
        super().__init__()
        for name in unknown:
            hint = f", it is called {_OURS[name]}" if name in _OURS else ""
            raise TypeError(f"paragonsr2 has no argument {name!r}{hint}")
        attention_mode = attention_mode or "none"
        _one_of("scale", scale, SCALES)
        _one_of("base", base, get_args(Base))
        _one_of("attention_mode", attention_mode, get_args(AttentionMode))
        for name, count in (("channels", channels), ("groups", groups), ("blocks", blocks)):
            if count < 1:
                raise ValueError(f"paragonsr2: {name} {count} must be at least 1")
        block = block.lower()
        usual_alpha, usual_windows = _usual(block, base)
        alpha = usual_alpha if upsampler_alpha is None else round(float(upsampler_alpha), 3)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"paragonsr2: upsampler_alpha {alpha} must be finite and at least 0")
        windows = usual_windows if windows is None else windows
        _one_of("windows", windows, get_args(Windows))

        make = get_block(block)
        attends = "attention_mode" in inspect.signature(make).parameters
        if export_safe or not attends:
            attention_mode = "none"
        if attention_mode == "none":
            window, windows = RELEASED_WINDOW, usual_windows
        self.scale = scale
        self.tileable = block in REACH  # attention's windows lie on a grid, pro pools globally
        #: LR px around a tile that decide about it, where `tileable`.
        self.halo = groups * blocks * REACH.get(block, 0) + 4  # both bases see 4
        self.hyperparameters: dict[str, Any] = {
            "scale": scale, "block": block, "channels": channels, "groups": groups,
            "blocks": blocks, "detail_gain": detail_gain, "base": base, "upsampler_alpha": alpha,
            "attention_mode": attention_mode, "export_safe": False, "window": window,
            "windows": windows, "use_checkpointing": use_checkpointing,
        }  # fmt: skip

        self.base: nn.Module = (LegacyBase if base == "legacy" else MagicKernelSharp)(scale, alpha)
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential()
        for group in range(groups):
            inner = nn.Sequential()
            for index in range(group * blocks, (group + 1) * blocks):
                attention = {
                    "attention_mode": attention_mode,
                    "window": window,
                    "shift": window // 2 if index % 2 else 0,
                    "masked": windows == "masked",
                }
                inner.append(make(channels, **(attention if attends else {})))
            self.body.append(Group(inner, use_checkpointing))
        self.conv_mid = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = conv_pixel_shuffle(channels, channels, scale)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)
        self.detail_gain = nn.Parameter(torch.tensor(float(detail_gain)))

        words = (
            ("upsampler_alpha", alpha, usual_alpha),
            ("window", window, RELEASED_WINDOW),
            ("masked", windows == "masked", usual_windows == "masked"),
        )
        for name, value, usual in words:
            if value != usual:
                self.register_buffer(name, torch.tensor(float(value)))
        told = words if attention_mode != "none" else words[:1]
        self.untold = {name: float(value) for name, value, _ in told}
        self.register_load_state_dict_pre_hook(load_fitted)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarges `lr`."""
        return self.reconstruct(lr, self.features(lr))

    def features(self, lr: Tensor) -> Tensor:
        """The last feature map of LR size, [B, channels, h, w]: what a video mode blends."""
        return self.conv_mid(self.body(self.conv_in(lr)))

    def reconstruct(self, lr: Tensor, features: Tensor) -> Tensor:
        """The enlarged picture from `lr` and its `features`, as they are or blended."""
        return self._enlarge(lr) + self.detail_gain * self.conv_out(self.up(features))

    def _enlarge(self, lr: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(lr.device.type):
            return self.base(lr)
        with torch.autocast(lr.device.type, enabled=False):
            return self.base(lr)  # eight bits of mantissa would be grey levels of the picture

    @staticmethod
    def detect(state: Mapping[str, Tensor]) -> bool:
        """Whether names and shapes are those of a ParagonSR2 (of version 11 or renamed to it)."""
        state = ParagonSR2.canonical(state)
        shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
        width = (*shapes.get("conv_in.weight", ()), 0)[0]
        expected: dict[str, set[tuple[int, ...]]] = {
            "conv_in.weight": {(width, 3, 3, 3)},
            "conv_mid.weight": {(width, width, 3, 3)},
            "up.0.weight": {(width * scale**2, width, 3, 3) for scale in SCALES},
            "conv_out.weight": {(3, width, 3, 3)},
            "detail_gain": {(), (1,)},
        }
        told = all(name in shapes and shapes[name] in sizes for name, sizes in expected.items())
        return told and told_block(shapes, width) is not None

    @staticmethod
    def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict under our names; version 11's stay as they are.

        Versions 7 and 8 differ in more than names where they had other blocks: then a strict load
        says what is missing.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in without_prefix(state).items():
            for pattern, replacement in _RENAMED:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
        for part in ("sharp", "blur"):  # once each kernel was kept only as convolutions
            line = renamed.get(f"base.{part}.h.weight")
            if line is not None:
                renamed.setdefault(f"base.{part}.kernel", line[0].flatten())
        return renamed

    @staticmethod
    def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments of the network whose weights these are.

        Raises:
            ValueError: they are not of a ParagonSR2.
        """
        state = ParagonSR2.canonical(state)
        if not ParagonSR2.detect(state):
            raise ValueError("paragonsr2: the state dict has not the names and shapes of one")
        channels = state["conv_in.weight"].shape[0]
        block = told_block({name: tuple(t.shape) for name, t in state.items()}, channels)
        assert block is not None
        places = [re.match(r"body\.(\d+)\.blocks\.(\d+)\.", name) for name in state]
        base: Base = "legacy" if "base.blur.h.weight" in state else "mks2021"
        alpha, windows = _usual(block, base)
        if "upsampler_alpha" in state:
            alpha = round(number(state["upsampler_alpha"]), 3)
        if "masked" in state:
            windows = "masked" if float(state["masked"]) > 0.5 else "legacy"
        attends = any(name.endswith("attn.qkv.weight") for name in state)
        return {
            "scale": math.isqrt(state["up.0.weight"].shape[0] // channels),
            "block": block,
            "channels": channels,
            "groups": 1 + max(int(place[1]) for place in places if place),
            "blocks": 1 + max(int(place[2]) for place in places if place),
            "detail_gain": round(float(state["detail_gain"]), 6),
            "base": base,
            "upsampler_alpha": alpha,
            "attention_mode": "sdpa" if attends else "none",
            "window": round(float(state.get("window", RELEASED_WINDOW))),
            "windows": windows,
        }


@register_architecture("paragonsr2_realtime")
def paragonsr2_realtime(scale: int = 4, **options: Any) -> ParagonSR2:
    """16 channels, 3 nano blocks: for the highest frame rates."""
    return _preset("paragonsr2_realtime", scale, options)


@register_architecture("paragonsr2_stream")
def paragonsr2_stream(scale: int = 4, **options: Any) -> ParagonSR2:
    """32 channels, 2 groups of 3 gated blocks with dilated convolutions."""
    return _preset("paragonsr2_stream", scale, options)


@register_architecture("paragonsr2_photo")
def paragonsr2_photo(scale: int = 4, **options: Any) -> ParagonSR2:
    """64 channels, 4 groups of 4 blocks with window attention."""
    return _preset("paragonsr2_photo", scale, options)


@register_architecture("paragonsr2_pro")
def paragonsr2_pro(scale: int = 4, **options: Any) -> ParagonSR2:
    """64 channels, 6 groups of 6 blocks with window, channel and dictionary attention."""
    return _preset("paragonsr2_pro", scale, options)


def _preset(name: str, scale: int, options: Mapping[str, Any]) -> ParagonSR2:
    return ParagonSR2(**{**asdict(PRESETS[name]), "scale": scale, **options})


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"paragonsr2: {name} {value!r} is not one of {', '.join(map(str, allowed))}"
        )


def _usual(block: str, base: Base) -> tuple[float, Windows]:
    """Strength of the base and windows of a file that has no word of them."""
    if base == "mks2021":
        return 1.0, "masked"  # the true kernel
    return RELEASED_ALPHA.get(block, 0.0), "legacy"
