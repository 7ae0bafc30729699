"""Files that appear under their name when they are whole, and the hidden ones before them.

What is written into them is not known here.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(target: Path, ending: str = "") -> Iterator[Path]:
    """A hidden name beside `target`; what is written to it takes its place after the block.

    Args:
        target: the file; its folder is made.
        ending: of the hidden name, such as `.mp4`, for writers that go by it.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden(target.parent, f"tmp{ending}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def hidden(folder: Path, suffix: str) -> Path:
    """A name for this thread; not that of the target, which may be as long as names can be."""
    return folder / f".srd-{platform.node()}-{os.getpid()}-{threading.get_ident()}.{suffix}"


def clear(folder: Path) -> None:
    """Removes what processes of this machine left behind that were killed."""
    mine = f".srd-{platform.node()}-"
    for pattern in (".srd-*.rows", ".srd-*.tmp", ".srd-*.tmp.*"):
        for path in folder.glob(pattern):
            process = path.name.removeprefix(mine).split("-")[0]
            if path.name.startswith(mine) and process.isdigit() and not _runs(int(process)):
                path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if sys.platform == "win32":  # where asking ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
