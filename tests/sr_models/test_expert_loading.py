"""Loading experts: what is accepted, what is told about it, and what is refused in which words."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from spandrel import ImageModelDescriptor

from sr_models.experts import loading
from sr_models.experts.loading import load_expert
from sr_models.networks import build_network

NETWORKS = {
    "HAT": {"embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 8, "num_feat": 8,
            "compress_ratio": 2, "squeeze_factor": 4, "mlp_ratio": 1.0},
    "DRCT": {"embed_dim": 8, "depths": [6], "num_heads": [2], "window_size": 8, "gc": 4,
             "img_size": 16},
    "GRL": {"embed_dim": 24, "depths": [1], "num_heads_window": [2], "num_heads_stripe": [2],
            "window_size": 8, "stripe_size": [16, 16], "anchor_window_down_factor": 2,
            "mlp_ratio": 1.0, "upsampler": "pixelshuffledirect"},
    "EDSR": {"num_feat": 8, "num_block": 1},
    "Compact": {"num_feat": 8, "num_conv": 1},
}  # fmt: skip


def _file(folder, architecture, scale=4, suffix=".safetensors"):
    path = folder / f"{architecture}{suffix}"
    state = build_network(architecture, scale, NETWORKS[architecture]).state_dict()
    state = {k: v.clone().contiguous() for k, v in state.items()}
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".ckpt":
        torch.save({"state_dict": state}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize(
    ("architecture", "minimum", "multiple", "channels"),
    [("HAT", 16, 8, 16), ("DRCT", 1, 16, 8), ("GRL", 1, 16, 24), ("EDSR", 1, 1, 8),
     ("Compact", 1, 1, None)],
)  # fmt: skip
def test_what_is_told_about_an_expert(architecture, minimum, multiple, channels, tmp_path):
    expert = load_expert(_file(tmp_path, architecture))
    assert (expert.architecture, expert.scale) == (architecture, 4)
    assert (expert.minimum, expert.multiple) == (minimum, multiple)
    assert expert.feature_channels == channels
    assert expert.feature_module == (channels and "conv_after_body")
    assert expert.parameters == sum(p.numel() for p in expert.model.parameters())
    assert expert.bf16_safe
    assert not expert.model.training
    assert not any(p.requires_grad for p in expert.model.parameters())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
def test_every_kind_of_file(suffix, tmp_path):
    path = _file(tmp_path, "EDSR", 2, suffix)
    assert load_expert(str(path)).scale == 2


def test_python_objects_are_never_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for name in ("a.pth", "b.pt", "c.ckpt"):
        torch.save({"params": Payload()}, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} holds Python objects"):
            load_expert(tmp_path / name)
    (tmp_path / "d.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"d\.pth"):
        load_expert(tmp_path / "d.pth")
    assert not (tmp_path / "executed").exists()


def test_torchscript_is_refused_before_it_runs(tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **more: run.append(args))
    program = torch.jit.script(torch.nn.Linear(2, 2))
    for name in ("a.pt", "b.pth", "c.ckpt"):
        program.save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} .*TorchScript program: save its state dict"):
            load_expert(tmp_path / name)
    assert run == []


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file .*gone\.pth"):
        load_expert(tmp_path / "gone.pth")
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.onnx: weights files end in \.pth"):
        load_expert(tmp_path / "a.onnx")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ValueError, match=rf"{name} cannot be read|{name} holds"):
            load_expert(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        load_expert(tmp_path / "list.pth")
    save_file({"what": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no architecture of spandrel"):
        load_expert(tmp_path / "other.safetensors")


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_loading_is_strict(change, tmp_path):
    state = build_network("EDSR", 4, NETWORKS["EDSR"]).state_dict()
    if change == "missing":
        del state["body.0.conv2.bias"]
    else:
        state["body.0.conv3.bias"] = torch.zeros(8)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"its tensors do not fit: .*body\.0\.conv[23]\.bias") as e:
        load_expert(tmp_path / "a.safetensors")
    assert "\n" not in str(e.value)


def test_a_network_of_scale_1_is_refused(tmp_path):
    from spandrel.architectures.Compact import Compact

    model = Compact(num_feat=8, num_conv=1, upscale=1)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="without enlarging"):
        load_expert(tmp_path / "a.pth")


def test_a_network_for_grey_pictures_is_refused(tmp_path):
    from spandrel.architectures.Compact import Compact

    model = Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=1, upscale=4)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="maps 1 channels to 1"):
        load_expert(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("purpose", "message"), [("FaceSR", "restores faces only"), ("Restoration", "scale 1")]
)
def test_networks_for_other_purposes_are_refused(purpose, message, tmp_path, monkeypatch):
    path = _file(tmp_path, "EDSR")
    monkeypatch.setattr(ImageModelDescriptor, "purpose", property(lambda self: purpose))
    with pytest.raises(ValueError, match=message):
        load_expert(path)


def test_inpainting_is_refused(tmp_path, monkeypatch):
    class Described:
        architecture = type("A", (), {"name": "LaMa"})()
        purpose = "Inpainting"

    monkeypatch.setattr(loading, "_describe", lambda path, state: Described())
    with pytest.raises(ValueError, match="LaMa is an inpainting network"):
        load_expert(_file(tmp_path, "EDSR"))


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize(
    ("file", "architecture", "features"),
    [
        ("DAT_light_x4.pth", "DAT", True),
        ("DCTLSA_x4.safetensors", "DCTLSA", False),
        ("CRAFT_x4_ntire24.safetensors", "CRAFT", True),
        ("spanx4_ch48.safetensors", "SPAN", False),
        ("realesr-general-x4v3.safetensors", "Compact", False),
    ],
)
def test_real_weights_load_and_enlarge(file, architecture, features, shared_data):
    from sr_models.experts.running import run_expert

    expert = load_expert(shared_data / "weights" / file)
    assert (expert.architecture, expert.scale) == (architecture, 4)
    assert (expert.feature_module is not None) is features
    ramp = torch.linspace(0.2, 0.8, 30).view(1, 1, 1, -1).expand(1, 3, 20, 30).contiguous()
    out = run_expert(expert, ramp, features=features)
    assert out.sr.shape == (1, 3, 80, 120)
    assert (out.sr.mean() - 0.5).abs() < 0.02  # it is the same picture, only larger
    if out.features is not None:
        assert out.features.shape == (1, expert.feature_channels, 20, 30)
