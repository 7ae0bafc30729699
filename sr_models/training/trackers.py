"""Weights & Biases and trackio, for who has one of them installed and asks for it.

TensorBoard, which is always written, is `curves.py`; neither tracker is imported unless used.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from sr_models.one_line import one_line

Tracker = Literal["wandb", "trackio"]
Report = Callable[[int, Mapping[str, float]], None]


class TrackerError(ValueError):
    """A tracker is not installed, or cannot open a run."""


def require_tracker(tracker: Tracker) -> None:
    """Raises TrackerError that says how to install the package, when it is not there."""
    if importlib.util.find_spec(tracker) is None:
        raise TrackerError(
            f"{tracker} is not installed: pip install {tracker}, or leave tracker out"
        )


@contextmanager
def tracked(
    tracker: Tracker, *, project: str, run: str, config: Mapping[str, Any]
) -> Iterator[Report]:
    """Yield `report(step, numbers)` of a run there; one of the same name is gone on with.

    Where points and files go is the packages' own affair (WANDB_MODE, WANDB_DIR, TRACKIO_DIR and
    so on). Leaving the context with an exception marks the run as failed where the tracker knows
    that.

    Raises TrackerError when the package is missing or cannot open the run.
    """
    require_tracker(tracker)
    library = importlib.import_module(tracker)
    known = {"project": project, "name": run, "config": dict(config), "resume": "allow"}
    if tracker == "wandb":
        known["id"] = run
    try:
        opened = library.init(**known)
    except Exception as error:  # each has errors of its own; a run without a login is the usual one
        reason = one_line(error)
        raise TrackerError(
            f"{tracker} cannot open a run ({reason}): log in, set it offline, or leave tracker out"
        ) from error

    def report(step: int, numbers: Mapping[str, float]) -> None:
        opened.log(dict(numbers), step=step)

    try:
        yield report
    except BaseException:
        _finish(tracker, opened, failed=True)
        raise
    _finish(tracker, opened, failed=False)


def _finish(tracker: Tracker, opened: Any, *, failed: bool) -> None:
    if tracker == "wandb":
        opened.finish(exit_code=int(failed))
    else:
        opened.finish()
