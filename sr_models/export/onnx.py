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

from sr_models.export.fusing import fused_copy, with_plain_convolutions

OPSET = 18
INPUT, OUTPUT = "input", "output"
LR_INPUT = "lr"
_LARGEST = 16_384  # px of an LR side that the exported program promises to handle
_SEED = 20251


@dataclass(frozen=True)
class Input:
    """One input of a graph."""

    name: str
    channels: int = 3
    factor: int = 1
    """Its sides over those of the LR."""


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
        (Input(INPUT),),
        scale,
        multiple,
        path,
        dict(metadata or {}),
        tolerance,
    )


def export_fusion_onnx(
    fusion: nn.Module,
    experts: Sequence[str],
    features: Mapping[str, int],
    scale: int,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Writes a fusion alone, its experts not in the graph; its output is `output`.

    Inputs are `lr` [B, 3, H, W], by each expert's name its SR image [B, 3, scale H, scale W] and,
    where the fusion needs them, `<name>_features` [B, C, H, W] with the channels of `features`.

    Raises:
        OnnxExportError: as `export_onnx`, or an expert is named like another input or output.
    """
    maps = tuple(f"{name}_features" for name in features)
    clash = {LR_INPUT, OUTPUT, *maps} & set(experts)
    if clash:
        raise OnnxExportError(f"expert {clash.pop()!r} has the name of an ONNX input: rename it")
    return _export(
        _FusionInputs(_merged_copy(fusion), experts, tuple(features)),
        _FusionInputs(_plain_copy(fusion), experts, tuple(features)),
        (
            Input(LR_INPUT),
            *(Input(name, factor=scale) for name in experts),
            *(Input(n, channels=c) for n, c in zip(maps, features.values(), strict=True)),
        ),
        scale,
        1,
        path,
        {"experts": ",".join(experts), **(metadata or {})},
        tolerance,
        least=9,  # px: from there on every transform has two blocks, on one the exporter settles
        deferred=True,
    )


class _FusionInputs(nn.Module):
    """Takes the experts' images as positional inputs, as a graph has no dictionaries."""

    def __init__(self, fusion: nn.Module, experts: Sequence[str], features: Sequence[str]) -> None:
        super().__init__()
        self.fusion = fusion
        self.experts, self.features = tuple(experts), tuple(features)

    def forward(self, lr: Tensor, *given: Tensor) -> Tensor:
        count = len(self.experts)
        pictures = dict(zip(self.experts, given[:count], strict=True))
        if not self.features:
            return self.fusion(lr, pictures)
        return self.fusion(lr, pictures, dict(zip(self.features, given[count:], strict=True)))


def _export(
    network: nn.Module,
    reference: nn.Module,
    inputs: Sequence[Input],
    scale: int,
    multiple: int,
    path: Path,
    metadata: dict[str, str],
    tolerance: float,
    least: int = 4,
    deferred: bool = False,
) -> OnnxReport:
    """Exports `network`, cleans, writes and checks it against `reference`, the trained network.

    The graph promises LR sides from `least` px; `deferred` trusts conditions that the exporter
    cannot prove, for networks that are known to hold them.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    unit = multiple * -(-8 // multiple)
    free_batch, (height, width) = True, (2 * unit, 3 * unit)
    try:
        model = _trace(
            network, inputs, multiple, least, deferred, _examples((2, 3, height, width), inputs)
        )
    except OnnxExportError:
        free_batch = False
        model = _trace(
            network, inputs, multiple, least, deferred, _examples((1, 3, height, width), inputs)
        )
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
    checks = _compare(reference, content, inputs, sizes)
    worst = max(checks, key=lambda check: check.max_difference)
    if not worst.max_difference <= tolerance:  # NaN fails too
        raise OnnxExportError(
            f"{path.name} differs from torch by {worst.max_difference:.2g} at input {worst.shape} "
            f"(at most {tolerance:.2g} is accepted)"
        )
    path.write_bytes(content)
    return OnnxReport(
        OPSET, tuple(i.name for i in inputs), OUTPUT, multiple, free_batch, len(content), checks
    )


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
    clone = fused_copy(network).cpu().float().requires_grad_(False)
    return with_plain_convolutions(clone)


def _examples(shape: tuple[int, int, int, int], inputs: Sequence[Input]) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(_SEED)
    b, _, h, w = shape
    return tuple(
        torch.rand(b, i.channels, h * i.factor, w * i.factor, generator=random) for i in inputs
    )


def _trace(
    network: nn.Module,
    inputs: Sequence[Input],
    multiple: int,
    least: int,
    deferred: bool,
    example: tuple[Tensor, ...],
) -> Any:
    """The ONNX model of `network`, not yet checked; an example batch of 1 stays fixed."""
    smallest = max(2, -(-least // multiple))  # a free dimension must not be able to be 1
    height = torch.export.Dim("height", min=smallest, max=_LARGEST // multiple)
    width = torch.export.Dim("width", min=smallest, max=_LARGEST // multiple)
    batch = {} if example[0].shape[0] == 1 else {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = tuple(
        {**batch, 2: multiple * f * height, 3: multiple * f * width}
        for f in (i.factor for i in inputs)
    )
    # A module whose forward takes *sr has its shapes nested as its arguments are.
    dynamic = shapes if len(shapes) == 1 else (shapes[0], shapes[1:])
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # else it reports every optional package that is absent
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network,
                example,
                dynamic_shapes=dynamic,
                # Conditions that hold but cannot be proved are checked when the graph is run.
                prefer_deferred_runtime_asserts_over_guards=deferred,
            )
            result = torch.onnx.export(
                program,
                (),
                opset_version=OPSET,
                dynamo=True,
                input_names=[i.name for i in inputs],
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
    inputs: Sequence[Input],
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
        examples = _examples(shape, inputs)
        with torch.no_grad():
            expected = network(*examples)
        feed = {i.name: value.numpy() for i, value in zip(inputs, examples, strict=True)}
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
