"""What members of an archive may be called, so that each has a file of its own inside the folder.

Which of them are images is `archive.py`.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath

from sr_assets.sources.names import unsafe

_LONGEST_PATH = 1024  # bytes; systems stop at 4096, the folder in front included


def plain(name: str) -> str:
    """The path without the parts that say nothing: tar likes `./a` and `a//b`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/" * name.startswith("/") + "/".join(parts)


def unusable(path: str) -> str:
    """Why a member's path cannot be one of ours; empty when it can."""
    if problem := unsafe(path):
        return f"{problem}; rename it"
    if len(path.encode()) > _LONGEST_PATH:
        return f"path is longer than {_LONGEST_PATH} bytes; rename it"
    return ""


class Names:
    """Tells names that would meet in one file."""

    def __init__(self, folds_case: bool) -> None:
        self._folds_case = folds_case
        self._files: dict[str, str] = {}
        self._folders: set[str] = set()

    def taken(self, path: str) -> str:
        """Why there is no room for a file of this path; claims it when there is."""
        key = unicodedata.normalize("NFC", path)
        if self._folds_case:
            key = unicodedata.normalize("NFC", key.casefold())
        above = [str(parent) for parent in PurePosixPath(key).parents][:-1]
        if key in self._files:
            other = self._files[key]
            if other == path:
                return "the name is there twice in the archive; the first is taken"
            return f"name means the same as {other!r}; rename it"
        if key in self._folders:
            return "name is that of a folder in the archive; rename it"
        for folder in above:
            if folder in self._files:
                return f"{self._files[folder]!r} is a file in the archive, and a folder; rename it"
        self._files[key] = path
        self._folders.update(above)
        return ""


def folds_case(folder: Path) -> bool:
    """Whether the file system takes names that differ in case for one."""
    probe = folder.with_name("Case")
    probe.touch()
    try:
        return probe.with_name("case").exists()
    finally:
        probe.unlink()


def shown_suffix(suffix: str) -> str:
    """The ending that an ignored member is counted under."""
    if not suffix:
        return "no extension"
    return suffix if len(suffix) <= 9 and suffix[1:].isascii() and suffix[1:].isalnum() else "other"


def as_text(name: str) -> str:
    """A name that can be stored as text, whatever bytes it was made of."""
    return name.encode("utf-8", "backslashreplace").decode()
