"""CoreML packages of networks, fp16, converted by coremltools on any system and zipped to one file.

Running one needs macOS: only what the package says of itself is checked here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import uuid
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sr_models.export.errors import ExportError, ExportPackagesError
from sr_models.export.onnx import INPUT, graph_copy
from sr_models.export.tracing import OUTPUT
from sr_models.one_line import one_line

_LARGEST = 2048  # px of an LR side that a package of free size takes
_FIXED = 256  # px of an LR side where a network bakes its size in
_NAMESPACE = uuid.UUID("5a0f5f3c-6f0e-4d2e-9a53-1d9f2b4c7e10")
_DAY = (2000, 1, 1, 0, 0, 0)  # of every entry of the zip: the same bytes every time


class CoreMLError(ExportError):
    """A network cannot be converted."""


class CoreMLPackagesError(CoreMLError, ExportPackagesError):
    """coremltools is not installed."""


@dataclass(frozen=True)
class CoreMLReport:
    """What was written."""

    input: str
    output: str
    smallest: int
    """Of an LR side (px)."""
    largest: int
    """Of an LR side (px); `smallest` where the size is fixed."""
    multiple: int
    operations: Mapping[str, int]
    """Kind -> number of them in the program."""


def export_coreml(
    network: nn.Module,
    scale: int,
    multiple: int,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> CoreMLReport:
    """Writes `network` as a zip that holds `<stem>`, an mlpackage for iOS 17 and macOS 14.

    Its input is `input`, float32 [1, 3, H, W], its output `output`, float32, both in [0, 1]; H and
    W are free up to 2048 px, or fixed at about 256 where the network bakes them in. Arithmetic is
    fp16.

    Args:
        network: any SR network; a copy is put on the CPU in eval mode.
        scale: upscaling factor.
        multiple: H and W must be multiples of it.
        path: file to write; its name ends in `.mlpackage.zip`.
        metadata: strings that the package tells beside scale and multiple.

    Raises:
        CoreMLError: coremltools is missing, or the network cannot be converted; no file is written.
    """
    if importlib.util.find_spec("coremltools") is None:
        raise CoreMLPackagesError(
            "CoreML export needs coremltools: pip install 'sr-distillery[coreml]', or set "
            "export.coreml: false in the recipe"
        )
    wrapped = _Named(graph_copy(network)).eval()
    side = -(-_FIXED // multiple) * multiple
    unit = multiple * -(-8 // multiple)
    try:
        smallest, largest = unit, _LARGEST // multiple * multiple
        converted = _converted(wrapped, (smallest, largest), multiple)
    except Exception:  # some bake their size in
        smallest = largest = side
        try:
            converted = _converted(wrapped, (side, side), multiple)
        except Exception as error:  # whatever stops the converter
            reason = one_line(error)
            raise CoreMLError(f"{type(network).__name__} cannot be converted: {reason}") from error
    spec = converted.get_spec()
    _describe(spec, {"scale": str(scale), "multiple": str(multiple), **(metadata or {})})
    names = ([i.name for i in spec.description.input], [o.name for o in spec.description.output])
    if names != ([INPUT], [OUTPUT]):
        raise CoreMLError(f"{path.name}: inputs and outputs are {names}")
    path.write_bytes(_zipped(spec, Path(converted.weights_dir), path.name.removesuffix(".zip")))
    return CoreMLReport(INPUT, OUTPUT, smallest, largest, multiple, _operations(spec))


class _Named(nn.Module):
    """Gives the input its name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in the package
        return self.network(input)


def _converted(network: nn.Module, sides: tuple[int, int], multiple: int) -> Any:
    """The converted model; sides of one value are fixed."""
    with _quiet():
        import coremltools

        low, high = sides
        dynamic = None
        if low < high:
            smallest, largest = -(-low // multiple), high // multiple
            dims = [torch.export.Dim(n, min=smallest, max=largest) for n in ("height", "width")]
            dynamic = ({2: multiple * dims[0], 3: multiple * dims[1]},)
            example = torch.rand(1, 3, 2 * low, 3 * low)
        else:
            example = torch.rand(1, 3, low, low)
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
        return coremltools.convert(
            program.run_decompositions({}),
            outputs=[coremltools.TensorType(name=OUTPUT, dtype=np.float32)],
            minimum_deployment_target=coremltools.target.iOS17,
            convert_to="mlprogram",
            compute_precision=coremltools.precision.FLOAT16,
            skip_model_load=True,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """coremltools reports its missing Mac libraries and its progress."""
    loggers = [logging.getLogger(n) for n in ("coremltools", "coremltools.converters")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(spec: Any, metadata: Mapping[str, str]) -> None:
    told = spec.description.metadata
    told.userDefined.clear()  # versions and the day: no two packages would be the same
    for key, value in sorted(metadata.items()):
        told.userDefined[key] = value
    told.license = metadata.get("licence", "")


def _operations(spec: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                if operation.type != "const":
                    counts[operation.type] = counts.get(operation.type, 0) + 1
    return dict(sorted(counts.items()))


def _zipped(spec: Any, weights: Path, stem: str) -> bytes:
    """The package as a zip: the same bytes for the same network."""
    files = {
        f"Data/com.apple.CoreML/weights/{f.name}": f.read_bytes()
        for f in sorted(weights.iterdir())
        if f.is_file()
    }
    model = "com.apple.CoreML/model.mlmodel"
    files[f"Data/{model}"] = spec.SerializeToString(deterministic=True)
    entries = {
        model: ("model.mlmodel", "CoreML Model Specification"),
        "com.apple.CoreML/weights": ("weights", "CoreML Model Weights"),
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            str(uuid.uuid5(_NAMESPACE, place)): {
                "author": "com.apple.CoreML",
                "description": said,
                "name": name,
                "path": place,
            }
            for place, (name, said) in entries.items()
        },
        "rootModelIdentifier": str(uuid.uuid5(_NAMESPACE, model)),
    }
    files["Manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{stem}/{name}", _DAY)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()
