"""A training in two processes: the same outcome, and nothing of it outlives its step."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from tiny_project import Project, output_folders, tiny_recipe

from sr_assets.lineage.group_process import MODULE

NAME = "model/alone/checkpoint"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


@pytest.fixture(scope="module")
def paired(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose pairs are made, to be trained on by two processes; no test changes it."""
    project = Project(tmp_path_factory.mktemp("paired"))
    recipe = tiny_recipe(sources)
    model = recipe["models"]["alone"]
    model["train"] |= {"batch": 8, "accumulate": 2, "steps": 60, "learning_rate": 1e-3}
    recipe |= {
        "datasets": {"photos": recipe["datasets"]["photos"]},
        "benchmarks": {},
        "experts": {},
        "models": {"alone": model},
        "compute": {"device": "cpu", "processes": 2},
    }
    del recipe["release"]
    project.write_recipe(recipe)
    project.srd("build", "gold/pairs")
    return project


@pytest.fixture(scope="module")
def alone(paired: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same, trained by one process; no test changes it."""
    project = paired.copy_to(tmp_path_factory.mktemp("alone") / "project")
    use_processes(project, 1)
    project.srd("build", NAME)
    return project


@pytest.fixture
def project(paired: Project, tmp_path: Path) -> Project:
    """A copy of the paired project that a test may change."""
    return paired.copy_to(tmp_path / "project")


def use_processes(project: Project, count: int) -> None:
    recipe = project.recipe()
    recipe["compute"]["processes"] = count
    project.write_recipe(recipe)


def output(project: Project) -> Path:
    [folder] = output_folders(project.root / NAME)
    return folder


def processes_of(project: Project) -> list[str]:
    """The command lines of all processes that work for a project."""
    home, found = f"DAGSTER_HOME={project.folder / 'home'}".encode(), []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and home in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended, or is somebody else's
    return found


def checkpoints(project: Project) -> list[int]:
    found = project.root.glob(f"{NAME}/.*.partial/.work/checkpoints/step-*.pt")
    return sorted(int(file.stem.removeprefix("step-")) for file in found)


def assert_gone(project: Project) -> None:
    """All processes end, of which some had to be there."""
    give_up = time.monotonic() + 300
    while left := processes_of(project):
        assert time.monotonic() < give_up, left
        time.sleep(0.05)


def assert_near(project: Project, other: Project) -> None:
    """The same curve of validations, but for rounding."""
    one, two = (json.loads((output(p) / "history.json").read_text()) for p in (project, other))
    assert len(one) == len(two)
    for here, there in zip(one, two, strict=True):
        assert here == pytest.approx(there, rel=1e-3)


def observed(project: Project) -> list[dict[str, float]]:
    """The points of the training's curves in Dagster, oldest first."""
    with project.dagster() as instance:
        records = instance.fetch_observations(dg.AssetKey(NAME.split("/")), limit=500).records
    points = [record.event_log_entry.asset_observation.metadata for record in reversed(records)]
    return [{name: value.value for name, value in point.items()} for point in points]


def started(project: Project, *command: str) -> subprocess.Popen[str]:
    """Starts a build of the checkpoint, and returns in the middle of its training."""
    log = project.folder / "stopped.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=project.folder, stdout=file, stderr=file, text=True,
            env=project.environment() | {"SRD_RECIPE": str(project.recipe_file)},
        )  # fmt: skip
    while not any(step >= 20 for step in checkpoints(project)):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    return process


def bury(project: Project) -> None:
    """Ends a run whose process is gone, as Dagster's daemon does."""
    with project.dagster() as instance:
        [run] = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        instance.report_run_failed(run)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def test_a_killed_run_leaves_no_process_and_the_next_goes_on_to_the_same_end(
    project: Project, alone: Project
) -> None:
    # As in the UI, the step is a process of its own.
    dagster = (sys.executable, "-m", "dagster", "asset", "materialize")
    run = started(project, *dagster, "-m", "sr_assets.definitions", "--select", f'key:"{NAME}"')
    seen = processes_of(project)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert len([command for command in seen if MODULE in command]) == 3, seen
    assert_gone(project)
    bury(project)
    newest = checkpoints(project)[-1]
    before = len(observed(project))

    built = project.srd("build", NAME)
    assert "on cpu in 2 processes" in built.stderr
    assert "alone: step 50: validation PSNR-Y" in built.stderr
    assert_gone(project)
    assert_near(project, alone)
    expected = {point["step"]: point["train/loss"] for point in observed(alone)}
    points = observed(project)[before:]
    assert points[0]["step"] > newest and points[-1]["step"] == max(expected)
    for point in points:
        assert point["train/loss"] == pytest.approx(expected[point["step"]], rel=1e-3)
    assert len(list((output(project) / "tensorboard").iterdir())) == 2
    # How many they were is no part of what the model is.
    assert output(project).name == output(alone).name


def test_a_killed_step_leaves_no_process(project: Project) -> None:
    build = started(project, *project.command, "build", NAME, "--recipe", "tiny.yaml")
    build.kill()
    assert build.wait() == -signal.SIGKILL
    assert_gone(project)


def test_a_cancelled_step_leaves_no_process(project: Project) -> None:
    build = started(project, *project.command, "build", NAME, "--recipe", "tiny.yaml")
    build.send_signal(signal.SIGINT)
    assert build.wait(timeout=300) == 130
    assert_gone(project)
    said = (project.folder / "stopped.log").read_text()
    assert said.endswith("srd: stopped; `srd build` goes on from here\n")
    assert "death signal" not in said  # torchrun's own words
