"""Running an ONNX graph on what executes int8 on a CPU: ONNX Runtime and OpenVINO.

Only checks and calibration run here; upscaling pictures is `sr_models/inference`.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def open_onnxruntime(content: bytes, threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU; 0 threads are as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_onnxruntime(content: bytes, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the graph makes of each of `images`, float32 [1, 3, h, w] -> [1, 3, H, W]."""
    session = open_onnxruntime(content)
    name = session.get_inputs()[0].name
    return [session.run(None, {name: image})[0] for image in images]


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def run_openvino(content: bytes, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As `run_onnxruntime`, by OpenVINO with float parts in fp32 (its own choice may be bf16)."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return [np.array(compiled(image)[0]) for image in images]


def integer_convolutions(content: bytes) -> int:
    """How many convolutions ONNX Runtime executes in integers."""
    return executed(content)["QLinearConv"]


def executed(content: bytes) -> Counter[str]:
    """Kind of node -> how many ONNX Runtime executes: those of its own graph."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # it warns that such a graph is of this machine alone
        options.optimized_model_filepath = str(optimised)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        model = onnx.load(optimised, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)
