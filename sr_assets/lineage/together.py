"""Several processes that do one job under torchrun, started from a step through Dagster Pipes.

What a process of the group does at its start and at its end is `group_process.py`.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError
from dagster._core.pipes.client import PipesMessageReader
from dagster._core.pipes.utils import PipesTempFileMessageReader

from sr_assets.lineage.group_process import FAILURE, JOB, MODULE
from sr_assets.lineage.stage import Job, StageError


def run_together(
    context: dg.AssetExecutionContext,
    folder: Path,
    count: int,
    job: Job,
    hear: Callable[[Any], None],
) -> None:
    """Runs `job` in `count` processes of one group, to the end of all.

    Cancelling the step ends them; where the kernel is Linux's, so does its death, however sudden.

    Args:
        context: of the step.
        folder: of the output that is being built; the log of torchrun goes there.
        count: processes.
        job: a function of a module, or a `functools.partial` of one: it gets there pickled. What
            the first process tells must be JSON.
        hear: takes what the first process tells, on another thread, in order.

    Raises:
        StageError: a process failed, with its own line where it said one.
        Exception: what `hear` raised first, once the processes have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    (folder / JOB).write_bytes(pickle.dumps(job))
    reader = Listening(hear)
    command = [sys.executable, "-m", MODULE, str(os.getpid()), str(count), str(folder)]
    try:
        dg.PipesSubprocessClient(message_reader=reader).run(context=context, command=command)
    except DagsterPipesExecutionError as error:
        said = folder / FAILURE
        reason = said.read_text() if said.exists() else f"compute.processes: {error}"
        raise StageError(reason) from None
    if reader.failure:
        raise reader.failure


class Listening(PipesMessageReader):
    """Dagster's reader of a file of messages, except that ours are heard at once."""

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self._hear, self._file = hear, PipesTempFileMessageReader()
        self.failure: Exception | None = None

    @contextmanager
    def read_messages(self, handler: Any) -> Iterator[Any]:
        """Reads while inside; yields what tells the processes where to write."""
        with self._file.read_messages(cast(Any, _Ear(handler, self._take))) as parameters:
            yield parameters

    @property
    def expected_writer_count(self) -> int:
        """Processes that are heard."""
        return 1

    def no_messages_debug_text(self) -> str:
        """What Dagster says when nothing came."""
        return self._file.no_messages_debug_text()

    def _take(self, told: Any) -> None:
        try:
            if self.failure is None:
                self._hear(told)
        except Exception as error:  # it would end on this thread; whoever waits raises it
            self.failure = error


class _Ear:
    """In front of Dagster's handler, which would keep our messages until the end."""

    def __init__(self, handler: Any, hear: Callable[[Any], None]) -> None:
        self._handler, self._hear = handler, hear

    def handle_message(self, message: Any) -> None:
        if message["method"] == "report_custom_message":
            self._hear(message["params"]["payload"])
        else:
            self._handler.handle_message(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)
