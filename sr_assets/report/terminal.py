"""The leaderboard in a terminal: one table, what was released, and where to look.

The HTML page is `page.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from sr_assets.assets.checks import teachers_worth
from sr_assets.evaluation.cost import SECONDS, devices_of
from sr_assets.graph import Graph
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref
from sr_assets.report.numbers import giga, three_figures


def leaderboard_lines(graph: Graph, instance: dg.DagsterInstance) -> list[str]:
    """Lines that show the current leaderboard and the decisions about releases."""
    output = current_output(instance, graph, Ref("evaluation/leaderboard"))
    if output is None:
        return []
    board = output.read_json("leaderboard.json")
    # One that was made before costs were measured has none.
    speeds = output.read_json(SECONDS) if SECONDS in output.marker["files"] else {}
    lines: list[str] = []
    width = max([22, *(len(_label(row)) for row in board["rows"])])
    for benchmark in graph.recipe.benchmarks:
        lines += [
            "",
            f"{benchmark:{width}} PSNR-Y dB   SSIM-Y  parameters  G mult-adds/MP     s/MP",
        ]
        for row in board["rows"]:
            score = row["benchmarks"].get(benchmark)
            if score is not None and score["psnr_y"] is not None:
                lines.append(row_line(row, score, speeds.get(row["name"], {}), width))
    if devices := devices_of(speeds):
        lines += ["", f"/MP: for a megapixel of output; seconds on {devices}"]
    lines.append("")
    lines += [f"{name}: {said['reason']}" for name, said in teachers_worth(board["checks"]).items()]
    for key in graph.stages:
        if key.endswith("/release"):
            made = current_output(instance, graph, Ref(key))
            if made is not None:
                lines.append(_decision(key.split("/")[1], made.read_json("release.json")))
    return [*lines, "", f"Report: {output.path / 'report.html'}", "Graph:  make ui"]


def row_line(
    row: Mapping[str, Any], score: Mapping[str, Any], speed: Mapping[str, Any], width: int
) -> str:
    """One row on one benchmark; what it costs is all that runs, a fusion's experts included.

    Args:
        row: of `leaderboard.json`.
        score: its mean score on the benchmark.
        speed: its entry of `seconds.json`; empty where it has none.
        width: of the column of names.
    """
    size = f"{row['total_parameters']:,}" if row["total_parameters"] else ""
    work, seconds = row.get("total_multiply_adds"), speed.get("total_seconds")
    return (
        f"{_label(row):{width}} {score['psnr_y']:9.2f}   {score['ssim_y']:.4f}  {size:>10}  "
        f"{giga(work) if work else '':>15}  {three_figures(seconds) if seconds else '':>7}"
    ).rstrip()


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['name']} ({row['kind']})" if row["kind"] != row["name"] else row["name"]


def _decision(name: str, release: dict[str, object]) -> str:
    if release["released"]:
        return f"{name} is released as {name}@{release['version']}"
    reasons = release["reasons"]
    text = "; ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
    return f"{name} is not released: {text}"
