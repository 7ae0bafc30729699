"""`srd publish` and `srd pull` against a hub on localhost, killed at the worst moments."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from upath import UPath

from sr_assets.stores.registry import publish

REPO = "me/net-x4"
MAIN = "from sr_assets.cli import main; main()"
CARD = b"---\nlicense: mit\npipeline_tag: image-to-image\n---\n# net\n"
RECIPE = """
name: r
root: {root}
datasets: {{photos: {{source: {{kind: folder, path: photos}}}}}}
release: {{hub: "me/{{model}}-x4"}}
"""


class Shop:
    """A registry with releases, and the command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        (folder / "r.yaml").write_text(RECIPE.format(root=self.root))

    def release(self, weights: bytes) -> dict[str, bytes]:
        """A new version; returns its files."""
        files = {"net_x4.safetensors": weights, "net_x4.onnx": weights[::-1], "README.md": CARD}
        facts: dict[str, Any] = {
            "model": "net", "kind": "student", "architecture": "SPAN", "scale": 4,
            "licence": "MIT", "content": hashlib.sha256(weights).hexdigest(), "data": {},
            "metrics": {},
        }  # fmt: skip
        made = publish(UPath(self.root / "registry"), files, facts)
        return {**files, "manifest.json": (made.path / "manifest.json").read_bytes()}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, *words, "--recipe", str(self.folder / "r.yaml")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
        )  # fmt: skip

    def srd(self, *words: str, code: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a command that ends with `code`."""
        process = self.start(*words)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, err
        return out, err


@pytest.fixture
def shop(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    return Shop(tmp_path)


def same(folder: Path, files: dict[str, bytes]) -> bool:
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return found == files


def test_publish_tag_pull_tamper(shop: Shop, hub: HubServer) -> None:
    files = shop.release(b"weights one")
    told, _ = shop.srd("publish", "net", "--private", "--dry-run")
    assert "create private repository me/net-x4; commit 'net v1.0.0'" in told
    assert "net_x4.safetensors" in told and "11 B" in told and hub.models_hub.repos == {}

    told, _ = shop.srd("publish", "net", "--private")
    repo = hub.models_hub.repos[REPO]
    assert told.endswith(f"me/net-x4@v1.0.0 is published: commit {repo.head[:12]}\n")
    assert repo.private and repo.tags == {"v1.0.0": repo.head} and len(repo.commits) == 2
    told, _ = shop.srd("publish", "net@1.0.0", REPO)
    assert told == f"me/net-x4@v1.0.0 is published already: commit {repo.head[:12]}\n"

    told, _ = shop.srd("pull", f"{REPO}@v1.0.0", "--to", "got", "--json")
    assert same(shop.folder / "got", files)
    assert [Path(f).name for f in json.loads(told)] == list(files)

    for name in ("net_x4.safetensors", "README.md"):
        data = files[name]
        tampered = {**files, name: data[:-1] + bytes([data[-1] ^ 1])}
        repo.tags["v1.0.0"] = repo.add("tampered", tampered)
        os.environ["SRD_CACHE"] = str(shop.folder / "nobody-knows-the-tag")
        _, err = shop.srd("pull", f"{REPO}@v1.0.0", "--to", "bad", code=1)
        assert name in err and "not what was released" in err and err.count("\n") == 1
        os.environ["SRD_CACHE"] = str(shop.folder / "cache")
        _, err = shop.srd("pull", f"{REPO}@v1.0.0", "--to", "bad", code=1)
        assert "me/net-x4@v1.0.0 has moved from commit" in err
    assert not (shop.folder / "bad").exists()

    hub.stop()
    shop.srd("pull", f"{REPO}@v1", "--to", "offline", "--offline")
    assert same(shop.folder / "offline", files)


@pytest.mark.parametrize(
    ("moment", "commits", "uploaded"),
    [
        ("POST /api/repos/create", 0, 0),  # before anything
        ("POST /preupload/", 1, 0),  # an empty repository
        ("POST /lfs/verify", 1, 1),  # within the uploads
        ("POST /commit/", 1, 2),  # all uploaded, nothing committed
        ("POST /tag/", 2, 2),  # committed, and no tag
    ],
)
def test_a_publish_that_is_killed_and_repeated_ends_right(
    shop: Shop, hub: HubServer, moment: str, commits: int, uploaded: int
) -> None:
    files = shop.release(b"weights one")
    process = shop.start("publish", "net")
    hub.interrupt[moment] = process.kill
    process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL and not hub.interrupt
    repo = hub.models_hub.repos.get(REPO)
    assert (len(repo.commits) if repo else 0, repo.tags if repo else {}) == (commits, {})
    assert len(hub.models_hub.large) >= uploaded

    hub.requests.clear()
    shop.srd("publish", "net")
    repo = hub.models_hub.repos[REPO]
    assert [title for _, title, _ in repo.commits] == ["initial commit", "net v1.0.0"]
    assert repo.tags == {"v1.0.0": repo.head}
    if uploaded == 2:  # what is there is not sent again
        assert [r for r in hub.requests if r.method == "PUT"] == []
    assert len([r for r in hub.asked("/commit/") if r.method == "POST"]) == (commits < 2)
    shop.srd("pull", f"{REPO}@v1.0.0", "--to", "got")
    assert same(shop.folder / "got", files)


def test_a_commit_whose_tag_is_missing_is_found_below_later_ones(
    shop: Shop, hub: HubServer
) -> None:
    files = shop.release(b"weights one")
    process = shop.start("publish", "net")
    hub.interrupt["POST /tag/"] = process.kill
    process.communicate(timeout=600)
    repo = hub.models_hub.repos[REPO]
    released = repo.head
    repo.add("a word in the card", {**repo.files("main")[1], "README.md": CARD + b"more\n"})
    told, _ = shop.srd("publish", "net", "--dry-run")
    assert told.startswith(f"commit {released[:12]} of me/net-x4 holds these files already: tag v1")
    shop.srd("publish", "net")
    assert repo.tags == {"v1.0.0": released}
    shop.srd("pull", REPO, "--to", "got")
    assert same(shop.folder / "got", files)
