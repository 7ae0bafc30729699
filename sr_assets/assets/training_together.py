"""A training shared by several processes: what each does, and how the first is listened to.

What is shared, and how, is `sr_models/processes.py`; starting processes is Dagster's side,
`lineage/together.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.assets.training_run import open_run
from sr_assets.lineage.stage import Given, Job, StageContext, Tell

if TYPE_CHECKING:
    from sr_assets.assets.training import Trainee


def joined(given: Given) -> AbstractContextManager[None]:
    """Inside, this process is one of the group that it was started for, on a device of its own."""
    from sr_models.device import pick_device
    from sr_models.processes import joined as joined_group

    return joined_group(pick_device(given.recipe.compute.device).type)


def train_share(given: Given, name: str, trainee: Trainee, work: Path, tell: Tell) -> None:
    """Trains model `name` to its last checkpoint in `work`, as one of the processes of a group.

    Raises:
        StageError: as `TrainingRun.train` does.
    """
    result = open_run(given, name, trainee).train(
        work,
        report=lambda step, numbers: tell({"step": step, "numbers": dict(numbers)}),
        advance=lambda n: tell({"steps": n}),
        say=lambda line: tell({"line": line}),
    )
    tell({"data_wait": result.data_wait})


def train_together(
    context: StageContext,
    share: Job,
    report: Callable[[int, Mapping[str, float]], None],
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> float:
    """Lets `compute.processes` processes train, and passes on what the first of them tells.

    Args:
        context: of the stage.
        share: what each process does: `train_share` of one model.
        report, advance, say: as `TrainingRun.train` takes them.

    Returns:
        The share of the time of its steps that the first process waited for batches.

    Raises:
        StageError: one of them failed.
    """
    data_wait = 0.0

    def hear(told: dict[str, Any]) -> None:
        nonlocal data_wait
        if "steps" in told:
            advance(told["steps"])
        elif "numbers" in told:
            report(told["step"], told["numbers"])
        elif "line" in told:
            say(told["line"])
        else:
            data_wait = told["data_wait"]

    context.together(context.recipe.compute.processes, share, hear)
    return data_wait
