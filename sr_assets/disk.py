"""Files that a power cut does not take back, and one line for what a disk refuses.

Which files make an output, and when it becomes visible, is `output_folder.py`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REFUSED = (errno.EACCES, errno.EPERM)


class StorageError(OSError):
    """The disk refuses; the message is one line that names the place and the mend."""


@contextmanager
def told(place: Path) -> Iterator[None]:
    """Turns what the disk refuses below `place` into one line; other errors pass.

    Raises:
        StorageError: the disk or the quota is full, no inode is left, a file grew too large, or
            `place` cannot be written.
    """
    try:
        yield
    except OSError as error:
        line = None if isinstance(error, StorageError) else _line(error, place)
        if line is None:
            raise
        refusal = StorageError(line)
        refusal.errno = error.errno
        raise refusal from None


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file whose content is on the disk when this returns; its name may not be yet."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that after a kill or a power cut it is the old one or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    write_synced(temporary, data)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk: what was created, renamed or removed in it."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folders(folder: Path) -> None:
    """`sync_folder` of a folder and of all below it, the deepest first."""
    for path, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(path))


def make_folder(folder: Path) -> None:
    """Makes a folder and what is above it, each of them on the disk when this returns."""
    missing = [folder] if not folder.is_dir() else []
    while missing and not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def _line(error: OSError, place: Path) -> str | None:
    again = "then run `srd build` again: what is finished is kept"
    named = Path(error.filename) if isinstance(error.filename, str) else place
    if error.errno in _REFUSED:
        if not (named.is_relative_to(place) or place.is_relative_to(named)):
            return None  # something else, such as a source, that cannot be read
        return (
            f"{named} cannot be written by user {_user(os.geteuid())}{_owner(named)}: "
            "change its owner or mode, or set `root` in the recipe to a folder of your own"
        )
    place = place if named.is_relative_to(place) else named
    if error.errno == errno.ENOSPC and _no_inodes(place):
        return (
            f"the disk of {place} can hold no more files, its inode table is full: remove files "
            f"(`srd gc` lists what nothing needs), {again}"
        )
    if error.errno == errno.ENOSPC:
        return (
            f"the disk of {place} is full: free some space (`srd gc` lists what nothing needs), "
            f"{again}"
        )
    if error.errno == errno.EDQUOT:
        return f"the quota on the disk of {place} is used up: free some space, {again}"
    if error.errno == errno.EFBIG:
        return (
            f"a file in {place} grew larger than `ulimit -f` or its file system allows: "
            f"raise the limit, {again}"
        )
    if error.errno == errno.EROFS:
        return (
            f"{place} is on a read-only file system: mount it writable, or set `root` in the "
            "recipe to a folder that can be written"
        )
    return None


def _no_inodes(place: Path) -> bool:
    """Whether the disk has blocks for people, but no inode. Some file systems count none at all."""
    try:
        status = os.statvfs(_existing(place))
    except OSError:
        return False
    return status.f_files > 0 and status.f_favail == 0


def _owner(path: Path) -> str:
    """Whose the path is, or the nearest folder above it that is there."""
    found = _existing(path)
    try:
        return f", {found} belongs to {_user(found.stat().st_uid)}"
    except OSError:
        return ""


def _existing(path: Path) -> Path:
    for folder in (path, *path.parents):
        try:
            if folder.exists():
                return folder
        except OSError:
            continue
    return path


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
