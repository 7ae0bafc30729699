"""The part of a recipe that says how LR is made from HR.

The steps themselves, with their ranges, are `sr_models/degradations/steps.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from sr_assets.recipe.strict import Strict
from sr_models.degradations.steps import Process

Preset = Literal["bicubic", "realworld", "light"]


def _form(value: Any) -> str:
    return "preset" if isinstance(value, str) else "composed"


class Gold(Strict):
    """How LR is made from HR."""

    degradation: Annotated[
        Annotated[Preset, Tag("preset")] | Annotated[Process, Tag("composed")],
        Discriminator(_form),
    ] = Field(
        "bicubic",
        description="A preset, or steps of your own: bicubic is the convention of benchmarks, "
        "realworld two passes of blur, resize, noise and JPEG, light one mild pass; "
        "docs/degradations.md shows them.",
    )
    variants: int = Field(1, ge=1, le=64, description="Degraded versions of each patch (K).")

    @property
    def name(self) -> str:
        """What the degradation is called: a preset's name, or composed."""
        return self.degradation if isinstance(self.degradation, str) else "composed"

    @property
    def random(self) -> bool:
        """Whether one patch has more than one LR."""
        return self.degradation != "bicubic"
