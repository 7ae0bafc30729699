"""What `srd gc` removes and what it leaves, on a small graph with a real Dagster instance."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image
from test_lineage import World
from upath import UPath

from sr_assets.cli import main
from sr_assets.lineage.stage import Ref, StageError
from sr_assets.output_folder import building_folder
from sr_assets.stores.registry import publish
from sr_assets.unneeded import Findings, find_unneeded, remove

STRANGE_MARKERS = [
    b"{", b"[]", b'{"files": {"a": 1}, "data_version": "x"}', b'{"files": {}, "data_version": 5}',
    b'{"files": {"a\\u0000": {"size": 1}}, "data_version": "x"}',
    b'{"files": {}, "data_version": "x", "asset": "upper/text", "partition": ["a"]}',
]  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Built twice, the second time with another mark, so that the first outputs are superseded."""
    (tmp_path / "root").mkdir()
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        world = World(tmp_path / "root", instance)
        world.make()
        world.settings = {"upper.mark": "?"}
        world.make()
        yield world


def find(world: World, older_than: float = 0.0, dropped: bool = False) -> Findings:
    return find_unneeded(world.graph(), world.instance, older_than=older_than, dropped=dropped)


def names(found: Findings) -> list[str]:
    return sorted(item.name for item in found.unneeded)


def test_superseded_outputs_go_and_everything_stays_fresh(world: World) -> None:
    found = find(world)
    assert names(found) == ["total/text", "upper/text[a]", "upper/text[b]"]
    assert {item.kind for item in found.unneeded} == {"output"}
    paths = [item.path for item in found.unneeded]
    assert found.bytes_freed == sum(
        file.stat().st_blocks * 512 for path in paths for file in path.rglob("*") if file.is_file()
    )
    assert remove(found) == 3
    assert not any(path.exists() for path in paths)
    assert not world.behind() and not names(find(world))
    world.settings = {"upper.mark": "!"}
    assert len(world.make().made) == 3 and len(world.ran) == 3  # no longer free


def test_what_is_young_stays(world: World) -> None:
    assert names(find(world, older_than=1.0)) == []
    hours_ago = {find(world).unneeded[0].path: 3, find(world).unneeded[1].path: 0.5}
    for path, hours in hours_ago.items():
        for entry in (path, *path.rglob("*")):
            now = entry.stat().st_mtime
            os.utime(entry, (now, now - hours * 3600))
    (old, _) = hours_ago
    assert [item.path for item in find(world, older_than=1.0).unneeded] == [old]


def test_what_the_recipe_as_it_is_now_would_use_again_stays(world: World) -> None:
    world.settings = {"upper.mark": "!"}  # back, and not built yet
    assert names(find(world)) == []
    assert len(world.make().made) == 3 and world.ran == []


def test_a_hard_link_that_stays_frees_nothing(world: World) -> None:
    before = find(world)
    file = before.unneeded[0].path / "text"
    size = file.stat().st_blocks * 512
    os.link(file, world.folder.parent / "kept")
    assert find(world).bytes_freed == before.bytes_freed - size
    os.link(file, before.unneeded[1].path / "again")
    assert find(world).bytes_freed == before.bytes_freed - size
    (world.folder.parent / "kept").unlink()  # now both links are in what goes: it counts once
    assert find(world).bytes_freed == before.bytes_freed


def test_what_a_release_was_made_from_stays(world: World) -> None:
    found = find(world)
    versions = {
        item.name: json.loads((item.path / "srd.json").read_bytes())["data_version"]
        for item in found.unneeded
    }
    publish(
        UPath(world.folder) / "registry",
        {"weights": b"w"},
        {
            "model": "m", "kind": "plain", "architecture": "Compact", "scale": 4, "metrics": {},
            "content": "c", "data": {"upper/text[a]": versions["upper/text[a]"]},
        },
    )  # fmt: skip
    assert names(find(world)) == ["total/text", "upper/text[b]"]
    remove(find(world, dropped=True))
    assert [path.name for path in world.folder.glob("registry/m/1.0.0/*")]


def test_what_that_was_made_from_stays_as_far_back_as_it_goes(world: World) -> None:
    (total,) = [item.path for item in find(world).unneeded if item.name == "total/text"]
    version = json.loads((total / "srd.json").read_bytes())["data_version"]
    world.texts["a"] = "three"
    world.make()
    stale = ["raw/text[a]", *["total/text"] * 2, *["upper/text[a]"] * 2, "upper/text[b]"]
    assert names(find(world)) == stale
    publish(
        UPath(world.folder) / "registry",
        {"weights": b"w"},
        {
            "model": "m", "kind": "plain", "architecture": "Compact", "scale": 4, "metrics": {},
            "content": "c", "data": {"total/text": version},
        },
    )  # fmt: skip
    found = find(world)
    assert names(found) == ["total/text", "upper/text[a]"]
    assert total not in {item.path for item in found.unneeded}


def test_outputs_of_another_recipe_in_the_root_stay(world: World) -> None:
    theirs = World(world.folder, world.instance)
    theirs.texts = {"c": "three"}
    theirs.make(["upper/text[c]"])
    found = find(world)
    assert "upper/text[c]" not in names(found)
    assert found.theirs == ("raw/text[c]", "upper/text[c]")
    assert {"raw/text[c]", "upper/text[c]"} <= set(names(find(world, dropped=True)))


def test_outputs_that_this_dagster_never_made_stay(world: World, tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral(str(tmp_path / "elsewhere")) as other:
        found = find_unneeded(world.graph(), other, older_than=0.0)
    assert found.unneeded == () and len(found.unknown) == 3


@pytest.mark.parametrize("marker", STRANGE_MARKERS)
def test_a_marker_that_is_none_of_ours_stays(world: World, marker: bytes) -> None:
    place = world.folder / "upper" / "text" / "a" / ("a" * 24)
    place.mkdir()
    (place / "srd.json").write_bytes(marker)
    found = find(world)
    assert found.unknown == (place,) and len(found.unneeded) == 3


def test_what_a_killed_build_left_goes_unless_the_build_would_go_on_with_it(world: World) -> None:
    ref = Ref("upper/text", "a")
    dead = building_folder(world.graph().folder(ref) / ("a" * 24))
    held = building_folder(world.graph().folder(ref) / ("b" * 24))
    status = world.states()
    assert status[str(ref)][0] == "fresh"
    current = find(world).unneeded  # all that may go beside
    foreign = world.graph().folder(ref).parent / "mine" / f".{'c' * 24}.partial"
    for folder in (dead, held, Path(str(foreign))):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x" * 5000)
    with FileLock(held.with_suffix(".lock")):
        found = find(world)
        left = {item.path for item in found.unneeded} - {item.path for item in current}
        assert left == {dead}
        remove(found)
        assert held.exists() and Path(str(foreign)).exists() and not dead.exists()

    wanted = _current(world, ref)
    shutil.rmtree(wanted)
    going_on = building_folder(UPath(wanted))
    for folder in (dead, going_on):
        folder.mkdir()
        (folder / "part").write_bytes(b"x" * 5000)
    left = {item.path for item in find(world).unneeded} - {item.path for item in current}
    assert not left, "while something is not fresh, it is not known which of them a build needs"


@pytest.mark.parametrize("dropped", [False, True])
def test_what_a_killed_removal_left_is_taken_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    """Also where the recipe has dropped what it was of."""
    if dropped:
        del world.texts["b"]
        world.make()
    found = [item for item in find(world).unneeded if item.name == "upper/text[b]"]

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove(dataclasses.replace(find(world), unneeded=tuple(found)))
    left = building_folder(UPath(found[0].path))
    assert left.is_dir() and not found[0].path.exists()
    assert left in {item.path for item in find(world).unneeded}
    remove(find(world))
    assert not left.exists() and not find(world).unknown


def _current(world: World, ref: Ref) -> Path:
    from sr_assets.lineage.records import current_output

    output = current_output(world.instance, world.graph(), ref)
    assert output is not None
    return Path(str(output.path))


def test_it_refuses_while_a_run_is_in_progress(world: World) -> None:
    world.instance.create_run_for_job(
        dg.GraphDefinition("other").to_job(), status=dg.DagsterRunStatus.STARTED
    )
    with pytest.raises(StageError, match="is in progress"):
        find(world)


# ---------------------------------------------------------------- the command


def build_small(folder: Path, monkeypatch: pytest.MonkeyPatch, root: str | None = None) -> None:
    """Builds two pictures by `r.yaml` in `folder`, which is then the current one."""
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    (folder / "images").mkdir()
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{seed}.png")
    (folder / "r.yaml").write_text(
        ("" if root is None else f"root: {root}\n")
        + "name: r\ndatasets: {d: {source: {kind: folder, path: images}}}\n"
        "silver: {min_side: 16, patch_size: 16, stride: 16}\n"
    )
    made = CliRunner().invoke(main, ["build", "-r", "r.yaml"])
    assert made.exit_code == 0, made.output


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`srd gc` in a small project that is all made, with a half-built folder beside."""
    build_small(tmp_path, monkeypatch)
    left = tmp_path / "data" / "r" / "gold" / "pairs" / "d" / f".{'0' * 24}.partial"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"x" * 100_000)

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["gc", "-r", "r.yaml", *words])
        assert done.exit_code == code, done.output
        return done.output

    run.left = left  # type: ignore[attr-defined]
    return run


def test_the_command_shows_first_and_removes_only_when_told(command: Any) -> None:
    said = command("--older-than", "0", "--dry-run")
    assert "gold/pairs/d: 1 half-built folder, 1 file" in said
    assert "1 folder can go: " in said and " kB freed." in said
    assert "give --yes" in command("--older-than", "0", code=2)
    assert "Nothing to remove." in command("--yes")  # too young
    assert command.left.exists()
    report = json.loads(command("--older-than", "0", "--yes", "--json"))
    assert report["removed"] == 1 and report["bytes_freed"] >= 100_000
    assert [row["path"] for row in report["unneeded"]] == [str(command.left)]
    assert not command.left.exists()
    assert "give --dry-run or --yes" in command("--json", code=2)
