"""The HTML page of a leaderboard: from measured numbers and picture paths to one static file.

It lays out what `evaluation/leaderboard.py` has measured and copied; it measures nothing, and the
page needs neither a network nor a server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sr_assets.evaluation.cost import devices_of
from sr_assets.evaluation.history import Moment
from sr_assets.evaluation.results import BICUBIC, CONVEX, MEAN
from sr_assets.report import numbers
from sr_assets.report.damage import damage_section
from sr_assets.report.distribution import NARROW, distribution
from sr_assets.report.embedding import Embedded
from sr_assets.report.headline import headline
from sr_assets.report.history import history_lines
from sr_assets.report.plots import scatter
from sr_assets.report.tables import image_metrics, image_table, metric_text, score_tables
from sr_assets.report.templating import digest_of_folder, environment

_TEMPLATES = Path(__file__).parent / "templates"
_KINDS = {
    "bicubic": "anchor",
    "expert": "expert",
    "mean": "control",
    "convex": "control",
    "plain": "plain network",
    "fusion": "fusion",
    "student": "student",
    "model": "model",
}
_TITLES = {BICUBIC: "bicubic", MEAN: "mean of experts", CONVEX: "best fixed mix"}


@dataclass(frozen=True)
class Surroundings:
    """What a page shows besides the measured numbers and pictures; all of it may be missing."""

    embedded: Embedded = field(default_factory=Embedded)
    history: Sequence[Moment] = ()
    """Oldest first, this leaderboard last."""
    provenance: Mapping[str, Any] | None = None
    """Of `evaluation/provenance.py`."""


def render_page(
    leaderboard: Mapping[str, Any],
    gallery: Mapping[str, Any],
    speeds: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    around: Surroundings | None = None,
) -> str:
    """The page as HTML.

    Args:
        leaderboard: content of `leaderboard.json`; without `checks` where they are None.
        gallery: benchmark -> list of images, each what `evaluation.gallery.entry` returns; paths
            are relative to the page. `row` of a crop's cell is `hr`, `lr` or the name of a row.
        speeds: content of `seconds.json`; rows that it lacks show no seconds.
        around: pictures inside the page, history and provenance.
    """
    around = around or Surroundings()
    rows = leaderboard["rows"]
    tables = score_tables(rows, speeds, leaderboard.get("facts", {}))
    first = tables[0]
    bicubic = next((r["psnr_y"] for r in first["rows"] if r["name"] == BICUBIC), None)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            recipe=leaderboard["recipe"],
            scale=leaderboard["scale"],
            kinds=_KINDS,
            tables=[
                {
                    **table,
                    "panel": number,
                    "distribution": distribution(table["rows"], gallery, table["benchmarks"]),
                    "narrow_distribution": distribution(
                        table["rows"], gallery, table["benchmarks"], NARROW
                    ),
                }
                for number, table in enumerate(tables)
            ],
            figures=headline(first["rows"]),
            plots=_plots(first["rows"], bicubic),
            damage=damage_section(leaderboard),
            devices=devices_of(speeds),
            image_tables=[image_table(name, images, rows) for name, images in gallery.items()],
            image_metrics=image_metrics(gallery, leaderboard.get("facts", {})),
            gallery=gallery,
            cropped=_cropped(gallery, around.embedded),
            weak=_weak(rows, gallery),
            checks=leaderboard["checks"],
            history=history_lines(rows, around.history),
            moments=around.history,
            provenance=around.provenance,
            embedded=around.embedded,
            viewer=_viewer(rows, gallery),
        )
    )


def _environment() -> Any:
    made = environment(_TEMPLATES)
    made.filters.update(
        columns=_columns,
        db=numbers.decibels,
        ssim=numbers.ssim,
        signed=numbers.signed,
        count=numbers.count,
        giga=numbers.giga,
        figures=numbers.three_figures,
        metric=metric_text,
        title=title_of,
        percent=_percent,
    )
    return made


def templates_digest() -> str:
    """Digest of everything the page is made of besides code; part of the leaderboard's version."""
    return digest_of_folder(_TEMPLATES)


def title_of(row: str) -> str:
    """What a row, or one of the two originals, is called on the page."""
    return {**_TITLES, "hr": "HR (original)", "lr": "LR (input)"}.get(row, row)


def _plots(rows: Sequence[Mapping[str, Any]], bicubic: float | None) -> list[dict[str, Any]]:
    """Quality against what a row costs, with how the axis and the plot are called."""
    rows = [{**row, "name": title_of(row["name"])} for row in rows]
    devices = [row["devices"] for row in rows if row["seconds"]]
    device = max(devices, key=devices.count, default="")
    timed = [row for row in rows if row["devices"] == device]
    costs = (
        ("parameters", rows, "size", "parameters that run for one picture"),
        ("multiply_adds", rows, "work", "multiply-adds for one megapixel of output"),
        ("seconds", timed, "time", "seconds for one megapixel of output"),
    )
    drawn = [(scatter(shown, bicubic, cost), said, axis) for cost, shown, said, axis in costs]
    return [
        {"plot": plot, "said": said, "axis": axis, "device": device if said == "time" else ""}
        for plot, said, axis in drawn
        if plot
    ]


def _cropped(gallery: Mapping[str, Any], embedded: Embedded) -> list[dict[str, Any]]:
    """The images whose crops are shown: those inside the page, all where nothing is inside."""
    return [
        {"benchmark": benchmark, **image}
        for benchmark, images in gallery.items()
        for image in images
        if image["crops"]
        and (not embedded.pictures or image["crops"][0]["cells"][0]["src"] in embedded.pictures)
    ]


def _weak(rows: Sequence[Mapping[str, Any]], gallery: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each row with its squares, the one with the smallest gain on its image first."""
    found = []
    for row in rows:
        shown = []
        for benchmark, images in gallery.items():
            for image in images:
                cells = image["rows"]
                for weak in image["weak"]:
                    if weak["row"] == row["name"]:
                        gain = cells[row["name"]]["psnr_y"] - cells[BICUBIC]["psnr_y"]
                        shown.append(
                            {**weak, "benchmark": benchmark, "name": image["name"], "gain": gain}
                        )
        if shown:
            found.append({**row, "squares": sorted(shown, key=lambda one: one["gain"])})
    return found


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
                    row: {"src": cell["src"], "said": f"{numbers.decibels(cell['psnr_y'])} dB"}
                    for row, cell in image["rows"].items()
                },
                "hr": {"src": image["hr"], "said": ""},
            },
        }
        for benchmark, listed in gallery.items()
        for index, image in enumerate(listed)
    ]
    choices = ["lr", *(row["name"] for row in rows), "hr"]
    order = ("fusion", "student", "plain", "model", "expert")
    favourites = [row["name"] for kind in order for row in rows if row["kind"] == kind]
    left = BICUBIC if any(row["name"] == BICUBIC for row in rows) else "lr"
    return {
        "images": images,
        "choices": [(choice, title_of(choice)) for choice in choices],
        "left": left,
        "right": next(iter(favourites), "hr"),
        "titles": {choice: title_of(choice) for choice in choices},
    }


def _columns(count: int) -> int:
    """Columns that spread so many crops evenly over rows of six at most."""
    return math.ceil(count / math.ceil(count / 6))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.4g}%"
