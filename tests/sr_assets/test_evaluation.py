"""Every stage that measures, on a tiny graph of real outputs made by the stages before it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from upath import UPath

from sr_assets.assets import bronze, evaluation, expert_caches, experts, gold, overlap, silver
from sr_assets.evaluation import experts as expert_evaluation
from sr_assets.evaluation import models, tiling
from sr_assets.evaluation.cost import Cost, total_cost
from sr_assets.evaluation.crops import choose_crops
from sr_assets.evaluation.damage import read_damage
from sr_assets.evaluation.results import ImageScore, Results, picture_names, results_from_json
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.checkpoint import write_model
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import VALIDATION, PatchReader
from sr_assets.stores.whole_images import read_image
from sr_models.degradations.bicubic import downscale_uint8, upscale
from sr_models.fusion.convex import convex_weights, error_products
from sr_models.fusion.experts import expert_mean
from sr_models.fusion.gate import GateFusion
from sr_models.metrics.images import psnr_y, ssim_y, to_uint8
from sr_models.networks import build_network

SMALL = {"num_feat": 4, "num_conv": 1}


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """Coloured waves and edges: something that enlarging cannot restore exactly."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    picture = np.zeros((height, width, 3))
    for channel in range(3):
        a, b, c = random.uniform(0.05, 0.6, 3)
        wave = np.sin(a * x + b * y) + np.sin(c * x - a * y) + ((x * b + y * c) % 9 > 4)
        picture[..., channel] = 110 + 35 * wave
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


class Graph:
    """Makes outputs on demand, each from the real stages before it, as a build would."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe, self.root = recipe, root
        found = [
            s
            for m in (bronze, overlap, silver, gold, experts, expert_caches, evaluation)
            for s in m.stages(recipe)
        ]
        self.stages: dict[str, Stage] = {s.key: s for s in found}
        self.outputs: dict[Ref, Output] = {}

    def folder(self, ref: Ref, address: str = "address") -> OutputFolder:
        return OutputFolder(UPath(self.root / ref.asset / (ref.partition or "_") / address))

    def context(self, ref: Ref, address: str = "address") -> StageContext:
        """What a run of the stage gets; another address is another, empty output."""
        wanted = self.stages[ref.asset].inputs(ref.partition)
        inputs = {r: self.make(r.asset, r.partition) for r in wanted}

        @contextlib.contextmanager
        def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            yield lambda n: None

        return StageContext(
            self.recipe, ref, self.folder(ref, address), inputs, lambda _: None, lambda _: None, bar
        )

    def make(self, asset: str, partition: str | None = None) -> Output:
        ref = Ref(asset, partition)
        if ref not in self.outputs:
            context = self.context(ref)
            metadata = self.stages[asset].run(context)
            json.dumps(metadata)
            self.outputs[ref] = context.output.commit({"metadata": metadata})
        return self.outputs[ref]

    def put_model(self, name: str, network: torch.nn.Module, **description: Any) -> None:
        ref = Ref(f"model/{name}/checkpoint")
        folder = self.folder(ref)
        full = {"name": name, "scale": 4, "experts": [], "args": SMALL, **description}
        write_model(folder, network, {"architecture": "Compact", **full})
        self.outputs[ref] = folder.commit({"metadata": {}})


def save_expert(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = build_network("Compact", 4, SMALL)
    save_file({k: v * 0.5 for k, v in network.state_dict().items()}, path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    root = tmp_path_factory.mktemp("graph")
    for folder, sizes in (
        ("photos", [(64, 96), (96, 64), (64, 64)]),
        ("bench", [(67, 82), (60, 53), (12, 80)]),
        ("other", [(48, 48)]),
    ):
        (root / folder / "sub").mkdir(parents=True)
        for index, size in enumerate(sizes):
            place = root / folder / ("sub" if index else "") / f"{index}.png"
            Image.fromarray(photo(len(folder) * 10 + index, *size)).save(place)
    for seed, name in enumerate(("one", "two")):
        save_expert(root / f"{name}.safetensors", seed)
    network = {"architecture": "Compact", "args": SMALL}
    train = {"crop": 8, "steps": 10}
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "datasets": {"photos": {"source": {"kind": "folder", "path": str(root / "photos")}}},
            "benchmarks": {
                "bench": {"source": {"kind": "folder", "path": str(root / "bench")}},
                "other": {"source": {"kind": "folder", "path": str(root / "other")}},
            },
            "silver": {"min_side": 32, "patch_size": 32, "stride": 32},
            "experts": {
                name: {"source": {"kind": "file", "path": str(root / f"{name}.safetensors")}}
                for name in ("one", "two")
            },
            "models": {
                "blend": {"kind": "gate", "width": 4, "depth": 1, "train": train},
                "fast": {
                    "kind": "student",
                    "network": network,
                    "teachers": "blend",
                    "control": True,
                    "train": train,
                },
            },
            "evaluation": {"crops": 2, "crop_size": 16},
            "compute": {"device": "cpu"},
        }
    )
    graph = Graph(recipe, root / "out")
    torch.manual_seed(5)
    graph.put_model("fast_control", build_network("Compact", 4, SMALL), kind="plain")
    graph.put_model(
        "blend",
        GateFusion(("one", "two"), 4, 4, 1),
        kind="gate",
        architecture="GateFusion",
        args={"width": 4, "depth": 1},
        experts=["one", "two"],
    )
    graph.put_model("fast", build_network("Compact", 4, SMALL), kind="student")
    return graph


def picture(output: Output, name: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(output.read_bytes(name))))


def test_bicubic_row_is_the_convention(graph: Graph) -> None:
    output = graph.make("evaluation/baselines", "bench")
    results = output.read_json("bicubic/results.json")
    hr = photo(50, 67, 82)[:64, :80]
    lr = downscale_uint8(hr, 4)
    unit = torch.from_numpy(lr.transpose(2, 0, 1)[None] / 255.0)
    sr = to_uint8(upscale(unit, 4)[0])
    (first,) = [i for i in results["images"] if i["name"] == "0.png"]
    assert (first["width"], first["height"]) == (80, 64)
    assert first["psnr_y"] == psnr_y(sr, hr, 4)
    assert first["ssim_y"] == ssim_y(sr, hr, 4)
    assert np.array_equal(picture(output, "bicubic/sr/0.png"), sr)
    assert np.array_equal(picture(output, "hr/0.png"), hr)
    assert np.array_equal(picture(output, "lr/0.png"), lr)


@pytest.mark.shared
def test_the_anchor_on_set5(graph: Graph, shared_data: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(shared_data / "benchmarks" / "Set5")}
    bare = graph.recipe.model_dump(mode="json") | {"experts": {}, "models": {}}
    recipe = Recipe.model_validate(bare | {"benchmarks": {"Set5": {"source": source}}})
    output = Graph(recipe, tmp_path).make("evaluation/baselines", "Set5")
    assert round(output.metadata["psnr_y_bicubic"], 2) == 28.43
    assert round(output.metadata["ssim_y_bicubic"], 4) == 0.8113


def test_an_image_too_small_for_ssim_is_left_out(graph: Graph) -> None:
    results = graph.make("evaluation/baselines", "bench").read_json("bicubic/results.json")
    assert [i["name"] for i in results["images"]] == ["0.png", "sub/1.png"]


def test_expert_keeps_its_unrounded_picture(graph: Graph) -> None:
    output = graph.make("expert/one/evaluation", "bench")
    results = output.read_json("results.json")
    assert results["kind"] == "expert"
    assert results["parameters"] == sum(
        p.numel() for p in build_network("Compact", 4, SMALL).parameters()
    )
    sr = read_image(output, "0001")
    rounded = picture(output, "sr/sub/1.png").transpose(2, 0, 1)
    assert np.abs(np.clip(sr, 0, 1) * 255 - rounded).max() <= 0.5 + 255 / 2040
    assert output.metadata["psnr_y"] == results["mean"]["psnr_y"]
    assert "| sub/1.png | 52×60 |" in output.metadata["table"]["md"]


def test_a_fresh_gate_is_the_mean(graph: Graph) -> None:
    """The fusion reads the very pictures of its experts: at initialisation it is their mean."""
    fusion = graph.make("model/blend/evaluation", "bench")
    baselines = graph.make("evaluation/baselines", "bench")
    for name in ("0.png", "sub/1.png"):
        assert np.array_equal(picture(fusion, f"sr/{name}"), picture(baselines, f"mean/sr/{name}"))
    assert fusion.read_json("results.json")["kind"] == "fusion"
    one, two = (
        torch.from_numpy(read_image(graph.make(f"expert/{e}/evaluation", "bench"), "0000"))
        for e in ("one", "two")
    )
    mean = to_uint8(expert_mean({"one": one, "two": two}, ("one", "two")))
    assert np.array_equal(picture(baselines, "mean/sr/0.png"), mean)


def test_tiles_do_not_change_a_fusion(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture(graph.make("model/blend/evaluation", "bench"), "sr/0.png")
    for name, value in (("TILE", 9), ("HALO", 2), ("_HALOS", 3)):
        monkeypatch.setattr(tiling, name, value)
    context = graph.context(Ref("model/blend/evaluation", "bench"), "tiled")
    models.evaluate_model(context, "blend")
    output = context.output.commit({"metadata": {}})
    assert output.read_json("results.json")["note"] == "tiled 9/2 px: 2 of 2 images"
    tiled = picture(output, "sr/0.png")
    assert np.abs(tiled.astype(int) - whole).max() <= 1  # one rounding, at most


def test_an_expert_says_that_it_was_tiled(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph.make("expert/one/evaluation", "bench").read_json("results.json")["note"] == ""
    for name, value in (("TILE", 9), ("HALO", 2), ("_HALOS", 3)):
        monkeypatch.setattr(tiling, name, value)
    context = graph.context(Ref("expert/one/evaluation", "bench"), "tiled")
    for _ in range(2):  # the second run, as after a kill, finds the pictures finished
        expert_evaluation.evaluate_expert(context, "one")
    output = context.output.commit({"metadata": {}})
    assert output.read_json("results.json")["note"] == "tiled 9/3 px: 2 of 2 images"


def test_a_killed_evaluation_goes_on(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill, finished images are not run again and the result has the same digest."""
    whole = graph.make("expert/two/evaluation", "bench")
    ref = Ref("expert/two/evaluation", "bench")
    ran: list[str] = []
    real = expert_evaluation.image_files

    def dying(name: str, sr: np.ndarray) -> dict[str, bytes]:
        if len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(name)
        return real(name, sr)

    monkeypatch.setattr(expert_evaluation, "image_files", dying)
    with pytest.raises(KeyboardInterrupt):
        expert_evaluation.evaluate_expert(graph.context(ref, "killed"), "two")

    def living(name: str, sr: np.ndarray) -> dict[str, bytes]:
        ran.append(name)
        return real(name, sr)

    monkeypatch.setattr(expert_evaluation, "image_files", living)
    context = graph.context(ref, "killed")
    expert_evaluation.evaluate_expert(context, "two")
    assert ran == ["0000", "0001"]
    assert context.output.data_version() == whole.data_version


def test_mix_is_the_best_convex_one(graph: Graph) -> None:
    output = graph.make("evaluation/baselines", "bench")
    weights = output.read_json("convex.json")
    assert set(weights) == {"one", "two"}
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert min(weights.values()) >= 0
    assert output.metadata["convex_weights"] == weights
    assert "one " in output.read_json("convex/results.json")["note"]


def test_leaderboard_has_every_row_and_the_checks(graph: Graph) -> None:
    output = graph.make("evaluation/leaderboard")
    board = output.read_json("leaderboard.json")
    rows = {row["name"]: row for row in board["rows"]}
    assert list(rows) == [
        "bicubic",
        "one",
        "two",
        "mean",
        "convex",
        "blend",
        "fast",
        "fast_control",
    ]
    assert [r["kind"] for r in rows.values()] == [
        "bicubic", "expert", "expert", "mean", "convex", "fusion", "student", "plain",
    ]  # fmt: skip
    own = rows["blend"]["parameters"]
    experts_size = rows["one"]["parameters"] + rows["two"]["parameters"]
    assert rows["blend"]["total_parameters"] == own + experts_size
    assert rows["mean"]["total_parameters"] == experts_size
    for name, row in rows.items():
        assert set(row["benchmarks"]) == {"bench", "other"}
        values = [score["psnr_y"] for score in row["benchmarks"].values()]
        assert output.metadata[f"psnr_y_{name}"] == pytest.approx(sum(values) / 2)
    checks = {c["name"]: {o["name"]: o for o in c["outcomes"]} for c in board["checks"]}
    assert set(checks) == {"fast_control", "blend", "fast"}
    assert set(checks["blend"]) == {"beats_bicubic", "colour_offset", "beats_best_expert"}
    gain = (
        rows["fast"]["benchmarks"]["bench"]["psnr_y"]
        - rows["bicubic"]["benchmarks"]["bench"]["psnr_y"]
    )
    assert checks["fast"]["beats_bicubic"]["numbers"]["gain_bench"] == pytest.approx(gain)
    assert output.metadata["report"]["path"].endswith("report.html")
    worth = output.metadata["psnr_y_fast"] - output.metadata["psnr_y_fast_control"]
    assert output.metadata["gain_fast"] == pytest.approx(worth) and worth != 0
    helped = checks["fast"]["teacher_helped"]
    assert helped["passed"] is (worth > 0)
    assert helped["reason"].startswith(f"{worth:+.3f} dB against the same network")


def test_every_picture_of_the_page_exists(graph: Graph) -> None:
    output = graph.make("evaluation/leaderboard")
    page = output.read_bytes("report.html").decode()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    shown = set(re.findall(r'<img [^>]*src="([^"]+)"', page))
    shown |= {s["src"] for image in data["images"] for s in image["sources"].values()}
    written = {name for name in output.marker["files"] if name.endswith(".png")}
    assert shown == written
    assert len(data["images"]) == 3
    assert any("/crop2-hr.png" in name for name in shown)
    for row in ("bicubic", "one", "two", "mean", "convex", "blend", "fast", "fast_control"):
        assert f"images/other/000/{row}.png" in shown


def test_leaderboard_is_the_same_bytes_again(graph: Graph) -> None:
    first = graph.make("evaluation/leaderboard")
    context = graph.context(Ref("evaluation/leaderboard"), "again")
    graph.stages["evaluation/leaderboard"].run(context)
    assert context.output.data_version() == first.data_version


def test_costs_are_beside_the_rows(graph: Graph) -> None:
    output = graph.make("evaluation/leaderboard")
    rows = {row["name"]: row for row in output.read_json("leaderboard.json")["rows"]}
    # 3 -> 4 -> 4 -> 48 channels by 3x3 convolutions at LR size, 16 SR pixels each.
    wanted = 9 * (3 * 4 + 4 * 4 + 4 * 48) * 1_000_000 // 16
    for name in ("one", "two", "fast", "fast_control"):
        assert rows[name]["multiply_adds"] == rows[name]["total_multiply_adds"] == wanted
    assert rows["blend"]["multiply_adds"] > 0
    assert rows["blend"]["total_multiply_adds"] == rows["blend"]["multiply_adds"] + 2 * wanted
    assert rows["mean"]["multiply_adds"] is None
    assert rows["mean"]["total_multiply_adds"] == rows["convex"]["total_multiply_adds"]
    assert rows["mean"]["total_multiply_adds"] == 2 * wanted
    assert rows["bicubic"]["total_multiply_adds"] is None
    speeds = output.read_json("seconds.json")
    assert set(speeds) == set(rows) - {"bicubic"}
    experts = sum(speeds[e]["seconds"] for e in ("one", "two"))
    assert speeds["blend"]["total_seconds"] == pytest.approx(speeds["blend"]["seconds"] + experts)
    assert speeds["mean"]["total_seconds"] == pytest.approx(experts)
    (device,) = speeds["fast"]["devices"]
    assert device.endswith(f", {torch.get_num_threads()} threads") or "1 thread" in device
    table = output.metadata["table"]["md"]
    assert f"| {wanted / 1e9:.3g} |" in table and device in table
    made = graph.make("model/fast/cost").metadata
    assert made["multiply_adds_per_megapixel"] == wanted
    assert made["seconds_per_megapixel"] == speeds["fast"]["seconds"]


def test_seconds_are_no_content(graph: Graph) -> None:
    """A measurement that differs from day to day changes no data version, and is kept."""
    for asset in ("model/fast/cost", "expert/one/cost", "evaluation/leaderboard"):
        first = graph.make(asset)
        assert not first.marker["files"]["seconds.json"]["content"]
        context = graph.context(Ref(asset), "another-day")
        graph.stages[asset].run(context)
        slower = {"seconds": 1e6} if "cost" in asset else {"fast": {"seconds": 1e6}}
        context.output.write_json("seconds.json", slower, content=False)
        assert context.output.data_version() == first.data_version
    assert not first.marker["files"]["report.html"]["content"]
    page = first.read_bytes("report.html").decode()
    assert graph.make("model/fast/cost").metadata["device"] in page


def test_a_total_of_two_devices_has_no_seconds() -> None:
    one, two = Cost(5, 7, 0.5, ("a",)), Cost(1, 2, 0.25, ("b",))
    assert total_cost([]) is None
    assert total_cost([one, one]) == Cost(10, 14, 1.0, ("a",))
    both = Cost(6, 9, None, ("a", "b"))
    assert total_cost([one, two]) == both
    assert total_cost([both, one]) == Cost(11, 16, None, ("a", "b"))


def test_inputs_and_slices(graph: Graph) -> None:
    stage = graph.stages["model/blend/evaluation"]
    assert set(stage.inputs("bench")) == {
        Ref("bronze/images", "bench"),
        Ref("model/blend/checkpoint"),
        Ref("expert/one/evaluation", "bench"),
        Ref("expert/two/evaluation", "bench"),
    }
    longer = graph.recipe.model_dump(mode="json", exclude_unset=True)
    del longer["models"]["fast_control"]  # made by the recipe itself
    longer["models"]["fast"]["train"]["steps"] = 99
    longer["evaluation"]["crops"] = 1
    changed = {s.key: s.settings for s in evaluation.stages(Recipe.model_validate(longer))}
    before = {s.key: s.settings for s in evaluation.stages(graph.recipe)}
    assert [k for k in before if before[k] != changed[k]] == ["evaluation/leaderboard"]


def test_without_benchmarks_there_is_no_stage(graph: Graph) -> None:
    bare = graph.recipe.model_copy(update={"benchmarks": {}})
    assert evaluation.stages(bare) == []


def test_a_row_may_not_be_called_like_a_control(graph: Graph) -> None:
    named = graph.recipe.model_copy(
        update={"models": {"mean": graph.recipe.models["fast_control"]}}
    )
    with pytest.raises(StageError, match=r"models\.mean: .* rename"):
        evaluation.stages(named)


def test_without_experts_only_bicubic_is_a_control(graph: Graph, tmp_path: Path) -> None:
    plain = graph.recipe.model_copy(
        update={"experts": {}, "models": {"thumb": graph.recipe.models["fast_control"]}}
    )
    small = Graph(plain, tmp_path)
    small.put_model("thumb", build_network("Compact", 4, SMALL), kind="plain")
    output = small.make("evaluation/leaderboard")
    board = output.read_json("leaderboard.json")
    assert [row["name"] for row in board["rows"]] == ["bicubic", "thumb"]
    # No name of a row is the file of another picture.
    own = small.outputs[Ref("model/thumb/evaluation", "other")]
    (image,) = own.read_json("results.json")["images"]
    assert output.read_bytes("images/other/000/thumb.png") == own.read_bytes(image["picture"])


@pytest.fixture(scope="module")
def damaged(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The same graph with LR that is degraded at random, three versions of each patch."""
    changed = graph.recipe.model_dump(mode="json", exclude_unset=True)
    del changed["models"]["fast_control"]  # made by the recipe itself
    changed["gold"] = {"degradation": "light", "variants": 3}
    changed["silver"]["validation_share"] = 0.5
    recipe = Recipe.model_validate(changed)
    copy = Graph(recipe, tmp_path_factory.mktemp("damaged"))
    for name in recipe.models:
        ref = Ref(f"model/{name}/checkpoint")
        copy.outputs[ref] = graph.outputs[ref]
    return copy


def test_bicubic_gold_has_no_kinds_of_damage(graph: Graph, damaged: Graph) -> None:
    """And no other stage is changed by them than the leaderboard, which reads them."""
    wanted = {f"expert/{n}/damage" for n in graph.recipe.experts}
    wanted |= {f"model/{n}/damage" for n in graph.recipe.models}
    assert set(damaged.stages) - set(graph.stages) == wanted
    for key in {s.key for s in evaluation.stages(graph.recipe)} - {"evaluation/leaderboard"}:
        assert damaged.stages[key].settings == graph.stages[key].settings
        for part in ("bench", None):
            assert [*damaged.stages[key].inputs(part)] == [*graph.stages[key].inputs(part)]
    board = damaged.stages["evaluation/leaderboard"]
    assert board.settings == graph.stages["evaluation/leaderboard"].settings
    assert wanted == {r.asset for r in board.inputs(None) if r.asset.endswith("/damage")}
    assert "damage" not in graph.make("evaluation/leaderboard").read_json("leaderboard.json")
    page = graph.make("evaluation/leaderboard").read_bytes("report.html").decode()
    assert 'id="damage"' not in page


def test_rows_are_measured_on_every_held_out_version(damaged: Graph) -> None:
    patches = PatchReader(damaged.make("silver/patches", "photos"))
    pairs = PairReader(damaged.make("gold/pairs", "photos"))
    cache = CacheReader(damaged.make("expert/one/cache", "photos"))
    held_out = np.flatnonzero(patches.split == VALIDATION).tolist()
    assert held_out and len(held_out) < len(patches)
    scores = read_damage(damaged.make("expert/one/damage"))
    assert list(scores.samples) == [("photos", n, k) for n in held_out for k in range(3)]
    for (_, index, variant), own, bicubic in zip(
        scores.samples, scores.psnr_y, scores.bicubic, strict=True
    ):
        hr, lr = patches.hr(index), pairs.lr(index, variant)
        sr = to_uint8(torch.from_numpy(cache.sr(index, variant)))
        assert own == psnr_y(sr, hr, 4)
        unit = torch.from_numpy(lr.transpose(2, 0, 1)[None] / 255.0)
        assert bicubic == psnr_y(to_uint8(upscale(unit, 4)[0]), hr, 4)
    for group in ("blur", "resize", "noise", "JPEG"):
        whole = [k["group"] == group and not k["part"] for k in scores.kinds]
        assert (scores.members[:, whole].sum(1) == 1).all()


def test_a_fusion_is_measured_from_the_caches(damaged: Graph) -> None:
    """At initialisation it is the mean of its experts, in these versions too."""
    patches = PatchReader(damaged.make("silver/patches", "photos"))
    caches = [CacheReader(damaged.make(f"expert/{e}/cache", "photos")) for e in ("one", "two")]
    output = damaged.make("model/blend/damage")
    scores = read_damage(output)
    for (_, index, variant), own in zip(scores.samples, scores.psnr_y, strict=True):
        one, two = (torch.from_numpy(cache.sr(index, variant)) for cache in caches)
        mean = to_uint8(expert_mean({"one": one, "two": two}, ("one", "two")))
        assert own == pytest.approx(psnr_y(mean, patches.hr(index), 4), abs=0.05)
    said = output.read_json("damage.json")
    gain = said["all"]["rows"]["blend"]["gain"]
    assert gain == pytest.approx(np.mean(scores.psnr_y - scores.bicubic))
    assert output.metadata["samples"] == said["all"]["samples"] == len(scores.samples)
    assert "| JPEG | none |" in output.metadata["damage"]["md"]
    assert {Ref("expert/one/cache", "photos"), Ref("expert/two/cache", "photos")} <= set(
        damaged.stages["model/blend/damage"].inputs(None)
    )


def test_the_leaderboard_puts_rows_side_by_side(damaged: Graph) -> None:
    output = damaged.make("evaluation/leaderboard")
    damage = output.read_json("leaderboard.json")["damage"]
    names = ["one", "two", "blend", "fast", "fast_control"]
    assert sorted(damage["all"]["rows"]) == sorted(names)
    for name in names:
        group = "expert" if name in ("one", "two") else "model"
        said = damaged.make(f"{group}/{name}/damage").read_json("damage.json")
        assert damage["all"]["rows"][name] == said["all"]["rows"][name]
        assert [g["name"] for g in damage["groups"]] == [g["name"] for g in said["groups"]]
    models = {n: r["psnr_y"] for n, r in damage["all"]["rows"].items() if n not in ("one", "two")}
    assert damage["best"] == max(models, key=lambda n: models[n])
    page = output.read_bytes("report.html").decode()
    section = page.split('<section id="damage">')[1].split("</section>")[0]
    shown = set(re.findall(r'<img [^>]*src="([^"]+)"', section))
    assert shown == {n for n in output.marker["files"] if n.startswith("damage/")}
    patches = PatchReader(damaged.make("silver/patches", "photos"))
    pairs = PairReader(damaged.make("gold/pairs", "photos"))
    example = damage["examples"][0]
    index, variant = example["index"], example["variant"]
    shots = {shot["row"]: shot for shot in example["pictures"]}
    assert list(shots) == ["hr", "lr", "bicubic", damage["best"]]
    assert np.array_equal(picture(output, shots["hr"]["src"]), patches.hr(index))
    assert np.array_equal(picture(output, shots["lr"]["src"]), pairs.lr(index, variant))
    sr = picture(output, shots[damage["best"]]["src"])
    assert shots[damage["best"]]["psnr_y"] == psnr_y(sr, patches.hr(index), 4)


def test_rows_measured_on_other_samples_are_not_compared(damaged: Graph, tmp_path: Path) -> None:
    outside = Graph(damaged.recipe, tmp_path)
    outside.outputs = dict(damaged.outputs)
    for key in ("evaluation/leaderboard", "model/fast/damage"):
        outside.outputs.pop(Ref(key), None)
    run = outside.stages["model/fast/damage"].run
    context = outside.context(Ref("model/fast/damage"))
    run(context, datasets=())  # type: ignore[call-arg]
    outside.outputs[Ref("model/fast/damage")] = context.output.commit({"metadata": {}})
    with pytest.raises(StageError, match="fast was measured on other held-out samples"):
        outside.make("evaluation/leaderboard")


def test_identical_images_are_null_and_left_out_of_the_mean() -> None:
    images = (
        ImageScore("a", 9, 9, None, 1.0, (0.0, 0.0, 0.0), "sr/a.png"),
        ImageScore("b", 9, 9, 30.0, 0.5, (1.0, -2.0, 0.0), "sr/b.png"),
    )
    written = json.loads(json.dumps(Results("x", "plain", images, 5).to_json(), allow_nan=False))
    assert written["mean"] == {
        "psnr_y": 30.0,
        "ssim_y": 0.75,
        "colour_offset": [0.5, -1.0, 0.0],
        "colour_offset_abs": [0.5, 1.0, 0.0],
        "metrics": {},
    }
    assert "1 of 2 images equal HR" in written["note"]
    assert results_from_json(written).images == images
    alone = Results("x", "plain", images[:1], 5)
    assert alone.mean["psnr_y"] is None
    assert "psnr_y" not in alone.metadata()


def test_pictures_of_clashing_names_stay_apart() -> None:
    names = picture_names(["a.png", "a.jpg", "sub/a.png", "B.png", "b.PNG"])
    assert names["sub/a.png"] == "sub/a.png"
    assert len({n.casefold() for n in list(names.values())[:3]}) == 3
    assert names["B.png"] != names["b.PNG"]


def test_crops_are_where_pictures_differ_and_do_not_overlap() -> None:
    base = np.full((60, 80, 3), 100, np.uint8)
    other = base.copy()
    other[8:16, 40:48] = 200
    other[40:44, 0:4] = 150
    crops = choose_crops([base, other], size=17, count=5, step=4)
    assert [side for *_, side in crops] == [16, 16]
    (x, y, side), (x2, y2, _) = crops
    assert x <= 40 and x + side >= 48 and y <= 8 and y + side >= 16
    assert x2 <= 0 and y2 <= 40 and y2 + side >= 44
    assert choose_crops([base, base], 16, 3, 4) == []
    assert choose_crops([base[:8, :8], other[10:18, 42:50]], 96, 1, 4) == [(0, 0, 8)]


def test_convex_weights_against_brute_force() -> None:
    random = np.random.default_rng(1)
    target = random.normal(size=(3, 40))
    noise = random.normal(size=(3, 3, 40)) * np.array([0.3, 0.5, 3.0])[:, None, None]
    samples = [(target[i] + noise[:, i], target[i]) for i in range(3)]
    weights = convex_weights(error_products(samples))

    def error(w: np.ndarray) -> float:
        mixed = [np.tensordot(w, pictures, 1) - wanted for pictures, wanted in samples]
        return float(np.mean(np.square(mixed)))

    grid = np.linspace(0, 1, 101)
    best = min(error(np.array([a, b, 1 - a - b])) for a in grid for b in grid if a + b <= 1)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert error(weights) <= best
    assert convex_weights(np.zeros((2, 2))).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="no sample"):
        error_products([])
