"""The Dagster UI of one recipe on this machine: webserver, daemon and code location as one thing.

Starts, guards and stops the processes; what they show is `definitions.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from sr_assets.definitions import RECIPE_VARIABLE
from sr_assets.home import dagster_home
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import load_recipe, shipped_recipes

_HOST = "127.0.0.1"
_STOP_AFTER = 15.0  # seconds for a clean end, before what is left is killed


def serve(recipe_name: str, port: int, tell: Callable[[str], None]) -> int:
    """Runs the UI until Ctrl-C (0) or until it ends by itself (its exit code).

    Raises:
        RecipeError: the recipe cannot be used.
        StageError: the port is taken, or a UI runs already on the same Dagster home.
    """
    load_recipe(recipe_name)  # a mistake is told here, not in a stack trace of the server
    if recipe_name not in shipped_recipes():
        recipe_name = str(Path(recipe_name).absolute())
    home = dagster_home()
    address = f"http://{_HOST}:{port}"
    with _only_one(home, address) as lock, _stopped_by_signals() as stopped:
        _refuse_busy(port)
        server = subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-W", "ignore", "-m", "dagster", "dev"),
                *("-m", "sr_assets.definitions", "-h", _HOST, "-p", str(port)),
                *("--log-level", "warning", "--code-server-log-level", "warning"),
            ],
            env={**os.environ, RECIPE_VARIABLE: recipe_name},
            # Its own group, so that Ctrl-C reaches it once and through us.
            start_new_session=True,
            # The lock lives as long as the daemon, even when this process is killed.
            pass_fds=(lock.fileno(),),
        )
        tell(f"Starting the Dagster UI of {recipe_name} ...")
        try:
            told = False
            while not stopped() and server.poll() is None:
                if not told and _answers(address):
                    told = True
                    tell(f"The graph is at {address} (Ctrl-C stops it)")
                time.sleep(0.2)
            if stopped():
                tell("Stopping ...")
            return 0 if stopped() else server.returncode or 1
        finally:
            _stop(server)


@contextmanager
def _only_one(home: Path, address: str) -> Iterator[IO[str]]:
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
        lock.write(address)
        lock.flush()
        yield lock


def _refuse_busy(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise StageError(f"port {port} cannot be used ({error}): give another --port") from None


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Yields a question: did somebody ask us to stop since?"""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

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


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and all it started, runs too: those are marked as cancelled."""
    try:
        family = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(_STOP_AFTER)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    _, alive = psutil.wait_procs(family, timeout=2)
    for process in alive:
        process.kill()
