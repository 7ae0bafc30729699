"""torch.compile for the shape of the tiles, in fp32 and in bfloat16.

Compiling a network in training is `sr_models/training/compiling.py`.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sr_models.export.fusing import with_plain_convolutions
from sr_models.inference.backends.backend import Backend, Run, Subject
from sr_models.inference.backends.eager import (
    BF16,
    CHANNELS_LAST,
    channels_last_copy,
    without_bf16,
)
from sr_models.inference.backends.shapes import ByShape
from sr_models.one_line import one_line

#: Tiles that run uncompiled first: compiling takes as long as many of them.
_AFTER = 3


def _without_compiler(subject: Subject) -> str | None:
    kind = next(subject.expert.model.parameters()).device.type
    if kind == "cuda":
        there = importlib.util.find_spec("triton") is not None
        return None if there else "torch.compile needs triton for a GPU: pip install triton"
    if kind != "cpu":
        return f"torch.compile has not been tried on {kind}"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # Inductor's own class moves between versions
        return (
            f"torch.compile needs a C++ compiler ({one_line(error)[:200]}): install g++ or clang++"
        )
    return None


def _without_either(subject: Subject) -> str | None:
    return without_bf16(subject) or _without_compiler(subject)


def _fp32(subject: Subject) -> Run:
    return _steady(subject, CHANNELS_LAST.prepare(subject))


def _bf16(subject: Subject) -> Run:
    kind = next(subject.expert.model.parameters()).device.type

    def in_bf16(call: Run) -> Run:
        def forward(lr: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16):
                return call(lr)

        return forward

    return _steady(subject, BF16.prepare(subject), in_bf16)


def _steady(subject: Subject, general: Run, around: Callable[[Run], Run] = lambda run: run) -> Run:
    """`general` until a shape has come `_AFTER` times, then a program compiled for it."""
    call = subject.expert.call
    model = _layout(subject.folded.model)

    def special(shape: tuple[int, ...]) -> Run:
        def network(lr: Tensor) -> Tensor:
            return call(model, lr)

        run = around(torch.compile(network, dynamic=False))
        try:
            run(torch.zeros(shape, device=next(model.parameters()).device))
        except Exception as error:  # Dynamo, Inductor and Triton share no base class
            warnings.warn(
                f"torch.compile fails ({one_line(error)[:200]}): this picture goes on without it",
                stacklevel=2,
            )
            return general
        return run

    return ByShape(general, special, _AFTER)


def _layout(network: nn.Module) -> nn.Module:
    # On a CPU Inductor's own choice of layout was faster than channels last by 1.1 to 1.5.
    on_cpu = next(network.parameters()).device.type == "cpu"
    plain = with_plain_convolutions(copy.deepcopy(network))
    return plain if on_cpu else channels_last_copy(network)


COMPILE = Backend("compile", "exact", _without_compiler, _fp32, _AFTER + 1)
COMPILE_BF16 = Backend("compile-bf16", "near", _without_either, _bf16, _AFTER + 1)
