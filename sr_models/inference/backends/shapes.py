"""Preparing a network for one shape of picture, once that shape keeps coming.

What is prepared, and whether it is worth it, is the backends' knowledge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import Tensor

from sr_models.inference.backends.backend import Run

_KEPT = 4
_COUNTED = 1024


class ByShape:
    """Runs any picture by `general`, and one of a shape that came before by a run made for it.

    All tiles of a picture have one shape, while a folder of small pictures may have as many as
    there are pictures: preparing for each would cost more than it gains.

    Args:
        general: runs every shape.
        special: makes the run for one shape.
        after: pictures of a shape that `general` runs before `special` is made.
    """

    def __init__(
        self, general: Run, special: Callable[[tuple[int, ...]], Run], after: int = 1
    ) -> None:
        self._general, self._special, self._after = general, special, after
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._made: dict[tuple[int, ...], Run] = {}

    def __call__(self, lr: Tensor) -> Tensor:
        """[1, 3, h, w] -> [1, 3, scale h, scale w]."""
        shape = tuple(lr.shape)
        if shape not in self._made:
            self._seen[shape] += 1
            if len(self._seen) > _COUNTED:
                self._seen.clear()
            if self._seen[shape] <= self._after or len(self._made) >= _KEPT:
                return self._general(lr)
            self._made[shape] = self._special(shape)
        return self._made[shape](lr)
