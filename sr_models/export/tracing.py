"""From a network to an ONNX graph with free batch, height and width, checked against torch.

A graph is written only when the program exports symbolically first; what torch.onnx would bake in
silently is an error here. Which networks and precisions there are is `onnx.py` and its like.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.export.errors import ExportError, ExportPackagesError
from sr_models.one_line import one_line

OPSET = 18
OUTPUT = "output"
_LARGEST = 16_384  # px of an LR side that the exported program promises to handle
_SEED = 20251


@dataclass(frozen=True)
class Input:
    """One input of a graph."""

    name: str
    channels: int = 3
    factor: int = 1
    """Its sides over those of the LR."""
    plane: bool = True
    """[B, channels, H, W]; False for one number a picture, [B]."""


class OnnxExportError(ExportError):
    """A network cannot be exported, or its graph does not compute what torch computes."""


class OnnxPackagesError(OnnxExportError, ExportPackagesError):
    """A package that the export needs is not installed."""


@dataclass(frozen=True)
class SizeCheck:
    """One comparison of the graph with torch."""

    shape: tuple[int, int, int, int]
    """Of the LR input."""
    max_difference: float
    share: float
    """`max_difference` over the largest |torch|, where that is more than the 1 of white."""


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


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, and at which sizes it works."""

    inputs: tuple[Input, ...]
    scale: int
    multiple: int = 1
    """LR sides must be multiples of it; whoever runs the graph pads."""
    outputs: tuple[str, ...] = (OUTPUT,)
    least: int = 4
    """LR sides from here on are promised (px)."""
    deferred: bool = False
    """Trust conditions that the exporter cannot prove, for networks that are known to hold them."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """String properties of the file, beside scale, multiple and batch."""


def write_graph(
    network: nn.Module,
    reference: nn.Module,
    signature: Signature,
    path: Path,
    tolerance: float,
) -> OnnxReport:
    """Exports `network`, cleans and checks the graph against `reference`, and writes it.

    Args:
        network: on the CPU, in eval mode, without anything that a graph cannot hold; positional
            inputs in the order of the signature, one output or a tuple of them.
        reference: the network as it was trained, of the same inputs and outputs.
        signature: names, shapes and sizes.
        path: file to write.
        tolerance: largest accepted |ONNX - torch| on uniform noise, at three sizes; of outputs
            beyond [-1, 1], as a share of the largest, since fp32 rounds large values coarser.

    Raises:
        OnnxExportError: a package is missing, the network bakes sizes in, or a check fails; then
            no file is written.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    unit = signature.multiple * -(-8 // signature.multiple)
    free_batch, sides = True, (2 * unit, 3 * unit)
    try:
        model = _trace(network, signature, _examples((2, 3, *sides), signature.inputs))
    except OnnxExportError:
        free_batch = False
        model = _trace(network, signature, _examples((1, 3, *sides), signature.inputs))
    clean(model)
    told = {"scale": str(signature.scale), "multiple": str(signature.multiple)}
    told |= {**signature.metadata, "batch": "free" if free_batch else "1"}
    for key, value in sorted(told.items()):
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString(deterministic=True)
    multiple = signature.multiple
    sizes = (
        (2 if free_batch else 1, 3, 3 * unit, 2 * unit),
        (1, 3, unit + multiple, 3 * unit + 3 * multiple),  # odd sides where any size will do
        (3 if free_batch else 1, 3, 4 * unit + multiple, unit + multiple),
    )
    checks = _compare(reference, content, signature, sizes)
    for check in checks:
        if not check.share <= tolerance:  # NaN fails too
            raise OnnxExportError(
                f"{path.name} differs from torch by {check.share:.2g} at input {check.shape} "
                f"(at most {tolerance:.2g} is accepted)"
            )
    path.write_bytes(content)
    return OnnxReport(
        OPSET,
        tuple(i.name for i in signature.inputs),
        OUTPUT,
        multiple,
        free_batch,
        len(content),
        checks,
    )


def clean(model: Any) -> None:
    """Removes from a ModelProto what an exporter notes down about its machine: traces and paths."""
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
        for repeated in ("input", "output", "initializer"):
            described += [e for e in getattr(graph, repeated, ()) if not isinstance(e, str)]
        for entry in described:
            entry.doc_string = ""
            del entry.metadata_props[:]
        for node in graph.node:
            graphs += [a.g for a in node.attribute if a.HasField("g")]


def open_session(model: bytes | Path) -> Any:
    """An onnxruntime session on the CPU, quiet about what it optimises.

    Raises:
        OnnxExportError: onnxruntime is missing or refuses the graph.
    """
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise OnnxExportError(f"onnxruntime refuses the graph: {error}") from error


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise OnnxPackagesError(
                f"ONNX export needs {package}: pip install 'sr-distillery[export]', "
                "or set export.onnx: false in the recipe"
            ) from error


def _examples(shape: tuple[int, int, int, int], inputs: Sequence[Input]) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(_SEED)
    b, _, h, w = shape
    sizes = ((b, i.channels, h * i.factor, w * i.factor) if i.plane else (b,) for i in inputs)
    return tuple(torch.rand(*size, generator=random) for size in sizes)


def _trace(network: nn.Module, signature: Signature, example: tuple[Tensor, ...]) -> Any:
    """The ONNX model of `network`, not yet checked; an example batch of 1 stays fixed."""
    multiple = signature.multiple
    smallest = max(2, -(-signature.least // multiple))  # a free dimension must not be able to be 1
    height = torch.export.Dim("height", min=smallest, max=_LARGEST // multiple)
    width = torch.export.Dim("width", min=smallest, max=_LARGEST // multiple)
    batch = {} if example[0].shape[0] == 1 else {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = tuple(
        {**batch, 2: multiple * i.factor * height, 3: multiple * i.factor * width}
        if i.plane
        else batch
        for i in signature.inputs
    )
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # else it reports every optional package that is absent
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network,
                example,
                dynamic_shapes=_nested(network, shapes),
                # Conditions that hold but cannot be proved are checked when the graph is run.
                prefer_deferred_runtime_asserts_over_guards=signature.deferred,
            )
            result = torch.onnx.export(
                program,
                (),
                opset_version=OPSET,
                dynamo=True,
                input_names=[i.name for i in signature.inputs],
                output_names=list(signature.outputs),
                verbose=False,
            )
    except Exception as error:  # whatever stops the tracer, no graph can hold this network
        what = f"{type(network).__name__} cannot be exported with free height and width"
        raise OnnxExportError(f"{what}: {one_line(error)}") from error
    finally:
        exporter_log.setLevel(level)
    assert result is not None
    return result.model_proto


def _nested(network: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shapes as `forward` takes its arguments: those of a `*given` are a tuple of their own."""
    code = type(network).forward.__code__
    gathers = bool(code.co_flags & 0x04)  # CO_VARARGS
    named = code.co_argcount - 1  # without self
    return (*shapes[:named], shapes[named:]) if gathers else shapes


def _compare(
    network: nn.Module,
    content: bytes,
    signature: Signature,
    sizes: Sequence[tuple[int, int, int, int]],
) -> tuple[SizeCheck, ...]:
    import onnx

    onnx.checker.check_model(content, full_check=True)
    session = open_session(content)
    checks = []
    for shape in sizes:
        examples = _examples(shape, signature.inputs)
        with torch.no_grad():
            given = network(*examples)
        expected = given if isinstance(given, tuple) else (given,)
        feed = {i.name: v.numpy() for i, v in zip(signature.inputs, examples, strict=True)}
        try:
            actual = session.run(list(signature.outputs), feed)
        except Exception as error:
            raise OnnxExportError(f"onnxruntime fails at input {shape}: {error}") from error
        found = [_difference(a, e, shape) for a, e in zip(actual, expected, strict=True)]
        shares = [d / max(1, float(e.abs().max())) for d, e in zip(found, expected, strict=True)]
        checks.append(SizeCheck(shape, max(found), max(shares)))
    return tuple(checks)


def _difference(actual: Any, expected: Tensor, shape: tuple[int, int, int, int]) -> float:
    if actual.shape != tuple(expected.shape):
        raise OnnxExportError(
            f"the graph gives {tuple(actual.shape)} at input {shape}, torch {tuple(expected.shape)}"
        )
    return float((torch.from_numpy(actual) - expected).abs().max())
