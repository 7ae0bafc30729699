"""All rows side by side: the leaderboard and the models' checks.

Measuring is done before; the page and its pictures are `board_page.py`. Seconds were measured on
some machine on some day: they, and the page that shows them, are not content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sr_assets.assets.checks import quality_checks, scores_of, teachers_worth
from sr_assets.evaluation.board_page import BASELINES, board_gallery, write_page
from sr_assets.evaluation.cost import (
    SECONDS,
    Cost,
    devices_of,
    read_cost,
    repeated_cost,
    total_cost,
)
from sr_assets.evaluation.damage_board import damage_board
from sr_assets.evaluation.results import (
    BICUBIC,
    CONVEX,
    MEAN,
    Results,
    Score,
    largest_offset,
    results_from_json,
    side_by_side,
)
from sr_assets.evaluation.self_ensemble import TURNS, self_ensemble_rows
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.report.numbers import giga, three_figures
from sr_assets.storage import Output


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
    for name, (_, base) in self_ensemble_rows(recipe).items():
        next(row for row in rows if row["name"] == name)["self_ensemble_of"] = base
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
        gallery = board_gallery(context, found, advance)
    leaderboard["facts"] = {
        metric: dict(said)
        for rows_ in found.values()
        for results, _, _ in rows_.values()
        for metric, said in results.facts.items()
    }
    if damage := damage_board(context):
        leaderboard["damage"] = damage
    context.output.write_json("leaderboard.json", leaderboard)
    speeds = {name: _speed(own, total) for name, (own, total) in costs.items() if total}
    context.output.write_json(SECONDS, speeds, content=False)
    write_page(context, leaderboard, gallery, speeds)
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

    The self-ensemble of an expert or model comes right after it.

    Raises:
        StageError: an expert or a model has the name of a control, of an original or of a
            self-ensemble.
    """
    for section, names in (("experts", recipe.experts), ("models", recipe.models)):
        for name in names:
            if name in (BICUBIC, MEAN, CONVEX, "hr", "lr"):
                raise StageError(f"{section}.{name}: the report has a row of that name: rename it")
    mixes = [MEAN, CONVEX] if recipe.experts else []
    turned = {name: row for row, (_, name) in self_ensemble_rows(recipe).items()}

    def with_turned(names: Iterable[str]) -> Iterator[str]:
        for name in names:
            yield name
            if name in turned:
                yield turned[name]

    return [BICUBIC, *with_turned(recipe.experts), *mixes, *with_turned(recipe.models)]


def _first_rows(found: Mapping[str, Mapping[str, tuple[Results, Output, str]]]) -> Any:
    """For each benchmark, the results of its rows in a list."""
    return ([results for results, _, _ in rows.values()] for rows in found.values())


def _results(context: StageContext, benchmark: str) -> dict[str, tuple[Results, Output, str]]:
    """Row -> its results, the output they are in and the folder inside that output."""
    recipe = context.recipe
    baselines = context.input(BASELINES, benchmark)
    turned = self_ensemble_rows(recipe)
    found = {}
    for name in row_names(recipe):
        if name in turned:
            output, folder = context.input(turned[name][0], benchmark), ""
        elif name in recipe.experts:
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
    """What a row costs by itself, and with the experts that it needs.

    The self-ensemble of a fusion turns the experts' pictures: they run once.
    """
    recipe = context.recipe
    turned = self_ensemble_rows(recipe)
    base = turned[name][1] if name in turned else name
    experts: Sequence[str] = ()
    own = None
    if base in recipe.experts:
        own = read_cost(context.input(f"expert/{base}/cost"))
    elif base in recipe.models:
        own = read_cost(context.input(f"model/{base}/cost"))
        experts = recipe.experts_of(base)
    elif name in (MEAN, CONVEX):
        experts = tuple(recipe.experts)
    if own and name in turned:
        own = repeated_cost(own, TURNS)
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
        "tiled": {b: rows[name][0].tiled for b, rows in found.items() if rows[name][0].tiled},
    }


def _speed(own: Cost | None, total: Cost) -> dict[str, Any]:
    return {
        "seconds": own and own.seconds,
        "total_seconds": total.seconds,
        "devices": list(total.devices),
    }


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
