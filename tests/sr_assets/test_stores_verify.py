"""Verification finds every kind of damage, names it, and is silent about a whole output."""

from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import MARKER, Output, open_damaged, open_output
from sr_assets.stores.patches import PatchPositions, PatchWriter
from sr_assets.stores.verify import Share, output_bytes, parse_share, verify_output

SHARD = "patches.zarr/hr/c/0/0/0/0"


@pytest.fixture
def output(tmp_path) -> Output:
    return build(OutputFolder(UPath(tmp_path / "out")))


def build(folder: OutputFolder) -> Output:
    column = np.zeros(6, np.int32)
    writer = PatchWriter(folder, PatchPositions(column, column, column, column), 16, ["a"], {})
    hr = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    writer.write(0, hr)
    folder.write_json("notes.json", {"a": 1})
    return folder.commit({"metadata": {}})


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_output_has_no_differences_and_progress_adds_up(output):
    seen: list[int] = []
    assert verify_output(output, progress=seen.append) == []
    assert sum(seen) == output_bytes(output) > 0
    assert len(seen) == len(output.marker["files"])


def test_a_remote_output_verifies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    output = build(OutputFolder(UPath("memory://test-verify/out")))
    assert verify_output(output) == []
    (output.path / "notes.json").write_bytes(b"{}")
    assert [line.split(":")[0] for line in verify_output(output)] == ["notes.json"]


def test_what_a_kill_right_after_the_rename_leaves_is_no_difference(output):
    folder = Path(str(output.path))
    (folder / ".work").mkdir()
    (folder / ".work" / "step-10.pt").write_bytes(b"x")
    (folder / ".journal.jsonl").write_text("{}\n")
    assert verify_output(output) == []


def test_a_flipped_byte_names_file_and_sample(output):
    shard = Path(str(output.path)) / SHARD
    flip(shard, shard.stat().st_size // 2)
    lines = verify_output(output)
    assert f"{SHARD}: content differs from what was written (sha256)" in lines
    damaged = [line for line in lines if "is damaged" in line]
    assert len(damaged) == 1 and damaged[0].startswith(f"{SHARD}: sample ")
    assert len(lines) == 2


def test_a_damaged_index_is_one_line_for_all_samples(output):
    shard = Path(str(output.path)) / SHARD
    flip(shard, shard.stat().st_size - 1)
    assert verify_output(output) == [
        f"{SHARD}: content differs from what was written (sha256)",
        f"{SHARD}: nothing in it can be read (checksum)",
    ]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("notes.json", "cannot be read"),
        (SHARD, "cannot be read"),
        ("patches.zarr/hr/zarr.json", "cannot be read"),
        ("patches.zarr/y/c/0", "cannot be read"),
    ],
)
def test_a_missing_file_is_found(output, name, word):
    (Path(str(output.path)) / name).unlink()
    assert [line for line in verify_output(output) if line.startswith(name) and word in line]


def test_a_shorter_file_and_a_stranger_are_found(output):
    root = Path(str(output.path))
    (root / "notes.json").write_bytes(b"")
    (root / "patches.zarr/extra").write_bytes(b"x")
    assert verify_output(output) == [
        "notes.json: has 0 bytes, was written with 12",
        "patches.zarr/extra: is no part of the output",
    ]


def test_a_shard_that_the_marker_does_not_know_is_found(output):
    del output.marker["files"][SHARD]
    assert f"{SHARD}: no such file, though its array needs it" in verify_output(output)


def test_a_broken_array_description_is_one_line(output):
    path = Path(str(output.path)) / "patches.zarr/hr/zarr.json"
    path.write_bytes(b"{" + path.read_bytes()[1:].replace(b"sharding", b"shorting"))
    lines = verify_output(output)
    assert all("\n" not in line for line in lines)
    assert [line for line in lines if "zarr.json: cannot be read" in line]


def test_a_spread_sample_is_made_again(output):
    asked: list[list[int]] = []

    def recompute(indices):
        asked.append(list(indices))
        yield f"entry {indices[-1]} differs"

    assert verify_output(output, recompute, Share(3)) == ["entry 4 differs"]
    assert verify_output(output, recompute, Share(99)) == ["entry 5 differs"]
    assert verify_output(output, recompute, Share(0)) == []
    assert asked == [[0, 2, 4], [0, 1, 2, 3, 4, 5]]


def test_an_output_without_arrays_verifies(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "plain"))
    folder.write_bytes("a", b"1")
    output = folder.commit({"metadata": {}})
    assert verify_output(output, lambda indices: [f"{indices}"], Share(5)) == []
    assert MARKER not in output.marker["files"]


@pytest.mark.parametrize(
    ("text", "count", "indices"),
    [("8", 3, [0, 1, 2]), ("2", 10, [0, 5]), ("0", 5, []), ("1%", 50, [0]), ("1%", 0, []),
     ("10%", 30, [0, 10, 20]), ("0%", 30, []), ("2.5%", 80, [0, 40]), ("100%", 3, [0, 1, 2])],
)  # fmt: skip
def test_a_sample_is_a_count_or_a_percentage(text, count, indices):
    assert parse_share(text).of(count) == indices


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "101%", "-1%", "nan%", "many", "1 %%"])
def test_what_is_no_sample_is_refused(text):
    with pytest.raises(ValueError, match="neither a count such as 8 nor a percentage such as 1%"):
        parse_share(text)


def test_every_flipped_byte_is_found(output):
    """One of each file, and what cannot be opened is still compared with its marker."""
    for name in output.marker["files"]:
        path = Path(str(output.path)) / name
        for at in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            flip(path, at)
            lines = verify_output(output)
            assert any(line.startswith(f"{name}: content differs") for line in lines), (name, at)
            flip(path, at)
    assert verify_output(output) == []
    (Path(str(output.path)) / SHARD).unlink()
    assert open_output(output.path) is None
    damaged = open_damaged(output.path)
    assert damaged is not None
    assert any(line.startswith(f"{SHARD}: cannot be read") for line in verify_output(damaged))
