"""`model/<name>/perceptual`: a model's pictures of a benchmark refined by diffusion, and measured.

Only for models with a section `perceptual:`. Nothing reads it, no training, no leaderboard and no
release: what a diffusion model draws is not in the data. The pipeline is `sr_models/perceptual`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from upath import UPath

from sr_assets.evaluation.benchmark import BenchmarkImage, lr_modules, lr_settings
from sr_assets.evaluation.measuring import facts, measure_images, open_further, with_metrics
from sr_assets.evaluation.pixels import encode_png, read_png, to_tensor
from sr_assets.evaluation.results import Results, results_from_json, side_by_side
from sr_assets.lineage.slices import slice_of
from sr_assets.lineage.stage import Ref, Stage, StageContext
from sr_assets.perceptual import fingerprint, open_refinement
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.perceptual import Perceptual
from sr_assets.storage import Output

_RESULTS, _COMPARISON = "results.json", "comparison.json"


def stages(recipe: Recipe) -> list[Stage]:
    """One for each model with the section; nothing for a recipe without benchmarks."""
    if not recipe.benchmarks:
        return []
    return [
        with_metrics(recipe, _stage(recipe, name, model.perceptual))
        for name, model in recipe.models.items()
        if model.perceptual is not None
    ]


def _stage(recipe: Recipe, name: str, section: Perceptual) -> Stage:
    def inputs(benchmark: str | None) -> Iterable[Ref]:
        yield Ref("bronze/images", benchmark)
        yield Ref(f"model/{name}/evaluation", benchmark)

    path = f"models.{name}.perceptual"
    return Stage(
        key=f"model/{name}/perceptual",
        description=f"Pictures of {name} on a benchmark refined by diffusion, measured beside its "
        "own. Nothing is trained on them.",
        group=f"model_{name}",
        run=partial(refine_pictures, name=name),
        modules=("sr_assets.assets.perceptual",),
        kinds=frozenset({"pytorch", "image"}),
        partitions="benchmark",
        partition_modules=partial(lr_modules, recipe),
        partition_settings=partial(lr_settings, recipe),
        inputs=inputs,
        # Of the files, what is in them counts and not where they lie.
        settings={"scale": recipe.scale, **slice_of(section, path, without=("weights",))},
        outside=lambda _: fingerprint(section),
        pool="gpu",
    )


def refine_pictures(context: StageContext, name: str) -> dict[str, Any]:
    """Writes `sr/<picture>` of every image, `results.json` as an evaluation does, and
    `comparison.json`: metric -> {"own", "refined"}; returns metadata.

    Raises:
        StageError: files of the refinement are missing, or a picture is not finite.
    """
    section = context.recipe.models[name].perceptual
    assert section is not None
    own = context.input(f"model/{name}/evaluation", context.partition)
    refine = open_refinement(section, context.recipe.compute.device)
    further = open_further(context.recipe)
    if not further:
        context.log(
            "only what compares with HR is measured: set evaluation.metrics to lpips, dists, niqe"
        )

    def picture(image: BenchmarkImage, lr: np.ndarray) -> np.ndarray:
        from sr_models.metrics.images import to_uint8

        file = f"sr/{image.picture}"
        if context.output.finished(file):
            return read_png(Output(UPath(context.output.path), "", {}), file)
        rounded = to_uint8(refine(to_tensor(read_png(own, file)))[0])
        context.output.write_bytes(file, encode_png(rounded))
        return rounded

    scores = measure_images(context, picture, further)
    results = Results(name, "perceptual", scores, None, _note(section), facts=facts(further))
    context.output.write_json(_RESULTS, results.to_json())
    both = side_by_side({"own": results_from_json(own.read_json(_RESULTS)), "refined": results})
    means = {row: {**score.pop("metrics"), **score} for row, score in _scores(both).items()}
    compared = {
        metric: {row: means[row].get(metric) for row in means} for metric in means["refined"]
    }
    context.output.write_json(_COMPARISON, compared)
    return {**results.metadata(), "comparison": {"md": _markdown(compared, results.facts)}}


def _note(section: Perceptual) -> str:
    steps = "one step" if section.steps == 1 else f"{section.steps} steps"
    return (
        f"refined by diffusion in {steps}, {section.alpha:g} of the model's own picture, colours: "
        f"{section.colour}"
    )


def _scores(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The numbers of each row alone."""
    wanted = ("psnr_y", "ssim_y", "metrics")
    return {row: {key: score[key] for key in wanted} for row, score in rows.items()}


def _markdown(
    compared: Mapping[str, Mapping[str, float | None]], known: Mapping[str, Mapping[str, Any]]
) -> str:
    lines = ["| metric | own | refined |", "|---|---|---|"]
    for metric, values in compared.items():
        title = known.get(metric, {}).get("title", metric)
        shown = ("–" if value is None else f"{value:.4f}" for value in values.values())
        lines.append(f"| {title} | {' | '.join(shown)} |")
    return "\n".join(lines)
