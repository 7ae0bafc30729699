"""How far a network looks: measured by one NaN pixel, which every value that depends on it becomes.

Tiles with a halo of this many pixels give the picture that the whole image gives; cutting them is
`tiles.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.one_line import one_line

#: Lengths of the strips that are probed (LR px). A network that fills the last one looks too far
#: for tiles, whether at a wide surrounding or at all of the picture.
LENGTHS = (64, 192, 512)

_NO_WINDOW = 4  # a grid up to this comes from pixels that are folded into channels (LR px)
_THICKNESSES = (8, 32, 64)  # of the strips; some networks refuse thin pictures


@dataclass(frozen=True)
class ReceptiveField:
    """How far away from a pixel of LR a pixel of SR can depend on it."""

    reach: int | None
    """LR px in any of the four directions; None where tiles cannot equal the whole image."""
    why: str = ""
    """What the network does where there is no reach, after its name in a sentence."""


def receptive_field(network: nn.Module, scale: int, grid: int = 1) -> ReceptiveField:
    """Measures a network by putting a NaN into a picture and looking where it comes out.

    The network sees strips of 64 and, where the NaN reaches their ends, 192 and 512 px, in single
    precision. A zero weight passes NaN on, so that what is found may be more than the weights use,
    and never less. Offsets and choices that a network computes (deformable sampling, the largest of
    several) are followed as far as they carry values, not where their decision could lead with
    other pixels.

    Args:
        network: [1, 3, h, w] to [1, 3, h * scale, w * scale], or a tuple with that first; in eval
            mode. It is left as it is.
        scale: upscaling factor.
        grid: height and width that it takes are multiples of this, and tiles start at such ones.

    Raises:
        RuntimeError: the network runs at none of the sizes of a strip.
    """
    statistics = _statistics(network)
    # A mean over the picture that is seen to reach both ends has no end, and attention in windows
    # takes long on the last strip and is never found to end there.
    tried = 1 if statistics else 2 if grid > _NO_WINDOW else len(LENGTHS)
    lengths = [_up(length, grid) for length in LENGTHS[:tried]]
    far = (
        f"looks at all of the picture ({', '.join(statistics)})"
        if statistics
        else f"looks farther than {lengths[-1] // 2 - grid} px, or at all of the picture"
    )
    reaches = []
    with _plain_convolutions():
        run = _single_precision(network)
        for turned in (False, True):
            for length in lengths:
                seen = _Strip(run, scale, grid, length, turned)
                ahead = seen.footprint(seen.start)
                if ahead is not None:
                    break
            if ahead is None:
                return ReceptiveField(None, far)
            behind = ahead if grid == 1 else seen.footprint(seen.start + grid - 1)
            beside = seen.footprint(seen.start + grid)
            if behind is None or beside is None:
                return ReceptiveField(None, far)
            if beside != ahead:
                return ReceptiveField(None, "divides pictures into windows, which tiles would move")
            if seen.footprint(0, at_border=True) is None:
                return ReceptiveField(None, "carries one border of the picture to the other")
            reaches += [*ahead, *behind]
    return ReceptiveField(max(reaches))


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """cuDNN's fast convolutions would spread a NaN over the block that they transform."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=False):
        yield


def reach_of(network: nn.Module, scale: int, grid: int = 1) -> tuple[int | None, str]:
    """`receptive_field` of any network: how far it sees (LR px); None, and why, otherwise.

    Also where it cannot be measured, as with a network that refuses the strips.
    """
    try:
        found = receptive_field(network, scale, grid)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = one_line(error)[:80]
        return None, f"has a view that cannot be measured ({reason})"
    return found.reach, found.why


def _single_precision(network: nn.Module) -> Callable[[Tensor], Tensor]:
    parameter = next(network.parameters(), torch.zeros(1))
    single = network if parameter.dtype == torch.float32 else copy.deepcopy(network).float()
    return lambda lr: _picture(single(lr.to(parameter.device)))


def _picture(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


@dataclass(frozen=True)
class _Strip:
    """A long, thin picture."""

    run: Callable[[Tensor], Tensor]
    scale: int
    grid: int
    length: int
    turned: bool
    """Whether it stands upright."""

    @property
    def start(self) -> int:
        """The first pixel of the cell of the grid in its middle."""
        return self.length // 2 // self.grid * self.grid

    def footprint(self, probe: int, at_border: bool = False) -> tuple[int, int] | None:
        """How far a NaN at `probe` reaches to the left and to the right (LR px).

        None where it comes to an end of the strip, apart from the one it is at with `at_border`.
        """
        spoilt = self._spoilt(probe)
        if not len(spoilt):
            return 0, 0
        first, last = int(spoilt.min()) // self.scale, int(spoilt.max()) // self.scale
        if last == self.length - 1 or (first == 0 and not at_border):
            return None
        return max(probe - first, 0), max(last - probe, 0)

    def _spoilt(self, probe: int) -> Tensor:
        """Positions along the strip that became NaN (SR px)."""
        for thickness in (_up(side, self.grid) for side in _THICKNESSES):
            generator = torch.Generator().manual_seed(0)
            lr = torch.rand((1, 3, thickness, self.length), generator=generator)
            lr[:, :, thickness // 2, probe] = torch.nan
            try:
                sr = self.run(lr.mT.contiguous() if self.turned else lr)
            except RuntimeError:
                if thickness == _up(_THICKNESSES[-1], self.grid):
                    raise
                continue
            return sr.isnan().any(1)[0].any(1 if self.turned else 0).nonzero()
        raise AssertionError("there is a thickness")


def _statistics(network: nn.Module) -> tuple[str, ...]:
    kinds = (
        nn.GroupNorm, nn.InstanceNorm2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    )  # fmt: skip
    return tuple(sorted({type(m).__name__ for m in network.modules() if isinstance(m, kinds)}))


def _up(size: int, grid: int) -> int:
    return -(-size // grid) * grid
