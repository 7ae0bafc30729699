"""Measuring one frozen expert on one benchmark; its unrounded SR is kept for fusions and mixes.

Trained models are measured in `models.py`, what needs no network of its own in `baselines.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.assets.experts import load_weights, tap
from sr_assets.evaluation.benchmark import BenchmarkImage
from sr_assets.evaluation.pixels import to_tensor
from sr_assets.evaluation.rows import Row, Upscaled, evaluate_row
from sr_assets.evaluation.self_ensemble import NOTE, row_name
from sr_assets.evaluation.tiling import Job, Overlap, overlap_of, tiled_difference, upscale
from sr_assets.lineage.stage import Given, StageContext, StageError
from sr_assets.recipe.models import Expert as ExpertRecipe
from sr_assets.stores.whole_images import feature_files, image_files

if TYPE_CHECKING:
    import torch

    from sr_models.experts.loading import Expert


def evaluate_expert(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json`, `sr/<picture>` and the unrounded SR of every image; returns metadata.

    Features are written beside the SR where the recipe asks for them.

    Images that a killed run has finished are not run again.

    Raises:
        StageError: there is nothing to measure, the device is missing, or an output is not finite.
    """
    return evaluate_row(context, name, partial(_open_row, name))


def evaluate_expert_x8(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json` and `sr/<picture>` of the mean over eight turns; returns metadata.

    Raises:
        StageError: as for `evaluate_expert`.
    """
    return evaluate_row(context, row_name(name), partial(_open_row_x8, name))


def _open_row(name: str, given: Given, device: str) -> Row:
    import torch.nn.functional as F

    from sr_models.metrics.images import to_uint8

    expert, wanted = _load(name, given, device), given.recipe.expert_as_cached(name)
    asked, planes, overlap = bool(wanted.features), 3 * expert.scale**2, _overlap(expert)

    def make(image: BenchmarkImage, lr: np.ndarray) -> Upscaled:
        with _told(name, image, wanted):
            maps, tiled = upscale(_job(expert, wanted, to_tensor(lr), asked, overlap))
            sr = F.pixel_shuffle(maps[:, :planes], expert.scale)[0]
            files = image_files(image.key, sr.numpy())
            if asked:
                files |= feature_files(image.key, maps[0, planes:].numpy())
            return Upscaled(to_uint8(sr), tiled, files)

    def compare(image: BenchmarkImage, lr: np.ndarray) -> dict[str, Any] | None:
        with _told(name, None, wanted):
            job = _job(expert, wanted, to_tensor(lr), asked, overlap)
            return tiled_difference(job, planes, image.name)

    return Row("expert", expert.parameters, make, compare, overlap)


def _open_row_x8(name: str, given: Given, device: str) -> Row:
    import torch.nn.functional as F

    from sr_models.inference.self_ensemble import self_ensemble
    from sr_models.metrics.images import to_uint8

    expert, wanted = _load(name, given, device), given.recipe.expert_as_cached(name)
    overlap = _overlap(expert)

    def make(image: BenchmarkImage, lr: np.ndarray) -> Upscaled:
        unit = to_tensor(lr)

        def run(turn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            maps, _ = upscale(_job(expert, wanted, turn(unit), False, overlap))
            return F.pixel_shuffle(maps, expert.scale)

        with _told(name, image, wanted):
            return Upscaled(to_uint8(self_ensemble(run)[0]))

    return Row("expert", expert.parameters, make, None, overlap, NOTE)


def _load(name: str, given: Given, device: str) -> Expert:
    from sr_models.device import pick_device

    try:
        place = pick_device(device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_weights(given.input(f"expert/{name}/weights"), Path(scratch)).to(place)
    return tap(loaded, name, given.recipe.expert_as_cached(name))


def _overlap(expert: Expert) -> Overlap:
    return overlap_of(expert.model, expert.scale, expert.multiple)


def _job(
    expert: Expert, wanted: ExpertRecipe, lr: torch.Tensor, features: bool, overlap: Overlap
) -> Job:
    import torch
    import torch.nn.functional as F

    from sr_models.experts.running import run_expert

    def forward(tile: torch.Tensor) -> torch.Tensor:
        out = run_expert(expert, tile, dtype=wanted.dtype, batch=1, features=features)
        # On the LR grid, an HR pixel being one of scale² channels, features ride along.
        return torch.cat([F.pixel_unshuffle(out.sr, expert.scale), *_present(out.features)], 1)

    return Job(forward, lr, 1, expert.multiple, overlap)


def _present(features: torch.Tensor | None) -> list[torch.Tensor]:
    return [] if features is None else [features]


@contextmanager
def _told(name: str, image: BenchmarkImage | None, wanted: ExpertRecipe) -> Iterator[None]:
    """Says in one line what an expert cannot do."""
    from sr_models.experts.running import ExpertMemoryError, NonFiniteOutputError

    where = f"experts.{name}: {image.name}" if image else f"experts.{name}"
    try:
        yield
    except NonFiniteOutputError as error:
        mend = "set dtype to fp32" if wanted.dtype != "fp32" else "its weights are broken"
        raise StageError(
            f"{where} gives a value that is not finite in {wanted.dtype}: {mend}"
        ) from error
    except (ExpertMemoryError, ValueError) as error:
        raise StageError(f"{where}: {error}") from error
