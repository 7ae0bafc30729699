"""A dataset that comes later: registered, filled, and of no consequence for what is there."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_project import Project, picture

from sr_assets.lineage.added import source_of
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import HubSource

ASSETS = (
    *("bronze/images", "bronze/overlap", "silver/patches", "gold/pairs"),
    *("expert/edsr/cache", "expert/compact/cache"),
)
FILLED = {f"{asset}[holiday]" for asset in ASSETS}


@pytest.fixture
def holiday(tmp_path: Path) -> Path:
    folder = tmp_path / "holiday"
    (folder / "beach").mkdir(parents=True)
    for seed in (40, 41):
        Image.fromarray(picture(seed, side=100)).save(folder / "beach" / f"{seed}.png")
    return folder


def test_an_added_dataset_is_filled_as_far_as_the_expert_caches(
    project: Project, holiday: Path
) -> None:
    before = project.status()
    told = project.srd("add-dataset", "holiday", str(holiday)).stdout
    assert "srd backfill holiday" in told
    added = project.status()
    assert {name: added[name] for name in before} == before
    new = set(added) - set(before)
    assert new == FILLED | {"model/fusion/cache[holiday]"}
    assert {added[name]["state"] for name in new} == {"missing"}

    runs = project.runs()
    told = project.srd("backfill", "holiday").stdout
    assert told.splitlines()[-1] == f"Made {len(FILLED)} outputs."
    filled = project.status()
    assert {name: filled[name] for name in before} == before
    assert {name for name in new if filled[name]["state"] == "fresh"} == FILLED
    with project.dagster() as instance:
        assert "holiday" in instance.get_dynamic_partitions("dataset")
        new_runs = instance.get_runs(limit=instance.get_runs_count() - runs)
    assert {run.tags.get("dagster/partition") for run in new_runs} == {"holiday"}
    assert project.srd("backfill", "holiday").stdout == "Everything is fresh: no step ran.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add-dataset", "holiday", "nowhere"), "nowhere does not exist"),
        (("add-dataset", "holiday", "tiny.yaml"), "tiny.yaml is no folder, no archive"),
        (("add-dataset", "holiday", "hub:photos"), "write hub:owner/name"),
        (("add-dataset", "holiday", ".", "--lr", "nowhere"), "nowhere does not exist"),
        (("add-dataset", "photos", "."), "'photos' is already a dataset or benchmark"),
        (("add-dataset", "a/b", "."), "'a/b' cannot be a dataset"),
        (("backfill", "nobody"), "no dataset 'nobody'; there are: photos, other, bench"),
    ],
)
def test_a_dataset_that_cannot_be_is_one_line(
    empty: Project, words: tuple[str, ...], said: str
) -> None:
    message = empty.srd(*words, code=1).stderr
    assert message.startswith("srd: ") and said in message and message.count("\n") == 1
    assert not empty.root.exists()


def test_what_a_source_is_shows_in_its_words(tmp_path: Path) -> None:
    commit = "0123456789" * 4
    (tmp_path / "photos.zip").mkdir()
    for name in ("a.TAR.gz", "b.zip", "c.txt", "d.png"):
        (tmp_path / name).touch()
    kinds = {name: source_of(str(tmp_path / name)).kind for name in ("a.TAR.gz", "b.zip", "c.txt")}
    assert kinds == {"a.TAR.gz": "archive", "b.zip": "archive", "c.txt": "url_list"}
    assert source_of(str(tmp_path / "photos.zip")).kind == "folder"
    assert source_of(f"hub:owner/name@{commit}") == HubSource(
        kind="hub", repo="owner/name", revision=commit
    )
    assert source_of("hub:owner/name@refs/pr/1") == HubSource(
        kind="hub", repo="owner/name", revision="refs/pr/1"
    )
    with pytest.raises(StageError, match="no archive"):
        source_of(str(tmp_path / "d.png"))
