"""Source files: which of a folder count as images, under which names, and how they are told apart.

No file is opened here: what is in them is judged by `sr_assets.pictures`. The kinds of sources are
the other modules of this package.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sr_assets.storage import MARKER

#: Endings, in lower case, of what counts as an image. HEIC and JPEG XL cannot be read and are
#: listed all the same: a photo in quarantine is seen, one that is ignored is missed.
EXTENSIONS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".gif", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf"}
    | {".j2c", ".heic", ".heif", ".jxl"}
)
#: File systems stop at 255; a file that is being taken has a few more for its temporary name.
_LONGEST_NAME = 240


@dataclass(frozen=True)
class SourceFile:
    """One source file; `shown` is its relative posix path, `problem` why it cannot be taken."""

    path: Path
    shown: str
    problem: str = ""


@dataclass
class Found:
    """What a source holds: sorted files, and what was passed over."""

    files: list[SourceFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fetching:
    """What a source is given when its images are wanted."""

    where: str
    """Field of the recipe, for messages."""
    work: Path
    """Scratch folder of the run, which survives a kill and goes when the run is done."""
    cache: Path
    """Folder for downloads, which are kept between runs and shared by projects."""
    workers: int
    """Threads for fetching."""
    log: Callable[[str], None]
    bar: Callable[[str, int, str], Any]
    """(label, total, unit) -> context manager that yields `advance(n)`."""


def scan(folder: Path, include: Iterable[str]) -> Found:
    """Images below `folder`, sorted by relative path.

    Hidden entries are skipped. Links to folders are not followed: what they show inside `folder`
    has its own name there, and so no loop can arise. Links to files count where they stay inside.
    Outputs of ours below `folder` are no photos: each would be an input of the next.
    """
    found = Found()
    root = folder.resolve()
    waiting = [root]
    while waiting:
        current = waiting.pop()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            shown, _ = _show(current, root)
            found.files.append(
                SourceFile(
                    current, shown, f"folder cannot be listed: {(error.strerror or '').lower()}"
                )
            )
            continue
        if current != root and any(entry.name == MARKER for entry in entries):
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if entry.is_symlink() and _leads_away(path, root):
                found.links.append(_show(path, root)[0])
            elif entry.is_dir():
                waiting.append(path)
            elif path.suffix.lower() not in EXTENSIONS or not entry.is_file():
                # A pipe or a dangling link would block or fail when it is opened.
                found.ignored[path.suffix.lower() or "no extension"] += 1
            else:
                shown, problem = _show(path, root)
                if any(fnmatchcase(shown, pattern) for pattern in include):
                    found.files.append(SourceFile(path, shown, problem))
    found.files.sort(key=lambda file: file.shown)
    found.links.sort()
    return found


def _leads_away(link: Path, root: Path) -> bool:
    """Whether a link shows a folder, something outside `root`, or only itself."""
    try:
        target = link.resolve()
        return target.is_dir() or not target.is_relative_to(root)
    except (OSError, RuntimeError):  # how Python says that links go round in a circle
        return True


def _show(path: Path, root: Path) -> tuple[str, str]:
    """Relative posix path as text, and a problem where the name is no text."""
    relative = path.relative_to(root).as_posix()
    try:
        relative.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(relative).decode("utf-8", "backslashreplace")
        return shown, "file name is not valid UTF-8; rename it"
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        return relative, f"file name is longer than {_LONGEST_NAME} bytes; rename it"
    return relative, ""


def stamps(found: Found) -> dict[str, str]:
    """Size and time of change of every file, by its shown name."""
    return {file.shown: stamp(file.path) for file in found.files}


def stamp(path: Path) -> str:
    """Size and time of change of one file."""
    try:
        stat = path.stat()
    except OSError:
        return "unreadable"
    return f"{stat.st_size}-{stat.st_mtime_ns}"
