"""AetherNet version 1 (P. Hofmann): large depthwise kernels and gated per-pixel networks.

The later generation, whose weights have other names, is `aethernet3.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from sr_models.layers.drop_path import DropPath, linear_rates
from sr_models.layers.fitted import load_fitted
from sr_models.layers.large_kernel import ReparamLargeKernelConv, fuse_large_kernels
from sr_models.layers.stepwise_shuffle import shuffled_scale, stepwise_shuffle
from sr_models.layers.told import as_stored, length, number, restore, width_ratio, without_prefix
from sr_models.layers.truncated_init import truncated_init
from sr_models.registry import register_architecture, register_block

SCALES = (2, 3, 4, 8)
_UPSAMPLE_WIDTH = 64


@dataclass(frozen=True)
class Preset:
    """What the published variants differ in."""

    embed_dim: int
    depths: tuple[int, ...]
    mlp_ratio: float = 2.0
    lk_kernel: int = 11


PRESETS = {
    "aether_small": Preset(96, (4,) * 4),
    "aether_medium": Preset(128, (6,) * 6),
    "aether_large": Preset(180, (8,) * 8, mlp_ratio=2.5, lk_kernel=13),
}


@register_architecture("aethernet")
class AetherNet(nn.Module):
    """Float [B, 3, h, w] in [0, 1] to [B, 3, h·scale, w·scale], not clamped; any h, w >= 1.

    Exactly tileable: every norm is per pixel, so that the context of a pixel ends at `halo`, the
    receptive field: 5 LR px and half the large kernel for each block (85 px in the small variant).

    The state dict has the names of the published weights. An `img_range` other than 1 is kept in
    it as one more tensor; the two drop rates, which matter only while training, are not told by
    it, nor is `sk_kernel` in the fused form, whose `hyperparameters` therefore lack it.

    Args:
        scale: 2, 3, 4 or 8.
        in_chans: channels in and out; the mean 0.5 is taken off pictures of three only.
        embed_dim: width of the body.
        depths: blocks of each group, of which only the sum matters to the function.
        mlp_ratio: hidden width over `embed_dim`; `hyperparameters` has the ratio as built.
        drop_rate: of activations in the gated networks, while training.
        drop_path_rate: of the last block's branch while training; rises linearly from 0.
        lk_kernel: side of the large kernels, odd.
        sk_kernel: side of the small ones beside them, odd.
        img_range: factor on the centred picture.
        fused_init: builds plain convolutions, as `fuse()` leaves them.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    feature_module = "conv_after_body"
    tileable = True
    minimum_size = 1
    multiple_of = 1
    mean: Tensor
    img_range: Tensor | None

    def __init__(
        self,
        *,
        scale: int = 4,
        in_chans: int = 3,
        embed_dim: int = 128,
        depths: Sequence[int] = (6, 6, 6, 6),
        mlp_ratio: float = 2.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        lk_kernel: int = 11,
        sk_kernel: int = 3,
        img_range: float = 1.0,
        fused_init: bool = False,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale {scale} is not one of {SCALES}")
        if not depths or min(depths) < 1:
            raise ValueError(f"depths {tuple(depths)} must be one or more numbers from 1")
        hidden = int(embed_dim * mlp_ratio)
        if hidden < 1:
            raise ValueError(f"mlp_ratio {mlp_ratio} leaves no channels of {embed_dim}")
        if not img_range > 0:
            raise ValueError(f"img_range {img_range} must be positive")
        img_range = as_stored(img_range)
        self.scale = scale
        self.hyperparameters: dict[str, Any] = {
            "scale": scale,
            "in_chans": in_chans,
            "embed_dim": embed_dim,
            "depths": list(depths),
            "mlp_ratio": width_ratio(hidden, embed_dim),
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
            "lk_kernel": lk_kernel,
            "img_range": img_range,
            "fused_init": fused_init,
        }
        if not fused_init:
            self.hyperparameters["sk_kernel"] = sk_kernel
        self.halo = 5 + sum(depths) * (lk_kernel // 2)
        mean = torch.full((1, in_chans, 1, 1), 0.5 if in_chans == 3 else 0.0)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("img_range", None if img_range == 1 else torch.tensor(img_range))

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        rates = iter(linear_rates(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList(
            nn.Sequential(
                *(
                    AetherBlock(
                        embed_dim, hidden, drop_rate, next(rates), lk_kernel, sk_kernel, fused_init
                    )
                    for _ in range(depth)
                )
            )
            for depth in depths
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(embed_dim, _UPSAMPLE_WIDTH, 3, padding=1), nn.LeakyReLU(0.01)
        )
        steps, factor = (1, 3) if scale == 3 else (scale.bit_length() - 1, 2)
        self.upsample = stepwise_shuffle((_UPSAMPLE_WIDTH,) * (steps + 1), factor)
        self.conv_last = nn.Conv2d(_UPSAMPLE_WIDTH, in_chans, 3, padding=1)
        truncated_init(self)
        self.untold = {"img_range": img_range}
        self.register_load_state_dict_pre_hook(load_fitted)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges `x`."""
        x = x - self.mean
        if self.img_range is not None:
            x = x * self.img_range
        first = self.conv_first(x)
        features = first
        for group in self.layers:
            features = group(features)
        features = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        features = self.conv_after_body(features) + first
        x = self.conv_last(self.upsample(self.conv_before_upsample(features)))
        if self.img_range is not None:
            x = x / self.img_range
        return x + self.mean

    def fuse(self) -> Self:
        """Becomes plain convolutions of the same function, in place."""
        fuse_large_kernels(self)
        self.hyperparameters["fused_init"] = True
        self.hyperparameters.pop("sk_kernel", None)
        return self

    @staticmethod
    def detect(state: Mapping[str, Tensor]) -> bool:
        """Whether these are weights of this network, fused or not."""
        state = without_prefix(state)
        first, kernel, gate, before, last = (
            state.get(name)
            for name in (
                "conv_first.weight",
                _kernel_name(state),
                "layers.0.0.ffn.fc1_gate.weight",
                "conv_before_upsample.0.weight",
                "conv_last.weight",
            )
        )
        if first is None or kernel is None or gate is None or before is None or last is None:
            return False
        if first.ndim != 4 or kernel.ndim != 4 or gate.ndim != 2 or last.ndim != 4:
            return False
        width, channels = first.shape[:2]
        return (
            kernel.shape == (width, 1, kernel.shape[-1], kernel.shape[-1])
            and gate.shape[1] == width
            and before.shape == (_UPSAMPLE_WIDTH, width, 3, 3)
            and last.shape == (channels, _UPSAMPLE_WIDTH, 3, 3)
        )

    @staticmethod
    def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under the names that `load_state_dict` takes."""
        state = without_prefix(state)
        restore(state, "img_range", 1.0)
        return state

    @staticmethod
    def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments of the network that these canonical weights fit."""
        width, channels = state["conv_first.weight"].shape[:2]
        hidden = state["layers.0.0.ffn.fc1_gate.weight"].shape[0]
        groups = range(length(state, "layers"))
        options: dict[str, Any] = {
            "scale": shuffled_scale(state, "upsample", "conv_last.weight"),
            "in_chans": channels,
            "embed_dim": width,
            "depths": [length(state, f"layers.{group}") for group in groups],
            "mlp_ratio": width_ratio(hidden, width),
            "lk_kernel": state[_kernel_name(state)].shape[-1],
            "img_range": number(state["img_range"]) if "img_range" in state else 1.0,
            "fused_init": _FUSED in state,
        }
        if _SMALL in state:
            options["sk_kernel"] = state[_SMALL].shape[-1]
        return options


_LARGE = "layers.0.0.conv.lk_conv.weight"
_SMALL = "layers.0.0.conv.sk_conv.weight"
_FUSED = "layers.0.0.conv.fused_conv.weight"


def _kernel_name(state: Mapping[str, Tensor]) -> str:
    return _FUSED if _FUSED in state else _LARGE


@register_block("aether")
class AetherBlock(nn.Module):
    """x + FFN(LayerNorm(conv(x))): [B, C, h, w] to the same, one residual around everything."""

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        lk_kernel: int = 11,
        sk_kernel: int = 3,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.conv = ReparamLargeKernelConv(channels, lk_kernel, sk_kernel, fused)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.ffn = GatedFFN(channels, 2 * channels if hidden is None else hidden, drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        pixels = self.conv(x).permute(0, 2, 3, 1)
        return x + self.drop_path(self.ffn(self.norm(pixels)).permute(0, 3, 1, 2))


class GatedFFN(nn.Module):
    """fc2(GELU(gate) · main) at each pixel (Shazeer 2020, GEGLU): [..., C] to the same."""

    def __init__(self, channels: int, hidden: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1_gate = nn.Linear(channels, hidden)
        self.fc1_main = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop2 = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to the same."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1_gate(x)) * self.fc1_main(x))))


@register_architecture("aether_small")
def aether_small(scale: int = 4, **options: Any) -> AetherNet:
    """Four groups of four blocks, 96 wide; `options` override."""
    return _preset("aether_small", scale, options)


@register_architecture("aether_medium")
def aether_medium(scale: int = 4, **options: Any) -> AetherNet:
    """Six groups of six blocks, 128 wide; `options` override."""
    return _preset("aether_medium", scale, options)


@register_architecture("aether_large")
def aether_large(scale: int = 4, **options: Any) -> AetherNet:
    """Eight groups of eight blocks, 180 wide, with kernels of 13; `options` override."""
    return _preset("aether_large", scale, options)


def _preset(name: str, scale: int, options: Mapping[str, Any]) -> AetherNet:
    return AetherNet(scale=scale, **{**asdict(PRESETS[name]), **options})
