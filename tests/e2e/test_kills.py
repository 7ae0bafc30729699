"""SIGKILL in the middle of the work: nothing half done is seen, and the next build goes on."""

import json
import shutil
from pathlib import Path

import dagster as dg
from tiny_project import Project, output_folders
from upath import UPath

from sr_assets.storage import open_output

POOL = "gpu"


def test_a_killed_expert_cache_keeps_its_finished_shards(project: Project) -> None:
    name = "expert/edsr/cache[photos]"
    undisturbed = project.status()[name]
    folder = Path(undisturbed["path"]).parent
    shutil.rmtree(folder)

    def first_shard() -> list[Path]:
        return [file for name, file in _whole_files(folder).items() if "/c/0/" in name]

    project.kill_when(lambda: bool(first_shard()), "build", name)
    kept = {file: file.stat() for file in first_shard()}
    _assert_only_whole_outputs(project, expect_hidden=folder)
    _assert_running(project)

    project.srd("build")
    after = project.status()
    assert {row["state"] for row in after.values()} == {"fresh"}
    assert after[name] == undisturbed
    for file, was in kept.items():
        now = Path(after[name]["path"], file.relative_to(_partial(file))).stat()
        assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns), file
    _assert_buried(project)
    _assert_only_whole_outputs(project, expect_hidden=None)


def test_a_killed_training_goes_on_from_its_checkpoint(project: Project) -> None:
    name = "model/alone/checkpoint"
    undisturbed = project.status()[name]
    folder = Path(undisturbed["path"]).parent
    shutil.rmtree(folder)

    def checkpoints() -> list[int]:
        found = folder.glob(".*.partial/.work/checkpoints/step-*.pt")
        return sorted(int(f.stem.removeprefix("step-")) for f in found)

    project.kill_when(lambda: any(step >= 20 for step in checkpoints()), "build", name)
    newest = checkpoints()[-1]
    assert 20 <= newest < project.recipe()["models"]["alone"]["train"]["steps"]
    _assert_only_whole_outputs(project, expect_hidden=folder)
    _assert_running(project)

    project.srd("build")
    after = project.status()
    assert {row["state"] for row in after.values()} == {"fresh"}
    assert after[name] == undisturbed
    killed, resumed = sorted(Path(after[name]["path"], "tensorboard").iterdir())
    assert _first_step(killed) == 10  # log_every
    assert newest < _first_step(resumed) <= newest + 10
    _assert_buried(project)
    _assert_only_whole_outputs(project, expect_hidden=None)


def _whole_files(folder: Path) -> dict[str, Path]:
    """Files of the one output below `folder` that is being built, as far as they are whole."""
    found: dict[str, Path] = {}
    for journal in folder.glob(".*.partial/.journal.jsonl"):
        for text in journal.read_text().splitlines(keepends=True):
            if text.endswith("\n"):
                line = json.loads(text)
                found[line["name"]] = journal.parent / line["name"]
    return found


def _partial(file: Path) -> Path:
    """The hidden folder of an output that is being built, from a file in it."""
    return next(folder for folder in file.parents if folder.name.endswith(".partial"))


def _first_step(events: Path) -> int:
    """Step of the first point in one file of curves."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = [e.step for e in EventFileLoader(str(events)).Load() if e.HasField("summary")]
    return min(steps)


def _assert_only_whole_outputs(project: Project, expect_hidden: Path | None) -> None:
    folders = output_folders(project.root)
    assert folders
    for folder in folders:
        assert open_output(UPath(folder)) is not None, f"{folder} is not whole"
    hidden = list(project.root.rglob("*.partial"))
    assert [h.parent for h in hidden] == ([expect_hidden] if expect_hidden else [])


def _assert_running(project: Project) -> None:
    """What the killed process left in Dagster: a run without an end that holds the pool's slot."""
    with project.dagster() as instance:
        unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        assert instance.get_runs_count(unfinished) == 1
        assert _slots(instance) == 1


def _assert_buried(project: Project) -> None:
    with project.dagster() as instance:
        by_status = [run.status for run in instance.get_runs()]
        assert by_status.count(dg.DagsterRunStatus.FAILURE) == 1
        assert set(by_status) == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}
        assert _slots(instance) == 0


def _slots(instance: dg.DagsterInstance) -> int:
    return instance.event_log_storage.get_concurrency_info(POOL).active_slot_count
