"""LR of a patch cut from the dataset's own LR image, as it came."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sr_assets.assets.bronze import load_images, read_lr
from sr_assets.assets.gold import LrSource, Made
from sr_assets.lineage.stage import Given
from sr_assets.stores.pairs import AppliedStep
from sr_assets.stores.patches import PatchReader

_STEPS = (AppliedStep("paired", "as it came", {}),)


def open_lr(given: Given, patches: PatchReader) -> LrSource:
    """Cuts the LR of each patch out of the image that belongs to its HR."""
    recipe = given.recipe
    bronze = given.input("bronze/images", given.partition)
    rows = {row.path: row for row in load_images(bronze)}

    # Patches of one image follow one another, so that few images are open at a time.
    @lru_cache(maxsize=recipe.compute.workers + 1)
    def image(path: str) -> np.ndarray:
        return read_lr(bronze, rows[path], recipe.bronze.max_megapixels)

    def make(n: int, pixels: bool) -> Made:
        if not pixels:
            return Made(None, (_STEPS,))
        y, x = int(patches.y[n]) // recipe.scale, int(patches.x[n]) // recipe.scale
        side = patches.size // recipe.scale
        whole = image(patches.images[int(patches.image[n])])
        return Made(whole[None, y : y + side, x : x + side], (_STEPS,))

    return LrSource("paired", make)
