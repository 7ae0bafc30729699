"""Mean PSNR-Y and gain over bicubic by kind of damage, and the kinds where a row gains least.

What a kind is, is decided in `damage_kinds.py`; laying it out is `report/damage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from sr_assets.evaluation.damage_kinds import NONE
from sr_assets.report.markdown import table

#: Samples that a kind needs to be called weak or strong.
FEWEST = 10

#: {"samples": how many, "bicubic": dB, "rows": {row: {"psnr_y": dB, "gain": dB over bicubic,
#: "error": standard error of the gain}}}; None for a number that its samples do not give.
Means = Mapping[str, Any]


def means_by_kind(
    kinds: Sequence[Mapping[str, Any]],
    members: np.ndarray,
    bicubic: np.ndarray,
    rows: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Means over all samples and over those of each kind.

    Samples that bicubic or any row meets exactly count, but are left out of every mean of every
    row, so that gains are differences over the same samples.

    Args:
        kinds: {"group", "label", "part"} of each.
        members: bool [N, kinds], which kinds each sample has.
        bicubic: float64 [N], PSNR-Y (dB), infinite where exact.
        rows: the same for each row.

    Returns:
        {"all": `Means`, "groups": [{"name", "kinds": [{"label", "part", **`Means`}]}]}; kinds
        without samples are left out. The standard error is that of independent samples.
    """
    finite = np.isfinite(bicubic)
    for values in rows.values():
        finite &= np.isfinite(values)

    def means(chosen: np.ndarray) -> dict[str, Any]:
        kept = chosen & finite
        return {
            "samples": int(chosen.sum()),
            "bicubic": _mean(bicubic[kept]),
            "rows": {row: _row(values[kept], bicubic[kept]) for row, values in rows.items()},
        }

    groups = []
    for name, numbered in groupby(enumerate(kinds), key=lambda entry: entry[1]["group"]):
        found = [
            {"label": kind["label"], "part": kind["part"], **means(members[:, number])}
            for number, kind in numbered
            if members[:, number].any()
        ]
        if found:
            groups.append({"name": name, "kinds": found})
    return {"all": means(np.ones(len(bicubic), bool)), "groups": groups}


@dataclass(frozen=True)
class Spot:
    """A kind of damage and what one row gains there."""

    group: str
    label: str
    gain: float
    psnr_y: float
    samples: int

    @property
    def words(self) -> str:
        """As part of a sentence: "without noise 2", "with JPEG 1: quality 30–47"."""
        if self.label == NONE:
            return f"without {self.group}"
        return f"with {self.group}: {self.label}"


def spots(damage: Mapping[str, Any], row: str) -> list[Spot]:
    """The kinds of `means_by_kind` with `FEWEST` samples or more, the smallest gain first."""
    found = [
        Spot(group["name"], kind["label"], own["gain"], own["psnr_y"], kind["samples"])
        for group in damage["groups"]
        for kind in group["kinds"]
        if kind["samples"] >= FEWEST and (own := kind["rows"][row])["gain"] is not None
    ]
    return sorted(found, key=lambda spot: spot.gain)


def markdown(damage: Mapping[str, Any], row: str) -> str:
    """The table of one row, and a line that names where it gains least."""
    lines = list(_cells("all", "", damage["all"], row))
    for group in damage["groups"]:
        for kind in group["kinds"]:
            lines += _cells(group["name"], kind["label"], kind, row)
    head = ("step", "kind", "samples", "PSNR-Y (dB)", "bicubic (dB)", "gain (dB)")
    weakest = spots(damage, row)[:3]
    said = "; ".join(f"{spot.words} ({spot.gain:+.2f} dB)" for spot in weakest)
    return table(head, lines) + (f"\n\nGains least over bicubic: {said}." if weakest else "")


def _cells(step: str, label: str, means: Means, row: str) -> Iterator[tuple[str, ...]]:
    own = means["rows"][row]
    if own["gain"] is not None:
        error = "" if own["error"] is None else f" ± {own['error']:.2f}"
        yield (
            step,
            label,
            str(means["samples"]),
            f"{own['psnr_y']:.2f}",
            f"{means['bicubic']:.2f}",
            f"{own['gain']:+.2f}{error}",
        )


def _row(own: np.ndarray, bicubic: np.ndarray) -> dict[str, float | None]:
    gains = own - bicubic
    mean = _mean(gains)
    error = None
    if mean is not None and len(gains) > 1:
        spread = math.fsum((gain - mean) ** 2 for gain in gains.tolist())
        error = math.sqrt(spread / (len(gains) - 1) / len(gains))
    return {"psnr_y": _mean(own), "gain": mean, "error": error}


def _mean(values: Iterable[float]) -> float | None:
    """The exact mean, whatever the order of summation; None of nothing."""
    listed = [float(value) for value in values]
    return math.fsum(listed) / len(listed) if listed else None
