"""Versions of what is stored: older ones are read, newer ones refused by name."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import MARKER, open_output, why_not_whole
from sr_assets.stores import expert_cache, manifest, marker, pairs, patches
from sr_assets.stores.release_manifest import FORMAT, parse_manifest
from sr_assets.stores.schema import RELEASES, SchemaError, check_schema, schema_entry

OLDER = {"data_version": "v", "files": {}, "metadata": {"count": 1}}


def test_every_schema_names_the_releases_that_read_it() -> None:
    stores: tuple[Any, ...] = (patches, pairs, expert_cache, manifest, marker)
    for store in stores:
        assert len(RELEASES[store.SCHEMA]) == store.VERSION, store.SCHEMA
        entry = schema_entry(store.SCHEMA, store.VERSION)
        check_schema(entry, store.SCHEMA, store.VERSION, "x")
        assert entry["needs"].count(".") == 2
    assert len(RELEASES["srd.release"]) == FORMAT


@pytest.mark.parametrize(
    "found",
    [
        *(None, {}, "srd.output", {"name": "srd.output"}, {"name": "srd.other", "version": 2}),
        *({"name": "srd.output", "version": version} for version in ("2", True, 0, -1)),
    ],
)
def test_what_is_no_such_schema_is_to_be_built_again(found: object) -> None:
    with pytest.raises(SchemaError, match=r"^here has schema .* version 2: delete .* again"):
        check_schema(found, "srd.output", 2, "here")


def test_a_newer_one_names_the_release_that_reads_it() -> None:
    newer = {"name": "srd.patches", "version": 9, "needs": "4.5.6"}
    with pytest.raises(SchemaError) as refused:
        check_schema(newer, "srd.patches", 1, "here")
    line = str(refused.value)
    assert "\n" not in line
    assert "here is srd.patches version 9" in line and "reads up to version 1" in line
    assert line.endswith("install sr-distillery 4.5.6 or later")
    del newer["needs"]
    with pytest.raises(SchemaError, match="install sr-distillery a newer release"):
        check_schema(newer, "srd.patches", 1, "here")


def test_an_older_one_is_read_or_named() -> None:
    check_schema({"name": "srd.output", "version": 1}, "srd.output", 2, "here")
    with pytest.raises(SchemaError, match=r"test.x version 1, which an older .* build it again"):
        check_schema({"name": "test.x", "version": 1}, "test.x", 2, "here")


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_flipped_bit_of_a_marker_is_found(at: int, flip: int) -> None:
    data = bytearray(marker.to_bytes({"data_version": "v", "files": {"ä": {"size": 1}}}))
    data[at % len(data)] ^= flip
    assert marker.from_bytes(bytes(data), "here") is None


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_a_marker_is_read_as_it_was_written(fields: dict[str, Any]) -> None:
    fields = {k: v for k, v in fields.items() if k not in ("schema", "checksum")}
    fields |= {"data_version": "v", "files": {}}
    data = marker.to_bytes(fields)
    assert marker.from_bytes(data, "here") == fields
    assert json.loads(data)["schema"]["version"] == marker.VERSION
    for end in (1, 10, len(data) // 2):
        assert marker.from_bytes(data[:-end], "here") is None


def test_an_output_of_the_first_version_is_read(tmp_path) -> None:
    (tmp_path / MARKER).write_text(json.dumps(OLDER, indent=1))
    output = open_output(UPath(tmp_path))
    assert output is not None and output.metadata == {"count": 1}


def test_an_output_of_a_newer_version_is_refused_and_stays(tmp_path) -> None:
    newer = {"schema": {"name": "srd.output", "version": 3, "needs": "9.0.0"}, "parts": []}
    (tmp_path / MARKER).write_text(json.dumps(newer))
    for read in (open_output, why_not_whole):
        with pytest.raises(SchemaError, match=r"install sr-distillery 9\.0\.0 or later"):
            read(UPath(tmp_path))
    assert (tmp_path / MARKER).exists()


def test_a_flipped_byte_of_a_marker_is_no_output(tmp_path) -> None:
    folder = OutputFolder(UPath(tmp_path / "out"))
    folder.write_bytes("a", b"1")
    path = folder.commit({"metadata": {"psnr": 28.43}}).path
    data = (path / MARKER).read_bytes()
    (path / MARKER).write_bytes(data.replace(b"28.43", b"28.53"))
    assert open_output(path) is None
    assert why_not_whole(path) == "srd.json of its output out is damaged"


def test_a_manifest_without_later_columns_is_read(tmp_path) -> None:
    row = manifest.ManifestRow("a.png", "ff", 8, 8, "RGB", 9, "ok", "", phash="0" * 16, lr="b.png")
    table = parquet.read_table(io.BytesIO(manifest.to_parquet([row])))
    older = table.drop_columns(["phash", "luma", "lr", "lr_sha256"])
    [found] = manifest.from_parquet(_stored(older))
    assert (found.path, found.bytes, found.phash, found.lr) == ("a.png", 9, None, None)
    with pytest.raises(ValueError, match="build bronze again"):
        manifest.from_parquet(_stored(table.drop_columns(["sha256"])))


def test_a_newer_manifest_is_refused() -> None:
    table = parquet.read_table(io.BytesIO(manifest.to_parquet([])))
    said = json.dumps({"name": "srd.manifest", "version": 2, "needs": "3.0.0"})
    newer = table.replace_schema_metadata({"srd.schema": said})
    with pytest.raises(SchemaError, match=r"manifest version 2, .* sr-distillery 3.0.0 or later"):
        manifest.from_parquet(_stored(newer))


def test_a_newer_release_is_refused_and_not_called_damaged() -> None:
    with pytest.raises(Exception, match=r"of format 3, .* install sr-distillery 2.0.0") as refused:
        parse_manifest(b'{"format": 3, "needs": "2.0.0", "model": "net"}', "registry/net/1.0.0")
    assert "damaged" not in str(refused.value)
    with pytest.raises(Exception, match="damaged"):
        parse_manifest(b'{"format": 2, "model": "net"}', "registry/net/1.0.0")


def _stored(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()
