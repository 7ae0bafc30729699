"""What one training run is told: optimisation, precision, validation, what is kept, the device.

Reading a recipe and choosing defaults for a person is the caller's business; nothing here trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: Fields that cannot change the trained weights: a run may be resumed with other values.
WITHOUT_EFFECT = frozenset(
    {"checkpoint_every", "keep_best", "keep_last", "milestones", "log_every", "device"}
)


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one run; all counts are optimiser steps unless said otherwise."""

    steps: int = 100_000
    batch: int = 16  # crops in a micro-batch; for the sampler, the loop only records it
    accumulate: int = 1  # micro-batches in one optimiser step
    crop: int = 64  # side of an LR crop (px); for the sampler, the loop only records it
    learning_rate: float = 2e-4
    min_learning_rate: float = 1e-7  # where the cosine ends
    warmup: int = 500
    weight_decay: float = 0.0  # never on parameters of one dimension
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # largest global gradient norm; 0 switches clipping off
    ema: float = 0.999
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    select: Literal["best", "last"] = "best"  # which averaged weights are shipped
    validate_every: int = 1000
    seed: int = 42
    checkpoint_every: int = 500
    keep_best: int = 1
    keep_last: int = 1
    milestones: tuple[int, ...] = ()
    log_every: int = 50
    device: str = "auto"  # auto, cpu, cuda or mps

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above "
                f"learning_rate {self.learning_rate}: lower it"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}: give a decay in [0, 1)")

    def identity(self) -> dict[str, Any]:
        """Everything that decides the trained weights, as plain numbers, strings and lists."""
        fields = {k: v for k, v in asdict(self).items() if k not in WITHOUT_EFFECT}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each field that differs between two identities, as `name saved -> now`."""
    names = [*saved, *(name for name in now if name not in saved)]
    return [
        f"{name} {saved.get(name)} -> {now.get(name)}"
        for name in names
        if saved.get(name) != now.get(name)
    ]
