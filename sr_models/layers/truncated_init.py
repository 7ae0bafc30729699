"""First weights as vision transformers have them: a narrow normal distribution and no bias.

Residual factors and the like are set where they are made.
"""

from __future__ import annotations

from torch import nn

_STD = 0.02


def truncated_init(network: nn.Module) -> None:
    """Draws the weights of all convolutions and linear layers inside; their biases become 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
