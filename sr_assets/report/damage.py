"""What the page's section "By kind of damage" shows, in the order in which it shows it.

The numbers come from `leaderboard.json`; `templates/damage.html.j2` turns this into HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sr_assets.evaluation.damage_board import steps_of
from sr_assets.evaluation.damage_means import FEWEST, Spot, spots
from sr_assets.report.damage_words import describe

#: Share of the colour in the strongest cell (%): text on it stays readable, light or dark.
_STRONGEST = 42


def damage_section(leaderboard: Mapping[str, Any]) -> dict[str, Any] | None:
    """Table, sentences and examples; None for a leaderboard without damage.

    Cells are coloured by how far the gain of a kind lies above or below the row's mean gain.
    """
    damage = leaderboard.get("damage")
    if damage is None:
        return None
    kinds = {row["name"]: row["kind"] for row in leaderboard["rows"]}
    names = [name for name in kinds if name in damage["all"]["rows"]]
    largest = max((abs(d) for d in _deviations(damage, names)), default=0.0)
    return {
        "rows": [{"name": name, "kind": kinds[name]} for name in names],
        "datasets": damage["datasets"],
        "fewest": FEWEST,
        "all": _line({"label": "all samples", "part": False, **damage["all"]}, damage, names, 0.0),
        "groups": [
            {
                "name": group["name"],
                "lines": [_line(kind, damage, names, largest) for kind in group["kinds"]],
            }
            for group in damage["groups"]
        ],
        "said": _said(damage, names, kinds),
        "examples": [_example(example) for example in damage["examples"]],
    }


def _deviations(damage: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    """Gain of each kind and row minus the row's mean gain (dB), of kinds with enough samples."""
    return [
        deviation
        for group in damage["groups"]
        for kind in group["kinds"]
        if kind["samples"] >= FEWEST
        for name in names
        if (deviation := _deviation(kind, damage, name)) is not None
    ]


def _deviation(kind: Mapping[str, Any], damage: Mapping[str, Any], name: str) -> float | None:
    gain, mean = kind["rows"][name]["gain"], damage["all"]["rows"][name]["gain"]
    return None if gain is None or mean is None else gain - mean


def _line(
    kind: Mapping[str, Any], damage: Mapping[str, Any], names: Sequence[str], largest: float
) -> dict[str, Any]:
    cells = []
    for name in names:
        deviation = _deviation(kind, damage, name) or 0.0
        share = min(1.0, abs(deviation) / largest) if largest else 0.0
        heat = round(_STRONGEST * share) if kind["samples"] >= FEWEST else 0
        cells.append(
            {**kind["rows"][name], "heat": heat, "side": "above" if deviation > 0 else "below"}
        )
    return {**{key: kind[key] for key in ("label", "part", "samples", "bicubic")}, "cells": cells}


def _said(
    damage: Mapping[str, Any], names: Sequence[str], kinds: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Of each model (of each expert where there is no model): mean gain, weakest, strongest."""
    means = damage["all"]["rows"]
    measured = [name for name in names if means[name]["gain"] is not None]
    models = [name for name in measured if kinds[name] != "expert"]
    said = []
    for name in models or measured:
        found = spots(damage, name)
        if found:
            said.append(
                {
                    "name": name,
                    "kind": kinds[name],
                    "gain": means[name]["gain"],
                    "weakest": _spot(found[0]),
                    "strongest": _spot(found[-1]),
                }
            )
    return said


def _spot(spot: Spot) -> dict[str, Any]:
    return {"words": spot.words, "gain": spot.gain, "psnr_y": spot.psnr_y}


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "where": f"{example['dataset']}, patch {example['index']}, version {example['variant']}",
        "words": describe(steps_of(example)),
        "pictures": example["pictures"],
    }
