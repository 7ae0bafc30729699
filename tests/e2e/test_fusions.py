"""Full fusions from recipe to release: cached and live, taught from, cut down, fine-tuned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fusion_project import EXPERTS, TRAIN, fusion, fusion_recipe
from PIL import Image
from spandrel import ModelLoader
from tiny_project import SCALE, Project

import sr_models
from sr_assets.upscaling.files import upscale_files
from sr_models.degradations.bicubic import downscale_uint8

PHASES = (
    *("frequency", "cross_band", "collaboration", "hierarchy"),
    *("selection", "refinement", "edges"),
)


@pytest.fixture
def copied(fused: Project, tmp_path: Path) -> Project:
    """A copy of it that a test may change."""
    return fused.copy_to(tmp_path / "fused")


def folder_of(project: Project, asset: str, partition: str | None = None) -> Path:
    """The only output of an asset."""
    (folder,) = (project.root / asset / (partition or "")).glob("[0-9a-f]*")
    return folder


def told(project: Project, model: str) -> dict[str, Any]:
    return json.loads((folder_of(project, f"model/{model}/checkpoint") / "model.json").read_text())


def inputs(project: Project, model: str) -> set[str]:
    marker = folder_of(project, f"model/{model}/checkpoint") / "srd.json"
    return set(json.loads(marker.read_text())["inputs"])


def test_a_fusion_is_released_with_what_it_takes_of_each_expert(fused: Project) -> None:
    description = told(fused, "full")
    assert description["experts"] == list(EXPERTS)
    assert description["args"]["features"] == {"edsr": 12, "compact": 8}
    assert description["taps"] == {"edsr": "conv_after_body", "compact": "body.1"}
    assert description["validation_psnr_y"] > description["validation_rivals"]["mean"]
    card = (fused.root / "registry" / "full" / "1.0.0" / "README.md").read_text()
    assert "12 channels of edsr (conv_after_body), 8 channels of compact (body.1)" in card
    assert "build_fusion(\"FusionNetwork\", ['edsr', 'compact', 'bare'], 2, args)" in card


def test_the_build_tells_parameters_by_phase_and_the_stages(fused: Project) -> None:
    log = (fused.folder / "built.log").read_text().splitlines()
    (line,) = (text for text in log if text.startswith("full: parameters of phases "))
    counts = [int(part.split()[-1].replace(",", "")) for part in line.split(", ")]
    assert [part.split()[-2] for part in line.split(", ")] == [
        *("frequency", "guidance", "collaboration", "hierarchy", "selection", "refinement"),
        "edges",
    ]
    assert sum(counts) == told(fused, "full")["parameters"]
    stages = [text for text in log if text.startswith("staged: loss stage")]
    assert [text.split(": ")[-1] for text in stages] == [
        *("l1 1", "l1 0.75, fft_log 0.25", "l1 0.6, ssim 0.1, swt 0.3"),
    ]


@pytest.mark.parametrize("model", ["full", "subset"])
def test_upscale_makes_the_picture_of_the_evaluation(
    fused: Project, sources: Path, tmp_path: Path, model: str
) -> None:
    """Its experts and their features are run anew, each under its name."""
    evaluation = folder_of(fused, f"model/{model}/evaluation", "bench")
    results = json.loads((evaluation / "results.json").read_text())
    image = results["images"][0]
    lr = downscale_uint8(np.asarray(Image.open(sources / "bench" / image["name"])), SCALE)
    Image.fromarray(lr).save(tmp_path / "lr.png")
    weights = folder_of(fused, f"model/{model}/export") / f"{model}_x{SCALE}.safetensors"
    upscale_files(
        str(weights), tmp_path / "lr.png", tmp_path / "sr.png", root=fused.root, device="cpu"
    )
    found = np.asarray(Image.open(tmp_path / "sr.png")).astype(int)
    expected = np.asarray(Image.open(evaluation / image["picture"])).astype(int)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1  # kept features are int8
    assert (found == expected).mean() > 0.95


def test_a_subset_in_another_order_is_fused_by_name(fused: Project) -> None:
    description = told(fused, "subset")
    assert description["experts"] == ["bare", "edsr"]
    assert description["args"]["features"] == {"edsr": 12}
    assert not {i for i in inputs(fused, "subset") if "compact" in i}


def test_a_student_learns_from_the_fusion(fused: Project) -> None:
    assert told(fused, "student")["teachers"] == ["full"]
    assert "model/full/cache[photos]" in inputs(fused, "student")
    assert "full" in told(fused, "student")["validation_rivals"]


def test_a_student_of_several_teachers_and_features_has_its_control(fused: Project) -> None:
    description = told(fused, "taught")
    assert description["teachers"] == ["full", "edsr"]
    read = inputs(fused, "taught")
    assert {"model/full/cache[photos]", "expert/edsr/cache[photos]"} <= read
    assert {"full", "edsr", "mean"} <= description["validation_rivals"].keys()
    control = told(fused, "taught_control")
    assert not {i for i in inputs(fused, "taught_control") if "/cache" in i}
    assert (control["parameters"], control["teachers"]) == (description["parameters"], [])
    assert control["validation_psnr_y"] != description["validation_psnr_y"]


def test_the_export_is_fused_and_spandrel_knows_it(fused: Project) -> None:
    sr_models.register()
    file = folder_of(fused, "model/taught/export") / f"taught_x{SCALE}.safetensors"
    model = ModelLoader(device="cpu").load_from_file(file)
    assert model.architecture.id == "ParagonSR" and "fused" in model.tags
    parameters = sum(p.numel() for p in model.model.parameters())
    assert parameters == told(fused, "taught")["parameters"]


def test_live_experts_train_as_their_caches_do(fused: Project) -> None:
    live, twin = inputs(fused, "live"), inputs(fused, "twin")
    weights = {f"expert/{e}/weights" for e in EXPERTS}
    caches = {f"expert/{e}/cache[photos]" for e in EXPERTS}
    assert weights <= live and not {i for i in live if "/cache" in i}
    assert caches <= twin and not {i for i in twin if "/weights" in i}
    of_live, of_twin = told(fused, "live"), told(fused, "twin")
    assert of_live["validation_psnr_y"] > of_live["validation_rivals"]["mean"]
    assert of_live["validation_psnr_y"] == pytest.approx(of_twin["validation_psnr_y"], abs=0.02)
    assert of_live["validation_rivals"] == pytest.approx(of_twin["validation_rivals"], abs=0.01)
    assert {**of_live["args"], "features": 0} == {**of_twin["args"], "features": 0}
    assert of_live["taps"] == of_twin["taps"]


def test_epochs_stages_and_a_schedule_free_optimiser_go_together(fused: Project) -> None:
    folder = folder_of(fused, "model/staged/checkpoint")
    samples = len(json.loads((folder / "history.json").read_text()))
    assert samples == 3  # one validation an epoch
    description = told(fused, "staged")
    assert description["steps"] % 3 == 0
    milestone = folder / "checkpoints" / f"step-{description['steps'] // 3 * 2:08d}.safetensors"
    assert milestone.is_file()
    assert description["validation_psnr_y"] > description["validation_rivals"]["mean"]


def test_every_phase_can_be_switched_off(copied: Project) -> None:
    recipe = copied.recipe()
    short = {**TRAIN, "steps": 2, "warmup": 0}
    off = {f"no_{p}": fusion(short, phases={p: False}) for p in PHASES}
    copied.write_recipe({**recipe, "models": off, "release": {"models": []}})
    done = copied.srd("build", *(f"model/{name}/checkpoint" for name in off))
    assert done.stdout.splitlines()[-1] == f"Made {len(off)} outputs."
    whole = told(copied, "full")
    for name in off:
        description = told(copied, name)
        assert description["args"][name.removeprefix("no_")] is False
        assert description["parameters"] < whole["parameters"], name
    assert told(copied, "no_collaboration")["args"]["features"] == {}


def test_fine_tuning_starts_from_a_release(copied: Project) -> None:
    recipe = copied.recipe()
    released = copied.root / "registry" / "full" / "1.0.0" / f"full_x{SCALE}.safetensors"
    train = {
        **TRAIN,
        **{"steps": 1, "learning_rate": 1e-9, "min_learning_rate": 0, "warmup": 0},
        "start_from": str(released),
    }
    recipe["models"] |= {
        "tuned": fusion(train),
        "other": fusion({**train, "seed": 1}, guidance_width=24),
    }
    copied.write_recipe(recipe)
    done = copied.srd("build", "model/tuned/checkpoint", "model/other/checkpoint", code=1)
    tuned, full = told(copied, "tuned"), told(copied, "full")
    assert tuned["validation_psnr_y"] == pytest.approx(full["validation_psnr_y"], abs=1e-3)
    (failed,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    assert "models.other.train.start_from: " in failed and "does not fit the network" in failed


def test_features_that_a_cache_lacks_are_made_when_they_are_asked_for(copied: Project) -> None:
    recipe = copied.recipe()
    recipe["experts"]["bare"]["features"] = "body.0"
    copied.write_recipe(recipe)
    why = copied.to_make("model/full/checkpoint")
    assert why["expert/bare/cache[photos]"] == "recipe experts.bare.features False -> body.0"
    assert {name for name in why if "/cache" in name} == {"expert/bare/cache[photos]"}

    recipe["experts"]["bare"]["features"] = "nonsense"
    copied.write_recipe(recipe)
    done = copied.srd("build", "model/full/checkpoint", code=1)
    (failed,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    assert failed.startswith("expert/bare/cache[photos]: FAILED: experts.bare.features: ")
    assert "has no module 'nonsense'; it has body" in failed


@pytest.mark.parametrize("model", ["full", "student"])
def test_what_a_cache_cannot_follow_is_refused(sources: Path, tmp_path: Path, model: str) -> None:
    recipe = fusion_recipe(sources)
    recipe["models"][model]["train"] = {**TRAIN, "augment": {"cutblur": 0.5}}
    project = Project(tmp_path)
    project.write_recipe(recipe)
    message = project.srd("status", code=2).stderr
    assert message.startswith("srd: tiny.yaml:") and message.count("\n") == 1
    assert f"models.{model}.train.augment.cutblur: this model learns from cached" in message
    assert ("experts: live" in message) is (model == "full")
