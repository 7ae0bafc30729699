"""Fake quantisation: levels, gradients, and that a network comes out of it as it went in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sr_models.networks import build_network
from sr_models.training.quantisation import (
    check_quantisable,
    fake_quantised,
    rounded_activation,
    rounded_weight,
)


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_weights_lie_on_255_levels_of_their_channel(seed: int, size: float) -> None:
    weight = size * torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    rounded, largest = rounded_weight(weight), weight.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    levels = rounded / largest * 127
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert float(((rounded - weight).abs() / (largest / 127)).max()) <= 0.5 + 1e-3


def test_activations_keep_zero_and_their_ends() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.1234, 3.0]])
    rounded = rounded_activation(x)
    step = 4 / 255
    assert rounded[0, 1] == 0
    assert (rounded - x).abs().max() <= step / 2 + 1e-6
    assert torch.equal(rounded_activation(torch.zeros(2, 2)), torch.zeros(2, 2))
    assert rounded_activation(torch.full((2,), 5.0)).tolist() == pytest.approx([5.0, 5.0])


def test_the_gradient_goes_straight_through() -> None:
    weight = torch.randn(2, 3, 1, 1, requires_grad=True)
    rounded_weight(weight).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones_like(weight))


def test_a_network_comes_out_as_it_went_in() -> None:
    network = build_network("Compact", 2, {"num_feat": 8, "num_conv": 2}).eval()
    names = [name for name, _ in network.named_parameters()]
    before = {name: p.clone() for name, p in network.named_parameters()}
    x = torch.rand(1, 3, 8, 8)
    plain = network(x)
    with fake_quantised(network):
        inside = network(x)
    assert 0 < float((inside - plain).detach().abs().max()) < 0.1
    assert torch.equal(network(x), plain)
    assert [name for name, _ in network.named_parameters()] == names
    assert all(torch.equal(p, before[n]) for n, p in network.named_parameters())
    assert all(isinstance(p, nn.Parameter) for p in network.parameters())


def test_an_error_inside_leaves_the_network_whole() -> None:
    network = build_network("Compact", 2, {"num_feat": 8, "num_conv": 1})
    with pytest.raises(RuntimeError), fake_quantised(network):
        network(torch.rand(1, 4, 8, 8))
    assert all(isinstance(p, nn.Parameter) for p in network.parameters())
    network(torch.rand(1, 3, 8, 8))


def test_every_weight_learns_inside() -> None:
    torch.manual_seed(0)
    network = build_network("Compact", 2, {"num_feat": 8, "num_conv": 1})
    with fake_quantised(network):
        network(torch.rand(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("paragonsr_nano", {}, "set fused_init"),
        ("paragonsr2_realtime", {"use_checkpointing": True}, "takes no gradient checkpointing"),
        ("SPAN", {"feature_channels": 8}, "merges its branches after training"),
    ],
)
def test_branches_are_merged_first(name: str, args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_quantisable(build_network(name, 4, args))
    check_quantisable(build_network("paragonsr_nano", 4, {"fused_init": True}))
