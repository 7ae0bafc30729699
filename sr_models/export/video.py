"""ONNX of one step of a video: a frame and the features of the one before, to both of this one.

What a video is made of, and where its cuts are, is for the caller (`inference/video.py` tells how
the network was meant); networks without features to blend have no such graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sr_models.export.onnx import LR_INPUT, graph_copy, trained_copy
from sr_models.export.tracing import (
    OUTPUT,
    Input,
    OnnxExportError,
    OnnxReport,
    Signature,
    open_session,
    write_graph,
)
from sr_models.inference.video import BLEND, VideoStep, upscale_video

PREVIOUS, WEIGHT, FEATURES = "previous", "weight", "features"
_TOLERANCE = 1e-4
_FRAMES = 5


@dataclass(frozen=True)
class VideoReport:
    """What was written, and how a clip run through it differs from torch."""

    step: OnnxReport
    channels: int
    """Of the features."""
    frames: int
    """Of the clip."""
    clip_difference: float
    """Largest |ONNX - torch| over all frames, features handed from each to the next."""


def has_video_step(network: nn.Module) -> bool:
    """Whether it blends features from frame to frame, as ParagonSR2."""
    return all(callable(getattr(network, name, None)) for name in ("features", "reconstruct"))


def export_video_onnx(
    network: nn.Module,
    scale: int,
    multiple: int,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = _TOLERANCE,
) -> VideoReport:
    """Writes one step of a video as an ONNX file, in fp32.

    Inputs are `lr` [B, 3, H, W] in [0, 1], `previous` [B, C, H, W], the `features` that the step
    before gave (anything finite at the start), and `weight` [B], the blend, 0 at the start and
    after a cut. Outputs are `output` [B, 3, scale H, scale W], not clamped, and `features`.

    Args:
        network: with `features` and `reconstruct`; a copy is put on the CPU in eval mode.
        scale: upscaling factor.
        multiple: H and W must be multiples of it.
        path: file to write.
        metadata: further string properties of the file.
        tolerance: largest accepted |ONNX - torch|, of a step on noise and of a clip of 5 frames.

    Raises:
        OnnxExportError: as `export_onnx`, or the network has no such step.
    """
    if not has_video_step(network):
        raise OnnxExportError(
            f"{type(network).__name__} has no video mode: features and reconstruct are missing"
        )
    merged, trained = graph_copy(network), trained_copy(network)
    unit = 4 * multiple
    with torch.no_grad():
        channels = int(trained.features(torch.zeros(1, 3, unit, unit)).shape[1])  # type: ignore[operator]
    inputs = (
        Input(LR_INPUT),
        Input(PREVIOUS, channels=channels),
        Input(WEIGHT, plane=False),
    )
    told = {"features": str(channels), "blend": str(BLEND), **(metadata or {})}
    signature = Signature(inputs, scale, multiple, (OUTPUT, FEATURES), metadata=told)
    report = write_graph(
        VideoStep(merged).eval(), VideoStep(trained).eval(), signature, path, tolerance
    )
    worst = _clip_difference(trained, path.read_bytes(), channels, multiple)
    if not worst <= tolerance:
        path.unlink()
        raise OnnxExportError(
            f"{path.name} differs from torch by {worst:.2g} over {_FRAMES} frames "
            f"(at most {tolerance:.2g} is accepted)"
        )
    return VideoReport(report, channels, _FRAMES, worst)


def _clip_difference(network: nn.Module, content: bytes, channels: int, multiple: int) -> float:
    """Runs a pan over noise through both, the graph keeping its own features."""
    height, width = 12 * multiple, 9 * multiple
    random = torch.Generator().manual_seed(_FRAMES)
    scene = torch.rand(1, 3, height, width + _FRAMES, generator=random)
    frames = [scene[..., n : n + width].contiguous() for n in range(_FRAMES)]
    expected = upscale_video(network, frames, cut=1.0)  # type: ignore[arg-type]
    session = open_session(content)
    previous = np.zeros((1, channels, height, width), np.float32)
    worst = 0.0
    for number, (frame, sr) in enumerate(zip(frames, expected, strict=True)):
        weight = np.full(1, BLEND if number else 0.0, np.float32)
        feed = {LR_INPUT: frame.numpy(), PREVIOUS: previous, WEIGHT: weight}
        made, previous = session.run([OUTPUT, FEATURES], feed)
        worst = max(worst, _largest(torch.from_numpy(made), sr))
    return worst


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
