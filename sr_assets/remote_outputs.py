"""Outputs on an object store: sent several files at a time, and looked at by listings.

How an output is built, and what makes it whole, is `output_folder.py`. Nothing here asks the store
once a file, except to send it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from upath import UPath

from sr_assets.remote_files import (
    S3,
    Entry,
    RemoteError,
    end_uploads,
    explained,
    file_system,
    listed,
    read_bytes,
    remote_path,
    remove_objects,
    unfinished_uploads,
)

_FILES, _PARTS = 4, 4
"""Files that are sent at a time, and parts of each: with `_PART`, 128 MiB of memory."""
_PART = 8 << 20
_READS = 16


def contents(
    root: UPath, folders: Sequence[UPath], marker: str, cache: Path
) -> list[tuple[bytes | None, dict[str, int]]]:
    """Marker (None where there is none) and sizes of all files of each folder.

    The first folders below `root` on the way to them are listed at once, in parallel; a marker is
    fetched only when the one in `cache` is of another version.

    Args:
        root: above all folders, or one of them.
        folders: of outputs.
        marker: name of the markers.
        cache: folder on this machine.
    """
    if not folders:
        return []
    names = [folder.path.removeprefix(root.path.rstrip("/")).strip("/") for folder in folders]
    tops = sorted({name.partition("/")[0] for name in names})
    with ThreadPoolExecutor(_READS) as pool:
        places = [root / top if top else root for top in tops]
        listings = dict(zip(tops, pool.map(listed, places), strict=True))
        inside = [_below(name, listings[name.partition("/")[0]]) for name in names]

        def read(folder: UPath, files: Mapping[str, Entry]) -> bytes | None:
            found = files.get(marker)
            return None if found is None else _cached(folder / marker, found, cache)

        markers = list(pool.map(read, folders, inside))
    sizes = [{name: entry.size for name, entry in files.items()} for files in inside]
    return list(zip(markers, sizes, strict=True))


def upload(
    built: Path,
    final: UPath,
    files: Mapping[str, Mapping[str, Any]],
    marker: tuple[str, bytes],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Sends a built output: its files, and the marker when the store lists all of them.

    What a killed call has sent is not sent again. What else lies at `final` is removed.

    Args:
        built: folder of the files on this machine; beside it is kept what has been sent.
        final: where the output belongs.
        files: name -> {"sha256", "size"}.
        marker: name and content.
        progress: told the bytes of each file once it is there.

    Raises:
        RemoteError: the store cannot be used, or does not hold what was sent.
    """
    fs, journal = file_system(final), _Journal(built.with_suffix(".sent"), final)
    there = listed(final)
    with explained(final):
        if marker[0] in there:  # of a broken earlier one
            fs.rm_file(f"{final.path}/{marker[0]}")
        if journal.begun:
            # of the killed call: nobody sees them, but they cost
            end_uploads(final, unfinished_uploads(final))
        todo = []
        for name, entry in files.items():
            same = journal.sent.get(name) == entry["sha256"] and name in there
            if not (same and there[name].size == entry["size"]):
                todo.append(name)
            elif progress:
                progress(entry["size"])
        with journal:
            for name in _send_all(fs, built, final, todo):
                journal.add(name, files[name]["sha256"])
                if progress:
                    progress(files[name]["size"])
        if strangers := there.keys() - files.keys() - {marker[0]}:
            remove_objects(final, sorted(strangers))
        now = listed(final)
        for name, entry in files.items():
            if name not in now or now[name].size != entry["size"]:
                raise RemoteError(f"{final / name} was sent but is not there: build it again")
        fs.pipe_file(f"{final.path}/{marker[0]}", marker[1])


def sweep(built: Path, marker: str) -> None:
    """Removes a built output that has been sent whole, and those whose process died after that.

    Args:
        built: as in `upload`, which has returned.
        marker: name of the markers.
    """
    shutil.rmtree(built, ignore_errors=True)
    built.with_suffix(".sent").unlink(missing_ok=True)
    for journal in built.parent.glob("*.sent"):
        final = sent_to(journal)
        with contextlib.suppress(OSError, ValueError):
            if final is not None and marker in listed(remote_path(final)):
                shutil.rmtree(journal.with_suffix(""), ignore_errors=True)
                journal.unlink(missing_ok=True)


def sent_to(journal: Path) -> str | None:
    """Where the output belongs whose sending is noted in `journal`; None where it does not say."""
    try:
        with journal.open() as file:
            final = json.loads(file.readline())["final"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return final if isinstance(final, str) else None


class _Journal:
    """What has been sent of one output, on this machine."""

    def __init__(self, file: Path, final: UPath) -> None:
        self._file, self._lock = file, threading.Lock()
        self.sent: dict[str, str] = {}
        lines = file.read_text().splitlines() if file.exists() else []
        self.begun = bool(lines)
        for line in lines[1:]:
            with contextlib.suppress(ValueError, KeyError):  # a kill fell into this line
                entry = json.loads(line)
                self.sent[entry["name"]] = entry["sha256"]
        kept = [{"name": name, "sha256": digest} for name, digest in self.sent.items()]
        self._text = "".join(json.dumps(v) + "\n" for v in ({"final": str(final)}, *kept))

    def __enter__(self) -> None:
        temporary = self._file.with_suffix(".sent.tmp")
        temporary.write_text(self._text)
        temporary.replace(self._file)
        self._writer = self._file.open("a")

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, name: str, sha256: str) -> None:
        """Enters one file that the store has taken."""
        with self._lock:
            self._writer.write(json.dumps({"name": name, "sha256": sha256}) + "\n")
            self._writer.flush()


def _send_all(
    fs: AbstractFileSystem, built: Path, final: UPath, names: Sequence[str]
) -> Iterator[str]:
    """Sends files, `_FILES` at a time; yields the name of each that is there.

    After one has failed, no other is begun; its error is raised when all that were have ended.
    """
    options = {"chunksize": _PART, "max_concurrency": _PARTS} if final.protocol in S3 else {}
    waiting = iter(names)
    failed: BaseException | None = None
    with ThreadPoolExecutor(_FILES) as pool:
        running: dict[Future[None], str] = {}
        while True:
            for name in waiting if failed is None else ():
                send = partial(fs.put_file, str(built / name), f"{final.path}/{name}", **options)
                running[pool.submit(send)] = name
                if len(running) == _FILES:
                    break
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(done)
                if error := done.exception():
                    failed = failed or error
                else:
                    yield name
    if failed is not None:
        raise failed


def _cached(path: UPath, entry: Entry, cache: Path) -> bytes:
    """Content of a small object, fetched only when this machine has no copy of that version."""
    copy = cache / hashlib.sha256(str(path).encode()).hexdigest()[:24]
    head = f"{entry.version} {entry.size}".encode()
    if entry.version is not None:
        with contextlib.suppress(OSError, ValueError):
            known, digest, data = copy.read_bytes().split(b"\n", 2)
            if known == head and hashlib.sha256(data).hexdigest().encode() == digest:
                return data
    data = read_bytes(path)
    if entry.version is not None:
        with contextlib.suppress(OSError):  # a full or read-only disk: it works without
            cache.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            digest = hashlib.sha256(data).hexdigest().encode()
            temporary.write_bytes(b"\n".join((head, digest, data)))
            temporary.replace(copy)
    return data


def _below(name: str, files: Mapping[str, Entry]) -> dict[str, Entry]:
    """The files of one folder, out of the listing of the first folder on the way to it."""
    start = name.partition("/")[2]
    start = f"{start}/" if start else ""
    return {n.removeprefix(start): e for n, e in files.items() if n.startswith(start)}
