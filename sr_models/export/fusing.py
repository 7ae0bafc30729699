"""The network that people run: branches that only training needs are merged into one convolution.

How a family merges its branches is its own `fuse()`.
"""

from __future__ import annotations

import copy

from torch import nn


def fused_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode, fused where `network` has a `fuse()`; the same function.

    SPAN of spandrel, which merges in every pass in eval mode, stays as it is.
    """
    clone = copy.deepcopy(network).eval()
    fuse = getattr(clone, "fuse", None)
    if callable(fuse):
        fuse()
    return clone
