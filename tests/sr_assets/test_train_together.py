"""Models trained in two processes as stages: what the recipe refuses, and what it makes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dagster_steps import in_a_step
from training_stores import Outputs, small_outputs

from sr_assets.assets import models
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.loading import RecipeError, load_recipe
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output

SCALE = 2
TRAIN = {
    "steps": 12, "batch": 4, "crop": 8, "warmup": 1, "learning_rate": 1e-3, "ema": 0.5,
    "validate_every": 3, "checkpoint_every": 4, "log_every": 2,
    "stages": [{"until": 5, "loss": {"l1": 1.0}}, {"loss": {"l1": 0.5, "ssim": 0.5}}],
}  # fmt: skip
COMPACT = {"architecture": "Compact", "args": {"num_feat": 8, "num_conv": 1}}


def make_recipe(processes: int, network: dict[str, Any] = COMPACT, **changes: Any) -> Recipe:
    student = {"kind": "student", "network": network, "teachers": "hat", "teacher_weight": 0.25}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "scale": SCALE,
            "compute": {"device": "cpu", "processes": processes},
            "datasets": {"photos": {"source": {"kind": "folder", "path": "."}}},
            "experts": {"hat": {"source": {"kind": "file", "path": "x"}}},
            "models": {"student": {**student, "train": TRAIN, **changes}},
        }
    )


def stage_of(recipe: Recipe) -> Stage:
    [stage] = models.stages(recipe)
    return stage


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return small_outputs(tmp_path_factory.mktemp("root"), SCALE, ["hat"])


def make(outputs: Outputs, recipe: Recipe, name: str) -> tuple[Output, list[str], list[Any]]:
    """The checkpoint, the log and the points of the curves."""
    stage, said, points, done = stage_of(recipe), [], [], []
    ref = Ref(stage.key)
    folder = outputs.folder(ref, name)

    @contextmanager
    def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield done.append

    together = partial(in_a_step, folder.work / "together")
    inputs = {parent: outputs.made[parent] for parent in stage.inputs(None)}
    context = StageContext(
        recipe, ref, folder, inputs, said.append, points.append, bar, {}, together
    )
    made = outputs.commit(ref, folder, stage.run(context))
    assert sum(done) == recipe.models["student"].train.steps
    return made, said, points


def test_a_student_learns_in_two_processes_what_it_learns_in_one(outputs: Outputs) -> None:
    one, said, points = make(outputs, make_recipe(1), "one")
    two, said_by_two, points_of_two = make(outputs, make_recipe(2), "two")
    for here, there in zip(
        two.read_json("history.json"), one.read_json("history.json"), strict=True
    ):
        assert here == pytest.approx(there, rel=1e-3)
    assert two.metadata == pytest.approx(one.metadata, rel=1e-3, abs=1)  # data_wait is a clock's
    assert two.metadata["psnr_y"] == pytest.approx(one.metadata["psnr_y"], rel=1e-4)
    assert sorted(map(str, two.marker["files"]))[:3] == sorted(map(str, one.marker["files"]))[:3]
    for here, there in zip(points_of_two, points, strict=True):
        assert here.keys() == there.keys()
        assert here["train/loss"] == pytest.approx(there["train/loss"], rel=1e-3)
    assert said_by_two[0] == said[0] + " in 2 processes"
    waiting = "waited for data"
    assert [line.split(waiting)[0] for line in said_by_two[1:]] == [
        line.split(waiting)[0] for line in said[1:]
    ]
    assert any("loss stage 2 of 2" in line for line in said_by_two)


def test_the_number_of_processes_makes_nothing_stale() -> None:
    assert code_version(stage_of(make_recipe(2))) == code_version(stage_of(make_recipe(1)))


def test_a_batch_that_cannot_be_shared_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: r\n"
        "datasets: {photos: {source: {kind: folder, path: .}}}\n"
        "compute: {processes: 3}\n"
        "models:\n"
        "  m:\n"
        "    kind: plain\n"
        "    network: {architecture: paragonsr}\n"
        "    train: {batch: 16}\n"
    )
    wanted = r"models\.m\.train\.batch 16 is no multiple of compute\.processes 3: each process"
    with pytest.raises(RecipeError, match=wanted):
        load_recipe(file)


def test_a_network_that_needs_whole_batches_is_refused(outputs: Outputs) -> None:
    dropping = {"architecture": "aethernet", "args": {"drop_rate": 0.1}}
    recipe = make_recipe(2, dropping)
    line = r"models\.student\.network: .* \(Dropout\) leaves values out .* compute\.processes to 1"
    with pytest.raises(StageError, match=line):
        make(outputs, recipe, "refused")


def test_processes_want_a_run_of_dagster(outputs: Outputs) -> None:
    recipe = make_recipe(2)
    with pytest.raises(StageError, match=r"compute\.processes: only a run of Dagster"):
        outputs.run(stage_of(recipe), recipe, "undriven")
