"""The published sizes of AetherNet 3.1.1 by name.

The network itself is `aethernet3.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sr_models.registry import register_architecture
from sr_models.students.aethernet3 import AetherNet3


@dataclass(frozen=True)
class Preset:
    """What the published variants differ in."""

    embed_dim: int
    depths: tuple[int, ...]
    mlp_ratio: float = 1.5
    lk_kernel: int = 13
    sk_kernel: int = 5
    use_channel_attn: bool = True
    use_spatial_attn: bool = False


PRESETS = {
    "aether3_mobile": Preset(64, (2,) * 4, lk_kernel=7, sk_kernel=3, use_channel_attn=False),
    "aether3_tiny": Preset(64, (3,) * 3),
    "aether3_small": Preset(96, (4,) * 4),
    "aether3_medium": Preset(128, (6,) * 4),
    "aether3_large": Preset(180, (8,) * 5, use_spatial_attn=True),
    "aether3_pro": Preset(192, (8,) * 5, 1.75, 15, use_spatial_attn=True),
    "aether3_extreme": Preset(256, (12,) * 5, 2.0, 21, use_spatial_attn=True),
}


@register_architecture("aether3_mobile")
def aether3_mobile(scale: int = 4, **options: Any) -> AetherNet3:
    """Four stages of two blocks, 64 wide, kernels of 7, no attention; `options` override."""
    return _preset("aether3_mobile", scale, options)


@register_architecture("aether3_tiny")
def aether3_tiny(scale: int = 4, **options: Any) -> AetherNet3:
    """Three stages of three blocks, 64 wide; `options` override."""
    return _preset("aether3_tiny", scale, options)


@register_architecture("aether3_small")
def aether3_small(scale: int = 4, **options: Any) -> AetherNet3:
    """Four stages of four blocks, 96 wide; `options` override."""
    return _preset("aether3_small", scale, options)


@register_architecture("aether3_medium")
def aether3_medium(scale: int = 4, **options: Any) -> AetherNet3:
    """Four stages of six blocks, 128 wide; `options` override."""
    return _preset("aether3_medium", scale, options)


@register_architecture("aether3_large")
def aether3_large(scale: int = 4, **options: Any) -> AetherNet3:
    """Five stages of eight blocks, 180 wide, both attentions; `options` override."""
    return _preset("aether3_large", scale, options)


@register_architecture("aether3_pro")
def aether3_pro(scale: int = 4, **options: Any) -> AetherNet3:
    """Five stages of eight blocks, 192 wide, kernels of 15, both attentions; `options` override."""
    return _preset("aether3_pro", scale, options)


@register_architecture("aether3_extreme")
def aether3_extreme(scale: int = 4, **options: Any) -> AetherNet3:
    """Five stages of twelve blocks, 256 wide, kernels of 21, both attentions."""
    return _preset("aether3_extreme", scale, options)


def _preset(name: str, scale: int, options: Mapping[str, Any]) -> AetherNet3:
    return AetherNet3(scale=scale, **{**asdict(PRESETS[name]), **options})
