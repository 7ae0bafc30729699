"""LR of a patch by a random process: each version a pure function of recipe, patch and number."""

from __future__ import annotations

import hashlib

import numpy as np

from sr_assets.assets.gold import LrSource, Made
from sr_assets.lineage.stage import StageContext
from sr_assets.recipe.models import Recipe
from sr_assets.stores.pairs import AppliedStep
from sr_assets.stores.patches import PatchReader
from sr_models.degradations.drawing import Drawn, draw, sample_key
from sr_models.degradations.presets import PRESETS
from sr_models.degradations.steps import Process


def process_of(recipe: Recipe) -> Process:
    """The process of a recipe whose degradation is random."""
    degradation = recipe.gold.degradation
    return PRESETS[degradation] if isinstance(degradation, str) else degradation


def key_of(recipe: Recipe, hr: np.ndarray, variant: int) -> bytes:
    """What decides version `variant` of a patch, uint8 [S, S, 3], beside the process."""
    return sample_key(recipe.seed, hashlib.sha256(hr.tobytes()).digest(), variant)


def drawn_steps(recipe: Recipe, hr: np.ndarray, variant: int) -> tuple[Drawn, ...]:
    """What is done to version `variant` of a patch, uint8 [S, S, 3]."""
    height, width = hr.shape[:2]
    key = key_of(recipe, hr, variant)
    return draw(process_of(recipe), height, width, recipe.scale, key)


def degraded(recipe: Recipe, hr: np.ndarray) -> np.ndarray:
    """LR of a whole picture, uint8 [H, W, 3] -> uint8 [h, w, 3]: its first version."""
    from sr_models.degradations.second_order import degrade

    return degrade(hr, process_of(recipe), recipe.scale, key_of(recipe, hr, 0))


def open_lr(context: StageContext, patches: PatchReader) -> LrSource:
    """Degrades each patch K times."""
    from sr_models.degradations.codecs import versions
    from sr_models.degradations.second_order import apply

    recipe = context.recipe

    def make(n: int, pixels: bool) -> Made:
        hr = patches.hr(n)
        versions = [drawn_steps(recipe, hr, k) for k in range(recipe.gold.variants)]
        lr = None
        if pixels:
            lr = np.stack([apply(hr, v, key_of(recipe, hr, k)) for k, v in enumerate(versions)])
        return Made(lr, tuple(_applied(version) for version in versions))

    gold = recipe.gold
    return LrSource(gold.name, make, gold.variants, {"codecs": versions()})


def _applied(steps: tuple[Drawn, ...]) -> tuple[AppliedStep, ...]:
    return tuple(AppliedStep(step.op, step.kind, step.numbers, step.position) for step in steps)
