"""Measuring one trained model on one benchmark; a fusion reads its experts' pictures from theirs.

Training is `assets/training.py`; comparing rows with one another is `leaderboard.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from sr_assets.assets.trained import LoadedModel, load_model
from sr_assets.evaluation.benchmark import BenchmarkImage, remember_tiled, tiled_images
from sr_assets.evaluation.measuring import compare_tiles, facts, measure_images, open_further
from sr_assets.evaluation.pixels import encode_png, read_png, to_tensor
from sr_assets.evaluation.results import Results
from sr_assets.evaluation.self_ensemble import NOTE, row_name
from sr_assets.evaluation.tiling import Job, Overlap, overlap_of, tiles_note, upscale
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import read_features, read_image

if TYPE_CHECKING:
    from torch import Tensor

    from sr_models.inference.self_ensemble import Turn


@dataclass(frozen=True)
class _Given:
    """What a model upscales, on the CPU."""

    lr: Tensor
    """[1, 3, h, w] in [0, 1]."""
    pictures: Mapping[str, Tensor]
    """Expert -> its SR [1, 3, H, W], for a fusion."""
    features: Mapping[str, Tensor]
    """Expert -> its features [1, C, h, w], for a fusion that needs them."""


def evaluate_model(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json` and `sr/<picture>` of every image; returns metadata.

    Raises:
        StageError: there is nothing to measure, the weights do not fit, or a picture is not finite.
    """
    model, further = _load(context, name), open_further(context)

    overlap = _overlap(model)

    def job(image: BenchmarkImage, lr: np.ndarray) -> Job:
        return _job(model, _given(context, model, image, lr), overlap)

    def picture(image: BenchmarkImage, lr: np.ndarray) -> np.ndarray:
        def make() -> Tensor:
            sr, tiled = upscale(job(image, lr))
            remember_tiled(context, image, tiled)
            return sr

        return _picture(context, name, image, make)

    scores = measure_images(context, picture, further)
    note = tiles_note(overlap, tiled_images(context), len(scores))
    results = Results(
        name,
        _kind(model),
        scores,
        _parameters(model),
        note,
        compare_tiles(context, job, channels=3),
        facts(further),
    )
    context.output.write_json("results.json", results.to_json())
    return results.metadata()


def evaluate_model_x8(context: StageContext, name: str) -> dict[str, Any]:
    """As `evaluate_model`, of the mean over eight turns; no tiles are compared.

    What a fusion reads of its experts is turned with LR, as in training: the experts do not run
    again.

    Raises:
        StageError: as for `evaluate_model`.
    """
    from sr_models.inference.self_ensemble import self_ensemble

    model, further = _load(context, name), open_further(context)

    overlap = _overlap(model)

    def picture(image: BenchmarkImage, lr: np.ndarray) -> np.ndarray:
        def make() -> Tensor:
            given = _given(context, model, image, lr)
            return self_ensemble(
                lambda turn: upscale(_job(model, _turned(given, turn), overlap))[0]
            )

        return _picture(context, name, image, make)

    scores = measure_images(context, picture, further)
    note = f"{NOTE}, experts' pictures turned along" if model.experts else NOTE
    results = Results(
        row_name(name), _kind(model), scores, _parameters(model), note, facts=facts(further)
    )
    context.output.write_json("results.json", results.to_json())
    return results.metadata()


def _load(context: StageContext, name: str) -> LoadedModel:
    checkpoint = context.input(f"model/{name}/checkpoint")
    try:
        return load_model(checkpoint, context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"model {name}: {error}") from error


def _picture(
    context: StageContext, name: str, image: BenchmarkImage, make: Callable[[], Tensor]
) -> np.ndarray:
    """The rounded SR of one image, uint8 [H, W, 3]; what a killed run has finished is kept."""
    from sr_models.metrics.images import to_uint8

    file = f"sr/{image.picture}"
    if context.output.finished(file):
        return read_png(Output(UPath(context.output.path), "", {}), file)
    try:
        sr = make()
    except ValueError as error:
        raise StageError(f"models.{name}: {image.name}: {error}: train it again") from error
    rounded = to_uint8(sr[0])
    context.output.write_bytes(file, encode_png(rounded))
    return rounded


def _given(
    context: StageContext, model: LoadedModel, image: BenchmarkImage, lr: np.ndarray
) -> _Given:
    import torch

    def of(expert: str) -> Output:
        return context.input(f"expert/{expert}/evaluation", context.partition)

    return _Given(
        to_tensor(lr),
        {e: torch.from_numpy(read_image(of(e), image.key))[None] for e in model.experts},
        {e: torch.from_numpy(read_features(of(e), image.key))[None] for e in model.features},
    )


def _turned(given: _Given, turn: Turn) -> _Given:
    return _Given(
        turn(given.lr),
        {name: turn(maps) for name, maps in given.pictures.items()},
        {name: turn(maps) for name, maps in given.features.items()},
    )


def _overlap(model: LoadedModel) -> Overlap:
    return overlap_of(None if model.experts else model.network, model.scale, model.sizes[1])


def _job(model: LoadedModel, given: _Given, overlap: Overlap) -> Job:
    import torch
    import torch.nn.functional as F

    scale, experts = model.scale, model.experts
    # The experts' pictures and features ride along on the LR grid, where an HR pixel is one of
    # scale² channels.
    folded = [F.pixel_unshuffle(given.pictures[e], scale) for e in experts]
    planes = [given.lr, *folded, *(given.features[e] for e in model.features)]
    sizes = [plane.shape[1] for plane in planes]
    device = next(model.network.parameters()).device

    def forward(tile: Tensor) -> Tensor:
        first, *rest = tile.to(device).split(sizes, dim=1)
        parts, maps = rest[: len(experts)], rest[len(experts) :]
        pictures = {e: F.pixel_shuffle(p, scale) for e, p in zip(experts, parts, strict=True)}
        return model.upscale(first, pictures, dict(zip(model.features, maps, strict=True)))

    return Job(forward, torch.cat(planes, 1), scale, model.sizes[1], overlap)


def _kind(model: LoadedModel) -> str:
    return "fusion" if model.experts else model.kind


def _parameters(model: LoadedModel) -> int:
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import running_parameters

    return running_parameters(fused_copy(model.network))
