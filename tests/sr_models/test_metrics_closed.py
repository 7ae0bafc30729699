"""Costs of functions that nothing is known of but that they enlarge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sr_models.export.weights import running_parameters
from sr_models.metrics.closed import count
from sr_models.metrics.cost import multiply_adds
from sr_models.networks import build_network


def tiny(width: int) -> nn.Module:
    """Enlarges twice."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2)
    )


def test_all_networks_that_a_function_calls_count_once() -> None:
    one, two = tiny(4), tiny(8)

    def forward(lr: Tensor) -> Tensor:
        return one(lr) + two(lr) + one(lr.flip(-1)).flip(-1)

    found = count(forward, 2, side=24)
    assert found is not None
    sizes = [sum(p.numel() for p in network.parameters()) for network in (one, two)]
    assert found.parameters == sum(sizes)
    # 2 x (27 + 108) x 4 + (27 + 108) x 8 products for each of 24² px, which become 48².
    assert found.multiply_adds == round((2 * 135 * 4 + 135 * 8) * 24**2 * 1e6 / 48**2)


def test_a_network_counts_as_on_the_leaderboard() -> None:
    network = build_network("Compact", 4, {"num_feat": 8, "num_conv": 2}).eval()
    found = count(network, 4)
    assert found is not None
    assert found.parameters == running_parameters(network)
    assert found.multiply_adds == multiply_adds(network, 4)


def test_branches_that_span_merges_do_not_count() -> None:
    network = build_network("SPAN", 4, {"feature_channels": 8}).eval()
    lr = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(lr)
        found = count(network, 4, side=16)
        after = network(lr)
    assert found is not None
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert torch.allclose(before, after, atol=1e-5)


def test_without_a_network_there_is_nothing_to_count() -> None:
    assert count(lambda lr: lr.repeat_interleave(2, -1).repeat_interleave(2, -2), 2) is None


def test_another_scale_is_refused_and_no_hook_stays() -> None:
    with pytest.raises(ValueError, match="enlarges 4 times"):
        count(tiny(4), 4)
    assert not nn.modules.module._global_forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks
