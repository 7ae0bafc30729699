"""Measuring backends with tiny real networks, and what the next command takes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from spandrel.architectures.Compact import Compact
from torch import nn
from upath import UPath

from sr_assets.backend_choice import Choice, Machine, recall, remember, this_machine
from sr_assets.bench import BackendResult, BenchReport, Timing, bench
from sr_assets.bench_pictures import photo_tile
from sr_assets.bench_report import as_json, statistic, table
from sr_assets.cli import main
from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import load_network, load_upscaler
from sr_assets.stores.registry import publish
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.experts.running import run_expert
from sr_models.export.onnx import export_onnx
from sr_models.export.weights import serialise_weights

MACHINE = Machine("a CPU", "AVX2", 2, {"torch": "2"})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))


def compact(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Compact(num_feat=8, num_conv=2, upscale=2).eval()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("graph") / "a.onnx"
    export_onnx(compact(), 2, 1, path)
    return path.read_bytes()


@pytest.fixture
def model(tmp_path: Path, graph: bytes) -> Path:
    path = tmp_path / "net_x2.safetensors"
    path.write_bytes(serialise_weights(compact().state_dict(), {}))
    path.with_name("net_x2_fp32.onnx").write_bytes(graph)
    return path


def small(model: Path, *images: Path, **more: object) -> BenchReport:
    more = {"repeats": 2, "backends": ["channels-last", "onnxruntime"], **more}
    return bench(str(model), images, root=model.parent, device="cpu", tile=24, halo=4, **more)


def test_every_backend_is_timed_and_compared_on_every_picture(model: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    report = small(model, tmp_path / "a.png")
    assert [r.name for r in report.results] == ["torch", "channels-last", "onnxruntime"]
    for result in report.results:
        assert result.lacking is None and result.passes()
        assert set(result.timings) == {"photos", str(tmp_path / "a.png")}
        assert all(len(t.wall) == len(t.cpu) == 2 for t in result.timings.values())
        assert result.max_difference < 1e-5
        assert result.psnr_y == pytest.approx(report.results[0].psnr_y, abs=0.01)
    assert report.megapixels(report.pictures[1]) == pytest.approx(20 * 50 * 4 / 1e6)
    told = json.loads(json.dumps(as_json(report)))
    assert told["model"]["parameters"] == sum(p.numel() for p in compact().parameters())
    assert told["model"]["digest"] == load_network(str(model), tmp_path, "cpu").digest
    seconds = told["images"][1]["seconds"]["onnxruntime"]["wall"]
    assert seconds["minimum"] <= seconds["median"] == seconds["mean"] <= seconds["maximum"]
    assert {r["name"] for r in told["backends"]} == {r.name for r in report.results}
    assert told["system"]["threads"] == torch.get_num_threads()


def test_a_quantised_file_is_measured_and_never_taken_unasked(model: Path, graph: bytes) -> None:
    # Not quantised at all: as fast and as good as it gets, and still not to be taken.
    model.with_name("net_x2_int8-cpu.onnx").write_bytes(graph)
    report = small(model, backends=["onnxruntime-int8"])
    assert report.results[1].lacking is None and report.results[1].psnr_to_torch > 60
    assert report.choice() == Choice("torch", "torch")


def test_what_cannot_run_says_why_and_is_left_out(model: Path, tmp_path: Path) -> None:
    report = small(model, backends=["onnxruntime-int8"])
    lacking = report.results[1]
    assert lacking.lacking is not None and lacking.lacking.startswith("there is no <model>")
    assert not lacking.passes()
    assert f"onnxruntime-int8: {lacking.lacking}" in list(table(report))
    assert as_json(report)["backends"][1]["lacking"] == lacking.lacking


def result(
    name: str, seconds: list[float], exactness: str = "exact", **more: float
) -> BackendResult:
    made = BackendResult(
        name, exactness, integer=False, timings={"photos": Timing(seconds, seconds)}
    )
    for key, value in {"loss": 0.0, **more}.items():
        setattr(made, key, value)
    return made


def test_the_choice_is_by_the_ratio_within_each_repeat_among_those_that_pass(model: Path) -> None:
    report = small(model, repeats=1, backends=["channels-last"])
    report.results = [
        result("torch", [2.0, 20.0, 2.0]),
        result("wrong", [0.1, 1.0, 0.1], max_difference=0.01),
        result("lossy", [0.2, 2.0, 0.2], "near", loss=0.006, psnr_to_torch=70.0),
        result("coarse", [0.2, 2.0, 0.2], "near", loss=0.0, psnr_to_torch=64.0),
        result("near", [0.5, 5.0, 0.5], "near", loss=0.004, psnr_to_torch=66.0),
        # Its median is that of a machine that was busy twice; its ratios are 2.
        result("exact", [1.0, 10.0, 1.0], max_difference=5e-5),
    ]
    assert report.choice() == Choice("near", "exact")
    assert report.speed(report.results[-1]) == pytest.approx(2.0)


def test_statistics_are_those_of_a_sample() -> None:
    told = statistic([1.0, 2.0, 6.0])
    assert (told["mean"], told["median"], told["minimum"], told["maximum"]) == (3, 2, 1, 6)
    assert told["deviation"] == pytest.approx(math.sqrt(7))
    assert statistic([1.0])["deviation"] == 0


@pytest.mark.parametrize(("tile", "scale"), [(24, 2), (25, 3), (96, 8)])
def test_the_photos_fill_one_tile(tile: int, scale: int) -> None:
    picture = photo_tile(tile, scale)
    assert picture.lr.shape == (tile, tile, 3)
    assert picture.hr is not None and picture.hr.shape == (tile * scale, tile * scale, 3)
    assert np.array_equal(picture.lr, downscale_uint8(picture.hr, scale))
    assert picture.hr.std(axis=(0, 1)).min() > 10


def test_a_choice_is_for_these_weights_on_this_machine_only() -> None:
    remember("abc", MACHINE, Choice("openvino", "compile"))
    remember("other", MACHINE, Choice("torch", "torch"))
    assert recall("abc", MACHINE) == Choice("openvino", "compile")
    for other in (
        Machine("a CPU", "AVX2", 3, {"torch": "2"}),
        Machine("a CPU", "AVX2", 2, {"torch": "3"}),
        Machine("a CPU", "AVX2", 2, {"torch": "2", "openvino": "1"}),
        Machine("a CPU", "AVX512", 2, {"torch": "2"}),
        Machine("another CPU", "AVX2", 2, {"torch": "2"}),
    ):
        assert recall("abc", other) is None
    assert recall("abd", MACHINE) is None


def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path) -> None:
    file = remember("abc", MACHINE, Choice("torch", "torch"))
    for text in ("{", "[]", file.read_text(encoding="utf-8").replace("default", "elsewhere")):
        file.write_text(text, encoding="utf-8")
        assert recall("abc", MACHINE) is None
    remember("abc", MACHINE, Choice("torch", "torch"))
    assert recall("abc", MACHINE) == Choice("torch", "torch")


def test_auto_takes_what_was_remembered_else_channels_last(model: Path, tmp_path: Path) -> None:
    lr = torch.rand(1, 3, 17, 12)
    expected = run_expert(load_network(str(model), tmp_path, "cpu").subject.expert, lr).sr
    unmeasured = load_upscaler(str(model), tmp_path, "cpu")
    assert unmeasured.backend == "channels-last"
    network = load_network(str(model), tmp_path, "cpu")
    assert load_upscaler(str(model), tmp_path, "cpu", "exact").backend == "channels-last"
    remember(network.digest, this_machine(network.device), Choice("onnxruntime", "torch"))
    measured = load_upscaler(str(model), tmp_path, "cpu")
    assert measured.backend == "onnxruntime"
    assert load_upscaler(str(model), tmp_path, "cpu", "exact").backend == "torch"
    for upscaler in (unmeasured, measured, load_upscaler(str(model), tmp_path, "cpu", "torch")):
        assert torch.allclose(upscaler.forward(lr), expected, atol=1e-5)
    assert load_upscaler(str(model), tmp_path, "cpu", "torch").backend == "torch"


def test_what_was_remembered_and_runs_no_more_is_told(model: Path, tmp_path: Path) -> None:
    network = load_network(str(model), tmp_path, "cpu")
    remember(network.digest, this_machine(network.device), Choice("onnxruntime-int8", "torch"))
    with pytest.warns(UserWarning, match="there is no .* channels-last instead"):
        assert load_upscaler(str(model), tmp_path, "cpu").backend == "channels-last"
    with pytest.raises(StageError, match="backend onnxruntime-int8: there is no"):
        load_upscaler(str(model), tmp_path, "cpu", "onnxruntime-int8")
    with pytest.raises(StageError, match="no backend 'quick'"):
        load_upscaler(str(model), tmp_path, "cpu", "quick")


def test_a_release_brings_its_own_graphs_checked_by_digest(model: Path, tmp_path: Path) -> None:
    files = {name: (tmp_path / name).read_bytes() for name in (model.name, "net_x2_fp32.onnx")}
    manifest = {
        "model": "net", "kind": "plain", "architecture": "Compact", "scale": 2, "licence": "MIT",
        "content": "c", "data": {}, "metrics": {},
    }  # fmt: skip
    half = {"net_x2_fp16.safetensors": files[model.name], "net_x2.pth": b"the same again"}
    release = publish(UPath(tmp_path / "root/registry"), {**half, **files}, manifest)
    lr = torch.rand(1, 3, 9, 9)
    upscaler = load_upscaler("net", tmp_path / "root", "cpu", "onnxruntime")
    assert torch.allclose(upscaler.forward(lr), compact()(lr), atol=1e-5)
    assert not (tmp_path / "cache" / "onnx").exists()
    damaged = Path(str(release.path)) / "net_x2_fp32.onnx"
    damaged.chmod(0o644)
    damaged.write_bytes(b"")
    with pytest.raises(StageError, match=r"fp32\.onnx is not what was released"):
        load_upscaler("net", tmp_path / "root", "cpu", "onnxruntime")


def test_a_fusion_has_no_backends_to_choose_from(tmp_path: Path) -> None:
    path = tmp_path / "gate.safetensors"
    path.write_bytes(serialise_weights({"a": torch.zeros(1)}, {"kind": "gate"}))
    with pytest.raises(StageError, match="gate is a fusion, which runs its experts in torch"):
        bench(str(path), root=tmp_path, device="cpu")
    with pytest.raises(StageError, match="leave --backend openvino out"):
        load_upscaler(str(path), tmp_path, "cpu", "openvino")


def test_wrong_words_are_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for more, message in (
        ({"backends": ["quick"]}, "no backend 'quick'"),
        ({"images": [tmp_path / "text.png"]}, r"text\.png"),
        ({"images": [tmp_path / "none.png"]}, r"none\.png cannot be read"),
        ({"tile": 8, "halo": 4}, "--tile 8 must be more than twice the halo"),
    ):
        with pytest.raises(StageError, match=message):
            bench(str(model), root=tmp_path, device="cpu", **more)


def test_the_command_prints_a_table_and_writes_the_report(model: Path, tmp_path: Path) -> None:
    words = ["bench", str(model), "--tile", "16", "--halo", "2", "--repeats", "1"]
    report = tmp_path / "report.json"
    only = CliRunner().invoke(main, [*words, "--backend", "channels-last", "-o", str(report)])
    assert only.exit_code == 0, only.output
    assert "| channels-last |" in only.output and "Nothing is remembered" in only.output
    assert not (tmp_path / "cache" / "backends.json").exists()
    assert json.loads(report.read_text(encoding="utf-8"))["tile"] == 16


@pytest.mark.slow
def test_the_command_remembers_what_the_next_one_takes(model: Path, tmp_path: Path) -> None:
    words = ["bench", str(model), "--tile", "16", "--halo", "2", "--repeats", "1"]
    report = tmp_path / "report.json"
    done = CliRunner().invoke(main, [*words, "-o", str(report)])
    assert done.exit_code == 0, done.output
    taken = json.loads(report.read_text(encoding="utf-8"))["default"]
    assert f"srd upscale takes {taken} from now on" in done.output
    assert load_upscaler(str(model), tmp_path, "cpu").backend == taken
