"""Runs of Dagster started from the command line, and what killed ones leave behind.

Which outputs to make is decided in `plan.py` and `build.py`.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.runs import SqliteRunStorage  # nothing public tells it
from filelock import FileLock, Timeout

from sr_assets.lineage.records import asset_key
from sr_assets.lineage.stage import Ref

_LOCK = "srd/lock"  # names the lock that a run of the command line holds while it lives
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
    name = uuid.uuid4().hex
    path = _lock_path(instance, name)
    path.parent.mkdir(exist_ok=True)
    with FileLock(path):
        result = job.execute_in_process(
            instance=instance,
            asset_selection=[asset_key(r) for r in refs],
            partition_key=refs[0].partition,
            raise_on_error=False,
            run_config=_QUIET,
            tags={_LOCK: name},
        )
    path.unlink(missing_ok=True)
    return result


def bury_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ends runs whose processes are gone, and frees their pool slots; returns their ids.

    A process that is killed cannot report its end, and without the daemon nobody else does: the
    next run would wait for the slot for ever. A run of the command line has failed; one of the UI
    ended with it, and is cancelled so that the daemon does not start it again unasked. In a
    database that several homes may share, only what this home's command line ran is judged: the
    rest may run on another machine, and a daemon looks after it.
    """
    alone = isinstance(instance.run_storage, SqliteRunStorage)
    buried = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        if _SERVER in run.tags:
            if not alone or _answers(json.loads(run.tags[_SERVER])):
                continue
            instance.report_run_canceled(run, "the UI that ran it was stopped")
        elif _LOCK in run.tags:
            path = _lock_path(instance, run.tags[_LOCK])
            if not (path.exists() and _is_free(path)):
                continue
            now = instance.get_run_by_id(run.run_id)
            if now is None or now.is_finished:
                continue  # it ended between our two looks
            instance.report_run_failed(run, "its process was killed")
            path.unlink(missing_ok=True)
        else:
            continue
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        buried.append(run.run_id)
    return buried


def _lock_path(instance: dg.DagsterInstance, name: str) -> Path:
    return Path(instance.root_directory) / "locks" / name


def _is_free(path: Path) -> bool:
    """Whether nobody holds the lock.

    It ends with its process, unlike a process id: a zombie keeps that, and another container on the
    same home gives it to a stranger.
    """
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False


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
