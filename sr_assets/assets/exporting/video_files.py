"""The ONNX graph of one frame's step, of networks that blend features from frame to frame.

Running a video with it is for whoever has one; docs/export.md tells how.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from sr_assets.assets.exporting.onnx_files import BACKEND, TOLERANCE, written
from sr_assets.assets.exporting.subject import Made, Refused, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from sr_models.export.parity import Run


def make_video(subject: Subject) -> Iterator[Made | Refused]:
    """The graph, measured as the first frame of a clip; none of a network without a video mode.

    Raises:
        StageError: a package is missing.
    """
    from sr_models.export.parity import Gate
    from sr_models.export.video import export_video_onnx, has_video_step

    model = subject.model
    if not has_video_step(model.network):
        return
    file = subject.file("onnx", "video_fp32")
    path = subject.scratch / file
    report = written(
        file,
        lambda: export_video_onnx(
            model.network, model.scale, model.sizes[1], path, metadata=subject.properties
        ),
    )
    if isinstance(report, Refused):
        yield report
        return
    content = path.read_bytes()
    yield Made(
        file,
        content,
        "ONNX",
        "fp32",
        BACKEND,
        _runner(subject, content, report.channels),
        Gate(max_difference=TOLERANCE),
        {"video": {**asdict(report), "max_difference": report.step.max_difference}},
    )


def _runner(subject: Subject, content: bytes, channels: int) -> Run:
    import numpy as np
    import torch

    from sr_models.experts.running import run_padded
    from sr_models.export.tracing import open_session

    session = open_session(content)

    def step(lr: Tensor) -> Tensor:
        previous = np.zeros((1, channels, *lr.shape[-2:]), np.float32)
        feed = {"lr": lr.numpy(), "previous": previous, "weight": np.zeros(1, np.float32)}
        return torch.from_numpy(session.run(["output"], feed)[0])

    model = subject.model
    return lambda index: run_padded(step, subject.samples[index].lr, model.scale, model.sizes)
