"""Schedule-free Adan: Adan's preconditioned direction, averaged iterates in place of a schedule.

Plain Adan and the other schedule-free optimisers come from libraries: see `optimizers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class AdanScheduleFree(torch.optim.Optimizer):
    """Adan (Xie et al. 2022) inside schedule-free averaging (Defazio et al. 2024).

    Gradients g are taken at y = (1 - b1) z + b1 x. With d the change of g since the last step,

        v = b2 v + (1 - b2) d,    n = b3 n + (1 - b3) (g + b2 d)^2
        u = (g + b2 v') / (sqrt(n') + eps) + weight_decay y
        z = z - lr u,             x = (1 - c) x + c z

    where v' and n' are corrected for their start at zero and c = lr_max^2 / sum(lr_max^2) gives the
    steps of a warm-up less weight. The average over x stands in for Adan's average over g, so b1
    moves there; betas are factors of the old value (1 - beta in Adan's paper). It is z that moves
    by the preconditioned u, so that the scale of the gradients does not matter.

    In training mode the parameters hold y, in evaluation mode x; `step` needs training mode.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 < betas[0] < 1:
            raise ValueError(f"the first of betas is {betas[0]}: schedule-free needs one in (0, 1)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        counters = {"train_mode": False, "k": 0, "lr_max": 0.0, "weight_sum": 0.0}
        super().__init__(params, {**defaults, **counters})

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged iterates x into the parameters."""
        self._move(False, lambda b1: 1 - 1 / b1)

    @torch.no_grad()
    def train(self) -> None:
        """Put y, where gradients are taken, into the parameters."""
        self._move(True, lambda b1: 1 - b1)

    def _move(self, train_mode: bool, weight: Callable[[float], float]) -> None:
        for group in self.param_groups:
            if group["train_mode"] == train_mode:
                continue
            group["train_mode"] = train_mode
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight(group["betas"][0]))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step with the gradients that are there."""
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("AdanScheduleFree.step in evaluation mode: call train() before")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["k"] += 1
            group["lr_max"] = max(group["lr_max"], group["lr"])
            weight = group["lr_max"] ** 2
            group["weight_sum"] += weight
            share = weight / group["weight_sum"] if group["weight_sum"] else 0.0
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group, share)
        return loss

    def _update(self, y: Tensor, g: Tensor, group: dict[str, Any], share: float) -> None:
        b1, b2, b3 = group["betas"]
        k, lr = group["k"], group["lr"]
        state = self.state[y]
        if not state:
            state["z"] = y.clone()
            state["change"] = torch.zeros_like(y)
            state["square"] = torch.zeros_like(y)
            state["before"] = g.clone()
        change, square, z = state["change"], state["square"], state["z"]
        difference = g - state["before"]
        state["before"].copy_(g)
        change.lerp_(difference, 1 - b2)
        ahead = difference.mul_(b2).add_(g)
        square.mul_(b3).addcmul_(ahead, ahead, value=1 - b3)
        root = (square / (1 - b3**k)).sqrt_().add_(group["eps"])
        direction = change.mul(b2 / (1 - b2**k)).add_(g).div_(root)
        if group["weight_decay"]:
            direction.add_(y, alpha=group["weight_decay"])
        # y of the new x and z, written in the old y and z.
        y.lerp_(z, share).add_(direction, alpha=lr * (b1 * (1 - share) - 1))
        z.sub_(direction, alpha=lr)
