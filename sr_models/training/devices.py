"""Opens accelerate on the device and precision that a run asks for, as far as the machine has them.

One process may train several times with different settings, which accelerate alone forbids.
"""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin

from sr_models.device import pick_device

log = logging.getLogger(__name__)


def open_accelerator(device: str, precision: str) -> Accelerator:
    """An Accelerator for `device` (auto, cpu, cuda, mps) and `precision` (fp32, bf16, fp16).

    A precision that the device lacks falls back to fp32 with one warning. Raises ValueError for a
    device that is not there.
    """
    device = pick_device(device).type
    if not has_precision(device, precision):
        log.warning("precision %s: %s does not have it, training in fp32", precision, device)
        precision = "fp32"
    # accelerate keeps device and precision in process-wide state and refuses a second choice.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device == "cpu",
        # The loop accumulates by itself; an explicit plugin keeps environment variables out.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def has_precision(device: str, precision: str) -> bool:
    """Whether `device` computes in `precision` in hardware.

    A CPU always trains in fp32: whether it has bf16 depends on the model of the processor, and a
    result must not.
    """
    if precision == "bf16" and device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "fp32" or device != "cpu"
