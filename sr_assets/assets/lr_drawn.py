"""LR of a patch by a random process: each version a pure function of recipe, patch and number."""

from __future__ import annotations

import hashlib

import numpy as np

from sr_assets.assets.gold import LrSource, Made
from sr_assets.lineage.stage import Given
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


def keys_of(recipe: Recipe, hr: np.ndarray, variants: int) -> list[bytes]:
    """What decides each version of a picture, uint8 [H, W, 3], beside the process."""
    digest = hashlib.sha256(hr.tobytes()).digest()
    return [sample_key(recipe.seed, digest, variant) for variant in range(variants)]


def degraded(recipe: Recipe, hr: np.ndarray) -> np.ndarray:
    """LR of a whole picture, uint8 [H, W, 3] -> uint8 [h, w, 3]: its first version."""
    from sr_models.degradations.second_order import degrade

    return degrade(hr, process_of(recipe), recipe.scale, keys_of(recipe, hr, 1)[0])


def open_lr(given: Given, patches: PatchReader) -> LrSource:
    """Degrades each patch K times."""
    from sr_models.degradations.codecs import versions
    from sr_models.degradations.second_order import apply

    recipe = given.recipe
    process = process_of(recipe)

    def make(n: int, pixels: bool) -> Made:
        hr = patches.hr(n)
        keys = keys_of(recipe, hr, recipe.gold.variants)
        steps = [draw(process, hr.shape[0], hr.shape[1], recipe.scale, key) for key in keys]
        lr = None
        if pixels:
            lr = np.stack([apply(hr, s, key) for s, key in zip(steps, keys, strict=True)])
        return Made(lr, tuple(map(_applied, steps)))

    gold = recipe.gold
    return LrSource(gold.name, make, gold.variants, {"codecs": versions()})


def _applied(steps: tuple[Drawn, ...]) -> tuple[AppliedStep, ...]:
    return tuple(AppliedStep(step.op, step.kind, step.numbers, step.position) for step in steps)
