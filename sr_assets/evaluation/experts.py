"""Measuring one frozen expert on one benchmark; its unrounded SR is kept for fusions and mixes.

Trained models are measured in `models.py`, what needs no network of its own in `baselines.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from sr_assets.assets.experts import load_weights
from sr_assets.evaluation.benchmark import (
    BenchmarkImage,
    benchmark_images,
    encode_png,
    read_pair,
    read_png,
    remember_tiled,
    tiles_note,
    to_tensor,
    was_tiled,
)
from sr_assets.evaluation.results import Results, measure
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import image_finished, write_image

if TYPE_CHECKING:
    from sr_models.experts.loading import Expert

#: Largest image that is run whole (LR px); others are cut in tiles of this side and halo.
_LARGEST = 512 * 512
_TILE, _HALO = 256, 32


def evaluate_expert(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json`, `sr/<picture>` and the unrounded SR of every image; returns metadata.

    Images that a killed run has finished are not run again.

    Raises:
        StageError: there is nothing to measure, the device is missing, or an output is not finite.
    """
    from sr_models.device import pick_device

    images = benchmark_images(context)
    try:
        device = pick_device(context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    expert = load_weights(context.input(f"expert/{name}/weights"), context.output.work).to(device)
    scores, tiled = [], 0
    with context.progress(str(context.ref), len(images)) as advance:
        for image in images:
            lr, hr = read_pair(context, image)
            sr = _upscale(context, name, expert, image, lr)
            scores.append(measure(image.name, f"sr/{image.picture}", sr, hr, context.recipe.scale))
            tiled += was_tiled(context, image)
            advance(1)
    note = tiles_note(tiled, len(scores), _TILE, _HALO)
    results = Results(name, "expert", tuple(scores), expert.parameters, note)
    context.output.write_json("results.json", results.to_json())
    return results.metadata()


def _upscale(
    context: StageContext, name: str, expert: Expert, image: BenchmarkImage, lr: np.ndarray
) -> np.ndarray:
    """The rounded SR of one image, uint8 [H, W, 3], both forms of it written."""
    import torch

    from sr_models.experts.running import ExpertMemoryError, NonFiniteOutputError, run_expert
    from sr_models.inference.tiles import upscale_whole
    from sr_models.metrics.images import to_uint8

    file, dtype = f"sr/{image.picture}", context.recipe.experts[name].dtype
    if context.output.finished(file) and image_finished(context.output, image.key):
        return read_png(Output(UPath(context.output.path), "", {}), file)

    def forward(tile: torch.Tensor) -> torch.Tensor:
        return run_expert(expert, tile, dtype=dtype, batch=1).sr

    try:
        sr, tiled = upscale_whole(
            forward,
            to_tensor(lr),
            expert.scale,
            largest=_LARGEST,
            tile=_TILE,
            halo=_HALO,
            grid=expert.multiple,
        )
    except NonFiniteOutputError as error:
        mend = "set dtype to fp32" if dtype != "fp32" else "its weights are broken"
        raise StageError(
            f"experts.{name}: {image.name} gives a value that is not finite in {dtype}: {mend}"
        ) from error
    except (ExpertMemoryError, ValueError) as error:
        raise StageError(f"experts.{name}: {image.name}: {error}") from error
    remember_tiled(context, image, tiled)
    write_image(context.output, image.key, sr[0].numpy())
    rounded = to_uint8(sr[0])
    context.output.write_bytes(file, encode_png(rounded))
    return rounded
