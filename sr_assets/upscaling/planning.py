"""How a model cuts pictures into tiles: from what the network sees and from the memory there is.

Running the tiles is `enlarging.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sr_assets.lineage.stage import StageError
from sr_assets.memory import available_memory
from sr_assets.model_lookup import Upscaler
from sr_assets.upscaling.enlarging import Enlarger, upscale_samples

if TYPE_CHECKING:
    from sr_models.inference.streaming import Cut, Samples

#: Context of networks that see all of a picture, or are not known (LR px).
_HALO = 32
#: Smallest and largest side of a tile that is chosen here (LR px).
SMALLEST_TILE, LARGEST_TILE = 256, 1024
#: A tile of so many halos computes a fifth of its pixels in vain.
_HALOS = 24
#: Most that the tile of a CPU takes: larger ones are no faster there (bytes).
_CPU_BUDGET = 640 << 20


@dataclass(frozen=True)
class Plan:
    """The tiles of a model."""

    cut: Cut
    exact: bool
    """Whether tiles give what the whole image gives."""
    told: str
    """A line for the user."""


def plan_tiles(
    upscaler: Upscaler, tile: int | None = None, halo: int | None = None, alpha: int = 1
) -> Plan:
    """Chooses what is not given.

    Args:
        upscaler: as loaded.
        tile: side of a tile with its halo (LR px).
        halo: context that is thrown away (LR px); tiles are then cropped, however far the network
            sees.
        alpha: least halo that is chosen, which transparency needs (LR px).

    Raises:
        StageError: the tile leaves nothing beside its halo.
    """
    from sr_models.inference.streaming import Cut

    reach, why = _reach(upscaler)
    chosen = (_HALO if reach is None else max(reach, alpha)) if halo is None else halo
    exact = reach is not None and chosen >= reach
    if tile is None:
        tile = _tile(upscaler, chosen)
    try:
        cut = Cut(tile, chosen, upscaler.grid, chosen if halo is None and not exact else 0)
    except ValueError as error:
        raise StageError(
            f"--tile {tile} must be more than twice the halo of {chosen} px"
        ) from error
    return Plan(cut, exact, _line(upscaler.name, cut, reach, exact, why))


def measured_difference(
    enlarger: Enlarger,
    read: Callable[[int, int, int, int], Samples],
    size: tuple[int, int],
    cut: Cut,
) -> str:
    """How far tiles are from the whole on a part of a picture that is large enough for two tiles.

    Args:
        enlarger: the network.
        read: gives 8- or 16-bit samples of colour, [h, w, 1 or 3], of (top, bottom, left, right).
        size: height and width of the picture.
        cut: how pictures are cut.

    Returns:
        A line for the user, in levels of 8 bits.
    """
    from sr_models.experts.running import ExpertMemoryError
    from sr_models.inference.streaming import Cut

    # So long that two tiles overlap as they mostly do.
    longer = cut.tile + (cut.tile - 2 * cut.halo) // cut.step * cut.step
    limits = (longer, cut.tile) if size[0] > size[1] else (cut.tile, longer)
    tall, wide = (min(side, limit) for side, limit in zip(size, limits, strict=True))
    top, left = (size[0] - tall) // 2, (size[1] - wide) // 2
    part = read(top, top + tall, left, left + wide)
    scale = enlarger.upscaler.scale
    shape = (tall * scale, wide * scale, part.shape[2])
    tiled, whole = np.empty(shape, np.uint16), np.empty(shape, np.uint16)
    try:
        upscale_samples(enlarger, part, whole, Cut.whole(tall, wide, cut.grid))
        upscale_samples(enlarger, part, tiled, cut)
    except ExpertMemoryError:
        return f"a part of {wide}x{tall} px does not fit into memory as a whole: not compared"
    difference = np.abs(tiled.astype(np.int32) - whole) / 257
    mean_square = float(np.square(difference).mean())
    psnr = f"{10 * math.log10(255**2 / mean_square):.1f} dB" if mean_square else "identical"
    return (
        f"tiled against whole on {wide}x{tall} px: {difference.max():.2f} of 255 levels at most, "
        f"{difference.mean():.3f} on average ({psnr})"
    )


def _reach(upscaler: Upscaler) -> tuple[int | None, str]:
    if upscaler.network is None:
        return None, "runs several networks, whose view is not measured"
    from sr_models.inference.receptive_field import reach_of

    return reach_of(upscaler.network, upscaler.scale, upscaler.grid)


def _tile(upscaler: Upscaler, halo: int) -> int:
    from sr_models.inference.memory import bytes_per_pixel, free_bytes

    step = math.lcm(upscaler.grid, 16)
    smallest = -(-(2 * halo + step) // step) * step
    if upscaler.network is None:
        return max(SMALLEST_TILE, smallest)
    wanted = min(max(SMALLEST_TILE, _HALOS * halo), LARGEST_TILE)
    try:
        pixel = bytes_per_pixel(upscaler.network, upscaler.grid)
    except (RuntimeError, ValueError, AssertionError, TypeError):
        pixel = 0
    budget = free_bytes(upscaler.device, available_memory()) // 2
    if upscaler.device.type == "cpu":
        budget = min(budget, _CPU_BUDGET)
    if pixel:
        wanted = min(wanted, math.isqrt(budget // pixel))
    return max(wanted // step * step, smallest)


def _line(name: str, cut: Cut, reach: int | None, exact: bool, why: str) -> str:
    tiles = f"tiles of {cut.tile} px with a halo of {cut.halo}"
    if exact:
        return f"{name} sees {reach} px around a pixel: {tiles} give what the whole image gives"
    if reach is not None:
        return f"{name} sees {reach} px around a pixel, more than the halo: {tiles} may show"
    how = f"blended over {cut.blend} px" if cut.blend else "cropped"
    return f"{name} {why}: {tiles}, {how}, come near the whole image"
