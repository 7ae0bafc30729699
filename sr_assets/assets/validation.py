"""PSNR-Y of a model and its rivals on the held-out images, put together from their patches.

Benchmarks, whose images are never cut, are `sr_assets/evaluation/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sr_assets.stores.samples import Tile, TrainingSamples, assemble

if TYPE_CHECKING:
    from torch import Tensor

_TILES = 16  # patches at a time


def validation_psnr(
    samples: TrainingSamples,
    upscale: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    device: str,
) -> dict[str, float]:
    """Mean PSNR-Y (dB) over the held-out images, each put together from its patches.

    Each patch is enlarged on its own, without its neighbours, and what no whole patch covers is
    left out: compare these numbers with one another, not with those of a benchmark. They are means
    over the same images: see `fair_means`.

    Args:
        samples: opened stores.
        upscale: a batch "lr", "sr/<name>" on `device` -> name -> SR [B, 3, S, S].
        device: where the batches go.
    """
    import torch

    from sr_models.metrics.images import psnr_y, to_uint8

    found: list[dict[str, float]] = []
    for _, tiles in samples.validation_images():
        pictures: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(tiles), _TILES):
            # Not inference_mode: SPAN refreshes its merged kernels here, and training goes on.
            with torch.no_grad():
                upscaled = upscale(_batch(tiles[start : start + _TILES], device))
            for name, sr in upscaled.items():
                pictures.setdefault(name, []).extend(to_uint8(sr))
        hr = assemble(tiles, [tile.hr for tile in tiles])
        found.append(
            {
                name: psnr_y(assemble(tiles, parts), hr, border=samples.scale)
                for name, parts in pictures.items()
            }
        )
    return fair_means(found)


def fair_means(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each row over the images on which all rows are finite, so that rows compare.

    An image that some row meets exactly has no finite PSNR there. When every image is like that, a
    row's mean is infinite if one of its values is.

    >>> fair_means([{"a": 30.0, "b": 20.0}, {"a": math.inf, "b": 90.0}])
    {'a': 30.0, 'b': 20.0}
    """
    compared = [image for image in images if all(map(math.isfinite, image.values()))] or images
    names = dict.fromkeys(name for image in images for name in image)
    return {name: _mean([image[name] for image in compared]) for name in names}


def _mean(values: Sequence[float]) -> float:
    # A NaN has to come through: math.fsum lets it.
    return math.fsum(values) / len(values)


def _batch(tiles: Sequence[Tile], device: str) -> dict[str, Tensor]:
    import torch

    arrays = {"lr": np.stack([tile.lr for tile in tiles])}
    for name in tiles[0].sr:
        arrays[f"sr/{name}"] = np.stack([tile.sr[name] for tile in tiles])
    for name in tiles[0].features:
        arrays[f"features/{name}"] = np.stack([tile.features[name] for tile in tiles])
    return {key: torch.from_numpy(array).to(device) for key, array in arrays.items()}
