"""Runs a frozen expert on a batch: padding, precision, features, memory and the finite check.

What is done with its output (quantising, storing, measuring) is not known here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_models.experts.loading import Expert


@dataclass(frozen=True)
class ExpertOutput:
    """What an expert said, on the device of its network, never clamped."""

    sr: Tensor
    """float32 [B,3,h·scale,w·scale], around [0,1]."""
    features: Tensor | None
    """float32 [B,C,h,w] where they were asked for."""
    batch: int
    """Images at a time that fitted into memory: the batch to go on with."""


class NonFiniteOutputError(ArithmeticError):
    """An output holds NaN or infinity; `index` is the first such image of the batch."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class ExpertMemoryError(RuntimeError):
    """Not even one image at a time fits into memory."""


def run_expert(
    expert: Expert,
    lr: Tensor,
    *,
    dtype: str = "fp32",
    batch: int = 8,
    features: bool = False,
) -> ExpertOutput:
    """Enlarges a batch, `batch` images at a time, fewer when memory does not suffice.

    Args:
        expert: as loaded; runs where its network is.
        lr: float32 [B,3,h,w] in [0,1], any size: it is mirrored (then repeated) at the right and
            lower border up to what the network asks for, and the output cropped again.
        dtype: "fp32" or "bf16" (bfloat16 arithmetic, fp32 weights and sums).
        batch: largest number of images at a time.
        features: also give the features.

    Raises:
        ValueError: a wrong shape or dtype, or features of an expert that has none.
        NonFiniteOutputError: an output is NaN or infinite.
        ExpertMemoryError: one image does not fit into memory.
    """
    _check(expert, lr, dtype, batch, features)
    parts: list[tuple[Tensor, Tensor | None]] = []
    start = 0
    while start < len(lr):
        try:
            # A copy: spandrel's RCAN multiplies its input in place.
            part = _forward(expert, lr[start : start + batch].clone(), dtype, features)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise ExpertMemoryError(
                    f"{expert.architecture}: one image of {lr.shape[-1]}x{lr.shape[-2]} does not "
                    f"fit into memory: use smaller patches or tiles, or another device"
                ) from error
            batch = min(batch, len(lr) - start) // 2 or 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        _demand_finite(expert, part, start, dtype)
        parts.append(part)
        start += len(part[0])
    taps = [tap for _, tap in parts if tap is not None]
    return ExpertOutput(
        torch.cat([sr for sr, _ in parts]), torch.cat(taps) if taps else None, batch
    )


def tapped(expert: Expert, module: str) -> Expert:
    """The same expert whose features are the output of `module`, a path such as `body.3.conv`.

    Raises ValueError when there is no such module, or its output is no map [B,C,h,w] of LR's size.
    """
    if module not in dict(expert.model.named_modules()):
        there = ", ".join(name for name, _ in expert.model.named_children())
        raise ValueError(f"{expert.architecture} has no module {module!r}; it has {there}")
    probed = dataclasses.replace(expert, feature_module=module)
    side = pad_to(torch.zeros(1, 3, 16, 16), expert.minimum, expert.multiple).shape[-1]
    _, features = _forward(probed, torch.zeros(1, 3, side, side), "fp32", features=True)
    assert features is not None
    return dataclasses.replace(probed, feature_channels=features.shape[1])


def pad_to(x: Tensor, minimum: int, multiple: int) -> Tensor:
    """[B,C,h,w] enlarged right and below to the next size >= `minimum` that `multiple` divides.

    The border is mirrored as far as the picture reaches, then its last line is repeated.
    """
    extra = [_padding(side, minimum, multiple) for side in x.shape[-2:]]
    mirrored = [min(e, side - 1) for e, side in zip(extra, x.shape[-2:], strict=True)]
    if any(mirrored):
        x = F.pad(x, (0, mirrored[1], 0, mirrored[0]), mode="reflect")
    rest = [e - m for e, m in zip(extra, mirrored, strict=True)]
    return F.pad(x, (0, rest[1], 0, rest[0]), mode="replicate") if any(rest) else x


def run_padded(
    network: Callable[[Tensor], Tensor], lr: Tensor, scale: int, sizes: tuple[int, int]
) -> Tensor:
    """SR [B,3,h·scale,w·scale] of a network that asks for `sizes` (minimum, multiple) of LR.

    Gradients pass; the output is that of `run_expert` for the same weights.
    """
    height, width = lr.shape[-2:]
    return network(pad_to(lr, *sizes))[..., : height * scale, : width * scale]


def _padding(side: int, minimum: int, multiple: int) -> int:
    return -(-max(side, minimum) // multiple) * multiple - side


def _check(expert: Expert, lr: Tensor, dtype: str, batch: int, features: bool) -> None:
    if lr.ndim != 4 or lr.shape[1] != 3 or 0 in lr.shape or lr.dtype != torch.float32:
        raise ValueError(f"lr is {lr.dtype} {tuple(lr.shape)}, not float32 [B,3,h,w]")
    if dtype not in ("fp32", "bf16"):
        raise ValueError(
            f"dtype {dtype!r} is not fp32 or bf16 (fp16 overflows in attention and at range 255)"
        )
    if dtype == "bf16" and not expert.bf16_safe:
        raise ValueError(f"{expert.architecture} does not work in bf16: use fp32")
    if batch < 1:
        raise ValueError(f"batch is {batch}, not at least 1")
    if features and expert.feature_module is None:
        raise ValueError(f"{expert.architecture} has no features (no conv_after_body)")


@torch.inference_mode()
def _forward(
    expert: Expert, lr: Tensor, dtype: str, features: bool
) -> tuple[Tensor, Tensor | None]:
    height, width = lr.shape[-2:]
    device = next(expert.model.parameters()).device
    padded = pad_to(lr.to(device), expert.minimum, expert.multiple)
    taps: list[Tensor] = []
    handle = None
    if features and expert.feature_module is not None:
        module = expert.model.get_submodule(expert.feature_module)

        def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
            taps.append(output)

        handle = module.register_forward_hook(keep)
    try:
        # Autocast subtracts the mean in fp32; a network cast as a whole would lose bits of LR.
        context: AbstractContextManager[Any] = (
            torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()
        )
        with context:
            sr = expert.call(expert.model, padded)
    finally:
        if handle is not None:
            handle.remove()
    sr = sr[..., : height * expert.scale, : width * expert.scale].float()
    if not handle:
        return sr, None
    if not taps:
        raise ValueError(
            f"{expert.architecture}: {expert.feature_module} is not run in its forward"
        )
    tap = taps[0]
    if (
        not isinstance(tap, Tensor)
        or tap.ndim != 4
        or tap.shape[-2] < height
        or tap.shape[-1] < width
    ):
        given = tuple(tap.shape) if isinstance(tap, Tensor) else type(tap).__name__
        raise ValueError(
            f"{expert.architecture}: {expert.feature_module} gives {given}, no map "
            f"of the size of LR {height}x{width}: name another module, or run it without features"
        )
    return sr, tap[..., :height, :width].float().contiguous()


def _demand_finite(
    expert: Expert, part: tuple[Tensor, Tensor | None], start: int, dtype: str
) -> None:
    for what, values in zip(("SR", "features"), part, strict=True):
        if values is None:
            continue
        finite = torch.isfinite(values.flatten(1)).all(1)
        if not bool(finite.all()):
            index = start + int((~finite).nonzero()[0, 0])
            mend = "use fp32" if dtype != "fp32" else "its weights or this input are broken"
            raise NonFiniteOutputError(
                f"{expert.architecture}: the {what} of image {index} is not finite in "
                f"{dtype}: {mend}",
                index,
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, ExpertMemoryError)):
        return True
    text = str(error)  # the CPU and MPS allocators have no class of their own
    return "not enough memory" in text or "can't allocate memory" in text or "out of memory" in text
