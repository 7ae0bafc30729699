"""Processes started as by a stage that Dagster runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from sr_assets.lineage.stage import Job
from sr_assets.lineage.together import run_together


def in_a_step(folder: Path, count: int, job: Job, hear: Callable[[Any], None]) -> None:
    """`run_together` within a step of an asset of its own."""

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        run_together(context, folder, count, job, hear)
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([trained], instance=instance)
