"""The stages of trained models: a checkpoint for each, and a cache for each that teaches a student.

Only names, inputs and recipe slices are here; what a stage does is in the module that it names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from sr_assets.assets.fusions import fusion_caches, open_fusion
from sr_assets.assets.gates import gate_trainee
from sr_assets.assets.gold import settings_of_degradation
from sr_assets.assets.model_cache import cache_model
from sr_assets.assets.online import fresh_lr
from sr_assets.assets.students import student_trainee
from sr_assets.assets.training import Trainee, train_model
from sr_assets.assets.training_together import joined, train_share
from sr_assets.assets.upscalers import upscaler_trainee
from sr_assets.lineage.slices import network_modules, slice_of
from sr_assets.lineage.stage import Given, Ref, Stage, StageContext, Tell
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import (
    FusionModel,
    GateModel,
    Model,
    PlainModel,
    StudentModel,
    UpscalerModel,
)
from sr_assets.storage import hash_file


def stages(recipe: Recipe) -> list[Stage]:
    """Checkpoints of all models of the recipe, and caches of those that a student learns from."""
    teachers = {teacher for name in recipe.models for teacher in recipe.teachers_of(name)}
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
        **slice_of(model, path, without=("licence", "control", "teachers", "perceptual")),
        f"{path}.datasets": list(datasets),
    }
    experts = recipe.experts_of(name)
    weights: tuple[str, ...] = ()
    online: tuple[str, ...] = ()
    caches: Mapping[str, str]
    if isinstance(model, FusionModel):
        caches, module = fusion_caches(recipe, name), "sr_assets.assets.fusions"
        weights = () if caches else experts
        settings |= {f"experts.{e}.features": recipe.experts[e].features for e in experts}
        settings |= {f"experts.{e}.dtype": recipe.experts[e].dtype for e in weights}
        how = "from their caches" if caches else "with each run live on every crop"
        what = f"Seven-phase fusion of {', '.join(experts)}, trained {how}."
    else:
        caches = _trainee(recipe, name, model).caches
        if isinstance(model, GateModel):
            module = "sr_assets.assets.gates"
            what = f"Fusion of {', '.join(experts)}, trained from their caches."
        elif isinstance(model, StudentModel):
            module = "sr_assets.assets.students"
            teachers = recipe.teachers_of(name)
            settings[f"{path}.teachers"] = list(teachers)
            what = f"{model.network.architecture} taught by {', '.join(teachers)} and HR."
        else:
            module = "sr_assets.assets.upscalers"
            what = f"{model.network.architecture} trained on LR and HR pairs."
        if isinstance(model, PlainModel) and model.online:
            online = (fresh_lr.__module__,)
            settings |= settings_of_degradation(recipe)
            what = f"{what[:-1]}, LR degraded anew each time."
    if experts:
        settings[f"{path}.experts"] = list(experts)

    def inputs(_: str | None) -> Iterable[Ref]:
        for dataset in datasets:
            yield Ref("silver/patches", dataset)
            yield Ref("gold/pairs", dataset)
            for asset in caches.values():
                yield Ref(asset, dataset)
        for expert in weights:
            yield Ref(f"expert/{expert}/weights")

    return Stage(
        key=f"model/{name}/checkpoint",
        description=f"{what} Its validation PSNR-Y is of held-out images put together from patches "
        "that were enlarged one by one.",
        group=f"model_{name}",
        run=partial(_train, name=name),
        modules=(module, *online, *network_modules(model)),
        kinds=frozenset({"pytorch"}),
        inputs=inputs,
        settings=settings,
        outside=lambda _: _start_fingerprint(model.train.start_from),
        pool="gpu",
    )


def _train(context: StageContext, name: str) -> dict[str, Any]:
    given, work = context.given, context.output.work
    return train_model(
        context, name, _trainee_of(given, name, work), partial(_share, given, name, work)
    )


def _share(given: Given, name: str, work: Path, tell: Tell) -> None:
    """What one of several processes does that train a model."""
    copies = work / "copies" / str(os.getpid())
    copies.mkdir(parents=True)
    with joined(given):
        train_share(given, name, _trainee_of(given, name, copies), work, tell)


def _trainee_of(given: Given, name: str, scratch: Path) -> Trainee:
    """How a model is trained; `scratch` is for copies of remote weights, of this process alone."""
    model = given.recipe.models[name]
    if isinstance(model, FusionModel):
        return open_fusion(given, name, model, scratch)
    return _trainee(given.recipe, name, model)


def _trainee(recipe: Recipe, name: str, model: GateModel | UpscalerModel) -> Trainee:
    if isinstance(model, GateModel):
        return gate_trainee(recipe, name, model)
    if isinstance(model, StudentModel):
        return student_trainee(recipe, name, model)
    trainee = upscaler_trainee(recipe, model)
    if isinstance(model, PlainModel) and model.online:
        return replace(trainee, fresh=fresh_lr(recipe))
    return trainee


def _start_fingerprint(file: str | None) -> dict[str, str]:
    """Tells changed weights to start from."""
    if file is None:
        return {}
    if not Path(file).is_file():
        return {file: "missing"}
    status = Path(file).stat()
    return {file: _digest(file, status.st_size, status.st_mtime_ns)}


@cache
def _digest(file: str, size: int, mtime_ns: int) -> str:
    """sha256 of a file, read again only when its size or time has changed."""
    return hash_file(Path(file))[:16]


def _cache(recipe: Recipe, name: str, model: Model) -> Stage:
    experts = recipe.experts_of(name)

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
        modules=("sr_assets.assets.model_cache", *network_modules(model)),
        kinds=frozenset({"pytorch", "zarr"}),
        partitions="dataset",
        inputs=inputs,
        pool="gpu",
    )
