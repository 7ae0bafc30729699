"""torch without a compiler: as loaded; folded with channels last; and that in bfloat16.

Kernels compiled for one shape are `compiled.py`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sr_models.export.fusing import with_plain_convolutions
from sr_models.inference.backends.backend import Backend, Run, Subject


def _nothing(subject: Subject) -> str | None:
    return None


def _as_loaded(subject: Subject) -> Run:
    expert = subject.expert
    return lambda lr: expert.call(expert.model, lr)


def _channels_last(subject: Subject) -> Run:
    model = channels_last_copy(subject.folded.model)
    call = subject.expert.call
    return lambda lr: call(model, lr.contiguous(memory_format=torch.channels_last))


def _bf16(subject: Subject) -> Run:
    run = _channels_last(subject)
    kind = next(subject.expert.model.parameters()).device.type

    def forward(lr: Tensor) -> Tensor:
        with torch.autocast(kind, torch.bfloat16):
            return run(lr)

    return forward


def channels_last_copy(network: nn.Module) -> nn.Module:
    """A copy of plain convolutions only, laid out for kernels that read all channels of a pixel."""
    plain = with_plain_convolutions(copy.deepcopy(network))
    if next(plain.parameters()).device.type == "mps":
        return plain  # its kernels have one layout, and the other has not been tried there
    return plain.to(memory_format=torch.channels_last)


def without_bf16(subject: Subject) -> str | None:
    """Why bfloat16 is not for this network on its device; None where it is."""
    if not subject.expert.bf16_safe:
        return f"{subject.expert.architecture} is not known to bear bfloat16"
    kind = next(subject.expert.model.parameters()).device.type
    if kind == "cpu":
        # Without instructions for it torch computes in fp32 and rounds: slower, and less exact.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        there = any(has for name, has in capabilities.items() if name.endswith("bf16"))
        return None if there else "this CPU has no bfloat16 arithmetic"
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return f"this {kind} device has no bfloat16 arithmetic"


TORCH = Backend("torch", "exact", _nothing, _as_loaded)
CHANNELS_LAST = Backend("channels-last", "exact", _nothing, _channels_last)
BF16 = Backend("bf16", "near", without_bf16, _bf16)
