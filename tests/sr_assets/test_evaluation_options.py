"""What evaluations measure beside the convention: further metrics, tiles, self-ensembles, sets.

The graph of real outputs is that of `test_evaluation.py` in small: one expert, its gate, one model.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from scipy.io import savemat
from upath import UPath

from sr_assets.assets import bronze, evaluation, expert_caches, experts, gold, overlap, silver
from sr_assets.evaluation import tiling
from sr_assets.evaluation.benchmark import benchmark_images
from sr_assets.evaluation.known_sets import KNOWN, mismatch
from sr_assets.evaluation.provenance import provenance
from sr_assets.evaluation.results import results_from_json
from sr_assets.evaluation.self_ensemble import self_ensemble_rows
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.records import address_of
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.model_lookup import Upscaler
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.checkpoint import write_model
from sr_assets.upscaling.enlarging import upscale_picture
from sr_assets.upscaling.planning import plan_tiles
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.fusion.gate import GateFusion
from sr_models.metrics.catalogue import fingerprints
from sr_models.metrics.images import lr_psnr, ms_ssim_y, psnr_rgb, to_uint8
from sr_models.metrics.niqe import niqe, read_parameters
from sr_models.networks import build_network

SMALL = {"num_feat": 4, "num_conv": 1}
SIZES = {"a.png": (200, 180), "b.png": (64, 96)}  # height, width


def photo(seed: int, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    a, b, c = random.uniform(0.05, 0.6, 3)
    plane = 110 + 35 * (np.sin(a * x + b * y) + np.sin(c * x - a * y) + ((x * b + y * c) % 9 > 4))
    grain = random.normal(0, 4, (height, width, 3))
    return np.clip(plane[..., None] + grain, 0, 255).astype(np.uint8)


def recipe_of(root: Path, **changes: Any) -> Recipe:
    train = {"crop": 8, "steps": 10}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "datasets": {"photos": {"source": {"kind": "folder", "path": str(root / "photos")}}},
            "benchmarks": {"bench": {"source": {"kind": "folder", "path": str(root / "bench")}}},
            "silver": {"min_side": 32, "patch_size": 32, "stride": 32},
            "experts": {"one": {"source": {"kind": "file", "path": str(root / "one.safetensors")}}},
            "models": {
                "blend": {"kind": "gate", "width": 4, "depth": 1, "train": train},
                "fast": {
                    "kind": "plain",
                    "network": {"architecture": "Compact", "args": SMALL},
                    "train": train,
                },
            },
            "compute": {"device": "cpu"},
            **changes,
        }
    )


class Outputs:
    """Makes outputs on demand, each by its real stage."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.recipe, self.root = recipe_of(root, **changes), root / "out"
        self.made: dict[Ref, Output] = {}
        self.stages: dict[str, Stage] = {
            stage.key: stage
            for module in (bronze, overlap, silver, gold, experts, expert_caches, evaluation)
            for stage in module.stages(self.recipe)
        }

    def context(self, ref: Ref) -> StageContext:
        place = UPath(self.root / ref.asset / (ref.partition or "_") / str(len(self.made)))
        inputs = {r: self.make(r.asset, r.partition) for r in self._inputs(ref)}

        @contextlib.contextmanager
        def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            yield lambda n: None

        folder = OutputFolder(place)
        return StageContext(self.recipe, ref, folder, inputs, lambda _: None, lambda _: None, bar)

    def _inputs(self, ref: Ref) -> list[Ref]:
        return list(self.stages[ref.asset].inputs(ref.partition))

    def make(self, asset: str, partition: str | None = None) -> Output:
        ref = Ref(asset, partition)
        if ref not in self.made:
            context = self.context(ref)
            metadata = self.stages[asset].run(context)
            self.made[ref] = context.output.commit({"metadata": metadata})
        return self.made[ref]

    def put_model(self, name: str, network: torch.nn.Module, **description: Any) -> None:
        ref = Ref(f"model/{name}/checkpoint")
        folder = OutputFolder(UPath(self.root / ref.asset))
        full = {"name": name, "scale": 4, "experts": [], "args": SMALL, **description}
        write_model(folder, network, {"architecture": "Compact", **full})
        self.made[ref] = folder.commit({"metadata": {}})


def outputs(root: Path, **changes: Any) -> Outputs:
    (root / "bench").mkdir()
    (root / "photos").mkdir()
    for seed in (7, 8):
        Image.fromarray(photo(seed, 64, 64)).save(root / "photos" / f"{seed}.png")
    for seed, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(photo(seed, *size)).save(root / "bench" / name)
    torch.manual_seed(0)
    save_file(build_network("Compact", 4, SMALL).state_dict(), root / "one.safetensors")
    found = Outputs(root, **changes)
    found.put_model("fast", build_network("Compact", 4, SMALL), kind="plain")
    gate = {"architecture": "GateFusion", "args": {"width": 4, "depth": 1}, "experts": ["one"]}
    found.put_model("blend", GateFusion(("one",), 4, 4, 1), kind="gate", **gate)
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """All experts and models as self-ensembles too."""
    root = tmp_path_factory.mktemp("plain")
    return outputs(root, evaluation={"self_ensemble": True})


def picture(output: Output, name: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(output.read_bytes(name))))


@pytest.mark.parametrize(
    ("asset", "folder"),
    [
        ("expert/one/evaluation", ""),
        ("model/fast/evaluation", ""),
        ("evaluation/baselines", "mean/"),
        ("model/fast/self_ensemble", ""),
    ],
)
def test_every_row_has_the_core_metrics(plain: Outputs, asset: str, folder: str) -> None:
    output = plain.make(asset, "bench")
    found = output.read_json(f"{folder}results.json")
    assert [image["name"] for image in found["images"]] == list(SIZES)
    for image, seed in zip(found["images"], range(2), strict=True):
        hr = photo(seed, *SIZES[image["name"]])
        sr = picture(output, folder + image["picture"])
        metrics = image["metrics"]
        assert metrics["psnr_rgb"] == psnr_rgb(sr, hr, 4)
        assert metrics["lr_psnr"] == lr_psnr(sr, downscale_uint8(hr, 4), 4)
        large = image["name"] == "a.png"
        assert metrics["ms_ssim"] == (ms_ssim_y(sr, hr, 4) if large else None)
    mean = found["mean"]["metrics"]
    assert mean["ms_ssim"] == found["images"][0]["metrics"]["ms_ssim"]  # of those that have one
    values = [image["metrics"]["psnr_rgb"] for image in found["images"]]
    assert mean["psnr_rgb"] == pytest.approx(np.mean(values))
    assert found["facts"]["psnr_rgb"]["unit"] == "dB"
    assert set(mean) | {"psnr_y", "ssim_y"} == set(found["facts"])
    assert results_from_json(found).to_json() == found


def test_metrics_asked_for_are_measured_for_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRD_WEIGHTS", str(tmp_path))
    file = tmp_path / "niqe_modelparameters.mat"
    wanted = {"evaluation": {"metrics": ["niqe"]}}
    found = outputs(tmp_path, **wanted)
    with pytest.raises(StageError, match=r"^evaluation\.metrics: metric 'niqe' needs the file"):
        found.make("model/fast/evaluation", "bench")
    savemat(file, {"mu_prisparam": np.full((1, 36), 0.8), "cov_prisparam": np.eye(36)})
    for asset, folder in (("model/fast/evaluation", ""), ("evaluation/baselines", "bicubic/")):
        output = found.make(asset, "bench")
        results = output.read_json(f"{folder}results.json")
        sr = picture(output, f"{folder}sr/a.png")
        score = niqe(sr, read_parameters(file))
        assert score and results["images"][0]["metrics"]["niqe"] == score
        assert results["images"][1]["metrics"]["niqe"] is None  # smaller than two blocks
        assert results["facts"]["niqe"]["lower_is_better"] is True
    assert found.make("model/fast/evaluation", "bench").metadata["niqe"] is not None


def test_what_is_asked_for_is_in_the_versions_of_those_that_measure_it(tmp_path: Path) -> None:
    before = {s.key: s for s in evaluation.stages(recipe_of(tmp_path))}
    asked = recipe_of(tmp_path, evaluation={"metrics": ["niqe", "lpips", "pyiqa:musiq"]})
    after = {s.key: s for s in evaluation.stages(asked)}
    assert list(before) == list(after)
    changed = {key for key in before if before[key].settings != after[key].settings}
    assert changed == {
        "expert/one/evaluation",
        "model/blend/evaluation",
        "model/fast/evaluation",
        "evaluation/baselines",
    }
    for key in changed:
        modules = {
            "sr_models.metrics.niqe",
            "sr_models.metrics.perceptual",
            "sr_models.metrics.iqa",
        }
        assert modules <= set(after[key].modules) and not modules & set(before[key].modules)
    with pytest.raises(ValidationError, match=r"evaluation\.metrics"):
        recipe_of(tmp_path, evaluation={"metrics": ["psnr"]})


def addresses(recipe: Recipe) -> dict[str, str]:
    """Asset -> address of an output without inputs: all else that decides whether it is stale."""
    found = {}
    for stage in evaluation.stages(recipe):
        ref = Ref(stage.key, "bench" if stage.partitions else None)
        outside = dict(stage.outside(ref.partition))
        found[stage.key] = address_of(stage, ref, code_version(stage), {}, outside)
    return found


def test_a_replaced_weights_file_makes_exactly_what_uses_it_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRD_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    niqe_file, alexnet = tmp_path / "niqe_modelparameters.mat", tmp_path / "alexnet.pth"
    with_niqe = recipe_of(
        tmp_path, evaluation={"metrics": ["niqe"], "self_ensemble": ["one", "fast"]}
    )
    both = recipe_of(tmp_path, evaluation={"metrics": ["niqe", "lpips"]})
    without = recipe_of(tmp_path)

    def all_three() -> list[dict[str, str]]:
        return [addresses(recipe) for recipe in (with_niqe, both, without)]

    def changed(before: list[dict[str, str]]) -> list[set[str]]:
        now = all_three()
        return [
            {key for key in one if one[key] != two[key]}
            for one, two in zip(before, now, strict=True)
        ]

    measured = {
        "expert/one/evaluation",
        "model/blend/evaluation",
        "model/fast/evaluation",
        "evaluation/baselines",
    }
    turned = {"expert/one/self_ensemble", "model/fast/self_ensemble"}
    nowhere = all_three()
    niqe_file.write_bytes(b"one")
    alexnet.write_bytes(b"one")
    assert changed(nowhere) == [measured | turned, measured, set()]
    before = all_three()
    # The same bytes in a new file, as a copy leaves them, are the same weights.
    niqe_file.unlink()
    niqe_file.write_bytes(b"one")
    assert changed(before) == [set(), set(), set()]
    niqe_file.write_bytes(b"two")
    assert changed(before) == [measured | turned, measured, set()]
    niqe_file.write_bytes(b"one")
    alexnet.write_bytes(b"two")
    assert changed(before) == [set(), measured, set()]


def test_what_metrics_read_is_told_without_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("SRD_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "vgg16.pth").write_bytes(b"weights")
    found = fingerprints(["dists", "niqe", "lpips", "pyiqa:musiq"])
    assert found["vgg16-397923af.pth"] == hashlib.sha256(b"weights").hexdigest()[:16]
    assert found["niqe_modelparameters.mat"] == found["alexnet-owt-7be5be79.pth"] == "missing"
    brought = {name: digest for name, digest in found.items() if name.startswith("torchmetrics ")}
    assert set(brought) == {"torchmetrics weights.pt", "torchmetrics alex.pth"}
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in brought.values())
    assert "pyiqa" in found and len(found) == 6


def test_provenance_names_seeds_machine_and_weights_of_metrics(
    plain: Outputs, tmp_path: Path
) -> None:
    folder = OutputFolder(UPath(tmp_path / "made"))
    folder.write_json("results.json", {})
    marker = {
        "code_version": "c" * 24,
        "inputs": {"bronze/images[bench]": "d" * 32},
        "outside": {"niqe_modelparameters.mat": "e" * 16},
    }
    ref = Ref("model/fast/evaluation", "bench")
    context = StageContext(
        plain.recipe, ref, folder, {ref: folder.commit(marker)}, print, print, print
    )
    found = provenance(context)
    (line,) = found["inputs"]
    assert line["output"] == "model/fast/evaluation[bench]" and line["code"] == "c" * 12
    assert line["from"] == {
        "bronze/images[bench]": "d" * 12,
        "niqe_modelparameters.mat": "e" * 12,
    }
    made_with = found["made_with"]
    assert (made_with["seed"], made_with["training seed"]) == ("42", "42")
    assert {"Python", "torch", "machine", "processor"} <= set(made_with)
    models = {
        **plain.recipe.models,
        "other": plain.recipe.models["fast"].model_copy(
            update={"train": plain.recipe.models["fast"].train.model_copy(update={"seed": 7})}
        ),
    }
    context.recipe = plain.recipe.model_copy(update={"models": models})
    made_with = provenance(context)["made_with"]
    assert made_with["training seed of other"] == "7"
    assert made_with["training seed of fast"] == "42"


def test_tiles_are_those_of_users() -> None:
    defaults = inspect.signature(upscale_picture).parameters
    assert (defaults["tile"].default, defaults["halo"].default) == (tiling.TILE, tiling.HALO)


def test_a_network_that_sees_less_than_the_halo_is_the_same_in_tiles(plain: Outputs) -> None:
    for asset in ("expert/one/evaluation", "model/fast/evaluation", "model/blend/evaluation"):
        found = plain.make(asset, "bench").read_json("results.json")["tiled"]
        # The larger image, LR 50x45, cannot be cut with a halo of 32 on both sides: one cut.
        assert found is None or found["max_levels"] <= 0.001


OVERLAP = tiling.Overlap(4, 4)


def test_tiles_meet_as_srd_upscale_lets_them() -> None:
    near = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 7, padding=3), torch.nn.Conv2d(4, 3, 3, padding=1)
    )
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.GroupNorm(1, 3))
    for network, said in ((near, (4, 0)), (wide, (32, 32))):
        upscaler = Upscaler("x", 1, torch.device("cpu"), network.eval().__call__, network=network)
        plan = plan_tiles(upscaler)
        found = tiling.overlap_of(network, 1, 1)
        assert (found.halo, found.blend) == (plan.cut.halo, plan.cut.blend) == said
    assert tiling.overlap_of(None, 4, 1) == tiling.Overlap(32, 32)
    assert tiling.Overlap(4, 0).tile == 256 and tiling.Overlap(100, 0).tile == 400


def test_tiles_change_what_a_network_with_a_wide_view_gives(
    plain: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "TILE", 16)
    lr = torch.rand(1, 3, 20, 40, generator=torch.Generator().manual_seed(0))

    def forward(maps: torch.Tensor) -> torch.Tensor:
        return maps * 0.5 + maps.mean((2, 3), keepdim=True) * 0.2  # sees all of a tile

    found = tiling.tiled_difference(tiling.Job(forward, lr, 1, 1, OVERLAP), 3, "a.png")
    assert found is not None
    tiled, cut = tiling.upscale(tiling.Job(forward, lr, 1, 1, OVERLAP))
    difference = (tiled - forward(lr)).abs() * 255
    assert cut and found["max_levels"] == pytest.approx(float(difference.max()), abs=1e-3)
    assert found["mean_levels"] == pytest.approx(float(difference.mean()), abs=1e-4)
    error = float((difference.double() ** 2).mean())
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.06)
    assert [found[k] for k in ("image", "tile", "halo", "blend")] == ["a.png", 16, 4, 4]
    # An image that fits in a tile is cut in its middle; one that is too small for that is not.
    fitting = tiling.Job(forward, lr[..., :12, :15], 1, 1, OVERLAP)
    assert tiling.upscale(fitting)[1] is False
    small = tiling.tiled_difference(fitting, 3, "b.png")
    assert small is not None and small["tile"] == 12 and small["max_levels"] > 0
    assert (
        tiling.tiled_difference(tiling.Job(forward, lr[..., :8, :9], 1, 1, OVERLAP), 3, "c") is None
    )
    # Of a network that looks no farther than the halo there is nothing to tell.
    none = tiling.tiled_difference(
        tiling.Job(lambda maps: maps * 0.5, lr, 1, 1, OVERLAP), 3, "a.png"
    )
    assert none is not None
    assert (none["max_levels"], none["mean_levels"], none["psnr"]) == (0.0, 0.0, None)


def test_a_self_ensemble_is_the_mean_over_eight_turns(plain: Outputs) -> None:
    output = plain.make("model/fast/self_ensemble", "bench")
    results = output.read_json("results.json")
    assert (results["name"], results["kind"]) == ("fast_x8", "plain")
    assert results["note"] == "self-ensemble: mean of 8 flips and transposes"
    own = plain.make("model/fast/evaluation", "bench").read_json("results.json")
    assert results["parameters"] == own["parameters"]
    folder = plain.make("model/fast/checkpoint").path
    from safetensors.torch import load_file

    network = build_network("Compact", 4, SMALL).eval()
    (weights,) = Path(str(folder)).glob("*.safetensors")
    network.load_state_dict(load_file(weights))
    lr = downscale_uint8(photo(0, *SIZES["a.png"]), 4)
    unit = torch.from_numpy(lr.transpose(2, 0, 1)[None] / np.float32(255))
    turned = []
    with torch.no_grad():
        for quarter in range(4):
            for mirrored in (False, True):
                turn = unit.flip(-1) if mirrored else unit
                sr = network(torch.rot90(turn, quarter, (2, 3)))
                sr = torch.rot90(sr, -quarter, (2, 3))
                turned.append(sr.flip(-1) if mirrored else sr)
    expected = to_uint8(torch.stack(turned).mean(0)[0])
    assert np.abs(picture(output, "sr/a.png").astype(int) - expected).max() <= 1
    assert not np.array_equal(
        picture(output, "sr/a.png"),
        picture(plain.make("model/fast/evaluation", "bench"), "sr/a.png"),
    )


def test_a_fresh_gate_over_one_expert_is_that_expert_in_every_turn(plain: Outputs) -> None:
    """Its expert's picture is turned along, so that the mean is the picture again."""
    output = plain.make("model/blend/self_ensemble", "bench")
    own = picture(plain.make("expert/one/evaluation", "bench"), "sr/b.png")
    assert np.abs(picture(output, "sr/b.png").astype(int) - own).max() <= 1
    assert "experts' pictures turned along" in output.read_json("results.json")["note"]
    expert = plain.make("expert/one/self_ensemble", "bench").read_json("results.json")
    assert (expert["name"], expert["kind"]) == ("one_x8", "expert")


def test_only_those_asked_for_have_a_row_and_no_other_stage_changes(tmp_path: Path) -> None:
    before = {s.key: s for s in evaluation.stages(recipe_of(tmp_path))}
    asked = recipe_of(tmp_path, evaluation={"self_ensemble": ["fast", "one"]})
    after = {s.key: s for s in evaluation.stages(asked)}
    rows = self_ensemble_rows(asked)
    assert rows == {
        "one_x8": ("expert/one/self_ensemble", "one"),
        "fast_x8": ("model/fast/self_ensemble", "fast"),
    }
    assert after.keys() - before.keys() == {key for key, _ in rows.values()}
    for key in before.keys() - {"evaluation/leaderboard"}:
        assert after[key].settings == before[key].settings
        assert [*after[key].inputs("bench")] == [*before[key].inputs("bench")]
    read = {*after["evaluation/leaderboard"].inputs(None)}
    assert {Ref(key, "bench") for key, _ in rows.values()} <= read


def test_a_self_ensemble_that_cannot_be_is_named(tmp_path: Path) -> None:
    wrong = recipe_of(tmp_path, evaluation={"self_ensemble": ["slow"]})
    with pytest.raises(StageError, match=r"evaluation\.self_ensemble: 'slow' is not one of"):
        evaluation.stages(wrong)
    taken = recipe_of(tmp_path, evaluation={"self_ensemble": ["fast"]})
    models = {**taken.models, "fast_x8": taken.models["fast"]}
    with pytest.raises(StageError, match="makes a row fast_x8: rename"):
        self_ensemble_rows(taken.model_copy(update={"models": models}))


def test_a_published_name_is_for_the_whole_published_set(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for seed in range(2):
        Image.fromarray(photo(seed, 64, 64)).save(tmp_path / "two" / f"{seed}.png")
    source = {"source": {"kind": "folder", "path": str(tmp_path / "two")}}
    found = Outputs(tmp_path, benchmarks={"Set5": source, "set5_part": source})
    ref = Ref("evaluation/baselines", "set5_part")
    inputs = {Ref("bronze/images", "set5_part"): found.make("bronze/images", "set5_part")}
    folder = OutputFolder(UPath(tmp_path / "x"))
    context = StageContext(found.recipe, ref, folder, inputs, print, print, print)  # type: ignore[arg-type]
    assert [image.name for image in benchmark_images(context)] == ["0.png", "1.png"]
    ref = Ref("evaluation/baselines", "Set5")
    inputs = {Ref("bronze/images", "Set5"): found.make("bronze/images", "Set5")}
    context = StageContext(found.recipe, ref, folder, inputs, print, print, print)  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"^benchmarks\.Set5: 2 images, but Set5 has 5: .*name$"):
        benchmark_images(context)


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 8, 12])
def test_sets_that_are_cropped_to_a_multiple_are_the_same_sets(multiple: int) -> None:
    for name in ("set5", "SET14"):
        sizes = KNOWN[name.lower()].sizes
        cropped = [(w - w % multiple, h - h % multiple) for w, h in reversed(sizes)]
        assert mismatch(name, cropped) is None
    bsd = [(481, 321)] * 60 + [(321 - 321 % multiple, 481 - 481 % multiple)] * 40
    assert mismatch("bsd100", bsd) is None
    assert mismatch("div2k_val", [(2040, 1356)] * 99 + [(1356, 2040)]) is None


def test_other_sizes_under_a_published_name_are_named() -> None:
    set5 = KNOWN["set5"].sizes
    assert mismatch("set5", [*set5[:4], (57, 86)]) == ("an image of 57x86 px, but set5 has none")
    assert mismatch("set5", [*set5[:4], set5[0]]) is not None  # each size once
    lr = [(510, 339)] * 100
    assert mismatch("div2k_val", lr) == "an image of 510x339 px, but div2k_val has none"
    assert mismatch("manga109", [(827, 1170)] * 108) == "108 images, but manga109 has 109"
    for page in ((827, 1170), (824, 1168), (1654, 1170)):  # single, cropped to 8 px, both pages
        assert mismatch("manga109", [page] * 109) is None
        lr = tuple(side // 2 for side in page)
        assert mismatch("manga109", [page] * 108 + [lr]) is not None
    assert mismatch("my_photos", [(1, 1)]) is None


@pytest.mark.shared
def test_the_published_sets_pass(shared_data: Path) -> None:
    for name in ("Set5", "Set14"):
        files = (shared_data / "benchmarks" / name).glob("*.png")
        assert mismatch(name, [Image.open(file).size for file in files]) is None
