"""Disks that are full, read-only or somebody else's: one clear line, and the work goes on later.

The small disks are mounted for the test; where mounting is not allowed, a limit on the size of
files stands in for a full disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from sr_assets.disk import StorageError, make_folder, told
from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output, open_output
from sr_assets.stores.pairs import AppliedStep, PairWriter, params_table
from sr_assets.stores.registry import publish, versions
from sr_models.training.checkpoints import write_atomically

NOBODY = 65534
BLOCK = bytes(np.random.default_rng(0).integers(0, 256, 100_000, np.uint8))

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a disk in memory with the given options; called again, it changes them."""
    folder = tmp_path / "disk"

    def mounted(options: str) -> Path:
        there = folder.exists()
        folder.mkdir(exist_ok=True)
        words = ["-o", f"remount,{options}", str(folder)] if there else [
            "-t", "tmpfs", "-o", options, "tmpfs", str(folder)
        ]  # fmt: skip
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield mounted
    if folder.exists():
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def build(root: Path, files: int = 12) -> Output:
    """An output of `files` files of 100 kB; those that are finished are kept."""
    folder = OutputFolder(UPath(root / "gold" / "pairs" / "0123"))
    for number in range(files):
        if not folder.finished(f"deep/{number}"):
            folder.write_bytes(f"deep/{number}", BLOCK)
    return folder.commit({"metadata": {}})


def finished(root: Path) -> set[str]:
    return set(OutputFolder(UPath(root / "gold" / "pairs" / "0123")).files)


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [
        ("size=700k,nr_inodes=1000", "size=4m", "is full"),
        ("size=8m,nr_inodes=14", "nr_inodes=1000", "inode table is full"),
    ],
)
def test_a_full_disk_is_one_line_and_the_build_goes_on(
    tmp_path: Path, mount: Mount, options: str, more: str, words: str
) -> None:
    disk = mount(options)
    with pytest.raises(StorageError, match=words) as refused:
        build(disk)
    line = str(refused.value)
    assert "\n" not in line and "Errno" not in line and str(disk) in line and "srd build" in line
    assert refused.value.errno == errno.ENOSPC
    assert not list(disk.rglob("*.tmp")), "a half-written file keeps what room there was"
    assert open_output(UPath(disk / "gold" / "pairs" / "0123")) is None
    mount(more)
    kept = finished(disk)
    assert 2 < len(kept) < 12
    assert build(disk).marker == build(tmp_path / "roomy").marker


def test_a_store_on_a_full_disk_goes_on_too(tmp_path: Path, mount: Mount) -> None:
    def write(root: Path) -> str:
        folder = OutputFolder(UPath(root / "x"))
        writer = PairWriter(folder, 12, 1, 64, {})
        pixels = np.random.default_rng(1).integers(0, 256, (12, 1, 64, 64, 3), np.uint8)
        for shard, samples in enumerate(writer.shards):
            if not writer.finished(shard):
                writer.write(shard, pixels[samples.start : samples.stop])
        writer.write_params(params_table("light", [[(AppliedStep("resize", "", {}),)]] * 12))
        return folder.commit({"metadata": {}}).data_version

    disk = mount("size=100k")
    with pytest.raises(StorageError, match="is full"):
        write(disk)
    mount("size=8m")
    assert write(disk) == write(tmp_path / "roomy")


def test_a_release_on_a_full_disk_leaves_no_version(mount: Mount) -> None:
    manifest = {
        "model": "net", "kind": "plain", "architecture": "Compact", "scale": 2, "metrics": {},
        "content": "c", "data": {},
    }  # fmt: skip
    disk = mount("size=300k")
    files = {f"{name}.safetensors": BLOCK for name in "abcd"}
    with pytest.raises(StorageError, match="is full"):
        publish(UPath(disk), files, manifest)
    assert versions(UPath(disk), "net") == []
    mount("size=4m")
    assert publish(UPath(disk), files, manifest).manifest.version == "1.0.0"
    assert not list(disk.rglob("*.partial"))


def test_a_checkpoint_on_a_full_disk_leaves_the_earlier_one(mount: Mount) -> None:
    disk = mount("size=200k")
    write_atomically(disk / "step-1.pt", BLOCK)
    with pytest.raises(OSError, match="No space"):
        write_atomically(disk / "step-1.pt", BLOCK + BLOCK)
    assert [file.name for file in disk.iterdir()] == ["step-1.pt"]
    assert (disk / "step-1.pt").read_bytes() == BLOCK


def test_a_limit_on_the_size_of_files_is_one_line(tmp_path: Path) -> None:
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, earlier[1]))
    try:
        with pytest.raises(StorageError, match="ulimit -f"):
            build(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(build(tmp_path).marker["files"]) == 12


def test_a_journal_that_could_not_be_written_holds_no_half_line(tmp_path: Path) -> None:
    folder = OutputFolder(UPath(tmp_path / "x"))
    folder.write_bytes("a", b"1")
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = folder.path / ".journal.jsonl"
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 20, earlier[1]))
    try:
        with pytest.raises(StorageError):
            folder.write_bytes("b", b"2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
    folder.write_bytes("c", b"3")
    assert set(OutputFolder(folder.final).files) == {"a", "c"}


def test_what_is_whole_is_read_from_a_read_only_disk(mount: Mount) -> None:
    disk = mount("size=4m")
    made = build(disk)
    mount("ro")
    assert open_output(made.path) == made
    with pytest.raises(StorageError, match=r"read-only file system: mount it writable, or set `ro"):
        OutputFolder(UPath(disk / "gold" / "pairs" / "4567"))


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """The rights of a user who owns nothing; those of root would open every folder."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter: those of pytest may be closed to all but its own user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with nobody():
            try:
                list(folder.iterdir())
            except PermissionError:
                pytest.skip("the folder for temporary files is closed to other users")
        yield folder


def test_a_folder_of_another_user_is_named_with_its_owner(open_folder: Path) -> None:
    made = build(open_folder)
    with nobody():
        assert open_output(made.path) == made  # reading needs no right to write
        with pytest.raises(StorageError) as refused:
            build(open_folder)
    line = str(refused.value)
    assert "\n" not in line and "Errno" not in line
    assert "cannot be written by user nobody" in line and "belongs to root" in line
    assert str(open_folder / "gold" / "pairs") in line


def test_a_half_built_output_of_another_user_is_refused(open_folder: Path) -> None:
    place = open_folder / "gold"
    place.mkdir()
    place.chmod(0o777)
    folder = OutputFolder(UPath(place / "0123"))
    folder.write_bytes("a", b"1")
    del folder
    with nobody(), pytest.raises(StorageError, match=r"cannot be written by user nobody, .* root"):
        OutputFolder(UPath(place / "0123"))


def test_errors_of_other_kinds_and_places_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), told(tmp_path):
        (tmp_path / "a").read_bytes()
    with pytest.raises(PermissionError), told(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "photos" / "a.png"))


def test_folders_are_made_with_all_above_them(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "b")
