"""Pictures piece by piece: the same as whole, blended without a step, smaller tiles when needed."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sr_models.experts.running import ExpertMemoryError
from sr_models.inference.streaming import (
    Cut,
    Samples,
    samples_to_unit,
    unit_to_samples,
    upscale_streamed,
)

CPU = torch.device("cpu")


def picture(height: int, width: int, dtype: type = np.uint8, bands: int = 3) -> Samples:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, np.iinfo(dtype).max + 1, (height, width, bands)).astype(dtype)


def blurred(samples: Samples) -> Tensor:
    """A local network of reach 2 that doubles the size."""
    lr = samples_to_unit(samples, CPU)
    soft = torch.nn.functional.avg_pool2d(lr, 5, 1, 2, count_include_pad=False)
    return soft[0].repeat_interleave(2, -1).repeat_interleave(2, -2)


def run(forward, lr: Samples, cut: Cut, scale: int = 2, dtype: type = np.uint8, **more):  # type: ignore[no-untyped-def]
    sr = np.full((lr.shape[0] * scale, lr.shape[1] * scale, lr.shape[2]), 77, dtype)
    used = upscale_streamed(
        forward,
        lambda top, bottom, left, right: lr[top:bottom, left:right],
        lambda top, bottom: sr[top:bottom],
        lr.shape[:2],
        scale,
        cut,
        **more,
    )
    return sr, used


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(12, 40),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([1, 3, 4]),
)
@settings(max_examples=40)
def test_cropped_tiles_are_the_whole_picture(
    height: int, width: int, tile: int, dtype: type, bands: int
) -> None:
    lr = picture(height, width, dtype, bands)
    done: list[int] = []
    sr, used = run(blurred, lr, Cut(tile, 3), dtype=dtype, advance=done.append)
    assert np.array_equal(sr, unit_to_samples(blurred(lr), np.dtype(dtype)))
    assert sum(done) == sr.shape[0] * sr.shape[1] and used == Cut(tile, 3)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 8))
@settings(max_examples=25)
def test_blending_leaves_no_step_and_changes_nothing_where_tiles_agree(
    height: int, width: int, halo: int
) -> None:
    lr = picture(height, width)
    sr, _ = run(blurred, lr, Cut(2 * halo + 9, halo, blend=2 * (halo // 2)))
    whole = unit_to_samples(blurred(lr), np.dtype(np.uint8))
    inner = halo - halo // 2 >= 2  # then all that is blended is right in both tiles
    if inner:
        assert np.abs(sr.astype(int) - whole).max() <= 1  # a value is rounded again when blended


def test_tiles_of_another_level_fade_into_each_other() -> None:
    lr = np.zeros((20, 90, 1), np.uint8)
    levels = cycle((0.2, 0.9))

    def forward(samples: Samples) -> Tensor:  # as if each tile had its own mean
        return torch.full((1, *samples.shape[:2]), float(next(levels)))

    cropped, _ = run(forward, lr, Cut(40, 10), scale=1)
    levels = cycle((0.2, 0.9))
    blended, _ = run(forward, lr, Cut(40, 10, blend=20), scale=1)
    steps = [np.abs(np.diff(sr[..., 0].astype(int), axis=1)).max() for sr in (cropped, blended)]
    assert steps[1] <= steps[0] / 5 and steps[0] > 100
    assert blended[0, 0, 0] == cropped[0, 0, 0] and blended[-1, -1, 0] == cropped[-1, -1, 0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ExpertMemoryError("SPAN: one image of 40x40 does not fit into memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_smaller_tiles_follow_when_memory_does_not_suffice(error: BaseException) -> None:
    lr, told, done, calls = picture(90, 70), [], [], []

    def forward(samples: Samples) -> Tensor:
        calls.append(samples.shape)
        if samples.shape[0] * samples.shape[1] > 30 * 30 or len(calls) == 5:
            raise error
        return blurred(samples)

    sr, used = run(forward, lr, Cut(60, 3), advance=done.append, shrink=told.append)
    assert np.array_equal(sr, unit_to_samples(blurred(lr), np.dtype(np.uint8)))
    assert [cut.tile for cut in told] == [30, 15] and used == told[-1]
    assert sum(done) == sr.shape[0] * sr.shape[1] and min(done) < 0


def test_no_tile_is_too_small_to_be_told() -> None:
    def forward(samples: Samples) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ExpertMemoryError, match="tiles of 14 px with a halo of 3"):
        run(forward, picture(90, 70), Cut(60, 3))
    with pytest.raises(ExpertMemoryError):
        run(forward, picture(9, 7), Cut.whole(9, 7))


def test_other_errors_pass() -> None:
    def forward(samples: Samples) -> Tensor:
        raise RuntimeError("sizes do not fit")

    with pytest.raises(RuntimeError, match="sizes do not fit"):
        run(forward, picture(90, 70), Cut(60, 3))
    with pytest.raises(ValueError, match="not finite"):
        run(lambda s: blurred(s) * torch.nan, picture(9, 7), Cut(60, 3))
    with pytest.raises(ValueError, match="x2 needs"):
        run(lambda s: blurred(s)[:, :3], picture(9, 7), Cut(60, 3))


def test_cuts_are_checked() -> None:
    with pytest.raises(ValueError, match="twice the halo"):
        Cut(20, 10)
    with pytest.raises(ValueError, match="blend"):
        Cut(30, 10, blend=21)
    assert Cut(256, 32, grid=16).step == 16 and Cut(72, 32, grid=16).step == 1
    assert Cut(60, 3).count(90, 70) == 4 and Cut.whole(90, 70).count(90, 70) == 1


@given(st.integers(0, 65535))
def test_samples_survive_the_way_through_floats(value: int) -> None:
    for dtype, level in ((np.uint16, value), (np.uint8, value % 256)):
        samples = np.full((1, 2, 3), level, dtype)
        back = unit_to_samples(samples_to_unit(samples, CPU)[0], np.dtype(dtype))
        assert np.array_equal(back, samples) and back.dtype == dtype


def test_rounding_is_half_up_and_clamped() -> None:
    values = torch.tensor([-0.1, 0.5 / 255, 0.4999 / 255, 1.2]).view(1, 1, 4)
    assert unit_to_samples(values, np.dtype(np.uint8))[0, :, 0].tolist() == [0, 1, 0, 255]
