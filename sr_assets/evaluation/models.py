"""Measuring one trained model on one benchmark; a fusion reads its experts' pictures from theirs.

Training is `assets/training.py`; comparing rows with one another is `leaderboard.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from sr_assets.assets.trained import LoadedModel, load_model
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
from sr_assets.stores.expert_cache import read_features, read_image

if TYPE_CHECKING:
    from torch import Tensor

#: Largest image that is run whole (LR px); others are cut in tiles of this side and halo.
_LARGEST = 512 * 512
_TILE, _HALO = 256, 32


def evaluate_model(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json` and `sr/<picture>` of every image; returns metadata.

    Raises:
        StageError: there is nothing to measure, the weights do not fit, or a picture is not finite.
    """
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import running_parameters

    images = benchmark_images(context)
    checkpoint = context.input(f"model/{name}/checkpoint")
    try:
        model = load_model(checkpoint, context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    scores, tiled = [], 0
    with context.progress(str(context.ref), len(images)) as advance:
        for image in images:
            lr, hr = read_pair(context, image)
            file = f"sr/{image.picture}"
            if context.output.finished(file):
                sr = read_png(Output(UPath(context.output.path), "", {}), file)
            else:
                sr = _upscale(context, name, model, image, lr)
                context.output.write_bytes(file, encode_png(sr))
            scores.append(measure(image.name, file, sr, hr, context.recipe.scale))
            tiled += was_tiled(context, image)
            advance(1)
    kind = "fusion" if model.experts else model.kind
    note = tiles_note(tiled, len(scores), _TILE, _HALO)
    parameters = running_parameters(fused_copy(model.network))
    results = Results(name, kind, tuple(scores), parameters, note)
    context.output.write_json("results.json", results.to_json())
    return results.metadata()


def _upscale(
    context: StageContext, name: str, model: LoadedModel, image: BenchmarkImage, lr: np.ndarray
) -> np.ndarray:
    """The rounded SR of one image, uint8 [H, W, 3]."""
    import torch
    import torch.nn.functional as F

    from sr_models.inference.tiles import upscale_whole
    from sr_models.metrics.images import to_uint8

    scale, experts = model.scale, model.experts
    # The experts' pictures and features ride along on the LR grid, where an HR pixel is one of
    # scale² channels.
    planes = [to_tensor(lr)]
    for expert in experts:
        evaluation = context.input(f"expert/{expert}/evaluation", context.partition)
        sr = torch.from_numpy(read_image(evaluation, image.key))
        planes.append(F.pixel_unshuffle(sr.unsqueeze(0), scale))
    for expert in model.features:
        evaluation = context.input(f"expert/{expert}/evaluation", context.partition)
        planes.append(torch.from_numpy(read_features(evaluation, image.key)).unsqueeze(0))
    device = next(model.network.parameters()).device

    def forward(tile: Tensor) -> Tensor:
        first, *rest = tile.to(device).split([plane.shape[1] for plane in planes], dim=1)
        folded, maps = rest[: len(experts)], rest[len(experts) :]
        pictures = {e: F.pixel_shuffle(p, scale) for e, p in zip(experts, folded, strict=True)}
        return model.upscale(first, pictures, dict(zip(model.features, maps, strict=True)))

    try:
        sr, tiled = upscale_whole(
            forward,
            torch.cat(planes, 1),
            scale,
            largest=_LARGEST,
            tile=_TILE,
            halo=_HALO,
            grid=model.sizes[1],
        )
    except ValueError as error:
        raise StageError(f"models.{name}: {image.name}: {error}: train it again") from error
    remember_tiled(context, image, tiled)
    return to_uint8(sr[0])
