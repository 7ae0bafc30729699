"""Fake quantisation: levels, ranges, gradients, and that a network comes out as it went in."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sr_models.networks import build_network
from sr_models.training.quantisation import (
    RANGES,
    check_quantisable,
    fake_quantised,
    prepare,
    rounded_activation,
    rounded_weight,
    suited,
    take_ranges,
    without_ranges,
)


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_weights_lie_on_255_levels_of_their_channel(seed: int, size: float) -> None:
    weight = size * torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    rounded, largest = rounded_weight(weight), weight.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    levels = rounded / largest * 127
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert float(((rounded - weight).abs() / (largest / 127)).max()) <= 0.5 + 1e-3


def test_activations_keep_zero_and_their_ends() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.1234, 3.0, 9.0]])
    rounded = rounded_activation(x, torch.tensor([-1.0, 3.0]))
    step = 4 / 255
    assert rounded[0, 1] == 0
    assert (rounded - x)[0, :4].abs().max() <= step / 2 + 1e-6
    assert float(rounded[0, 4]) == pytest.approx(3.0, abs=step)
    zeros = torch.zeros(2, 2)
    assert torch.equal(rounded_activation(zeros, torch.zeros(2)), zeros)


def test_the_gradient_goes_straight_through() -> None:
    weight = torch.randn(2, 3, 1, 1, requires_grad=True)
    rounded_weight(weight).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones_like(weight))


def compact(blocks: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return build_network("Compact", 2, {"num_feat": 8, "num_conv": blocks})


def test_a_network_comes_out_as_it_went_in() -> None:
    network = compact()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    x = torch.rand(1, 3, 8, 8)
    plain = network(x)
    prepare(network)
    names = [name for name, _ in network.named_parameters()]
    with fake_quantised(network):
        inside = network(x)
    assert 0 < float((inside - plain).detach().abs().max()) < 0.1
    assert torch.equal(network(x), plain)
    assert all(isinstance(p, nn.Parameter) for p in network.parameters())
    assert [name for name, _ in network.named_parameters()] == names
    assert len(take_ranges(network)) == 3  # not the first, which reads three channels
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_error_inside_leaves_the_network_whole() -> None:
    network = compact()
    prepare(network)
    with pytest.raises(RuntimeError), fake_quantised(network):
        network(torch.rand(1, 4, 8, 8))
    assert all(isinstance(p, nn.Parameter) for p in network.parameters())
    network(torch.rand(1, 3, 8, 8))


def test_every_weight_learns_inside() -> None:
    network = compact(1)
    prepare(network)
    with fake_quantised(network):
        network(torch.rand(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_ranges_start_at_the_first_batch_follow_slowly_and_stand_still_in_evaluation() -> None:
    network = nn.Sequential(nn.Conv2d(5, 5, 1, bias=False))
    network[0].weight.data = 2 * torch.eye(5).view(5, 5, 1, 1)
    prepare(network)

    def run(high: float) -> list[float]:
        with fake_quantised(network):
            network(torch.tensor([-1.0, high]).view(1, 1, 1, 2).repeat(1, 5, 1, 1))
        return network[0].get_buffer(RANGES).tolist()

    assert run(1.0) == pytest.approx([-1, 1, -2, 2], abs=0.02)
    moved = run(2.0)
    assert moved[:2] == pytest.approx([-1, 1.02])
    network.eval()
    assert run(50.0) == moved
    # They are part of the state that training goes on from, and of no file of weights.
    assert set(network.state_dict()) == {"0.weight", f"0.{RANGES}"}
    assert set(without_ranges(network.state_dict())) == {"0.weight"}
    assert take_ranges(network)["0"] == pytest.approx(tuple(moved))


def test_an_output_that_is_the_next_input_is_rounded_once() -> None:
    torch.manual_seed(1)
    first, second = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)
    network = nn.Sequential(first, second)
    prepare(network)
    with fake_quantised(network):
        network(torch.rand(1, 5, 4, 4))
    ranges = take_ranges(network)
    assert ranges["1"][:2] == (0.0, 0.0) and ranges["0"][2:] != (0.0, 0.0)


def test_what_is_changed_in_place_is_rounded_again() -> None:
    network = nn.Sequential(nn.Conv2d(5, 6, 1), nn.SiLU(inplace=True), nn.Conv2d(6, 5, 1))
    prepare(network)
    with fake_quantised(network):
        network(torch.rand(1, 5, 4, 4))
    assert take_ranges(network)["2"][:2] != (0.0, 0.0)


@pytest.mark.parametrize(
    ("out", "into", "groups", "expected"),
    [(48, 48, 1, True), (48, 48, 48, True), (48, 3, 1, False), (3, 48, 1, False),
     (48, 12, 12, False)],
)  # fmt: skip
def test_what_is_slower_in_integers_is_left(
    out: int, into: int, groups: int, expected: bool
) -> None:
    assert suited(out, into, groups) is expected


def test_layers_stay_in_float_by_name() -> None:
    network = compact()
    prepare(network, ("body.0",))
    assert "body.0" not in take_ranges(network)
    with pytest.raises(ValueError, match="there is no convolution tail"):
        prepare(network, ("tail",))


def test_span_learns_plainly_and_gets_branches_of_the_same_function() -> None:
    torch.manual_seed(2)
    network = build_network("SPAN", 2, {"feature_channels": 8}).eval()
    names, x = list(network.state_dict()), torch.rand(1, 3, 9, 9)
    with torch.no_grad():
        before = network(x)
        prepare(network)
        assert torch.allclose(network(x), before, atol=1e-4)
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4)
    with fake_quantised(network):
        network(x).square().mean().backward()
    optimiser.step()
    network.eval()
    with torch.no_grad():
        trained = copy.deepcopy(network)(x)
        assert not torch.equal(trained, before)
        take_ranges(network)
        assert torch.equal(network(x), trained)
    assert list(network.state_dict()) == names


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("paragonsr_nano", {}, "set fused_init"),
        ("paragonsr2_realtime", {"use_checkpointing": True}, "takes no gradient checkpointing"),
    ],
)
def test_branches_are_merged_first(name: str, args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_quantisable(build_network(name, 4, args))
    check_quantisable(build_network("paragonsr_nano", 4, {"fused_init": True}))
