"""Every backend by its name.

What each is stands in its own module and in docs/inference.md.
"""

from __future__ import annotations

from sr_models.inference.backends.backend import Backend, BackendError
from sr_models.inference.backends.compiled import COMPILE, COMPILE_BF16
from sr_models.inference.backends.eager import BF16, CHANNELS_LAST, TORCH
from sr_models.inference.backends.onnx_runtime import ONNX_RUNTIME, ONNX_RUNTIME_INT8
from sr_models.inference.backends.openvino import OPENVINO, OPENVINO_BF16, OPENVINO_INT8

#: The first is what all others are compared with.
BACKENDS: tuple[Backend, ...] = (
    TORCH,
    CHANNELS_LAST,
    BF16,
    COMPILE,
    COMPILE_BF16,
    ONNX_RUNTIME,
    ONNX_RUNTIME_INT8,
    OPENVINO,
    OPENVINO_BF16,
    OPENVINO_INT8,
)
#: What runs a network that has not been measured: exact, everywhere there, needs no preparing.
UNMEASURED = CHANNELS_LAST


def find_backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        BackendError: there is none; the message lists what there is.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise BackendError(f"there is no backend {name!r}: take auto, exact or one of {known}")
