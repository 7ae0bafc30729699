"""The ONNX graph of one frame's step."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from sr_models.export.onnx import OnnxExportError
from sr_models.export.video import export_video_onnx, has_video_step
from sr_models.inference.video import upscale_video
from sr_models.networks import build_network


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("paragonsr2_realtime", {"channels": 8}),
        pytest.param(
            "paragonsr2_photo",
            {"channels": 16, "groups": 1, "blocks": 2, "window": 8},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_five_frames_are_those_of_torch(
    architecture: str, args: dict[str, int], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    network = build_network(architecture, 2, args).eval()
    path = tmp_path / "video.onnx"
    report = export_video_onnx(network, 2, 1, path)
    assert report.step.free_batch and report.channels == args["channels"]
    assert report.frames == 5 and report.clip_difference < 1e-5

    frames = [torch.rand(2, 3, 19, 26) for _ in range(5)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    previous = np.zeros((2, report.channels, 19, 26), np.float32)
    alone = []
    for number, (frame, expected) in enumerate(
        zip(frames, upscale_video(network, frames, blend=0.3, cut=1.0), strict=True)  # type: ignore[arg-type]
    ):
        feed = {"lr": frame.numpy(), "previous": previous}
        weight = np.full(2, 0.3 if number else 0.0, np.float32)
        (unblended,) = session.run(["output"], {**feed, "weight": np.zeros(2, np.float32)})
        sr, previous = session.run(["output", "features"], {**feed, "weight": weight})
        np.testing.assert_allclose(sr, expected.numpy(), atol=1e-5)
        alone.append(np.array_equal(sr, unblended))
    assert alone == [True, False, False, False, False]  # the frame before counts from the second


def test_networks_without_features_to_blend_are_refused(tmp_path: Path) -> None:
    network = build_network("Compact", 2, {"num_feat": 4, "num_conv": 1})
    assert not has_video_step(network)
    with pytest.raises(OnnxExportError, match="has no video mode"):
        export_video_onnx(network, 2, 1, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
