"""Whether a folder of images has stopped changing, found out piece by piece within a given time.

No image is opened, and what counts as an image of a dataset in the end is `sources/files.py`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sr_assets.sources.files import EXTENSIONS
from sr_assets.storage import MARKER

_PIECE = 500  # entries between two looks at the clock; at least these are seen each time


@dataclass(frozen=True)
class Progress:
    """How far the looking through one folder has come, in a form for JSON."""

    after: tuple[str, ...] = ()
    """Parts of the relative path of what was seen last; empty between two passes."""
    images: int = 0
    """Seen in this pass, or in the last one."""
    digest: str = ""
    """Of names, sizes and times of change of these."""
    last: str | None = None
    """`digest` of the last whole pass."""

    @property
    def is_whole(self) -> bool:
        """Whether a pass has ended and no other has begun."""
        return not self.after


def look_on(folder: Path, progress: Progress, seconds: float) -> tuple[Progress, bool]:
    """Goes on with the pass through a folder, or begins the next one.

    Args:
        folder: whose images are looked at; links and hidden entries are passed over.
        progress: what the last call returned; `Progress()` for the first.
        seconds: time to keep to, as far as a folder is listed and 500 entries are seen in less.

    Returns:
        How far it has come, and whether the folder has settled: a pass is whole, has seen an image
        and everything as the pass before it.
    """
    until = time.monotonic() + seconds
    images, digest = (0, "") if progress.is_whole else (progress.images, progress.digest)
    for seen, (path, entry) in enumerate(_entries(folder, progress.after), start=1):
        if entry is not None:
            images += 1
            line = f"{digest}\n{'/'.join(path)}\n{entry.st_size}-{entry.st_mtime_ns}"
            digest = hashlib.sha256(line.encode(errors="surrogateescape")).hexdigest()
        if seen % _PIECE == 0 and time.monotonic() > until:
            return replace(progress, after=path, images=images, digest=digest), False
    settled = images > 0 and digest == progress.last
    return Progress(images=images, digest=digest, last=digest), settled


def _entries(
    folder: Path, after: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], os.stat_result | None]]:
    """Folders (None) and images below a folder in an order that stays, from one path on."""
    root = str(folder)
    waiting = [_below(folder, (), after)]
    while waiting:
        try:
            path, is_folder, rest = next(waiting[-1])
        except StopIteration:
            waiting.pop()
            continue
        if is_folder:
            if not rest:
                yield path, None
            waiting.append(_below(folder, path, rest))
        else:
            try:
                yield path, os.lstat("/".join((root, *path)))
            except OSError:  # it went away
                continue


def _below(
    root: Path, path: tuple[str, ...], after: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], bool, tuple[str, ...]]]:
    """Sub-folders and images of one folder by name, those left out that come before `after`.

    With each comes what of `after` lies below it.
    """
    first = after[0] if after else ""
    folders, names = set(), []
    try:
        with os.scandir(root.joinpath(*path)) as entries:
            for entry in entries:
                name = entry.name
                if path and name == MARKER:  # an output of ours is no photos
                    return
                if name < first or name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.add(name)
                elif not _is_image(name) or not entry.is_file(follow_symlinks=False):
                    continue
                names.append(name)
    except OSError:  # said by bronze, which names it
        return
    for name in sorted(names):
        rest = after[1:] if name == first else ()
        if name != first or name in folders:
            yield (*path, name), name in folders, rest


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - a million times
