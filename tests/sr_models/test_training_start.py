"""Weights to start from, in every form that a file of them has."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

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
