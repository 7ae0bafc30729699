"""The state of a training run: everything the next step depends on, as one checkpoint content.

The schedule and the sampler are functions of the step and have no state; files are in
`checkpoints.py`, the steps themselves in `loop.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.training.determinism import random_state, set_random_state
from sr_models.training.ema import Ema
from sr_models.training.settings import TrainSettings, differences

log = logging.getLogger(__name__)

FORMAT = 2  # of the checkpoint content


class CheckpointMismatchError(ValueError):
    """A checkpoint in the work folder belongs to another run."""


@dataclass
class Run:
    """A network in training, with what was measured so far."""

    network: nn.Module
    ema: Ema
    optimizer: Any  # accelerate's wrapper of a torch optimiser
    scaler: torch.amp.GradScaler | None
    settings: TrainSettings
    step: int = 0  # optimiser steps done
    history: list[dict[str, float]] = field(default_factory=list)
    best: list[tuple[float, int]] = field(default_factory=list)  # (PSNR-Y, step), best first
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def remember(self, psnr_y: float, total: float, rate: float) -> bool:
        """Add a validation of the averaged weights; True when it is among the best so far."""
        self.history.append(
            {"step": self.step, "psnr_y": psnr_y, "total": total, "learning_rate": rate}
        )
        ranked = sorted([*self.best, (psnr_y, self.step)], key=lambda b: (-b[0], b[1]))
        self.best = ranked[: self.settings.keep_best]  # of equals, the earlier
        if self.best[0][1] == self.step:
            self.best_state = self.ema.state()
        return (psnr_y, self.step) in self.best

    def shipped(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The averaged weights that `select` asks for, and the validation they come from."""
        if self.settings.select == "last":
            return self.ema.state(), self.history[-1]
        step = self.best[0][1]
        return self.best_state, next(h for h in self.history if h["step"] == step)

    def kept(self) -> set[int]:
        """The steps whose checkpoints stay for good, beside the last few: best and milestones."""
        return {step for _, step in self.best} | set(self.settings.milestones)

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors, numbers, strings, lists and dictionaries."""
        return {
            "format": FORMAT,
            "settings": self.settings.identity(),
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "best_state": self.best_state,
            "network": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "random": random_state(),
        }

    def restore(self, path: Path, saved: Mapping[str, Any]) -> None:
        """Take over the content of the checkpoint at `path`, and torch's random state with it.

        Raises CheckpointMismatchError for other settings or another network.
        """
        mend = f"train in another folder, or delete {path.parent} to start over"
        if saved.get("format") != FORMAT:
            raise CheckpointMismatchError(
                f"{path} has format {saved.get('format')}, not {FORMAT}: {mend}"
            )
        if changed := differences(saved["settings"], self.settings.identity()):
            raise CheckpointMismatchError(
                f"{path} has other settings ({', '.join(changed)}): {mend}"
            )
        if changed := differences(_shapes(saved["network"]), _shapes(self.network.state_dict())):
            raise CheckpointMismatchError(f"{path} is of another network ({changed[0]}): {mend}")
        self.network.load_state_dict(saved["network"])
        self.ema.network.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        set_random_state(saved["random"])
        self.step, self.history = saved["step"], saved["history"]
        self.best, self.best_state = saved["best"], saved["best_state"]
        log.info("resumed %s", path)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}
