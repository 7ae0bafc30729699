"""What the tables of the page show: one of every benchmark, their mean, and one of the images.

The numbers come from `leaderboard.json` and `seconds.json`; the templates turn this into HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sr_assets.evaluation.results import BICUBIC, largest_offset

#: Key of the column that says what tiles change, among those of the further metrics.
_TILED = "tiled"
_TILED_FACTS = {"title": "Tiled − whole", "unit": "levels", "lower_is_better": True}


def score_tables(
    rows: Sequence[Mapping[str, Any]],
    speeds: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One table a benchmark, after one of their means when there are several.

    Args:
        rows, facts: of `leaderboard.json`.
        speeds: content of `seconds.json`.

    Returns:
        {"name", "benchmarks", "rows", "best", "tiled", "metrics"} of each; "tiled" says whether
        tiles were compared with the whole, and "metrics" are the columns of a second table,
        {"key", "title", "unit", "digits", "said", "best"}, empty where there are none.
    """
    benchmarks = list(dict.fromkeys(b for row in rows for b in row["benchmarks"]))
    tables = [
        _table(b, [b], [(row, row["benchmarks"].get(b)) for row in rows], speeds, facts)
        for b in benchmarks
    ]
    if len(benchmarks) > 1:
        means = [
            (row, _mean_score([row["benchmarks"][b] for b in benchmarks]))
            for row in rows
            if all(b in row["benchmarks"] for b in benchmarks)
        ]
        name = f"all {len(benchmarks)} benchmarks"
        tables.insert(0, _table(name, benchmarks, means, speeds, facts))
    return tables


def _mean_score(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    psnr = [s["psnr_y"] for s in scores]
    return {
        "psnr_y": None if None in psnr else math.fsum(psnr) / len(psnr),
        "ssim_y": math.fsum(s["ssim_y"] for s in scores) / len(scores),
        "colour_offset": [
            math.fsum(s["colour_offset"][c] for s in scores) / len(scores) for c in range(3)
        ],
        "metrics": {
            name: None if None in values else math.fsum(values) / len(values)
            for name in dict.fromkeys(n for s in scores for n in s.get("metrics", {}))
            for values in [[s.get("metrics", {}).get(name) for s in scores]]
        },
    }


def _table(
    name: str,
    benchmarks: Sequence[str],
    scored: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]],
    speeds: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    bicubic = next((s["psnr_y"] for row, s in scored if s and row["name"] == BICUBIC), None)
    lines = []
    for row, score in scored:
        if score is None:
            continue
        psnr, speed = score["psnr_y"], speeds.get(row["name"], {})
        lines.append(
            {
                "name": row["name"],
                "kind": row["kind"],
                "note": row["note"],
                "self_ensemble_of": row.get("self_ensemble_of"),
                "own_parameters": row["parameters"],
                "parameters": row["total_parameters"],
                # Leaderboards that were made before costs were measured have none.
                "own_multiply_adds": row.get("multiply_adds"),
                "multiply_adds": row.get("total_multiply_adds"),
                "own_seconds": speed.get("seconds"),
                "seconds": speed.get("total_seconds"),
                "devices": "; ".join(speed.get("devices", ())),
                "psnr_y": psnr,
                "ssim_y": score["ssim_y"],
                "gain": None if psnr is None or bicubic is None else psnr - bicubic,
                "offsets": score["colour_offset"],
                "offset": largest_offset(score),
                # Results that were made before there were further metrics have none.
                "metrics": {**score.get("metrics", {}), **_tiled(row, benchmarks)},
            }
        )
    best: dict[str, Any] = {
        column: max((v for line in lines if (v := line[column]) is not None), default=None)
        for column in ("psnr_y", "ssim_y", "gain")
    }
    best["offset"] = min((line["offset"] for line in lines), default=None)
    return {
        "name": name,
        "benchmarks": list(benchmarks),
        "rows": lines,
        "best": best,
        "tiled": any(_TILED in line["metrics"] for line in lines),
        "metrics": _metric_columns(lines, {**facts, _TILED: _TILED_FACTS}),
    }


def metric_text(value: float | None, digits: int) -> str:
    """A further metric; a dash where it was not measured or has no finite value."""
    return "–" if value is None else f"{value:.{digits}f}"


def _tiled(row: Mapping[str, Any], benchmarks: Sequence[str]) -> dict[str, float]:
    """Largest difference between tiled and whole (grey levels); empty where it is not known."""
    said = row.get("tiled", {})
    found = [said[benchmark]["max_levels"] for benchmark in benchmarks if benchmark in said]
    return {_TILED: max(found)} if found else {}


def _metric_columns(
    lines: Sequence[Mapping[str, Any]], facts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The further metrics that any row has; a best value only where the direction is known."""
    columns = []
    for name in dict.fromkeys(key for line in lines for key in line["metrics"]):
        column = _metric(name, facts)
        values = [v for line in lines if (v := line["metrics"].get(name)) is not None]
        lower = facts.get(name, {}).get("lower_is_better")
        best = None if lower is None else (min if lower else max)(values, default=None)
        said = "" if lower is None else "less is better" if lower else "more is better"
        shown = None if best is None else metric_text(best, column["digits"])
        columns.append({**column, "said": said, "best": shown})
    return columns


def _metric(name: str, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    known = facts.get(name, {"title": name, "unit": ""})
    digits = 2 if known["unit"] == "dB" else 4 if known.get("highest") == 1 else 3
    return {"key": name, "title": known["title"], "unit": known["unit"], "digits": digits}


def image_table(
    name: str, images: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """{"name", "columns", "rows"} of a benchmark's images; a column for each row of the board."""
    columns = [row for row in rows if any(row["name"] in image["rows"] for image in images)]
    lines = []
    for index, image in enumerate(images):
        cells = [image["rows"].get(row["name"]) for row in columns]
        finite = [c["psnr_y"] for c in cells if c and c["psnr_y"] is not None]
        lines.append(
            {"index": index, "image": image, "cells": cells, "best": max(finite, default=None)}
        )
    return {"name": name, "columns": columns, "rows": lines}


def image_metrics(
    gallery: Mapping[str, Sequence[Mapping[str, Any]]], facts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The further metrics that any image has: {"key", "title", "unit", "digits"}."""
    names = dict.fromkeys(
        name
        for images in gallery.values()
        for image in images
        for cell in image["rows"].values()
        for name in cell["metrics"]
    )
    return [_metric(name, facts) for name in names]
