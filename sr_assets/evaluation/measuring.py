"""The images of a benchmark measured one after the other, with all metrics that a recipe asks for.

How SR is made is the business of the rows; those with a network of their own, experts and models,
are measured image by image wherever that is computed (`rows.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.evaluation.benchmark import BenchmarkImage, benchmark_images, read_pair
from sr_assets.evaluation.results import ImageScore, measure
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
            lr, hr = read_pair(context.given, image)
            sr = upscale(image, lr)
            file = f"sr/{image.picture}"
            scores.append(measure(image.name, file, sr, hr, scale, lr, further))
            advance(1)
    return tuple(scores)


def open_further(recipe: Recipe, device: str | None = None) -> tuple[Metric, ...]:
    """The metrics that the recipe asks for beside those that are always measured.

    Args:
        recipe: of the project.
        device: where they run, in place of the recipe's `compute.device`.

    Raises:
        StageError: a file or package that one needs is missing, or the device is.
    """
    if not recipe.evaluation.metrics:
        return ()
    from sr_models.device import pick_device

    try:
        place = pick_device(device or recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    try:
        catalogue = importlib.import_module(_CATALOGUE)
        return catalogue.open_metrics(recipe.evaluation.metrics, place)
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
