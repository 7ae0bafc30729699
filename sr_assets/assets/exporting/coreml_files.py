"""A CoreML package of a model, fp16, zipped to one file.

It is converted on any system and runs on macOS and iOS alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from sr_assets.assets.exporting.onnx_files import written
from sr_assets.assets.exporting.subject import Made, Refused, Subject


def make_coreml(subject: Subject) -> Iterator[Made | Refused]:
    """The package; none of a fusion.

    Raises:
        StageError: coremltools is missing.
    """
    from sr_models.export.coreml import export_coreml
    from sr_models.export.parity import Gate

    if subject.model.experts:
        return
    file = subject.file("mlpackage.zip")
    path = subject.scratch / file
    model = subject.model
    report = written(
        file,
        lambda: export_coreml(
            model.network, model.scale, model.sizes[1], path, metadata=subject.properties
        ),
    )
    if isinstance(report, Refused):
        yield report
        return
    yield Made(
        file,
        path.read_bytes(),
        "CoreML",
        "fp16",
        "converted, not run: that needs macOS",
        None,
        Gate(),
        {"coreml": asdict(report)},
    )
