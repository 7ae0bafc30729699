"""MATLAB-compatible bicubic resizing by a whole factor: the degradation and the anchor row.

It equals MATLAB's `imresize` in exact arithmetic (a = -0.5, a kernel that widens with the factor
when it reduces, a border continued by its mirror image); other kernels and sizes are not for here.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Half of the cubic kernel's support, in pixels of the smaller image.
_REACH = 2


def downscale(hr: Tensor, scale: int) -> Tensor:
    """Reduces images by `scale` with an antialiased bicubic kernel 4 * scale pixels wide.

    Args:
        hr: [B, C, H, W] in any floating type; the result has the same type, range and device.
            Overshoot is kept: nothing is clamped.
        scale: whole factor, at least 1; H and W must be multiples of it.

    Returns:
        [B, C, H / scale, W / scale], differentiable.

    Raises:
        ValueError: `hr` is no floating 4-D tensor, or H or W is no multiple of `scale`.
    """
    _check(hr, scale)
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"{height}x{width} is no multiple of scale {scale}: crop the image first")
    size = (height // scale + 2 * _REACH, width // scale + 2 * _REACH)
    return _resize(_mirror(hr, _REACH * scale), size, _REACH)


def upscale(lr: Tensor, scale: int) -> Tensor:
    """Enlarges images by `scale` with a bicubic kernel 4 pixels wide.

    Args:
        lr: [B, C, h, w] in any floating type; the result has the same type, range and device.
            Overshoot is kept: nothing is clamped.
        scale: whole factor, at least 1.

    Returns:
        [B, C, h * scale, w * scale], differentiable.

    Raises:
        ValueError: `lr` is no floating 4-D tensor.
    """
    _check(lr, scale)
    height, width = lr.shape[-2:]
    size = ((height + 2 * _REACH) * scale, (width + 2 * _REACH) * scale)
    return _resize(_mirror(lr, _REACH), size, _REACH * scale)


def downscale_uint8(hr: np.ndarray, scale: int) -> np.ndarray:
    """Reduces one 8-bit image by `scale`: computed in double precision, rounded once, half up.

    Args:
        hr: uint8 [H, W, C]; H and W are multiples of `scale`.
        scale: whole factor, at least 1.

    Returns:
        uint8 [H / scale, W / scale, C], the same bytes on every machine.

    Raises:
        ValueError: `hr` is no uint8 [H, W, C], or H or W is no multiple of `scale`.
    """
    if hr.dtype != np.uint8 or hr.ndim != 3:
        raise ValueError(f"expected uint8 [H, W, C], got {hr.dtype} {list(hr.shape)}")
    planes = torch.from_numpy(np.ascontiguousarray(hr.transpose(2, 0, 1), dtype=np.float64))
    # Ties cannot depend on the order of summation: for 2, 4 and 8 all terms are dyadic fractions
    # that float64 holds exactly, and for 3 the weights are n / 81, so that nothing is half way.
    lr = downscale(planes.unsqueeze(0), scale).add_(0.5).floor_().clamp_(0, 255)
    return lr[0].permute(1, 2, 0).to(torch.uint8).contiguous().numpy()


def _check(images: Tensor, scale: int) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"expected floating [B, C, H, W], got {images.dtype} {list(images.shape)}")
    if scale < 1 or scale != int(scale):
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")


def _mirror(images: Tensor, margin: int) -> Tensor:
    """Continues the images by `margin` pixels of their mirror image, the edge pixel doubled."""
    for axis in (-2, -1):
        length = images.shape[axis]
        index = torch.arange(-margin, length + margin, device=images.device) % (2 * length)
        index = torch.where(index < length, index, 2 * length - 1 - index)
        images = images.index_select(images.ndim + axis, index)
    return images


def _resize(images: Tensor, size: tuple[int, int], margin: int) -> Tensor:
    """torch's antialiased bicubic (a = -0.5), less the margin that keeps its own edge rule out."""
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized[..., margin : size[0] - margin, margin : size[1] - margin]
