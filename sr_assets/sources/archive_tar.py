"""The members of a tar file, compressed or not, from headers that are not believed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from sr_assets.sources.archive_members import (
    BLOCK,
    BrokenArchive,
    BrokenMember,
    Kind,
    Member,
    TooMuch,
    device_error,
    first_line,
)

_TAR_BLOCK = 512
#: Long names and other extra headers between two members; tarfile takes them into memory whole.
_LONGEST_HEADERS = 256 << 10


def plain_tar_members(file: BinaryIO) -> Iterator[Member]:
    """Every member of a tar file that may only hold what it is as large as.

    Raises:
        BrokenArchive: it is compressed, has members with holes, is damaged, or no tar file.
    """
    start = file.read(_TAR_BLOCK)
    file.seek(0)
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        raise BrokenArchive(
            "it is compressed, or no tar file; a shard is a plain tar file"
        ) from None
    for member in tar_members(file, "", 0, lambda line: None):
        if member.holes:
            raise BrokenArchive(f"{member.name!r} is stored with holes (sparse)")
        yield member


def tar_members(
    file: BinaryIO, form: str, most: int, log: Callable[[str], None]
) -> Iterator[Member]:
    """Every member, in the order of the file.

    Args:
        file: the archive, at its start.
        form: how it is compressed: gzip, bzip2, xz, zstd or "" for not at all.
        most: bytes that it may unpack to where it is compressed, whatever is in it.
        log: is told what is odd and yet no error.

    Raises:
        BrokenArchive: it is damaged, or no tar file.
        TooMuch: it holds more than `most`.
    """
    stream = _Forward(_decompressed(file, form), most) if form else _Forward(file, None)
    unsound = (tarfile.TarError, ValueError, OverflowError, OSError, RecursionError)
    try:
        # Names are bytes: what is no UTF-8 stays told apart, whatever the machine's locale.
        tar = tarfile.TarFile(
            fileobj=stream,  # type: ignore[arg-type]
            encoding="utf-8",
            errors="surrogateescape",
        )
    except unsound as error:
        raise BrokenArchive(f"no tar file is in it, or a broken one: {first_line(error)}") from None
    while True:
        try:
            info = tar.next()
        except unsound as error:
            raise BrokenArchive(f"broken or truncated tar file: {first_line(error)}") from None
        if info is None:
            break
        if info.size < 0:
            raise BrokenArchive(f"broken tar file: {info.name!r} has a size below zero")
        tar.members.clear()  # type: ignore[attr-defined] # tarfile keeps them all
        stream.granted = tar.offset + _LONGEST_HEADERS  # the next member's headers start there
        yield Member(
            info.name, _kind(info), info.size, _blocks(stream, info), holes=info.issparse()
        )
    # tarfile takes any block that is no header for the end.
    if stream.last_header.strip(b"\0") or len(stream.last_header) not in (0, _TAR_BLOCK):
        raise BrokenArchive(f"broken or truncated tar file: no header at byte {stream.tell()}")
    if not stream.last_header:
        log("the tar file has no end mark: it may have been cut between two members")
    if stream.drain():
        log("data follows the end mark of the tar file and was not read: several in one, perhaps")


def _kind(info: tarfile.TarInfo) -> Kind:
    if info.isdir():
        return "folder"
    if info.issym() or info.islnk():
        return "link"
    return "file" if info.isreg() else "special"


def _blocks(stream: _Forward, info: tarfile.TarInfo) -> Callable[[], Iterator[bytes]]:
    def blocks() -> Iterator[bytes]:
        if info.issparse():
            raise BrokenMember("stored with holes (sparse); pack it again without")
        stream.seek(info.offset_data)
        left = info.size
        while left:
            block = stream.read(min(BLOCK, left))
            if not block:
                raise BrokenArchive(f"truncated inside {info.name!r}")
            left -= len(block)
            yield block

    return blocks


def _decompressed(file: BinaryIO, form: str) -> Any:
    """The stream behind a compressed one; it takes a bounded part of it into memory."""
    if form == "gzip":
        return gzip.GzipFile(fileobj=file)
    if form == "bzip2":
        return bz2.BZ2File(file)
    if form == "xz":
        return lzma.LZMAFile(file)
    import pyarrow

    if not pyarrow.Codec.is_available("zstd"):
        raise BrokenArchive("zstd is not in the installed pyarrow; pack it with gzip or xz")
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


class _Forward:
    """A stream for tarfile that goes forwards only, and not beyond what it was granted.

    So a header can neither send the reader round in circles nor have gigabytes taken for a name.
    """

    def __init__(self, stream: Any, most: int | None) -> None:
        self._stream, self._most = stream, most
        self._position = 0
        self.granted = _LONGEST_HEADERS
        self.last_header = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise BrokenArchive("broken tar file: a header points backwards")
        if self._most is None:
            self._stream.seek(position)
            self._position = position
        while self._position < position and self._take(min(BLOCK, position - self._position)):
            pass

    def read(self, size: int) -> bytes:
        if self._position + size > self.granted:
            raise BrokenArchive(f"a member has more than {_LONGEST_HEADERS >> 10} KiB of headers")
        data = self._take(size)
        while len(data) < size and (more := self._take(size - len(data))):
            data += more
        if size == _TAR_BLOCK:
            self.last_header = data
        return data

    def drain(self) -> bool:
        """Whether anything but zeros is left: in a plain file in the next piece.

        A compressed file is read to its end, for only there is its checksum.
        """
        found = False
        while block := self._take(BLOCK):
            found = found or bool(block.strip(b"\0"))
            if self._most is None:
                break
        return found

    def _take(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            raise BrokenArchive(f"broken or truncated: {first_line(error)}") from None
        except OSError as error:
            raise device_error(error) from None
        self._position += len(data)
        if self._most is not None and self._position > self._most:
            raise TooMuch
        return data
