"""Images inside zip and tar files: what is unpacked, what is refused, and that nothing escapes."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import ArchiveSource
from sr_assets.sources.archive_names import Names
from sr_assets.sources.files import Fetching, Found
from sr_assets.sources.finding import find, fingerprint

PNG = b"\x89PNG\r\n\x1a\n"  # no module of this source looks into an image
SIZE = 3000


def image(seed: int, size: int = SIZE) -> bytes:
    return PNG + hashlib.shake_128(bytes([seed])).digest(size - len(PNG))


class Bars:
    """What was shown as progress: label -> (total, unit, done)."""

    def __init__(self) -> None:
        self.shown: dict[str, list[Any]] = {}

    @contextmanager
    def __call__(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        row = self.shown[label] = [total, unit, 0]

        def advance(n: int) -> None:
            row[2] += n

        yield advance


def fetching(folder: Path, logged: list[str] | None = None, bar: Any = None) -> Fetching:
    work = folder / "work"
    work.mkdir(exist_ok=True)
    log = (logged if logged is not None else []).append
    return Fetching("datasets.d.source", work, folder / "cache", 2, log, bar or Bars())


def source(path: Path, **fields: Any) -> ArchiveSource:
    return ArchiveSource(kind="archive", path=str(path), **fields)


def unpack(path: Path, logged: list[str] | None = None, **fields: Any) -> Found:
    return find(source(path, **fields), fetching(path.parent, logged))


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zstd_tar(path: Path, members: dict[str, bytes]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    plain = tarred(path.with_suffix(".plain"), members).read_bytes()
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(plain)
    return path


PACKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": zipped,
    "stored zip": lambda p, m: zipped(p, m, zipfile.ZIP_STORED),
    "tar": tarred,
    "tar.gz": lambda p, m: tarred(p, m, "w:gz"),
    "tar.bz2": lambda p, m: tarred(p, m, "w:bz2"),
    "tar.xz": lambda p, m: tarred(p, m, "w:xz"),
    "tar.zst": zstd_tar,
}


def taken(found: Found) -> dict[str, bytes]:
    return {file.shown: file.path.read_bytes() for file in found.files if not file.problem}


def problems(found: Found) -> dict[str, str]:
    return {file.shown: file.problem for file in found.files if file.problem}


@pytest.mark.parametrize("form", PACKERS)
def test_every_form_is_told_by_its_content(form: str, tmp_path: Path) -> None:
    members = {
        "b/two.JPG": image(2),
        "./a/один\n1.png": image(1),
        "readme.txt": b"hello",
        "inner.zip": b"PK\x03\x04",
        "b/.hidden.png": image(3),
        ".cache/x.png": image(3),
        "__MACOSX/b/two.jpg": image(3),
        "LICENSE": b"",
    }
    found = unpack(PACKERS[form](tmp_path / "photos.bin", members))
    assert taken(found) == {"a/один\n1.png": image(1), "b/two.JPG": image(2)}
    assert [file.shown for file in found.files] == sorted(file.shown for file in found.files)
    assert found.ignored == {".txt": 1, ".zip": 1, "hidden": 2, "__MACOSX": 1, "no extension": 1}
    assert not list((tmp_path / "work").rglob("part"))


def test_images_are_on_the_file_system_of_the_output(tmp_path: Path) -> None:
    found = unpack(zipped(tmp_path / "a.zip", {"x/1.png": image(1)}))
    assert found.files[0].path.is_relative_to(tmp_path / "work")


def test_include_is_matched_against_the_member_path(tmp_path: Path) -> None:
    members = {"train/1.png": image(1), "train/deep/2.png": image(2), "test/3.png": image(3)}
    found = unpack(tarred(tmp_path / "a.tar", members), include=("train/*",))
    assert list(taken(found)) == ["train/1.png", "train/deep/2.png"]
    with pytest.raises(StageError, match=r"no image in .* matches include \['val/\*'\]"):
        unpack(tmp_path / "a.tar", include=("val/*",))


def test_progress_is_the_part_of_the_file_that_was_read(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", {f"{i}.png": image(i, 1_500_000) for i in range(3)})
    bars = Bars()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    find(source(path, sha256=digest), fetching(tmp_path, bar=bars))
    assert bars.shown == {"a.tar: sha256": [4, "MB", 4], "a.tar: unpacking": [4, "MB", 4]}


# Names


HOSTILE = {
    "../up.png": "leaves its folder",
    "a/../../up.png": "leaves its folder",
    "/etc/absolute.png": "not a plain relative",
    "C:/drive.png": "leaves its folder",
    "C:drive.png": "leaves its folder",
    "..\\up.png": "not a plain relative",
    "a\\b.png": "not a plain relative",
    f"{'n' * 237}.png": "longer than 240 bytes",
    f"{'n' * 241}/x.png": "longer than 240 bytes",
    f"{'/'.join(['deep' * 50] * 6)}/x.png": "longer than 1024 bytes",
}


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_hostile_names_are_quarantined(form: str, tmp_path: Path) -> None:
    members = dict.fromkeys(HOSTILE, image(1)) | {"good.png": image(2)}
    found = unpack(PACKERS[form](tmp_path / "a", members))
    assert taken(found) == {"good.png": image(2)}
    refused = problems(found)
    assert refused.keys() == HOSTILE.keys()
    for name, problem in HOSTILE.items():
        assert problem in refused[name]


def test_a_nul_in_a_zip_name(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "a.zip", {"a.txtX.png": image(1), "b.pngX.txt": b"", "c.png": image(2)}
    )
    path.write_bytes(path.read_bytes().replace(b"txtX", b"txt\0").replace(b"pngX", b"png\0"))
    found = unpack(path)
    assert list(taken(found)) == ["c.png"]
    assert list(problems(found)) == ["a.txt\0.png"]


def test_names_that_meet_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    names = ["a.png", "./a.png", "b.png", "b.png/c.png", "d.png/e.png", "d.png"]
    names += ["caf\u00e9.png", "cafe\u0301.png", "a//x.png", "a/x.png"]
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = SIZE
            archive.addfile(info, io.BytesIO(image(number)))
    found = unpack(path)
    first = {"a.png": 0, "b.png": 2, "d.png/e.png": 4, "caf\u00e9.png": 6, "a/x.png": 8}
    assert taken(found) == {name: image(number) for name, number in first.items()}
    refused = problems(found)
    assert "twice in the archive" in refused["a.png (2)"]
    assert "twice in the archive" in refused["a/x.png (2)"]
    assert "'b.png' is a file in the archive, and a folder" in refused["b.png/c.png"]
    assert "name is that of a folder" in refused["d.png"]
    assert "means the same as" in refused["cafe\u0301.png"]
    assert len({file.shown for file in found.files}) == len(found.files)


def test_case_matters_only_where_the_file_system_says_so() -> None:
    folds, tells = Names(folds_case=True), Names(folds_case=False)
    for names in (folds, tells):
        assert names.taken("A/b.png") == ""
    assert "means the same as 'A/b.png'" in folds.taken("a/B.png")
    assert tells.taken("a/B.png") == ""


def test_names_of_old_zips(tmp_path: Path) -> None:
    """Without the UTF-8 flag a name is code page 437, or UTF-8 from a packer that forgot to say."""
    path = zipped(tmp_path / "a.zip", {"AAAA.png": image(1), "BBBB.png": image(2)})
    data = path.read_bytes().replace(b"AAAA", "éé".encode()).replace(b"BBBB", b"\x81\x82\x94\xe1")
    path.write_bytes(data)
    assert taken(unpack(path)) == {"éé.png": image(1), "üéöß.png": image(2)}


def test_names_of_old_tars_are_no_text(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", {"good.png": image(1)})
    with tarfile.open(path, "a", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("caf\u00e9.png")
        archive.addfile(info, io.BytesIO())
    found = unpack(path)
    assert problems(found) == {"caf\\udce9.png": "file name is not valid UTF-8; rename it"}


def test_links_and_devices_are_never_made(tmp_path: Path) -> None:
    kinds = {
        "sym.png": tarfile.SYMTYPE,
        "hard.png": tarfile.LNKTYPE,
        "device.png": tarfile.CHRTYPE,
        "block.png": tarfile.BLKTYPE,
        "pipe.png": tarfile.FIFOTYPE,
        "odd.png": b"Z",
        "folder.png": tarfile.DIRTYPE,
    }
    path = tarred(tmp_path / "a.tar", {"good.png": image(1)})
    with tarfile.open(path, "a") as archive:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        through = tarfile.TarInfo("sym.png/through.png")
        through.size = SIZE
        archive.addfile(through, io.BytesIO(image(2)))
    found = unpack(path)
    assert found.links == ["hard.png", "sym.png"]
    assert found.ignored == {"special file": 4}
    # Where no link was made, its name is free to be a folder.
    assert list(taken(found)) == ["good.png", "sym.png/through.png"]
    assert not any(file.is_symlink() for file in (tmp_path / "work").rglob("*"))


def test_links_and_devices_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in {"sym.png": stat.S_IFLNK, "pipe.png": stat.S_IFIFO}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        archive.writestr("good.png", image(1))
    found = unpack(path)
    assert (list(taken(found)), found.links) == (["good.png"], ["sym.png"])
    assert found.ignored == {"special file": 1}


PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "/", "\\", "C:", "a", "A", "a.png", "\0", "\n", "~", "é", "é"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
NAMES = st.lists(PARTS, min_size=1, max_size=6).map("/".join).map(lambda name: name + ".png")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=60)
@given(st.lists(NAMES, min_size=1, max_size=8), st.sampled_from(["zip", "tar"]))
def test_nothing_is_written_outside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], form: str
) -> None:
    top = tmp_path_factory.mktemp("hostile")
    folder = top / "one" / "two"
    folder.mkdir(parents=True)
    path = folder / "archive"
    if form == "tar":
        with tarfile.open(path, "w") as tar:
            for number, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.size = SIZE
                tar.addfile(info, io.BytesIO(image(number)))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for number, name in enumerate(names):
                info_ = zipfile.ZipInfo("x")
                info_.filename = name
                archive.writestr(info_, image(number))
    try:
        found = unpack(path)
    except StageError as error:
        assert "no image in" in str(error)
        found = Found()
    outside = [p for p in top.rglob("*") if p.is_file() and not p.is_relative_to(folder / "work")]
    assert outside == [path]
    contents = {image(number) for number in range(len(names))}
    for file in found.files:
        file.shown.encode()
        if not file.problem:
            assert file.path.resolve() == file.path
            assert file.path.is_relative_to(folder / "work")
            assert file.path.read_bytes() in contents
            assert str(file.path).endswith(f"/files/{file.shown}")
    assert len({file.shown for file in found.files}) == len(found.files)
    written = [p for p in (folder / "work").rglob("*") if p.is_file()]
    assert len(taken(found)) == len(written)


# Sizes


@pytest.mark.parametrize("form", PACKERS)
def test_the_total_is_bounded_while_unpacking(form: str, tmp_path: Path) -> None:
    path = PACKERS[form](tmp_path / "a", {f"{i}.png": bytes(100_000) for i in range(20)})
    with pytest.raises(StageError, match=r"max_gigabytes: .* holds more than 0.001 GB") as raised:
        unpack(path, max_gigabytes=0.001)
    assert "\n" not in str(raised.value)
    assert not any(file.is_file() for file in (tmp_path / "work").rglob("*"))
    assert len(taken(unpack(path, max_gigabytes=0.01))) == 20


@pytest.mark.parametrize("form", PACKERS)
def test_one_member_is_bounded(form: str, tmp_path: Path) -> None:
    path = PACKERS[form](tmp_path / "a", {"big.png": bytes(1_000_001), "small.png": bytes(10)})
    found = unpack(path, max_megabytes=1)
    assert list(taken(found)) == ["small.png"]
    assert problems(found) == {"big.png": "1000001 bytes, more than max_megabytes 1"}


@pytest.mark.parametrize("form", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_bomb_that_is_no_image_ends_too(form: str, tmp_path: Path) -> None:
    path = PACKERS[form](tmp_path / "a", {"readme.txt": bytes(60_000_000), "a.png": image(1)})
    tracemalloc.start()
    with pytest.raises(StageError, match=r"holds more than 0\.04 GB"):
        unpack(path, max_gigabytes=0.04)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_zip_whose_headers_lie_about_sizes(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"bomb.png": bytes(5_000_000), "good.png": image(1)})
    data = path.read_bytes().replace(struct.pack("<L", 5_000_000), struct.pack("<L", 100))
    path.write_bytes(data)
    found = unpack(path)
    assert list(taken(found)) == ["good.png"]
    assert "broken in the archive" in problems(found)["bomb.png"]


def test_members_that_share_bytes(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"1.png": bytes(9000), "2.png": bytes(9000)})
    with zipfile.ZipFile(path) as archive:
        second = archive.infolist()[1].header_offset
    data = bytearray(path.read_bytes())
    at = data.rindex(struct.pack("<L", second) + b"2.png")
    data[at : at + 4] = bytes(4)  # the directory's second entry now shows the first's bytes
    path.write_bytes(data)
    with pytest.raises(StageError, match="share the same bytes: a zip bomb"):
        unpack(path)


def test_a_tar_header_may_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("n" * 3_000_000 + ".png")
        archive.addfile(info)
    with pytest.raises(StageError, match="more than 256 KiB of headers"):
        unpack(path)


@pytest.mark.parametrize("size", [-1, -512, -10_000, 2**70])
def test_a_tar_size_that_leads_astray(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"size": str(size)}
        archive.addfile(info, io.BytesIO())
        archive.addfile(tarfile.TarInfo("b.png"), io.BytesIO())
    with pytest.raises(StageError, match=r"broken|holds more"):
        unpack(path)


# Damage


def test_a_member_with_a_wrong_checksum_goes_alone(tmp_path: Path) -> None:
    members = {f"{i}.png": image(i) for i in range(4)}
    path = zipped(tmp_path / "a.zip", members, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(image(2)) + 100] ^= 1
    path.write_bytes(data)
    found = unpack(path)
    assert list(taken(found)) == ["0.png", "1.png", "3.png"]
    assert "CRC" in problems(found)["2.png"]


def test_encrypted_and_rare_members_go_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("secret.png", image(1))
        archive.writestr("bz.png", image(2), zipfile.ZIP_BZIP2)
        archive.writestr("good.png", image(3))
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    found = unpack(path)
    assert list(taken(found)) == ["good.png"]
    assert problems(found) == {
        "secret.png": "encrypted; unpack the archive with its password",
        "bz.png": "compressed with bzip2; pack it again with deflate",
    }


@pytest.mark.parametrize("form", PACKERS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_archive_is_one_clear_line(form: str, part: float, tmp_path: Path) -> None:
    path = PACKERS[form](tmp_path / "a", {f"{i}.png": image(i) for i in range(20)})
    data = path.read_bytes()
    end = data.rstrip(b"\0") if form == "tar" else data
    path.write_bytes(data[: int(len(end) * part)])
    with pytest.raises(StageError, match=r"datasets\.d\.source\.path: .*(broken|trunc)") as raised:
        unpack(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_damage_in_the_middle_of_a_tar(form: str, tmp_path: Path) -> None:
    path = PACKERS[form](tmp_path / "a", {f"{i}.png": image(i) for i in range(20)})
    data = bytearray(path.read_bytes())
    at = data.index(b"10.png") if form == "tar" else len(data) // 2
    data[at : at + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(data)
    with pytest.raises(StageError, match=r"broken|no header at byte"):
        unpack(path)


def test_a_tar_without_its_end_mark_is_told(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", {"1.png": bytes(512), "2.png": b"x" * 512})
    path.write_bytes(path.read_bytes()[:2048])
    logged: list[str] = []
    assert len(taken(unpack(path, logged))) == 2
    assert logged == ["the tar file has no end mark: it may have been cut between two members"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"hello world", "neither a zip nor a tar file"),
        (image(1), "neither a zip nor a tar file"),
        (gzip.compress(image(1)), "no tar file is in it"),
        (bz2.compress(b"x" * 5000), "no tar file is in it"),
        (lzma.compress(b""), "no tar file is in it"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7z is not read; unpack it"),
        (b"Rar!\x1a\x07\x00" + bytes(100), "rar is not read; unpack it"),
        (bytes(10240), "no image in"),
    ],
)
def test_what_is_no_archive(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(StageError, match=said):
        unpack(tmp_path / "a.zip")


def test_a_zip_behind_a_program(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.exe", {"1.png": image(1)})
    path.write_bytes(b"MZ" + bytes(5000) + path.read_bytes())
    assert taken(unpack(path)) == {"1.png": image(1)}


def test_a_missing_archive_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not exist or cannot be read"):
        unpack(tmp_path / "none.zip")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StageError, match="is a folder; use a source `kind: folder`"):
        unpack(tmp_path / "folder")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photos.zip")
    with pytest.raises(StageError, match="is not a regular file"):
        unpack(tmp_path / "photos.zip")


@pytest.mark.parametrize("form", ["", "gz"])
def test_several_tars_in_one_file_are_told(form: str, tmp_path: Path) -> None:
    first = tarred(tmp_path / "1.tar", {"1.png": image(1)}).read_bytes()
    second = tarred(tmp_path / "2.tar", {"2.png": image(2)}).read_bytes()
    both = tmp_path / "both"
    both.write_bytes(gzip.compress(first + second) if form else first + second)
    logged: list[str] = []
    assert [file.shown for file in unpack(both, logged).files] == ["1.png"]
    assert any("data follows the end mark" in line for line in logged)
    logged.clear()
    unpack(tmp_path / "1.tar", logged)
    assert not logged


@pytest.mark.parametrize("field", ["max_gigabytes", "max_megabytes"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1])
def test_a_bound_is_a_number_that_bounds(field: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"finite|greater than 0"):
        source(tmp_path / "a.zip", **{field: value})


def test_the_digest_is_checked_first(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"1.png": image(1)})
    given = hashlib.sha256(path.read_bytes()).hexdigest()
    assert taken(unpack(path, sha256=given))
    with pytest.raises(StageError) as raised:
        unpack(path, sha256="0" * 64)
    assert given in str(raised.value)
    assert "0" * 64 in str(raised.value)


# Fingerprint and resuming


def test_the_fingerprint_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    assert fingerprint(source(path)) == {"archive": "missing"}
    before = fingerprint(source(zipped(path, {"1.png": image(1)})))
    zipped(path, {"1.png": image(1), "2.png": image(2)})
    assert fingerprint(source(path)) != before


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from sr_assets.recipe.sources import ArchiveSource
from sr_assets.sources.files import Fetching
from sr_assets.sources.finding import find

synced, calls = os.fsync, []
def dies(handle):  # the whole member is written, and not yet under its name
    calls.append(handle)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    synced(handle)
os.fsync = dies
folder = Path(sys.argv[1]).parent
bar = lambda *_: nullcontext(lambda n: None)
find(ArchiveSource(kind="archive", path=sys.argv[1]),
     Fetching("w", folder / "work", folder / "cache", 1, print, bar))
"""


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_a_killed_run_is_taken_up(form: str, tmp_path: Path) -> None:
    members = {f"{i}.png": image(i) for i in range(8)}
    path = PACKERS[form](tmp_path / "a", members)
    (tmp_path / "work").mkdir()
    ended = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    files = {p.name: p for p in (tmp_path / "work").rglob("*.png")}
    assert sorted(files) == ["0.png", "1.png", "2.png"]  # no part under a final name
    inodes = {name: p.stat().st_ino for name, p in files.items()}
    for name, p in files.items():
        os.utime(p, ns=(1, 1))
        assert p.read_bytes() == members[name]
    found = unpack(path)
    assert taken(found) == members
    for file in found.files[:3]:
        assert (file.path.stat().st_ino, file.path.stat().st_mtime_ns) == (inodes[file.shown], 1)
    assert not list((tmp_path / "work").rglob("part"))


def test_a_changed_archive_takes_nothing_of_the_old_one(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"1.png": image(1), "2.png": image(2)})
    old = unpack(path).files[1].path
    zipped(path, {"1.png": image(3)})  # the same name and size, another image
    os.utime(path, ns=(5, 5))
    assert taken(unpack(path)) == {"1.png": image(3)}
    assert not old.exists()


def test_two_sources_of_one_run_do_not_meet(tmp_path: Path) -> None:
    members = {"hr/1.png": image(1), "lr/1.png": image(2)}
    path = tarred(tmp_path / "a.tar", members)
    high, low = unpack(path, include=("hr/*",)), unpack(path, include=("lr/*",))
    assert taken(high) | taken(low) == members
