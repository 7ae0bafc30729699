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
from sr_assets.recipe.sources import HubSource
from sr_assets.sources.archive_names import as_text
from sr_assets.sources.archive_tar import plain_tar_members
from sr_assets.sources.files import EXTENSIONS, Fetching, SourceFile
from sr_assets.sources.hub_endings import ending_of
from sr_assets.sources.names import unsafe
from sr_models.one_line import one_line

#: Ending -> the name that the `datasets` library has for the format.
TABLES = {".parquet": "parquet", ".tar": "webdataset"}
_ROWS_AT_ONCE = 8
_BUFFER = 1 << 20  # bytes
_GIGABYTE, _MEGABYTE = 10**9, 10**6


@dataclass
class Unpacking:
    """The images of the tables of one source, in the order of the tables and of their rows.

    What is written lies in the scratch folder of the run under the digest of its table, so that a
    run that goes on after a kill neither fetches nor reads a finished table again.
    """

    source: HubSource
    fetching: Fetching
    _left: int = field(init=False)
    """Bytes that may still be unpacked."""
    _taken: set[str] = field(default_factory=set)
    _folders: set[str] = field(default_factory=set)
    _used: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._left = int(self.source.max_gigabytes * _GIGABYTE)

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
            StageError: it cannot be read, has not exactly one image column (or none `column`), or
                all tables together hold more than `max_gigabytes`.
        """
        rows, whole = self._finished(digest)
        folder = self._folder(digest)
        if not whole and (most is None or len(rows) < most):
            rows = self._write_rows(shown, digest, fetch(), most)
        else:
            self._count(shown, sum((folder / row["file"]).stat().st_size for row in rows[:most]))
        stem = shown.removesuffix(PurePosixPath(shown).suffix)
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
                ending = ending_of(data)
                row = {"stored": stored, "ending": ending, "file": f"{number:08d}{ending}"}
                row["problem"] = "" if data else "its row holds no image"
                if len(data) > self.source.max_megabytes * _MEGABYTE:
                    row["problem"] = (
                        f"{len(data)} bytes, more than max_megabytes {self.source.max_megabytes:g}"
                    )
                    data = b""
                self._count(shown, len(data))
                _write(folder / row["file"], data)
                rows.append(row)
            _write(
                self._index(digest),
                json.dumps({"rows": rows, "whole": whole}).encode(),
            )
        return rows

    def _count(self, shown: str, size: int) -> None:
        """Refuses what a small table can unpack to."""
        self._left -= size
        if self._left < 0:
            raise StageError(
                f"{self.fetching.where}.max_gigabytes: the images unpacked as far as {shown} are "
                f"larger than {self.source.max_gigabytes:g} GB together; raise it if the "
                "repository is to be trusted, or take fewer with `include` or `maximum`"
            )

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
            rows = _ROWS_AT_ONCE if self._modest(table, column) else 1
            for batch in table.iter_batches(rows, columns=[column], use_threads=False):
                yield from datasets.Image(decode=False).cast_storage(batch.column(0)).to_pylist()

    def _modest(self, table: Any, column: str) -> bool:
        """Whether no value can be so large that several of them would fill the memory."""
        largest = 0
        for number in range(table.metadata.num_row_groups):
            group = table.metadata.row_group(number)
            chunks = (group.column(at) for at in range(group.num_columns))
            largest = max(
                [largest]
                + [
                    chunk.total_uncompressed_size
                    for chunk in chunks
                    if chunk.path_in_schema.split(".")[0] == column
                ]
            )
        if largest > self.source.max_gigabytes * _GIGABYTE:
            raise ValueError(
                f"a group of its rows has {largest} bytes, more than max_gigabytes "
                f"{self.source.max_gigabytes:g}"
            )
        return largest < _GIGABYTE

    def _webdataset(self, shown: str, path: Path, datasets: Any) -> Iterator[dict[str, Any] | None]:
        self._check_shard(path)
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

    def _check_shard(self, path: Path) -> None:
        """Refuses shards that unpack to more than they are: the library takes samples whole."""
        most = int(self.source.max_megabytes * _MEGABYTE)
        with path.open("rb") as file:
            for member in plain_tar_members(file):
                if member.kind == "file" and member.size > most:
                    raise ValueError(
                        f"{as_text(member.name)!r} has {member.size} bytes, more than "
                        f"max_megabytes {self.source.max_megabytes:g}"
                    )

    def _image_column(self, shown: str, features: Any) -> str:
        from datasets import Image

        columns = list(features or {})
        if self.source.column is not None:
            if self.source.column in columns:
                return self.source.column
            raise StageError(
                f"{self.fetching.where}.column: {shown} has no column {self.source.column!r}; "
                "there are: "
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
            reason = one_line(error)
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
        words = json.dumps([digest, self.source.column, self.source.max_megabytes])
        return self.fetching.work / "hub" / hashlib.sha256(words.encode()).hexdigest()[:24]

    def _index(self, digest: str) -> Path:
        return self._folder(digest) / "index.json"


def _parents(path: str) -> set[str]:
    return {str(parent) for parent in PurePosixPath(path).parents}


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _write(path: Path, data: bytes) -> None:
    """Writes a file at once, unless a killed run has done so."""
    if path.exists() and path.stat().st_size == len(data):
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
