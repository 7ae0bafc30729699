"""Resolution levels of an HR picture, and its pixels folded onto the LR grid and back.

Convolutions cost a scale²-th on the LR grid; phases 5 and 7 do their work there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 3  # full, half and quarter resolution


def folds(scale: int) -> tuple[int, ...]:
    """For each level the side of a cell that holds one LR pixel, 1 where there is no such cell.

    >>> folds(4), folds(3)
    ((4, 2, 1), (3, 1, 1))
    """
    return tuple(scale // 2**k if scale % 2**k == 0 else 1 for k in range(LEVELS))


def on_grid(level: int, scale: int) -> bool:
    """Whether the pixels of this level fold onto the LR grid without a remainder."""
    return scale % 2**level == 0


def halved(x: Tensor, even: bool) -> Tensor:
    """Mean of each 2x2: [B, C, h, w] -> [B, C, ceil(h / 2), ceil(w / 2)].

    At an odd end the last line stands for two; `even` says that there is none.
    """
    if even:
        return F.avg_pool2d(x, 2)
    height, width = x.shape[-2:]
    rows = torch.arange(2 * ((height + 1) // 2), device=x.device).clamp(max=height - 1)
    columns = torch.arange(2 * ((width + 1) // 2), device=x.device).clamp(max=width - 1)
    return F.avg_pool2d(x[..., rows, :][..., columns], 2)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def zero_conv(inputs: int, outputs: int, kernel: int = 1) -> nn.Conv2d:
    """A convolution that gives nothing until it has learnt something."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def excess(logits: Tensor) -> Tensor:
    """softmax(logits) - 1/n over dim 1, written so that equal logits give exactly 0 everywhere."""
    n = logits.shape[1]
    share = (logits - logits.amax(1, keepdim=True)).exp()
    total = share.sum(1, keepdim=True)
    return (n * share - total) / (n * total)


def weighed(weights: Tensor, pictures: Tensor) -> Tensor:
    """Sum over n of weights [B, n, H, W] times pictures [B, n, 3, H, W] -> [B, 3, H, W]."""
    return (weights[:, :, None] * pictures).sum(1)
