"""OpenVINO on the CPU: fp32, its own bfloat16 where the CPU has it, and a quantised file.

It reads the same ONNX files as ONNX Runtime; making them is `sr_models/export/`.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sr_models.inference.backends.backend import Backend, Run, Subject, only_on_cpu
from sr_models.inference.backends.graphs import INT8, fp32_graph, proven, without_int8
from sr_models.inference.backends.shapes import ByShape


def _without_runtime(subject: Subject) -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'sr-distillery[openvino]'"
    return only_on_cpu(subject)


def _without_bf16(subject: Subject) -> str | None:
    reason = _without_runtime(subject)
    if reason is not None:
        return reason
    if not subject.expert.bf16_safe:
        return f"{subject.expert.architecture} is not known to bear bfloat16"
    import openvino

    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return None if "BF16" in capable else "this CPU has no bfloat16 arithmetic"


def _without_int8(subject: Subject) -> str | None:
    return _without_runtime(subject) or without_int8(subject)


def _fp32(subject: Subject) -> Run:
    return proven(_network(fp32_graph(subject), "f32"), subject, exact=True)


def _bf16(subject: Subject) -> Run:
    return proven(_network(fp32_graph(subject), "bf16"), subject, exact=False)


def _int8(subject: Subject) -> Run:
    return proven(_network(subject.graphs[INT8](), "f32"), subject, exact=False)


def _network(graph: bytes, precision: str) -> Run:
    """Runs `graph`; everything that is not quantised is computed in `precision`."""
    import openvino

    core = openvino.Core()
    model = core.read_model(graph)
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }

    def compiled(model: Any) -> Run:
        return partial(_infer, core.compile_model(model, "CPU", settings).create_infer_request())

    def special(shape: tuple[int, ...]) -> Run:
        fixed = model.clone()
        fixed.reshape(list(shape))
        return compiled(fixed)

    return ByShape(compiled(model), special)


def _infer(request: Any, lr: Tensor) -> Tensor:
    found = request.infer({0: lr.contiguous().numpy()}, share_inputs=True)
    # The request writes its next result into the same memory.
    return torch.from_numpy(found[0].copy())


OPENVINO = Backend("openvino", "exact", _without_runtime, _fp32, warm_up=2)
OPENVINO_BF16 = Backend("openvino-bf16", "near", _without_bf16, _bf16, warm_up=2)
OPENVINO_INT8 = Backend("openvino-int8", "near", _without_int8, _int8, warm_up=2, integer=True)
