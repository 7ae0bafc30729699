"""How a gate is trained: on the cached pictures of its experts, against HR.

The network is `sr_models/fusion/gate.py`; the run around it is `training.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sr_assets.assets.training import Trainee, against_hr
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import GateModel

if TYPE_CHECKING:
    from torch import Tensor, nn


def gate_trainee(recipe: Recipe, name: str, model: GateModel) -> Trainee:
    """A gate over the model's experts; validation shows their mean and every one beside it."""
    experts = recipe.experts_of(name)
    args = {"width": model.width, "depth": model.depth}

    def build() -> nn.Module:
        from sr_models.fusion.gate import GateFusion

        return GateFusion(experts, recipe.scale, **args)

    def pictures(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: batch[f"sr/{name}"] for name in experts}

    def forward(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return network(batch["lr"], pictures(batch))

    def rivals(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        from sr_models.fusion.experts import expert_mean

        sr = pictures(batch)
        return {**sr, "mean": expert_mean(sr, experts)}

    return Trainee(
        architecture="GateFusion",
        args=args,
        build=build,
        forward=forward,
        losses=against_hr,
        rivals=rivals,
        caches={name: f"expert/{name}/cache" for name in experts},
        experts=experts,
    )
