"""Loss term on the bands of the stationary wavelet transform, for crops of any size.

The transform that the fusion network decomposes pictures with is its own.
"""

from __future__ import annotations

import pywt
import torch
from torch import Tensor

WAVELET, LEVELS = "db4", 3


class SwtLoss:
    """L1 over all bands of the stationary wavelet transform (db4, 3 levels)."""

    def __init__(self, device: torch.device) -> None:
        self._filters = _filters(device)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean absolute difference of the ten bands (1 approximation, 3 x 3 details).

        Args:
            output, target: floating [B, C, H, W] from 1x1 up.

        Returns:
            0-dimensional.
        """
        # The transform is linear: that of the error is the difference of the two.
        return swt_bands(output - target, self._filters).abs().mean()


def swt_bands(image: Tensor, filters: Tensor | None = None) -> Tensor:
    """The bands of `pywt.swt2(image, "db4", level=3, trim_approx=True)`, without decimation.

    The signal goes on periodically, as in PyWavelets, but sides need not be multiples of 8.
    Nason and Silverman, "The stationary wavelet transform and some statistical applications", 1995.

    Args:
        image: floating [B, C, H, W] from 1x1 up.
        filters: low and high-pass of analysis [2, taps]; db4's when left out.

    Returns:
        [10, B, C, H, W]: approximation, then horizontal, vertical and diagonal details from the
        coarsest level to the finest.
    """
    if filters is None:
        filters = _filters(image.device)
    filters = filters.to(image.dtype)
    approximation = image
    details: list[Tensor] = []
    for level in range(LEVELS):
        low, high = _split(approximation, -2, 2**level, filters)
        approximation, vertical = _split(low, -1, 2**level, filters)
        horizontal, diagonal = _split(high, -1, 2**level, filters)
        details = [horizontal, vertical, diagonal, *details]
    return torch.stack([approximation, *details])


def _filters(device: torch.device) -> Tensor:
    wavelet = pywt.Wavelet(WAVELET)
    # float64 is unknown to MPS; a float32 filter keeps seven digits.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor([wavelet.dec_lo, wavelet.dec_hi], dtype=dtype, device=device)


def _split(image: Tensor, axis: int, step: int, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high-passed along `axis` with taps `step` apart, both the size of `image`."""
    low, high = _periodic_filters(image.shape[axis], step, filters)
    if axis == -2:
        return low @ image, high @ image
    return image @ low.mT, image @ high.mT


def _periodic_filters(side: int, step: int, filters: Tensor) -> Tensor:
    """The filters as matrices [2, side, side] that act on one period of a signal.

    A matrix product is four times faster on a CPU than a convolution with gaps between its taps,
    and takes a signal shorter than the filter.
    """
    taps = filters.shape[1]
    place = torch.arange(side, device=filters.device)
    matrices = filters.new_zeros(2, side, side)
    for tap in range(taps):
        source = (place + step * (taps // 2 - tap)) % side
        matrices += filters[:, tap].view(2, 1, 1) * (source.unsqueeze(1) == place)
    return matrices
