"""The registry of releases on an object store: versions, the newest, pulling, and who was first."""

from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.releases import find_release, list_releases, pull
from sr_assets.storage import root_of
from sr_assets.stores import registry
from sr_assets.stores.registry import publish

FILES = {"net_x4.safetensors": b"weights", "deep/graph.onnx": b"graph"}


@pytest.fixture
def root(s3: S3Server) -> UPath:
    return root_of("any", f"s3://{s3.bucket}/project")


def release(root: UPath, content: str) -> registry.Release:
    facts: dict[str, Any] = {
        "model": "net", "kind": "student", "architecture": "SPAN", "scale": 4, "parameters": 12,
        "licence": "MIT", "content": content, "data": {"gold/pairs[a]": "d1"},
        "metrics": {"set5": {"psnr_y": 31.5, "ssim_y": 0.9, "colour_offset": [0, 0, 0]}},
    }  # fmt: skip
    return publish(root / "registry", {**FILES, "net.pth": content.encode()}, facts)


def test_the_newest_version_is_the_highest_and_older_ones_stay(
    s3: S3Server, root: UPath, tmp_path: Path
) -> None:
    assert list_releases(root) == []
    first = release(root, "c1")
    before = s3.objects("project/registry/net/1.0.0/")
    second = release(root, "c2")
    assert release(root, "c1").manifest == first.manifest  # back at an older recipe
    assert [one.name for one in list_releases(root)] == [first.manifest.name, second.manifest.name]
    assert find_release(root, "net").manifest == second.manifest
    assert s3.objects("project/registry/net/1.0.0/") == before
    got = pull(root, "net@1.0.0", tmp_path / "got")
    assert {f.relative_to(tmp_path / "got").as_posix() for f in got} == {
        *FILES, "net.pth", "manifest.json",
    }  # fmt: skip
    assert (tmp_path / "got" / "net.pth").read_bytes() == b"c1"
    s3.counts()
    find_release(root, "net")
    # the models, the versions, a manifest each
    assert s3.counts() == {"LIST": 2, "GET": 2}


def test_a_version_without_its_manifest_is_none_and_is_written_again(
    s3: S3Server, root: UPath
) -> None:
    s3.refuse = lambda method, path: method == "PUT" and path.endswith("manifest.json")
    with pytest.raises(OSError, match="refuses"):
        release(root, "c1")
    assert s3.objects("project/registry/net/1.0.0/") and list_releases(root) == []
    s3.refuse = lambda method, path: False
    assert release(root, "c1").manifest.version == "1.0.0"


def test_of_two_machines_that_release_one_version_the_second_is_refused(
    s3: S3Server, root: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = release(root, "c1")
    manifest = s3.objects("project/registry/net/1.0.0/manifest.json")
    monkeypatch.setattr(registry, "versions", lambda *_: [])  # looked before the other had written
    with pytest.raises(StageError, match="released by another machine meanwhile"):
        release(root, "c2")
    assert s3.objects("project/registry/net/1.0.0/manifest.json") == manifest
    assert registry.read_release(theirs.path) is not None


def test_a_flipped_byte_is_refused_by_name(s3: S3Server, root: UPath, tmp_path: Path) -> None:
    release(root, "c1")
    s3.put("project/registry/net/1.0.0/net.pth", b"c7")
    with pytest.raises(StageError, match=r"net\.pth"):
        pull(root, "net", tmp_path / "got")
    assert not (tmp_path / "got").exists()
