"""Weights to start from, in every form that a file of them has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sr_models.registry import get_architecture
from sr_models.training.start import read_weights, start_from


def small(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_every_form_is_read(tmp_path: Path) -> None:
    source = small()
    state = source.state_dict()
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.pt")
    torch.save({"params": state}, tmp_path / "params.pth")
    torch.save({"params": other, "params_ema": state}, tmp_path / "ema.pth")
    for file in sorted(tmp_path.iterdir()):
        network = small()
        start_from(network, file)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, state[name]), (file.name, name)


OWN: dict[str, dict[str, Any]] = {
    "paragonsr": {"num_feat": 8, "num_groups": 1, "num_blocks": 1},
    "paragonsr2": {"block": "nano", "channels": 8, "groups": 1, "blocks": 1, "base": "legacy"},
    "aethernet": {"embed_dim": 8, "depths": [1]},
    "aethernet3": {"embed_dim": 8, "depths": [1]},
    "realplksr": {"dim": 8, "n_blocks": 1, "kernel_size": 3},
}


def older(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as files of other versions have them."""
    if name == "aethernet3":
        return {**state, "pt_version": torch.ones(3), "model_version": torch.ones(1)}
    names = {
        "paragonsr2": (("conv_mid", "conv_fuse"), ("up.0", "detail_upsampler.up_conv")),
        "realplksr": (("feats.3.", "feats.2."),),  # without a dropout
    }
    renamed = {}
    for key, tensor in state.items():
        for ours, theirs in names.get(name, ()):
            key = key.replace(ours, theirs)
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("name", OWN)
def test_what_spandrel_opens_is_taken(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = get_architecture(name)(scale=2, **OWN[name])
    state = {f"module.{n}": t for n, t in older(name, source.state_dict()).items()}
    torch.save({"params": state}, tmp_path / "a.pth")
    network = get_architecture(name)(scale=2, **OWN[name])
    start_from(network, tmp_path / "a.pth")
    for key, tensor in source.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key


def test_numbers_that_a_file_does_not_say_are_those_built(tmp_path: Path) -> None:
    make = get_architecture("aethernet")
    torch.save(make(**OWN["aethernet"]).state_dict(), tmp_path / "a.pth")
    network = make(**OWN["aethernet"], img_range=255.0)
    start_from(network, tmp_path / "a.pth")
    assert float(network.img_range) == 255
    torch.save(network.state_dict(), tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b\.pth does not fit .*img_range is 255 in the file"):
        start_from(make(**OWN["aethernet"]), tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["paragonsr", "aethernet", "aethernet3"])
def test_fused_weights_say_what_network_they_need(name: str, tmp_path: Path) -> None:
    make = get_architecture(name)
    torch.save(make(**OWN[name]).fuse().state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth .*build it with fused_init: true") as caught:
        start_from(make(**OWN[name]), tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    start_from(make(**OWN[name], fused_init=True), tmp_path / "a.pth")


def test_what_does_not_fit_is_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    state = dict(small(4).state_dict())
    state["tail.weight"] = state.pop("1.running_mean")
    safetensors.torch.save_file(state, file)
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        start_from(network, file)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    assert "missing 1.running_mean" in message and "unexpected tail.weight" in message
    assert "0.weight [4, 2] where the network has [3, 2]" in message and "and 2 more" in message
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), "half a load is none"


def test_what_is_no_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pth is missing"):
        read_weights(tmp_path / "nowhere.pth")
    for name in ("torn.safetensors", "torn.pth"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(ValueError, match="no whole file of weights"):
            read_weights(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no plain weights"):
        read_weights(tmp_path / "other.pth")
    torch.save(small(), tmp_path / "code.pth")
    with pytest.raises(ValueError, match="no whole file of weights"):
        read_weights(tmp_path / "code.pth")
