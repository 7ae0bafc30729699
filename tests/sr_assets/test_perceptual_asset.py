"""`model/<name>/perceptual` and `srd upscale --perceptual`, with a tiny pipeline on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from scipy.io import savemat
from tiny_sd3 import write_weights
from training_stores import Outputs

from sr_assets.assets import evaluation, models, perceptual
from sr_assets.cli import main
from sr_assets.graph import build_graph
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.stage import Ref, Stage, StageError
from sr_assets.perceptual import fingerprint, weights_folder
from sr_assets.recipe.loading import RecipeError, load_recipe
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.perceptual import Perceptual
from sr_assets.storage import Output
from sr_assets.stores.checkpoint import write_model
from sr_models.networks import build_network

pytest.importorskip("diffusers", reason="needs the extra `diffusion`")

NETWORK = {"architecture": "Compact", "args": {"num_feat": 4, "num_conv": 1}}
TILES = {"tile": 96, "vae_tile": 128, "overlap": 32}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tsdsr")


def section(weights: Path, **changes: Any) -> dict[str, Any]:
    return {"weights": str(weights), **TILES, **changes}


def settings(folder: Path, refined: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    model = {"kind": "plain", "network": NETWORK, "train": {"crop": 8, "steps": 2}}
    return {
        "name": "tiny",
        "root": str(folder / "out"),
        "scale": 2,
        "datasets": {"photos": {"source": {"kind": "folder", "path": str(folder)}}},
        "benchmarks": {"bench": {"source": {"kind": "folder", "path": str(folder / "bench")}}},
        "models": {"fast": {**model, **({"perceptual": refined} if refined else {})}},
        "compute": {"device": "cpu"},
        **changes,
    }


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


class Project:
    """A benchmark and a trained model, measured by their real stages."""

    def __init__(self, folder: Path, refined: dict[str, Any], **changes: Any) -> None:
        from sr_assets.assets import bronze

        (folder / "bench").mkdir(parents=True)
        for number, (height, width) in enumerate([(200, 232), (104, 98)]):
            Image.fromarray(picture(height, width, number)).save(folder / f"bench/{number}.png")
        self.recipe = Recipe.model_validate(settings(folder, refined, **changes))
        self.outputs, self.said = Outputs(folder / "out"), list[str]()
        found = (*bronze.stages(self.recipe), *evaluation.stages(self.recipe))
        self.stages = {s.key: s for s in (*found, *perceptual.stages(self.recipe))}
        ref = Ref("model/fast/checkpoint")
        torch.manual_seed(0)
        network = build_network("Compact", 2, NETWORK["args"])
        described = {"name": "fast", "kind": "plain", "scale": 2, "experts": [], **NETWORK}
        checkpoint = self.outputs.folder(ref, "address")
        write_model(checkpoint, network, described)
        self.outputs.commit(ref, checkpoint)
        self.make("bronze/images")
        self.own = self.make("model/fast/evaluation")

    def make(self, asset: str) -> Output:
        return self.outputs.run(self.stages[asset], self.recipe, partition="bench", said=self.said)

    def pictures(self, output: Output) -> list[bytes]:
        return [output.read_bytes(f"sr/{number}.png") for number in range(2)]


def test_refined_pictures_are_measured_beside_the_models_own(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRD_WEIGHTS", str(tmp_path))
    natural = {"mu_prisparam": np.full((1, 36), 0.8), "cov_prisparam": np.eye(36)}
    savemat(tmp_path / "niqe_modelparameters.mat", natural)
    project = Project(tmp_path, section(weights), evaluation={"metrics": ["niqe"]})
    made = project.make("model/fast/perceptual")
    found = made.read_json("results.json")
    assert found["kind"] == "perceptual" and "refined by diffusion in one step" in found["note"]
    assert [image["name"] for image in found["images"]] == ["0.png", "1.png"]
    assert all(image["metrics"]["niqe"] is not None for image in found["images"][:1])
    assert project.pictures(made) != project.pictures(project.own)
    compared = made.read_json("comparison.json")
    before = project.own.read_json("results.json")["mean"]
    assert compared["psnr_y"] == {
        "own": pytest.approx(before["psnr_y"]), "refined": pytest.approx(found["mean"]["psnr_y"])
    }  # fmt: skip
    assert {"ssim_y", "niqe", "lr_psnr"} <= compared.keys()
    table = made.metadata["comparison"]["md"]
    assert "| metric | own | refined |" in table and "NIQE" in table
    assert not project.said  # a metric for looks was asked for


def test_alpha_one_gives_the_models_own_pictures(weights: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, section(weights, alpha=1))
    made = project.make("model/fast/perceptual")
    assert project.pictures(made) == project.pictures(project.own)
    assert any("lpips, dists, niqe" in line for line in project.said)


def test_missing_weights_stop_the_asset_in_one_line(tmp_path: Path) -> None:
    for alpha in (0.0, 1.0):
        project = Project(tmp_path / str(alpha), section(tmp_path / "nowhere", alpha=alpha))
        with pytest.raises(StageError) as caught:
            project.make("model/fast/perceptual")
        line = str(caught.value)
        assert f"in {tmp_path / 'nowhere'}" in line and "gated" in line and "\n" not in line


def test_the_section_changes_no_version_but_its_own(weights: Path, tmp_path: Path) -> None:
    def stages(refined: dict[str, Any] | None) -> dict[str, Stage]:
        return build_graph(Recipe.model_validate(settings(tmp_path, refined))).stages

    without, with_section = stages(None), stages(section(weights))
    assert with_section.keys() - without.keys() == {"model/fast/perceptual"}
    other = stages(section(weights, alpha=0.5))
    moved = stages(section(tmp_path / "elsewhere"))
    key = "model/fast/perceptual"
    for name, stage in without.items():
        assert stage.settings == with_section[name].settings, name
        assert stage.modules == with_section[name].modules, name
        assert not any("perceptual" in str(path) for path in stage.settings), name
    assert code_version(with_section[key]) != code_version(other[key])
    assert code_version(with_section[key]) == code_version(moved[key])
    assert with_section[key].outside("bench") != moved[key].outside("bench")


def test_files_are_told_by_what_changed(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "copy")
    described = Perceptual(weights=str(folder))
    before = fingerprint(described)
    assert "lora/transformer.safetensors" in before and len(before) == 8
    with (folder / "lora/transformer.safetensors").open("ab") as file:
        file.write(b"\0")
    changed = fingerprint(described)
    assert {name for name in before if before[name] != changed[name]} == {
        "lora/transformer.safetensors"
    }
    shutil.rmtree(folder / "vae")
    assert fingerprint(described) == {"perceptual weights": "missing"}


def test_the_folder_of_weights_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRD_WEIGHTS", raising=False)
    assert weights_folder(Perceptual()) == tmp_path / "cache/weights/tsdsr"
    monkeypatch.setenv("SRD_WEIGHTS", str(tmp_path / "mine"))
    assert weights_folder(Perceptual()) == tmp_path / "mine/tsdsr"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("use_during_training", True, "use_during_training"),
        ("tile", 100, "multiple of 16"),
        ("overlap", 512, "more than half of a tile"),
        ("alpha", 1.5, "less than or equal to 1"),
    ],
)
def test_what_the_section_refuses(field: str, value: object, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Perceptual.model_validate({field: value})


def test_a_control_is_not_refined_and_paths_start_at_the_recipe(tmp_path: Path) -> None:
    recipe = settings(tmp_path, {"weights": "files"})
    recipe["models"]["pupil"] = {
        "kind": "student", "network": NETWORK, "teachers": ["fast"], "control": True,
        "train": {"crop": 8}, "perceptual": {"steps": 4},
    }  # fmt: skip
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe))
    found = load_recipe(file)
    assert found.models["fast"].perceptual == Perceptual(weights=str(tmp_path / "files"))
    assert found.models["pupil"].perceptual == Perceptual(steps=4)
    assert found.models["pupil_control"].perceptual is None
    keys = [stage.key for stage in perceptual.stages(found)]
    assert keys == ["model/fast/perceptual", "model/pupil/perceptual"]
    checkpoint = next(s for s in models.stages(found) if s.key == "model/fast/checkpoint")
    assert not any("perceptual" in path for path in checkpoint.settings)
    file.write_text(yaml.safe_dump(settings(tmp_path, {"alfa": 1})))
    with pytest.raises(RecipeError, match=r"unknown field models.fast.perceptual.alfa.*`alpha`"):
        load_recipe(file)


@pytest.fixture
def words(tmp_path: Path, weights: Path) -> dict[str, Path]:
    """A recipe, a network called like its model, and a picture that needs two tiles."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings(tmp_path, section(weights))))
    torch.manual_seed(0)
    network = build_network("Compact", 2, NETWORK["args"])
    save_file(network.state_dict(), tmp_path / "fast.safetensors")
    Image.fromarray(picture(72, 120)).save(tmp_path / "in.png")
    grey = np.dstack([picture(40, 48)[..., :1], picture(40, 48, 3)[..., :1]])
    Image.fromarray(grey, "LA").save(tmp_path / "grey.png")
    return {n: tmp_path / n for n in ("tiny.yaml", "fast.safetensors", "in.png", "grey.png")}


def srd(words: dict[str, Path], source: str, target: Path, *options: str) -> Result:
    paths = (words["fast.safetensors"], words[source], target)
    named = ("--recipe", str(words["tiny.yaml"]), "--device", "cpu", *options)
    return CliRunner().invoke(main, ["upscale", *map(str, paths), *named])


def test_the_command_in_a_process_of_its_own(words: dict[str, Path], tmp_path: Path) -> None:
    """Without weights one line and no file; with them a picture."""
    program = [str(Path(sys.executable).with_name("srd")), "upscale"]
    paths = [str(words["fast.safetensors"]), str(words["in.png"]), str(tmp_path / "b.png")]
    options = ["--perceptual", "--device", "cpu", "--recipe"]

    def run(recipe: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *paths, *options, str(recipe)],
            env={**os.environ, "SRD_WEIGHTS": str(tmp_path / "none"), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    without = tmp_path / "without.yaml"
    without.write_text(yaml.safe_dump(settings(tmp_path, None)))
    ran = run(without)
    assert ran.returncode == 1 and len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    assert f"in {tmp_path / 'none/tsdsr'}" in ran.stderr and "Stability AI" in ran.stderr
    assert not (tmp_path / "b.png").exists()
    ran = run(words["tiny.yaml"])
    assert ran.returncode == 0, ran.stderr
    with Image.open(tmp_path / "b.png") as made:
        assert made.size == (240, 144)


def test_pictures_are_refined_in_tiles(words: dict[str, Path], tmp_path: Path) -> None:
    plain = srd(words, "in.png", tmp_path / "plain.png")
    whole = srd(words, "in.png", tmp_path / "whole.png", "--perceptual")
    tiled = srd(words, "in.png", tmp_path / "tiled.png", "--perceptual", "--tile", "96")
    for ran in (plain, whole, tiled):
        assert ran.exit_code == 0, ran.output
    read = {n: np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("plain", "whole", "tiled")}
    assert all(pixels.shape == (144, 240, 3) for pixels in read.values())
    assert not np.array_equal(read["plain"], read["whole"])
    assert "blended over 32 px" in tiled.stderr
    colours = {name: pixels.mean(axis=(0, 1)) for name, pixels in read.items()}
    assert np.abs(colours["tiled"] - colours["plain"]).max() < 3
    assert np.abs(colours["whole"] - colours["plain"]).max() < 3


def test_alpha_one_changes_no_bit(words: dict[str, Path], tmp_path: Path) -> None:
    for name, options in {"a": (), "b": ("--perceptual", "--perceptual-alpha", "1")}.items():
        ran = srd(words, "in.png", tmp_path / f"{name}.png", *options)
        assert ran.exit_code == 0, ran.output
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_grey_stays_grey_and_transparency_is_not_refined(
    words: dict[str, Path], tmp_path: Path
) -> None:
    for name, options in {"a": (), "b": ("--perceptual",)}.items():
        ran = srd(words, "grey.png", tmp_path / f"{name}.png", *options)
        assert ran.exit_code == 0, ran.output
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert one.shape == two.shape == (80, 96, 2)
    assert np.array_equal(one[..., 1], two[..., 1]) and not np.array_equal(one[..., 0], two[..., 0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--perceptual-alpha", "0.5"), "--perceptual-alpha is for --perceptual"),
        (("--perceptual", "--temporal"), "flickers in a video"),
        (("--perceptual", "--perceptual-alpha", "2"), "0<=x<=1"),
    ],
)
def test_words_that_do_not_go_together(
    words: dict[str, Path], tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    ran = srd(words, "in.png", tmp_path / "b.png", *options)
    assert ran.exit_code == 2 and told in ran.stderr


def test_the_schema_knows_the_section() -> None:
    from sr_assets.recipe.reference import page, schema

    assert "use_during_training" in json.dumps(schema()) and "perceptual" in page()
