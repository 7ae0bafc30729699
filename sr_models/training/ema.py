"""The exponential moving average of a network's weights, which is what gets validated and shipped.

It follows a network; it does not decide when to step and knows nothing about checkpoints.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.export.weights import merged_state


class Ema:
    """An averaged copy of a network, in evaluation mode and without gradients.

    Trainable parameters are averaged and buffers copied; frozen parameters are the network's own
    tensors, so that a frozen expert is in memory once. The decay warms up as
    min(decay, (1 + t) / (10 + t)) with t the number of earlier updates, so that the random start
    is forgotten quickly. Usual are 0.999, and 0.9995 for runs of 100,000 steps and more.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        frozen: dict[int, Any] = {id(p): p for p in network.parameters() if not p.requires_grad}
        self.network = copy.deepcopy(network, memo=frozen).eval().requires_grad_(False)
        self._trained = [p.requires_grad for p in network.parameters()]

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Move the copy towards `network`; `updates` is the number of updates before this one."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        averaged = self._trainable(self.network)
        torch._foreach_lerp_(averaged, self._trainable(network), weight)
        for ours, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            ours.copy_(theirs)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """All weights as tensors on the CPU; what is averaged or copied shares nothing with it."""
        parameters = zip(self.network.parameters(), self._trained, strict=True)
        state = merged_state(self.network)
        frozen = {p.data_ptr() for p, trained in parameters if not trained}
        return {
            name: tensor.cpu() if tensor.data_ptr() in frozen else tensor.cpu().clone()
            for name, tensor in state.items()
        }

    def _trainable(self, network: nn.Module) -> list[Tensor]:
        parameters = zip(network.parameters(), self._trained, strict=True)
        return [parameter for parameter, trained in parameters if trained]
