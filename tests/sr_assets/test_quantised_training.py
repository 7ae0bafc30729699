"""Recipes with `quantisation_aware`: what a checkpoint keeps, resuming, and the int8 file of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_stores import Outputs, small_outputs

from sr_assets.assets import models
from sr_assets.assets.trained import load_model
from sr_assets.lineage.stage import Stage, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.stores.checkpoint import CHECKPOINTS
from sr_models.export.int8 import export_int8
from sr_models.export.onnx import export_onnx

SCALE = 2
TRAIN = {
    "steps": 4, "batch": 2, "crop": 8, "warmup": 1, "learning_rate": 1e-3, "ema": 0.5,
    "validate_every": 2, "checkpoint_every": 1, "log_every": 1,
}  # fmt: skip
COMPACT = {"architecture": "Compact", "args": {"num_feat": 8, "num_conv": 1}}
SPAN = {"architecture": "SPAN", "args": {"feature_channels": 8}}


class KilledError(BaseException):
    """Nothing that a stage may catch."""


def recipe(network: dict[str, Any], **more: Any) -> Recipe:
    model = {"kind": "plain", "network": network, "quantisation_aware": True, **more}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "scale": SCALE,
            "compute": {"device": "cpu"},
            "datasets": {"photos": {"source": {"kind": "folder", "path": "."}}},
            "models": {"fast": {"train": TRAIN, **model}},
        }
    )


def stage(made: Recipe) -> Stage:
    return next(s for s in models.stages(made) if s.key == "model/fast/checkpoint")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return small_outputs(tmp_path_factory.mktemp("root"), SCALE, (), channels=5)


@pytest.mark.parametrize("network", [COMPACT, SPAN], ids=["Compact", "SPAN"])
def test_ranges_go_from_training_into_the_int8_file(
    network: dict[str, Any], outputs: Outputs, tmp_path: Path
) -> None:
    made = recipe(network)
    output = outputs.run(stage(made), made, f"whole-{network['architecture']}")
    model = load_model(output)  # strictly: the weights are those of a network in float
    ranges = model.description["ranges"]
    assert ranges and all(r[0] <= 0 <= r[1] and r[2] <= 0 <= r[3] for r in ranges.values())
    export_onnx(model.network, SCALE, 1, graph := tmp_path / "fp32.onnx")
    random = np.random.default_rng(1)
    lr = [random.random((3, 12, 12), np.float32) for _ in range(4)]
    hr = [patch.repeat(SCALE, 1).repeat(SCALE, 2) for patch in lr]
    path = tmp_path / "int8.onnx"
    report = export_int8(
        graph, lr, hr, path, scale=SCALE, target="cpu", max_drop=99.0, ranges=ranges
    )
    assert report.calibration == "trained"
    # All but the first, which reads three channels.
    assert report.integer_convolutions == len(ranges) == report.convolutions - 1


def test_a_killed_run_goes_on_with_the_same_ranges(outputs: Outputs) -> None:
    made, done = recipe(COMPACT), 0
    whole = outputs.run(stage(made), made, "whole")

    def kill(steps: int) -> None:
        nonlocal done
        done += steps
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        outputs.run(stage(made), made, "killed", advanced=kill)
    resumed = outputs.run(stage(made), made, "killed")
    assert resumed.read_json("model.json")["ranges"] == whole.read_json("model.json")["ranges"]
    assert resumed.read_bytes("model.safetensors") == whole.read_bytes("model.safetensors")


def test_training_starts_from_float_weights_and_from_those_of_a_step(outputs: Outputs) -> None:
    made = recipe(COMPACT)
    first = outputs.run(stage(made), made, "first")
    step = next(path for path in (first.path / CHECKPOINTS).iterdir())
    for index, file in enumerate((first.path / "model.safetensors", step)):
        again = recipe(COMPACT, train={**TRAIN, "start_from": str(file)})
        outputs.run(stage(again), again, f"again{index}")


def test_layers_kept_in_float_have_no_ranges_and_must_be_there(outputs: Outputs) -> None:
    kept = recipe(COMPACT, kept_in_float=["body.0"])
    output = outputs.run(stage(kept), kept, "kept")
    assert "body.0" not in output.read_json("model.json")["ranges"]
    wrong = recipe(COMPACT, kept_in_float=["tail"])
    with pytest.raises(StageError, match=r"models\.fast: there is no convolution tail"):
        outputs.run(stage(wrong), wrong, "wrong")
