"""ONNX graphs with int8 weights and activations: one for CPUs, one in the form TensorRT takes.

Calibrating and choosing what stays in float is `sr_models/export/int8`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sr_assets.assets.exporting.onnx_files import BACKEND, fp32_graph, graph_runner
from sr_assets.assets.exporting.subject import Made, Refused, Subject
from sr_assets.lineage.stage import StageError
from sr_assets.stores.patches import TRAIN, VALIDATION

if TYPE_CHECKING:
    import numpy as np

Ranges = Mapping[str, Sequence[float]]

#: PSNR-Y (dB) that int8 may lose against HR, on the held-out pairs of its own gate.
MAX_DROP = 0.05
#: The same on the few pairs of the report, where it only finds a file that runs wrongly.
_REPORT_DROP = 0.2
#: The same on any one of them, where a mean may hide a picture that comes out wrong.
_PATCH_DROP = 0.5
_PAIRS = 32  # to calibrate on, and as many for the gate
_BACKENDS = {"cpu": BACKEND, "trt": f"{BACKEND}, not on TensorRT"}


def make_int8(subject: Subject) -> Iterator[Made | Refused]:
    """The two int8 graphs, of the folded network where it folds; none of a fusion.

    Ranges come from training, where it was quantisation-aware, else from pairs of the training
    split; the gate is held-out pairs. What is not meant for TensorRT is found by its lint.

    Raises:
        StageError: a package is missing.
    """
    from sr_models.export.tracing import OnnxExportError, OnnxPackagesError

    if subject.model.experts:
        return
    targets: tuple[Literal["cpu"], Literal["trt"]] = ("cpu", "trt")
    files = {target: subject.file("onnx", f"int8-{target}") for target in targets}
    try:
        graph, ranges = _folded_graph(subject)
    except OnnxPackagesError as error:
        raise StageError(str(error)) from error
    except OnnxExportError as error:
        yield from (Refused(file, str(error)) for file in files.values())
        return
    lr, hr = _patches(subject)
    for target in targets:
        yield _int8(subject, graph, ranges, lr, hr, target, files[target])


def _folded_graph(subject: Subject) -> tuple[Path, Ranges | None]:
    """The fp32 graph that runtimes are given, and the ranges of its convolutions from training.

    An int8 file of more operations than the fp32 graph beside it would be the slower of the two.

    Raises:
        OnnxExportError: as `export_onnx`.
    """
    from sr_models.export.fusing import fused_copy
    from sr_models.export.int8.qat_export import ranges_of_folded
    from sr_models.export.onnx import export_onnx
    from sr_models.inference.folding import folded_network

    model = subject.model
    ranges = model.description.get("ranges")  # of quantisation-aware training
    fused = fused_copy(model.network)
    network = folded_network(fused, model.sizes)
    if network is fused:
        return fp32_graph(subject), ranges
    path = subject.scratch / subject.file("onnx", "folded_fp32")
    export_onnx(network, model.scale, model.sizes[1], path, metadata=subject.properties)
    return path, None if ranges is None else ranges_of_folded(network, ranges)


def _patches(subject: Subject) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """LR and HR float32 [3, h, w]; every other pair calibrates, those between are the gate."""
    import numpy as np

    training, held_out = subject.pairs(_PAIRS, TRAIN), subject.pairs(_PAIRS, VALIDATION)
    count = min(len(training), len(held_out))
    pairs = list(chain.from_iterable(zip(training[:count], held_out[:count], strict=True)))
    hr = [sample.hr.transpose(2, 0, 1).astype(np.float32) / np.float32(255) for sample in pairs]
    return [sample.lr[0].numpy() for sample in pairs], hr


def _int8(
    subject: Subject,
    graph: Path,
    ranges: Ranges | None,
    lr: list[np.ndarray],
    hr: list[np.ndarray],
    target: Literal["cpu", "trt"],
    file: str,
) -> Made | Refused:
    from sr_models.export.int8 import Int8Error, export_int8
    from sr_models.export.parity import Gate
    from sr_models.export.tensorrt import lint

    path = subject.scratch / file
    try:
        report = export_int8(
            graph,
            lr,
            hr,
            path,
            scale=subject.model.scale,
            target=target,
            max_drop=MAX_DROP,
            ranges=ranges,
        )
    except (Int8Error, ValueError) as error:
        return Refused(file, str(error))
    content = path.read_bytes()
    if target == "trt" and (found := lint(content)):
        return Refused(file, "; ".join(found))
    return Made(
        file,
        content,
        "ONNX",
        "int8",
        _BACKENDS[target],
        graph_runner(subject, content),
        Gate(drop=_REPORT_DROP, patch_drop=_PATCH_DROP),
        {"int8": {**asdict(report), "kept_in_float": list(report.kept_in_float)}},
    )
