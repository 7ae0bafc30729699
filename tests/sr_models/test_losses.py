"""Loss terms without networks: values known by hand, gradients, ties, sizes, and the registry."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from skimage.metrics import structural_similarity
from torch import Tensor

from sr_assets.recipe.training import Loss
from sr_models.losses import registry
from sr_models.losses.registry import LOSSES, open_losses
from sr_models.losses.wavelet import swt_bands

CPU = torch.device("cpu")
NETWORKS = {"vgg", "lpips", "clip"}
PLAIN = [name for name in LOSSES if name not in NETWORKS]
LOSS_TERMS = open_losses(PLAIN, CPU)


def loss_of(name: str, output: Tensor, target: Tensor) -> Tensor:
    return LOSS_TERMS(output, target, {name: 1.0})[name]


def flat(value: float, *size: int) -> Tensor:
    return torch.full((1, 3, *size), value, dtype=torch.float64)


def noise(seed: int, height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


def step_picture() -> Tensor:
    """Columns 0, 0, 1, 1."""
    return torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(1, 3, 4, 4)


LUMINANCE = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)  # of SSIM, flat 0.5 and 0.25
RED_CHROMA = (0.22486, 0.12585)  # a and b of sRGB red, from the article on Oklab
RED_HUE = 1 - 0.02 / math.hypot(*RED_CHROMA, 0.02)


@pytest.mark.parametrize(
    ("name", "output", "target", "expected"),
    [
        ("l1", flat(0.25, 2, 2), flat(0.75, 2, 2), 0.5),
        ("l2", flat(0.25, 2, 2), flat(0.75, 2, 2), 0.25),
        ("charbonnier", flat(0.5, 2, 2), flat(0.5, 2, 2), 1e-6),
        ("charbonnier", flat(4.5, 2, 2), flat(0.5, 2, 2), 4.0),
        ("ssim", flat(0.5, 20, 13), flat(0.25, 20, 13), 1 - LUMINANCE),
        ("ssim", flat(0.5, 3, 4), flat(0.25, 3, 4), 1 - LUMINANCE),
        # One scale, two and five; the contrast of flat pictures is 1 at each.
        ("ms_ssim", flat(0.5, 21, 99), flat(0.25, 21, 99), 1 - LUMINANCE),
        ("ms_ssim", flat(0.5, 22, 99), flat(0.25, 22, 99), 1 - LUMINANCE ** (0.2856 / 0.3304)),
        ("ms_ssim", flat(0.5, 176, 176), flat(0.25, 176, 176), 1 - LUMINANCE ** (0.1333 / 1.0001)),
        # Three levels double a flat error in the approximation, one band of ten.
        ("swt", flat(0.75, 5, 9), flat(0.25, 5, 9), 8 * 0.5 / 10),
        # Only DC differs, by 0.5 x sqrt(16), in one of 4 x 3 bins.
        ("fft", flat(0.5, 4, 4), flat(0.0, 4, 4), 2 / 12),
        ("fft_log", flat(0.5, 4, 4), flat(0.0, 4, 4), math.log(3) / 12),
        # gx is 1 + 2 + 1 in two columns of four.
        ("edge", step_picture(), flat(0.0, 4, 4), 2.0),
        # dx is 1 in one of three places, dy is 0 everywhere.
        ("gradient", step_picture(), flat(0.0, 4, 4), 1 / 3),
        ("gradient", step_picture().mT, flat(0.0, 4, 4), 1 / 3),
        ("consistency", flat(1.0, 2, 2), flat(0.0, 2, 2), 1.0),  # L* of white is 100
        (
            "consistency",
            torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1),
            flat(0.0, 1, 1),
            sum(RED_CHROMA) / 2 + RED_HUE + 0.53241,  # L* of red is 53.241
        ),
    ],
)
def test_value_known_by_hand(name: str, output: Tensor, target: Tensor, expected: float) -> None:
    tolerance = 2e-4 if name == "consistency" else 1e-6
    assert loss_of(name, output, target).item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("size", [(6, 7), (13, 23)])
def test_gradient_is_that_of_finite_differences(name: str, size: tuple[int, int]) -> None:
    target = noise(1, *size, batch=1)
    output = (1.4 * noise(2, *size, batch=1) - 0.2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda picture: loss_of(name, picture, target), output, fast_mode=size != (6, 7)
    )


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, None])
def test_gradient_is_finite_where_output_and_target_are_equal(
    name: str, value: float | None
) -> None:
    target = (noise(3, 24, 17) if value is None else flat(value, 24, 17)).float()
    output = target.clone().requires_grad_()
    loss = loss_of(name, output, target)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=2e-6)
    assert output.grad is not None and torch.isfinite(output.grad).all()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradient_is_finite_at_flat_greys_that_should_have_colour(name: str, value: float) -> None:
    output = flat(value, 12, 12).float().requires_grad_()
    loss_of(name, output, noise(4, 12, 12, batch=1).float()).backward()
    assert output.grad is not None and torch.isfinite(output.grad).all()
    assert output.grad.abs().max() < 100


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("offset", [-1.5, 1.5])
def test_output_outside_the_range_is_still_pulled_back(name: str, offset: float) -> None:
    output = (0.2 * noise(5, 16, 16) + offset).requires_grad_()
    loss_of(name, output, noise(6, 16, 16)).backward()
    assert output.grad is not None and output.grad.abs().max() > 1e-9


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(PLAIN),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_size_gives_finite_values_and_gradients(
    name: str, height: int, width: int, seed: int
) -> None:
    target = noise(seed, height, width, batch=1).float()
    output = (1.5 * noise(seed + 100, height, width, batch=1) - 0.25).float().requires_grad_()
    loss = loss_of(name, output, target)
    loss.backward()
    assert loss.shape == () and torch.isfinite(loss) and loss > -1e-6
    assert output.grad is not None and torch.isfinite(output.grad).all()


@pytest.mark.parametrize("size", [(24, 16), (8, 8)])
def test_wavelet_bands_are_those_of_pywavelets(size: tuple[int, int]) -> None:
    picture = noise(7, *size)
    reference = pywt.swt2(picture.numpy(), "db4", level=3, axes=(-2, -1), trim_approx=True)
    wanted = [reference[0]] + [band for level in reference[1:] for band in level]
    np.testing.assert_allclose(swt_bands(picture).numpy(), np.stack(wanted), atol=1e-12)


def test_wavelet_bands_of_odd_sides_are_those_of_the_picture_repeated() -> None:
    picture = noise(8, 5, 3)
    repeated = swt_bands(picture.repeat(1, 1, 8, 8))
    torch.testing.assert_close(swt_bands(picture), repeated[..., :5, :3])


def test_ssim_is_that_of_scikit_image_in_its_whole_windows() -> None:
    output, target = noise(9, 31, 27, batch=1), noise(10, 31, 27, batch=1)
    _, similarity = structural_similarity(
        output[0].numpy(),
        target[0].numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    expected = 1 - similarity[:, 5:-5, 5:-5].mean()
    assert loss_of("ssim", output, target).item() == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_is_the_product_of_the_scales() -> None:
    target = noise(11, 60, 50, batch=1)
    output = target + 0.3 * (noise(12, 60, 50, batch=1) - 0.5)
    weights = np.array([0.0448, 0.2856, 0.3001])  # 50 holds windows at 1, 1/2 and 1/4
    x, y = output[0].numpy(), target[0].numpy()
    product = np.ones(3)
    for scale, weight in enumerate(weights / weights.sum()):
        luminance, contrast = reference_parts(x, y)
        part = contrast * luminance if scale == 2 else contrast
        product *= part.mean(axis=(1, 2)) ** weight
        x, y = (
            p[:, : p.shape[1] // 2 * 2, : p.shape[2] // 2 * 2]
            .reshape(3, p.shape[1] // 2, 2, p.shape[2] // 2, 2)
            .mean(axis=(2, 4))
            for p in (x, y)
        )
    assert loss_of("ms_ssim", output, target).item() == pytest.approx(1 - product.mean(), abs=1e-9)


def reference_parts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance and contrast-structure maps of SSIM where the window is whole."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def mean(plane: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(plane, taps, axis=1), taps, axis=2)[:, 5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
    covariance, variances = mean(x * y) - mx * my, mean(x * x + y * y) - mx**2 - my**2
    return luminance, (2 * covariance + 9e-4) / (variances + 9e-4)


def test_ms_ssim_of_an_inverted_picture_still_has_a_direction() -> None:
    target = noise(13, 64, 64)
    output = (1 - target).requires_grad_()
    loss = loss_of("ms_ssim", output, target)
    loss.backward()
    assert output.grad is not None
    better = output.detach() - 1e-3 * output.grad / output.grad.norm()
    assert 0.9 < loss_of("ms_ssim", better, target) < loss <= 1


def test_a_shift_changes_no_magnitude_of_the_spectrum() -> None:
    target = noise(14, 9, 12)
    shifted = target.roll((2, 5), dims=(-2, -1))
    assert loss_of("fft", shifted, target).item() == pytest.approx(0, abs=1e-12)
    assert loss_of("l1", shifted, target) > 0.1


def test_the_hue_of_a_grey_counts_for_nothing() -> None:
    dim, bright = flat(0.4, 3, 3), flat(0.40001, 3, 3)
    assert loss_of("consistency", dim, bright) < 1e-4


@pytest.mark.parametrize("name", PLAIN)
def test_autocast_and_half_precision_change_nothing_inside(name: str) -> None:
    output, target = noise(15, 24, 24).bfloat16(), noise(16, 24, 24)
    expected = loss_of(name, output.float(), target.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(name, output, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_names_are_the_recipes() -> None:
    assert list(LOSSES) == list(Loss.model_fields)


def test_terms_are_weighted_named_and_left_out_at_weight_zero() -> None:
    output, target = flat(1.0, 2, 2), flat(0.0, 2, 2)
    weights = Loss(l1=0.5, fft=0.25).model_dump()
    terms = LOSS_TERMS(output, target, weights, prefix="teacher/")
    assert {name: term.item() for name, term in terms.items()} == {
        "teacher/l1": 0.5,
        "teacher/fft": pytest.approx(0.25 * 2 / 4),
    }


def test_term_with_a_weight_has_to_be_open() -> None:
    picture = flat(0.0, 2, 2)
    with pytest.raises(ValueError, match="'l2' has a weight but is not open"):
        open_losses(["l1"], CPU)(picture, picture, {"l1": 1.0, "l2": 0.1})


def test_unknown_term_lists_the_known_ones() -> None:
    picture = flat(0.0, 2, 2)
    for call in (
        lambda: open_losses(["psnr"], CPU),
        lambda: LOSS_TERMS(picture, picture, {"psnr": 0.0}),
    ):
        with pytest.raises(ValueError, match=r"'psnr' is not one of \['l1', 'l2', "):
            call()


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        ((1, 3, 2, 2), (2, 3, 2, 2), r"\[1, 3, 2, 2\] and target \[2, 3, 2, 2\] differ"),
        ((3, 2, 2), (3, 2, 2), r"expected \[B, 3, H, W\], got \[3, 2, 2\]"),
        ((1, 1, 2, 2), (1, 1, 2, 2), r"expected \[B, 3, H, W\], got \[1, 1, 2, 2\]"),
    ],
)
def test_other_shapes_are_an_error(
    output: tuple[int, ...], target: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LOSS_TERMS(torch.zeros(output), torch.zeros(target), {"l1": 1.0})


def test_example_in_the_docstring() -> None:
    assert doctest.testmod(registry).failed == 0
