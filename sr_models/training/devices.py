"""What each kind of device may do in training, and accelerate opened accordingly.

All rules for CUDA, CPU and Apple's MPS are the table in `device_policy`. Two environment variables
belong to MPS: PYTORCH_ENABLE_MPS_FALLBACK=1 lets the CPU compute operators that MPS lacks; torch
reads it while it is imported, so `sr_models/__init__.py` sets it on a Mac, unless it is set.
PYTORCH_MPS_HIGH_WATERMARK_RATIO is how much memory torch may take, as a share of what the system
recommends; 1.7 when unset, and left to the user: where memory runs out although the Mac has some, a
larger value helps, and 0 lifts the limit at the risk of the whole system.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin

from sr_models.device import pick_device

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class DevicePolicy:
    """How a run uses its device."""

    device: str  # cuda, cpu or mps
    precision: Precision  # of the forward pass; the rest is fp32
    pinned: bool  # batches are copied from page-locked memory
    ahead: int  # batches made early, on another thread; 0: made in turn, on the loop's own
    tf32: bool  # fp32 products may be rounded to TF32


def device_policy(device: str, precision: Precision) -> DevicePolicy:
    """The rules for a device type (cuda, cpu, mps) that is asked for a precision.

    - CUDA has every precision; fp32 means fp32, so TF32 is off there.
    - A CPU trains in fp32: whether it has bf16 depends on the model of the processor, and a result
      must not.
    - MPS trains in fp32, since half precision was never tried on one. Its memory is the CPU's, so
      pinning gains nothing, and no second thread uses torch beside it.

    Raises ValueError for another device type.
    """
    if device == "cuda":
        return DevicePolicy("cuda", precision, pinned=True, ahead=3, tf32=precision != "fp32")
    if device == "cpu":
        return DevicePolicy("cpu", "fp32", pinned=False, ahead=3, tf32=False)
    if device == "mps":
        return DevicePolicy("mps", "fp32", pinned=False, ahead=0, tf32=False)
    raise ValueError(f"device {device!r} is not one of cpu, cuda, mps")


def find_policy(device: str, precision: Precision) -> DevicePolicy:
    """The policy for this machine; `device` may be auto.

    A precision that is not to be had falls back to fp32 with one warning. Raises ValueError for a
    device that is not there.
    """
    policy = device_policy(pick_device(device).type, precision)
    if policy.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        policy = replace(policy, precision="fp32", tf32=False)
    if policy.precision != precision:
        log.warning("precision %s: %s does not have it, training in fp32", precision, policy.device)
    return policy


@contextmanager
def opened(policy: DevicePolicy) -> Iterator[Accelerator]:
    """An Accelerator that follows the policy; TF32 is afterwards as it was.

    One process may train several times with different settings, which accelerate alone forbids.
    """
    # accelerate keeps device and precision in process-wide state and refuses a second choice.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = policy.tf32
    torch.backends.cudnn.allow_tf32 = policy.tf32
    try:
        yield Accelerator(
            mixed_precision="no" if policy.precision == "fp32" else policy.precision,
            cpu=policy.device == "cpu",
            # The loop accumulates by itself; an explicit plugin keeps environment variables out.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
