"""What a network sees, measured, and that tiles which follow from it are the whole image."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.export.fusing import fused_copy
from sr_models.inference.memory import bytes_per_pixel
from sr_models.inference.receptive_field import receptive_field
from sr_models.inference.tiles import upscale_tiled
from sr_models.networks import build_network


class Convolutions(nn.Module):
    """Odd kernels one after another, then a pixel shuffle."""

    def __init__(self, kernels: list[int], scale: int, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(3, 3, k, padding=k // 2) for k in kernels))
        self.middle = middle or nn.Identity()
        self.tail = nn.Sequential(nn.Conv2d(3, 3 * scale**2, 1), nn.PixelShuffle(scale))

    def forward(self, lr: Tensor) -> Tensor:
        return self.tail(self.middle(self.body(lr)))


class Lambda(nn.Module):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def window_means(side: int, shift: int = 0) -> Lambda:
    def run(x: Tensor) -> Tensor:
        x = x.roll((shift, shift), (-2, -1))
        mean = F.avg_pool2d(x, side, ceil_mode=True, count_include_pad=False)
        large = mean.repeat_interleave(side, -1).repeat_interleave(side, -2)
        return large[..., : x.shape[-2], : x.shape[-1]].roll((-shift, -shift), (-2, -1))

    return Lambda(run)


@given(st.lists(st.sampled_from([1, 3, 5, 9]), min_size=1, max_size=4), st.integers(1, 4))
@settings(max_examples=20)
def test_convolutions_see_the_sum_of_their_half_kernels(kernels: list[int], scale: int) -> None:
    network = Convolutions(kernels, scale).eval()
    before = copy.deepcopy(network.state_dict())
    assert receptive_field(network, scale).reach == sum(k // 2 for k in kernels)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_zero_weights_and_half_precision_are_seen_too() -> None:
    network = Convolutions([3, 7], 2).eval()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    assert receptive_field(network, 2).reach == 4
    network.bfloat16()
    assert receptive_field(network, 2).reach == 4
    assert next(network.parameters()).dtype == torch.bfloat16


def test_the_longer_direction_counts() -> None:
    network = Convolutions([3], 1, nn.Conv2d(3, 3, (1, 21), padding=(0, 10))).eval()
    assert receptive_field(network, 1).reach == 11
    network = Convolutions([3], 1, nn.Conv2d(3, 3, (21, 1), padding=(10, 0))).eval()
    assert receptive_field(network, 1).reach == 11


@pytest.mark.parametrize(
    ("middle", "told"),
    [
        (nn.GroupNorm(1, 3), "all of the picture (GroupNorm)"),
        (Lambda(lambda x: x - x.mean((-2, -1), keepdim=True)), "all of the picture"),
        (Lambda(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])), "all of the"),
        (nn.Sequential(*(nn.Conv2d(3, 3, 31, padding=15) for _ in range(18))), "farther than 255"),
        (window_means(16), "windows"),
        (window_means(8, shift=4), "windows"),
    ],
)
def test_what_has_no_halo_is_told(middle: nn.Module, told: str) -> None:
    found = receptive_field(Convolutions([3], 2, middle).eval(), 2)
    assert found.reach is None and told in found.why


def test_a_picture_that_is_carried_round_its_border_has_no_halo() -> None:
    middle = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
    found = receptive_field(Convolutions([3], 2, middle).eval(), 2)
    assert found.reach is None and "one border" in found.why


def test_windows_of_the_grid_reach_from_end_to_end() -> None:
    network = Convolutions([3], 1, window_means(8)).eval()
    found = receptive_field(network, 1, grid=8)
    assert found.reach == 8  # from one end of a window to the other, and the convolution's one
    lr = torch.rand(1, 3, 50, 61)
    with torch.no_grad():
        tiled = upscale_tiled(network, lr, 1, tile=32, halo=8, grid=8)
        torch.testing.assert_close(tiled, network(lr), rtol=0, atol=1e-6)


_LOCAL: list[tuple[str, dict[str, Any]]] = [
    ("SPAN", {"feature_channels": 8}),
    ("Compact", {"num_feat": 8, "num_conv": 3}),
    ("EDSR", {"num_feat": 8, "num_block": 2}),
    ("PLKSR", {"dim": 8, "n_blocks": 2, "split_ratio": 0.5}),
    ("paragonsr2", {"block": "nano", "channels": 8, "groups": 1, "blocks": 2}),
    ("paragonsr2", {"block": "stream", "channels": 8, "groups": 1, "blocks": 2}),
    ("aethernet", {"embed_dim": 16, "depths": (1, 1)}),
    ("aether3_mobile", {}),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "args"), _LOCAL)
def test_tiles_with_the_measured_halo_are_the_whole_image(
    architecture: str, args: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    network = fused_copy(build_network(architecture, 2, args).eval())
    found = receptive_field(network, 2)
    assert found.reach is not None and 0 < found.reach < 60, found
    tile = 2 * found.reach + 16
    lr = torch.rand(1, 3, tile + 9, tile + 20)
    with torch.no_grad():
        whole = network(lr)
        tiled = upscale_tiled(network, lr, 2, tile, found.reach)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
        assert getattr(network, "halo", found.reach) >= found.reach


@pytest.mark.parametrize(
    ("architecture", "args", "told"),
    [
        ("realplksr", {"dim": 8, "n_blocks": 1}, "GroupNorm"),
        ("paragonsr", {"num_feat": 16, "num_groups": 1, "num_blocks": 1}, "GroupNorm"),
        ("paragonsr2", {"block": "photo", "channels": 8, "groups": 1, "blocks": 2}, "windows"),
        ("paragonsr2", {"block": "pro", "channels": 8, "groups": 1, "blocks": 1}, "picture"),
    ],
)
def test_architectures_that_look_at_all_of_the_picture_say_so(
    architecture: str, args: dict[str, Any], told: str
) -> None:
    found = receptive_field(fused_copy(build_network(architecture, 2, args).eval()), 2)
    assert found.reach is None and told in found.why


def test_memory_is_what_is_alive_at_a_time() -> None:
    chain = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 16, 16, 1) for i in range(6)))
    two_maps = 2 * 16 * 4
    assert two_maps <= bytes_per_pixel(chain) <= 2 * two_maps  # however long the chain
    narrow, wide = (
        build_network("Compact", 2, {"num_feat": n, "num_conv": 2}).eval() for n in (8, 64)
    )
    assert bytes_per_pixel(narrow) < bytes_per_pixel(wide) / 4
