"""The earlier leaderboards and nights of a recipe, as points in time: PSNR-Y of every row.

It reads what lies in the root of the output that is being made; drawing is `report/history.py`.
What it finds differs from root to root, so it goes only into the page, never into content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from upath import UPath

from sr_assets.storage import MARKER

_MOST = 200  # outputs that are read, the newest
_NIGHT = "%Y-%m-%dT%H%M%S.%f"  # name of a night's file


@dataclass(frozen=True)
class Moment:
    """One leaderboard or night: when it was made, and the mean PSNR-Y (dB) of its rows."""

    made: datetime
    scores: Mapping[str, float]
    night: bool = False
    """Whether a nightly evaluation measured it again."""


def earlier_leaderboards(folder: UPath, benchmarks: Sequence[str]) -> list[Moment]:
    """Every whole leaderboard in `folder`, oldest first.

    Args:
        folder: of all outputs of `evaluation/leaderboard`.
        benchmarks: the mean is over these; a leaderboard that lacks one of them is left out.
    """
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        found = [(_made(path / MARKER), path) for path in folder.iterdir()]
    known = sorted(
        ((made, path) for made, path in found if made), key=lambda one: (one[0], str(one[1]))
    )
    moments = []
    for made, path in known[-_MOST:]:
        with suppress(FileNotFoundError, json.JSONDecodeError, KeyError):
            board = json.loads((path / "leaderboard.json").read_bytes())
            if scores := mean_scores(board, benchmarks):
                moments.append(Moment(made, scores))
    return moments


def nights(folder: UPath, benchmarks: Sequence[str]) -> list[Moment]:
    """Every night's measurement in `folder`, oldest first; arguments as above."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        found = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    moments = []
    for path in found[-_MOST:]:
        with suppress(ValueError, KeyError, TypeError):  # another program's file, or a torn one
            made = datetime.strptime(path.stem, _NIGHT).replace(tzinfo=UTC)
            rows: dict[str, dict[str, Any]] = {}
            for one in json.loads(path.read_bytes())["rows"]:
                rows.setdefault(one["row"], {})[one["benchmark"]] = {"psnr_y": one["psnr_y"]}
            board = {"rows": [{"name": row, "benchmarks": own} for row, own in rows.items()]}
            if scores := mean_scores(board, benchmarks):
                moments.append(Moment(made, scores, night=True))
    return moments


def mean_scores(leaderboard: Mapping[str, Any], benchmarks: Sequence[str]) -> dict[str, float]:
    """Mean PSNR-Y over `benchmarks` (dB) of every row that was measured on all of them."""
    scores = {}
    for row in leaderboard["rows"]:
        measured = row["benchmarks"]
        values = [measured[b]["psnr_y"] for b in benchmarks if b in measured]
        if len(values) == len(benchmarks) and None not in values:
            scores[row["name"]] = sum(values) / len(values)
    return scores


def _made(path: UPath) -> datetime | None:
    """When a marker was written; None where there is none, or the storage does not say."""
    with suppress(FileNotFoundError, NotADirectoryError, AttributeError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return None
