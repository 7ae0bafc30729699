"""The leaderboard in a terminal: one table, what was released, and where to look.

The HTML page is `page.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from sr_assets.graph import Graph
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref


def leaderboard_lines(graph: Graph, instance: dg.DagsterInstance) -> list[str]:
    """Lines that show the current leaderboard and the decisions about releases."""
    output = current_output(instance, graph, Ref("evaluation/leaderboard"))
    if output is None:
        return []
    board = output.read_json("leaderboard.json")
    lines: list[str] = []
    for benchmark in graph.recipe.benchmarks:
        lines += ["", f"{benchmark:22} PSNR-Y dB   SSIM-Y  parameters"]
        for row in board["rows"]:
            score = row["benchmarks"].get(benchmark)
            if score is not None and score["psnr_y"] is not None:
                lines.append(row_line(row, score))
    lines.append("")
    for key in graph.stages:
        if key.endswith("/release"):
            made = current_output(instance, graph, Ref(key))
            if made is not None:
                lines.append(_decision(key.split("/")[1], made.read_json("release.json")))
    return [*lines, "", f"Report: {output.path / 'report.html'}", "Graph:  make ui"]


def row_line(row: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """One row on one benchmark; its parameters are all that run, a fusion's experts included."""
    size = f"{row['total_parameters']:,}" if row["total_parameters"] else ""
    label = f"{row['name']} ({row['kind']})" if row["kind"] != row["name"] else row["name"]
    return f"{label:22} {score['psnr_y']:9.2f}   {score['ssim_y']:.4f}  {size:>10}"


def _decision(name: str, release: dict[str, object]) -> str:
    if release["released"]:
        return f"{name} is released as {name}@{release['version']}"
    reasons = release["reasons"]
    text = "; ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
    return f"{name} is not released: {text}"
