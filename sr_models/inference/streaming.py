"""Enlarging a picture of any size piece by piece, from a reader into rows that lie on disk.

Only one tile and what the network makes of it are in memory. Files are read and written elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr_models.experts.running import ExpertMemoryError, is_out_of_memory
from sr_models.inference.tiles import Tile, blend_weight, spans, tiles

#: uint8 or uint16 [h, w, C].
Samples = NDArray[np.unsignedinteger]
#: (top, bottom, left, right) in LR px -> the samples there.
Read = Callable[[int, int, int, int], Samples]
#: (top, bottom) in SR px -> those rows of the result, [bottom - top, W, C], to be written to.
Rows = Callable[[int, int], Samples]

_SMALLEST = 8  # of a tile without its halo (LR px): below, nearly all that is computed is discarded


@dataclass(frozen=True)
class Cut:
    """How a picture is cut into tiles (LR px)."""

    tile: int
    """Side of a tile with its halo, more than twice the halo."""
    halo: int
    """Context that is computed and thrown away at each inner side of a tile."""
    grid: int = 1
    """Tiles start at multiples of it, where such tiles fit; else they lie anywhere."""
    blend: int = 0
    """Width over which two tiles change over, half of it on either side of their border; 0 crops,
    which is exact for a network that looks no farther than the halo. At most twice the halo."""

    def __post_init__(self) -> None:
        if self.halo < 0 or self.tile <= 2 * self.halo:
            raise ValueError(f"tile {self.tile} must be more than twice the halo {self.halo}")
        if not 0 <= self.blend <= 2 * self.halo:
            raise ValueError(f"blend {self.blend} must be from 0 to twice the halo {self.halo}")

    @classmethod
    def whole(cls, height: int, width: int, grid: int = 1) -> Cut:
        """One tile, which is never made smaller."""
        return cls(2 * max(height, width) + 1, max(height, width), grid)

    @property
    def step(self) -> int:
        """The grid that tiles of this size can keep to."""
        return self.grid if self.grid <= self.tile - 2 * self.halo else 1

    def count(self, height: int, width: int) -> int:
        """Tiles of a picture."""
        down, across = (len(spans(s, self.tile, self.halo, self.step)) for s in (height, width))
        return down * across

    def smaller(self) -> Cut | None:
        """About a quarter of the area; None where hardly more than the halo would be left."""
        least = 2 * self.halo + max(_SMALLEST, self.step)
        tile = max(self.tile // 2, least)
        return dataclasses.replace(self, tile=tile) if tile < self.tile else None


def upscale_streamed(
    forward: Callable[[Samples], Tensor],
    read: Read,
    rows: Rows,
    size: tuple[int, int],
    scale: int,
    cut: Cut,
    advance: Callable[[int], object] = lambda pixels: None,
    shrink: Callable[[Cut], object] = lambda cut: None,
) -> Cut:
    """Enlarges a picture tile by tile; smaller tiles are tried when memory does not suffice.

    Args:
        forward: samples [h, w, C] -> floating [D, h * scale, w * scale] around [0, 1].
        read: gives the samples of a tile.
        rows: opens rows of the result; written as uint8 (0..255) or uint16 (0..65535), whichever
            they are, clamped and rounded half up.
        size: height and width of the picture (LR px).
        scale: upscaling factor.
        cut: how it is cut.
        advance: is told how many SR pixels are finished; a negative number when they are made anew.
        shrink: is told the smaller cut before the picture is begun anew.

    Returns:
        The cut that was used in the end.

    Raises:
        ValueError: `forward` gave another shape, or values that are not finite.
        ExpertMemoryError: not even small tiles fit into memory.
    """
    while True:
        finished = 0
        try:
            for tile in tiles(*size, cut.tile, cut.halo, cut.step):
                values = forward(read(tile.top, tile.bottom, tile.left, tile.right))
                _check(values, tile, scale)
                _paste(values, rows, tile, size, scale, cut.blend // 2)
                done = (tile.lower - tile.upper) * (tile.last - tile.first) * scale**2
                finished += done
                advance(done)
            return cut
        except (RuntimeError, MemoryError) as error:
            out_of_memory = isinstance(error, MemoryError) or is_out_of_memory(error)
            if not out_of_memory:
                raise
            # A picture of less than a tile is one smaller tile.
            largest = dataclasses.replace(cut, tile=max(min(cut.tile, max(size)), 2 * cut.halo + 1))
            smaller = largest.smaller()
            if smaller is None:
                raise ExpertMemoryError(
                    f"tiles of {largest.tile} px with a halo of {cut.halo} do not fit into memory"
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        cut = smaller
        advance(-finished)
        shrink(cut)


def samples_to_unit(samples: Samples, device: torch.device) -> Tensor:
    """uint8 or uint16 [h, w, C] to float32 [1, C, h, w] in [0, 1]."""
    peak = np.iinfo(samples.dtype).max
    # torch has next to no arithmetic for uint16: it leaves NumPy as 32-bit integers.
    wide = samples if samples.dtype == np.uint8 else samples.astype(np.int32)
    planes = torch.from_numpy(np.ascontiguousarray(wide.transpose(2, 0, 1)))[None]
    return planes.to(device).float() / peak


def unit_to_samples(values: Tensor, dtype: np.dtype) -> Samples:
    """Floating [C, h, w] to uint8 or uint16 [h, w, C]: clamped to [0, 1] and rounded half up.

    Raises ValueError when a value is not finite.
    """
    values = values.detach().to("cpu", torch.float32)
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{count} of {values.numel()} values are not finite: no picture to save")
    levels = values.clamp(0, 1).mul_(np.iinfo(dtype).max).add_(0.5).floor_()
    return levels.movedim(0, -1).numpy().astype(dtype)


def _check(values: Tensor, tile: Tile, scale: int) -> None:
    wanted = (tile.bottom - tile.top) * scale, (tile.right - tile.left) * scale
    if values.ndim != 3 or tuple(values.shape[1:]) != wanted:
        raise ValueError(
            f"the network returned {list(values.shape)}, x{scale} needs {list(wanted)}"
        )


def _paste(
    values: Tensor, rows: Rows, tile: Tile, size: tuple[int, int], scale: int, half: int
) -> None:
    """Writes what is kept of a tile, over its upper and left neighbours where they overlap."""
    wide = tile.widened(size, half)
    kept = wide.kept(values, scale)
    target = rows(wide.upper * scale, wide.lower * scale)[:, wide.columns(scale)]
    weight = blend_weight(tile, half, scale, kept)
    if weight is not None:
        kept = torch.lerp(samples_to_unit(target, kept.device)[0].to(kept), kept, weight)
    target[...] = unit_to_samples(kept, target.dtype)
