"""Geometry of the small plots of PSNR-Y over earlier leaderboards: one line for each row.

Only coordinates and labels; the moments come from `evaluation/history.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sr_assets.evaluation.history import Moment
from sr_assets.report.numbers import signed

WIDTH, HEIGHT = 240, 56
_PAD = 6
_LEAST = 0.02  # dB that the height of a plot stands for at least


@dataclass(frozen=True)
class Line:
    """One row over time; every plot has the same axis of time, and its own of PSNR-Y."""

    name: str
    kind: str
    points: tuple[tuple[float, float, str, bool], ...]
    """x, y, what was measured when, and whether it was a night."""
    last: float
    """PSNR-Y now (dB)."""
    change: str
    """Against the moment before (dB); empty for the first."""
    span: str
    """Lowest and highest (dB)."""
    width: int = WIDTH
    height: int = HEIGHT


def history_lines(rows: Sequence[Mapping[str, Any]], moments: Sequence[Moment]) -> list[Line]:
    """A line for every row that was measured at the last of two or more moments.

    Moments are spaced evenly: what matters is the order of versions and nights.
    """
    if len(moments) < 2:
        return []
    lines = []
    for row in rows:
        values = [
            (index, moment.scores[row["name"]], moment)
            for index, moment in enumerate(moments)
            if row["name"] in moment.scores
        ]
        if not values or values[-1][0] != len(moments) - 1:
            continue
        low, high = (f(v for _, v, _ in values) for f in (min, max))
        middle, reach = (low + high) / 2, max(high - low, _LEAST)
        lines.append(
            Line(
                row["name"],
                row["kind"],
                tuple(
                    (
                        round(_PAD + index / (len(moments) - 1) * (WIDTH - 2 * _PAD), 1),
                        round(HEIGHT / 2 - (value - middle) / reach * (HEIGHT - 2 * _PAD), 1),
                        f"{'night' if moment.night else 'leaderboard'} of "
                        f"{moment.made:%Y-%m-%d %H:%M} UTC: {value:.3f} dB",
                        moment.night,
                    )
                    for index, value, moment in values
                ),
                values[-1][1],
                f"{signed(values[-1][1] - values[-2][1], 3)} dB" if len(values) > 1 else "",
                f"{low:.2f} to {high:.2f} dB",
            )
        )
    return lines
