"""The one way to files: how an output is built unseen, hashed and made visible whole.

It is built in a hidden folder that survives a kill, and appears under its name in one step. Whole
outputs are opened by `storage.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import BaseFileLock
from upath import UPath

from sr_assets import remote_outputs
from sr_assets.building_lock import LOCK, hold, let_go
from sr_assets.disk import sync_folder, sync_folders, told, write_synced, write_whole
from sr_assets.storage import MARKER, Output, cache_folder, is_local, open_output
from sr_assets.stores import marker as marker_file

_JOURNAL = ".journal.jsonl"
_WORK = ".work"
_EARLIER = "earlier"  # in it: a broken output, until a whole one is in its place
#: What a kill right after the rename leaves in a whole output.
LEFTOVERS = (_WORK, _JOURNAL, LOCK)
_BLOCK = 1 << 20


@dataclass
class OutputFolder:
    """An output while it is being built.

    Every file is written under a temporary name, synced, renamed and then entered, with its sha256,
    in a journal; after a kill, what the journal names is whole and the rest is swept away.
    Safe to use from several threads. Another process is refused while this one builds.

    Raises:
        StorageError: here and when something is written: another process is building this output,
            the disk is full, or the folder cannot be written.
    """

    final: UPath
    path: Path = field(init=False)
    files: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _held: BaseFileLock = field(init=False)

    def __post_init__(self) -> None:
        self.path = building_folder(self.final)
        with told(self.path):
            self._held = hold(self.path, self.final)
            self._recover()

    @property
    def work(self) -> Path:
        """Scratch folder that survives a kill and is no part of the output (checkpoints)."""
        folder = self.path / _WORK
        folder.mkdir(exist_ok=True)
        return folder

    def finished(self, name: str) -> bool:
        """Whether file `name` was written whole, in this run or in an earlier, killed one."""
        return name in self.files

    def write_bytes(self, name: str, data: bytes, *, content: bool = True) -> str:
        """Writes one file atomically and returns its sha256.

        Args:
            name: path inside the output, with forward slashes; may not leave it.
            data: the whole content.
            content: False for what describes the output without being its content (provenance,
                timings): it does not enter the data version.
        """
        with told(self.path), self._temporary(name) as (temporary, target):
            write_synced(temporary, data)
            self._put(name, temporary, target)
            digest = hashlib.sha256(data).hexdigest()
            self._enter(name, digest, len(data), content)
        return digest

    def write_json(self, name: str, value: Any, *, content: bool = True) -> str:
        """Writes `value` as indented JSON with sorted keys and returns its sha256."""
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        return self.write_bytes(name, text.encode() + b"\n", content=content)

    def take(
        self, source: UPath | Path, name: str, *, content: bool = True, link: bool = True
    ) -> str:
        """Puts an existing file into the output, untouched, and returns its sha256.

        On the same file system it is a hard link, which costs no space but follows when somebody
        edits the source in place; else, and with `link` False, a copy. It is read once.
        """
        with told(self.path), self._temporary(name) as (temporary, target):
            linked = link and _link(source, temporary)
            digest, size = hashlib.sha256(), 0
            with contextlib.ExitStack() as opened:
                reader = opened.enter_context(UPath(source).open("rb"))
                writer = None if linked else opened.enter_context(temporary.open("wb"))
                while block := reader.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
                    if writer:
                        writer.write(block)
                synced = writer or reader
                synced.flush()
                os.fsync(synced.fileno())  # of a link, too: whoever made the file may not have
            self._put(name, temporary, target)
            self._enter(name, digest.hexdigest(), size, content)
        return digest.hexdigest()

    def discard(self, name: str) -> None:
        """Removes one file of the output again."""
        with told(self.path), self._lock:
            self._target(name).unlink(missing_ok=True)
            if self.files.pop(name, None):
                self._append({"name": name, "gone": True})

    def data_version(self) -> str:
        """Digest of the content: of the sorted (name, sha256) of every content file."""
        lines = [f"{n} {f['sha256']}\n" for n, f in sorted(self.files.items()) if f["content"]]
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]

    def commit(
        self, marker: dict[str, Any], progress: Callable[[int], None] | None = None
    ) -> Output:
        """Makes the output visible under its final name, in one step.

        `marker` is completed with `files` and, where it has none, `data_version`. On an object
        store, `progress` is told the bytes of each file once it is there; where another machine
        has made the output meanwhile, that one stays.

        Raises:
            RemoteError: the object store cannot be used; a later call goes on from there.
        """
        marker = {
            "data_version": self.data_version(),
            **marker,
            "files": dict(sorted(self.files.items())),
        }
        text = marker_file.to_bytes(marker)
        if is_local(self.final):
            self.write_bytes(MARKER, text)
            with told(self.path):
                self._rename(Path(str(self.final)))
        else:
            if open_output(self.final) is None:  # else another machine was first
                marked = (MARKER, text)
                remote_outputs.upload(self.path, self.final, self.files, marked, progress)
            remote_outputs.sweep(self.path, MARKER)
            let_go(self._held, self.path)
        output = open_output(self.final)
        if output is None:
            raise OSError(f"{self.final} is not whole after it was written: check the storage")
        return output

    def _rename(self, final: Path) -> None:
        earlier = self.work / _EARLIER
        shutil.rmtree(earlier, ignore_errors=True)
        sync_folders(self.path)
        if final.exists():  # a broken one: it goes with the work folder
            final.replace(earlier)
        self.path.replace(final)
        sync_folder(final.parent)
        # only now: killed before the rename, the next run needs both to take over
        shutil.rmtree(final / _WORK, ignore_errors=True)
        (final / _JOURNAL).unlink(missing_ok=True)
        let_go(self._held, final)

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[tuple[Path, Path]]:
        """Where to write a file of the output first, and where it goes; nothing half done stays."""
        target = self._target(name)
        temporary = target.with_name(f".{threading.get_ident()}.tmp")  # the name may be long
        temporary.unlink(missing_ok=True)
        try:
            yield temporary, target
        finally:
            temporary.unlink(missing_ok=True)

    def _target(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        plain = parts and "/".join(parts) == name and ".." not in parts
        if not plain or parts[0] in LEFTOVERS:
            raise ValueError(f"{name!r} is no path of a file inside an output folder")
        target = self.path / name
        if not target.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(f"{name!r} would leave the output folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _put(self, name: str, temporary: Path, target: Path) -> None:
        """Renames a whole file into place.

        What the journal says of an earlier file of that name is taken back first: were the process
        killed between rename and entry, the old digest would stand for the new content.
        """
        with self._lock:
            if self.files.pop(name, None):
                self._append({"name": name, "gone": True})
        temporary.replace(target)  # onto a link to the same file, it does nothing
        sync_folder(target.parent)

    def _enter(self, name: str, sha256: str, size: int, content: bool) -> None:
        entry = {"sha256": sha256, "size": size, "content": content}
        with self._lock:
            if name != MARKER:
                self.files[name] = entry
                self._append({"name": name, **entry})

    def _append(self, line: dict[str, Any]) -> None:
        rest = json.dumps(line).encode() + b"\n"
        with (self.path / _JOURNAL).open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)  # half a line would spoil the next one
                raise

    def _recover(self) -> None:
        """Takes over what an earlier, killed build finished; sweeps what it left half done."""
        journal = self.path / _JOURNAL
        if journal.exists():
            for text in journal.read_text().splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    continue  # the kill fell into this line
                name = line.pop("name")
                if line.get("gone"):
                    self.files.pop(name, None)
                else:
                    self.files[name] = line
        self.files = {
            n: f
            for n, f in self.files.items()
            if (self.path / n).is_file() and (self.path / n).stat().st_size == f["size"]
        }
        if journal.exists():  # afresh: an entry after a torn line would be lost with it
            lines = [json.dumps({"name": n, **f}) + "\n" for n, f in self.files.items()]
            write_whole(journal, "".join(lines).encode())
        for file in self.path.rglob("*"):
            relative = file.relative_to(self.path)
            kept = relative.parts[0] in LEFTOVERS or relative.as_posix() in self.files
            if file.is_file() and not kept:
                file.unlink()
        journal.touch()
        sync_folder(self.path)


def building_folder(final: UPath) -> Path:
    """Hidden folder on this machine in which the output at `final` is built."""
    if is_local(final):
        return Path(str(final)).with_name(f".{final.name}.partial")
    name = hashlib.sha256(str(final).encode()).hexdigest()[:24]
    return cache_folder() / "building" / name


def _link(source: UPath | Path, target: Path) -> bool:
    """Makes `target` a hard link to `source`, where both are on one file system."""
    if not is_local(UPath(source)):
        return False
    try:
        os.link(Path(str(source)).resolve(), target)
    except OSError:
        return False
    return True
