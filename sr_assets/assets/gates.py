"""How a gate is trained: on the cached pictures of its experts, against HR.

The network is `sr_models/fusion/gate.py`; the run around it is `training.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sr_assets.assets.training import Trainee
from sr_assets.recipe.models import GateModel, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn


def gate_experts(recipe: Recipe, model: GateModel) -> tuple[str, ...]:
    """The experts of a gate, in the order of its weights: as listed, or all of the recipe."""
    return tuple(recipe.experts) if model.experts is None else tuple(dict.fromkeys(model.experts))


def gate_trainee(recipe: Recipe, model: GateModel) -> Trainee:
    """A gate over `gate_experts`; validation shows the mean and every expert beside it."""
    experts = gate_experts(recipe, model)
    weights = model.train.loss.model_dump()
    args = {"width": model.width, "depth": model.depth}

    def build() -> nn.Module:
        from sr_models.fusion.gate import GateFusion

        return GateFusion(experts, recipe.scale, **args)

    def pictures(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: batch[f"sr/{name}"] for name in experts}

    def forward(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return network(batch["lr"], pictures(batch))

    def losses(output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        from sr_models.losses.pixel import loss_terms

        return loss_terms(output, batch["hr"], weights, "hr/")

    def rivals(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        from sr_models.fusion.gate import expert_mean

        sr = pictures(batch)
        return {**sr, "mean": expert_mean(sr, experts)}

    return Trainee(
        architecture="GateFusion",
        args=args,
        build=build,
        forward=forward,
        losses=losses,
        rivals=rivals,
        caches={name: f"expert/{name}/cache" for name in experts},
        experts=experts,
    )
