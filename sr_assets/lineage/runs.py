"""Runs of Dagster started from the command line, and what killed ones leave behind.

Which outputs to make is decided in `plan.py` and `build.py`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import psutil

from sr_assets.lineage.records import asset_key
from sr_assets.lineage.stage import Ref

_PID, _STARTED, _HOST = "srd/pid", "srd/process_started", "srd/host"
_SERVER = ".dagster/grpc_info"  # Dagster's own tag on runs that the daemon launched
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
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
    """Ends runs whose processes are gone, and frees their pool slots; returns their ids.

    A process that is killed cannot report its end, and without the daemon nobody else does: the
    next run would wait for the slot for ever. A run of the command line has failed; one of the UI
    ended with it, and is cancelled so that the daemon does not start it again unasked.
    """
    buried = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        if _SERVER in run.tags and not _answers(json.loads(run.tags[_SERVER])):
            instance.report_run_canceled(run, "the UI that ran it was stopped")
        elif _PID in run.tags and _is_gone(run.tags):
            instance.report_run_failed(run, "its process was killed")
        else:
            continue
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        buried.append(run.run_id)
    return buried


def _is_gone(tags: Mapping[str, str]) -> bool:
    here = tags.get(_HOST) == socket.gethostname()
    return here and _started(int(tags[_PID])) != tags.get(_STARTED)


def _answers(server: Mapping[str, Any]) -> bool:
    """Whether the code server that a run was started by still listens, as far as can be known."""
    if not server.get("socket"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(server["socket"])
        except OSError:
            return False
    return True


def _started(pid: int) -> str:
    """When a process started, so that a reused process id is not taken for the old one."""
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.NoSuchProcess:
        return "gone"
