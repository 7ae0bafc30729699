"""Training the plain convolutions that a network merges its branches to, and going back.

spandrel's SPAN merges in every pass; its files hold branches, so what was trained plainly is put
into branches again. Merging for export alone is `sr_models/export/fusing.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sr_models.export.fusing import with_plain_convolutions
from sr_models.export.weights import is_merging_convolution

_ORIGIN = "merged_from"  # in a plain convolution: the module with branches that it stands for


def merge_branches(network: nn.Module) -> None:
    """Puts plain convolutions in the place of those that merge, for training; others stay."""
    merging = {n: m for n, m in network.named_modules() if is_merging_convolution(m)}
    with_plain_convolutions(network)
    for name, module in merging.items():
        plain = network.get_submodule(name)
        plain.requires_grad_(True)
        plain.__dict__[_ORIGIN] = module  # no child: it must not be in the state dict


def restore_branches(network: nn.Module) -> None:
    """Undoes `merge_branches`: the same function, in branches that merge to the trained kernels."""
    for name, plain in list(network.named_modules()):
        if _ORIGIN in plain.__dict__:
            merging = plain.__dict__.pop(_ORIGIN)
            _spread(merging, plain.get_submodule("0"))
            merging.train(plain.training)
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, merging)


@torch.no_grad()
def _spread(merging: Any, kernel: Any) -> None:
    """Lets the 3x3 in the middle be `kernel`, the 1x1 around it hand on, and the others be 0."""
    device = kernel.weight.device
    merging.to(device)
    for convolution in (*merging.conv, merging.sk):
        convolution.weight.zero_()
        convolution.bias.zero_()
    first, middle, last = merging.conv
    out, into = kernel.weight.shape[:2]
    first.weight[:into, :, 0, 0] = torch.eye(into, device=device)
    middle.weight[:out, :into] = kernel.weight
    last.weight[:, :out, 0, 0] = torch.eye(out, device=device)
    last.bias.copy_(kernel.bias)
    merging.update_params()
