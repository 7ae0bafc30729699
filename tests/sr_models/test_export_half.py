"""Files in half precision, and `.pth` files."""

import io
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from torch import nn

from sr_models.export.onnx import export_onnx
from sr_models.export.parity import luma_psnr
from sr_models.export.weights import serialise_pth, serialise_weights
from sr_models.networks import build_network


def network(architecture: str, **args: object) -> nn.Module:
    torch.manual_seed(11)
    return build_network(architecture, 2, args).eval()


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("paragonsr2_realtime", {}),
        ("paragonsr_nano", {}),
        ("SPAN", {"feature_channels": 8}),
        ("EDSR", {"num_feat": 8, "num_block": 2}),
    ],
)
def test_fp16_graphs_take_floats_at_any_size_and_are_near(
    architecture: str, args: dict[str, int], tmp_path: Path
) -> None:
    import onnx

    subject = network(architecture, **args)
    half = tmp_path / "half.onnx"
    report = export_onnx(subject, 2, 1, half, half=True)
    assert report.free_batch
    session = onnxruntime.InferenceSession(half, providers=["CPUExecutionProvider"])
    assert {v.type for v in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    types = {t.data_type for t in onnx.load(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types and onnx.TensorProto.FLOAT not in types
    for shape in ((1, 3, 17, 31), (3, 3, 22, 9)):
        lr = torch.rand(shape, generator=torch.Generator().manual_seed(5))
        (sr,) = session.run(["output"], {"input": lr.numpy()})
        with torch.no_grad():
            expected = subject(lr)
        assert luma_psnr(torch.from_numpy(sr), expected) > 60
        assert not torch.equal(torch.from_numpy(sr), expected)  # it is not the fp32 graph


def test_fp16_leaves_the_network_alone(tmp_path: Path) -> None:
    subject = network("Compact", num_feat=8, num_conv=2)
    before = {k: v.clone() for k, v in subject.state_dict().items()}
    export_onnx(subject, 2, 1, tmp_path / "a.onnx", half=True)
    for key, value in subject.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])


def test_half_weights_are_rounded_once_and_load_everywhere(tmp_path: Path) -> None:
    subject = network("Compact", num_feat=8, num_conv=2)
    file = tmp_path / "half.safetensors"
    file.write_bytes(serialise_weights(subject.state_dict(), {"scale": "2"}, half=True))
    full = serialise_weights(subject.state_dict(), {"scale": "2"})
    assert file.stat().st_size < 0.6 * len(full)
    read = load(file.read_bytes())
    for name, value in subject.state_dict().items():
        assert torch.equal(read[name], value.half())
    loaded = ModelLoader(device="cpu").load_from_file(file)
    lr = torch.rand(1, 3, 9, 13)
    with torch.no_grad():
        assert luma_psnr(loaded.model.float()(lr), subject(lr)) > 60


def test_weights_too_large_for_half_are_named() -> None:
    with pytest.raises(ValueError, match="'big' is too large for half precision"):
        serialise_weights({"big": torch.tensor([1e5])}, {}, half=True)


def test_pth_holds_tensors_alone_under_params(tmp_path: Path) -> None:
    subject = Compact(num_feat=8, num_conv=2, upscale=2)
    file = tmp_path / "a.pth"
    file.write_bytes(serialise_pth(subject.state_dict()))
    read = torch.load(file, weights_only=True)
    assert list(read) == ["params"]
    assert read["params"].keys() == subject.state_dict().keys()
    loaded = ModelLoader(device="cpu").load_from_file(file)
    lr = torch.rand(1, 3, 9, 13)
    with torch.no_grad():
        assert torch.equal(loaded.model(lr), subject(lr))


def test_pth_bytes_depend_on_the_tensors_alone() -> None:
    state = {f"t{i}": torch.full((3, 2), float(i)) for i in range(5)}
    first = serialise_pth(state)
    assert serialise_pth(dict(reversed(state.items()))) == first
    assert serialise_pth({**state, "t0": torch.ones(3, 2)}) != first
    view = {"v": torch.arange(1e5)[:3]}
    assert len(serialise_pth(view)) < 5_000  # not the storage behind a view
    assert torch.equal(
        torch.load(io.BytesIO(serialise_pth(view)), weights_only=True)["params"]["v"], view["v"]
    )
