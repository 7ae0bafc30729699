"""Tiny models trained end to end as stages: files, metadata, resume, caches for students."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from training_stores import Outputs, small_outputs
from upath import UPath

from sr_assets.assets import model_cache, models
from sr_assets.assets.trained import load_model
from sr_assets.assets.training_reports import curves, validation_log
from sr_assets.assets.upscalers import upscaler_trainee
from sr_assets.assets.validation import fair_means
from sr_assets.lineage.code_version import module_digests
from sr_assets.lineage.stage import Ref, Stage, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.recompute import is_cache, samples_again
from sr_assets.stores import expert_cache
from sr_assets.stores.checkpoint import WEIGHTS
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_models.fusion.experts import expert_mean

SCALE = 2
EXPERTS = ("hat", "edsr")
TRAIN = {
    "steps": 6, "batch": 2, "crop": 8, "warmup": 1, "learning_rate": 1e-3, "ema": 0.5,
    "validate_every": 3, "checkpoint_every": 2, "log_every": 1,
}  # fmt: skip
COMPACT = {"architecture": "Compact", "args": {"num_feat": 8, "num_conv": 1}}


def make_recipe(**changes: Any) -> Recipe:
    recipe: dict[str, Any] = {
        "name": "tiny",
        "scale": SCALE,
        "compute": {"device": "cpu"},
        "datasets": {"photos": {"source": {"kind": "folder", "path": "."}}},
        "experts": {name: {"source": {"kind": "file", "path": "x"}} for name in EXPERTS},
        "models": {
            "plain": {"kind": "plain", "network": COMPACT, "train": TRAIN},
            "fusion": {"kind": "gate", "width": 8, "depth": 1, "train": TRAIN},
            "student": {
                "kind": "student",
                "network": COMPACT,
                "teachers": "fusion",
                "teacher_weight": 0.25,
                "train": TRAIN,
            },
        },
    }
    return Recipe.model_validate({**recipe, **changes})


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return small_outputs(tmp_path_factory.mktemp("root"), SCALE, EXPERTS)


def stage_of(recipe: Recipe, key: str) -> Stage:
    return next(stage for stage in models.stages(recipe) if stage.key == key)


def test_plain_gate_cache_and_student_end_to_end(outputs: Outputs) -> None:
    recipe = make_recipe()
    points: list[dict[str, Any]] = []
    plain = outputs.run(stage_of(recipe, "model/plain/checkpoint"), recipe, observed=points)
    assert plain.metadata["steps"] == 6 and plain.metadata["step"] in (3, 6)
    assert plain.metadata["psnr_y_bicubic"] > 20
    assert points[-1]["step"] == 6 and points[-1]["train/psnr_y"] > 0
    assert {"train/loss", "train/hr/l1", "train/learning_rate"} <= points[0].keys()
    assert any(name.startswith("tensorboard/") for name in plain.marker["files"])

    gate = outputs.run(stage_of(recipe, "model/fusion/checkpoint"), recipe)
    described = gate.read_json("model.json")
    assert described["experts"] == list(EXPERTS) and described["kind"] == "gate"
    for rival in EXPERTS:
        assert gate.metadata["psnr_y_mean"] > gate.metadata[f"psnr_y_{rival}"] + 1
    assert gate.metadata["psnr_y"] > gate.metadata["psnr_y_hat"]

    outputs.run(stage_of(recipe, "model/fusion/cache"), recipe, partition="photos")
    student = outputs.run(stage_of(recipe, "model/student/checkpoint"), recipe)
    assert student.read_json("model.json")["teachers"] == ["fusion"]
    assert student.metadata["psnr_y_fusion"] == pytest.approx(gate.metadata["psnr_y"], abs=0.01)
    assert student.data_version != plain.data_version  # the teacher took part


def test_a_loaded_model_is_what_was_validated(outputs: Outputs) -> None:
    recipe = make_recipe()
    loaded = load_model(outputs.run(stage_of(recipe, "model/fusion/checkpoint"), recipe, "loaded"))
    assert (loaded.kind, loaded.scale, loaded.experts) == ("gate", SCALE, EXPERTS)
    lr, sr = torch.rand(1, 3, 5, 7), {name: torch.rand(1, 3, 10, 14) for name in EXPERTS}
    fused = loaded.upscale(lr, {"other": sr["hat"], **sr})
    assert fused.shape == (1, 3, 10, 14) and not fused.requires_grad
    assert not torch.equal(fused, expert_mean(sr, EXPERTS))
    with pytest.raises(ValueError, match=r"missing \['edsr'\]"):
        loaded.upscale(lr, {"hat": sr["hat"]})


def test_a_checkpoint_that_does_not_fit_is_an_error(outputs: Outputs, tmp_path: Path) -> None:
    recipe = make_recipe()
    whole = outputs.run(stage_of(recipe, "model/plain/checkpoint"), recipe, "fits")
    folder = OutputFolder(UPath(tmp_path) / "other")
    described = {**whole.read_json("model.json"), "args": {"num_feat": 8, "num_conv": 2}}
    folder.write_json("model.json", described)
    folder.write_bytes("model.safetensors", whole.read_bytes("model.safetensors"))
    with pytest.raises(StageError, match=r"does not fit Compact .*body"):
        load_model(folder.commit({"metadata": {}}))


class KilledError(Exception):
    """Stands in for a kill: nothing after it runs."""


def killed_after(steps: int, seen: list[int]) -> Callable[[int], None]:
    def advance(n: int) -> None:
        seen.append(n)
        if sum(seen) >= steps:
            raise KilledError

    return advance


@pytest.mark.parametrize("name", ["plain", "fusion"])
def test_a_killed_training_ends_with_the_same_bytes(outputs: Outputs, name: str) -> None:
    recipe = make_recipe()
    stage = stage_of(recipe, f"model/{name}/checkpoint")
    undisturbed = outputs.run(stage, recipe, "undisturbed")
    with pytest.raises(KilledError):
        outputs.run(stage, recipe, "killed", advanced=killed_after(5, []))
    seen: list[int] = []
    resumed = outputs.run(stage, recipe, "killed", advanced=seen.append)
    assert seen[0] == 4 and sum(seen) == 6  # it went on after the checkpoint of step 4
    assert resumed.data_version == undisturbed.data_version
    assert resumed.read_bytes("history.json") == undisturbed.read_bytes("history.json")


def test_online_training_killed_or_not_ends_with_the_same_bytes(outputs: Outputs) -> None:
    plain = {"kind": "plain", "network": COMPACT, "train": TRAIN}
    models_of_two = {"stored": plain, "online": {**plain, "online": True}}
    recipe = make_recipe(models=models_of_two, gold={"degradation": "realworld"})
    online, stored = (stage_of(recipe, f"model/{n}/checkpoint") for n in ("online", "stored"))
    undisturbed = outputs.run(online, recipe, "undisturbed")
    with pytest.raises(KilledError):
        outputs.run(online, recipe, "killed", advanced=killed_after(5, []))
    seen: list[int] = []
    resumed = outputs.run(online, recipe, "killed", advanced=seen.append)
    assert sum(seen) == 6 and seen[0] == 4
    assert resumed.data_version == undisturbed.data_version
    assert outputs.run(stored, recipe).data_version != undisturbed.data_version


def test_online_training_is_made_from_the_settings_of_the_degradation() -> None:
    plain = {"kind": "plain", "network": COMPACT, "train": TRAIN}
    models_of_two = {"stored": plain, "online": {**plain, "online": True}}

    def stages(**gold: Any) -> tuple[Stage, Stage]:
        recipe = make_recipe(models=models_of_two, gold={"degradation": "realworld", **gold})
        return stage_of(recipe, "model/online/checkpoint"), stage_of(
            recipe, "model/stored/checkpoint"
        )

    (online, stored), (changed, same) = stages(), stages(degradation="light")
    assert "sr_assets.assets.online" in online.modules
    assert "sr_models.degradations.second_order" in module_digests(online.modules)
    assert "sr_assets.assets.online" not in stored.modules
    assert dict(stored.settings) == dict(same.settings)
    moved = {
        k
        for k in online.settings | changed.settings
        if online.settings.get(k) != changed.settings.get(k)
    }
    assert moved and all(key.startswith("gold.") for key in moved)


def test_a_killed_cache_keeps_its_shards(outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_cache, "_SHARD_SAMPLES", 5)
    recipe = make_recipe()
    outputs.run(stage_of(recipe, "model/fusion/checkpoint"), recipe)
    stage = stage_of(recipe, "model/fusion/cache")
    undisturbed = outputs.run(stage, recipe, "undisturbed", "photos")
    with pytest.raises(KilledError):
        outputs.run(stage, recipe, "killed", "photos", advanced=killed_after(5, []))
    upscaled: list[int] = []
    original = model_cache.pictures_of

    def counted(*args: Any) -> Iterator[torch.Tensor]:
        upscaled.append(len(args[-1]))
        return original(*args)

    monkeypatch.setattr(model_cache, "pictures_of", counted)
    resumed = outputs.run(stage, recipe, "killed", "photos")
    assert upscaled == [5, 2]  # of 12 patches, the first five were there
    assert resumed.data_version == undisturbed.data_version


def test_a_cache_holds_what_the_model_makes(outputs: Outputs) -> None:
    recipe = make_recipe()
    checkpoint = outputs.run(stage_of(recipe, "model/fusion/checkpoint"), recipe)
    cache = CacheReader(
        outputs.run(stage_of(recipe, "model/fusion/cache"), recipe, partition="photos")
    )
    pairs = PairReader(outputs.made[Ref("gold/pairs", "photos")])
    experts = {n: CacheReader(outputs.made[Ref(f"expert/{n}/cache", "photos")]) for n in EXPERTS}
    lr = torch.from_numpy(pairs.lr(7, 0).transpose(2, 0, 1).astype(np.float32) / 255)[None]
    sr = {n: torch.from_numpy(c.sr(7, 0))[None] for n, c in experts.items()}
    made = load_model(checkpoint).upscale(lr, sr)[0].numpy()
    assert np.abs(cache.sr(7, 0) - made).max() <= expert_cache.SR_STEP / 2 + 1e-6


def test_a_cache_is_computed_again_and_compared(outputs: Outputs) -> None:
    recipe = make_recipe()
    stage, ref = stage_of(recipe, "model/fusion/cache"), Ref("model/fusion/cache", "photos")
    outputs.run(stage_of(recipe, "model/fusion/checkpoint"), recipe)
    cache = outputs.run(stage, recipe, partition="photos")
    inputs = {parent: outputs.made[parent] for parent in stage.inputs("photos")}
    again = samples_again(recipe, ref, cache, inputs)
    assert is_cache(ref) and list(again(range(12))) == []

    weights = inputs[Ref("model/fusion/checkpoint")].path / WEIGHTS
    sound = weights.read_bytes()
    weights.write_bytes(save({name: tensor + 0.25 for name, tensor in load(sound).items()}))
    (told,) = again([5])
    assert re.fullmatch(r"sr, sample 5, variant 0: the model now gives another picture .*", told)
    weights.write_bytes(sound[:40])
    (told,) = again([5])
    assert told.startswith("its model cannot be run again: ")
    weights.write_bytes(sound)


def test_only_what_decides_a_result_is_in_the_settings() -> None:
    recipe = make_recipe()
    before = stage_of(recipe, "model/student/checkpoint").settings
    changed = json.loads(recipe.model_dump_json())
    student = changed["models"]["student"]
    student.update(licence="CC0-1.0", control=True)
    student["train"].update(log_every=7, checkpoint_every=9, keep_last=3)
    changed["compute"]["workers"] = 5
    same = stage_of(Recipe.model_validate(changed), "model/student/checkpoint").settings
    assert dict(same) == dict(before)
    student["train"]["steps"] = 7
    other = stage_of(Recipe.model_validate(changed), "model/student/checkpoint").settings
    assert {k for k in other if other[k] != before.get(k)} == {"models.student.train.steps"}
    json.dumps(dict(before))


def test_inputs_and_caches_follow_the_recipe() -> None:
    stages = {stage.key: stage for stage in models.stages(make_recipe())}
    assert list(stages) == [
        "model/plain/checkpoint",
        "model/fusion/checkpoint",
        "model/fusion/cache",
        "model/student/checkpoint",
    ]
    gold = {Ref("silver/patches", "photos"), Ref("gold/pairs", "photos")}
    caches = {Ref(f"expert/{name}/cache", "photos") for name in EXPERTS}
    assert set(stages["model/plain/checkpoint"].inputs(None)) == gold
    assert set(stages["model/fusion/checkpoint"].inputs(None)) == gold | caches
    assert set(stages["model/student/checkpoint"].inputs(None)) == {
        *gold,
        Ref("model/fusion/cache", "photos"),
    }
    assert set(stages["model/fusion/cache"].inputs("photos")) == {
        Ref("model/fusion/checkpoint"),
        Ref("gold/pairs", "photos"),
        *caches,
    }


def test_a_student_of_an_expert_reads_the_expert() -> None:
    student = {"kind": "student", "network": COMPACT, "teachers": ["hat"], "train": TRAIN}
    (stage,) = models.stages(make_recipe(models={"fast": student}))
    assert Ref("expert/hat/cache", "photos") in set(stage.inputs(None))


def test_a_change_of_the_gate_leaves_plain_networks_alone() -> None:
    stages = {stage.key: stage for stage in models.stages(make_recipe())}
    used = {key: set(module_digests(stage.modules)) for key, stage in stages.items()}
    gate, networks, loop = "sr_models.fusion.gate", "sr_models.networks", "sr_models.training.loop"
    assert gate not in used["model/plain/checkpoint"] | used["model/student/checkpoint"]
    assert {gate, loop} <= used["model/fusion/checkpoint"]
    assert {networks, loop} <= used["model/plain/checkpoint"]


def test_mistakes_are_told_in_one_line(outputs: Outputs) -> None:
    wrong = {"kind": "plain", "network": {"architecture": "Compat"}, "train": TRAIN}
    with pytest.raises(ValidationError, match=r"models\.plain\.network: architecture 'Compat' is"):
        make_recipe(models={"plain": wrong})
    network = {**COMPACT, "args": {"num_feats": 8}}
    recipe = make_recipe(models={"plain": {**wrong, "network": network}})
    with pytest.raises(StageError, match=r"models\.plain\.network: .*did you mean num_feat\?"):
        outputs.run(models.stages(recipe)[0], recipe, "wrong")
    missing = {**TRAIN, "start_from": "/nowhere/x.pth"}
    wrong = {"kind": "plain", "network": COMPACT, "train": missing}
    recipe = make_recipe(models={"plain": wrong})
    with pytest.raises(StageError, match=r"models\.plain\.train\.start_from: .*x\.pth is missing"):
        outputs.run(models.stages(recipe)[0], recipe, "startless")


def with_train(**train: Any) -> Recipe:
    plain = {"kind": "plain", "network": COMPACT, "train": {**TRAIN, **train}}
    return make_recipe(models={"plain": plain})


def test_times_in_epochs_and_stages_of_losses(outputs: Outputs) -> None:
    """Eight training samples, two at a time: an epoch is four steps."""
    epochs: dict[str, Any] = {key: v for key, v in TRAIN.items() if key != "steps"}
    epochs |= {"epochs": 3, "warmup": 1, "validate_every": 1, "milestones": [1, 2], "keep_best": 1}
    epochs |= {"checkpoint_every": 100, "pth": True}
    epochs["stages"] = [{"until": 2, "loss": {}}, {"loss": {"l1": 0.5, "l2": 0.5, "ssim": 0}}]
    recipe = make_recipe(models={"plain": {"kind": "plain", "network": COMPACT, "train": epochs}})
    points: list[dict[str, Any]] = []
    said: list[str] = []
    (stage,) = models.stages(recipe)
    made = outputs.run(stage, recipe, "epochs", observed=points, said=said)
    assert made.metadata["steps"] == 12
    assert [h["step"] for h in made.read_json("history.json")] == [4, 8, 12]
    steps = {4, 8, made.metadata["step"]}
    kept = {f"checkpoints/step-{s:08d}.{kind}" for s in steps for kind in ("pth", "safetensors")}
    files = made.marker["files"]
    assert {name for name in files if name.startswith("checkpoints/")} == kept
    assert not any(files[name]["content"] for name in kept)
    assert [text for text in said if "loss stage" in text] == [
        "plain: loss stage 1 of 2 (from step 0): l1 1",
        "plain: loss stage 2 of 2 (from step 8): l1 0.5, l2 0.5",
    ]
    drawn = [point["step"] for point in points if "train/hr/l2" in point]
    assert min(drawn) == 9 and "train/psnr_y" in points[-1] and "train/loss" in points[-1]


def test_weights_to_start_from_are_loaded_and_tell_their_change(
    outputs: Outputs, tmp_path: Path
) -> None:
    first = outputs.run(models.stages(with_train())[0], with_train(), "first")
    file = tmp_path / "first.safetensors"
    file.write_bytes(first.read_bytes("model.safetensors"))
    recipe = with_train(
        start_from=str(file), steps=1, learning_rate=1e-12, min_learning_rate=0, seed=9
    )
    (stage,) = models.stages(recipe)
    tuned = load_model(outputs.run(stage, recipe, "tuned")).network.state_dict()
    for name, tensor in load_model(first).network.state_dict().items():
        torch.testing.assert_close(tuned[name], tensor, rtol=1e-4, atol=1e-7)
    before = stage.outside(None)
    file.touch()
    assert stage.outside(None) == before, "its content counts, not its time"
    file.write_bytes(file.read_bytes() + b" ")
    assert stage.outside(None) != before
    file.unlink()
    assert stage.outside(None) == {str(file): "missing"}
    other = with_train(start_from=str(tmp_path / "other.pth"))
    torch.save({"params": {"body.0.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(
        StageError, match=r"models\.plain\.train\.start_from: .*missing body\.0\.bias"
    ):
        outputs.run(models.stages(other)[0], other, "misfit")


def test_what_a_run_lacks_is_told_before_it_starts(
    outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def never(n: int) -> None:
        raise AssertionError("it trained")

    for train, field in (
        ({"loss": {"l1": 1, "vgg": 0.1}}, "loss"),
        ({"stages": [{"until": 3, "loss": {}}, {"loss": {"vgg": 1}}]}, "stages"),
    ):
        recipe = with_train(**train)
        with pytest.raises(StageError, match=rf"models\.plain\.train\.{field}: .*vgg"):
            outputs.run(models.stages(recipe)[0], recipe, field, advanced=never)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = with_train(tracker="wandb")
    with pytest.raises(StageError, match=r"models\.plain\.train\.tracker: .*pip install wandb"):
        outputs.run(models.stages(recipe)[0], recipe, "untracked", advanced=never)


def test_rows_are_means_over_the_same_images() -> None:
    exact = {"a": 30.0, "b": float("inf")}
    assert fair_means([exact, {"a": 20.0, "b": 22.0}, {"a": 40.0, "b": 42.0}]) == {
        "a": 30.0,
        "b": 32.0,
    }
    assert fair_means([exact]) == exact


def test_an_observation_repeats_what_it_says_nothing_of() -> None:
    observed: list[dict[str, float]] = []
    report = curves(lambda point: observed.append(dict(point)), 2)
    report(1, {"loss/total": 0.5, "loss/hr/l1": 0.5})
    report(1, {"psnr_y": 30.0})
    report(2, {"loss/total": 0.25, "loss/hr/l1": 0.2, "loss/hr/l2": 0.05})
    assert observed == [
        {"step": 1, "train/loss": 0.5, "train/hr/l1": 0.5},
        {"step": 1, "train/loss": 0.5, "train/hr/l1": 0.5, "train/psnr_y": 30.0},
        {
            "step": 2,
            "train/loss": 0.25,
            "train/hr/l1": 0.2,
            "train/hr/l2": 0.05,
            "train/psnr_y": 30.0,
        },
    ]


def test_each_validation_says_how_the_steps_were_fed() -> None:
    said: list[str] = []
    report = validation_log(said.append)
    for step, numbers in [
        (5, {"data_wait": 0.004}),
        (10, {"data_wait": 0.002}),
        (10, {"psnr_y": 30.0}),
    ]:
        report(step, numbers)
    report(15, {"data_wait": 0.5})
    report(15, {"psnr_y": 31.0})
    assert said == [
        "step 10: validation PSNR-Y 30.00 dB, waited for data 0.2 %",
        "step 15: validation PSNR-Y 31.00 dB, waited for data 50.0 %: one reading thread does not "
        "keep up with these steps",
    ]


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_a_network_with_windows_runs_at_any_size(outputs: Outputs) -> None:
    args = {"embed_dim": 8, "depths": [6], "num_heads": [2], "window_size": 8, "gc": 4,
            "img_size": 16}  # fmt: skip
    plain = {"kind": "plain", "network": {"architecture": "DRCT", "args": args}}
    train = {**TRAIN, "steps": 1}
    wrong = make_recipe(models={"plain": {**plain, "train": train}})
    with pytest.raises(StageError, match=r"DRCT .* multiples of 16: set train\.crop to one, not 8"):
        outputs.run(models.stages(wrong)[0], wrong, "crop")
    recipe = make_recipe(models={"plain": {**plain, "train": {**train, "crop": 16}}})
    loaded = load_model(outputs.run(models.stages(recipe)[0], recipe, "windows"))
    assert loaded.upscale(torch.rand(1, 3, 17, 5)).shape == (1, 3, 34, 10)


def test_the_graph_says_what_validation_measures() -> None:
    described = stage_of(make_recipe(), "model/plain/checkpoint").description
    assert "put together from patches" in described


def test_validation_pads_patches_of_a_network_with_windows() -> None:
    args = {"embed_dim": 8, "depths": [6], "num_heads": [2], "window_size": 8, "gc": 4,
            "img_size": 16}  # fmt: skip
    network = {"architecture": "DRCT", "args": args}
    model = {"kind": "plain", "network": network, "train": {**TRAIN, "crop": 16}}
    recipe = make_recipe(models={"plain": model})
    trainee = upscaler_trainee(recipe, recipe.models["plain"])  # type: ignore[arg-type]
    built = trainee.build().eval()
    assert trainee.forward(built, {"lr": torch.rand(1, 3, 12, 20)}).shape == (1, 3, 24, 40)
