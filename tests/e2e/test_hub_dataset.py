"""A dataset of a hub on localhost, from `srd add-dataset` to the expert caches."""

import io
import json
from pathlib import Path

import pytest
from hub_server import HubServer
from PIL import Image
from test_added_datasets import FILLED
from tiny_project import Project, picture

REPO = "owner/holiday"


@pytest.fixture(autouse=True)
def own_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches of this project alone, which are below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def photos(*seeds: int) -> dict[str, bytes]:
    files = {"README.md": b"# holiday\n"}
    for seed in seeds:
        file = io.BytesIO()
        Image.fromarray(picture(seed, side=100)).save(file, "PNG")
        files[f"beach/{seed}.png"] = file.getvalue()
    return files


def test_a_hub_dataset_is_filled_as_far_as_the_expert_caches(
    empty: Project, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.commit(REPO, photos(40, 41))
    hub.private[REPO] = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = empty.srd("add-dataset", "holiday", f"hub:{REPO}@{sha}").stdout
    assert "srd backfill holiday" in told and "branch" not in told
    assert hub.requests == [], "registering and planning need no network"
    empty.srd("backfill", "holiday")
    status = empty.status()
    assert {name for name in FILLED if status[name]["state"] == "fresh"} == FILLED

    manifest = json.loads(empty.srd("path", "bronze/images", "holiday", "--json").stdout)
    files = Path(manifest["path"]) / "files" / "beach"
    assert {f"beach/{f.name}": f.read_bytes() for f in files.iterdir()} == {
        name: data for name, data in photos(40, 41).items() if name.endswith(".png")
    }
    hub.requests.clear()
    assert empty.srd("backfill", "holiday").stdout == "Everything is fresh: no step ran.\n"
    assert hub.requests == []
    recorded = b"".join(f.read_bytes() for f in empty.folder.rglob("*") if f.is_file())
    assert b"hf_secret" not in recorded


def test_a_hub_that_is_away_is_one_line_until_it_is_back(empty: Project, hub: HubServer) -> None:
    hub.commit(REPO, photos(40))
    told = empty.srd("add-dataset", "holiday", f"hub:{REPO}").stdout
    assert "branch main" in told
    hub.stop()
    message = empty.srd("build", "bronze/images[holiday]", code=1).stdout
    assert f"the hub at {hub.url} cannot be reached" in message
    hub.start()
    empty.srd("build", "bronze/images[holiday]")
    assert empty.status()["bronze/images[holiday]"]["state"] == "fresh"
