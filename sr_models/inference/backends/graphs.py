"""The ONNX file that a runtime is given: the one beside the weights, or one exported here.

How a graph is made is `sr_models/export/onnx.py`; what runs it are the runtimes' modules.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sr_models.experts.loading import Expert
from sr_models.export import onnx, tracing
from sr_models.export.onnx import OnnxExportError, export_onnx
from sr_models.export.weights import digest_weights
from sr_models.inference import folding
from sr_models.inference.backends.backend import EXACT_TOLERANCE, BackendError, Run, Subject
from sr_models.one_line import one_line

FP32, INT8 = "fp32", "int8-cpu"
_SIDE = 48  # px of the picture on which a graph is compared with torch
#: PSNR (dB) to torch below which a quantised file is not of these weights, or wrongly computed.
_QUANTISED_FLOOR = 30.0


def fp32_graph(subject: Subject) -> bytes:
    """The ONNX file of the network in fp32: the one beside the weights, or one exported here.

    A network that folds is exported even so, since its file has more operations; without the
    packages for it that file does.

    Raises:
        BackendError: there is none, and it cannot be exported.
    """
    beside = subject.graphs.get(FP32)
    if beside is not None and subject.folded is subject.expert:
        return beside()
    try:
        return _exported(subject)
    except OnnxExportError as error:
        if beside is not None:
            return beside()
        raise BackendError(str(error)) from error


def without_int8(subject: Subject) -> str | None:
    """Why there is no quantised file to run."""
    if INT8 in subject.graphs:
        return None
    return "there is no <model>_x<scale>_int8-cpu.onnx beside the weights"


def proven(run: Run, subject: Subject, exact: bool) -> Run:
    """`run`, after a small picture came out of it as it does of torch.

    A file beside the weights may be of other weights, and runtimes have their own faults.

    Raises:
        BackendError: it differs.
    """
    expert = subject.expert
    side = max(expert.minimum, -(-_SIDE // expert.multiple) * expert.multiple)
    picture = _waves(side)
    with torch.inference_mode():
        expected = expert.call(expert.model, picture.clone())
    try:
        found = run(picture)
    except Exception as error:  # every runtime fails with classes of its own
        line = one_line(error)[:200]
        raise BackendError(
            f"the runtime fails on the ONNX file of these weights: {line}"
        ) from error
    if found.shape != expected.shape:
        raise BackendError(
            f"the ONNX file gives {tuple(found.shape)} where these weights give "
            f"{tuple(expected.shape)}: export it again"
        )
    difference = (found - expected).abs()
    allowed = EXACT_TOLERANCE * max(1.0, float(expected.abs().max()))  # as for export
    if exact and not float(difference.max()) <= allowed:
        raise BackendError(
            f"the ONNX file differs from these weights by {float(difference.max()):.2g}: "
            "export it again"
        )
    squared = float(difference.square().mean())
    if not exact and not squared <= 10 ** (-_QUANTISED_FLOOR / 10):
        raise BackendError(
            f"{-10 * math.log10(squared):.1f} dB to torch is below {_QUANTISED_FLOOR:.0f}: the "
            "quantised file is of other weights, or this runtime computes it wrongly"
        )
    return run


def _exported(subject: Subject) -> bytes:
    """The folded network's graph, from the cache where it is kept there."""
    if subject.cache is None:
        with tempfile.TemporaryDirectory() as folder:
            return _export(subject.folded, Path(folder) / "network.onnx")
    digest = digest_weights(subject.folded.model.state_dict())
    kept = subject.cache / f"{digest[:32]}-{_exporter()}.onnx"
    if kept.is_file():
        return kept.read_bytes()
    subject.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=subject.cache) as folder:
        content = _export(subject.folded, Path(folder) / "network.onnx")
        (Path(folder) / "network.onnx").replace(kept)
    return content


@cache
def _exporter() -> str:
    """What else decides about a graph: the version of torch and our own code."""
    code = b"".join(Path(str(m.__file__)).read_bytes() for m in (folding, onnx, tracing))
    return f"torch{torch.__version__}-{hashlib.sha256(code).hexdigest()[:12]}"


def _export(expert: Expert, path: Path) -> bytes:
    export_onnx(expert.model, expert.scale, expert.multiple, path)
    return path.read_bytes()


def _waves(side: int) -> Tensor:
    """A picture [1, 3, side, side] of smooth waves, of another direction in each channel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [torch.sin(a * x / 5 + b * y / 7) for a, b in ((1, 0.3), (-0.4, 1), (0.8, 0.8))]
    return (0.5 + 0.4 * torch.stack(waves))[None].float()
