"""The lock on a folder in which an output is built: one process at a time, the other is told who.

The lock is the kernel's and ends with its process: no clock and no process id decides about it.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from sr_assets.disk import StorageError, make_folder

LOCK = ".lock"


def hold(folder: Path, what: object) -> BaseFileLock:
    """Makes `folder` and locks it for this process, which may lock it again.

    The lock lasts until `let_go`, until nothing refers to it, or until the process ends, in
    whatever way.

    Args:
        folder: on this machine.
        what: is built in it; for the message, and for `held_for`.

    Raises:
        StorageError: another process holds it; its number, its host and the time are told.
    """
    path = folder / LOCK
    while True:
        make_folder(folder)
        lock = FileLock(str(path), timeout=0, thread_local=False, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            if not path.exists():
                continue  # its holder finished between our two looks
            raise StorageError(
                f"{what} is being built by {holder(folder)}: wait for its end, or stop it"
            ) from None
        except FileNotFoundError:
            continue  # the same, before our first
        path.write_text(json.dumps({**_myself(), "what": str(what)}))
        return lock


def let_go(lock: BaseFileLock, folder: Path) -> None:
    """Removes the lock from `folder`, into which its own folder was renamed, and ends it.

    In this order: who waits for a file that is gone does not get it.
    """
    (folder / LOCK).unlink(missing_ok=True)
    lock.release(force=True)


def holder(folder: Path) -> str:
    """Who holds the lock on `folder`, as far as is known: process, host and since when."""
    try:
        said = json.loads((folder / LOCK).read_bytes())
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def held_for(folder: Path) -> str | None:
    """What is, or was when a process was killed, built in `folder`; None where nothing tells it."""
    try:
        what = json.loads((folder / LOCK).read_bytes())["what"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return what if isinstance(what, str) else None


def _myself() -> dict[str, str | int]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
