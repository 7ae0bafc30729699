"""One-step diffusion refinement of an enlarged picture, as TSD-SR (Dong et al. 2024) does it.

A picture becomes a latent of Stable Diffusion 3, the transformer says how to move it, and it is
decoded again: for looks, not for PSNR. No network is trained here, nor anywhere else with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_models.perceptual.blending import blend_tiles
from sr_models.perceptual.colour import COLOURS
from sr_models.perceptual.folder import PerceptualFilesError
from sr_models.perceptual.loading import Networks, read_networks

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

_SHIFT = 3.0  # of the schedule of Stable Diffusion 3


@dataclass(frozen=True)
class Tiling:
    """How large pictures are cut (px of the picture)."""

    tile: int = 512
    """Side of what the transformer sees at a time."""
    vae_tile: int = 1024
    """Side of what the VAE sees at a time."""
    overlap: int = 64
    """Of two neighbours, in both."""


@dataclass(frozen=True)
class Refiner:
    """A pipeline that is ready to run."""

    networks: Networks
    steps: int = 1
    tiling: Tiling = Tiling()
    colour: str = "wavelet"

    @property
    def shrink(self) -> int:
        """Pixels of a picture a latent, along each axis: 8."""
        return 2 ** (len(self.networks.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Sides are padded to multiples of it (px): 16."""
        return self.shrink * int(self.networks.transformer.config.patch_size)

    @torch.no_grad()
    def refine(self, sr: Tensor, alpha: float = 0.0) -> Tensor:
        """The refined picture, blended with the one that is given.

        Args:
            sr: [1, 3, H, W] in [0, 1], of any size.
            alpha: share of `sr` in the result. 1 gives `sr` itself and runs nothing.

        Returns:
            [1, 3, H, W] on the device and in the dtype of `sr`, not clamped.
        """
        if alpha == 1:
            return sr
        device = self.networks.prompt.device
        height, width = sr.shape[-2:]
        given = sr.to(device).float().clamp(0, 1)
        over = (0, -width % self.multiple, 0, -height % self.multiple)
        latent = self.denoise(self.encode(F.pad(given, over, mode="replicate")))
        made = self.decode(latent)[..., :height, :width]
        made = COLOURS[self.colour](made, given).to(sr)
        return torch.lerp(made, sr, alpha)

    def encode(self, picture: Tensor) -> Tensor:
        """[1, 3, H, W] in [0, 1], sides multiples of 16, to a latent [1, 16, H / 8, W / 8].

        The mean of what the VAE says and no draw, so that tiles agree and results repeat; scaled,
        and not shifted, as TSD-SR was trained.
        """
        vae = self.networks.vae

        def forward(piece: Tensor) -> Tensor:
            return vae.encode((piece * 2 - 1).to(vae.dtype)).latent_dist.mode()

        tiling = self.tiling
        found = blend_tiles(forward, picture, tiling.vae_tile, tiling.overlap, down=self.shrink)
        return found.float() * vae.config.scaling_factor

    def denoise(self, latent: Tensor) -> Tensor:
        """Moves a latent to where the picture is clean: `z - v` in one step.

        In several, by Euler along the schedule of Stable Diffusion 3.
        """
        schedule = _schedule(self.steps)
        steps = pairwise(schedule.sigmas.tolist())
        for time, (now, then) in zip(schedule.timesteps.tolist(), steps, strict=True):
            latent = latent + (then - now) * self.velocity(latent, time)
        return latent

    def velocity(self, latent: Tensor, time: float) -> Tensor:
        """What the transformer says of [1, 16, h, w], sides multiples of 2, at `time` (0..1000)."""
        transformer, dtype = self.networks.transformer, self.networks.transformer.dtype

        def forward(piece: Tensor) -> Tensor:
            return transformer(
                hidden_states=piece.to(dtype),
                timestep=torch.tensor([time], device=piece.device, dtype=dtype),
                encoder_hidden_states=self.networks.prompt,
                pooled_projections=self.networks.pooled,
                return_dict=False,
            )[0]

        tile, overlap = (side // self.shrink for side in (self.tiling.tile, self.tiling.overlap))
        return blend_tiles(forward, latent, tile, overlap).float()

    def decode(self, latent: Tensor) -> Tensor:
        """[1, 16, h, w] to a picture [1, 3, 8 h, 8 w] in [0, 1]."""
        vae = self.networks.vae

        def forward(piece: Tensor) -> Tensor:
            return vae.decode(piece.to(vae.dtype), return_dict=False)[0]

        tile, overlap = (
            side // self.shrink for side in (self.tiling.vae_tile, self.tiling.overlap)
        )
        latent = latent / vae.config.scaling_factor
        found = blend_tiles(forward, latent, tile, overlap, up=self.shrink).float()
        return found.clamp(-1, 1) / 2 + 0.5


def open_refiner(
    folder: Path,
    device: torch.device,
    *,
    steps: int = 1,
    tiling: Tiling | None = None,
    colour: str = "wavelet",
    dtype: torch.dtype = torch.float32,
) -> Refiner:
    """The pipeline of a folder of weights.

    Args:
        folder: see `read_networks`.
        device: where it runs.
        steps: 1, or more with the teacher's adapter.
        tiling: how large pictures are cut.
        colour: a name of `COLOURS`.
        dtype: of weights and arithmetic.

    Raises:
        PerceptualFilesError: a file is missing, does not fit, or knows no places in such tiles.
    """
    found = read_networks(folder, steps, dtype)
    moved = Networks(
        found.transformer.to(device),
        found.vae.to(device),
        found.prompt.to(device, dtype),
        found.pooled.to(device, dtype),
    )
    refiner = Refiner(moved, steps, tiling or Tiling(), colour)
    largest = int(moved.transformer.config.pos_embed_max_size) * refiner.multiple
    if refiner.tiling.tile > largest:
        raise PerceptualFilesError(
            f"tiles of {refiner.tiling.tile} px are more than the {largest} px that the places of "
            f"{folder / 'transformer'} reach: set a smaller tile"
        )
    return refiner


def _schedule(steps: int) -> FlowMatchEulerDiscreteScheduler:
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = FlowMatchEulerDiscreteScheduler(shift=_SHIFT)
    schedule.set_timesteps(steps)
    return schedule
