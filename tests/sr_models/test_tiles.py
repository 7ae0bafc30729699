"""Tiles must not be seen: same result as the whole image, each pixel once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sr_models.inference.tiles import spans, upscale_tiled, upscale_whole


class Local(nn.Module):
    """Two 3x3 convolutions (receptive field 2) and a pixel shuffle, in whole numbers.

    Sums of small whole numbers are exact in float32 in any order, so tiles can be held to equality.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3 * scale * scale, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            whole = torch.randint(-3, 4, parameter.shape, generator=generator)
            parameter.data = whole.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.last(self.first(x).relu()))


def picture(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator).float()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 45), st.integers(1, 45), st.sampled_from([1, 2, 3]), st.integers(2, 4), st.data()
)
def test_tiles_equal_the_whole_image(
    h: int, w: int, scale: int, halo: int, data: st.DataObject
) -> None:
    tile = data.draw(st.integers(2 * halo + 1, 24))
    network = Local(scale).eval()
    lr = picture(h, w)
    with torch.no_grad():
        whole = network(lr)
        tiled = upscale_tiled(network, lr, scale, tile, halo)
    assert torch.equal(tiled, whole)


@given(st.integers(1, 400), st.integers(0, 20), st.integers(1, 60))
def test_spans_cover_once_and_keep_their_halo(size: int, halo: int, core: int) -> None:
    tile = 2 * halo + core
    cut = spans(size, tile, halo)
    assert [p for _, first, last in cut for p in range(first, last)] == list(range(size))
    for start, first, last in cut:
        end = min(start + tile, size)
        assert end - start == min(tile, size)
        assert first - start >= halo or start == 0 == first
        assert end - last >= halo or end == size == last


@given(st.integers(1, 400), st.integers(0, 20), st.integers(1, 40), st.integers(1, 12))
def test_tiles_lie_on_the_grid_of_windows(size: int, halo: int, core: int, grid: int) -> None:
    tile = 2 * halo + grid + core
    cut = spans(size, tile, halo, grid)
    assert [p for _, first, last in cut for p in range(first, last)] == list(range(size))
    for start, first, last in cut:
        end = size if last == size else start + tile
        assert start % grid == 0 and end - start < tile + grid
        assert first - start >= halo or start == 0 == first
        assert end - last >= halo or end == size == last


def test_windows_see_the_same_pixels_in_tiles() -> None:
    def windows(x: Tensor) -> Tensor:  # every pixel becomes the mean of its 4x4 window
        mean = nn.functional.avg_pool2d(x, 4, ceil_mode=True, count_include_pad=False)
        large = mean.repeat_interleave(4, -1).repeat_interleave(4, -2)
        return large[..., : x.shape[-2], : x.shape[-1]]

    lr = picture(30, 45)
    assert torch.equal(upscale_tiled(windows, lr, 1, tile=16, halo=2, grid=4), windows(lr))
    with pytest.raises(ValueError, match="too small for windows of 4"):
        upscale_tiled(windows, lr, 1, tile=16, halo=7, grid=4)


@pytest.mark.parametrize(("largest", "room"), [(10**6, 10**6), (900, 10**6), (10**6, 900)])
def test_an_image_runs_whole_unless_it_is_too_large(largest: int, room: int) -> None:
    def centred(x: Tensor) -> Tensor:
        if x.shape[-2] * x.shape[-1] > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return x - x.mean((-2, -1), keepdim=True)

    lr = picture(30, 45)
    sr, tiled = upscale_whole(centred, lr, 1, largest=largest, tile=16, halo=2)
    whole = lr - lr.mean((-2, -1), keepdim=True)
    assert tiled == (900 in (largest, room))
    assert torch.equal(sr, whole) != tiled


def test_all_tiles_have_one_shape_and_are_counted() -> None:
    shapes: list[tuple[int, ...]] = []
    ticks: list[int] = []

    def forward(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    lr = picture(70, 131)
    sr = upscale_tiled(forward, lr, 2, tile=48, halo=8, advance=ticks.append)
    assert set(shapes) == {(1, 3, 48, 48)}
    assert len(shapes) == sum(ticks) == 2 * 4
    assert torch.equal(sr, lr.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_an_image_of_one_tile_runs_whole() -> None:
    shapes: list[tuple[int, ...]] = []

    def forward(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    upscale_tiled(forward, picture(48, 17), 1, tile=48, halo=8)
    assert shapes == [(1, 3, 48, 17)]


def test_maps_on_the_lr_grid_ride_along() -> None:
    lr = torch.cat([picture(30, 30), picture(30, 30)], 1)
    sr = upscale_tiled(lambda x: x[:, :3] + x[:, 3:], lr, 1, tile=16, halo=2)
    assert torch.equal(sr, lr[:, :3] + lr[:, 3:])


def test_result_keeps_what_lies_outside_zero_and_one() -> None:
    sr = upscale_tiled(lambda x: x * 2 - 0.5, torch.ones(1, 3, 9, 9), 1, tile=5, halo=1)
    assert sr.min() == sr.max() == 1.5
    assert sr.device.type == "cpu"


def test_mistakes_are_named() -> None:
    lr = picture(8, 8)
    with pytest.raises(ValueError, match="twice the halo"):
        upscale_tiled(lambda x: x, lr, 1, tile=32, halo=16)
    with pytest.raises(ValueError, match="one image"):
        upscale_tiled(lambda x: x, lr.expand(2, -1, -1, -1), 1)
    with pytest.raises(ValueError, match="x4 needs"):
        upscale_tiled(lambda x: x, lr, 4)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), halo=st.integers(0, 5),
    more=st.integers(1, 9), part=st.floats(0, 1),
)  # fmt: skip
def test_blended_tiles_of_a_local_function_are_the_whole(
    height: int, width: int, halo: int, more: int, part: float
) -> None:
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height * width))

    def forward(tile: torch.Tensor) -> torch.Tensor:
        return (tile * 2 - 0.5).repeat_interleave(2, 2).repeat_interleave(2, 3)

    blend = int(part * 2 * halo)
    sr = upscale_tiled(forward, lr, 2, 2 * halo + more, halo, blend=blend)
    assert torch.allclose(sr, forward(lr), atol=1e-6)


def test_blending_changes_over_evenly_from_one_tile_to_the_next() -> None:
    number = iter(range(9))
    lr = torch.zeros(1, 1, 8, 24)
    sr = upscale_tiled(lambda tile: torch.full_like(tile, next(number)), lr, 1, 16, 4, blend=8)
    row = sr[0, 0, 3]
    assert row[0] == 0 and row[-1] == 1
    assert torch.all(row.diff() >= 0) and row.diff().max() < 0.2
    with pytest.raises(ValueError, match="blend 9 must be from 0 to twice the halo 4"):
        upscale_tiled(lambda tile: tile, lr, 1, 16, 4, blend=9)
