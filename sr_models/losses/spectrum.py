"""Loss terms that compare magnitudes of the two-dimensional Fourier spectrum.

Phases are left out, so a shift of the picture costs nothing: neither term stands alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fft_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the magnitudes of `rfft2` with norm "ortho"; 0-dimensional.

    Args:
        output, target: floating [B, C, H, W] from 1x1 up.
    """
    return F.l1_loss(_magnitude(output), _magnitude(target))


def fft_log_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of log(1 + magnitude) of the same spectrum; 0-dimensional.

    Args:
        output, target: floating [B, C, H, W] from 1x1 up.
    """
    return F.l1_loss(_magnitude(output).log1p(), _magnitude(target).log1p())


def _magnitude(image: Tensor) -> Tensor:
    # abs() of a complex zero has gradient 0 in PyTorch: finite on flat pictures too.
    return torch.fft.rfft2(image, norm="ortho").abs()
