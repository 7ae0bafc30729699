"""How this package compiles its loops over pixels: with numba, and with a cache that is never old.

numba's own cache looks at the file of a function alone, and would keep the old code of what that
function calls in other files. Here the cached code belongs to the sources of its whole folder.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.misc.appdirs import AppDirs

_Function = TypeVar("_Function", bound=Callable[..., Any])
_config: Any = numba.config


def compiled(function: _Function) -> _Function:
    """Machine code without the interpreter's lock; floating-point sums keep their order."""
    return _compiled(function)


def inlined(function: _Function) -> _Function:
    """The same for a small function, put into its callers."""
    return _compiled(function, forceinline=True)


def _compiled(function: _Function, **options: Any) -> _Function:
    # numba settles where a function is cached when it is decorated, and has no argument for it.
    given = _config.CACHE_DIR
    _config.CACHE_DIR = str(
        Path(given or AppDirs("numba").user_cache_dir)
        / _cache_folder(Path(function.__code__.co_filename).parent)
    )
    try:
        compile_it: Any = numba.njit(nogil=True, cache=True, fastmath=False, **options)
        made: _Function = compile_it(function)
        return made
    finally:
        _config.CACHE_DIR = given


@functools.cache
def _cache_folder(sources: Path) -> str:
    """Name of the cache folder of what is compiled in `sources`, made from all files there."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(sources.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return f"{sources.parent.name}-{sources.name}-{digest.hexdigest()[:16]}"
