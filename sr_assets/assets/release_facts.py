"""What a release says of a model: gathered from the recipe, the export and the evaluations.

What it is written into is `report/`; deciding on the release is `release.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sr_assets.assets.checks import NO_REGRESSION
from sr_assets.assets.export import DESCRIPTION, REPORT, weights_digest
from sr_assets.evaluation.results import (
    BICUBIC,
    CONVEX,
    MEAN,
    Score,
    results_from_json,
    side_by_side,
)
from sr_assets.lineage.stage import Ref, StageContext
from sr_assets.recipe.models import HubWeights, Recipe
from sr_assets.recipe.networks import PlainModel, StudentModel
from sr_assets.recipe.sources import HubSource
from sr_assets.report.model_card import CardFacts, Picture


def card_facts(
    context: StageContext,
    name: str,
    scores: Mapping[str, Mapping[str, Score]],
    checks: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture],
) -> CardFacts:
    """Everything that the cards of model `name` say.

    Args:
        context: of its release.
        name: a model of the recipe.
        scores: as `mean_scores`.
        checks: outcomes of the checks.
        pictures: strips that are released with it.
    """
    recipe, model = context.recipe, context.recipe.models[name]
    export = context.input(f"model/{name}/export")
    description, report = export.read_json(DESCRIPTION), export.read_json(REPORT)
    experts, data = experts_behind(recipe, name), datasets_behind(recipe, name)
    return CardFacts(
        description=description,
        files=report["files"],
        onnx=report["onnx"],
        data={d: recipe.datasets[d].licence for d in data},
        experts={e: recipe.experts[e].licence for e in experts},
        expert_weights={e: weights_digest(context.input(f"expert/{e}/weights")) for e in experts},
        teachers={
            teacher: (above, (recipe.models.get(teacher) or recipe.experts[teacher]).licence)
            for teacher, above in teachers(recipe, name).items()
        },
        versions=report["data"],
        rows=scores,
        # Against the last release, not about this one: the same files have the same card.
        checks=[check for check in checks if check["name"] != NO_REGRESSION],
        plain_spandrel=not description["experts"] and not _ours(description["architecture"]),
        pictures=pictures,
        author=recipe.release.author,
        hub=recipe.release.repository(name),
        hub_data=_repositories(recipe.datasets[d].source for d in data),
        base_models=_repositories(recipe.experts[e].source for e in experts),
        hub_benchmarks={
            b: (benchmark.source.repo, benchmark.source.revision)
            for b, benchmark in recipe.benchmarks.items()
            if isinstance(benchmark.source, HubSource)
        },
        other_lr=_other_lr(recipe),
        iterations=model.train.steps,
        batch_size=model.train.batch,
        hr_size=model.train.crop * recipe.scale,
        degraded=recipe.gold.random,
        online=isinstance(model, PlainModel) and model.online,
    )


def settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What the cards read of the recipe: dotted path -> JSON value."""
    train = recipe.models[name].train
    sources = [(f"benchmarks.{b}", benchmark) for b, benchmark in recipe.benchmarks.items()]
    sources += [(f"datasets.{d}", recipe.datasets[d]) for d in datasets_behind(recipe, name)]
    behind = [n for n in chain(recipe, name) if n in recipe.models]
    found: dict[str, Any] = {
        "teachers": teachers(recipe, name),
        "gold.random": recipe.gold.random,
        "benchmarks.lr": _other_lr(recipe),
        "release.author": recipe.release.author,
        "release.hub": recipe.release.repository(name),
        **{f"models.{name}.train.{k}": getattr(train, k) for k in ("steps", "batch", "crop")},
        **{f"models.{m}.licence": recipe.models[m].licence for m in behind},
    }
    for path, dataset in sources:
        found[f"{path}.licence"] = dataset.licence
        found[f"{path}.source.kind"] = dataset.source.kind
        if isinstance(dataset.source, HubSource):
            found[f"{path}.source.repo"] = dataset.source.repo
            found[f"{path}.source.revision"] = dataset.source.revision
    for expert in recipe.experts:
        found[f"experts.{expert}.licence"] = recipe.experts[expert].licence
        found[f"experts.{expert}.source.repo"] = getattr(
            recipe.experts[expert].source, "repo", None
        )
    return found


def packages() -> dict[str, str]:
    """Versions of what exports and releases, beside those that `made_with` tells; name -> text."""
    found = {}
    for package in ("sr-distillery", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _other_lr(recipe: Recipe) -> dict[str, str]:
    """Benchmark whose LR is not made by bicubic reduction -> what it is."""
    return {
        name: "its own LR" if benchmark.lr is not None else "LR damaged like the training data"
        for name, benchmark in recipe.benchmarks.items()
        if benchmark.lr is not None or benchmark.damaged
    }


def _ours(architecture: str) -> bool:
    """Whether spandrel knows the architecture from this project alone."""
    from sr_models.registry import modules_of

    return architecture == "EDSR" or bool(modules_of(architecture, {}))


def _repositories(sources: Iterable[object]) -> list[str]:
    named = [s.repo for s in sources if isinstance(s, HubSource | HubWeights)]
    return list(dict.fromkeys(named))


def teachers(recipe: Recipe, name: str) -> dict[str, int]:
    """Those a model learnt from, then their teachers, and so on -> students in between."""
    found: dict[str, int] = {}
    nearest, above = list(recipe.teachers_of(name)), 0
    while nearest:
        found |= dict.fromkeys((t for t in nearest if t not in found), above)
        students = [t for t in nearest if t in recipe.models]
        nearest = [t for s in students for t in recipe.teachers_of(s) if t not in found]
        above += 1
    return found


def chain(recipe: Recipe, name: str) -> list[str]:
    """A model and all it learnt from."""
    return [name, *teachers(recipe, name)]


def datasets_behind(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Datasets that a model or one of its teachers was trained on."""
    models = [recipe.models[n] for n in chain(recipe, name) if n in recipe.models]
    return tuple(dict.fromkeys(d for m in models for d in recipe.training_datasets(m.datasets)))


def experts_behind(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Experts whose pictures or features went into a model, directly or through its teachers."""
    found: list[str] = []
    for each in chain(recipe, name):
        model = recipe.models.get(each)
        found += [each] if model is None else recipe.experts_of(each)
        if isinstance(model, StudentModel) and model.features:
            found += model.features.experts
    return tuple(dict.fromkeys(found))


def mean_scores(context: StageContext, name: str) -> dict[str, dict[str, Score]]:
    """Row -> benchmark -> mean score."""
    found: dict[str, dict[str, Score]] = {}
    for benchmark in context.recipe.benchmarks:
        rows = {}
        for row, asset in evaluations(context.recipe, name).items():
            folder = f"{row}/" if row in (BICUBIC, MEAN, CONVEX) else ""
            written = context.input(asset, benchmark).read_json(f"{folder}results.json")
            rows[row] = results_from_json(written)
        for row, score in side_by_side(rows).items():
            found.setdefault(row, {})[benchmark] = score
    return found


def benchmark_versions(context: StageContext, name: str) -> dict[str, str]:
    """Benchmark -> data version of the images that the model was measured on."""
    found = {}
    for benchmark in context.recipe.benchmarks:
        inputs = context.input(f"model/{name}/evaluation", benchmark).marker.get("inputs", {})
        found[benchmark] = inputs[str(Ref("bronze/images", benchmark))]
    return found


def evaluations(recipe: Recipe, name: str) -> dict[str, str]:
    """Row of the card -> asset that measured it: controls first, the model itself last."""
    rows = {BICUBIC: "evaluation/baselines"}
    for expert in recipe.experts:
        rows[expert] = f"expert/{expert}/evaluation"
    if recipe.experts:
        rows |= dict.fromkeys((MEAN, CONVEX), "evaluation/baselines")
    for other in filter(None, (*recipe.teachers_of(name), recipe.control_of(name))):
        rows.setdefault(other, f"model/{other}/evaluation")
    rows[name] = f"model/{name}/evaluation"
    return rows
