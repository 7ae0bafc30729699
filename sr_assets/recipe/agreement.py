"""Whether the parts of a recipe fit together: names that exist, sizes that agree, no circles.

What one field allows is said by its own model; reading files and naming lines is `loading.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sr_assets.recipe.networks import (
    FusionModel,
    GateModel,
    Model,
    PlainModel,
    StudentModel,
    UpscalerModel,
    control_name,
    controls,
)
from sr_assets.recipe.strict import LONGEST_NAME
from sr_models.registry import modules, unknown
from sr_models.spandrel_architectures import NAMES

if TYPE_CHECKING:
    from sr_assets.recipe.models import Recipe

#: Rows that every report has.
_RESERVED = {"bicubic", "mean", "convex", "hr", "lr"}


def disagreements(recipe: Recipe) -> list[str]:
    """Every name that points at something which is not there, and what does not fit together.

    Each with the field it is about first, and the mend.
    """
    problems: list[str] = []
    both = set(recipe.datasets) & set(recipe.benchmarks)
    if both:
        problems.append(f"{sorted(both)} is a dataset and a benchmark: rename one")
    taken = _RESERVED & {*recipe.experts, *recipe.models}
    if taken:
        problems.append(f"{sorted(taken)} is a row of every report: rename that expert or model")
    both = set(recipe.experts) & set(recipe.models)
    if both:
        problems.append(f"{sorted(both)} is an expert and a model: rename one")
    if recipe.silver.patch_size % recipe.scale:
        problems.append(
            f"silver.patch_size {recipe.silver.patch_size} is no multiple of scale {recipe.scale}"
        )

    def known(path: str, name: str, names: object) -> None:
        options = sorted(names)  # type: ignore[call-overload]
        if name not in options:
            problems.append(f"{path}: {name!r} is not one of {options}")

    problems.extend(_lr_problems(recipe))
    if recipe.gold.variants > 1 and not recipe.gold.random:
        problems.append(
            f"gold.variants is {recipe.gold.variants}, but the bicubic degradation has one result "
            "only: set it to 1, or choose another gold.degradation"
        )
    for name, model in recipe.models.items():
        path = f"models.{name}"
        for dataset in model.datasets or ():
            known(f"{path}.datasets", dataset, recipe.datasets)
        if model.train.crop * recipe.scale > recipe.silver.patch_size:
            problems.append(
                f"{path}.train.crop {model.train.crop} is larger than an LR patch "
                f"({recipe.silver.patch_size // recipe.scale})"
            )
        if model.train.batch % recipe.compute.processes:
            problems.append(
                f"{path}.train.batch {model.train.batch} is no multiple of compute.processes "
                f"{recipe.compute.processes}: each process takes an equal share of it"
            )
        problems.extend(_augment_problems(f"{path}.train", recipe, model))
        if isinstance(model, UpscalerModel):
            problems.extend(_unknown_architecture(path, model.network.architecture))
        if isinstance(model, PlainModel) and model.online:
            problems.extend(_online_problems(f"{path}.online", recipe, model))
        if model.train.min_learning_rate > model.train.learning_rate:
            problems.append(
                f"{path}.train.min_learning_rate {model.train.min_learning_rate} is larger than "
                f"learning_rate {model.train.learning_rate}"
            )
        if isinstance(model, GateModel | FusionModel):
            if not recipe.experts:
                problems.append(f"{path}: a fusion needs at least one expert in `experts`")
            listed = model.experts if isinstance(model.experts, tuple) else ()
            for expert in listed:
                known(f"{path}.experts", expert, recipe.experts)
        if isinstance(model, StudentModel):
            problems.extend(_student_problems(path, recipe, name, model))
    for name in recipe.release.models or ():
        known("release.models", name, [*recipe.models, *controls(recipe.models)])
    if circle := _circle(recipe):
        problems.append(f"models: {' -> '.join(circle)} teach each other in a circle")
    return problems


def _augment_problems(path: str, recipe: Recipe, model: Model) -> list[str]:
    """Augmentation that cannot be done: no room for a crop, or caches that would not follow."""
    problems: list[str] = []
    train, patch = model.train, recipe.silver.patch_size // recipe.scale
    margin = train.augment.margin
    if train.crop <= patch < train.crop + 2 * margin:
        problems.append(
            f"{path}.augment.margin {margin} leaves {max(0, patch - 2 * margin)} px of an LR patch "
            f"({patch}), less than {path}.crop {train.crop}"
        )
    live = isinstance(model, FusionModel) and model.experts == "live"
    if train.augment.photometric and not live and not isinstance(model, PlainModel):
        mend = ", or train the fusion with `experts: live`" if model.kind == "fusion" else ""
        problems.append(
            f"{path}.augment.{train.augment.photometric[0]}: this model learns from cached "
            "pictures, which would not follow the changed LR (networks are not equivariant): "
            f"set it to 0{mend}"
        )
    return problems


def _lr_problems(recipe: Recipe) -> Iterator[str]:
    """LR that comes with the images, or that a benchmark is degraded to."""
    for name, dataset in recipe.datasets.items():
        if dataset.damaged:
            yield f"datasets.{name}.damaged: only a benchmark has it; gold degrades datasets"
        if dataset.lr and recipe.silver.stride % recipe.scale:
            yield (
                f"silver.stride {recipe.silver.stride} is no multiple of scale {recipe.scale}: "
                f"datasets.{name} has its own LR, whose pixels patches must begin at"
            )
    for name, dataset in recipe.benchmarks.items():
        if dataset.damaged and not recipe.gold.random:
            yield f"benchmarks.{name}.damaged: gold.degradation is bicubic: leave damaged out"
        if dataset.damaged and dataset.lr:
            yield f"benchmarks.{name}.damaged: it brings its own LR: leave one of both out"


def _online_problems(path: str, recipe: Recipe, model: PlainModel) -> Iterator[str]:
    """Nothing to draw anew: one LR of each patch, or LR that came with the images."""
    if not recipe.gold.random:
        yield f"{path}: gold.degradation bicubic has one result only: choose another, or leave it"
    for name in recipe.training_datasets(model.datasets):
        if name in recipe.datasets and recipe.datasets[name].lr:
            yield f"{path}: datasets.{name} brings its own LR: leave it out of {path[:-7]}.datasets"


def _unknown_architecture(path: str, name: str) -> Iterator[str]:
    """Told before anything is made; arguments are checked when the network is built."""
    ours = modules("architecture")
    if name.lower() not in ours and name not in NAMES:
        yield f"{path}.network: {unknown('architecture', name, [*ours, *NAMES])}"


def _student_problems(path: str, recipe: Recipe, name: str, model: StudentModel) -> Iterator[str]:
    """Teachers that are not there or cannot be told, and a control whose name is taken."""
    models = (*recipe.models, *controls(recipe.models))
    others = sorted([*recipe.experts, *(n for n in models if n != name)])
    for teacher in model.teachers or ():
        if teacher not in others:
            yield f"{path}.teachers: {teacher!r} is not one of {others}"
    fusions = [n for n, m in recipe.models.items() if isinstance(m, FusionModel)]
    gates = [n for n, m in recipe.models.items() if isinstance(m, GateModel)]
    if model.teachers is None and len(fusions or gates) != 1:
        what = f"{len(fusions or gates)} fusions" if fusions or gates else "no fusion"
        yield f"{path}.teachers: the recipe has {what}: name the teachers, some of {others}"
    for expert in model.features.experts if model.features else ():
        if expert not in recipe.experts:
            yield f"{path}.features.experts: {expert!r} is not one of {sorted(recipe.experts)}"
        elif not recipe.experts[expert].features:
            yield f"{path}.features.experts: set experts.{expert}.features, so that they are cached"
    control = control_name(name)
    made = controls(recipe.models).get(control)
    if made and len(control) > LONGEST_NAME:
        yield (
            f"{path}.control: {control} is longer than {LONGEST_NAME} characters: shorten the "
            "student's name"
        )
    if made and recipe.models.get(control, made) != made:
        yield f"models.{control}: {path}.control makes a model of that name: rename this one"
    if made and control in recipe.experts:
        yield f"experts.{control}: {path}.control makes a model of that name: rename this one"


def _circle(recipe: Recipe) -> list[str]:
    """Models that wait for one another; empty when there are none."""

    def walk(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        model = recipe.models.get(name)
        teachers = (model.teachers or ()) if isinstance(model, StudentModel) else ()
        found = (walk(teacher, [*above, name]) for teacher in teachers)
        return next(filter(None, found), [])

    return next(filter(None, (walk(name, []) for name in recipe.models)), [])
