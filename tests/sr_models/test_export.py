"""Weight files and ONNX graphs of small real networks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load
from spandrel.architectures.Compact import Compact
from spandrel.architectures.HAT import HAT
from spandrel.architectures.SPAN import SPAN
from torch import Tensor, nn

from sr_models.experts.edsr import EDSR
from sr_models.export import onnx as onnx_export
from sr_models.export.onnx import (
    OnnxExportError,
    OnnxPackagesError,
    export_fusion_onnx,
    export_onnx,
)
from sr_models.export.spandrel_check import check_with_spandrel
from sr_models.export.weights import (
    digest_weights,
    merged_state,
    running_parameters,
    serialise_weights,
)
from sr_models.fusion.gate import GateFusion
from sr_models.fusion.network import FusionNetwork, FusionShape


def span() -> nn.Module:
    torch.manual_seed(1)
    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4)


def compact(scale: int = 4) -> nn.Module:
    torch.manual_seed(2)
    return Compact(num_feat=8, num_conv=2, upscale=scale)


def trained(network: nn.Module) -> nn.Module:
    """A few real optimiser steps, so that kept copies of weights grow old."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(3):
        optimiser.zero_grad()
        network(torch.rand(1, 3, 12, 12)).square().mean().backward()
        optimiser.step()
    return network


def test_weights_are_read_back_by_the_library_as_they_were() -> None:
    state = {
        "b.half": torch.randn(3, 2).half(),
        "a.index": torch.arange(5),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "view": torch.randn(4, 6).t(),
    }
    read = load(serialise_weights(state, {"licence": "MIT", "ü": "“x”"}))
    assert set(read) == set(state)
    for name, value in state.items():
        assert read[name].dtype == (torch.float32 if value.is_floating_point() else value.dtype)
        assert torch.equal(read[name], value.to(read[name].dtype))


def test_metadata_is_read_back(tmp_path: Path) -> None:
    metadata = {"scale": "4", "data": json.dumps({"gold/pairs[x]": "ab"}), "architecture": "SPAN"}
    (tmp_path / "w.safetensors").write_bytes(serialise_weights({"x": torch.zeros(1)}, metadata))
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == metadata


def test_bytes_do_not_depend_on_the_order_of_names() -> None:
    state = {f"t{i}": torch.full((3,), float(i)) for i in range(20)}
    metadata = {f"key{i}": str(i) for i in range(20)}
    backwards = serialise_weights(dict(reversed(state.items())), dict(reversed(metadata.items())))
    assert serialise_weights(state, metadata) == backwards


def test_digest_sees_values_names_and_shapes_but_not_metadata() -> None:
    state = {"x": torch.arange(6.0)}
    base = digest_weights(state)
    assert digest_weights({"x": torch.arange(6.0)}) == base
    assert digest_weights({"y": torch.arange(6.0)}) != base
    assert digest_weights({"x": torch.arange(6.0).view(2, 3)}) != base
    assert digest_weights({"x": torch.arange(6.0) + 1e-6}) != base


def test_complex_tensors_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'spectrum'"):
        serialise_weights({"spectrum": torch.zeros(2, dtype=torch.complex64)}, {})


@pytest.mark.parametrize("name", ["SPAN", "Compact", "EDSR"])
def test_spandrel_loads_the_same_function(name: str, tmp_path: Path) -> None:
    makers = {
        "SPAN": span,
        "Compact": compact,
        "EDSR": lambda: EDSR(num_feat=8, num_block=2, upscale=4),
    }
    network = trained(makers[name]())
    path = tmp_path / "w.safetensors"
    path.write_bytes(serialise_weights(merged_state(network), {"scale": "4"}))
    report = check_with_spandrel(path, network)
    assert report.architecture == name
    assert report.scale == 4
    assert report.max_difference == 0.0
    assert network.training  # the check leaves the network as it was


def test_spandrel_check_sees_another_function(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Compact(num_feat=8, num_conv=2, upscale=4, act_type="leakyrelu")
    # The state dict of another activation does not tell it: spandrel takes PReLU for granted.
    state = dict(network.state_dict())
    state |= {f"body.{i}.weight": torch.full((8,), 0.25) for i in (1, 3, 5)}
    path = tmp_path / "w.safetensors"
    path.write_bytes(serialise_weights(state, {}))
    assert check_with_spandrel(path, network).max_difference > 1e-4


def test_merged_kernels_of_span_are_brought_up_to_date() -> None:
    network = trained(span())
    stale = network.state_dict()["conv_1.eval_conv.weight"].clone()
    fresh = merged_state(network)["conv_1.eval_conv.weight"]
    assert not torch.equal(stale, fresh)


def test_only_merged_kernels_of_span_count() -> None:
    small = nn.Sequential(compact(), nn.Conv2d(3, 3, 1))
    assert running_parameters(small) == sum(p.numel() for p in small.parameters())
    assert (
        running_parameters(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=4))
        == 426_288
    )


def test_graphs_are_compared_with_the_trained_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: nn.Module) -> nn.Module:
        copy = rewrite(network)
        with torch.no_grad():
            next(copy.parameters()).add_(0.5)
        return copy

    rewrite = onnx_export.graph_copy
    monkeypatch.setattr(onnx_export, "graph_copy", wrong)
    with pytest.raises(OnnxExportError, match="differs from torch"):
        export_onnx(compact(), 4, 1, tmp_path / "a.onnx")
    gate = GateFusion(["a", "b"], 4, 8, 1)
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.3)
    with pytest.raises(OnnxExportError, match="differs from torch"):
        export_fusion_onnx(gate, ["a", "b"], {}, 4, tmp_path / "b.onnx")


def test_unknown_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(serialise_weights({"nothing.like.it": torch.zeros(2)}, {}))
    with pytest.raises(ValueError, match=r"odd\.safetensors: spandrel does not know"):
        check_with_spandrel(path, nn.Conv2d(3, 3, 1))


def test_onnx_is_right_where_it_was_not_traced(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    network = trained(span()).eval()
    path = tmp_path / "span.onnx"
    report = export_onnx(network, 4, 1, path, metadata={"architecture": "SPAN"})
    assert report.free_batch and report.max_difference < 1e-4
    assert len({c.shape for c in report.checks}) == 3
    assert any(c.shape[2] % 2 and c.shape[3] % 2 for c in report.checks)
    assert any(c.shape[0] == 2 for c in report.checks)
    lr = torch.rand(2, 3, 21, 37)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (sr,) = session.run(["output"], {"input": lr.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(sr, network(lr).numpy(), atol=1e-4)
    model = onnx.load(path)
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties == {"architecture": "SPAN", "batch": "free", "multiple": "1", "scale": "4"}
    assert model.opset_import[0].version == 18


def test_onnx_holds_no_trace_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "c.onnx"
    export_onnx(compact(2), 2, 1, path)
    content = path.read_bytes()
    for word in (b"site-packages", str(Path.home()).encode() + b"/", b".py", b'File "'):
        assert word not in content


def test_onnx_does_not_change_the_network(tmp_path: Path) -> None:
    network = span().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    export_onnx(network, 4, 1, tmp_path / "x.onnx")
    assert network.training
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_onnx_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "here.onnx"
    export_onnx(compact(), 4, 1, path)
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from spandrel.architectures.Compact import Compact\n"
        "from sr_models.export.onnx import export_onnx\n"
        "torch.manual_seed(2)\n"
        "export_onnx(Compact(num_feat=8, num_conv=2, upscale=4), 4, 1, Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there.onnx")], check=True)
    assert path.read_bytes() == (tmp_path / "there.onnx").read_bytes()


class Windowed(nn.Module):
    """Mean over windows of 8, the way window attention cuts an image."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        windows = x.reshape(b, c, h // 8, 8, w // 8, 8)
        mean = windows.mean((3, 5), keepdim=True).expand_as(windows).reshape(b, c, h, w)
        return nn.functional.interpolate(x - mean, scale_factor=2, mode="nearest")


def test_window_networks_are_checked_at_padded_sizes(tmp_path: Path) -> None:
    import onnx

    report = export_onnx(Windowed(), 2, 8, tmp_path / "w.onnx")
    assert all(c.shape[2] % 8 == 0 and c.shape[3] % 8 == 0 for c in report.checks)
    model = onnx.load(tmp_path / "w.onnx")
    assert {p.key: p.value for p in model.metadata_props}["multiple"] == "8"
    with pytest.raises(OnnxExportError, match="free height and width"):
        export_onnx(Windowed(), 2, 1, tmp_path / "w1.onnx")


class Baked(nn.Module):
    """Works at one size only."""

    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.rand(1, 3, 16, 24))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.place


def test_baked_sizes_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError, match="Baked cannot be exported"):
        export_onnx(Baked(), 1, 1, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_a_difference_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError, match="differs from torch"):
        export_onnx(compact(), 4, 1, tmp_path / "c.onnx", tolerance=-1.0)  # nothing is near enough
    assert not (tmp_path / "c.onnx").exists()


def test_gate_graph_takes_lr_and_experts_by_name(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(5)
    gate = GateFusion(["hat", "edsr"], 4, width=8, depth=2)
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "gate.onnx"
    report = export_fusion_onnx(gate, gate.experts, {}, 4, path)
    assert report.inputs == ("lr", "hat", "edsr") and report.max_difference < 1e-4
    lr = torch.rand(1, 3, 13, 19)
    sr = {name: torch.rand(1, 3, 52, 76) for name in ("edsr", "hat")}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {"lr": lr.numpy(), **{k: v.numpy() for k, v in sr.items()}}
    (fused,) = session.run(["output"], feed)
    with torch.inference_mode():
        np.testing.assert_allclose(fused, gate(lr, sr).numpy(), atol=1e-4)


def test_gate_with_an_expert_named_like_an_input_is_refused(tmp_path: Path) -> None:
    gate = GateFusion(["lr"], 2, width=4, depth=1)
    with pytest.raises(OnnxExportError, match="'lr'"):
        export_fusion_onnx(gate, gate.experts, {}, 2, tmp_path / "g.onnx")


def test_fusion_with_an_expert_named_like_the_features_of_another_is_refused(
    tmp_path: Path,
) -> None:
    shape = FusionShape(width=16, common_width=16, guidance_width=16)
    fusion = FusionNetwork(["hat", "hat_features"], 2, {"hat": 4}, shape)
    with pytest.raises(OnnxExportError, match="'hat_features'"):
        export_fusion_onnx(fusion, fusion.experts, fusion.features, 2, tmp_path / "f.onnx")


@pytest.mark.parametrize(
    "scale", [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 4]
)
def test_fusion_graph_is_real_and_right_where_it_was_not_traced(scale: int, tmp_path: Path) -> None:
    """Any size, blocks of the DCT or not; features by the names of the experts that have some."""
    import onnx
    import onnxruntime

    torch.manual_seed(8)
    experts, features = ("hat", "span", "edsr"), {"edsr": 6, "hat": 5}
    shape = FusionShape(width=16, common_width=16, guidance_width=16, depth=3)
    fusion = FusionNetwork(experts, scale, features, shape).eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / "fusion.onnx"
    report = export_fusion_onnx(fusion, fusion.experts, fusion.features, scale, path)
    assert report.inputs == ("lr", *experts, "hat_features", "edsr_features")
    assert report.free_batch and report.max_difference < 1e-4
    graph = onnx.load(path).graph
    assert not {node.op_type for node in graph.node} & {"DFT", "STFT"}
    described = [*graph.value_info, *graph.input, *graph.output]
    types = {value.type.tensor_type.elem_type for value in described}
    types |= {tensor.data_type for tensor in graph.initializer}
    assert not types & {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, h, w in ((1, 7, 9), (3, 16, 8), (2, 23, 41), (1, 1, 1), (5, 2, 19)):
        lr = torch.rand(batch, 3, h, w)
        sr = {name: torch.rand(batch, 3, scale * h, scale * w) for name in experts}
        maps = {name: torch.randn(batch, c, h, w) for name, c in features.items()}
        feed = {"lr": lr, **sr, **{f"{name}_features": x for name, x in maps.items()}}
        (fused,) = session.run(["output"], {name: x.numpy() for name, x in feed.items()})
        with torch.inference_mode():
            np.testing.assert_allclose(fused, fusion(lr, sr, maps).numpy(), atol=1e-4)


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(OnnxPackagesError, match=r"pip install 'sr-distillery\[export\]'"):
        export_onnx(compact(), 4, 1, tmp_path / "c.onnx")


@pytest.mark.slow
def test_hat_exports_with_a_batch_of_one(tmp_path: Path) -> None:
    torch.manual_seed(6)
    network = HAT(
        upscale=4, img_size=32, window_size=8, embed_dim=24, depths=(1,), num_heads=(2,),
        compress_ratio=3, squeeze_factor=8, upsampler="pixelshuffle", resi_connection="1conv",
        mlp_ratio=2,
    )  # fmt: skip
    report = export_onnx(network, 4, 8, tmp_path / "hat.onnx")
    assert not report.free_batch
    assert report.max_difference < 1e-4


class Brighter(nn.Module):
    """Another network's picture, far beyond white."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.factor


def test_large_outputs_may_differ_by_a_share_of_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Brighter(compact(), 1e5)
    report = export_onnx(network, 4, 1, tmp_path / "a.onnx")
    assert report.max_difference > 1e-4  # what fp32 rounds there
    assert all(0 <= check.share < 1e-5 for check in report.checks)
    rewrite = onnx_export.graph_copy

    def brighter(network: nn.Module) -> nn.Module:
        copy = rewrite(network)
        copy.factor *= 1.001  # type: ignore[operator]
        return copy

    monkeypatch.setattr(onnx_export, "graph_copy", brighter)
    with pytest.raises(OnnxExportError, match=r"differs from torch by 0\.001"):
        export_onnx(network, 4, 1, tmp_path / "b.onnx")
