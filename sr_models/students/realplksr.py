"""RealPLKSR: partial large kernels for real-world SR, with pixel shuffle or DySample.

Compatible with the files of neosr and traiNNer-redux that normalise by groups; the variant with a
LayerNorm is spandrel's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.layers import dysample, upsamplers
from sr_models.layers.fitted import load_fitted
from sr_models.layers.told import without_prefix
from sr_models.registry import get_upsampler, register_architecture, register_block

SCALES = (1, 2, 3, 4, 8)
_GROUPS = 4  # of the published networks; no tensor's shape tells it


@dataclass(frozen=True)
class Preset:
    """Size of a published network."""

    dim: int = 64
    n_blocks: int = 28
    kernel_size: int = 17
    use_ea: bool = True


PRESETS = {
    "realplksr": Preset(),
    "realplksr_s": Preset(n_blocks=12, kernel_size=13, use_ea=False),
    "realplksr_l": Preset(dim=96),
}


@register_block("dccm")
class DCCM(nn.Sequential):
    """Doubled convolutional channel mixer: [B, C, h, w] to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Conv2d(dim, dim * 2, 3, padding=1), nn.Mish(), nn.Conv2d(dim * 2, dim, 3, padding=1)
        )
        _initialise(self[2])


@register_block("plkconv2d")
class PLKConv2d(nn.Module):
    """A large-kernel convolution of the first `dim` channels; the others pass, however many."""

    def __init__(self, dim: int, kernel_size: int = 17) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2)
        _initialise(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same, C at least `dim`."""
        dim = self.conv.in_channels
        large, rest = torch.split(x, [dim, x.shape[1] - dim], dim=1)
        return torch.cat([self.conv(large), rest], dim=1)


@register_block("ea")
class EA(nn.Module):
    """Element-wise attention: [B, C, h, w] times a map of itself in (0, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.Sigmoid())
        _initialise(self.f[0])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return x * self.f(x)


class PLKBlock(nn.Module):
    """Mixer, large kernel, attention, 1x1 refinement and GroupNorm on a residual branch."""

    def __init__(
        self, dim: int, large: int, kernel_size: int, use_ea: bool, norm_groups: int
    ) -> None:
        super().__init__()
        self.channel_mixer = DCCM(dim)
        self.lk = PLKConv2d(large, kernel_size)
        self.attn = EA(dim) if use_ea else nn.Identity()
        self.refine = nn.Conv2d(dim, dim, 1)
        self.norm = nn.GroupNorm(norm_groups, dim)
        _initialise(self.refine)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return x + self.norm(self.refine(self.attn(self.lk(self.channel_mixer(x)))))


@register_architecture("realplksr")
class RealPLKSR(nn.Module):
    """float [B, 3, h, w] in [0, 1] to [B, 3, h·scale, w·scale], not clamped; any h, w of 1 or more.

    Lee et al. 2024, "Partial Large Kernel CNNs for Efficient Super-Resolution", as neosr made it
    for real-world SR. GroupNorm looks at the whole picture, so tiles differ from it at any halo.

    Args:
        dim: channels.
        n_blocks: residual blocks.
        kernel_size: of the large convolution, odd.
        split_ratio: share of the channels that the large convolution sees.
        use_ea: element-wise attention after it.
        norm_groups: of GroupNorm; where it is not 4, the state dict keeps it as a buffer, which
            other programs refuse.
        scale: 1, 2, 3, 4 or 8; at 1 there is nothing to sample and `dysample` is `pixelshuffle`.
        dropout: of whole channels before the last convolution, in training.
        upsampler: a registered one, in any case; weights tell `pixelshuffle` and `dysample` alone.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    tileable = False
    minimum_size = 1
    multiple_of = 1

    def __init__(
        self,
        *,
        dim: int = 64,
        n_blocks: int = 28,
        kernel_size: int = 17,
        split_ratio: float = 0.25,
        use_ea: bool = True,
        norm_groups: int = _GROUPS,
        scale: int = 4,
        dropout: float = 0.0,
        upsampler: str = "pixelshuffle",
    ) -> None:
        super().__init__()
        large = math.floor(dim * split_ratio + 1e-9)
        _check(dim, n_blocks, kernel_size, large, norm_groups, scale)
        upsampler = upsampler.lower()
        upsampler = "pixelshuffle" if (scale, upsampler) == (1, "dysample") else upsampler
        self.scale = scale
        self.hyperparameters: dict[str, Any] = {
            "dim": dim,
            "n_blocks": n_blocks,
            "kernel_size": kernel_size,
            "split_ratio": large / dim,
            "use_ea": use_ea,
            "norm_groups": norm_groups,
            "scale": scale,
            "dropout": dropout,
            "upsampler": upsampler,
        }
        #: The last block: before the dropout, where features are whole.
        self.feature_module = f"feats.{n_blocks}"
        self.feats = nn.Sequential(
            nn.Conv2d(3, dim, 3, padding=1),
            *(PLKBlock(dim, large, kernel_size, use_ea, norm_groups) for _ in range(n_blocks)),
            nn.Dropout2d(dropout),  # always there: published files count it
            nn.Conv2d(dim, 3 * scale**2, 3, padding=1),
        )
        _initialise(self.feats[0])
        _initialise(self.feats[-1])
        # The two of published networks by import, so that whoever follows imports finds them.
        known = {"pixelshuffle": upsamplers.pixel_shuffle, "dysample": dysample.DySample}
        make = known.get(upsampler) or get_upsampler(upsampler)
        self.to_img = make(3 * scale**2, 3, scale)
        self.register_buffer(
            "norm_groups", torch.tensor(float(norm_groups)), persistent=norm_groups != _GROUPS
        )
        self.untold = {"norm_groups": float(norm_groups)}
        self.register_load_state_dict_pre_hook(load_fitted)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges `x`: every output pixel starts from its nearest input pixel."""
        repeated = x.repeat_interleave(self.scale**2, dim=1)
        return self.to_img(self.feats(x) + repeated)

    @staticmethod
    def detect(state: Mapping[str, Tensor]) -> bool:
        """Whether names and shapes are those of an RGB RealPLKSR with GroupNorm."""
        canonical = RealPLKSR.canonical(state)
        needed = ("feats.0", "feats.1.channel_mixer.0", "feats.1.channel_mixer.2",
                  "feats.1.lk.conv", "feats.1.refine", "feats.1.norm")  # fmt: skip
        weights = [canonical.get(f"{name}.weight") for name in needed]
        if any(w is None for w in weights) or not all(map(_NAME.fullmatch, canonical)):
            return False
        first, mixer, mixed, large, refine, norm = (
            tuple(w.shape) for w in weights if w is not None
        )
        last = canonical.get(f"feats.{_length(canonical) - 1}.weight")
        if len(first) != 4 or len(large) != 4 or last is None or last.ndim != 4:
            return False
        dim, scale = first[0], math.isqrt(last.shape[0] // 3)
        return (
            first[1:] == (3, 3, 3)
            and mixer == (2 * dim, dim, 3, 3)
            and mixed == (dim, 2 * dim, 3, 3)
            and refine == (dim, dim, 1, 1)
            and norm == (dim,)
            and large[0] == large[1] <= dim
            and large[2] == large[3]
            and scale in SCALES
            and tuple(last.shape) == (3 * scale**2, dim, 3, 3)
            and _known_sampler(canonical, scale)
        )

    @staticmethod
    def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official names: `module.` dropped, the last convolution after a dropout."""
        bare = without_prefix(state)
        last = _length(bare) - 1
        if f"feats.{last - 1}.refine.weight" not in bare:
            return bare
        old, new = f"feats.{last}.", f"feats.{last + 1}."
        return {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor
            for name, tensor in bare.items()
        }

    @staticmethod
    def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments of a state dict that `detect` accepts."""
        canonical = RealPLKSR.canonical(state)
        length, dim = _length(canonical), canonical["feats.0.weight"].shape[0]
        large = canonical["feats.1.lk.conv.weight"]
        stored = canonical.get("norm_groups")
        return {
            "dim": dim,
            "n_blocks": length - 3,
            "kernel_size": large.shape[2],
            "split_ratio": large.shape[0] / dim,
            "use_ea": "feats.1.attn.f.0.weight" in canonical,
            "norm_groups": _GROUPS if stored is None else round(float(stored)),
            "scale": math.isqrt(canonical[f"feats.{length - 1}.weight"].shape[0] // 3),
            "upsampler": "dysample" if "to_img.init_pos" in canonical else "pixelshuffle",
        }


@register_architecture("realplksr_s")
def realplksr_s(scale: int = 4, **options: Any) -> RealPLKSR:
    """12 blocks of kernel 13 without attention; `options` override the preset."""
    return RealPLKSR(**{**asdict(PRESETS["realplksr_s"]), "scale": scale, **options})


@register_architecture("realplksr_l")
def realplksr_l(scale: int = 4, **options: Any) -> RealPLKSR:
    """96 channels; `options` override the preset."""
    return RealPLKSR(**{**asdict(PRESETS["realplksr_l"]), "scale": scale, **options})


_NAME = re.compile(
    r"feats\.\d+\.((channel_mixer\.[02]|lk\.conv|attn\.f\.0|refine|norm)\.)?(weight|bias)"
    r"|to_img\.(init_pos|(offset|end_conv)\.(weight|bias)|scope\.weight)|norm_groups"
)


def _check(
    dim: int, n_blocks: int, kernel_size: int, large: int, norm_groups: int, scale: int
) -> None:
    if scale not in SCALES:
        raise ValueError(f"RealPLKSR: scale {scale} is not one of {SCALES}")
    if n_blocks < 1:
        raise ValueError(f"RealPLKSR: n_blocks {n_blocks} is less than 1")
    if kernel_size % 2 == 0:
        raise ValueError(f"RealPLKSR: kernel_size {kernel_size} is not odd")
    if not 1 <= large <= dim:
        raise ValueError(f"RealPLKSR: split_ratio gives {large} of {dim} channels, take 1 to {dim}")
    if norm_groups < 1 or dim % norm_groups:
        raise ValueError(f"RealPLKSR: dim {dim} does not divide into norm_groups {norm_groups}")


def _initialise(module: nn.Module) -> None:
    assert isinstance(module, nn.Conv2d)
    nn.init.trunc_normal_(module.weight, std=0.02)


def _length(state: Mapping[str, Tensor]) -> int:
    """One more than the highest index in `feats`."""
    indices = (re.match(r"feats\.(\d+)\.", name) for name in state)
    return max((int(found[1]) + 1 for found in indices if found), default=0)


def _known_sampler(state: Mapping[str, Tensor], scale: int) -> bool:
    """Whether there is no DySample, or the one of this scale that `dysample.py` makes."""
    position = state.get("to_img.init_pos")
    if position is None:
        return not any(name.startswith("to_img.") for name in state)
    if scale == 1:  # spandrel's has no last convolution there
        return False
    return position.numel() == 2 * dysample.groups(3, scale) * scale**2
