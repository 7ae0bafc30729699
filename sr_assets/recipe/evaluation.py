"""The part of a recipe that says what is measured beside the convention, and what the report shows.

The convention itself is fixed (docs/metrics.md); the metrics are `sr_models/metrics`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sr_assets.recipe.strict import Name, Strict

PyiqaName = Annotated[str, StringConstraints(pattern=r"^pyiqa:[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Evaluation(Strict):
    """What is measured beside the fixed convention, and how the report is made."""

    crops: int = Field(3, ge=0, le=20, description="Side-by-side crops a benchmark image.")
    crop_size: int = Field(96, ge=16, description="Side of such a crop (HR px).")
    metrics: tuple[Literal["lpips", "dists", "niqe"] | PyiqaName, ...] = Field(
        (),
        description="Further metrics, whose weights are on this machine: lpips, dists, niqe, or "
        "`pyiqa:` and a name of that package (non-commercial); docs/metrics.md says where files "
        "go.",
    )
    self_ensemble: bool | tuple[Name, ...] = Field(
        False,
        description="Also measure experts and models as the mean over 8 flips and transposes of "
        "LR, as a row `<name>_x8` each: true for all of them, or their names.",
    )
