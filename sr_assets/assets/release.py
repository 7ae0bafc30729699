"""Release: a model that passes its checks becomes an immutable version in the registry.

A model that fails them gets a decision that says why, and nothing enters the registry. What a
version is on disk is `stores/registry.py`; the checks themselves are `checks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from upath import UPath

from sr_assets.assets.checks import DESCRIPTIONS, CheckOutcome, release_checks
from sr_assets.assets.export import DESCRIPTION, REPORT, weights_digest
from sr_assets.evaluation.results import (
    BICUBIC,
    CONVEX,
    MEAN,
    Score,
    results_from_json,
    side_by_side,
)
from sr_assets.lineage.stage import Ref, Stage, StageContext
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import PlainModel, StudentModel
from sr_assets.report.model_card import CardFacts, render_card
from sr_assets.storage import Output
from sr_assets.stores.registry import CARD, FOLDER, publish, versions

DECISION = "release.json"
_COMPLETE = "complete"
_COMPLETE_MEANS = "Every file that the recipe asks for was exported."


def stages(recipe: Recipe) -> list[Stage]:
    """One release for each model that the recipe releases."""
    return [_stage(recipe, name) for name in released_models(recipe)]


def released_models(recipe: Recipe) -> tuple[str, ...]:
    """The models that `release.models` names; every fusion and student when it is left out."""
    if recipe.release.models is not None:
        return tuple(dict.fromkeys(recipe.release.models))
    return tuple(n for n, m in recipe.models.items() if not isinstance(m, PlainModel))


def _stage(recipe: Recipe, name: str) -> Stage:
    def inputs(_: str | None) -> Iterable[Ref]:
        yield Ref(f"model/{name}/export")
        yield from (Ref(f"expert/{e}/weights") for e in _experts_behind(recipe, name))
        for benchmark in recipe.benchmarks:
            for asset in _evaluations(recipe, name).values():
                yield Ref(asset, benchmark)

    return Stage(
        key=f"model/{name}/release",
        description=f"Publishes {name} to the registry when it passes its checks.",
        group=f"model_{name}",
        run=partial(_run, name),
        modules=("sr_assets.assets.release",),
        kinds=frozenset({"markdown"}),
        inputs=inputs,
        settings=_settings(recipe, name),
        checks={n: DESCRIPTIONS[n] for n in _check_names(recipe, name)}
        | {_COMPLETE: _COMPLETE_MEANS},
    )


def _check_names(recipe: Recipe, name: str) -> list[str]:
    """The checks that this kind of model has to pass: what they say of no numbers at all."""
    return [outcome.name for outcome in release_checks(recipe, name, {}, None)]


def _evaluations(recipe: Recipe, name: str) -> dict[str, str]:
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


def _settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What the checks and the card read of the recipe."""
    model = recipe.models[name]
    behind = [n for n in _chain(recipe, name) if n in recipe.models]
    datasets = _datasets_behind(recipe, name)
    found: dict[str, Any] = {
        "benchmarks": list(recipe.benchmarks),
        "export.onnx": recipe.export.onnx,
        f"models.{name}.kind": model.kind,
        "teachers": _teachers(recipe, name),
        **{f"models.{m}.licence": recipe.models[m].licence for m in behind},
        **{f"datasets.{d}.licence": recipe.datasets[d].licence for d in datasets},
        **{f"experts.{e}.licence": expert.licence for e, expert in recipe.experts.items()},
    }
    if experts := recipe.experts_of(name):
        found[f"models.{name}.experts"] = list(experts)
    if isinstance(model, StudentModel):
        found[f"models.{name}.control"] = model.control
    return found


def _run(name: str, context: StageContext) -> dict[str, Any]:
    recipe = context.recipe
    export = context.input(f"model/{name}/export")
    description, report = export.read_json(DESCRIPTION), export.read_json(REPORT)
    scores = _scores(context, name)
    registry = _root(context) / FOLDER
    images = _images(context, name)
    last = _last_release(registry, name, recipe.scale, images, export.data_version)
    outcomes = [
        *release_checks(recipe, name, scores, last),
        _complete(recipe, report),
    ]
    reasons = [f"{o.name}: {o.reason}" for o in outcomes if not o.passed]
    checks = [outcome.to_json() for outcome in outcomes]
    card = render_card(_facts(context, name, description, report, scores, checks))
    version: int | None = None
    metadata: dict[str, Any] = {}
    if not reasons:
        release = publish(
            registry,
            {**_export_files(export, report), CARD: card.encode()},
            {
                **{k: description[k] for k in ("model", "kind", "architecture", "scale")},
                "parameters": description["parameters"],
                "licence": description["licence"],
                "content": export.data_version,
                "data": report["data"],
                "code_version": report["code_version"],
                "metrics": scores.get(name, {}),
                "benchmarks": images,
            },
        )
        version = release.manifest.version
        metadata = {"version": version, "registry": {"path": str(release.path)}}
        context.log(f"{name}@{version} is in {release.path}")
    else:
        context.log(f"{name} is not released: {'; '.join(reasons)}")
    decision = {
        "model": name,
        "released": not reasons,
        "version": version,
        "reasons": reasons,
        "checks": checks,
        "export": export.data_version,
    }
    context.output.write_json(DECISION, decision)
    context.output.write_bytes(CARD, card.encode())
    return {
        "released": not reasons,
        **metadata,
        **({"reasons": reasons} if reasons else {}),
        "checks": checks,
        "card": {"md": card},
    }


def _root(context: StageContext) -> UPath:
    """The folder of all outputs: above the address and the parts of the asset's key."""
    return context.output.final.parents[len(context.ref.asset.split("/"))]


def _scores(context: StageContext, name: str) -> dict[str, dict[str, Score]]:
    """Row -> benchmark -> mean score."""
    found: dict[str, dict[str, Score]] = {}
    for benchmark in context.recipe.benchmarks:
        rows = {}
        for row, asset in _evaluations(context.recipe, name).items():
            folder = f"{row}/" if row in (BICUBIC, MEAN, CONVEX) else ""
            written = context.input(asset, benchmark).read_json(f"{folder}results.json")
            rows[row] = results_from_json(written)
        for row, score in side_by_side(rows).items():
            found.setdefault(row, {})[benchmark] = score
    return found


def _images(context: StageContext, name: str) -> dict[str, str]:
    """Benchmark -> data version of the images that the model was measured on."""
    found = {}
    for benchmark in context.recipe.benchmarks:
        inputs = context.input(f"model/{name}/evaluation", benchmark).marker.get("inputs", {})
        found[benchmark] = inputs[str(Ref("bronze/images", benchmark))]
    return found


def _last_release(
    registry: UPath, name: str, scale: int, images: Mapping[str, str], content: str
) -> dict[str, Score] | None:
    """The scores of the newest release of this scale on benchmarks of the same images.

    A benchmark is known by its images, so that another name for it hides no loss. The newest
    version is passed over when it is of this very `content`: a kill came between publishing it and
    saying so. None: there is no such release.
    """
    released = [r.manifest for r in versions(registry, name) if r.manifest.scale == scale]
    if released and released[-1].content == content:
        released.pop()
    if not released:
        return None
    last = released[-1]
    known = {data: last.metrics[b] for b, data in last.benchmarks.items() if b in last.metrics}
    return {b: known[data] for b, data in images.items() if data in known}


def _complete(recipe: Recipe, report: Mapping[str, Any]) -> CheckOutcome:
    onnx = report["onnx"]
    if recipe.export.onnx and "error" in onnx:
        return CheckOutcome(
            _COMPLETE, False, f"no ONNX file: {onnx['error']}; or set export.onnx to false"
        )
    return CheckOutcome(_COMPLETE, True, f"{len(report['files'])} files")


def _facts(
    context: StageContext,
    name: str,
    description: Mapping[str, Any],
    report: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Score]],
    checks: list[dict[str, Any]],
) -> CardFacts:
    recipe = context.recipe
    experts = _experts_behind(recipe, name)
    return CardFacts(
        description=description,
        files=report["files"],
        onnx=report["onnx"],
        data={d: recipe.datasets[d].licence for d in _datasets_behind(recipe, name)},
        experts={e: recipe.experts[e].licence for e in experts},
        expert_weights={e: weights_digest(context.input(f"expert/{e}/weights")) for e in experts},
        teachers={
            teacher: (above, (recipe.models.get(teacher) or recipe.experts[teacher]).licence)
            for teacher, above in _teachers(recipe, name).items()
        },
        versions=report["data"],
        rows=scores,
        checks=checks,
    )


def _teachers(recipe: Recipe, name: str) -> dict[str, int]:
    """Those a model learnt from, then their teachers, and so on -> students in between."""
    found: dict[str, int] = {}
    nearest, above = list(recipe.teachers_of(name)), 0
    while nearest:
        found |= dict.fromkeys((t for t in nearest if t not in found), above)
        students = [t for t in nearest if t in recipe.models]
        nearest = [t for s in students for t in recipe.teachers_of(s) if t not in found]
        above += 1
    return found


def _chain(recipe: Recipe, name: str) -> list[str]:
    """A model and all it learnt from."""
    return [name, *_teachers(recipe, name)]


def _datasets_behind(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Datasets that a model or one of its teachers was trained on."""
    models = [recipe.models[n] for n in _chain(recipe, name) if n in recipe.models]
    return tuple(dict.fromkeys(d for m in models for d in recipe.training_datasets(m.datasets)))


def _experts_behind(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Experts whose pictures or features went into a model, directly or through its teachers."""
    found: list[str] = []
    for each in _chain(recipe, name):
        model = recipe.models.get(each)
        found += [each] if model is None else recipe.experts_of(each)
        if isinstance(model, StudentModel) and model.features:
            found += model.features.experts
    return tuple(dict.fromkeys(found))


def _export_files(export: Output, report: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: export.read_bytes(name) for name in report["files"]}
