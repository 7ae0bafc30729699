"""The ONNX graph of a fusion that holds its experts too.

The graph of the fusion alone is `onnx_files.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from sr_assets.assets.exporting.onnx_files import BACKEND, TOLERANCE, written
from sr_assets.assets.exporting.subject import Made, Refused, Subject

if TYPE_CHECKING:
    from torch import Tensor

#: Where patches have to be padded, the fusion sees the padding too: no more than nearly the same.
_PADDED_PSNR = 40.0


def make_whole(subject: Subject) -> Iterator[Made | Refused]:
    """The graph; none of a model that is no fusion.

    Raises:
        StageError: a package is missing.
    """
    import torch

    from sr_models.experts.running import run_padded
    from sr_models.export.parity import Gate
    from sr_models.export.tracing import open_session
    from sr_models.export.whole_fusion import export_whole_fusion_onnx

    model = subject.model
    if not model.experts:
        return
    file = subject.file("onnx", "whole_fp32")
    path = subject.scratch / file
    report = written(
        file,
        lambda: export_whole_fusion_onnx(
            model.network, subject.experts, model.scale, path, metadata=subject.properties
        ),
    )
    if isinstance(report, Refused):
        yield report
        return
    content = path.read_bytes()
    session = open_session(content)
    fits = all(side % report.multiple == 0 for s in subject.samples for side in s.lr.shape[-2:])

    def forward(lr: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["output"], {"input": lr.numpy()})[0])

    def run(index: int) -> Tensor:
        return run_padded(forward, subject.samples[index].lr, model.scale, (1, report.multiple))

    yield Made(
        file,
        content,
        "ONNX",
        "fp32",
        BACKEND,
        run,
        Gate(max_difference=TOLERANCE) if fits else Gate(psnr_y_to_torch=_PADDED_PSNR),
        {"onnx": {**asdict(report), "max_difference": report.max_difference}},
    )
