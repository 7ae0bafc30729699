"""Images inside parquet files and webdataset shards, written out as files with untouched bytes.

Reading them is the `datasets` library's; where they come from is `hub.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sr_assets.lineage.stage import StageError
from sr_assets.sources.files import EXTENSIONS, Fetching, SourceFile
from sr_assets.sources.names import unsafe

#: Ending -> the name that the `datasets` library has for the format.
TABLES = {".parquet": "parquet", ".tar": "webdataset"}
_ROWS_AT_ONCE = 8
_BUFFER = 1 << 20  # bytes

#: First bytes (and, where it matters, those from the fifth on) -> ending.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", b"", ".png"),
    (b"\xff\xd8\xff", b"", ".jpg"),
    (b"GIF8", b"", ".gif"),
    (b"BM", b"", ".bmp"),
    (b"II*\0", b"", ".tif"),
    (b"MM\0*", b"", ".tif"),
    (b"RIFF", b"WEBP", ".webp"),
    (b"", b"ftypavi", ".avif"),
    (b"", b"jP  \r\n", ".jp2"),
)


@dataclass
class Unpacking:
    """The images of the tables of one source, in the order of the tables and of their rows.

    What is written lies in the scratch folder of the run under the digest of its table, so that a
    run that goes on after a kill neither fetches nor reads a finished table again.
    """

    column: str | None
    fetching: Fetching
    _taken: set[str] = field(default_factory=set)
    _folders: set[str] = field(default_factory=set)
    _used: Counter[str] = field(default_factory=Counter)

    def done(self, digest: str) -> bool:
        """Whether a table was unpacked, as far as it was wanted."""
        return self._index(digest).is_file()

    def unpack(
        self, shown: str, digest: str, fetch: Callable[[], Path], most: int | None
    ) -> list[SourceFile]:
        """At most `most` images of one table.

        Args:
            shown: path of the table, of which the names of nameless images are made.
            digest: of the table's content.
            fetch: brings the table itself; not called when its images are there.
            most: None for all of them.

        Raises:
            StageError: it cannot be read, or has not exactly one image column (or none `column`).
        """
        rows, whole = self._finished(digest)
        if not whole and (most is None or len(rows) < most):
            rows = self._write_rows(shown, digest, fetch(), most)
        stem = shown.removesuffix(PurePosixPath(shown).suffix)
        folder = self._folder(digest)
        return [
            SourceFile(folder / row["file"], self._name(row, stem, number), row["problem"])
            for number, row in enumerate(rows[:most])
        ]

    def _write_rows(
        self, shown: str, digest: str, path: Path, most: int | None
    ) -> list[dict[str, str]]:
        """Writes the images of a table and then its index, which says that they are all there."""
        folder = self._folder(digest)
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, str]] = []
        whole = True
        with self._one_line(shown):
            for number, (stored, data) in enumerate(self._read(shown, path)):
                if most is not None and number == most:
                    whole = False
                    break
                ending = _ending(data)
                row = {"stored": stored, "ending": ending, "file": f"{number:08d}{ending}"}
                row["problem"] = "" if data else "its row holds no image"
                _write(folder / row["file"], data)
                rows.append(row)
            _write(
                self._index(digest),
                json.dumps({"rows": rows, "whole": whole}).encode(),
            )
        return rows

    def _read(self, shown: str, path: Path) -> Iterator[tuple[str, bytes]]:
        """(stored path, bytes) of every row; both may be empty."""
        try:
            import datasets
        except ImportError:
            raise StageError(
                f"{self.fetching.where}: the images of {shown} are rows of a table: run `pip "
                "install 'sr-distillery[hub-tables]'` to read them"
            ) from None
        read = self._parquet if TABLES[_suffix(shown)] == "parquet" else self._webdataset
        for value in read(shown, path, datasets):
            # A row may name a file instead of holding it; such a path is never opened.
            yield str((value or {}).get("path") or ""), (value or {}).get("bytes") or b""

    def _parquet(self, shown: str, path: Path, datasets: Any) -> Iterator[dict[str, Any] | None]:
        import pyarrow.parquet as pq

        # Page by page: the library's own reader holds several row groups, which are gigabytes.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as table:
            features = datasets.Features.from_arrow_schema(table.schema_arrow)
            column = self._image_column(shown, features)
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[column], use_threads=False):
                yield from datasets.Image(decode=False).cast_storage(batch.column(0)).to_pylist()

    def _webdataset(self, shown: str, path: Path, datasets: Any) -> Iterator[dict[str, Any] | None]:
        table = datasets.load_dataset(
            "webdataset",
            data_files=[str(path)],
            split="train",
            streaming=True,
            cache_dir=str(self.fetching.work / "datasets"),
        )
        column = self._image_column(shown, table.features)
        for row in table.select_columns([column]).cast_column(column, datasets.Image(decode=False)):
            yield row[column]

    def _image_column(self, shown: str, features: Any) -> str:
        from datasets import Image

        columns = list(features or {})
        if self.column is not None:
            if self.column in columns:
                return self.column
            raise StageError(
                f"{self.fetching.where}.column: {shown} has no column {self.column!r}; there are: "
                f"{', '.join(columns) or 'none'}"
            )
        images = [
            name
            for name in columns
            if isinstance(features[name], Image)
            or (isinstance(features[name], dict) and "bytes" in features[name])
        ]
        if len(images) == 1:
            return images[0]
        raise StageError(
            f"{self.fetching.where}.column: {shown} has {len(images) or 'no'} image columns"
            + (f" ({', '.join(images)}): name one" if images else "")
            + (f"; its columns are: {', '.join(columns)}" if not images else "")
        )

    @contextmanager
    def _one_line(self, shown: str) -> Iterator[None]:
        try:
            yield
        except (StageError, OSError, MemoryError):
            raise
        except Exception as error:  # pyarrow, datasets and tarfile share no base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StageError(
                f"{self.fetching.where}: {shown} cannot be read as {TABLES[_suffix(shown)]} "
                f"({reason}); leave it out with `ignore`"
            ) from error

    def _name(self, row: dict[str, str], stem: str, number: int) -> str:
        """The stored path where it can be one, made unique; else the number of the row."""
        name = next(name for name in self._names(row, stem, number) if self._free(name))
        self._taken.add(name)
        self._folders.update(_parents(name))
        return name

    def _names(self, row: dict[str, str], stem: str, number: int) -> Iterator[str]:
        """Names that a row may have, the best first."""
        stored, ending = row["stored"], row["ending"]
        if stored and _suffix(stored) not in EXTENSIONS:
            stored += ending
        name, path = stored, PurePosixPath(stored)
        if not any(part.startswith(".") for part in stored.split("/")):
            while not unsafe(name) and not _parents(name) & self._taken:
                yield name
                # Many rows may share a name: the next one does not start at 2 again.
                self._used[stored] += 1
                name = str(path.with_name(f"{path.stem}~{self._used[stored] + 1}{path.suffix}"))
        for count in itertools.count(1):
            yield f"{stem}{f'~{count}' if count > 1 else ''}/{number:08d}{ending}"

    def _free(self, name: str) -> bool:
        """Whether no other image has this name, nor one that is a folder of it."""
        used = name in self._taken or name in self._folders
        return not used and not _parents(name) & self._taken

    def _finished(self, digest: str) -> tuple[list[dict[str, str]], bool]:
        try:
            index = json.loads(self._index(digest).read_bytes())
        except (OSError, ValueError):
            return [], False
        return index["rows"], index["whole"]

    def _folder(self, digest: str) -> Path:
        words = digest if self.column is None else f"{digest} {self.column}"
        return self.fetching.work / "hub" / hashlib.sha256(words.encode()).hexdigest()[:24]

    def _index(self, digest: str) -> Path:
        return self._folder(digest) / "index.json"


def _parents(path: str) -> set[str]:
    return {str(parent) for parent in PurePosixPath(path).parents}


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _ending(data: bytes) -> str:
    """Ending for a file of this content."""
    for first, fifth, ending in _SIGNATURES:
        if data.startswith(first) and data.startswith(fifth, 4 if first == b"" else 8):
            return ending
    return ".bin"


def _write(path: Path, data: bytes) -> None:
    """Writes a file at once, unless a killed run has done so."""
    if path.exists() and path.stat().st_size == len(data):
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
