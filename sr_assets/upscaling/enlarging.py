"""From samples to enlarged samples with one network: colour, grey and alpha, in memory or on disk.

Which tiles it runs in is decided in `planning.py`; files are opened and written elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.model_lookup import Upscaler
from sr_assets.pictures import Pixels
from sr_assets.upscaling.alpha import bounded_alpha

if TYPE_CHECKING:
    from torch import Tensor

    from sr_models.inference.streaming import Cut, Samples


@dataclass(frozen=True)
class Enlarger:
    """A network and how it is asked."""

    upscaler: Upscaler
    self_ensemble: bool = False
    """Take the mean of the eight flips and transposes of each tile: eight times the work."""
    fp16: bool = False
    """Compute in half precision where torch's autocast does."""
    refine: Callable[[Tensor], Tensor] | None = None
    """What the colours of each tile go through then, [1, 3, H, W] in [0, 1]; alpha does not."""

    def network(self, lr: Tensor) -> Tensor:
        """float32 [1, 3, h, w] in [0, 1] -> floating [1, 3, scale h, scale w], not clamped."""
        import torch

        from sr_models.inference.self_ensemble import self_ensemble

        context: AbstractContextManager[Any] = nullcontext()
        if self.fp16:
            context = torch.autocast(self.upscaler.device.type, torch.float16)
        with context:
            if not self.self_ensemble:
                return self.upscaler.forward(lr)
            return self_ensemble(lambda turn: self.upscaler.forward(turn(lr)))

    def samples(self, lr: Samples, alpha: bool, opaque: bool = False) -> Tensor:
        """Enlarges one tile.

        Args:
            lr: uint8 or uint16 [h, w, C], C being 1 or 3, and one more with alpha.
            alpha: the last channel is one; it runs through the network as a grey picture.
            opaque: alpha is known to hide nothing anywhere.

        Returns:
            [C, scale h, scale w] around [0, 1].
        """
        import torch

        from sr_models.inference.streaming import samples_to_unit

        planes = samples_to_unit(lr, self.upscaler.device)
        sr = self._refined(self._colours(planes[:, :-1] if alpha else planes))
        if not alpha:
            return sr
        if opaque:
            return torch.cat([sr, torch.ones_like(sr[:1])])
        own = planes[:, -1:]
        if own.amin() == own.amax() and own.amin() in (0, 1):
            return torch.cat([sr, torch.full_like(sr[:1], float(own.amin()))])
        made = bounded_alpha(self._colours(own), own, self.upscaler.scale)
        return torch.cat([sr, made])

    def _colours(self, planes: Tensor) -> Tensor:
        """[1, 1 or 3, h, w] -> [1 or 3, scale h, scale w]; grey is the mean of three channels."""
        sr = self.network(planes.expand(-1, 3, -1, -1).contiguous())[0].float()
        return sr.mean(0, keepdim=True) if planes.shape[1] == 1 else sr

    def _refined(self, sr: Tensor) -> Tensor:
        """[1 or 3, H, W], the same of what is made of it; grey as in `_colours`."""
        if self.refine is None:
            return sr
        made = self.refine(sr.expand(3, -1, -1)[None])[0]
        return made.mean(0, keepdim=True) if sr.shape[0] == 1 else made


def upscale_picture(
    upscaler: Upscaler,
    lr: Pixels,
    tile: int = 256,
    halo: int = 32,
    advance: Callable[[float], object] = lambda pixels: None,
) -> Pixels:
    """Enlarges one picture in memory: uint8 [h, w, 3] -> uint8 [scale h, scale w, 3].

    Tiles are cropped and never blended. Smaller ones are tried when memory does not suffice.

    Args:
        upscaler: as loaded.
        lr: the picture.
        tile: side of a tile with its halo (LR px).
        halo: context that is thrown away (LR px).
        advance: is told the finished pixels of the output after each tile.

    Raises:
        ValueError: the network gave values that are not finite.
    """
    from sr_models.inference.streaming import Cut

    sr = np.empty((lr.shape[0] * upscaler.scale, lr.shape[1] * upscaler.scale, 3), np.uint8)
    upscale_samples(Enlarger(upscaler), lr, sr, Cut(tile, halo, upscaler.grid), advance)
    return sr


def upscale_samples(
    enlarger: Enlarger,
    lr: Samples,
    sr: Samples,
    cut: Cut,
    advance: Callable[[float], object] = lambda pixels: None,
) -> Cut:
    """Enlarges samples in memory into `sr`, [scale h, scale w, C]; `upscale_streamed` otherwise."""
    from sr_models.inference.streaming import upscale_streamed

    return upscale_streamed(
        lambda piece: enlarger.samples(piece, alpha=False),
        lambda top, bottom, left, right: lr[top:bottom, left:right],
        lambda top, bottom: sr[top:bottom],
        (lr.shape[0], lr.shape[1]),
        enlarger.upscaler.scale,
        cut,
        advance,
    )
