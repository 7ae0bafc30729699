"""`srd build-engine` where TensorRT is not installed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sr_assets.cli import main
from sr_models.export.onnx import export_onnx
from sr_models.networks import build_network


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["build-engine", *map(str, arguments)])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "net_x2_fp32.onnx"
    export_onnx(build_network("Compact", 2, {"num_feat": 4, "num_conv": 1}), 2, 1, path)
    return path


def test_without_tensorrt_it_says_what_is_missing_in_one_line(graph: Path) -> None:
    pytest.importorskip("onnx")
    result = run(graph)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "TensorRT is not installed here" in line and "net_x2_fp32.onnx" in line
    assert not graph.with_suffix(".engine").exists()


def test_a_file_can_be_checked_anywhere(graph: Path, tmp_path: Path) -> None:
    result = run(graph, "--check")
    assert result.exit_code == 0 and "nothing that TensorRT would refuse" in result.output
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(graph.read_bytes()[:100])
    result = run(broken, "--check")
    assert result.exit_code == 1 and "the ONNX checker refuses it" in result.stderr


def test_wrong_files_and_profiles_are_named(graph: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "none.onnx")
    assert result.exit_code == 1 and "there is no file" in result.stderr
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"input": {"min": [1, 3, 64, 64]}}))
    result = run(graph, "--profile", profile)
    assert result.exit_code == 1 and "no profile of shapes" in result.stderr
