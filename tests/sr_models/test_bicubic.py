"""The bicubic degradation against its definition in exact fractions, and published numbers."""

from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sr_models.degradations.bicubic import downscale, downscale_uint8, upscale
from sr_models.metrics.images import psnr_y, ssim_y, to_uint8

SCALES = st.sampled_from([2, 3, 4, 8])


def cubic(x: Fraction) -> Fraction:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


def exact_rows(length: int, out: int) -> list[dict[int, Fraction]]:
    """Weights of `imresize`: for each of `out` pixels, input pixel -> weight."""
    factor = Fraction(length, out)
    widen = max(factor, Fraction(1))
    rows = []
    for i in range(out):
        centre = (i + Fraction(1, 2)) * factor - Fraction(1, 2)
        weights: dict[int, Fraction] = {}
        for j in range(floor(centre - 2 * widen), ceil(centre + 2 * widen) + 1):
            folded = j % (2 * length)
            folded = folded if folded < length else 2 * length - 1 - folded
            weights[folded] = weights.get(folded, Fraction(0)) + cubic((centre - j) / widen)
        total = sum(weights.values())
        rows.append({j: w / total for j, w in weights.items() if w})
    return rows


def exact_resize(image: np.ndarray, height: int, width: int) -> list[list[Fraction]]:
    """One plane, resized in fractions."""
    vertical, horizontal = exact_rows(image.shape[0], height), exact_rows(image.shape[1], width)
    between = [
        [sum(w * int(image[j, x]) for j, w in row.items()) for x in range(image.shape[1])]
        for row in vertical
    ]
    return [
        [sum((w * line[j] for j, w in row.items()), Fraction(0)) for row in horizontal]
        for line in between
    ]


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    scale = draw(SCALES)
    height, width = (scale * draw(st.integers(1, 3)) for _ in range(2))
    pixels = st.one_of(st.integers(0, 255), st.sampled_from([0, 255]))
    return draw(hnp.arrays(np.uint8, (height, width, 1), elements=pixels)), scale


@settings(max_examples=40, deadline=None)
@given(images())
def test_downscale_uint8_is_the_exact_result_rounded_half_up(case: tuple[np.ndarray, int]) -> None:
    image, scale = case
    height, width = image.shape[0] // scale, image.shape[1] // scale
    exact = exact_resize(image[..., 0], height, width)
    expected = [[min(max(floor(v + Fraction(1, 2)), 0), 255) for v in row] for row in exact]
    np.testing.assert_array_equal(downscale_uint8(image, scale)[..., 0], expected)


@settings(max_examples=25, deadline=None)
@given(images(), SCALES)
def test_upscale_is_the_exact_result(case: tuple[np.ndarray, int], scale: int) -> None:
    image = case[0][:6, :6]
    height, width = image.shape[0] * scale, image.shape[1] * scale
    exact = np.array(exact_resize(image[..., 0], height, width), dtype=np.float64)
    enlarged = upscale(torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None], scale)
    np.testing.assert_allclose(enlarged[0, 0].numpy(), exact, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(SCALES, st.integers(1, 7), st.integers(1, 7), st.floats(0, 1))
def test_a_flat_image_stays_flat(scale: int, height: int, width: int, grey: float) -> None:
    small = torch.full((1, 3, height, width), grey, dtype=torch.float64)
    large = torch.full((1, 3, height * scale, width * scale), grey, dtype=torch.float64)
    torch.testing.assert_close(downscale(large, scale), small)
    torch.testing.assert_close(upscale(small, scale), large)


@settings(max_examples=30, deadline=None)
@given(SCALES, st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_flips_and_transposes_commute_with_downscaling(
    scale: int, height: int, width: int, seed: int
) -> None:
    shape = (height * scale, width * scale, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    lr = downscale_uint8(image, scale)
    np.testing.assert_array_equal(downscale_uint8(image[::-1, ::-1], scale), lr[::-1, ::-1])
    np.testing.assert_array_equal(
        downscale_uint8(image.transpose(1, 0, 2), scale), lr.transpose(1, 0, 2)
    )


def test_a_tie_is_rounded_up() -> None:
    # Two halves of 0 and 1 under a kernel that is symmetric about their border: exactly 0.5.
    image = np.zeros((4, 2, 3), np.uint8)
    image[:, 1] = 1
    np.testing.assert_array_equal(downscale_uint8(image, 2), np.ones((2, 1, 3), np.uint8))


def test_a_batch_is_resized_image_by_image_and_overshoot_is_kept() -> None:
    batch = torch.zeros(2, 3, 16, 16)
    batch[1, :, :, 8:] = 1
    lr = downscale(batch, 4)
    assert lr.shape == (2, 3, 4, 4) and lr.dtype == torch.float32
    assert not lr[0].any()
    assert lr.min() < 0 and lr.max() > 1


def test_gradients_flow_and_sum_to_one_over_each_output() -> None:
    hr = torch.rand(1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    downscale(hr, 3)[0, 0, 0, 0].backward()
    assert hr.grad is not None
    assert float(hr.grad.sum()) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(10, 8), (8, 10)])
def test_a_size_that_is_no_multiple_names_the_size_and_the_scale(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{shape[0]}x{shape[1]} is no multiple of scale 4"):
        downscale_uint8(np.zeros((*shape, 3), np.uint8), 4)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, C\], got float32 \[8, 8, 3\]"):
        downscale_uint8(np.zeros((8, 8, 3), np.float32), 4)
    with pytest.raises(ValueError, match=r"got torch\.uint8 \[1, 3, 8, 8\]"):
        downscale(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="scale must be a whole number"):
        upscale(torch.zeros(1, 3, 8, 8), 0)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "psnr", "ssim"), [("Set5", 28.43, 0.8113), ("Set14", 26.09, None)]
)
def test_the_bicubic_row_of_the_literature(
    shared_data: Path, name: str, psnr: float, ssim: float | None
) -> None:
    ratios, similarities = [], []
    for file in sorted((shared_data / "benchmarks" / name).glob("*.png")):
        hr = np.asarray(Image.open(file).convert("RGB"))
        lr = torch.from_numpy(downscale_uint8(hr, 4)).permute(2, 0, 1)[None] / 255
        sr = to_uint8(upscale(lr, 4))[0]
        ratios.append(psnr_y(sr, hr, 4))
        similarities.append(ssim_y(sr, hr, 4))
    assert np.mean(ratios) == pytest.approx(psnr, abs=0.005)
    if ssim is not None:
        assert np.mean(similarities) == pytest.approx(ssim, abs=0.0001)
