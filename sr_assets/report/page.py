"""The HTML page of a leaderboard: from measured numbers and picture paths to one static file.

It lays out what `evaluation/leaderboard.py` has measured and copied; it measures nothing, and the
page needs neither a network nor a server.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sr_assets.evaluation.cost import devices_of
from sr_assets.evaluation.results import BICUBIC, CONVEX, MEAN, largest_offset
from sr_assets.report.damage import damage_section
from sr_assets.report.numbers import giga, short_count, three_figures
from sr_assets.report.plots import scatter

_TEMPLATES = Path(__file__).parent / "templates"
_KINDS = {
    "bicubic": "anchor",
    "expert": "expert",
    "mean": "control",
    "convex": "control",
    "plain": "plain network",
    "fusion": "fusion",
    "student": "student",
}
_TITLES = {BICUBIC: "bicubic", MEAN: "mean of experts", CONVEX: "best fixed mix"}


def render_page(
    leaderboard: Mapping[str, Any],
    gallery: Mapping[str, Any],
    speeds: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> str:
    """The page as HTML.

    Args:
        leaderboard: content of `leaderboard.json`.
        gallery: benchmark -> list of images, each {"name", "width", "height", "hr", "lr", "thumb",
            "rows": {row: {"src", "psnr_y", "ssim_y"}}, "crops": [{"x", "y", "size", "cells":
            [{"row", "src", "psnr_y"}]}]}; paths are relative to the page. `row` of a crop's cell
            is `hr`, `lr` or the name of a row.
        speeds: content of `seconds.json`; rows that it lacks show no seconds.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        columns=_columns,
        db=_decibels,
        ssim=_ssim,
        signed=_signed,
        count=_count,
        giga=giga,
        figures=three_figures,
        title=title_of,
        percent=_percent,
    )
    rows = leaderboard["rows"]
    tables = _tables(rows, speeds)
    first = tables[0]
    bicubic = next((r["psnr_y"] for r in first["rows"] if r["name"] == BICUBIC), None)
    return environment.get_template("report.html.j2").render(
        recipe=leaderboard["recipe"],
        scale=leaderboard["scale"],
        rows=rows,
        kinds=_KINDS,
        tables=tables,
        figures=_figures(first["rows"]),
        plots=_plots(first["rows"], bicubic),
        damage=damage_section(leaderboard),
        devices=devices_of(speeds),
        bicubic=bicubic,
        image_tables=[_image_table(name, images, rows) for name, images in gallery.items()],
        gallery=gallery,
        checks=leaderboard["checks"],
        viewer=_viewer(rows, gallery),
    )


def templates_digest() -> str:
    """Digest of everything the page is made of besides code; part of the leaderboard's version."""
    digest = hashlib.sha256()
    for path in sorted(_TEMPLATES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def title_of(row: str) -> str:
    """What a row, or one of the two originals, is called on the page."""
    return {**_TITLES, "hr": "HR (original)", "lr": "LR (input)"}.get(row, row)


def _tables(
    rows: Sequence[Mapping[str, Any]], speeds: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One table a benchmark, after one of their means when there are several."""
    benchmarks = list(dict.fromkeys(b for row in rows for b in row["benchmarks"]))
    tables = [
        _table(b, [(row, row["benchmarks"].get(b)) for row in rows], speeds) for b in benchmarks
    ]
    if len(benchmarks) > 1:
        means = [
            (row, _mean_score([row["benchmarks"][b] for b in benchmarks]))
            for row in rows
            if all(b in row["benchmarks"] for b in benchmarks)
        ]
        tables.insert(0, _table(f"all {len(benchmarks)} benchmarks", means, speeds))
    return tables


def _mean_score(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    psnr = [s["psnr_y"] for s in scores]
    return {
        "psnr_y": None if None in psnr else math.fsum(psnr) / len(psnr),
        "ssim_y": math.fsum(s["ssim_y"] for s in scores) / len(scores),
        "colour_offset": [
            math.fsum(s["colour_offset"][c] for s in scores) / len(scores) for c in range(3)
        ],
    }


def _table(
    name: str,
    scored: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]],
    speeds: Mapping[str, Mapping[str, Any]],
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
            }
        )
    best: dict[str, Any] = {
        column: max((v for line in lines if (v := line[column]) is not None), default=None)
        for column in ("psnr_y", "ssim_y", "gain")
    }
    best["offset"] = min((line["offset"] for line in lines), default=None)
    return {"name": name, "rows": lines, "best": best}


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The two to four numbers that a reader wants first."""
    named = {r["name"]: r for r in rows if r["psnr_y"] is not None}
    figures = []
    best_expert = _best(named, "expert")
    if BICUBIC in named:
        value = _decibels(named[BICUBIC]["psnr_y"])
        figures.append(
            {"label": "bicubic", "kind": "bicubic", "value": value, "said": "the anchor"}
        )
    if best_expert:
        figures.append(_figure(best_expert, f"best of the experts, {_gain(best_expert)}"))
    if fusion := _best(named, "fusion"):
        against = (
            f"{_signed(fusion['psnr_y'] - best_expert['psnr_y'])} dB against the best expert"
            if best_expert
            else _gain(fusion)
        )
        figures.append(_figure(fusion, against))
    if student := _best(named, "student"):
        figures.append(_figure(student, _gain(student) + _lighter(student, fusion)))
    if (plain := _best(named, "plain")) and len(figures) < 3:
        figures.append(_figure(plain, _gain(plain)))
    return figures


def _lighter(student: Mapping[str, Any], fusion: Mapping[str, Any] | None) -> str:
    """How much less than the fusion with its experts a student costs, where both are known."""
    if fusion is None:
        return ""
    costs = (("parameters", "parameters"), ("multiply_adds", "multiply-adds"))
    fewer = [
        f"{three_figures(fusion[cost] / student[cost])}× fewer {said}"
        for cost, said in costs
        if student[cost] and fusion[cost]
    ]
    return f", {' and '.join(fewer)} than the fusion with its experts" if fewer else ""


def _plots(rows: Sequence[Mapping[str, Any]], bicubic: float | None) -> list[dict[str, Any]]:
    """Quality against what a row costs, with how the axis and the plot are called."""
    costs = (
        ("parameters", "size", "parameters that run for one picture"),
        ("multiply_adds", "work", "multiply-adds for one megapixel of output"),
    )
    drawn = [(scatter(rows, bicubic, cost), said, axis) for cost, said, axis in costs]
    return [{"plot": plot, "said": said, "axis": axis} for plot, said, axis in drawn if plot]


def _figure(row: Mapping[str, Any], said: str) -> dict[str, str]:
    return {
        "label": row["name"],
        "kind": row["kind"],
        "value": _decibels(row["psnr_y"]),
        "said": said,
    }


def _gain(row: Mapping[str, Any]) -> str:
    if row["gain"] is None:
        return ""
    side = "over" if row["gain"] >= 0 else "below"
    return f"{abs(row['gain']):.2f} dB {side} bicubic"


def _best(rows: Mapping[str, Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    found = [r for r in rows.values() if r["kind"] == kind]
    return max(found, key=lambda r: r["psnr_y"], default=None)


def _image_table(
    name: str, images: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    columns = [row for row in rows if any(row["name"] in image["rows"] for image in images)]
    lines = []
    for index, image in enumerate(images):
        cells = [image["rows"].get(row["name"]) for row in columns]
        finite = [c["psnr_y"] for c in cells if c and c["psnr_y"] is not None]
        lines.append(
            {"index": index, "image": image, "cells": cells, "best": max(finite, default=None)}
        )
    return {"name": name, "columns": columns, "rows": lines}


def _viewer(rows: Sequence[Mapping[str, Any]], gallery: Mapping[str, Any]) -> dict[str, Any]:
    """What the comparison starts with, and the data that its script reads."""
    images = [
        {
            "benchmark": benchmark,
            "index": index,
            "name": image["name"],
            "width": image["width"],
            "height": image["height"],
            "sources": {
                "lr": {"src": image["lr"], "said": ""},
                **{
                    row: {"src": cell["src"], "said": f"{_decibels(cell['psnr_y'])} dB"}
                    for row, cell in image["rows"].items()
                },
                "hr": {"src": image["hr"], "said": ""},
            },
        }
        for benchmark, listed in gallery.items()
        for index, image in enumerate(listed)
    ]
    choices = ["lr", *(row["name"] for row in rows), "hr"]
    order = ("fusion", "student", "plain", "expert")
    favourites = [row["name"] for kind in order for row in rows if row["kind"] == kind]
    left = BICUBIC if any(row["name"] == BICUBIC for row in rows) else "lr"
    return {
        "images": images,
        "choices": [(choice, title_of(choice)) for choice in choices],
        "left": left,
        "right": next(iter(favourites), "hr"),
        "titles": {choice: title_of(choice) for choice in choices},
    }


def _decibels(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def _ssim(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float, digits: int = 2) -> str:
    """A signed number with a true minus sign; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _count(value: int | None) -> str:
    return "–" if not value else short_count(value)


def _columns(count: int) -> int:
    """Columns that spread so many crops evenly over rows of six at most."""
    return math.ceil(count / math.ceil(count / 6))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.4g}%"
