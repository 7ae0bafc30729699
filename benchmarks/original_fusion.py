"""The fusion network that ours is measured against: 1,457,793 parameters with four experts.

It has the shape and the measured behaviour of the original, defects too, each named where it is; it
is written from a description of its layers, and nothing else in this project uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of the features of HAT-L, DRCT-L, GRL-B and EDSR-L, in the original's order.
FEATURES = {"hat": 180, "drct": 180, "grl": 180, "edsr": 256}
SCALE = 4
_BLOCK = 8
_DB4 = pywt.Wavelet("db4")


class OriginalFusion(nn.Module):
    """LR, the experts' pictures and their features to one picture.

    The original has four experts and LR of 64x64 alone: phase 5 is written for 64, 128 and 256 px,
    and another size is an error there. Here those are LR, 2 LR and 4 LR, so that other crops can be
    compared; at 64 it computes the same. Likewise it goes by name where the original goes by the
    position of an expert in a fixed list, and takes any number of experts.

    Args:
        features: expert -> channels of its features.
    """

    def __init__(self, features: Mapping[str, int] = FEATURES) -> None:
        super().__init__()
        self.experts = tuple(features)
        n = len(self.experts)
        self.freq_decomp = FrequencyDecomposition()
        self.cross_band = CrossBand()
        self.collaborative = Collaborative(features)
        self.multi_res = MultiResolution(n)
        self.freq_weight_conv = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GELU(), nn.Conv2d(16, n, 1))
        self.dynamic_selector = DynamicSelector(n)
        inner = [layer for _ in range(4) for layer in (_conv(128, 128), nn.GELU())]
        self.refine = nn.Sequential(_conv(3, 128), nn.GELU(), *inner, _conv(128, 3))
        self.edge_enhance = EdgeEnhancement()
        self.residual_scale = nn.Parameter(torch.tensor(0.1))

    def forward(
        self, lr: Tensor, sr: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> Tensor:
        """Fuses the experts' pictures.

        Args:
            lr: [B, 3, h, w] in [0, 1], h and w at least 8.
            sr: expert -> [B, 3, 4h, 4w].
            features: expert -> [B, C, h, w].

        Returns:
            [B, 3, 4h, 4w], clamped to [0, 1].
        """
        routing = self.cross_band(self.freq_decomp(lr))
        factors = self.collaborative([features[name] for name in self.experts])
        # Defect: a clamp inside the network stops the gradient wherever an expert over- or
        # undershoots.
        experts = torch.stack(
            [
                (sr[name] * (1 + 0.2 * (factor - 0.5))).clamp(0, 1)
                for name, factor in zip(self.experts, factors, strict=True)
            ],
            1,
        )
        hierarchical = self.multi_res(experts.flatten(1, 2), lr.shape[-2:])
        weights = self.freq_weight_conv(_resize(routing, experts.shape[-2:])).softmax(1)
        fused = 0.7 * hierarchical + 0.3 * _weighted(experts, weights)

        # Defect: the selector sees the routing picture, not LR.
        gates, difficulty = self.dynamic_selector(routing)
        gates, difficulty = (_resize(x, experts.shape[-2:]) for x in (gates, difficulty))
        # Defect: dividing by the sum once more undoes the floor of 0.3 under it.
        dynamic = _weighted(experts, gates) / (gates.sum(1, keepdim=True) + 1e-8)
        blend = 0.3 + 0.4 * difficulty
        fused = (1 - blend) * fused + blend * dynamic

        fused = self.edge_enhance(fused + 0.1 * self.refine(fused))
        # Defects: a tenth of LR is added to a picture that is complete without it, which makes it
        # 10 % brighter, and the last clamp stops the gradient where that leaves the range.
        return (fused + self.residual_scale * _resize(lr, fused.shape[-2:])).clamp(0, 1)


class FrequencyDecomposition(nn.Module):
    """Phase 2: nine bands of LR [B, 3, h, w]: DCT three, wavelet four, Fourier two."""

    dct: Tensor
    thirds: Tensor
    wavelets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.dct_scale = nn.Parameter(torch.ones(3))
        self.dwt_scale = nn.Parameter(torch.ones(4))
        self.fft_scale = nn.Parameter(torch.ones(2))
        axis = (torch.arange(64.0) - 32) / 32
        radius = torch.hypot(axis[:, None], axis[None, :])
        self.mask_logits = nn.Parameter(3 * (0.5 - radius)[None, None])
        self.temperature = nn.Parameter(torch.tensor(5.0))
        self.register_buffer("dct", _dct_matrix())
        self.register_buffer("thirds", _zigzag_thirds())
        self.register_buffer("wavelets", _db4_filters())

    def forward(self, lr: Tensor) -> list[Tensor]:
        """[B, 3, h, w] -> nine of the same size."""
        return [*self._cosine(lr), *self._wavelet(lr), *self._fourier(lr)]

    def _cosine(self, lr: Tensor) -> list[Tensor]:
        b, c, h, w = lr.shape
        padded = F.pad(lr, (0, -w % _BLOCK, 0, -h % _BLOCK), mode="reflect")
        rows, columns = padded.shape[-2] // _BLOCK, padded.shape[-1] // _BLOCK
        blocks = padded.view(b, c, rows, _BLOCK, columns, _BLOCK).transpose(3, 4)
        spectrum = self.dct @ blocks @ self.dct.T
        bands = []
        for third, scale in zip(self.thirds, self.dct_scale, strict=True):
            # Defect: the thirds of the zigzag are fixed, with hard edges.
            band = self.dct.T @ (spectrum * third) @ self.dct
            bands.append(scale * band.transpose(3, 4).reshape(padded.shape)[..., :h, :w])
        return bands

    def _wavelet(self, lr: Tensor) -> list[Tensor]:
        # Defect: seven pixels of padding on either side where a transform of this stride has three,
        # so that a band of 20 px is stretched over 32 px and what it shows is shifted by 1.5 px.
        b, c, h, w = lr.shape
        padded = F.pad(lr, (7, 7, 7, 7), mode="reflect")
        found = F.conv2d(padded, self.wavelets.repeat(c, 1, 1, 1), stride=2, groups=c)
        bands = _resize(found, (h, w)).view(b, c, 4, h, w).unbind(2)
        return [scale * band for scale, band in zip(self.dwt_scale, bands, strict=True)]

    def _fourier(self, lr: Tensor) -> list[Tensor]:
        # Defect: the mask has its centre in the middle, the spectrum has frequency zero in its
        # corner: the mean of the picture counts as high.
        spectrum = torch.fft.rfft2(lr, norm="ortho")
        low = _resize(self.mask_logits, lr.shape[-2:])[..., : spectrum.shape[-1]]
        low = torch.sigmoid(self.temperature.clamp(min=1) * low)
        masks = zip(self.fft_scale, (low, 1 - low), strict=True)
        return [s * torch.fft.irfft2(spectrum * m, lr.shape[-2:], norm="ortho") for s, m in masks]


class CrossBand(nn.Module):
    """Phase 3: nine bands look at each other per pixel; three of them make the routing picture."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.band_proj = nn.Conv2d(3, width, 1)
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.lka = LargeKernelBlock(width)
        self.out_proj = nn.Conv2d(width, 3, 1)

    def forward(self, bands: list[Tensor]) -> Tensor:
        """Nine [B, 3, h, w] -> [B, 3, h, w]."""
        stacked = torch.stack(bands, 1)
        b, n, _, h, w = stacked.shape
        tokens = self.band_proj(stacked.flatten(0, 1)).view(b, n, -1, h, w)
        tokens = tokens.permute(0, 3, 4, 1, 2).reshape(b * h * w, n, -1)
        tokens = tokens + _attend(self.attention, self.norm(tokens))
        maps = tokens.view(b, h, w, n, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        seen = self.out_proj(self.lka(maps)).view_as(stacked) + stacked
        # Defect: the guidance that should join the three transforms is the three DCT bands alone.
        return seen[:, :3].sum(1)


class Collaborative(nn.Module):
    """Phase 4: features of the experts look at each other; one factor a colour and expert."""

    def __init__(self, features: Mapping[str, int], width: int = 128) -> None:
        super().__init__()
        self.align = nn.ModuleList(nn.Conv2d(c, width, 1) for c in features.values())
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, 8, dropout=0.1, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.lka = LargeKernelBlock(width)
        # Defect: the mean over the whole picture leaves three numbers an expert.
        self.modulation = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 32, 1),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(32, 3, 1),
                nn.Sigmoid(),
            )
            for _ in features
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Of each expert [B, C, h, w] -> [B, 3, 1, 1] in 0 to 1."""
        aligned = [layer(f) for layer, f in zip(self.align, features, strict=True)]
        b, c, h, w = aligned[0].shape
        tokens = torch.stack(aligned, 1).permute(0, 3, 4, 1, 2).reshape(b * h * w, -1, c)
        tokens = tokens + _attend(self.attention, self.norms[0](tokens))
        tokens = tokens + self.ffn(self.norms[1](tokens))
        maps = tokens.view(b, h, w, -1, c).permute(0, 3, 4, 1, 2)
        seen = self.lka(maps.flatten(0, 1)).view_as(maps).unbind(1)
        return [layer(f) for layer, f in zip(self.modulation, seen, strict=True)]


class LargeKernelBlock(nn.Module):
    """Large-kernel attention and a two-layer network, each beside a skip, at a tenth at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Defect: batch norm, whose output depends on the other samples of a batch.
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.scales = nn.ParameterList(torch.tensor(0.1) for _ in range(2))
        # Defect: without dilation, 5x5 and 1x21 by 21x1 reach 25 pixels, not 21.
        self.lka = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
            nn.Conv2d(width, width, (1, 21), padding=(0, 10), groups=width, bias=False),
            nn.Conv2d(width, width, (21, 1), padding=(10, 0), groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.Sigmoid(),
        )
        self.ffn = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same."""
        normed = self.norms[0](x)
        x = x + self.scales[0] * normed * self.lka(normed)
        return x + self.scales[1] * self.ffn(self.norms[1](x))


class MultiResolution(nn.Module):
    """Phase 5: the experts' pictures at LR, 2 LR and 4 LR, each step seeing the one before."""

    def __init__(self, experts: int, width: int = 64) -> None:
        super().__init__()
        colours = 3 * experts
        self.stages = nn.ModuleList(
            [
                Stage(colours, width, width),
                Stage(width + colours, width, width),
                Stage(width + colours, width, width // 2),
            ]
        )
        self.residual_weights = nn.ParameterList(torch.tensor(0.2) for _ in range(2))
        self.to_rgb = nn.Sequential(_conv(width // 2, 16), nn.GELU(), _conv(16, 3), nn.Sigmoid())

    def forward(self, experts: Tensor, size: Sequence[int]) -> Tensor:
        """[B, 3 n, 4h, 4w] and (h, w) -> [B, 3, 4h, 4w] in 0 to 1."""
        x = self.stages[0](_resize(experts, size))
        for factor, stage, weight in zip(
            (2, 4), self.stages[1:], self.residual_weights, strict=True
        ):
            target = [factor * side for side in size]
            up = _resize(x, target)
            x = stage(torch.cat([up, _resize(experts, target)], 1))
            x = x + weight * up[:, : x.shape[1]]
        # Defect: the picture comes from a sigmoid, not from what the experts say.
        return self.to_rgb(x)


class Stage(nn.Module):
    """Two convolutions, a gate for each pixel and a residual block."""

    def __init__(self, entry: int, width: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(entry, width), nn.GELU(), _conv(width, out), nn.GELU())
        self.gate = nn.Sequential(
            nn.Conv2d(out, out // 4, 1), nn.GELU(), nn.Conv2d(out // 4, 1, 1), nn.Sigmoid()
        )
        self.block = nn.Sequential(
            _conv(out, out, bias=False), nn.GELU(), _conv(out, out, bias=False)
        )
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, entry, H, W] -> [B, out, H, W]."""
        x = self.body(x)
        x = x * self.gate(x)
        return x + self.scale * self.block(x)


class DynamicSelector(nn.Module):
    """Phase 6: how difficult a pixel is, and which experts it gets."""

    def __init__(self, experts: int, width: int = 32) -> None:
        super().__init__()

        def trunk() -> list[nn.Module]:
            return [_conv(3, width), nn.ReLU(), _conv(width, width), nn.ReLU()]

        self.difficulty = nn.Sequential(*trunk(), _conv(width, 1), nn.Sigmoid())
        self.gates = nn.Sequential(*trunk(), nn.Conv2d(width, experts, 1))
        self.temperature = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, h, w] -> gates [B, n, h, w] and difficulty [B, 1, h, w]."""
        difficulty = self.difficulty(x)
        threshold = 0.7 - 0.5 * difficulty
        gates = torch.sigmoid(self.temperature * (self.gates(x) - threshold))
        return gates / (gates.sum(1, keepdim=True) + 1e-8).clamp(min=0.3), difficulty


class EdgeEnhancement(nn.Module):
    """Phase 7b: a Laplacian pyramid of three levels, each refined, joined and added."""

    gauss: Tensor

    def __init__(self, width: int = 32, levels: int = 3) -> None:
        super().__init__()
        self.refiners = nn.ModuleList(EdgeRefiner(width) for _ in range(levels))
        self.level_weights = nn.Parameter(torch.ones(levels))
        self.fusion = nn.Sequential(_conv(levels * width, width), nn.GELU(), _conv(width, 3))
        self.gate = nn.Sequential(_conv(6, 16), nn.GELU(), _conv(16, 1), nn.Sigmoid())
        self.edge_strength = nn.Parameter(torch.tensor(0.15))
        line = torch.exp(-((torch.arange(5.0) - 2) ** 2) / (2 * 1.5**2))
        kernel = torch.outer(line, line) / line.sum() ** 2
        self.register_buffer("gauss", kernel.expand(3, 1, 5, 5).clone())

    def forward(self, sr: Tensor) -> Tensor:
        """[B, 3, H, W] -> the same, clamped to [0, 1]."""
        levels, rest = [], sr
        for _ in self.refiners[1:]:
            blurred = F.conv2d(F.pad(rest, (2, 2, 2, 2), mode="reflect"), self.gauss, groups=3)
            levels.append(rest - blurred)
            rest = F.avg_pool2d(blurred, 2)
        levels.append(rest)  # Defect: a low-pass picture, refined as if it were edges.
        shares = self.level_weights.softmax(0)
        refined = [
            share * _resize(refine(level), sr.shape[-2:])
            for share, refine, level in zip(shares, self.refiners, levels, strict=True)
        ]
        edge = self.fusion(torch.cat(refined, 1))
        gate = self.gate(torch.cat([sr, edge], 1))
        # Defect: this clamp too stops the gradient.
        return (sr + gate * self.edge_strength * edge).clamp(0, 1)


class EdgeRefiner(nn.Module):
    """Three convolutions with a skip, weighed for each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, width), nn.GELU(), _conv(width, width), nn.GELU(), _conv(width, width)
        )
        self.skip = nn.Conv2d(3, width, 1)
        self.attention = nn.Sequential(
            nn.Conv2d(width, width // 4, 1), nn.GELU(), _conv(width // 4, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H, W]."""
        x = self.body(x) + self.skip(x)
        return x * self.attention(x)


def _conv(channels: int, out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, bias=bias)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _attend(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    # Without the weights themselves: the faster of the two ways that torch has.
    found: Tensor = attention(tokens, tokens, tokens, need_weights=False)[0]
    return found


def _weighted(experts: Tensor, weights: Tensor) -> Tensor:
    """[B, n, 3, H, W] and [B, n, H, W] -> [B, 3, H, W]."""
    return (experts * weights[:, :, None]).sum(1)


def _dct_matrix() -> Tensor:
    """Orthonormal DCT-II, [frequency, position]."""
    k = torch.arange(_BLOCK, dtype=torch.float64)
    matrix = torch.cos(torch.pi * (2 * k[None] + 1) * k[:, None] / (2 * _BLOCK))
    matrix *= (2 / _BLOCK) ** 0.5
    matrix[0] /= 2**0.5
    return matrix.float()


def _zigzag_thirds() -> Tensor:
    """[3, 8, 8]: the first 21, the next 21 and the last 22 frequencies of the zigzag."""

    def place(cell: tuple[int, int]) -> tuple[int, int]:
        diagonal = sum(cell)
        return diagonal, cell[0] if diagonal % 2 else cell[1]

    order = sorted(((y, x) for y in range(_BLOCK) for x in range(_BLOCK)), key=place)
    thirds = torch.zeros(3, _BLOCK, _BLOCK)
    for rank, (y, x) in enumerate(order):
        thirds[min(rank // 21, 2), y, x] = 1
    return thirds


def _db4_filters() -> Tensor:
    """[4, 1, 8, 8]: LL, LH, HL, HH."""
    low, high = np.array(_DB4.dec_lo), np.array(_DB4.dec_hi)
    pairs = ((low, low), (low, high), (high, low), (high, high))
    return torch.tensor(np.stack([np.outer(y, x) for y, x in pairs]), dtype=torch.float32)[:, None]
