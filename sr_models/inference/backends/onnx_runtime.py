"""ONNX Runtime on the CPU, in fp32 and with a quantised file.

Making the files is `sr_models/export/`.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from sr_models.inference.backends.backend import Backend, Run, Subject, only_on_cpu
from sr_models.inference.backends.graphs import INT8, fp32_graph, proven, without_int8
from sr_models.inference.backends.mish import without_mish


def _without_runtime(subject: Subject) -> str | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install 'sr-distillery[export]'"
    return only_on_cpu(subject)


def _without_int8(subject: Subject) -> str | None:
    return _without_runtime(subject) or without_int8(subject)


def _fp32(subject: Subject) -> Run:
    return proven(_session(fp32_graph(subject)), subject, exact=True)


def _int8(subject: Subject) -> Run:
    return proven(_session(subject.graphs[INT8]()), subject, exact=False)


def _session(graph: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between tiles take the cores from reading and writing the pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    fast, providers = without_mish(graph), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(fast, options, providers=providers)
    (name,) = (entry.name for entry in session.get_inputs())

    def run(lr: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: lr.numpy()})[0])

    return run


ONNX_RUNTIME = Backend("onnxruntime", "exact", _without_runtime, _fp32)
ONNX_RUNTIME_INT8 = Backend("onnxruntime-int8", "near", _without_int8, _int8, integer=True)
