"""What lies below a root: outputs, half-built and half-sent ones, and unfinished uploads.

Whether anything needs it is decided in `unneeded.py`; removing it is `removal.py`.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from upath import UPath

from sr_assets.building_lock import held_for
from sr_assets.output_folder import building_folder
from sr_assets.remote_files import Entry, folders, listed, unfinished_uploads
from sr_assets.remote_outputs import sent_to
from sr_assets.storage import MARKER, Output, is_local, open_outputs
from sr_assets.stores import registry

_ADDRESS = re.compile(r"[0-9a-f]{24}")
_BUILDING = re.compile(r"\.([0-9a-f]{24})\.partial")
_LISTINGS = 16  # at a time

Kind = Literal["output", "building", "uploads"]


@dataclass(frozen=True)
class File:
    """One name of a file, one object, or one unfinished upload."""

    identity: Hashable
    """The same for all hard links to one file."""
    links: int
    size: int
    """Space on disk, or bytes of an object; 0 for an upload, whose size the store does not list."""


@dataclass(frozen=True)
class Folder:
    """An output, or what is on the way to be one."""

    path: Path | UPath
    """A `Path` on this machine."""
    final: UPath
    """Where the output lies, or would lie when it is finished."""
    kind: Kind
    """`building`: what a killed run left, half built, or on an object store without its marker.
    `uploads`: parts of objects there, which no listing of objects shows."""
    output: Output | None
    """What is whole in it."""
    files: tuple[File, ...]
    written: float
    """When anything in it was last written (s since 1970); infinite where the store tells none."""


def folders_below(root: UPath) -> list[Folder]:
    """Every folder below `root` that is or would be an output, the registry left out.

    Of a root on an object store, those on this machine in which its outputs are built are among
    them. It is asked for listings, a request for each thousand objects, and for each marker of
    which this machine has no copy.

    Raises:
        SchemaError: a newer program wrote an output.
        RemoteError: the store cannot be used.
    """
    return _local(root) if is_local(root) else [*_remote(root), *_half_built(root)]


def bytes_freed(folders: Iterable[Folder]) -> int:
    """Bytes that go with some folders: of files all of whose links are in them, each once."""
    files = [file for folder in folders for file in folder.files]
    links = Counter(file.identity for file in files)
    known = {file.identity: file for file in files}
    return sum(known[i].size for i, count in links.items() if count >= known[i].links)


def newest(files: Iterable[Entry]) -> float:
    """When the last of some objects was written (s since 1970); infinite where one does not say."""
    return max((math.inf if e.modified is None else e.modified for e in files), default=0.0)


def _local(root: UPath) -> list[Folder]:
    paths = list(_addresses(Path(str(root))))
    whole = [path for path in paths if _ADDRESS.fullmatch(path.name)]
    outputs = dict(zip(whole, open_outputs(root, [UPath(path) for path in whole]), strict=True))
    found = []
    for path in paths:
        building = _BUILDING.fullmatch(path.name)
        final = path.with_name(building[1]) if building else path
        kind: Kind = "building" if building else "output"
        found.append(Folder(path, UPath(final), kind, outputs.get(path), *_inside(path)))
    return found


def _addresses(root: Path) -> Iterator[Path]:
    """Outputs and half-built ones; links are not followed."""
    for path, below, _ in os.walk(root):
        folder = Path(path)
        if folder == root and registry.FOLDER in below:
            below.remove(registry.FOLDER)
        for name in sorted(below):
            if _ADDRESS.fullmatch(name) or _BUILDING.fullmatch(name):
                below.remove(name)
                if not (folder / name).is_symlink():
                    yield folder / name


def _inside(folder: Path) -> tuple[tuple[File, ...], float]:
    """The files in a folder of this machine, and when it was last written.

    A hard link shares its time with the file that it was made from, and says nothing.
    """
    files: list[File] = []
    times = [0.0]
    for path, below, names in os.walk(folder):
        for name in ("", *below, *names):
            try:
                status = (Path(path) / name).lstat()
            except FileNotFoundError:  # somebody is at work in it
                times.append(math.inf)
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            if not is_folder:
                files.append(_file(status))
            if is_folder or status.st_nlink == 1:
                times.append(status.st_mtime)
    return tuple(files), max(times)


def _file(status: os.stat_result) -> File:
    return File((status.st_dev, status.st_ino), status.st_nlink, status.st_blocks * 512)


def _remote(root: UPath) -> list[Folder]:
    try:
        tops = [top for top in folders(root) if top.name != registry.FOLDER]
    except FileNotFoundError:
        tops = []
    objects: dict[str, dict[str, Entry]] = defaultdict(dict)
    with ThreadPoolExecutor(_LISTINGS) as pool:
        for top, names in zip(tops, pool.map(listed, tops), strict=True):
            for name, entry in names.items():
                if parts := _split(f"{top.name}/{name}"):
                    objects[parts[0]][parts[1]] = entry
    marked = [place for place, files in objects.items() if MARKER in files]
    opened = open_outputs(root, [root / place for place in marked])
    outputs = dict(zip(marked, opened, strict=True))
    found = []
    for place, files in objects.items():
        kind: Kind = "output" if MARKER in files else "building"
        sizes = tuple(File((place, name), 1, entry.size) for name, entry in files.items())
        written = newest(files.values())
        found.append(Folder(root / place, root / place, kind, outputs.get(place), sizes, written))
    return found + _uploads(root, objects)


def _uploads(root: UPath, objects: dict[str, dict[str, Entry]]) -> list[Folder]:
    """What was begun to be sent in parts, an entry an address; younger objects there count, too."""
    begun: dict[str, list[tuple[File, float]]] = defaultdict(list)
    for upload in unfinished_uploads(root):
        parts = _split(upload.name)
        if parts and parts[0].partition("/")[0] != registry.FOLDER:
            begun[parts[0]].append((File((upload.name, upload.id), 1, 0), upload.begun))
    found = []
    for place, uploads in begun.items():
        written = max(newest(objects.get(place, {}).values()), *(moment for _, moment in uploads))
        files = tuple(file for file, _ in uploads)
        found.append(Folder(root / place, root / place, "uploads", None, files, written))
    return found


def _split(name: str) -> tuple[str, str] | None:
    """Folder of the output and name in it, of an object below a root; None for a stranger."""
    parts = name.split("/")
    for number, part in enumerate(parts[:-1], start=1):
        if _ADDRESS.fullmatch(part):
            return "/".join(parts[:number]), "/".join(parts[number:])
    return None


def _half_built(root: UPath) -> Iterator[Folder]:
    """What builds of outputs below a root on an object store have left on this machine.

    Where neither the lock nor what was sent tells whose it is, it is not told.
    """
    beside = building_folder(root).parent
    above = f"{str(root).rstrip('/')}/"
    for name in sorted({path.stem for path in beside.glob("*") if path.suffix in ("", ".sent")}):
        path = beside / name
        journal = path.with_suffix(".sent")
        address = held_for(path) or sent_to(journal)
        if address is None or not address.startswith(above):
            continue
        final = root / address.removeprefix(above)
        if building_folder(final) != path:
            continue
        files, written = _inside(path)
        if journal.exists():
            status = journal.stat()
            files, written = (*files, _file(status)), max(written, status.st_mtime)
        yield Folder(path, final, "building", None, files, written)
