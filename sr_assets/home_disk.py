"""One line for a disk on which SQLite cannot keep Dagster's records.

Which folder they are in, and with which settings, is `home.py`; the disk of outputs is `disk.py`.
"""

from __future__ import annotations

import os
import sqlite3

_REFUSALS = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space, then run it again; "
    "what is finished is kept",
    sqlite3.SQLITE_READONLY: "the folder or its file system is read-only: make it writable, or set "
    "DAGSTER_HOME to a folder that is",
    sqlite3.SQLITE_CANTOPEN: "a file cannot be opened: check the owner of the folder and the free "
    "space and inodes of its disk, or set DAGSTER_HOME to another folder",
    sqlite3.SQLITE_IOERR: "the disk reports an error: check its free space and its health, then "
    "run it again; what is finished is kept",
}


def refusal(error: BaseException) -> str | None:
    """What SQLite's error in the chain of `error` means; None where there is none of a disk."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.OperationalError):
        cause = cause.__cause__ or cause.__context__
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the upper bits tell details
    if code not in _REFUSALS:
        return None
    home = os.environ.get("DAGSTER_HOME", "dagster_home")
    return f"Dagster's records in {home} cannot be written: {_REFUSALS[code]}"
