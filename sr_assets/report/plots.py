"""Geometry of the plots of quality against cost; the template turns them into SVG.

Only coordinates and labels: no colours, no files, no plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sr_assets.report.numbers import short_count, three_figures

WIDTH, HEIGHT = 420, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 14, 44
_LABEL_HEIGHT, _LETTER = 15, 7.2


@dataclass(frozen=True)
class Point:
    """One row of the plot, with where its label goes."""

    name: str
    kind: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    """SVG text-anchor of the label: start or end."""


@dataclass(frozen=True)
class Tick:
    """A grid line and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Scatter:
    """Everything the SVG needs, in its own coordinates."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bicubic: float | None
    """Height of the bicubic line; None where it lies outside the plot."""
    frontier: tuple[tuple[float, float], ...]
    """Corners of the Pareto line: nothing drawn is better at the same cost or less."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def scatter(
    rows: Sequence[Mapping[str, Any]], bicubic: float | None, cost: str = "parameters"
) -> Scatter | None:
    """PSNR-Y against a cost on a logarithmic axis; None with fewer than two rows to draw.

    Args:
        rows: {"name", "kind", `cost`, "psnr_y"}; rows without either number are left out.
        bicubic: PSNR-Y of bicubic, drawn as a line when it is near enough to leave room for rows.
        cost: key of the number on the horizontal axis.
    """
    shown = [r for r in rows if r[cost] and r["psnr_y"] is not None]
    if len(shown) < 2:
        return None
    sizes = [math.log10(r[cost]) for r in shown]
    values = [r["psnr_y"] for r in shown]
    low, high = min(values), max(values)
    reach = 1.5 * max(high - low, 0.2)
    if bicubic is not None and low - reach <= bicubic <= high + reach:
        low, high = min(low, bicubic), max(high, bicubic)
    pad = max(0.08 * (high - low), 0.02)
    y0, y1 = low - pad, high + pad
    x0, x1 = min(sizes) - 0.15, max(sizes) + 0.15

    def across(size: float) -> float:
        return round(_LEFT + (size - x0) / (x1 - x0) * (WIDTH - _LEFT - _RIGHT), 1)

    def up(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - _TOP - _BOTTOM), 1)

    places = [(across(s), up(v)) for s, v in zip(sizes, values, strict=True)]
    points = _labelled([(r["name"], r["kind"]) for r in shown], places)
    return Scatter(
        points=points,
        x_ticks=tuple(
            Tick(across(math.log10(n)), short_count(n) if n >= 1 else three_figures(n))
            for n in _round_counts(10**x0, 10**x1)
        ),
        y_ticks=tuple(Tick(up(v), label) for v, label in round_values(y0, y1)),
        bicubic=up(bicubic) if bicubic is not None and y0 <= bicubic <= y1 else None,
        frontier=_frontier(places, WIDTH - _RIGHT),
    )


def _frontier(
    places: Sequence[tuple[float, float]], right: float
) -> tuple[tuple[float, float], ...]:
    """A staircase over the points that no other beats, from the cheapest to the right edge."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(places):
        if not corners:
            corners.append((x, y))
        elif y < corners[-1][1]:  # higher on the plot
            corners += [(x, corners[-1][1]), (x, y)]
    return (*corners, (right, corners[-1][1]))


def _labelled(
    names: Sequence[tuple[str, str]], places: Sequence[tuple[float, float]]
) -> tuple[Point, ...]:
    """Puts each label beside its point, at the nearest height where it covers nothing."""
    dots = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    taken: list[tuple[float, float, float, float]] = []
    points = []
    for (name, kind), (x, y) in zip(names, places, strict=True):
        length = len(name) * _LETTER
        best: tuple[float, float, float, str, tuple[float, float, float, float]] | None = None
        for anchor in ("start", "end"):
            left = x + 10 if anchor == "start" else x - 10 - length
            if left < _LEFT or left + length > WIDTH:
                continue
            for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6):
                middle = y + step * _LABEL_HEIGHT * 0.8
                box = (left, middle - 7, left + length, middle + 7)
                if box[1] < 0 or box[3] > HEIGHT - _BOTTOM:
                    continue
                hits = sum(_overlap(box, other) for other in [*dots, *taken])
                cost = hits * 100 + abs(step) * 3 + (anchor == "end")
                if best is None or cost < best[0]:
                    at = x + 10 if anchor == "start" else x - 10
                    best = (cost, at, middle, anchor, box)
        if best is None:  # a name longer than the plot: on top of its point, cut by the frame
            best = (0, _LEFT, y - 10, "start", (0, 0, 0, 0))
        taken.append(best[4])
        points.append(Point(name, kind, x, y, round(best[1], 1), round(best[2] + 4, 1), best[3]))
    return tuple(points)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _round_counts(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers when those are many, more when they are few.

    Two at least where `high` is twice `low` or more.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def between(*digits: float) -> list[float]:
        return [m * 10.0**p for p in powers for m in digits if low <= m * 10.0**p <= high]

    fine = between(1, 2, 5)
    if len(fine) < 2:
        return between(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    coarse = [n for n in fine if math.log10(n) % 1 < 1e-9 or math.log10(n) % 1 > 1 - 1e-9]
    return fine if len(fine) <= 7 or len(coarse) < 2 else coarse


def round_values(low: float, high: float) -> list[tuple[float, str]]:
    """Three to eight round values between two bounds, as numbers and as text."""
    raw = (high - low) / 7.5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [(n * step, f"{n * step:.{digits}f}") for n in range(first, last + 1)]
