"""Quantisation-aware training: networks that meet int8 rounding while they still learn.

Calibrating and writing int8 files is export's business; here nothing leaves floating point.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.export.weights import is_merging_convolution

_LAYERS = (nn.Conv2d, nn.Linear)
_TINY = 1e-8  # range of a tensor of one value


def check_quantisable(network: nn.Module) -> None:
    """Refuses a network whose branches are merged only after training, and one that checkpoints.

    Rounding the branches is not rounding their sum: such a network is fused before.

    Raises:
        ValueError: it has such branches, or computes its activations twice.
    """
    told: dict[str, Any] = getattr(network, "hyperparameters", {})
    if any(told.get(name) for name in ("use_checkpointing", "use_checkpoint", "use_chk")):
        # The second forward pass comes with the backward one, when nothing is rounded any more.
        raise ValueError("quantisation-aware training takes no gradient checkpointing")
    if told.get("fused_init") is False:
        raise ValueError("quantisation-aware training takes the fused network: set fused_init")
    if any(is_merging_convolution(module) for module in network.modules()):
        raise ValueError(
            f"{type(network).__name__} merges its branches after training: quantisation-aware "
            "training is not for it"
        )


@contextmanager
def fake_quantised(network: nn.Module) -> Iterator[None]:
    """Inside, every convolution and linear layer computes with int8 values in floating point.

    Weights are rounded to 255 symmetric levels of each output channel, inputs to 256 levels between
    the smallest and the largest of the batch (0 among them). The gradient passes the rounding as if
    it were not there, and is 0 where a value is cut (Jacob et al. 2018, section 3). Parameters stay
    what they are, and so do their names and their order.
    """
    layers = [module for module in network.modules() if isinstance(module, _LAYERS)]
    # Straight in the tables: their order is that of the optimiser and of the average.
    tables: list[dict[str, Any]] = [layer._parameters for layer in layers]
    weights = [table["weight"] for table in tables]
    handles = [layer.register_forward_pre_hook(_round_input) for layer in layers]
    try:
        for table, weight in zip(tables, weights, strict=True):
            table["weight"] = rounded_weight(weight)
        yield
    finally:
        for table, weight in zip(tables, weights, strict=True):
            table["weight"] = weight
        for handle in handles:
            handle.remove()


def rounded_weight(weight: Tensor) -> Tensor:
    """[C, ...] on the 255 levels -127..127 of each output channel, its largest |value| at 127."""
    largest = weight.detach().abs().flatten(1).amax(1).clamp(min=_TINY)
    zero = torch.zeros(len(largest), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, largest / 127, zero, 0, -127, 127)


def rounded_activation(x: Tensor) -> Tensor:
    """`x` on 256 even levels from its smallest to its largest value, 0 being one of them."""
    low, high = x.detach().aminmax()
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    step = ((high - low) / 255).clamp(min=_TINY)
    zero = torch.round(-low / step).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, step, zero, 0, 255)


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (rounded_activation(inputs[0]), *inputs[1:])
