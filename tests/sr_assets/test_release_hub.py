"""Publishing to a hub and pulling from it, with the real client, a request at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from upath import UPath

from sr_assets.hub.publishing import Plan, carry_out, plan_publishing
from sr_assets.hub.pulling import pull_from_hub
from sr_assets.hub.repository import repository
from sr_assets.lineage.stage import StageError
from sr_assets.stores.registry import Release
from sr_assets.stores.registry import publish as register

REPO = "me/net-x4"
CARD = b"---\nlicense: mit\npipeline_tag: image-to-image\n---\n# net\n"


def release(
    root: Path | UPath, content: str = "c1", model: str = "net", **files: bytes | None
) -> Release:
    """A version in the registry below `root`."""
    everything: dict[str, bytes | None] = {
        "net_x4.safetensors": content.encode() * 500,
        "README.md": CARD,
        "assets/a.png": b"picture",
        "net_model_card.json": b"{}",
        **files,
    }
    facts: dict[str, Any] = {
        "model": model, "kind": "student", "architecture": "SPAN", "scale": 4, "licence": "MIT",
        "content": content, "data": {}, "metrics": {},
        "licences": {"data": {"photos": "CC0"}, "experts": {"hat": None}, "teachers": {}},
    }  # fmt: skip
    kept = {name: data for name, data in everything.items() if data is not None}
    return register(UPath(root) / "registry", kept, facts)


@pytest.fixture(autouse=True)
def _environment(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "srd-cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")


def put(made: Release, repo: str = REPO, **options: bool) -> Plan:
    plan = plan_publishing(made, repository(repo), **options)
    carry_out(plan, lambda line: None)
    return plan


def pulled(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def writes(hub: HubServer) -> list[str]:
    """What was asked for that changes something."""
    words = ("/create", "/lfs/", "/commit/", "/tag/")
    return [r.path for r in hub.requests if r.method != "GET" and any(w in r.path for w in words)]


def test_a_release_becomes_one_commit_and_a_tag_and_comes_back(
    hub: HubServer, tmp_path: Path
) -> None:
    made = release(tmp_path)
    plan = put(made, private=True)
    repo = hub.models_hub.repos[REPO]
    assert plan.todo == "create" and repo.private
    assert [title for _, title, _ in repo.commits] == ["initial commit", "net v1.0.0"]
    assert repo.tags == {"v1.0.0": repo.head}
    assert all(r.headers.get("authorization") == "Bearer hf_mine" for r in hub.asked("/commit/"))
    for wanted in ("v1.0.0", "1.0.0", "v1", ""):
        files = pull_from_hub(repository(REPO), wanted, tmp_path / f"got{wanted}")
        assert files[-1].name == "manifest.json"
        assert pulled(tmp_path / f"got{wanted}") == pulled(Path(str(made.path)))


def test_a_dry_run_asks_and_changes_nothing(hub: HubServer, tmp_path: Path) -> None:
    lines = plan_publishing(release(tmp_path), repository(REPO)).lines()
    assert hub.models_hub.repos == {} and writes(hub) == []
    assert any("net_x4.safetensors" in line and "1,000 B" in line for line in lines)
    assert lines[-2] == "licence MIT; made from photos (CC0), hat (not stated)"
    assert lines[-1].startswith(f"create public repository {REPO}; commit 'net v1.0.0' to {REPO}:")
    assert lines[-1].endswith("5 files, 0.0 MB; tag v1.0.0")


def test_the_next_release_goes_on_and_sweeps_what_it_lacks(hub: HubServer, tmp_path: Path) -> None:
    put(release(tmp_path))
    repo = hub.models_hub.repos[REPO]
    repo.add("their own", {**repo.files("main")[1], "notes.txt": b"theirs"})
    plan = put(release(tmp_path, "c2", **{"assets/a.png": None, "assets/b.png": b"other"}))
    assert plan.todo == "commit" and plan.deleted == ("assets/a.png",)
    assert list(repo.tags) == ["v1.0.0", "v1.1.0"]
    assert {"notes.txt", "assets/b.png"} <= set(repo.files("main")[1])
    pull_from_hub(repository(REPO), "v1.0", tmp_path / "old")
    assert (tmp_path / "old/assets/a.png").read_bytes() == b"picture"
    assert pull_from_hub(repository(REPO), "", tmp_path / "new")[0].parent.name == "new"
    assert "notes.txt" not in pulled(tmp_path / "new")


def test_publishing_again_says_so_and_writes_nothing(hub: HubServer, tmp_path: Path) -> None:
    made = release(tmp_path)
    put(made)
    hub.requests.clear()
    plan = put(made)
    assert plan.todo == "nothing" and writes(hub) == []
    assert plan.lines() == [
        f"{REPO}@v1.0.0 is published already: commit {hub.models_hub.repos[REPO].head[:12]}"
    ]


@pytest.mark.parametrize("file", ["net_x4.safetensors", "README.md"])
def test_a_tag_with_other_files_is_refused(hub: HubServer, tmp_path: Path, file: str) -> None:
    put(release(tmp_path / "one"))
    other = release(tmp_path / "two", **{file: b"#" + CARD})
    with pytest.raises(StageError, match=r"me/net-x4@v1\.0\.0 is published with another manifest"):
        plan_publishing(other, repository(REPO))
    # and when the manifest is the same, but a file is not
    repo = hub.models_hub.repos[REPO]
    files = {**repo.files("main")[1], file: bytes(len(repo.files("main")[1][file]))}
    repo.tags["v1.0.0"] = repo.add("tampered", files)
    with pytest.raises(StageError, match=f"published with another {file}"):
        plan_publishing(release(tmp_path / "one"), repository(REPO))


def test_main_never_moves_backwards(hub: HubServer, tmp_path: Path) -> None:
    old, new = release(tmp_path), release(tmp_path, "c2")
    put(new)
    head = hub.models_hub.repos[REPO].head
    with pytest.raises(StageError, match=r"has v1\.1\.0: net@1\.0\.0 would move it backwards"):
        plan_publishing(old, repository(REPO))
    assert hub.models_hub.repos[REPO].head == head


def test_repositories_of_others_are_refused(hub: HubServer, tmp_path: Path) -> None:
    put(release(tmp_path))
    with pytest.raises(StageError, match="holds releases of net: name another repository for nut"):
        plan_publishing(release(tmp_path, model="nut"), repository(REPO))
    with pytest.raises(StageError, match="exists and is public"):
        plan_publishing(release(tmp_path, "c2"), repository(REPO), private=True)
    with pytest.raises(StageError, match="name one as owner/name"):
        repository("../net")
    hub.refusals["/api/repos/create"] = 403
    plan = plan_publishing(release(tmp_path), repository("them/net"))
    with pytest.raises(StageError, match="set HF_TOKEN to a token with access"):
        carry_out(plan, lambda line: None)


def test_a_commit_in_between_is_not_overwritten(hub: HubServer, tmp_path: Path) -> None:
    put(release(tmp_path))
    plan = plan_publishing(release(tmp_path, "c2"), repository(REPO))
    repo = hub.models_hub.repos[REPO]
    repo.add("theirs", {"README.md": b"theirs"})
    with pytest.raises(StageError, match="changed meanwhile"):
        carry_out(plan, lambda line: None)
    assert repo.files("main")[1]["README.md"] == b"theirs" and list(repo.tags) == ["v1.0.0"]


def test_a_card_that_the_hub_refuses_is_told_before_anything_is_sent(
    hub: HubServer, tmp_path: Path
) -> None:
    made = release(tmp_path, **{"README.md": b"---\npipeline_tag: x\n---\n# net\n"})
    with pytest.raises(StageError, match=r'Invalid metadata in README\.md.* "license" is required'):
        put(made)
    assert not hub.asked("/lfs/") and hub.models_hub.repos[REPO].tags == {}


def test_a_damaged_registry_publishes_nothing(hub: HubServer, tmp_path: Path) -> None:
    made = release(tmp_path)
    file = Path(str(made.path)) / "net_x4.safetensors"
    file.chmod(0o644)
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(StageError, match=r"net_x4\.safetensors is not what was released"):
        put(made)
    assert hub.models_hub.repos[REPO].tags == {} and not hub.asked("/lfs/")


def test_a_registry_on_an_object_store_publishes_too(hub: HubServer, tmp_path: Path) -> None:
    made = release(UPath("memory://hub-release-test"))
    put(made)
    pull_from_hub(repository(REPO), "", tmp_path / "got")
    weights = (made.path / "net_x4.safetensors").read_bytes()
    assert (tmp_path / "got" / "net_x4.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("net_x4.safetensors", r"net_x4\.safetensors is not what was released"),
        ("README.md", r"README\.md is not what was released"),
        ("manifest.json", r"manifest\.json came damaged"),
    ],
)
def test_one_byte_that_the_server_flips_is_refused_by_name(
    hub: HubServer, tmp_path: Path, file: str, told: str
) -> None:
    put(release(tmp_path))
    hub.damaged[file] = 5
    with pytest.raises(StageError, match=told):
        pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")
    assert not (tmp_path / "got").exists() and not list(tmp_path.glob(".*.partial"))
    hub.damaged.clear()  # nothing damaged stayed in the cache
    assert pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")


def test_a_listing_that_shows_another_file_is_refused_before_it_is_fetched(
    hub: HubServer, tmp_path: Path
) -> None:
    put(release(tmp_path))
    repo = hub.models_hub.repos[REPO]
    files = repo.files("main")[1]
    for changed in (bytes(1000), bytes(100_000)):  # another digest; another size
        repo.tags["v1.0.0"] = repo.add("tampered", {**files, "net_x4.safetensors": changed})
        hub.requests.clear()
        with pytest.raises(StageError, match=r"v1\.0\.0: net_x4\.safetensors is not what was"):
            pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")
        assert not hub.asked("net_x4.safetensors")
    del files["assets/a.png"]
    repo.tags["v1.0.0"] = repo.add("torn", files)
    with pytest.raises(StageError, match=r"assets/a\.png is missing"):
        pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")


def test_a_tag_that_moved_is_refused_by_name(hub: HubServer, tmp_path: Path) -> None:
    put(release(tmp_path))
    pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")
    repo = hub.models_hub.repos[REPO]
    first = repo.tags["v1.0.0"]
    repo.tags["v1.0.0"] = repo.add("again", repo.files("main")[1])
    told = rf"me/net-x4@v1\.0\.0 has moved from commit {first[:12]} to {repo.head[:12]}"
    with pytest.raises(StageError, match=told):
        pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "again")


def test_a_manifest_of_another_version_or_place_is_refused(hub: HubServer, tmp_path: Path) -> None:
    put(release(tmp_path))
    repo = hub.models_hub.repos[REPO]
    files = repo.files("main")[1]
    repo.tags["v3.0.0"] = repo.head
    with pytest.raises(StageError, match=r"its manifest\.json is of net@1\.0\.0"):
        pull_from_hub(repository(REPO), "v3", tmp_path / "got")
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["../evil"] = manifest["files"]["README.md"]
    evil = {**files, "manifest.json": json.dumps(manifest).encode(), "../evil": CARD}
    repo.tags["v4.0.0"] = repo.add("evil", evil)
    with pytest.raises(StageError, match="would leave the release's folder"):
        pull_from_hub(repository(REPO), "v4", tmp_path / "got")
    assert not (tmp_path / "evil").exists()


def test_what_was_pulled_once_needs_no_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(release(tmp_path))
    put(release(tmp_path, "c2"))
    pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "first")
    hub.stop()
    for wanted in ("v1.0.0", "v1", ""):  # of those that were pulled, the newest
        pull_from_hub(repository(REPO, offline=True), wanted, tmp_path / f"got{wanted}")
        assert pulled(tmp_path / f"got{wanted}") == pulled(tmp_path / "first")
    with pytest.raises(StageError, match=r"me/net-x4@v1\.1\.0 is not whole in the cache"):
        pull_from_hub(repository(REPO, offline=True), "v1.1.0", tmp_path / "no")
    with pytest.raises(StageError, match="cannot be reached"):
        pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "no")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "last")
    with pytest.raises(StageError, match="HF_HUB_OFFLINE is set"):
        plan_publishing(release(tmp_path), repository(REPO))


def test_a_transfer_that_breaks_off_goes_on(hub: HubServer, tmp_path: Path) -> None:
    chunk = 10 << 20  # what the client writes at a time
    put(release(tmp_path, **{"net_x4.safetensors": bytes(chunk + 1000)}))
    hub.cut["net_x4.safetensors"] = [chunk + 10]
    pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")
    ranges = [r.headers.get("range") for r in hub.asked("net_x4") if r.method == "GET"]
    assert ranges == [None, f"bytes={chunk}-"]


def test_what_is_not_there_is_told(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="shows no me/net-x4: check its name"):
        pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")
    put(release(tmp_path))
    with pytest.raises(StageError, match=r"has no release v2; its tags: v1\.0\.0"):
        pull_from_hub(repository(REPO), "v2", tmp_path / "got")
    hub.down = True
    with pytest.raises(StageError, match="cannot be reached"):
        pull_from_hub(repository(REPO), "v1.0.0", tmp_path / "got")
