"""The one interface of everything that can run a network, and what it is given to run.

Which of them is fastest on a machine is measured elsewhere (`sr_assets/bench.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from sr_models.experts.loading import Expert
from sr_models.experts.running import ExpertMemoryError, run_expert
from sr_models.inference.folding import folded

#: float32 [1, 3, h, w] in [0, 1] -> float32 [1, 3, scale h, scale w], not clamped.
Run = Callable[[Tensor], Tensor]
#: `exact` rounds as fp32 does; `near` computes in fewer bits.
Exactness = Literal["exact", "near"]
#: Largest |backend - torch fp32| of an exact backend, as ONNX export has it.
EXACT_TOLERANCE = 1e-4


class BackendError(Exception):
    """A backend cannot run this network here; one line that says why and what mends it."""


@dataclass(frozen=True)
class Subject:
    """A network that is to be run."""

    expert: Expert
    """Fused and in eval mode, on the device where it runs."""
    graphs: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    """`fp32` or `int8-cpu` -> reads the ONNX file that was made of the same weights."""
    cache: Path | None = None
    """Folder that keeps the graphs exported here; without it they are made each time."""

    @cached_property
    def folded(self) -> Expert:
        """The network in fewer operations, up to rounding; `expert` itself where it has no such."""
        return folded(self.expert)


@dataclass(frozen=True)
class Backend:
    """A way to run a network."""

    name: str
    exactness: Exactness
    lacking: Callable[[Subject], str | None]
    """Why it cannot run this network here; None where it can."""
    prepare: Callable[[Subject], Run]
    """What runs it. Its input has the sides that the network asks for (`Expert.minimum`,
    `Expert.multiple`). Raises BackendError."""
    warm_up: int = 1
    """Pictures of one shape after which it runs that shape as fast as it can."""
    integer: bool = False
    """Whether it needs a quantised file and loses more than rounding; never taken unasked."""


def open_backend(backend: Backend, subject: Subject) -> Run:
    """`subject` ready to run by `backend`: any size, on the device of its network.

    What `run_expert` promises of padding, memory and values that are not finite holds here too.
    Not for several threads at a time.

    Raises:
        BackendError: it cannot run this network here.
    """
    reason = backend.lacking(subject)
    if reason is not None:
        raise BackendError(f"backend {backend.name}: {reason}")
    run = backend.prepare(subject)

    def call(_: nn.Module, padded: Tensor) -> Tensor:
        try:
            return run(padded)
        except Exception as error:  # the runtimes have classes of their own for it
            if "alloc" in str(error).lower() or isinstance(error, MemoryError):
                raise ExpertMemoryError(f"backend {backend.name} is out of memory") from error
            raise

    expert = dataclasses.replace(subject.expert, call=call)
    return lambda lr: run_expert(expert, lr, batch=1).sr


def only_on_cpu(subject: Subject) -> str | None:
    """Why a runtime of the CPU is not for a network on another device."""
    kind = next(subject.expert.model.parameters()).device.type
    return None if kind == "cpu" else f"runs on the CPU, and the device is {kind}"
