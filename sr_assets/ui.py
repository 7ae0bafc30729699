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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import IO

from sr_assets.definitions import RECIPE_VARIABLE
from sr_assets.graph import build_graph
from sr_assets.home import dagster_home, open_instance
from sr_assets.lineage.runs import bury_dead_runs
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import load_recipe, shipped_recipes

_HOST = "127.0.0.1"
_CLEAN_END = 10.0  # seconds for the servers to end by themselves, before what is left is killed


def serve(recipe_name: str, port: int, tell: Callable[[str], None]) -> int:
    """Runs the UI until Ctrl-C (0) or until it ends by itself (its exit code).

    Raises:
        RecipeError: the recipe cannot be used.
        StageError: the port is taken, or a UI runs already on the same Dagster home.
    """
    build_graph(load_recipe(recipe_name))  # a mistake is told here, not in a server's stack trace
    if recipe_name not in shipped_recipes():
        recipe_name = str(Path(recipe_name).absolute())
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
            env={**os.environ, RECIPE_VARIABLE: recipe_name},
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
    _end_dead_runs()


def _end_dead_runs() -> None:
    with open_instance() as instance:
        bury_dead_runs(instance)
