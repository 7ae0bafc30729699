"""The benchmark scripts run, count what they say they count, and end with their headline."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
