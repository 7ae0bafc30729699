"""Which kinds of picture files are read and written, and what each of them can hold.

Reading and writing them is `reading.py` and `writing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sr_assets.lineage.stage import StageError


@dataclass(frozen=True)
class Format:
    """A kind of file that is written."""

    name: str
    suffixes: tuple[str, ...]
    """The first is the one that new names get."""
    deep: bool
    """Whether it holds more than 8 bits a sample."""
    alpha: bool
    largest_side: int
    """px."""
    quality: int | None
    """The usual one of a lossy format, 1 to 100."""


FORMATS = (
    Format("png", (".png",), True, True, 2**31 - 1, None),
    Format("jpeg", (".jpg", ".jpeg", ".jpe", ".jfif"), False, False, 65_535, 95),
    Format("webp", (".webp",), False, True, 16_383, 95),
    Format("tiff", (".tif", ".tiff"), True, True, 2**31 - 1, None),
    Format("avif", (".avif",), True, True, 16_384, 85),
)
NAMES = tuple(kind.name for kind in FORMATS)

_BY_SUFFIX = {suffix: kind for kind in FORMATS for suffix in kind.suffixes}

#: Endings of what is taken from a folder.
READABLE = frozenset(_BY_SUFFIX) | {".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".jp2"}


def format_of(path: Path) -> Format | None:
    """The format that the ending of `path` means; None for one that is not written."""
    return _BY_SUFFIX.get(path.suffix.lower())


def named(name: str) -> Format:
    """The format of this name.

    Raises:
        StageError: there is none.
    """
    for kind in FORMATS:
        if kind.name == name:
            return kind
    raise StageError(f"--format {name} is not one of {', '.join(NAMES)}")


def demanded(path: Path) -> Format:
    """The format of an output that was named.

    Raises:
        StageError: its ending is none that is written.
    """
    found = format_of(path)
    if found is None:
        raise StageError(f"{path}: pictures are written as {', '.join(sorted(_BY_SUFFIX))}")
    return found
