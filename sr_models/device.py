"""Which device a computation runs on.

Choosing a precision, or moving tensors there, is the caller's business.
"""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: the name is none of auto, cpu, cuda, mps, or this machine has no such device.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if name not in present:
        raise ValueError(f"device {name!r} is not one of auto, cpu, cuda, mps")
    if not present[name]:
        there = ", ".join(kind for kind, is_there in present.items() if is_there)
        raise ValueError(
            f"device {name!r} is not available here (there is: {there}); set it to auto or install "
            f"a torch build for it"
        )
    return torch.device(name)
