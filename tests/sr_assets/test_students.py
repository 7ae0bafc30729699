"""What a student learns from: its teachers, their mean, experts' features, and its control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from training_stores import Outputs, small_outputs

from sr_assets.assets import models
from sr_assets.assets.students import student_trainee
from sr_assets.assets.training import Trainee
from sr_assets.lineage.stage import Ref, Stage, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import PlainModel, StudentModel
from sr_models.losses.registry import open_losses

SCALE, EXPERTS = 2, ("hat", "edsr")
TRAIN = {
    "steps": 6, "batch": 2, "crop": 8, "warmup": 1, "learning_rate": 1e-3, "ema": 0.5,
    "validate_every": 3, "checkpoint_every": 2, "log_every": 1,
}  # fmt: skip
EDSR = {"architecture": "EDSR", "args": {"num_feat": 8, "num_block": 1}}
GATE = {"kind": "gate", "width": 8, "depth": 1, "train": TRAIN}


def make_recipe(student: dict[str, Any], **others: Any) -> Recipe:
    weights = {"source": {"kind": "file", "path": "x"}, "features": True}
    given = {"kind": "student", "network": EDSR, "train": TRAIN, **student}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "scale": SCALE,
            "compute": {"device": "cpu"},
            "datasets": {"photos": {"source": {"kind": "folder", "path": "."}}},
            "experts": dict.fromkeys(EXPERTS, weights),
            "models": {"fast": given, **others},
        }
    )


def trainee(recipe: Recipe) -> Trainee:
    model = recipe.models["fast"]
    assert isinstance(model, StudentModel)
    return student_trainee(recipe, "fast", model)


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    hr = torch.rand(2, 3, 16, 16, generator=draw)
    return {
        "lr": torch.rand(2, 3, 8, 8, generator=draw),
        "hr": hr,
        "sr/hat": hr + 0.1,
        "sr/edsr": hr - 0.3,
        "features/hat": torch.rand(2, 5, 8, 8, generator=draw),
    }


def losses(
    recipe: Recipe, output: torch.Tensor, given: dict[str, torch.Tensor]
) -> dict[str, float]:
    terms = open_losses(["l1"], torch.device("cpu"))
    found = trainee(recipe).losses(terms, output, given, {"l1": 1.0})
    return {name: pytest.approx(float(term), abs=1e-6) for name, term in found.items()}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return small_outputs(tmp_path_factory.mktemp("root"), SCALE, EXPERTS, channels=5)


def checkpoint(recipe: Recipe, name: str = "fast") -> Stage:
    found = models.stages(recipe)
    return next(stage for stage in found if stage.key == f"model/{name}/checkpoint")


def test_the_default_teacher_is_the_fusion_and_its_cache_is_made() -> None:
    full = {"kind": "fusion", "width": 8, "train": TRAIN}
    recipe = make_recipe({}, gate=GATE, full=full)
    assert recipe.teachers_of("fast") == ("full",)
    assert "model/full/cache" in {stage.key for stage in models.stages(recipe)}
    assert make_recipe({}, gate=GATE).teachers_of("fast") == ("gate",)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({}, r"fast\.teachers: the recipe has no fusion: name the teachers, some of .*'edsr'"),
        ({"a": GATE, "b": GATE}, r"fast\.teachers: the recipe has 2 fusions: name the teachers"),
    ],
)
def test_a_teacher_that_cannot_be_told_has_to_be_named(others: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_recipe({}, **others)


def test_teachers_count_as_much_together_as_one_alone() -> None:
    given = batch()
    output = given["hr"]
    alone = make_recipe({"teachers": ["edsr"], "teacher_weight": 0.75})
    assert losses(alone, output, given) == {"hr/l1": 0.0, "teacher/l1": 0.75 * 0.3}
    both = make_recipe({"teachers": EXPERTS, "teacher_weight": 0.75})
    assert losses(both, output, given) == {
        "hr/l1": 0.0,
        "teacher/hat/l1": 0.375 * 0.1,
        "teacher/edsr/l1": 0.375 * 0.3,
    }
    mean = make_recipe({"teachers": EXPERTS, "teacher_weight": 0.75, "teaching": "mean"})
    assert losses(mean, output, given) == {"hr/l1": 0.0, "teacher/l1": 0.75 * 0.1}
    assert set(trainee(mean).rivals(given)) == {"bicubic", "hat", "edsr", "mean"}


def test_without_a_teachers_share_only_hr_counts() -> None:
    given = batch()
    recipe = make_recipe({"teachers": ["hat"], "teacher_weight": 0})
    assert losses(recipe, given["hr"] + 0.5, given) == {"hr/l1": 0.5}


def test_a_teacher_is_followed_only_where_it_is_closer_to_hr() -> None:
    given = batch()
    output = given["hr"] + 0.2  # hat is 0.1 away, edsr 0.3
    recipe = make_recipe({"teachers": EXPERTS, "teacher_weight": 1, "follow": "where_closer"})
    found = losses(recipe, output, given)
    assert (found["teacher/hat/l1"], found["teacher/edsr/l1"]) == (0.5 * 0.1, 0.0)


def test_features_are_those_of_the_network_that_ran() -> None:
    told = {"experts": ["hat"], "weight": 2.0}
    found = trainee(make_recipe({"teachers": ["hat"], "features": told}))
    assert set(found.caches) == {"hat"} and found.features == ("hat",)
    torch.manual_seed(0)
    network, given = found.build(), batch()
    output = found.forward(network, given)
    terms = found.losses(open_losses(["l1"], torch.device("cpu")), output, given, {"l1": 1.0})
    terms["affinity/hat"].backward()
    assert terms["affinity/hat"].item() > 0.01
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert "conv_first.weight" in reached and "conv_last.weight" not in reached


@pytest.mark.parametrize(
    ("network", "features", "message"),
    [
        (EDSR, {"module": "nowhere"}, "there is no module nowhere"),
        (EDSR, {"module": "body"}, "models.fast: body is not run as a module: name another"),
        ({"architecture": "RealCUGAN"}, {}, "name one in `features.module`"),
    ],
)
def test_a_module_for_features_has_to_be_there(
    network: dict, features: dict, message: str, outputs: Outputs
) -> None:
    told = {"experts": ["hat"], "weight": 1.0, **features}
    recipe = make_recipe({"teachers": ["hat"], "network": network, "features": told})
    with pytest.raises(StageError, match=message):
        outputs.run(checkpoint(recipe), recipe, "nowhere")


def test_features_of_another_size_are_told(outputs: Outputs) -> None:
    told = {"experts": ["hat"], "weight": 1.0, "module": "conv_last"}
    recipe = make_recipe({"teachers": ["hat"], "features": told})
    with pytest.raises(StageError, match="differ in size: name a module of LR's size"):
        outputs.run(checkpoint(recipe), recipe, "larger")


def test_features_need_crops_that_are_not_padded(outputs: Outputs) -> None:
    told = {"experts": ["hat"], "weight": 1.0}
    windows = {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 8, "img_size": 16}
    network = {"architecture": "SwinIR", "args": windows}
    recipe = make_recipe({"teachers": ["hat"], "network": network, "features": told})
    with pytest.raises(StageError, match=r"raise train\.crop from 8"):
        outputs.run(checkpoint(recipe), recipe, "padded")


def test_features_need_an_expert_that_caches_them() -> None:
    told = {"experts": ["nobody"], "weight": 1.0}
    with pytest.raises(ValidationError, match=r"features\.experts: 'nobody' is not one of"):
        make_recipe({"teachers": ["hat"], "features": told})


def test_a_student_of_everything_trains_and_resumes(outputs: Outputs, tmp_path: Path) -> None:
    student = {
        "teachers": EXPERTS,
        "follow": "where_closer",
        "features": {"experts": ["edsr", "hat"], "weight": 0.1},
        "control": True,
    }
    recipe = make_recipe(student)
    points: list[dict[str, Any]] = []
    whole = outputs.run(checkpoint(recipe), recipe, "whole", observed=points)
    assert {"train/affinity/edsr", "train/teacher/hat/l1", "train/hr/l1"} <= points[0].keys()
    assert whole.read_json("model.json")["teachers"] == list(EXPERTS)

    class KilledError(Exception):
        pass

    done = 0

    def kill(steps: int) -> None:
        nonlocal done
        done += steps
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        outputs.run(checkpoint(recipe), recipe, "killed", advanced=kill)
    resumed = outputs.run(checkpoint(recipe), recipe, "killed")
    assert resumed.read_bytes("model.safetensors") == whole.read_bytes("model.safetensors")

    control = outputs.run(checkpoint(recipe, "fast_control"), recipe, "control")
    assert control.read_json("model.json")["teachers"] == []
    assert control.data_version != whole.data_version


def test_a_quantisation_aware_student_learns_with_rounded_weights(outputs: Outputs) -> None:
    student = {"teachers": ["hat"], "network": {"architecture": "Compact", "args": {"num_conv": 1}}}
    plain, aware = (make_recipe({**student, "quantisation_aware": q}) for q in (False, True))
    made = [outputs.run(checkpoint(r), r, f"q{i}") for i, r in enumerate((plain, aware))]
    assert made[0].data_version != made[1].data_version
    branches = {"architecture": "paragonsr_nano"}
    wrong = make_recipe({**student, "network": branches, "quantisation_aware": True})
    with pytest.raises(StageError, match=r"models\.fast\.network: .* set fused_init"):
        outputs.run(checkpoint(wrong), wrong, "branches")


def test_the_control_is_the_same_training_without_a_teacher() -> None:
    recipe = make_recipe({"teachers": ["hat"], "control": True, "licence": "MIT"})
    control = recipe.models["fast_control"]
    assert isinstance(control, PlainModel) and control.licence == "MIT"
    assert recipe.control_of("fast") == "fast_control"
    inputs = set(checkpoint(recipe, "fast_control").inputs(None))
    assert inputs == {Ref("silver/patches", "photos"), Ref("gold/pairs", "photos")}
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again == recipe


def test_the_name_of_a_control_is_its_own() -> None:
    with pytest.raises(ValidationError, match=r"models\.fast_control: .* rename this one"):
        make_recipe({"teachers": ["hat"], "control": True}, fast_control=GATE)


def test_a_student_s_control_may_be_named_where_models_are() -> None:
    taught = {"kind": "student", "network": EDSR, "train": TRAIN, "teachers": ["fast_control"]}
    recipe = make_recipe({"teachers": ["hat"], "control": True}, slow=taught)
    assert Ref("model/fast_control/cache", "photos") in set(checkpoint(recipe, "slow").inputs(None))


def test_a_control_s_name_has_room() -> None:
    long = {"kind": "student", "network": EDSR, "teachers": ["hat"], "control": True}
    with pytest.raises(ValidationError, match="longer than 60 characters: shorten the student"):
        make_recipe({"teachers": ["hat"]}, **{"a" * 58: long})


def test_students_may_teach_but_not_in_a_circle() -> None:
    student = {"kind": "student", "network": EDSR, "train": TRAIN}
    chain = make_recipe({"teachers": ["a"]}, a={**student, "teachers": ["hat"]})
    assert set(checkpoint(chain).inputs(None)) >= {Ref("model/a/cache", "photos")}
    with pytest.raises(ValidationError, match="a -> b -> a teach each other in a circle"):
        make_recipe(
            {"teachers": ["hat"]},
            a={**student, "teachers": ["edsr", "b"]},
            b={**student, "teachers": ["a"]},
        )


def test_the_network_s_own_file_is_in_its_code_version() -> None:
    ours = {"architecture": "realplksr", "args": {"upsampler": "dysample"}}
    recipe = make_recipe({"teachers": ["hat"], "network": ours, "control": True})
    for name in ("fast", "fast_control"):
        modules = set(checkpoint(recipe, name).modules)
        assert {"sr_models.students.realplksr", "sr_models.layers.dysample"} <= modules
    assert not {m for m in checkpoint(make_recipe({"teachers": ["hat"]})).modules if "realpl" in m}
