"""Running a network over a benchmark image in the tiles that users get, and what tiles change.

How an image is cut is `sr_models/inference/tiles.py`; measuring against HR is `measuring.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Side of a tile with its halo, and the halo (LR px): the defaults of `srd upscale`.
TILE, HALO = 256, 32
#: Largest image that tiles are compared with the whole of (LR px).
LARGEST = 512 * 512
#: Mean square (levels²) at 100 dB: single precision makes not much less by itself.
_NOISE = 255**2 / 10**10


@dataclass(frozen=True)
class Job:
    """A network with the maps of one image."""

    forward: Callable[[Tensor], Tensor]
    """[1, C, h, w] -> [1, D, h * scale, w * scale], as `upscale_tiled` wants it."""
    maps: Tensor
    """[1, C, H, W]: LR in [0, 1], and what rides along with it."""
    scale: int
    grid: int
    """Tiles start at multiples of it (LR px)."""


def upscale(job: Job) -> tuple[Tensor, bool]:
    """[1, D, H * scale, W * scale], and whether the image was cut into more than one tile.

    Raises:
        ValueError: the network returns another size than the scale asks for.
    """
    from sr_models.inference.tiles import upscale_tiled

    # Windows that do not fit beside the halo lie anywhere, as for users: less exact, but they fit.
    grid = job.grid if job.grid <= TILE - 2 * HALO else 1
    found = upscale_tiled(job.forward, job.maps, job.scale, TILE, HALO, grid=grid)
    return found, max(job.maps.shape[-2:]) > TILE


def tiled_difference(job: Job, channels: int, image: str) -> dict[str, Any] | None:
    """How far a picture made in tiles is from the one made whole.

    The tiles are those of users. An image that fits in one of them is cut in the middle of its
    longer side, with the same halo: what a tile border changes is then known all the same.

    Args:
        job: of an image of at most `LARGEST` LR pixels.
        channels: the first so many channels of the result are the picture.
        image: its name, for the record.

    Returns:
        {"image", "tile", "halo" (LR px), "max_levels" and "mean_levels": |difference| of the
        unrounded pictures in grey levels, "psnr": between both in dB, None beyond 100 dB}; None
        where the image cannot be run whole or is too small to be cut.
    """
    from sr_models.inference.tiles import upscale_tiled, upscale_whole

    longer = max(job.maps.shape[-2:])
    # Half of the image and its halo, and never less than a window between two halos.
    half = max(-(-longer // 2) + HALO, 2 * HALO + job.grid)
    tile = TILE if longer > TILE else half
    grid = job.grid if job.grid <= tile - 2 * HALO else 1
    if longer <= tile:
        return None
    whole, cut = upscale_whole(
        job.forward, job.maps, job.scale, largest=LARGEST, tile=TILE, halo=HALO, grid=grid
    )
    if cut:
        return None
    tiled = upscale_tiled(job.forward, job.maps, job.scale, tile, HALO, grid=grid)
    one, two = (m[:, :channels].double().clamp(0, 1) * 255 for m in (tiled, whole))
    difference = (one - two).abs()
    mean_square = float(difference.square().mean())
    return {
        "image": image,
        "tile": tile,
        "halo": HALO,
        "max_levels": round(float(difference.max()), 3),
        "mean_levels": round(float(difference.mean()), 4),
        "psnr": round(10 * math.log10(255**2 / mean_square), 1) if mean_square > _NOISE else None,
    }


def tiles_note(tiled: int, images: int) -> str:
    """What a row says of images that were cut; empty where none was."""
    return f"tiled {TILE}/{HALO} px: {tiled} of {images} images" if tiled else ""
