"""Export and release stages on tiny real networks and hand-made measurements."""

import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from export_project import NO_FILES, expert_weights
from safetensors import safe_open
from training_stores import small_outputs
from upath import UPath

from sr_assets.assets import export, release
from sr_assets.assets.export import onnx_name, weights_name
from sr_assets.assets.release_upstream import upstream
from sr_assets.evaluation.pixels import decode_png, encode_png
from sr_assets.evaluation.results import ImageScore, Results
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.releases import list_releases, pull
from sr_assets.storage import Output
from sr_assets.stores.checkpoint import write_model
from sr_models.fusion.build import build_fusion
from sr_models.fusion.gate import GateFusion
from sr_models.networks import build_network

NETWORK = {"architecture": "Compact", "args": {"num_feat": 8, "num_conv": 2}}
TRAIN = {"steps": 10, "crop": 16}


def recipe(**changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "tiny",
        "scale": 2,
        "datasets": {"photos": {"source": {"kind": "folder", "path": "x"}, "licence": "CC0"}},
        "benchmarks": {"set": {"source": {"kind": "folder", "path": "y"}}},
        "experts": {
            n: {"source": {"kind": "file", "path": n}, "licence": "Apache-2.0"}
            for n in ("one", "two")
        },
        "models": {
            "fusion": {"kind": "gate", "width": 4, "depth": 1, "train": TRAIN},
            "student": {
                "kind": "student",
                "network": NETWORK,
                "teachers": "fusion",
                "control": True,
                "train": TRAIN,
            },
        },
    }
    return Recipe.model_validate({**base, **changes})


#: Shape of a full fusion.
DEEP = {"guidance_width": 8, "common_width": 8, "width": 8, "depth": 2}


class World:
    """A root folder with outputs that other stages would have made."""

    def __init__(self, root: Path, made_for: Recipe) -> None:
        self.root, self.recipe = root, made_for
        self.outputs: dict[Ref, Output] = dict(small_outputs(root / "stores", 2, ()).made)
        self.lines: list[str] = []

    def put(self, ref: Ref, write: Callable[[OutputFolder], None], **marker: Any) -> Output:
        parts = [ref.asset, *([ref.partition] if ref.partition else []), f"a{len(self.lines)}"]
        folder = OutputFolder(UPath(self.root.joinpath(*parts)))
        write(folder)
        said = {"asset": ref.asset, "metadata": {}, "code_version": "code-1", "inputs": {}}
        self.outputs[ref] = folder.commit({**said, **marker})
        return self.outputs[ref]

    def checkpoint(self, name: str, seed: int = 0, **marker: Any) -> None:
        model = self.recipe.models[name]
        torch.manual_seed(seed)
        architecture = {"gate": "GateFusion", "fusion": "FusionNetwork"}.get(model.kind, "Compact")
        experts = list(self.recipe.experts_of(name))
        network: torch.nn.Module
        args: dict[str, Any]
        if model.kind == "fusion":
            args = {"features": {"two": 5}, **DEEP}
            network = build_fusion(architecture, experts, 2, args)
            for weight in network.parameters():  # a fresh one is the mean of its experts
                torch.nn.init.normal_(weight, std=0.05)
        elif model.kind == "gate":
            args = {"width": 4, "depth": 1}
            network = GateFusion(experts, 2, **args)
            torch.nn.init.normal_(network.gate.weight)
        else:
            args = dict(model.network.args)  # type: ignore[union-attr]
            network = build_network(model.network.architecture, 2, args)  # type: ignore[union-attr]
        description = {
            "name": name,
            "kind": model.kind,
            "architecture": architecture,
            "args": args,
            "scale": 2,
            "experts": experts,
            "taps": {"two": "body.1"} if model.kind == "fusion" else {},
            "datasets": ["photos"],
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        self.put(
            Ref(f"model/{name}/checkpoint"),
            lambda folder: write_model(folder, network.eval(), description),
            inputs={"gold/pairs[photos]": "g1", "expert/one/cache[photos]": "e1"},
            **marker,
        )

    def expert(self, name: str) -> None:
        self.put(
            Ref(f"expert/{name}/weights"),
            lambda folder: folder.write_bytes("weights.safetensors", expert_weights(name)) and None,
            metadata={"sha256": f"digest-of-{name}"},
        )

    def scores(self, images: str = "b1", **psnr: float | None) -> None:
        """One results file a row; `bicubic`, `mean` and `convex` go into the baselines.

        `images` is the data version of the benchmark's images.
        """
        (benchmark,) = self.recipe.benchmarks
        measured_on = {"inputs": {f"bronze/images[{benchmark}]": images}}

        def results(value: float | None) -> dict[str, Any]:
            image = ImageScore("a", 64, 64, value, 0.9, (0.1, 0.0, -0.1), "sr/a.png")
            return Results("row", "plain", (image,), 1).to_json()

        baselines = {"bicubic", "mean", "convex"}
        for name, value in psnr.items():
            if name not in baselines:
                owner = "expert" if name in self.recipe.experts else "model"
                self.put(
                    Ref(f"{owner}/{name}/evaluation", benchmark),
                    lambda f, v=value: f.write_json("results.json", results(v)),  # type: ignore[misc]
                    **measured_on,
                )
        self.put(
            Ref("evaluation/baselines", benchmark),
            lambda folder: (
                [folder.write_json(f"{row}/results.json", results(psnr[row])) for row in baselines]
                and None
            ),
        )

    def run(self, module: Any, key: str) -> tuple[Output, Mapping[str, Any]]:
        stage: Stage = {s.key: s for s in module.stages(self.recipe)}[key]
        self.lines.append("")
        inputs = {ref: self.outputs[ref] for ref in stage.inputs(None)}
        folder = OutputFolder(UPath(self.root / key / f"a{len(self.lines)}"))

        @contextmanager
        def bar(label: str, total: int, unit: str) -> Any:
            yield lambda n: None

        context = StageContext(
            self.recipe, Ref(key), folder, inputs, self.lines.append, lambda points: None, bar
        )
        metadata = stage.run(context)
        assert json.loads(json.dumps(metadata)) == metadata  # JSON values only
        self.outputs[Ref(key)] = folder.commit({"metadata": metadata})
        return self.outputs[Ref(key)], metadata


GOOD = {
    "bicubic": 28.0, "mean": 29.1, "convex": 29.2, "one": 29.0, "two": 28.9, "fusion": 29.5,
    "student_control": 28.6, "student": 28.8,
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, recipe(export=NO_FILES))
    for name in made.recipe.experts:
        made.expert(name)
    for name in made.recipe.models:
        made.checkpoint(name)
    made.scores(**GOOD)
    return made


def released(world: World, name: str) -> tuple[dict[str, Any], Output]:
    world.run(export, f"model/{name}/export")
    output, _ = world.run(release, f"model/{name}/release")
    return output.read_json("release.json"), output


def test_export_writes_checked_files(world: World) -> None:
    world.recipe = recipe(export={**NO_FILES, "onnx": True})
    output, metadata = world.run(export, "model/student/export")
    report = output.read_json("export.json")
    assert set(report["files"]) == {"student_x2.safetensors", "student_x2_fp32.onnx"}
    assert report["spandrel"]["architecture"] == "Compact"
    assert report["spandrel"]["max_difference"] == 0.0
    assert report["onnx"]["max_difference"] < 1e-5 and len(report["onnx"]["checks"]) == 3
    for name, entry in report["files"].items():
        assert output.marker["files"][name]["sha256"] == entry["sha256"]
    with safe_open(str(output.path / weights_name("student", 2)), "pt") as file:
        told = file.metadata()
    assert told["architecture"] == "Compact" and told["scale"] == "2"
    assert told["licence"] == "not stated"
    assert json.loads(told["data"]) == {"gold/pairs[photos]": "g1"}
    assert json.loads(told["caches"]) == {"expert/one/cache[photos]": "e1"}
    assert told["code_version"] == "code-1"
    assert metadata["spandrel_difference"] == 0.0


def test_export_content_rests_on_tensors_not_on_the_code_that_made_them(world: World) -> None:
    first, _ = world.run(export, "model/student/export")
    world.checkpoint("student", code_version="code-2")
    second, _ = world.run(export, "model/student/export")
    file = weights_name("student", 2)
    assert first.read_bytes(file) != second.read_bytes(file)  # it names the code
    assert first.data_version == second.data_version
    world.checkpoint("student", seed=1)
    third, _ = world.run(export, "model/student/export")
    assert third.data_version != first.data_version


def test_export_twice_gives_the_same_bytes(world: World) -> None:
    world.recipe = recipe(export={**NO_FILES, "onnx": True})
    outputs = [world.run(export, "model/student_control/export")[0] for _ in range(2)]
    for name in (
        weights_name("student_control", 2),
        onnx_name("student_control", 2),
        "description.json",
    ):
        assert outputs[0].read_bytes(name) == outputs[1].read_bytes(name)


def test_export_of_a_gate_names_its_experts(world: World) -> None:
    world.recipe = recipe()
    output, _ = world.run(export, "model/fusion/export")
    report = output.read_json("export.json")
    assert report["spandrel"] is None
    assert report["onnx"]["inputs"] == ["lr", "one", "two"]
    with safe_open(str(output.path / weights_name("fusion", 2)), "pt") as file:
        told = file.metadata()
    assert json.loads(told["expert_weights"]) == {"one": "digest-of-one", "two": "digest-of-two"}


def test_export_without_onnx_writes_none(world: World) -> None:
    output, metadata = world.run(export, "model/student/export")
    assert list(output.read_json("export.json")["files"]) == ["student_x2.safetensors"]
    assert "onnx_difference" not in metadata


def test_a_network_that_no_graph_holds_is_reported_and_not_released(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_models.export import onnx

    def fail(*args: Any, **kwargs: Any) -> None:
        raise onnx.OnnxExportError("Compact cannot be exported: reason")

    world.recipe = recipe(export={**NO_FILES, "onnx": True})
    monkeypatch.setattr(onnx, "export_onnx", fail)
    decision, output = released(world, "student")
    assert not decision["released"]
    assert decision["reasons"] == [
        "complete: student_x2_fp32.onnx: Compact cannot be exported: reason; or ask for fewer "
        "files in `export`"
    ]
    assert "no ONNX file" in output.read_bytes("README.md").decode()


def test_weights_that_spandrel_reads_otherwise_stop_the_export(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from sr_models.export import spandrel_check

    check = spandrel_check.check_with_spandrel

    def differ(path: Path, network: torch.nn.Module) -> Any:
        return dataclasses.replace(check(path, network), max_difference=0.5)

    monkeypatch.setattr(spandrel_check, "check_with_spandrel", differ)
    with pytest.raises(StageError, match=r"differs from the trained network by 0\.5"):
        world.run(export, "model/student/export")


def test_a_good_model_becomes_a_version_that_can_be_pulled(world: World, tmp_path: Path) -> None:
    decision, output = released(world, "student")
    assert decision["released"] and decision["version"] == "1.0.0" and decision["reasons"] == []
    (info,) = list_releases(tmp_path)
    assert (info.name, info.psnr_y) == ("student@1.0.0", {"set": 28.8})
    files = pull(tmp_path, "student", tmp_path / "got")
    assert {f.name for f in files} == {
        "student_x2.safetensors", "README.md", "student_model_card.json",
        "student_openmodeldb.json", "manifest.json",
    }  # fmt: skip
    manifest = json.loads((tmp_path / "got" / "manifest.json").read_text())
    assert manifest["data"] == {"gold/pairs[photos]": "g1", "expert/one/cache[photos]": "e1"}
    assert manifest["code_version"] == "code-1"

    from spandrel import ModelLoader

    loaded = ModelLoader(device="cpu").load_from_file(tmp_path / "got" / "student_x2.safetensors")
    assert loaded(torch.rand(1, 3, 9, 7)).shape == (1, 3, 18, 14)
    assert output.read_bytes("README.md") == (tmp_path / "got" / "README.md").read_bytes()


def test_the_card_shows_controls_licences_and_how_to_load(world: World) -> None:
    _, output = released(world, "student")
    card = output.read_bytes("README.md").decode()
    for row in (
        "bicubic",
        "one",
        "two",
        "mean",
        "convex",
        "fusion",
        "student_control",
        "**student**",
    ):
        assert f"| {row} |" in card
    assert "28.80 dB / 0.9000" in card
    assert "| photos | CC0 |" in card
    assert "| one | Apache-2.0 | digest-of-one |" in card
    assert "| licence of the weights | not stated in the recipe |" in card
    assert 'load_from_file("student_x2.safetensors")' in card


def test_code_in_the_cards_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = recipe().model_dump(exclude_unset=True)["models"]
    models["deep"] = {"kind": "fusion", "train": TRAIN}
    world.recipe = recipe(models=models)
    world.checkpoint("deep")
    world.scores(**GOOD, deep=29.4)
    for name in ("student", "fusion", "deep"):
        _, output = released(world, name)
        card = output.read_bytes("README.md").decode()
        monkeypatch.chdir(pull(tmp_path, name, tmp_path / name)[0].parent)
        one = torch.rand(1, 3, 8, 10)
        two = {e: torch.rand(1, 3, 16, 20) for e in ("one", "two")}
        blocks = [b.split("```")[0] for b in card.split("```python\n")[1:]]
        assert len(blocks) == 2
        given = {"lr": one, "two_features": torch.rand(1, 5, 8, 10)}
        given |= {f"{e}_sr": picture for e, picture in two.items()}
        scope: dict[str, Any] = dict(given)
        exec(blocks[0], scope)
        expected = scope["sr"].detach()
        scope = {key: value.numpy() for key, value in given.items()}
        exec(blocks[1], scope)
        actual = torch.from_numpy(scope["sr"])
        clamped = actual.clamp(0, 1) if name == "student" else actual  # spandrel clamps
        assert torch.allclose(clamped, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("student", {"student": 27.9}, "beats_bicubic"),
        ("student", {"student": 28.5}, "teacher_helped"),
        ("fusion", {"fusion": 28.95}, "beats_best_expert"),
    ],
)
def test_a_failed_check_is_a_decision_and_nothing_enters_the_registry(
    world: World, tmp_path: Path, name: str, changed: dict[str, float], reason: str
) -> None:
    world.scores(**{**GOOD, **changed})
    decision, _ = released(world, name)
    assert decision["released"] is False and decision["version"] is None
    assert any(text.startswith(reason) for text in decision["reasons"])
    assert list_releases(tmp_path) == [] and not (tmp_path / "registry").exists()


def test_a_release_that_got_worse_is_held_back(world: World, tmp_path: Path) -> None:
    assert released(world, "fusion")[0]["released"]
    world.checkpoint("fusion", seed=3)
    world.scores(**{**GOOD, "fusion": 29.3})
    decision, _ = released(world, "fusion")
    assert not decision["released"]
    assert [r.split(":")[0] for r in decision["reasons"]] == ["no_regression"]
    assert [info.version for info in list_releases(tmp_path)] == ["1.0.0"]
    world.scores(**{**GOOD, "fusion": 29.7})
    assert released(world, "fusion")[0]["version"] == "1.1.0"


def test_another_name_of_a_benchmark_hides_no_loss(world: World) -> None:
    assert released(world, "fusion")[0]["released"]
    world.checkpoint("fusion", seed=3)
    renamed = {"benchmarks": {"other": {"source": {"kind": "folder", "path": "y"}}}}
    world.recipe = recipe(export=NO_FILES, **renamed)
    world.scores(**{**GOOD, "fusion": 29.3})
    decision, _ = released(world, "fusion")
    assert [r.split(":")[0] for r in decision["reasons"]] == ["no_regression"]


def test_other_images_or_another_scale_are_not_compared(world: World) -> None:
    assert released(world, "fusion")[0]["released"]
    manifest = world.root / "registry/fusion/1.0.0/manifest.json"
    world.checkpoint("fusion", seed=3)
    world.scores(**{**GOOD, "fusion": 29.3, "images": "b2"})  # the same name, new images
    decision, _ = released(world, "fusion")
    (said,) = [c["reason"] for c in decision["checks"] if c["name"] == "no_regression"]
    assert decision["released"] and "other images" in said

    for version in ("1.0.0", "1.1.0"):  # as if both had been made at scale 3
        file = world.root / f"registry/fusion/{version}" / manifest.name
        text = json.loads(file.read_text())
        file.chmod(0o644)
        file.write_text(json.dumps({**text, "scale": 3}))
    world.checkpoint("fusion", seed=4)
    world.scores(**{**GOOD, "fusion": 29.25})
    decision, _ = released(world, "fusion")
    (said,) = [c["reason"] for c in decision["checks"] if c["name"] == "no_regression"]
    assert decision["released"] and "first release" in said


def test_the_card_tells_direct_teachers_from_those_behind_them(world: World) -> None:
    base = world.recipe.model_dump(mode="json", exclude_unset=True)
    student = {**base["models"]["student"], "control": False}
    base["models"]["student"]["teachers"] = ["between", "one"]
    base["models"]["between"] = {**student, "teachers": ["fusion", "two"], "licence": "MIT"}
    world.recipe = Recipe.model_validate(base)
    world.scores(**GOOD, between=28.0)
    _, output = released(world, "student")
    card = output.read_bytes("README.md").decode()
    assert "| teacher | between, licence MIT |\n| teacher | one, licence Apache-2.0 |" in card
    assert "| teacher of a teacher | fusion, licence" in card
    assert "| teacher of a teacher | two, licence Apache-2.0 |" in card


def test_the_card_lists_the_data_and_licences_of_the_teachers(world: World) -> None:
    base = world.recipe.model_dump(mode="json", exclude_unset=True)
    base["datasets"]["secret"] = {"source": {"kind": "folder", "path": "z"}, "licence": "NC"}
    base["models"]["fusion"] |= {"datasets": ["secret"], "licence": "GPL-3.0"}
    base["models"]["student"]["datasets"] = base["models"]["student_control"]["datasets"] = [
        "photos"
    ]
    world.recipe = Recipe.model_validate(base)
    _, output = released(world, "student")
    card = output.read_bytes("README.md").decode()
    assert "| photos | CC0 |" in card and "| secret | NC |" in card
    assert "| teacher | fusion, licence GPL-3.0 |" in card
    before, after = (
        {s.key: s for s in release.stages(Recipe.model_validate(r))}["model/student/release"]
        for r in (base, {**base, "datasets": {**base["datasets"], "secret": {
            "source": {"kind": "folder", "path": "z"}, "licence": "CC0"}}})
    )  # fmt: skip
    assert before.settings != after.settings  # a corrected licence writes a new card


def test_the_same_content_keeps_its_version(world: World, tmp_path: Path) -> None:
    first, one = released(world, "fusion")
    before = (tmp_path / "registry/fusion/1.0.0/manifest.json").read_bytes()
    world.scores(**{**GOOD, "student_control": 28.7})
    again, two = released(world, "fusion")
    assert (first["version"], again["version"]) == ("1.0.0", "1.0.0")
    assert (tmp_path / "registry/fusion/1.0.0/manifest.json").read_bytes() == before
    assert one.data_version != "" and "created" not in two.read_bytes("release.json").decode()


def test_what_changed_moves_its_part_of_the_version(world: World, tmp_path: Path) -> None:
    def version() -> str:
        decision, _ = released(world, "student")
        assert decision["released"], decision["reasons"]
        return str(decision["version"])

    assert version() == "1.0.0"
    world.recipe = recipe(export={"onnx": False}, release={"author": "Ada"})
    assert version() == "1.0.1"  # the card alone
    world.checkpoint("student", seed=5)
    assert version() == "1.1.0"  # other weights
    wider = recipe().model_dump(exclude_unset=True)["models"]
    del wider["student_control"]
    wider["student"]["network"]["args"] = {"num_feat": 12, "num_conv": 2}
    world.recipe = recipe(export={"onnx": False}, models=wider)
    world.checkpoint("student", seed=5)
    assert version() == "2.0.0"  # another network
    assert version() == "2.0.0"
    listed = [info.version for info in list_releases(tmp_path)]
    assert listed == ["1.0.0", "1.0.1", "1.1.0", "2.0.0"]


def test_code_that_trains_the_same_weights_is_no_new_release(world: World, tmp_path: Path) -> None:
    assert released(world, "student")[0]["version"] == "1.0.0"
    world.checkpoint("student", code_version="code-2")
    decision, _ = released(world, "student")
    assert decision["version"] == "1.0.0" and len(list_releases(tmp_path)) == 1
    weights = tmp_path / "registry/student/1.0.0/student_x2.safetensors"
    with safe_open(weights, "pt") as file:
        assert file.metadata()["code_version"] == "code-1"  # as it was released


def test_the_recipe_may_pin_a_version(world: World, tmp_path: Path) -> None:
    world.recipe = recipe(export={"onnx": False}, release={"version": "0.4.0"})
    assert [released(world, "student")[0]["version"] for _ in range(2)] == ["0.4.0", "0.4.0"]
    world.checkpoint("student", seed=5)
    with pytest.raises(StageError, match=r"student@0\.4\.0 is released with other files"):
        released(world, "student")
    assert [info.version for info in list_releases(tmp_path)] == ["0.4.0"]


def test_the_registry_may_be_an_object_store(world: World, tmp_path: Path) -> None:
    place = "memory://release-stage-test/models"
    world.recipe = recipe(export={"onnx": False}, release={"registry": place})
    for version in ("1.0.0", "1.1.0"):
        assert released(world, "student")[0]["version"] == version
        world.checkpoint("student", seed=5)
    assert list_releases(tmp_path) == [] and not (tmp_path / "registry").exists()
    files = pull(tmp_path, "student@1.1.0", tmp_path / "got", UPath(place))
    assert "README.md" in [f.name for f in files]


def test_the_manifest_tells_everything_behind_it(world: World, tmp_path: Path) -> None:
    put = world.put
    made = put(Ref("bronze/images", "old"), lambda f: f.write_json("a.json", 1) and None)
    inputs = {"bronze/images[old]": made.data_version}
    made = put(Ref("silver/patches", "old"), lambda f: f.write_json("a.json", 2) and None,
               inputs=inputs)  # fmt: skip
    world.lines.append("")
    newer = put(Ref("silver/patches", "old"), lambda f: f.write_json("a.json", 3) and None)
    inputs = {"silver/patches[old]": made.data_version, "gold/pairs[gone]": "g9"}
    world.outputs[Ref("model/student/checkpoint")].marker["inputs"] |= inputs
    released(world, "student")
    root = tmp_path / "registry/student/1.0.0"
    manifest = json.loads((root / "manifest.json").read_text())
    behind = manifest["upstream"]
    assert behind["expert/one/weights"]["sha256"] == "digest-of-one"
    assert behind["model/student/export"]["data_version"] == manifest["content"]
    assert set(manifest["controls"]) == {*GOOD} - {"student"}
    assert manifest["controls"]["fusion"]["set"]["psnr_y"] == 29.5
    assert manifest["licences"]["experts"] == {"one": "Apache-2.0", "two": "Apache-2.0"}
    assert manifest["licences"]["data"] == {"photos": "CC0"}
    assert {"torch", "machine", "Python", "safetensors"} <= set(manifest["made_with"])
    assert Recipe.model_validate(yaml.safe_load(manifest["recipe"])).models == world.recipe.models
    assert manifest["settings"]["models.student.train.learning_rate"] == 2e-4  # a default
    assert [c["name"] for c in manifest["checks"]][-1] == "complete"

    found = upstream(UPath(tmp_path), {Ref("m"): world.outputs[Ref("model/student/checkpoint")]})
    silver = found["silver/patches[old]"]  # the one that was read, not the newest
    assert silver.data_version == made.data_version != newer.data_version
    assert silver.inputs == ("bronze/images[old]",) and "bronze/images[old]" in found
    assert found["gold/pairs[gone]"].inputs is None  # named, though its output is gone


def test_pictures_are_shown_where_their_licence_lets_anybody(world: World, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    names = {"hr/a.png": 0, "bicubic/sr/a.png": 20, "lr/a.png": 0, "sr/a.png": 9}
    pictures = {
        n: np.clip(pixels.astype(int) + d, 0, 255).astype(np.uint8) for n, d in names.items()
    }
    pictures["lr/a.png"] = pixels[::2, ::2]

    def draw(licence: str | None) -> list[str]:
        benchmark = {"source": {"kind": "folder", "path": "y"}, "licence": licence}
        world.recipe = recipe(export={"onnx": False}, benchmarks={"set": benchmark})
        world.scores(**GOOD)
        for ref, wanted in (("evaluation/baselines", list(names)[:3]),
                            ("model/student/evaluation", ["sr/a.png"])):  # fmt: skip
            folder = Path(str(world.outputs[Ref(ref, "set")].path))
            for name in wanted:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(encode_png(pictures[name]))
        decision, output = released(world, "student")
        card = output.read_bytes("README.md").decode()
        folder = tmp_path / "registry/student" / decision["version"] / "assets"
        assert ("![](assets/set_1.png)" in card) == folder.exists()
        return sorted(f.name for f in folder.glob("*"))

    assert draw(None) == [] and draw("all rights reserved") == []
    assert draw("CC-BY-4.0") == ["set_1.png"]
    newest = max((tmp_path / "registry/student").iterdir(), key=lambda f: f.name)
    strip = decode_png((newest / "assets/set_1.png").read_bytes())
    assert strip.shape == (64, 4 * 64 + 3 * 6, 3)
    assert np.array_equal(strip[:, -64:], pictures["hr/a.png"])
    assert np.array_equal(strip[:, 140:204], pictures["sr/a.png"])
    assert np.array_equal(strip[::2, :64:2], pictures["lr/a.png"])


def test_a_kill_after_publishing_changes_no_decision(world: World) -> None:
    released(world, "fusion")
    world.checkpoint("fusion", seed=3)
    world.scores(**{**GOOD, "fusion": 29.7})
    first, _ = released(world, "fusion")
    again, _ = released(world, "fusion")  # as if the first had published and then been killed
    assert first == again and again["version"] == "1.1.0"
    (said,) = [c["reason"] for c in again["checks"] if c["name"] == "no_regression"]
    assert said.startswith("+0.200 dB")  # against version 1, not itself


def test_the_mend_that_a_held_release_asks_for_makes_it_again() -> None:
    with_onnx, without = (
        {s.key: s.settings for s in release.stages(recipe(export={"onnx": onnx}))}
        for onnx in (True, False)
    )
    assert with_onnx["model/student/release"] != without["model/student/release"]


def test_which_models_are_released() -> None:
    assert release.released_models(recipe()) == ("fusion", "student")
    assert release.released_models(recipe(release={"models": ["student_control"]})) == (
        "student_control",
    )
    assert [s.key for s in export.stages(recipe())] == [
        "model/fusion/export", "model/student/export", "model/student_control/export",
    ]  # fmt: skip


def test_checks_that_are_returned_are_those_declared(world: World) -> None:
    for name in ("fusion", "student"):
        stage = {s.key: s for s in release.stages(world.recipe)}[f"model/{name}/release"]
        decision, _ = released(world, name)
        assert {c["name"] for c in decision["checks"]} == set(stage.checks)


def test_without_benchmarks_nothing_is_released(tmp_path: Path) -> None:
    bare = World(tmp_path, recipe(benchmarks={}, export=NO_FILES))
    for name in bare.recipe.experts:
        bare.expert(name)
    bare.checkpoint("student")
    decision, output = released(bare, "student")
    assert not decision["released"]
    assert "Not measured" in output.read_bytes("README.md").decode()
