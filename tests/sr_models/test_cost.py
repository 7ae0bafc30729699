"""Costs: counts against sums by hand, and the timing against a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from sr_models.export.fusing import with_plain_convolutions
from sr_models.metrics import cost
from sr_models.metrics.cost import multiply_adds, seconds_per_megapixel
from sr_models.networks import build_network


def plain(scale: int, width: int, kernel: int, groups: int = 1) -> nn.Sequential:
    """LR -> `width` -> `width` (in groups) -> SR, all convolutions at LR size."""
    inner = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups)
    last = nn.Conv2d(width, 3 * scale**2, 1)
    return nn.Sequential(nn.Conv2d(3, width, 1), inner, last, nn.PixelShuffle(scale))


@settings(max_examples=15)
@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([4, 6, 12]),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 2]),
    st.sampled_from([12, 17, 24]),
)
def test_convolutions_are_counted_as_by_hand_at_every_size(
    scale: int, width: int, kernel: int, groups: int, side: int
) -> None:
    each = 3 * width + kernel**2 * width * width // groups + width * 3 * scale**2  # an LR pixel
    network = plain(scale, width, kernel, groups)
    assert multiply_adds(network, scale, side=side) == round(each * 1_000_000 / scale**2)


def test_what_runs_at_sr_size_counts_scale_squared_times() -> None:
    network = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(3, 3, 3, padding=1))
    assert multiply_adds(network, 4, side=16) == 81_000_000


@pytest.mark.parametrize("attention", [F.scaled_dot_product_attention, flex_attention])
def test_both_products_of_attention_are_counted(attention: Any) -> None:
    tokens, channels = 12 * 12, 8
    mix = nn.Linear(3, channels, bias=False)

    def forward(lr: Tensor) -> Tensor:
        x = mix(lr.flatten(2).transpose(1, 2))
        assert attention(*[x.unsqueeze(1)] * 3).shape == (1, 1, tokens, channels)
        return lr

    wanted = tokens * (3 * channels + 2 * tokens * channels)
    with torch.inference_mode():
        assert multiply_adds(forward, 1, side=12) == round(wanted * 1e6 / tokens)


def test_the_count_needs_no_memory_of_a_device() -> None:
    with torch.device("meta"):
        network = plain(2, 16, 3)
    assert multiply_adds(network, 2, device="meta") == multiply_adds(plain(2, 16, 3), 2)


def test_merging_is_no_work_that_grows_with_the_picture() -> None:
    torch.manual_seed(0)
    network = build_network("SPAN", 2, {"feature_channels": 8}).eval()
    lr = torch.rand(1, 3, 9, 9)
    with torch.no_grad():
        before, counted = network(lr), multiply_adds(network, 2, side=24)
        merged = with_plain_convolutions(network)
        assert torch.equal(merged(lr), before)
        once = multiply_adds(merged, 2, side=24)
        assert once < counted
        assert multiply_adds(merged, 2, side=48) == once


@pytest.mark.parametrize("measure", [multiply_adds, seconds_per_megapixel])
def test_a_network_of_another_scale_is_an_error(measure: Any) -> None:
    with pytest.raises(ValueError, match=r"became \(1, 3, 24, 24\), not \(1, 3, 48, 48\)"):
        measure(plain(2, 4, 1), 4, side=12)


class Clock:
    """Runs take what the test says; the first ones are the warm-up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *taken: float) -> None:
        self.now, self.taken = 0.0, list(taken)
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)

    def forward(self, lr: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.now += self.taken.pop(0) if len(self.taken) > 1 else self.taken[0]
        return lr.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_seconds_are_the_median_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 4.0, 0.2, 0.6, 0.3)
    speed = seconds_per_megapixel(clock.forward, 2, side=50)
    assert speed.repeats == 3  # 0.2 + 0.6 + 0.3 is more than the budget
    assert speed.seconds == pytest.approx(0.3 / 0.01)
    assert speed.device and speed.threads == torch.get_num_threads() and speed.side == 50


def test_a_slow_network_is_run_once_and_a_quick_one_at_most_fifteen_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = seconds_per_megapixel(Clock(monkeypatch, 60.0, 3.0).forward, 2, side=50)
    assert (slow.repeats, slow.seconds) == (1, pytest.approx(300))
    quick = seconds_per_megapixel(Clock(monkeypatch, 0.04).forward, 2, side=50)
    assert (quick.repeats, quick.seconds) == (15, pytest.approx(4))
