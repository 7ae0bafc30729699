"""Mish in operations that ONNX Runtime is fast at, which its own Mish is not.

The files stay as they are: OpenVINO has a kernel for Mish that is faster than this.
"""

from __future__ import annotations

import importlib.util
from typing import Any

_TWO, _TOP = "mish_two", "mish_top"
_LARGEST = 20.0  # from there on Mish is its input in float32, and e^2x would overflow at last


def without_mish(graph: bytes) -> bytes:
    """An ONNX graph of float32 with each Mish as `x n / (n + 2)`, n = e (e + 2), e = exp(x).

    That is `x tanh(log(1 + e))`. Nothing of equal size is subtracted, so it is exact to rounding at
    both ends (3e-7 of a value). A graph without Mish stays as it is, and so does any without the
    package `onnx`.
    """
    if b"Mish" not in graph or importlib.util.find_spec("onnx") is None:
        return graph
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(graph)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.extend(_exponentials(node) if node.op_type == "Mish" else [node])
    for name, value in ((_TWO, 2.0), (_TOP, _LARGEST)):
        constant = numpy_helper.from_array(np.array(value, np.float32), name)
        model.graph.initializer.append(constant)
    content: bytes = model.SerializeToString()
    return content


def _exponentials(node: Any) -> list[Any]:
    from onnx import helper

    x, made = node.input[0], node.output[0]
    least, e, more, n, above, share = (
        f"{made}_{part}" for part in ("least", "e", "more", "n", "above", "share")
    )
    steps = (
        ("Min", [x, _TOP], least),
        ("Exp", [least], e),
        ("Add", [e, _TWO], more),
        ("Mul", [e, more], n),
        ("Add", [n, _TWO], above),
        ("Div", [n, above], share),
        ("Mul", [x, share], made),
    )
    return [helper.make_node(kind, read, [to], f"{to}_mish") for kind, read, to in steps]
