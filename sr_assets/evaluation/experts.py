"""Measuring one frozen expert on one benchmark; its unrounded SR is kept for fusions and mixes.

Trained models are measured in `models.py`, what needs no network of its own in `baselines.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from sr_assets.assets.experts import load_weights, tap
from sr_assets.evaluation.benchmark import (
    BenchmarkImage,
    benchmark_images,
    read_pair,
    remember_tiled,
    tiles_note,
    was_tiled,
)
from sr_assets.evaluation.pixels import encode_png, read_png, to_tensor
from sr_assets.evaluation.results import Results, measure
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import (
    features_finished,
    image_finished,
    write_features,
    write_image,
)

if TYPE_CHECKING:
    import torch

    from sr_models.experts.loading import Expert

#: Largest image that is run whole (LR px); others are cut in tiles of this side and halo.
_LARGEST = 512 * 512
_TILE, _HALO = 256, 32


def evaluate_expert(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json`, `sr/<picture>` and the unrounded SR of every image; returns metadata.

    Features are written beside the SR where the recipe asks for them.

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
    loaded = load_weights(context.input(f"expert/{name}/weights"), context.output.work).to(device)
    expert = tap(loaded, name, context.recipe.experts[name])
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
    import torch.nn.functional as F

    from sr_models.experts.running import ExpertMemoryError, NonFiniteOutputError, run_expert
    from sr_models.inference.tiles import upscale_whole
    from sr_models.metrics.images import to_uint8

    file, wanted = f"sr/{image.picture}", context.recipe.experts[name]
    asked = bool(wanted.features)
    if (
        context.output.finished(file)
        and image_finished(context.output, image.key)
        and (not asked or features_finished(context.output, image.key))
    ):
        return read_png(Output(UPath(context.output.path), "", {}), file)

    def forward(tile: torch.Tensor) -> torch.Tensor:
        out = run_expert(expert, tile, dtype=wanted.dtype, batch=1, features=asked)
        # On the LR grid, an HR pixel being one of scale² channels, features ride along.
        return torch.cat([F.pixel_unshuffle(out.sr, expert.scale), *_present(out.features)], 1)

    try:
        maps, tiled = upscale_whole(
            forward,
            to_tensor(lr),
            1,
            largest=_LARGEST,
            tile=_TILE,
            halo=_HALO,
            grid=expert.multiple,
        )
    except NonFiniteOutputError as error:
        mend = "set dtype to fp32" if wanted.dtype != "fp32" else "its weights are broken"
        raise StageError(
            f"experts.{name}: {image.name} gives a value that is not finite in {wanted.dtype}: "
            f"{mend}"
        ) from error
    except (ExpertMemoryError, ValueError) as error:
        raise StageError(f"experts.{name}: {image.name}: {error}") from error
    remember_tiled(context, image, tiled)
    planes = 3 * expert.scale**2
    sr = F.pixel_shuffle(maps[:, :planes], expert.scale)[0]
    write_image(context.output, image.key, sr.numpy())
    if asked:
        write_features(context.output, image.key, maps[0, planes:].numpy())
    rounded = to_uint8(sr)
    context.output.write_bytes(file, encode_png(rounded))
    return rounded


def _present(features: torch.Tensor | None) -> list[torch.Tensor]:
    return [] if features is None else [features]
