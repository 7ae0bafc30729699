"""Profiles, the lint, and building engines with a stand-in for TensorRT, which needs its GPU."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sr_models.export.onnx import export_onnx
from sr_models.export.tensorrt import (
    PROPERTY,
    Shapes,
    TensorRTError,
    build_engine,
    default_profile,
    lint,
    profile_json,
    profile_of,
    read_profile,
    with_profile,
)
from sr_models.networks import build_network


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("trt") / "a.onnx"
    network = build_network("Compact", 2, {"num_feat": 4, "num_conv": 1})
    export_onnx(network, 2, 1, path, half=True)
    return path.read_bytes()


@given(st.integers(1, 64), st.booleans())
def test_profiles_keep_to_the_multiple_and_survive_json(multiple: int, free: bool) -> None:
    profile = default_profile(multiple, free, "x")
    shapes = profile["x"]
    for shape in (shapes.smallest, shapes.usual, shapes.largest):
        assert shape[1] == 3 and shape[2] % multiple == 0 and shape[3] % multiple == 0
    assert (shapes.largest[0] > 1) is free
    assert read_profile(profile_json(profile)) == profile
    assert set(json.loads(profile_json(profile))["x"]) == {"min", "opt", "max"}


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[1]",
        '{"input": {"min": [1, 3, 64, 64]}}',
        '{"input": {"min": [1, 3, 64, 64], "opt": [1, 3, 32, 64], "max": [1, 3, 64, 64]}}',
        '{"input": {"min": [1, 3, 64], "opt": [1, 3, 64, 64], "max": [1, 3, 64, 64]}}',
        '{"input": {"min": [0, 3, 64, 64], "opt": [1, 3, 64, 64], "max": [1, 3, 64, 64]}}',
    ],
)
def test_damaged_profiles_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="profile"):
        read_profile(text)


def test_graphs_bring_their_profile_along(graph: bytes) -> None:
    assert profile_of(graph) == default_profile(1, True)
    own = {"input": Shapes((1, 3, 32, 32), (1, 3, 48, 48), (2, 3, 64, 64))}
    carrying = with_profile(graph, own)
    assert profile_of(carrying) == own
    assert {p.key for p in onnx.load_from_string(carrying).metadata_props} >= {PROPERTY, "scale"}
    assert onnx.load_from_string(carrying).graph == onnx.load_from_string(graph).graph


def test_our_graphs_are_clean(graph: bytes) -> None:
    assert lint(graph) == ()


def quantised(
    zero: np.ndarray | None, *, scale: float = 0.1, weights_axis: int = 0, bias: bool = False
) -> bytes:
    """x -> Q -> DQ -> Conv with per-channel int8 weights, and maybe an int32 bias."""
    weights = np.ones((2, 2, 1, 1), np.int8)
    constants = {
        "s": np.float32(scale),
        "w": weights,
        "ws": np.full(2, 0.1, np.float32),
        "wz": np.zeros(2, np.int8),
    }
    points = ["s"]
    if zero is not None:
        constants["z"] = zero
        points.append("z")
    inputs = ["a", "b"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *points], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", *points], ["a"], name="dq"),
        helper.make_node(
            "DequantizeLinear", ["w", "ws", "wz"], ["b"], name="dw", axis=weights_axis
        ),
    ]
    if bias:
        constants |= {"c": np.zeros(2, np.int32), "cs": np.full(2, 0.01, np.float32)}
        constants["cz"] = np.zeros(2, np.int32)
        nodes.append(
            helper.make_node("DequantizeLinear", ["c", "cs", "cz"], ["d"], name="dc", axis=0)
        )
        inputs.append("d")
    nodes.append(helper.make_node("Conv", inputs, ["y"], name="conv"))
    sides: list[Any] = ["n", 2, "h", "w"]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, sides)],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    return model.SerializeToString()


def test_int8_in_tensorrts_form_is_clean() -> None:
    assert lint(quantised(np.int8(0))) == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (quantised(np.uint8(0)), "uint8, TensorRT takes int8 alone"),
        (quantised(np.int8(3)), "zero point is not 0"),
        (quantised(None), "without a zero point"),
        (quantised(np.int8(0), scale=-0.1), "a scale is not above 0"),
        (quantised(np.int8(0), weights_axis=1), "for weights, axis 0"),
        (quantised(np.int8(0), bias=True), "its bias is quantised"),
    ],
)
def test_what_tensorrt_does_not_take_is_named(content: bytes, words: str) -> None:
    assert any(words in found for found in lint(content))


def test_other_faults_are_named(graph: bytes) -> None:
    assert "the ONNX checker refuses it" in lint(graph[: len(graph) // 2])[0]
    model = onnx.load_from_string(graph)
    model.opset_import[0].version = 8
    assert lint(model.SerializeToString())
    model = onnx.load_from_string(graph)
    model.graph.node[0].doc_string = 'File "/home/somebody/project/net.py", line 3'
    assert "a path of the machine" in lint(model.SerializeToString())[0]


def test_without_tensorrt_it_says_what_is_missing(graph: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(graph)
    with pytest.raises(TensorRTError, match=r"TensorRT is not installed here: build a\.onnx on"):
        build_engine(file, tmp_path / "a.engine")
    file.write_bytes(quantised(np.uint8(0)))
    with pytest.raises(TensorRTError, match="uint8"):  # found before TensorRT is asked for
        build_engine(file, tmp_path / "a.engine")
    assert not (tmp_path / "a.engine").exists()


class StandIn(types.ModuleType):
    """The few calls of TensorRT that building an engine makes; keeps what it was told."""

    def __init__(self, flags: dict[str, int], parses: bool = True) -> None:
        super().__init__("tensorrt")
        told: dict[str, Any] = {"shapes": {}}
        self.told = told

        class Profile:
            def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
                told["shapes"][name] = (low, usual, high)

        class Config:
            def set_memory_pool_limit(self, pool: Any, size: int) -> None:
                told["workspace"] = size

            def add_optimization_profile(self, profile: Profile) -> None:
                told["profiles"] = told.get("profiles", 0) + 1

        class Builder:
            def __init__(self, logger: Any) -> None: ...

            def create_network(self, flags: int) -> str:
                told["flags"] = flags
                return "network"

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: str, config: Config) -> bytes:
                return b"engine"

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: str, logger: Any) -> None: ...

            def parse(self, content: bytes) -> bool:
                told["content"] = content
                return parses

            def get_error(self, index: int) -> str:
                return "no such operator"

        class Logger:
            WARNING = 1

            def __init__(self, level: int) -> None: ...

        self.Builder, self.OnnxParser, self.Logger = Builder, OnnxParser, Logger
        self.MemoryPoolType = types.SimpleNamespace(WORKSPACE=0)
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(**flags)


@pytest.mark.parametrize(("flags", "expected"), [({"STRONGLY_TYPED": 1}, 2), ({}, 0)])
def test_an_engine_is_built_for_the_profile_of_the_file(
    flags: dict[str, int],
    expected: int,
    graph: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensorrt = StandIn(flags)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    own = {"input": Shapes((1, 3, 32, 32), (1, 3, 48, 48), (2, 3, 64, 64))}
    file = tmp_path / "a.onnx"
    file.write_bytes(with_profile(graph, own))
    assert build_engine(file, tmp_path / "a.engine") == own
    assert (tmp_path / "a.engine").read_bytes() == b"engine"
    shapes = own["input"]
    assert tensorrt.told["shapes"]["input"] == (shapes.smallest, shapes.usual, shapes.largest)
    assert tensorrt.told["flags"] == expected and tensorrt.told["content"] == file.read_bytes()


def test_a_graph_that_tensorrt_does_not_read_leaves_no_engine(
    graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", StandIn({}, parses=False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    file = tmp_path / "a.onnx"
    file.write_bytes(graph)
    with pytest.raises(TensorRTError, match=r"does not read a\.onnx: no such operator"):
        build_engine(file, tmp_path / "a.engine")
    assert not (tmp_path / "a.engine").exists()
