"""Outputs that are there: where they lie, whether they are whole, and what their markers say.

An output is a folder `<root>/<asset>/[<partition>/]<address>/` that holds `srd.json`, its marker.
How one is made is `output_folder.py`; what it means, and whether it is wanted, is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from upath import UPath

from sr_assets import remote_files, remote_outputs
from sr_assets.stores import marker as marker_file

MARKER = "srd.json"
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
        return read_bytes(self.path / name)

    def read_json(self, name: str) -> Any:
        """One JSON file of the output."""
        return json.loads(self.read_bytes(name))


def root_of(name: str, root: str | None) -> UPath:
    """Folder of all outputs of a recipe: its `root`, or `data/<name>` below the current folder.

    Raises:
        RemoteError: the package for such a `root` is not installed.
    """
    folder = remote_files.remote_path(root or f"data/{name}")
    return UPath(Path(folder.path).expanduser().absolute()) if is_local(folder) else folder


def is_local(path: UPath) -> bool:
    """Whether `path` is on this machine's file system, where a rename is atomic."""
    return path.protocol in ("", "file", "local")


def read_bytes(path: UPath) -> bytes:
    """Content of one file; of an object, by one request.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return path.read_bytes() if is_local(path) else remote_files.read_bytes(path)


def cache_folder() -> Path:
    """Folder for what can be fetched or made again: `SRD_CACHE`, or one below the home folder."""
    given = os.environ.get("SRD_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "sr-distillery"


def open_output(path: UPath) -> Output | None:
    """The whole output at `path`, or None when there is none (no marker, or a file is missing).

    Raises:
        SchemaError: a newer program wrote it.
    """
    return _whole(path, *_inside(path))


def open_outputs(root: UPath, paths: Sequence[UPath]) -> list[Output | None]:
    """What `open_output` gives for each of `paths`, which lie below `root`.

    An object store is asked for all of them together.
    """
    if is_local(root):
        return [open_output(path) for path in paths]
    found = remote_outputs.contents(root, paths, MARKER, _markers())
    return [_whole(p, data, sizes.get) for p, (data, sizes) in zip(paths, found, strict=True)]


def open_damaged(path: UPath) -> Output | None:
    """What is left of an output that `open_output` does not open; None without a sound marker."""
    data, _ = _inside(path)
    marker = None if data is None else marker_file.from_bytes(data, path)
    return None if marker is None else Output(path, marker["data_version"], marker)


def why_not_whole(path: UPath) -> str | None:
    """What is wrong with an output that `open_output` does not open; None when nothing is there."""
    data, size = _inside(path)
    if data is None:
        return None
    marker = marker_file.from_bytes(data, path)
    if marker is None:
        return f"{MARKER} of its output {path.name} is damaged"
    broken = _broken_files(marker, size)
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"{broken[0]}{more} of its output {path.name} went or changed" if broken else None


_Size = Callable[[str], int | None]
"""Size of a file of an output; None where there is no such file."""


def _inside(path: UPath) -> tuple[bytes | None, _Size]:
    """The content of the marker at `path`, if there is one, and what tells sizes of files."""
    if not is_local(path):
        [(data, sizes)] = remote_outputs.contents(path, [path], MARKER, _markers())
        return data, sizes.get
    try:
        return (path / MARKER).read_bytes(), partial(_size, path)
    except (FileNotFoundError, NotADirectoryError):
        return None, partial(_size, path)


def _size(path: UPath, name: str) -> int | None:
    try:
        return (path / name).stat().st_size
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name that no file can have
        return None


def _whole(path: UPath, data: bytes | None, size: _Size) -> Output | None:
    marker = None if data is None else marker_file.from_bytes(data, path)
    if marker is None or _broken_files(marker, size):
        return None
    return Output(path, marker["data_version"], marker)


def _broken_files(marker: Mapping[str, Any], size: _Size) -> list[str]:
    """Files that are not there in the size that they were written in."""
    return [name for name, entry in marker["files"].items() if size(name) != entry["size"]]


def _markers() -> Path:
    """Copies of the markers on object stores."""
    return cache_folder() / "markers"


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """sha256 of a file, read once in blocks; `progress` is told the bytes of each block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()
