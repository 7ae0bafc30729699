"""Stochastic depth: whole residual branches left out at random while training (Huang et al. 2016).

Dropout of single activations is torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_models import processes


class DropPath(nn.Module):
    """Zeroes the branch of a sample with probability `rate` while training, identity otherwise.

    What is kept is divided by 1 - `rate`, so that the expectation stays. Processes that share a
    batch leave out what one would.

    Raises:
        ValueError: `rate` is not in [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path rate {rate} must be at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to the same."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        samples = x.shape[0] * processes.count()
        kept = processes.share(torch.rand(samples, *(1,) * (x.ndim - 1), device=x.device)) < keep
        return x * (kept.to(x.dtype) / keep)


def linear_rates(last: float, blocks: int) -> list[float]:
    """Rates that rise linearly over the blocks from 0 to `last`; a single block has 0."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]
