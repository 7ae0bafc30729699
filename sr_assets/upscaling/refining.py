"""`srd upscale --perceptual`: colours of each enlarged tile refined by diffusion.

Which files that needs is `sr_assets/perceptual.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sr_assets.perceptual import open_refinement
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.perceptual import Perceptual
from sr_assets.upscaling.enlarging import Enlarger


def perceptual_of(recipe: Recipe, model: str, alpha: float | None = None) -> Perceptual:
    """How pictures of `model` are refined.

    Args:
        recipe: its model of that name says how, where it has a section `perceptual:`.
        model: the word of the command, such as `student`, `student@1.2.0` or `student.safetensors`;
            the usual settings for others.
        alpha: share of the model's own picture; None for that of the section.
    """
    named = recipe.models.get(Path(model).stem.partition("@")[0])
    section = (named.perceptual if named else None) or Perceptual()
    return section if alpha is None else section.model_copy(update={"alpha": alpha})


def refining(enlarger: Enlarger, section: Perceptual, device: str = "auto") -> Enlarger:
    """The same network, with what it makes refined.

    With an alpha of 1 that is the network as it is, whose results stay the same bit by bit.

    Raises:
        StageError: see `open_refinement`.
    """
    refine = open_refinement(section, device)
    if section.alpha == 1:
        return enlarger
    # What the refinement sees has no end: tiles are planned for a network that is not known.
    upscaler = dataclasses.replace(enlarger.upscaler, network=None)
    return dataclasses.replace(enlarger, upscaler=upscaler, refine=refine)
