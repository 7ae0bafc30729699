"""torch.compile for a network in training, tried out first on a function of one line.

Which networks gain from it is not known here.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sr_models.one_line import one_line


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """A compiled view of `network`: the same parameters, so that `network` keeps its names.

    Raises ValueError when this machine has no compiler for the device.
    """
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:  # Dynamo, Inductor and Triton share no base class
        reason = one_line(error)
        raise ValueError(
            f"compile: torch.compile does not work on {device.type} here ({reason}): install a C++ "
            "compiler (for a GPU also Triton), or set compile to false"
        ) from error
    return cast(nn.Module, torch.compile(network))


def _probe(x: Tensor) -> Tensor:
    return x.sin() + x.cos()
