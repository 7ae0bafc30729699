"""Batches in the integers of their stores, made floating on the device that trains.

A batch crosses to the device at a quarter to a half of its floating size; what the integers mean
was decided where they were stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: What the name of a map's scales begins with: "scale/sr/hat" are those of "sr/hat".
SCALE = "scale/"


def dequantised(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The maps of a batch in float32, without their scales.

    Args:
        batch: name -> [B, C, H, W]. uint8 are pictures and become [0, 1]; a map with float32 scales
            [B, C] or [B, 1] beside it is multiplied by them; anything else stays as it is.
    """
    return {
        name: _floating(values, batch.get(SCALE + name))
        for name, values in batch.items()
        if not name.startswith(SCALE)
    }


def _floating(values: Tensor, scale: Tensor | None) -> Tensor:
    if scale is not None:
        return values.to(torch.float32, copy=True).mul_(scale[..., None, None])
    if values.dtype == torch.uint8:
        # By a tensor: CUDA turns a division by a number into a product, which rounds differently.
        return values.to(torch.float32).div_(torch.full((), 255.0, device=values.device))
    return values
