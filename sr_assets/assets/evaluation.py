"""The stages that measure: quality and cost of experts and models, the controls, the leaderboard.

Only names, inputs and recipe slices are here; what a stage does is in `sr_assets/evaluation/`. A
recipe without benchmarks has none of these stages, and only one whose degradation is random has
those that measure by kind of damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from sr_assets.assets.lr_drawn import process_of
from sr_assets.evaluation.baselines import evaluate_baselines
from sr_assets.evaluation.benchmark import lr_modules, lr_settings
from sr_assets.evaluation.damage_board import damage_keys
from sr_assets.evaluation.expert_cost import measure_expert_cost
from sr_assets.evaluation.expert_damage import measure_expert_damage
from sr_assets.evaluation.experts import evaluate_expert, evaluate_expert_x8
from sr_assets.evaluation.leaderboard import make_leaderboard, row_names
from sr_assets.evaluation.measuring import with_metrics
from sr_assets.evaluation.model_cost import measure_model_cost
from sr_assets.evaluation.model_damage import measure_model_damage
from sr_assets.evaluation.models import evaluate_model, evaluate_model_x8
from sr_assets.evaluation.self_ensemble import self_ensemble_rows
from sr_assets.lineage.slices import network_modules
from sr_assets.lineage.stage import Ref, Stage
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import StudentModel
from sr_assets.report.page import templates_digest

BASELINES, LEADERBOARD = "evaluation/baselines", "evaluation/leaderboard"
_BRONZE = "bronze/images"


def stages(recipe: Recipe) -> list[Stage]:
    """Evaluations, costs, controls and the leaderboard; nothing for a recipe without benchmarks.

    Raises:
        StageError: an expert or a model has a name that the report needs, or the recipe asks for
            the self-ensemble of one that is not there.
    """
    if not recipe.benchmarks:
        return []
    row_names(recipe)
    turned = [name for _, name in self_ensemble_rows(recipe).values()]
    return [
        *(with_metrics(recipe, _expert(recipe, name)) for name in recipe.experts),
        *(_expert_cost(recipe, name) for name in recipe.experts),
        *(with_metrics(recipe, _model(recipe, name)) for name in recipe.models),
        *(_model_cost(recipe, name) for name in recipe.models),
        *(with_metrics(recipe, _self_ensemble(recipe, name)) for name in turned),
        *_by_damage(recipe),
        with_metrics(recipe, _baselines(recipe)),
        _leaderboard(recipe),
    ]


def _expert(recipe: Recipe, name: str) -> Stage:
    return Stage(
        key=f"expert/{name}/evaluation",
        description=f"Expert {name} measured on a benchmark, and its pictures.",
        group=f"expert_{name}",
        run=partial(evaluate_expert, name=name),
        modules=(
            "sr_assets.evaluation.experts",
            *network_modules(recipe.experts[name]),
        ),
        kinds=frozenset({"pytorch"}),
        partitions="benchmark",
        partition_modules=partial(lr_modules, recipe),
        partition_settings=partial(lr_settings, recipe),
        inputs=lambda benchmark: (Ref(_BRONZE, benchmark), Ref(f"expert/{name}/weights")),
        settings={
            "scale": recipe.scale,
            f"experts.{name}.features": recipe.expert_as_cached(name).features,
            f"experts.{name}.dtype": recipe.experts[name].dtype,
        },
        pool="gpu",
    )


def _model(recipe: Recipe, name: str) -> Stage:
    return Stage(
        key=f"model/{name}/evaluation",
        description=f"Model {name} measured on a benchmark, and its pictures.",
        group=f"model_{name}",
        run=partial(evaluate_model, name=name),
        modules=(
            "sr_assets.evaluation.models",
            *network_modules(recipe.models[name]),
        ),
        kinds=frozenset({"pytorch"}),
        partitions="benchmark",
        partition_modules=partial(lr_modules, recipe),
        partition_settings=partial(lr_settings, recipe),
        inputs=partial(_model_inputs, recipe, name),
        settings={"scale": recipe.scale},
        pool="gpu",
    )


def _model_inputs(recipe: Recipe, name: str, benchmark: str | None) -> Iterator[Ref]:
    yield Ref(_BRONZE, benchmark)
    yield Ref(f"model/{name}/checkpoint")
    for expert in recipe.experts_of(name):
        yield Ref(f"expert/{expert}/evaluation", benchmark)


def _self_ensemble(recipe: Recipe, name: str) -> Stage:
    """The stage that measures an expert or model like its own, as the mean over eight turns."""
    if name in recipe.experts:
        own, run = _expert(recipe, name), partial(evaluate_expert_x8, name=name)
    else:
        own, run = _model(recipe, name), partial(evaluate_model_x8, name=name)
    return replace(
        own,
        key=f"{own.key.removesuffix('evaluation')}self_ensemble",
        description=f"The mean over 8 flips and transposes of {name}, measured on a benchmark.",
        run=run,
    )


def _expert_cost(recipe: Recipe, name: str) -> Stage:
    return Stage(
        key=f"expert/{name}/cost",
        description=f"Multiply-adds and seconds of expert {name} for a megapixel of output.",
        group=f"expert_{name}",
        run=partial(measure_expert_cost, name=name),
        modules=("sr_assets.evaluation.expert_cost", *network_modules(recipe.experts[name])),
        kinds=frozenset({"pytorch"}),
        inputs=lambda _: (Ref(f"expert/{name}/weights"),),
        settings={f"experts.{name}.dtype": recipe.experts[name].dtype},
        pool="gpu",
    )


def _model_cost(recipe: Recipe, name: str) -> Stage:
    return Stage(
        key=f"model/{name}/cost",
        description=f"Multiply-adds and seconds of model {name} for a megapixel of output.",
        group=f"model_{name}",
        run=partial(measure_model_cost, name=name),
        modules=("sr_assets.evaluation.model_cost", *network_modules(recipe.models[name])),
        kinds=frozenset({"pytorch"}),
        inputs=lambda _: (Ref(f"model/{name}/checkpoint"),),
        pool="gpu",
    )


def _by_damage(recipe: Recipe) -> list[Stage]:
    """Nothing for a recipe whose LR is all made in one way."""
    if not recipe.gold.random:
        return []
    experts = [_expert_damage(recipe, name) for name in recipe.experts]
    return [*experts, *(_model_damage(recipe, name) for name in recipe.models)]


def _expert_damage(recipe: Recipe, name: str) -> Stage:
    return Stage(
        key=f"expert/{name}/damage",
        description=f"Expert {name} measured on every held-out patch in each of its degraded "
        "versions, by kind of damage, from its caches.",
        group=f"expert_{name}",
        run=partial(measure_expert_damage, name=name, **_damage_arguments(recipe)),
        modules=("sr_assets.evaluation.expert_damage",),
        kinds=frozenset({"parquet"}),
        inputs=lambda _: _held_out(recipe, (name,)),
        settings=_damage_settings(recipe),
    )


def _model_damage(recipe: Recipe, name: str) -> Stage:
    def inputs(_: str | None) -> Iterable[Ref]:
        yield Ref(f"model/{name}/checkpoint")
        yield from _held_out(recipe, recipe.experts_of(name))

    return Stage(
        key=f"model/{name}/damage",
        description=f"Model {name} measured on every held-out patch in each of its degraded "
        "versions, by kind of damage.",
        group=f"model_{name}",
        run=partial(measure_model_damage, name=name, **_damage_arguments(recipe)),
        modules=("sr_assets.evaluation.model_damage", *network_modules(recipe.models[name])),
        kinds=frozenset({"pytorch", "parquet"}),
        inputs=inputs,
        settings=_damage_settings(recipe),
        pool="gpu",
    )


def _held_out(recipe: Recipe, experts: Iterable[str]) -> Iterator[Ref]:
    """Held-out samples, and what the experts made of them."""
    for dataset in measured_datasets(recipe):
        yield Ref("silver/patches", dataset)
        yield Ref("gold/pairs", dataset)
        yield from (Ref(f"expert/{expert}/cache", dataset) for expert in experts)


def _damage_arguments(recipe: Recipe) -> dict[str, Any]:
    return {"datasets": measured_datasets(recipe), "process": process_of(recipe)}


def _damage_settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "scale": recipe.scale,
        "datasets": list(measured_datasets(recipe)),
        # Of a preset too: its ranges are what kinds are split by.
        "gold.degradation": process_of(recipe).model_dump(mode="json"),
    }


def measured_datasets(recipe: Recipe) -> tuple[str, ...]:
    """The datasets on whose held-out patches rows are measured by kind of damage.

    All that a model of the recipe trains on, the same for every row so that rows can be compared;
    those meant for training where there is no model.
    """
    trained = [recipe.training_datasets(model.datasets) for model in recipe.models.values()]
    wanted = {name for names in trained or [recipe.training_datasets()] for name in names}
    return tuple(name for name in recipe.datasets if name in wanted)


def _baselines(recipe: Recipe) -> Stage:
    def inputs(benchmark: str | None) -> Iterable[Ref]:
        yield Ref(_BRONZE, benchmark)
        for expert in recipe.experts:
            yield Ref(f"expert/{expert}/evaluation", benchmark)
            for dataset in recipe.training_datasets():
                yield Ref("silver/patches", dataset)
                yield Ref(f"expert/{expert}/cache", dataset)

    mixes = ", the mean of the experts and their best fixed mix" if recipe.experts else ""
    return Stage(
        key=BASELINES,
        description=f"The controls, measured on a benchmark: bicubic{mixes}.",
        group="baselines",
        run=evaluate_baselines,
        modules=("sr_assets.evaluation.baselines",),
        kinds=frozenset({"image"}),
        partitions="benchmark",
        partition_modules=partial(lr_modules, recipe),
        partition_settings=partial(lr_settings, recipe),
        inputs=inputs,
        settings={
            "scale": recipe.scale,
            "experts": list(recipe.experts),
            "datasets": list(recipe.training_datasets()),
        },
    )


def _leaderboard(recipe: Recipe) -> Stage:
    def inputs(_: str | None) -> Iterable[Ref]:
        yield from (Ref(f"expert/{name}/cost") for name in recipe.experts)
        yield from (Ref(f"model/{name}/cost") for name in recipe.models)
        for benchmark in recipe.benchmarks:
            yield Ref(BASELINES, benchmark)
            yield from (Ref(f"expert/{name}/evaluation", benchmark) for name in recipe.experts)
            yield from (Ref(f"model/{name}/evaluation", benchmark) for name in recipe.models)
            yield from (Ref(key, benchmark) for key, _ in self_ensemble_rows(recipe).values())
        yield from (Ref(key) for key in damage_keys(recipe).values())

    return Stage(
        key=LEADERBOARD,
        description="Every row side by side: numbers, checks and a page to look at.",
        group="leaderboard",
        run=make_leaderboard,
        modules=("sr_assets.evaluation.leaderboard",),
        kinds=frozenset({"html"}),
        inputs=inputs,
        settings={
            "name": recipe.name,
            "scale": recipe.scale,
            "benchmarks": list(recipe.benchmarks),
            "experts": list(recipe.experts),
            "evaluation.crops": recipe.evaluation.crops,
            "evaluation.crop_size": recipe.evaluation.crop_size,
            "report templates": templates_digest(),
            **_checked(recipe),
        },
    )


def _checked(recipe: Recipe) -> dict[str, Any]:
    """What the checks read of every model: its kind, its experts and whether it has a control."""
    found: dict[str, Any] = {"models": list(recipe.models)}
    for name, model in recipe.models.items():
        found[f"models.{name}.kind"] = model.kind
        if experts := recipe.experts_of(name):
            found[f"models.{name}.experts"] = list(experts)
        if isinstance(model, StudentModel):
            found[f"models.{name}.control"] = model.control
    return found
