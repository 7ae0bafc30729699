"""The network that people run: branches that only training needs are merged into one convolution.

How a family of ours merges its branches is its own `fuse()`.
"""

from __future__ import annotations

import copy

from torch import nn

from sr_models.export.weights import is_merging_convolution


def fused_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode, fused where `network` has a `fuse()`; the same function.

    SPAN of spandrel, which merges in every pass in eval mode, stays as it is.
    """
    clone = copy.deepcopy(network).eval()
    fuse = getattr(clone, "fuse", None)
    if callable(fuse):
        fuse()
    return clone


def with_plain_convolutions(network: nn.Module) -> nn.Module:
    """`network` itself, its convolutions that merge in every pass replaced by what they merge to.

    spandrel's SPAN has them. That work does not grow with the picture, and no graph can hold it.
    """
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if is_merging_convolution(module):
                module.update_params()  # type: ignore[operator]
                parts: list[nn.Module] = [module.eval_conv]  # type: ignore[list-item]
                if getattr(module, "has_relu", False):
                    parts.append(nn.LeakyReLU(0.05))
                setattr(parent, name, nn.Sequential(*parts))
    return network
