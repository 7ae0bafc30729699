"""LR of a patch by the bicubic convention of benchmarks."""

from __future__ import annotations

from sr_assets.assets.gold import LrSource, Made
from sr_assets.lineage.stage import Given
from sr_assets.stores.pairs import AppliedStep
from sr_assets.stores.patches import PatchReader


def open_lr(given: Given, patches: PatchReader) -> LrSource:
    """Reduces each patch with an antialiased bicubic kernel."""
    from sr_models.degradations.bicubic import downscale_uint8

    scale = given.recipe.scale
    side = float(patches.size // scale)
    steps = (AppliedStep("resize", "bicubic, antialiased", {"height": side, "width": side}),)

    def make(n: int, pixels: bool) -> Made:
        lr = downscale_uint8(patches.hr(n), scale)[None] if pixels else None
        return Made(lr, (steps,))

    return LrSource("bicubic", make)
