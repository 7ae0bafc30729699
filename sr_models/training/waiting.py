"""How much of the time of training steps is waiting for data.

Validation and checkpoints are no steps: what is read ahead during them helps, their time does not
count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

#: A share above this is worth a word: reading does not keep up with the steps.
MUCH = 0.03


class DataWait:
    """Clocks of one run; a resumed run begins anew."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._stepping = self._waiting = 0.0
        self._since = 0.0, 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Counts what runs inside as a training step."""
        begin = self._clock()
        yield
        self._stepping += self._clock() - begin

    def take(self, batches: Iterator[T]) -> T:
        """The next batch; the time until it is there counts as waiting."""
        begin = self._clock()
        batch = next(batches)
        self._waiting += self._clock() - begin
        return batch

    def lap(self) -> float:
        """Share of the steps since the last call of this, in [0, 1]."""
        stepping, waiting = self._since
        self._since = self._stepping, self._waiting
        return _share(self._waiting - waiting, self._stepping - stepping)

    @property
    def share(self) -> float:
        """Share of all steps, in [0, 1]; 0 before the first."""
        return _share(self._waiting, self._stepping)


def waiting_line(share: float) -> str:
    """The share for people.

    >>> waiting_line(0.004)
    'waited for data 0.4 %'
    >>> waiting_line(0.25)
    'waited for data 25.0 %: one reading thread does not keep up with these steps'
    """
    line = f"waited for data {share * 100:.1f} %"
    return line + (": one reading thread does not keep up with these steps" if share > MUCH else "")


def _share(waiting: float, stepping: float) -> float:
    return waiting / stepping if stepping > 0 else 0.0
