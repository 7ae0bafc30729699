"""The benchmark scripts run, count what they say they count, and end with their headline."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from sr_assets import cli
from sr_models.export.weights import serialise_weights
from sr_models.networks import build_network

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def script(module: str) -> Callable[[pytest.MonkeyPatch], ModuleType]:
    """A fixture that imports a module of the folder, where they find each other as when run."""

    @pytest.fixture(name=module)
    def imported(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(module)

    return imported


steps = script("steps")
cached_stores = script("cached_stores")
cached_vs_live = script("cached_vs_live")
original_fusion = script("original_fusion")
fusion_step = script("fusion_step")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Scripts set the threads of torch, which is not to outlast the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [script.__name__, *words, "--threads", "1"])
    return script.main()


def rows(table: str) -> dict[str, list[str]]:
    """The four cells of each row by its name, up to the first comma of it."""
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    return {row[1].split(",")[0]: row[2:6] for row in cells if len(row) == 7}


def test_cached_vs_live_ends_with_its_headline(
    cached_vs_live: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--size demo --random-weights --batch 2 --crop 8 --repeats 1"
    assert run(cached_vs_live, monkeypatch, *options.split()) == 0
    table = capsys.readouterr().out
    headline = json.loads(table.splitlines()[-1])
    assert headline.keys() == {"name", "ratio", "peer", "unit", "repeats"}
    assert headline["name"] == "cached_vs_live_demo" and headline["repeats"] == 1
    assert headline["ratio"] > 0
    cells = rows(table)
    for expert in ("hat", "drct", "grl", "edsr"):  # they run in the live step and only there
        live, cached, live_wall, cached_wall = cells[expert]
        assert float(live) > 0 and float(live_wall) > 0
        assert cached == cached_wall == "-"
    for part in ("forward and L1", "backward", "update", "whole step"):
        assert all(float(seconds) > 0 for seconds in cells[part])
    assert not list(tmp_path.iterdir())


def test_missing_weights_are_named(
    cached_vs_live: ModuleType,
    cached_stores: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    (tmp_path / "hat_demo_x4.safetensors").touch()
    monkeypatch.setattr(cached_stores, "SHIPPED", tmp_path)
    assert run(cached_vs_live, monkeypatch, "--size", "both") == 1
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1
    assert "grl_demo_x4.safetensors" in error and "hat_demo_x4" not in error
    assert "--random-weights" in error


def watched(steps: ModuleType, **cpu: float) -> object:
    return steps.Stopwatch(cpu, {part: 2 * seconds for part, seconds in cpu.items()})


def test_the_headline_is_the_median_of_paired_cpu_ratios(steps: ModuleType) -> None:
    times = {
        "slow": [watched(steps, a=3, b=9), watched(steps, a=3, b=57), watched(steps, a=3, b=29)],
        "fast": [watched(steps, a=3), watched(steps, a=4), watched(steps, a=4)],
    }
    assert steps.headline("some", times, "peer", "slow / fast") == {
        "name": "some",
        "ratio": 8,  # of 4, 15 and 8
        "peer": "peer",
        "unit": "CPU seconds of a training step, slow / fast",
        "repeats": 3,
    }
    table = steps.cost_table(times, {"a": "reading", "b": "running"})
    cells = rows("\n".join(table))
    assert cells["reading"] == ["3.00", "4.00", "6.00", "8.00"]
    assert cells["running"] == ["29.00", "-", "58.00", "-"]
    assert cells["whole step"] == ["32.00", "4.00", "64.00", "8.00"]
    assert table[-2:] == [
        "slow / fast, CPU seconds: 8.00 (4.00 to 15.00)",
        "slow / fast, wall-clock seconds: 8.00 (4.00 to 15.00)",
    ]


def test_what_the_ratio_would_be_without_reading(
    cached_vs_live: ModuleType, steps: ModuleType
) -> None:
    read = cached_vs_live.READ
    times = {
        "live": [watched(steps, **{read: 1, "hat": 9, "backward": 2})] * 2,
        "cached": [watched(steps, **{read: 3, "backward": 2}), watched(steps, backward=2)],
    }
    shown = cached_vs_live.outlook({way: watches[:1] for way, watches in times.items()})
    assert "Reading is 60.0% of the cached step" in shown
    assert shown.endswith("live / cached is 5.50.")  # 9 + 2 over 2


def test_each_goes_first_every_other_time(steps: ModuleType) -> None:
    assert list(steps.turns(("a", "b"), 2)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("SR", {"quantise": lambda sr: (sr * 2000).astype("int16")}),
        (
            "features",
            {"quantise_features": lambda f: (f.astype("int8"), np.ones(f.shape[:-2], "f"))},
        ),
    ],
)
def test_a_cache_that_differs_from_the_expert_stops_it(
    cached_stores: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    broken: dict[str, Callable],
) -> None:
    setting = cached_stores.Setting("demo", "random", 1, 8, 8, 1)
    _, pairs = cached_stores.write_pictures(setting, tmp_path)
    reader = cached_stores.PairReader(pairs)
    expert = cached_stores.random_expert(tmp_path, "EDSR", {"num_feat": 4, "num_block": 1})
    cache = cached_stores.write_cache("edsr", expert, reader, tmp_path / "right")
    assert (len(cache), cache.size, cache.feature_shape) == (2, 32, (4, 8, 8))
    for name, wrong in broken.items():
        monkeypatch.setattr(f"sr_assets.stores.cache_coding.{name}", wrong)
    with pytest.raises(ValueError, match=f"the {what} in the cache of edsr are off by"):
        cached_stores.write_cache("edsr", expert, reader, tmp_path / "wrong")


def test_both_ways_give_the_step_the_same(
    cached_vs_live: ModuleType, cached_stores: ModuleType, steps: ModuleType, tmp_path: Path
) -> None:
    setting = cached_stores.Setting("demo", "random", 2, 8, 8, 1)
    patches, pairs = cached_stores.write_pictures(setting, tmp_path)
    stores = cached_vs_live.PatchReader(patches), cached_vs_live.PairReader(pairs)
    expert = cached_stores.random_expert(tmp_path, "EDSR", {"num_feat": 4, "num_block": 1})
    cache = cached_stores.write_cache("edsr", expert, stores[1], tmp_path)
    without = cached_vs_live.DatasetStores("photos", *stores)
    cached = cached_vs_live.DatasetStores("photos", *stores, {"edsr": cache})
    seen: list[Any] = []

    def step(inputs: object, watch: object) -> None:
        seen.append(inputs)

    timed = [
        cached_vs_live.run_step(setting, dataset, live, step, 3)
        for dataset, live in ((without, {"edsr": expert}), (cached, {}))
    ]
    assert [list(watch.cpu) for watch in timed] == [["read the batch", "edsr"], ["read the batch"]]
    live, read = seen
    assert torch.equal(live.lr, read.lr) and torch.equal(live.hr, read.hr)
    for made, found in ((live.sr, read.sr), (live.features, read.features)):
        assert made.keys() == found.keys() == {"edsr"}
        assert made["edsr"].shape == found["edsr"].shape
        assert not made["edsr"].is_inference()


def inputs(original_fusion: ModuleType, height: int, width: int) -> tuple:
    torch.manual_seed(0)
    sr = {n: torch.rand(1, 3, 4 * height, 4 * width) for n in original_fusion.FEATURES}
    features = {n: torch.rand(1, c, height, width) for n, c in original_fusion.FEATURES.items()}
    return torch.rand(1, 3, height, width), sr, features


def test_the_original_has_its_parameters_in_each_phase(original_fusion: ModuleType) -> None:
    network = original_fusion.OriginalFusion()
    counts = {n: sum(p.numel() for p in c.parameters()) for n, c in network.named_children()}
    assert counts == {
        "freq_decomp": 4_106,
        "cross_band": 42_565,
        "collaborative": 343_438,
        "multi_res": 360_315,
        "freq_weight_conv": 132,
        "dynamic_selector": 20_710,
        "refine": 597_379,
        "edge_enhance": 89_147,
    }
    assert network.residual_scale.numel() == 1
    assert sum(p.numel() for p in network.parameters()) == 1_457_793
    assert len(list(network.parameters())) == 226 - 28  # of the state dict, 28 are buffers


def test_the_original_decomposes_as_it_was_measured_to(original_fusion: ModuleType) -> None:
    decompose = original_fusion.FrequencyDecomposition()
    picture = torch.rand(1, 3, 21, 34)
    bands = decompose(picture)
    assert len(bands) == 9 and all(band.shape == picture.shape for band in bands)
    torch.testing.assert_close(sum(bands[:3]), picture)
    torch.testing.assert_close(sum(bands[7:]), picture)
    flat = decompose(torch.full((1, 3, 64, 64), 0.7))
    assert flat[7].mean().item() == pytest.approx(1e-6, abs=5e-7)  # the mean is in "high"
    assert flat[8].mean().item() == pytest.approx(0.7, abs=1e-4)
    assert flat[3].mean().item() == pytest.approx(1.4, abs=1e-4)  # LL has gain 2
    impulse = torch.zeros(1, 3, 32, 32)
    impulse[..., 16, 16] = 1
    rows = decompose(impulse)[3][0, 0].abs().sum(1)
    assert (rows @ torch.arange(32.0) / rows.sum()).item() == pytest.approx(14.46, abs=0.01)


def test_the_original_fuses_at_its_three_sizes_and_trains(original_fusion: ModuleType) -> None:
    network = original_fusion.OriginalFusion().train()
    seen: list[tuple[int, ...]] = []
    for stage in network.multi_res.stages:
        stage.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape[1:]))
    lr, sr, features = inputs(original_fusion, 16, 12)
    output = network(lr, dict(reversed(sr.items())), features)
    assert seen == [(12, 16, 12), (76, 32, 24), (76, 64, 48)]
    assert output.shape == (1, 3, 64, 48) and output.min() >= 0 and output.max() <= 1
    output.square().mean().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_a_fresh_original_is_a_tenth_too_bright(original_fusion: ModuleType) -> None:
    torch.manual_seed(1)
    network = original_fusion.OriginalFusion().eval()
    lr, _, features = inputs(original_fusion, 16, 16)
    lr = torch.full_like(lr, 0.495)
    sr = dict.fromkeys(original_fusion.FEATURES, torch.full((1, 3, 64, 64), 0.495))
    with torch.no_grad():
        assert network(lr, sr, features).mean().item() == pytest.approx(0.547, abs=0.01)


def test_fusion_step_times_both_networks(
    fusion_step: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    assert run(fusion_step, monkeypatch, "--crop", "8", "--repeats", "2") == 0
    table = capsys.readouterr().out
    headline = json.loads(table.splitlines()[-1])
    assert headline.keys() == {"name", "ratio", "peer", "unit", "repeats"}
    assert headline["name"] == "fusion_step" and headline["repeats"] == 2
    assert headline["ratio"] > 0
    assert "original 1,457,793" in table
    cells = rows(table)
    for part in ("forward and L1", "backward", "update", "whole step"):
        assert all(float(cell) >= 0 for cell in cells[part])


def test_fusion_step_prints_json_alone_and_names_what_is_wrong(
    fusion_step: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    assert run(fusion_step, monkeypatch, "--crop", "8", "--repeats", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["repeats"] == 1
    assert run(fusion_step, monkeypatch, "--crop", "7") == 1
    out, error = capsys.readouterr()
    assert out == "" and error == "fusion_step: --crop 7: the original takes 8 px or more\n"


def test_fusion_step_without_caches_says_what_to_build(
    fusion_step: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert run(fusion_step, monkeypatch, "--psnr", "demo", "--steps", "1") == 1
    out, error = capsys.readouterr()
    assert out == "" and error.splitlines()[-1] == (
        "fusion_step: silver/patches[photos] has not been made: run `srd build 'expert/*/cache'`"
    )


def write_tiny_project(folder: Path) -> None:
    """Three images and two tiny experts, of which one has its features cached."""
    draw = np.random.default_rng(3)
    (folder / "photos").mkdir()
    for number in range(3):
        pixels = draw.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    for name in ("with_features", "without"):
        network = build_network("EDSR", 4, {"num_feat": 8, "num_block": 1})
        weights = serialise_weights(network.state_dict(), {})
        (folder / f"{name}.safetensors").write_bytes(weights)
    recipe = {
        "name": "tiny",
        "datasets": {"photos": {"source": {"kind": "folder", "path": "photos"}}},
        "silver": {"min_side": 32, "patch_size": 32, "stride": 32, "validation_share": 0.3},
        "experts": {
            name: {
                "source": {"kind": "file", "path": f"{name}.safetensors"},
                "features": name == "with_features",
            }
            for name in ("with_features", "without")
        },
        "models": {"fused": {"kind": "fusion", "train": {"crop": 8}}},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))


def test_fusion_step_compares_psnr_at_equal_steps(
    fusion_step: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    write_tiny_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    built = CliRunner().invoke(cli.main, ["build", "expert/*/cache", "-r", "tiny.yaml"])
    assert built.exit_code == 0, built.output
    capsys.readouterr()
    assert run(fusion_step, monkeypatch, "--psnr", "tiny.yaml", "--steps", "2") == 0
    table = capsys.readouterr().out
    headline = json.loads(table.splitlines()[-1])
    cells = rows(table)
    mean, theirs, ours, gain = (float(cell) for cell in cells["0"])
    assert ours == pytest.approx(mean, abs=0.002)  # a fresh one of ours is the mean
    assert abs(theirs - mean) > 0.01
    assert gain == pytest.approx(ours - theirs, abs=0.002)
    assert set(cells) == {"steps", "0", "1", "2"} | {k for k in cells if k.startswith("-")}
    assert "features in the cache of: with_features" in table
    last_gain = float(cells["2"][3])
    assert headline["ratio"] == pytest.approx(10 ** (last_gain / 10), rel=0.01)
