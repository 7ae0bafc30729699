"""Source `hub`: the real client against a hub on localhost, with the faults that a hub has."""

import errno
import gzip
import hashlib
import io
import logging
import shutil
import tarfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from PIL import Image
from pydantic import ValidationError
from upath import UPath

from sr_assets.assets.intake import Intake
from sr_assets.lineage.stage import StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.sources import ArchiveSource, FolderSource, HubSource, UrlListSource
from sr_assets.sources import hub_answers
from sr_assets.sources.files import Fetching, Found
from sr_assets.sources.finding import find, fingerprint
from sr_assets.sources.hub_answers import site_of
from sr_assets.sources.hub_patterns import Patterns

REPO = "owner/photos"


def png(seed: int, side: int = 12) -> bytes:
    """Noise as PNG, which does not shrink."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PHOTOS = {
    ".gitattributes": b"*.png filter=lfs\n",
    "README.md": b"# photos\n",
    "train/b/2.png": png(2),
    "train/b/1.png": png(1),
    "train/a.webp": b"RIFF, and the rest is no picture, which is not decided here",
    "test/1.png": png(3),
    "notes.txt": b"nothing",
}


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def look(tmp_path: Path, lines: list[str]) -> Callable[..., Found]:
    """Finds the images of a hub source with these fields."""

    def call(revision: str = "main", work: str = "work", repo: str = REPO, **fields: Any) -> Found:
        (tmp_path / work).mkdir(exist_ok=True)
        fetching = Fetching(
            where="datasets.photos.source",
            work=tmp_path / work,
            cache=tmp_path / "cache",
            workers=3,
            log=lines.append,
            bar=lambda label, total, unit: nullcontext(lambda n: None),
        )
        source = HubSource(kind="hub", repo=repo, revision=revision, **fields)
        assert fingerprint(source) == {}
        return find(source, fetching)

    return call


def contents(found: Found) -> dict[str, bytes]:
    """Name -> bytes of every file that can be taken."""
    return {file.shown: file.path.read_bytes() for file in found.files if not file.problem}


def names(found: Found) -> list[str]:
    return [file.shown for file in found.files]


def problem(call: Callable[[], Any]) -> str:
    """The message of the one-line error that a call ends with."""
    with pytest.raises(StageError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith("datasets.photos.source") and "\n" not in message
    return message


def test_images_come_whole_sorted_and_as_real_files(hub: HubServer, look: Any) -> None:
    hub.page = 2
    hub.commit(REPO, PHOTOS)
    found = look()
    wanted = ["test/1.png", "train/a.webp", "train/b/1.png", "train/b/2.png"]
    assert names(found) == wanted
    assert contents(found) == {name: PHOTOS[name] for name in wanted}
    assert not any(file.path.is_symlink() for file in found.files)
    assert found.ignored == {".md": 1, ".txt": 1}
    assert len(hub.asked("/tree/")) > 3, "the listing has several pages"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"include": ("train/*.png",)}, ["train/b/1.png", "train/b/2.png"]),
        ({"ignore": ("*/b/*", "*.webp")}, ["test/1.png"]),
        ({"maximum": 2}, ["test/1.png", "train/a.webp"]),
        ({"subset": "train/b"}, ["1.png", "2.png"]),
        ({"subset": "train", "include": ("b/*",), "maximum": 1}, ["b/1.png"]),
    ],
)
def test_only_what_is_meant_is_fetched(
    hub: HubServer, look: Any, fields: dict[str, Any], wanted: list[str]
) -> None:
    hub.commit(REPO, PHOTOS)
    assert names(look(**fields)) == wanted
    assert len(hub.asked("/store/")) + len(hub.asked("a.webp")) // 2 == len(wanted)


CARD = b"""---
configs:
- config_name: small
  data_files: "train/b/*"
- config_name: splits
  data_files:
  - {split: train, path: ["train/**/2.png", "train/*.webp"]}
  - {split: test, path: "test/[0-9].png"}
- config_name: below
  data_dir: train
- config_name: odd
  data_files: {train: "tes?"}
---
# photos
"""


@pytest.mark.parametrize(
    ("subset", "wanted"),
    [
        ("small", ["train/b/1.png", "train/b/2.png"]),
        ("splits", ["test/1.png", "train/a.webp", "train/b/2.png"]),
        ("below", ["train/a.webp", "train/b/1.png", "train/b/2.png"]),
        ("odd", ["test/1.png"]),
    ],
)
def test_a_subset_is_a_configuration_of_the_card(
    hub: HubServer, look: Any, subset: str, wanted: list[str]
) -> None:
    hub.commit(REPO, PHOTOS | {"README.md": CARD})
    assert names(look(subset=subset)) == wanted


def test_a_subset_that_does_not_exist_lists_what_there_is(hub: HubServer, look: Any) -> None:
    hub.commit(REPO, PHOTOS | {"README.md": CARD})
    message = problem(lambda: look(subset="val"))
    assert "source.subset" in message and "'val'" in message
    assert "below, odd, small, splits" in message and "test, train" in message


def test_a_broken_card_leaves_the_folders(hub: HubServer, look: Any, lines: list[str]) -> None:
    hub.commit(REPO, PHOTOS | {"README.md": b"---\nconfigs: [\n---\n"})
    assert names(look(subset="test")) == ["1.png"]
    assert any("no valid YAML" in line for line in lines)


def test_a_full_cache_needs_no_request_for_a_commit(hub: HubServer, look: Any) -> None:
    sha = hub.commit(REPO, PHOTOS)
    first = contents(look(sha))
    hub.requests.clear()
    assert contents(look(sha)) == first
    assert hub.requests == []


def test_a_branch_is_asked_for_and_followed(hub: HubServer, look: Any, lines: list[str]) -> None:
    old = hub.commit(REPO, PHOTOS)
    assert len(names(look())) == 4
    new = hub.commit(REPO, {"only.png": png(9)})
    assert contents(look()) == {"only.png": png(9)}
    assert any(old in line for line in lines) and any(new in line for line in lines)
    assert len(names(look(old))) == 4


@pytest.mark.parametrize("how", ["stopped", "offline", "down"])
def test_a_filled_cache_does_without_a_hub(
    hub: HubServer, look: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    sha = hub.commit(REPO, PHOTOS)
    first = contents(look())
    lines.clear()
    if how == "stopped":
        hub.stop()
    elif how == "down":
        hub.down = True
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        hub.requests.clear()
    assert contents(look()) == first
    assert any("cannot be reached" in line and sha in line for line in lines)
    if how == "offline":
        assert hub.requests == []


def test_no_network_and_no_cache_is_one_line(
    hub: HubServer, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.commit(REPO, PHOTOS)
    hub.stop()
    for revision in ("main", sha):
        message = problem(lambda revision=revision: look(revision))
        assert "cannot be reached" in message and "connect once" in message
    hub.start()
    look(include=("test/*",))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = problem(look)
    assert "not in the cache" in message and "HF_HUB_OFFLINE" in message


def test_an_interrupted_transfer_goes_on_where_it_ended(hub: HubServer, look: Any) -> None:
    data = np.random.default_rng(5).bytes(11 << 20)  # the client keeps pieces of 10 MiB
    hub.commit(REPO, {"1.png": data})
    hub.cut["1.png"] = [len(data) - 1000]
    assert contents(look()) == {"1.png": data}
    ranges = [request.headers.get("range") for request in hub.asked("/store/")]
    assert ranges == [None, f"bytes={10 << 20}-"]


@pytest.mark.parametrize("name", ["large.png", "small.webp"])
def test_a_damaged_file_is_fetched_once_more(
    hub: HubServer, look: Any, lines: list[str], name: str
) -> None:
    hub.commit(REPO, {name: png(1)})
    hub.damaged[name] = 1
    assert contents(look()) == {name: png(1)}
    assert any(name in line and "digest" in line for line in lines)


def test_a_file_that_stays_damaged_is_an_error_and_leaves_nothing(
    hub: HubServer, look: Any
) -> None:
    hub.commit(REPO, {"1.png": png(1)})
    hub.damaged["1.png"] = 2
    message = problem(look)
    assert "1.png" in message and "damaged twice" in message
    assert contents(look()) == {"1.png": png(1)}


def test_a_cache_that_rotted_is_noticed(
    hub: HubServer, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.commit(REPO, {"1.png": png(1), "2.png": png(2)})
    (file, _) = look(sha).files
    file.path.chmod(0o644)
    file.path.write_bytes(png(7))
    assert contents(look(sha))["1.png"] == png(1)
    look(sha).files[1].path.write_bytes(b"cut")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = problem(lambda: look(sha))
    assert "2.png" in message and "3 bytes instead of" in message


def test_the_token_comes_from_the_environment_and_stays_on_the_hub(
    hub: HubServer, look: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_stored")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    hub.commit(REPO, PHOTOS)
    look()
    assert hub.requests and not any("authorization" in r.headers for r in hub.requests)
    hub.private["owner/secret"] = "hf_right"
    hub.commit("owner/secret", PHOTOS)
    hub.requests.clear()
    assert "set HF_TOKEN" in problem(lambda: look(repo="owner/secret"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = problem(lambda: look(repo="owner/secret"))
    assert "check HF_TOKEN" in message and "hf_wrong" not in message
    hub.requests.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert len(names(look(repo="owner/secret"))) == 4
    stored = hub.asked("/store/")
    assert not any("authorization" in r.headers for r in stored)
    others = [r for r in hub.requests if r not in stored]
    assert {r.headers.get("authorization") for r in others} == {"Bearer hf_right"}


def test_what_the_hub_refuses_is_told_apart(hub: HubServer, look: Any) -> None:
    sha = hub.commit(REPO, PHOTOS)
    hub.gated.add("owner/gated")
    hub.commit("owner/gated", PHOTOS)
    hub.models.add("owner/model")
    said = {
        "gated": problem(lambda: look(repo="owner/gated")),
        "nothing": problem(lambda: look(repo="owner/nothing")),
        "model": problem(lambda: look(repo="owner/model")),
        "branch": problem(lambda: look("v9")),
        "commit": problem(lambda: look("0" * 40)),
    }
    assert "is gated" in said["gated"] and "HF_TOKEN" in said["gated"]
    assert "source.repo: there is no dataset owner/nothing" in said["nothing"]
    assert "is a model, not a dataset" in said["model"]
    assert "source.revision" in said["branch"] and "'v9'" in said["branch"]
    assert "source.revision" in said["commit"] and sha not in said["commit"]


def test_a_resume_after_a_move_takes_nothing_of_the_old_commit(
    hub: HubServer, look: Any, tmp_path: Path
) -> None:
    def take(found: Found, count: int) -> dict[str, str]:
        intake = Intake(OutputFolder(UPath(tmp_path / "out")), 100.0)
        return {row.path: row.sha256 for row in map(intake.take, found.files[:count])}

    hub.commit(REPO, {"1.png": png(1), "2.png": png(2)})
    old = look()
    first = take(old, 1)
    journal = next(tmp_path.rglob("files.jsonl"))
    lines = journal.read_text()
    assert take(old, 1) == first
    assert journal.read_text() == lines, "what was taken is not taken again"
    hub.commit(REPO, {"1.png": png(11), "2.png": png(12)})
    new = {name: hashlib.sha256(data).hexdigest() for name, data in contents(look()).items()}
    assert take(look(), 2) == new
    assert new["1.png"] != first["1.png"]


@pytest.mark.parametrize("status", [301, 400, 403, 410, 416, 500])
def test_no_signed_address_is_shown(
    hub: HubServer,
    look: Any,
    lines: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    import huggingface_hub.utils._http as client

    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    caplog.set_level(logging.DEBUG)
    hub.commit(REPO, PHOTOS)
    hub.signature = "?X-Amz-Signature=SECRET"
    hub.refusals["/store/"] = status
    with pytest.raises(StageError) as caught:
        look()
    assert "\n" not in str(caught.value)
    said = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in said + "".join(lines) + caplog.text
    assert any("SECRET" in request.path for request in hub.requests)


@pytest.mark.parametrize("status", [301, 400, 410, 416, 418])
def test_a_refusal_is_no_missing_network(hub: HubServer, look: Any, status: int) -> None:
    hub.commit(REPO, PHOTOS)
    look()
    for words in ("/api/", "/resolve/", "/store/"):
        hub.refusals = {words: status}
        hub.commit(REPO, {"new.png": png(status + len(words))})
        message = problem(look)
        assert "cannot be reached" not in message and "'id'" not in message[:60]


@pytest.mark.parametrize("status", [520, 526])
def test_faults_of_the_hosts_in_front_of_a_hub_pass(
    hub: HubServer, look: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    hub.commit(REPO, {"1.png": png(1)})
    hub.refusals["/api/"] = status
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        hub.refusals.clear()

    monkeypatch.setattr(hub_answers.time, "sleep", wait)
    assert names(look()) == ["1.png"]
    assert len(waited) == 1 and any("busy" in line for line in lines)


def test_a_busy_hub_is_waited_for_a_few_times(hub: HubServer, look: Any) -> None:
    hub.commit(REPO, {"1.png": png(1)})
    hub.busy = 3
    assert names(look()) == ["1.png"]
    hub.commit(REPO, {"2.png": png(2)})
    hub.busy = 10**6
    hub.requests.clear()
    assert "fewer requests" in problem(look)
    assert 1 < len(hub.requests) < 50


def test_names_that_leave_the_folder_are_refused_and_named(hub: HubServer, look: Any) -> None:
    evil = ["../up.png", "/etc/root.png", "a/../../b.png", "back\\slash.png", "nul\0.png"]
    hub.commit(REPO, {name: png(n) for n, name in enumerate([*evil, "good/ü ?.png"])})
    found = look()
    assert contents(found) == {"good/ü ?.png": png(len(evil))}
    assert {file.shown for file in found.files if file.problem} == set(evil)
    assert len(hub.asked("/store/")) == 1


def test_no_image_at_all_says_what_there_is(hub: HubServer, look: Any) -> None:
    hub.commit(REPO, {"data.zip": b"PK", "README.md": b"-"})
    message = problem(look)
    assert "no image" in message and "1 .zip" in message


def test_a_cache_that_cannot_be_written_is_one_line(
    hub: HubServer, look: Any, tmp_path: Path
) -> None:
    hub.commit(REPO, PHOTOS)
    (tmp_path / "hf").write_text("a file where the cache should be")
    assert "cannot be fetched" in problem(look)


def test_a_full_disk_names_the_cache(hub: HubServer, tmp_path: Path) -> None:
    def fill() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    site = site_of(REPO, "main", "datasets.photos.source", print)
    message = problem(lambda: site.ask(fill))
    assert "disk full" in message and str(tmp_path / "hf" / "hub") in message


def struct(data: bytes | None, path: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def parquet(columns: dict[str, list[Any]], row_group: int = 3) -> bytes:
    """A parquet file as people put them on the hub; pyarrow finds the types."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=row_group)
    return file.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def test_rows_of_parquet_files_become_files_with_the_same_bytes(hub: HubServer, look: Any) -> None:
    stored = ["a/1.png", "a/1.png", None, "../up.png", "a", "bare", "a/1.png/x.png"]
    first = {
        "image": [struct(png(n), path) for n, path in enumerate(stored)],
        "label": list(range(len(stored))),
    }
    second = {"image": [struct(png(20), "a/1.png"), struct(None, "elsewhere.png")]}
    hub.commit(REPO, {"data/one.parquet": parquet(first), "data/two.parquet": parquet(second)})
    found = look()
    assert contents(found) == {
        "a/1.png": png(0),
        "a/1~2.png": png(1),
        "data/one/00000002.png": png(2),
        "data/one/00000003.png": png(3),
        "a.png": png(4),
        "bare.png": png(5),
        "data/one/00000006.png": png(6),
        "a/1~3.png": png(20),
    }
    (empty,) = [file for file in found.files if file.problem]
    assert empty.shown == "elsewhere.png" and "no image" in empty.problem
    assert names(found) == sorted(names(found))


def test_bytes_alone_are_an_image_where_the_column_is_named(hub: HubServer, look: Any) -> None:
    hub.commit(REPO, {"train.parquet": parquet({"raw": [png(1), b"no picture"], "n": [1, 2]})})
    assert "train.parquet has no image columns; its columns are: raw, n" in problem(look)
    assert contents(look(column="raw")) == {
        "train/00000000.png": png(1),
        "train/00000001.bin": b"no picture",
    }
    assert "source.column: train.parquet has no column 'img'; there are: raw, n" in problem(
        lambda: look(column="img")
    )


def test_of_two_image_columns_one_must_be_named(hub: HubServer, look: Any) -> None:
    rows = {"hr": [struct(png(1), "1.png")], "lr": [struct(png(2), "1.png")]}
    hub.commit(REPO, {"train.parquet": parquet(rows)})
    assert "2 image columns (hr, lr): name one" in problem(look)
    assert contents(look(column="lr")) == {"1.png": png(2)}


def test_samples_of_webdataset_shards_become_files(hub: HubServer, look: Any) -> None:
    shards = {
        f"shard-{n}.tar": tar({f"{n}/{k}.{e}": d for k in (0, 1) for e, d in sample(n, k)})
        for n in (0, 1)
    }
    hub.commit(REPO, shards)
    assert contents(look()) == {f"{n}/{k}.png": png(10 * n + k) for n in (0, 1) for k in (0, 1)}


def sample(shard: int, number: int) -> list[tuple[str, bytes]]:
    return [("png", png(10 * shard + number)), ("json", b"{}")]


def test_a_maximum_of_rows_fetches_no_more_tables_than_it_must(hub: HubServer, look: Any) -> None:
    tables = {
        f"{n:02}.parquet": parquet({"image": [struct(png(10 * n + k), None) for k in range(4)]})
        for n in range(20)
    }
    hub.commit(REPO, tables)
    assert names(look(maximum=6)) == [f"{n:02}/{k:08}.png" for n in (0, 1) for k in range(4)][:6]
    assert len(hub.asked("/store/")) < len(tables)
    assert len(names(look(maximum=7))) == 7, "more than last time is read again"


def test_unpacked_tables_are_neither_fetched_nor_read_again(
    hub: HubServer, look: Any, tmp_path: Path
) -> None:
    table = parquet({"image": [struct(png(n), f"{n}.png") for n in range(5)]})
    hub.commit(REPO, {"train.parquet": table})
    first = contents(look())
    (folder,) = (tmp_path / "work" / "hub").iterdir()
    (folder / "index.json").unlink()  # a kill before the end
    (folder / "00000003.png").unlink()
    (folder / "00000004.png").write_bytes(b"cut")
    assert contents(look()) == first
    shutil.rmtree(tmp_path / "hf")
    hub.requests.clear()
    assert contents(look()) == first
    assert not hub.asked("/resolve/")


def test_images_beside_tables_must_be_told_apart(hub: HubServer, look: Any) -> None:
    table = parquet({"image": [struct(png(1), "row.png")]})
    hub.commit(REPO, {"logo.png": png(2), "train.parquet": table, "metadata.parquet": b"-"})
    message = problem(look)
    assert "logo.png" in message and "train.parquet" in message and "`include`" in message
    assert names(look(include=("*.png",))) == ["logo.png"]
    assert names(look(include=("train.parquet",))) == ["row.png"]
    assert names(look(ignore=("train.*",))) == ["logo.png"], "metadata.parquet is no table"
    hub.commit(REPO, {"logo.png": png(2)})
    assert "no parquet file or tar shard" in problem(lambda: look(column="image"))


@pytest.mark.parametrize("name", ["train.parquet", "train.tar"])
def test_a_broken_table_is_one_line(hub: HubServer, look: Any, name: str) -> None:
    hub.commit(REPO, {name: b"neither of them, and long enough to be looked at" * 20})
    message = problem(look)
    assert f"{name} cannot be read as" in message and "`ignore`" in message


# Bounds


def test_tables_are_bounded_by_what_they_unpack_to(hub: HubServer, look: Any) -> None:
    rows = [struct(bytes(100_000), f"{n}.png") for n in range(30)]  # 3 MB of nothing, and small
    table = parquet({"image": rows}, row_group=30)
    assert len(table) < 50_000
    hub.commit(REPO, {"a.parquet": table, "b.parquet": parquet({"image": rows[:5]})})
    message = problem(lambda: look(max_gigabytes=0.0031))
    assert "source.max_gigabytes" in message and "b.parquet" in message
    assert len(names(look(max_gigabytes=0.0031, maximum=30))) == 30
    message = problem(lambda: look(max_gigabytes=0.0031))
    assert "b.parquet" in message, "what was unpacked before counts too"
    found = look(max_megabytes=0.05, max_gigabytes=0.001)
    assert contents(found) == {}
    assert {file.problem for file in found.files} == {"100000 bytes, more than max_megabytes 0.05"}


def test_files_are_bounded_before_they_are_fetched(hub: HubServer, look: Any) -> None:
    hub.commit(REPO, {"1.png": png(1, 40), "2.png": png(2), "a.png": png(3), "a.png/b.png": png(4)})
    message = problem(lambda: look(max_gigabytes=1e-6))
    assert "source.max_gigabytes: 4 files" in message and not hub.asked("/store/")
    found = look(max_megabytes=0.002)
    assert list(contents(found)) == ["2.png", "a.png"]
    problems = {file.shown: file.problem for file in found.files if file.problem}
    assert problems.keys() == {"1.png", "a.png/b.png"}
    assert "more than max_megabytes" in problems["1.png"]
    assert "is an image in the repository, and a folder" in problems["a.png/b.png"]


def test_shards_hold_what_they_are_as_large_as(hub: HubServer, look: Any) -> None:
    shard = tar({"1.png": png(1)})
    hole = tarfile.TarInfo("1.png")
    hole.size, hole.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(hole.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 2_000_000_000
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    bad = {
        "gz.tar": (gzip.compress(shard), "compressed"),
        "holes.tar": (bytes(header) + bytes(512 + 1024), "holes"),
    }
    for name, (data, said) in bad.items():
        hub.commit(REPO, {name: data})
        message = problem(look)
        assert name in message and said in message and "`ignore`" in message
    hub.commit(REPO, {"large.tar": tar({"1.png": png(1, 40)})})
    assert "more than max_megabytes 0.001" in problem(lambda: look(max_megabytes=0.001))


# Patterns of cards


@pytest.mark.parametrize(
    ("pattern", "path", "meant"),
    [
        ("a/*.png", "a/1.png", True),
        ("a/*.png", "a/b/1.png", False),
        ("a/**.png", "a/b/1.png", True),
        ("**/1.png", "1.png", True),
        ("**/1.png", "a/b/1.png", True),
        ("**/1.png", "a/b1.png", False),
        ("a/**/b/*", "a/b/1.png", True),
        ("a/**/b/*", "a/x/y/b/1.png", True),
        ("a/**/b/*", "a/xb/1.png", False),
        ("**a*b.png", "a/ab.png", True),
        ("[!ab]?.[p]ng", "c1.png", True),
        ("[!ab]?.[p]ng", "a1.png", False),
        ("[z-a].png", "m.png", False),
        ("a", "a/1.png", True),
        ("a", "ab/1.png", False),
        ("./a*/", "ab/c/1.png", True),
        ("a+(b).png", "a+(b).png", True),
    ],
)
def test_patterns_of_cards(pattern: str, path: str, meant: bool) -> None:
    assert Patterns([pattern]).match(path) is meant


def test_no_pattern_takes_for_ever() -> None:
    """As regular expressions, these take longer than the sun will shine."""
    for word in ("**a", "*a", "**/a*", "[ab]**"):
        assert not Patterns([word * 150 + "!"]).match("a" * 240 + "/" + "a" * 240)
    for patterns in (["*" * 2000], [f"*{n}" for n in range(2000)]):
        with pytest.raises(ValueError, match="more than"):
            Patterns(patterns)


def test_a_card_of_too_many_patterns_is_one_line(hub: HubServer, look: Any) -> None:
    card = b"---\nconfigs:\n- config_name: z\n  data_files: '" + b"*a" * 2000 + b"'\n---\n"
    hub.commit(REPO, PHOTOS | {"README.md": card})
    assert "source.subset: configuration 'z'" in problem(lambda: look(subset="z"))


@pytest.mark.parametrize(
    "fields",
    [
        {"repo": "../.."},
        {"repo": "owner/.."},
        {"repo": "owner"},
        {"repo": "owner/name/more"},
        {"revision": "../../x"},
        {"revision": "a b"},
        {"revision": ""},
        {"revision": "v1?x=1"},
        {"include": ()},
        {"max_gigabytes": float("inf")},
        {"max_megabytes": float("nan")},
    ],
)
def test_fields_that_cannot_be_meant(fields: dict[str, Any]) -> None:
    good: dict[str, Any] = {"kind": "hub", "repo": "owner/na.me-1_x", "revision": "refs/pr/1"}
    HubSource(**good)
    with pytest.raises(ValidationError) as caught:
        HubSource(**(good | fields))
    assert [error["loc"] for error in caught.value.errors()] == [tuple(fields)]


def test_an_empty_path_is_no_path() -> None:
    for kind in (FolderSource, ArchiveSource, UrlListSource):
        with pytest.raises(ValidationError, match="an empty path"):
            kind(kind=kind.model_fields["kind"].annotation.__args__[0], path=" ")
