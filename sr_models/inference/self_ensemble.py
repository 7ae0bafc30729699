"""Self-ensemble: the mean of what a network makes of the eight flips and transposes of an image.

Lim et al., "Enhanced deep residual networks for single image super-resolution", 2017, section 3.4
(EDSR+). Running the network, in tiles or whole, is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

#: Turns the last two axes of a tensor.
Turn = Callable[[Tensor], Tensor]


def self_ensemble(run: Callable[[Turn], Tensor]) -> Tensor:
    """Mean over the eight turns of a square, each result turned back.

    Args:
        run: makes a picture [..., H, W], or [..., W, H] for a turn that transposes, of inputs that
            it has put through the turn it is given: LR and all that belongs to its pixels.

    Returns:
        [..., H, W] in the type that `run` returns; not clamped.
    """
    total: Tensor | None = None
    for transposed in (False, True):
        for axes in ((), (-1,), (-2,), (-2, -1)):
            out = run(partial(_turn, transposed=transposed, axes=axes)).flip(axes)
            out = out.transpose(-2, -1) if transposed else out
            total = out if total is None else total + out
    assert total is not None
    return total / 8


def _turn(maps: Tensor, transposed: bool, axes: tuple[int, ...]) -> Tensor:
    return (maps.transpose(-2, -1) if transposed else maps).flip(axes).contiguous()
