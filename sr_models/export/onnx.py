"""ONNX graphs of networks and of fusions without their experts, in fp32 and fp16.

Tracing and checking is `tracing.py`; graphs of video and of fusions with their experts are
`video.py` and `whole_fusion.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_models.export.fusing import fused_copy, with_plain_convolutions
from sr_models.export.tracing import (
    OUTPUT,
    Input,
    OnnxExportError,
    OnnxPackagesError,
    OnnxReport,
    Signature,
    SizeCheck,
    write_graph,
)

__all__ = [
    "OnnxExportError",
    "OnnxPackagesError",
    "OnnxReport",
    "SizeCheck",
    "export_fusion_onnx",
    "export_onnx",
    "graph_copy",
    "trained_copy",
]

INPUT = "input"
LR_INPUT = "lr"
#: Largest |ONNX - torch| on noise, as `write_graph` has it. Of fp16 it finds wrong graphs only:
#: what fp16 costs on pictures is for whoever has pictures (`parity.py`).
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.05


def export_onnx(
    network: nn.Module,
    scale: int,
    multiple: int,
    path: Path,
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
    tolerance: float | None = None,
) -> OnnxReport:
    """Writes `network` ([B, 3, H, W] -> [B, 3, scale H, scale W]) as an ONNX file.

    Args:
        network: any SR network; a copy is put on the CPU in eval mode.
        scale: upscaling factor.
        multiple: H and W must be multiples of it (1 where any size will do); it stands in the
            file's metadata, and whoever runs the graph pads.
        path: file to write.
        half: weights and arithmetic in fp16; input and output stay fp32.
        metadata: further string properties of the file.
        tolerance: as `write_graph` has it; 1e-4, of fp16 0.05.

    Raises:
        OnnxExportError: a package is missing, the network bakes sizes in, or a check fails; then
            no file is written.
    """
    merged = graph_copy(network)
    return write_graph(
        HalfPrecision(merged) if half else merged,
        trained_copy(network),
        Signature((Input(INPUT),), scale, multiple, metadata=dict(metadata or {})),
        path,
        (_HALF_TOLERANCE if half else _TOLERANCE) if tolerance is None else tolerance,
    )


def export_fusion_onnx(
    fusion: nn.Module,
    experts: Sequence[str],
    features: Mapping[str, int],
    scale: int,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = _TOLERANCE,
) -> OnnxReport:
    """Writes a fusion alone, its experts not in the graph; its output is `output`.

    Inputs are `lr` [B, 3, H, W], by each expert's name its SR image [B, 3, scale H, scale W] and,
    where the fusion needs them, `<name>_features` [B, C, H, W] with the channels of `features`.

    Raises:
        OnnxExportError: as `export_onnx`, or an expert is named like another input or output.
    """
    maps = tuple(f"{name}_features" for name in features)
    clash = {LR_INPUT, OUTPUT, *maps} & set(experts)
    if clash:
        raise OnnxExportError(f"expert {clash.pop()!r} has the name of an ONNX input: rename it")
    inputs = (
        Input(LR_INPUT),
        *(Input(name, factor=scale) for name in experts),
        *(Input(n, channels=c) for n, c in zip(maps, features.values(), strict=True)),
    )
    return write_graph(
        _FusionInputs(graph_copy(fusion), experts, tuple(features)),
        _FusionInputs(trained_copy(fusion), experts, tuple(features)),
        Signature(
            inputs,
            scale,
            least=9,  # px: from there on every transform has two blocks, on one it settles
            deferred=True,
            metadata={"experts": ",".join(experts), **(metadata or {})},
        ),
        path,
        tolerance,
    )


class HalfPrecision(nn.Module):
    """`network` in fp16 behind an fp32 input and output; `network` itself is changed.

    Args:
        network: [B, 3, h, w] to [B, 3, h·s, w·s].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, lr: Tensor) -> Tensor:
        """float32 in, float32 out."""
        return self.network(lr.half()).float()


class _FusionInputs(nn.Module):
    """Takes the experts' images as positional inputs, as a graph has no dictionaries."""

    def __init__(self, fusion: nn.Module, experts: Sequence[str], features: Sequence[str]) -> None:
        super().__init__()
        self.fusion = fusion
        self.experts, self.features = tuple(experts), tuple(features)

    def forward(self, lr: Tensor, *given: Tensor) -> Tensor:
        count = len(self.experts)
        pictures = dict(zip(self.experts, given[:count], strict=True))
        if not self.features:
            return self.fusion(lr, pictures)
        return self.fusion(lr, pictures, dict(zip(self.features, given[count:], strict=True)))


def trained_copy(network: nn.Module) -> nn.Module:
    """A CPU copy in fp32 and eval mode, otherwise as it was trained."""
    return copy.deepcopy(network).cpu().float().eval()


def graph_copy(network: nn.Module) -> nn.Module:
    """A CPU copy in fp32 and eval mode whose merged convolutions are plain, as graphs hold them."""
    clone = fused_copy(network).cpu().float().requires_grad_(False)
    with torch.no_grad():
        return with_plain_convolutions(clone)
