"""The one way to files: how an output is built unseen, hashed and made visible whole.

An output is a folder `<root>/<asset>/[<partition>/]<address>/` that holds `srd.json`, its marker.
It is built in a hidden folder that survives a kill, and appears under its name in one step. What an
output means, and whether it is wanted, is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from upath import UPath

MARKER = "srd.json"
_JOURNAL = ".journal.jsonl"
_WORK = ".work"
#: What a kill right after the rename leaves in a whole output.
LEFTOVERS = (_WORK, _JOURNAL)
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Output:
    """A whole output: its folder, the digest of its content and what its marker says."""

    path: UPath
    data_version: str
    marker: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the stage reported when it made this output (JSON values)."""
        return self.marker["metadata"]

    def read_bytes(self, name: str) -> bytes:
        """Content of one file of the output.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return (self.path / name).read_bytes()

    def read_json(self, name: str) -> Any:
        """One JSON file of the output."""
        return json.loads(self.read_bytes(name))


def root_of(name: str, root: str | None) -> UPath:
    """Folder of all outputs of a recipe: its `root`, or `data/<name>` below the current folder."""
    folder = UPath(root or f"data/{name}")
    return UPath(Path(folder.path).expanduser().absolute()) if is_local(folder) else folder


def is_local(path: UPath) -> bool:
    """Whether `path` is on this machine's file system, where a rename is atomic."""
    return path.protocol in ("", "file", "local")


def building_folder(final: UPath) -> Path:
    """Hidden folder on this machine in which the output at `final` is built."""
    if is_local(final):
        return Path(str(final)).with_name(f".{final.name}.partial")
    name = hashlib.sha256(str(final).encode()).hexdigest()[:24]
    return cache_folder() / "building" / name


def cache_folder() -> Path:
    """Folder for what can be fetched or made again: `SRD_CACHE`, or one below the home folder."""
    given = os.environ.get("SRD_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "sr-distillery"


def open_output(path: UPath) -> Output | None:
    """The whole output at `path`, or None when there is none (no marker, or a file is missing)."""
    marker = _marker(path)
    if marker is None or _broken_files(path, marker):
        return None
    return Output(path, marker["data_version"], marker)


def why_not_whole(path: UPath) -> str | None:
    """What is wrong with an output that `open_output` does not open; None when nothing is there."""
    marker = _marker(path)
    if marker is None:
        there = (path / MARKER).exists()
        return f"{MARKER} of its output {path.name} is damaged" if there else None
    broken = _broken_files(path, marker)
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"{broken[0]}{more} of its output {path.name} went or changed" if broken else None


def _marker(path: UPath) -> dict[str, Any] | None:
    try:
        marker = json.loads((path / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no JSON, or no text at all
        return None
    whole = isinstance(marker, dict) and isinstance(marker.get("files"), dict)
    return marker if whole and "data_version" in marker else None


def _broken_files(path: UPath, marker: Mapping[str, Any]) -> list[str]:
    """Files that are not there in the size that they were written in."""

    def whole(name: str, size: int) -> bool:
        try:
            return bool((path / name).stat().st_size == size)
        except (FileNotFoundError, NotADirectoryError):
            return False

    return [name for name, entry in marker["files"].items() if not whole(name, entry["size"])]


@dataclass
class OutputFolder:
    """An output while it is being built.

    Every file is written under a temporary name, synced, renamed and then entered, with its sha256,
    in a journal; after a kill, what the journal names is whole and the rest is swept away.
    Safe to use from several threads.
    """

    final: UPath
    path: Path = field(init=False)
    files: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.path = building_folder(self.final)
        self.path.mkdir(parents=True, exist_ok=True)
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
        target = self._target(name)
        temporary = target.with_name(f".{threading.get_ident()}.tmp")  # the name may be long
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
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
        target = self._target(name)
        temporary = target.with_name(f".{threading.get_ident()}.tmp")  # the name may be long
        temporary.unlink(missing_ok=True)
        linked = False
        if link and is_local(UPath(source)):
            try:
                os.link(Path(str(source)).resolve(), temporary)
                linked = True
            except OSError:
                pass
        digest, size = hashlib.sha256(), 0
        with UPath(source).open("rb") as reader:
            writer = None if linked else temporary.open("wb")
            while block := reader.read(_BLOCK):
                digest.update(block)
                size += len(block)
                if writer:
                    writer.write(block)
            if writer:
                writer.flush()
                os.fsync(writer.fileno())
                writer.close()
        self._put(name, temporary, target)
        self._enter(name, digest.hexdigest(), size, content)
        return digest.hexdigest()

    def discard(self, name: str) -> None:
        """Removes one file of the output again."""
        with self._lock:
            self._target(name).unlink(missing_ok=True)
            if self.files.pop(name, None):
                self._append({"name": name, "gone": True})

    def data_version(self) -> str:
        """Digest of the content: of the sorted (name, sha256) of every content file."""
        lines = [f"{n} {f['sha256']}\n" for n, f in sorted(self.files.items()) if f["content"]]
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]

    def commit(self, marker: dict[str, Any]) -> Output:
        """Makes the output visible under its final name, in one step.

        `marker` is completed with `files` and, where it has none, `data_version`.
        """
        marker = {
            "data_version": self.data_version(),
            **marker,
            "files": dict(sorted(self.files.items())),
        }
        text = json.dumps(marker, indent=1, ensure_ascii=False).encode()
        if is_local(self.final):
            self.write_bytes(MARKER, text)
            final = Path(str(self.final))
            if final.exists():  # a broken earlier one: the whole one takes its place
                shutil.rmtree(final)
            self.path.replace(final)
            _sync_folder(final.parent)
            # only now: killed before the rename, the next run needs both to take over
            shutil.rmtree(final / _WORK, ignore_errors=True)
            (final / _JOURNAL).unlink(missing_ok=True)
        else:
            (self.final / MARKER).unlink(missing_ok=True)  # of a broken earlier one
            for name in self.files:
                target = self.final / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((self.path / name).read_bytes())
            (self.final / MARKER).write_bytes(text)
            shutil.rmtree(self.path)
        output = open_output(self.final)
        if output is None:
            raise OSError(f"{self.final} is not whole after it was written: check the storage")
        return output

    def _target(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        plain = parts and "/".join(parts) == name and ".." not in parts
        if not plain or parts[0] in (_WORK, _JOURNAL):
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
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # renaming onto a link to the same file does nothing

    def _enter(self, name: str, sha256: str, size: int, content: bool) -> None:
        entry = {"sha256": sha256, "size": size, "content": content}
        with self._lock:
            if name != MARKER:
                self.files[name] = entry
                self._append({"name": name, **entry})

    def _append(self, line: dict[str, Any]) -> None:
        with (self.path / _JOURNAL).open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

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
            temporary = journal.with_suffix(".tmp")
            with temporary.open("w") as writer:
                writer.writelines(lines)
                writer.flush()
                os.fsync(writer.fileno())
            temporary.replace(journal)
        for file in self.path.rglob("*"):
            relative = file.relative_to(self.path)
            kept = relative.parts[0] in (_WORK, _JOURNAL) or relative.as_posix() in self.files
            if file.is_file() and not kept:
                file.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """sha256 of a file, read once in blocks; `progress` is told the bytes of each block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()
