"""The numbers of a step or a validation: collected, demanded finite, and passed on to the curves.

Drawing them is `curves.py`; what is measured is the loop's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

SMALLEST_SCALE = 2.0**-14  # of the fp16 gradient scaler: thirty halvings below its start


class NonFiniteLoss(RuntimeError):  # noqa: N818
    """A loss term, the gradient norm or the validation PSNR is infinite or no number."""

    def __init__(self, term: str, step: int, value: float) -> None:
        super().__init__(
            f"{term} is {value} at step {step}: lower learning_rate or set clip, or use fp32"
        )
        self.term, self.step = term, step


def step_numbers(sums: Mapping[str, Tensor], norm: Tensor, rate: float) -> dict[str, float]:
    """All numbers of a step, with one transfer from the device."""
    *terms, gradient_norm = torch.stack([*(t.float() for t in sums.values()), norm]).tolist()
    numbers = {f"loss/{name}": value for name, value in zip(sums, terms, strict=True)}
    return {
        **numbers,
        "loss/total": sum(terms),
        "learning_rate": rate,
        "gradient_norm": gradient_norm,
    }


def require_finite(
    numbers: Mapping[str, float], step: int, scaler: torch.amp.GradScaler | None
) -> None:
    """Raises NonFiniteLoss for the first number that is not finite.

    fp16 finds its scale by overflowing: such a step is skipped and the scale halved, so an infinite
    gradient is no error there until the scale is out of any sensible range.
    """
    for name, value in numbers.items():
        if math.isfinite(value):
            continue
        if name == "gradient_norm" and scaler and scaler.get_scale() >= SMALLEST_SCALE:
            continue
        raise NonFiniteLoss(name.removeprefix("loss/"), step, value)


def publish(
    writer: SummaryWriter | None,
    report: Callable[[int, Mapping[str, float]], None],
    step: int,
    numbers: Mapping[str, float],
) -> None:
    """Draw `numbers` at `step` in TensorBoard and report them; nothing without a writer."""
    if writer is None:
        return
    for name, value in numbers.items():
        writer.add_scalar(name, value, step)
    report(step, numbers)
