"""Images inside a zip or tar file, unpacked to the scratch folder of the run.

Whoever packed it is not trusted: no header is believed, and no member leaves the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import ArchiveSource
from sr_assets.sources.archive_members import BrokenArchive, BrokenMember, Member, TooMuch
from sr_assets.sources.archive_names import (
    Names,
    as_text,
    folds_case,
    plain,
    shown_suffix,
    unusable,
)
from sr_assets.sources.archive_tar import tar_members
from sr_assets.sources.archive_zip import zip_members
from sr_assets.sources.files import EXTENSIONS, Fetching, Found, SourceFile, stamp
from sr_assets.storage import hash_file

_GIGABYTE, _MEGABYTE = 10**9, 10**6
_FORMS = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PK\x07\x08", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
)


def find(source: ArchiveSource, fetching: Fetching) -> Found:
    """Every image of the archive, unpacked below `fetching.work`.

    What a killed run unpacked whole stays, as long as the archive is the same.

    Raises:
        StageError: no such archive, not the one of the digest, broken, larger than allowed, or
            without an image.
    """
    archive, where = Path(source.path), fetching.where
    if archive.is_dir():
        raise StageError(f"{where}.path: {archive} is a folder; use a source `kind: folder`")
    if archive.exists() and not archive.is_file():  # a pipe would be waited for
        raise StageError(f"{where}.path: {archive} is not a regular file; name a zip or tar file")
    before = stamp(archive)
    if before == "unreadable":
        raise StageError(
            f"{where}.path: archive {archive} does not exist or cannot be read; mend the path"
        )
    folder = _folder(source, fetching.work, before)
    try:
        if source.sha256:
            _check_digest(source.sha256, archive, fetching)
        found = _Unpacking(source, fetching, folder).run(archive)
    except (BrokenArchive, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StageError(f"{where}.path: {archive}: {reason}") from None
    except TooMuch:
        shutil.rmtree(folder)
        raise StageError(
            f"{where}.max_gigabytes: {archive} holds more than {source.max_gigabytes:g} GB; "
            "raise it if the archive is to be trusted"
        ) from None
    if stamp(archive) != before:
        raise StageError(f"{where}.path: {archive} changed while it was read; build again")
    if not found.files:
        raise StageError(
            f"{where}: no image in {archive} matches include {list(source.include)} "
            f"({found.ignored.total()} other files); mend the path or `include`"
        )
    return found


def fingerprint(source: ArchiveSource) -> dict[str, str]:
    """Size and time of change of the archive."""
    archive = Path(source.path)
    return {"archive": stamp(archive) if archive.is_file() else "missing"}


def _folder(source: ArchiveSource, work: Path, stamped: str) -> Path:
    """Where the members go: of its own for each source, and for each state of its archive."""
    name = hashlib.sha256(json.dumps(source.model_dump(mode="json")).encode()).hexdigest()[:16]
    folder = work / f"archive-{name}" / stamped
    if folder.parent.is_dir():
        for other in folder.parent.iterdir():
            if other != folder:  # of an archive that has changed since
                shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_digest(wanted: str, archive: Path, fetching: Fetching) -> None:
    total = archive.stat().st_size
    with fetching.bar(f"{archive.name}: sha256", total // _MEGABYTE, "MB") as advance:
        given = hash_file(archive, _megabytes(advance))
    if given != wanted:
        raise StageError(
            f"{fetching.where}.sha256: {archive} has {given}, the recipe says {wanted}; "
            "fetch the archive again or mend the recipe"
        )


def _megabytes(advance: Callable[[int], None]) -> Callable[[int], None]:
    """Turns counts of bytes into those whole megabytes that they fill."""
    rest = 0

    def add(count: int) -> None:
        nonlocal rest
        whole, rest = divmod(rest + count, _MEGABYTE)
        if whole:
            advance(whole)

    return add


def _members(file: BinaryIO, most: int, log: Callable[[str], None]) -> Iterator[Member]:
    """The members of an archive, whose kind is told by its content."""
    start = file.read(tarfile.BLOCKSIZE)
    if not start:
        raise BrokenArchive("the file is empty")
    form = next((form for magic, form in _FORMS if start.startswith(magic)), "")
    if form in ("7z", "rar"):
        raise BrokenArchive(f"{form} is not read; unpack it and use a source `kind: folder`")
    if not form and not _is_tar_header(start):
        if not zipfile.is_zipfile(file):  # one behind a program that unpacks it
            raise BrokenArchive("neither a zip nor a tar file, plain or by gzip, bzip2, xz or zstd")
        form = "zip"
    file.seek(0)
    return zip_members(file) if form == "zip" else tar_members(file, form, most, log)


def _is_tar_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return not block.strip(b"\0")  # the end mark: a tar file of nothing
    return True


class _Unpacking:
    """One pass through an archive: which members are taken, and what became of the others."""

    def __init__(self, source: ArchiveSource, fetching: Fetching, folder: Path) -> None:
        self._source, self._fetching = source, fetching
        self._folder, self._part = folder / "files", folder / "part"
        self._folder.mkdir(exist_ok=True)
        self._left = int(source.max_gigabytes * _GIGABYTE)
        self._largest = int(source.max_megabytes * _MEGABYTE)
        self._found = Found()
        self._names = Names(folds_case(self._folder))
        self._entered: Counter[str] = Counter()

    def run(self, archive: Path) -> Found:
        total, read = archive.stat().st_size // _MEGABYTE, 0
        label = f"{archive.name}: unpacking"
        with archive.open("rb") as file, self._fetching.bar(label, total, "MB") as advance:
            for member in _members(file, self._left, self._fetching.log):
                self._judge(member)
                position = min(total, file.tell() // _MEGABYTE)
                if position > read:
                    advance(position - read)
                    read = position
            if total > read:
                advance(total - read)
        self._part.unlink(missing_ok=True)
        self._found.files.sort(key=lambda file: file.shown)
        self._found.links.sort()
        return self._found

    def _judge(self, member: Member) -> None:
        path = plain(member.name)
        suffix = PurePosixPath(path).suffix.lower()
        if member.kind == "folder":
            return
        if member.kind == "link":
            self._found.links.append(as_text(path))
        elif member.kind == "special":
            self._found.ignored["special file"] += 1
        elif suffix not in EXTENSIONS:
            self._found.ignored[shown_suffix(suffix)] += 1
        elif problem := unusable(path):
            self._enter(member.name, problem)
        elif any(part.startswith(".") for part in path.split("/")):
            self._found.ignored["hidden"] += 1
        elif "__MACOSX" in path.split("/"):
            self._found.ignored["__MACOSX"] += 1
        elif any(fnmatchcase(path, pattern) for pattern in self._source.include):
            self._enter(path, self._names.taken(path) or self._unpack(member, path))

    def _enter(self, name: str, problem: str) -> None:
        """Enters a member; where one name is there more than once, each has a row of its own."""
        shown = as_text(name)
        self._entered[shown] += 1
        if self._entered[shown] > 1:
            shown = f"{shown} ({self._entered[shown]})"
        path = self._folder if problem else self._folder / name
        self._found.files.append(SourceFile(path, shown, problem))

    def _unpack(self, member: Member, path: str) -> str:
        """Writes one member, unless it is there; says why it cannot be had."""
        if member.size > self._largest:
            return f"{member.size} bytes, more than max_megabytes {self._source.max_megabytes:g}"
        if member.size > self._left:
            raise TooMuch
        target = self._folder / path
        if target.is_file() and target.stat().st_size == member.size:
            self._left -= member.size
            return ""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._part.open("wb") as writer:
                for block in member.blocks():
                    self._left -= len(block)
                    if self._left < 0:
                        raise TooMuch
                    writer.write(block)
                writer.flush()
                os.fsync(writer.fileno())
        except BrokenMember as error:
            return str(error)
        self._part.replace(target)
        return ""
