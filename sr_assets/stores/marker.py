"""`srd.json`, the marker of an output, as bytes: JSON that says its schema and ends in a checksum.

What a marker means, and where it lies, is `sr_assets/storage.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from sr_assets.stores.schema import check_schema, schema_entry

SCHEMA, VERSION = "srd.output", 2
#: The end of a marker of version 2; the checksum is of all bytes before it.
_END = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n?\Z')


def to_bytes(marker: Mapping[str, Any]) -> bytes:
    """The marker as JSON text, completed with `schema` and `checksum`.

    Args:
        marker: JSON values.
    """
    fields = {"schema": schema_entry(SCHEMA, VERSION), **marker}
    text = json.dumps(fields, indent=1, ensure_ascii=False).encode().removesuffix(b"\n}")
    return text + f',\n "checksum": "{hashlib.sha256(text).hexdigest()}"\n}}'.encode()


def from_bytes(data: bytes, path: object) -> dict[str, Any] | None:
    """The marker that `data` holds, `schema` and `checksum` left out; None when it is damaged.

    Version 1, without schema and checksum, is read as it is.

    Raises:
        SchemaError: it was written by a newer program; `path` is told.
    """
    end = _END.search(data)
    if end and hashlib.sha256(data[: end.start()]).hexdigest().encode() != end[1]:
        return None
    try:
        marker = json.loads(data)
    except ValueError:  # no JSON, or no text at all
        return None
    if not isinstance(marker, dict):
        return None
    schema = marker.pop("schema", None)
    if schema is not None:
        check_schema(schema, SCHEMA, VERSION, path)
    if (schema is None) != (end is None) or ("checksum" in marker) != (end is not None):
        return None  # the damage fell into what would have told it
    marker.pop("checksum", None)
    files = marker.get("files")
    sized = isinstance(files, dict) and all(
        isinstance(entry, dict) and "size" in entry for entry in files.values()
    )
    return marker if sized and isinstance(marker.get("data_version"), str) else None
