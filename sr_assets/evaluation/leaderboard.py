"""All rows side by side: the leaderboard, the models' checks, and the pictures of the report.

Measuring is done before; the layout of the page is `report/page.py`. Seconds were measured on some
machine on some day: they, and the page that shows them, are not content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sr_assets.assets.checks import quality_checks, scores_of, teachers_worth
from sr_assets.evaluation.cost import SECONDS, Cost, devices_of, read_cost, total_cost
from sr_assets.evaluation.crops import choose_crops
from sr_assets.evaluation.damage_board import damage_board
from sr_assets.evaluation.pixels import encode_png, read_png
from sr_assets.evaluation.results import (
    BICUBIC,
    CONVEX,
    MEAN,
    ImageScore,
    Results,
    Score,
    largest_offset,
    picture_names,
    results_from_json,
    side_by_side,
)
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.report.numbers import giga, three_figures
from sr_assets.report.page import render_page
from sr_assets.storage import Output

_THUMB = 128  # side that holds a thumbnail (px)
_BASELINES = "evaluation/baselines"


def make_leaderboard(context: StageContext) -> dict[str, Any]:
    """Writes `leaderboard.json`, `report.html` and the pictures it shows; returns metadata.

    Beside the content, `seconds.json` has row -> {"seconds" and "total_seconds" for one megapixel
    of output, "devices"} of every row with a network.

    Raises:
        StageError: two rows were measured on different images of one benchmark.
    """
    recipe = context.recipe
    found = {b: _results(context, b) for b in recipe.benchmarks}
    scores_on = {
        b: side_by_side({name: results for name, (results, _, _) in rows.items()})
        for b, rows in found.items()
    }
    costs = {name: _costs(context, name) for name in row_names(recipe)}
    rows = [_row(name, found, scores_on, *costs[name]) for name in row_names(recipe)]
    leaderboard: dict[str, Any] = {"recipe": recipe.name, "scale": recipe.scale, "rows": rows}
    scores = scores_of(leaderboard)
    kinds = {row["name"]: row["kind"] for row in rows}
    leaderboard["checks"] = [
        {
            "name": name,
            "kind": kinds[name],
            "outcomes": [outcome.to_json() for outcome in quality_checks(recipe, name, scores)],
        }
        for name in recipe.models
    ]
    total = sum(len(rows[0].images) for rows in _first_rows(found))
    with context.progress(str(context.ref), total) as advance:
        gallery = {}
        for benchmark, results in found.items():
            gallery[benchmark] = _gallery(context, benchmark, results, advance)
    if damage := damage_board(context):
        leaderboard["damage"] = damage
    context.output.write_json("leaderboard.json", leaderboard)
    speeds = {name: _speed(own, total) for name, (own, total) in costs.items() if total}
    context.output.write_json(SECONDS, speeds, content=False)
    page = render_page(leaderboard, gallery, speeds)
    context.output.write_bytes("report.html", page.encode(), content=False)
    gains = teachers_worth(leaderboard["checks"])
    for name, said in gains.items():
        context.log(f"{name}: {said['reason']}")
    return {
        **_numbers(rows),
        **{f"gain_{name}": said["numbers"]["gain"] for name, said in gains.items()},
        "rows": len(rows),
        "images": total,
        "checks_failed": sum(not o["passed"] for c in leaderboard["checks"] for o in c["outcomes"]),
        "table": {"md": _markdown(rows, speeds)},
        "report": {"path": str(context.output.final / "report.html")},
    }


def row_names(recipe: Recipe) -> list[str]:
    """The rows of a recipe's leaderboard: controls, experts, models, in that order.

    Raises:
        StageError: an expert or a model has the name of a control or of an original.
    """
    for section, names in (("experts", recipe.experts), ("models", recipe.models)):
        for name in names:
            if name in (BICUBIC, MEAN, CONVEX, "hr", "lr"):
                raise StageError(f"{section}.{name}: the report has a row of that name: rename it")
    mixes = [MEAN, CONVEX] if recipe.experts else []
    return [BICUBIC, *recipe.experts, *mixes, *recipe.models]


def _first_rows(found: Mapping[str, Mapping[str, tuple[Results, Output, str]]]) -> Any:
    """For each benchmark, the results of its rows in a list."""
    return ([results for results, _, _ in rows.values()] for rows in found.values())


def _results(context: StageContext, benchmark: str) -> dict[str, tuple[Results, Output, str]]:
    """Row -> its results, the output they are in and the folder inside that output."""
    recipe = context.recipe
    baselines = context.input(_BASELINES, benchmark)
    found = {}
    for name in row_names(recipe):
        if name in recipe.experts:
            output, folder = context.input(f"expert/{name}/evaluation", benchmark), ""
        elif name in recipe.models:
            output, folder = context.input(f"model/{name}/evaluation", benchmark), ""
        else:
            output, folder = baselines, f"{name}/"
        found[name] = (results_from_json(output.read_json(f"{folder}results.json")), output, folder)
    wanted = [image.name for image in found[BICUBIC][0].images]
    for name, (results, _, _) in found.items():
        if [image.name for image in results.images] != wanted:
            raise StageError(
                f"{name} was measured on other images of {benchmark}: run `srd build` again"
            )
    return found


def _costs(context: StageContext, name: str) -> tuple[Cost | None, Cost | None]:
    """What a row costs by itself, and with the experts that it needs."""
    recipe = context.recipe
    experts: Sequence[str] = ()
    own = None
    if name in recipe.experts:
        own = read_cost(context.input(f"expert/{name}/cost"))
    elif name in recipe.models:
        own = read_cost(context.input(f"model/{name}/cost"))
        experts = recipe.experts_of(name)
    elif name in (MEAN, CONVEX):
        experts = tuple(recipe.experts)
    needed = [read_cost(context.input(f"expert/{e}/cost")) for e in dict.fromkeys(experts)]
    return own, total_cost([*filter(None, [own]), *needed])


def _row(
    name: str,
    found: Mapping[str, Mapping[str, tuple[Results, Output, str]]],
    scores_on: Mapping[str, Mapping[str, Score]],
    own: Cost | None,
    total: Cost | None,
) -> dict[str, Any]:
    """One row of `leaderboard.json`; its multiply-adds are for one megapixel of output."""
    results = [rows[name][0] for rows in found.values()]
    return {
        "name": name,
        "kind": results[0].kind,
        "note": "; ".join(dict.fromkeys(r.note for r in results if r.note)),
        "parameters": own and own.parameters,
        "total_parameters": total and total.parameters,
        "multiply_adds": own and own.multiply_adds,
        "total_multiply_adds": total and total.multiply_adds,
        "benchmarks": {b: scores[name] for b, scores in scores_on.items()},
    }


def _speed(own: Cost | None, total: Cost) -> dict[str, Any]:
    return {
        "seconds": own and own.seconds,
        "total_seconds": total.seconds,
        "devices": list(total.devices),
    }


def _gallery(
    context: StageContext,
    benchmark: str,
    found: Mapping[str, tuple[Results, Output, str]],
    advance: Any,
) -> list[dict[str, Any]]:
    """Copies and cuts the pictures of one benchmark; what `render_page` calls its images."""
    baselines = context.input(_BASELINES, benchmark)
    listed = found[BICUBIC][0].images
    names = picture_names([image.name for image in listed])
    gallery = []
    for index, image in enumerate(listed):
        folder = f"images/{benchmark}/{index:03d}"
        sources = {
            "hr": (baselines, f"hr/{names[image.name]}"),
            "lr": (baselines, f"lr/{names[image.name]}"),
            **{
                row: (output, f"{inside}{results.images[index].picture}")
                for row, (results, output, inside) in found.items()
            },
        }
        for row, (output, file) in sources.items():
            context.output.take(output.path / file, f"{folder}/{row}.png")
        pictures = {row: read_png(output, file) for row, (output, file) in sources.items()}
        scores = {row: results.images[index] for row, (results, _, _) in found.items()}
        gallery.append(
            {
                "name": image.name,
                "width": image.width,
                "height": image.height,
                "hr": f"{folder}/hr.png",
                "lr": f"{folder}/lr.png",
                "thumb": _write_thumb(context, folder, pictures["hr"]),
                "rows": {row: _cell(folder, row, score) for row, score in scores.items()},
                "crops": _write_crops(context, folder, pictures),
            }
        )
        advance(1)
    return gallery


def _cell(folder: str, row: str, score: ImageScore) -> dict[str, Any]:
    return {"src": f"{folder}/{row}.png", "psnr_y": score.psnr_y, "ssim_y": score.ssim_y}


def _write_thumb(context: StageContext, folder: str, hr: np.ndarray) -> str:
    from PIL import Image

    thumb = Image.fromarray(hr)
    thumb.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    file = f"{folder}/thumb-hr.png"  # no row has a hyphen in its name
    context.output.write_bytes(file, encode_png(np.asarray(thumb)))
    return file


def _write_crops(
    context: StageContext, folder: str, pictures: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Cuts the same squares out of every picture, HR first, and measures each against HR's."""
    from sr_models.metrics.images import psnr_y

    settings, scale = context.recipe.evaluation, context.recipe.scale
    networks = [p for row, p in pictures.items() if row not in ("hr", "lr", BICUBIC, MEAN, CONVEX)]
    compared = networks if len(networks) > 1 else [*networks, pictures[BICUBIC], pictures["hr"]]
    crops = []
    for number, (x, y, side) in enumerate(
        choose_crops(compared, settings.crop_size, settings.crops, scale)
    ):
        cells = []
        original = pictures["hr"][y : y + side, x : x + side]
        for row, picture in pictures.items():
            shrink = scale if row == "lr" else 1
            piece = picture[y // shrink : (y + side) // shrink, x // shrink : (x + side) // shrink]
            src = f"{folder}/crop{number + 1}-{row}.png"
            context.output.write_bytes(src, encode_png(np.ascontiguousarray(piece)))
            measured = row not in ("hr", "lr") and not np.array_equal(piece, original)
            psnr = psnr_y(piece, original, 0) if measured else None
            cells.append({"row": row, "src": src, "psnr_y": psnr})
        crops.append({"x": x, "y": y, "size": side, "cells": cells})
    return crops


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean PSNR-Y over the benchmarks of every row, a plot each in Dagster."""
    numbers = {}
    for row in rows:
        values = [score["psnr_y"] for score in row["benchmarks"].values()]
        if None not in values:
            numbers[f"psnr_y_{row['name']}"] = sum(values) / len(values)
    return numbers


def _markdown(rows: Sequence[Mapping[str, Any]], speeds: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| row | kind | parameters | G multiply-adds per MP | seconds per MP | benchmark | "
        "PSNR-Y (dB) | SSIM-Y | colour offset |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = f"{row['total_parameters']:,}" if row["total_parameters"] else "–"
        work = giga(row["total_multiply_adds"])
        seconds = three_figures(speeds.get(row["name"], {}).get("total_seconds"))
        for benchmark, score in row["benchmarks"].items():
            psnr = "identical" if score["psnr_y"] is None else f"{score['psnr_y']:.2f}"
            lines.append(
                f"| {row['name']} | {row['kind']} | {size} | {work} | {seconds} | {benchmark} | "
                f"{psnr} | {score['ssim_y']:.4f} | {largest_offset(score):.2f} |"
            )
    if devices := devices_of(speeds):
        lines += ["", f"MP: a megapixel of output. Seconds on {devices}."]
    return "\n".join(lines)
