"""The benchmark scripts run, count what they say they count, and end with their headline."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sr_models.export.weights import serialise_weights
from sr_models.networks import build_network

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def cached_vs_live(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "cached_vs_live", BENCHMARKS / "cached_vs_live.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_cached_vs_live_ends_with_its_headline(tmp_path: Path) -> None:
    options = "--size demo --random-weights --batch 2 --crop 8 --repeats 1 --threads 1"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "cached_vs_live.py", *options.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    headline = json.loads(done.stdout.splitlines()[-1])
    assert headline.keys() == {"name", "ratio", "peer", "unit", "repeats"}
    assert headline["name"] == "cached_vs_live_demo" and headline["repeats"] == 1
    assert headline["ratio"] > 0
    cells = {
        columns[1].split(",")[0].strip(): [cell.strip() for cell in columns[2:6]]
        for line in done.stdout.splitlines()
        if len(columns := line.split("|")) == 7
    }
    for expert in ("hat", "drct", "grl", "edsr"):  # they run in the live step and only there
        live, cached, live_wall, cached_wall = cells[expert]
        assert float(live) > 0 and float(live_wall) > 0
        assert cached == cached_wall == "-"
    assert all(float(seconds) > 0 for seconds in cells["fusion step"])
    assert not list(tmp_path.iterdir())


def test_missing_weights_are_named(
    cached_vs_live: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "hat_demo_x4.safetensors").touch()
    monkeypatch.setattr(cached_vs_live, "SHIPPED", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cached_vs_live.py", "--size", "both"])
    assert cached_vs_live.main() == 1
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1
    assert "grl_demo_x4.safetensors" in error and "hat_demo_x4" not in error
    assert "--random-weights" in error


def test_the_headline_is_the_median_of_paired_cpu_ratios(
    cached_vs_live: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def watch(read: float, step: float, **experts: float) -> object:
        cpu = {cached_vs_live.READ: read, cached_vs_live.STEP: step, **experts}
        return cached_vs_live.Stopwatch(cpu, {part: 2 * seconds for part, seconds in cpu.items()})

    setting = cached_vs_live.Setting("full", "random", 1, 64, 64, 3)
    times = {
        "live": [watch(1, 2, hat=9), watch(1, 2, hat=57), watch(1, 2, hat=29)],
        "cached": [watch(2, 1), watch(2, 2), watch(2, 2)],
    }
    headline = cached_vs_live.report(setting, {}, times, 5)
    assert headline["ratio"] == 8  # of 4, 15 and 8
    shown = capsys.readouterr().out
    assert "CPU seconds: 8.0 (4.0 to 15.0)" in shown
    assert "in memory, so that nothing is read: 15.5" in shown  # (29 + 2) / 2
    assert "instead of the gate: 4.5" in shown  # (1 + 29 + 6) / (2 + 6)


def test_a_cache_that_differs_from_the_expert_stops_it(
    cached_vs_live: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = cached_vs_live.Setting("demo", "random", 1, 8, 8, 1)
    _, pairs = cached_vs_live.write_pictures(setting, tmp_path)
    reader = cached_vs_live.PairReader(pairs)
    expert = cached_vs_live.random_expert(tmp_path, "EDSR", {"num_feat": 4, "num_block": 1})
    cache = cached_vs_live.write_cache("edsr", expert, reader, tmp_path / "right")
    assert len(cache) == 2 and cache.size == 32
    quantise = "sr_assets.stores.expert_cache.quantise"
    monkeypatch.setattr(quantise, lambda sr: (sr * 2000).astype("int16"))
    with pytest.raises(ValueError, match="cache of edsr is off by"):
        cached_vs_live.write_cache("edsr", expert, reader, tmp_path / "wrong")


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("original_fusion", monkeypatch)


@pytest.fixture
def fusion_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("fusion_step", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    for module in ("original_fusion", "fusion_step"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(name)


def inputs(original: ModuleType, height: int, width: int) -> tuple:
    torch.manual_seed(0)
    sr = {n: torch.rand(1, 3, 4 * height, 4 * width) for n in original.FEATURES}
    features = {n: torch.rand(1, c, height, width) for n, c in original.FEATURES.items()}
    return torch.rand(1, 3, height, width), sr, features


def test_the_original_has_its_parameters_in_each_phase(original: ModuleType) -> None:
    network = original.OriginalFusion()
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


def test_the_original_decomposes_as_it_was_measured_to(original: ModuleType) -> None:
    decompose = original.FrequencyDecomposition()
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


def test_the_original_fuses_at_its_three_sizes_and_trains(original: ModuleType) -> None:
    network = original.OriginalFusion().train()
    seen: list[tuple[int, ...]] = []
    for stage in network.multi_res.stages:
        stage.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape[1:]))
    lr, sr, features = inputs(original, 16, 12)
    output = network(lr, dict(reversed(sr.items())), features)
    assert seen == [(12, 16, 12), (76, 32, 24), (76, 64, 48)]
    assert output.shape == (1, 3, 64, 48) and output.min() >= 0 and output.max() <= 1
    output.square().mean().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_a_fresh_original_is_a_tenth_too_bright(original: ModuleType) -> None:
    torch.manual_seed(1)
    network = original.OriginalFusion().eval()
    lr, _, features = inputs(original, 16, 16)
    lr = torch.full_like(lr, 0.495)
    sr = dict.fromkeys(original.FEATURES, torch.full((1, 3, 64, 64), 0.495))
    with torch.no_grad():
        assert network(lr, sr, features).mean().item() == pytest.approx(0.547, abs=0.01)


def run_fusion_step(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / "fusion_step.py", *words, "--threads", "1"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DAGSTER_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
    )


def test_fusion_step_times_both_networks(tmp_path: Path) -> None:
    done = run_fusion_step(tmp_path, "--crop", "8", "--repeats", "2")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    headline = json.loads(last)
    assert headline.keys() == {"name", "ratio", "peer", "unit", "repeats"}
    assert headline["name"] == "fusion_step" and headline["repeats"] == 2
    assert headline["ratio"] > 0
    assert "original 1,457,793" in done.stdout
    cells = {row[1].strip(): row[2:6] for line in table if len(row := line.split("|")) == 7}
    for part in ("forward and L1", "backward", "AdamW", "whole step"):
        assert all(float(cell) >= 0 for cell in cells[part])
    assert not list(tmp_path.iterdir())


def test_fusion_step_prints_json_alone_and_names_what_is_wrong(
    fusion_step: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fusion_step.py", "--crop", "8", "--repeats", "1", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    assert fusion_step.main() == 0
    assert json.loads(capsys.readouterr().out)["repeats"] == 1
    monkeypatch.setattr(sys, "argv", ["fusion_step.py", "--crop", "7"])
    assert fusion_step.main() == 1
    out, error = capsys.readouterr()
    assert out == "" and error == "fusion_step: --crop 7: the original takes 8 px or more\n"


def test_the_ratio_of_steps_is_the_median_of_paired_cpu_ratios(fusion_step: ModuleType) -> None:
    def watch(forward: float, backward: float) -> object:
        cpu = {fusion_step.FORWARD: forward, fusion_step.BACKWARD: backward, fusion_step.UPDATE: 0}
        return fusion_step.Stopwatch(cpu, {part: 2 * seconds for part, seconds in cpu.items()})

    times = {
        "original": [watch(2, 6), watch(3, 6), watch(20, 80)],
        "ours": [watch(1, 1), watch(1, 2), watch(2, 2)],
    }
    headline, table = fusion_step.cost_report(times, "")
    assert headline["ratio"] == 4  # of 4, 3 and 25
    assert "CPU seconds: 4.00 (3.00 to 25.00)" in table


def test_fusion_step_without_caches_says_what_to_build(tmp_path: Path) -> None:
    done = run_fusion_step(tmp_path, "--psnr", "demo", "--steps", "1")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "fusion_step: silver/patches[photos] has not been made: run `srd build 'expert/*/cache'`"
    )


def test_fusion_step_compares_psnr_at_equal_steps(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = draw.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    for name in ("with_features", "without"):
        network = build_network("EDSR", 4, {"num_feat": 8, "num_block": 1})
        weights = serialise_weights(network.state_dict(), {})
        (tmp_path / f"{name}.safetensors").write_bytes(weights)
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
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    build = [Path(sys.executable).with_name("srd"), "build", "expert/*/cache", "-r", "tiny.yaml"]
    home = {**os.environ, "OMP_NUM_THREADS": "1", "DAGSTER_HOME": str(tmp_path / "home")}
    subprocess.run(build, cwd=tmp_path, env=home, check=True, capture_output=True)
    done = run_fusion_step(tmp_path, "--psnr", "tiny.yaml", "--steps", "2")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    headline = json.loads(last)
    rows = {row[1].strip(): row[2:6] for line in table if len(row := line.split("|")) == 7}
    mean, theirs, ours, gain = (float(cell) for cell in rows["0"])
    assert ours == pytest.approx(mean, abs=0.002)  # a fresh one of ours is the mean
    assert abs(theirs - mean) > 0.01
    assert gain == pytest.approx(ours - theirs, abs=0.002)
    assert set(rows) == {"steps", "0", "1", "2"} | {k for k in rows if k.startswith("-")}
    assert "features in the cache of: with_features" in done.stdout
    last_gain = float(rows["2"][3])
    assert headline["ratio"] == pytest.approx(10 ** (last_gain / 10), rel=0.01)
