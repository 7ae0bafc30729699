"""Runs of Dagster started from the command line, and what a killed one leaves behind.

Which outputs to make is decided in `plan.py` and `build.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import dagster as dg
import psutil

from sr_assets.lineage.records import asset_key
from sr_assets.lineage.stage import Ref

_PID, _STARTED, _HOST = "srd/pid", "srd/process_started", "srd/host"
#: Dagster's own console log would drown the progress bars; everything is in the UI all the same.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def execute(
    job: dg.JobDefinition, instance: dg.DagsterInstance, refs: Sequence[Ref]
) -> dg.ExecuteInProcessResult:
    """Materialises outputs of one partition (or of none) in this process, as one run of Dagster."""
    return job.execute_in_process(
        instance=instance,
        asset_selection=[asset_key(r) for r in refs],
        partition_key=refs[0].partition,
        raise_on_error=False,
        run_config=_QUIET,
        tags={_PID: str(os.getpid()), _STARTED: _started(os.getpid()), _HOST: socket.gethostname()},
    )


def bury_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Marks runs whose command-line process is gone as failed and frees their pool slots.

    A process that is killed cannot report its end, and without the daemon nobody else does: the
    next run would wait for the slot for ever.
    """
    buried = []
    unfinished = dg.RunsFilter(
        statuses=[
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.NOT_STARTED,
        ]
    )
    for run in instance.get_runs(filters=unfinished):
        pid = run.tags.get(_PID)
        if pid is None or run.tags.get(_HOST) != socket.gethostname():
            continue
        if _started(int(pid)) != run.tags.get(_STARTED):
            instance.report_run_failed(run, "its process was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            buried.append(run.run_id)
    return buried


def _started(pid: int) -> str:
    """When a process started, so that a reused process id is not taken for the old one."""
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.NoSuchProcess:
        return "gone"
