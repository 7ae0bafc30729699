"""ONNX graphs of every kind of student and expert, read back at other sizes and batches."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from sr_models.experts.loading import size_requirements
from sr_models.export.onnx import export_onnx
from sr_models.networks import build_network

SLOW = pytest.mark.slow
WINDOWS = {
    "HAT": {
        "upsampler": "pixelshuffle", "img_size": 32, "window_size": 8, "embed_dim": 12,
        "depths": (1,), "num_heads": (2,), "compress_ratio": 3, "squeeze_factor": 6, "mlp_ratio": 2,
    },
    "SwinIR": {
        "upsampler": "pixelshuffle", "img_size": 32, "window_size": 8, "embed_dim": 12,
        "depths": [2], "num_heads": [2], "mlp_ratio": 2,
    },
}  # fmt: skip
CASES = [
    ("paragonsr2_realtime", {}),
    pytest.param("paragonsr2_stream", {"channels": 16}, marks=SLOW),
    pytest.param(
        "paragonsr2_photo", {"channels": 16, "groups": 1, "blocks": 2, "window": 8}, marks=SLOW
    ),
    ("paragonsr_nano", {}),
    pytest.param("realplksr_s", {"dim": 16, "n_blocks": 2}, marks=SLOW),
    ("SPAN", {"feature_channels": 8}),
    ("Compact", {"num_feat": 8, "num_conv": 2}),
    ("EDSR", {"num_feat": 8, "num_block": 1}),
    *(pytest.param(name, args, marks=SLOW) for name, args in WINDOWS.items()),
]


@pytest.mark.parametrize(("architecture", "args"), CASES)
def test_graphs_are_right_where_they_were_not_traced(
    architecture: str, args: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(6)
    network = build_network(architecture, 2, args).eval()
    _, multiple = size_requirements(network)
    path = tmp_path / "a.onnx"
    report = export_onnx(network, 2, multiple, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = (1, 2, 5) if report.free_batch else (1, 1, 1)
    sides = ((5, 3), (3, 7), (7, 4)) if multiple > 1 else ((37, 18), (11, 53), (23, 23))
    for batch, (height, width) in zip(batches, sides, strict=True):
        lr = torch.rand(batch, 3, height * multiple, width * multiple)
        (sr,) = session.run(["output"], {"input": lr.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(sr, network(lr.clone()).numpy(), atol=1e-4)
