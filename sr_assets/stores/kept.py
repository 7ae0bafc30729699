"""What was read from stores and stays in memory, within a share of what is free.

Reading itself is the stores' work; nothing is ever dropped or written here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

_SHARE, _MOST = 4, 4 << 30  # a quarter of the free memory, at most 4 GiB
_ASSUMED_FREE = 2 << 30  # bytes, where the system does not say


class KeptArrays:
    """Arrays in memory, as they were read.

    The first that come stay: an epoch visits every sample once, so dropping the oldest would drop
    each just before its turn.

    Attributes:
        room: bytes that may still be taken.
        taken: bytes that are.
    """

    def __init__(self, room: int | None = None) -> None:
        self.room = min(_MOST, available_memory() // _SHARE) if room is None else room
        self.taken = 0
        self._arrays: dict[Hashable, tuple[np.ndarray, ...]] = {}

    def get(
        self, where: Hashable, read: Callable[[], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        """The arrays of `where`; read when they are not in memory, and kept while there is room."""
        if where in self._arrays:
            return self._arrays[where]
        arrays = read()
        size = sum(array.nbytes for array in arrays)
        if size <= self.room:
            self.room -= size
            self.taken += size
            self._arrays[where] = arrays
        return arrays


def available_memory() -> int:
    """Bytes that this process may still fill: what Linux reports, within a container's limit."""
    free = _ASSUMED_FREE
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            free = int(value.split()[0]) << 10
    limits = [int(line) for line in _lines("/sys/fs/cgroup/memory.max") if line.isdigit()]
    return min([free, *limits])


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
