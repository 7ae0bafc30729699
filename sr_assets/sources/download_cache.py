"""The cache of downloads: one entry a URL, shared by projects, checked again before it is used.

Only the digest of a URL is stored, since a URL can hold secrets. Nothing is fetched here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sr_assets.storage import hash_file


@dataclass(frozen=True)
class Kept:
    """A whole file in the cache."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    content_type: str
    """As the server gave it, such as image/png; may be empty."""
    was_there: bool
    """Whether it was there before it was asked for."""


@dataclass(frozen=True)
class _Record:
    sha256: str
    size: int
    content_type: str


class Entry:
    """Place of one URL in the cache: `KEY`, its record `KEY.json`, and while it is being fetched
    `KEY.part` with `KEY.part.json`. Whoever uses it holds the lock."""

    def __init__(self, folder: Path, url: str) -> None:
        key = hashlib.sha256(url.encode()).hexdigest()
        place = folder / key[:2]
        place.mkdir(parents=True, exist_ok=True)
        self.lock = place / f"{key}.lock"
        self.part = place / f"{key}.part"
        self._file = place / key
        self._record = place / f"{key}.json"
        self._validator = place / f"{key}.part.json"

    def kept(self) -> Kept | None:
        """The whole file, if it is there and its bytes are those that were fetched."""
        try:
            record = _Record(**json.loads(self._record.read_bytes()))
            whole = (
                self._file.stat().st_size == record.size and hash_file(self._file) == record.sha256
            )
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return Kept(self._file, **asdict(record), was_there=True) if whole else None

    def part_size(self) -> int:
        """Bytes that have been fetched of a file that is not whole."""
        return self.part.stat().st_size if self.part.exists() else 0

    def resumable(self) -> tuple[int, str]:
        """From which byte to go on, and what tells that the file is still the same; (0, "") when
        it must start again."""
        try:
            validator = json.loads(self._validator.read_bytes())
        except (FileNotFoundError, ValueError):
            return 0, ""
        size = self.part_size()
        return (size, validator) if size and isinstance(validator, str) and validator else (0, "")

    def begin(self, headers: Mapping[str, str]) -> None:
        """Starts a part afresh, under the validator of the server's answer.

        A weak entity tag may not be used with If-Range (RFC 9110, 13.1.5).
        """
        self.discard()
        etag = headers.get("ETag", "")
        strong = etag if etag.startswith('"') else ""
        validator = strong or ("" if etag else headers.get("Last-Modified", ""))
        self.part.touch()
        _write(self._validator, validator)

    def discard(self) -> None:
        """Forgets what was fetched of a file that is not whole."""
        self._validator.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def digest(self) -> str:
        """sha256 of the part."""
        return hash_file(self.part)

    def keep(self, sha256: str, content_type: str) -> Kept:
        """Makes the part the whole file."""
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        record = _Record(sha256, self.part.stat().st_size, content_type.partition(";")[0].strip())
        self._record.unlink(missing_ok=True)  # of an earlier file, which is replaced
        self.part.replace(self._file)
        _write(self._record, asdict(record))
        self._validator.unlink(missing_ok=True)
        return Kept(self._file, **asdict(record), was_there=False)


def _write(path: Path, value: object) -> None:
    """Writes JSON so that a kill leaves all of it or nothing."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)
