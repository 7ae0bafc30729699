"""The images of a benchmark as every row sees them: the original cropped, and its LR.

Only reading and preparing; upscaling and measuring are the business of the rows.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from sr_assets.assets.bronze import load_images, read_image, read_lr
from sr_assets.assets.gold import settings_of_degradation
from sr_assets.evaluation.known_sets import mismatch
from sr_assets.evaluation.results import picture_names, smallest_side
from sr_assets.lineage.stage import Given, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.stores.manifest import ManifestRow

_BRONZE = "bronze/images"
#: Imported by name, so that its code is no part of the versions of what is measured on bicubic LR.
DRAWN = "sr_assets.assets.lr_drawn"


@dataclass(frozen=True)
class BenchmarkImage:
    """One image of a benchmark."""

    name: str
    """Relative path in its source."""
    picture: str
    """File name of pictures made from it."""
    key: str
    """Name of its unrounded SR in an expert's evaluation."""
    row: ManifestRow


def benchmark_images(context: StageContext) -> list[BenchmarkImage]:
    """The images of the partition that are large enough to be measured, in the order of bronze.

    Raises:
        StageError: there is none, or the benchmark has the name of a published one (`known_sets`)
            but other images.
    """
    side = smallest_side(context.recipe.scale)
    rows = load_images(context.input(_BRONZE, context.partition))
    wrong = mismatch(context.partition or "", [(row.width or 0, row.height or 0) for row in rows])
    if wrong:
        raise StageError(
            f"benchmarks.{context.partition}: {wrong}: point its source at the HR of the whole "
            "set, or give what is no published benchmark another name"
        )
    names = picture_names([row.path for row in rows])
    images = []
    for index, row in enumerate(rows):
        shortest = min(row.width or 0, row.height or 0)
        if shortest - shortest % context.recipe.scale < side:
            context.log(f"{row.path} is left out: SSIM needs {side} px on each side")
            continue
        images.append(BenchmarkImage(row.path, names[row.path], f"{index:04d}", row))
    if not images:
        raise StageError(
            f"benchmarks.{context.partition}: no image is at least {side} px on each side; "
            "point its source at larger images"
        )
    return images


def read_pair(given: Given, image: BenchmarkImage) -> tuple[np.ndarray, np.ndarray]:
    """LR uint8 [h, w, 3] and HR uint8 [H, W, 3] of one image; HR is cropped at right and bottom.

    LR is the benchmark's own where it has one, else bicubic, or degraded as gold is where the
    recipe says so.
    """
    recipe, bronze = given.recipe, given.input(_BRONZE, given.partition)
    largest = recipe.bronze.max_megapixels
    hr = read_image(bronze, image.row, largest)
    height, width = (side // recipe.scale * recipe.scale for side in hr.shape[:2])
    hr = np.ascontiguousarray(hr[:height, :width])
    if image.row.lr:
        return read_lr(bronze, image.row, largest), hr
    if recipe.benchmarks[given.partition].damaged:
        return importlib.import_module(DRAWN).degraded(recipe, hr), hr
    from sr_models.degradations.bicubic import downscale_uint8

    return downscale_uint8(hr, recipe.scale), hr


def lr_modules(recipe: Recipe, benchmark: str | None) -> tuple[str, ...]:
    """Where the code version of a benchmark's LR starts, beside that of bicubic."""
    damaged = benchmark is not None and recipe.benchmarks[benchmark].damaged
    return (DRAWN,) if damaged else ()


def lr_settings(recipe: Recipe, benchmark: str | None) -> dict[str, Any]:
    """The recipe slice of a benchmark's LR, beside the scale."""
    if not lr_modules(recipe, benchmark):
        return {}
    return {f"benchmarks.{benchmark}.damaged": True, **settings_of_degradation(recipe)}
