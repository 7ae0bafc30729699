"""How networks that need LR alone are trained against HR.

The networks are `sr_models/networks.py`; what a student learns beside HR is `students.py`, the run
around both is `training.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sr_assets.assets.training import Trainee, against_hr
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import UpscalerModel

if TYPE_CHECKING:
    from torch import Tensor, nn


def upscaler_trainee(recipe: Recipe, model: UpscalerModel) -> Trainee:
    """The network of a model, trained against HR; validation shows bicubic beside it."""
    sizes = (1, 1)

    def build() -> nn.Module:
        from sr_models.experts.loading import size_requirements
        from sr_models.networks import build_network
        from sr_models.training.quantisation import check_quantisable

        nonlocal sizes
        network = build_network(model.network.architecture, recipe.scale, model.network.args)
        sizes = size_requirements(network)
        if model.train.crop % sizes[1]:
            raise ValueError(
                f"{model.network.architecture} takes LR sides that are multiples of {sizes[1]}: "
                f"set train.crop to one, not {model.train.crop}"
            )
        if model.quantisation_aware:
            check_quantisable(network)
        return network

    def forward(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        from sr_models.experts.running import run_padded
        from sr_models.training.quantisation import fake_quantised

        with fake_quantised(network) if model.quantisation_aware else nullcontext():
            # A crop fits; the patches of validation have any size.
            return run_padded(network, batch["lr"], recipe.scale, sizes)

    def prepare(network: nn.Module) -> None:
        from sr_models.training.quantisation import prepare

        if model.quantisation_aware:
            prepare(network, model.kept_in_float)

    def finish(network: nn.Module) -> dict[str, Any]:
        from sr_models.training.quantisation import take_ranges

        return {"ranges": take_ranges(network)} if model.quantisation_aware else {}

    def rivals(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        from sr_models.degradations.bicubic import upscale

        return {"bicubic": upscale(batch["lr"], recipe.scale)}

    return Trainee(
        architecture=model.network.architecture,
        args=model.network.args,
        build=build,
        forward=forward,
        losses=against_hr,
        rivals=rivals,
        caches={},
        prepare=prepare,
        finish=finish,
    )
