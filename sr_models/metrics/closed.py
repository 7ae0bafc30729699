"""Parameters and multiply-adds of any function that enlarges pictures, whatever runs inside it.

For networks that come as a file and are called through somebody else's code; what a network that is
at hand costs is `cost.py`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from sr_models.export.fusing import with_plain_convolutions
from sr_models.export.weights import running_parameters
from sr_models.metrics.cost import SIDE, Forward, multiply_adds


@dataclass(frozen=True)
class Count:
    """What a function runs for one picture."""

    parameters: int
    """Of all networks that it calls."""
    multiply_adds: int
    """For one megapixel of output."""


def count(
    forward: Forward, scale: int, *, device: torch.device | str = "cpu", side: int = SIDE
) -> Count | None:
    """Counts while one LR picture of zeros runs, then one of noise; nothing is learnt from it.

    Networks are those modules that `forward` calls from outside any module. Their convolutions that
    merge branches in every pass (SPAN) are merged for good: the same function, without that work.

    Args:
        forward, scale, device, side: as for `multiply_adds`.

    Returns:
        None where no module with parameters runs, as in another runtime than torch.

    Raises:
        ValueError: `forward` does not enlarge `scale` times.
    """
    networks = _networks(forward, torch.zeros(1, 3, side, side, device=device))
    parameters = sum(running_parameters(network) for network in networks)
    if not parameters:
        return None
    for network in networks:
        with_plain_convolutions(network)
    return Count(parameters, multiply_adds(forward, scale, device=device, side=side))


def _networks(forward: Forward, lr: torch.Tensor) -> list[nn.Module]:
    """The modules that are called while no other runs, each once, in the order of their calls."""
    found: dict[nn.Module, None] = {}
    inside: list[nn.Module] = []

    def enter(module: nn.Module, given: Any) -> None:
        if not inside:
            found[module] = None
        inside.append(module)

    def leave(module: nn.Module, given: Any, made: Any) -> None:
        inside.pop()

    with ExitStack() as stack, torch.no_grad():
        for handle in (
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave),
        ):
            stack.callback(handle.remove)
        forward(lr)
    return list(found)
