"""Enlarging and comparing picture files with tiny real networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from spandrel.architectures.Compact import Compact
from torch import nn
from upath import UPath

from sr_assets import compare
from sr_assets.compare import compare_files
from sr_assets.lineage.stage import StageError
from sr_assets.model_files import from_registry
from sr_assets.model_lookup import Upscaler, load_upscaler
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.stores.checkpoint import write_model
from sr_assets.stores.registry import publish
from sr_assets.upscaling.enlarging import upscale_picture
from sr_assets.upscaling.files import UpscaleReport, upscale_files
from sr_models.export.weights import serialise_weights
from sr_models.fusion.gate import GateFusion
from sr_models.metrics.images import to_uint8


def compact(scale: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Compact(num_feat=8, num_conv=2, upscale=scale).eval()


def save(path: Path, network: nn.Module, **metadata: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    path.write_bytes(serialise_weights(network.state_dict(), texts))
    return path


def photo(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def whole(network: nn.Module, pixels: np.ndarray, **more: Any) -> np.ndarray:
    lr = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()[None] / 255
    with torch.no_grad():
        return to_uint8(network(lr, **more))[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "models" / "net.safetensors", compact())


def run(model: Path | str, source: Path, output: Path, **more: Any) -> UpscaleReport:
    more.setdefault("root", output.parent / "root")
    return upscale_files(str(model), source, output, device="cpu", **more)


def test_one_file_is_the_networks_picture(model: Path, tmp_path: Path) -> None:
    pixels = photo(tmp_path / "a.png")
    report = run(model, tmp_path / "a.png", tmp_path / "b.png")
    assert report.written == [tmp_path / "b.png"] and report.exit_code == 0
    assert report.megapixels == pytest.approx(80 * 60 / 1e6)
    got = np.asarray(Image.open(tmp_path / "b.png"))
    assert np.array_equal(got, whole(compact(), pixels))


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    tile=st.integers(12, 40),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_tiles_do_not_show(width: int, height: int, tile: int, seed: int) -> None:
    network = compact(seed=seed)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with torch.no_grad():
        upscaler = Upscaler("net", 2, torch.device("cpu"), lambda lr: network(lr).detach())
        done: list[float] = []
        got = upscale_picture(upscaler, pixels, tile, 5, done.append)
    expected = whole(network, pixels)
    # Sums of another order may round a tie to the other side.
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert sum(done) == pytest.approx(width * height * 4)


def test_a_folder_keeps_its_tree_and_goes_on_after_a_bad_picture(
    model: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    photo(source / "a.png")
    photo(source / "deep" / "b.JPG")
    photo(source / "scan.tif")
    photo(source / "drawing.gif")
    photo(source / "drawing.png")
    (source / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (source / "notes.txt").write_text("no picture")
    lines: list[str] = []
    report = run(model, source, output, tell=lines.append)
    assert {p.relative_to(output).as_posix() for p in report.written} == {
        "a.png", "deep/b.JPG", "scan.tif", "drawing.gif.png", "drawing.png.png",
    }  # fmt: skip
    assert [p.name for p, _ in report.failed] == ["broken.png"] and report.exit_code == 1
    assert any("broken.png" in line for line in lines)
    assert not [f for f in output.rglob("*") if f.name.endswith(".tmp")]
    with Image.open(output / "deep" / "b.JPG") as image:
        assert image.format == "JPEG" and image.size == (80, 60)


def test_a_folder_resumes_and_overwrites_when_told(model: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "in" / "out"
    photo(source / "a.png")
    photo(source / "b.png", seed=1)
    run(model, source / "a.png", output / "a.png")
    (output / "a.png").write_bytes(b"kept")
    report = run(model, source, output)  # below the input: its own results are no input
    assert report.skipped == [output / "a.png"] and report.written == [output / "b.png"]
    assert (output / "a.png").read_bytes() == b"kept"
    assert run(model, source, output).written == []
    assert len(run(model, source, output, overwrite=True).written) == 2
    assert (output / "a.png").read_bytes() != b"kept"


def test_no_picture_becomes_its_own_input(model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "in" / "a.png", seed=1)
    before = (tmp_path / "in" / "a.png").read_bytes()
    for source, output in (("in/a.png", "in"), ("in", ".")):  # in/in/a.png would go to in/a.png
        with pytest.raises(StageError, match="is an input itself"):
            run(model, tmp_path / source, tmp_path / output, overwrite=True)
    assert (tmp_path / "in" / "a.png").read_bytes() == before


def test_a_folder_goes_into_the_folder_above_it(model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    assert run(model, tmp_path / "in", tmp_path).written == [tmp_path / "a.png"]


def test_a_killed_write_leaves_no_picture(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "a.png")

    def fail(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    report = run(model, tmp_path / "a.png", tmp_path / "out.png")
    assert report.failed == [(tmp_path / "a.png", "no space left")]
    assert not (tmp_path / "out.png").exists()
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_webp_beyond_its_limit_is_a_failure_of_that_picture(model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "wide.png", width=8200, height=2)
    report = run(model, tmp_path / "wide.png", tmp_path / "wide.webp")
    assert len(report.failed) == 1 and not (tmp_path / "wide.webp").exists()


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        ("missing", "out", "no file or folder"),
        ("in", "in", "input folder itself"),
        ("in", "file.png", "is a file"),
        ("in/a.png", "in/a.png", "input itself"),
        ("in/a.png", "b.bmp", "written as"),
        ("empty", "out", "holds no pictures"),
    ],
)
def test_wrong_words_are_told(
    model: Path, tmp_path: Path, source: str, output: str, told: str
) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=told):
        run(model, tmp_path / source, tmp_path / output)


def test_a_tile_within_its_halo_is_told(model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    with pytest.raises(StageError, match="--tile 60"):
        run(model, tmp_path / "a.png", tmp_path / "b.png", tile=60, halo=32)


def test_a_checkpoint_folder_and_a_release_run_the_same_network(tmp_path: Path) -> None:
    network, root = compact(), tmp_path / "root"
    folder = OutputFolder(UPath(root / "model" / "net" / "checkpoint" / "a1"))
    write_model(folder, network, {"architecture": "Compact", "kind": "plain", "scale": 2})
    checkpoint = folder.commit({"asset": "model/net/checkpoint", "metadata": {}})
    weights = checkpoint.read_bytes("model.safetensors")
    manifest = {
        "model": "net", "kind": "plain", "architecture": "Compact", "scale": 2, "licence": "MIT",
        "content": "c", "data": {}, "metrics": {},
    }  # fmt: skip
    release = publish(UPath(root / "registry"), {"net_x2.safetensors": weights}, manifest)
    pixels = photo(tmp_path / "a.png")
    for name in (str(checkpoint.path), "net", "net@1", str(release.path)):
        target = tmp_path / f"{name.replace('/', '_')}.png"
        run(name, tmp_path / "a.png", target, root=root)
        assert np.array_equal(np.asarray(Image.open(target)), whole(network, pixels))
    assert load_upscaler(str(checkpoint.path), root, "cpu").name == "net"
    damaged = Path(str(release.path)) / "net_x2.safetensors"
    damaged.chmod(0o644)
    damaged.write_bytes(weights[:-1] + b"\x00")
    with pytest.raises(StageError, match="not what was released"):
        load_upscaler("net", root, "cpu")


def test_a_release_in_a_registry_elsewhere_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    weights = serialise_weights(compact().state_dict(), {})
    manifest = {
        "model": "net", "kind": "plain", "architecture": "Compact", "scale": 2, "licence": "MIT",
        "content": "c", "data": {}, "metrics": {},
    }  # fmt: skip
    place = "memory://upscale-registry"
    publish(UPath(place), {"net_x2.safetensors": weights}, manifest)
    base = {"name": "t", "datasets": {"a": {"source": {"kind": "folder", "path": "a"}}}}
    recipe = Recipe.model_validate({**base, "release": {"registry": place}})
    root = UPath(tmp_path / "root")
    found = from_registry(recipe, root, "net")
    assert load_upscaler(found, root, "cpu").name == "net@1.0.0"
    times = {p.name: p.stat().st_mtime_ns for p in Path(found).iterdir()}
    assert from_registry(recipe, root, "net@1") == found
    assert {p.name: p.stat().st_mtime_ns for p in Path(found).iterdir()} == times
    for word in (found, "other/net.pth", "net.safetensors"):
        assert from_registry(recipe, root, word) == word
    assert from_registry(Recipe.model_validate(base), root, "net") == "net"
    with pytest.raises(StageError, match="no released model 'nets'"):
        from_registry(recipe, root, "nets")


def test_unknown_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nothing is released yet"):
        load_upscaler("net", tmp_path, "cpu")
    with pytest.raises(StageError, match="no file or folder"):
        load_upscaler("weights/net.pth", tmp_path, "cpu")
    (tmp_path / "text.safetensors").write_bytes(b"no weights")
    with pytest.raises(StageError, match=r"text\.safetensors"):
        load_upscaler(str(tmp_path / "text.safetensors"), tmp_path, "cpu")
    with pytest.raises(StageError, match="holds no weights file"):
        load_upscaler(str(tmp_path.parent), tmp_path, "cpu")


def fusion_in(tmp_path: Path) -> tuple[Path, dict[str, nn.Module], GateFusion]:
    """A gate's export file and its two experts, each also with newer, other weights."""
    experts = {"one": compact(seed=1), "two": compact(seed=2)}
    digests = {}
    for name, network in experts.items():
        for age, content in enumerate((network, compact(seed=9))):
            folder = OutputFolder(UPath(tmp_path / "root/expert" / name / f"weights/a{age}"))
            sha256 = folder.write_bytes(
                "weights.safetensors", serialise_weights(content.state_dict(), {})
            )
            folder.write_json("expert.json", {"sha256": sha256}, content=False)
            folder.commit({"metadata": {"sha256": sha256}})
            digests.setdefault(name, sha256)
    torch.manual_seed(4)
    gate = GateFusion(list(experts), 2, width=4, depth=1)
    nn.init.normal_(gate.gate.weight)
    path = save(
        tmp_path / "fusion.safetensors",
        gate,
        kind="gate",
        architecture="GateFusion",
        experts=list(experts),
        expert_weights=digests,
        args={"width": 4, "depth": 1},
        scale=2,
    )
    return path, experts, gate.eval()


def test_a_fusion_runs_the_experts_it_was_exported_with(tmp_path: Path) -> None:
    path, experts, gate = fusion_in(tmp_path)
    pixels = photo(tmp_path / "a.png")
    run(path, tmp_path / "a.png", tmp_path / "b.png", root=tmp_path / "root")
    lr = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()[None] / 255
    with torch.no_grad():
        expected = to_uint8(gate(lr, {n: e(lr) for n, e in experts.items()}))[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), expected)
    assert load_file(path).keys() == gate.state_dict().keys()


def test_a_fusion_without_its_experts_says_which(tmp_path: Path) -> None:
    path, _, _ = fusion_in(tmp_path)
    with pytest.raises(StageError, match="runs expert one: no weights with sha256"):
        load_upscaler(str(path), tmp_path / "elsewhere", "cpu")


def test_compare_measures_and_shows_every_way(tmp_path: Path) -> None:
    from sr_models.degradations.bicubic import downscale_uint8
    from sr_models.metrics.images import psnr_y, ssim_y

    hr = photo(tmp_path / "a.png", 161, 121)[:120, :160]
    models = [str(save(tmp_path / f"m{i}.safetensors", compact(seed=i))) for i in range(2)]
    report = compare_files(
        tmp_path / "a.png", models, tmp_path / "sheet.png", root=tmp_path, device="cpu", panel=64
    )
    assert [row.name for row in report.rows] == ["bicubic", "m0", "m1"]
    assert (report.width, report.height, report.scale) == (160, 120, 2)
    sr = whole(compact(seed=1), downscale_uint8(hr, 2))
    assert report.rows[2].psnr_y == pytest.approx(psnr_y(sr, hr, 2))
    assert report.rows[2].ssim_y == pytest.approx(ssim_y(sr, hr, 2))
    assert report.rows[0].psnr_y > 35  # a smooth picture: bicubic alone is near
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 64 + 22 and sheet.width >= 4 * 64


def test_the_panel_is_where_the_ways_differ() -> None:
    a = np.zeros((100, 200, 3), np.uint8)
    b = a.copy()
    b[70:80, 150:160] = 255
    top, left = compare._most_different([a, b], 40)
    assert top <= 70 and top + 40 >= 80 and left <= 150 and left + 40 >= 160
    assert compare._most_different([a, b], 500) == (0, 0)


def test_compare_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    two = str(save(tmp_path / "two.safetensors", compact(2)))
    four = str(save(tmp_path / "four.safetensors", compact(4)))
    photo(tmp_path / "a.png", 80, 80)
    photo(tmp_path / "small.png", 12, 80)

    def run_compare(source: str, *models: str) -> None:
        compare_files(tmp_path / source, models, tmp_path / "o.png", root=tmp_path, device="cpu")

    with pytest.raises(StageError, match="one scale"):
        run_compare("a.png", two, four)
    with pytest.raises(StageError, match="needs sides of"):
        run_compare("small.png", two)
    with pytest.raises(StageError, match="no file"):
        run_compare("gone.png", two)
    with pytest.raises(StageError, match="at least one model"):
        run_compare("a.png")
    assert not (tmp_path / "o.png").exists()


@pytest.mark.shared
def test_a_published_network_reaches_its_measured_figure(shared_data: Path, tmp_path: Path) -> None:
    report = compare_files(
        shared_data / "benchmarks" / "Set5" / "img_003_SRF_4_HR.png",
        [str(shared_data / "weights" / "spanx4_ch48.safetensors")],
        tmp_path / "sheet.png",
        root=tmp_path,
        device="cpu",
    )
    assert report.rows[1].psnr_y == pytest.approx(28.63, abs=0.01)
