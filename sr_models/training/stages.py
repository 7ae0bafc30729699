"""Which stage of a loss schedule a step belongs to.

What a stage minimises is the caller's business.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def stage_at(step: int, ends: Sequence[int]) -> int:
    """The stage, from 0, of optimiser step number `step`, counted from 0.

    `ends` are the first steps after each stage but the last, ascending; the last goes on for ever.

    >>> [stage_at(step, [2, 3]) for step in range(5)]
    [0, 0, 1, 2, 2]
    """
    return bisect_right(ends, step)
