"""How this package compiles its loops over pixels: with numba, and with a cache that is never old.

numba's own cache looks at the file of a function alone, and would keep the old code of what that
function calls in other files. Here the cached code belongs to the sources of the whole package.
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
    _config.CACHE_DIR = str(Path(given or AppDirs("numba").user_cache_dir) / _folder())
    try:
        compile_it: Any = numba.njit(nogil=True, cache=True, fastmath=False, **options)
        made: _Function = compile_it(function)
        return made
    finally:
        _config.CACHE_DIR = given


@functools.cache
def _folder() -> str:
    """Name of the cache folder, made from all sources of this package."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return f"sr_models-degradations-{digest.hexdigest()[:16]}"
