"""Low-rank adapters (LoRA) merged into the layers that they were trained for.

A merged network runs as fast as the one it was, and needs no package for adapters. Which files are
merged, and into what, is `loading.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: `<module>.lora_A.weight` of peft, also with the adapter's name in it, and the older
#: `<module>.lora_down.weight` and `<module>.lora.down.weight`.
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<new>A|B|down|up)|lora\.(?P<old>down|up))(?:\.\w+)?\.weight"
)
_ALPHA = ".alpha"
#: What programs write before the names of a network's own modules.
_PREFIXES = ("base_model.model.", "transformer.", "vae.")


@dataclass(frozen=True)
class _Pair:
    down: Tensor
    up: Tensor
    factor: float


def merge_lora(network: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    """Adds `alpha / rank * B A` to the weights of linear and convolution layers, in place.

    Hu et al. 2021, "LoRA". Of a convolution A has its kernel [r, in, k, k] and B one of 1x1
    [out, r, 1, 1]. Alpha is the rank where the file holds none, as in the files of TSD-SR.

    Args:
        network: in any dtype; sums are made in single precision.
        tensors: `<module>.lora_A.weight` [r, in, ...] and `<module>.lora_B.weight` [out, r, ...],
            in one of the spellings that are common.

    Returns:
        How many layers were changed.

    Raises:
        ValueError: there are no adapters, half of one is missing, a layer is not there, or one
            has another shape. Nothing is changed then.
    """
    modules = dict(network.named_modules())
    changes = {
        name: (_layer(modules, name), pair) for name, pair in sorted(_pairs(tensors).items())
    }
    deltas = {name: _delta(name, layer, pair) for name, (layer, pair) in changes.items()}
    with torch.no_grad():
        for name, delta in deltas.items():
            weight = changes[name][0].weight
            weight.copy_(weight.float() + delta.to(weight.device))
    return len(deltas)


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, _Pair]:
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        if match := _KEY.fullmatch(key):
            kind = match["new"] or match["old"]
            half = "down" if kind in ("A", "down") else "up"
            halves.setdefault(_own_name(match["module"]), {})[half] = tensor.float()
        elif key.endswith(_ALPHA):
            alphas[_own_name(key.removesuffix(_ALPHA))] = float(tensor)
        else:
            raise ValueError(f"{key} is no tensor of an adapter (lora_A, lora_B, alpha)")
    if not halves:
        raise ValueError("there is no adapter in it (lora_A and lora_B of some layers)")
    pairs = {}
    for name, found in halves.items():
        if len(found) != 2:
            raise ValueError(f"{name} has one half of an adapter alone")
        rank = found["down"].shape[0]
        pairs[name] = _Pair(found["down"], found["up"], alphas.get(name, rank) / rank)
    return pairs


def _own_name(name: str) -> str:
    """Without what names the network itself."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _layer(modules: Mapping[str, nn.Module], name: str) -> nn.Linear | nn.Conv2d:
    layer = modules.get(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        what = "is not there" if layer is None else f"is a {type(layer).__name__}"
        raise ValueError(f"it changes the layer {name}, which {what} in this network")
    return layer


def _delta(name: str, layer: nn.Linear | nn.Conv2d, pair: _Pair) -> Tensor:
    """What is added to the weight of a layer, in its shape."""
    shape = tuple(layer.weight.shape)
    down, up = pair.down, pair.up
    fits = (
        down.ndim == up.ndim == len(shape)
        and tuple(down.shape[1:]) == shape[1:]
        and up.shape[0] == shape[0]
        and up[0].numel() == down.shape[0]
    )
    if not fits:
        raise ValueError(
            f"its adapter of {name}, {list(down.shape)} and {list(up.shape)}, does not fit a "
            f"weight of {list(shape)}"
        )
    return pair.factor * (up.flatten(1) @ down.flatten(1)).view(shape)
