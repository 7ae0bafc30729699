"""What published benchmarks consist of, so that a number under their name is a number of them.

Where the images come from is the recipe's business, and nothing is known here of their content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Sides are often cropped to a multiple of the scale, or of 12 for all scales at once (px).
_CROPPED = 11


@dataclass(frozen=True)
class KnownSet:
    """One published benchmark; sizes are of HR (px)."""

    images: int
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of every image, where there are few."""
    longer: tuple[int, int] = (0, 0)
    """Least and greatest longer side, where there are many."""
    shorter: tuple[int, int] = (0, 0)


#: Set5: Bevilacqua et al. 2012. Set14: Zeyde et al. 2010. BSD100: Martin et al. 2001. Urban100:
#: Huang et al. 2015. Manga109: Matsui et al. 2017. DIV2K validation: Agustsson, Timofte 2017,
#: images 0801 to 0900. Of the last two no list of sizes is published, so bounds are wide: they tell
#: LR from HR. Manga109 is scanned as spreads of mostly 1654x1170 px, and benchmarks take one page
#: of a volume, mostly 827x1170 px; an image of DIV2K has 2040 px on its longer side.
KNOWN = {
    "set5": KnownSet(5, ((512, 512), (288, 288), (256, 256), (280, 280), (228, 344))),
    "set14": KnownSet(
        14,
        (
            *((500, 480), (720, 576), (512, 512), (352, 288), (250, 361), (276, 276), (500, 362)),
            *((352, 288), (512, 512), (512, 512), (768, 512), (512, 512), (529, 656), (586, 391)),
        ),
    ),
    "bsd100": KnownSet(100, longer=(481, 481), shorter=(321, 321)),
    "urban100": KnownSet(100, longer=(1000, 1280), shorter=(564, 1024)),
    "manga109": KnownSet(109, longer=(1050, 1700), shorter=(700, 1250)),
    "div2k_val": KnownSet(100, longer=(2040, 2040), shorter=(400, 2040)),
}


def mismatch(name: str, sizes: Sequence[tuple[int, int]]) -> str | None:
    """What keeps a benchmark from being the published set of its name, in a few words.

    Args:
        name: of the benchmark; its case does not count. A name that is not known always fits.
        sizes: width and height of every HR image (px).
    """
    known = KNOWN.get(name.lower())
    if known is None:
        return None
    if len(sizes) != known.images:
        return f"{len(sizes)} images, but {name} has {known.images}"
    wrong = _unknown_size(known, sizes)
    return f"an image of {wrong[0]}x{wrong[1]} px, but {name} has none" if wrong else None


def _unknown_size(known: KnownSet, sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    if not known.sizes:
        for size in sizes:
            fits = _between(max(size), known.longer) and _between(min(size), known.shorter)
            if not fits:
                return size
        return None
    left = list(known.sizes)
    for size in sorted(sizes, reverse=True):
        near = [
            w for w in left if all(0 <= a - b <= _CROPPED for a, b in zip(w, size, strict=True))
        ]
        if not near:
            return size
        left.remove(min(near))
    return None


def _between(side: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] - _CROPPED <= side <= bounds[1]
