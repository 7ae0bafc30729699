"""What lies between integer convolutions and can be computed in integers as well.

Only names of tensors are found here; the nodes are written in `writer.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sr_models.export.int8.graph import Convolution, constants, readers, sums_and_products

_LEVELS = 256


@dataclass(frozen=True)
class Gate:
    """`sigmoid(x) - c`, by a sigmoid that is looked up: c is a zero point where 256 c is whole."""

    sigmoid: str
    """The tensor that is looked up, on 0..255 / 256."""
    result: str
    """The tensor behind the subtraction."""
    zero_point: int


def gates(model: Any, outputs: Collection[str]) -> tuple[Gate, ...]:
    """Every `sigmoid(x) - c` of one of `outputs` whose sigmoid nothing else reads.

    Args:
        model: `onnx.ModelProto`.
        outputs: tensors that one scale holds.
    """
    values, behind = constants(model), readers(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "Sigmoid" or node.input[0] not in outputs:
            continue
        sub = behind.get(node.output[0], [])
        if len(sub) != 1 or sub[0].op_type != "Sub" or sub[0].input[1] not in values:
            continue
        subtracted = values[sub[0].input[1]]
        levels = float(subtracted.reshape(-1)[0]) * _LEVELS
        if subtracted.size == 1 and 0 <= levels < _LEVELS and levels.is_integer():
            found.append(Gate(node.output[0], sub[0].output[0], int(levels)))
    return tuple(found)


def rounded_between(
    model: Any,
    chosen: Collection[Convolution],
    found: Collection[Gate],
    even: Collection[str],
) -> frozenset[str]:
    """Sums and products to compute in integers: of maps that are rounded anyway.

    A map that is rounded only because an integer convolution reads it is one of them, but for what
    a convolution in float makes: that one is in float for a reason.

    Args:
        model: `onnx.ModelProto`.
        chosen: the integer convolutions.
        found: the gates among their outputs.
        even: tensors of which a grid with one scale is known.
    """
    inputs = {c.input for c in chosen} & set(even)
    known = {c.output for c in chosen} & set(even) | {gate.result for gate in found}
    arithmetic = sums_and_products(model) & set(even)
    result: set[str] = set()
    for node in model.graph.node:
        made = node.output[0]
        if made in arithmetic and set(node.input) <= known:
            result.add(made)
        if made in result or (made in inputs and node.op_type != "Conv"):
            known.add(made)
    return frozenset(result)


@dataclass(frozen=True)
class Join:
    """Maps side by side that 1x1 convolutions alone read."""

    result: str
    parts: tuple[str, ...]
    rounded: tuple[int, ...]
    """Which of the maps are rounded, each on its own grid."""


def joins(
    model: Any, layers: Collection[Convolution], rounded: Collection[str]
) -> tuple[Join, ...]:
    """Every concatenation with rounded maps that only 1x1 convolutions read.

    Larger ones pad, with one value for all channels.

    Args:
        model: `onnx.ModelProto`.
        layers: convolutions.
        rounded: maps of which there are bytes.
    """
    behind = readers(model)
    of_pixels = {c.node for c in layers if _of_pixels(c)}
    outputs = {value.name for value in model.graph.output}
    found = []
    for node in model.graph.node:
        made = node.output[0]
        if node.op_type != "Concat" or made in outputs:
            continue
        has = tuple(i for i, name in enumerate(node.input) if name in rounded)
        channels = any(a.name == "axis" and a.i == 1 for a in node.attribute)
        if has and channels and all(reader.name in of_pixels for reader in behind.get(made, [])):
            found.append(Join(made, tuple(node.input), has))
    return tuple(found)


def shuffles(model: Any, rounded: Collection[str]) -> dict[str, str]:
    """Pixel shuffles of rounded maps, which move bytes: output -> input."""
    return {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DepthToSpace" and node.input[0] in rounded
    }


def _of_pixels(convolution: Convolution) -> bool:
    """Whether it is 1x1, with a bias to take zero points up."""
    single = convolution.weights.shape[2:] == (1, 1)
    return single and convolution.groups == 1 and convolution.biases is not None
