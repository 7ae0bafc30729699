"""The manifest of a bronze output: one typed row for every source image, kept as Parquet bytes.

Where the bytes lie and how the rows come about is not known here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from sr_assets.stores.schema import check_schema

if TYPE_CHECKING:
    import pyarrow

MANIFEST = "manifest.parquet"
SCHEMA, VERSION = "srd.manifest", 1
_VERSION_KEY = b"srd.schema"
#: Columns that the first programs did not write.
_LATER = ("phash", "luma", "lr", "lr_sha256")

_Samples = bytes  # by another name: a row has a field that is called bytes


@dataclass(frozen=True)
class ManifestRow:
    """One source image.

    `width`, `height` (px) are those of the upright picture and `mode` is how the file stores it;
    all three are None where the file could not be read, and `sha256` is then "" if there was
    nothing to hash. `bytes` is the size of the file. `reason` is "" for an image that is ok.
    `lr` is the path of the image's own LR, where the dataset brings LR. `phash` (16 hex digits) and
    `luma` (32 x 32 samples, row by row) are those of `sr_assets.likeness`, for images that are ok.
    """

    path: str
    sha256: str
    width: int | None
    height: int | None
    mode: str | None
    bytes: int
    status: Literal["ok", "quarantined"]
    reason: str
    phash: str | None = None
    luma: _Samples | None = field(default=None, repr=False)
    lr: str | None = None
    lr_sha256: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the image is part of the dataset."""
        return self.status == "ok"


def to_parquet(rows: Iterable[ManifestRow]) -> bytes:
    """The rows as a Parquet file; the same rows give the same bytes.

    Args:
        rows: at most one a path; they keep their order.

    Raises:
        ValueError: two rows have the same path.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = [asdict(row) for row in rows]
    paths = [row["path"] for row in table]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two manifest rows for {twice!r}: keep one")
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(table, schema=_schema()), sink, compression="none")
    return sink.getvalue()


def from_parquet(data: bytes) -> list[ManifestRow]:
    """The rows of a manifest, in their order.

    Columns that earlier programs did not write are None. A file that says no version is of version
    1; what version 2 adds has to be said in its metadata, under `srd.schema`, as JSON.

    Raises:
        ValueError: `data` is no Parquet file, or one with other columns.
        SchemaError: a newer program wrote it.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{MANIFEST} is no Parquet file; build bronze again") from error
    said = (table.schema.metadata or {}).get(_VERSION_KEY)
    if said is not None:
        check_schema(json.loads(said), SCHEMA, VERSION, MANIFEST)
    found = table.column_names
    for missing in _schema():
        if missing.name in _LATER and missing.name not in table.column_names:
            table = table.append_column(missing, pa.nulls(len(table), missing.type))
    expected = [field.name for field in fields(ManifestRow)]
    if sorted(table.column_names) == sorted(expected):
        table = table.select(expected)
    if not table.schema.equals(_schema()):
        raise ValueError(f"{MANIFEST} has columns {found}, expected {expected}; build bronze again")
    return [ManifestRow(**row) for row in table.to_pylist()]


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("mode", pa.string()),
            pa.field("bytes", pa.int64(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("phash", pa.string()),
            pa.field("luma", pa.binary()),
            pa.field("lr", pa.string()),
            pa.field("lr_sha256", pa.string()),
        ]
    )
