"""Maps computed in overlapping tiles that are weighed by a Gaussian, so that no border shows.

For networks that see all of what they are given, whose tiles therefore differ; tiles that meet
exactly are `sr_models/inference/tiles.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sr_models.inference.tiles import spans

_VARIANCE = 0.01  # of the weights, in squares of a tile's side (TSD-SR, StableSR)


def blend_tiles(
    forward: Callable[[Tensor], Tensor],
    maps: Tensor,
    tile: int,
    overlap: int,
    up: int = 1,
    down: int = 1,
) -> Tensor:
    """Runs `forward` over tiles and takes the mean of what they say, the middle of each most.

    At the border of a tile its weight is some thousandths of its neighbour's, so that no step is
    left. What fits in one tile is run whole.

    Args:
        forward: [1, C, h, w] -> [1, D, h * up / down, w * up / down].
        maps: [1, C, H, W], sides multiples of `down`.
        tile: side of a tile, a multiple of `down`.
        overlap: of two neighbours, less than `tile`, an even multiple of `down`.
        up, down: how the sides change; one of both is 1.

    Returns:
        [1, D, H * up / down, W * up / down]: what `forward` gave where one tile is enough, else
        float32 on the device of `maps`.
    """
    height, width = maps.shape[-2:]
    if max(height, width) <= tile:
        return forward(maps)
    rows, columns = (spans(side, tile, overlap // 2, down) for side in (height, width))
    total: Tensor | None = None
    for top, _, _ in rows:
        for left, _, _ in columns:
            piece = maps[..., top : top + tile, left : left + tile]
            out = forward(piece).float()
            if total is None:
                shape = (1, out.shape[1], height * up // down, width * up // down)
                total = torch.zeros(shape, device=out.device)
                weights = torch.zeros((1, 1, *shape[2:]), device=out.device)
            own = _weights(*out.shape[-2:]).to(out)
            place = (
                ...,
                slice(top * up // down, top * up // down + out.shape[-2]),
                slice(left * up // down, left * up // down + out.shape[-1]),
            )
            total[place] += out * own
            weights[place] += own
    assert total is not None
    return total / weights


def _weights(height: int, width: int) -> Tensor:
    """[height, width]: a product of two Gaussians around the middle, 1 there."""
    one, two = (
        torch.exp(-(((torch.arange(side) - (side - 1) / 2) / side) ** 2) / (2 * _VARIANCE))
        for side in (height, width)
    )
    return one[:, None] * two[None]
