"""What `bench.py` measured, as a table for people and as JSON.

Nothing is measured or decided here.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sr_assets.backend_choice import memory_bytes
from sr_assets.bench import BackendResult, BenchReport

SCHEMA = "srd.bench"
_COLUMNS = (
    "backend", "s/MP", "CPU s/MP", "speed", "CPU speed", "PSNR-Y", "loss dB", "to torch dB",
    "largest",
)  # fmt: skip


def table(report: BenchReport) -> Iterator[str]:
    """Lines of a Markdown table, then why the other backends did not run.

    Seconds are those of an enlarged megapixel, by the wall clock and of the CPU; the two speeds are
    `BenchReport.speed`.
    """
    rows = [_COLUMNS, *(_cells(report, result) for result in report.results if result.timings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            rules = ["-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)]
            yield f"|{'|'.join(rules)}|"
    for result in report.results:
        if result.lacking is not None:
            yield f"{result.name}: {result.lacking}"
        elif not result.passes() and not result.integer:
            yield f"{result.name}: its pictures differ too much to be taken unasked"


def as_json(report: BenchReport) -> dict[str, Any]:
    """Everything that was measured; seconds, pixels and dB."""
    expert = report.network.subject.expert
    choice = report.choice()
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "device": report.machine.device,
            "capabilities": report.machine.capabilities,
            "threads": report.machine.threads,
            "cores": os.cpu_count(),
            "memory_bytes": memory_bytes(),
            "packages": report.machine.packages,
        },
        "model": {
            "name": report.network.name,
            "digest": report.network.digest,
            "architecture": expert.architecture,
            "scale": expert.scale,
            "parameters": expert.parameters,
        },
        "tile": report.tile,
        "halo": report.halo,
        "default": choice.default,
        "exact": choice.exact,
        "backends": [_backend(report, result) for result in report.results],
        "images": [
            {
                "name": picture.name,
                "height": picture.lr.shape[0],
                "width": picture.lr.shape[1],
                "megapixels": report.megapixels(picture),
                "seconds": {
                    result.name: {
                        "wall": statistic(result.timings[picture.name].wall),
                        "cpu": statistic(result.timings[picture.name].cpu),
                    }
                    for result in report.results
                    if result.timings
                },
            }
            for picture in report.pictures
        ],
    }


def statistic(seconds: Sequence[float]) -> dict[str, Any]:
    """The seconds of each repeat and what they come to; the deviation is that of a sample."""
    return {
        "each": list(seconds),
        "mean": statistics.fmean(seconds),
        "median": statistics.median(seconds),
        "minimum": min(seconds),
        "maximum": max(seconds),
        "deviation": statistics.stdev(seconds) if len(seconds) > 1 else 0.0,
    }


def _backend(report: BenchReport, result: BackendResult) -> dict[str, Any]:
    told: dict[str, Any] = {"name": result.name, "exactness": result.exactness}
    if result.lacking is not None:
        return {**told, "lacking": result.lacking}
    return {
        **told,
        "passes": result.passes(),
        "prepare_seconds": result.prepare_seconds,
        "seconds_per_megapixel": report.seconds_per_megapixel(result),
        "cpu_seconds_per_megapixel": report.seconds_per_megapixel(result, "cpu"),
        "speed": report.speed(result),
        "cpu_speed": report.speed(result, "cpu"),
        "max_difference": result.max_difference,
        "psnr_to_torch": _finite(result.psnr_to_torch),
        "psnr_y": _finite(result.psnr_y),
        "loss": _finite(result.loss),
    }


def _cells(report: BenchReport, result: BackendResult) -> tuple[str, ...]:
    to_torch = "same" if math.isinf(result.psnr_to_torch) else f"{result.psnr_to_torch:.1f}"
    return (
        result.name,
        f"{report.seconds_per_megapixel(result):.3f}",
        f"{report.seconds_per_megapixel(result, 'cpu'):.3f}",
        f"{report.speed(result):.2f}",
        f"{report.speed(result, 'cpu'):.2f}",
        f"{result.psnr_y:.3f}",
        f"{round(result.loss, 4) + 0.0:.4f}",  # no minus before nothing
        to_torch,
        f"{result.max_difference:.1e}",
    )


def _finite(value: float) -> float | None:
    """JSON has no infinity: None where the pictures are the same."""
    return value if math.isfinite(value) else None
