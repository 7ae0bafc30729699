"""How networks that need LR alone are trained: plain ones against HR, students also on a teacher.

The networks are `sr_models/networks.py`; the run around them is `training.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sr_assets.assets.training import Trainee
from sr_assets.recipe.models import PlainModel, Recipe, StudentModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sr_models.losses.registry import LossTerms


def teacher_cache(recipe: Recipe, model: StudentModel) -> str:
    """Asset of the cache that a student learns from; its teacher is an expert or a model."""
    owner = "expert" if model.teacher in recipe.experts else "model"
    return f"{owner}/{model.teacher}/cache"


def upscaler_trainee(recipe: Recipe, model: PlainModel | StudentModel) -> Trainee:
    """A network of the recipe; validation shows bicubic, and a student's teacher, beside it.

    A student of teacher weight w minimises (1 - w) times its loss against HR plus w times the same
    loss against the teacher's picture.
    """
    caches: dict[str, str] = {}
    share, teacher = 0.0, ""
    if isinstance(model, StudentModel):
        share, teacher = model.teacher_weight, model.teacher
        caches = {teacher: teacher_cache(recipe, model)}
    sizes = (1, 1)

    def build() -> nn.Module:
        from sr_models.experts.loading import size_requirements
        from sr_models.networks import build_network

        nonlocal sizes
        network = build_network(model.network.architecture, recipe.scale, model.network.args)
        sizes = size_requirements(network)
        if model.train.crop % sizes[1]:
            raise ValueError(
                f"{model.network.architecture} takes LR sides that are multiples of {sizes[1]}: "
                f"set train.crop to one, not {model.train.crop}"
            )
        return network

    def forward(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        from sr_models.experts.running import run_padded

        # A crop fits; the patches of validation have any size.
        return run_padded(network, batch["lr"], recipe.scale, sizes)

    def losses(
        terms: LossTerms, output: Tensor, batch: dict[str, Tensor], weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        own = {name: weight * (1 - share) for name, weight in weights.items()}
        found = terms(output, batch["hr"], own, "hr/")
        if share:
            taught = {name: weight * share for name, weight in weights.items()}
            found |= terms(output, batch[f"sr/{teacher}"], taught, "teacher/")
        return found

    def rivals(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        from sr_models.degradations.bicubic import upscale

        sr = {name: batch[f"sr/{name}"] for name in caches}
        return {"bicubic": upscale(batch["lr"], recipe.scale), **sr}

    return Trainee(
        architecture=model.network.architecture,
        args=model.network.args,
        build=build,
        forward=forward,
        losses=losses,
        rivals=rivals,
        caches=caches,
    )
