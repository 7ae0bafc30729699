"""Float64 for sums that are taken once, as when branches are fused, wherever the tensors lie.

What runs in every pass has no place here.
"""

from __future__ import annotations

from torch import Tensor


def double(tensor: Tensor) -> Tensor:
    """The same numbers in float64; on the CPU where the device has no such type, as MPS."""
    return (tensor.cpu() if tensor.is_mps else tensor).double()
