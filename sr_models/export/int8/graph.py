"""The convolutions of an ONNX graph, as int8 export sees them.

Ranges, QDQ nodes and what stays in float are chosen elsewhere; nothing here changes a graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sr_models.training.quantisation import suited

_TWO_MAPS = ("Add", "Mul")


@dataclass(frozen=True)
class Convolution:
    """One `Conv` node with constant weights."""

    node: str
    name: str
    """Of the layer: its weight's name without `.weight`; the node's where that is no name, or of
    several convolutions that share their weights."""
    input: str
    output: str
    """The tensor that is rounded: behind a ReLU that alone reads the convolution."""
    weights: np.ndarray
    """float32 [out, in / groups, kh, kw]."""
    biases: np.ndarray | None
    """float32 [out]."""
    groups: int

    @property
    def cost(self) -> int:
        """Multiplications for one output pixel."""
        return int(self.weights.size)

    @property
    def suited(self) -> bool:
        """Whether an integer kernel is the faster one on a CPU."""
        return suited(len(self.weights), self.weights.shape[1] * self.groups, self.groups)


def convolutions(model: Any) -> tuple[Convolution, ...]:
    """Every convolution of the main graph whose weights are constants, in the graph's order.

    Args:
        model: an `onnx.ModelProto`, fp32.
    """
    values = constants(model)
    outputs = {value.name for value in model.graph.output}
    behind_of = readers(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in values:
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias not in values:
            continue
        output = node.output[0]
        behind = behind_of.get(output, [])
        if len(behind) == 1 and behind[0].op_type == "Relu" and output not in outputs:
            output = behind[0].output[0]
        weights = values[node.input[1]]
        biases = values[bias] if bias is not None else None
        layer = node.input[1].removesuffix(".weight")
        found.append(
            Convolution(
                node=node.name,
                name=layer if layer != node.input[1] else node.name,
                input=node.input[0],
                output=output,
                weights=weights,
                biases=biases,
                groups=next((a.i for a in node.attribute if a.name == "group"), 1),
            )
        )
    count = Counter(c.name for c in found)
    return tuple(replace(c, name=c.node) if count[c.name] > 1 else c for c in found)


def silus(
    model: Any, outputs: Collection[str], inputs: Collection[str], joined: Collection[str] = ()
) -> dict[str, set[str]]:
    """Every `x * sigmoid(x)` from one of `outputs` to one of `inputs`: its sigmoid -> both ends.

    Only where nothing else reads the sigmoid, and nothing the product but convolutions and those
    that make one of `joined`.
    """
    behind_of = readers(model)
    found = {}
    for node in model.graph.node:
        if node.op_type != "Sigmoid" or node.input[0] not in outputs:
            continue
        behind = behind_of.get(node.output[0], [])
        if len(behind) != 1 or behind[0].op_type != "Mul":
            continue
        product = behind[0].output[0]
        silu = sorted(behind[0].input) == sorted((node.input[0], node.output[0]))
        alone = all(
            reader.op_type == "Conv" or reader.output[0] in joined
            for reader in behind_of.get(product, [])
        )
        if silu and alone and product in inputs:
            found[node.output[0]] = {node.input[0], product}
    return found


def sums_and_products(model: Any) -> frozenset[str]:
    """What adding or multiplying two feature maps gives, the graph's own output apart."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    return frozenset(
        node.output[0]
        for node in model.graph.node
        if node.op_type in _TWO_MAPS
        and node.output[0] not in outputs
        and not fixed & set(node.input)
    )


def pictures(model: Any) -> frozenset[str]:
    """Tensors that become the graph's output by nothing but a pixel shuffle."""
    outputs = {value.name for value in model.graph.output}
    shuffled = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "DepthToSpace" and node.output[0] in outputs
    }
    return frozenset(outputs | shuffled)


def constants(model: Any) -> dict[str, np.ndarray]:
    """Initializers of the main graph by name."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def readers(model: Any) -> dict[str, list[Any]]:
    """Tensor -> the nodes of the main graph that read it."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def cleaned(model: Any) -> Any:
    """`model` itself without stack traces and source paths; its own properties stay."""
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    graph = model.graph
    for entry in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        entry.doc_string = ""
        del entry.metadata_props[:]
    return model
