"""Memory for the arrays of batches: page-locked where the device is CUDA, usual elsewhere.

What is written into the memory is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class BatchMemory:
    """Gives out arrays, and takes them for tensors without copying them.

    Page-locked memory comes from torch's own pool, which uses it again and knows when a copy to the
    device has ended.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._tensors: dict[int, Tensor] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of any content that nobody else holds."""
        array = np.empty(0 if self._pinned else shape, dtype)
        if self._pinned:
            like = torch.from_numpy(array).dtype
            tensor = torch.empty(shape, dtype=like, pin_memory=True)
            array = tensor.numpy()
            self._tensors[id(array)] = tensor
        return array

    def tensors(self, maps: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The arrays of one batch, all that were given out for it among them, as tensors."""
        given, self._tensors = self._tensors, {}
        return {
            name: given[id(values)] if id(values) in given else torch.from_numpy(values)
            for name, values in maps.items()
        }
