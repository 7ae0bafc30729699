"""Measuring a file beside its network: differences, PSNR-Y, gates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sr_models.export.parity import Gate, Parity, luma_psnr, measure, run_reference
from sr_models.metrics.images import psnr_y, to_uint8

SCALE = 2


def pictures(count: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.rand(1, 3, 24, 30, generator=random) for _ in range(count)]


def truth(sr: list[Tensor]) -> list[np.ndarray]:
    random = torch.Generator().manual_seed(4)
    return [to_uint8(x + 0.05 * torch.randn(x.shape, generator=random))[0] for x in sr]


def test_a_file_that_computes_the_same_differs_by_nothing() -> None:
    sr = pictures()
    reference = run_reference(lambda n: sr[n], truth(sr), SCALE)
    parity = measure(lambda n: sr[n].clone(), reference)
    assert parity.max_difference == parity.mean_difference == parity.psnr_y_change == 0
    assert parity.psnr_y_to_torch == math.inf
    assert parity.psnr_y == reference.psnr_y
    assert parity.seconds_per_megapixel > 0
    assert Gate(0.0, math.inf, 0.0).refusal(parity) is None


def test_one_wrong_patch_is_found_that_the_mean_would_hide() -> None:
    sr = pictures()
    hr = truth(sr)
    noise = 0.02 * torch.randn(sr[1].shape, generator=torch.Generator().manual_seed(5))
    other = [sr[0], sr[1] + noise, sr[2]]
    reference = run_reference(lambda n: sr[n], hr, SCALE)
    parity = measure(lambda n: other[n], reference)
    changes = [patch.psnr_y_change for patch in parity.patches]
    assert changes[0] == changes[2] == 0 and changes[1] == pytest.approx(3 * parity.psnr_y_change)
    limit = -changes[1] / 2
    assert Gate(drop=limit).refusal(parity) is None
    refusal = Gate(patch_drop=limit).refusal(parity)
    assert refusal is not None and "on patch 2" in refusal and "patch 1" not in refusal


def test_numbers_are_those_of_the_pictures() -> None:
    sr = pictures()
    hr = truth(sr)
    other = [x + (0.02 if n == 1 else 0.01) for n, x in enumerate(sr)]
    reference = run_reference(lambda n: sr[n], hr, SCALE)
    parity = measure(lambda n: other[n], reference)
    assert parity.max_difference == pytest.approx(0.02, abs=1e-6)
    assert parity.mean_difference == pytest.approx(0.04 / 3, abs=1e-6)
    assert parity.psnr_y_to_torch == min(
        luma_psnr(a, b) for a, b in zip(other, sr, strict=True)
    )  # the worst, not the mean
    expected = np.mean([psnr_y(to_uint8(x)[0], h, SCALE) for x, h in zip(other, hr, strict=True)])
    assert parity.psnr_y == pytest.approx(expected)
    assert parity.psnr_y_change == pytest.approx(expected - reference.psnr_y)


@given(st.floats(1e-4, 0.2))
@settings(max_examples=20, deadline=None)
def test_a_grey_offset_has_the_psnr_of_its_luma(offset: float) -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    expected = -20 * math.log10(offset * 219 / 255)  # luma spans 16 to 235
    assert luma_psnr(grey + offset, grey) == pytest.approx(expected, abs=0.05)


def test_what_is_beyond_black_and_white_is_no_difference_of_pictures() -> None:
    white = torch.ones(1, 3, 8, 8)
    assert luma_psnr(white + 0.3, white) == math.inf


def test_other_sizes_and_broken_values_are_refused() -> None:
    sr = pictures(1)
    reference = run_reference(lambda n: sr[n], truth(sr), SCALE)
    with pytest.raises(ValueError, match=r"gives \(1, 3, 24, 28\), torch"):
        measure(lambda n: sr[n][..., :-2], reference)
    with pytest.raises(ValueError, match="not finite"):
        measure(lambda n: sr[n] / 0, reference)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(max_difference=0.01), "differs from torch by 0.02, above 0.01"),
        (Gate(psnr_y_to_torch=60), "PSNR-Y to torch is 41.0 dB, below 60 dB"),
        (Gate(drop=0.05), "loses 0.080 dB of PSNR-Y, more than 0.05 dB"),
    ],
)
def test_a_gate_that_fails_names_the_numbers(gate: Gate, words: str) -> None:
    parity = Parity(0.02, 0.001, 41.0, 30.0, -0.08, 1.0)
    assert gate.refusal(parity) == words
    assert Gate().refusal(parity) is None


def test_nan_passes_no_gate() -> None:
    parity = Parity(math.nan, 0, math.nan, 30.0, math.nan, 1.0)
    refusal = Gate(1.0, 0.0, 1.0).refusal(parity)
    assert refusal is not None and refusal.count("nan") == 3
