"""Connecting to Ray: to the cluster that `RAY_ADDRESS` names, or to one of our own; and signals.

What it is then asked to do is `ray_workers.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sr_assets.lineage.stage import StageError
from sr_models.one_line import one_line

ADDRESS = "RAY_ADDRESS"
_STORE_BYTES = 512 << 20  # shared memory of a Ray of our own: some tens of encoded shards
_KNOCK = 10.0  # seconds


@contextmanager
def signals_kept() -> Iterator[Callable[[], None]]:
    """Keeps Ctrl-C and a cancel until it is called: inside one of Ray's calls they would get lost.

    What handles them is left as it was: Ray puts its own in the place of Dagster's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    kept: list[int] = []
    before = {
        number: handle
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handle := signal.getsignal(number)) != signal.SIG_IGN
    }

    def let_through() -> None:
        if kept:
            handle = before[signal.Signals(number := kept.pop())]
            if callable(handle):
                handle(number, None)
            else:
                raise KeyboardInterrupt

    for number in before:
        signal.signal(number, lambda number, frame: kept.append(number))
    try:
        yield let_through
    finally:
        for number, handle in before.items():
            signal.signal(number, handle)
    let_through()


@contextmanager
def connected() -> Iterator[tuple[Any, bool]]:
    """Ray, connected, and whether it is one of our own, which ends with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise StageError(
            "compute.executor is ray, but Ray cannot be imported: pip install "
            "'sr-distillery[ray]', or set compute.executor to local"
        ) from error
    address = os.environ.get(ADDRESS)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        # Ray's 15 is to keep its own processes swift; on a shared machine others would take all.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    keeping = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _knock(address)
        ray.init(address or "local", **options)
    except Exception as error:  # its errors share no base class
        asked = f"{ADDRESS} {address}" if address else "a Ray on this machine"
        raise StageError(
            f"compute.executor is ray, but {asked} does not answer ({one_line(error)}): start it, "
            f"correct {ADDRESS}, or set compute.executor to local; Ray comes with pip install "
            "'sr-distillery[ray]'"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, keeping)  # Ray's would end the process
    try:
        yield ray, not address
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nothing listens: Ray itself would look for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK).close()
