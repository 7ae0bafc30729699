"""What one training run is told: optimisation, precision, validation, what is kept, the device.

Reading a recipe and choosing defaults for a person is the caller's business; nothing here trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Optimizer = Literal[
    "adamw", "adam", "adan", "adamw_schedule_free", "adam_schedule_free", "adan_schedule_free"
]

#: Fields that cannot change the trained weights: a run may be resumed with other values.
WITHOUT_EFFECT = frozenset(
    {"checkpoint_every", "keep_best", "keep_last", "milestones", "pth", "log_every", "device"}
)


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one run; all counts are optimiser steps unless said otherwise."""

    steps: int = 100_000
    batch: int = 16  # crops in a micro-batch; for the sampler, the loop only records it
    accumulate: int = 1  # micro-batches in one optimiser step
    crop: int = 64  # side of an LR crop (px); for the sampler, the loop only records it
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-4
    schedule: Literal["cosine", "cosine_restarts", "constant"] = "cosine"
    restart_first: int = 50  # length of the first cycle of cosine_restarts
    restart_factor: int = 2  # each cycle is this many times the one before
    min_learning_rate: float = 1e-7  # where a cosine ends
    warmup: int = 500
    warmup_from: float = 0.0  # the rate before the first step
    weight_decay: float = 0.0  # never on parameters of one dimension
    betas: tuple[float, ...] | None = None  # None: those of the optimiser, see `optimizers.py`
    clip: float = 1.0  # largest global gradient norm; 0 switches clipping off
    ema: float = 0.999  # 0.9995 for runs of 100,000 steps and more
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    select: Literal["best", "last"] = "best"  # which averaged weights are shipped
    validate_every: int = 1000
    seed: int = 42
    checkpoint_every: int = 500
    keep_best: int = 5
    keep_last: int = 10
    milestones: tuple[int, ...] = ()
    pth: bool = False  # also write each checkpoint's weights as .pth with "params"
    log_every: int = 50
    device: str = "auto"  # auto, cpu, cuda or mps

    def __post_init__(self) -> None:
        counts = ("steps", "accumulate", "validate_every", "checkpoint_every", "log_every")
        for name in (*counts, "restart_first", "restart_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("min_learning_rate", "warmup_from"):
            if getattr(self, name) > self.learning_rate:
                raise ValueError(
                    f"{name} {getattr(self, name)} is above "
                    f"learning_rate {self.learning_rate}: lower it"
                )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}: give a decay in [0, 1)")
        if self.schedule_free and self.schedule != "constant":
            raise ValueError(
                f"schedule {self.schedule} with optimizer {self.optimizer}, which needs none: "
                "set it to constant"
            )

    @property
    def schedule_free(self) -> bool:
        """Whether the optimiser averages its iterates in place of a falling learning rate."""
        return self.optimizer.endswith("_schedule_free")

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
