"""Noise against the distributions it must have; seeds are fixed, so that a pass stays a pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sr_models.degradations import noise

SIDE = 400


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def photons(level: float, scale: float, seed: int) -> np.ndarray:
    """Counts of a flat picture."""
    planes = np.full((3, SIDE, SIDE), level, np.float32)
    counts = noise.poisson(planes, scale, False, generator(seed)).astype(np.float64) * scale / 255
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    return np.round(counts).ravel()


def assert_poisson(counts: np.ndarray, mean: float) -> None:
    """Mean and variance within 5 standard errors, and chi-square over bins of 10 and more."""
    number = len(counts)
    assert abs(counts.mean() - mean) <= 5 * np.sqrt(mean / number)
    error = np.sqrt((mean + 2 * mean**2) / number)
    assert abs(((counts - mean) ** 2).mean() - mean) <= 5 * error
    # Equal shares of quantiles: every bin is expected to hold at least 10.
    inner = np.arange(stats.poisson.ppf(20 / number, mean), stats.poisson.isf(20 / number, mean))
    edges = np.concatenate([[-0.5], np.unique(inner) + 0.5, [np.inf]])
    upper = stats.poisson.cdf(np.floor(edges[1:]), mean)
    expected = np.diff(np.concatenate([[0], upper])) * number
    observed = np.histogram(counts, edges)[0]
    kept = expected > 0
    assert observed[~kept].sum() == 0
    if kept.sum() > 1:
        assert stats.chisquare(observed[kept], expected[kept]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("level", "scale"),
    [
        (7.65, 10.0),  # 0.3, rest 0.65 of a level
        (0.9, 100.0),  # 0.35, nothing but the rest
        (12.75, 100.0),  # 5
        (102.0, 100.0),  # 40, a whole level
        (101.5, 100.0),  # 39.8
        (63.75, 400.0),  # 100, rest 1.18
        (10.99, 1000.0),  # 43.1, rest 3.88
        (127.5, 1000.0),  # 500
    ],
)
def test_counts_are_poisson(level: float, scale: float) -> None:
    counts = photons(level, scale, seed=int(level * scale))
    assert_poisson(counts, float(np.float32(level)) / 255 * scale)


def test_many_means_in_one_picture_are_each_poisson() -> None:
    """Probability integral transform, with ties broken evenly: uniform for any mixture of means."""
    levels = generator(5).uniform(0, 200, (3, SIDE, SIDE)).astype(np.float32)
    scale = 80.0
    counts = np.round(noise.poisson(levels, scale, False, generator(6)) * (scale / 255.0))
    means = levels.astype(np.float64) / 255 * scale
    spread = generator(7).uniform(size=levels.shape)
    at = stats.poisson.cdf(counts - 1, means) + spread * stats.poisson.pmf(counts, means)
    # Clamping to 80 photons touches none of the counts of levels up to 100 (31 photons).
    dark = levels < 100
    assert stats.kstest(at[dark], "uniform").pvalue > 1e-4


def test_black_and_below_give_no_photon() -> None:
    planes = np.stack([np.full((50, 50), v, np.float32) for v in (0, -40, -1e-3)])
    assert (noise.poisson(planes, 50.0, False, generator()) == 0).all()


def test_poisson_clamps_what_comes_in_and_out() -> None:
    planes = np.full((3, 100, 100), 900, np.float32)
    noisy = noise.poisson(planes, 40.0, False, generator())
    chance = stats.poisson.sf(39, 40.0)
    assert noisy.max() == 255
    assert stats.binomtest(int((noisy == 255).sum()), noisy.size, chance).pvalue > 1e-4


@pytest.mark.parametrize(("sigma", "level"), [(2.55, 128.0), (10.0, 128.0), (25.5, 127.5)])
def test_gaussian_is_normal(sigma: float, level: float) -> None:
    planes = np.full((3, SIDE, SIDE), level, np.float32)
    draws = (noise.gaussian(planes, sigma, False, generator(int(sigma))) - level) / sigma
    draws = draws.astype(np.float64).ravel()
    n = len(draws)
    assert abs(draws.mean()) <= 5 / np.sqrt(n)
    assert abs(draws.var() - 1) <= 5 * np.sqrt(2 / n)
    assert abs((draws**3).mean()) <= 5 * np.sqrt(15 / n)
    assert abs((draws**4).mean() - 3) <= 5 * np.sqrt(96 / n)
    assert stats.kstest(draws, "norm").pvalue > 1e-4


def test_gaussian_has_the_right_tails() -> None:
    """Beyond the ziggurat's base layer (3.654), where another method draws: on both sides."""
    planes = np.full((1, 2000, 1500), 128, np.float32)
    draws = (noise.gaussian(planes, 20.0, False, generator(11)).astype(np.float64) - 128) / 20
    for low, high in ((3.0, 3.6541), (3.6542, 4.2), (4.2, 6.0)):
        chance = stats.norm.sf(low) - stats.norm.sf(high)
        for side in (draws, -draws):
            found = ((side > low) & (side <= high)).sum()
            assert stats.binomtest(int(found), draws.size, chance).pvalue > 1e-4


def test_neighbours_and_channels_are_independent() -> None:
    planes = np.full((3, SIDE, SIDE), 128, np.float32)
    for noisy in (
        noise.gaussian(planes, 10.0, False, generator()),
        noise.poisson(planes, 60.0, False, generator()),
    ):
        flat = ((noisy - noisy.mean()) / noisy.std()).ravel()
        for lag in (1, 2, 3, 8, 15, 16, 17, 32, 1024, SIDE, SIDE * SIDE):
            assert abs((flat[lag:] * flat[:-lag]).mean()) < 5 / np.sqrt(len(flat) - lag), lag


def test_grey_noise_is_one_plane() -> None:
    planes = generator(2).uniform(90, 140, (3, 60, 70)).astype(np.float32)
    added = noise.gaussian(planes, 8.0, True, generator()) - planes
    np.testing.assert_allclose(added[0], added[1], atol=1e-4)
    np.testing.assert_allclose(added[0], added[2], atol=1e-4)
    assert abs(added[0].std() - 8) < 0.6


def test_grey_poisson_is_the_noise_of_the_luma() -> None:
    planes = np.empty((3, SIDE, SIDE), np.float32)
    planes[0], planes[1], planes[2] = 140, 90, 120
    added = noise.poisson(planes, 80.0, True, generator(3)) - planes
    np.testing.assert_allclose(added[0], added[1], atol=1e-4)
    np.testing.assert_allclose(added[0], added[2], atol=1e-4)
    luma = 0.299 * 140 + 0.587 * 90 + 0.114 * 120
    counts = (added[0].astype(np.float64) + luma) * 80 / 255
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    # Noise below -90 levels would be clamped in green: 5 photons of 33 or less, once in 1e8.
    assert_poisson(np.round(counts).ravel(), luma / 255 * 80)


@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from(["gaussian", "poisson"]),
    st.floats(0.5, 200),
)
def test_any_size_stays_in_range_and_takes_as_many_words(
    height: int, width: int, grey: bool, kind: str, amount: float
) -> None:
    planes = generator(1).uniform(-50, 300, (3, height, width)).astype(np.float32)
    before = planes.copy()
    random, other = generator(4), generator(4)
    noisy = getattr(noise, kind)(planes, amount, grey, random)
    assert noisy.dtype == np.float32 and noisy.shape == planes.shape and noisy.flags.c_contiguous
    assert noisy.min() >= 0 and noisy.max() <= 255
    np.testing.assert_array_equal(planes, before)
    other.bit_generator.random_raw(68)
    assert random.bit_generator.state == other.bit_generator.state


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_a_seed_gives_the_same_noise_whatever_came_before(kind: str, grey: bool) -> None:
    planes = generator(1).uniform(0, 255, (3, 50, 41)).astype(np.float32)
    draw = getattr(noise, kind)
    first = draw(planes, 20.0, grey, generator(8))
    noise.poisson(planes[:, :7, :9].copy(), 900.0, True, generator(1))
    np.testing.assert_array_equal(draw(planes, 20.0, grey, generator(8)), first)
    assert (draw(planes, 20.0, grey, generator(9)) != first).any()


def test_no_noise_of_sigma_0() -> None:
    planes = generator(1).uniform(0, 255, (3, 20, 21)).astype(np.float32)
    np.testing.assert_array_equal(noise.gaussian(planes, 0.0, False, generator()), planes)
