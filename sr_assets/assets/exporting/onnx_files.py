"""ONNX graphs of a model, fp32 and fp16, run by ONNX Runtime.

A fusion's graph takes the pictures of its experts; the one that holds them is `whole_files.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sr_assets.assets.exporting.subject import Made, Refused, Sample, Subject
from sr_assets.assets.exporting.weights_files import HALF_PSNR
from sr_assets.lineage.stage import StageError

if TYPE_CHECKING:
    from torch import Tensor

    from sr_models.export.parity import Gate, Run
    from sr_models.export.tracing import OnnxReport

Report = TypeVar("Report")

BACKEND = "ONNX Runtime on the CPU"
#: Largest accepted difference between an fp32 graph and the network.
TOLERANCE = 1e-4


def make_onnx(subject: Subject) -> Iterator[Made | Refused]:
    """The fp32 graph; of a fusion without its experts, whose pictures are inputs.

    Raises:
        StageError: a package is missing.
    """
    from sr_models.export.parity import Gate

    yield make_graph(
        subject,
        subject.file("onnx", "fp32"),
        "fp32",
        lambda path: export_fp32(subject, path),
        Gate(max_difference=TOLERANCE),
    )


def make_half_onnx(subject: Subject) -> Iterator[Made | Refused]:
    """The fp16 graph with fp32 input and output; none of a fusion, whose experts are the work.

    Raises:
        StageError: a package is missing.
    """
    if not subject.model.experts:
        yield half_graph(subject, subject.file("onnx", "fp16"))


def half_graph(subject: Subject, file: str) -> Made | Refused:
    """The fp16 graph of a model that is no fusion, as `file`.

    Raises:
        StageError: a package is missing.
    """
    from sr_models.export.onnx import export_onnx
    from sr_models.export.parity import Gate

    model = subject.model
    return make_graph(
        subject,
        file,
        "fp16",
        lambda path: export_onnx(
            model.network, model.scale, model.sizes[1], path, half=True, metadata=subject.properties
        ),
        Gate(psnr_y_to_torch=HALF_PSNR),
    )


def export_fp32(subject: Subject, path: Path) -> OnnxReport:
    """Writes the fp32 graph; of a fusion without its experts.

    Raises:
        OnnxExportError: as `export_onnx`.
    """
    from sr_models.export.onnx import export_fusion_onnx, export_onnx

    model = subject.model
    if model.experts:
        return export_fusion_onnx(
            model.network, model.experts, model.features, model.scale, path,
            metadata=subject.properties,
        )  # fmt: skip
    return export_onnx(
        model.network, model.scale, model.sizes[1], path, metadata=subject.properties
    )


def fp32_graph(subject: Subject) -> Path:
    """The fp32 graph that other files are made of, exported once.

    Raises:
        OnnxExportError: as `export_onnx`.
    """
    path = subject.scratch / subject.file("onnx", "fp32")
    if not path.is_file():
        export_fp32(subject, path)
    return path


def make_graph(
    subject: Subject,
    file: str,
    precision: str,
    export: Callable[[Path], OnnxReport],
    gate: Gate,
) -> Made | Refused:
    """One graph that `export` writes, or why there is none.

    Raises:
        StageError: a package is missing.
    """
    path = subject.scratch / file
    report = written(file, lambda: export(path))
    if isinstance(report, Refused):
        return report
    content = path.read_bytes()
    facts = {"onnx": {**asdict(report), "max_difference": report.max_difference}}
    return Made(
        file, content, "ONNX", precision, BACKEND, graph_runner(subject, content), gate, facts
    )


def written(file: str, export: Callable[[], Report]) -> Report | Refused:
    """What `export` reports of the file that it writes, or why there is none.

    Raises:
        StageError: a package is missing.
    """
    from sr_models.export.errors import ExportError, ExportPackagesError

    try:
        return export()
    except ExportPackagesError as error:
        raise StageError(str(error)) from error
    except ExportError as error:
        return Refused(file, str(error))


def graph_runner(subject: Subject, content: bytes) -> Run:
    """Runs a graph of the inputs that `feed_of` knows on the samples."""
    import torch

    from sr_models.experts.running import run_padded
    from sr_models.export.tracing import open_session

    session = open_session(content)
    names = [given.name for given in session.get_inputs()]
    sizes = (1, 1) if subject.model.experts else subject.model.sizes

    def run(index: int) -> Tensor:
        sample = subject.samples[index]

        def forward(lr: Tensor) -> Tensor:
            feed = _feed(names, sample, lr)
            return torch.from_numpy(session.run(["output"], feed)[0])

        return run_padded(forward, sample.lr, subject.model.scale, sizes)

    return run


def _feed(names: list[str], sample: Sample, lr: Tensor) -> dict[str, object]:
    given = {"input": lr, "lr": lr, **sample.sr}
    given |= {f"{name}_features": x for name, x in sample.features.items()}
    return {name: given[name].numpy() for name in names}
