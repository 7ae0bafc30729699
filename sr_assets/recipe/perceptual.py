"""The section `perceptual:` of a model: its pictures refined by a diffusion model.

Running it is `sr_models/perceptual`; where the files go and whose they are is docs/perceptual.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sr_assets.recipe.strict import Strict

_MULTIPLE = 16  # a latent has 8 px, a patch of the transformer two latents


class Perceptual(Strict):
    """One-step diffusion refinement of finished pictures (TSD-SR), for looks and not for PSNR."""

    weights: str | None = Field(
        None,
        description="Folder of its files, relative to the recipe file or absolute; `tsdsr` in the "
        "folder that SRD_WEIGHTS names, or in the cache, when left out. docs/perceptual.md says "
        "what goes there, and under which licences.",
    )
    alpha: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the model's own picture in the result; 1 is that picture bit by bit.",
    )
    steps: int = Field(
        1, ge=1, le=50, description="1, or several with the adapter `teacher.safetensors`."
    )
    colour: Literal["wavelet", "adain", "none"] = Field(
        "wavelet", description="How colours are brought back to those of the model's picture."
    )
    tile: int = Field(
        512,
        ge=2 * _MULTIPLE,
        multiple_of=_MULTIPLE,
        description="Side of what the transformer sees at a time (px of the enlarged picture).",
    )
    vae_tile: int = Field(
        1024,
        ge=2 * _MULTIPLE,
        multiple_of=_MULTIPLE,
        description="Side of what the VAE sees at a time (px of the enlarged picture).",
    )
    overlap: int = Field(
        64, ge=_MULTIPLE, multiple_of=_MULTIPLE, description="Of two neighbouring tiles (px)."
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of weights and arithmetic; fp16 is what TSD-SR was measured in."
    )
    use_during_training: Literal[False] = Field(
        False, description="Always false: what it draws is not in the data, so nothing learns it."
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Perceptual:
        if 2 * self.overlap > min(self.tile, self.vae_tile):
            raise ValueError(
                f"overlap {self.overlap} is more than half of a tile of "
                f"{min(self.tile, self.vae_tile)} px"
            )
        return self
