"""Grids of a graph from the ranges that its network was trained with.

`export_int8(..., ranges=...)` writes them; training is `sr_models/training/quantisation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from sr_models.export.int8.graph import Convolution
from sr_models.export.int8.grids import Grid, Target
from sr_models.inference.folding import LinearTail
from sr_models.training.quantisation import activation_grid


def trained_grids(
    layers: Sequence[Convolution],
    ranges: Mapping[str, Sequence[float]],
    target: Target,
) -> dict[str, Grid]:
    """Tensor -> the grid that it was rounded to in training.

    A tensor that one convolution makes and another reads was rounded once, behind the first. The
    int8 grid of `trt`, which has no other zero point than 0, holds the same range.

    Args:
        layers: convolutions of the graph, each with ranges.
        ranges: layer -> lowest and highest value of its input, then of its output; both 0 where
            nothing was seen, and there is no grid then.
        target: as of `export_int8`.
    """
    grids: dict[str, Grid] = {}
    for layer in layers:
        low, high = ranges[layer.name][:2]
        if low < high:
            grids[layer.input] = _grid(low, high, len(layer.weights[0]) * layer.groups, target)
    for layer in layers:
        low, high = ranges[layer.name][2:]
        if low < high:
            grids[layer.output] = _grid(low, high, len(layer.weights), target)
    return grids


def ranges_of_folded(
    network: nn.Module, ranges: Mapping[str, Sequence[float]]
) -> dict[str, Sequence[float]]:
    """The ranges of a network that was folded after it had been trained.

    The convolution that stands for a tail reads what the tail's first one did, and no range of what
    it makes is known. It is rounded where that first one was.
    """
    found = dict(ranges)
    for name, module in network.named_modules():
        if isinstance(module, LinearTail) and (first := found.get(f"{name}.0")) is not None:
            found[f"{name}.merged"] = (*first[:2], 0.0, 0.0)
    return found


def _grid(low: float, high: float, channels: int, target: Target) -> Grid:
    if target == "trt":
        widest = max(-low, high)
        step, zero = activation_grid(torch.tensor([-widest, widest]) * (255 / 254))[0], 0
    else:
        step, level = activation_grid(torch.tensor([low, high]))
        zero = int(level)
    return Grid(np.full(channels, step.item(), np.float32), zero)
