"""Measuring one frozen expert on one benchmark; its unrounded SR is kept for fusions and mixes.

Trained models are measured in `models.py`, what needs no network of its own in `baselines.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from sr_assets.assets.experts import load_weights, tap
from sr_assets.evaluation.benchmark import BenchmarkImage, remember_tiled, tiled_images
from sr_assets.evaluation.measuring import compare_tiles, facts, measure_images, open_further
from sr_assets.evaluation.pixels import encode_png, read_png, to_tensor
from sr_assets.evaluation.results import Results
from sr_assets.evaluation.self_ensemble import NOTE, row_name
from sr_assets.evaluation.tiling import Job, Overlap, overlap_of, tiles_note, upscale
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.recipe.models import Expert as ExpertRecipe
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


def evaluate_expert(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json`, `sr/<picture>` and the unrounded SR of every image; returns metadata.

    Features are written beside the SR where the recipe asks for them.

    Images that a killed run has finished are not run again.

    Raises:
        StageError: there is nothing to measure, the device is missing, or an output is not finite.
    """
    import torch.nn.functional as F

    expert, wanted = _load(context, name), context.recipe.experts[name]
    asked, planes = bool(wanted.features), 3 * expert.scale**2
    further, overlap = open_further(context), _overlap(expert)

    def job(image: BenchmarkImage, lr: np.ndarray) -> Job:
        return _job(expert, wanted, to_tensor(lr), asked, overlap)

    def picture(image: BenchmarkImage, lr: np.ndarray) -> np.ndarray:
        done = image_finished(context.output, image.key) and (
            not asked or features_finished(context.output, image.key)
        )

        def make() -> torch.Tensor:
            maps, tiled = upscale(job(image, lr))
            remember_tiled(context, image, tiled)
            sr = F.pixel_shuffle(maps[:, :planes], expert.scale)[0]
            write_image(context.output, image.key, sr.numpy())
            if asked:
                write_features(context.output, image.key, maps[0, planes:].numpy())
            return sr

        with _told(name, image, wanted):
            return _picture(context, image, make, done)

    scores = measure_images(context, picture, further)
    with _told(name, None, wanted):
        difference = compare_tiles(context, job, planes)
    note = tiles_note(overlap, tiled_images(context), len(scores))
    results = Results(name, "expert", scores, expert.parameters, note, difference, facts(further))
    context.output.write_json("results.json", results.to_json())
    return results.metadata()


def evaluate_expert_x8(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `results.json` and `sr/<picture>` of the mean over eight turns; returns metadata.

    Raises:
        StageError: as for `evaluate_expert`.
    """
    import torch.nn.functional as F

    from sr_models.inference.self_ensemble import self_ensemble

    expert, wanted = _load(context, name), context.recipe.experts[name]
    further, overlap = open_further(context), _overlap(expert)

    def picture(image: BenchmarkImage, lr: np.ndarray) -> np.ndarray:
        unit = to_tensor(lr)

        def run(turn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            maps, _ = upscale(_job(expert, wanted, turn(unit), False, overlap))
            return F.pixel_shuffle(maps, expert.scale)

        with _told(name, image, wanted):
            return _picture(context, image, lambda: self_ensemble(run)[0])

    scores = measure_images(context, picture, further)
    results = Results(
        row_name(name), "expert", scores, expert.parameters, NOTE, facts=facts(further)
    )
    context.output.write_json("results.json", results.to_json())
    return results.metadata()


def _load(context: StageContext, name: str) -> Expert:
    from sr_models.device import pick_device

    try:
        device = pick_device(context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    loaded = load_weights(context.input(f"expert/{name}/weights"), context.output.work).to(device)
    return tap(loaded, name, context.recipe.experts[name])


def _picture(
    context: StageContext,
    image: BenchmarkImage,
    make: Callable[[], torch.Tensor],
    done: bool = True,
) -> np.ndarray:
    """The rounded SR of one image, uint8 [H, W, 3], of `make` unless it is there and all `done`."""
    from sr_models.metrics.images import to_uint8

    file = f"sr/{image.picture}"
    if done and context.output.finished(file):
        return read_png(Output(UPath(context.output.path), "", {}), file)
    rounded = to_uint8(make())
    context.output.write_bytes(file, encode_png(rounded))
    return rounded


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
