"""The exponential moving average of a network's weights, which is what gets validated and shipped.

It follows a network; it does not decide when to step and knows nothing about checkpoints.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """An averaged copy of a network, in evaluation mode and without gradients.

    The decay warms up as min(decay, (1 + t) / (10 + t)) with t the number of earlier updates, so
    that the random start is forgotten quickly. Floating-point buffers are averaged like
    parameters, other buffers are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Move the copy towards `network`; `updates` is the number of updates before this one."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        averaged: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averaged, current, weight)
        for ours, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            if ours.is_floating_point():
                # Equal entries stay as they are: masks hold -inf, and inf - inf is no number.
                ours.copy_(torch.where(ours == theirs, ours, torch.lerp(ours, theirs, weight)))
            else:
                ours.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights as tensors on the CPU that share nothing with the copy."""
        return {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
