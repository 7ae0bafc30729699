"""Digests of the files that metrics read: what tells that a weights file was replaced.

Which files those are is said by the module of each metric; nothing is loaded here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

#: Stands for the digest of a file or package that is not here.
MISSING = "missing"


def found_digest(find: Callable[[], Path]) -> str:
    """First 16 digits of the SHA-256 of the file that `find` gives; `MISSING` where there is none.

    A file is read once a process while its size and time stay: the largest have 500 MB.

    Args:
        find: raises ValueError or FileNotFoundError where there is none.
    """
    try:
        path = find()
        status = path.stat()
    except (ValueError, FileNotFoundError):
        return MISSING
    return _digest(path, status.st_size, status.st_mtime_ns)


def package_file(package: str, *parts: str) -> Path:
    """A file of an installed package, which is not imported.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{package} is not installed")
    return Path(spec.origin).parent.joinpath(*parts)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
