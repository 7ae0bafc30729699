"""Trained models, rebuilt from checkpoint outputs for caching, evaluation and export.

Training them is `training.py`; their files are `sr_assets/stores/checkpoint.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sr_assets.lineage.stage import StageError
from sr_assets.storage import Output
from sr_assets.stores.checkpoint import WEIGHTS, read_description, read_state

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LoadedModel:
    """A trained network in evaluation mode, with what its checkpoint says about it."""

    network: nn.Module
    description: Mapping[str, Any]
    """`model.json`: kind, architecture, args, scale, experts, parameters, step, ..."""
    sizes: tuple[int, int] = (1, 1)
    """Smallest LR side that the network takes, and what LR is padded to a multiple of (px)."""

    @property
    def kind(self) -> str:
        """`plain`, `gate`, `fusion` or `student`."""
        return str(self.description["kind"])

    @property
    def scale(self) -> int:
        """The upscaling factor."""
        return int(self.description["scale"])

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts whose pictures it needs; empty for a network that needs LR alone."""
        return tuple(self.description["experts"])

    @property
    def features(self) -> Mapping[str, int]:
        """Name -> channels of those experts whose features it needs too."""
        return dict(self.description["args"].get("features", {})) if self.experts else {}

    @property
    def taps(self) -> Mapping[str, str]:
        """Name -> module of the expert that the features come from, where it needs features."""
        return dict(self.description.get("taps", {}))

    def upscale(
        self,
        lr: Tensor,
        sr: Mapping[str, Tensor] | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The model's picture, without gradients.

        Args:
            lr: [B, 3, h, w] in [0, 1] on the network's device; any size, padded as an expert's is.
            sr: for a fusion, expert name -> SR [B, 3, H, W]; names beyond its experts are ignored.
            features: for a fusion that needs them, expert name -> features [B, C, h, w].

        Returns:
            [B, 3, H, W], not clamped.

        Raises:
            ValueError: an expert's picture is missing.
        """
        import torch

        from sr_models.experts.running import run_padded

        # Not inference_mode: SPAN refreshes its merged kernels in eval mode, and export reads them.
        with torch.no_grad():
            if not self.experts:
                return run_padded(self.network, lr, self.scale, self.sizes)
            given = sr or {}
            pictures = {name: given[name] for name in self.experts if name in given}
            if not self.features:
                return self.network(lr, pictures)
            return self.network(lr, pictures, features or {})


def load_model(output: Output, device: str = "cpu") -> LoadedModel:
    """The model of one `model/<name>/checkpoint` output, strictly: every tensor must match.

    Args:
        output: of the checkpoint.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        StageError: the weights are damaged, or do not fit the network that the description names.
    """
    from safetensors import SafetensorError

    from sr_models.device import pick_device
    from sr_models.experts.loading import size_requirements

    description = read_description(output)
    network = _build(description)
    try:
        network.load_state_dict(read_state(output), strict=True)
    except SafetensorError as error:
        raise StageError(
            f"{output.path / WEIGHTS} is damaged ({error}): delete this output and build it again"
        ) from error
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines()[1:2]] or [str(error)]
        raise StageError(
            f"{output.path / WEIGHTS} does not fit {description['architecture']} ({wrong[0]}): "
            "delete this output and build it again"
        ) from error
    grid = getattr(network, "grid", 1)  # of a fusion: it takes any size, but tiles lie on it
    sizes = (1, grid) if description["experts"] else size_requirements(network)
    return LoadedModel(network.to(pick_device(device)).eval(), description, sizes)


def _build(description: Mapping[str, Any]) -> nn.Module:
    scale, args = description["scale"], description["args"]
    if description["experts"]:
        from sr_models.fusion.build import build_fusion

        return build_fusion(description["architecture"], description["experts"], scale, args)
    from sr_models.networks import build_network

    return build_network(description["architecture"], scale, args)
