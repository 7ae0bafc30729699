"""LR that is degraded anew each time a training sample is seen, by the process of gold."""

from __future__ import annotations

import hashlib

import numpy as np

from sr_assets.assets.lr_drawn import process_of
from sr_assets.recipe.models import Recipe
from sr_assets.stores.samples import Fresh


def fresh_lr(recipe: Recipe) -> Fresh:
    """What makes another LR of a patch for each name of a look at it."""
    process, scale = process_of(recipe), recipe.scale

    def fresh(hr: np.ndarray, look: str) -> np.ndarray:
        from sr_models.degradations.second_order import degrade

        return degrade(hr, process, scale, hashlib.sha256(look.encode()).digest())

    return fresh
