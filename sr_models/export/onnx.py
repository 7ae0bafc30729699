"""ONNX fp32 graphs with free batch, height and width, checked against torch at untraced sizes.

A graph is written only when the program exports symbolically first; what torch.onnx would bake in
silently is an error here. Other precisions and other runtimes do not belong in this module.
"""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.export.weights import is_merging_convolution

OPSET = 18
INPUT, OUTPUT = "input", "output"
LR_INPUT = "lr"
_LARGEST = 16_384  # px of an LR side that the exported program promises to handle
_SEED = 20251


class OnnxExportError(Exception):
    """A network cannot be exported, or its graph does not compute what torch computes."""


class OnnxPackagesError(OnnxExportError):
    """A package that the export needs is not installed."""


@dataclass(frozen=True)
class SizeCheck:
    """One comparison of the graph with torch."""

    shape: tuple[int, int, int, int]
    """Of the LR input."""
    max_difference: float


@dataclass(frozen=True)
class OnnxReport:
    """What was written and how far it is from torch."""

    opset: int
    inputs: tuple[str, ...]
    output: str
    multiple: int
    free_batch: bool
    """False where the network fixes the batch to 1, as some window attention does."""
    bytes: int
    checks: tuple[SizeCheck, ...]

    @property
    def max_difference(self) -> float:
        """Largest |ONNX - torch| over all checks."""
        return max(check.max_difference for check in self.checks)


def export_onnx(
    network: nn.Module,
    scale: int,
    multiple: int,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Writes `network` ([B, 3, H, W] -> [B, 3, scale H, scale W]) as an ONNX file.

    Args:
        network: any SR network; a copy is put on the CPU in eval mode.
        scale: upscaling factor.
        multiple: H and W must be multiples of it (1 where any size will do); it stands in the
            file's metadata, and whoever runs the graph pads.
        path: file to write.
        metadata: further string properties of the file.
        tolerance: largest accepted |ONNX - torch|.

    Raises:
        OnnxExportError: a package is missing, the network bakes sizes in, or a check fails; then
            no file is written.
    """
    return _export(
        _merged_copy(network),
        _plain_copy(network),
        (INPUT,),
        (1,),
        scale,
        multiple,
        path,
        dict(metadata or {}),
        tolerance,
    )


def export_gate_onnx(
    gate: nn.Module,
    experts: Sequence[str],
    scale: int,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Writes a gate fusion alone: inputs `lr` [B, 3, H, W] and, by each expert's name, its SR image
    [B, 3, scale H, scale W]; output `output`. The experts are not in the graph.

    Raises:
        OnnxExportError: as `export_onnx`, or an expert is named like another input or output.
    """
    clash = {LR_INPUT, OUTPUT} & set(experts)
    if clash:
        raise OnnxExportError(f"expert {clash.pop()!r} has the name of an ONNX input: rename it")
    return _export(
        _GateInputs(_merged_copy(gate), experts),
        _GateInputs(_plain_copy(gate), experts),
        (LR_INPUT, *experts),
        (1, *(scale for _ in experts)),
        scale,
        1,
        path,
        {"experts": ",".join(experts), **(metadata or {})},
        tolerance,
    )


class _GateInputs(nn.Module):
    """Takes the experts' images as positional inputs, as a graph has no dictionaries."""

    def __init__(self, gate: nn.Module, experts: Sequence[str]) -> None:
        super().__init__()
        self.gate = gate
        self.experts = tuple(experts)

    def forward(self, lr: Tensor, *sr: Tensor) -> Tensor:
        return self.gate(lr, dict(zip(self.experts, sr, strict=True)))


def _export(
    network: nn.Module,
    reference: nn.Module,
    names: Sequence[str],
    factors: Sequence[int],
    scale: int,
    multiple: int,
    path: Path,
    metadata: dict[str, str],
    tolerance: float,
) -> OnnxReport:
    """Exports `network`, cleans, writes and checks it against `reference`, the trained network.

    Input i has sides `factors[i]` times those of the LR.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    unit = multiple * -(-8 // multiple)
    free_batch, (height, width) = True, (2 * unit, 3 * unit)
    try:
        model = _trace(network, names, factors, multiple, _inputs((2, 3, height, width), factors))
    except OnnxExportError:
        free_batch = False
        model = _trace(network, names, factors, multiple, _inputs((1, 3, height, width), factors))
    _clean(model)
    everything = {"scale": str(scale), "multiple": str(multiple), **metadata}
    everything["batch"] = "free" if free_batch else "1"
    for key, value in sorted(everything.items()):
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString(deterministic=True)
    sizes = (
        (2 if free_batch else 1, 3, 3 * unit, 2 * unit),
        (1, 3, unit + multiple, 3 * unit + 3 * multiple),  # odd sides where any size will do
        (3 if free_batch else 1, 3, 4 * unit + multiple, unit + multiple),
    )
    checks = _compare(reference, content, names, factors, sizes)
    worst = max(checks, key=lambda check: check.max_difference)
    if not worst.max_difference <= tolerance:  # NaN fails too
        raise OnnxExportError(
            f"{path.name} differs from torch by {worst.max_difference:.2g} at input {worst.shape} "
            f"(at most {tolerance:.2g} is accepted)"
        )
    path.write_bytes(content)
    return OnnxReport(OPSET, tuple(names), OUTPUT, multiple, free_batch, len(content), checks)


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise OnnxPackagesError(
                f"ONNX export needs {package}: pip install 'sr-distillery[export]', "
                "or set export.onnx: false in the recipe"
            ) from error


def _plain_copy(network: nn.Module) -> nn.Module:
    """A CPU copy in eval mode, otherwise as it was trained."""
    return copy.deepcopy(network).cpu().float().eval()


def _merged_copy(network: nn.Module) -> nn.Module:
    """A CPU copy in eval mode whose merged convolutions are plain ones, which a graph can hold."""
    clone = _plain_copy(network)
    for parameter in clone.parameters():
        parameter.requires_grad_(False)
    for parent in list(clone.modules()):
        for name, module in list(parent.named_children()):
            if is_merging_convolution(module):
                module.update_params()  # type: ignore[operator]
                parts: list[nn.Module] = [module.eval_conv]  # type: ignore[list-item]
                if getattr(module, "has_relu", False):
                    parts.append(nn.LeakyReLU(0.05))
                setattr(parent, name, nn.Sequential(*parts))
    return clone


def _inputs(shape: tuple[int, int, int, int], factors: Sequence[int]) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(_SEED)
    b, c, h, w = shape
    return tuple(torch.rand(b, c, h * f, w * f, generator=random) for f in factors)


def _trace(
    network: nn.Module,
    names: Sequence[str],
    factors: Sequence[int],
    multiple: int,
    example: tuple[Tensor, ...],
) -> Any:
    """The ONNX model of `network`, not yet checked; an example batch of 1 stays fixed."""
    least = max(2, -(-4 // multiple))  # a free dimension must not be able to be 1
    height = torch.export.Dim("height", min=least, max=_LARGEST // multiple)
    width = torch.export.Dim("width", min=least, max=_LARGEST // multiple)
    batch = {} if example[0].shape[0] == 1 else {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = tuple({**batch, 2: multiple * f * height, 3: multiple * f * width} for f in factors)
    # A module whose forward takes *sr has its shapes nested as its arguments are.
    dynamic = shapes if len(shapes) == 1 else (shapes[0], shapes[1:])
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # else it reports every optional package that is absent
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(network, example, dynamic_shapes=dynamic)
            result = torch.onnx.export(
                program,
                (),
                opset_version=OPSET,
                dynamo=True,
                input_names=list(names),
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:  # whatever stops the tracer, no graph can hold this network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OnnxExportError(
            f"{type(network).__name__} cannot be exported with free height and width: {reason}"
        ) from error
    finally:
        exporter_log.setLevel(level)
    assert result is not None
    return result.model_proto


def _clean(model: Any) -> None:
    """Removes what the exporter notes down about this machine: stack traces and source paths."""
    del model.metadata_props[:]
    model.doc_string = ""
    graphs = [model.graph]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        graphs.append(function)
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        described = [*graph.node, *graph.value_info]
        for field in ("input", "output", "initializer"):
            described += [e for e in getattr(graph, field, ()) if not isinstance(e, str)]
        for entry in described:
            entry.doc_string = ""
            del entry.metadata_props[:]
        for node in graph.node:
            graphs += [a.g for a in node.attribute if a.HasField("g")]


def _compare(
    network: nn.Module,
    content: bytes,
    names: Sequence[str],
    factors: Sequence[int],
    sizes: Sequence[tuple[int, int, int, int]],
) -> tuple[SizeCheck, ...]:
    import onnx
    import onnxruntime

    onnx.checker.check_model(content, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise OnnxExportError(f"onnxruntime refuses the graph: {error}") from error
    checks = []
    for shape in sizes:
        inputs = _inputs(shape, factors)
        with torch.no_grad():
            expected = network(*inputs)
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        try:
            actual = torch.from_numpy(session.run([OUTPUT], feed)[0])
        except Exception as error:
            raise OnnxExportError(f"onnxruntime fails at input {shape}: {error}") from error
        if actual.shape != expected.shape:
            raise OnnxExportError(
                f"the graph gives {tuple(actual.shape)} at input {shape}, "
                f"torch {tuple(expected.shape)}"
            )
        checks.append(SizeCheck(shape, float((actual - expected).abs().max())))
    return tuple(checks)
