"""torchrun for `together.py`, and the processes that it starts: none outlives what it works for.

`python -m sr_assets.lineage.group_process STEP COUNT FOLDER` is torchrun, called by the step;
`... AGENT FOLDER` is a process of the group, called by torchrun. What they do is pickled in FOLDER.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.lineage.parents import end_with
from sr_assets.lineage.stage import StageError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

MODULE = "sr_assets.lineage.group_process"
JOB, FAILURE = "job.pickle", "failure"


def start(step: int, count: int, folder: Path) -> None:
    """Runs torchrun, which ends the whole group when one of it fails or a signal comes."""
    end_with(step, signal.SIGTERM)
    logging.disable()  # by torchrun: what failed is told in one line
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun would give each process one thread, however many cores there are.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    words = ["--standalone", f"--nproc-per-node={count}", f"--log-dir={folder}", "-m", MODULE]
    try:
        torchrun.main([*words, str(os.getpid()), str(folder)])
    except ChildFailedError as error:
        (folder / FAILURE).write_text(reason(error, count))
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def work(agent: int, folder: Path) -> None:
    """Does the job; only the first process is heard."""
    end_with(agent, signal.SIGKILL)
    # At once, whatever it waits for: files are written so that any moment will do.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        job = pickle.loads((folder / JOB).read_bytes())  # noqa: S301 - the step wrote it
        if os.environ["RANK"] == "0":
            from dagster_pipes import open_dagster_pipes

            with open_dagster_pipes() as pipes:
                job(pipes.report_custom_message)
        else:
            job(_nobody_hears)
    except BaseException as error:
        get_error_handler().record_exception(error)
        if not isinstance(error, StageError):
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # nothing that is left open may wait for the others


def _nobody_hears(told: Any) -> None:
    """The first process tells the same."""


def reason(error: ChildFailedError, count: int) -> str:
    """One line: what we say ourselves, else a kill, else the first failure.

    When one process ends, the others fail too, since they cannot reach it, or torchrun ends them.
    """
    ours, failures = f"{StageError.__name__}: ", error.failures
    told = {rank: _message(failure) for rank, failure in failures.items()}
    for message in told.values():
        if message.startswith(ours):
            return message.removeprefix(ours)
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    killed = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
    rank = killed[0] if killed else error.get_first_failure()[0]
    return f"compute.processes: number {rank + 1} of {count} failed: {told[rank].splitlines()[0]}"


def _message(failure: ProcessFailure) -> str:
    """What an exception or a signal said; torchrun gives a record of an exception."""
    told: Any = failure.message
    return str(told["message"] if isinstance(told, dict) else told)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        start(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    else:
        work(int(sys.argv[1]), Path(sys.argv[2]))
