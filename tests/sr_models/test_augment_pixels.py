"""Pixels of an augmented pair: LR stays what the degradation makes of HR, and HR stays sharp."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_models.degradations.bicubic import downscale
from sr_models.training.augment import blur, cutblur, jitter, mixup, zoom

scales, sides, seeds = st.sampled_from([1, 2, 3, 4]), st.integers(1, 20), st.integers(0, 2**31)
factors = st.floats(0.5, 1.5)


def bicubic(hr: np.ndarray, scale: int) -> np.ndarray:
    return downscale(torch.from_numpy(hr)[None], scale)[0].numpy()


def pair(side: int, scale: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    hr = np.random.default_rng(seed).random((3, side * scale, side * scale), np.float32)
    return bicubic(hr, scale), hr


@settings(max_examples=40, deadline=None)
@given(side=sides, scale=scales, seed=seeds, b=factors, c=factors, s=factors)
def test_jitter_is_the_same_affine_change_of_both(
    side: int, scale: int, seed: int, b: float, c: float, s: float
) -> None:
    lr, hr = jitter(*pair(side, scale, seed), b, c, s)
    assert lr.dtype == hr.dtype == np.float32
    assert np.allclose(lr, bicubic(hr, scale), atol=2e-5)  # out of [0, 1] as well


def test_jitter_by_hand() -> None:
    lr, hr = np.full((3, 1, 1), 0.25, np.float32), np.full((3, 2, 2), 0.25, np.float32)
    hr[:, 0] = 0.75  # mean luma 0.5
    assert np.allclose(jitter(lr, hr, 1, 2, 1)[0], 0.0) and np.allclose(
        jitter(lr, hr, 1, 2, 1)[1][:, 0], 1.0
    )
    assert np.allclose(jitter(lr, hr, 2, 1, 1)[1][:, 0], 1.5)  # brightness, not clipped
    red = np.zeros((3, 1, 1), np.float32)
    red[0] = 1
    assert np.allclose(jitter(red, red, 1, 1, 0)[0], 0.299)  # without saturation: BT.601 luma
    for one, other in zip(jitter(lr, hr, 1, 1, 1), (lr, hr), strict=True):
        assert np.allclose(one, other)


@settings(max_examples=30, deadline=None)
@given(side=sides, scale=scales, seed=seeds, sigma=st.floats(0.3, 1.2))
def test_blur_degrades_as_the_blurred_picture_would_be(
    side: int, scale: int, seed: int, sigma: float
) -> None:
    lr, hr = pair(side, scale, seed)
    noise = np.random.default_rng(seed + 1).normal(0, 0.1, lr.shape).astype(np.float32)
    blurred_lr, blurred_hr = blur(lr + noise, hr, scale, sigma)
    assert np.allclose(blurred_lr - noise, bicubic(blurred_hr, scale), atol=1e-5)
    assert blurred_hr.var() <= hr.var() + 1e-6 and np.isclose(
        blurred_hr.mean(), hr.mean(), atol=1e-4
    )


@settings(max_examples=40, deadline=None)
@given(side=sides, wanted=sides, scale=scales, seed=seeds)
def test_zoom_keeps_lr_the_degraded_hr_at_any_size(
    side: int, wanted: int, scale: int, seed: int
) -> None:
    lr, hr = zoom(*pair(side, scale, seed), scale, wanted)
    assert lr.shape == (3, wanted, wanted) and hr.shape == (3, wanted * scale, wanted * scale)
    assert lr.dtype == hr.dtype == np.float32
    assert np.allclose(lr, bicubic(hr, scale), atol=1e-5)


@pytest.mark.parametrize(("side", "wanted"), [(20, 22), (24, 22), (22, 22)])
def test_zoom_shows_the_whole_crop(side: int, wanted: int) -> None:
    """A ramp over the crop stays one, from edge to edge, in both pictures."""
    scale = 4
    ramp = (np.arange(side * scale, dtype=np.float32) + 0.5) / (side * scale)
    hr = np.broadcast_to(ramp, (3, side * scale, side * scale)).copy()
    noise = np.zeros((3, side, side), np.float32)
    noise[1] = 0.1  # what LR has beside HR's bicubic goes along
    lr, hr = zoom(bicubic(hr, scale) + noise, hr, scale, wanted)
    for picture, count in ((lr - 0.1 * (np.arange(3) == 1)[:, None, None], wanted), (hr, 88)):
        inner = slice(2 * scale, -2 * scale)
        expected = (np.arange(count) + 0.5) / count
        assert np.allclose(picture[:, :, inner], expected[inner], atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), side=st.integers(1, 20), seed=seeds, inside=st.booleans())
def test_cutblur_makes_one_region_coarse_and_leaves_the_rest(
    data: st.DataObject, side: int, seed: int, inside: bool
) -> None:
    lr, _ = pair(side, 1, seed)
    before = lr.copy()
    y, x = (data.draw(st.integers(0, side - 1)) for _ in range(2))
    h, w = data.draw(st.integers(1, side - y)), data.draw(st.integers(1, side - x))
    mixed = cutblur(lr, slice(y, y + h), slice(x, x + w), inside)
    assert np.array_equal(lr, before) and mixed.dtype == np.float32
    whole = cutblur(lr, slice(0, side), slice(0, side), True)
    region = np.zeros((side, side), bool)
    region[y : y + h, x : x + w] = True
    coarse = region if inside else ~region
    assert np.array_equal(mixed[:, coarse], whole[:, coarse])
    assert np.array_equal(mixed[:, ~coarse], lr[:, ~coarse])
    if side >= 4:  # half the resolution: random pixels lose much of their variance
        assert whole.var() < 0.7 * lr.var()


def test_mixup_takes_the_same_share_of_lr_and_hr() -> None:
    one, other = pair(6, 2, 1), pair(6, 2, 2)
    lr, hr = mixup(one, other, 0.25)
    assert np.allclose(hr, 0.25 * one[1] + 0.75 * other[1]) and hr.dtype == np.float32
    assert np.allclose(lr, bicubic(hr, 2), atol=1e-6)
