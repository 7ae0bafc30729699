"""A weights file in half precision: half the bytes, the same names.

    python -m sr_models.export.half model.safetensors half.safetensors

Whether half precision costs anything is measured elsewhere (`benchmarks/demo_experts.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def halve(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, floating ones as float16, the others untouched.

    Raises:
        ValueError: a value is too large for float16 (65504).
    """
    half: dict[str, Tensor] = {}
    for name, tensor in state.items():
        value = tensor.to(torch.float16) if tensor.is_floating_point() else tensor
        if value.is_floating_point() and not torch.equal(value.isfinite(), tensor.isfinite()):
            raise ValueError(f"tensor {name!r} is too large for half precision: keep this file")
        half[name] = value.contiguous()
    return half


def main(source: str, target: str) -> None:
    """Writes the half-precision copy of `source` to `target`, in one step."""
    temporary = Path(f"{target}.tmp")
    save_file(halve(load_file(source)), temporary)
    temporary.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
