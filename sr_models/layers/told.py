"""What tensors tell of the arguments that a network was built with.

Which names and shapes mean what belongs to each network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, the `module.` of data-parallel wrappers taken off their names."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def length(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many of `prefix.0.`, `prefix.1.` ... in a row there are names under."""
    heads = {
        name.removeprefix(f"{prefix}.").split(".")[0]
        for name in state
        if name.startswith(f"{prefix}.")
    }
    count = 0
    while str(count) in heads:
        count += 1
    return count


def number(stored: Tensor) -> float:
    """The shortest decimal number that is `stored` in its dtype: 0.3 from a half-precision 0.3."""
    value = float(stored)
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next((n for n in shorter if _rounded(n, stored.dtype) == value), value)


def restore(state: dict[str, Tensor], name: str, unsaid: float) -> None:
    """Undoes, in place, what half precision did to a number of `state`, where it is there.

    It is float32 again and as it was before rounding; one that comes to `unsaid`, the number that
    a file says nothing of, is left out.
    """
    if name in state:
        told = number(state.pop(name))
        if told != unsaid:
            state[name] = torch.tensor(told, dtype=torch.float32, device="cpu")


def as_stored(value: float) -> float:
    """The number that is read back when `value` was stored in float32."""
    return number(torch.tensor(value, dtype=torch.float32, device="cpu"))


def width_ratio(hidden: int, width: int) -> float:
    """The ratio from which `int(width * ratio)` is `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _rounded(value: float, dtype: torch.dtype) -> float:
    # On the CPU even where a network is built on the meta device, which has no values.
    return float(torch.tensor(value, dtype=dtype, device="cpu"))
