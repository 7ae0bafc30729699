"""Upscaling an image in tiles, so that a network's memory depends on the tile and not on the image.

Tiles overlap and are cropped, or blended over a part of the overlap: the result of a network whose
receptive field fits in the halo is that of the whole image. Images that do not fit into memory
themselves are for `streaming.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from sr_models.experts.running import is_out_of_memory


def upscale_tiled(
    forward: Callable[[Tensor], Tensor],
    lr: Tensor,
    scale: int,
    tile: int = 256,
    halo: int = 16,
    advance: Callable[[int], None] | None = None,
    grid: int = 1,
    blend: int = 0,
) -> Tensor:
    """Runs `forward` over tiles of one image and puts its outputs together.

    All tiles of an image have the same shape (with `grid` 1): the last of a line is shifted inside
    instead of being cut, so that a network sees no small tile and compiles one graph. An image that
    fits in one tile is run whole.

    Args:
        forward: [1, C, h, w] -> [1, D, h * scale, w * scale], D being 3 for a picture; it is given
            tiles on the device of `lr` and may return them on any.
        lr: [1, C, H, W]; C is 3 for a plain network, more when maps of the LR grid ride along.
        scale: upscaling factor of `forward`.
        tile: side of a tile with its halo (LR px), more than twice the halo.
        halo: context that is computed and thrown away at each inner side of a tile (LR px).
        advance: is told 1 after each tile.
        grid: tiles start at multiples of it, so that windows lie where they lie in the whole image;
            the last tile of a line grows by less than this to reach the border (LR px).
        blend: width over which two tiles change over, at most twice the halo (LR px); 0 crops.

    Returns:
        [1, D, H * scale, W * scale] on the CPU, in the dtype that `forward` returned; not clamped.

    Raises:
        ValueError: `tile` leaves nothing (or no `grid`) beside its halo, `lr` is no single image,
            or `forward` returned another shape than the scale asks for.
    """
    if halo < 0 or tile <= 2 * halo:
        raise ValueError(f"tile {tile} must be more than twice the halo {halo}")
    if grid > tile - 2 * halo:
        raise ValueError(f"tile {tile} with halo {halo} is too small for windows of {grid}")
    if not 0 <= blend <= 2 * halo:
        raise ValueError(f"blend {blend} must be from 0 to twice the halo {halo}")
    if lr.ndim != 4 or lr.shape[0] != 1 or 0 in lr.shape:
        raise ValueError(f"lr must be one image [1, C, H, W], not {tuple(lr.shape)}")
    height, width = lr.shape[-2:]
    sr: Tensor | None = None
    for box in tiles(height, width, tile, halo, grid):
        piece = lr[..., box.top : box.bottom, box.left : box.right]
        out = forward(piece).detach()
        depth = (sr if sr is not None else out).shape[1]
        wanted = (1, depth, piece.shape[-2] * scale, piece.shape[-1] * scale)
        if tuple(out.shape) != wanted:
            raise ValueError(f"the network returned {tuple(out.shape)}, x{scale} needs {wanted}")
        if sr is None:
            # Zeros, not whatever memory holds: what is not finite would survive a weight of 0.
            sr = torch.zeros((1, depth, height * scale, width * scale), dtype=out.dtype)
        wide = box.widened((height, width), blend // 2)
        target = sr[..., wide.rows(scale), wide.columns(scale)]
        kept = wide.kept(out, scale)
        weight = blend_weight(box, blend // 2, scale, kept)
        target.copy_(kept if weight is None else torch.lerp(target.to(kept), kept, weight))
        if advance:
            advance(1)
    assert sr is not None
    return sr


def upscale_whole(
    forward: Callable[[Tensor], Tensor],
    lr: Tensor,
    scale: int,
    *,
    largest: int,
    tile: int,
    halo: int,
    grid: int = 1,
) -> tuple[Tensor, bool]:
    """`upscale_tiled` of the whole image as one tile, and whether it had to be cut after all.

    It is cut when it has more than `largest` LR pixels or memory does not suffice for it: networks
    with global attention or pooling then give slightly other values.
    """
    height, width = lr.shape[-2:]
    if height * width <= largest:
        try:
            whole = max(height, width, grid) + 2 * halo
            return upscale_tiled(forward, lr, scale, whole, halo, grid=grid), False
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    cut = len(spans(height, tile, halo, grid)) * len(spans(width, tile, halo, grid)) > 1
    return upscale_tiled(forward, lr, scale, tile, halo, grid=grid), cut


@dataclass(frozen=True)
class Tile:
    """What is computed together, and what is kept of it (LR px; ends are one past the last)."""

    top: int
    bottom: int
    left: int
    right: int
    upper: int
    lower: int
    first: int
    last: int
    """Rows `upper` to `lower` and columns `first` to `last` are kept."""

    def widened(self, size: tuple[int, int], by: int) -> Tile:
        """Keeps `by` pixels more at each side that is none of an image of this height and width."""
        return replace(
            self,
            upper=self.upper - by * (self.upper > 0),
            lower=self.lower + by * (self.lower < size[0]),
            first=self.first - by * (self.first > 0),
            last=self.last + by * (self.last < size[1]),
        )

    def rows(self, scale: int) -> slice:
        """Of the enlarged image, that are kept."""
        return slice(self.upper * scale, self.lower * scale)

    def columns(self, scale: int) -> slice:
        """Of the enlarged image, that are kept."""
        return slice(self.first * scale, self.last * scale)

    def kept(self, values: Tensor, scale: int) -> Tensor:
        """What is kept of the enlarged tile, [..., h * scale, w * scale]."""
        rows = slice((self.upper - self.top) * scale, (self.lower - self.top) * scale)
        columns = slice((self.first - self.left) * scale, (self.last - self.left) * scale)
        return values[..., rows, columns]


def blend_weight(box: Tile, half: int, scale: int, kept: Tensor) -> Tensor | None:
    """[H, W]: the weight of a tile over its upper and left neighbours, which are there already.

    Args:
        box: the tile, not widened.
        half: how much it was widened at each inner side (LR px).
        scale: upscaling factor.
        kept: [..., H, W] of the widened tile; the weight has its device and type.

    Returns:
        None where there is nothing to blend with.
    """
    if not half or not (box.upper or box.first):
        return None
    down = _ramp(kept.shape[-2], 2 * half * scale if box.upper else 0)
    across = _ramp(kept.shape[-1], 2 * half * scale if box.first else 0)
    return (down[:, None] * across[None]).to(kept)


def _ramp(length: int, width: int) -> Tensor:
    """[length]: from 0 to 1 over the first `width`, then 1."""
    if not width:
        return torch.ones(length)
    return ((torch.arange(length) + 0.5) / width).clamp(max=1)


def tiles(height: int, width: int, tile: int, halo: int, grid: int = 1) -> Iterator[Tile]:
    """The tiles of an image row by row, cut along each axis as `spans` says."""
    for top, upper, lower in spans(height, tile, halo, grid):
        bottom = height if lower == height else top + tile
        for left, first, last in spans(width, tile, halo, grid):
            right = width if last == width else left + tile
            yield Tile(top, bottom, left, right, upper, lower, first, last)


def spans(size: int, tile: int, halo: int, grid: int = 1) -> list[tuple[int, int, int]]:
    """Cuts one axis: (start of the tile, first pixel kept, first pixel no longer kept) of each.

    Starts are multiples of `grid`; the last tile goes to the end of the axis, which may be up to
    grid - 1 beyond the size of a tile.

    What is kept covers 0..size once; every kept pixel is at least `halo` away from each end of its
    tile that is not an end of the image.
    """
    if size <= tile:
        return [(0, 0, size)]
    last, step = (size - tile) // grid * grid, (tile - 2 * halo) // grid * grid
    starts = [*range(0, last, step), last]
    # Two neighbours share their overlap half and half: both get as much context as there is.
    cuts = [(a + tile + b) // 2 for a, b in pairwise(starts)]
    return list(zip(starts, [0, *cuts], [*cuts, size], strict=True))
