"""QuantizeLinear and DequantizeLinear nodes, and what they make of the nodes around them.

What is rounded, and where, is decided in `qdq.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sr_models.export.int8.between import Gate, Join
from sr_models.export.int8.graph import Convolution
from sr_models.export.int8.grids import Grid, Target, side_by_side

_TINY = 1e-8
_BIAS_LIMIT = 2.0**30  # of an int32 bias, with room for what is added to it
_TO_PIXELS, _TO_PLANES = (0, 2, 3, 1), (0, 3, 1, 2)  # of [B, C, H, W]: channels last, and back


class Writer:
    """Adds nodes and constants to a graph whose nodes are written anew in their order.

    Args:
        model: `onnx.ModelProto`.
        grids: of every tensor that is rounded, and of maps side by side.
        offsets: maps side by side -> what `side_by_side` says of their zero points.
        target: as of `quantised`.
        outputs: tensors that are rounded for every reader.
    """

    def __init__(
        self,
        model: Any,
        grids: Mapping[str, Grid],
        offsets: Mapping[str, np.ndarray],
        target: Target,
        outputs: frozenset[str],
    ) -> None:
        self._graph, self._grids, self._offsets = model.graph, dict(grids), offsets
        self._target, self._outputs = target, outputs
        self._added: set[str] = set()

    def append(self, node: Any) -> None:
        """A node as it is."""
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

    def look_up(self, node: Any) -> None:
        """The sigmoid of a gate on 0..255 / 256: 0.5 is a level of it."""
        name = node.output[0]
        self._constant(f"{name}_scale", np.float32(1 / 256))
        self._constant(f"{name}_zero_point", np.uint8(0))
        node.output[0] = f"{name}_float"
        self.append(node)
        self._linear("Quantize", f"{name}_float", name, f"{name}_quantised")

    def restore_gate(self, gate: Gate) -> None:
        """What is left of the sigmoid when a constant is subtracted."""
        self._constant(f"{gate.result}_scale", np.float32(1 / 256))
        self._constant(f"{gate.result}_zero_point", np.uint8(gate.zero_point))
        self._linear("Dequantize", f"{gate.sigmoid}_quantised", gate.result, gate.result)

    def shuffle(self, node: Any) -> None:
        """A pixel shuffle of bytes, and its result in float."""
        source, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{source}_quantised", f"{result}_quantised"
        self.append(node)
        self._linear("Dequantize", f"{result}_quantised", source, result)

    def join(self, node: Any) -> None:
        """Bytes side by side, which convolutions read."""
        node.input[:] = [f"{name}_quantised" for name in node.input]
        node.output[0] = f"{node.output[0]}_quantised"
        self.append(node)

    def turn(self, node: Any) -> None:
        """A node whose result goes through channels last and back, which costs nothing.

        ONNX Runtime moves a transposition on where at least half of what a node reads is transposed
        (`onnx_transpose_optimization.cc`), so a sum with what a float convolution makes would stop
        those of the integer convolutions, and each would transpose its input and its output. It
        would drop a pair of transpositions at once but for the reshape.
        """
        name = node.output[0]
        node.output[0] = f"{name}_planes"
        self.append(node)
        self._constant("same_shape", np.zeros(4, np.int64))
        self._node("Transpose", [f"{name}_planes"], f"{name}_pixels", perm=_TO_PIXELS)
        self._node("Reshape", [f"{name}_pixels", "same_shape"], f"{name}_reshaped")
        self._node("Transpose", [f"{name}_reshaped"], name, perm=_TO_PLANES)

    def multiply(self, node: Any, convolution: Convolution, join: Join) -> None:
        """A 1x1 convolution in float of bytes side by side and, added to it, of what is no bytes.

        A product of matrices with an int8 one gives float, a convolution would be rounded.
        """
        ends = np.cumsum([0, *(len(self._grids[name].scale) for name in join.parts)])
        channels = [np.arange(*ends[i : i + 2]) for i in range(len(join.parts))]
        weights = convolution.weights[:, :, 0, 0].astype(np.float64)
        x = f"{join.result}_of_bytes"
        self._grids[x], off = side_by_side([self._grids[join.parts[i]] for i in join.rounded])
        scale, levels = _levels(
            weights[:, np.concatenate([channels[i] for i in join.rounded])] * self._grids[x].evening
        )
        assert convolution.biases is not None
        biases = convolution.biases - (levels @ off) * scale * self._grids[x].step
        names = [f"{join.parts[i]}_quantised" for i in join.rounded]
        self._node("Concat", names, f"{x}_planes", axis=1)
        self._node("Transpose", [f"{x}_planes"], f"{x}_quantised", perm=_TO_PIXELS)
        self.restore(x, x)
        self._stored(f"{node.name}_matrix", levels.T.astype(np.int8), scale, axis=1)
        self._node("MatMul", [x, f"{node.name}_matrix"], f"{node.name}_product")
        self._constant(f"{node.name}_offset", biases.astype(np.float32))
        made = f"{node.name}_of_bytes"
        self._node("Add", [f"{node.name}_product", f"{node.name}_offset"], made)
        if floats := [i for i in range(len(join.parts)) if i not in join.rounded]:
            rest, read = f"{node.name}_of_floats", join.parts[floats[0]]
            if len(floats) > 1:
                read = f"{join.result}_of_floats"
                self._node("Concat", [join.parts[i] for i in floats], read, axis=1)
            # A product of matrices as well: a convolution would want planes, and their sum pixels.
            matrix = weights[:, np.concatenate([channels[i] for i in floats])].T
            self._constant(f"{rest}_matrix", matrix.astype(np.float32))
            self._node("Transpose", [read], f"{rest}_pixels", perm=_TO_PIXELS)
            self._node("MatMul", [f"{rest}_pixels", f"{rest}_matrix"], rest)
            made = f"{node.name}_pixels"
            self._node("Add", [f"{node.name}_of_bytes", rest], made)
        self._node("Transpose", [made], node.output[0], perm=_TO_PLANES)

    def rewire(self, node: Any, convolution: Convolution) -> None:
        """`node` reads restored input, weights and bias, with a restore of its own for each."""
        step = self._grids[convolution.input].step
        x = f"{convolution.input}_for_{node.name}"
        self.restore(convolution.input, x)
        weights, biases = self._evened(convolution)
        # A channel of nearly no weight must not push its bias out of int32.
        least = 0.0 if biases is None else np.abs(biases) / (float(step) * _BIAS_LIMIT)
        scale, levels = _levels(weights, least)
        node.input[0] = x
        node.input[1] = f"{node.name}_weight"
        self._stored(node.input[1], levels.astype(np.int8), scale)
        if biases is None:
            return
        node.input[2] = f"{node.name}_bias"
        if self._target == "cpu":
            both = (scale * step).astype(np.float32)
            whole = np.round(biases.astype(np.float64) / both)
            if convolution.input in self._offsets:
                whole -= levels[:, :, 0, 0] @ self._offsets[convolution.input]
            self._stored(node.input[2], whole.astype(np.int32), both)
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

    def _stored(self, name: str, levels: np.ndarray, scale: np.ndarray, axis: int = 0) -> None:
        self._constant(f"{name}_quantised", levels)
        self._constant(f"{name}_scale", scale)
        self._constant(f"{name}_zero_point", np.zeros(len(scale), levels.dtype))
        self._linear("Dequantize", f"{name}_quantised", name, name, axis=axis)

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


def _levels(weights: np.ndarray, least: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(float32 scale of each output channel, `least` or above; whole numbers -127..127)."""
    scale = np.maximum(np.abs(weights).reshape(len(weights), -1).max(axis=1), _TINY) / 127
    scale = np.maximum(scale, least).astype(np.float32)
    levels = np.round(weights / scale.reshape(-1, *(1,) * (weights.ndim - 1)))
    return scale, levels.clip(-127, 127)
