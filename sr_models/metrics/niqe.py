"""NIQE: how far the statistics of a picture are from those of natural photographs, without HR.

The parameters of the natural photographs are the authors' and are looked for on this machine;
fitting others is not for here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.io import loadmat
from scipy.ndimage import correlate1d
from scipy.special import gamma

from sr_models.degradations.bicubic import downscale
from sr_models.losses.weights import MissingWeightsError, Weights, find_weights
from sr_models.metrics.catalogue import FACTS, Metric
from sr_models.metrics.fingerprints import found_digest

PARAMETERS = Weights(
    "niqe",
    ("niqe_modelparameters.mat",),
    "take it from http://live.ece.utexas.edu/research/quality/niqe_release.zip",
)
_BLOCK = 96  # px
_SHAPES = np.arange(0.2, 10.001, 0.001)  # of a generalised Gaussian
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))  # ascending


class Natural(NamedTuple):
    """A Gaussian over the 36 features of natural photographs."""

    mean: np.ndarray
    covariance: np.ndarray


def open_metric(name: str = "niqe", device: torch.device | str = "cpu") -> Metric:
    """NIQE of the whole SR; HR is not looked at, and it always runs on the CPU.

    Raises:
        MissingWeightsError: the parameters are not here; one line says where they go.
        ValueError: the file holds something else.
    """
    try:
        natural = read_parameters(find_weights(PARAMETERS))
    except MissingWeightsError as error:
        raise MissingWeightsError(f"metric{str(error).removeprefix('loss')}") from error
    return Metric(name, FACTS[name], lambda sr, hr: niqe(sr, natural))


def fingerprint(name: str = "niqe") -> dict[str, str]:
    """Of the parameters; see `catalogue.fingerprints`."""
    return {PARAMETERS.names[0]: found_digest(lambda: find_weights(PARAMETERS))}


def read_parameters(path: Path) -> Natural:
    """`mu_prisparam` [1, 36] and `cov_prisparam` [36, 36] of a MATLAB file.

    Raises:
        ValueError: it holds no such arrays.
    """
    try:
        found = loadmat(path)
        mean, covariance = found["mu_prisparam"].ravel(), found["cov_prisparam"]
    except Exception as error:  # scipy has as many errors as there are ways to be no such file
        raise ValueError(f"{path} holds no parameters of NIQE: take the original file") from error
    if mean.shape != (36,) or covariance.shape != (36, 36):
        raise ValueError(f"{path}: NIQE has 36 features, not {mean.size}: take the original file")
    return Natural(mean, covariance)


def niqe(image: np.ndarray, natural: Natural) -> float | None:
    """Mahalanobis-like distance of a picture's features to those of natural photographs.

    Mittal, Soundararajan, Bovik, "Making a completely blind image quality analyzer", 2013,
    equation 10, with all blocks of 96x96 px, as in the authors' release and BasicSR.

    Args:
        image: uint8 [H, W, 3] RGB. Rows and columns beyond the last whole block do not count.
        natural: what to compare with.

    Returns:
        The distance, 0 or more, lower is better; None for pictures of less than two blocks or
        where no two blocks have statistics (flat ones have none).
    """
    rows, columns = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK
    if rows * columns < 2:
        return None
    # Grey in full range, rounded, as the release's rgb2gray gives it.
    grey = np.floor(image[: rows * _BLOCK, : columns * _BLOCK] @ [0.299, 0.587, 0.114] + 0.5)
    features = np.hstack(
        [_block_features(grey, _BLOCK), _block_features(_halved(grey), _BLOCK // 2)]
    )
    features = features[np.isfinite(features).all(1)]
    if len(features) < 2:
        return None
    spread = np.linalg.pinv((natural.covariance + np.cov(features, rowvar=False)) / 2)
    difference = natural.mean - features.mean(0)
    return round(float(np.sqrt(max(0.0, difference @ spread @ difference))), 6)


def _halved(grey: np.ndarray) -> np.ndarray:
    return downscale(torch.from_numpy(grey)[None, None], 2)[0, 0].numpy()


def _block_features(grey: np.ndarray, side: int) -> np.ndarray:
    """[blocks, 18] of float64 [H, W]; NaN where a block has no statistics."""
    normal = _normalised(grey)
    blocks = [
        normal[top : top + side, left : left + side]
        for top in range(0, normal.shape[0], side)
        for left in range(0, normal.shape[1], side)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array([_features(block) for block in blocks])


def _normalised(grey: np.ndarray) -> np.ndarray:
    """Contrast-normalised values: a 7x7 Gaussian of sigma 7/6, borders repeated, constant 1."""
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()

    def smooth(plane: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(plane, window, 0, mode="nearest"), window, 1, mode="nearest")

    mean = smooth(grey)
    normal = (grey - mean) / (np.sqrt(np.abs(smooth(grey**2) - mean**2)) + 1)
    # Flat places are 0 and count on neither side; the noise of rounding would choose one.
    normal[np.abs(normal) < 1e-6] = 0
    return normal


def _features(block: np.ndarray) -> list[float]:
    shape, left, right = _fit(block)
    found = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _fit(block * np.roll(block, shift, (0, 1)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        found += [shape, mean, left, right]
    return found


def _fit(values: np.ndarray) -> tuple[float, float, float]:
    """Shape and the two scales of an asymmetric generalised Gaussian, by moments."""
    below, above = values[values < 0], values[values > 0]
    if not below.size or not above.size:
        return (np.nan, np.nan, np.nan)
    left, right = np.sqrt(np.mean(below**2)), np.sqrt(np.mean(above**2))
    ratio = left / right
    moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    after = int(np.clip(np.searchsorted(_RATIOS, wanted), 1, len(_RATIOS) - 1))
    nearer = after if _RATIOS[after] - wanted < wanted - _RATIOS[after - 1] else after - 1
    shape = float(_SHAPES[nearer])
    scale = float(np.sqrt(gamma(1 / shape) / gamma(3 / shape)))
    return shape, float(left) * scale, float(right) * scale
