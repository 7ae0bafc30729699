"""Loss terms that compare first differences of neighbouring pixels: Sobel magnitude, |dx| and |dy|.

Written with slices, not convolutions, which may run in TF32 on CUDA: too coarse for differences.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_FLAT = 1e-6  # under the root, so that a flat place has a gradient


def edge_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the Sobel magnitudes sqrt(gx² + gy²); 0-dimensional.

    The operator has weights 1, 2, 1 across and -1, 0, 1 along, not divided by 8; the border is
    repeated once.

    Args:
        output, target: floating [B, C, H, W] from 1x1 up.
    """
    return F.l1_loss(_sobel_magnitude(output), _sobel_magnitude(target))


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean difference of |dx| plus mean difference of |dy| (local detail); 0-dimensional.

    dx and dy are forward differences. A side of 1 px has none and adds nothing.

    Args:
        output, target: floating [B, C, H, W] from 1x1 up.
    """
    loss = output.new_zeros(())
    for axis in (-1, -2):
        detail, wanted = output.diff(dim=axis).abs(), target.diff(dim=axis).abs()
        loss = loss + (detail - wanted).abs().sum() / max(detail.numel(), 1)
    return loss


def _sobel_magnitude(image: Tensor) -> Tensor:
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    along_x = padded[..., 2:] - padded[..., :-2]
    along_y = padded[..., 2:, :] - padded[..., :-2, :]
    gx = along_x[..., :-2, :] + 2 * along_x[..., 1:-1, :] + along_x[..., 2:, :]
    gy = along_y[..., :-2] + 2 * along_y[..., 1:-1] + along_y[..., 2:]
    return torch.sqrt(gx.square() + gy.square() + _FLAT**2)
