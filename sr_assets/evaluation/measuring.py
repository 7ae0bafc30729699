"""The images of a benchmark measured one after the other, with all metrics that a recipe asks for.

How SR is made is the business of the rows: experts, models, and the controls, which make several
pictures of each image and so have a loop of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.evaluation.benchmark import BenchmarkImage, benchmark_images, read_pair
from sr_assets.evaluation.results import ImageScore, measure
from sr_assets.evaluation.tiling import LARGEST, Job, tiled_difference
from sr_assets.lineage.stage import Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe

if TYPE_CHECKING:
    from sr_models.metrics.catalogue import Metric

_CATALOGUE = "sr_models.metrics.catalogue"
_ALWAYS = ("psnr_y", "ssim_y", "psnr_rgb", "ms_ssim", "lr_psnr")


def measure_images(
    context: StageContext,
    upscale: Callable[[BenchmarkImage, np.ndarray], np.ndarray],
    further: Iterable[Metric],
) -> tuple[ImageScore, ...]:
    """Measures every image of the partition; its picture is expected at `sr/<picture>`.

    Args:
        upscale: makes (and writes) SR uint8 [H, W, 3] of an image and its LR uint8 [h, w, 3].
        further: what `open_further` gave.

    Raises:
        StageError: there is nothing to measure.
    """
    images, scale, scores = benchmark_images(context), context.recipe.scale, []
    with context.progress(str(context.ref), len(images)) as advance:
        for image in images:
            lr, hr = read_pair(context, image)
            sr = upscale(image, lr)
            file = f"sr/{image.picture}"
            scores.append(measure(image.name, file, sr, hr, scale, lr, further))
            advance(1)
    return tuple(scores)


def compare_tiles(
    context: StageContext, job: Callable[[BenchmarkImage, np.ndarray], Job], channels: int
) -> dict[str, Any] | None:
    """`tiled_difference` of the largest image that fits whole; None where there is none.

    Args:
        job: of an image and its LR uint8 [h, w, 3].
        channels: the first so many of the job's result are the picture.
    """
    fitting = [
        (pixels, image)
        for image in benchmark_images(context)
        if (pixels := (image.row.width or 0) * (image.row.height or 0))
        <= LARGEST * context.recipe.scale**2
    ]
    if not fitting:
        return None
    _, image = max(fitting, key=lambda found: found[0])
    return tiled_difference(job(image, read_pair(context, image)[0]), channels, image.name)


def open_further(context: StageContext) -> tuple[Metric, ...]:
    """The metrics that the recipe asks for beside those that are always measured.

    Raises:
        StageError: a file or package that one needs is missing, or the device is.
    """
    if not context.recipe.evaluation.metrics:
        return ()
    from sr_models.device import pick_device

    try:
        device = pick_device(context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    try:
        catalogue = importlib.import_module(_CATALOGUE)
        return catalogue.open_metrics(context.recipe.evaluation.metrics, device)
    except ValueError as error:
        raise StageError(f"evaluation.metrics: {error}") from error


def facts(further: Iterable[Metric]) -> dict[str, dict[str, Any]]:
    """Title, unit, direction and range of every metric that is measured."""
    known = importlib.import_module(_CATALOGUE).FACTS
    found = {name: known[name] for name in _ALWAYS} | {m.name: m.facts for m in further}
    return {name: facts.to_json() for name, facts in found.items()}


def with_metrics(recipe: Recipe, stage: Stage) -> Stage:
    """A stage that measures, with the metrics that the recipe asks for in what decides its result.

    That is their names, their code and the files that they read; a recipe that asks for none leaves
    the stage as it is.
    """
    asked = recipe.evaluation.metrics
    if not asked:
        return stage
    catalogue = importlib.import_module(_CATALOGUE)
    modules = dict.fromkeys(catalogue.module_of(name) for name in asked)
    return replace(
        stage,
        modules=(*stage.modules, *modules),
        settings={**stage.settings, "evaluation.metrics": list(asked)},
        outside=lambda benchmark: {
            **stage.outside(benchmark),
            **catalogue.fingerprints(asked),
        },
    )
