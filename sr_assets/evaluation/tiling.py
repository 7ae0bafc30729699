"""Running a network over a benchmark image in the tiles that users get, and what tiles change.

How an image is cut is `sr_models/inference/tiles.py`; measuring against HR is `measuring.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Side of a tile with its halo (LR px). Larger halos get larger tiles; `srd upscale` looks at the
#: memory too, which no result may depend on here.
TILE = 256
#: Context of networks that see all of a picture, or several networks (LR px).
HALO = 32
_HALOS = 4  # of the least tile
#: Largest image that tiles are compared with the whole of (LR px).
LARGEST = 512 * 512
#: Mean square (levels²) at 100 dB: single precision makes not much less by itself.
_NOISE = 255**2 / 10**10


@dataclass(frozen=True)
class Overlap:
    """How tiles of a network meet (LR px): what `srd upscale` does for it."""

    halo: int
    blend: int
    """Width over which two tiles change over; 0 crops, which is exact where the halo suffices."""

    @property
    def tile(self) -> int:
        """Side of a tile with its halo."""
        return max(TILE, _HALOS * self.halo)


def overlap_of(network: nn.Module | None, scale: int, grid: int) -> Overlap:
    """As far as the network sees, cropped; blended where that is all of a picture or not known.

    Args:
        network: [1, 3, h, w] to [1, 3, h * scale, w * scale]; None for a fusion, whose network
            does not see LR alone.
        scale: upscaling factor.
        grid: tiles start at multiples of it (LR px).
    """
    from sr_models.inference.receptive_field import reach_of

    reach, _ = (None, "") if network is None else reach_of(network, scale, grid)
    return Overlap(HALO, HALO) if reach is None else Overlap(max(reach, 1), 0)


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
    overlap: Overlap


def upscale(job: Job) -> tuple[Tensor, bool]:
    """[1, D, H * scale, W * scale], and whether the image was cut into more than one tile.

    Raises:
        ValueError: the network returns another size than the scale asks for.
    """
    from sr_models.inference.tiles import upscale_tiled

    found = upscale_tiled(**_arguments(job, job.overlap.tile))
    return found, max(job.maps.shape[-2:]) > job.overlap.tile


def _arguments(job: Job, tile: int) -> dict[str, Any]:
    """Of `upscale_tiled`."""
    halo, blend = job.overlap.halo, job.overlap.blend
    # Windows that do not fit beside the halo lie anywhere, as for users: less exact, but they fit.
    grid = job.grid if job.grid <= tile - 2 * halo else 1
    return {
        "forward": job.forward, "lr": job.maps, "scale": job.scale,
        "tile": tile, "halo": halo, "grid": grid, "blend": blend,
    }  # fmt: skip


def tiled_difference(job: Job, channels: int, image: str) -> dict[str, Any] | None:
    """How far a picture made in tiles is from the one made whole.

    The tiles are those of users. An image that fits in one of them is cut in the middle of its
    longer side, with the same halo: what a tile border changes is then known all the same.

    Args:
        job: of an image of at most `LARGEST` LR pixels.
        channels: the first so many channels of the result are the picture.
        image: its name, for the record.

    Returns:
        {"image", "tile", "halo", "blend" (LR px), "max_levels" and "mean_levels": |difference| of
        the unrounded pictures in grey levels, "psnr": between both in dB, None beyond 100 dB}; None
        where the image cannot be run whole or is too small to be cut.
    """
    from sr_models.inference.tiles import upscale_tiled, upscale_whole

    longer, halo = max(job.maps.shape[-2:]), job.overlap.halo
    # Half of the image and its halo, and never less than a window between two halos.
    half = max(-(-longer // 2) + halo, 2 * halo + job.grid)
    tile = job.overlap.tile if longer > job.overlap.tile else half
    if longer <= tile:
        return None
    given = _arguments(job, tile)
    whole, cut = upscale_whole(
        job.forward, job.maps, job.scale,
        largest=LARGEST, tile=tile, halo=halo, grid=given["grid"],
    )  # fmt: skip
    if cut:
        return None
    tiled = upscale_tiled(**given)
    one, two = (m[:, :channels].double().clamp(0, 1) * 255 for m in (tiled, whole))
    difference = (one - two).abs()
    mean_square = float(difference.square().mean())
    return {
        "image": image,
        "tile": tile,
        "halo": halo,
        "blend": job.overlap.blend,
        "max_levels": round(float(difference.max()), 3),
        "mean_levels": round(float(difference.mean()), 4),
        "psnr": round(10 * math.log10(255**2 / mean_square), 1) if mean_square > _NOISE else None,
    }


def tiles_note(overlap: Overlap, tiled: int, images: int) -> str:
    """What a row says of images that were cut; empty where none was."""
    size = f"{overlap.tile}/{overlap.halo} px"
    return f"tiled {size}: {tiled} of {images} images" if tiled else ""
