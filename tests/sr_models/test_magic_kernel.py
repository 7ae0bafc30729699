"""Magic Kernel Sharp 2021 against its definition and published properties, and the legacy base."""

import math

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sr_models.degradations.bicubic import downscale_uint8, upscale
from sr_models.layers.magic_kernel import (
    SHARPENING_TAPS,
    LegacyBase,
    MagicKernelSharp,
    b_spline,
    mks2021,
    taps,
)
from sr_models.metrics.images import psnr_y, to_uint8

SCALES = [2, 3, 4, 8]
INTEGERS = torch.arange(-12, 13, dtype=torch.float64)
OFFSETS = st.floats(-1, 1, allow_nan=False)


@given(OFFSETS)
def test_weights_at_the_integers_sum_to_one_and_have_no_first_moment(offset: float) -> None:
    distance = INTEGERS - offset
    weights = mks2021(distance)
    assert abs(float(weights.sum()) - 1) < 1e-9
    assert abs(float((weights * distance).sum())) < 1e-9


@given(st.floats(-6, 6, allow_nan=False))
def test_kernel_is_the_sharpened_b_spline_and_symmetric(x: float) -> None:
    at = torch.tensor(x, dtype=torch.float64)
    shifts = torch.arange(-3, 4, dtype=torch.float64)
    convolved = (SHARPENING_TAPS * b_spline(at - shifts)).sum()
    assert abs(float(mks2021(at) - convolved)) < 1e-12
    assert float(mks2021(-at)) == float(mks2021(at))
    assert abs(x) < 4.5 or float(mks2021(at)) == 0


def test_sharpening_response_is_one_at_zero_and_two_at_pi() -> None:
    alternating = torch.tensor([-1.0, 1, -1, 1, -1, 1, -1], dtype=torch.float64)
    assert float(SHARPENING_TAPS.sum()) == pytest.approx(1, abs=1e-15)
    assert float((SHARPENING_TAPS * alternating).sum()) == pytest.approx(2, abs=1e-15)


@pytest.mark.parametrize("scale", [1, *SCALES, 5])
@pytest.mark.parametrize("sharpness", [0.0, 0.4, 1.0, 1.5])
def test_taps_sum_to_one_point_at_the_new_pixel_and_mirror(scale: int, sharpness: float) -> None:
    table = taps(scale, sharpness)
    assert table.dtype == torch.float64 and table.shape == (scale, 9)
    torch.testing.assert_close(table.sum(1), torch.ones(scale).double(), rtol=0, atol=1e-9)
    centres = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    first = table @ torch.arange(-4, 5, dtype=torch.float64)
    torch.testing.assert_close(first, centres, rtol=0, atol=1e-9)
    torch.testing.assert_close(table.flip(0, 1), table, rtol=0, atol=1e-15)


def test_x2_taps_of_the_spline_are_the_published_ones() -> None:
    expected = [0, 0, 0, 0.28125, 0.6875, 0.03125, 0, 0, 0]
    torch.testing.assert_close(taps(2, 0.0)[0], torch.tensor(expected).double())


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="scale"):
        taps(0)


def by_definition(picture: Tensor, scale: int) -> Tensor:
    """Each new pixel as the weighted sum over the continued picture, in float64."""
    height, width = picture.shape[-2:]

    def matrix(length: int) -> Tensor:
        rows = torch.zeros(length * scale, length, dtype=torch.float64)
        for i in range(length * scale):
            centre = (i + 0.5) / scale - 0.5
            for j in range(math.floor(centre) - 6, math.floor(centre) + 7):
                at = torch.tensor(centre - j, dtype=torch.float64)
                rows[i, min(max(j, 0), length - 1)] += float(mks2021(at))
        return rows

    return matrix(height) @ picture.double() @ matrix(width).T


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 6)])
def test_module_follows_the_definition(scale: int, size: tuple[int, int]) -> None:
    picture = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(scale))
    enlarged = MagicKernelSharp(scale)(picture)
    torch.testing.assert_close(enlarged.double(), by_definition(picture, scale), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_constants_stay_everywhere_and_ramps_inside(scale: int) -> None:
    enlarge = MagicKernelSharp(scale)
    flat = torch.tensor([0.1, 0.6, 1.0]).view(1, 3, 1, 1).expand(1, 3, 5, 6)
    big = F.interpolate(flat, scale_factor=scale)
    torch.testing.assert_close(enlarge(flat), big, rtol=0, atol=1e-6)

    across = torch.linspace(0, 1, 20).view(1, 1, 1, 20).expand(1, 3, 20, 20)
    centres = (torch.arange(20 * scale) + 0.5) / scale - 0.5
    for ramp, axis in ((across, 3), (across.transpose(2, 3), 2)):
        got = enlarge(ramp).movedim(axis, -1)[..., 5 * scale : -5 * scale]
        expected = (centres / 19)[5 * scale : -5 * scale].expand_as(got)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_moving_the_picture_moves_the_result(scale: int) -> None:
    picture = torch.rand(1, 3, 18, 19, generator=torch.Generator().manual_seed(1))
    enlarge = MagicKernelSharp(scale)
    moved = enlarge(picture[..., 1:, 2:])
    inside = (..., slice(4 * scale, -4 * scale), slice(4 * scale, -4 * scale))
    expected = enlarge(picture)[..., scale:, 2 * scale :]
    torch.testing.assert_close(moved[inside], expected[inside], rtol=0, atol=1e-6)


def test_kernels_are_in_no_file_and_no_optimiser() -> None:
    module = MagicKernelSharp(3)
    assert not module.state_dict() and not list(module.parameters())


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_it_is_above_bicubic_and_the_legacy_base_below(scale: int, name: str) -> None:
    photo = np.ascontiguousarray(getattr(skimage.data, name)()[:296, :296])
    lr = torch.from_numpy(downscale_uint8(photo, scale)).permute(2, 0, 1)[None].float() / 255

    def measured(sr: Tensor) -> float:
        return psnr_y(to_uint8(sr)[0], photo, scale)

    bicubic = measured(upscale(lr, scale))
    assert measured(MagicKernelSharp(scale)(lr)) > bicubic
    for alpha in (0.0, 0.4):
        assert measured(LegacyBase(scale, alpha)(lr)) < bicubic - 0.3


def test_legacy_base_is_nearest_neighbour_blurred_with_zeros_around() -> None:
    lr = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(2))
    sharp = torch.tensor([-1, 0, 9, 16, 9, 0, -1]) / 32
    blur = torch.tensor([1, 4, 6, 4, 1]) / 16

    def both(x: Tensor, kernel: Tensor) -> Tensor:
        square = torch.outer(kernel, kernel).expand(3, 1, -1, -1)
        return F.conv2d(x, square, padding=len(kernel) // 2, groups=3)

    mixed = 0.6 * lr + 0.4 * both(lr, sharp)
    expected = both(mixed.repeat_interleave(3, 2).repeat_interleave(3, 3), blur)
    base = LegacyBase(3, 0.4)
    torch.testing.assert_close(base(lr), expected, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in base.parameters()) == 72
    assert not any(p.requires_grad for p in base.parameters())
    assert sorted(base.state_dict()) == [
        f"{part}.{name}"
        for part in ("blur", "sharp")
        for name in ("h.weight", "kernel", "v.weight")
    ]
