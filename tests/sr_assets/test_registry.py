"""The registry of releases: versions, digests, pulling, and what a damaged one says."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import Recipe
from sr_assets.releases import find_release, list_releases, pull
from sr_assets.stores.registry import publish, read_release, registry_folder, versions
from sr_assets.stores.release_manifest import Manifest
from sr_assets.stores.versions import Version, parse_version

FILES = {"net_x4.safetensors": b"weights", "README.md": b"# net\n", "deep/graph.onnx": b"graph"}


def facts(content: str = "c1", model: str = "net", **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "kind": "student",
        "architecture": "SPAN",
        "scale": 4,
        "parameters": 12,
        "licence": "MIT",
        "content": content,
        "data": {"gold/pairs[a]": "d1"},
        "metrics": {"set5": {"psnr_y": 31.5, "ssim_y": 0.9, "colour_offset": [0, 0, 0]}},
        **more,
    }


def root_with(tmp_path: Path, *contents: str) -> Path:
    for content in contents or ("c1",):
        files = {**FILES, "net_x4.safetensors": content.encode()}
        publish(UPath(tmp_path / "registry"), files, facts(content))
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_versions_count_up_and_the_same_files_are_released_once(tmp_path: Path) -> None:
    registry = UPath(tmp_path / "registry")
    first = publish(registry, FILES, facts("c1"))
    before = snapshot(Path(str(first.path)))
    second = publish(registry, {**FILES, "net_x4.safetensors": b"new"}, facts("c2"))
    again = publish(registry, FILES, facts("c1"))  # back at an older recipe
    found = [r.manifest.version for r in (first, second, again)]
    assert found == ["1.0.0", "1.1.0", "1.0.0"]
    assert snapshot(Path(str(first.path))) == before
    assert [r.manifest.content for r in versions(registry, "net")] == ["c1", "c2"]
    assert publish(registry, FILES, facts("c1", model="other")).manifest.version == "1.0.0"


def test_manifest_holds_digest_and_size_of_every_file(tmp_path: Path) -> None:
    release = publish(UPath(tmp_path / "registry"), FILES, facts())
    read = read_release(release.path)
    assert read is not None and read.manifest == release.manifest
    for name, data in FILES.items():
        entry = read.manifest.files[name]
        assert (entry.sha256, entry.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_version_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    root = root_with(tmp_path, "c1", "c2")
    manifest = root / "registry" / "net" / "1.1.0" / "manifest.json"
    manifest.parent.chmod(0o755)
    manifest.unlink()
    assert [info.version for info in list_releases(root)] == ["1.0.0"]


def test_threads_that_publish_at_once_get_different_versions(tmp_path: Path) -> None:
    registry = UPath(tmp_path / "registry")
    found: list[str] = []

    def run(content: str) -> None:
        files = {**FILES, "net_x4.safetensors": content.encode()}
        found.append(publish(registry, files, facts(content)).manifest.version)

    threads = [threading.Thread(target=run, args=(f"c{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"1.{i}.0" for i in range(8)]
    assert len(versions(registry, "net")) == 8


def test_a_kill_while_publishing_leaves_no_version(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from upath import UPath
from sr_assets.stores.registry import publish
names = []
real = Path.replace
def die(self, target):
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = die
publish(UPath(sys.argv[1]) / "registry", {"a": b"1", "b": b"2"}, dict(
    model="net", kind="student", architecture="SPAN", scale=4, licence="MIT", content="c",
    data={}, metrics={}))
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert list_releases(tmp_path) == []
    assert any((tmp_path / "registry" / "net").glob(".*.partial"))
    release = publish(UPath(tmp_path / "registry"), FILES, facts())
    assert release.manifest.version == "1.0.0"
    assert not any((tmp_path / "registry" / "net").glob(".*.partial"))
    assert set(snapshot(Path(str(release.path)))) == {*FILES, "manifest.json"}


def test_an_object_store_serves_whole_versions_only(tmp_path: Path) -> None:
    root = UPath("memory://registry-test")
    release = publish(root / "registry", FILES, facts())
    files = pull(root, "net", tmp_path / "got")
    assert {f.relative_to(tmp_path / "got").as_posix() for f in files} == {*FILES, "manifest.json"}
    (release.path / "manifest.json").unlink()
    with pytest.raises(StageError, match="no release"):
        pull(root, "net", tmp_path / "again")


def test_listing_an_empty_root(tmp_path: Path) -> None:
    assert list_releases(tmp_path / "nowhere") == []


def test_listing_tells_the_figures(tmp_path: Path) -> None:
    (info,) = list_releases(root_with(tmp_path))
    assert (info.name, info.scale, info.psnr_y) == ("net@1.0.0", 4, {"set5": 31.5})
    assert info.bytes == 2 + len(FILES["README.md"]) + len(FILES["deep/graph.onnx"])


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("net", "1.1.0"),
        ("net@1.0.0", "1.0.0"),
        ("net@v1.1", "1.1.0"),
        ("net@1", "1.1.0"),
        ("net@latest", "1.1.0"),
    ],
)
def test_pull_brings_what_was_released(tmp_path: Path, name: str, version: str) -> None:
    root = root_with(tmp_path / "root", "c1", "c2")
    files = pull(root, name, tmp_path / "got")
    released = snapshot(root / "registry" / "net" / version)
    assert snapshot(tmp_path / "got") == released
    assert files[-1].name == "manifest.json" and all(f.is_file() for f in files)
    assert os.access(files[0], os.W_OK)  # the copy belongs to the user
    assert sorted(p.name for p in tmp_path.iterdir()) == ["got", "root"]  # nothing temporary


def test_pull_into_a_folder_with_other_files(tmp_path: Path) -> None:
    root = root_with(tmp_path / "root", "c1", "c2")
    to = tmp_path / "mine"
    to.mkdir()
    (to / "notes.txt").write_text("mine")
    pull(root, "net@1.0.0", to)
    assert pull(root, "net@1.0.0", to)  # the same again is no conflict
    assert (to / "notes.txt").read_text() == "mine"
    before = snapshot(to)
    with pytest.raises(StageError, match="other content"):
        pull(root, "net@1.1.0", to)
    assert snapshot(to) == before


def test_pull_names_the_folder_after_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pull(root_with(tmp_path), "net")
    assert (tmp_path / "net-1.0.0" / "net_x4.safetensors").read_bytes() == b"c1"


@pytest.mark.parametrize(
    ("name", "told"),
    [("nut", "there are: net"), ("net@9", "there are: net@1.0.0"), ("../net", "there are: net")],
)
def test_unknown_names_list_what_there_is(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(StageError, match=told):
        find_release(root_with(tmp_path), name)


def test_unknown_name_in_an_empty_registry(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nothing is released yet"):
        find_release(tmp_path, "net")


@given(byte=st.integers(0, 6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_and_nothing_is_left(
    tmp_path_factory: pytest.TempPathFactory, byte: int, bit: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("flip")
    registry = UPath(tmp_path / "registry")
    publish(registry, FILES, facts())
    path = tmp_path / "registry" / "net" / "1.0.0" / "net_x4.safetensors"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(StageError, match=r"net_x4\.safetensors is not what was released"):
        pull(tmp_path, "net", tmp_path / "got")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["registry"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    (root / "registry" / "net" / "1.0.0" / "README.md").unlink()
    with pytest.raises(StageError, match=r"README\.md is missing"):
        pull(root, "net", tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    "bad",
    [
        "../evil",
        "/etc/evil",
        "a/../../evil",
        "a\\..\\evil",
        "C:evil",
        "",
        ".",
        "a//b",
        ".git/config",
        "a/.GIT/x",
    ],
)
def test_a_manifest_cannot_reach_outside(tmp_path: Path, bad: str) -> None:
    root = root_with(tmp_path / "root")
    path = root / "registry" / "net" / "1.0.0" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][bad] = {"sha256": "0" * 64, "size": 1}
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))
    with pytest.raises(StageError, match=r"would leave|would change the git repository"):
        pull(root, "net", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    path = root / "registry" / "net" / "1.0.0" / "manifest.json"
    path.chmod(0o644)
    path.write_text("{")
    with pytest.raises(StageError, match=r"manifest\.json: .*damaged"):
        list_releases(root)


def test_manifest_written_by_a_later_program_is_read(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    text = (root / "registry" / "net" / "1.0.0" / "manifest.json").read_text()
    later = {**json.loads(text), "int8": True}
    assert Manifest.model_validate(later).version == "1.0.0"


def old_manifest(root: Path, version: int, content: str) -> None:
    """A version as programs before semantic versions wrote it."""
    folder = root / "registry" / "net" / str(version)
    folder.mkdir(parents=True)
    (folder / "net_x4.safetensors").write_bytes(content.encode())
    entry = {"sha256": hashlib.sha256(content.encode()).hexdigest(), "size": len(content)}
    written = {
        **facts(content), "format": 1, "version": version, "created": "2025-01-01T00:00:00+00:00",
        "files": {"net_x4.safetensors": entry},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(written))


def test_whole_numbers_of_older_programs_are_read_and_go_on(tmp_path: Path) -> None:
    for version in (2, 9, 10):
        old_manifest(tmp_path, version, f"c{version}")
    assert [r.version for r in list_releases(tmp_path)] == ["2.0.0", "9.0.0", "10.0.0"]
    pull(tmp_path, "net@9", tmp_path / "got")
    assert (tmp_path / "got" / "net_x4.safetensors").read_bytes() == b"c9"
    registry = UPath(tmp_path / "registry")
    assert publish(registry, FILES, facts("c10")).manifest.version == "10.0.1"  # only files
    assert publish(registry, {"a": b"1"}, facts("c11")).manifest.version == "10.1.0"
    larger = publish(registry, {"a": b"2"}, facts("c12", scale=2))
    assert larger.manifest.version == "11.0.0"
    assert find_release(tmp_path, "net").manifest.version == "11.0.0"


CONTRACT = {"architecture": "SPAN", "args": {"width": 8}, "scale": 4, "experts": []}


@pytest.mark.parametrize(
    ("changed", "version"),
    [
        ({"interface": {**CONTRACT, "args": {"width": 16}}}, "2.0.0"),
        ({"interface": {**CONTRACT, "experts": ["hat"]}}, "2.0.0"),
        ({"architecture": "Compact"}, "2.0.0"),
        ({"scale": 2}, "2.0.0"),
        ({"content": "c2", "weights": "w2"}, "1.1.0"),
        ({"content": "c2"}, "1.0.1"),  # exported anew from the same tensors
        ({"licence": "GPL-3.0"}, "1.0.1"),
    ],
)
def test_what_changed_decides_which_part_moves(
    tmp_path: Path, changed: dict[str, Any], version: str
) -> None:
    registry = UPath(tmp_path / "registry")
    known = {"interface": CONTRACT, "weights": "w1"}
    publish(registry, FILES, facts(**known))
    again = publish(registry, {**FILES, "new": b"1"}, {**facts(**known), **changed})
    assert again.manifest.version == version


@pytest.mark.parametrize(
    ("pinned", "told"),
    [
        ("1.1.0", "net@1.1.0 is released with other files"),
        ("1.0.5", "1.0.5 is below net@1.1.0"),
        ("1.1.1", "since net@1.1.0 the weights changed: leave it out, or name 1.2.0"),
    ],
)
def test_a_pinned_version_that_would_lie_is_refused(tmp_path: Path, pinned: str, told: str) -> None:
    root = root_with(tmp_path, "c1", "c2")
    with pytest.raises(StageError, match=told):
        publish(UPath(root / "registry"), {"a": b"3"}, facts("c3"), pinned=pinned)
    assert [r.version for r in list_releases(root)] == ["1.0.0", "1.1.0"]


def test_a_pinned_version_is_made_once(tmp_path: Path) -> None:
    registry = UPath(tmp_path / "registry")
    for _ in range(2):
        assert publish(registry, FILES, facts(), pinned="0.3.0").manifest.version == "0.3.0"
    assert publish(registry, FILES, facts(), pinned="1.0.0").manifest.version == "1.0.0"
    assert [r.version for r in list_releases(tmp_path)] == ["0.3.0", "1.0.0"]


def test_cards_tell_their_version_and_are_known_again(tmp_path: Path) -> None:
    def cards(version: str, day: str) -> dict[str, bytes]:
        return {"README.md": f"net {version} {day}".encode()}

    registry = UPath(tmp_path / "registry")
    first = publish(registry, {"w": b"1"}, facts(), cards=cards)
    told = (first.path / "README.md").read_text().split()
    assert told[1] == "1.0.0" and len(told[2]) == 10
    assert publish(registry, {"w": b"1"}, facts(), cards=cards).path == first.path
    assert pull(tmp_path, "net", tmp_path / "got")


@given(a=st.tuples(*[st.integers(0, 30)] * 3), b=st.tuples(*[st.integers(0, 30)] * 3))
def test_versions_are_ordered_by_their_numbers(
    a: tuple[int, int, int], b: tuple[int, int, int]
) -> None:
    one, two = Version(*a), Version(*b)
    assert (one < two) == (a < b) and parse_version(one.tag) == one
    for change in ("major", "minor", "patch"):
        assert one.after(change) > one


@pytest.mark.parametrize("bad", ["1", "1.2", "1.2.x", "01.2.3", "1.2.3-rc1", "", "v", "1.2.3\n"])
def test_what_is_no_version_is_told(bad: str) -> None:
    with pytest.raises(ValueError, match=r"such as 1\.2\.0"):
        parse_version(bad)


def test_the_registry_may_be_anywhere(tmp_path: Path) -> None:
    base = {"name": "r", "datasets": {"a": {"source": {"kind": "folder", "path": "x"}}}}
    root = UPath(tmp_path)
    elsewhere = Recipe.model_validate({**base, "release": {"registry": "memory://models/all"}})
    assert registry_folder(Recipe.model_validate(base), root) == root / "registry"
    folder = registry_folder(elsewhere, root)
    publish(folder, FILES, facts())
    assert [r.name for r in list_releases(root, folder)] == ["net@1.0.0"]
    files = pull(root, "net@1.0.0", tmp_path / "got", folder)
    assert (tmp_path / "got" / "deep/graph.onnx").read_bytes() == b"graph" and len(files) == 4
    with pytest.raises(StageError, match="nothing is released yet"):
        pull(root, "net", tmp_path / "again")
    with (folder / "net" / "1.0.0" / "README.md").open("wb") as file:
        file.write(b"# nut\n")
    with pytest.raises(StageError, match=r"README\.md is not what was released"):
        pull(root, "net", tmp_path / "again", folder)
