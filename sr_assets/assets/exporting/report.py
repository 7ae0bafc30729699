"""What an export reports: its files beside the network, and those that were held back.

Measuring is `sr_models/export/parity.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sr_assets.report.markdown import plain, table


def held_back(report: Mapping[str, Any]) -> list[str]:
    """The files that an export was asked for and has not, each with the reason in one line.

    Args:
        report: what `export.json` of it says.
    """
    return [f"{name}: {reason}" for name, reason in sorted(report["held_back"].items())]


def metadata_of(report: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """What Dagster shows of an export, a table of its files among it.

    Args:
        report: what `export.json` says.
        description: what `description.json` says.
    """
    numbers: dict[str, Any] = {
        "architecture": description["architecture"],
        "parameters": description["parameters"],
        "bytes": sum(file["size"] for file in report["files"].values()),
        "files": {"md": _table(report)},
        "patches": {"md": _patches(report)},
    }
    if report["spandrel"]:
        numbers["spandrel_difference"] = report["spandrel"]["max_difference"]
    if report["onnx"]:
        onnx = report["onnx"]
        if "error" in onnx:
            numbers["onnx"] = onnx["error"]
        else:
            numbers["onnx_difference"] = onnx["max_difference"]
    if report["held_back"]:
        numbers["held_back"] = "; ".join(held_back(report))
    return numbers


def _table(report: Mapping[str, Any]) -> str:
    head = (
        "file", "kB", "sha256", "backend", "largest difference", "mean difference",
        "PSNR-Y to torch", "PSNR-Y change", "s/megapixel",
    )  # fmt: skip
    rows = []
    for name, file in report["files"].items():
        told = [name, f"{file['size'] / 1000:.1f}", f"`{file['sha256'][:16]}`", file["backend"]]
        parity = file["parity"]
        if parity is None:
            rows.append((*told, *["not measured"] * 5))
            continue
        to_torch = parity["psnr_y_to_torch"]
        rows.append(
            (
                *told,
                f"{parity['max_difference']:.2g}",
                f"{parity['mean_difference']:.2g}",
                "identical" if to_torch is None else f"{to_torch:.1f} dB",
                f"{parity['psnr_y_change']:+.4f} dB",
                f"{parity['seconds_per_megapixel']:.3f}",
            )
        )
    for name, reason in report["held_back"].items():
        rows.append((name, "held back", plain(reason), *[""] * 6))
    return table(head, rows)


def _patches(report: Mapping[str, Any]) -> str:
    """A row for each patch: what the network scores, and what each file gains or loses on it."""
    files = {n: f["parity"]["patches"] for n, f in report["files"].items() if f["parity"]}
    names, scores = report["measured_on"]["patches"], report["torch"]["patches"]
    rows = [
        (
            name,
            "identical to HR" if score is None else f"{score:.2f} dB",
            *(_change(patches[index]) for patches in files.values()),
        )
        for index, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    return table(("patch", "PSNR-Y of torch", *files), rows)


def _change(patch: Mapping[str, float | None]) -> str:
    change, to_torch = patch["psnr_y_change"], patch["psnr_y_to_torch"]
    if to_torch is None:
        return "identical"
    moved = "not finite" if change is None else f"{change:+.4f} dB"
    return f"{moved} ({to_torch:.1f} dB to torch)"


def finite(value: float) -> float | None:
    """JSON has no infinity: a picture equal to the other one has no PSNR."""
    return value if math.isfinite(value) else None
