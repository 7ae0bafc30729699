"""PSNR-Y of a model and its rivals on the held-out images, put together from their patches.

Benchmarks, whose images are never cut, are `sr_assets/evaluation/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sr_assets.stores.samples import Maps, TrainingSamples

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
    from sr_models.training.prefetch import prefetched

    images = list(samples.validation_images())
    parts = [
        (i, slice(a, a + _TILES))
        for i, one in enumerate(images)
        for a in range(0, len(one.patches), _TILES)
    ]

    def read(number: int) -> Maps:
        image, patches = parts[number]
        return samples.held_out(images[image], patches)

    found: list[dict[str, float]] = []
    with prefetched(read, range(len(parts)), ahead=1) as upcoming:
        for image in images:
            pictures: dict[str, list[np.ndarray]] = {}
            hr: list[np.ndarray] = []
            for _ in range(0, len(image.patches), _TILES):
                maps = next(upcoming)
                hr.extend(maps.pop("hr").transpose(0, 2, 3, 1))
                # Not inference_mode: SPAN refreshes its merged kernels here, and training goes on.
                with torch.no_grad():
                    upscaled = upscale(_batch(maps, device))
                for name, sr in upscaled.items():
                    pictures.setdefault(name, []).extend(to_uint8(sr))
            whole = image.assemble(hr)
            found.append(
                {
                    name: psnr_y(image.assemble(made), whole, border=samples.scale)
                    for name, made in pictures.items()
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


def _batch(maps: Maps, device: str) -> dict[str, Tensor]:
    import torch

    from sr_models.training.stored import dequantised

    return dequantised({key: torch.from_numpy(map_).to(device) for key, map_ in maps.items()})
