"""Removing an output, or what a killed build left of one, so that no half output is ever seen.

What can go is decided in `unneeded.py`.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from filelock import FileLock, Timeout
from upath import UPath

from sr_assets.disk import make_folder
from sr_assets.output_folder import building_folder
from sr_assets.remote_files import (
    RemoteError,
    end_uploads,
    listed,
    remove_objects,
    unfinished_uploads,
)
from sr_assets.root_contents import Folder, newest
from sr_assets.storage import MARKER


def remove_folder(folder: Folder) -> bool:
    """Removes a folder; whether it did: what somebody has begun to build meanwhile stays.

    An output first gets the name of one that is being built; on an object store, its marker goes
    first, and the rest when it is seen gone. Killed half way, no half output is left, and a later
    call takes the rest.

    Raises:
        RemoteError: the store cannot be used, or does not let it go.
    """
    building = building_folder(folder.final)
    make_folder(building.parent)
    lock = building.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0):
            path = folder.path
            removed = (
                _remove_local(path, folder.kind == "output", building)
                if isinstance(path, Path)
                else _remove_remote(path, folder)
            )
            with contextlib.suppress(PermissionError):  # not every system lets go what is open
                lock.unlink()  # who waits for it sees that it is gone
    except Timeout:
        return False
    return removed


def in_use(final: UPath) -> bool:
    """Whether a process of this machine holds the lock of what is built for `final`."""
    lock = building_folder(final).with_suffix(".lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _remove_local(path: Path, is_output: bool, building: Path) -> bool:
    journal = path.with_suffix(".sent")
    if not path.exists() and not journal.exists():
        return False
    if is_output:
        shutil.rmtree(building, ignore_errors=True)
        path.replace(building)
    if building.exists():
        shutil.rmtree(building)
    journal.unlink(missing_ok=True)
    return True


def _remove_remote(path: UPath, folder: Folder) -> bool:
    if folder.kind == "uploads":
        end_uploads(path, [u for u in unfinished_uploads(path) if u.begun <= folder.written])
        return True
    there = listed(path)
    sent_since = newest(there.values()) > folder.written
    finished_since = folder.kind == "building" and MARKER in there
    if not there or sent_since or finished_since:
        return False
    if MARKER in there:
        remove_objects(path, [MARKER])
        there = listed(path)
        if MARKER in there:
            raise RemoteError(f"{path / MARKER} was removed but is still listed: run srd gc again")
    remove_objects(path, sorted(there))
    return True
