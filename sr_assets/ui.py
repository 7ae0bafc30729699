"""The Dagster UI of one recipe on this machine: webserver, daemon and code location as one thing.

Starts, guards and stops the processes; what they show is `definitions.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import IO

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from sr_assets.automation.inbox import inbox_of
from sr_assets.automation.names import ADDRESS_VARIABLE, AUTOMATION_VARIABLE, INTERRUPTED
from sr_assets.definitions import RECIPE_VARIABLE
from sr_assets.graph import build_graph
from sr_assets.home import dagster_home, open_instance
from sr_assets.lineage.runs import bury_dead_runs
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import load_recipe, shipped_recipes

_HOST = "127.0.0.1"
_AT_WORK = [s for s in NOT_FINISHED_STATUSES if s is not dg.DagsterRunStatus.QUEUED]
_CLEAN_END = 10.0  # seconds for the servers to end by themselves, before what is left is killed


def serve(recipe_name: str, port: int, tell: Callable[[str], None]) -> int:
    """Runs the UI until Ctrl-C (0) or until it ends by itself (its exit code).

    Raises:
        RecipeError: the recipe cannot be used.
        StageError: the port is taken, or a UI runs already on the same Dagster home.
    """
    recipe = load_recipe(recipe_name)
    build_graph(recipe)  # a mistake is told here, not in a server's stack trace
    if recipe_name not in shipped_recipes():
        recipe_name = str(Path(recipe_name).absolute())
    automation = os.environ.get(AUTOMATION_VARIABLE, "on")
    home = dagster_home()
    address = f"http://{_HOST}:{port}"
    with _only_one(home) as lock, _signals() as asked:
        _refuse_busy(port)
        _end_dead_runs()
        server = subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-W", "ignore", "-m", "dagster", "dev"),
                *("-w", str(files("sr_assets") / "workspace.yaml"), "-h", _HOST, "-p", str(port)),
                *("--log-level", "error", "--code-server-log-level", "warning"),
            ],
            env={
                # A look at a large project takes longer than the minute that Dagster allows.
                "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS": "600",
                **os.environ,
                RECIPE_VARIABLE: recipe_name,
                AUTOMATION_VARIABLE: automation,
                ADDRESS_VARIABLE: address,
            },
            # Its own group, so that Ctrl-C reaches it once and through us.
            start_new_session=True,
            # The lock lives as long as the daemon, even when this process is killed.
            pass_fds=(lock.fileno(),),
        )
        lock.write(f"{address} (process {server.pid})")
        lock.flush()
        tell(f"Starting the Dagster UI of {recipe_name} ...")
        try:
            told = False
            while not asked() and server.poll() is None:
                if not told and _answers(address):
                    told = True
                    tell(f"The graph is at {address} (Ctrl-C stops it)")
                    if automation == "on":
                        tell(
                            "What is stale is made by itself; folders of images that are put into "
                            f"{inbox_of(recipe, recipe_name)} become datasets"
                        )
                time.sleep(0.2)
            if not asked():
                return server.returncode or 1
            tell("Stopping ... (Ctrl-C again: at once)")
            return 0
        finally:
            _stop(server, lambda: asked() > 1)


@contextmanager
def _only_one(home: Path) -> Iterator[IO[str]]:
    """Holds the home: two daemons on one would both start every queued run."""
    import fcntl

    with (home / "ui.lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StageError(
                f"the UI of {home} runs already at {lock.read().strip()}: stop that one, "
                "or set DAGSTER_HOME to another folder"
            ) from None
        lock.truncate(0)
        yield lock


def _refuse_busy(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise StageError(f"port {port} cannot be used ({error}): give another --port") from None


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Yields a question: how often did somebody ask us to stop?"""
    asked = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=1):  # noqa: S310
            return True
    except OSError:
        return False


def _stop(server: subprocess.Popen[bytes], at_once: Callable[[], bool]) -> None:
    """Ends the server and all it started; its runs are cancelled, what they finished stays."""
    with open_instance() as instance:
        unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=_AT_WORK))
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _CLEAN_END
        while server.poll() is None and time.monotonic() < deadline and not at_once():
            time.sleep(0.1)
    # What is left of its group: steps that are at work, and servers that wait for those.
    with contextlib.suppress(ProcessLookupError):
        deadline = time.monotonic() + _CLEAN_END  # the dead whom nobody buries count as its group
        while time.monotonic() < deadline:
            os.killpg(server.pid, signal.SIGKILL)
            server.poll()
            time.sleep(0.1)
    _end_dead_runs([run.run_id for run in unfinished])


def _end_dead_runs(stopped: Sequence[str] = ()) -> None:
    """Ends runs without a process, and marks what was stopped with the UI: it is asked for again.

    Args:
        stopped: runs that were at work when the UI was asked to stop.
    """
    with open_instance() as instance:
        for run_id in {*bury_dead_runs(instance), *stopped}:
            run = instance.get_run_by_id(run_id)
            if run is not None and run.status is not dg.DagsterRunStatus.SUCCESS:
                instance.add_run_tags(run_id, {INTERRUPTED: "true"})
