"""Writing QuantizeLinear and DequantizeLinear nodes around convolutions, for given grids.

Two forms: `cpu` rounds inputs and outputs of convolutions and has int32 biases, `trt` rounds inputs
and leaves biases in float. Grids and what stays in float are chosen elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from sr_models.export.int8.graph import Convolution, cleaned, convolutions, silus
from sr_models.export.int8.grids import Grid, Target

_TINY = 1e-8
_BIAS_LIMIT = 2.0**30  # of an int32 bias, with room for what is added to it


def quantised(
    model: Any, grids: Mapping[str, Grid], kept_in_float: Collection[str], target: Target
) -> Any:
    """A copy of `model` whose convolutions, but for `kept_in_float`, compute with int8 values.

    A runtime's integer convolution knows one scale for its input and one for its output. Channels
    get scales of their own nevertheless: what evens an output out is a factor of the weights that
    make it, taken back where it is read in float; what evens an input out, of those that read it.

    For `cpu` a SiLU between two of them is rounded inside too, where it is cheap: ONNX Runtime then
    looks its sigmoid up and multiplies integers.

    Args:
        model: `onnx.ModelProto`, fp32, opset 13 or above; left as it is.
        grids: of the input and, for `cpu`, the output of every convolution that is quantised.
        kept_in_float: names of convolutions.
        target: see above.

    Raises:
        KeyError: a grid is missing.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    chosen = {c.node: c for c in convolutions(model) if c.name not in kept_in_float}
    outputs = {c.output for c in chosen.values()} if target == "cpu" else set()
    inputs = {c.input for c in chosen.values()}
    writer = _Writer(result, grids, target, frozenset(outputs))
    even = {name for name, grid in grids.items() if grid.even}
    sigmoids = silus(model, outputs & even, inputs & even)
    nodes = list(result.graph.node)
    del result.graph.node[:]
    for name in sorted({value.name for value in model.graph.input} & inputs):
        writer.round(name)
    for node in nodes:
        made = list(node.output)
        if node.name in chosen:
            writer.rewire(node, chosen[node.name])
        for index, name in enumerate(made):
            if name in outputs:
                node.output[index] = f"{name}_evened"
        if made[0] in sigmoids:
            node.output[0] = f"{made[0]}_float"
        writer.append(node)
        if made[0] in sigmoids:
            writer.round_sigmoid(made[0])
        for name in made:
            if name in outputs or name in inputs:
                writer.round(name)
            if name in outputs:
                writer.restore_for_float(name)
    writer.drop_unread()
    entry = result.metadata_props.add()
    entry.key, entry.value = "quantisation", f"int8-{target}"
    return cleaned(result)


class _Writer:
    """Adds nodes and constants to a graph whose nodes are written anew in their order."""

    def __init__(
        self, model: Any, grids: Mapping[str, Grid], target: Target, outputs: frozenset[str]
    ) -> None:
        self._graph, self._grids, self._target, self._outputs = model.graph, grids, target, outputs
        self._added: set[str] = set()

    def append(self, node: Any) -> None:
        self._graph.node.append(node)

    def round(self, name: str) -> None:
        """QuantizeLinear of a tensor: an output is evened out already, others are here."""
        evened = f"{name}_evened"
        if name not in self._outputs:
            evened = self._scaled(name, evened, 1 / self._grids[name].evening)
        self._activation("Quantize", evened, f"{name}_quantised", name)

    def restore(self, name: str, output: str) -> None:
        """DequantizeLinear of what `round` made of `name`, still evened out."""
        self._activation("Dequantize", f"{name}_quantised", output, name)

    def restore_for_float(self, name: str) -> None:
        """The tensor itself again, for readers that are no integer convolution."""
        if self._grids[name].even:
            self.restore(name, name)
        else:
            self.restore(name, f"{name}_restored")
            self._scaled(f"{name}_restored", name, self._grids[name].evening)

    def round_sigmoid(self, name: str) -> None:
        """Both nodes around a tensor of [0, 1]."""
        self._constant(f"{name}_scale", np.float32(1 / 255))
        self._constant(f"{name}_zero_point", np.uint8(0))
        self._linear("Quantize", f"{name}_float", name, f"{name}_quantised")
        self._linear("Dequantize", f"{name}_quantised", name, name)

    def rewire(self, node: Any, convolution: Convolution) -> None:
        """`node` reads restored input, weights and bias, with a restore of its own for each."""
        step = self._grids[convolution.input].step
        x = f"{convolution.input}_for_{node.name}"
        self.restore(convolution.input, x)
        weights, biases = self._evened(convolution)
        scale = np.maximum(np.abs(weights).reshape(len(weights), -1).max(axis=1), _TINY) / 127
        if biases is not None:
            # A channel of nearly no weight must not push its bias out of int32.
            scale = np.maximum(scale, np.abs(biases) / (float(step) * _BIAS_LIMIT))
        scale = scale.astype(np.float32)
        levels = np.round(weights / scale.reshape(-1, *(1,) * (weights.ndim - 1)))
        node.input[0] = x
        node.input[1] = f"{node.name}_weight"
        self._stored(node.input[1], levels.clip(-127, 127).astype(np.int8), scale)
        if biases is None:
            return
        node.input[2] = f"{node.name}_bias"
        if self._target == "cpu":
            both = (scale * step).astype(np.float32)
            levels = np.round(biases.astype(np.float64) / both)
            self._stored(node.input[2], levels.astype(np.int32), both)
        else:
            self._constant(node.input[2], biases.astype(np.float32))

    def drop_unread(self) -> None:
        """Takes out what no node reads any more, and shapes that may be stale."""
        read = {value.name for value in self._graph.output}
        kept: list[Any] = []
        for node in reversed(self._graph.node):
            if node.name not in self._added or node.output[0] in read:
                kept.append(node)
                read |= set(node.input)
        del self._graph.node[:]
        self._graph.node.extend(reversed(kept))
        constants = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(constants)
        del self._graph.value_info[:]

    def _evened(self, convolution: Convolution) -> tuple[np.ndarray, np.ndarray | None]:
        """Weights and biases that read an evened input and make an evened output."""
        weights = convolution.weights.astype(np.float64)
        evening = self._grids[convolution.input].evening.astype(np.float64)
        out, per_group = weights.shape[:2]
        first = np.arange(out) // (out // convolution.groups) * per_group
        factor = evening[first[:, None] + np.arange(per_group)]
        weights = weights * factor.reshape(*factor.shape, *(1,) * (weights.ndim - 2))
        if convolution.output not in self._outputs:
            return weights, convolution.biases
        back = 1 / self._grids[convolution.output].evening.astype(np.float64)
        weights = weights * back.reshape(-1, *(1,) * (weights.ndim - 1))
        return weights, convolution.biases * back if convolution.biases is not None else None

    def _activation(self, kind: str, tensor: str, output: str, name: str) -> None:
        grid, dtype = self._grids[name], np.uint8 if self._target == "cpu" else np.int8
        self._constant(f"{name}_scale", grid.step)
        self._constant(f"{name}_zero_point", np.array(grid.zero_point, dtype))
        self._linear(kind, tensor, name, output)

    def _stored(self, name: str, levels: np.ndarray, scale: np.ndarray) -> None:
        self._constant(f"{name}_quantised", levels)
        self._constant(f"{name}_scale", scale)
        self._constant(f"{name}_zero_point", np.zeros(len(scale), levels.dtype))
        self._linear("Dequantize", f"{name}_quantised", name, name, axis=0)

    def _linear(self, kind: str, tensor: str, grid: str, output: str, **more: Any) -> None:
        inputs = [tensor, f"{grid}_scale", f"{grid}_zero_point"]
        self._node(f"{kind}Linear", inputs, output, **more)

    def _scaled(self, tensor: str, output: str, factors: np.ndarray) -> str:
        """`output`, which is `tensor` with its channels multiplied, or `tensor` where all are 1."""
        if (factors == 1).all():
            return tensor
        self._constant(f"{output}_factors", factors.astype(np.float32).reshape(-1, 1, 1))
        self._node("Mul", [tensor, f"{output}_factors"], output)
        return output

    def _node(self, kind: str, inputs: list[str], output: str, **more: Any) -> None:
        from onnx import helper

        name = f"{output}_{kind.lower()}"
        self._added.add(name)
        self._graph.node.append(helper.make_node(kind, inputs, [output], name, **more))

    def _constant(self, name: str, value: Any) -> None:
        from onnx import numpy_helper

        if name not in self._added:
            self._added.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
