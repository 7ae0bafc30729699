"""How a student is trained: on HR, on its teachers' cached pictures and on experts' features.

The network and its training against HR alone are `upscalers.py`, the losses
`sr_models/losses/distillation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sr_assets.assets.training import Trainee
from sr_assets.assets.upscalers import upscaler_trainee
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import StudentModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sr_models.losses.registry import LossTerms

Batch = dict[str, "Tensor"]

#: Name of the student's own features, in a module that has run and in the batch that it ran on.
_OWN = "features of the student"


def _caches(recipe: Recipe, name: str) -> dict[str, str]:
    """Teacher or expert of features -> asset of the cache that student `name` reads."""
    model = recipe.models[name]
    assert isinstance(model, StudentModel)
    featured = model.features.experts if model.features else ()
    names = dict.fromkeys((*recipe.teachers_of(name), *featured))
    return {n: f"{'expert' if n in recipe.experts else 'model'}/{n}/cache" for n in names}


def student_trainee(recipe: Recipe, name: str, model: StudentModel) -> Trainee:
    """A student; validation shows bicubic, its teachers and, of several, their mean beside it.

    With teacher weight w it minimises (1 - w) times its loss against HR, plus w times the same loss
    against the teachers: the mean over them or the one against their mean, as `teaching` says; plus
    the weighted L1 of the affinities of its features and experts'.
    """
    plain = upscaler_trainee(recipe, model)
    teachers, share = recipe.teachers_of(name), model.teacher_weight
    told, path = model.features, ""

    def build() -> nn.Module:
        nonlocal path
        network = plain.build()
        if told:
            path = _feature_path(network, told.module)
            _demand_no_padding(network, model.train.crop)
        return network

    def forward(network: nn.Module, batch: Batch) -> Tensor:
        output = plain.forward(network, batch)
        if told:
            batch[_OWN] = _kept_features(network, path)
        return output

    def losses(
        terms: LossTerms, output: Tensor, batch: Batch, weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        from sr_models.losses.distillation import affinity_loss, where_closer

        own = {term: weight * (1 - share) for term, weight in weights.items()}
        found = terms(output, batch["hr"], own, "hr/")
        pictures = _pictures(batch)
        for teacher, picture in pictures.items() if share else ():
            taught = {term: weight * share / len(pictures) for term, weight in weights.items()}
            if model.follow == "where_closer":
                picture = where_closer(picture, output, batch["hr"])
            prefix = "teacher/" if len(pictures) == 1 else f"teacher/{teacher}/"
            found |= terms(output, picture, taught, prefix)
        for expert in told.experts if told else ():
            assert told is not None
            alike = affinity_loss(batch[_OWN], batch[f"features/{expert}"])
            found[f"affinity/{expert}"] = told.weight * alike
        return found

    def _pictures(batch: Batch) -> dict[str, Tensor]:
        from sr_models.fusion.experts import expert_mean

        each = {teacher: batch[f"sr/{teacher}"] for teacher in teachers}
        if model.teaching == "each" or len(each) == 1:
            return each
        return {"mean": expert_mean(each, teachers)}

    def rivals(batch: Batch) -> dict[str, Tensor]:
        each = {teacher: batch[f"sr/{teacher}"] for teacher in teachers}
        return {**plain.rivals(batch), **each, **_pictures(batch)}

    return replace(
        plain,
        build=build,
        forward=forward,
        losses=losses,
        rivals=rivals,
        caches=_caches(recipe, name),
        features=told.experts if told else (),
    )


def _demand_no_padding(network: nn.Module, crop: int) -> None:
    """Raises ValueError where crops would be padded, and features be larger than an expert's."""
    from sr_models.experts.loading import size_requirements

    minimum, _ = size_requirements(network)
    if crop < minimum:
        raise ValueError(
            f"features need crops of at least {minimum} px: raise train.crop from {crop}"
        )


def _feature_path(network: nn.Module, module: str | None) -> str:
    """Path of the module whose output is compared, made to keep that output in every run.

    Raises:
        ValueError: there is no such module, or the architecture has none that is known.
    """
    from sr_models.networks import feature_module_of

    path = module or feature_module_of(network)
    if path is None:
        raise ValueError(
            "this architecture has no module whose features are known to compare: name one in "
            "`features.module`"
        )
    if path not in dict(network.named_modules()):
        raise ValueError(f"there is no module {path}: name another in `features.module`")

    # On the module that runs, not on this very one: the averaged copy of the network has its own.
    def keep(running: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        running.__dict__[_OWN] = output

    network.get_submodule(path).register_forward_hook(keep)
    return path


def _kept_features(network: nn.Module, path: str) -> Tensor:
    """What `path` gave in the run that has just ended.

    Raises:
        ValueError: nothing, or no map.
    """
    features = network.get_submodule(path).__dict__.pop(_OWN, None)
    if features is None:
        raise ValueError(f"{path} is not run as a module: name another in `features.module`")
    if getattr(features, "ndim", 0) != 4:
        raise ValueError(f"{path} gives no map [B, C, h, w]: name another in `features.module`")
    return features
