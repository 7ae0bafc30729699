"""A fusion and its experts as one graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sr_models.experts.loading import Expert, load_expert
from sr_models.experts.running import run_expert, tapped
from sr_models.export.onnx import OnnxExportError
from sr_models.export.weights import serialise_weights
from sr_models.export.whole_fusion import export_whole_fusion_onnx
from sr_models.fusion.build import build_fusion
from sr_models.networks import build_network

SCALE = 2


def expert(folder: Path, name: str, architecture: str, **args: object) -> Expert:
    torch.manual_seed(sum(name.encode()))
    network = build_network(architecture, SCALE, args)
    (folder / f"{name}.safetensors").write_bytes(serialise_weights(network.state_dict(), {}))
    return load_expert(folder / f"{name}.safetensors")


def away_from_the_mean(fusion: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return fusion.eval()


def run(path: Path, lr: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["input"]
    return session.run(["output"], {"input": lr.numpy()})[0]


def test_convolutional_experts_and_a_gate_run_at_any_size(tmp_path: Path) -> None:
    experts = {
        "edsr": expert(tmp_path, "edsr", "EDSR", num_feat=8, num_block=1),
        "span": expert(tmp_path, "span", "SPAN", feature_channels=8),
    }
    gate = away_from_the_mean(
        build_fusion("GateFusion", list(experts), SCALE, {"width": 4, "depth": 1})
    )
    path = tmp_path / "whole.onnx"
    report = export_whole_fusion_onnx(gate, experts, SCALE, path, metadata={"licence": "MIT"})
    assert report.free_batch and report.multiple == 1
    for shape in ((1, 3, 15, 22), (2, 3, 31, 9)):
        lr = torch.rand(shape)
        with torch.no_grad():
            expected = gate(lr, {name: run_expert(e, lr).sr for name, e in experts.items()})
        np.testing.assert_allclose(run(path, lr), expected.numpy(), atol=1e-4)
    told = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert told["experts"] == "edsr,span" and told["holds_experts"] == "true"
    assert told["licence"] == "MIT"


@pytest.mark.slow
def test_features_are_taken_inside_the_graph(tmp_path: Path) -> None:
    experts = {
        "one": expert(tmp_path, "one", "Compact", num_feat=4, num_conv=1),
        "two": tapped(expert(tmp_path, "two", "Compact", num_feat=5, num_conv=2), "body.1"),
    }
    widths = {"guidance_width": 8, "common_width": 8, "width": 8, "depth": 2}
    fusion = away_from_the_mean(
        build_fusion("FusionNetwork", list(experts), SCALE, {"features": {"two": 5}, **widths})
    )
    path = tmp_path / "whole.onnx"
    export_whole_fusion_onnx(fusion, experts, SCALE, path)
    lr = torch.rand(2, 3, 21, 13)
    made = {name: run_expert(e, lr, features=name == "two") for name, e in experts.items()}
    with torch.no_grad():
        expected = fusion(lr, {n: out.sr for n, out in made.items()}, {"two": made["two"].features})
    np.testing.assert_allclose(run(path, lr), expected.numpy(), atol=1e-4)


@pytest.mark.slow
def test_window_experts_ask_for_their_multiple(tmp_path: Path) -> None:
    experts = {
        "edsr": expert(tmp_path, "edsr", "EDSR", num_feat=8, num_block=1),
        "swin": expert(
            tmp_path, "swin", "SwinIR", window_size=8, img_size=32, depths=[2], embed_dim=12,
            num_heads=[2], mlp_ratio=2, upsampler="pixelshuffledirect",
        ),
    }  # fmt: skip
    gate = away_from_the_mean(
        build_fusion("GateFusion", list(experts), SCALE, {"width": 4, "depth": 1})
    )
    path = tmp_path / "whole.onnx"
    report = export_whole_fusion_onnx(gate, experts, SCALE, path)
    assert report.multiple == 8
    lr = torch.rand(1, 3, 40, 24)
    with torch.no_grad():
        expected = gate(lr, {name: run_expert(e, lr).sr for name, e in experts.items()})
    np.testing.assert_allclose(run(path, lr), expected.numpy(), atol=1e-4)


def test_an_expert_that_no_graph_holds_is_an_error(tmp_path: Path) -> None:
    class Baked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x + torch.zeros(16, 24)
            return nn.functional.interpolate(x, scale_factor=SCALE)

    one = expert(tmp_path, "one", "Compact", num_feat=4, num_conv=1)
    baked = Expert("Baked", Baked(), lambda m, x: m(x), SCALE, 1, 1, None, None, 0, True)
    gate = build_fusion("GateFusion", ["one", "baked"], SCALE, {"width": 4, "depth": 1})
    with pytest.raises(OnnxExportError, match="cannot be exported"):
        export_whole_fusion_onnx(gate, {"one": one, "baked": baked}, SCALE, tmp_path / "w.onnx")
    assert not (tmp_path / "w.onnx").exists()
