"""Mish written anew for ONNX Runtime: the same values from end to end, and only there."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from sr_models.export.int8.runtimes import executed, run_onnxruntime
from sr_models.export.onnx import export_onnx
from sr_models.inference.backends.mish import without_mish


def graph(*kinds: str) -> bytes:
    """One node after the other."""
    names = ["input", *(f"t{i}" for i in range(len(kinds) - 1)), "output"]
    shape = ["b", "c", "h", "w"]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in names[:: len(kinds)]
    ]
    nodes = [helper.make_node(k, [names[i]], [names[i + 1]], k) for i, k in enumerate(kinds)]
    made = helper.make_graph(nodes, "mish", ends[:1], ends[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def test_every_value_is_that_of_mish() -> None:
    x = np.linspace(-80, 100, 1_000_001, dtype=np.float32)
    x = np.concatenate([x, np.float32([0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    content = without_mish(graph("Mish"))
    (found,) = run_onnxruntime(content, [x.reshape(1, 1, 1, -1)])
    exact = x.astype(np.float64) * np.tanh(np.logaddexp(0, x.astype(np.float64)))
    np.testing.assert_allclose(found.ravel(), exact, rtol=1e-6, atol=1e-30)
    assert "Mish" not in executed(content)


def test_a_graph_without_mish_stays_as_it_is() -> None:
    content = graph("Relu")
    assert without_mish(content) is content


def test_each_mish_of_a_network_is_its_own(tmp_path: Path) -> None:
    torch.manual_seed(2)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.Mish(), nn.Conv2d(6, 6, 1), nn.Mish())
    export_onnx(nn.Sequential(*layers, nn.Conv2d(6, 12, 1), nn.PixelShuffle(2)), 2, 1,
                path := tmp_path / "x.onnx")  # fmt: skip
    content = path.read_bytes()
    again = without_mish(content)
    onnx.checker.check_model(onnx.load_from_string(again), full_check=True)
    picture = [np.random.default_rng(3).random((2, 3, 9, 7), np.float32)]
    one, two = (run_onnxruntime(c, picture)[0] for c in (content, again))
    assert one == pytest.approx(two, abs=1e-5)
    assert sum(n.op_type == "Mish" for n in onnx.load_from_string(content).graph.node) == 2
