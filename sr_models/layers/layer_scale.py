"""LayerScale: a learnt factor a channel on a residual branch (Touvron et al. 2021, CaiT, eq. 3).

The residual sum itself is the block's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiplies [B, C, h, w] by `gamma`, one value a channel.

    Args:
        shape: of `gamma` in the state dict: (C,) or (1, C, 1, 1), the names of published weights.
        initial: value of every entry; small, so that a deep network starts near identity.
    """

    def __init__(self, shape: tuple[int, ...], initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, initial))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return x * self.gamma.view(1, -1, 1, 1)
