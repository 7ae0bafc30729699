"""The optimisers by name, and the weights that a schedule-free one is judged by.

Learning rates are set from outside at every step; gradients, clipping and the loop are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from sr_models.training.adan import AdanScheduleFree
from sr_models.training.settings import TrainSettings

#: Decays of the averages where the settings name none. Those of Adan are factors of the old value,
#: as for Adam: 1 - beta of the paper.
DEFAULT_BETAS = {2: (0.9, 0.99), 3: (0.98, 0.92, 0.99)}


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of `settings` over what is trainable, in its training mode.

    Biases, norms and other parameters of one dimension do not decay. The decay is added to the
    gradient in `adam` and `adam_schedule_free`, and is decoupled (AdamW, Adan) in the others.

    Raises:
        ValueError: nothing is trainable, or `betas` are not as many as the optimiser takes.
    """
    trainable = [p for p in network.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the network has no trainable parameter")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    count = 3 if settings.optimizer.startswith("adan") else 2
    betas = settings.betas or DEFAULT_BETAS[count]
    if len(betas) != count:
        raise ValueError(
            f"betas are {len(betas)} numbers: optimizer {settings.optimizer} takes {count}"
        )
    optimizer: torch.optim.Optimizer = _make(settings.optimizer)(
        groups, lr=settings.learning_rate, betas=betas, eps=1e-8
    )
    if is_schedule_free(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights that it trains are not those to validate and keep."""
    return isinstance(optimizer, AdamWScheduleFree | AdanScheduleFree)


@contextmanager
def evaluation_weights(optimizer: Any) -> Iterator[None]:
    """Inside, the parameters are the averaged iterates of a schedule-free optimiser.

    Afterwards they are, to the bit, what they were: `eval` and `train` of the optimiser round, and
    how often somebody looks must not change the training. Does nothing for other optimisers.
    """
    if not is_schedule_free(optimizer):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with torch.no_grad():
        training = [p.clone() for p in parameters]
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()
            torch._foreach_copy_(parameters, training)


class AdamScheduleFree(AdamWScheduleFree):
    """Meta's schedule-free Adam, with the weight decay in the gradient as Adam has it."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step with the gradients that are there."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0
            for p in group["params"]:
                if decay and p.grad is not None:
                    p.grad.add_(p, alpha=decay)
        result: float | None = super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        return result


def _make(name: str) -> Callable[..., torch.optim.Optimizer]:
    if name == "adan":
        # Takes a second to import: its package brings a hundred optimisers along.
        from pytorch_optimizer.optimizer.adan import Adan

        return Adan
    return {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "adamw_schedule_free": AdamWScheduleFree,
        "adam_schedule_free": AdamScheduleFree,
        "adan_schedule_free": AdanScheduleFree,
    }[name]
