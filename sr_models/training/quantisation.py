"""Quantisation-aware training: networks that meet int8 rounding while they still learn.

Ranges are kept with the weights while a network trains and handed out at its end; writing int8
files is export's business (`sr_models/export/int8`), and here nothing leaves floating point.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sr_models import processes
from sr_models.training.plain_branches import merge_branches, restore_branches

#: Layer -> lowest and highest value of its input, then of its output.
LayerRanges = dict[str, tuple[float, float, float, float]]

RANGES = "int8_ranges"
"""Name of the buffer of a prepared layer: float32 [4], in the order of `LayerRanges`."""

_NARROW = 4  # channels: up to here an integer kernel is slower than a float one
_MOMENTUM = 0.02  # of a batch in the running ranges
_TINY = 1e-8  # range of a tensor of one value
_DONE = "int8_rounded"  # of a tensor that lies on its grid: its version, which works in place raise


def check_quantisable(network: nn.Module) -> None:
    """Refuses a network whose branches are merged only by its `fuse()`, and one that checkpoints.

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


def prepare(network: nn.Module, kept_in_float: Collection[str] = ()) -> None:
    """Gives every `suited` convolution of `network` but `kept_in_float` a buffer for its ranges.

    One that merges its branches in every pass becomes a plain convolution until `take_ranges`.

    Raises:
        ValueError: see `check_quantisable`, or the network has no convolution of such a name.
    """
    check_quantisable(network)
    merge_branches(network)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    if unknown := sorted(set(kept_in_float) - set(layers)):
        raise ValueError(f"there is no convolution {unknown[0]}: one of {', '.join(layers)}")
    for name, layer in layers.items():
        rounds = suited(layer.out_channels, layer.in_channels, layer.groups)
        if rounds and name not in kept_in_float:
            layer.register_buffer(RANGES, torch.zeros(4, device=layer.weight.device))


def suited(out: int, into: int, groups: int) -> bool:
    """Whether a convolution of so many channels is faster in integers, on a CPU.

    ONNX Runtime's integer kernel is 2 to 25 times slower than its float one for few channels in or
    out, and for groups that are not one channel each (docs/int8.md).
    """
    depthwise = groups == into == out
    return min(into, out) > _NARROW and (groups == 1 or depthwise)


def take_ranges(network: nn.Module) -> LayerRanges:
    """The ranges that `network` was trained with, taken out: it is as it was before `prepare`."""
    found: LayerRanges = {}
    for name, layer in network.named_modules():
        if RANGES in layer._buffers:
            low, high, out_low, out_high = layer._buffers.pop(RANGES).tolist()
            found[name] = (low, high, out_low, out_high)
    restore_branches(network)
    return found


def without_ranges(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the ranges that a network in such training keeps in it."""
    return {name: value for name, value in state.items() if name.rsplit(".", 1)[-1] != RANGES}


@contextmanager
def fake_quantised(network: nn.Module) -> Iterator[None]:
    """Inside, the prepared convolutions compute with int8 values in floating point.

    Weights are rounded to 255 symmetric levels of each output channel, inputs and outputs to 256
    levels of a static range (0 among them): the running average, over the batches seen in training
    mode, of their smallest and largest value. The first batch sets it: weights that are trained
    already start from calibrated ranges. The gradient passes the rounding as if it were not there,
    and is 0 where a value is cut (Jacob et al. 2018, section 3). An input that is another
    convolution's rounded output is not rounded again, as in an int8 file.

    Parameters stay what they are, and so do their names and their order.
    """
    layers = [module for module in network.modules() if RANGES in module._buffers]
    # Straight in the tables: their order is that of the optimiser and of the average.
    tables: list[dict[str, Any]] = [layer._parameters for layer in layers]
    weights = [table["weight"] for table in tables]
    handles = [layer.register_forward_pre_hook(_round_input) for layer in layers]
    handles += [layer.register_forward_hook(_round_output) for layer in layers]
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


def rounded_activation(x: Tensor, ends: Tensor) -> Tensor:
    """`x` on 256 even levels between two values [2], one at most 0 and one at least 0."""
    step, zero = activation_grid(ends)
    return torch.fake_quantize_per_tensor_affine(x.float(), step, zero, 0, 255).to(x.dtype)


def activation_grid(ends: Tensor) -> tuple[Tensor, Tensor]:
    """(step, int32 level of 0) of 256 even levels between two values float32 [2]."""
    step = ((ends[1] - ends[0]) / 255).clamp(min=_TINY)
    return step, torch.round(-ends[0] / step).to(torch.int32)


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if getattr(inputs[0], _DONE, None) == inputs[0]._version:
        return inputs
    return (rounded_activation(inputs[0], _followed(layer, inputs[0], 0)), *inputs[1:])


def _round_output(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    rounded = rounded_activation(output, _followed(layer, output, 2))
    setattr(rounded, _DONE, rounded._version)
    return rounded


@torch.no_grad()
def _followed(layer: nn.Module, x: Tensor, start: int) -> Tensor:
    """The range [2] of `layer` at `start`, moved towards that of `x` where the layer trains."""
    ranges: Tensor = layer.get_buffer(RANGES)[start : start + 2]
    if layer.training:
        low, high = x.detach().aminmax()
        beyond = torch.stack((-low.clamp(max=0.0), high.clamp(min=0.0)))
        seen = processes.largest(beyond).to(ranges) * ranges.new_tensor((-1, 1))
        # A range that holds nothing is one that has met no batch yet.
        ranges.copy_(torch.where(ranges.any(), ranges.lerp(seen, _MOMENTUM), seen))
    return ranges.clone()
