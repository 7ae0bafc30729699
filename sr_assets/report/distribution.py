"""Geometry of the plot of gains by image: one strip of points and one box for each row.

Only coordinates and labels; the template turns them into SVG.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sr_assets.evaluation.results import BICUBIC
from sr_assets.report.plots import Tick, round_values

WIDTH, NARROW = 960, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 24, 24, 8, 44
_NAME = 20  # height of a line of text over the points
_POINTS, _SPREAD = 26, 7.0  # height of the points of a row, their reach around the middle


@dataclass(frozen=True)
class Dot:
    """One image of a row."""

    x: float
    y: float
    benchmark: str
    image: str
    said: str


@dataclass(frozen=True)
class Strip:
    """One row: its points, and the box from the first to the third quartile."""

    name: str
    kind: str
    top: float
    """Of its name."""
    middle: float
    """Of its points."""
    dots: tuple[Dot, ...]
    box: tuple[float, float]
    median: float
    said: str


@dataclass(frozen=True)
class Distribution:
    """Everything the SVG needs, in its own coordinates."""

    strips: tuple[Strip, ...]
    ticks: tuple[Tick, ...]
    zero: float
    """Where bicubic is."""
    height: int
    width: int
    right: int
    left: int = _LEFT
    top: int = _TOP

    @property
    def narrow(self) -> bool:
        """Whether what is said of a row stands below its name."""
        return self.width < WIDTH

    @property
    def bottom(self) -> int:
        """Height of the axis."""
        return self.height - _BOTTOM


def distribution(
    rows: Sequence[Mapping[str, Any]],
    gallery: Mapping[str, Any],
    benchmarks: Iterable[str],
    width: int = WIDTH,
) -> Distribution | None:
    """Gains of PSNR-Y over bicubic (dB) of every row on every image of some benchmarks.

    Args:
        rows: {"name", "kind"} of each, in the order of the table; bicubic itself has no strip.
        gallery: as in `render_page`.
        benchmarks: of the gallery.
        width: `WIDTH`, or `NARROW` for a phone.

    Returns:
        None with fewer than three images, or without bicubic.
    """
    images = [(b, image) for b in benchmarks for image in gallery.get(b, ())]
    gains = {
        row["name"]: [
            (gain, benchmark, image["name"])
            for benchmark, image in images
            if (gain := _gain(image["rows"], row["name"])) is not None
        ]
        for row in rows
        if row["name"] != BICUBIC
    }
    shown = [row for row in rows if gains.get(row["name"])]
    if len(images) < 3 or not shown:
        return None
    values = [gain for found in gains.values() for gain, _, _ in found]
    low, high = min(0.0, *values), max(0.0, *values)
    pad = max(0.03 * (high - low), 0.02)
    low, high = low - pad, high + pad

    def across(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (width - _LEFT - _RIGHT), 1)

    lines = 1 if width >= WIDTH else 2
    height = lines * _NAME + _POINTS
    strips = []
    for number, row in enumerate(shown):
        found = gains[row["name"]]
        top = _TOP + number * height
        middle = top + lines * _NAME + _POINTS / 2
        listed = sorted(gain for gain, _, _ in found)
        first, median, third = (
            statistics.quantiles(listed, n=4, method="inclusive") if len(listed) > 1 else listed * 3
        )
        worse = sum(gain < 0 for gain in listed)
        said = f"median {median:+.2f} dB, {listed[0]:+.2f} to {listed[-1]:+.2f}"
        if worse:
            every = f"; below bicubic on {worse} of {len(listed)}"
            said += every if lines == 1 else f"; {worse} below 0"
        strips.append(
            Strip(
                row["name"],
                row["kind"],
                top,
                middle,
                tuple(
                    Dot(
                        across(gain),
                        middle + _SPREAD * ((index * 5) % 7 - 3) / 3,
                        benchmark,
                        image,
                        f"{image}: {gain:+.2f} dB",
                    )
                    for index, (gain, benchmark, image) in enumerate(found)
                ),
                (across(first), across(third)),
                across(median),
                said.replace("-", "−"),
            )
        )
    return Distribution(
        tuple(strips),
        tuple(Tick(across(v), label.replace("-", "−")) for v, label in round_values(low, high)),
        across(0.0),
        _TOP + len(strips) * height + 6 + _BOTTOM,
        width,
        width - _RIGHT,
    )


def _gain(cells: Mapping[str, Any], row: str) -> float | None:
    own, anchor = (cells.get(name, {}).get("psnr_y") for name in (row, BICUBIC))
    return None if own is None or anchor is None else own - anchor
