"""Measuring one trained model on one benchmark; a fusion reads its experts' pictures from theirs.

Training is `assets/training.py`; comparing rows with one another is `leaderboard.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.assets.trained import LoadedModel, load_model
from sr_assets.evaluation.benchmark import BenchmarkImage
from sr_assets.evaluation.pixels import to_tensor
from sr_assets.evaluation.rows import Row, Upscaled, evaluate_row
from sr_assets.evaluation.self_ensemble import NOTE, row_name
from sr_assets.evaluation.tiling import Job, Overlap, overlap_of, tiled_difference, upscale
from sr_assets.lineage.stage import Given, StageContext, StageError
from sr_assets.storage import Output
from sr_assets.stores.whole_images import read_features, read_image

if TYPE_CHECKING:
    from torch import Tensor

    from sr_models.inference.self_ensemble import Turn


@dataclass(frozen=True)
class _Maps:
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
    return evaluate_row(context, name, partial(_open_row, name))


def evaluate_model_x8(context: StageContext, name: str) -> dict[str, Any]:
    """As `evaluate_model`, of the mean over eight turns; no tiles are compared.

    What a fusion reads of its experts is turned with LR, as in training: the experts do not run
    again.

    Raises:
        StageError: as for `evaluate_model`.
    """
    return evaluate_row(context, row_name(name), partial(_open_row_x8, name))


def _open_row(name: str, given: Given, device: str) -> Row:
    from sr_models.metrics.images import to_uint8

    model = _load(name, given, device)
    overlap = _overlap(model)

    def job(image: BenchmarkImage, lr: np.ndarray) -> Job:
        return _job(model, _read(given, model, image, lr), overlap)

    def make(image: BenchmarkImage, lr: np.ndarray) -> Upscaled:
        with _told(name, image):
            sr, tiled = upscale(job(image, lr))
            return Upscaled(to_uint8(sr[0]), tiled)

    def compare(image: BenchmarkImage, lr: np.ndarray) -> dict[str, Any] | None:
        return tiled_difference(job(image, lr), channels=3, image=image.name)

    return Row(_kind(model), _parameters(model), make, compare, overlap)


def _open_row_x8(name: str, given: Given, device: str) -> Row:
    from sr_models.inference.self_ensemble import self_ensemble
    from sr_models.metrics.images import to_uint8

    model = _load(name, given, device)
    overlap = _overlap(model)

    def make(image: BenchmarkImage, lr: np.ndarray) -> Upscaled:
        read = _read(given, model, image, lr)
        with _told(name, image):
            sr = self_ensemble(lambda turn: upscale(_job(model, _turned(read, turn), overlap))[0])
            return Upscaled(to_uint8(sr[0]))

    note = f"{NOTE}, experts' pictures turned along" if model.experts else NOTE
    return Row(_kind(model), _parameters(model), make, None, overlap, note)


def _load(name: str, given: Given, device: str) -> LoadedModel:
    checkpoint = given.input(f"model/{name}/checkpoint")
    try:
        return load_model(checkpoint, device)
    except ValueError as error:
        raise StageError(f"model {name}: {error}") from error


@contextmanager
def _told(name: str, image: BenchmarkImage) -> Iterator[None]:
    """Says in one line what a model cannot do."""
    try:
        yield
    except ValueError as error:
        raise StageError(f"models.{name}: {image.name}: {error}: train it again") from error


def _read(given: Given, model: LoadedModel, image: BenchmarkImage, lr: np.ndarray) -> _Maps:
    import torch

    def of(expert: str) -> Output:
        return given.input(f"expert/{expert}/evaluation", given.partition)

    return _Maps(
        to_tensor(lr),
        {e: torch.from_numpy(read_image(of(e), image.key))[None] for e in model.experts},
        {e: torch.from_numpy(read_features(of(e), image.key))[None] for e in model.features},
    )


def _turned(maps: _Maps, turn: Turn) -> _Maps:
    return _Maps(
        turn(maps.lr),
        {name: turn(picture) for name, picture in maps.pictures.items()},
        {name: turn(features) for name, features in maps.features.items()},
    )


def _overlap(model: LoadedModel) -> Overlap:
    return overlap_of(None if model.experts else model.network, model.scale, model.sizes[1])


def _job(model: LoadedModel, maps: _Maps, overlap: Overlap) -> Job:
    import torch
    import torch.nn.functional as F

    scale, experts = model.scale, model.experts
    # The experts' pictures and features ride along on the LR grid, where an HR pixel is one of
    # scale² channels.
    folded = [F.pixel_unshuffle(maps.pictures[e], scale) for e in experts]
    planes = [maps.lr, *folded, *(maps.features[e] for e in model.features)]
    sizes = [plane.shape[1] for plane in planes]
    device = next(model.network.parameters()).device

    def forward(tile: Tensor) -> Tensor:
        first, *rest = tile.to(device).split(sizes, dim=1)
        parts, features = rest[: len(experts)], rest[len(experts) :]
        pictures = {e: F.pixel_shuffle(p, scale) for e, p in zip(experts, parts, strict=True)}
        return model.upscale(first, pictures, dict(zip(model.features, features, strict=True)))

    return Job(forward, torch.cat(planes, 1), scale, model.sizes[1], overlap)


def _kind(model: LoadedModel) -> str:
    return "fusion" if model.experts else model.kind


def _parameters(model: LoadedModel) -> int:
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import running_parameters

    return running_parameters(fused_copy(model.network))
