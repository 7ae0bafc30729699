"""The stages of trained models: a checkpoint for each, and a cache for each that teaches a student.

Only names, inputs and recipe slices are here; what a stage does is in the module that it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from sr_assets.assets.gates import gate_experts, gate_trainee
from sr_assets.assets.model_cache import cache_model
from sr_assets.assets.training import train_model
from sr_assets.assets.upscalers import upscaler_trainee
from sr_assets.lineage.slices import slice_of
from sr_assets.lineage.stage import Ref, Stage
from sr_assets.recipe.models import GateModel, Model, Recipe, StudentModel


def stages(recipe: Recipe) -> list[Stage]:
    """Checkpoints of all models of the recipe, and caches of those that a student learns from."""
    teachers = {m.teacher for m in recipe.models.values() if isinstance(m, StudentModel)}
    found = []
    for name, model in recipe.models.items():
        found.append(_checkpoint(recipe, name, model))
        if name in teachers:
            found.append(_cache(recipe, name, model))
    return found


def _checkpoint(recipe: Recipe, name: str, model: Model) -> Stage:
    path = f"models.{name}"
    datasets = recipe.training_datasets(model.datasets)
    settings = {
        "scale": recipe.scale,
        **slice_of(model, path, without=("licence", "control")),
        f"{path}.datasets": list(datasets),
    }
    if isinstance(model, GateModel):
        trainee, module = gate_trainee(recipe, model), "sr_assets.assets.gates"
        settings[f"{path}.experts"] = list(trainee.experts)
        what = f"Fusion of {', '.join(trainee.experts)}, trained from their caches."
    else:
        trainee, module = upscaler_trainee(recipe, model), "sr_assets.assets.upscalers"
        what = f"{model.network.architecture} trained on LR and HR pairs"
        what += f" and the pictures of {next(iter(trainee.caches))}." if trainee.caches else "."

    def inputs(_: str | None) -> Iterable[Ref]:
        for dataset in datasets:
            yield Ref("silver/patches", dataset)
            yield Ref("gold/pairs", dataset)
            for asset in trainee.caches.values():
                yield Ref(asset, dataset)

    return Stage(
        key=f"model/{name}/checkpoint",
        description=f"{what} Its validation PSNR-Y is of held-out images put together from patches "
        "that were enlarged one by one.",
        group=f"model_{name}",
        run=partial(train_model, name=name, model=model, trainee=trainee),
        modules=(module,),
        kinds=frozenset({"pytorch"}),
        inputs=inputs,
        settings=settings,
        pool="gpu",
    )


def _cache(recipe: Recipe, name: str, model: Model) -> Stage:
    experts = gate_experts(recipe, model) if isinstance(model, GateModel) else ()

    def inputs(dataset: str | None) -> Iterable[Ref]:
        yield Ref(f"model/{name}/checkpoint")
        yield Ref("gold/pairs", dataset)
        for expert in experts:
            yield Ref(f"expert/{expert}/cache", dataset)

    return Stage(
        key=f"model/{name}/cache",
        description=f"What {name} makes of every LR of a dataset, for students to learn from.",
        group=f"model_{name}",
        run=partial(cache_model, name=name),
        modules=("sr_assets.assets.model_cache",),
        kinds=frozenset({"pytorch", "zarr"}),
        partitions="dataset",
        inputs=inputs,
        pool="gpu",
    )
