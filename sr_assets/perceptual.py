"""From the section `perceptual:` of a model to the function that refines its pictures.

The pipeline is `sr_models/perceptual`; the asset is `assets/perceptual.py`, and what `srd upscale`
makes of it `upscaling/refining.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.perceptual import Perceptual
from sr_assets.storage import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

_VARIABLE, _FOLDER = "SRD_WEIGHTS", "tsdsr"

#: [1, 3, H, W] in [0, 1] -> the same, refined and not clamped; any size.
Refine = Callable[["Tensor"], "Tensor"]


def weights_folder(section: Perceptual) -> Path:
    """Where the files of a refinement are looked for."""
    if section.weights is not None:
        return Path(section.weights)
    own = os.environ.get(_VARIABLE)
    return (Path(own).expanduser() if own else cache_folder() / "weights") / _FOLDER


def fingerprint(section: Perceptual) -> dict[str, str]:
    """Tells changed files, by their size and time: they have gigabytes."""
    from sr_models.perceptual.folder import PerceptualFilesError, found_files

    folder = weights_folder(section)
    try:
        files = found_files(folder, section.steps)
    except PerceptualFilesError:
        return {"perceptual weights": "missing"}
    found = {file.relative_to(folder).as_posix(): file.stat() for file in files}
    return {name: f"{status.st_size}-{status.st_mtime_ns}" for name, status in found.items()}


def demand_files(section: Perceptual) -> None:
    """Raises StageError with the one line that says which files are missing, whose they are and
    where they go."""
    from sr_models.perceptual.folder import PerceptualFilesError, found_files

    try:
        found_files(weights_folder(section), section.steps)
    except PerceptualFilesError as error:
        raise StageError(str(error)) from error


def open_refinement(section: Perceptual, device: str = "auto") -> Refine:
    """The function that refines pictures.

    With an alpha of 1 it gives back what it is given, and the networks are not loaded.

    Args:
        section: of the recipe.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        StageError: files, diffusers or the device are missing, or files do not fit one another. The
            function raises it for a picture that is not finite.
    """
    demand_files(section)
    if section.alpha == 1:
        return lambda sr: sr
    import torch

    from sr_models.device import pick_device
    from sr_models.perceptual.pipeline import Tiling, open_refiner

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    try:
        refiner = open_refiner(
            weights_folder(section),
            pick_device(device),
            steps=section.steps,
            tiling=Tiling(section.tile, section.vae_tile, section.overlap),
            colour=section.colour,
            dtype=dtypes[section.dtype],
        )
    except ValueError as error:
        raise StageError(str(error)) from error

    def refine(sr: Tensor) -> Tensor:
        made = refiner.refine(sr, section.alpha)
        if not torch.isfinite(made).all():
            raise StageError(
                f"perceptual.dtype {section.dtype}: the refined picture is not finite: take "
                f"{'fp32' if section.dtype == 'bf16' else 'bf16 or fp32'}"
            )
        return made

    return refine
