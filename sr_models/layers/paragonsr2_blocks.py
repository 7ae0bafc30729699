"""The four blocks of ParagonSR2, by name: nano, stream, photo and pro, and the group around them.

A block keeps shape and size; how many there are and what stands around them is the network's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sr_models.layers.layer_scale import LayerScale
from sr_models.layers.norms import RMSNorm
from sr_models.layers.window_attention import WindowAttention
from sr_models.registry import register_block

AttentionMode = Literal["sdpa", "flex", "none"]

#: Px that a block sees to each side; photo and pro have windows on a grid, and pro global means.
REACH = {"nano": 1, "stream": 4}

#: Names under a block that tell it, its LayerScale first; the first whose names are all there.
_TELLING = {
    "pro": ("scale1.gamma", "channel_attn.fc.0.weight", "token_ca.token_dict"),
    "photo": ("scale.gamma", "norm.scale", "conv1.weight", "dw.weight", "conv2.weight"),
    "stream": ("scale.gamma", "dw1.weight", "dw3.weight", "fuse.weight", "gate.weight"),
    "nano": ("scale.gamma", "conv1.weight", "dw.weight", "conv2.weight"),
}

_EXPANSION = 2  # hidden channels over channels
_HALF_MAX = 65504.0  # largest finite float16
_REDUCTION = 16  # channels over those inside the squeeze and excitation
_TOKENS, _TOKEN_KEY = 64, 16  # of the dictionary: entries, channels they are compared in


def told_block(shapes: Mapping[str, tuple[int, ...]], channels: int) -> str | None:
    """Which of the four blocks the first one of a network's state dict is, by names and shapes."""
    for block, names in _TELLING.items():
        first = [f"body.0.blocks.0.{name}" for name in names]
        if all(name in shapes for name in first) and shapes[first[0]] == (1, channels, 1, 1):
            return block
    return None


class Group(nn.Module):
    """Blocks one after the other, without a residual around them."""

    def __init__(self, blocks: nn.Sequential, use_checkpointing: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.use_checkpointing = use_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        if not (self.use_checkpointing and torch.is_grad_enabled()):
            return self.blocks(x)
        for block in self.blocks:
            # Reentrant, the weights would get no gradients where `x` needs none.
            x = checkpoint(block, x, use_reentrant=False)
        return x


@register_block("nano")
class NanoBlock(nn.Module):
    """Pointwise, depthwise 3x3, GELU, pointwise; no norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = _EXPANSION * channels
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1)
        self.scale = LayerScale((1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        return x + self.scale(self.conv2(F.gelu(self.dw(self.conv1(x)))))


@register_block("stream")
class StreamBlock(nn.Module):
    """Depthwise 3x3 at two dilations, then a gate: one half of the channels times the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = _EXPANSION * channels
        self.dw1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.dw3 = nn.Conv2d(channels, channels, 3, padding=3, dilation=3, groups=channels)
        self.fuse = nn.Conv2d(2 * channels, channels, 1)
        self.proj = nn.Conv2d(channels, 2 * hidden, 1)
        self.gate = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.out = nn.Conv2d(hidden, channels, 1)
        self.scale = LayerScale((1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        mixed = self.fuse(torch.cat([self.dw1(x), self.dw3(x)], 1))
        a, b = self.gate(self.proj(mixed)).chunk(2, 1)
        # A product of two half-precision numbers may leave their range: it is taken in float32.
        gated = (a.float() * b.float()).clamp(-_HALF_MAX, _HALF_MAX).to(a.dtype)
        return x + self.scale(self.out(gated))


@register_block("photo")
class PhotoBlock(nn.Module):
    """Normalised convolutions, then window attention; both branches share one LayerScale.

    The shared LayerScale is how the weights were released. `attention_mode` "none" leaves the
    second branch out; `window`, `shift` and `masked` are `WindowAttention`'s.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention_mode: AttentionMode = "sdpa",
        window: int = 16,
        shift: int = 0,
        masked: bool = True,
    ) -> None:
        super().__init__()
        hidden = _EXPANSION * channels
        self.norm = RMSNorm(channels)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1)
        self.scale = LayerScale((1, channels, 1, 1))
        self.attn: WindowAttention | None = None
        if attention_mode != "none":
            self.attn_norm = RMSNorm(channels)
            self.attn = WindowAttention(
                channels, window=window, shift=shift, masked=masked, mode=attention_mode
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        x = x + self.scale(self.conv2(F.gelu(self.dw(self.conv1(self.norm(x))))))
        if self.attn is not None:
            x = x + self.scale(self.attn(self.attn_norm(x)))
        return x


@register_block("pro")
class ProBlock(nn.Module):
    """Normalised convolutions, squeeze and excitation, window attention, a dictionary of tokens.

    Each of the four branches has its own LayerScale. `attention_mode` "none" leaves only the window
    attention out; `window`, `shift` and `masked` are `WindowAttention`'s.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention_mode: AttentionMode = "sdpa",
        window: int = 16,
        shift: int = 0,
        masked: bool = True,
    ) -> None:
        super().__init__()
        hidden = _EXPANSION * channels
        self.norm1 = RMSNorm(channels)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1)
        self.scale1 = LayerScale((1, channels, 1, 1))
        self.channel_attn = SqueezeExcitation(channels)
        self.scale2 = LayerScale((1, channels, 1, 1))
        self.window_attn: WindowAttention | None = None
        if attention_mode != "none":
            self.norm3 = RMSNorm(channels)
            self.window_attn = WindowAttention(
                channels, window=window, shift=shift, masked=masked, mode=attention_mode
            )
            self.scale3 = LayerScale((1, channels, 1, 1))
        self.norm4 = RMSNorm(channels)
        self.token_ca = TokenDictionary(channels)
        self.scale4 = LayerScale((1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        x = x + self.scale1(self.conv2(F.gelu(self.dw(self.conv1(self.norm1(x))))))
        x = x + self.scale2(self.channel_attn(x))
        if self.window_attn is not None:
            x = x + self.scale3(self.window_attn(self.norm3(x)))
        return x + self.scale4(self.token_ca(self.norm4(x)))


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a factor told from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // _REDUCTION)
        self.fc = nn.Sequential(
            nn.Linear(channels, inner, bias=False),
            nn.GELU(),
            nn.Linear(inner, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape; the means are over the whole map."""
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class TokenDictionary(nn.Module):
    """Each pixel attends to learnt tokens that are the same for every picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token_dict = nn.Parameter(torch.randn(1, _TOKENS, channels) * 0.02)
        self.q_proj = nn.Linear(channels, _TOKEN_KEY)
        self.k_proj = nn.Linear(channels, _TOKEN_KEY)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape; each pixel by itself."""
        keys, values = self.k_proj(self.token_dict), self.v_proj(self.token_dict)
        queries = self.q_proj(x.permute(0, 2, 3, 1)).flatten(1, 2)
        weights = (queries @ keys.transpose(1, 2) * _TOKEN_KEY**-0.5).softmax(-1)
        found = self.out_proj(weights.to(values.dtype) @ values)
        return found.transpose(1, 2).unflatten(2, x.shape[2:])
