"""ONNX of a fusion that holds its experts: LR to the fused picture, as one graph.

Where an expert cannot be traced with free sizes there is no such graph; the one of `onnx.py`, which
takes the experts' pictures, is for every fusion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sr_models.experts.loading import Expert
from sr_models.export.onnx import INPUT, graph_copy, trained_copy
from sr_models.export.tracing import Input, OnnxReport, Signature, write_graph

_LEAST = 9  # px: from there on every transform of a fusion has two blocks


def export_whole_fusion_onnx(
    fusion: nn.Module,
    experts: Mapping[str, Expert],
    scale: int,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Writes a fusion with its experts, `input` [B, 3, H, W] to `output` [B, 3, scale H, scale W].

    H and W must be multiples of what all experts ask for together (`multiple` of the report and of
    the file's metadata): whoever runs the graph pads, experts with windows as well as those
    without.

    Args:
        fusion: `GateFusion` or `FusionNetwork`.
        experts: name -> expert, those of the fusion; with the feature module that it takes from.
        scale: upscaling factor.
        path: file to write.
        metadata: further string properties of the file.
        tolerance: largest accepted |ONNX - torch| on uniform noise.

    Raises:
        OnnxExportError: as `export_onnx`.
    """
    features = tuple(getattr(fusion, "features", {}))
    multiple = math.lcm(*(expert.multiple for expert in experts.values()))
    least = max(_LEAST, *(expert.minimum for expert in experts.values()))
    plain = {n: dataclasses.replace(e, model=graph_copy(e.model)) for n, e in experts.items()}
    kept = {n: dataclasses.replace(e, model=trained_copy(e.model)) for n, e in experts.items()}
    told = {"experts": ",".join(experts), "holds_experts": "true", **(metadata or {})}
    return write_graph(
        WholeFusion(graph_copy(fusion), plain, features),
        WholeFusion(trained_copy(fusion), kept, features),
        Signature((Input(INPUT),), scale, multiple, least=least, deferred=True, metadata=told),
        path,
        tolerance,
    )


class WholeFusion(nn.Module):
    """A fusion that runs its experts itself.

    Args:
        fusion: called with LR, the pictures and, where it takes some, the features.
        experts: name -> expert.
        features: names of those whose features the fusion takes.
    """

    def __init__(
        self, fusion: nn.Module, experts: Mapping[str, Expert], features: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.networks = nn.ModuleList(expert.model for expert in experts.values())
        self._calls = {name: expert.call for name, expert in experts.items()}
        self._taps: dict[str, str] = {}
        for name in features:
            module = experts[name].feature_module
            assert module is not None, f"{name} has no features"
            self._taps[name] = module

    def forward(self, lr: Tensor) -> Tensor:
        """[B, 3, H, W], sides that suit every expert, to [B, 3, scale H, scale W], not clamped."""
        pictures, features = {}, {}
        for (name, call), network in zip(self._calls.items(), self.networks, strict=True):
            seen: list[Tensor] = []

            def keep(_module: Any, _inputs: Any, output: Tensor, seen: list[Tensor] = seen) -> None:
                seen.append(output)

            tap = self._taps.get(name)
            handle = network.get_submodule(tap).register_forward_hook(keep) if tap else None
            pictures[name] = call(network, lr.clone())  # RCAN multiplies its input in place
            if handle is not None:
                handle.remove()
                features[name] = seen[0]
        return self.fusion(lr, pictures, features) if features else self.fusion(lr, pictures)
