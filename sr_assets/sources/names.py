"""Names of files that somebody else chose: which of them may be used below a folder of ours."""

from __future__ import annotations

LONGEST = 240  # bytes of one part, as in files.py


def unsafe(path: str) -> str:
    """Why a relative posix path cannot be used; empty when it can."""
    if not path or path.startswith("/") or "\\" in path or "\0" in path:
        return "path is not a plain relative one"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or (len(path) > 1 and path[1] == ":"):
        return "path leaves its folder"
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "file name is not valid UTF-8"
    return f"file name is longer than {LONGEST} bytes" if longest > LONGEST else ""
