"""How much memory this process may still fill.

What is done with it is `upscaling/planning.py`; memory of GPUs is `sr_models/inference/memory.py`.
"""

from __future__ import annotations

from pathlib import Path

_ASSUMED_FREE = 2 << 30  # bytes, where the system does not say


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
