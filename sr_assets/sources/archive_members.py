"""What an archive is made of: its members, and the ways in which it can be broken.

Reading them is `archive_zip.py` and `archive_tar.py`; what is done with them is `archive.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

BLOCK = 1 << 20  # bytes that are read at once
Kind = Literal["file", "folder", "link", "special"]


class BrokenArchive(Exception):  # noqa: N818 - a verdict on a file
    """The archive cannot be read, or not further; the message is why."""


class BrokenMember(Exception):  # noqa: N818 - a verdict on a file
    """This member cannot be read, the others may; the message is why."""


class TooMuch(Exception):  # noqa: N818 - a verdict on a file
    """The archive unpacks to more bytes than were allowed."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    """As it is stored, made text."""
    kind: Kind
    size: int
    """Bytes, as the archive declares them."""
    blocks: Callable[[], Iterator[bytes]]
    """The content, read once and before the next member is asked for.

    Raises BrokenMember, BrokenArchive or TooMuch while it is read.
    """
    holes: bool = False
    """Whether it is larger than what is stored of it (sparse)."""


def device_error(error: OSError) -> Exception:
    """The error itself where the disk failed; decoders raise OSError without a number."""
    return error if error.errno else BrokenArchive(f"broken or truncated: {first_line(error)}")


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
