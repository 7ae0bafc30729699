"""How much memory a network takes for a pixel of its input, and how much there is.

An estimate for choosing tiles; that a tile does not fit after all is seen when it runs.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SIDE = 64  # of the picture that is tried (px)
#: What convolutions take beside the tensors that can be seen, for other layouts and partial sums.
_UNSEEN = 1.5


def bytes_per_pixel(network: nn.Module, grid: int = 1) -> int:
    """Bytes that a forward pass takes for each pixel of LR: tensors alive at a time, and a half.

    Args:
        network: takes [1, 3, h, w] in [0, 1].
        grid: height and width that it takes are multiples of this.

    Raises:
        RuntimeError: the network fails on a picture of 64x64 px.
    """
    side = -(-_SIDE // grid) * grid
    parameter = next(network.parameters(), torch.zeros(1))
    lr = torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.no_grad(), _Alive(weights) as seen:
        network(lr)
    return int(_UNSEEN * seen.most) // side**2


class _Alive(TorchDispatchMode):
    """Adds up the storages of all tensors that exist, and keeps the highest sum."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.most = self.now = 0
        self.users: Counter[int] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self.known or not size:
            return
        if not self.users[place]:
            self.now += size
            self.most = max(self.most, self.now)
        self.users[place] += 1
        weakref.finalize(tensor, self._leave, place, size)

    def _leave(self, place: int, size: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            self.now -= size


def free_bytes(device: torch.device, main_memory: int) -> int:
    """Bytes that may still be filled on `device`; `main_memory` says it of the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        taken = torch.mps.driver_allocated_memory()
        return max(int(torch.mps.recommended_max_memory()) - taken, 0)
    return main_memory
