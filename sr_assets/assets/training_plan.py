"""A recipe's training section in optimiser steps: settings of the loop, and the loss of each step.

What cannot be meant is refused by the recipe itself; the loop is `sr_models/training/loop.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from sr_assets.recipe.training import Train

if TYPE_CHECKING:
    from sr_models.training.settings import TrainSettings


@dataclass(frozen=True)
class LossSchedule:
    """Weights of the loss terms in each stage of a run."""

    weights: tuple[Mapping[str, float], ...]
    ends: tuple[int, ...]
    """The first step after each stage but the last."""

    @property
    def names(self) -> tuple[str, ...]:
        """The terms that have a weight in any stage."""
        return tuple(dict.fromkeys(n for stage in self.weights for n, w in stage.items() if w))

    def stage(self, step: int) -> int:
        """The stage, from 0, of optimiser step number `step`, counted from 0."""
        from sr_models.training.stages import stage_at

        return stage_at(step, self.ends)

    def describe(self, stage: int) -> str:
        """One line for the log, such as `loss stage 2 of 3 (from step 80): l1 0.75, swt 0.2`."""
        begin = self.ends[stage - 1] if stage else 0
        terms = ", ".join(f"{n} {w:g}" for n, w in self.weights[stage].items() if w)
        return f"loss stage {stage + 1} of {len(self.weights)} (from step {begin}): {terms}"


def steps_per_epoch(samples: int, train: Train) -> int:
    """Optimiser steps in which all `samples` are seen once, the last one begun counted whole."""
    return math.ceil(samples / (train.batch * train.accumulate))


def loss_schedule(train: Train, samples: int) -> LossSchedule:
    """The stages of `train`, or its one loss, with their ends in optimiser steps."""
    if not train.stages:
        return LossSchedule((train.loss.model_dump(),), ())
    unit = _unit(train, samples)
    ends = [stage.until * unit for stage in train.stages[:-1] if stage.until is not None]
    return LossSchedule(tuple(stage.loss.model_dump() for stage in train.stages), tuple(ends))


def train_settings(train: Train, samples: int, device: str) -> TrainSettings:
    """The settings of the loop for a run over `samples` training samples.

    With `epochs`, the fields that the recipe marks (time) are turned from epochs into steps.

    Raises:
        ValueError: settings that do not go together.
    """
    from sr_models.training.settings import TrainSettings

    unit = _unit(train, samples)
    known = {field.name for field in fields(TrainSettings)}
    given = {name: value for name, value in train if name in known}
    in_steps = {
        "steps": train.length * unit,
        "warmup": train.warmup * unit,
        "validate_every": train.validate_every * unit,
        "milestones": tuple(milestone * unit for milestone in train.milestones),
        "restart_first": train.restarts.first * unit,
        "restart_factor": train.restarts.factor,
    }
    return TrainSettings(**{**given, **in_steps, "device": device})


def _unit(train: Train, samples: int) -> int:
    return 1 if train.epochs is None else steps_per_epoch(samples, train)
