"""Release: a model that passes its checks becomes an immutable version in the registry.

A model that fails them gets a decision that says why, and nothing enters the registry. What a
version is on disk is `stores/registry.py`; the checks themselves are `checks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

from upath import UPath

from sr_assets.assets.checks import DESCRIPTIONS, CheckOutcome, release_checks
from sr_assets.assets.export import REPORT, held_back
from sr_assets.assets.release_facts import (
    benchmark_versions,
    card_facts,
    evaluations,
    experts_behind,
    mean_scores,
    packages,
    settings,
)
from sr_assets.assets.release_pictures import strips
from sr_assets.assets.release_upstream import upstream
from sr_assets.evaluation.provenance import made_with
from sr_assets.evaluation.results import Score
from sr_assets.lineage.code_version import digest_of
from sr_assets.lineage.slices import slice_of
from sr_assets.lineage.stage import Ref, Stage, StageContext
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import PlainModel, StudentModel
from sr_assets.recipe.public import public_settings, public_text
from sr_assets.report.front_matter import evaluation_files, front_matter
from sr_assets.report.model_card import CardFacts, render_card
from sr_assets.report.model_json import json_card, openmodeldb
from sr_assets.stores.registry import CARD, publish, registry_folder, versions

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
        yield from (Ref(f"expert/{e}/weights") for e in experts_behind(recipe, name))
        for benchmark in recipe.benchmarks:
            for asset in evaluations(recipe, name).values():
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


def _settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What the checks and the cards read of the recipe, and what decides where a release goes."""
    model = recipe.models[name]
    found: dict[str, Any] = {
        "benchmarks": list(recipe.benchmarks),
        **slice_of(recipe.export, "export"),
        "release.version": recipe.release.version,
        "release.registry": recipe.release.registry,
        f"models.{name}.kind": model.kind,
        **settings(recipe, name),
    }
    if experts := recipe.experts_of(name):
        found[f"models.{name}.experts"] = list(experts)
    if isinstance(model, StudentModel):
        found[f"models.{name}.control"] = model.control
    return found


def _run(name: str, context: StageContext) -> dict[str, Any]:
    recipe = context.recipe
    export = context.input(f"model/{name}/export")
    report = export.read_json(REPORT)
    scores = mean_scores(context, name)
    registry = registry_folder(recipe, _root(context))
    images = benchmark_versions(context, name)
    last = _last_release(registry, name, recipe.scale, images, export.data_version)
    outcomes = [
        *release_checks(recipe, name, scores, last),
        _complete(report),
    ]
    reasons = [f"{o.name}: {o.reason}" for o in outcomes if not o.passed]
    checks = [outcome.to_json() for outcome in outcomes]
    shown = strips(context, name)
    pictures = {file: png for file, (_, png) in shown.items()}
    facts = card_facts(context, name, scores, checks, [picture for picture, _ in shown.values()])
    version: str | None = None
    metadata: dict[str, Any] = {}
    if not reasons:
        release = publish(
            registry,
            {n: export.read_bytes(n) for n in report["files"]} | pictures,
            _manifest(context, facts, scores, checks, images),
            cards=partial(_cards, facts),
            identity=_identity(facts, export.data_version, pictures),
            pinned=recipe.release.version,
        )
        version = release.manifest.version
        metadata = {"version": version, "registry": {"path": str(release.path)}}
        context.log(f"{release.manifest.name} is in {release.path}")
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
    card = render_card(facts, version or "")
    context.output.write_bytes(CARD, card.encode())
    for file, png in pictures.items():
        context.output.write_bytes(file, png)
    shown_card = render_card(replace(facts, pictures=()), version or "")  # Dagster has no pictures
    return {
        "released": not reasons,
        **metadata,
        **({"reasons": reasons} if reasons else {}),
        "checks": checks,
        "card": {"md": shown_card.removeprefix(front_matter(facts))},
    }


def _cards(facts: CardFacts, version: str, day: str) -> dict[str, bytes]:
    """The files that tell version and day."""
    name = facts.description["model"]
    return {
        CARD: render_card(facts, version).encode(),
        f"{name}_model_card.json": json_card(facts, version, day),
        f"{name}_openmodeldb.json": openmodeldb(facts, version, day),
        **evaluation_files(facts, day),
    }


def _identity(facts: CardFacts, content: str, pictures: Mapping[str, bytes]) -> str:
    """Digest of the export's content, the pictures and all that the cards say.

    Not of the files: those of weights name the code that trained them, and code that trains the
    same weights is no new release.
    """
    files = {name: {"sha256": "", "size": 0} for name in facts.files}
    told = {**_cards(replace(facts, files=files), "", ""), **pictures}
    return digest_of([content, {name: sha256(data).hexdigest() for name, data in told.items()}])


def _manifest(
    context: StageContext,
    facts: CardFacts,
    scores: Mapping[str, Mapping[str, Score]],
    checks: list[dict[str, Any]],
    images: Mapping[str, str],
) -> dict[str, Any]:
    """The fields of the manifest that the registry does not fill in."""
    d = facts.description
    name = d["model"]
    export = context.input(f"model/{name}/export")
    report = export.read_json(REPORT)
    return {
        **{k: d[k] for k in ("model", "kind", "architecture", "scale", "parameters", "licence")},
        "licences": {
            "data": dict(facts.data),
            "experts": dict(facts.experts),
            "teachers": {teacher: licence for teacher, (_, licence) in facts.teachers.items()},
        },
        "content": export.data_version,
        "weights": d["tensors"],
        "interface": {
            k: d[k] for k in ("architecture", "args", "scale", "experts", "expert_weights", "taps")
        },
        "data": report["data"],
        "code_version": report["code_version"],
        "upstream": upstream(_root(context), context.inputs),
        "recipe": public_text(context.recipe),
        "settings": public_settings(context.recipe),
        "metrics": scores.get(name, {}),
        "controls": {
            row: {b: {k: v for k, v in s.items() if k != "images"} for b, s in benchmarks.items()}
            for row, benchmarks in scores.items()
            if row != name
        },
        "checks": checks,
        "benchmarks": dict(images),
        "made_with": {**made_with(), **packages()},
    }


def _root(context: StageContext) -> UPath:
    """The folder of all outputs: above the address and the parts of the asset's key."""
    return context.output.final.parents[len(context.ref.asset.split("/"))]


def _last_release(
    registry: UPath, name: str, scale: int, images: Mapping[str, str], content: str
) -> dict[str, Score] | None:
    """The scores of the newest release of this scale on benchmarks of the same images.

    A benchmark is known by its images, so that another name for it hides no loss. The newest
    versions are passed over when they are of this very `content`: a kill came between publishing
    and saying so, or only the card changed since. None: there is no such release.
    """
    released = [r.manifest for r in versions(registry, name) if r.manifest.scale == scale]
    while released and released[-1].content == content:
        released.pop()
    if not released:
        return None
    last = released[-1]
    known = {data: last.metrics[b] for b, data in last.benchmarks.items() if b in last.metrics}
    return {b: known[data] for b, data in images.items() if data in known}


def _complete(report: Mapping[str, Any]) -> CheckOutcome:
    if missing := held_back(report):
        reason = f"{'; '.join(missing)}; or ask for fewer files in `export`"
        return CheckOutcome(_COMPLETE, False, reason)
    return CheckOutcome(_COMPLETE, True, f"{len(report['files'])} files")
