"""Phase 2 of a fusion: LR taken apart into nine frequency bands, weighed, fused to three tiers.

Three transforms (DCT, wavelet, Fourier) give a low, a middle and a high band each, whose sum is LR.
All are matrix products and real convolutions, so that any size can be exported.
"""

from __future__ import annotations

import math

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRANSFORMS = ("dct", "wavelet", "fourier")
TIERS = ("low", "middle", "high")
BANDS = len(TRANSFORMS) * len(TIERS)

_BLOCK = 8  # side of a DCT block (px)
_SHARPNESS = 50.0  # tau of the DCT masks: a step over about a tenth of the zigzag


class FrequencyBands(nn.Module):
    """The nine bands of LR, each weighed by squeeze-and-excitation, and the three fused tiers.

    Args:
        wavelet: name of a discrete wavelet of PyWavelets.

    Raises:
        ValueError: there is no such wavelet.
    """

    def __init__(self, wavelet: str = "haar") -> None:
        super().__init__()
        self.dct = DctBands()
        self.wavelet = WaveletBands(wavelet)
        self.fourier = FourierBands()
        self.attention = BandAttention()
        self.mix = nn.Parameter(torch.zeros(len(TIERS), len(TRANSFORMS)))

    def forward(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Weighed bands and tiers.

        Args:
            lr: [B, 3, h, w] in [0, 1]; any size.

        Returns:
            bands [B, 9, 3, h, w], ordered transform by transform, low to high, and guidance
            [B, 9, h, w]: the colours of the low, the middle and the high tier.
        """
        if torch.is_autocast_enabled(lr.device.type):  # half precision cannot hold a spectrum
            with torch.autocast(lr.device.type, enabled=False):
                return self.forward(lr.float())
        bands = self.attention(torch.cat([self.dct(lr), self.wavelet(lr), self.fourier(lr)], 1))
        share = self.mix.softmax(1)  # of each transform in a tier
        grouped = bands.unflatten(1, (len(TRANSFORMS), len(TIERS)))
        tiers = (grouped * share.t()[None, :, :, None, None, None]).sum(1)
        return bands, tiers.flatten(1, 2)


class DctBands(nn.Module):
    """Low, middle and high parts of 8x8 blocks of the DCT-II, by place along the zigzag.

    The two borders follow from the picture: the mean magnitude of each of the 64 coefficients goes
    through a small network. The masks are soft, sigmoid(50 * (border - place)), and sum to one;
    DC belongs to the low one.
    """

    basis: Tensor
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", _dct_basis(), persistent=False)
        place = _zigzag().flatten() / (_BLOCK * _BLOCK - 1)
        self.register_buffer("place", place, persistent=False)
        self.borders = nn.Sequential(nn.Linear(_BLOCK * _BLOCK, 32), nn.GELU(), nn.Linear(32, 2))
        last = self.borders[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # thirds of the zigzag, before anything is learnt
        with torch.no_grad():
            last.bias.copy_(torch.tensor([math.log(0.5), 0.0]))

    def forward(self, lr: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, 3 bands, 3, h, w]; the bands sum to `lr`."""
        height, width = lr.shape[-2:]
        rows = torch.arange((height + _BLOCK - 1) // _BLOCK * _BLOCK, device=lr.device)
        columns = torch.arange((width + _BLOCK - 1) // _BLOCK * _BLOCK, device=lr.device)
        # The last row and column repeat up to whole blocks; mirroring needs a larger picture.
        padded = lr[..., rows.clamp(max=height - 1), :][..., columns.clamp(max=width - 1)]
        spectrum = F.conv2d(padded.flatten(0, 1)[:, None], self.basis, stride=_BLOCK)
        magnitude = spectrum.abs().mean((-2, -1)).unflatten(0, (-1, 3)).mean(1)
        first, second = self.borders(torch.log1p(magnitude)).sigmoid().unbind(1)
        first, second = (b[:, None] for b in (first, first + (1 - first) * second))
        masks = _soft_tiers(self.place, first, second, _SHARPNESS)
        parts = []
        for mask in masks[:2]:
            masked = spectrum.unflatten(0, (-1, 3)) * mask[:, None, :, None, None]
            whole = F.conv_transpose2d(masked.flatten(0, 1), self.basis, stride=_BLOCK)
            # Cut by index: an exporter cannot prove that a slice lies inside.
            cut = whole[..., torch.arange(height, device=lr.device), :]
            cut = cut[..., torch.arange(width, device=lr.device)]
            parts.append(cut.unflatten(0, (-1, 3))[:, :, 0])
        return _completed(lr, torch.stack(parts, 1))


class WaveletBands(nn.Module):
    """LL, LH + HL and HH of one stationary level, each put back on the pixel grid by its inverse.

    Analysis and synthesis low-pass in a row are one filter; for orthogonal and for symmetric
    biorthogonal wavelets it is symmetric, so that nothing shifts. Haar gives [1, 2, 1] / 4.

    Args:
        name: of a discrete wavelet of PyWavelets.

    Raises:
        ValueError: there is no such wavelet.
    """

    low_pass: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in pywt.wavelist(kind="discrete"):
            raise ValueError(f"wavelet {name!r} is no discrete wavelet of PyWavelets, like haar")
        self.register_buffer("low_pass", _low_pass(pywt.Wavelet(name)), persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, 3 bands, 3, h, w]; the bands sum to `lr`."""
        across = self._smooth(lr, horizontal=True)
        down = self._smooth(lr, horizontal=False)
        low = self._smooth(across, horizontal=False)
        return _completed(lr, torch.stack([low, across + down - 2 * low], 1))

    def _smooth(self, x: Tensor, horizontal: bool) -> Tensor:
        reach = self.low_pass.shape[0] // 2
        kernel = self.low_pass[None, :] if horizontal else self.low_pass[:, None]
        padding = (reach, reach, 0, 0) if horizontal else (0, 0, reach, reach)
        padded = F.pad(x, padding, mode="replicate")
        return F.conv2d(padded, kernel.expand(3, 1, *kernel.shape), groups=3)


class FourierBands(nn.Module):
    """Three soft rings of the spectrum, with learnt radii and softness; DC belongs to the low one.

    A mask that is even along both axes acts on the separable real Hartley transform (Bracewell
    1983) as on the Fourier transform, so no complex number is needed.
    """

    def __init__(self) -> None:
        super().__init__()
        # Radii in units of the Nyquist frequency: the inner, and the outer as a step beyond it.
        self.radii = nn.Parameter(torch.tensor([math.log(0.25), math.log(0.35)]))
        self.sharpness = nn.Parameter(torch.tensor(math.log(20.0)))

    def forward(self, lr: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, 3 bands, 3, h, w]; the bands sum to `lr`."""
        rows, columns = _hartley(lr.shape[-2], lr), _hartley(lr.shape[-1], lr)
        radius = torch.sqrt(
            _frequencies(lr.shape[-2], lr)[:, None].square()
            + _frequencies(lr.shape[-1], lr)[None, :].square()
        )
        masks = self.rings(radius)[:2, None]
        spectrum = (rows @ lr @ columns)[:, None] * masks
        return _completed(lr, rows @ spectrum @ columns)

    def rings(self, radius: Tensor) -> Tensor:
        """Masks [3, ...] at `radius` (1 is Nyquist): they sum to one; at 0 only the low one is."""
        inner = self.radii[0].exp()
        outer = inner + self.radii[1].exp()
        return torch.stack(_soft_tiers(radius, inner, outer, self.sharpness.exp()))


class BandAttention(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018) over the colours of all bands, reduction 4."""

    def __init__(self) -> None:
        super().__init__()
        channels = BANDS * 3
        self.squeeze = nn.Linear(channels, channels // 4)
        self.excite = nn.Linear(channels // 4, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, bands: Tensor) -> Tensor:
        """[B, 9, 3, h, w] -> the same, each colour of each band times 0 to 2, at first 1."""
        energy = bands.abs().mean((-2, -1)).flatten(1)
        weights = 2 * self.excite(F.gelu(self.squeeze(energy))).sigmoid()
        return bands * weights.unflatten(1, (BANDS, 3))[..., None, None]


def _soft_tiers(
    place: Tensor, inner: Tensor, outer: Tensor, slope: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Low, middle and high masks at `place`, with soft borders; at place 0 they are 1, 0, 0.

    Both sigmoids are stretched to that, so that DC stays low wherever the borders go.
    """
    low = torch.sigmoid(slope * (inner - place)) / torch.sigmoid(slope * inner)
    floor = torch.sigmoid(-slope * outer)
    high = (torch.sigmoid(slope * (place - outer)) - floor) / (1 - floor)
    return low, 1 - low - high, high


def _completed(lr: Tensor, parts: Tensor) -> Tensor:
    """Low and middle bands [B, 2, 3, h, w], and as the third what they leave of `lr`."""
    return torch.cat([parts, (lr - parts.sum(1))[:, None]], 1)


def _dct_basis() -> Tensor:
    """The 64 orthonormal basis pictures of the DCT-II, row by row, float32 [64, 1, 8, 8]."""
    n = torch.arange(_BLOCK, dtype=torch.float64)
    basis = torch.cos(math.pi / _BLOCK * (n[None, :] + 0.5) * n[:, None]) * math.sqrt(2 / _BLOCK)
    basis[0] /= math.sqrt(2)
    pictures = basis[:, None, :, None] * basis[None, :, None, :]
    return pictures.reshape(_BLOCK * _BLOCK, 1, _BLOCK, _BLOCK).float()


def _zigzag() -> Tensor:
    """Number of each coefficient along JPEG's zigzag (ITU-T T.81, figure 5), float32 [8, 8]."""
    cells = [(y, x) for y in range(_BLOCK) for x in range(_BLOCK)]
    # Diagonals alternate: odd ones run downwards, even ones upwards.
    cells.sort(key=lambda c: (sum(c), c[0] if sum(c) % 2 else c[1]))
    places = torch.empty(_BLOCK, _BLOCK)
    for number, (y, x) in enumerate(cells):
        places[y, x] = number
    return places


def _low_pass(wavelet: pywt.Wavelet) -> Tensor:
    """Analysis and synthesis low-pass in a row, odd length, the centre being no shift; float32."""
    low = np.convolve(wavelet.dec_lo, wavelet.rec_lo)
    whole = low + np.convolve(wavelet.dec_hi, wavelet.rec_hi)  # 2 at the delay, else 0
    delay = int(np.abs(whole).argmax())
    reach = max(delay, len(low) - 1 - delay)
    kernel = np.zeros(2 * reach + 1)
    kernel[reach - delay : reach - delay + len(low)] = low
    return torch.from_numpy(kernel / kernel.sum()).float()


def _hartley(size: int, like: Tensor) -> Tensor:
    """The orthonormal Hartley matrix [size, size]: symmetric, and its own inverse."""
    n = torch.arange(size, device=like.device)
    count = n[-1:] + 1  # as a tensor: exporters know no remainder by, or root of, a free size
    # Whole turns are taken out in integers: the angle keeps its precision at any size.
    angle = ((n[:, None] * n[None, :]) % count).to(like.dtype) * (2 * math.pi / size)
    return (torch.cos(angle) + torch.sin(angle)) * count.to(like.dtype).rsqrt()


def _frequencies(size: int, like: Tensor) -> Tensor:
    """Magnitude of each frequency of a transform of this size, in units of Nyquist: 0 to 1."""
    n = torch.arange(size, device=like.device)
    return torch.minimum(n, size - n).to(like.dtype) * (2 / size)
