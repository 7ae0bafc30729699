"""The two to four numbers of the page that a reader wants first.

They are chosen from the first table; every other number is in `tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sr_assets.evaluation.results import BICUBIC
from sr_assets.report.numbers import decibels, signed, three_figures


def headline(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The two to four numbers that a reader wants first; self-ensembles are left out."""
    measured = (r for r in rows if r["psnr_y"] is not None and not r["self_ensemble_of"])
    named = {r["name"]: r for r in measured}
    figures = []
    best_expert = _best(named, "expert")
    if BICUBIC in named:
        value = decibels(named[BICUBIC]["psnr_y"])
        figures.append(
            {"label": "bicubic", "kind": "bicubic", "value": value, "said": "the anchor"}
        )
    if best_expert:
        figures.append(_figure(best_expert, f"best of the experts, {_gain(best_expert)}"))
    if fusion := _best(named, "fusion"):
        against = (
            f"{signed(fusion['psnr_y'] - best_expert['psnr_y'])} dB against the best expert"
            if best_expert
            else _gain(fusion)
        )
        figures.append(_figure(fusion, against))
    if student := _best(named, "student"):
        figures.append(_figure(student, _gain(student) + _lighter(student, fusion)))
    for kind in ("plain", "model"):
        if (best := _best(named, kind)) and len(figures) < 3:
            figures.append(_figure(best, _gain(best)))
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


def _figure(row: Mapping[str, Any], said: str) -> dict[str, str]:
    return {
        "label": row["name"],
        "kind": row["kind"],
        "value": decibels(row["psnr_y"]),
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
