"""Which training sample stands where in an endless run: every epoch in a random order of its own.

Samples are numbers here, in arrays of a few bytes each; reading them is `samples.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sr_assets.stores.augment import ORDER, generator


@dataclass(frozen=True)
class Places:
    """Where B samples lie in the stores."""

    dataset: np.ndarray
    """int64 [B], index into the datasets."""
    patch: np.ndarray
    """int64 [B], index into the patches of that dataset."""
    variant: np.ndarray
    """int64 [B], which LR of that patch."""


class SampleOrder:
    """The order of the samples (dataset, patch, variant) of several datasets.

    It takes 4 bytes a training patch, and 4 a sample for the order of the current epoch.

    Args:
        patches: of each dataset, the indices of its training patches.
        variants: of each dataset, how many LR every patch has.
    """

    def __init__(self, patches: Sequence[np.ndarray], variants: Sequence[int]) -> None:
        self._patches = [indices.astype(np.uint32) for indices in patches]
        self._variants = tuple(variants)
        counts = [len(p) * k for p, k in zip(self._patches, self._variants, strict=True)]
        self._starts = np.cumsum([0, *counts])
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        """Samples in one epoch."""
        return int(self._starts[-1])

    def at(self, positions: np.ndarray, seed: int) -> Places:
        """The samples at int64 [B] positions of the endless run."""
        epochs, offsets = np.divmod(positions, len(self))
        numbers = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            numbers[here] = self._of_epoch(seed, int(epoch))[offsets[here]]
        dataset = np.searchsorted(self._starts, numbers, side="right") - 1
        numbers -= self._starts[dataset]
        patch, variant = np.empty_like(numbers), np.empty_like(numbers)
        for one in np.unique(dataset):
            here = dataset == one
            rows, variant[here] = np.divmod(numbers[here], self._variants[one])
            patch[here] = self._patches[one][rows]
        return Places(dataset, patch, variant)

    def _of_epoch(self, seed: int, epoch: int) -> np.ndarray:
        order = self._order
        if order is None or order[0] != (seed, epoch):
            numbers = np.arange(len(self), dtype=np.uint32)
            generator(seed, ORDER, epoch).shuffle(numbers)
            self._order = order = (seed, epoch), numbers
        return order[1]
