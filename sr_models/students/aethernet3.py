"""AetherNet generation 3.1.1 (P. Hofmann): stages whose features are fused, norms that become
plain factors.

Its weights fit no other generation: version 1 is `aethernet.py`, and earlier 3.x files, which have
no `scale_tensor` and compute another function, are not read. The named sizes are in
`aethernet3_presets.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sr_models.layers.aether3_blocks import Aether3Block, GatedConvFFN, StageFusion
from sr_models.layers.deployment_norm import DeploymentNorm, LayerNorm2d, fuse_norms
from sr_models.layers.drop_path import DropPath, linear_rates
from sr_models.layers.fitted import load_fitted
from sr_models.layers.large_kernel import ReparamLargeKernelConv, fuse_large_kernels
from sr_models.layers.light_attention import ChannelAttention, SpatialAttention
from sr_models.layers.stepwise_shuffle import shuffled_scale, stepwise_shuffle
from sr_models.layers.told import as_stored, length, number, restore, width_ratio, without_prefix
from sr_models.layers.truncated_init import truncated_init
from sr_models.registry import register_architecture

SCALES = (2, 3, 4, 8)
NORMS = ("deployment", "layernorm")


def usual_res_scale(embed_dim: int) -> float:
    """The factor on residuals of the published variants of this width; no tensor tells it."""
    return 0.2 if embed_dim <= 64 else 0.1


@register_architecture("aethernet3")
class AetherNet3(nn.Module):
    """Float [B, 3, h, w] in [0, 1] to [B, 3, h·scale, w·scale], not clamped; any h, w >= 1.

    Tileable only without channel attention, whose means are global; then the context of a pixel
    ends at `halo`, the receptive field: 5 LR px, and for each block half the large kernel and, with
    spatial attention, 3 more.

    The state dict has the names of the published weights. An `img_range` other than 1 and a
    `res_scale` other than the usual one are kept in it as one more tensor each; `drop` and
    `drop_path_rate`, which matter only while training, are not told by it, nor is `sk_kernel` in
    the fused form, whose `hyperparameters` therefore lack it.

    Args:
        scale: 2, 3, 4 or 8.
        in_chans: channels in and out.
        embed_dim: width of the body.
        depths: blocks of each stage; the stages' features are fused after the last.
        mlp_ratio: hidden width over `embed_dim`; `hyperparameters` has the ratio as built.
        drop: rate of dropped activations in the gated networks, while training.
        drop_path_rate: of the last block's branch while training; rises linearly from 0.
        lk_kernel: side of the large kernels, odd.
        sk_kernel: side of the small ones beside them, odd.
        img_range: largest value of the pictures, in and out, of a network that was trained so.
        use_channel_attn: factors a channel in each block.
        use_spatial_attn: factors a pixel in each block.
        norm_type: `deployment`, or `layernorm`, which is per pixel and is not fused.
        res_scale: factor on each block's branch; None for the usual one of this width.
        fused_init: builds plain convolutions and factors, as `fuse()` leaves them.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    feature_module = "conv_after_body"
    minimum_size = 1
    multiple_of = 1
    scale_tensor: Tensor
    mean: Tensor
    img_range: Tensor | None
    res_scale: Tensor

    def __init__(
        self,
        *,
        scale: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (4, 4, 4, 4),
        mlp_ratio: float = 1.5,
        drop: float = 0.0,
        drop_path_rate: float = 0.1,
        lk_kernel: int = 13,
        sk_kernel: int = 5,
        img_range: float = 1.0,
        use_channel_attn: bool = True,
        use_spatial_attn: bool = False,
        norm_type: str = "deployment",
        res_scale: float | None = None,
        fused_init: bool = False,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale {scale} is not one of {SCALES}")
        if not depths or min(depths) < 1:
            raise ValueError(f"depths {tuple(depths)} must be one or more numbers from 1")
        if embed_dim < max(8, len(depths)):
            raise ValueError(f"embed_dim {embed_dim} must be at least 8 and the number of stages")
        hidden = int(embed_dim * mlp_ratio)
        if hidden < 1:
            raise ValueError(f"mlp_ratio {mlp_ratio} leaves no channels of {embed_dim}")
        if not img_range > 0:
            raise ValueError(f"img_range {img_range} must be positive")
        if norm_type not in NORMS:
            raise ValueError(f"norm_type {norm_type!r} is not one of {NORMS}")
        usual = usual_res_scale(embed_dim)
        img_range = as_stored(img_range)
        res_scale = usual if res_scale is None else as_stored(res_scale)
        self.scale = scale
        self.hyperparameters: dict[str, Any] = {
            "scale": scale,
            "in_chans": in_chans,
            "embed_dim": embed_dim,
            "depths": list(depths),
            "mlp_ratio": width_ratio(hidden, embed_dim),
            "drop": drop,
            "drop_path_rate": drop_path_rate,
            "lk_kernel": lk_kernel,
            "img_range": img_range,
            "use_channel_attn": use_channel_attn,
            "use_spatial_attn": use_spatial_attn,
            "norm_type": norm_type,
            "res_scale": res_scale,
            "fused_init": fused_init,
        }
        if not fused_init:
            self.hyperparameters["sk_kernel"] = sk_kernel
        self.tileable = not use_channel_attn
        self.halo = 5 + sum(depths) * (lk_kernel // 2 + 3 * use_spatial_attn)
        self.register_buffer("scale_tensor", torch.tensor(scale))
        self.register_buffer("mean", torch.full((1, in_chans, 1, 1), 0.5))
        self.register_buffer("img_range", None if img_range == 1 else torch.tensor(img_range))
        self.register_buffer("res_scale", torch.tensor(res_scale), persistent=res_scale != usual)

        def norm() -> nn.Module:
            if norm_type == "layernorm":
                return LayerNorm2d(embed_dim)
            return DeploymentNorm(embed_dim, fused=fused_init)

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        rates = iter(linear_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Aether3Block(
                    ReparamLargeKernelConv(embed_dim, lk_kernel, sk_kernel, fused_init),
                    norm(),
                    GatedConvFFN(embed_dim, hidden, drop),
                    ChannelAttention(embed_dim) if use_channel_attn else nn.Identity(),
                    SpatialAttention() if use_spatial_attn else nn.Identity(),
                    DropPath(next(rates)),
                )
                for _ in range(depth)
            )
            for depth in depths
        )
        self.fusion_convs = nn.ModuleList(
            nn.Conv2d(embed_dim, part, 1) for part in _parts(embed_dim, len(depths))
        )
        self.quant_fusion_layer = StageFusion(embed_dim)
        self.norm = norm()
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1), nn.LeakyReLU(0.01)
        )
        widths = _upsample_widths(embed_dim, scale)
        self.upsample = nn.ModuleDict({"blocks": stepwise_shuffle(widths, 3 if scale == 3 else 2)})
        self.conv_last = nn.Conv2d(widths[-1], in_chans, 3, padding=1)
        truncated_init(self)
        self.untold = {"img_range": img_range, "res_scale": res_scale}
        self.register_load_state_dict_pre_hook(load_fitted)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges `x`."""
        if self.img_range is not None:
            x = x / self.img_range
        first = self.conv_first(x - self.mean)
        features, of_stages = first, []
        for stage, part in zip(self.stages, self.fusion_convs, strict=True):
            for block in stage.children():
                features = block(features, self.res_scale)
            of_stages.append(part(features))
        body = self.norm(self.quant_fusion_layer(of_stages)) + first
        body = self.conv_after_body(body) + body
        x = self.conv_last(self.upsample["blocks"](self.conv_before_upsample(body))) + self.mean
        return x if self.img_range is None else x * self.img_range

    def fuse(self) -> Self:
        """Becomes plain convolutions and factors of the eval-mode function, in place."""
        fuse_large_kernels(self)
        fuse_norms(self)
        self.hyperparameters["fused_init"] = True
        self.hyperparameters.pop("sk_kernel", None)
        return self

    @staticmethod
    def detect(state: Mapping[str, Tensor]) -> bool:
        """Whether these are weights of this network, fused or not."""
        state = without_prefix(state)
        first, kernel, gate, error, scale = (
            state.get(name)
            for name in (
                "conv_first.weight",
                _kernel_name(state),
                _GATE,
                "quant_fusion_layer.error_comp",
                "scale_tensor",
            )
        )
        if first is None or kernel is None or gate is None or error is None or scale is None:
            return False
        if first.ndim != 4 or kernel.ndim != 4 or "conv_last.weight" not in state:
            return False
        width = first.shape[0]
        return (
            kernel.shape == (width, 1, kernel.shape[-1], kernel.shape[-1])
            and gate.shape[1:] == (width, 1, 1)
            and error.shape == (1, width, 1, 1)
            and scale.numel() == 1
        )

    @staticmethod
    def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under the names that `load_state_dict` takes."""
        state = without_prefix(state)
        for name in ("pt_version", "model_version"):  # notes of the original's release files
            state.pop(name, None)
        restore(state, "img_range", 1.0)
        if "conv_first.weight" in state:
            restore(state, "res_scale", usual_res_scale(state["conv_first.weight"].shape[0]))
        return state

    @staticmethod
    def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments of the network that these canonical weights fit."""
        width, channels = state["conv_first.weight"].shape[:2]
        stages = range(length(state, "stages"))
        res_scale = state.get("res_scale")
        options: dict[str, Any] = {
            "scale": shuffled_scale(state, "upsample.blocks", "conv_last.weight"),
            "in_chans": channels,
            "embed_dim": width,
            "depths": [length(state, f"stages.{stage}") for stage in stages],
            "mlp_ratio": width_ratio(state[_GATE].shape[0], width),
            "lk_kernel": state[_kernel_name(state)].shape[-1],
            "img_range": number(state["img_range"]) if "img_range" in state else 1.0,
            "use_channel_attn": f"{_BLOCK}.channel_attn.fc.0.weight" in state,
            "use_spatial_attn": f"{_BLOCK}.spatial_attn.conv.weight" in state,
            "norm_type": NORMS[state[f"{_BLOCK}.norm.weight"].ndim == 1],
            "res_scale": usual_res_scale(width) if res_scale is None else number(res_scale),
            "fused_init": _FUSED in state,
        }
        if _SMALL in state:
            options["sk_kernel"] = state[_SMALL].shape[-1]
        return options


_BLOCK = "stages.0.0"
_GATE = f"{_BLOCK}.ffn.conv_gate.weight"
_LARGE = f"{_BLOCK}.conv.lk_conv.weight"
_SMALL = f"{_BLOCK}.conv.sk_conv.weight"
_FUSED = f"{_BLOCK}.conv.fused_conv.weight"


def _kernel_name(state: Mapping[str, Tensor]) -> str:
    return _FUSED if _FUSED in state else _LARGE


def _parts(width: int, stages: int) -> list[int]:
    """`width` as a sum of as many nearly equal numbers, the larger ones first."""
    return [width // stages + (i < width % stages) for i in range(stages)]


def _upsample_widths(width: int, scale: int) -> list[int]:
    """Channels before and after each shuffle: halved each time, at least 32 at the end."""
    last = max(32, width // max(1, scale // 2) & -2)
    steps = 1 if scale == 3 else scale.bit_length() - 1
    return [*(width // 2**step for step in range(steps)), last]
