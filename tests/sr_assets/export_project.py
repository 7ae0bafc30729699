"""Trained models and experts as outputs of other stages, ready to be exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_stores import Outputs, small_outputs

from sr_assets.assets import export
from sr_assets.lineage.stage import Ref
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.checkpoint import write_model
from sr_models.export.weights import serialise_weights
from sr_models.fusion.build import build_fusion
from sr_models.networks import build_network

SCALE = 2
#: Weights alone.
NO_FILES = {"onnx": False, "fp16": False, "pth": False}


def recipe(
    models: Mapping[str, Any], files: Mapping[str, Any], experts: tuple[str, ...] = ()
) -> Recipe:
    """Models of any kind on one small dataset, exported to `files` alone."""
    return Recipe.model_validate(
        {
            "name": "tiny",
            "scale": SCALE,
            "datasets": {"photos": {"source": {"kind": "folder", "path": "x"}}},
            "experts": {n: {"source": {"kind": "file", "path": n}} for n in experts},
            "models": models,
            "export": {**NO_FILES, **files},
        }
    )


def plain(architecture: str, **args: Any) -> dict[str, Any]:
    """A model of the recipe that needs LR alone."""
    return {"kind": "plain", "network": {"architecture": architecture, "args": args}}


def trained(network: nn.Module, strength: float = 0.02) -> nn.Module:
    """`network` away from where it starts: every weight moved."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(strength * torch.randn_like(parameter))
    return network.eval()


def expert_weights(name: str) -> bytes:
    """A small network's weights, others for each name."""
    torch.manual_seed(sum(name.encode()))
    network = build_network("Compact", SCALE, {"num_feat": 5, "num_conv": 2})
    return serialise_weights(network.state_dict(), {})


class Project:
    """Patches, pairs, checkpoints and experts' weights below one folder."""

    def __init__(self, root: Path, made_for: Recipe) -> None:
        self.recipe = made_for
        self.outputs: Outputs = small_outputs(root, SCALE, ())
        self.said: list[str] = []
        for name in made_for.experts:
            self._expert(name)

    def checkpoint(self, name: str) -> nn.Module:
        """Writes the checkpoint of a model; gives the network."""
        model = self.recipe.models[name]
        experts = list(self.recipe.experts_of(name))
        args: dict[str, Any]
        torch.manual_seed(5)
        if model.kind == "gate":
            architecture, args = "GateFusion", {"width": 4, "depth": 1}
            network: nn.Module = build_fusion(architecture, experts, SCALE, args)
        elif model.kind == "fusion":
            architecture = "FusionNetwork"
            widths = {"guidance_width": 8, "common_width": 8, "width": 8, "depth": 2}
            args = {"features": {experts[-1]: 5}, **widths}
            network = build_fusion(architecture, experts, SCALE, args)
        else:
            architecture, args = model.network.architecture, dict(model.network.args)  # type: ignore[union-attr]
            network = build_network(architecture, SCALE, args)
        trained(network)
        description = {
            "name": name,
            "kind": model.kind,
            "architecture": architecture,
            "args": args,
            "scale": SCALE,
            "experts": experts,
            "taps": {experts[-1]: "body.1"} if model.kind == "fusion" else {},
            "datasets": ["photos"],
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        ref = Ref(f"model/{name}/checkpoint")
        folder = self.outputs.folder(ref, f"a{len(self.said)}")
        write_model(folder, network, description)
        self.outputs.commit(ref, folder)
        return network

    def export(self, name: str, address: str = "address") -> Output:
        """Runs the export of a model."""
        (stage,) = (s for s in export.stages(self.recipe) if s.key == f"model/{name}/export")
        return self.outputs.run(stage, self.recipe, address, said=self.said)

    def _expert(self, name: str) -> None:
        ref = Ref(f"expert/{name}/weights")
        folder = self.outputs.folder(ref, "address")
        folder.write_bytes("weights.safetensors", expert_weights(name))
        self.outputs.commit(ref, folder, {"sha256": f"digest-of-{name}"})
