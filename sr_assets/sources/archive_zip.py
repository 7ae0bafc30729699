"""The members of a zip file, from headers that are not believed."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from sr_assets.sources.archive_members import (
    BLOCK,
    BrokenArchive,
    BrokenMember,
    Kind,
    Member,
    device_error,
    first_line,
)

_UTF8_NAME = 0x800  # bits of the flags of a zip member
_ENCRYPTED = 0x1
_ZIP_HEADER = 30  # bytes before the name
_ZIP_METHODS = {
    6: "implode",
    9: "deflate64",
    12: "bzip2",
    14: "LZMA",
    93: "zstd",
    95: "xz",
    98: "PPMd",
    99: "AES encryption",
}
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, struct.error)


def zip_members(file: BinaryIO) -> Iterator[Member]:
    """Every member, in the order of the file's directory.

    Raises:
        BrokenArchive: it is damaged, or made to unpack to more than it holds.
    """
    try:
        archive = zipfile.ZipFile(file)
    except UnicodeDecodeError:
        raise BrokenArchive("a member's name is not the UTF-8 that it claims to be") from None
    except (*_UNREADABLE, ValueError, OverflowError, OSError) as error:
        raise BrokenArchive(f"broken or truncated zip file: {first_line(error)}") from None
    with archive:
        _refuse_overlap(archive.infolist())
        for info in archive.infolist():
            yield Member(_name(info), _kind(info), info.file_size, _blocks(archive, info))


def _refuse_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Members that share bytes are how a small file unpacks to petabytes."""
    end, before = 0, ""
    for info in sorted(infos, key=lambda info: (info.header_offset, info.compress_size)):
        if info.header_offset < end:
            raise BrokenArchive(
                f"members {before!r} and {info.filename!r} share the same bytes: a zip bomb"
            )
        end, before = info.header_offset + _ZIP_HEADER + info.compress_size, info.filename


def _name(info: zipfile.ZipInfo) -> str:
    """The stored name: UTF-8 where that is said or fits, else code page 437.

    Python cuts `filename` at a NUL, `orig_filename` is whole.
    """
    if info.flag_bits & _UTF8_NAME:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode()
    except UnicodeError:
        return info.orig_filename


def _kind(info: zipfile.ZipInfo) -> Kind:
    if info.orig_filename.endswith("/"):
        return "folder"
    mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not packed on Unix
    if mode == stat.S_IFLNK:
        return "link"
    if mode == stat.S_IFDIR:
        return "folder"
    return "file" if mode in (0, stat.S_IFREG) else "special"


def _blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], Iterator[bytes]]:
    def blocks() -> Iterator[bytes]:
        if info.flag_bits & _ENCRYPTED:
            raise BrokenMember("encrypted; unpack the archive with its password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Python's zipfile reads bzip2 and LZMA too, but with no bound on the memory.
            method = _ZIP_METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise BrokenMember(f"compressed with {method}; pack it again with deflate")
        read = 0
        try:
            with archive.open(info) as stream:
                while block := stream.read(BLOCK):
                    read += len(block)
                    yield block
        except (*_UNREADABLE, NotImplementedError) as error:
            raise BrokenMember(f"broken in the archive: {first_line(error)}") from None
        except OSError as error:
            raise device_error(error) from None
        if read != info.file_size:
            raise BrokenMember(f"broken in the archive: {read} bytes instead of {info.file_size}")

    return blocks
