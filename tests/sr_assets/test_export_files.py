"""The export stage on small real networks: which files there are, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_project import Project, plain, recipe
from safetensors.torch import load

from sr_assets.assets import export
from sr_assets.lineage.stage import StageError
from sr_models.export import parity

COMPACT = plain("Compact", num_feat=5, num_conv=2)
FIGURES = {
    "max_difference", "mean_difference", "psnr_y_to_torch", "psnr_y", "psnr_y_change",
    "seconds_per_megapixel", "patches",
}  # fmt: skip


def exported(root: Path, files: dict[str, bool], model: dict[str, Any] = COMPACT) -> Any:
    project = Project(root, recipe({"net": model}, files))
    network = project.checkpoint("net")
    output = project.export("net")
    return network, output, output.read_json("export.json")


def test_every_file_is_measured_beside_the_network(tmp_path: Path) -> None:
    network, output, report = exported(tmp_path, {"onnx": True, "fp16": True, "pth": True})
    names = {
        "net_x2.safetensors", "net_x2.pth", "net_x2_fp16.safetensors", "net_x2_fp32.onnx",
        "net_x2_fp16.onnx",
    }  # fmt: skip
    assert set(report["files"]) == names and report["held_back"] == {}
    assert output.read_json("description.json")["files"] == sorted(names)
    assert report["measured_on"] == {
        "samples": 4, "hr_side": 32, "datasets": ["photos"],
        "patches": report["measured_on"]["patches"],
    }  # fmt: skip
    assert len(set(report["measured_on"]["patches"])) == len(report["torch"]["patches"]) == 4
    assert np.mean(report["torch"]["patches"]) == pytest.approx(report["torch"]["psnr_y"])
    for name, file in report["files"].items():
        assert file["sha256"] == output.marker["files"][name]["sha256"]
        assert file["size"] == len(output.read_bytes(name))
        figures = file["parity"]
        assert set(figures) == FIGURES and figures["seconds_per_megapixel"] > 0
        exact = "fp16" not in name
        assert file["precision"] == ("fp32" if exact else "fp16")
        assert (figures["max_difference"] < 1e-5) is exact
        to_torch = figures["psnr_y_to_torch"]
        assert to_torch is None or to_torch > (100 if exact else 60)
        expected = report["torch"]["psnr_y"] + figures["psnr_y_change"]
        assert figures["psnr_y"] == pytest.approx(expected)
        assert name in output.metadata["files"]["md"]
        changes = [patch["psnr_y_change"] for patch in figures["patches"]]
        assert np.mean(changes) == pytest.approx(figures["psnr_y_change"], abs=1e-9)
        assert name in output.metadata["patches"]["md"]
    assert all(
        name in output.metadata["patches"]["md"] for name in report["measured_on"]["patches"]
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    half = load(output.read_bytes("net_x2_fp16.safetensors"))
    assert all(torch.equal(half[k], v.half()) for k, v in network.state_dict().items())


def test_exports_are_the_same_bytes_again(tmp_path: Path) -> None:
    wanted = {"onnx": True, "fp16": True, "pth": True, "tensorrt": True}
    project = Project(tmp_path, recipe({"net": COMPACT}, wanted))
    project.checkpoint("net")
    one, two = (project.export("net", address) for address in ("one", "two"))
    assert one.data_version == two.data_version
    for name in one.read_json("export.json")["files"]:
        assert one.read_bytes(name) == two.read_bytes(name), name


def test_fewer_files_are_another_content(tmp_path: Path) -> None:
    _, one, _ = exported(tmp_path / "one", {"fp16": True})
    _, two, report = exported(tmp_path / "two", {})
    assert list(report["files"]) == ["net_x2.safetensors"]
    assert one.data_version != two.data_version  # or a release would keep its version
    assert one.read_bytes("net_x2.safetensors") == two.read_bytes("net_x2.safetensors")


def test_a_file_that_fails_its_gate_is_held_back_with_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_assets.assets.exporting import onnx_files, weights_files

    monkeypatch.setattr(onnx_files, "HALF_PSNR", 500.0)  # no fp16 file is as near as that
    monkeypatch.setattr(weights_files, "HALF_PSNR", 500.0)
    _, output, report = exported(tmp_path, {"onnx": True, "fp16": True})
    assert set(report["files"]) == {"net_x2.safetensors", "net_x2_fp32.onnx"}
    assert set(report["held_back"]) == {"net_x2_fp16.safetensors", "net_x2_fp16.onnx"}
    for name, reason in report["held_back"].items():
        assert reason.startswith("PSNR-Y to torch is ") and reason.endswith("below 500 dB")
        assert name not in output.marker["files"] and name in output.metadata["held_back"]
    assert export.held_back(report)[0].startswith("net_x2_fp16.onnx: PSNR-Y to torch is")
    assert output.read_json("description.json")["files"] == sorted(report["files"])


def test_without_the_weights_themselves_there_is_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity.Gate, "refusal", lambda gate, measured: "differs")
    with pytest.raises(StageError, match=r"net_x2\.safetensors: differs"):
        exported(tmp_path, {})


def test_a_graph_that_differs_on_real_patches_is_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_assets.assets.exporting import onnx_files

    def other_bias(subject: Any, content: bytes) -> Any:
        model = onnx.load_from_string(content)
        (bias,) = (t for t in model.graph.initializer if list(t.dims) == [12])
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.5)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return runner(subject, model.SerializeToString())

    runner = onnx_files.graph_runner
    monkeypatch.setattr(onnx_files, "graph_runner", other_bias)
    _, _, report = exported(tmp_path, {"onnx": True})
    assert report["held_back"] == {"net_x2_fp32.onnx": "differs from torch by 0.5, above 0.0001"}
    assert report["onnx"] == {"error": "differs from torch by 0.5, above 0.0001"}


def test_fusions_are_measured_with_their_experts_run_live(tmp_path: Path) -> None:
    wanted = {"onnx": True, "fp16": True, "pth": True, "whole": True, "int8": True}
    project = Project(tmp_path, recipe({"g": {"kind": "gate"}}, wanted, ("one", "three")))
    project.checkpoint("g")
    output = project.export("g")
    report = output.read_json("export.json")
    assert set(report["files"]) == {
        "g_x2.safetensors", "g_x2.pth", "g_x2_fp16.safetensors", "g_x2_fp32.onnx",
        "g_x2_whole_fp32.onnx",
    }  # fmt: skip
    assert report["spandrel"] is None and report["onnx"]["inputs"] == ["lr", "one", "three"]
    assert all(file["parity"]["max_difference"] < 1e-3 for file in report["files"].values())
    content = output.read_bytes("g_x2_whole_fp32.onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (sr,) = session.run(["output"], {"input": np.zeros((1, 3, 13, 17), np.float32)})
    assert sr.shape == (1, 3, 26, 34)


def test_video_and_tensorrt_files(tmp_path: Path) -> None:
    model = plain("paragonsr2_realtime", channels=8)
    _, output, report = exported(tmp_path, {"video": True, "tensorrt": True}, model)
    names = {
        "net_x2.safetensors", "net_x2_video_fp32.onnx", "net_x2_trt-fp16.onnx",
        "net_x2_trt-profile.json",
    }  # fmt: skip
    assert set(report["files"]) == names
    assert report["files"]["net_x2_video_fp32.onnx"]["video"]["clip_difference"] < 1e-5
    profile = output.read_json("net_x2_trt-profile.json")
    told = onnx.load_from_string(output.read_bytes("net_x2_trt-fp16.onnx")).metadata_props
    assert json.loads({p.key: p.value for p in told}["tensorrt_profile"]) == profile
    assert report["files"]["net_x2_trt-profile.json"]["parity"] is None
    assert "not on TensorRT" in report["files"]["net_x2_trt-fp16.onnx"]["backend"]


def test_int8_files_name_what_they_lose(tmp_path: Path) -> None:
    from sr_models.export.tensorrt import lint

    _, output, report = exported(tmp_path, {"int8": True})
    for target in ("cpu", "trt"):
        name = f"net_x2_int8-{target}.onnx"
        assert (name in report["files"]) != (name in report["held_back"])
        if name in report["held_back"]:
            assert "dB" in report["held_back"][name]
            continue
        file = report["files"][name]
        assert file["precision"] == "int8" and file["int8"]["drop"] <= 0.05
        assert -file["parity"]["psnr_y_change"] <= 0.2
        if target == "trt":
            assert lint(output.read_bytes(name)) == ()


def test_int8_files_are_of_the_folded_network(tmp_path: Path) -> None:
    """What is measured and run in fp32 is folded: the quantised file must not have more to do."""
    model = plain("paragonsr2_realtime", channels=8)
    _, output, report = exported(tmp_path, {"int8": True, "onnx": True}, model)
    names = ("net_x2_int8-cpu.onnx", "net_x2_int8-trt.onnx")
    made = [name for name in names if name in report["files"]]
    assert made
    for name in made:
        weights = [
            list(tensor.dims)
            for tensor in onnx.load_from_string(output.read_bytes(name)).graph.initializer
        ]
        # The 5x5 convolution of the features to 3 channels of 2x2 pixels.
        assert any(dims[::2] == [12, 5] for dims in weights if len(dims) == 4)
    plainly = onnx.load_from_string(output.read_bytes("net_x2_fp32.onnx")).graph.initializer
    assert not any(list(tensor.dims)[2:] == [5, 5] for tensor in plainly)


def test_coreml_is_told_not_to_have_run(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    _, output, report = exported(tmp_path, {"coreml": True})
    file = report["files"]["net_x2.mlpackage.zip"]
    assert file["parity"] is None and "not run" in file["backend"]
    assert file["coreml"]["output"] == "output"
    assert "not measured" in output.metadata["files"]["md"]


def test_only_the_code_of_files_that_are_asked_for_counts() -> None:
    def modules(files: dict[str, bool]) -> set[str]:
        (stage,) = export.stages(recipe({"net": COMPACT}, files))
        return set(stage.modules)

    everything = dict.fromkeys(
        ("onnx", "fp16", "pth", "int8", "video", "whole", "coreml", "tensorrt"), True
    )
    added = modules(everything) - modules({})
    assert {name.rsplit(".", 1)[1] for name in added} == {
        "onnx_files", "int8_files", "video_files", "whole_files", "coreml_files", "tensorrt_files",
    }  # fmt: skip
    for name in everything:
        one, other = ({**everything, name: asked} for asked in (True, False))
        (with_it,), (without,) = (export.stages(recipe({"net": COMPACT}, f)) for f in (one, other))
        assert with_it.settings != without.settings
