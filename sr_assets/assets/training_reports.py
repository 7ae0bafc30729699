"""What a training run tells people while it goes on: Dagster's curves, trackers, lines of the log.

What is measured, and how often, is decided by the loop, `sr_models/training/loop.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from sr_assets.lineage.stage import Observe, StageContext, StageError
from sr_assets.recipe.networks import Model

_POINTS = 48  # of the losses and as many of PSNR-Y in Dagster; TensorBoard has every one

Report = Callable[[int, Mapping[str, float]], None]


def require_tracker(model: Model, path: str) -> None:
    """Raises StageError for a tracker that is not installed."""
    from sr_models.training import trackers

    if model.train.tracker:
        try:
            trackers.require_tracker(model.train.tracker)
        except ValueError as error:
            raise StageError(f"{path}.train.tracker: {error}") from error


@contextmanager
def tracked(context: StageContext, name: str, model: Model, path: str) -> Iterator[Report]:
    """Yields what passes points on to the tracker of the recipe, if it has one."""
    from sr_models.training import trackers

    if model.train.tracker is None:
        yield lambda step, numbers: None
        return
    try:
        with trackers.tracked(
            model.train.tracker,
            project=context.recipe.name,
            run=f"{name}-{context.output.final.name}",  # a resumed run has the same address
            config=model.train.model_dump(mode="json"),
        ) as track:
            yield track
    except trackers.TrackerError as error:
        raise StageError(f"{path}.train.tracker: {error}") from error


def curves(observe: Observe, steps: int) -> Report:
    """Passes points on to Dagster, evenly thinned; the last of each kind is always drawn."""
    drawn = {True: -math.inf, False: -math.inf}
    known: dict[str, float] = {}

    def report(step: int, numbers: Mapping[str, float]) -> None:
        nonlocal known
        validated = "psnr_y" in numbers
        if step - drawn[validated] < steps / _POINTS and step != steps:
            return
        drawn[validated] = step
        known = carried(known, numbers)
        observe({"step": step, **known})

    return report


def carried(known: Mapping[str, float], numbers: Mapping[str, float]) -> dict[str, float]:
    """The curves' values after a point: its own, and the last known of the curves it says nothing
    of, since Dagster breaks a curve at every observation that lacks it.

    >>> carried({"train/psnr_y": 30.0}, {"loss/total": 0.5, "loss/hr/l1": 0.5})
    {'train/psnr_y': 30.0, 'train/loss': 0.5, 'train/hr/l1': 0.5}
    """
    total = {"loss": numbers["loss/total"]} if "loss/total" in numbers else {}
    named = {k.removeprefix("loss/"): v for k, v in numbers.items() if k != "loss/total"}
    return {**known, **{f"train/{k}": v for k, v in {**total, **named}.items()}}


def validation_log(log: Callable[[str], None]) -> Report:
    """One line for each validation: what it measured, and how the steps before it were fed."""
    from sr_models.training.waiting import waiting_line

    waited = 0.0

    def report(step: int, numbers: Mapping[str, float]) -> None:
        nonlocal waited
        waited = numbers.get("data_wait", waited)
        if "psnr_y" in numbers:
            psnr = numbers["psnr_y"]
            log(f"step {step}: validation PSNR-Y {psnr:.2f} dB, {waiting_line(waited)}")

    return report


def take_curves(context: StageContext) -> None:
    """Puts TensorBoard's files into the output."""
    folder = context.output.work / "tensorboard"
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = f"tensorboard/{file.relative_to(folder).as_posix()}"
            context.output.take(file, name, content=False)
