"""Transparency on its own path: colours that nobody sees are made harmless, alpha stays clean.

How tiles of it run through a network is `enlarging.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyvips
    from torch import Tensor

#: LR px around a pixel that bound its alpha.
REACH = 1

#: Standard deviations (px) of the means that hidden colours become, nearest first. A blur reaches
#: about twice as far: beyond, no network carries a colour to where it is seen.
_SIGMAS = (1.5, 6.0)
_LEAST = 1e-3  # share of seen pixels in a mean below which it is rounding noise
_TRUSTED = 8  # alpha of one in so many and more says the colour well enough


def with_hidden_colours_filled(image: pyvips.Image) -> pyvips.Image:
    """The same picture in which transparent pixels have the colour of seen ones near them.

    Files keep anything there, mostly black, and where next to nothing is seen the colour was
    rounded to nonsense: a network would draw both into the seen edge. From an eighth of full alpha
    on a pixel keeps its own colour.

    Args:
        image: colour channels and alpha last, 8 or 16 bits.
    """
    colours, alpha = image.extract_band(0, n=image.bands - 1), image.extract_band(image.bands - 1)
    peak = 255 if image.format == "uchar" else 65535
    weights = (alpha / peak).cast("float")
    seen = (colours * weights).cast("float")
    filled = colours.cast("float")
    for sigma in reversed(_SIGMAS):
        share = weights.gaussblur(sigma, precision="float")
        mean = seen.gaussblur(sigma, precision="float") / share
        filled = (share > _LEAST).ifthenelse(mean, filled)
    own = weights * _TRUSTED
    own = (own > 1).ifthenelse(1, own)
    mixed = (colours * own + filled * (1 - own) + 0.5).floor()
    mixed = (mixed > peak).ifthenelse(peak, mixed).cast(image.format)
    return mixed.bandjoin(alpha).copy(interpretation=image.interpretation)


def bounded_alpha(sr: Tensor, lr: Tensor, scale: int) -> Tensor:
    """SR alpha within the least and the most that LR has at a pixel and its eight neighbours.

    A network makes 0.998 of a plain 1 as easily as of a plain white, which would leave a veil over
    a picture that was opaque, and its ringing beside an edge a halo around what is cut out.

    Args:
        sr: [1, h * scale, w * scale].
        lr: [1, 1, h, w] in [0, 1].
        scale: upscaling factor.
    """
    import torch
    from torch.nn import functional as F

    side = 2 * REACH + 1
    most = F.max_pool2d(lr, side, 1, REACH)
    least = -F.max_pool2d(-lr, side, 1, REACH)
    low, high = (F.interpolate(bound, scale_factor=scale)[0] for bound in (least, most))
    return torch.minimum(torch.maximum(sr, low), high)
